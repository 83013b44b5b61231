"""The one description of a trained network: how to build it again, and how to feed it as it was fed.

Whoever trains writes it, and whoever evaluates, stages, publishes or loads reads it: the trainer builds its model and
its loaders through it, so that it cannot say anything else than what was trained. Settings of timm's own train.py
give the same description, because its arguments are resolved here as train.py resolves them.
"""
from __future__ import annotations

import argparse
import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ..architectures import Architecture
from ..errors import nearest, one_line
from ..files import read_json, read_yaml
from .errors import loading

__all__ = ['ARGUMENTS', 'CROP_MODES', 'WEIGHT_SOURCES', 'Description', 'build_model', 'labels_beside', 'read_settings']

#: Arguments of create_model, by the settings of train.py that give them.
ARGUMENTS = {'num_classes': 'num_classes', 'in_chans': 'in_chans', 'gp': 'global_pool', 'drop': 'drop_rate',
             'drop_path': 'drop_path_rate', 'drop_block': 'drop_block_rate', 'bn_momentum': 'bn_momentum',
             'bn_eps': 'bn_eps'}
#: Arguments of create_model that say where weights to start from lie, and nothing about what was made of them.
WEIGHT_SOURCES = ('pretrained_cfg', 'pretrained_cfg_overlay')
CROP_MODES = ('center', 'squash', 'border')


