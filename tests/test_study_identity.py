"""Whose rows are whose: a row says of which settings it is, and nothing of other settings is mixed in or trained."""
from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_up_study
import pytest
from made_up_study import STUDY, Instant, made_up, run
from tiny_study import GENERATORS, Here, rows_of, write
from waiting import wait_for

from randwire_zoo.files import write_atomically
from randwire_zoo.graphs import GraphModel, parse_graph_model, sample_graphs
from randwire_zoo.studies import engines, running, work
from randwire_zoo.studies import study as study_module
from randwire_zoo.studies.engines import SubmititEngine, _Process, _SubmititJob, create_engine
from randwire_zoo.studies.results import ASIDE, Results, load_results, read_results
from randwire_zoo.studies.running import networks_of, run_networks, run_study
from randwire_zoo.studies.study import AS_WRITTEN, Network, Study, load_study
from randwire_zoo.studies.work import CHANGED, is_row_of, row_path, run_task, write_task
from randwire_zoo.training import recipes
from randwire_zoo.training.recipes import CONFIGS

DOCS = Path(__file__).resolve().parents[1] / 'docs' / 'studies'
networks, instant = made_up_study.networks, made_up_study.instant  # fixtures


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a network gives is made up, and its process is this one."""
    monkeypatch.setattr(work, 'run_network', lambda *arguments: {'top1': 50.0, 'top5': 90.0})
    monkeypatch.setattr(running, 'data_folder', lambda *arguments: Path())
    monkeypatch.setattr(running, 'SECONDS', 0.0)
    monkeypatch.setattr(GraphModel, 'registry', dict(GraphModel.registry))  # those of own.py are forgotten afterwards


class OneByOne(Here):
    """One network after the other."""

    places = 1


# The settings that a row is of


def test_every_row_has_the_sha256_of_its_network_whatever_became_of_it(
        networks: list[Network], no_training: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, failed, lost = networks[:3]

    def run_network(study: Study, network: Network, *arguments: Any) -> dict[str, Any]:
        if network == failed:
            raise MemoryError('no more')
        return {'top1': 50.0, 'top5': 90.0}

    class Losing(OneByOne):
        def start(self, tasks: list[Path], places: list[int]) -> list[Any]:
            return super().start([task for task in tasks if task.stem != lost.id], places) or [
                SimpleNamespace(poll=lambda: 'signal 9 (SIGKILL)', stop=lambda: None)]

    monkeypatch.setattr(work, 'run_network', run_network)
    rows = run_study(STUDY, [done, failed, lost], tmp_path, Losing(), progress=False).rows
    assert [rows[network.id]['status'] for network in (done, failed, lost)] == ['done', 'failed', 'failed']
    assert len({row['sha256'] for row in rows.values()}) == 3
    other = replace(STUDY, settings={'lr': 0.5})
    for network in (done, failed, lost):
        row = rows[network.id]
        # Other words, and other networks beside it, are the same settings; another learning rate is not.
        for same in (STUDY, replace(STUDY, title='In other words', graphs=['er(0.5)'], notes='…')):
            assert row['sha256'] == same.network_sha256(network) and is_row_of(row, same, network)
        assert not is_row_of(row, other, network)
        older = {name: value for name, value in row.items() if name != 'sha256'}
        assert is_row_of(older, STUDY, network) and is_row_of(older, other, network), 'it does not say so much'
        for one in (replace(network, training_seed=77), replace(network, model='resnet18'),
                    replace(network, kwargs={**network.kwargs, 'channels': 4})):
            assert not is_row_of(older, STUDY, one)


def test_a_study_that_goes_on_refuses_a_row_of_other_settings_before_it_writes_anything(
        networks: list[Network], instant: None, tmp_path: Path) -> None:
    first, second = networks[:2]
    some = networks[:4]
    ours = Results(tmp_path, STUDY)
    ours.create()
    header = ours.path.read_bytes()
    other = replace(STUDY, settings={'epochs': 30})

    def row(network: Network, study: Study | None = None, **changes: Any) -> dict[str, Any]:
        return {**made_up(network), **({'sha256': study.network_sha256(network)} if study else {}), **changes}

    wide = replace(second, kwargs={**second.kwargs, 'channels': 4})
    without = replace(second, kwargs={name: value for name, value in second.kwargs.items() if name != 'stem_stride'})
    foreign = replace(second, id='of-another-file')
    for bad, what in ((row(second, other), 'other settings'), (row(foreign, other), 'other settings'),
                      (row(wide, STUDY), r'another network \(channels=4 instead of channels=3\)'),
                      (row(wide), r'another network \(channels=4 instead of channels=3\)'),
                      (row(without), r'another network \(no stem_stride instead of stem_stride=2\)'),
                      (row(second, training_seed=9), 'other settings')):
        lines = header + json.dumps(row(first, STUDY)).encode() + b'\n' + json.dumps(bad).encode() + b'\nhalf a'
        ours.path.write_bytes(lines)
        engine = Instant()
        with pytest.raises(ValueError, match=rf'the row of {bad["id"]!r} is of {what}; take its line out') as raised:
            run(some, tmp_path, engine)
        assert '\n' not in str(raised.value) and str(ours.path) in str(raised.value) and engine.started == 0
        assert ours.path.read_bytes() == lines
        assert {path.name for path in tmp_path.iterdir()} <= {'results.jsonl', '.lock'}
    # Rows of earlier releases, and of networks that were asked for once, are the study's where nothing says otherwise.
    ours.path.write_bytes(header + b''.join(json.dumps(good).encode() + b'\n' for good in (
        row(first), row(second, STUDY), row(foreign, STUDY), row(replace(foreign, id='older')))))
    assert len(run(some, tmp_path).rows) == len(some) + 2


def test_a_study_begun_by_an_earlier_release_goes_on_with_all_its_rows(
        instant: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(DOCS / 'generators_small.jsonl', tmp_path / 'results.jsonl')
    header, before = read_results(tmp_path)
    left = {name: header.pop(name, None) for name in ('networks', 'one_wiring')}
    study = load_study('generators_small')
    # Multiply-adds, and the C that the study's notes give, are another test's.
    monkeypatch.setattr(Study, '_count', lambda *arguments: (1, 1))
    monkeypatch.setattr(Study, '_figures', lambda *arguments: lambda graphs, channels: (1, 1))
    monkeypatch.setattr(Study, '_tuned_channels', lambda *arguments: 16)
    networks = study.networks()
    rows = run_study(study, networks, tmp_path, Instant(places=9), progress=False).rows
    assert {row['id']: row for row in before} == {name: rows[name] for name in {row['id'] for row in before}}
    after, found = read_results(tmp_path)
    assert len(found) == len(rows) == after['networks'] == 62 and after['one_wiring'] == ['ws(4,0)']
    assert {**after, 'networks': left['networks'], 'one_wiring': left['one_wiring']} == {**header, **left}


def test_results_of_another_study_in_the_same_file_end_it(tmp_path: Path) -> None:
    shorter, longer = (DOCS / f'{name}.jsonl' for name in ('mnist', 'mnist_30'))
    path = tmp_path / 'results.jsonl'
    ours = shorter.read_bytes().splitlines(keepends=True)
    path.write_bytes(shorter.read_bytes() + longer.read_bytes().replace(b'"id": "ws', b'"id": "longer-ws') + ours[1])
    found, title = load_results(path), json.loads(longer.read_bytes().splitlines()[0])['study']
    assert found.problems == [f'line 11 begins the results of another study, {title!r}: they are left out']
    assert [row['id'] for row in found.rows] == [json.loads(line)['id'] for line in ours[1:]]
    assert {row['epochs'] for row in found.rows} == {15}
    whole = path.read_bytes()
    kept = Results(tmp_path, Study(**found.header['spec']))
    assert kept.create() == found.problems and load_results(path).problems == []
    assert path.read_bytes() + (tmp_path / ASIDE).read_bytes() == whole, 'a line is lost'
    # A file that was cut off before the other's first line.
    path.write_bytes(b''.join(ours[:3]) + ours[3][:200] + longer.read_bytes())
    found = load_results(path)
    assert [row['id'] for row in found.rows] == [json.loads(line)['id'] for line in ours[1:3]]
    assert found.problems == ['line 4 is broken',
                              f'line 4 begins the results of another study, {title!r}: they are left out']
    assert b''.join(line + b'\n' for line in found.broken) == ours[3][:200] + longer.read_bytes()
    # Two machines' files of one study are one.
    path.write_bytes(b''.join(ours[:5]) + ours[0] + b''.join(ours[5:]))
    found = load_results(path)
    assert found.problems == found.broken == [] and len(found.rows) == len(ours) - 1


def test_the_recipe_is_read_as_often_for_many_networks_as_for_few(
        networks: list[Network], instant: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def load_recipe(name: str) -> dict[str, Any]:
        read.append(name)
        return recipes.load_recipe(name)

    monkeypatch.setattr(study_module, 'load_recipe', load_recipe)
    times = []
    for folder, some in ((tmp_path / 'few', networks[:2]), (tmp_path / 'many', networks[:14])):
        for started in (len(some), 0):  # their tasks are written, and then their rows are there
            read.clear()
            engine = Instant(places=14)
            run(some, folder, engine)
            assert engine.started == started
            times.append(len(read))
    assert times[:2] == times[2:] and min(times) > 0
    # A study that goes on with another recipe is another one all the same.
    recipe = recipes.load_recipe(STUDY.recipe)
    monkeypatch.setattr(study_module, 'load_recipe', lambda name: {**recipe, 'weight_decay': 0.25})
    with pytest.raises(ValueError, match='belongs to another study'):
        run(networks[:14], tmp_path / 'many')


# Rows that lie beside the tasks


@pytest.mark.parametrize('task', ['there', 'missing', 'broken'])
def test_a_row_that_lies_in_the_folder_is_taken_only_if_it_is_known_to_be_of_these_settings(
        task: str, networks: list[Network], instant: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, other = networks[0], replace(STUDY, settings={'lr': 0.5})
    older = {**made_up(network), 'top1': 77.0}
    none: tuple[Any, ...] = ({}, [1], None)
    cases = [({**older, 'sha256': STUDY.network_sha256(network)}, True),
             ({**older, 'sha256': other.network_sha256(network)}, False),
             ({**older, 'id': 'another', 'sha256': STUDY.network_sha256(replace(network, id='another'))}, False),
             (older, task == 'there'),  # an earlier release's says which network it is of, and its task the rest
             ({**older, 'training_seed': 9}, False), ({**older, 'id': 'another'}, False),
             *((row, False) for row in none)]
    for number, ((row, taken), begun) in enumerate(itertools.product(cases, (False, True))):
        folder = tmp_path / str(number)
        path = folder / 'tasks' / f'{network.id}.json'
        checkpoint = folder / 'runs' / network.id / 'last.pth.tar'
        path.parent.mkdir(parents=True)
        if task == 'there':
            write_task(folder, STUDY, network, None)
        elif task == 'broken':
            path.write_text('{"sha25')
        row_path(path).write_text('' if row is None else json.dumps(row))
        if begun:
            checkpoint.parent.mkdir(parents=True)
            checkpoint.touch()
        engine = Instant()
        found = run([network], folder, engine).rows[network.id]
        assert (found['top1'], engine.started) == ((77.0, 0) if taken else (50.0, 1)), row
        said = capsys.readouterr().err.splitlines()
        assert len(said) == (0 if taken else 1) and all(network.id in line for line in said), row
        # A row that is none says nothing against a training whose task is there.
        assert checkpoint.exists() is (begun and (taken or (task == 'there' and row in none))), row
        assert list(path.parent.glob('*.row')) == []


def test_a_process_does_not_take_the_row_that_one_of_other_settings_left(
        networks: list[Network], no_training: None, tmp_path: Path) -> None:
    """As of a job that was at work still when its study's file was changed, whose end the next one waits for."""
    network, other = networks[0], replace(STUDY, settings={'lr': 0.5})
    task = write_task(tmp_path, STUDY, network, None)
    row_path(task).write_text(json.dumps({**made_up(network), 'sha256': other.network_sha256(network)}))
    for _ in range(2):  # its own it leaves as it is
        run_task(str(task))
        row = json.loads(row_path(task).read_text())
        assert row['sha256'] == STUDY.network_sha256(network)
        row_path(task).write_text(json.dumps({**row, 'top1': 77.0}))
    assert row['top1'] == 77.0


