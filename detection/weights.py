"""Backbone weights: found by name or path, read safely, and checked against the network before anything is loaded.

A source is
- a file: a checkpoint of timm's train.py (its moving average where it has one) or of detectron2, a bare state dict, or
  safetensors; or a whole detector of detectron2's or torchvision's, of which the backbone is taken;
- `randwire://<arch.tag>`: published weights, by the name under which timm knows them;
- `hf-hub:<owner>/<name>[@<revision>]`: a model repository of the Hugging Face Hub, spelled as timm spells it.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from randwire_zoo.files import read_json
from randwire_zoo.weights.description import Description
from randwire_zoo.weights.errors import loading
from randwire_zoo.weights.files import read_metadata
from randwire_zoo.weights.manifest import FILENAME, HubError, PublishedWeights, download, fetch, read_weights
from randwire_zoo.weights.mark import OPTIONAL

__all__ = ['SCHEMES', 'STAGES', 'are_near', 'compare_statistics', 'detectors_backbone', 'fit_weights',
           'locate_weights', 'misfit', 'pixel_statistics', 'read_state', 'read_statistics', 'unneeded']

SCHEMES = ('randwire://', 'hf-hub:')
#: Of a classifier, what a backbone has no place for.
HEAD = ('conv_head.', 'bn_head.', 'fc.', 'global_pool.')
#: Where detectors have their backbone: detectron2's below a pyramid, torchvision's, and detectron2's without a pyramid.
PLACES = ('backbone.bottom_up.', 'backbone.body.', 'backbone.')
STAGES = tuple(f'conv{i}.' for i in range(1, 6))


def locate_weights(source: str) -> Path:
    """The local file of a source, brought from the Hub where it lies there.

    Raises:
        FileNotFoundError: if there is no such file.
        HubError: if the Hub cannot be reached, or refuses.
        ValueError: if there are no such weights, or they have been altered.
    """
    if source.startswith('randwire://'):
        return fetch(_published(source))
    if source.startswith('hf-hub:'):
        repo_id, _, revision = source.removeprefix('hf-hub:').partition('@')
        return download(repo_id, revision or None)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f'no weights at {source}')
    return path


def _published(source: str) -> PublishedWeights:
    from randwire_zoo.models import ARCHITECTURES, WEIGHTS, find_weights

    name = source.removeprefix('randwire://').rstrip('/')
    if name.partition('.')[0] not in ARCHITECTURES:
        raise ValueError(f'{source}: unknown name; `randwire-zoo list` shows them')
    row = find_weights(name)
    if row is None:
        raise ValueError(f'{source}: no such weights are published; there are {", ".join(WEIGHTS) or "none"}')
    return row


def read_state(source: str | Path, use_ema: bool = True) -> dict[str, Tensor]:
    """Read weights by their plain names, of the moving average if there is one and it is wanted.

    Of published weights, what is hashed is what is loaded.

    Raises:
        FileNotFoundError: if there is no such file.
        HubError: if the Hub cannot be reached, or refuses.
        ValueError: if there are no such weights, they have been altered, or the file is empty, truncated, unsafe to
            unpickle, or holds something else than weights.
    """
    from timm.models import load_state_dict

    if str(source).startswith('randwire://'):
        return read_weights(_published(str(source)))
    path = locate_weights(str(source))
    with loading(path):
        state = load_state_dict(str(path), use_ema=use_ema)
        other = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
        if other is not None or not state:
            raise ValueError('it holds no weights' + (f', but {other!r}' if other is not None else ''))
    return state


def read_statistics(source: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation, within 0 … 1, of the RGB images that weights were trained with.

    The manifest says it of published weights, config.json of those in a repository of the Hub or in a folder staged
    for it, its description of a detector's file, and its settings of a training's checkpoint. None where nothing says
    it, or the images were not RGB.

    Raises:
        HubError: if the Hub cannot be reached, or refuses.
        ValueError: if there are no such published weights.
    """
    try:
        mean, std = _statistics(source)
    except HubError as error:
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        cause = error.__cause__
        if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
            return None  # the repository has no config.json
        raise
    return (mean, std) if len(mean) == len(std) == 3 else None


