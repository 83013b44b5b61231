"""A study from its first network to its last: what is there already is not done again, and one failure ends nothing."""
from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..files import lock, read_json, write_atomically
from .engines import Engine, Job
from .results import Results
from .study import AS_WRITTEN, Execution, Network, Study, data_folder
from .work import CANNOT_WRITE, CHANGED, changed, is_row_of, read_row, row_of, row_path, train_net, write_task

__all__ = ['begin', 'forget_failed', 'networks_of', 'run_networks', 'run_study']

NETWORKS = 'networks.json'
ATTEMPTS = 2  # a process that is killed is started once more
SECONDS = 0.2
PROBE = 1 << 20  # bytes that a folder must still take


def networks_of(study: Study, folder: Path, progress: bool = False) -> list[Network]:
    """The networks of a study: those that its folder was begun with, or, where it is new, `study.networks()`.

    C is tuned once; a later release of this package, or another networkx, goes on with the same.
    """
    return _kept_networks(study, folder) or study.networks(progress)


def _kept_networks(study: Study, folder: Path) -> list[Network]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = read_json(folder / NETWORKS)
        if kept['sha256'] == study.sha256:
            return [Network(**network) for network in kept['networks']]
    return []


def run_study(
        study: Study, networks: list[Network], folder: Path, engine: Engine, data_dir: str | None = None,
        retry_failed: bool = False, progress: bool = True, execution: Execution = AS_WRITTEN,
) -> Results:
    """Train what has no row yet.

    The series take turns, so that a study that is half done compares them already. Interrupted at any point, by a
    signal or by the end of the machine, it goes on from there when it is called again:
    a network with a row is not touched, and one that was being trained continues from its last whole epoch.

    Args:
        study: The study.
        networks: What `networks_of` gave.
        folder: Its output.
        engine: What runs the networks.
        data_dir: See `study.data_folder`.
        retry_failed: Forget the rows of networks that failed.
        progress: Show a bar over all epochs of all networks.
        execution: What this machine runs them with.

    Raises:
        ValueError: if the folder holds the results of another study, or a row of one, or another run is at work in it;
            also if a file that the study names changes before all networks have begun: what was trained until then is
            kept.
        FileNotFoundError: if data, or detectron2, is missing.
        OSError: if the folder cannot be written. What was in training goes on from its last epoch the next time.
    """
    data_folder(study, data_dir)
    if study.detection:
        train_net()
        if find_spec('detectron2') is None:
            raise FileNotFoundError('this study needs detectron2, which is not installed; docs/detect.md says how')
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / '.lock', held=f'another run is at work in {folder}'):
        return _run(study, networks, folder, engine, data_dir, retry_failed, progress, execution)


def _run(
        study: Study, networks: list[Network], folder: Path, engine: Engine, data_dir: str | None, retry_failed: bool,
        progress: bool, execution: Execution,
) -> Results:
    begun = study.snapshot()  # all rows and tasks are of one reading of its files
    results = Results(folder, begun)
    _check_rows(begun, networks, results)
    begin(results, {'networks': len(networks), 'one_wiring': study.one_wiring(networks)})
    if _kept_networks(begun, folder) != networks:
        write_atomically(folder / NETWORKS, json.dumps(
            {'sha256': begun.sha256, 'networks': [asdict(network) for network in networks]}))
    if retry_failed:
        forget_failed(results)
    with _Progress(study, networks, folder, results, progress) as bar:
        pairs = [(begun, network) for network in _taking_turns(networks)]
        waiting = _waiting(pairs, results, data_dir, execution)
        if study.sha256 != results.sha256:  # every process would find that its task is of another recipe
            raise changed(study)
        _work_through(waiting, results, engine, bar.show)
    return results


def begin(results: Results, asked: Mapping[str, Any] | None = None) -> None:
    """`Results.create`, which says what was wrong with the file."""
    for problem in results.create(asked):
        print(f'{results.path}: {problem}', file=sys.stderr)


def _check_rows(study: Study, networks: list[Network], results: Results) -> None:
    """See that every row is of this study, as rows of several files may have been put into one by hand.

    Raises:
        ValueError: naming the first that is not.
    """
    asked = {network.id: network for network in networks}
    for name, row in results.rows.items():
        # A row that nothing asks for is at least to be of these settings.
        own: dict[str, Any] = {entry.name: row.get(entry.name) for entry in fields(Network)}
        network = asked.get(name) or Network(**own)
        if not is_row_of(row, study, network):
            differ = [key for key in sorted({*row['kwargs'], *network.kwargs})
                      if row['kwargs'].get(key) != network.kwargs.get(key)]
            of = 'other settings' if not differ else (
                f'another network ({_said(row["kwargs"], differ)} instead of {_said(network.kwargs, differ)})')
            raise ValueError(f'{results.path}: the row of {name!r} is of {of}; take its line out, or choose another '
                             '--output')


def _said(kwargs: Mapping[str, Any], names: list[str]) -> str:
    return ', '.join(f'{name}={kwargs[name]!r}' if name in kwargs else f'no {name}' for name in names)


def _taking_turns(networks: list[Network]) -> list[Network]:
    """The first of every series, then the second of every series: half a study compares its series already."""
    before: Counter[str] = Counter()
    turns = {}
    for network in networks:
        turns[network.id] = before[network.series]
        before[network.series] += 1
    return sorted(networks, key=lambda network: turns[network.id])


