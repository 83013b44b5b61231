"""Registers randwire-zoo's models when timm is imported, without anybody importing randwire-zoo.

torch (2.5 and newer) calls the entry points of the group `torch.backends` at the end of `import torch`. That group is
meant for device backends; using it for a registration is off-label, and the README says so. This one only puts a
finder in front of `sys.meta_path`, which imports `randwire_zoo.models` once `timm.models` has been executed.

Whatever goes wrong here must not break `import torch` or timm: only the standard library is imported, nothing is
raised, and a registration that fails becomes one warning. TORCH_DEVICE_BACKEND_AUTOLOAD=0 switches all of it off.
"""
import importlib
import sys
import warnings

# Importing the key calls for importing the value right after it.
_FOLLOWERS = {'timm.models': 'randwire_zoo.models'}


class _Finder:
    """Finds the modules of `_FOLLOWERS` as the other finders do, with a loader that also runs `_follow`."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _FOLLOWERS:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, 'find_spec'):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, 'exec_module'):
                    _wrap(spec.loader, fullname)
                return spec
        return None


def _wrap(loader, fullname):
    """Let this one loader object call `_follow` after it has executed the module."""
    exec_module = loader.exec_module

    def exec_and_follow(module):
        exec_module(module)
        _follow(fullname)

    try:
        loader.exec_module = exec_and_follow
    except AttributeError:
        pass  # a loader that takes no attributes, such as a frozen application's: explicit import still works


def _follow(fullname):
    follower = _FOLLOWERS[fullname]
    try:
        importlib.import_module(follower)
    except Exception as error:
        warnings.warn(
            f'randwire-zoo could not register its models ({type(error).__name__}: {error}); '
            'everything else works. Set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to keep it from trying.',
            RuntimeWarning, stacklevel=2)


def install():
    """Entry point: install the finder once; follow at once where the module is already there."""
    try:
        if not any(type(finder).__name__ == '_Finder' and type(finder).__module__ == __name__
                   for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
        for fullname in _FOLLOWERS:
            if fullname in sys.modules:
                _follow(fullname)
    except Exception as error:
        warnings.warn(f'randwire-zoo could not install its import hook: {error}', RuntimeWarning, stacklevel=2)
