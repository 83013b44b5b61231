"""What `MODEL.WEIGHTS` may name once this module is imported, beyond what detectron2 reads itself.

detectron2's checkpointer matches names and only warns where nothing matches, and its file readers know neither timm's
checkpoints nor the Hub. For models with a RandWire backbone, and for no others, its two private methods for reading a
file and for loading what was read are wrapped here: the first one finds the backbone's place in the detector, the
second one makes sure that no tensor of the backbone was left as it was. This is the one place where a class of
detectron2's is changed; it has no hook for it.
"""
from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.checkpoint.detection_checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathHandler, PathManager

from .weights import SCHEMES, fit_weights, locate_weights, misfit, read_state

if TYPE_CHECKING:
    from torch import nn

    from .backbone import RandWireBackbone

__all__ = ['WeightsHandler']


class WeightsHandler(PathHandler):
    """Resolves `randwire://…` and `hf-hub:…` for detectron2's path manager."""

    def _get_supported_prefixes(self) -> list[str]:
        return list(SCHEMES)

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(locate_weights(path))

    def _open(self, path: str, mode: str = 'r', buffering: int = -1, **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering)


def _backbones(model: nn.Module) -> dict[str, RandWireBackbone]:
    """The RandWire backbones in a detector, by the prefix of their names."""
    module = sys.modules.get('randwire_zoo.detection.backbone')
    if module is None:  # then nobody can have made one, and timm need not be imported
        return {}
    return {f'{name}.' if name else '': child for name, child in model.named_modules()
            if isinstance(child, module.RandWireBackbone)}


def _wrap_torch_load(original: Any) -> Any:
    @functools.wraps(original)
    def _torch_load(self: DetectionCheckpointer, f: str) -> Any:
        backbones = _backbones(self.model)
        if not backbones:
            return original(self, f)
        state = read_state(Path(f))
        if any(name.startswith(prefix) for prefix in backbones if prefix for name in state):
            # A whole detector, with what else its checkpoint holds.
            return {'model': state} if str(f).endswith('.safetensors') else original(self, f)
        return {'model': {prefix + name: tensor for prefix, backbone in backbones.items()
                          for name, tensor in fit_weights(state, backbone, backbone.name, f).items()}}

    return _torch_load


def _wrap_load_model(original: Any) -> Any:
    @functools.wraps(original)
    def _load_model(self: DetectionCheckpointer, checkpoint: Any) -> Any:
        incompatible = original(self, checkpoint)
        for prefix, backbone in _backbones(self.model).items():
            message = misfit(
                [name for name in incompatible.missing_keys if name.startswith(prefix)],
                [row for row in incompatible.incorrect_shapes if row[0].startswith(prefix)], [])
            if message:
                raise ValueError(f'the weights do not fit the backbone {backbone.name}: {message}')
        return incompatible

    return _load_model


def _install() -> None:
    PathManager.register_handler(WeightsHandler(), allow_override=True)
    for name, wrap in (('_torch_load', _wrap_torch_load), ('_load_model', _wrap_load_model)):
        method = getattr(DetectionCheckpointer, name)
        if not hasattr(method, '__wrapped__'):
            setattr(DetectionCheckpointer, name, wrap(method))


_install()