# What the first line says of the networks


def test_the_first_line_says_how_many_networks_are_asked_for_and_which_series_have_one_wiring(
        instant: None, tmp_path: Path) -> None:
    asked = Study(**{**{entry.name: getattr(STUDY, entry.name) for entry in fields(Study)}, 'seeds': None,
                     'graphs': ['er(0.5)', 'ws(2,0)'], 'graph_seeds': [1, 2], 'training_seeds': [5],
                     'node_ops': ['sep_conv', 'max_pool'], 'models': ['mnist_tiny_cnn']})
    networks = asked.networks()
    wirings = {graph: {str(sample_graphs(parse_graph_model(graph), (4, 4, 4), seed)) for seed in (1, 2)}
               for graph in asked.graphs}
    once = [graph for graph in asked.graphs if len(wirings[graph]) == 1]
    expected = {'networks': 2 * sum(1 if graph in once else 2 for graph in asked.graphs) + 1,
                'one_wiring': [f'{graph} {operation}' for operation in asked.node_ops for graph in once]}
    assert once == ['ws(2,0)'] and len(networks) == expected['networks']
    run_study(asked, networks, tmp_path, Instant(), progress=False)
    path = tmp_path / 'results.jsonl'

    def said() -> dict[str, Any]:
        header = read_results(tmp_path)[0]
        assert header['sha256'] == asked.sha256
        return {name: header[name] for name in expected if name in header}

    assert said() == expected
    # A file of an earlier release gets them when the study goes on, and keeps its rows.
    first, *lines = path.read_text().splitlines()
    header = {name: value for name, value in json.loads(first).items() if name not in expected}
    path.write_text('\n'.join([json.dumps(header), *lines, '']))
    assert said() == {} and Results(tmp_path, asked).create() == [] and said() == {}
    engine = Instant()
    run_study(asked, networks, tmp_path, engine, progress=False)
    assert said() == expected and engine.started == 0 and path.read_text().splitlines()[1:] == lines
    # Whoever writes the file without being told keeps what it says.
    kept = Results(tmp_path, asked)
    kept.create()
    kept.forget([networks[0].id])
    assert said() == expected and len(load_results(path).rows) == len(lines) - 1
    for name, value in (('networks', 'all'), ('one_wiring', 'ws(2,0)')):
        path.write_text(json.dumps({**header, name: value}) + '\n')
        with pytest.raises(ValueError, match='is no file of results of a study'):
            load_results(path)
    # One seed that was asked for is no wiring that others were found equal to, nor are the paper's seeds.
    assert replace(asked, graph_seeds=[1]).one_wiring(replace(asked, graph_seeds=[1]).networks()) == []
    assert STUDY.one_wiring(STUDY.networks()) == []


