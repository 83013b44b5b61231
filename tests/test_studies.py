"""Studies: their yaml files, C, and real runs of tiny networks; what survives is in test_study_survival."""
from __future__ import annotations

import csv
import importlib
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import tiny_study
import torch
import yaml
from tiny_study import GENERATORS, IDS, SPEC, Here, arguments, results, rows_of, write
from torch import nn

from randwire_zoo import cli
from randwire_zoo.complexity import count_complexity, count_randwire
from randwire_zoo.graphs import Graph, GraphModel, graphs_sha256, parse_graph_model, sample_graphs
from randwire_zoo.kernels import library as kernels
from randwire_zoo.network import NODE_OPS, REGIMES, RandWire, stage_node_counts
from randwire_zoo.studies import cli as studies_cli
from randwire_zoo.studies import cost, running, work
from randwire_zoo.studies import study as studies
from randwire_zoo.studies.engines import LocalEngine, create_engine
from randwire_zoo.studies.report import report_table
from randwire_zoo.studies.results import read_results
from randwire_zoo.studies.running import run_study
from randwire_zoo.studies.search import is_search
from randwire_zoo.studies.study import data_folder, load_study, study_names
from randwire_zoo.training.evaluation import default_device, evaluate_folder
from randwire_zoo.training.recipes import load_recipe
from randwire_zoo.weights.description import Description, build_model

ROOT = Path(__file__).resolve().parents[1]

data, uninterrupted = tiny_study.data, tiny_study.uninterrupted  # fixtures


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """What a study's own generators registered is forgotten after each test."""
    before = dict(GraphModel.registry)
    yield
    GraphModel.registry.clear()
    GraphModel.registry.update(before)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies_cli, 'create_engine', create_engine_here)


def create_engine_here(name: str, workers: int | None, folder: Path, options: dict[str, str], processes: int) -> Any:
    create_engine(name, workers, folder, options, processes)  # what it refuses
    return Here()


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
            for path in folder.rglob('*') if path.is_file()}


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith('randwire-zoo: error: ') and error.count('\n') == 1, error
    return error


# The file


@pytest.mark.parametrize('changes, message', [
    ({'grpahs': []}, "unknown key 'grpahs'"),
    ({'graphs': ['xy(3)']}, r"unknown random graph model 'xy\(3\)'"),
    ({'graphs': ['ws(3,0.5)']}, 'needs an even K, got K=3'),
    ({'graphs': 'ws(2,0.5)'}, r"graphs must be a list of text, got 'ws\(2,0.5\)'"),
    ({'graphs': [7]}, r'graphs must be a list of text, got \[7\]'),
    ({'graphs': ['ba(1)', 'ba(1)']}, 'graphs names something twice'),
    ({'graphs': None, 'models': None}, 'needs graphs or models'),
    ({'seeds': []}, r'seeds must be one or more integers of at least 0, got \[\]'),
    ({'seeds': [-1]}, r'at least 0, got \[-1\]'),
    ({'seeds': None, 'graph_seeds': [1]}, 'graph_seeds and training_seeds go together'),
    ({'seeds': None, 'training_seeds': [1]}, 'graph_seeds and training_seeds go together'),
    ({'seeds': None, 'graph_seeds': [1], 'training_seeds': []}, r'training_seeds must be one or more .* got \[\]'),
    ({'seeds': None, 'graph_seeds': ['1'], 'training_seeds': [1]}, 'graph_seeds must be a list of integers'),
    ({'graph_seeds': [1], 'training_seeds': [1]}, 'either seeds, or graph_seeds and training_seeds'),
    ({'seeds': None, 'graphs': None, 'graph_seeds': [1], 'training_seeds': [1]}, 'graph_seeds are for graphs'),
    ({'processes': 0}, 'processes must be an integer of at least 1, got 0'),
    ({'processes': 1.5}, 'got 1.5'),
    ({'seeds': ['1']}, 'seeds must be a list of integers'),
    ({'seeds': [True]}, 'seeds must be a list of integers'),
    ({'node_ops': ['dense']}, "got 'dense'"),
    ({'channels': None}, 'either macs or channels'),
    ({'macs': 1.e6}, 'either macs or channels'),
    ({'channels': 1}, 'got 1'),
    ({'channels': 3.5}, 'got 3.5'),
    ({'channels': None, 'macs': '12e6'}, "got '12e6'"),
    ({'channels': None, 'macs': -1}, 'got -1'),
    ({'channels': None, 'macs': True}, 'got True'),
    ({'eval_sizes': [0]}, 'eval_sizes must be at least 1, got 0'),
    ({'proxies': 1}, 'they need 2 or more, got 1'),
    ({'damage': -5}, 'damage must be a number of images, got -5'),
    ({'damage': 'all'}, "got 'all'"),
    ({'title': 5}, 'title must be text'),
    ({'title': None}, 'title'),
    ({'model': [1]}, r'model must hold `key: value`, got \[1\]'),
    ({'model': {'seed': 4, 'channels': 8}}, 'model must not set channels, seed'),
    ({'settings': {'learning_rate': 1}}, "unknown key 'learning_rate'"),
    ({'settings': {'epochs': 'two'}}, "got 'two'"),
    ({'settings': {'output': 'here', 'seed': 3}}, 'settings must not have output, seed'),
    ({'settings': {'val_split': ''}}, 'val_split must name the images that the networks are measured on'),
    ({'recipe': None}, 'needs a recipe'),
    ({'recipe': 5}, '5'),
    ({'data': 5}, 'data.*5'),
    ({'detection': {'config': 'x.yaml'}}, 'models instead of graphs'),
    ({'detection': {'config': 'x.yaml', 'lr': 1}, 'graphs': None, 'channels': None}, 'got lr'),
    ({'paper': 73.8}, 'got 73.8'),
], ids=str)
def test_a_mistake_in_the_file_is_named_in_one_line(
        changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load_study(write(tmp_path, **changes))
    assert '\n' not in str(raised.value) and str(tmp_path / 'study.yaml') in str(raised.value)


def test_a_file_that_is_no_study_is_refused(tmp_path: Path) -> None:
    path = tmp_path / 'study.yaml'
    for text in ('- a list', '{unclosed', 'graphs: [ws(2,0.5)'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r'study\.yaml'):
            load_study(path)
    with pytest.raises(FileNotFoundError, match=r"no study 'figure33': .*did you mean figure3"):
        load_study('figure33')
    with pytest.raises(FileNotFoundError, match=r"study\.yaml.*no recipe 'cifar10/nothing'"):
        load_study(write(tmp_path, recipe='cifar10/nothing'))


def test_what_no_network_can_be_made_of_is_named_in_one_line(tmp_path: Path) -> None:
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({'channels': None, 'macs': 1000}, r'macs of 1000 cannot be met by ws\(2,0.5\) with sep_conv.*C=2 with'),
        ({'model': {'num_nodes': 2}}, r'ws\(2,0.5\)|WS\(K, P\)|num_nodes|K'),
        ({'model': {'num_nodes': 5, 'stem_stride': 3}}, 'stem_stride.*3'),
        ({'model': {'num_nodes': 5, 'depth': 3}}, 'depth'),
        ({'models': ['resnet7']}, "no model 'resnet7'")]
    for changes, message in mistakes:
        study = load_study(write(tmp_path, **{'models': None, **changes}))
        with pytest.raises(ValueError, match=message) as raised:
            study.networks()
        assert '\n' not in str(raised.value)


