"""What a training has recorded of itself, in the files of timm's trainer or of detectron2's."""
from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from randwire_zoo.weights_io import loading, read_metadata

__all__ = ['RECORDS', 'CheckFailed', 'Run', 'find_records', 'read_metrics', 'read_run']

#: Settings and history of a training: those of timm's trainer, those of detectron2's.
RECORDS = (('args.yaml', 'summary.csv'), ('config.yaml', 'metrics.json'))
#: Settings that name places on the training's machine and say nothing about the weights.
PRIVATE = ('output', 'experiment', 'resume', 'initial_checkpoint', 'pretrained_path', 'log_wandb', 'device_modules',
           'OUTPUT_DIR')


class CheckFailed(ValueError):
    """Something that was to be published, or is, is not what it says; the message is one line."""


@dataclass(frozen=True)
class Run:
    """A training, as far as a repository and its card need it.

    Args:
        name: The network's registered name.
        arguments: With which it is created, beside the name.
        unit: What its length is counted in: epoch or iteration.
        step: That the weights are of, from 0.
        steps: Of the whole training.
        seed: Of the training.
        dataset: What it was trained on.
        split: What the metrics were measured on.
        metrics: By their names in the history.
        data: Input size, mean, std and so on, as far as the settings name them.
        settings: All of them, without places on the machine.
    """

    name: str
    arguments: Mapping[str, Any]
    unit: str
    step: int
    steps: int
    seed: int
    dataset: str
    split: str
    metrics: Mapping[str, float]
    data: Mapping[str, Any]
    settings: Mapping[str, Any]


def read_run(checkpoint: Path, recipe: Path, summary: Path, name: str | None, dataset: str | None) -> Run:
    """Read what was recorded of a checkpoint's training.

    Args:
        checkpoint: Of timm, of detectron2, or safetensors of the zoo.
        recipe: args.yaml of timm, or config.yaml of detectron2.
        summary: summary.csv of timm, or metrics.json of detectron2.
        name: The registered name, where the settings do not say it.
        dataset: Likewise.

    Raises:
        CheckFailed: naming what is recorded nowhere, or does not fit.
    """
    try:
        settings = yaml.safe_load(recipe.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckFailed(f'{recipe} is no YAML: {" ".join(str(error).split())}') from None
    if not isinstance(settings, dict):
        raise CheckFailed(f'{recipe} holds no settings of a training')
    described, step = _describe(checkpoint)
    try:
        read = _read_detectron2 if 'MODEL' in settings else _read_timm
        run = read(settings, step, dataset or '', summary)
    except (KeyError, TypeError) as error:
        raise CheckFailed(f'{recipe} lacks {str(error).strip(chr(39))}') from None
    wrong = next((other for other in (name, described) if other and other != run.name), None)
    if wrong:
        raise CheckFailed(f'{recipe} is of a training of {run.name}, not of {wrong}')
    if not run.dataset:
        raise CheckFailed(f'{recipe} does not say which data the network was trained on; name them with --dataset')
    return run


def _describe(checkpoint: Path) -> tuple[str | None, int]:
    """The network's name, if the checkpoint says it, and the epoch or iteration of its weights."""
    if checkpoint.suffix == '.safetensors':
        metadata = read_metadata(checkpoint)
        step = metadata.get('epoch', metadata.get('iteration'))
        if step is None:
            raise CheckFailed(f'{checkpoint} does not say of which epoch it is; stage the checkpoint of the training')
        return metadata.get('architecture'), int(step)
    from timm.utils.checkpoint_saver import load_checkpoint_metadata

    with loading(checkpoint):
        state = load_checkpoint_metadata(str(checkpoint))
        step = state.get('epoch', state.get('iteration')) if isinstance(state, dict) else None
        if step is None:
            raise ValueError('it is no checkpoint of a training: it has neither epoch nor iteration')
        return state.get('arch'), int(step)


def _read_timm(settings: dict[str, Any], step: int, dataset: str, summary: Path) -> Run:
    # timm's train.py takes the folder as a positional argument, too.
    folders = {key: Path(str(settings[key])).name for key in ('data', 'data_dir') if settings.get(key)}
    dataset = dataset or str(settings.get('dataset') or '') or next(iter(folders.values()), '')
    arguments = dict(settings.get('model_kwargs') or {})
    if settings.get('num_classes'):
        arguments['num_classes'] = settings['num_classes']
    public = {**_public(settings), **folders}
    return Run(
        settings['model'], arguments, 'epoch', step, int(settings['epochs']), int(settings['seed']), dataset,
        str(settings['val_split']), read_metrics(summary, step), settings, public)


def _read_detectron2(settings: dict[str, Any], step: int, dataset: str, summary: Path) -> Run:
    model = settings['MODEL']
    builder = str(model['BACKBONE']['NAME'])
    name = builder.removeprefix('build_').partition('_fpn_')[0].removesuffix('_retinanet').removesuffix('_backbone')
    if settings['INPUT']['FORMAT'] != 'RGB':
        raise CheckFailed(f'the detector was trained on {settings["INPUT"]["FORMAT"]} images; timm has RGB')
    data = {'mean': tuple(round(value / 255, 6) for value in model['PIXEL_MEAN']),
            'std': tuple(round(value / 255, 6) for value in model['PIXEL_STD'])}
    return Run(
        name, {'num_classes': 0, 'head': False}, 'iteration', step, int(settings['SOLVER']['MAX_ITER']),
        int(settings['SEED']), dataset or ', '.join(settings['DATASETS']['TRAIN']),
        ', '.join(settings['DATASETS']['TEST']), read_metrics(summary, step), data, _public(settings))


def _public(settings: dict[str, Any]) -> dict[str, Any]:
    public = {key: value for key, value in settings.items() if key not in PRIVATE}
    if 'MODEL' in public:
        weights = str(public['MODEL'].get('WEIGHTS', ''))
        public['MODEL'] = {**public['MODEL'], 'WEIGHTS': weights if '://' in weights else Path(weights).name}
    return public


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
        with path.open(newline='', encoding='utf-8') as file:
            matching = [row for row in csv.DictReader(file) if row.get('epoch') == str(step)]
        if not matching:
            raise CheckFailed(f'{path} has no epoch {step}, which the weights are of')
        values = {name: float(matching[-1][f'eval_{name}']) for name in ('top1', 'top5', 'loss')
                  if matching[-1].get(f'eval_{name}')}
        main = 'top1'
    if main not in values or not all(math.isfinite(value) for value in values.values()):
        raise CheckFailed(f'{path} has no {main} for step {step}, which the weights are of')
    return values


def find_records(folder: Path) -> tuple[Path, Path] | None:
    """The settings and the history beside a checkpoint, or in a staged folder."""
    return next(((folder / settings, folder / history) for settings, history in RECORDS
                 if (folder / settings).is_file() and (folder / history).is_file()), None)

