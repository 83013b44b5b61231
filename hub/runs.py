"""What a training has recorded of itself, in the files of timm's trainer or detectron2's; or what is typed instead."""
from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from randwire_zoo.detection.weights import SCHEMES
from randwire_zoo.files import read_summary, read_yaml
from randwire_zoo.models import find_weights
from randwire_zoo.training.evaluation import Conditions
from randwire_zoo.training.recipes import KEYS, OWN, public_settings, scheduled_epochs
from randwire_zoo.weights.description import ARGUMENTS, WEIGHT_SOURCES, Description, build_model, read_settings
from randwire_zoo.weights.errors import loading
from randwire_zoo.weights.files import read_metadata

__all__ = ['CheckFailed', 'Run', 'find_records', 'read_metrics', 'read_run', 'typed_run']

#: Settings and history of a training: those of timm's trainer, those of detectron2's.
RECORDS = (('args.yaml', 'summary.csv'), ('config.yaml', 'metrics.json'))
#: What is published of detectron2's settings; of timm's, `recipes.public_settings` says it.
PUBLIC_SECTIONS = ('CUDNN_BENCHMARK', 'DATALOADER', 'DATASETS', 'FLOAT32_PRECISION', 'GLOBAL', 'INPUT', 'MODEL', 'SEED',
                   'SOLVER', 'TEST', 'VERSION')

#: What a training can have begun from, or learnt of, beside what has a name that is known to others.
RANDOM, FILE = 'random parameters', 'a file'


class CheckFailed(ValueError):
    """Something that was to be published, or is, is not what it says; the message is one line."""


@dataclass(frozen=True)
class Run:
    """A training, as far as a repository and its card need it.

    Args:
        network: What was trained.
        dataset: What it was trained on.
        unit: What its length is counted in, epoch or iteration; '' where none is recorded.
        step: That the weights are of, from 0.
        steps: Of the whole training.
        seed: Of the training.
        metrics: What was recorded of these very weights, by the names in the history; empty if nothing was.
        conditions: Under which they are measured again: those of the training, but in single precision, as most who
            take the weights run them; None for a detector, whose figures are the whole detector's.
        split: What they were measured on.
        settings: What is published of the settings.
        weights: 'average' of a training, the 'trained' ones themselves, or '' where it is not known.
        beginning: What the parameters were before: the name of published weights, `RANDOM` or `FILE`; '' where it is
            not known.
        teacher: Whose outputs were part of the loss, by timm's name, or `FILE`; '' if nobody's were.
    """

    network: Description
    dataset: str
    unit: str = ''
    step: int = 0
    steps: int = 0
    seed: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    conditions: Conditions | None = None
    split: str = ''
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ''
    beginning: str = ''
    teacher: str = ''


def read_run(checkpoint: Path, recipe: Path, summary: Path | None, name: str | None = None, dataset: str | None = None,
             use_ema: bool = True) -> Run:
    """Read the files of a checkpoint's training.

    Args:
        checkpoint: Of timm, of detectron2, or safetensors of the zoo.
        recipe: args.yaml of timm, or config.yaml of detectron2.
        summary: summary.csv of timm, or metrics.json of detectron2; None if there is none.
        name: The registered name, where the settings do not say it.
        dataset: Likewise.
        use_ema: The weights are to be the moving average where there is one.

    Raises:
        CheckFailed: naming what is recorded nowhere, or does not fit.
    """
    try:
        settings = read_yaml(recipe)
    except ValueError as error:
        raise CheckFailed(str(error)) from None
    if not isinstance(settings, dict):
        raise CheckFailed(f'{recipe} holds no settings of a training')
    described, step, weights = _describe(checkpoint, use_ema)
    try:
        if 'MODEL' in settings:
            run = _read_detectron2(settings, step, dataset or '', summary)
        else:
            run = _read_timm(settings, step, dataset or '', summary, weights)
            run = replace(run, network=_as_recorded(checkpoint, run.network))
    except (KeyError, TypeError) as error:
        raise CheckFailed(f'{recipe} lacks {str(error).strip(chr(39))}') from None
    except CheckFailed:
        raise
    except ValueError as error:
        raise CheckFailed(f'{recipe}: {error}') from None
    own = (run.network.architecture, settings.get('model'))  # a checkpoint has the name that was typed, tag and all
    wrong = next((other for other in (name, described) if other and other not in own), None)
    if wrong:
        raise CheckFailed(f'{recipe} is of a training of {run.network.architecture}, not of {wrong}')
    if not run.dataset:
        raise CheckFailed(f'{recipe} does not say which data the network was trained on; name them with --dataset')
    return run