# Files that change while networks wait


def of_own_files(folder: Path) -> Study:
    (folder / 'own.py').write_text(textwrap.dedent(GENERATORS))
    shutil.copy(CONFIGS / 'cifar10' / 'study.yaml', folder / 'recipe.yaml')
    return load_study(write(folder, graphs=['regular(2)'], models=None, seeds=[1, 2, 3], generators='own.py', damage=0,
                            eval_sizes=[], recipe=str(folder / 'recipe.yaml')))


@pytest.mark.parametrize('name, change', [
    ('recipe.yaml', lambda path: path.write_text(path.read_text() + '\nweight_decay: 0.25\n')),
    ('own.py', lambda path: path.write_text(path.read_text().replace('self.degree,', '2 * self.degree,'))),
    ('own.py', Path.unlink), ('recipe.yaml', lambda path: path.write_text('{unclosed'))],
    ids=['recipe', 'generators', 'missing', 'broken'])
def test_a_recipe_or_generator_that_changes_while_networks_wait_ends_the_study_and_no_network(
        name: str, change: Callable[[Path], Any], no_training: None, tmp_path: Path) -> None:
    study, folder = of_own_files(tmp_path), tmp_path / 'output'
    networks, kept, started = networks_of(study, folder), (tmp_path / name).read_text(), [0]

    def before() -> None:
        started[0] += 1
        if started[0] == 2:
            change(tmp_path / name)

    with pytest.raises(ValueError, match=rf'own\.py or \S+recipe\.yaml {CHANGED}.*; put back what it was') as raised:
        run_study(study, networks, folder, OneByOne(before), progress=False)
    assert '\n' not in str(raised.value)
    first, = rows_of(folder)
    assert first['status'] == 'done' and list((folder / 'tasks').glob('*.row')) == []
    # With what it was the study goes on; words that decide on nothing are no change.
    (tmp_path / name).write_text(kept)
    with (tmp_path / 'recipe.yaml').open('a') as file:
        file.write('\n# a remark\n')
    run_study(study, networks, folder, OneByOne(), progress=False)
    assert rows_of(folder)[0] == first and [row['status'] for row in rows_of(folder)] == ['done'] * 3