@dataclass(frozen=True)
class Description:
    """All it takes to build a trained network again and to feed it as it was fed.

    Args:
        architecture: timm's name of it, without a tag: `randwire_ws_c109`, `randwire`, `resnet50`.
        arguments: Everything else that `create_model` was given and that decides what the network computes or how it
            trains: num_classes, in_chans, global_pool, drop_rate, drop_path_rate and the model_kwargs. JSON, no None;
            `graphs`, where a network of `randwire` is given by them, as `Graph.to_dict` has them.
        input_size: Channels, height and width of the images; the channels are the network's.
        mean: Of the normalisation, one number per channel, for pixels within 0 … 1.
        std: Of the normalisation, likewise.
        interpolation: Of the resizing, one of timm's names.
        crop_pct: Share of the resized image's side that is left after cropping.
        crop_mode: 'center', 'squash' or 'border', see timm.
        label_names: Names of the classes, in the order of their indices, where the data set names them.

    Raises:
        ValueError: naming the field that has a value of another type or out of range.
    """

    architecture: str
    arguments: Mapping[str, Any]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = 'center'
    label_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ('architecture', 'interpolation', 'crop_mode'):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f'{name} must be text, got {getattr(self, name)!r}')
        if self.crop_mode not in CROP_MODES:
            raise ValueError(f'crop_mode must be one of {", ".join(map(repr, CROP_MODES))}, got {self.crop_mode!r}')
        object.__setattr__(self, 'arguments', _json_arguments(self.arguments))
        size = _sequence('input_size', self.input_size)
        if len(size) != 3 or not all(type(side) is int and side > 0 for side in size):  # True is an int, too
            raise ValueError(f'input_size must be three positive integers, got {self.input_size!r}')
        if self.arguments.get('in_chans', size[0]) != size[0]:
            raise ValueError(f'input_size has {size[0]} channels, but in_chans is {self.arguments["in_chans"]}')
        object.__setattr__(self, 'input_size', size)
        for name in ('mean', 'std'):
            values = _sequence(name, getattr(self, name))
            if len(values) != size[0] or not all(_is_number(value) for value in values):
                raise ValueError(f'{name} must be a number for each of the {size[0]} channels, '
                                 f'got {getattr(self, name)!r}')
            object.__setattr__(self, name, tuple(float(value) for value in values))
        if min(self.std) <= 0:
            raise ValueError(f'std must be above 0, got {self.std!r}')
        if not _is_number(self.crop_pct) or self.crop_pct <= 0:
            raise ValueError(f'crop_pct must be a number above 0, got {self.crop_pct!r}')
        object.__setattr__(self, 'crop_pct', float(self.crop_pct))
        labels = _sequence('label_names', self.label_names)
        if not all(isinstance(label, str) for label in labels):
            raise ValueError(f'label_names must be texts, got {self.label_names!r}')
        object.__setattr__(self, 'label_names', labels)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], for_training: bool = True) -> Description:
        """Resolve the settings of a training as train.py does, without building the network.

        Args:
            settings: Of timm's train.py or our trainer: what args.yaml holds, or the arguments in a checkpoint.
            for_training: False resolves them as validate.py does: by the model's own test size, and by crop_mode.

        Raises:
            ValueError: naming what is missing or contradicts itself.
        """
        from timm.data import resolve_data_config

        name = settings.get('model')
        if not isinstance(name, str) or not name:
            raise ValueError('the settings name no model')
        kwargs = settings.get('model_kwargs') or {}
        if not isinstance(kwargs, Mapping):
            raise ValueError(f'model_kwargs must be a mapping of names to values, got {kwargs!r}')
        published = _starts_from_published(settings, kwargs)
        architecture, cfg, saved = _resolve_name(name, kwargs, published)
        arguments = {argument: settings[key] for key, argument in ARGUMENTS.items() if settings.get(key) is not None}
        size = settings.get('input_size')
        if 'in_chans' not in kwargs:
            # Of a training train.py's 3, whatever was saved with the model; otherwise the network's own.
            own = 3 if for_training else saved.get('in_chans', 3)
            arguments.setdefault('in_chans', size[0] if size else own)
        for argument, value in kwargs.items():
            if value is not None and arguments.setdefault(argument, value) != value:
                key = next(key for key, named in ARGUMENTS.items() if named == argument)
                raise ValueError(f'{argument} is given twice, as {key}: {arguments[argument]!r} and in model_kwargs: '
                                 f'{value!r}')
        for argument in WEIGHT_SOURCES:
            arguments.pop(argument, None)
        arguments = {**saved, **arguments}
        if cfg.get('num_classes') is not None:
            arguments.setdefault('num_classes', cfg['num_classes'])
        channels = arguments['in_chans']
        for key in ('mean', 'std'):
            if settings.get(key) is not None and len(_sequence(key, settings[key])) not in (1, channels):
                raise ValueError(f'{key} must be one number or one for each of the {channels} channels, '
                                 f'got {settings[key]!r}')
        data = resolve_data_config({**settings, 'in_chans': channels}, pretrained_cfg=cfg,
                                   use_test_size=not for_training)
        if not size:
            data['input_size'] = (channels, *data['input_size'][1:])
        for key in ('mean', 'std'):
            if len(data[key]) != channels:  # as timm's loaders do it
                data[key] = (fmean(data[key]),) * channels
        if for_training:
            data['crop_mode'] = 'center'  # train.py hands none to its loader, whatever the model's configuration says
        names = tuple(cfg.get('label_names') or ()) if published and not for_training else ()
        if len(names) == arguments.get('num_classes'):  # those of the weights, which evaluation asks the images for
            data['label_names'] = names
        return cls(architecture, arguments, **data)

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Description:
        """The description of what a training's checkpoint holds.

        Our trainer records it in the checkpoint; for train.py's it follows from the settings in it, or in an args.yaml
        beside it.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it cannot be read, or there are no settings.
        """
        settings = read_settings(path)
        recorded = settings.get('description')
        try:
            return cls.from_settings(settings) if recorded is None else cls.from_dict(recorded)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from None

    def with_settings(self, settings: Mapping[str, Any]) -> Description:
        """The same with some settings changed: those of `from_settings` but the model, and crop_mode.

        Raises:
            ValueError: naming what is out of range or contradicts itself.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        arguments = {**self.arguments, **{ARGUMENTS[name]: value for name, value in given.items() if name in ARGUMENTS},
                     **given.get('model_kwargs', {})}
        channels = given.get('in_chans', given.get('input_size', self.input_size)[0])
        size = given.get('input_size') or (channels, *(given.get('img_size', side) for side in self.input_size[1:]))
        data = {name: given[name] for name in ('interpolation', 'crop_pct', 'crop_mode') if given.get(name)}
        for name in ('mean', 'std'):
            values = _sequence(name, given.get(name, getattr(self, name)))
            data[name] = values * channels if len(values) == 1 else values
        return replace(self, arguments={**arguments, 'in_chans': channels}, input_size=size, **data)

    def create_model(self, name: str = '', **overrides: Any) -> Any:
        """Build the network, an nn.Module whose `pretrained_cfg` says how it is fed.

        Args:
            name: Build it under this name instead: one with a tag or a source, whose weights it is to start from.
            overrides: Arguments of `create_model` laid over the recorded ones, such as `checkpoint_path`.

        Raises:
            ValueError: if the name is unknown, has no weights, or does not take an argument.
        """
        model = build_model(name or self.architecture, **{**self.arguments, **overrides})
        model.pretrained_cfg = {**(getattr(model, 'pretrained_cfg', None) or {}), **self.data_config()}
        return model

    def data_config(self) -> dict[str, Any]:
        """How to feed it, in the form of timm's `resolve_data_config`."""
        return {'input_size': self.input_size, 'interpolation': self.interpolation, 'mean': self.mean, 'std': self.std,
                'crop_pct': self.crop_pct, 'crop_mode': self.crop_mode}

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {field.name: json.loads(json.dumps(getattr(self, field.name))) for field in fields(self)}

    @classmethod
    def from_dict(cls, data: Any) -> Description:
        """Read what `to_dict` gave.

        Raises:
            ValueError: naming the field that is missing, unknown, of another type or out of range.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f'a description is a mapping of names to values, got {data!r}')
        names = [field.name for field in fields(cls)]
        if unknown := [str(name) for name in data if name not in names]:
            raise ValueError(f'a description has no {", ".join(unknown)}; it has {", ".join(names)}')
        if missing := [name for name in names if name not in data and name not in ('crop_mode', 'label_names')]:
            raise ValueError(f'the description lacks {", ".join(missing)}')
        return cls(**data)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that a checkpoint was trained with: those inside it, or those of an args.yaml beside it.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if it cannot be read, or there are no settings.
    """
    from timm.utils.checkpoint_saver import load_checkpoint_metadata

    path = Path(path)
    with loading(path):
        state = load_checkpoint_metadata(str(path)) if path.suffix != '.safetensors' else {}
    settings = state.get('args') if isinstance(state, Mapping) else None
    if isinstance(settings, argparse.Namespace):
        settings = vars(settings)
    beside = path.parent / 'args.yaml'
    if settings is None:
        if not beside.is_file():
            raise ValueError(f'{path} holds no settings of a training, and there is no args.yaml beside it')
        path = beside
        settings = read_yaml(beside)
    if not isinstance(settings, Mapping):
        raise ValueError(f'{path} holds no settings of a training')
    return dict(settings)


