"""A generator's search: who goes on, what it costs, what is the same again. Most networks here are made up."""
from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_study
import yaml
from tiny_study import Here, rows_of

from randwire_zoo import GraphModel, cli
from randwire_zoo.studies import cli as studies_cli
from randwire_zoo.studies import cost, running, search_report, study
from randwire_zoo.studies.results import Results
from randwire_zoo.studies.running import begin
from randwire_zoo.studies.search import Search, load_search, run_search, search_names
from randwire_zoo.studies.search_report import search_table
from randwire_zoo.studies.study import Network, Study
from randwire_zoo.studies.work import row_path
from randwire_zoo.training.recipes import CONFIGS

pytest.importorskip('optuna')
data = tiny_study.data  # a fixture

SPEC: dict[str, Any] = {
    'title': 'A tiny search', 'graph': 'ws({k},{p})', 'trials': 18, 'wave': 6, 'seeds': [1, 2], 'confirm': [7, 8],
    'space': {'k': [2, 4, 6], 'p': {'low': 0.0, 'high': 1.0}, 'num_nodes': [7, 9]},
    'study': {'channels': 3, 'model': {'stem_stride': 2}, 'recipe': 'cifar10/study', 'data': 'colours',
              'settings': {'batch_size': 8, 'num_classes': 3, 'img_size': 32, 'val_split': 'validation'}}}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for made-up networks, and no counting of their multiply-adds by a forward pass, which others test."""
    def count(self: Study, name: str, kwargs: dict[str, Any]) -> tuple[int, int]:
        arguments = {key: value for key, value in kwargs.items() if key != 'channels'}
        graphs = study._sample(json.dumps(arguments, sort_keys=True))
        return self._figures(arguments)(graphs, kwargs['channels'])

    monkeypatch.setattr(Study, '_count', count)
    monkeypatch.setattr(running, 'SECONDS', 0)


def search(**changes: Any) -> Search:
    return Search(**{**SPEC, **changes})


def quality(task: dict[str, Any]) -> float:
    """A made-up accuracy: best at K = 4 and P = 0.75 on nine nodes, better with every epoch."""
    kwargs, epochs = task['network']['kwargs'], task['study']['settings']['epochs']
    k, p = map(float, kwargs['graph'][3:-1].split(','))
    return 80 - 3 * abs(k - 4) - 20 * (p - 0.75) ** 2 - 5 * (kwargs['num_nodes'] == 7) - 10 / epochs


class MadeUp:
    """An engine whose networks have the accuracy that they are said to have."""

    places = 4

    def __init__(self, top1: Callable[[dict[str, Any]], float | None] = quality, most: float = math.inf) -> None:
        self.top1, self.most, self.done = top1, most, list[str]()

    def start(self, tasks: list[Path], places: list[int]) -> list[Any]:
        for path in tasks:
            if len(self.done) >= self.most:
                raise KeyboardInterrupt
            task = json.loads(path.read_text())
            self.done.append(task['network']['id'])
            row = {**task['network'], 'sha256': task['sha256'], 'channels': 3, 'top5': 99.0,
                   'epochs': task['study']['settings']['epochs']}
            value = self.top1(task)
            row_path(path).write_text(json.dumps(
                {**row, 'status': 'failed', 'reason': 'MemoryError: no more'} if value is None else
                {**row, 'status': 'done', 'top1': value}))
        return [SimpleNamespace(poll=lambda: 'done', stop=lambda: None) for _ in tasks]


def run(folder: Path, data: Path, engine: Any, of: Search | None = None) -> dict[str, dict[str, Any]]:
    return run_search(of or search(), folder, engine, str(data), progress=False).rows


def epochs_of(rows: dict[str, dict[str, Any]], method: str, seed: int) -> dict[int, set[str]]:
    """Candidates by the epochs that they were trained for."""
    found: dict[int, set[str]] = {}
    for name, row in rows.items():
        if name.startswith(f'{method}-{seed}-') and 'winner' not in name:
            found.setdefault(row['epochs'], set()).add(name.rsplit('-e', 1)[0])
    return found


@pytest.mark.usefixtures('quick')
def test_a_search_of_which_nothing_could_be_trained_says_why_and_can_be_tried_again(data: Path, tmp_path: Path) -> None:
    few = search(seeds=[1], trials=6)
    for _ in range(2):
        with pytest.raises(ValueError, match=r'seed 1 could be trained, the last for: MemoryError: no more; --retry-'):
            run(tmp_path, data, MadeUp(lambda task: None), few)
    engine = MadeUp()
    rows = run_search(few, tmp_path, engine, str(data), progress=False, retry_failed=True).rows
    assert engine.done and all(row['status'] == 'done' for row in rows.values())


@pytest.mark.usefixtures('quick')
def test_the_better_go_on_and_random_search_has_what_that_cost(
        data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(tmp_path, data, MadeUp())
    for seed in (1, 2):
        halving, random = (epochs_of(rows, method, seed) for method in ('halving', 'random'))
        assert len(halving[1]) == 18 and set(halving) == {1, 3, 9} and set(random) == {9}
        assert 18 > len(halving[3]) > len(halving[9]) >= 1 and halving[9] <= halving[3] <= halving[1]
        for one, following in ((1, 3), (3, 9)):
            def at(name: str, epochs: int = one) -> float:
                return float(rows[f'{name}-e{epochs}']['top1'])
            # Who went on was in the best third of all that had got so far by the end of its wave.
            wave = {name: int(name.rsplit('-', 1)[1]) // 6 for name in halving[one]}
            for number in range(3):
                so_far = sorted((at(name) for name in halving[one] if wave[name] <= number), reverse=True)
                least = so_far[max(len(so_far) // 3, 1) - 1]
                assert {name for name in halving[one] if wave[name] == number and at(name) >= least} == {
                    name for name in halving[following] if wave[name] == number}

        def cost(method: str, of: int = seed) -> float:
            return sum(row['epochs'] * row['macs'] for name, row in rows.items()
                       if name.startswith(f'{method}-{of}-') and 'winner' not in name)

        dearest = 9 * max(row['macs'] for row in rows.values())
        assert cost('halving') - dearest < cost('random') <= 1.05 * cost('halving')
        for method in ('halving', 'random'):
            best = max((row for name, row in rows.items() if name.startswith(f'{method}-{seed}-')
                        and name.endswith('-e9')), key=lambda row: row['top1'])
            again = [rows[f'{method}-{seed}-winner-{other}'] for other in (7, 8)]
            assert [row['kwargs']['seed'] for row in again] == [row['training_seed'] for row in again] == [7, 8]
            assert all({**row['kwargs'], 'seed': seed} == best['kwargs'] and row['epochs'] == 9 for row in again)
    assert {row['kwargs']['seed'] for name, row in rows.items() if name.startswith('random-2-1')} == {2}
    for seed in (1, 2):  # both draw at random first, and not the same
        first = [[rows[f'{method}-{seed}-{trial}-e{epochs}']['kwargs'] for trial in range(3)]
                 for method, epochs in (('halving', 1), ('random', 9))]
        assert first[0] != first[1]
    lines = [line for line in cells(search_table(tmp_path, 'github')) if line[0] == '1']
    assert [[line[1], line[3]] for line in lines[:2]] == [
        ['halving', '18'], ['random', str(len(epochs_of(rows, 'random', 1)[9]))]]
    assert lines[0][4] == str(sum(epochs * len(names) for epochs, names in epochs_of(rows, 'halving', 1).items()))
    tried = [row['top1'] for name, row in rows.items() if name.startswith('halving-1-') and 'winner' not in name]
    assert float(lines[0][7]) == pytest.approx(max(tried), abs=0.005)
    capsys.readouterr()
    assert cli.main(['study', 'report', str(tmp_path)]) == 0 and search_table(tmp_path) in capsys.readouterr().out
    assert cli.main(['study', 'report', str(tmp_path), '--markdown']) == 0
    assert search_table(tmp_path, 'github') in capsys.readouterr().out


def cells(table: str) -> list[list[str]]:
    """Of the lines of Markdown tables, heads and all."""
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines() if line[:1] == '|']


def uneven(task: dict[str, Any]) -> float:
    """As `quality`, but not twice the same."""
    return quality(task) + random.Random(task['network']['id']).gauss(0, 1)


@pytest.mark.usefixtures('quick')
def test_the_winners_are_compared_at_equal_seeds_and_the_page_has_every_candidate(
        data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from scipy.stats import ttest_rel
    rows = run(tmp_path, data, MadeUp(uneven), search(confirm=[7, 8, 9, 10]))
    again = {(method, seed): [rows[f'{method}-{seed}-winner-{other}']['top1'] for other in (7, 8, 9, 10)]
             for method in ('halving', 'random') for seed in (1, 2)}
    table = cells(search_table(tmp_path, 'github'))
    compared = {line[0]: line[1:] for line in table if len(line) == 7 and line[0] in ('1', '2')}
    for seed in (1, 2):
        halving, random_ = again['halving', seed], again['random', seed]
        tested = ttest_rel(halving, random_)
        low, high = tested.confidence_interval()
        mean = [sum(values) / 4 for values in (halving, random_)]
        assert compared[str(seed)] == [f'{mean[0]:.2f}', f'{mean[1]:.2f}', f'{mean[0] - mean[1]:.2f}',
                                       f'{low:.2f} to {high:.2f}', '4', f'{tested.pvalue:.3f}']
    listed = [line[:4] for line in table if line[0].count('-') == 2 and line[0][-1].isdigit()]
    longest: dict[str, dict[str, Any]] = {}
    for name, row in rows.items():
        if 'winner' not in name and row['epochs'] >= longest.get(name.rsplit('-e')[0], row)['epochs']:
            longest[name.rsplit('-e')[0]] = row
    assert sorted(listed) == sorted([name, row['series'], str(row['epochs']), f'{row["top1"]:.2f}']
                                    for name, row in longest.items())
    of_one = [(int(line[2]), float(line[3])) for line in listed if line[0].startswith('halving-1-')]
    assert of_one == sorted(of_one, reverse=True)

    page = tmp_path / 'page.html'
    capsys.readouterr()
    assert cli.main(['study', 'report', str(tmp_path), '--html', str(page)]) == 0
    text = page.read_text('utf-8')
    networks = json.loads(re.findall(r'<script type="application/json" id="networks">(.*?)</script>', text)[0])
    assert {network['id'] for network in networks} == set(rows)
    # A point for each training of a candidate in the panel of each of the three parameters, and for each winner's.
    drawn = re.findall(r'id="[^"]*network-(\d+)"', text)
    for number, network in enumerate(networks):
        assert drawn.count(str(number)) == (1 if 'winner' in network['id'] else 3), network['id']
    for title in ('The best so far against its cost', 'winners trained again', 'Accuracy against the parameters'):
        assert title in text
    for row in rows.values():
        k, p = row['graph'][3:-1].split(',')
        assert [search_report._parameter(SPEC, name, row) for name in SPEC['space']] == [
            k, p, row['kwargs']['num_nodes']]


def test_a_search_of_which_nothing_is_done_has_no_page(tmp_path: Path) -> None:
    Results(tmp_path, search())
    begin(Results(tmp_path, search()))
    assert search_table(tmp_path).startswith('A tiny search\n')
    with pytest.raises(ValueError, match='no network that is done'):
        search_report.write_search_html(tmp_path, tmp_path / 'page.html')
    assert not (tmp_path / 'page.html').exists()


@pytest.mark.usefixtures('quick')
def test_an_interrupted_search_goes_on_to_the_same_end(data: Path, tmp_path: Path) -> None:
    whole, short = MadeUp(), search(trials=9, wave=3, seeds=[1], confirm=[7])
    expected = run(tmp_path / 'whole', data, whole, short)
    assert len(whole.done) == len(set(whole.done)) == len(expected)
    done: list[str] = []
    for most in (0, 2, 5, 4, math.inf):
        engine = MadeUp(most=most)
        try:
            rows = run(tmp_path / 'parts', data, engine, short)
        except KeyboardInterrupt:
            pass
        done += engine.done
        assert ('Not done yet' in search_table(tmp_path / 'parts')) == (most != math.inf)
    assert rows == expected and sorted(done) == sorted(whole.done), 'something was trained twice, or not at all'
    idle = MadeUp(most=0)
    assert run(tmp_path / 'parts', data, idle, short) == expected and idle.done == []
    assert 'Not done yet' not in search_table(tmp_path / 'parts')
    with pytest.raises(ValueError, match="belongs to another study, 'A tiny search'"):
        run(tmp_path / 'parts', data, idle, search(trials=19))


@pytest.mark.usefixtures('quick')
def test_candidates_that_fail_or_cannot_be_are_passed_over(data: Path, tmp_path: Path) -> None:
    engine = MadeUp(lambda task: None if task['network']['kwargs']['graph'].startswith('ws(4') else quality(task))
    # Six neighbours are too many of five nodes.
    rows = run(tmp_path, data, engine, search(
        space={'k': [2, 4, 6], 'p': [0.25, 0.75], 'num_nodes': [5, 9]}, seeds=[1], trials=12))
    assert {row['status'] for row in rows.values()} == {'done', 'failed'}
    assert not [row for row in rows.values() if row['kwargs']['graph'][3] == '6' and row['kwargs']['num_nodes'] == 5]
    assert all(row['epochs'] == 1 for row in rows.values() if row['status'] == 'failed' and row['id'][:4] == 'halv')
    # What failed has cost neither search anything: random search drew others for it.
    cost = {method: sum(row['epochs'] * row['macs'] for row in rows.values() if row['id'].startswith(method)
                        and 'winner' not in row['id'] and row['status'] == 'done') for method in ('halving', 'random')}
    assert any(row['status'] == 'failed' for row in rows.values() if row['id'].startswith('random'))
    assert cost['halving'] - 9 * max(row['macs'] for row in rows.values()) < cost['random'] <= 1.05 * cost['halving']
    assert 'ws(4' not in search_table(tmp_path)


@pytest.mark.usefixtures('quick')
def test_after_a_retry_no_candidate_has_the_accuracy_of_another(data: Path, tmp_path: Path) -> None:
    short = search(seeds=[1])
    expected = run(tmp_path / 'whole', data, MadeUp(), short)
    # What fails decides on what is asked for next, and so does what fails no longer.
    weak = MadeUp(lambda task: None if task['network']['kwargs']['num_nodes'] == 9 else quality(task))
    before = run(tmp_path / 'parts', data, weak, short)
    assert {name for name in before if before[name]['kwargs'] != expected.get(name, before[name])['kwargs']}
    again = run_search(short, tmp_path / 'parts', MadeUp(), str(data), progress=False, retry_failed=True).rows
    assert again == expected


@pytest.mark.usefixtures('quick')
def test_a_row_of_other_settings_is_not_taken_for_a_candidates(
        data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = search(seeds=[1], trials=3, confirm=[])
    expected = run(tmp_path, data, MadeUp(), short)
    path, name = tmp_path / 'results.jsonl', 'halving-1-1-e1'
    other = search(seeds=[1], study={**SPEC['study'], 'settings': {**SPEC['study']['settings'], 'lr': 0.5}})
    network = Network(**{entry.name: expected[name][entry.name] for entry in fields(Network)})
    elsewhere = other.study_of({'k': 4, 'p': 0.5, 'num_nodes': 9}, 1, 1).network_sha256(network)
    assert expected[name]['sha256'] in path.read_text() and elsewhere != expected[name]['sha256']
    path.write_text(path.read_text().replace(expected[name]['sha256'], elsewhere) + 'no row\n')
    engine = MadeUp()
    assert run(tmp_path, data, engine, short) == expected and engine.done == [name]
    said = capsys.readouterr()
    assert f'{name}: the row of another network, and dropped' in said.out
    assert f'{path}: line {len(expected) + 2} is broken' in said.err
    # Rows of an earlier release do not say of which settings they are.
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(''.join(json.dumps(
        {key: value for key, value in line.items() if key != 'sha256' or 'spec' in line}) + '\n' for line in lines))
    assert set(run(tmp_path, data, MadeUp(most=0), short)) == set(expected)


@pytest.mark.usefixtures('quick')
def test_a_recipe_that_changes_during_a_search_ends_it(data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / 'recipe.yaml'
    shutil.copy(CONFIGS / 'cifar10' / 'study.yaml', recipe)
    kept = recipe.read_text()
    short = search(seeds=[1], trials=3, confirm=[], study={**SPEC['study'], 'recipe': str(recipe)})

    def change(task: dict[str, Any]) -> float:
        recipe.write_text(kept + '\nweight_decay: 0.25\n')
        return quality(task)

    engine = MadeUp(change)
    with pytest.raises(ValueError, match=rf'^{recipe} has changed since the study was started; put back what it was'):
        run(tmp_path / 'output', data, engine, short)
    recipe.write_text(kept)
    expected = run(tmp_path / 'whole', data, MadeUp(), short)
    assert engine.done == [name for name in expected if name.endswith('-e1')], 'a rung was trained by another recipe'
    assert run(tmp_path / 'output', data, MadeUp(), short) == expected


@pytest.mark.usefixtures('quick')
def test_random_search_says_where_it_had_to_end_before_it_cost_as_much_as_halving(
        data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for trials, ended in ((1, True), (6, False)):
        rows = run(tmp_path / str(trials), data, MadeUp(), search(seeds=[1], trials=trials, confirm=[]))
        cost = {method: sum(row['epochs'] * row['macs'] for name, row in rows.items() if name.startswith(method))
                for method in ('halving', 'random')}
        assert cost['random'] <= 1.05 * cost['halving']
        line = (f'random-1: drew as many as trials allows ({trials}), which cost '
                f'{round(100 * cost["random"] / cost["halving"])}% of what halving did')
        assert ('random-1: drew' in (said := capsys.readouterr().out)) is ended and (line in said) is ended


@pytest.mark.usefixtures('quick')
def test_a_winner_whose_graphs_of_another_seed_cannot_be_is_not_the_end(
        data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = Study.networks

    def refuse(self: Study, *arguments: Any) -> Any:
        if self.seeds == [7]:
            raise ValueError('no C meets the multiply-adds')
        return networks(self, *arguments)

    monkeypatch.setattr(Study, 'networks', refuse)
    rows = run(tmp_path, data, MadeUp(), search(seeds=[1]))
    assert {name for name in rows if 'winner' in name} == {'halving-1-winner-8', 'random-1-winner-8'}
    # Its own seed is no other one.
    rows = run(tmp_path / 'own', data, MadeUp(), search(seeds=[1], confirm=[1, 8]))
    assert {name for name in rows if 'winner' in name} == {'halving-1-winner-8', 'random-1-winner-8'}


@pytest.mark.parametrize('changes, message', [
    ({'graph': 'ws({k},{q})'}, r"graph 'ws\(\{k\},\{q\}\)' asks for q, which space has not"),
    ({'space': {}}, 'space must hold'),
    ({'space': {'k': []}}, r'space: k must be a list, or have low and high, got \[\]'),
    ({'space': {**SPEC['space'], 'p': {'low': 1, 'high': 0}}}, 'space: p must be'),
    ({'study': {**SPEC['study'], 'graphs': ['er(0.2)']}}, 'study must not have graphs'),
    ({'study': {**SPEC['study'], 'settings': {'epochs': 3}}}, 'settings must not have epochs'),
    ({'study': {**SPEC['study'], 'channels': 1}}, 'channels must be'), ({'study': {**SPEC['study'], 'x': 1}}, "'x'"),
    ({'reduction': 1}, 'reduction must be an integer of at least 2, got 1'), ({'trials': 0}, 'trials'),
    ({'seeds': []}, 'seeds must be one or more'), ({'seeds': [1, 1]}, 'twice'), ({'confirm': ['7']}, 'confirm must be'),
    ({'title': ' '}, 'title'), ({'budget': 3}, "unknown key 'budget'")], ids=str)
def test_a_mistake_in_the_file_is_named_in_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / 'search.yaml'
    path.write_text(yaml.safe_dump({**SPEC, **changes}))
    with pytest.raises(ValueError, match=message) as raised:
        load_search(path)
    assert '\n' not in str(raised.value) and str(path) in str(raised.value)


def test_a_search_from_the_command_line_with_networks_that_are_trained(
        data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies_cli, 'create_engine', lambda *options: Here())
    monkeypatch.setattr(GraphModel, 'registry', dict(GraphModel.registry))  # that of own.py is forgotten afterwards
    (tmp_path / 'own.py').write_text(tiny_study.GENERATORS.replace('\n    ', '\n'))
    path = tmp_path / 'search.yaml'
    path.write_text(yaml.safe_dump({
        **SPEC, 'graph': 'regular({d})', 'space': {'d': [2, 4]}, 'trials': 2, 'rungs': 1, 'seeds': [1], 'confirm': [],
        'study': {**SPEC['study'], 'model': {'num_nodes': 5, 'stem_stride': 2}, 'generators': 'own.py'}}))
    arguments = ['study', 'search', str(path), '--data-dir', str(data), '--output', str(tmp_path / 'output'),
                 '--no-progress']
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert 'A tiny search' in out and 'regular(' in out and str(tmp_path / 'output' / 'results.jsonl') in out
    rows = rows_of(tmp_path / 'output')
    assert len(rows) == 4 and all(row['status'] == 'done' and row['measures'] for row in rows)
    assert cli.main(arguments) == 0 and rows_of(tmp_path / 'output') == rows
    assert cli.main([*arguments[:4], str(tmp_path / 'nowhere'), '--output', str(tmp_path / 'new')]) == 2
    assert "needs the data set 'colours'" in capsys.readouterr().err and not (tmp_path / 'new').exists()


def test_a_search_is_listed_and_its_cost_is_told_before(
        data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(['study', 'list']) == 0
    listed = capsys.readouterr().out
    assert all(re.search(rf'^{name} +{re.escape(load_search(name).title)}$', listed, re.MULTILINE)
               for name in search_names())
    path = tmp_path / 'mine.yaml'
    path.write_text(yaml.safe_dump(SPEC))
    # A step of training takes 3 s an image, of evaluation 1 s, and loading 1 s more.
    monkeypatch.setattr(cost, '_step', lambda *args: (3.0, 1.0))
    monkeypatch.setattr(cost, '_images', lambda *args: ((24, 9), 1.0))
    assert cli.main(['study', 'show', str(path), '--data-dir', str(data)]) == 0
    shown = capsys.readouterr().out
    # 18 candidates of one epoch, 6 of three and 2 of nine, as much at random, for two seeds; both winners, two seeds.
    epochs = 2 * (2 * (18 + 6 * 3 + 2 * 9) + 2 * 2 * 9)
    assert search().least_epochs == epochs
    hours, = re.findall(rf'at least ([\d.]+) hours of one process for {epochs} epochs', shown)
    # Each epoch 24 images to train on, and evaluation of 9 in each: the recipe's interval is one.
    assert float(hours) == pytest.approx(epochs * (24 * 4 + 9 * 2) / 3600, rel=0.1)
    assert shown.count('candidate-') >= 4
    with pytest.raises(ValueError, match='candidates gave 0 networks, as'):
        search(space={'k': [8], 'p': [0.5], 'num_nodes': [7]}, study={**SPEC['study']}).some_candidates(2)


def test_every_packaged_search_has_candidates() -> None:
    assert search_names() == ['ws_small']
    for name in search_names():
        found = load_search(name)
        least = {key: choices[0] if isinstance(choices, list) else choices['low']
                 for key, choices in found.space.items()}
        _, network = found.network('x', least, 1, 1)
        assert found.example.macs and abs(network.macs / found.example.macs - 1) < 0.15
