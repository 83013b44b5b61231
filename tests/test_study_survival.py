"""What a study survives: full disks, kills at any instant, a second run, lost mounts, dead parents."""
from __future__ import annotations

import errno
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_up_study
import pytest
import tiny_study
import torch
from made_up_study import STUDY, Instant, made_up, run
from tiny_study import GENERATORS, IDS, SPEC, Here, arguments, results, rows_of, write
from tqdm import tqdm
from waiting import wait_for

from randwire_zoo import GraphModel, cli, files
from randwire_zoo.files import Locked, lock, write_atomically
from randwire_zoo.studies import processes as guards
from randwire_zoo.studies import running, work
from randwire_zoo.studies.engines import LocalEngine, SubmititEngine, _Process, create_engine
from randwire_zoo.studies.report import report_table
from randwire_zoo.studies.results import ASIDE, Results, load_results, read_results
from randwire_zoo.studies.running import run_study
from randwire_zoo.studies.study import Network, Study, load_study
from randwire_zoo.studies.work import CANNOT_WRITE, CannotWrite, row_path, run_task, write_task
from randwire_zoo.training.recipes import load_recipe

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs a Unix')
ASKS_LINUX = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='asks the Linux kernel')
data, uninterrupted = tiny_study.data, tiny_study.uninterrupted  # fixtures
networks, instant = made_up_study.networks, made_up_study.instant  # fixtures


def start(*args: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, '-m', 'randwire_zoo', *map(str, args)], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, start_new_session=True)


def processes(*words: object) -> dict[int, str]:
    """The command lines that have all the words in them, by process; one that has ended has none."""
    found = {}
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        with suppress(OSError):  # it has ended just now
            found[int(path.parent.name)] = path.read_bytes().replace(b'\0', b' ').decode(errors='replace')
    return {pid: args for pid, args in found.items() if args and all(str(word) in args for word in words)}


