"""The model card: rendered from what a staged folder records, and read back before it counts."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined, UndefinedError

from randwire_zoo.complexity import count_complexity
from randwire_zoo.files import write_atomically
from randwire_zoo.manifest import FILENAME
from randwire_zoo.models import ARCHITECTURES, Architecture
from randwire_zoo.weights_io import read_metadata

from .checks import CARD, CONFIG, CheckFailed

__all__ = ['render_card', 'write_card']

LABELS = {'top1': 'top-1 accuracy, %', 'top5': 'top-5 accuracy, %', 'loss': 'loss', 'bbox/AP': 'box AP, %',
          'bbox/AP50': 'box AP50, %', 'bbox/AP75': 'box AP75, %'}
TEMPLATE = Path(__file__).parent / 'card.md'


def write_card(folder: str | os.PathLike[str], repo_id: str | None = None) -> None:
    """Write README.md into a staged folder.

    Args:
        folder: With everything else in it already.
        repo_id: The repository that its commands name; without one they name the folder.

    Raises:
        CheckFailed: if a value that the card shows is recorded nowhere.
    """
    write_atomically(Path(folder) / CARD, render_card(folder, repo_id))


def render_card(folder: str | os.PathLike[str], repo_id: str | None = None) -> str:
    """The card's text, with its YAML header, once it reads back as what it was made of."""
    folder = Path(folder)
    try:
        values = _values(folder)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckFailed(f'{folder}: the card has no {error}') from None
    values['source'] = f'hf-hub:{repo_id}' if repo_id else 'local-dir:FOLDER'
    values['weights'] = values['source'] if repo_id else f'FOLDER/{FILENAME}'
    metrics = [(label, value) for label, value in values['metrics'] if label != 'loss']
    task, metric = ('object-detection', 'mAP') if values['detector'] else ('image-classification', 'accuracy')
    data = ModelCardData(
        model_name=f'{values["name"]}.{values["tag"]}', library_name='timm', license=values['license'],
        tags=[task, 'timm', 'randwire'], datasets=[values['dataset']],
        pipeline_tag='image-feature-extraction' if values['detector'] else task,
        eval_results=[EvalResult(
            task_type=task, task_name=task.replace('-', ' ').capitalize(), dataset_type=values['dataset'],
            dataset_name=values['dataset'], dataset_split=values['split'], metric_type=metric,
            metric_name=label, metric_value=value) for label, value in metrics])
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    try:
        body = environment.from_string(TEMPLATE.read_text(encoding='utf-8')).render(values)
    except UndefinedError as error:
        raise CheckFailed(f'{folder}: the card lacks a value: {error}') from None
    text = f'---\n{data.to_yaml()}\n---\n{body}'
    read_back: Any = ModelCard(text).data
    found = [(result.metric_name, result.metric_value) for result in read_back.eval_results or []]
    if found != metrics or read_back.license != values['license']:
        raise CheckFailed(f'{folder}: the card does not read back as it was written')
    return text


def _values(folder: Path) -> dict[str, Any]:
    metadata = read_metadata(folder / FILENAME)
    config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
    unit = 'epoch' if 'epoch' in metadata else 'iteration'
    name, cfg, metrics = config['architecture'], config['pretrained_cfg'], json.loads(metadata['metrics'])
    model_args = {**config.get('model_args', {})}
    architecture = ARCHITECTURES.get(name) or Architecture(
        **{key: value for key, value in model_args.items() if key in Architecture.__dataclass_fields__})
    model: Any = timm.create_model(name, device='meta', **{'num_classes': config['num_classes'], **model_args})
    complexity = count_complexity(model, tuple(cfg['input_size']))
    return {
        'name': name, 'tag': cfg['tag'], 'dataset': metadata['dataset'], 'split': metadata['split'],
        'generator': f'{architecture.graph.upper()}, seed {architecture.seed}', 'regime': architecture.regime,
        'channels': architecture.channels, 'num_nodes': architecture.num_nodes, 'params': complexity.params,
        'macs': complexity.macs, 'input_size': '×'.join(map(str, cfg['input_size'])), 'mean': cfg['mean'],
        'std': cfg['std'], 'interpolation': cfg['interpolation'], 'crop_pct': cfg['crop_pct'],
        'num_classes': config['num_classes'], 'graphs_sha256': metadata['graphs_sha256'],
        'tensors_sha256': metadata['tensors_sha256'], 'license': cfg['license'], 'unit': unit,
        'step': int(metadata[unit]) + 1, 'steps': metadata['steps'], 'recipe': metadata['recipe'],
        'history': 'summary.csv' if unit == 'epoch' else 'metrics.json', 'seed': metadata['seed'],
        'detector': unit == 'iteration', 'metrics': [(LABELS[key], value) for key, value in metrics.items()]}