def typed_run(settings: Mapping[str, Any], dataset: str | None, metrics: Mapping[str, float]) -> Run:
    """A run of which nothing is recorded: what stands in for it was typed.

    Args:
        settings: Of the model and the data, by train.py's names.
        dataset: What the network was trained on.
        metrics: As stated.

    Raises:
        CheckFailed: naming what must be given.
        ValueError: naming what is wrong with a setting.
    """
    for value, option in ((settings.get('model'), '--model'), (dataset, '--dataset')):
        if not value:
            raise CheckFailed(f'{option} must be given: these weights come without settings of a training (args.yaml)')
    return Run(Description.from_settings(settings, for_training=False), str(dataset), metrics=dict(metrics),
               conditions=Conditions())


def _describe(checkpoint: Path, use_ema: bool) -> tuple[str | None, int, str]:
    """The network's name, the epoch or iteration, and what the weights are: 'average', 'trained' or '' for unknown."""
    if checkpoint.suffix == '.safetensors':
        metadata = read_metadata(checkpoint)
        step = metadata.get('epoch', metadata.get('iteration'))
        if step is None:
            raise CheckFailed(f'{checkpoint} does not say of which epoch it is; stage the checkpoint of the training')
        return metadata.get('architecture'), int(step), metadata.get('weights', '')
    from timm.utils.checkpoint_saver import load_checkpoint_metadata

    with loading(checkpoint):
        state = load_checkpoint_metadata(str(checkpoint))
        step = state.get('epoch', state.get('iteration')) if isinstance(state, dict) else None
        if step is None:
            raise ValueError('it is no checkpoint of a training: it has neither epoch nor iteration')
        has_ema = any(state.get(key) is not None for key in ('state_dict_ema', 'model_ema'))
        return state.get('arch'), int(step), 'average' if has_ema and use_ema else 'trained'


def is_training_checkpoint(path: Path) -> bool:
    """Whether a file says of which epoch or iteration of a training it is."""
    try:
        _describe(path, True)
    except (CheckFailed, ValueError):
        return False
    return True


def _read_timm(settings: dict[str, Any], step: int, dataset: str, summary: Path | None, weights: str) -> Run:
    conditions = replace(Conditions.from_settings(settings), amp_dtype=None)
    epochs = scheduled_epochs({**settings, 'epochs': int(settings['epochs'])})
    folder = Path(str(conditions.data_dir)).name if conditions.data_dir else ''
    network = Description.from_settings(settings)
    # Where a moving average was kept, it is what was measured: the trained weights' own figures are not on record.
    # Without a split nothing was.
    was_measured = conditions.split and (not weights or (weights == 'average') == conditions.use_ema)
    metrics = read_metrics(summary, step) if summary is not None and was_measured else {}
    public = {name: value for name, value in public_settings(settings).items() if value is not None}
    beginning = _beginning(settings, network.architecture)
    # Who trains by these settings begins where this training did, or from random parameters: never from other weights.
    public.update(model=network.architecture if beginning in (RANDOM, FILE) else beginning,
                  pretrained=beginning not in (RANDOM, FILE), **({'data_dir': folder} if folder else {}))
    if public.get('model_kwargs'):
        public['model_kwargs'] = {
            key: value for key, value in public['model_kwargs'].items() if key not in WEIGHT_SOURCES}
    if Description.from_settings(public) != network:  # what came with the name or the file that is no part of them
        kept = {name: value for name, value in public.items() if name != 'img_size'}
        public = {**kept, **public_settings(_settings(network)), 'model': public['model']}
    return Run(
        network, dataset or conditions.dataset or folder, 'epoch', step,
        max(epochs, step + 1, _last_epoch(summary) + 1), int(settings['seed']), metrics, conditions,
        str(settings['val_split']), public, weights, beginning, _teacher(settings))


