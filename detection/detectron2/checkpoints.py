"""What `MODEL.WEIGHTS` may name for a model with a RandWire backbone, beyond what detectron2 reads itself.

detectron2's checkpointer matches names and only warns where nothing matches, and its file readers know neither timm's
checkpoints nor the Hub. Three of its methods are wrapped here. `load` warns of a frozen backbone that gets no weights;
the private one that reads a file finds the backbone's place in the detector, and warns if the weights know other images
than the model gets; the private one that loads what was read makes sure that no tensor of the backbone was left as it
was, and that none was left over. Models of yaml configs, LazyConfigs and plain Python all pass here.

This is the one place where a class of detectron2's is changed, as it has no hook for it; it happens when `backbone` is
imported, so where no RandWire backbone is built, detectron2 is as it was, and models without one are loaded by the
methods as they were.
"""
from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.checkpoint.detection_checkpoint import DetectionCheckpointer
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.utils.file_io import PathHandler, PathManager
from torch import nn

from randwire_zoo.network import RandWire

from ..weights import (
    SCHEMES,
    STAGES,
    compare_statistics,
    detectors_backbone,
    fit_weights,
    locate_weights,
    misfit,
    read_state,
    unneeded,
)
from .datasets import logger

__all__ = ['WeightsHandler', 'extend_checkpointer']

#: What the checkpointer has been given as a local file and is about to open, by that file: published weights are read
#: by their name, so that what is hashed is what is loaded.
_SOURCES: dict[str, str] = {}
#: An attribute of the methods that are ours. Whoever wraps them with functools.wraps takes it over.
MARK = '_loads_randwire_backbones'


class WeightsHandler(PathHandler):
    """Resolves `randwire://…` and `hf-hub:…` for detectron2's path manager."""

    def _get_supported_prefixes(self) -> list[str]:
        return list(SCHEMES)

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        local = str(locate_weights(path))
        _SOURCES[local] = path
        return local

    def _open(self, path: str, mode: str = 'r', buffering: int = -1, **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering)


def _backbones(model: nn.Module) -> dict[str, Any]:
    """The RandWire backbones in a detector, by the prefix of their names."""
    return {f'{name}.' if name else '': child for name, child in model.named_modules()
            if isinstance(child, RandWire) and isinstance(child, Backbone)}


def _wrap_load(original: Any) -> Any:
    @functools.wraps(original)
    def load(self: DetectionCheckpointer, path: str, *args: Any, **kwargs: Any) -> Any:
        for backbone in () if path else _backbones(self.model).values():
            if backbone.num_frozen or any(isinstance(module, FrozenBatchNorm2d) for module in backbone.modules()):
                logger.warning(
                    'MODEL.WEIGHTS is empty, but stages or norms of %s are frozen and keep random parameters. Name '
                    'weights (in a LazyConfig train.init_checkpoint), or train all of it with MODEL.BACKBONE.FREEZE_AT '
                    '0 MODEL.RESNETS.NORM BN (in a LazyConfig freeze_at=0 norm=BN of the backbone)', backbone.name)
        return original(self, path, *args, **kwargs)

    return load


def _wrap_torch_load(original: Any) -> Any:
    @functools.wraps(original)
    def _torch_load(self: DetectionCheckpointer, f: str) -> Any:
        backbones = _backbones(self.model)
        if not backbones:
            return original(self, f)
        source = _SOURCES.pop(f, f)
        state = read_state(source)
        pickled = not str(f).endswith('.safetensors')
        places = tuple(prefix + stage for prefix in backbones if prefix for stage in STAGES)
        if any(name.startswith(places) for name in state):
            # A whole detector, with what else its checkpoint holds.
            return original(self, f) if pickled else {'model': state}
        # With a backbone alone its own checkpoint looks as weights from elsewhere do, but has more in it. What a whole
        # detector's has is of another training.
        own = pickled and '' in backbones and not detectors_backbone(state)
        rest = _other_entries(original, self, f) if own else {}
        model = {prefix + name: tensor for prefix, backbone in backbones.items()
                 for name, tensor in fit_weights(state, backbone, backbone.name, f).items()}
        _compare_images(self.model, source)
        return {**rest, 'model': model}

    return _torch_load


def _compare_images(model: nn.Module, source: str) -> None:
    """Warn if the images that a model gets are not those of the weights that it starts from."""
    mean, std = ([round(value, 3) for value in tensor.flatten().tolist()] for tensor in (
        _first(model, name, torch.Tensor, torch.zeros(0)) for name in ('pixel_mean', 'pixel_std')))
    if difference := compare_statistics(source, mean, std, _first(model, 'input_format', str, '')):
        logger.warning('%s', difference)


def _first(model: nn.Module, name: str, kind: type, default: Any) -> Any:
    """An attribute of the outermost module that has it."""
    values = (getattr(module, name, None) for module in model.modules())
    return next((value for value in values if isinstance(value, kind)), default)


def _other_entries(original: Any, checkpointer: DetectionCheckpointer, f: str) -> dict[str, Any]:
    """Optimizer, iteration and whatever else lies beside the model in a checkpoint that detectron2 has written."""
    with torch.serialization.safe_globals([argparse.Namespace]):  # in timm's checkpoints, which hold nothing for us
        loaded = original(checkpointer, f)
    if not isinstance(loaded.get('model'), Mapping):
        return {}
    # Names are matched already.
    return {name: entry for name, entry in loaded.items() if name not in ('model', 'matching_heuristics')}


def _wrap_load_model(original: Any) -> Any:
    @functools.wraps(original)
    def _load_model(self: DetectionCheckpointer, checkpoint: Any) -> Any:
        incompatible = original(self, checkpoint)
        for prefix, backbone in _backbones(self.model).items():
            spare = unneeded(backbone)
            # detectron2 finds places for names without the prefix, too; others stay as they are.
            surplus = [name for name in incompatible.unexpected_keys if name.startswith((prefix, *STAGES))
                       and not name.removeprefix(prefix).startswith(spare)]
            message = misfit(
                [name for name in incompatible.missing_keys if name.startswith(prefix)],
                [row for row in incompatible.incorrect_shapes if row[0].startswith(prefix)], surplus)
            if message:
                raise ValueError(f'the weights do not fit the backbone {backbone.name}: {message}')
        return incompatible

    return _load_model


def extend_checkpointer() -> None:
    """Teach detectron2's checkpointer and its path manager the weights of RandWire backbones, once."""
    PathManager.register_handler(WeightsHandler(), allow_override=True)
    for name, wrap in (('load', _wrap_load), ('_torch_load', _wrap_torch_load), ('_load_model', _wrap_load_model)):
        method = getattr(DetectionCheckpointer, name)
        if not hasattr(method, MARK):  # and not `__wrapped__`, which other people's wrappers have too
            method = wrap(method)
            setattr(method, MARK, True)
            setattr(DetectionCheckpointer, name, method)
