"""What must be true of a staged folder: it loads strictly, computes what it computed, and says what was recorded."""
from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from randwire_zoo.errors import one_line
from randwire_zoo.files import read_json
from randwire_zoo.graphs import Graph, graphs_sha256
from randwire_zoo.weights.description import Description
from randwire_zoo.weights.errors import loading
from randwire_zoo.weights.files import check_weights, read_metadata
from randwire_zoo.weights.manifest import FILENAME, LICENSE, PublishedWeights, sha256_of

from .config import from_config, with_graphs
from .probe import PROBE, check_probe
from .runs import RECORDS, CheckFailed, read_metrics

__all__ = ['CARD', 'CheckFailed', 'Staged', 'check_folder', 'check_names', 'disagreement', 'figures', 'load_model',
           'missing_files']

IMAGENET_CLASSES = 1000
CONFIG, GRAPHS, CARD, WIRING, CURVES = 'config.json', 'graphs.json', 'README.md', 'wiring.png', 'curves.png'
REQUIRED = (FILENAME, CONFIG, GRAPHS, PROBE, CARD, WIRING)
#: Everything that a repository of this package can hold.
KNOWN = (*REQUIRED, CURVES, *(name for pair in RECORDS for name in pair))
PICKLES = ('.bin', '.pt', '.pth', '.pkl', '.pickle', '.ckpt', '.tar', '.joblib')


@dataclass(frozen=True)
class Staged:
    """A folder that has passed all checks.

    Args:
        folder: Where it is.
        config: Its config.json.
        metrics: As its weights' metadata have them.
        metadata: Of its weights.
    """

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    metadata: Mapping[str, str]

    @property
    def name(self) -> str:
        """`arch.tag`."""
        return f'{self.config["architecture"]}.{self.config["pretrained_cfg"]["tag"]}'

    def row(self, repo_id: str | None = None, revision: str | None = None, file: str | None = None,
            ) -> PublishedWeights:
        """The manifest's row for these weights at a revision of a repository, or in a file beside the manifest.

        Weights of other classes than ImageNet's leave the name without a tag what it is, the paper's network.
        """
        cfg, weights, network = self.config['pretrained_cfg'], self.folder / FILENAME, from_config(self.config)
        return PublishedWeights(
            name=self.name, sha256=sha256_of(weights), size=weights.stat().st_size,
            num_classes=self.config['num_classes'], graphs_sha256=self.metadata['graphs_sha256'],
            license=cfg['license'], repo_id=repo_id, revision=revision, file=file,
            model_args=self.config.get('model_args', {}), label_names=network.label_names,
            label_descriptions=self.config.get('label_descriptions', {}), metrics=dict(self.metrics),
            recipe=self.metadata.get('recipe'), description=cfg.get('description'),
            is_default=self.config['num_classes'] == IMAGENET_CLASSES,
            **network.data_config())

    @property
    def files(self) -> tuple[str, ...]:
        """What is published of the folder: all that is not hidden."""
        return tuple(sorted(path.name for path in self.folder.iterdir() if not path.name.startswith('.')))


def check_folder(folder: str | Path, repo_id: str | None = None) -> Staged:
    """Check a staged folder, or what was downloaded of a repository.

    Args:
        folder: The folder.
        repo_id: The repository that its card names; None before it has one.

    Raises:
        CheckFailed: naming the first thing that is wrong.
        FileNotFoundError: if there is no such folder.
    """
    from .card import check_card

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'no folder at {folder}')
    names = {path.name for path in folder.iterdir() if not path.name.startswith('.')}
    if missing := missing_files(names):
        raise CheckFailed(f'{folder} lacks {", ".join(missing)}; `randwire-zoo hub stage` makes such a folder')
    if pickles := [path.name for path in sorted(folder.rglob('*')) if path.suffix in PICKLES]:
        raise CheckFailed(f'{folder} holds {", ".join(pickles)}; only safetensors are published')
    if foreign := sorted(names - set(KNOWN)):
        raise CheckFailed(f'{folder} holds {", ".join(foreign)}, which is not published; move it away')
    try:
        check_weights(folder / FILENAME)
        config = read_json(folder / CONFIG)
        metadata = read_metadata(folder / FILENAME)
        network = from_config(config)
        model = load_model(folder / FILENAME, network)
        graphs = [Graph.from_dict(graph) for graph in read_json(folder / GRAPHS)]
        if not graphs_sha256(graphs) == graphs_sha256(model.graphs) == metadata['graphs_sha256']:
            raise ValueError(f'{GRAPHS}, the weights and the name {config["architecture"]} have different wirings')
        if with_graphs(network, graphs) != network:
            raise ValueError(f'{CONFIG} names a generator of your own and has no graphs, without which nobody else can '
                             'build the network; stage it again')
        check_probe(model, network, folder / PROBE)
        tag, license = (config['pretrained_cfg'].get(key) for key in ('tag', 'license'))
        check_names(tag, license)
        for key, value in (('tag', tag), ('license', license)):
            if value != metadata.get(key):
                raise ValueError(f'{CONFIG} has the {key} {value!r}, the weights have {metadata.get(key)!r}')
        metrics = _check_metrics(folder, metadata)
        check_card(folder, repo_id)
    except CheckFailed:
        raise
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckFailed(f'{folder}: {one_line(error)}') from error
    return Staged(folder, config, metrics, metadata)