def test_two_networks_never_share_a_name(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, graphs=['ws(2,0.5)', 'ws(2, 0.5)'], models=None))
    with pytest.raises(ValueError, match='twice'):
        study.networks()


@pytest.mark.parametrize('text, error, message', [
    (None, FileNotFoundError, 'no file .*own.py'),
    ('x = 1', ValueError, 'own.py defines no subclass'),
    ('import no_such_module', ValueError, "own.py: ModuleNotFoundError: No module named 'no_such_module'"),
    ('raise ArithmeticError("first\\nsecond")', ValueError, 'own.py: ArithmeticError: first'),
    ('def f(:', ValueError, 'own.py: SyntaxError'),
], ids=['missing', 'empty', 'import', 'raises', 'syntax'])
def test_a_file_of_generators_that_has_none_is_named_in_one_line(
        text: str | None, error: type[Exception], message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / 'own.py').write_text(text)
    with pytest.raises(error, match=message) as raised:
        load_study(write(tmp_path, generators='own.py'))
    assert '\n' not in str(raised.value)


def test_a_generator_may_postpone_its_annotations(tmp_path: Path) -> None:
    (tmp_path / 'own.py').write_text('from __future__ import annotations\n' + textwrap.dedent(GENERATORS))
    assert load_study(write(tmp_path, graphs=['regular(2)'], generators='own.py')).graphs == ['regular(2)']


def test_a_generator_may_be_loaded_again_and_imported_but_takes_no_name_of_another(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'own.py').write_text(textwrap.dedent(GENERATORS))
    study = write(tmp_path, graphs=['regular(2)'], generators='own.py')
    monkeypatch.syspath_prepend(tmp_path)
    try:
        own = importlib.import_module('own')
        assert GraphModel.registry['regular'] is own.RandomRegular
        for _ in range(2):
            assert load_study(study).graphs == ['regular(2)']
    finally:
        sys.modules.pop('own', None)
    loaded = GraphModel.registry['regular']
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'own.py').write_text(textwrap.dedent(GENERATORS))
    with pytest.raises(ValueError, match=rf"^{other}/own\.py: ValueError: the name 'regular' of the random graph model "
                                         r'RandomRegular is that of \S+\.RandomRegular; give it another$'):
        load_study(write(other, graphs=['regular(2)'], generators='own.py'))
    assert GraphModel.registry['regular'] is loaded
    (other / 'own.py').write_text(textwrap.dedent(GENERATORS).replace("'regular'", "'ws'"))
    with pytest.raises(ValueError, match=r"the name 'ws' .* is that of randwire_zoo\.graphs\.WattsStrogatz"):
        load_study(write(other, generators='own.py'))


def test_a_generator_that_allows_no_such_graph_is_named_in_one_line(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'own.py').write_text(textwrap.dedent(GENERATORS))
    study = write(tmp_path, graphs=['regular(3)'], generators='own.py')
    assert cli.main(['study', 'show', str(study)]) == 2
    error = one_line(capsys)
    assert 'regular(3)' in error and 'n * d must be even' in error


