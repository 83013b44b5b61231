"""A study from its first network to its last: what is there already is not done again, and one failure ends nothing."""
from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

from tqdm import tqdm

from .engines import Engine, Job
from .results import Results
from .study import Network, Study, data_folder
from .work import row_of, row_path, train_net, write_task

__all__ = ['run_study']

ATTEMPTS = 2  # a process that is killed is started once more
SECONDS = 0.2


def run_study(
        study: Study, networks: list[Network], folder: Path, engine: Engine, data_dir: str | None = None,
        retry_failed: bool = False, progress: bool = True,
) -> Results:
    """Train what has no row yet.

    Interrupted at any point, by a signal or by the end of the machine, it goes on from there when it is called again:
    a network with a row is not touched, and one that was being trained continues from its last whole epoch.

    Args:
        study: The study.
        networks: What `study.networks()` gave.
        folder: Its output.
        engine: What runs the networks.
        data_dir: See `study.data_folder`.
        retry_failed: Forget the rows of networks that failed.
        progress: Show a bar over all epochs of all networks.

    Raises:
        ValueError: if the folder holds the results of another study, or another run is at work in it.
        FileNotFoundError: if data, or detectron2, is missing.
    """
    data_folder(study, data_dir)
    if study.detection:
        train_net()
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        return _run(study, networks, folder, engine, data_dir, retry_failed, progress)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep a second run out of the folder for as long as this process lives."""
    if fcntl is None:
        yield
        return
    with open(folder / '.lock', 'w', encoding='utf-8') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f'another run is at work in {folder}') from None
        yield


def _run(
        study: Study, networks: list[Network], folder: Path, engine: Engine, data_dir: str | None, retry_failed: bool,
        progress: bool,
) -> Results:
    results = Results(folder, study)
    results.create()
    if retry_failed:
        for name in results.forget_failed():
            row_path(folder / 'tasks' / f'{name}.json').unlink(missing_ok=True)
    waiting = []
    for network in networks:
        if network.id not in results.rows:
            task = write_task(folder, study, network, data_dir)
            if not _collect(results, task):  # a row that an earlier call did not live to add
                waiting.append(_Task(network, task))
    with _Progress(study, networks, folder, results, progress) as bar:
        _work_through(waiting, results, engine, bar)
    return results


@dataclass
class _Task:
    network: Network
    path: Path
    attempts: int = 0


def _work_through(waiting: list[_Task], results: Results, engine: Engine, bar: _Progress) -> None:
    active: dict[int, tuple[_Task, Job]] = {}
    try:
        while waiting or active:
            for place in range(engine.places):
                if waiting and place not in active:
                    task = waiting.pop(0)
                    task.attempts += 1
                    active[place] = task, engine.start(task.path, place)
            time.sleep(SECONDS)
            for place, (task, job) in list(active.items()):
                ended = job.poll()
                if ended is None:
                    continue
                del active[place]
                if not _collect(results, task.path):
                    if task.attempts < ATTEMPTS:
                        waiting.insert(0, task)
                    else:
                        results.add(_lost(task, ended))
                bar.show(ended=task.network.id)
            bar.show()
    finally:
        for _, job in active.values():
            job.stop()
        # What ended in the meantime is not thrown away.
        for task, _ in active.values():
            _collect(results, task.path)


def _collect(results: Results, task: Path) -> bool:
    """Add the row of a task to the results, if there is one."""
    path = row_path(task)
    if not path.is_file():
        return False
    row = json.loads(path.read_text(encoding='utf-8'))
    if row['id'] not in results.rows:
        results.add(row)
    path.unlink()
    return True


def _lost(task: _Task, ended: str) -> dict[str, Any]:
    """The row of a network whose process left none."""
    return {**row_of(task.network), 'status': 'failed',
            'reason': f'its process ended {ATTEMPTS} times without a result, last with {ended}; see '
                      f'{task.path.with_suffix(".log").name}'}


class _Progress:
    """A bar over the epochs of all networks, read from what the trainings write."""

    def __init__(self, study: Study, networks: list[Network], folder: Path, results: Results, show: bool) -> None:
        self.epochs = 1 if study.detection else int(study.recipe_settings['epochs'])
        self.networks, self.folder, self.results = networks, folder, results
        self.bar = tqdm(total=self.epochs * len(networks), unit='epoch', disable=not show)
        self.next = 0.0

    def __enter__(self) -> _Progress:
        self.show()
        return self

    def __exit__(self, *error: object) -> None:
        self.next = 0.0
        self.show()
        self.bar.close()

    def show(self, ended: str = '') -> None:
        """Bring the bar up to date, at most once in a second; say how a network ended."""
        if ended and ended in self.results.rows:
            row = self.results.rows[ended]
            said = f'top-1 {row["top1"]:.2f} %' if 'top1' in row else row.get('reason') or 'AP {AP:.1f}'.format(
                **row['detection'])
            self.bar.write(f'{ended}: {said}')
        if time.monotonic() < self.next or self.bar.disable:
            return
        self.next = time.monotonic() + 1
        done = sum(self.epochs if network.id in self.results.rows else self._trained(network.id)
                   for network in self.networks)
        self.bar.n = done
        failed = sum(row['status'] != 'done' for row in self.results.rows.values())
        self.bar.set_postfix_str(f'{len(self.results.rows)}/{len(self.networks)} networks'
                                 + (f', {failed} failed' if failed else ''))

    def _trained(self, name: str) -> int:
        try:
            with open(self.folder / 'runs' / name / 'summary.csv', encoding='utf-8') as file:
                return max(sum(1 for _ in file) - 1, 0)
        except OSError:
            return 0


