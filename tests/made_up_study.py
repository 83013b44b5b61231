"""A study of twenty networks of which none is trained, and an engine that makes their rows up."""
from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from randwire_zoo.files import write_atomically
from randwire_zoo.studies import running
from randwire_zoo.studies.results import Results
from randwire_zoo.studies.running import run_study
from randwire_zoo.studies.study import Network, Study
from randwire_zoo.studies.work import row_of, row_path

STUDY = Study(title='Made up', graphs=['er(0.5)', 'ba(2)'], seeds=list(range(1, 11)), channels=3,
              model={'num_nodes': 4, 'stem_stride': 2}, recipe='cifar10/study', data='nothing')


@pytest.fixture(scope='module')
def networks() -> list[Network]:
    return STUDY.networks()


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without data, and without waiting."""
    monkeypatch.setattr(running, 'data_folder', lambda *args: Path())
    monkeypatch.setattr(running, 'SECONDS', 0.0)


def made_up(network: Network, size: int = 0) -> dict[str, Any]:
    """A network's row, with so many bytes more."""
    return {**row_of(network), 'status': 'done', 'top1': 50.0, 'top5': 90.0, 'padding': 'x' * size}


class Instant:
    """An engine whose tasks are done at once: each writes a row of a few kilobytes."""

    def __init__(self, places: int = 3, size: int = 0) -> None:
        self.places, self.size, self.started = places, size, 0
        self.stopped: list[Path] = []

    def start(self, tasks: list[Path], places: list[int]) -> list[Any]:
        return [self.job(task) for task in tasks]

    def job(self, task: Path) -> Any:
        self.started += 1
        said = json.loads(task.read_text())
        write_atomically(row_path(task), json.dumps(
            {**made_up(Network(**said['network']), self.size), 'sha256': said['sha256']}))
        return SimpleNamespace(poll=lambda: 'exit code 0', stop=lambda: self.stopped.append(task))


def run(networks: list[Network], folder: Path, engine: Any = None) -> Results:
    """Run some networks of the study."""
    return run_study(STUDY, networks, folder, engine or Instant(), progress=False)
