"""Registers randwire-zoo when timm or detectron2 is imported, without anybody importing randwire-zoo.

torch (2.5 and newer) calls the entry points of the group `torch.backends` at the end of `import torch`. That group is
meant for device backends; using it for a registration is off-label, as docs/registration.md says. This one only puts a
finder in front of `sys.meta_path`, which imports a module of ours once one of theirs has been executed. `import
randwire_zoo` does the same.

Whatever goes wrong here must not break `import torch` or timm: only the standard library is imported, nothing is
raised, and a registration that fails becomes one warning. TORCH_DEVICE_BACKEND_AUTOLOAD=0 switches all of it off.
"""
import importlib
import sys
import threading
import warnings
import weakref
from typing import Any

# Importing the key calls for importing the last of the values right after it. If the key had been imported before, and
# this is another module of that name, those of the values that are there belong to the old one and are run again.
_FOLLOWERS = {
    'timm.models': ('randwire_zoo.models',),
    'detectron2.modeling.backbone': (
        'randwire_zoo.detection.detectron2.checkpoints', 'randwire_zoo.detection.detectron2.backbone',
        'randwire_zoo.detection.detectron2.builders'),
}
_followed: dict[str, weakref.ref[Any]] = {}


class _Finder:
    """Finds the modules of `_FOLLOWERS` as the other finders do, with a loader that also runs `_follow`."""

    def __init__(self) -> None:
        self.local = threading.local()

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname not in _FOLLOWERS:
            return None
        asking: set[str] = vars(self.local).setdefault('asking', set())
        if fullname in asking:
            return None
        asking.add(fullname)  # another finder that asks all finders, as this one does, must not come back here
        try:
            for finder in sys.meta_path:
                if finder is self or not hasattr(finder, 'find_spec'):
                    continue
                spec: Any = finder.find_spec(fullname, path, target)
                if spec is not None:
                    if hasattr(spec.loader, 'exec_module'):
                        spec.loader = _Loader(spec.loader)
                    return spec
        finally:
            asking.discard(fullname)
        return None


class _Loader:
    """Another loader, until it executes the module: then it leaves that one in its place, and calls `_follow` after it.

    A loader object may serve many modules (zipimport's does) and may refuse attributes, so it is not changed itself.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, 'loader'), name)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        _follow(module.__name__)


def _follow(fullname: str) -> None:
    try:
        module, before = sys.modules[fullname], _followed.get(fullname)
        _followed[fullname] = weakref.ref(module)
        if before is not None and before() is not module:
            for follower in _FOLLOWERS[fullname]:
                if follower in sys.modules:
                    importlib.reload(sys.modules[follower])
        importlib.import_module(_FOLLOWERS[fullname][-1])
    except Exception as error:
        _warn(f'randwire-zoo could not register with {fullname} ({type(error).__name__}: {error}); everything else '
              'works. Set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to keep it from trying.')


def _warn(message: str) -> None:
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=1)
    except Warning:  # warnings are errors (python -W error), and nothing may be raised here
        print(message, file=sys.stderr)


def install() -> None:
    """Entry point: install the finder once; follow at once where the module is already there."""
    try:
        # By name: the class is another one if this module was imported twice.
        if not any((type(finder).__module__, type(finder).__name__) == (__name__, '_Finder')
                   for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
        for fullname in _FOLLOWERS:
            if fullname in sys.modules:
                _follow(fullname)
    except Exception as error:
        _warn(f'randwire-zoo could not install its import hook ({type(error).__name__}: {error})')
