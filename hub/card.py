"""The model card: rendered from what a staged folder records, and compared with that wherever it is found again."""
from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined, UndefinedError

from randwire_zoo import __version__
from randwire_zoo.complexity import count_complexity
from randwire_zoo.detection.weights import are_near, pixel_statistics
from randwire_zoo.files import read_json, read_yaml
from randwire_zoo.models import ARCHITECTURES, Architecture
from randwire_zoo.training.evaluation import READERS
from randwire_zoo.training.recipes import CONFIGS
from randwire_zoo.weights.files import read_metadata
from randwire_zoo.weights.manifest import FILENAME

from .checks import CARD, CONFIG, CURVES, CheckFailed
from .config import from_config
from .runs import FILE, RANDOM

__all__ = ['check_card', 'own_text', 'render_card']

LABELS = {'top1': 'top-1 accuracy, %', 'top5': 'top-5 accuracy, %', 'loss': 'loss', 'bbox/AP': 'box AP, %',
          'bbox/AP50': 'box AP50, %', 'bbox/AP75': 'box AP75, %'}
#: What can be the name of a data set on the Hub, which takes nothing else as one.
ID = re.compile(r'[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?', re.ASCII)
#: timm's readers of the Hub's data sets.
HUB_READERS = ('hfds', 'hfids')
#: Arguments of networks whose features detectron2's builder of the same name computes.
HARMLESS = {'num_classes', 'in_chans', 'global_pool', 'drop_rate', 'drop_path_rate', 'head'}
TEMPLATE = Path(__file__).parent / 'card.md'
#: What the detectron2 config of the card's command says of pixels.
DETECTORS = CONFIGS / 'base_rcnn_fpn_randwire.yaml'
HUB = 'hf-hub:'
START = '<!-- own text: what stands from here to the next mark is kept as it is -->'
END = '<!-- end of own text -->'


def render_card(folder: Path, repo_id: str | None = None, text: str = '') -> str:
    """The card's text, with its YAML header, once it reads back as what it was made of.

    Args:
        folder: With everything else in it already.
        repo_id: The repository that its commands name; without one they name the folder.
        text: The publisher's own, which stands in a section of its own.

    Raises:
        CheckFailed: if a value that the card shows is recorded nowhere.
        ValueError: if the own text has this module's marks in it.
    """
    if any(mark in text for mark in (START, END)):
        raise ValueError('the own text must not hold the marks of its section')
    try:
        values = _values(folder)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckFailed(f'{folder}: the card has no {error}') from None
    values.update(
        is_published=repo_id is not None,
        source=f'hf-hub:{repo_id}' if repo_id else 'local-dir:FOLDER', repo_id=repo_id or 'FOLDER',
        weights=f'hf-hub:{repo_id}' if repo_id else f'FOLDER/{FILENAME}', text=text, start=START, end=END)
    metrics = [(label, value) for label, value in values['metrics'] if label != 'loss']
    task, metric = ('object-detection', 'mAP') if values['detector'] else ('image-classification', 'accuracy')
    data = ModelCardData(
        model_name=f'{values["name"]}.{values["tag"]}', library_name='timm', license=values['license'],
        # A model's id has no revision; the text has.
        base_model=values['beginning'].removeprefix(HUB).partition('@')[0] if values['beginning'].startswith(HUB)
        else None,
        tags=[task, 'timm', 'randwire'], datasets=_data_on_the_hub(values['dataset']),
        pipeline_tag='image-feature-extraction' if values['detector'] else task,
        eval_results=[EvalResult(
            task_type=task, task_name=task.replace('-', ' ').capitalize(), dataset_type=values['dataset'],
            dataset_name=values['dataset'], dataset_split=values['split'] or None, metric_type=metric,
            metric_name=label, metric_value=value) for label, value in metrics] or None)
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    try:
        body = environment.from_string(TEMPLATE.read_text(encoding='utf-8')).render(values)
    except UndefinedError as error:
        raise CheckFailed(f'{folder}: the card lacks a value: {error}') from None
    card = f'---\n{data.to_yaml()}\n---\n{body}'
    read_back: Any = ModelCard(card).data
    found = [(result.metric_name, result.metric_value) for result in read_back.eval_results or []]
    if found != metrics or read_back.license != values['license']:
        raise CheckFailed(f'{folder}: the card does not read back as it was written')
    return card


def _data_on_the_hub(dataset: str) -> list[str] | None:
    """The name of a data set that lies on the Hub, for the header; None for others, such as any folder's name."""
    reader, _, name = dataset.partition('/')
    if reader not in HUB_READERS:  # then it is one if it is OWNER/NAME
        name = '' if reader in READERS or '/' not in dataset else dataset
    return [name] if ID.fullmatch(name) else None


def own_text(card: str) -> str:
    """What stands in the own section of a card."""
    found = re.search(f'{re.escape(START)}\n(.*?)\n?{re.escape(END)}', card, re.DOTALL)
    return found[1] if found else ''