def labels_beside(weights: str | Path, architecture: str = '') -> tuple[tuple[str, ...], dict[str, str]]:
    """What the config.json beside a safetensors file, as timm's folders for the Hub have it, says of the classes.

    Args:
        weights: The file.
        architecture: Only if the network there is this one.

    Returns:
        Their names in the order of the indices, and what they are called, by name; both empty where nothing is said.
    """
    weights = Path(weights)
    if weights.suffix != '.safetensors':
        return (), {}
    with suppress(OSError, ValueError, AttributeError, KeyError, TypeError):  # there is none, or another program's
        config = read_json(weights.parent / 'config.json')
        names, texts = tuple(config.get('label_names') or ()), dict(config.get('label_descriptions') or {})
        if (all(isinstance(name, str) for name in (*names, *texts.values())) and len(names) == config['num_classes']
                and architecture in ('', config['architecture'])):
            return names, texts
    return (), {}


def build_model(name: str, **kwargs: Any) -> Any:
    """timm's `create_model`, with one-line errors; gives an nn.Module.

    Raises:
        ValueError: if the name is unknown, has no weights, or does not take an argument.
    """
    from timm.models import create_model

    try:
        return create_model(name, **kwargs)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f'cannot create the model {name!r}: {one_line(error)}{_nearest_argument(error)}') from error


def _nearest_argument(error: Exception) -> str:
    """Of an argument that RandWire does not take, the one that may have been meant."""
    from ..network import RandWire

    match = re.search(r"RandWire.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if match is None or 'Did you mean' in str(error):  # Python 3.13 has said it
        return ''
    return nearest(match[1], [*inspect.signature(RandWire).parameters, *(field.name for field in fields(Architecture))])


def _starts_from_published(settings: Mapping[str, Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the settings ask for the published weights of their name, and not for others in their place."""
    from ..models import SOURCES  # which is built on this module

    overlay = kwargs.get('pretrained_cfg_overlay') or {}
    return bool(settings.get('pretrained')) and not settings.get('pretrained_path') and not any(
        overlay.get(source) for source in SOURCES)


def _resolve_name(
        name: str, kwargs: Mapping[str, Any], pretrained: bool) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The architecture, timm's configuration and the saved arguments that a name with its tag or source stands for."""
    from timm.models import (
        is_model,
        load_model_config_from_hf,
        parse_model_name,
        resolve_pretrained_cfg,
        split_model_name_tag,
    )
    from timm.models._hub import load_model_config_from_path

    from ..models import find_weights  # which is built on this module

    source, identifier = parse_model_name(name)
    saved: Mapping[str, Any] | None = None
    try:
        if source is None:
            architecture, tag = split_model_name_tag(identifier)
            cfg = kwargs.get('pretrained_cfg') or tag
            if pretrained and not cfg and (row := find_weights(architecture)) is not None:
                cfg = row.tag  # which need not be timm's default tag
        else:
            load = load_model_config_from_hf if source == 'hf-hub' else load_model_config_from_path
            cfg, architecture, saved = load(identifier)
        if not is_model(architecture):
            raise RuntimeError(f'Unknown model ({architecture})')
        resolved = resolve_pretrained_cfg(
            architecture, pretrained_cfg=cfg or None, pretrained_cfg_overlay=kwargs.get('pretrained_cfg_overlay'))
        if source is None and (cfg or pretrained):
            saved = getattr(resolved, 'model_args', None)  # published weights bring the arguments of their network
    except (OSError, RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f'cannot create the model {name!r}: {one_line(error)}') from error
    return architecture, resolved.to_dict(), dict(saved or {})


def _json_arguments(arguments: Any) -> dict[str, Any]:
    """Arguments as JSON has them, None left out."""
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise ValueError(f'arguments must be a mapping of names to values, got {arguments!r}')
    result = {}
    for name, value in arguments.items():
        try:
            plain = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            raise ValueError(f'the argument {name} must be text, a number, true, false, or a list or mapping of such, '
                             f'got {value!r}') from None
        if plain is not None:
            result[name] = plain
    return result


def _sequence(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f'{name} must be a list, got {value!r}')
    return tuple(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