def test_every_packaged_study_loads_and_the_small_ones_have_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    names = study_names()
    assert {'figure3', 'figure5', 'figure6', 'table2', 'table3', 'table4', 'table5', 'mnist2021'} <= set(names)
    for name in names:
        study = load_study(name)
        assert study.title and study.sha256 == load_study(name).sha256
        if not study.detection:
            assert load_recipe(study.recipe)
    # What C is tuned to is another test's.
    targets: list[int] = []
    monkeypatch.setattr(studies, '_count', lambda name, kwargs, size, classes: (targets[-1], 5))
    monkeypatch.setattr(studies.Study, '_figures', lambda self, kwargs: lambda graphs, channels: (targets[-1], 5))
    for small in (load_study(name) for name in names if name.endswith('_small')):
        targets.append(int(small.macs or 1))
        networks = small.networks()
        per_graph = len(small.seed_pairs) * max(len(small.widths), 1) * len(small.node_ops)
        expected = len(small.graphs) * per_graph + len(small.models) * len(small.trainings)
        if small.seeds is None and 'ws(4,0)' in small.graphs:  # which has one wiring
            expected -= (len(small.graph_seeds or []) - 1) * len(small.trainings) * len(small.node_ops)
        assert len(networks) == expected
        assert len({network.id for network in networks}) == len(networks)


@pytest.mark.parametrize('name', ['figure3_small', 'figure6_small'])
def test_a_small_study_makes_the_networks_that_it_describes(name: str) -> None:
    study = load_study(name)
    narrowed = studies.Study(**{**vars(study), 'graphs': study.graphs[:1], 'graph_seeds': None, 'training_seeds': None,
                                'seeds': [1], 'node_ops': ['max_pool']})
    network, = narrowed.networks()
    assert study.macs is not None and abs(network.macs / study.macs - 1) < 0.15
    assert network.series == f'{study.graphs[0]} max_pool' and network.graph_seed == network.training_seed == 1
    model = build_model(network.model, num_classes=10, in_chans=3, **network.kwargs)
    assert sum(parameter.numel() for parameter in model.parameters()) == network.params
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_everything_but_the_words_decides_on_whose_results_they_are(tmp_path: Path) -> None:
    def sha256(**changes: Any) -> str:
        return load_study(write(tmp_path, **changes)).sha256

    assert sha256(title='Other', notes='words', paper={}) == sha256()
    changed: list[dict[str, Any]] = [
        {'seeds': [2]}, {'seeds': None, 'graph_seeds': [1], 'training_seeds': [1]}, {'processes': 2},
        {'channels': 4}, {'damage': 0}, {'proxies': 8}, {'eval_sizes': []}, {'settings': {'epochs': 2}},
        {'model': {'num_nodes': 6}}, {'recipe': 'mnist/study'}, {'data': 'other'}]
    for changes in changed:
        assert sha256(**changes) != sha256(), changes
    (tmp_path / 'own.py').write_text(textwrap.dedent(GENERATORS))
    before = sha256(generators='own.py')
    (tmp_path / 'own.py').write_text(textwrap.dedent(GENERATORS) + '\n# changed\n')
    assert before != sha256(generators='own.py') != sha256()
    # A detector's config of one's own, and what it is based on; those of the package are as old as the package.
    detection = {'detection': {'config': str(tmp_path / 'own.yaml')}, 'graphs': None, 'channels': None, 'damage': 0,
                 'models': ['randwire_ws_pico']}
    digests = []
    for base, rate in ((1, 1), (1, 2), (2, 2), (2, 2)):
        (tmp_path / 'base.yaml').write_text(f'SEED: {base}')
        (tmp_path / 'own.yaml').write_text(f'_BASE_: base.yaml\nSOLVER: {{BASE_LR: {rate}}}')
        digests.append(sha256(**detection))
    assert len(set(digests)) == 3 and digests[2] == digests[3]


def test_a_detector_may_have_several_gpus_and_needs_detectron2(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'train_net.py').write_text(textwrap.dedent('''
        import json, sys
        from pathlib import Path
        folder = Path(sys.argv[sys.argv.index('OUTPUT_DIR') + 1])
        (folder / 'called').write_text(json.dumps(sys.argv[1:]))
        aps = {f'bbox/{name}': 1.5 for name in ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')}
        (folder / 'metrics.json').write_text(json.dumps({'iteration': 4, **aps}))
    '''))
    monkeypatch.setenv('DETECTRON2_TRAIN_NET', str(tmp_path / 'train_net.py'))
    asked: list[str]
    for processes, asked in ((1, []), (4, ['--num-gpus', '4', '--dist-url', 'auto'])):
        study = studies.Study(
            title='T', models=['randwire_ws_pico'], seeds=[1], data='x', processes=processes, detection={
                'config': 'bccd/faster_rcnn_{model}.yaml', 'overrides': ['SOLVER.MAX_ITER', 4]})
        network, = study.networks()
        folder = tmp_path / str(processes)
        assert work._fine_tune_detector(study, network, folder, tmp_path, None)['detection']['AP'] == 1.5
        called = json.loads((folder / 'runs' / network.id / 'called').read_text())
        assert called[0] == '--config-file' and Path(called[1]).is_file()
        run = str(folder / 'runs' / network.id)
        assert called[2:] == [*asked, 'OUTPUT_DIR', run, 'SEED', '1', 'SOLVER.MAX_ITER', '4']
    monkeypatch.setattr(running, 'find_spec', lambda name: None)
    (tmp_path / 'bccd').mkdir()
    assert cli.main(['study', 'run', 'table5_small', '--data-dir', str(tmp_path), '-o', str(tmp_path / 'out')]) == 2
    assert 'needs detectron2, which is not installed; docs/detect.md says how' in one_line(capsys)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('path', [path for path in sorted((ROOT / 'docs' / 'studies').glob('*.jsonl'))
                                  if not is_search(path)], ids=lambda path: path.stem)