def _statistics(source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if source.startswith('randwire://'):
        row = _published(source)
        return row.mean, row.std
    config = None
    if source.startswith('hf-hub:'):
        repo_id, _, revision = source.removeprefix('hf-hub:').partition('@')
        config = download(repo_id, revision or None, 'config.json', f'config.json of {source}')
    elif Path(source).name == FILENAME:
        config = Path(source).with_name('config.json')
    try:
        if config is not None and config.is_file():
            cfg = read_json(config)['pretrained_cfg']
            return tuple(map(float, cfg['mean'])), tuple(map(float, cfg['std']))
        if source.endswith('.safetensors') and 'detector' in (metadata := read_metadata(source)):
            detector = json.loads(metadata['detector'])
            return tuple(map(float, detector['image_mean'])), tuple(map(float, detector['image_std']))
        description = Description.from_checkpoint(source)
        return description.mean, description.std
    except (KeyError, TypeError, ValueError):  # of no network that was trained
        return (), ()


def pixel_statistics(mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """`MODEL.PIXEL_MEAN` and `PIXEL_STD` of a network's statistics: of values up to 255, of RGB as timm's networks."""
    own_mean, own_std = ([round(255 * value, 3) for value in values] for values in (mean, std))
    return own_mean, own_std


def are_near(one: Iterable[Sequence[float]], other: Iterable[Sequence[float]]) -> bool:
    """Whether statistics of pixels are the same to half a step."""
    return all(len(a) == len(b) and all(abs(x - y) <= 0.5 for x, y in zip(a, b, strict=True))
               for a, b in zip(one, other, strict=True))


def compare_statistics(source: str, mean: Sequence[float], std: Sequence[float], channels: str) -> str:
    """One line if a detectron2 model feeds weights other images, or other statistics, than trained them.

    Args:
        source: Where the weights come from. Those that do not say what they were trained with are passed over.
        mean: The model's `pixel_mean`: `MODEL.PIXEL_MEAN` of a yaml config.
        std: Its `pixel_std`: `MODEL.PIXEL_STD`.
        channels: Its `input_format`: `INPUT.FORMAT`; empty where nobody says it. Whatever it is, detectron2 hands its
            channels to conv1 as they come, which knows RGB.
    """
    if len(mean) != 3:
        return ''
    try:
        trained = read_statistics(source)
    except (OSError, ValueError):  # of the Hub, too
        trained = None
    if trained is None:
        return ''
    wanted = pixel_statistics(*trained)
    if channels not in ('RGB', ''):
        return (f'{source} was trained on RGB images, and this model gets {channels}: set INPUT.FORMAT RGB (in a '
                'LazyConfig model.input_format and dataloader.train.mapper.image_format), '
                f'MODEL.PIXEL_MEAN {wanted[0]} and MODEL.PIXEL_STD {wanted[1]}')
    if are_near(wanted, (mean, std)):
        return ''
    return (f'{source} was trained with MODEL.PIXEL_MEAN {wanted[0]} and PIXEL_STD {wanted[1]} (of RGB), and this '
            f'model has {list(mean)} and {list(std)}')


def fit_weights(state: Mapping[str, Tensor], model: nn.Module, name: str, source: object) -> dict[str, Tensor]:
    """Of some weights those that a backbone has a place for, once it is certain that nothing is missing or left over.

    Args:
        state: Weights by plain names, of a whole classifier or of a backbone; or of a whole detector of detectron2 or
            torchvision.
        model: A RandWire network, which may lack the head and its last stages.
        name: Its name, for the error.
        source: Where the weights come from, for the error.

    Raises:
        ValueError: naming what does not fit; or that the weights were trained on other wiring.
    """
    state = detectors_backbone(state) or state
    wanted = model.state_dict()
    for path, module in model.named_modules():
        key = f'{path}._extra_state'
        if key in wanted and key in state:
            try:
                module.set_extra_state(state[key])
            except ValueError as error:
                raise ValueError(f'{source} does not fit {name}: {error}') from None
    missing = [key for key in wanted if key not in state]
    shapes = [(key, tuple(state[key].shape), tuple(tensor.shape)) for key, tensor in wanted.items()
              if key in state and state[key].shape != tensor.shape]
    spare = unneeded(model)
    unexpected = [key for key in state if key not in wanted and not key.startswith(spare)]
    message = misfit(missing, shapes, unexpected)
    if message:
        raise ValueError(f'{source} does not fit {name}: {message}')
    return {key: state[key] for key in wanted if key in state}


def detectors_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's part of a whole detector's weights, by plain names; empty where they are of no detector."""
    place = next((place for place in PLACES if any(key.startswith(place) for key in state)), None)
    return {} if place is None else {
        key.removeprefix(place): tensor for key, tensor in state.items() if key.startswith(place)}


def unneeded(model: nn.Module) -> tuple[str, ...]:
    """How the names begin of what a classifier has and a backbone does without: stages taken away, and the head."""
    present = {key.partition('.')[0] + '.' for key in model.state_dict()}
    return tuple(prefix for prefix in (*STAGES, *HEAD) if prefix not in present)


def misfit(missing: list[str], shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]],
           unexpected: list[str]) -> str:
    """Say in one line what does not fit; nothing where all does.

    Args:
        missing: Names that the weights lack.
        shapes: Name, shape in the weights and shape in the network.
        unexpected: Names that the network lacks.
    """
    parts = []
    for what, names in (
            ('it lacks', missing), ('of another shape are',
             [f'{name} ({_by(loaded)}, not {_by(own)})' for name, loaded, own in shapes]),
            ('the network has no', unexpected)):
        names = [name for name in names if not name.endswith(OPTIONAL)]
        if names:
            more = f' and {len(names) - 3} more' if len(names) > 3 else ''
            parts.append(f'{what} {", ".join(names[:3])}{more}')
    return '; '.join(parts)


def _by(shape: tuple[int, ...]) -> str:
    return '×'.join(map(str, shape)) or 'scalar'
