"""A study of three tiny networks that the tests of studies share: its file, its data, and a run of it."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from randwire_zoo.studies.results import read_results
from randwire_zoo.studies.running import run_study
from randwire_zoo.studies.study import load_study
from randwire_zoo.studies.work import run_task

# Two generators and a hand-made network: twelve epochs of 24 images, 9 held out.
SPEC: dict[str, Any] = {
    'title': 'A tiny study', 'graphs': ['ws(2,0.5)', 'er(0.5)'], 'models': ['mnist_tiny_cnn'], 'seeds': [1],
    'channels': 3, 'model': {'num_nodes': 5, 'stem_stride': 2}, 'recipe': 'cifar10/study', 'data': 'colours',
    'settings': {'epochs': 12, 'batch_size': 8, 'num_classes': 3, 'img_size': 32, 'val_split': 'validation',
                 'opt': 'sgd', 'lr': 0.05},
    'eval_sizes': [32, 24], 'damage': 9, 'paper': {'ws(2,0.5)': 73.8}}
IDS = ['ws-2-0.5-s1', 'er-0.5-s1', 'mnist-tiny-cnn-s1']
GENERATORS = '''
    import random
    from dataclasses import dataclass
    from pathlib import Path
    from typing import ClassVar

    import networkx
    from randwire_zoo import GraphModel

    @dataclass(frozen=True)
    class RandomRegular(GraphModel):
        """Every node has the same degree."""

        degree: int
        name: ClassVar[str] = 'regular'

        def undirected(self, num_nodes: int, rng: random.Random) -> networkx.Graph:
            if Path(__file__).with_name('broken').exists() and rng.random() == random.Random(2).random():
                raise ArithmeticError('no graph today')
            return networkx.random_regular_graph(self.degree, num_nodes, seed=rng)
'''


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets with one in it: three noisy colours, 8 pictures each to train on, 3 held out."""
    root, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for split, count in (('train', 8), ('validation', 3)):
        for label, colour in enumerate(((200, 90, 90), (90, 200, 90), (90, 90, 200))):
            folder = root / 'colours' / split / str(label)
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(colour, 90, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f'{index}.png')
    return root


def write(folder: Path, spec: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A study's file; what is None in it is left out."""
    path = folder / 'study.yaml'
    path.write_text(yaml.safe_dump({
        name: value for name, value in {**(spec or SPEC), **changes}.items() if value is not None}))
    return path


def arguments(study: Path, data: Path, folder: Path, *more: str) -> list[str]:
    return ['study', 'run', str(study), '--data-dir', str(data), '--output', str(folder), '--no-progress',
            '--workers', '2', *more]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return read_results(folder)[1] if (folder / 'results.jsonl').exists() else []


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows by network, of which each must have one, without what no two runs share."""
    rows = rows_of(folder)
    assert len({row['id'] for row in rows}) == len(rows), 'a network has two rows'
    return {row['id']: {name: value for name, value in row.items()
                        if name not in ('seconds', 'host', 'provenance', 'earlier')} for row in rows}


class Here:
    """An engine that does its tasks in this process: nothing has to be imported again."""

    places = 2

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.before = before

    def start(self, tasks: list[Path], places: list[int]) -> list[Any]:
        self.before()
        for task in tasks:
            run_task(str(task))
        return [SimpleNamespace(poll=lambda: 'done', stop=lambda: None) for _ in tasks]


@pytest.fixture(scope='module')
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the whole study, which no test may change."""
    folder = tmp_path_factory.mktemp('uninterrupted')
    study = load_study(write(folder))
    run_study(study, study.networks(), folder / 'output', Here(), str(data), progress=False)
    return folder / 'output'