def is_alive(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def in_training(folder: Path) -> list[str]:
    """Networks with a checkpoint and without a row."""
    done = [path.stem for path in (folder / 'tasks').glob('*.row')] + [row['id'] for row in rows_of(folder)]
    return [path.parent.name for path in (folder / 'runs').glob('*/last.pth.tar') if path.parent.name not in done]


@contextmanager
def in_a_fork(work: Callable[[], object]) -> Iterator[int]:
    """Run something in a child, without importing anything again; the child is killed in the end."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def test_a_study_that_is_half_done_has_as_much_of_every_series(
        networks: list[Network], tmp_path: Path, instant: None) -> None:
    done = list(run(networks, tmp_path, Instant(places=1)).rows.values())
    assert [row['id'] for row in done[:4]] == ['er-0.5-s1', 'ba-2-s1', 'er-0.5-s2', 'ba-2-s2'], 'not series by series'
    assert len(done) == len(networks)


# The file of results


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file may grow beyond this many bytes: a write that crosses it is cut, the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_an_append_that_failed_half_way_leaves_no_trace(networks: list[Network], tmp_path: Path) -> None:
    results = Results(tmp_path, STUDY)
    results.create()
    results.add(made_up(networks[0]))
    whole = results.path.read_bytes()
    for cut in (1, 100, 400):
        too_large = pytest.raises(OSError, match=r'cannot write .*results\.jsonl: File too large')
        with files_end_at(len(whole) + cut), too_large:
            results.add(made_up(networks[1], size=1000))
        assert results.path.read_bytes() == whole and list(results.rows) == [networks[0].id]
    results.add(made_up(networks[2]))
    results.add(made_up(networks[1]))
    found = load_results(results.path)
    assert [row['id'] for row in found.rows] == [networks[i].id for i in (0, 2, 1)] and found.problems == []


def test_half_a_line_that_cannot_be_taken_back_is_written_over(
        networks: list[Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path, STUDY)
    results.create()
    size = results.path.stat().st_size
    truncate, calls = os.ftruncate, []

    def lost(file: int, length: int) -> None:  # a mount that is gone from the second call on
        calls.append(length)
        if len(calls) > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        truncate(file, length)

    with monkeypatch.context() as patch, files_end_at(size + 300):
        patch.setattr(os, 'ftruncate', lost)
        with pytest.raises(OSError, match='cannot write'):
            results.add(made_up(networks[0], size=1000))
    assert results.path.stat().st_size == size + 300
    # A study that starts now reads what is whole, and says what is not.
    assert load_results(results.path).problems == ['the last line was cut off']
    results.add(made_up(networks[1]))  # shorter than what was left
    assert [row['id'] for row in load_results(results.path).rows] == [networks[1].id]
    assert load_results(results.path).problems == []


def test_an_interrupted_append_is_taken_back(
        networks: list[Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path, STUDY)
    results.create()
    before = results.path.read_bytes()
    for function in ('write', 'fsync'):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                results.add(made_up(networks[0]))
        assert results.path.read_bytes() == before and results.rows == {}
    results.add(made_up(networks[0]))
    assert len(load_results(results.path).rows) == 1


def test_rows_that_somebody_else_wrote_are_not_written_over(networks: list[Network], tmp_path: Path) -> None:
    one, other = Results(tmp_path, STUDY), Results(tmp_path, STUDY)
    one.create()
    other.create()
    one._size = one.path.stat().st_size
    other.add(made_up(networks[0]))
    with pytest.raises(OSError, match='something else has written to it'):
        one.add(made_up(networks[1]))
    assert [row['id'] for row in load_results(one.path).rows] == [networks[0].id]
    other.path.write_bytes(b'')  # or has lost lines
    with pytest.raises(OSError, match='something else has written to it'):
        other.add(made_up(networks[1]))
    other.path.unlink()
    with pytest.raises(OSError, match='No such file'):
        other.add(made_up(networks[1]))


def test_a_broken_line_costs_itself_and_is_kept_beside_the_file(networks: list[Network], tmp_path: Path) -> None:
    first, second, third, fourth = (json.dumps(made_up(network)) for network in networks[:4])
    results = Results(tmp_path, STUDY)
    results.create()
    header = results.path.read_text().splitlines()[0]

    def read(*lines: str | bytes, end: bytes = b'\n') -> tuple[list[str], list[str]]:
        raw = [line.encode() if isinstance(line, str) else line for line in (header, *lines)]
        results.path.write_bytes(b'\n'.join(raw) + end)
        found = load_results(results.path)
        return [row['id'] for row in found.rows], found.problems

    ids = [network.id for network in networks[:4]]
    # What 9fb65c6 left after a full disk: half a line, and the next row behind it.
    assert read(first, second[:200] + third, fourth) == (
        [ids[0], ids[2], ids[3]], ['line 3 is broken, but a whole row follows in it'])
    assert 'Of results.jsonl: line 3 is broken' in report_table(results.path)
    assert read(first, b'\x00\xff\xfe', second) == (ids[:2], ['line 3 is broken'])
    assert read(first, second, first) == (ids[:2], [f'line 4 is a second row of {ids[0]!r}'])
    assert read(first, second[:-30], end=b'') == (ids[:1], ['the last line was cut off'])
    assert read(first, second, end=b'') == (ids[:2], ['the last line lacks its newline'])
    read(first, second[:200] + third, b'\xff', fourth[:100], end=b'')
    again = Results(tmp_path, STUDY)
    assert len(again.create()) == 3 and list(again.rows) == [ids[0], ids[2]]
    assert (tmp_path / ASIDE).read_bytes().splitlines() == [(second[:200] + third).encode(), b'\xff']
    assert load_results(results.path).problems == []
    again.add(made_up(networks[1]))
    assert [row['id'] for row in read_results(tmp_path)[1]] == [ids[0], ids[2], ids[1]]
    with pytest.raises(AssertionError):
        again.add(made_up(networks[1]))
    before = results.path.stat()
    assert Results(tmp_path, STUDY).create() == []  # a file that is whole is not written again
    assert (results.path.stat().st_ino, results.path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    for text in ('', 'no json\n', '{"id": 1}\n', '[]\n', header.replace('"spec"', '"spek"', 1) + '\n',
                 header.replace('"graphs": [', '"graphs": "x", "y": [', 1) + '\n'):
        results.path.write_text(text)
        with pytest.raises(ValueError, match='is no file of results of a study'):
            read_results(tmp_path)


def test_rows_with_one_seed_for_everything_are_read_as_having_it_twice() -> None:
    header, rows = read_results(tiny_study_root() / 'docs' / 'studies' / 'table2_small.jsonl')
    assert header['spec']['graph_seeds'] is None and header['spec']['seeds'] == [1, 2, 3]
    assert {(row['graph_seed'], row['training_seed']) for row in rows if row['graph']} == {(1, 1), (2, 2), (3, 3)}
    assert {(row['graph_seed'], row['training_seed']) for row in rows if not row['graph']} == {
        (None, 1), (None, 2), (None, 3)}


def tiny_study_root() -> Path:
    return Path(__file__).resolve().parents[1]


# A study whose disk is full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=400k', 'tmpfs', str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip('may not mount a file system')
    try:
        yield folder
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)  # a traceback may hold a file


def fill(folder: Path, leave: int = 0) -> Path:
    """Take all room but so many KiB."""
    path = folder / 'filling'
    with path.open('wb', buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(path, max(path.stat().st_size - 1024 * leave, 0))
    return path


def test_a_study_on_a_full_disk_stops_with_one_line_and_goes_on_when_there_is_room(
        networks: list[Network], instant: None, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, 'PROBE', 1 << 12)
    folder = small_disk / 'study'
    run(networks[:2], folder)
    for leave in (60, 40, 8, 0):
        filling = fill(small_disk, leave)
        with pytest.raises(OSError) as raised:
            run(networks, folder, Instant(size=5000))
        assert '\n' not in str(raised.value) and 'No space left on device' in str(raised.value)
        found = load_results(folder)
        assert all(row['status'] == 'done' for row in found.rows) and found.problems == []
        filling.unlink()
    engine = Instant()
    assert len(run(networks, folder, engine).rows) == len(networks) and engine.started < len(networks)
    assert sorted(row['id'] for row in read_results(folder)[1]) == sorted(network.id for network in networks)


def test_networks_do_not_fail_for_a_disk_that_is_full(
        networks: list[Network], instant: None, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that knows no better says that its network failed, or dies: then the folder is tried."""
    monkeypatch.setattr(running, 'PROBE', 1 << 12)
    folder = small_disk / 'study'

    class Full(Instant):
        def job(self, task: Path) -> Any:
            job = super().job(task)
            row = json.loads(row_path(task).read_text())
            write_atomically(row_path(task), json.dumps({**row, 'status': 'failed', 'reason': 'ValueError: strange'}))
            if self.started > 4:
                row_path(task).unlink()
            if self.started % 3 == 0:
                fill(small_disk)
            return job

    for _ in range(2):  # rows of failures, then no rows at all
        engine = Full(places=3)
        with pytest.raises(OSError, match=r'cannot be written: No space left on device; the study goes on from here'):
            run(networks, folder, engine)
        assert engine.started == 3 and len(engine.stopped) == 2, 'the other networks went on'
        (small_disk / 'filling').unlink()
        assert read_results(folder)[1] == []
    run(networks, folder, Instant())
    assert {row['status'] for row in read_results(folder)[1]} == {'done'}


def test_a_process_whose_checkpoint_does_not_fit_says_so_and_is_no_failure(
        data: Path, small_disk: Path, tmp_path: Path, instant: None, capsys: pytest.CaptureFixture[str]) -> None:
    study = load_study(write(tmp_path, models=None, graphs=['er(0.5)'], damage=0, eval_sizes=[]))
    network, = study.networks()
    task = write_task(small_disk, study, network, str(data))
    (small_disk / 'runs').mkdir()
    with pytest.raises(CannotWrite, match=rf'^{CANNOT_WRITE} in {small_disk}: a checkpoint'):
        run_task(str(task))
    assert not row_path(task).exists()
    filling = fill(small_disk)
    assert work._main([str(task)]) == os.EX_IOERR  # what the study is told
    assert f'{CANNOT_WRITE} in {small_disk}' in capsys.readouterr().err.splitlines()[-1]
    filling.unlink()

    # The study stops at it with that line, and stops the others.
    log = tmp_path / 'worker.log'
    log.write_text(f'Traceback …\n{CANNOT_WRITE} in {small_disk}: No space left\n')
    said = wait_for(_Process(subprocess.Popen(['sh', '-c', f'exit {os.EX_IOERR}']), log).poll)
    assert said == f'{CANNOT_WRITE} in {small_disk}: No space left'
    log.write_text('')  # it lies on that disk too
    assert wait_for(_Process(subprocess.Popen(['sh', '-c', f'exit {os.EX_IOERR}']), log).poll) == CANNOT_WRITE

    class Stops(Instant):
        def job(self, task: Path) -> Any:
            return SimpleNamespace(poll=lambda: said if task.stem == networks_[0].id else None,
                                   stop=lambda: self.stopped.append(task))

    networks_, engine = STUDY.networks(), Stops()
    with pytest.raises(OSError, match=f'{CANNOT_WRITE} in .*: No space left; the study goes on from here'):
        run(networks_, tmp_path / 'output', engine)
    assert len(engine.stopped) == 2 and read_results(tmp_path / 'output')[1] == []


def test_a_mount_that_is_lost_stops_the_study_and_no_row(
        networks: list[Network], instant: None, tmp_path: Path) -> None:
    real, mounted = tmp_path / 'real', tmp_path / 'mounted'
    real.mkdir()
    mounted.mkdir()

    def mount() -> None:
        if subprocess.run(['mount', '--bind', str(real), str(mounted)], capture_output=True).returncode:
            pytest.skip('may not mount a file system')

    class Lost(Instant):
        def job(self, task: Path) -> Any:
            job = super().job(task)
            if self.started == 8:
                subprocess.run(['umount', '-l', str(mounted)], check=True)
            return job

    for folder in (mounted / 'study', mounted):  # below it nothing is left, or an empty folder of the same name
        mount()
        with pytest.raises(OSError) as raised:
            run(networks, folder, Lost(places=2))
        assert '\n' not in str(raised.value) and not (folder / 'results.jsonl').exists()
        mount()
        try:
            before = load_results(folder)
            assert 0 < len(before.rows) < len(networks) and before.problems == []
            assert {row['status'] for row in run(networks, folder).rows.values()} == {'done'}
            assert len(read_results(folder)[1]) == len(networks)
        finally:
            subprocess.run(['umount', '-l', str(mounted)], check=True)


def test_an_error_that_is_not_the_disks_is_the_networks(tmp_path: Path) -> None:
    def said(error: Exception) -> str | None:
        return work._storage_trouble(error, tmp_path)

    assert said(ValueError('x')) is None and said(FileNotFoundError(errno.ENOENT, 'no such image')) is None
    assert said(MemoryError()) is None and said(RuntimeError('shape [1, 2]')) is None
    assert 'a checkpoint' in str(said(RuntimeError('[enforce fail at inline_container.cc:659] unexpected pos 64 vs 0')))
    chained = RuntimeError('strange')
    chained.__context__ = OSError(errno.EDQUOT, 'Disk quota exceeded')
    assert said(chained) == '[Errno 122] Disk quota exceeded'
    assert work._storage_trouble(FileNotFoundError(errno.ENOENT, 'gone'), tmp_path / 'unmounted')


# A study that is killed


def run_for(changes: int, networks: list[Network], folder: Path) -> int:
    """Run a study; kill its process just before it writes, cuts, renames or removes a file for the so many-th time.

    What else it does to its folder, such as making an empty file, is done before one of these: so they are all instants
    that there are, on any machine. Returns how many times were left.
    """
    def count(frame: object, event: str, called: Any) -> None:
        nonlocal changes
        if event == 'c_call' and called.__name__ in ('__exit__', 'flush'):  # what Python has kept until then is written
            file = getattr(called, '__self__', None)
            changes -= isinstance(file, (io.BufferedWriter, io.TextIOWrapper)) and file.writable()
        elif event == 'c_call':
            changes -= called in (os.write, os.ftruncate, os.replace, os.unlink)
        if changes < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    tqdm.set_lock(threading.RLock())  # its own is shared with a parent process: a kill would leave it taken for ever
    sys.setprofile(count)
    try:
        run(networks, folder, Instant(places=2, size=3000))
    finally:
        sys.setprofile(None)
    return changes


def test_a_study_killed_at_any_instant_loses_no_row_and_doubles_none(
        networks: list[Network], instant: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Most of the time would go into reading the recipe, again and again.
    monkeypatch.setattr('randwire_zoo.studies.study.load_recipe', cache(load_recipe))
    many, networks, folder = 10 ** 6, networks[:2], tmp_path / 'study'
    whole = [many - run_for(many, networks, tmp_path / name) for name in ('first', 'second')][1]
    assert whole > 20, 'what is done to files is not noticed'
    for changes in range(whole):
        begun = folder.exists()
        with in_a_fork(partial(run_for, changes, networks, folder)) as pid:
            killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        assert killed or begun, 'it came to its end before'
        if (folder / 'results.jsonl').exists():
            found = load_results(folder)
            assert len({row['id'] for row in found.rows}) == len(found.rows)
            assert not [problem for problem in found.problems if 'cut off' not in problem], found.problems
            before = [row['id'] for row in found.rows]
            kept = Results(folder, STUDY)
            kept.create()
            assert list(kept.rows) == before
        if begun or changes % 3:  # or else what is started next goes on from here, and is killed in its turn
            run(networks, folder)
            rows = [json.loads(line) for line in (folder / 'results.jsonl').read_text().splitlines()[1:]]
            assert sorted(row['id'] for row in rows) == sorted(network.id for network in networks)
            shutil.rmtree(folder)


def test_a_row_that_was_added_just_before_a_kill_is_not_added_twice(
        networks: list[Network], instant: None, tmp_path: Path) -> None:
    results = run(networks[:3], tmp_path)
    task = tmp_path / 'tasks' / f'{networks[0].id}.json'
    write_atomically(row_path(task), json.dumps(results.rows[networks[0].id]))  # added, and not yet taken away
    write_atomically(row_path(write_task(tmp_path, STUDY, networks[3], None)), json.dumps(made_up(networks[3])))
    engine = Instant()
    assert len(run(networks[:4], tmp_path, engine).rows) == 4 and engine.started == 0
    assert len((tmp_path / 'results.jsonl').read_text().splitlines()) == 5
    assert list((tmp_path / 'tasks').glob('*.row')) == []


def test_a_network_whose_process_dies_twice_has_a_row_that_says_so(
        networks: list[Network], instant: None, tmp_path: Path) -> None:
    class Dying(Instant):
        def job(self, task: Path) -> Any:
            self.started += 1
            return _Process(subprocess.Popen(['sh', '-c', 'kill -9 $$']), task.with_suffix('.log'))

    engine = Dying()
    row, = run(networks[:1], tmp_path, engine).rows.values()
    assert engine.started == 2 and row['status'] == 'failed'
    assert row['reason'] == ('its process ended 2 times without a result, last with signal 9 (SIGKILL); see '
                             f'{networks[0].id}.log')


@ASKS_LINUX
def test_workers_and_studies_that_are_killed_cost_nothing(uninterrupted: Path, data: Path, tmp_path: Path) -> None:
    """With the real processes: a worker is killed and started once more, then the study is, and its workers end."""
    folder = tmp_path / 'output'
    study = write(tmp_path)
    process = start(*arguments(study, data, folder))

    def workers() -> dict[int, str]:
        return {pid: args for name in in_training(folder)
                for pid, args in processes('randwire_zoo.studies.work', folder / 'tasks' / f'{name}.json').items()}

    os.kill(next(iter(wait_for(workers, process))), signal.SIGKILL)
    wait_for(lambda: rows_of(folder) and in_training(folder), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # The workers have sessions of their own, but do not outlive the run.
    try:
        wait_for(lambda: not processes('randwire_zoo.studies.work', tmp_path))
    finally:
        for pid in processes('randwire_zoo.studies.work', tmp_path):
            os.kill(pid, signal.SIGKILL)
    assert 0 < len(rows_of(folder)) < 3
    begun = {name: (folder / 'runs' / name / 'summary.csv').read_text() for name in in_training(folder)}
    logs = {row['id']: (folder / 'tasks' / f'{row["id"]}.log').read_text() for row in rows_of(folder)}
    assert [name for name, text in logs.items() if 'Fatal Python error' in text or 'Traceback' in text] == []

    # And the line that was being written is cut in half.
    path = folder / 'results.jsonl'
    path.write_text(path.read_text()[:-40])
    loaded = load_study(study)
    run_study(loaded, running.networks_of(loaded, folder), folder, Here(), str(data), progress=False)
    assert results(folder) == results(uninterrupted)
    for name, summary in begun.items():
        whole = (folder / 'runs' / name / 'summary.csv').read_text()
        assert whole.startswith(summary.splitlines()[0]) and len(whole.splitlines()) == 13


# Two at once


def test_a_second_run_in_the_same_folder_changes_nothing_there(
        uninterrupted: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / 'output'
    shutil.copytree(uninterrupted, folder)
    path = folder / 'results.jsonl'
    with lock(folder / '.lock'):
        before = path.stat()
        assert cli.main(arguments(write(tmp_path), data, folder)) == 2
        assert f'another run is at work in {folder}' in capsys.readouterr().err
        # A row that the first run adds while the second one rewrites the file would be lost.
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize('number', [errno.EWOULDBLOCK, errno.EACCES, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP,
                                    errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
def test_what_a_lock_fails_of_is_told_apart(
        number: int, networks: list[Network], instant: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    def flock(file: int, flags: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, 'flock', flock)
    if number in (errno.EWOULDBLOCK, errno.EACCES):
        with pytest.raises(Locked, match=f'another run is at work in {tmp_path}'):
            run(networks[:1], tmp_path)
    elif number in (errno.EIO, errno.ESTALE):
        with pytest.raises(OSError, match='cannot be locked') as raised:
            run(networks[:1], tmp_path)
        assert raised.value.errno == number and 'another run' not in str(raised.value)
    else:  # a file system without locks is said once, and is no obstacle
        assert len(run(networks[:1], tmp_path).rows) == 1
        assert capsys.readouterr().err.count('without locks') == 1


# Dead parents


TRAIN_NET = '''
import json, os, pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index('OUTPUT_DIR') + 1])
with open(out / 'pids', 'a') as file:
    file.write(f'{os.getpid()}\\n')
while not (out / 'finish').exists():
    time.sleep(0.02)
line = {'iteration': 1, 'total_loss': 1.0, **{f'bbox/{n}': 50.0 for n in ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')}}
(out / 'metrics.json').write_text(json.dumps(line) + '\\n')
'''


@pytest.fixture
def detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Callable[[], list[int]]]:
    """A task of a study of detectors, and the processes that its train_net.py was started as."""
    (tmp_path / 'train_net.py').write_text(TRAIN_NET)
    (tmp_path / 'data' / 'bccd').mkdir(parents=True)
    monkeypatch.setenv('DETECTRON2_TRAIN_NET', str(tmp_path / 'train_net.py'))
    study = Study(title='Detectors', models=['randwire_ws_pico'], training_seeds=[1], data='bccd',
                  detection={'config': 'bccd/faster_rcnn_randwire_ws_pico.yaml'})
    network, = study.networks()
    task = write_task(tmp_path / 'output', study, network, str(tmp_path / 'data'))
    pids = tmp_path / 'output' / 'runs' / network.id / 'pids'
    return task, lambda: list(map(int, pids.read_text().split())) if pids.exists() else []


@ASKS_LINUX
def test_a_detector_in_training_ends_with_the_process_that_started_it(
        detector: tuple[Path, Callable[[], list[int]]]) -> None:
    task, pids = detector
    with in_a_fork(lambda: run_task(str(task))) as worker:
        training, = wait_for(pids)
        assert is_alive(training)
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        wait_for(lambda: not is_alive(training))


def test_a_detector_that_goes_on_alone_keeps_others_out_of_its_folder(
        detector: tuple[Path, Callable[[], list[int]]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not end it, as on macOS."""
    task, pids = detector
    monkeypatch.setattr(guards, '_prctl', lambda: None)
    with in_a_fork(lambda: run_task(str(task))) as worker:
        first, = wait_for(pids)
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
    try:
        assert is_alive(first)
        with in_a_fork(lambda: run_task(str(task))) as worker:
            time.sleep(0.5)
            assert pids() == [first], 'a second one runs in the same folder'
            (task.parent.parent / 'runs' / task.stem / 'finish').touch()
            second = wait_for(lambda: pids()[1:])
            assert not is_alive(first) and len(second) == 1
            wait_for(row_path(task).exists)
    finally:
        with suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)
    assert json.loads(row_path(task).read_text())['detection']['AP'] == 50.0


def test_a_worker_ends_with_its_study_and_so_does_all_that_it_started() -> None:
    script = ('import os, subprocess; from randwire_zoo.studies.processes import end_with_parent; end_with_parent();'
              "child = subprocess.Popen(['sleep', '60'], stdin=subprocess.DEVNULL);"
              'print(child.pid, flush=True); child.wait()')
    with subprocess.Popen([sys.executable, '-c', script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          start_new_session=True, text=True) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        child = int(worker.stdout.readline())
        assert is_alive(child)
        worker.stdin.close()  # as it is when the study is gone
        assert worker.wait(30) == -signal.SIGKILL
        wait_for(lambda: not is_alive(child))


def test_what_a_child_starts_ends_too_when_the_process_above_is_killed(tmp_path: Path) -> None:
    """As torchrun starts trainers, in sessions of their own: they see the same pipe close."""
    watcher = ('import os, sys, time; from randwire_zoo.studies.processes import end_with_parent; end_with_parent();'
               f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    starter = f'import subprocess, sys; subprocess.run([sys.executable, "-c", {watcher!r}], start_new_session=True)'
    command = [sys.executable, '-c', starter]
    with in_a_fork(lambda: guards.run_child(command, subprocess.DEVNULL, os.environ, None)) as worker:
        pid = int(wait_for(lambda: (tmp_path / 'pid').exists() and (tmp_path / 'pid').read_text()))
        assert is_alive(pid)
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        wait_for(lambda: not is_alive(pid))


# Several processes for one network, and clusters


def test_a_network_may_be_trained_by_several_processes(
        data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GraphModel, 'registry', dict(GraphModel.registry))  # that of own.py is forgotten afterwards
    (tmp_path / 'own.py').write_text(textwrap.dedent(GENERATORS))
    study = load_study(write(tmp_path, models=None, graphs=['regular(2)'], generators='own.py', processes=2, damage=0,
                             eval_sizes=[], settings={**SPEC['settings'], 'epochs': 2, 'batch_size': 4}))
    results = run_study(study, study.networks(), tmp_path / 'output', Here(), str(data), progress=False)
    row, = results.rows.values()
    assert row['status'] == 'done' and len(row['history']) == 2, row
    checkpoint = torch.load(tmp_path / 'output' / 'runs' / row['id'] / 'last.pth.tar', weights_only=False)
    # 24 images in minibatches of 4 on each of two processes: three updates an epoch, and not six.
    steps = {state['step'] for state in checkpoint['optimizer']['state'].values() if 'step' in state}
    assert checkpoint['args'].world_size == 2 and (not steps or steps == {6}), (checkpoint['args'], steps)


def test_epochs_are_counted_where_not_every_one_is_measured(data: Path, tmp_path: Path) -> None:
    study = load_study(write(tmp_path, models=None, graphs=['er(0.5)'], damage=0, eval_sizes=[], seeds=[1],
                             settings={**SPEC['settings'], 'epochs': 3, 'val_interval': 2}))
    folder, networks = tmp_path / 'output', study.networks()
    row, = run_study(study, networks, folder, Here(), str(data), progress=False).rows.values()
    assert row['epochs'] == 3 and [point[0] for point in row['history']] == [2, 3]
    assert running._Progress(study, networks, folder, Results(folder, study), False)._trained(row['id']) == 3


@pytest.mark.parametrize(('said', 'reason'), [
    ('Traceback (most recent call last):\n  File "a.py", line 1\nValueError: 3 classes\n[rank1]: ValueError: other\n'
     'torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n=====\nRoot Cause\n'
     '  exitcode  : 1 (pid: 5)\n  exitcode : -15 (pid: 6)\n=====\n',
     'torchrun ended with 1: [rank1]: ValueError: other'),
    ('torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n=====\n  exitcode  : -9 (pid: 812)\n'
     '  traceback : Signal 9 (SIGKILL) received by PID 812\n=====\n', None),
])
def test_what_several_processes_fail_of_is_the_networks_reason_and_what_kills_them_is_not(
        said: str, reason: str | None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_child(command: Any, log: Any, environment: Any, held: Any) -> int:
        log.write(said)
        log.flush()
        return 1

    monkeypatch.setattr(work, 'run_child', run_child)
    study = load_study(write(tmp_path, models=None, graphs=['er(0.5)'], processes=2))
    network, = study.networks()
    task = write_task(tmp_path / 'output', study, network, str(data))
    # What an earlier attempt had to say does not count.
    task.with_name(f'{network.id}.log').write_text('ValueError: of the first attempt\n  exitcode : -9 (pid: 1)\n')
    if reason is None:  # it has another try
        with pytest.raises(RuntimeError, match=r'torchrun ended with 1: .*SIGKILL'):
            work.run_task(str(task))
        assert not work.row_path(task).exists()
    else:
        work.run_task(str(task))
        assert json.loads(work.row_path(task).read_text())['reason'] == f'RuntimeError: 2 processes: {reason}'


def test_what_the_system_ends_has_another_try(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(write(tmp_path, models=None, graphs=['er(0.5)']))
    task = write_task(tmp_path / 'output', study, study.networks()[0], str(data))

    def end(*arguments: Any) -> Any:
        raise RuntimeError('DataLoader worker (pid 812) is killed by signal: Killed. ')

    monkeypatch.setattr(work, 'run_network', end)
    with pytest.raises(RuntimeError, match='killed by signal'):
        work.run_task(str(task))
    assert not work.row_path(task).exists()
    # So does detectron2's script, which a signal ended, and not the same with an exit code of its own.
    monkeypatch.undo()
    script = tmp_path / 'train_net.py'
    script.write_text('')
    monkeypatch.setenv('DETECTRON2_TRAIN_NET', str(script))
    detectors = Study(title='x', models=['randwire_ws_pico'], detection={'config': 'faster_rcnn_randwire.yaml'},
                      training_seeds=[1])
    network, = detectors.networks()
    for code, ended in ((-9, work._KilledError), (1, RuntimeError)):
        def run_child(command: Any, log: Any, *arguments: Any, code: int = code) -> int:
            log.write('no more memory\n')
            return code

        monkeypatch.setattr(work, 'run_child', run_child)
        with pytest.raises(RuntimeError, match=f'train_net.py ended with {code}: no more memory') as raised:
            work._fine_tune_detector(detectors, network, tmp_path / 'detectors', data, None)
        assert type(raised.value) is ended


def test_a_row_says_with_what_each_start_of_its_training_was_made(
        data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(write(tmp_path, models=None, graphs=['er(0.5)']))
    network, = study.networks()
    folder = tmp_path / 'output'
    run = folder / 'runs' / network.id
    numbers = iter(range(9))
    monkeypatch.setattr(work, 'provenance', lambda device: {'threads': next(numbers)})

    def start(checkpoint: bool, ends: bool) -> None:
        def run_network(*arguments: Any) -> dict[str, Any]:
            run.mkdir(parents=True, exist_ok=True)
            if checkpoint:
                (run / 'last.pth.tar').touch()
            if not ends:
                raise KeyboardInterrupt
            return {'top1': 1.0}
        monkeypatch.setattr(work, 'run_network', run_network)
        with suppress(KeyboardInterrupt):
            work.run_task(str(write_task(folder, study, network, str(data))))

    for checkpoint, ends in ((False, False), (True, False), (True, True)):
        start(checkpoint, ends)
    row = json.loads(work.row_path(folder / 'tasks' / f'{network.id}.json').read_text())
    # The first start left nothing that the second went on with.
    assert [made['threads'] for made in [*row['earlier'], row['provenance']]] == [1, 2]


def test_what_lies_there_of_other_settings_is_not_gone_on_with(
        data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / 'output'

    def left_of(**changes: Any) -> bool:
        study = load_study(write(tmp_path, **{'models': None, 'graphs': ['er(0.5)'], **changes}))
        write_task(folder, study, study.networks()[0], str(data))
        return checkpoint.exists() and row.exists()

    network = load_study(write(tmp_path, models=None, graphs=['er(0.5)'])).networks()[0]
    checkpoint = folder / 'runs' / network.id / 'last.pth.tar'
    row = work.row_path(folder / 'tasks' / f'{network.id}.json')
    task = folder / 'tasks' / f'{network.id}.json'

    def leave() -> None:
        for path in (checkpoint, row):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    # Without its task nobody knows what a training is of: it may come from another folder.
    for text in (None, '{"sha25'):
        leave()
        task.unlink(missing_ok=True)
        if text is not None:
            task.write_text(text)
        assert not left_of()
        assert f'of unknown settings, as {task} is missing or broken, and is trained anew' in capsys.readouterr().err
    leave()
    assert left_of() and left_of() and left_of(graphs=['er(0.5)', 'ba(2)'], notes='other words')
    assert capsys.readouterr().err == ''
    assert not left_of(settings={**SPEC['settings'], 'lr': 0.5})
    assert f'{network.id}: what {folder} has of it is of other settings, and is trained anew' in capsys.readouterr().err
    # A task of an earlier release says no more than which network it is of.
    for older, kept in ((network, True), (replace(network, training_seed=9), False)):
        leave()
        task.write_text(json.dumps({'network': asdict(older)}))
        assert left_of() is kept


def test_a_cluster_is_meant_unless_this_machine_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('submitit')
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(ValueError, match='srun'):
        create_engine('submitit', 1, tmp_path / 'output', {})
    assert create_engine('submitit', 1, tmp_path / 'output', {'cluster': 'local', 'gpus_per_node': '0'}, processes=4)
    with pytest.raises(ValueError, match='each network takes 4 processes with a GPU each, got gpus_per_node=1'):
        create_engine('submitit', 1, tmp_path / 'output', {'cluster': 'local', 'gpus_per_node': '1'}, processes=4)
    for option in ('tasks_per_node=4', 'slurm_ntasks_per_node=2', 'nodes=2'):
        with pytest.raises(ValueError, match=f'one task on one node.*got {option}'):
            create_engine('submitit', 1, tmp_path / 'output', {'cluster': 'local', **dict([option.split('=')])})
    assert create_engine('submitit', 1, tmp_path / 'output', {'cluster': 'local', 'tasks_per_node': '1'})


def test_a_job_whose_time_is_over_goes_on_as_often_as_that_takes(
        data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip('submitit')
    engine = create_engine('submitit', 1, tmp_path / 'output', {'cluster': 'local'})
    assert engine.executor._executor.max_num_timeout == 1000  # type: ignore[attr-defined]

    def run_network(*arguments: Any) -> Any:
        raise submitit.core.utils.UncompletedJobError('Job not requeued because: timed-out too many times.')

    monkeypatch.setattr(work, 'run_network', run_network)
    study = load_study(write(tmp_path, models=None, graphs=['er(0.5)']))
    task = write_task(tmp_path / 'output', study, study.networks()[0], str(data))
    with pytest.raises(submitit.core.utils.UncompletedJobError):
        work.run_task(str(task))
    assert not work.row_path(task).exists()


def test_a_study_under_nice_is_as_nice_in_its_networks_own_sessions() -> None:
    def said_in_a_session(action: str) -> list[str]:
        script = f'import os; {action}; print(open("/proc/self/autogroup").read())'
        return subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, start_new_session=True,
                              ).stdout.split()[1:]
    if said_in_a_session('open("/proc/self/autogroup", "w").write("3")') != ['nice', '3']:
        pytest.skip('needs a kernel that schedules by sessions and may be told how')
    ours = 'from randwire_zoo.studies.processes import keep_niceness; keep_niceness()'
    assert said_in_a_session(f'os.nice(7); {ours}') == ['nice', str(os.nice(0) + 7)]


def test_networks_have_their_share_of_gpus_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(16)), raising=False)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    engine = LocalEngine(None, processes=2, gpus=8)
    assert engine.places == 4 and engine.threads == 2
    assert [engine.environment(place)['CUDA_VISIBLE_DEVICES'] for place in range(5)] == [
        '0,1', '2,3', '4,5', '6,7', '0,1']
    assert [LocalEngine(None, gpus=3).environment(place)['CUDA_VISIBLE_DEVICES'] for place in range(3)] == list('012')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,6,7')
    assert LocalEngine(2, processes=1, gpus=3).environment(1)['CUDA_VISIBLE_DEVICES'] == '6'
    for name in ('SLURM_NTASKS', 'SLURM_PROCID', 'WORLD_SIZE', 'RANK'):  # of a batch script with eight tasks
        monkeypatch.setenv(name, '8')
    assert not [name for name in engine.environment(0) if 'NTASKS' in name or 'PROCID' in name or name.endswith(
        ('RANK', 'WORLD_SIZE'))]
    on_cores = LocalEngine(None, processes=4, gpus=0)
    assert on_cores.places == 4 and on_cores.threads == 1 and LocalEngine(None, gpus=0).places == 8
    for idle, workers, places, threads in (('6', None, 3, 2), ('6', 2, 2, 3), ('1', 2, 2, 1), ('99', None, 8, 2)):
        monkeypatch.setenv('OMP_NUM_THREADS', idle)
        some = LocalEngine(workers, gpus=0)
        assert (some.places, some.threads, some.environment(0)['OMP_NUM_THREADS']) == (places, threads, str(threads))
    with pytest.raises(ValueError, match='takes 4 GPUs, and there are 2'):
        LocalEngine(None, processes=4, gpus=2)


@ASKS_LINUX
def test_a_job_that_is_preempted_or_killed_costs_no_network(data: Path, tmp_path: Path) -> None:
    pytest.importorskip('submitit')
    folder = tmp_path / 'output'
    study = load_study(write(tmp_path, models=None, graphs=['er(0.5)'], damage=0, eval_sizes=[],
                             settings={**SPEC['settings'], 'epochs': 40}))
    networks = study.networks()
    engine = create_engine('submitit', 1, folder, {'cluster': 'local'})
    running_study = threading.Thread(
        target=run_study, args=(study, networks, folder, engine, str(data), False, False), daemon=True)

    def epochs() -> int:
        with suppress(OSError):
            return len((folder / 'runs' / networks[0].id / 'summary.csv').read_text().splitlines()) - 1
        return 0

    def job() -> list[int]:
        return sorted(processes('submitit.core._submit', folder / 'jobs'))

    try:
        running_study.start()
        wait_for(lambda: epochs() > 2)
        first = job()[-1]
        os.kill(first, signal.SIGUSR2)  # it has to make room, and goes back into the queue
        wait_for(lambda: not is_alive(first))
        before = epochs()
        wait_for(lambda: epochs() > before + 2)
        assert rows_of(folder) == [] and before < 40
        os.kill(job()[-1], signal.SIGKILL)
        running_study.join()
    finally:
        for pid in processes(tmp_path):
            os.kill(pid, signal.SIGKILL)
    run_study(study, networks, tmp_path / 'whole', Here(), str(data), progress=False)
    assert results(folder) == results(tmp_path / 'whole')
    assert len(list((folder / 'jobs').glob('*_log.err'))) == 2  # once more after the kill, and not after the preemption


SBATCH = '''#!/bin/sh
cp "$1" {folder}/batch-$(ls {folder} | wc -l)
echo "Submitted batch job 4711"
'''


def test_on_slurm_all_networks_are_one_array_of_which_so_many_run_at_once(
        networks: list[Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('submitit')
    for name, text in (('sbatch', SBATCH.format(folder=tmp_path / 'sent')), ('srun', '#!/bin/sh\n'),
                       ('sacct', '#!/bin/sh\necho "JobID|State"\n'), ('scancel', '#!/bin/sh\n')):
        (tmp_path / 'bin').mkdir(exist_ok=True)
        (tmp_path / 'bin' / name).write_text(text)
        (tmp_path / 'bin' / name).chmod(0o755)
    (tmp_path / 'sent').mkdir()
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
    engine = create_engine('submitit', 3, tmp_path, {
        'cluster': 'slurm', 'slurm_partition': 'gpu', 'gpus_per_node': '2'})
    assert isinstance(engine, SubmititEngine) and engine.places >= len(networks)
    tasks = [write_task(tmp_path, STUDY, network, None) for network in networks]
    jobs = engine.start(tasks, list(range(len(tasks))))
    batch, = (tmp_path / 'sent').iterdir()
    said = batch.read_text()
    assert f'#SBATCH --array=0-{len(tasks) - 1}%3' in said and '--partition=gpu' in said
    assert [job.job.job_id for job in jobs] == [f'4711_{i}' for i in range(len(tasks))]
    # A network that is queued again is a job of its own.
    engine.start(tasks[:1], [0])
    assert len(list((tmp_path / 'sent').iterdir())) == 2


@pytest.mark.skipif(not shutil.which('sinfo') or bool(subprocess.run('sinfo', capture_output=True).returncode),
                    reason='no SLURM cluster')
def test_a_study_runs_on_a_slurm_cluster(uninterrupted: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'output'
    assert cli.main([*arguments(write(tmp_path), data, folder), '--engine', 'submitit', '--engine-options',
                     'cluster=slurm']) == 0
    assert results(folder) == results(uninterrupted) and sorted(results(folder)) == sorted(IDS)
