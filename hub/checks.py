"""What must be true of a staged folder: it loads strictly, is finite, has the named wiring and the recorded metrics."""
from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from randwire_zoo.graphs import Graph, graphs_sha256
from randwire_zoo.manifest import FILENAME, PublishedWeights, sha256_of
from randwire_zoo.weights_io import check_weights, loading, one_line, read_metadata

from .runs import RECORDS, CheckFailed, read_metrics

__all__ = ['CARD', 'CheckFailed', 'Staged', 'check_folder', 'equal_logits', 'load_model', 'required_files']

CONFIG, GRAPHS, CARD = 'config.json', 'graphs.json', 'README.md'
REQUIRED = (FILENAME, CONFIG, GRAPHS, CARD, 'wiring.png', 'curves.png')
PICKLES = ('.bin', '.pt', '.pth', '.pkl', '.pickle', '.ckpt', '.tar', '.joblib')


@dataclass(frozen=True)
class Staged:
    """A folder that has passed all checks.

    Args:
        folder: Where it is.
        config: Its config.json.
        metrics: As its weights' metadata and its summary.csv have them.
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

    def row(self, repo_id: str, revision: str) -> PublishedWeights:
        """The manifest's row for these weights at a revision of a repository."""
        cfg, weights = self.config['pretrained_cfg'], self.folder / FILENAME
        return PublishedWeights(
            name=self.name, sha256=sha256_of(weights), size=weights.stat().st_size,
            num_classes=self.config['num_classes'], graphs_sha256=self.metadata['graphs_sha256'],
            license=cfg['license'], repo_id=repo_id, revision=revision, input_size=tuple(cfg['input_size']),
            mean=tuple(cfg['mean']), std=tuple(cfg['std']), interpolation=cfg['interpolation'],
            crop_pct=cfg['crop_pct'], metrics=dict(self.metrics), recipe=self.metadata['recipe'],
            description=cfg.get('description'))

    @property
    def files(self) -> tuple[str, ...]:
        """What is published of the folder."""
        return required_files({path.name for path in self.folder.iterdir()})


def check_folder(folder: str | Path) -> Staged:
    """Check a staged folder.

    Raises:
        CheckFailed: naming the first thing that is wrong.
        FileNotFoundError: if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'no folder at {folder}')
    required = required_files({path.name for path in folder.iterdir()})
    if missing := [name for name in required if not (folder / name).is_file()]:
        raise CheckFailed(f'{folder} lacks {", ".join(missing)}; `randwire-zoo hub stage` makes such a folder')
    if pickles := [path.name for path in sorted(folder.rglob('*')) if path.suffix in PICKLES]:
        raise CheckFailed(f'{folder} holds {", ".join(pickles)}; only safetensors are published')
    try:
        check_weights(folder / FILENAME)
        config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
        metadata = read_metadata(folder / FILENAME)
        model, state = load_model(folder / FILENAME, config)
        _check_state(model, state)
        graphs = [Graph.from_dict(graph) for graph in json.loads((folder / GRAPHS).read_text(encoding='utf-8'))]
        if not graphs_sha256(graphs) == graphs_sha256(model.graphs) == metadata['graphs_sha256']:
            raise ValueError(f'{GRAPHS}, the weights and the name {config["architecture"]} have different wirings')
        metrics = json.loads(metadata['metrics'])
        step = int(metadata['epoch' if 'epoch' in metadata else 'iteration'])
        recorded = read_metrics(folder / required[-1], step)
        if metrics != recorded:
            raise ValueError(f'the weights record {metrics}, but {required[-1]} has {recorded} for step {step}')
        if (tag := config['pretrained_cfg'].get('tag')) != metadata.get('tag'):
            raise ValueError(f'{CONFIG} has the tag {tag!r}, the weights have {metadata.get("tag")!r}')
        for key in ('license', 'recipe'):
            if not (metadata.get(key) or config['pretrained_cfg'].get(key)):
                raise ValueError(f'no {key} is recorded')
    except CheckFailed:
        raise
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckFailed(f'{folder}: {one_line(error)}') from error
    return Staged(folder, config, metrics, metadata)


def required_files(names: Set[str]) -> tuple[str, ...]:
    """What a folder must hold, the training's settings and history last; which ones, the names that it has tell."""
    settings, history = next((pair for pair in RECORDS if names & set(pair)), RECORDS[0])
    return (*REQUIRED, settings, history)


def load_model(weights: Path, config: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """Create the network that a config.json describes, and load weights into it strictly.

    Raises:
        ValueError: if there is no such network, or the weights are not exactly its own.
    """
    architecture = str(config['architecture'])
    if not architecture.startswith('randwire') or not timm.is_model(architecture):
        raise ValueError(f'{architecture!r} is no name of the zoo')
    arguments = {'num_classes': config['num_classes'], **config.get('model_args', {})}
    try:
        model = timm.create_model(architecture, **arguments)
    except RuntimeError as error:
        raise ValueError(f'{architecture}: {one_line(error)}') from error
    with loading(weights):
        state = load_file(weights)
        model.load_state_dict(state)
    return model.eval(), state


def _check_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise ValueError(f'not all values are finite: {", ".join(bad[:3])}')
    with torch.inference_mode():
        logits = model(_fixed_batch(model))
    if not logits.isfinite().all():
        raise ValueError('the network computes values that are not finite')


def _fixed_batch(model: Any) -> Tensor:
    size = model.pretrained_cfg['input_size']
    return torch.randn(2, model.in_chans, *size[1:], generator=torch.Generator().manual_seed(0))


def equal_logits(first: nn.Module, second: nn.Module) -> bool:
    """Two networks compute the same on a fixed batch, to the last bit."""
    batch = _fixed_batch(first)
    with torch.inference_mode():
        return torch.equal(first.eval()(batch), second.eval()(batch))