def forget_failed(results: Results) -> None:
    """Take back the rows of networks that failed, which are trained again then."""
    for name in results.forget_failed():
        row_path(results.path.parent / 'tasks' / f'{name}.json').unlink(missing_ok=True)


def run_networks(
        pairs: Sequence[tuple[Study, Network]], results: Results, engine: Engine, data_dir: str | None,
        execution: Execution, show: Callable[[str], object]) -> None:
    """Train what has no row yet, of studies that share one file of results; see `run_study`.

    Args:
        pairs: Networks, each with the study that it is one of.
        results: Of all of them; its folder is locked by the caller.
        engine: What runs them.
        data_dir, execution: See `run_study`.
        show: Called with the id of a network that has ended, and with '' in between.
    """
    _work_through(_waiting(pairs, results, data_dir, execution), results, engine, show)


def _waiting(pairs: Sequence[tuple[Study, Network]], results: Results, data_dir: str | None, execution: Execution,
             ) -> list[_Task]:
    folder, waiting = results.path.parent, []
    for study, network in pairs:
        if network.id in results.rows:  # it may have been added just before a kill
            row_path(folder / 'tasks' / f'{network.id}.json').unlink(missing_ok=True)
            continue
        task = write_task(folder, study, network, data_dir, execution)
        if not _collect(results, task):  # a row that an earlier call did not live to add
            waiting.append(_Task(network, task))
    return waiting


@dataclass
class _Task:
    network: Network
    path: Path
    attempts: int = 0


def _work_through(
        waiting: list[_Task], results: Results, engine: Engine, show: Callable[[str], object]) -> None:
    active: dict[int, tuple[_Task, Job]] = {}
    try:
        while waiting or active:
            # Of an engine that takes more at first, more may be at work than it has places now.
            free = min(engine.places - len(active), len(waiting))
            places = [place for place in range(engine.places) if place not in active][:max(free, 0)]
            if places:
                starting = [waiting.pop(0) for _ in places]
                for task in starting:
                    task.attempts += 1
                jobs = engine.start([task.path for task in starting], places)
                active.update(zip(places, zip(starting, jobs, strict=True), strict=True))
            time.sleep(SECONDS)
            for place, (task, job) in list(active.items()):
                ended = job.poll()
                if ended is None:
                    continue
                del active[place]
                _end(task, ended, waiting, results)
                show(task.network.id)
            show('')
    finally:
        for _, job in active.values():
            job.stop()
        # What was done in the meantime is not thrown away; where it cannot be written it stays where it is. What failed
        # may have failed of what stops us here, and is tried again.
        for task, _ in active.values():
            with suppress(OSError):
                row = read_row(task.path)
                if row is not None and row['status'] != 'done':
                    row_path(task.path).unlink()
                _collect(results, task.path)


def _end(task: _Task, ended: str, waiting: list[_Task], results: Results) -> None:
    """See what became of a task: a row, another attempt, or a row that says that there is none.

    Raises:
        OSError: if the reason is that nothing can be written: then it is no matter of this network alone.
        ValueError: if it is that a file of the study has changed, likewise.
    """
    folder = results.path.parent
    if CHANGED in ended:
        raise ValueError(f'{task.network.id}: {ended}')
    if CANNOT_WRITE in ended:
        raise OSError(f'{task.network.id} {ended}; the study goes on from here when it is run again')
    row = read_row(task.path)
    if row is None or row['status'] != 'done':
        try:
            _probe(folder)
        except OSError as error:
            row_path(task.path).unlink(missing_ok=True)
            raise OSError(f'{folder} cannot be written: {error.strerror}; the study goes on from here when it is run '
                          'again') from error
    if not _collect(results, task.path):
        if task.attempts < ATTEMPTS:
            waiting.insert(0, task)
        else:
            results.add(_lost(task, ended))


def _probe(folder: Path) -> None:
    """Write something, and take it away again."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(PROBE))
        file.flush()
        os.fsync(file.fileno())


def _collect(results: Results, task: Path) -> bool:
    """Add the row of a task to the results, if there is one."""
    row = read_row(task)
    if row is None:
        return False
    if row['id'] not in results.rows:  # it may have been added just before an interruption
        results.add(row)
    row_path(task).unlink()
    return True


def _lost(task: _Task, ended: str) -> dict[str, Any]:
    """The row of a network whose process left none."""
    return {**row_of(task.network), 'sha256': read_json(task.path)['sha256'], 'status': 'failed',
            'reason': f'its process ended {ATTEMPTS} times without a result, last with {ended}; see '
                      f'{task.path.with_suffix(".log").name}'}


class _Progress:
    """A bar over the epochs of all networks, read from what the trainings write."""

    def __init__(self, study: Study, networks: list[Network], folder: Path, results: Results, show: bool) -> None:
        self.epochs = 1 if study.detection else int(study.recipe_settings['epochs'])
        self.networks, self.folder, self.results = networks, folder, results
        self.bar = tqdm(total=self.epochs * len(networks), unit='epoch', disable=None if show else True)
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
        """Epochs up to the last that was measured; a summary has a line of each, which begins with its number."""
        with suppress(OSError, ValueError, IndexError):
            lines = (self.folder / 'runs' / name / 'summary.csv').read_text(encoding='utf-8').splitlines()
            return int(lines[-1].partition(',')[0]) + 1
        return 0