def missing_files(names: Iterable[str]) -> list[str]:
    """What a folder or repository lacks; settings, history and curves come together or not at all."""
    names = set(names)
    missing = [name for name in REQUIRED if name not in names]
    settings, history = next((pair for pair in RECORDS if names & set(pair)), RECORDS[0])
    if settings not in names and names & {history, CURVES}:
        missing.append(settings)
    if (history in names) != (CURVES in names):
        missing.append(history if CURVES in names else CURVES)
    return missing


def check_names(tag: Any, license: Any) -> None:
    """Refuse a tag or a licence that cannot be one.

    Raises:
        ValueError: naming the option and what is allowed.
    """
    if not isinstance(tag, str) or not re.fullmatch(r'[A-Za-z]\w*', tag, re.ASCII):
        raise ValueError(f'--tag must be letters, digits and _, such as in1k, got {tag!r}')
    if not isinstance(license, str) or not LICENSE.fullmatch(license):
        raise ValueError(f'--license must be an identifier such as apache-2.0, got {license!r}')


def load_model(weights: Path, network: Description) -> Any:
    """Build the network of a description, load weights into it strictly, and see that it computes with them.

    Raises:
        ValueError: if there is no such network, the weights are not exactly its own, or something is not finite.
    """
    if not network.architecture.startswith('randwire') or not timm.is_model(network.architecture):
        raise ValueError(f'{network.architecture!r} is no name of the zoo')
    model: nn.Module = network.create_model()
    with loading(weights):
        state: Mapping[str, Tensor] = load_file(weights)
        model.load_state_dict(state)
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise ValueError(f'not all values are finite: {", ".join(bad[:3])}')
    with torch.inference_mode():
        logits = model.eval()(torch.zeros(1, *network.input_size))
    if not logits.isfinite().all():
        raise ValueError('the network computes values that are not finite')
    return model


def disagreement(measured: Mapping[str, float], recorded: Mapping[str, float], images: int) -> str:
    """What two measurements of one network on the same images differ in; '' if no more than rounding explains.

    Another machine's rounding turns the images whose best classes are as good as equal: one, or one in a thousand,
    covers what bfloat16 did here (3 of 10,000). It moves the mean loss by less than a hundredth, while a network that
    is fed or pooled in another way is off by more in both.
    """
    for name, value in recorded.items():
        if name not in measured:
            return f'{name} {value:g} was not measured'
        allowed = 0.01 * abs(value) + 1e-3 if name == 'loss' else max(100 / images, 0.1)
        if not math.isfinite(value) or abs(measured[name] - value) > allowed + 1e-9:
            return f'{name} {value:.6g} is recorded, {measured[name]:.6g} was measured'
    return ''


def figures(metrics: Mapping[str, float]) -> str:
    """Metrics in words, to the digits that mean something."""
    return ', '.join(f'{name} {value:.4f}' if name == 'loss' else f'{name} {value:.2f}'
                     for name, value in metrics.items()) or 'not measured'


def _check_metrics(folder: Path, metadata: Mapping[str, str]) -> dict[str, float]:
    """The metrics that the weights' metadata state, once the history says the same."""
    metrics, evaluation = json.loads(metadata['metrics']), json.loads(metadata['evaluation'])
    history = next((folder / name for _, name in RECORDS if (folder / name).is_file()), None)
    if history is None or not evaluation['recorded']:
        return dict(metrics)
    step = int(metadata['epoch' if 'epoch' in metadata else 'iteration'])
    recorded = read_metrics(history, step)
    if evaluation['how'] == 'measured':
        differs = disagreement(metrics, recorded, int(evaluation['images']))
    else:
        differs = '' if metrics == recorded else 'they must be equal'
    if differs:
        raise ValueError(f'the weights record {metrics}, but {history.name} has {recorded} for step {step}: {differs}')
    return dict(metrics)