def _settings(network: Description) -> dict[str, Any]:
    """Those from which both trainers build and feed a network as it is described."""
    keys = {argument: key for key, argument in ARGUMENTS.items() if key in KEYS}
    data = {name: list(value) if isinstance(value, tuple) else value for name, value in network.data_config().items()}
    return {**{name: value for name, value in data.items() if name in KEYS},
            **{keys[name]: value for name, value in network.arguments.items() if name in keys},
            'model_kwargs': {name: value for name, value in network.arguments.items() if name not in keys}}


def _beginning(settings: Mapping[str, Any], architecture: str) -> str:
    # train.py reads pretrained_path only where it is to take published weights, and this package's trainer in any case.
    reads_path = settings.get('pretrained') or set(OWN) & set(settings)
    if settings.get('initial_checkpoint') or (settings.get('pretrained_path') and reads_path):
        return FILE  # which comes after, or instead of, published weights
    if not settings.get('pretrained'):
        return RANDOM
    if set(WEIGHT_SOURCES) & set(settings.get('model_kwargs') or {}):
        return FILE
    name = str(settings['model'])
    if name == architecture and (row := find_weights(name)) is not None:
        name = row.name  # another day it may be another's default
    return str(public_settings({'model': name}).get('model', FILE))


def _teacher(settings: Mapping[str, Any]) -> str:
    if settings.get('kd_outputs'):
        return FILE
    name = settings.get('kd_model_name')
    return str(public_settings({'kd_model_name': name}).get('kd_model_name', FILE)) if name else ''


def _as_recorded(checkpoint: Path, network: Description) -> Description:
    """The description that the trainer wrote into its checkpoint, which knows the classes; or the settings' own."""
    try:
        recorded = {} if checkpoint.suffix == '.safetensors' else read_settings(checkpoint).get('description')
    except ValueError:
        recorded = None
    if not recorded:
        return network
    found = Description.from_dict(recorded)
    if odd := [f.name for f in fields(found) if f.name != 'label_names' and getattr(found, f.name) != getattr(
            network, f.name)]:
        raise ValueError(f'it describes another network than {checkpoint}: {odd[0]} {getattr(network, odd[0])!r}, not '
                         f'{getattr(found, odd[0])!r}')
    return found