def test_a_recipe_that_changes_while_tasks_are_written_ends_the_study_before_any_is_begun(
        no_training: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written before it is of the former recipe, and what after it is not to be of the new one."""
    study, folder = of_own_files(tmp_path), tmp_path / 'output'
    networks, recipe = networks_of(study, folder), tmp_path / 'recipe.yaml'

    def write_changed(*args: Any) -> Path:
        if 'weight_decay: 0.25' not in recipe.read_text():
            recipe.write_text(recipe.read_text() + '\nweight_decay: 0.25\n')
        return write_task(*args)

    started: list[None] = []
    monkeypatch.setattr(running, 'write_task', write_changed)
    with pytest.raises(ValueError, match=rf'recipe\.yaml {CHANGED}'):
        run_study(study, networks, folder, OneByOne(lambda: started.append(None)), progress=False)
    assert rows_of(folder) == [] and started == []
    sha256 = {json.loads(path.read_text())['sha256'] for path in (folder / 'tasks').glob('*.json')}
    assert sha256.isdisjoint(study.network_sha256(network) for network in networks) and len(sha256) == 3


def test_a_process_says_that_its_files_have_changed_and_the_study_stops_the_others(
        networks: list[Network], instant: None, no_training: None, tmp_path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    study = of_own_files(tmp_path)
    task = write_task(tmp_path / 'output', study, study.networks()[0], None)
    (tmp_path / 'own.py').write_text('')
    assert work._main([str(task)]) == os.EX_CONFIG and not row_path(task).exists()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f'{tmp_path}/own.py or {tmp_path}/recipe.yaml {CHANGED}')
    # As a process of this machine, and as a job of a cluster, whose traceback submitit gives.
    log = tmp_path / 'worker.log'
    for text, expected in ((f'Traceback …\n{said}\n', said), ('', CHANGED)):
        log.write_text(text)
        process = subprocess.Popen(['sh', '-c', f'exit {os.EX_CONFIG}'])
        assert wait_for(_Process(process, log).poll) == expected
    with pytest.raises(work.Changed) as raised:
        run_task(str(task))
    job = SimpleNamespace(done=lambda: True, job_id='4711', state='FAILED', exception=lambda: (
        f'Job (task=0) failed during processing with trace:\n----\n{work.__name__}.Changed: {raised.value}\n----\n'))
    assert _SubmititJob(job).poll() == said

    class Stops(Instant):
        def job(self, task: Path) -> Any:
            self.started += 1
            return SimpleNamespace(poll=lambda: said if task.stem == networks[0].id else None,
                                   stop=lambda: self.stopped.append(task))

    engine = Stops()
    with pytest.raises(ValueError, match=f'^{networks[0].id}: .* {CHANGED}'):
        run(networks, tmp_path / 'study', engine)
    assert engine.started == 3 and len(engine.stopped) == 2 and rows_of(tmp_path / 'study') == []


# How many are at work on a cluster


class Cluster:
    """Arrays of jobs, of each of which so many are at work at a time, as SLURM has it."""

    def __init__(self, at_a_time: int) -> None:
        self.at_a_time, self.arrays, self.peak = at_a_time, list[list[SimpleNamespace]](), 0
        self.rng, self.killed = random.Random(0), set[int]()

    def map_array(self, function: Any, tasks: list[str]) -> list[SimpleNamespace]:
        self.arrays.append([self.job(Path(task)) for task in tasks])
        return self.arrays[-1]

    def job(self, task: Path) -> SimpleNamespace:
        job = SimpleNamespace(task=task, left=self.rng.randint(1, 9), job_id='4711', state='?', exception=lambda: None)
        job.done = lambda: job.left == 0
        return job

    def sleep(self, seconds: float) -> None:
        """A moment passes; the second job of all is killed at its end."""
        at_work = [job for array in self.arrays for job in [job for job in array if job.left][:self.at_a_time]]
        self.peak = max(self.peak, len(at_work))
        for job in at_work:
            job.left -= 1
            if not job.left and job is not self.arrays[0][1]:
                network = Network(**json.loads(job.task.read_text())['network'])
                write_atomically(row_path(job.task), json.dumps(made_up(network)))


def test_no_more_networks_are_at_work_on_slurm_than_workers_however_many_there_are(
        networks: list[Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('submitit')
    (tmp_path / 'srun').write_text('#!/bin/sh\n')
    (tmp_path / 'srun').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    monkeypatch.setattr(engines, 'LARGEST_ARRAY', 8)
    for workers, options in ((3, {}), (9, {'slurm_array_parallelism': '3'})):
        engine, cluster = create_engine('submitit', workers, tmp_path, options), Cluster(3)
        assert isinstance(engine, SubmititEngine)
        engine.executor = cluster
        monkeypatch.setattr(running, 'time', SimpleNamespace(sleep=cluster.sleep, monotonic=time.monotonic))
        for part, whole in (('a', networks[:14]), ('b', networks[:6])):  # as a search has one wave after the other
            results = Results(tmp_path / f'{workers}{part}', STUDY)
            results.path.parent.mkdir()
            results.create()
            run_networks([(STUDY, network) for network in whole], results, engine, None, AS_WRITTEN, lambda name: None)
            assert Counter(row['status'] for row in results.rows.values()) == {'done': len(whole)}
        assert cluster.peak == 3
        # An array while nothing is at work, and once more what was killed.
        assert len(cluster.arrays[0]) == 8 and len(cluster.arrays[-1]) == 6
        assert sum(map(len, cluster.arrays)) == 14 + 1 + 6
    with pytest.raises(ValueError, match="slurm_array_parallelism must be an integer of at least 1, got '0'"):
        create_engine('submitit', 3, tmp_path, {'slurm_array_parallelism': '0'})