def test_a_study_of_an_earlier_release_is_the_study_that_it_was(path: Path) -> None:
    header, rows = read_results(path)
    study = studies.Study(**header['spec'])
    assert study.sha256 == header['sha256'], 'its folder could not be gone on with'
    trained = {row['training_seed'] for row in rows}
    assert trained == set(study.seeds or trained) and trained <= set(study.trainings)


def test_studies_want_a_posix_system(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(studies_cli, 'POSIX', False)
    for command in (['run', 'mnist'], ['search', 'ws_small']):
        assert cli.main(['study', *command, '-o', str(tmp_path / 'out')]) == 2
        assert f'study {command[0]} needs a POSIX system' in one_line(capsys)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('graph, macs, seeds', [
    ('ws(2,0.5)', 3.e5, [1, 3]), ('er(0.3)', 6.e6, [1, 3]), ('er(0.3)', 4.e7, [1, 2])])
def test_the_tuned_width_is_the_nearest_to_the_target(graph: str, macs: float, seeds: list[int]) -> None:
    model: dict[str, Any] = {'num_nodes': 4, 'stem_stride': 2}
    study = studies.Study(title='C', graphs=[graph], seeds=seeds, macs=macs, model=model, recipe='mnist/study')
    networks = study.networks()
    tuned = {network.kwargs['channels'] for network in networks}
    assert len(tuned) == 1  # one C for all seeds

    def macs_of(channels: int) -> list[int]:
        return [count_complexity(
            timm.create_model('randwire', graph=graph, seed=seed, channels=channels, in_chans=1, num_classes=10,
                              device='meta', **model), (1, 28, 28)).macs for seed in study.seeds]

    best = tuned.pop()
    assert [network.macs for network in networks] == macs_of(best)
    away = {channels: abs(statistics.mean(macs_of(channels)) - macs)
            for channels in range(max(best - 2, 2), best + 3)}
    assert min(away, key=lambda channels: away[channels]) == best, away


def test_what_is_counted_from_shapes_is_what_a_forward_pass_counts() -> None:
    rng = random.Random(0)
    for seed in range(24):
        regime, node_op = rng.choice(REGIMES), NODE_OPS[seed % 4]
        kwargs: dict[str, Any] = {
            'regime': regime, 'node_op': node_op, 'channels': rng.randint(2, 30), 'stem_stride': rng.choice((4, 2, 1)),
            'output_stride': 32 if node_op == 'avg_pool' else rng.choice((8, 16, 32)), 'head': rng.random() < 0.8,
            'global_pool': rng.choice(('avg', 'catavgmax', 'fast', 'fastcatavgmax')), 'num_classes': rng.choice((0, 7))}
        size = (rng.choice((1, 3)), rng.randint(32, 70), rng.randint(32, 70))
        graphs = sample_graphs(parse_graph_model(rng.choice(('er(0.3)', 'ba(2)', 'ws(2,0.5)'))),
                               stage_node_counts(regime, rng.randint(6, 9)), seed)
        network = RandWire(graphs, in_chans=size[0], device='meta', **kwargs)
        assert count_randwire(graphs, input_size=size, **kwargs) == count_complexity(network, size), (seed, kwargs)


def test_c_of_the_largest_study_is_tuned_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    count = studies._count
    monkeypatch.setattr(studies, '_count', lambda *args: counted.append(args[1]) or count(*args))
    networks = load_study('figure3').networks()
    # 145 networks, whose C took 101 s while every candidate was made: one is made now.
    assert len(networks) == 29 * 5 - 4 * 4 and len(counted) == 1
    chosen = next(network for network in networks if network.graph == 'ws(4,0.75)' and network.graph_seed == 1)
    assert chosen.kwargs['channels'] in (77, 78, 79) and (chosen.macs, chosen.params) == count(
        'randwire', json.dumps(chosen.kwargs, sort_keys=True), (3, 224, 224), 1000)


def test_graphs_and_training_have_seeds_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = load_study(write(tmp_path, graphs=['ws(2,0.5)', 'ws(2,0)'], seeds=None, graph_seeds=[1, 2, 3],
                             training_seeds=[7, 8]))
    networks = {network.id: network for network in study.networks()}
    crossed = [network for network in networks.values() if network.graph == 'ws(2,0.5)']
    assert [(network.kwargs['seed'], network.graph_seed, network.training_seed) for network in crossed] == [
        (g, g, t) for g in (1, 2, 3) for t in (7, 8)]
    # WS(2, 0) has one wiring: two trainings of it, and not the same two three times.
    assert [name for name in networks if name.startswith('ws-2-0-')] == ['ws-2-0-g1-t7', 'ws-2-0-g1-t8']
    assert [network.training_seed for network in networks.values() if network.graph is None] == [7, 8]
    assert cli.main(['study', 'show', str(tmp_path / 'study.yaml')]) == 0
    out = capsys.readouterr().out
    assert 'ws(2,0): all graph_seeds give one wiring' in out and 'ws(2,0.5):' not in out
    one = studies.Study(title='x', graphs=['er(0.5)'], channels=3, recipe='cifar10/study', model={'num_nodes': 5})
    assert one.seeds == [1, 2, 3, 4, 5] and one.seed_pairs == [(seed, seed) for seed in one.seeds]


def test_cost_is_that_of_all_images_of_all_epochs_by_measured_steps(
        data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**SPEC['settings'], 'val_interval': 5}  # measured after epochs 5, 10 and 12
    study = load_study(write(tmp_path, seeds=[1, 2], node_ops=['sep_conv', 'conv'], settings=settings))
    networks = study.networks()
    kinds = {(network.node_op, network.graph or network.model) for network in networks}
    real = cost.measure_cost(study, networks, str(data))
    assert real.images == (24, 9) and real.epochs == 12 and real.hours is not None and 0 < real.hours < 1
    # A step of 8 images takes 8 s, evaluation 4 s, and of a minibatch of 24 decoding, in the first of 12 epochs, 7.2 s
    # and the rest, in each, 1.8 s, whatever the clock says.
    times = iter([7.2, 1.8, *[8.0, 4.0] * len(kinds)] * 2)
    monkeypatch.setattr(cost, '_seconds', lambda action, wait: next(times))
    found = cost.measure_cost(study, networks, str(data))
    first: dict[Any, int] = {}
    expected = 0.0
    for network in networks:
        relative = network.macs / first.setdefault((network.node_op, network.graph or network.model), network.macs)
        expected += (12 * 24 * (1.0 * relative + 0.1) + 3 * 9 * (0.5 * relative + 0.1)) / 3600
    assert found.hours == pytest.approx(expected) and len(found.steps) == len(kinds) > 2
    # Training at other sizes costs by their pixels, here (1 + 4) / 2 times as much; loading and evaluation do not.
    side = study.input_size[-1]
    sizes = load_study(write(tmp_path, seeds=[1, 2], node_ops=['sep_conv', 'conv'],
                             settings={**settings, 'train_img_sizes': [side, 2 * side]}))
    more = sum(12 * 24 * 1.5 * network.macs / first[network.node_op, network.graph or network.model] / 3600
               for network in networks)
    assert cost.measure_cost(sizes, networks, str(data)).hours == pytest.approx(expected + more)
    monkeypatch.undo()
    assert cli.main(['study', 'show', str(write(tmp_path, models=None)), '--data-dir', str(data)]) == 0
    assert re.search(r'Cost: 0\.\d hours of one process, 12 epochs of 24 images and 9 ', capsys.readouterr().out)
    assert cli.main(['study', 'show', str(tmp_path / 'study.yaml'), '--data-dir', str(tmp_path)]) == 0
    assert 'The data are not here' in capsys.readouterr().out
    measured: list[Any] = []
    monkeypatch.setattr(cost, '_step', lambda study, network, settings, *args: measured.append(
        (settings['amp'], settings['kernels'])) or (1.0, 1.0))
    assert cli.main(['study', 'show', str(tmp_path / 'study.yaml'), '--amp', '--kernels', 'torch']) == 0
    assert measured[0] == (True, 'torch') and 'kernels torch' in capsys.readouterr().out


# Runs


class HereAndLocal(Here, LocalEngine):
    """Beginning as the engine of this machine does."""

    def __init__(self) -> None:
        Here.__init__(self)
        LocalEngine.__init__(self, 2)


@pytest.mark.skipif(shutil.which(os.environ.get('CXX', 'c++').split()[0]) is None, reason='kernels need a compiler')
def test_a_study_says_its_kernels_and_can_be_told_others(
        tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv('RANDWIRE_ZOO_KERNELS', raising=False)
    monkeypatch.setattr(studies_cli, 'create_engine', lambda *args: HereAndLocal())
    file = write(tmp_path, graphs=['ws(2,0.5)'], models=None, eval_sizes=None, damage=None, paper=None,
                 settings={**SPEC['settings'], 'epochs': 1, 'warmup_epochs': 0, 'device': 'cpu'})
    for name, more, said in (('ours', (), f'native ({kernels.instruction_set()})'),
                             ('torch', ('--kernels', 'torch'), 'torch')):
        assert cli.main(arguments(file, data, tmp_path / name, *more)) == 0
        threads = HereAndLocal().threads
        assert capsys.readouterr().out.splitlines()[0] == (
            f'device cpu, {threads} thread{"s" * (threads > 1)}, kernels {said}; 2 networks at a time')
        row, = rows_of(tmp_path / name)
        assert row['provenance']['kernels'] == said.split()[0]
    monkeypatch.setenv('CXX', 'nothing-there')
    kernels._library.cache_clear()
    monkeypatch.setenv('RANDWIRE_ZOO_CACHE', str(tmp_path / 'cache'))
    assert cli.main(arguments(file, data, tmp_path / 'none', '--kernels', 'native')) == 2
    assert 'there is no \'nothing-there\'' in one_line(capsys) and not (tmp_path / 'none').exists()


def test_programs_that_a_study_starts_are_on_its_kernels(
        tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of torchrun and of detectron2, which know nothing of what was chosen here."""
    found: list[str] = []

    def run_child(command: Any, log: Any, environment: Any, held: Any) -> int:
        found.append(environment['RANDWIRE_ZOO_KERNELS'])
        return 1
    monkeypatch.setattr(work, 'run_child', run_child)
    study = load_study(write(tmp_path, models=None, graphs=['ws(2,0.5)'], processes=2))
    network, = study.networks()
    for chosen in ('torch', None):
        task = work.write_task(tmp_path / f'{chosen}', study, network, str(data), studies.Execution(kernels=chosen))
        work.run_task(str(task))
        row = json.loads(work.row_path(task).read_text())
        assert row['status'] == 'failed' and row['provenance']['kernels'] == found[-1]
    assert found[0] == 'torch'


def test_a_machine_may_take_another_precision_and_the_rows_say_which(
        tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**SPEC['settings'], 'epochs': 1, 'warmup_epochs': 0, 'amp': True, 'amp_dtype': 'bfloat16'}
    file = write(tmp_path, graphs=['ws(2,0.5)'], models=None, eval_sizes=[24], damage=3, proxies=4, settings=settings)
    rows, seen, autocast = {}, [], torch.autocast
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: seen.append(1) or autocast(*args, **kwargs))
    for name, more in (('recipe', ()), ('float32', ('--no-amp',)), ('bfloat16', ('--amp',))):
        seen.clear()
        assert cli.main(arguments(file, data, tmp_path / name, *more)) == 0
        row, = rows_of(tmp_path / name)
        lower = name != 'float32'
        assert row['provenance']['precision'] == ('bfloat16' if lower else 'float32') and bool(seen) == lower
        args = yaml.safe_load((tmp_path / name / 'runs' / row['id'] / 'args.yaml').read_text())
        assert args['amp'] == lower  # what published settings would be made of
        rows[name] = row
    assert rows['recipe']['loss'] == rows['bfloat16']['loss'] != rows['float32']['loss']
    # It is the same study: neither is trained again with the other.
    before = (tmp_path / 'recipe' / 'results.jsonl').read_text()
    assert cli.main(arguments(file, data, tmp_path / 'recipe', '--no-amp')) == 0
    assert (tmp_path / 'recipe' / 'results.jsonl').read_text() == before
    capsys.readouterr()
    detector = write(tmp_path, {'title': 'D', 'models': ['randwire_ws_pico'], 'data': 'x', 'detection': {
        'config': 'bccd/faster_rcnn_{model}.yaml'}})
    assert cli.main(arguments(detector, data, tmp_path / 'detectors', '--no-amp')) == 2
    assert '--no-amp is for studies of classifiers; of detectors the override SOLVER.AMP.ENABLED' in one_line(capsys)
    assert not (tmp_path / 'detectors').exists()


def test_a_study_trains_and_evaluates_every_network(uninterrupted: Path, data: Path) -> None:
    rows = results(uninterrupted)
    assert sorted(rows) == sorted(IDS)
    header, _ = read_results(uninterrupted)
    assert header['study'] == 'A tiny study' and header['spec']['channels'] == 3
    for name, row in rows.items():
        assert row['status'] == 'done' and row['epochs'] == 12 and row['params'] > 0 and row['macs'] > 0
        assert [point[0] for point in row['history']] == list(range(1, 13)) and row['history'][-1][2] == row['top1']
        with open(uninterrupted / 'runs' / name / 'summary.csv', newline='') as file:
            summary = list(csv.DictReader(file))
        assert len(summary) == 12
        assert [row[key] for key in ('top1', 'top5', 'loss')] == [
            float(summary[-1][f'eval_{key}']) for key in ('top1', 'top5', 'loss')]
        # The same pictures at the same size again, and at another one.
        assert row['eval_sizes']['32']['top1'] == pytest.approx(row['top1'])
        assert set(row['eval_sizes']) == {'32', '24'} and row['eval_sizes']['24']['img_size'] == 24
        last = uninterrupted / 'runs' / name / 'last.pth.tar'
        model = Description.from_checkpoint(last).create_model(checkpoint_path=str(last))
        smaller = evaluate_folder(model, data / 'colours', img_size=24, batch_size=9, workers=0,
                                  device=default_device(), progress=False)
        assert row['eval_sizes']['24'] == pytest.approx(smaller, rel=1e-4)
    for name, series in (('ws-2-0.5-s1', 'ws(2,0.5)'), ('er-0.5-s1', 'er(0.5)')):
        row = rows[name]
        assert (row['series'], row['graph'], row['channels']) == (series, series, 3)
        assert row['graph_seed'] == row['training_seed'] == 1 and row['classes'] == 3
        graphs = [Graph.from_dict(graph) for graph in row['graphs']]
        assert graphs_sha256(graphs) == row['wiring'] and len(graphs) == 3
        assert row['damage']['images'] == 9 and row['damage']['top1'] == pytest.approx(row['top1'])
        assert len(row['damage']['nodes']) == 15
        assert len(row['damage']['edges']) == pytest.approx(3 * row['measures']['edges'])
    ws, er, hand_made = (rows[name] for name in IDS)
    assert ws['measures']['degree'] == 2 and ws['measures']['edges'] == 5 and ws['wiring'] != er['wiring']
    assert hand_made['graph'] is None and hand_made['wiring'] is None and hand_made['measures'] == {}
    assert 'damage' not in hand_made and hand_made['graph_seed'] is None
    made = {json.dumps(read_row['provenance'] | {'date': ''}) for read_row in rows_of(uninterrupted)}
    assert len(made) == 1
    said = json.loads(made.pop())
    assert said['torch'] == torch.__version__ and said['timm'] == timm.__version__
    assert said['threads'] == torch.get_num_threads() and said['processor']
    compiler = shutil.which(os.environ.get('CXX', 'c++').split()[0])
    chosen = os.environ.get(kernels.VARIABLE) or ('native' if compiler else 'torch')
    assert said['kernels'] == ('torch' if torch.cuda.is_available() else chosen)  # the native ones are the CPU's
    if shutil.which('git'):
        commit = subprocess.run(['git', '-C', str(ROOT), 'rev-parse', 'HEAD'], capture_output=True, text=True)
        assert commit.returncode or (said['commit'] or '').rstrip('+') == commit.stdout.strip()


def test_the_table_is_printed_in_markdown_where_that_is_asked_for(
        uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, style in (((), 'simple'), (('--markdown',), 'github')):
        assert cli.main(['study', 'report', str(uninterrupted), *more]) == 0
        said = capsys.readouterr().out
        assert said == report_table(uninterrupted, style) + '\n'
        assert bool(re.search(r'^\|:?---', said, re.MULTILINE)) == (style == 'github')  # the line under the heads


def test_a_network_that_diverges_is_one_of_its_series(
        data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its losses are no numbers, which JSON does not have; its accuracy is one, and belongs to the mean."""
    path = write(tmp_path, models=None, graphs=['er(0.5)'], damage=0, eval_sizes=[24], proxies=2, settings={
        **SPEC['settings'], 'epochs': 2, 'lr': 1e12})
    for _ in range(2):
        assert cli.main(arguments(path, data, tmp_path / 'output')) == 0
        row, = rows_of(tmp_path / 'output')
        assert row['loss'] is None and row['history'][-1][1] is None and 0 <= row['top1'] <= 100
        said = capsys.readouterr().out
        assert '1 of 1 networks that ended' in said and 'is no row' not in said
    assert not list((tmp_path / 'output').glob('*.broken*'))


def test_all_models_of_a_study_see_the_images_that_a_randwire_network_would(tmp_path: Path) -> None:
    """Where the recipe leaves that to each model, as those of ImageNet do."""
    study = load_study(write(tmp_path, recipe='imagenet/randwire_ws_small', settings=None, damage=0, eval_sizes=[],
                             models=['efficientnet_b1', 'randwire_ws_small_s1']))
    assert study.input_size == (3, 224, 224)
    for network in study.networks():
        fed = Description.from_settings({
            **study.recipe_settings, 'model': network.model, 'model_kwargs': network.kwargs})
        assert (fed.input_size, fed.crop_pct, fed.interpolation) == ((3, 224, 224), 0.875, 'bilinear'), network
        assert fed.mean == pytest.approx((0.485, 0.456, 0.406)) and fed.std == pytest.approx((0.229, 0.224, 0.225))
    assert load_study('table2_small').recipe_settings['mean'] == [0.4914, 0.4822, 0.4465]  # as the recipe has it


def test_a_finished_study_is_not_touched_again(
        uninterrupted: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / 'output'
    shutil.copytree(uninterrupted, folder)
    before = contents(folder / 'runs')
    lines = (folder / 'results.jsonl').read_text()
    with monkeypatch.context() as patch:  # C is not tuned again
        patch.setattr(studies.Study, 'networks', lambda *args: pytest.fail('tuned again'))
        assert cli.main(arguments(write(tmp_path), data, folder)) == 0
    assert contents(folder / 'runs') == before and (folder / 'results.jsonl').read_text() == lines
    assert '3 of 3 networks' in capsys.readouterr().out

    # Another study's results are refused before anything starts, and so is a folder without the data.
    everything = contents(folder)
    assert cli.main(arguments(write(tmp_path, channels=4), data, folder)) == 2
    assert "belongs to another study, 'A tiny study'; choose another --output" in one_line(capsys)
    assert contents(folder) == everything
    assert cli.main(arguments(write(tmp_path), tmp_path / 'nowhere', tmp_path / 'new')) == 2
    said = one_line(capsys)
    assert "needs the data set 'colours'" in said and said.endswith('--data-dir\n')
    assert cli.main(['study', 'run', 'figure3_small', '--data-dir', str(tmp_path), '-o', str(tmp_path / 'new')]) == 2
    assert one_line(capsys).endswith('; randwire-zoo data cifar10 FOLDER makes one\n')
    (tmp_path / 'half' / 'colours' / 'train').mkdir(parents=True)
    assert cli.main(arguments(write(tmp_path), tmp_path / 'half', tmp_path / 'new')) == 2
    assert 'has no folder validation' in one_line(capsys)
    (tmp_path / 'half' / 'colours' / 'val').mkdir()  # as ImageNet has it, and `train` takes it
    study = load_study(write(tmp_path))
    assert data_folder(study, str(tmp_path / 'half')) == tmp_path / 'half' / 'colours'
    assert not (tmp_path / 'new').exists()
    for options, message in ((['--workers', '0'], '--workers must be at least 1, got 0'),
                             (['--engine-options', 'gpus'], "must be KEY=VALUE, got 'gpus'"),
                             (['--engine-options', 'a=b'], 'takes no options, got a')):
        assert cli.main(arguments(write(tmp_path), data, tmp_path / 'new', *options)) == 2
        assert message in one_line(capsys)
    assert not (tmp_path / 'new').exists()


def test_two_trainings_of_one_wiring_share_the_wiring_and_nothing_else(data: Path, tmp_path: Path) -> None:
    study = load_study(write(tmp_path, graphs=['er(0.5)'], models=None, seeds=None, graph_seeds=[2],
                             training_seeds=[5, 6], eval_sizes=[], damage=0,
                             settings={**SPEC['settings'], 'epochs': 1}))
    rows = run_study(study, study.networks(), tmp_path / 'output', Here(), str(data), progress=False).rows
    assert sorted(rows) == ['er-0.5-g2-t5', 'er-0.5-g2-t6']
    expected = sample_graphs(parse_graph_model('er(0.5)'), (5, 5, 5), 2)
    assert {row['wiring'] for row in rows.values()} == {graphs_sha256(expected)}
    settings = [yaml.safe_load((tmp_path / 'output' / 'runs' / name / 'args.yaml').read_text()) for name in rows]
    assert [one['seed'] for one in settings] == [5, 6] and {one['model_kwargs']['seed'] for one in settings} == {2}
    assert len({row['loss'] for row in rows.values()}) == 2


def test_the_users_own_generator_is_trained_and_one_failure_ends_nothing(
        data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'own.py').write_text(textwrap.dedent(GENERATORS))
    monkeypatch.setattr(studies_cli, 'create_engine', lambda *options: Here(
        (tmp_path / 'broken').touch if options[1] == 3 else lambda: None))
    study = write(tmp_path, graphs=['regular(2)'], models=None, seeds=[1, 2], generators='own.py', eval_sizes=[],
                  damage=0, settings={**SPEC['settings'], 'epochs': 1})
    folder = tmp_path / 'output'
    assert cli.main(arguments(study, data, folder, '--workers', '3')) == 1
    rows = results(folder)
    assert {name: row['status'] for name, row in rows.items()} == {'regular-2-s1': 'done', 'regular-2-s2': 'failed'}
    assert rows['regular-2-s2']['reason'] == 'ArithmeticError: no graph today'
    assert rows['regular-2-s1']['measures']['degree'] == 2
    out = capsys.readouterr().out
    assert 'regular-2-s2 failed: ArithmeticError: no graph today' in out and '1 of 2 networks' in out

    (tmp_path / 'broken').unlink()
    before = contents(folder / 'runs')
    assert cli.main(arguments(study, data, folder)) == 1  # a failure is a result until it is asked for again
    assert contents(folder / 'runs') == before
    assert cli.main(arguments(study, data, folder, '--retry-failed')) == 0
    again = results(folder)
    assert sorted(again) == sorted(rows) and all(row['status'] == 'done' for row in again.values())
    after = contents(folder / 'runs')
    assert {name: after[name] for name in before} == before


# The hand-made networks


@pytest.mark.parametrize('name', ['mnist_tiny_cnn', 'mnist_handmade_cnn', 'mnist_alexnet'])
def test_the_hand_made_networks_classify_digits(name: str) -> None:
    model = timm.create_model(name, num_classes=7, in_chans=1).eval()
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    assert timm.create_model(name, in_chans=3)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_tiny_network_has_the_widths_that_the_study_gives() -> None:
    model = timm.create_model('mnist_tiny_cnn')
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [(conv.out_channels, conv.kernel_size) for conv in convolutions] == [
        (32, (3, 3)), (64, (3, 3)), (64, (3, 3))]
    assert [module.out_features for module in model.modules() if isinstance(module, nn.Linear)] == [70, 30, 10]


@pytest.mark.parametrize(('overrides', 'device'), [
    (['MODEL.DEVICE', 'cpu'], 'cpu'), (['SOLVER.MAX_ITER', 9, 'MODEL.DEVICE', 'cuda:1'], 'cuda:1'),
    (['SOLVER.MAX_ITER', 9], None)])
def test_the_row_of_a_detector_is_of_the_device_that_its_study_names(
        overrides: list[Any], device: str | None) -> None:
    study = load_study('table5_small')
    assert study.recipe == '' and work._device_of_detectors(study) == 'cpu'
    assert work._device_of_detectors(
        replace(study, detection={**study.detection, 'overrides': overrides})) == device