def _read_detectron2(settings: dict[str, Any], step: int, dataset: str, summary: Path | None) -> Run:
    model = settings['MODEL']
    _check_not_an_evaluation(settings)
    builder = str(model['BACKBONE']['NAME'])
    name = re.sub('^build_|(_retinanet)?(_fpn)?_backbone$', '', builder)
    if settings['INPUT']['FORMAT'] != 'RGB':
        raise CheckFailed(f'the detector was trained on {settings["INPUT"]["FORMAT"]} images; timm has RGB')
    dilation = model.get('RESNETS', {}).get('RES5_DILATION', 1)  # which the builders take as `output_stride`
    arguments = {'num_classes': 0, 'head': False, **({} if dilation == 1 else {'output_stride': 32 // dilation})}
    cfg = build_model(name, device='meta').pretrained_cfg
    network = Description(
        name, arguments, cfg['input_size'], tuple(round(value / 255, 6) for value in model['PIXEL_MEAN']),
        tuple(round(value / 255, 6) for value in model['PIXEL_STD']), cfg['interpolation'], cfg['crop_pct'])
    public = {key: settings[key] for key in PUBLIC_SECTIONS if key in settings}
    return Run(
        network, dataset or ', '.join(settings['DATASETS']['TRAIN']), 'iteration', step,
        max(int(settings['SOLVER']['MAX_ITER']), step + 1), int(settings['SEED']),
        {} if summary is None else read_metrics(summary, step), None, ', '.join(settings['DATASETS']['TEST']),
        _without_places(public), beginning=_detectors_beginning(model.get('WEIGHTS')))


def _check_not_an_evaluation(settings: Mapping[str, Any]) -> None:
    """detectron2 writes config.yaml anew whenever it starts, and an evaluation's says nothing of the training."""
    weights, output = settings['MODEL'].get('WEIGHTS'), settings.get('OUTPUT_DIR')
    if weights and output and os.path.normpath(os.path.dirname(str(weights))) == os.path.normpath(str(output)):
        raise ValueError(
            f'it is of an evaluation, which wrote it over that of the training, as its MODEL.WEIGHTS {weights} says; '
            'set what the training had, its first weights too (an evaluation wants an OUTPUT_DIR of its own)')


def _detectors_beginning(weights: str | None) -> str:
    if weights is None:
        return ''
    published, hub = SCHEMES
    if weights.startswith(published):
        name = weights.removeprefix(published).rstrip('/')
        return name if (row := find_weights(name)) is None else row.name
    return (weights if weights.startswith(hub) else FILE) if weights else RANDOM


def _without_places(value: Any) -> Any:
    """The last part of every path of this machine, wherever in the settings it stands."""
    if isinstance(value, Mapping):
        return {key: _without_places(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_places(part) for part in value]
    if isinstance(value, str):
        if '://' in value and not value.startswith(SCHEMES):  # it may have a password, or be signed
            return PurePosixPath(urlsplit(value).path).name
        if os.path.isabs(value) or value.startswith(('~', '.')) or '\\' in value:
            return Path(value.replace('\\', '/')).name
    return value


def read_metrics(path: Path, step: int) -> dict[str, float]:
    """What a training's history records of one evaluation.

    Args:
        path: summary.csv of timm: top1 and top5 in per cent, and the loss. metrics.json of detectron2: box APs.
        step: The epoch or iteration of the weights, from 0.

    Raises:
        CheckFailed: if it is not there, or was not evaluated.
    """
    if path.suffix == '.json':
        rows = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
        # detectron2 evaluates in the step that writes the checkpoint, or once more after the last one.
        values = {name: value for row in rows if row['iteration'] in (step, step + 1) for name, value in row.items()
                  if name in ('bbox/AP', 'bbox/AP50', 'bbox/AP75')}
        main = 'bbox/AP'
    else:
        found = next((row for row in _rows(path) if row['epoch'] == step), None)
        if found is None:
            raise CheckFailed(f'{path} has no epoch {step}, which the weights are of')
        values = {name: found[f'eval_{name}'] for name in ('top1', 'top5', 'loss') if f'eval_{name}' in found}
        main = 'top1'
    if main not in values or not all(math.isfinite(value) for value in values.values()):
        raise CheckFailed(f'{path} has no {main} for step {step}, which the weights are of')
    return values


def _rows(path: Path) -> list[dict[str, float]]:
    try:
        return read_summary(path, ('eval_top1', 'eval_top5', 'eval_loss'))
    except ValueError as error:
        raise CheckFailed(str(error)) from None


def _last_epoch(summary: Path | None) -> int:
    rows = _rows(summary) if summary is not None else []
    return int(rows[-1]['epoch']) if rows else -1


def find_records(folder: Path) -> tuple[Path | None, Path | None]:
    """The settings and the history that a training left in a folder; None for what is not there."""
    settings, history = next(
        (pair for pair in RECORDS if (folder / pair[0]).is_file()),
        next((pair for pair in RECORDS if (folder / pair[1]).is_file()), RECORDS[0]))
    return tuple(path if path.is_file() else None for path in (folder / settings, folder / history))  # type: ignore