def check_card(folder: Path, repo_id: str | None = None) -> None:
    """Compare a folder's card with what is rendered of the folder; the own text is the publisher's.

    A card of another version of this package has other words around the same facts, of which the header and the tables
    are compared.

    Raises:
        CheckFailed: naming the first line that differs.
    """
    card = (folder / CARD).read_text(encoding='utf-8')
    rendered = render_card(folder, repo_id, own_text(card))
    written_by = read_metadata(folder / FILENAME).get('randwire_zoo')
    found, expected = card.splitlines(), rendered.splitlines()
    if written_by != __version__:
        found, expected = _facts(found), _facts(expected)
    for number, (line, right) in enumerate(zip_longest(found, expected), 1):
        if line != right:
            line, right = ('no line' if text is None else repr(text[:60]) for text in (line, right))
            raise CheckFailed(
                f'{folder / CARD} is not what is rendered of the folder, first in line {number}: {line} instead of '
                f'{right}; text of your own belongs between the marks {START[:13]} … and {END}')


def _facts(lines: list[str]) -> list[str]:
    header = lines.index('---', 1) if lines[:1] == ['---'] and '---' in lines[1:] else 0
    return [line for number, line in enumerate(lines) if number <= header or line.startswith('|')]


def _values(folder: Path) -> dict[str, Any]:
    metadata = read_metadata(folder / FILENAME)
    config = read_json(folder / CONFIG)
    network, evaluation = from_config(config), json.loads(metadata['evaluation'])
    unit = next((unit for unit in ('epoch', 'iteration') if unit in metadata), '')
    name, cfg, metrics = config['architecture'], config['pretrained_cfg'], json.loads(metadata['metrics'])
    architecture = ARCHITECTURES.get(name) or Architecture(**{
        key: value for key, value in network.arguments.items() if key in Architecture.__dataclass_fields__})
    model = network.create_model(device='meta')
    complexity = count_complexity(model, network.input_size)
    has_graphs = 'graphs' in network.arguments
    generator = network.arguments.get('origin', 'none: the graphs are given') if has_graphs else (
        f'{architecture.graph.upper()}, seed {architecture.seed}')
    return {
        'name': name, 'tag': cfg['tag'], 'dataset': metadata['dataset'], 'split': metadata['split'],
        'generator': generator, 'has_graphs': has_graphs, 'regime': model.regime, 'channels': model.channels,
        'num_nodes': model.graphs[-1].num_nodes, 'params': complexity.params,
        'macs': complexity.macs, 'input_size': '×'.join(map(str, network.input_size)),
        'mean': ', '.join(f'{value:g}' for value in network.mean), 'std': ', '.join(f'{v:g}' for v in network.std),
        'interpolation': network.interpolation, 'crop_pct': network.crop_pct, 'crop_mode': network.crop_mode,
        'arguments': ', '.join(f'{key}={value!r}' for key, value in config.get('model_args', {}).items()
                               if key not in ('graphs', 'origin')),
        'num_classes': config['num_classes'], 'label_names': network.label_names,
        'in_chans': network.input_size[0],  # the pipelines of transformers make every image one of three
        'is_backbone': name in ARCHITECTURES and network.input_size[0] == 3 and not network.arguments.keys() - HARMLESS,
        'pixels': _pixels(network.mean, network.std),
        'graphs_sha256': metadata['graphs_sha256'], 'tensors_sha256': metadata['tensors_sha256'],
        'license': cfg['license'], 'unit': unit, 'step': int(metadata[unit]) + 1 if unit else 0,
        'steps': metadata.get('steps'), 'recipe': metadata.get('recipe', ''),
        'history': next((name for name in ('summary.csv', 'metrics.json') if (folder / name).is_file()), ''),
        'has_curves': (folder / CURVES).is_file(), 'seed': metadata.get('seed'), 'detector': unit == 'iteration',
        'average': metadata.get('weights') == 'average', 'stored': metadata.get('stored', ''),
        'beginning': metadata.get('beginning', ''), 'teacher': metadata.get('teacher', ''),
        'random': RANDOM, 'file': FILE,
        'version': metadata['randwire_zoo'],
        'strides': [stage['reduction'] for stage in model.feature_info],
        'how': evaluation['how'], 'images': evaluation.get('images'), 'recorded': evaluation['recorded'],
        'metrics': [(LABELS[key], round(value, 4 if key == 'loss' else 2)) for key, value in metrics.items()]}


def _pixels(mean: Sequence[float], std: Sequence[float]) -> Sequence[list[float]]:
    """Mean and deviation in detectron2's units, where those of the config are others; empty where not."""
    config = read_yaml(DETECTORS)['MODEL']
    own = pixel_statistics(mean, std)
    return () if are_near(own, [config[key] for key in ('PIXEL_MEAN', 'PIXEL_STD')]) else own
