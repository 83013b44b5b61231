"""A study's report: the table against figures worked out by hand, and the page as a browser shows it."""
from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import os
import random
import re
import shutil
from collections.abc import Sequence
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
import yaml
from scipy import stats

from randwire_zoo import cli
from randwire_zoo.drawing import DARK
from randwire_zoo.graphs import Graph, graphs_sha256, parse_graph_model, sample_graphs
from randwire_zoo.network import NODE_OPS
from randwire_zoo.studies import plots
from randwire_zoo.studies.analysis import (
    band,
    correlate,
    damage_correlation,
    differences,
    distances,
    error_distribution,
    holm,
    learned,
    mean_interval,
    measure_correlation,
    operation_means,
    paired_differences,
    units,
    variance,
    worth_showing,
)
from randwire_zoo.studies.plots import accuracies_figure, damage_figure, distributions_figure, draw_pictures
from randwire_zoo.studies.report import report_table, write_html
from randwire_zoo.studies.results import read_results

ROOT = Path(__file__).resolve().parents[1]

SPEC: dict[str, Any] = {
    'title': 'By hand', 'recipe': 'cifar10/study', 'data': '', 'graphs': [], 'seeds': [1, 2, 3], 'node_ops': [],
    'models': [], 'graph_seeds': None, 'training_seeds': None, 'model': {'num_nodes': 8},
    'channels': None, 'macs': 1e6, 'settings': {}, 'eval_sizes': [],
    'damage': 0, 'detection': {}, 'generators': '', 'paper': {}, 'notes': ''}
BROWSER = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
           '--disable-background-networking', '--disable-component-update', '--disable-sync']


@cache
def wiring(graph: str, seed: int) -> tuple[Graph, ...]:
    return sample_graphs(parse_graph_model(graph), (8,) * 3, seed)


def row(series: str, seed: int, top1: float, **more: Any) -> dict[str, Any]:
    graph = more.pop('graph', series)
    known = graph and re.fullmatch(r'(er|ba|ws)\([\d.,]*\)', graph)
    operation = more.pop('node_op', 'sep_conv') if graph else None
    kwargs = {'num_nodes': 8, 'graph': graph, 'seed': seed, 'node_op': operation, 'channels': 12} if graph else {}
    return {'id': ''.join(c if c.isalnum() else '-' for c in f'{series} s{seed}'), 'series': series,
            'model': 'randwire' if graph else series, 'kwargs': kwargs, 'graph': graph,
            'graph_seed': seed if graph else None, 'training_seed': seed,
            'wiring': graphs_sha256(wiring(graph, seed)) if known else f'{graph} {seed}' if graph else None,
            'node_op': operation, 'channels': 12 if graph else None, 'macs': 1_234_000, 'params': 50_000 + seed,
            'status': 'done', 'top1': top1, 'top5': 90.0, 'loss': 1.0, 'epochs': 2, 'seconds': 90.0,
            'measures': {}, 'history': [[1, 2.0, top1 - 5], [2, 1.5, top1]], **more}


def failed(series: str, seed: int, reason: str) -> dict[str, Any]:
    kept = row(series, seed, 0.0)
    for name in ('top1', 'top5', 'loss', 'epochs', 'history', 'measures', 'seconds'):
        del kept[name]
    return {**kept, 'status': 'failed', 'reason': reason}


def write(folder: Path, rows: list[dict[str, Any]], said: dict[str, Any] | None = None, **spec: Any) -> Path:
    header = {'study': spec.get('title', SPEC['title']), 'sha256': '0' * 64, 'randwire_zoo': '0', 'spec': {
        **SPEC, **spec}, **(said or {})}
    folder.mkdir(exist_ok=True)
    (folder / 'results.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in [header, *rows]))
    return folder


def cells(table: str) -> dict[str, list[str]]:
    """The lines of a Markdown table by their first cell."""
    lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines() if line[:1] == '|']
    return {line[0]: line[1:] for line in lines}


def test_the_table_has_mean_and_sample_deviation_over_all_seeds(tmp_path: Path) -> None:
    rows = [row('ws(4,0.75)', 1, 70.0), row('er(0.2)', 1, 60.0), row('ws(4,0.75)', 2, 71.0),
            row('ws(4,0.75)', 3, 75.0), failed('er(0.2)', 2, 'MemoryError: no more'),
            failed('ba(5)', 1, 'ValueError: x'), row('resnet18', 1, 80.0, graph=None)]
    table = report_table(write(tmp_path, rows, graphs=['ws(4,0.75)', 'er(0.2)', 'ba(5)'], node_ops=['sep_conv'],
                               models=['resnet18'], paper={'ws(4,0.75)': '74.7 ± 0.25'}), 'github')
    found = cells(table[:table.index('Differences between series')] if 'Differences' in table else table)
    assert found['series'] == ['networks', 'wirings', 'C', 'params, M', 'multiply-adds, M', 'top-1 (%)',
                               '95 % interval', 'top-5 (%)', 'paper']
    # (70 + 71 + 75) / 3, and sqrt((4 + 1 + 9) / 2)
    # Student's t with two degrees of freedom: 4.303 times sqrt(7) / sqrt(3) on either side.
    assert found['ws(4,0.75)'] == ['3', '3', '12', '0.050 ± 0.000', '1.23 ± 0.00', '72.00 ± 2.65', '65.43 to 78.57',
                                   '90.00 ± 0.00', '74.7 ± 0.25']
    assert found['er(0.2)'] == ['1 of 2', '1', '12', '0.050, 0.050', '1.23, 1.23', '60.00', '–', '90.00', '–']
    assert found['ba(5)'][0] == '0 of 1' and found['ba(5)'][5:] == ['–', '–', '–', '–']
    assert found['resnet18'][:3] == ['1', '–', '–']
    assert list(found)[2:] == ['ws(4,0.75)', 'er(0.2)', 'ba(5)', 'resnet18']
    lines = table.splitlines()
    assert lines[0] == 'By hand' and lines[1].startswith('5 of 7 networks that ended gave a result; 0.1 hours')
    assert lines[-2:] == ['er-0-2--s2 failed: MemoryError: no more', 'ba-5--s1 failed: ValueError: x']


def test_other_sizes_and_detectors_have_their_columns(tmp_path: Path) -> None:
    sizes = {'224': {'top1': 50.0, 'top5': 80.0}, '320': {'top1': 52.0, 'top5': 81.0}}
    better = {'224': {'top1': 51.0, 'top5': 80.0}, '320': {'top1': 56.0, 'top5': 81.0}}
    folder = write(tmp_path / 'a', [row('ba(5)', 1, 49.0, eval_sizes=sizes), row('ba(5)', 2, 49.0, eval_sizes=better)],
                   eval_sizes=[224, 320])
    found = cells(report_table(folder, 'github'))
    assert found['series'][-2:] == ['top-1 at 224 px', 'top-1 at 320 px']
    assert found['ba(5)'][-2:] == ['50.00, 51.00', '52.00, 56.00']

    names = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')
    detectors = []
    for seed, gain in ((1, 0.0), (2, 3.0)):
        one = row('resnet50', seed, 0.0, graph=None, detection={name: 30.0 + i + gain for i, name in enumerate(names)},
                  macs=0, params=0, history=[[10, 2.0, 20.0], [20, None, 30.0]])
        for name in ('top1', 'top5', 'epochs', 'measures'):
            del one[name]
        detectors.append(one)
    folder = write(tmp_path / 'b', detectors, detection={'config': 'x.yaml'}, paper={'resnet50': 37.1}, recipe='')
    found = cells(report_table(folder, 'github'))
    assert found['series'][5:] == [*names, 'paper']
    # Two are no spread, and stand singly.
    assert found['resnet50'] == ['2', '–', '–', '–', '–', '30.0, 33.0', '31.0, 34.0', '32.0, 35.0', '33.0, 36.0',
                                 '34.0, 37.0', '35.0, 38.0', '37.1']
    write_html(folder, tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text(encoding='utf-8')
    assert 'AP by series' in page and page.count('<figure>') == 2 and '>n = 2<' in page


def test_a_searchs_table_in_markdown_has_both_winners_with_what_they_cost_and_how_they_did_again(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def one(name: str, top1: float, epochs: int, macs: float, **more: Any) -> dict[str, Any]:
        return {**row('er(0.2)', 1, top1, id=name, epochs=epochs, macs=macs), **more}

    rows = [one('halving-1-0-e1', 70.0, 1, 2e6), one('halving-1-1-e1', 45.0, 1, 2e6),
            {**failed('er(0.2)', 1, 'MemoryError: no more'), 'id': 'halving-1-2-e1'},
            one('halving-1-1-e3', 50.0, 3, 2e6, series='er(0.2), num_nodes 7|9'), one('random-1-0-e3', 60.0, 3, 3e6)]
    rows += [one(f'{method}-1-winner-{seed}', top1, 3, 2e6) for method, found in (
        ('halving', (51.0, 53.0, 52.0)), ('random', (55.0, 55.0, 55.0))) for seed, top1 in enumerate(found, 7)]
    folder = write(tmp_path / 'search', rows, title='Tiny', graph='er({p})', trials=3, seeds=[1], confirm=[7, 8, 9],
                   space={'p': [0.2], 'num_nodes': ['7|9', 8]})
    assert cli.main(['study', 'report', str(folder), '--markdown']) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == 'Tiny'
    lines = [[cell.strip().replace(r'\|', '|') for cell in re.split(r'(?<!\\)\|', line)[1:-1]]
             for line in said.splitlines() if line.startswith('|')]
    head = lines[0]
    found = [dict(zip(head, line, strict=True)) for line in lines if line[:2] in (['1', 'halving'], ['1', 'random'])]
    # Of those that were trained longest the best, at (1 + 1 + 3) · 2 and 3 · 3; what failed has cost nothing.
    assert found == [
        {'seed': '1', 'search': 'halving', 'candidates': '3', 'epochs': '5', 'M multiply-adds × epochs': '10.0',
         'winner': 'er(0.2), num_nodes 7|9', 'its epochs': '3', 'top-1 (%)': '50.00',
         'again, other seeds': '52.00 ± 1.00'},
        {'seed': '1', 'search': 'random', 'candidates': '1', 'epochs': '3', 'M multiply-adds × epochs': '9.0',
         'winner': 'er(0.2)', 'its epochs': '3', 'top-1 (%)': '60.00', 'again, other seeds': '55.00 ± 0.00'}]
    assert '-3.00' in said
    assert cli.main(['study', 'report', str(folder)]) == 0
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]


def test_series_stand_in_the_order_of_the_study(tmp_path: Path) -> None:
    rows = [row(f'{graph} {operation}', seed, 50.0 + seed, graph=graph, node_op=operation)
            for graph in ('ba(2)', 'er(0.2)') for operation in ('sep_conv', 'conv') for seed in (3, 1)]
    random.Random(0).shuffle(rows)
    text = report_table(write(tmp_path, [row('resnet18', 1, 60.0, graph=None), *rows], models=['resnet18'],
                              graphs=['er(0.2)', 'ba(2)'], node_ops=['conv', 'sep_conv']), 'github')
    assert list(cells(text[:text.index('Differences between')]))[2:] == [
        'er(0.2) conv', 'ba(2) conv', 'er(0.2) sep_conv', 'ba(2) sep_conv', 'resnet18']


def test_correlations_are_those_of_numpy_over_all_and_within_generators(tmp_path: Path) -> None:
    rng, numbers = random.Random(1), np.random.default_rng(1)
    names = ('degree', 'path length', 'clustering', 'depth')
    rows = [row(f'{graph} {operation}', seed, rng.uniform(30, 60), graph=graph, node_op=operation,
                measures={name: rng.uniform(1, 4) + 3 * i for name in names})
            for i, graph in enumerate(('er(0.2)', 'ba(2)', 'ws(4,0.75)', 'er(0.5)'))
            for operation in ('sep_conv', 'conv') for seed in (1, 2, 3, 4)]
    text = report_table(write(tmp_path, [*rows, failed('er(0.2) conv', 5, 'ValueError: x')]), 'github')
    found = cells(text[text.index("Pearson's r of accuracy"):])

    def r(points: list[dict[str, Any]], name: str) -> float:
        return float(np.corrcoef([one['measures'][name] for one in points], [one['top1'] for one in points])[0, 1])

    for operation in ('sep_conv', 'conv'):
        same = [one for one in rows if one['node_op'] == operation]
        for name in names:
            left = [r([one for one in same if one['graph'] != graph], name) for graph in {x['graph'] for x in same}]
            x = np.array([one['measures'][name] for one in same]).reshape(4, -1)
            y = np.array([one['top1'] for one in same]).reshape(4, -1)
            assert [one['graph'] for one in same] == sorted((one['graph'] for one in same), key=[
                one['graph'] for one in same].index)
            x, y = (side - side.mean(1, keepdims=True) for side in (x, y))
            within = np.corrcoef(x.ravel(), y.ravel())[0, 1]
            # Each generator's accuracies in 4,000 random orders of the test's own.
            orders = np.take_along_axis(y[None].repeat(4000, 0), numbers.random((4000, 4, 4)).argsort(2), 2)
            as_far = np.abs((orders * x).sum((1, 2))) >= abs((x * y).sum())
            others = [np.corrcoef(np.delete(x, i, 0).ravel(), np.delete(y, i, 0).ravel())[0, 1] for i in range(4)]
            line = found[f'{name}, {operation}']
            # Several wirings of several generators are not independent, and r over all of them has no interval.
            assert line[:5] == ['16', f'{r(same, name):.2f}', f'{min(left):.2f} to {max(left):.2f}', '12',
                                f'{within:.2f}']
            assert float(line[5]) == pytest.approx(as_far.mean(), abs=0.07)
            assert line[6] == f'{min(others):.2f} to {max(others):.2f}'


def test_predictions_are_compared_by_rank(tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [row(graph, seed, top1 := rng.uniform(30, 60), graph=graph,
                proxies={'synflow': 1e3 ** (top1 / 10) * rng.uniform(0.1, 10), 'naswot': rng.random()})
            for graph in ('er(0.2)', 'ba(2)', 'ws(4,0.75)') for seed in range(1, 7)]
    found = cells((text := report_table(write(tmp_path, rows), 'github'))[text.index("Spearman's ρ"):])
    for name in ('synflow', 'naswot'):
        x, y = [one['proxies'][name] for one in rows], [one['top1'] for one in rows]
        rho = stats.spearmanr(x, y)[0]
        # Equal groups without ties: the mean of the three correlations of ranks, or of two where one is left out.
        each = [stats.spearmanr(x[i:i + 6], y[i:i + 6])[0] for i in (0, 6, 12)]
        pairs = [np.mean(each[:2]), np.mean(each[1:]), np.mean(each[::2])]
        assert found[name][:2] == ['18', f'{rho:.2f}'] and found[name][3:5] == ['15', f'{np.mean(each):.2f}']
        assert found[name][6] == f'{min(pairs):.2f} to {max(pairs):.2f}'
    assert 'gradient norm' not in found and found['prediction'][1:3] == ['ρ over all', 'ρ without one generator']
    # What synflow says was made of the accuracies, what NASWOT says was not.
    assert found['synflow'][5] == '0.001' and float(found['naswot'][5]) > 0.05


def test_r_is_not_said_of_few_wirings_or_of_networks_at_chance(tmp_path: Path) -> None:
    def study(top1: list[float], **more: Any) -> str:
        rows = [row('er(0.2)', seed, value, measures={'depth': float(seed % 5)}, classes=10, **more)
                for seed, value in enumerate(top1, 1)]
        return report_table(write(tmp_path, rows), 'github')

    climbing = [40.0 + 3 * i for i in range(10)]
    assert cells(study(climbing))['depth'][0] == '10'
    assert "Pearson's r" not in study(climbing[:9])
    # Six at chance, and nine that have learned; one wiring trained ten times is one point.
    assert "Pearson's r" not in study([*climbing[:9], 10.1, 9.8, 10.0, 10.2, 11.0, 9.9])
    at_chance = study([*climbing, 10.1, 9.8])
    assert cells(at_chance)['depth'][0] == '10' and '2 networks at chance are left out' in at_chance
    assert "Pearson's r" not in study(climbing, wiring='one')
    hand_made = row('resnet18', 1, 90.0, graph=None)
    assert operation_means([hand_made, {**hand_made, 'node_op': 'conv'}]) == {}
    # Node operations: of five generators no correlation is worth giving, of ten it is.
    for count in (5, 10):
        rows = [row(f'er({i / 20}) {operation}', 1, 40 + i + 2 * j + (i * j) % 3, graph=f'er({i / 20})',
                    node_op=operation) for i in range(count) for j, operation in enumerate(('sep_conv', 'conv'))]
        text = report_table(write(tmp_path, rows), 'github')
        assert ('one node operation and with another' in text) is (count == 10)
    means = [[one['top1'] for one in rows if one['node_op'] == operation] for operation in ('sep_conv', 'conv')]
    r, (low, high) = (result := stats.pearsonr(*means))[0], result.confidence_interval()
    both = f'{r:.2f} ({low:.2f} to {high:.2f})'  # a wiring each: r of wirings is that of generators
    assert cells(text[text.index('one node operation'):])['sep_conv, conv'] == [
        '10', both, '10', both, '–', '0', '–', '–', '–']


def test_node_operations_are_compared_wiring_by_wiring(tmp_path: Path) -> None:
    rng, rows = random.Random(5), []
    graphs = ('er(0.2)', 'ba(2)', 'ws(4,0.75)')
    for graph in graphs:
        for seed in range(1, 6):
            for operation in ('sep_conv', 'conv'):
                if (graph, seed, operation) != ('ba(2)', 4, 'conv'):  # a wiring that one of the two has not
                    rows += [row(f'{graph} {operation}', seed, rng.uniform(30, 60), graph=graph, node_op=operation,
                                 id=f'{graph}{operation}{seed}{training}', training_seed=training)
                             for training in (1, 2)]
    rows.append(row('er(0.2) conv', 9, 10.2, graph='er(0.2)', node_op='conv', classes=10))  # at chance
    text = report_table(write(tmp_path, rows), 'github')
    table = text[text.index('one node operation and with another'):]
    x, y = ([[np.mean([one['top1'] for one in rows if (one['graph'], one['graph_seed'], one['node_op'])
                       == (graph, seed, operation)]) for seed in range(1, 6) if (graph, seed) != ('ba(2)', 4)]
             for graph in graphs] for operation in ('sep_conv', 'conv'))
    centred = [[np.array(group) - np.mean(group) for group in side] for side in (x, y)]
    within, *others = (np.corrcoef(*(np.concatenate([side[i] for i in left]) for side in centred))[0, 1]
                       for left in ((0, 1, 2), (0, 1), (0, 2), (1, 2)))
    line = cells(table)['sep_conv, conv']
    assert line[:7] == ['3', '–', '14', f'{np.corrcoef(np.concatenate(x), np.concatenate(y))[0, 1]:.2f}', '–', '11',
                        f'{within:.2f}']  # of nine without one
    assert line[8] == f'{min(others):.2f} to {max(others):.2f}' and 0.05 < float(line[7]) < 1
    assert '1 networks at chance are left out' in table


def test_one_generator_alone_does_not_make_a_correlation() -> None:
    rows = read_results(ROOT / 'docs' / 'studies' / 'figure5_small.jsonl')[1]
    found = measure_correlation(rows, 'depth')
    # 25 networks, but WS(4, 0) has one wiring. Without it nothing is left of r, or it turns.
    assert found.wirings == 21 and found.over_all is not None and found.over_all < -0.8
    assert found.without_one is not None and found.without_one[1] == pytest.approx(0.36, abs=0.01)
    assert found.within_without_one is not None and found.p is not None and found.p > 0.05


def test_who_has_learned() -> None:
    rows = [row('er(0.2)', seed, top1, classes=classes) for seed, (top1, classes) in enumerate(
        [(12.0, 10), (12.1, 10), (20.0, 5), (24.1, 5), (12.1, None), (50.0, None)])]
    # 1.2 times what guessing has: 12 of 10 classes, 24 of 5; those that do not know their classes are told.
    assert [one['top1'] for one in learned(rows, None)] == [12.1, 24.1, 12.1, 50.0]
    assert [one['top1'] for one in learned(rows, 2)] == [12.1, 24.1]
    detector = row('resnet50', 1, 0.0, graph=None, detection={'AP': 3.0}, classes=2)
    assert learned([detector], 2) == [detector]


def test_correlations_at_their_edges() -> None:
    rng = random.Random(4)
    noise = [rng.random() for _ in range(24)]

    def points(*groups: list[float]) -> dict[str, list[tuple[float, float]]]:
        values = iter(noise)
        return {str(i): [(x, next(values)) for x in group] for i, group in enumerate(groups)}

    half = [0.0] * 6 + [1.0] * 6
    assert correlate({}).wirings == 0 and correlate({}).without_one is None
    assert correlate(points(half)).over_all is not None  # two values are enough, in both
    assert correlate({'a': [(noise[i], half[i]) for i in range(12)]}).over_all is not None
    assert correlate(points([1.0] * 12)).over_all is None
    assert correlate({'a': [(x, 1.0) for x in noise]}).over_all is None
    # A generator within which the measure does not vary adds nothing within generators.
    alone, beside = correlate(points(half)), correlate(points(half, [7.0] * 12))
    assert alone.free_within == beside.free_within == 11 and alone.within == pytest.approx(beside.within)
    assert alone.p == beside.p and beside.wirings == 24
    # Without one generator: of one there is nothing left, of two the other, and all of them have to be enough.
    assert alone.without_one is None and beside.without_one is None
    both = correlate(points(half, half))
    assert both.without_one == pytest.approx(sorted(
        np.corrcoef(half, noise[start:start + 12])[0, 1] for start in (0, 12)))
    # r over all has an interval where wirings are independent, of one generator or one of each; ranks' is wider.
    assert both.over_all_interval is None
    result = stats.pearsonr(half, noise[:12])
    for lone in (alone, correlate({str(i): [pair] for i, pair in enumerate(zip(half, noise, strict=False))})):
        assert lone.over_all_interval == pytest.approx(tuple(result.confidence_interval()))
    ranks = correlate({'a': list(zip(noise[:12], noise[12:], strict=True))}, rank=True).over_all_interval
    assert ranks == pytest.approx(tuple(np.tanh(np.arctanh(stats.spearmanr(noise[:12], noise[12:])[0]) + np.array(
        [-1, 1]) * 1.959964 * (1.06 / 9) ** 0.5)))
    # An exact line has no interval, and no other order is as far from 0.
    exact = correlate({'a': [(float(i), 2.0 * i) for i in range(12)]})
    assert exact.within == pytest.approx(1) and exact.over_all_interval is None and exact.p == 0.001
    # Where each two networks lose a mean half of them are free, and nine have to be.
    pairs = correlate(points(*([i / 3, i + 1.0] for i in range(9))))
    assert pairs.free_within == 9 and pairs.within is not None and pairs.p is not None
    few = correlate(points(*([i / 3, i + 1.0] for i in range(8))))
    assert few.free_within == 8 and few.over_all is not None
    assert few.within is few.p is few.within_without_one is None
    # Within generators, too, one is left out of two or more; what is left of two wirings is nothing but a sign.
    assert alone.within_without_one is None and beside.within_without_one is None
    assert both.within_without_one == both.without_one
    assert correlate(points(half, [1.0, 2.0])).within_without_one is None
    assert correlate(points(half, [1.0, 2.0], [1.0, 2.0])).within_without_one is not None


def grouped(x: Sequence[Sequence[float]], y: Sequence[Sequence[float]]) -> dict[str, list[tuple[float, float]]]:
    return {str(i): list(zip(*pair, strict=True)) for i, pair in enumerate(zip(x, y, strict=True))}


def test_p_within_generators_is_the_share_of_all_orders_that_are_as_far_from_nothing() -> None:
    rng = np.random.default_rng(7)
    for scale in ((1, 1, 1), (1, 0.2, 8)):
        x, y = rng.normal(size=(2, 3, 4)) * np.array(scale)[:, None]
        y += 0.5 * x
        found = correlate(grouped(x, y), orders=9999)
        assert correlate(grouped(x, y), orders=9999) == found
        # 24 orders of each of three generators' four accuracies: 13,824 sums of products of deviations.
        x, y = (side - side.mean(1, keepdims=True) for side in (x, y))
        first, second, third = (np.array([np.dot(one, order) for order in itertools.permutations(other)])
                                for one, other in zip(x, y, strict=True))
        sums = first[:, None, None] + second[:, None] + third
        assert found.within == pytest.approx((x * y).sum() / (np.square(x).sum() * np.square(y).sum()) ** 0.5)
        exact = (np.abs(sums) >= abs((x * y).sum()) - 1e-9).mean()
        assert 0.01 < exact < 0.6 and found.p == pytest.approx(exact, abs=0.02)


def test_chance_is_told_from_more_however_differently_generators_spread() -> None:
    rng = np.random.default_rng(8)

    def significant(sizes: Sequence[int], scales: Sequence[float], rank: bool = False) -> tuple[float, float]:
        """In how many of 300 studies, where accuracy is chance within generators, p is at most 0.05.

        And how many of them Fisher's interval of as many independent pairs, or Fieller's of ranks, would leave 0 out.
        """
        found = []
        for _ in range(300):
            sides = [[rng.normal(rng.normal(0, 9), scale, size) for size, scale in zip(sizes, scales, strict=True)]
                     for _ in 'xy']
            one = correlate(grouped(*sides), rank, orders=99)
            assert one.p is not None and one.within is not None
            half = 1.96 * ((1.06 if rank else 1) / (one.free_within - 2)) ** 0.5
            found.append((one.p <= 0.05, abs(np.arctanh(one.within)) > half))
        of_orders, of_intervals = np.mean(found, axis=0)
        return float(of_orders), float(of_intervals)

    by_orders, by_interval = significant([5] * 6, [1] * 5 + [8])  # one generator is wide in both
    assert 0.02 <= by_orders <= 0.08 and by_interval > 0.2
    by_orders, by_interval = significant([10] + [2] * 10, [1] * 11, rank=True)
    assert 0.02 <= by_orders <= 0.08 and by_interval > 0.1


def test_pairs_that_share_a_wiring_count_once() -> None:
    def series(name: str, wirings: str, *top1: float) -> list[dict[str, Any]]:
        return [row(name, seed, value, wiring=f'{name} {wiring}')
                for seed, (wiring, value) in enumerate(zip(wirings, top1, strict=True), 1)]

    # Three seeds of graphs give one of the two the same wiring; the other has one for each.
    one, other = series('one', 'AAAB', 50, 52, 57, 60), series('other', 'CDEF', 49, 50, 51, 52)
    welch, = differences({'one': one, 'other': other})
    found, = paired_differences({'one': one, 'other': other})
    assert welch.n == (2, 4) and found.n == (2, 2)
    test = stats.ttest_1samp([(1 + 2 + 6) / 3, 8], 0)
    assert (found.mean, found.p) == pytest.approx((5.5, test.pvalue))
    swapped, = paired_differences({'other': other, 'one': one})
    assert swapped.n == (2, 2) and swapped.mean == pytest.approx(-5.5)
    # A chain: the first two pairs share A, the second and third D. The last has nothing of theirs.
    chain = {'one': series('one', 'AABE', 50, 52, 57, 60), 'other': series('other', 'CDDF', 49, 50, 51, 52)}
    found, = paired_differences(chain)
    assert found.n == (2, 2) and found.p == pytest.approx(test.pvalue)
    # All in one chain are one value, and no test.
    assert paired_differences({
        'one': series('one', 'AAB', 50, 52, 57), 'other': series('other', 'CDD', 49, 50, 51)}) == []
    # Beside a generator with one wiring it is the other's that count, with the mean of their pairs.
    found, = paired_differences({'one': one, 'lone': series('lone', 'GGGG', 49, 50, 51, 52)})
    assert found.n == (2, 2) and found.p == pytest.approx(test.pvalue)


def test_variance_is_split_between_wirings_and_trainings() -> None:
    rng = np.random.default_rng(0)
    # 400 wirings of σ = 3, three trainings each of σ = 1: the estimates are near, and those of a naive ANOVA.
    values = 50 + rng.normal(0, 3, (400, 1)) + rng.normal(0, 1, (400, 3))
    parts = variance([row('er(0.2)', training, float(top1), wiring=str(i))
                      for i, same in enumerate(values) for training, top1 in enumerate(same)])
    assert parts is not None and parts.between is not None and (parts.wirings, parts.networks) == (400, 1200)
    within = values.var(1, ddof=1).mean()
    between = values.mean(1).var(ddof=1) - within / 3
    assert parts.within == pytest.approx(within ** 0.5) and parts.between == pytest.approx(between ** 0.5)
    assert parts.within == pytest.approx(1, abs=0.1) and parts.between == pytest.approx(3, abs=0.4)
    # F of scipy's one-way ANOVA is what the two parts say; with unequal numbers of trainings too.
    ragged = [list(same[:1 + i % 3]) for i, same in enumerate(values[:30])]
    parts = variance([row('er(0.2)', training, float(top1), wiring=str(i))
                      for i, same in enumerate(ragged) for training, top1 in enumerate(same)])
    assert parts is not None and parts.between is not None
    sizes = np.array([len(same) for same in ragged])
    each = (sizes.sum() - (sizes ** 2).sum() / sizes.sum()) / (len(ragged) - 1)
    assert 1 + each * (parts.between / parts.within) ** 2 == pytest.approx(stats.f_oneway(*ragged).statistic)
    # Wirings that differ less than chance would have them.
    parts = variance([row('er(0.2)', i, top1, wiring=str(i % 2)) for i, top1 in enumerate((1.0, 3.0, 3.0, 1.0))])
    assert parts is not None and parts.between == 0
    assert variance([row('er(0.2)', seed, 50.0 + seed) for seed in (1, 2, 3)]) is None


def test_the_report_gives_both_parts_of_the_variance_and_says_what_has_one_wiring(tmp_path: Path) -> None:
    rows = [row(series, seed, 50 + 3 * seed + training, graph_seed=seed, training_seed=training,
                id=f'{series}{seed}{training}')
            for series, seeds in (('er(0.2)', (1, 2)), ('ws(4,0)', (1,))) for seed in seeds for training in (1, 2)]
    text = report_table(write(tmp_path, rows, seeds=None, graph_seeds=[1, 2], training_seeds=[1, 2],
                              graphs=['er(0.2)', 'ws(4,0)']), 'github')
    assert 'ws(4,0): all seeds give the same graphs, one wiring' in text and 'have one seed' not in text
    assert cells(text)['ws(4,0)'][:2] != cells(text)['er(0.2)'][:2]
    parts = cells(text[text.index('between wirings'):text.index('By one-way')])
    # Means 54.5 and 57.5, so a mean square of 2 × 4.5 = 9 between; 0.5 within; (9 − 0.5) / 2.
    # F is 18; of two wirings it is t², here with two degrees of freedom.
    assert parts['er(0.2)'] == ['2', '4', f'{4.25 ** 0.5:.2f}', f'{0.5 ** 0.5:.2f}', '0.00 to 84.82',
                                f'{2 * stats.t.sf(18 ** 0.5, 2):.3f}']
    assert parts['ws(4,0)'] == ['1', '2', '–', f'{0.5 ** 0.5:.2f}', '–', '–']
    together = [row('er(0.2)', seed, 50.0 + seed) for seed in (1, 2, 3)]
    text = report_table(write(tmp_path, together, graphs=['er(0.2)']))
    assert 'Graphs and training have one seed: ± is of both together.' in text and 'between trainings' not in text


def test_the_interval_of_the_variance_parts_ratio_holds_the_true_one_as_often_as_it_says() -> None:
    rng = random.Random(3)
    for wirings, trainings, ratio in ((5, 2, 0.5), (8, 3, 2.0)):
        held = 0
        for _ in range(400):
            rows = [row('er(0.2)', seed, luck + rng.gauss(0, 1), wiring=str(seed), training_seed=training)
                    for seed in range(wirings) for luck in [50 + rng.gauss(0, ratio)] for training in range(trainings)]
            parts = variance(rows)
            assert parts is not None and parts.ratio is not None
            held += parts.ratio[0] <= ratio <= parts.ratio[1]
        assert 0.92 < held / 400 < 0.98  # three standard deviations of the count


def test_a_series_that_is_not_done_has_not_one_wiring_for_that(tmp_path: Path) -> None:
    rows = [row(series, 1, 50.0 + training, training_seed=training, id=f'{series}{training}', graph=series)
            for series in ('er(0.2)', 'ws(4,0)', 'own(3)') for training in (1, 2)]
    text = report_table(write(tmp_path, rows, seeds=None, graph_seeds=[1, 2], training_seeds=[1, 2],
                              graphs=['er(0.2)', 'ws(4,0)', 'own(3)']), 'github')
    said = next(line for line in text.splitlines() if 'all seeds give' in line)
    assert said.startswith('ws(4,0): ') or '. ws(4,0): ' in said
    # Trainings of the only wiring so far say nothing about others: no test of them tells generators apart.
    assert 'Welch' not in text and 'Kolmogorov' not in text and '95 % interval' not in text
    assert 'er(0.2), own(3): one wiring so far, which stands for no others and is compared with none.' in text
    rows += [row('ws(4,0)', 1, 51.0 + training, training_seed=training, id=f'w{training}') for training in (3, 4)]
    rows += [row('er(0.2)', seed, 50.0 + seed, graph_seed=seed, training_seed=1, id=f'e{seed}') for seed in (2, 3)]
    text = report_table(write(tmp_path, rows, seeds=None, graph_seeds=[1, 2, 3], training_seeds=[1, 2, 3, 4],
                              graphs=['er(0.2)', 'ws(4,0)', 'own(3)']), 'github')
    assert text.count('| ws(4,0)') > text.count('| own(3)') and 'Welch' in text


def test_the_line_about_the_study_says_what_has_one_wiring_and_how_many_networks_there_will_be(tmp_path: Path) -> None:
    rows = [row(series, 1, top1 + training, training_seed=training, id=f'{series}{training}', graph=series)
            for series, top1 in (('own(3)', 50.0), ('own(4)', 53.0), ('own(5)', 57.0)) for training in (1, 2)]

    def report(said: dict[str, Any]) -> str:
        return report_table(write(tmp_path, rows, said, seeds=None, graph_seeds=[1, 2], training_seeds=[1, 2],
                                  graphs=['own(3)', 'own(4)', 'own(5)']))

    # Their generators are not here to be asked.
    before = report({})
    assert before.splitlines()[1].startswith('6 of 6 networks that ended') and 'Welch' not in before
    assert 'own(3), own(4), own(5): one wiring so far' in before and 'all seeds give' not in before
    assert report({'one_wiring': [], 'networks': 6}) == before
    # What two series are named for is believed; the third may still have others.
    text = report({'one_wiring': ['own(3)', 'own(4)'], 'networks': 8})
    assert text.splitlines()[1].startswith('Not done yet: 6 of 8 networks have ended. 6 of 6 networks that ended gave')
    assert 'own(3), own(4): all seeds give the same graphs' in text and 'own(5): one wiring so far' in text
    welch = text[text.index('Welch'):text.index('n: wirings')]
    assert 'own(3)   own(4)' in welch and 'own(5)' not in welch
    # Rows with other graphs are believed more.
    rows.append(row('own(3)', 2, 52.0, training_seed=1, id='own(3)3', graph='own(3)'))
    text = report({'one_wiring': ['own(3)', 'own(4)']})
    assert '\nown(4): all seeds give' in text and 'Not done' not in text


def test_given_widths_are_correlated_apart_as_node_operations_are(tmp_path: Path) -> None:
    def rows_of(width: int, wirings: int) -> list[dict[str, Any]]:
        return [row(f'er(0.2) C={width}', seed, 40 + width + 0.1 * (seed * 7 % 5), graph='er(0.2)', channels=width,
                    measures={'depth': float(seed)}) for seed in range(1, wirings + 1)]

    few = report_table(write(tmp_path, [*rows_of(8, 5), *rows_of(16, 5)]), 'github')
    assert 'r within generators' not in few, 'five wirings are five, whatever number of widths they have'
    enough = report_table(write(tmp_path, [*rows_of(8, 10), *rows_of(16, 10)]), 'github')
    found = cells(enough[enough.index('mean of a graph measure'):])
    assert found['depth, C=8'][0] == found['depth, C=16'][0] == '10'


def test_differences_are_tested(tmp_path: Path) -> None:
    rng = random.Random(2)
    groups = {series: [row(series, seed, rng.gauss(mean, 1)) for seed in range(1, n + 1)]
              for series, mean, n in (('er(0.2)', 50, 5), ('ba(2)', 51, 4), ('ws(4,0.75)', 53, 6))}
    found = differences(groups)
    assert [(one.one, one.other) for one in found] == [
        ('er(0.2)', 'ba(2)'), ('er(0.2)', 'ws(4,0.75)'), ('ba(2)', 'ws(4,0.75)')]
    for one in found:
        a, b = (np.array([x['top1'] for x in groups[name]]) for name in (one.one, one.other))
        va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
        t, df = (a.mean() - b.mean()) / (va + vb) ** 0.5, (va + vb) ** 2 / (
            va ** 2 / (len(a) - 1) + vb ** 2 / (len(b) - 1))
        half = stats.t.ppf(0.975, df) * (va + vb) ** 0.5
        assert (one.t, one.df, one.p) == pytest.approx((t, df, 2 * stats.t.sf(abs(t), df)))
        assert (one.mean, one.low, one.high) == pytest.approx((a.mean() - b.mean(), one.mean - half, one.mean + half))
    for one in distances(groups):
        a, b = ([100 - x['top1'] for x in groups[name]] for name in (one.one, one.other))
        share = [(sum(x <= at for x in a) / len(a), sum(x <= at for x in b) / len(b)) for at in [*a, *b]]
        assert one.statistic == pytest.approx(max(abs(p - q) for p, q in share)) and one.n == (len(a), len(b))
    # Two samples of five that do not overlap: 2 of the 252 orders are as far apart.
    apart = {name: [row(name, seed, base + seed) for seed in range(1, 6)] for name, base in (('a', 10.0), ('b', 50.0))}
    assert distances(apart)[0].p == pytest.approx(2 / 252) and distances(apart)[0].statistic == 1
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and holm([0.9, 0.8]) == [1, 1]
    # Two trainings of one wiring are one value; a single wiring counts its trainings; one value is not tested.
    doubled = [row('er(0.2)', seed, 50.0 + seed + 2 * training, wiring=str(seed))
               for seed in (1, 2, 3) for training in (0, 1)]
    assert units(doubled) == [52.0, 53.0, 54.0]
    assert units([row('ws(4,0)', seed, 50.0 + seed) for seed in (1, 2, 3)]) == [51.0, 52.0, 53.0]
    assert differences({'a': [row('er(0.2)', 1, 50.0)], 'b': doubled}) == []
    # Of more than eight series a text has the best, whatever its name, with the rest; a page has all pairs.
    many = {f'er(0.{i})': [row(f'er(0.{i})', seed, 40.0 + (i == 3) + seed) for seed in (1, 2)] for i in range(1, 10)}
    tested = differences(many)
    assert len(tested) == 36
    shown = [one for one, there in zip(tested, worth_showing(tested, many), strict=True) if there]
    assert [one.one for one in shown] == ['er(0.3)'] * 8 and len({one.other for one in shown}) == 8
    spread = many['er(0.3)']
    folder = write(tmp_path, [one for group in many.values() for one in group])
    text = report_table(folder, 'github')
    welch = text[text.index('Welch'):text.index('Distributions of the errors')]
    assert 'allows for 36 tests' in welch and len(re.findall(r'^\| er', welch, re.MULTILINE)) == 8
    write_html(folder, tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text('utf-8')
    for title in ('Welch', 'Kolmogorov and Smirnov'):
        table = page[page.index(title):]
        pairs = re.findall(r'<tr><td class="words">(.*?)</td><td class="words">(.*?)</td>',
                           table[:table.index('</table>')])
        assert {frozenset(pair) for pair in pairs} == {
            frozenset(pair) for pair in itertools.combinations(many, 2)} and len(pairs) == 36
    del many['er(0.7)']
    tested = differences(many)
    assert len(tested) == 28 and all(worth_showing(tested, many))
    # One of the two may have no spread; without any there is no test.
    flat = [row('ba(2)', seed, 47.0) for seed in (1, 2)]
    assert len(differences({'a': flat, 'b': spread})) == len(differences({'b': spread, 'a': flat})) == 1
    assert differences({'a': flat, 'b': [row('ba(3)', seed, 48.0) for seed in (1, 2)]}) == []


def test_differences_at_equal_seeds_are_those_of_pairs() -> None:
    rng = random.Random(5)
    luck = {(g, t): rng.gauss(0, 5) for g in (1, 2, 3, 4) for t in (1, 2)}

    def series(name: str, gain: float, graph_seeds: tuple[int, ...], wiring: str | None = None) -> list[dict[str, Any]]:
        return [row(name, g, 50 + gain + luck[g, t] + rng.gauss(0, 0.2), training_seed=t, id=f'{name} {g} {t}',
                    wiring=wiring or f'{name} {g}') for g in graph_seeds for t in (1, 2)]

    first, second = series('er(0.2)', 1, (1, 2, 3, 4)), series('ba(2)', 0, (4, 3, 1, 2))
    found, = paired_differences({'er(0.2)': first, 'ba(2)': second})
    by_seeds = {(one['graph_seed'], one['training_seed']): one['top1'] for one in second}
    gaps = np.array([one['top1'] - by_seeds[one['graph_seed'], one['training_seed']] for one in first])
    pairs = gaps.reshape(4, 2).mean(1)  # a pair for each wiring: its two trainings are no two trials
    test = stats.ttest_1samp(pairs, 0)
    assert found.n == (4, 4) and (found.mean, found.t, found.p) == pytest.approx(
        (pairs.mean(), test.statistic, test.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))
    # What luck does to both is not in it, as it is in the test of two samples.
    unpaired, = differences({'er(0.2)': first, 'ba(2)': second})
    assert found.p < 0.01 < unpaired.p
    # A generator with one wiring is paired by the seed of the training, if each has a wiring of its own.
    alone = series('ws(4,0)', 0, (1,), 'one')
    each = [next(one for one in first if one['graph_seed'] == one['training_seed'] == t) for t in (1, 2)]
    found, = paired_differences({'er(0.2)': each, 'ws(4,0)': alone})
    assert found.n == (2, 2) and found.mean == pytest.approx(
        np.mean([one['top1'] - other['top1'] for one, other in zip(each, alone, strict=True)]))
    # Otherwise all pairs have the same wirings, whatever these are worth: no pair is independent of another.
    assert paired_differences({'er(0.2)': first, 'ws(4,0)': alone}) == []
    assert paired_differences({'ws(4,0)': alone, 'er(0.2)': first}) == []
    # Two models without graphs have their trainings. What differs by rounding alone is no spread of differences.
    models = {name: [row(name, t, top1, graph=None) for t, top1 in enumerate(values)]
              for name, values in (('resnet18', (0.3, 0.8, 1.2)), ('resnet50', (0.1, 0.6, 1.0)))}
    assert len({a['top1'] - b['top1'] for a, b in zip(*models.values(), strict=True)}) > 1
    assert paired_differences(models) == [] and len(differences(models)) == 1
    assert paired_differences({'a': [row('a', seed, 1.0 * seed) for seed in (1, 2)],
                               'b': [row('b', seed, 2.0 * seed) for seed in (3, 4)]}) == []


def test_intervals_of_means() -> None:
    rng = np.random.default_rng(3)
    values = list(rng.normal(70, 2, 40))
    expected = stats.bootstrap((values,), np.mean, method='percentile', rng=1).confidence_interval
    assert mean_interval(values) == pytest.approx(tuple(expected), abs=0.1)
    assert mean_interval(values) == mean_interval(values)
    few = [1.0, 2.0, 4.0]
    assert mean_interval(few) == pytest.approx(tuple(stats.ttest_1samp(few, 0).confidence_interval()))
    assert mean_interval([1.0, 2.0]) is None and mean_interval([0.1 + 0.2, 0.3, 0.3]) is None
    # It holds the true mean as often as it says; the plain percentiles of the bootstrap do so for 90 % of ten values.
    for count in (3, 10):
        held = sum(low <= 70 <= high for low, high in (mean_interval(list(sample)) or (0.0, 0.0)
                                                       for sample in rng.normal(70, 2, (1000, count))))
        assert held >= 950 - 3 * (1000 * 0.05 * 0.95) ** 0.5
    # Of samples of a uniform distribution, the band misses the true one as rarely as it says.
    half, count = band(12), 12
    missed = 0
    for sample in np.sort(rng.random((2000, count)), 1):
        steps = np.arange(1, count + 1) / count
        missed += max(np.abs(steps - sample).max(), np.abs(steps - 1 / count - sample).max()) > half
    assert missed <= 0.05 * 2000 + 3 * (2000 * 0.05 * 0.95) ** 0.5
    assert band(1) == 1 and band(200) == pytest.approx((np.log(40) / 400) ** 0.5)


def damage(nodes: Sequence[tuple[int, float]], edges: Sequence[tuple[int, float]] = ()) -> dict[str, Any]:
    return {'images': 300, 'top1': 50.0,
            'nodes': [['conv3', i, degree, loss] for i, (degree, loss) in enumerate(nodes)],
            'edges': [['conv3', 0, i + 1, degree, loss] for i, (degree, loss) in enumerate(edges)]}


def test_losses_are_averaged_by_degree_in_each_network_before_they_are_over_networks(tmp_path: Path) -> None:
    first, second = ((0, 1.0), (0, 2.0), (5, 4.0), (12, 20.0)), ((0, 6.0), (6, 5.0), (11, 10.0))
    many = tuple((degree, degree * 1.5 + (degree * 7) % 4) for degree in range(10))
    rows = [row('ba(2)', 1, 50.0, damage=damage(first)), row('ba(2)', 2, 51.0, damage=damage(second)),
            row('er(0.2)', 1, 50.0, damage=damage(many)), row('resnet18', 1, 60.0, graph=None)]
    text = report_table(write(tmp_path, rows), 'github')
    assert "a removed edge's target" not in text
    start, end = text.index("by a removed node's out-degree"), text.index('of what the removed node was')
    found = cells(text[start:end])
    assert found['series'] == ['networks', '0', '1', '2', '3', '4', '5–6', '7–9', '10+']
    # At degree 0 the first network has (1 + 2) / 2, the second 6: not (1 + 2 + 6) / 3.
    assert found['ba(2)'] == [
        '2', '1.50, 6.00 (3)', '–', '–', '–', '–', '4.00, 5.00 (2)', '–', '20.00, 10.00 (2)']
    r = np.corrcoef([degree for degree, _ in many], [loss for _, loss in many])[0, 1]
    correlated = cells(text[end:])
    # Of ba(2) there are too few; of these made-up removals no graph is known.
    assert 'ba(2)' not in correlated and correlated['er(0.2)'][:2] == ['1', f'{r:.2f}'] and 'resnet18' not in found


def test_what_was_removed_is_known_by_its_graph_and_tested_against_random_order() -> None:
    graphs = wiring('ws(4,0.75)', 1)
    rng = random.Random(6)

    def of(losses: dict[tuple[str, int], float]) -> dict[str, Any]:
        return {'images': 300, 'top1': 50.0, 'nodes': [
            [name, node, len(graph.successors[node]), losses[name, node]]
            for name, graph in zip(('conv3', 'conv4', 'conv5'), graphs, strict=True) for node in range(8)], 'edges': []}

    def r(measure: Sequence[float], losses: Sequence[float], stages: Sequence[str]) -> float:
        """Of what is left when each stage's means are taken off: the partial correlation, given the stages."""
        known = np.array([[stage == name for name in dict.fromkeys(stages)] for stage in stages], dtype=float)
        left = [np.array(side) - known @ np.linalg.lstsq(known, np.array(side), rcond=None)[0]
                for side in (measure, losses)]
        return float(np.corrcoef(*left)[0, 1])

    deep = {name: longest_paths(graph) for name, graph in zip(('conv3', 'conv4', 'conv5'), graphs, strict=True)}
    places = [(name, node) for name in deep for node in range(8)]
    stages = [name for name, _ in places]
    level = {'conv3': 40.0, 'conv4': 20.0, 'conv5': 0.0}  # what a stage loses for other reasons
    by_depth = {(name, node): level[name] + 3.0 * deep[name][node] + rng.random() for name, node in places}
    by_chance = {place: rng.random() for place in places}
    rows = [row('ws(4,0.75)', 1, 50.0, damage=of(by_depth))]
    found = damage_correlation(rows, 'nodes', 'depth')
    depth_of = [deep[name][node] for name, node in places]
    assert found.values == pytest.approx([r(depth_of, list(by_depth.values()), stages)]) and found.p == 0.001
    between = [networkx.betweenness_centrality(graph.to_networkx().to_undirected())[node]
               for graph in graphs for node in range(8)]
    assert damage_correlation(rows, 'nodes', 'betweenness').values == pytest.approx(
        [r(between, list(by_depth.values()), stages)])
    # Of edges, the betweenness of the edge and the depth of its target.
    entries = [[name, *edge, len(graph.predecessors[edge[1]]), rng.random()]
               for name, graph in zip(deep, graphs, strict=True) for edge in graph.edges]
    losses = [entry[-1] for entry in entries]
    between = [networkx.edge_betweenness_centrality(graph.to_networkx().to_undirected())[edge]
               for graph in graphs for edge in graph.edges]
    edges_alone = [row('ws(4,0.75)', 1, 50.0, damage={'images': 300, 'top1': 50.0, 'nodes': [], 'edges': entries})]
    assert damage_correlation(edges_alone, 'edges', 'betweenness').values == pytest.approx(
        [r(between, losses, [entry[0] for entry in entries])])
    # Edges with one target have its depth and in-degree, and count once: however often an edge is there, r stays.
    targets = sorted({(entry[0], entry[2]) for entry in entries})
    losses = [np.mean([entry[-1] for entry in entries if (entry[0], entry[2]) == target]) for target in targets]
    for measure, values in (('depth', [deep[name][node] for name, node in targets]), ('degree', [
            len(graphs[int(name[-1]) - 3].predecessors[node]) for name, node in targets])):
        assert damage_correlation(edges_alone, 'edges', measure).values == pytest.approx(
            [r(values, losses, [name for name, _ in targets])])
    # By chance: p is that of a permutation test by itself, whatever the stages lose.
    rows = [row('ws(4,0.75)', 1, 50.0, damage=of(by_chance))]
    found = damage_correlation(rows, 'nodes', 'depth')
    as_far = 0
    for _ in range(4000):
        shuffled = [loss for name in deep for loss in rng.sample([by_chance[name, node] for node in range(8)], 8)]
        as_far += abs(r(depth_of, shuffled, stages)) >= abs(found.values[0]) - 1e-9
    assert found.p == pytest.approx(as_far / 4000, abs=0.06)
    levels = of({place: level[place[0]] + loss for place, loss in by_chance.items()})
    again = damage_correlation([row('ws(4,0.75)', 1, 50.0, damage=levels)], 'nodes', 'depth')
    assert (again.values, again.p) == (pytest.approx(found.values), found.p)
    # Trainings of one wiring are one value, of the mean loss of each removal; those of two wirings are two.
    second = {place: rng.random() for place in places}
    means = [(by_chance[place] + second[place]) / 2 for place in places]
    twice = damage_correlation([*rows, row('ws(4,0.75)', 1, 50.0, damage=of(second))], 'nodes', 'depth')
    assert twice.values == pytest.approx([r(depth_of, means, stages)])
    same = damage_correlation(rows * 5, 'nodes', 'depth')
    assert (same.values, same.p) == (pytest.approx(found.values), found.p)
    other = {**rows[0], 'wiring': 'another', 'graph': 'own(3)'}
    assert len(damage_correlation([*rows, other], 'nodes', 'degree').values) == 2
    # A ring's nodes are equally between others, but for rounding: there is nothing to correlate.
    ring, = wiring('ws(4,0)', 1)[:1]
    assert len({round(value, 12) for value in networkx.betweenness_centrality(
        ring.to_networkx().to_undirected()).values()}) == 1
    flat = damage_correlation([row('ws(4,0)', 1, 50.0, damage=of(by_chance))], 'nodes', 'betweenness')
    assert flat.values == [] and flat.p is None
    # Without graphs, or with a node that is not there, degrees are left.
    unknown = damage_correlation([row('grid(3)', 1, 50.0, damage=of(by_depth))], 'nodes', 'depth')
    assert unknown.values == [] and unknown.p is None
    odd = of(by_depth)
    odd['nodes'][0][1] = 99
    assert damage_correlation([row('ws(4,0.75)', 1, 50.0, damage=odd)], 'nodes', 'depth').values == []
    assert len(damage_correlation([row('ws(4,0.75)', 1, 50.0, damage=odd)], 'nodes', 'degree').values) == 1


def longest_paths(graph: Graph) -> list[int]:
    return [1 + max((len(way) - 1 for source in graph.inputs for way in
                     networkx.all_simple_paths(graph.to_networkx(), source, node)), default=0)
            for node in range(graph.num_nodes)]


def drawn_points(axes: Any) -> list[tuple[float, float]]:
    """Those of networks."""
    return [(float(x), float(y)) for line in axes.get_lines() if (line.get_gid() or '').startswith('network-')
            for x, y in line.get_xydata()]


def test_the_panels_of_damage_show_nodes_beside_edges() -> None:
    rows = [row('ba(2)', 1, 50.0, damage=damage([(1, 4.0), (1, 6.0), (3, 9.0)], [(2, 1.0), (2, 2.0)])),
            row('ba(2)', 2, 50.0, damage=damage([(1, 7.0)], [(5, 0.5)]))]
    numbers = {one['id']: number for number, one in enumerate(rows)}
    nodes, edges = (damage_figure('ba(2)', rows, kind, numbers).axes[0] for kind in ('nodes', 'edges'))
    assert sorted(drawn_points(nodes)) == [(1, 5), (1, 7), (3, 9)]
    assert sorted(drawn_points(edges)) == [(2, 1.5), (5, 0.5)]
    assert nodes.get_xlabel() == "node's out-degree" and edges.get_xlabel() == "in-degree of the edge's target"
    assert {line.get_gid() for line in nodes.get_lines()} >= {'network-0', 'network-1'}
    for axes, means in ((nodes, {(1.0, 6.0), (3.0, 9.0)}), (edges, {(2.0, 1.5), (5.0, 0.5)})):
        (drawn, *_), = axes.containers
        assert {(float(x), float(y)) for x, y in drawn.get_xydata()} == means


def test_every_network_its_mean_and_the_papers_figure_are_shown() -> None:
    groups = {'er(0.2)': [row('er(0.2)', seed, top1) for seed, top1 in ((1, 50.0), (2, 53.0), (3, 51.0))],
              'ba(2)': [row('ba(2)', 1, 52.0)], 'ws(4,0.75)': [row('ws(4,0.75)', 1, 51.5)]}
    numbers = {one['id']: number for number, one in enumerate(one for group in groups.values() for one in group)}
    paper = {'er(0.2)': '51.5 ± 0.2', 'ba(2)': 73.8, 'ws(4,0.75)': 12}
    axes = accuracies_figure(groups, paper, 'top-1 (%)', numbers).axes[0]
    points = drawn_points(axes)
    assert [x for x, _ in points] == [50, 53, 51, 52, 51.5]
    assert [round(y) for _, y in points] == [0, 0, 0, 1, 2]  # a line for each series
    line, = (line for line in axes.get_lines() if line.get_linewidth() == 2)
    assert tuple(map(float, line.get_xdata())) == pytest.approx(mean_interval([50.0, 53.0, 51.0]))
    means = {tuple(map(float, line.get_xydata()[0])) for line in axes.get_lines() if line.get_marker() == 'D'}
    assert {(round(x, 6), y) for x, y in means} == {(51.333333, 0.0)}
    said = [text.get_text() for text in axes.texts]
    assert said.count('n = 3 (3)') == 1 and said.count('n = 1 (1)') == 2
    low, high = axes.get_xlim()
    assert 'paper 73.8 →' in said and '← paper 12' in said and low > 12 and high < 73.8
    assert [float(line.get_xdata()[0]) for line in axes.get_lines() if line.get_marker() == 's'] == [51.5]
    # What the paper has of other images does not belong on this axis, and some are no figure.
    other = {'er(0.2)': '81.6 ± 0.13 at 320 px', 'ba(2)': '96.40 (a third of the data)', 'ws(4,0.75)': float('nan')}
    axes = accuracies_figure(groups, other, 'top-1 (%)', numbers).axes[0]
    assert not [text for text in axes.texts if 'paper' in text.get_text()]
    assert not [line for line in axes.get_lines() if line.get_marker() == 's']
    # Networks that stand for no others have neither.
    axes = accuracies_figure(groups, paper, 'top-1 (%)', numbers, {'ba(2)'}).axes[0]
    assert [x for x, _ in drawn_points(axes)] == [50, 53, 51, 52, 51.5]
    assert not [line for line in axes.get_lines() if line.get_linewidth() == 2 or line.get_marker() == 'D']


def test_many_series_have_a_panel_each_with_its_band_and_colours_that_stand_out_in_the_light_and_the_dark() -> None:
    groups = {f'er(0.{i})': [row(f'er(0.{i})', seed, 40.0 + i + seed) for seed in (1, 2, 3)] for i in range(1, 10)}
    picture, = (one for one in draw_pictures(groups, {}) if one.title == 'Error distribution of each series')
    assert len(picture.panels) == 9 and 'Bands' in picture.note
    for series in groups:
        axes = distributions_figure(groups, of=series).axes[0]
        band, = axes.collections
        own, = (line for line in axes.get_lines() if line.get_label() == series)
        errors = np.array(sorted(100 - one['top1'] for one in groups[series]))
        assert axes.get_title() == series and set(map(float, own.get_xdata())) == set(errors)
        assert band.get_datalim(axes.transData).x0 == errors[0] and band.get_datalim(axes.transData).x1 == errors[-1]
    few = dict(list(groups.items())[:6])
    assert len(next(one for one in draw_pictures(few, {}) if 'distribution' in one.title).panels) == 2  # and the key

    def luminance(colour: str) -> float:  # of WCAG 2.2
        parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    colours = {str(look['color']) for look in plots._styles(groups).values()}
    assert len(colours) == 9
    for colour in colours:
        assert 1.05 / (luminance(colour) + 0.05) > 3 and (luminance(colour) + 0.05) / (luminance(DARK.paper) + 0.05) > 3


def test_networks_at_chance_say_nothing_of_damage_or_node_operations(tmp_path: Path) -> None:
    damage = {'images': 300, 'top1': 10.0, 'nodes': [['conv3', node, 1 + node % 3, 1.0 + node] for node in range(8)],
              'edges': []}
    rows = [row(f'er(0.{i}) {operation}', 1, 10.0 + 0.1 * i, graph=f'er(0.{i})', node_op=operation, classes=10,
                damage=damage) for i in range(1, 6) for operation in ('sep_conv', 'conv')]
    folder = write(tmp_path, rows)
    assert 'Mean loss' not in report_table(folder) and 'removed node' not in report_table(folder)
    titles = {picture.title for picture in draw_pictures({one['series']: [one] for one in rows}, {}, 10)}
    assert not [title for title in titles if 'damage' in title or 'Node operations' in title]
    learned = [{**one, 'top1': 50.0} for one in rows if one['series'].startswith('er(0.1)')]
    text = report_table(write(tmp_path, [*rows[2:], *learned]))
    assert 'Mean loss' in text and '8 networks at chance are left out' in text
    groups = {one['series']: [one] for one in [*rows[2:], *learned]}
    assert 'Node operations (Figure 6)' in {picture.title for picture in draw_pictures(groups, {}, 10)}


def test_trainings_of_the_only_wiring_so_far_are_drawn_as_points_and_not_as_a_distribution() -> None:
    def drawn(to_come: list[str], *wirings: int) -> bool:
        rows = [row('er(0.2)', seed, 50.0 + training, graph_seed=seed, training_seed=training, id=f'{seed}-{training}')
                for seed in wirings for training in (1, 2, 3)]
        pictures = {picture.title for picture in draw_pictures({'er(0.2)': rows}, {}, to_come=to_come)}
        assert 'top-1 (%) by series' in pictures
        return 'Error distribution of each series' in pictures

    assert not drawn(['er(0.2)'], 1)
    assert drawn([], 1) and drawn([], 1, 2)


def test_the_distribution_is_of_errors_and_rises_by_one_network_at_each() -> None:
    rows = [row('er(0.2)', seed, top1) for seed, top1 in enumerate((70.0, 74.0, 71.5, 71.5), 1)]
    errors, shares = error_distribution(rows)
    # Two trainings of one wiring are one of its population.
    assert error_distribution([*rows, row('er(0.2)', 4, 73.5)])[0] == [26, 27.5, 28.5, 30]
    for error in (25.9, 26.0, 27.0, 28.5, 29.9, 30.0, 31.0):  # from the definition
        share = sum(100 - one['top1'] <= error for one in rows) / 4
        assert max((s for e, s in zip(errors, shares, strict=True) if e <= error), default=0.0) == share
    axes, = distributions_figure({'er(0.2)': rows}).axes
    line, = axes.get_lines()
    assert line.get_drawstyle() == 'steps-post' and 'error' in axes.get_xlabel()
    drawn = [tuple(map(float, point)) for point in line.get_xydata()]
    assert drawn == [(26, 0), (26, 0.25), (28.5, 0.5), (28.5, 0.75), (30, 1)]
    filled, = axes.collections
    corners = {(round(float(x), 6), round(float(y), 6)) for path in filled.get_paths() for x, y in path.vertices}
    assert {(26, round(0.25 + band(4), 6)), (30, round(1 - band(4), 6))} <= corners


def test_no_code_of_a_file_that_the_results_name_is_run(tmp_path: Path) -> None:
    (tmp_path / 'own.py').write_text(f"open({str(tmp_path / 'run')!r}, 'w').close()\n")
    graphs = wiring('ws(4,0.75)', 1)
    data = [graph.to_dict() for graph in graphs]
    of_their_own = row('lattice(2)', 1, 55.0, graphs=data, wiring=graphs_sha256(graphs))
    altered = row('moebius(2)', 1, 55.0, graphs=data, wiring='0' * 64)
    folder = write(tmp_path / 'study', [of_their_own, altered], generators=str(tmp_path / 'own.py'),
                   recipe=str(tmp_path / 'own.py'))
    assert cli.main(['study', 'report', str(folder), '--html', str(tmp_path / 'page.html')]) == 0
    assert not (tmp_path / 'run').exists()
    # The graphs come from the row, where they are those of its sha256.
    page = (tmp_path / 'page.html').read_text(encoding='utf-8')
    assert 'Graphs of lattice(2), seed 1' in page and 'Graphs of moebius(2)' not in page


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>|`$x^$ \x1b[31m\u202e_'


def hostile_study(folder: Path) -> Path:
    """Every text that a file of results can hold says something to a browser, a terminal, Markdown or matplotlib."""
    rows = [row(HOSTILE + str(i), 1, 50.0 + i, graph='er(0.2)', id=HOSTILE + str(i), node_op=operation, classes=10,
                measures={'depth': 3.0 + i, 'degree': 2.0}, provenance={'torch': HOSTILE, HOSTILE: HOSTILE},
                damage=damage([(1, 2.0), (2, 3.0)], [(1, 1.0)]), host=HOSTILE, eval_sizes={HOSTILE: {'top1': 1.0}})
            for i, operation in enumerate(('sep_conv', 'conv', HOSTILE))]
    rows.append({**row('_' + HOSTILE, 1, 49.0, graph=HOSTILE, wiring=HOSTILE), 'model': HOSTILE})
    rows.append(failed(HOSTILE, 2, HOSTILE))
    return write(folder, rows, title=HOSTILE, notes=HOSTILE, paper={HOSTILE + '0': HOSTILE}, graphs=[HOSTILE],
                 node_ops=[HOSTILE], models=[HOSTILE], recipe=HOSTILE, data=HOSTILE, generators=HOSTILE,
                 settings={HOSTILE: HOSTILE}, detection={})


def test_a_hostile_file_of_results_is_only_words(tmp_path: Path) -> None:
    folder = hostile_study(tmp_path / 'study')
    write_html(folder, tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text(encoding='utf-8')

    class Elements(HTMLParser):
        seen: dict[str, int] = {}
        attributes: set[str] = set()

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.seen[tag] = self.seen.get(tag, 0) + 1
            self.attributes.update(name for name, _ in attrs)

    parser = Elements()
    parser.feed(page)
    assert not {'img', 'iframe', 'foreignobject', 'a'} & parser.seen.keys()
    # The one script is the page's own, by its hash; beside it are data that cannot end their element.
    script = page[page.rindex('<script>') + 8:page.rindex('</script>')]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.unescape(page) and parser.seen['script'] == 2
    assert script == (ROOT / 'randwire_zoo' / 'studies' / 'report.js').read_text(encoding='utf-8')
    data = page[page.index('id="networks">') + 14:]
    assert json.loads(data[:data.index('</script>')])[0]['id'].startswith('"><script>alert(1)')
    assert not [name for name in parser.attributes if name.startswith('on') or name == 'src']
    # It is there to be read, `$x^$` in pictures too, and no id of the page is made of it.
    assert page.count('$x^$') > 10 and '&lt;script&gt;' in page
    figures = page[page.index('<figure>'):page.rindex('</figure>')]
    assert '$x^$' in figures and 'alert' not in ' '.join(part.split('"')[0] for part in page.split(' id="')[1:])
    for style in ('simple', 'github'):
        text = report_table(folder, style)
        assert '\x1b' not in text and '\u202e' not in text and '\ufffd' in text
        if style == 'github':
            assert '<script' not in text and len({line.replace('\\|', '').count('|') for line in text.splitlines()
                                                  if line.startswith('| ')}) <= 4


@pytest.mark.parametrize('changes', [
    {'top1': 'x'}, {'macs': None}, {'series': 5}, {'damage': {'nodes': [['a', 1, 'x', 2.0]]}}, {'history': [1]},
    {'damage': {'nodes': [['a', [1], 2, 2.0]]}}, {'damage': {'edges': [[['a'], 1, 2, 2, 2.0]]}}, {'earlier': 7},
    {'measures': {'depth': 'x'}}, {'channels': 'x'}, {'seconds': 'x'}, {'training_seed': 'x'}, {'graphs': 7},
    {'eval_sizes': {'32': 5}}, {'kwargs': []}, {'top1': float('nan')}, {'status': 'failed'}], ids=str)
def test_a_row_that_is_none_costs_itself_only(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path, [{**row('er(0.2)', 1, 50.0), **changes}, row('er(0.2)', 2, 51.0)])
    text = report_table(folder, 'github')
    assert '1 of 1 networks' in text and 'Of results.jsonl: line 2 is no row of a network.' in text


def test_graphs_of_any_size_are_not_drawn(tmp_path: Path) -> None:
    rows = [row('er(0.2)', 1, 50.0, graphs=[{'num_nodes': 10 ** 9, 'edges': []}]),
            row('ba(2)', 1, 50.0, kwargs={'num_nodes': 10 ** 9, 'graph': 'ba(2)', 'seed': 1}),
            row('ws(4,0)', 1, 50.0, graphs=[{'num_nodes': 3, 'edges': [[2, 1]]}]),
            row('ws(4,0.5)', 1, 50.0, kwargs={'num_nodes': 'x', 'graph': [], 'seed': {}})]
    write_html(write(tmp_path / 'study', rows), tmp_path / 'page.html')
    assert 'Graphs of' not in (tmp_path / 'page.html').read_text(encoding='utf-8')


def test_what_the_rows_were_made_with_is_said(tmp_path: Path) -> None:
    made = {'date': '2026-01-02T03:04:05+00:00', 'torch': '2.14.1', 'kernels': 'native', 'threads': 1, 'commit': None,
            'processor': '2 × X'}
    rows = [row('er(0.2)', 1, 50.0, provenance=made),
            row('er(0.2)', 2, 50.0, provenance={**made, 'torch': '2.15.0', 'date': '2026-02-02'})]
    text = report_table(write(tmp_path, [*rows, row('er(0.2)', 3, 51.0)]))
    assert ('Made 2026-01-02 to 2026-02-02 with torch 2.14.1 and 2.15.0, processor 2 × X, kernels native, threads 1; '
            '1 rows do not say') in text


def study_of_everything(folder: Path) -> Path:
    """Rows with everything that a picture can show, of numbers made up here; one network failed."""
    rng = random.Random(0)
    rows = []
    for i, graph in enumerate(('er(0.2)', 'ba(2)', 'ws(4,0.75)', 'ws(4,0)')):
        for operation in NODE_OPS:
            for seed in range(1, 4 if operation == 'sep_conv' else 2):
                top1 = 60 + 2 * i - 3 * NODE_OPS.index(operation) + rng.gauss(0, 0.7)
                more: dict[str, Any] = {}
                if operation == 'sep_conv':
                    graphs = wiring(graph, seed)
                    more['damage'] = {'images': 300, 'top1': top1, 'nodes': [
                        [f'conv{3 + k}', node, len(g.successors[node]), 2 + 3 * rng.random() * len(g.successors[node])]
                        for k, g in enumerate(graphs) for node in range(8)], 'edges': [
                        [f'conv{3 + k}', *edge, len(g.predecessors[edge[1]]), 3 * rng.random()]
                        for k, g in enumerate(graphs) for edge in g.edges]}
                measures = {'degree': 3 + i + rng.random(), 'path length': 2.5 - 0.2 * i + rng.random() / 3,
                            'clustering': 0.1 * i + rng.random() / 8, 'edges': 16.0}
                history = [[epoch, 2.3 / epoch ** 0.3 + rng.random() / 20, top1 - 20 / epoch] for epoch in range(1, 9)]
                rows.append(row(f'{graph} {operation}', seed, top1, graph=graph, node_op=operation, measures=measures,
                                proxies={'synflow': rng.random(), 'naswot': rng.random()}, history=history,
                                eval_sizes={'64': {'top1': top1 + 1, 'top5': 95.0}}, **more))
    hand_made = row('mobilenetv2_035', 1, 58.3, graph=None, eval_sizes={'64': {'top1': 57.0, 'top5': 95.0}})
    lost = failed('ba(2) conv', 2, 'its process ended 2 times & <left> no result')
    return write(folder, [*rows, hand_made, {**lost, 'graph': 'ba(2)', 'node_op': 'conv'}],
                 title='Everything <at once>', notes='Figures of no study: they show every picture & its labels.',
                 eval_sizes=[64], paper={'er(0.2) sep_conv': 62.5, 'ws(4,0.75) sep_conv': '73.8 ± 0.2'}, damage=300,
                 graphs=['ws(4,0.75)', 'er(0.2)', 'ba(2)', 'ws(4,0)'], node_ops=list(NODE_OPS))


TITLES = ['top-1 (%) by series', 'Error distribution of each series', 'Accuracy against graph measures',
          'Accuracy over clustering and path length', 'Accuracy against what the first weights predict',
          'Training curves', 'Graph damage (Figure 5): loss in top-1 when a node or an edge is removed',
          'Node operations (Figure 6)',
          'Graphs of er(0.2) sep_conv, seed 1', 'Graphs of ba(2) sep_conv, seed 1',
          'Graphs of ws(4,0.75) sep_conv, seed 1', 'Graphs of ws(4,0) sep_conv, seed 1']


@pytest.fixture(scope='module')
def page_of_everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = study_of_everything(tmp_path_factory.mktemp('everything'))
    assert cli.main(['study', 'report', str(folder), '--html', str(folder / 'page.html')]) == 0
    return folder / 'page.html'


def test_the_page_is_complete_in_one_file(page_of_everything: Path) -> None:
    assert 'Everything <at once>' in report_table(page_of_everything.parent)
    page = page_of_everything.read_text(encoding='utf-8')
    assert [title for title in TITLES if f'<h2>{title}</h2>' not in page] == []
    assert page.count('<figure>') == len(TITLES)
    assert '<title>Everything &lt;at once&gt;</title>' in page and 'ended 2 times &amp; &lt;left&gt; no' in page
    assert '73.8 ± 0.2' in page and '25 of 26 networks' in page and '58.30' in page
    # Names are sorted as such: the page says which columns have them.
    named = re.findall(r'<th scope="col" class="words">([^<]*)</th>', page)
    assert [named.count(name) for name in ('series', 'first', 'second', 'measure', 'network', 'n', 'C')] == [
        6, 3, 3, 1, 1, 0, 0]
    assert 'src=' not in page and '@import' not in page
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids)), 'two pictures share an id'


def test_there_is_no_page_without_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / 'study', [failed('ba(5)', 1, 'ValueError: x')])
    assert cli.main(['study', 'report', str(folder), '--html', str(tmp_path / 'page.html')]) == 2
    assert 'no network that is done' in capsys.readouterr().err
    assert not (tmp_path / 'page.html').exists()
    assert cli.main(['study', 'report', str(tmp_path)]) == 2
    assert 'no results at' in capsys.readouterr().err


def test_a_single_network_and_gaps_still_make_a_page(tmp_path: Path) -> None:
    folder = write(tmp_path / 'one', [row('ws(4,0.75)', 1, 55.0, history=[[1, 2.0, 55.0]])])
    write_html(folder, tmp_path / 'one.html')
    page = (tmp_path / 'one.html').read_text(encoding='utf-8')
    assert page.count('<figure>') == 2 and 'distribution' not in page  # one network has none
    # Node operations of which one network failed: what both have is correlated, and the rest drawn.
    rows = [row(f'{graph} {operation}', 1, 50.0 + i + 3 * j, graph=graph, node_op=operation)
            for i, graph in enumerate(('er(0.2)', 'ba(2)', 'ws(4,0)', 'ws(4,0.75)'))
            for j, operation in enumerate(('sep_conv', 'conv')) if (i, j) not in ((0, 1), (3, 0))]
    write_html(write(tmp_path / 'gaps', rows), tmp_path / 'gaps.html')
    page = (tmp_path / 'gaps.html').read_text(encoding='utf-8')
    operations = page[page.index('Node operations (Figure 6)'):page.index('<h2>Graphs of')]
    assert 'nan' not in operations.lower() and 'ws(4,0.75)' in operations


def test_a_browser_shows_every_picture_and_asks_the_network_for_nothing(
        page_of_everything: Path, tmp_path: Path) -> None:
    playwright = pytest.importorskip('playwright.sync_api', reason='needs the package playwright')
    chromium = shutil.which('chromium') or shutil.which('google-chrome')
    if chromium is None:
        pytest.skip('needs chromium or google-chrome on the PATH')
    page_path = page_of_everything
    said: list[str] = []
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=BROWSER)
        page = browser.new_page(viewport={'width': 1200, 'height': 900})
        page.on('console', lambda message: said.append(message.text))
        page.on('pageerror', lambda error: said.append(str(error)))
        page.on('request', lambda request: said.append(request.url))
        page.goto(page_path.as_uri())
        figures = page.locator('figure')
        boxes = [figures.nth(i).locator('svg').first.bounding_box() for i in range(figures.count())]
        hidden = page.evaluate('''() => [...document.querySelectorAll('figure svg use')]
            .filter(use => !document.getElementById(use.getAttribute('xlink:href').slice(1))).length''')
        if picture := os.environ.get('RANDWIRE_ZOO_SCREENSHOT'):
            page.screenshot(path=picture, full_page=True)
        hostile_path = tmp_path / 'hostile.html'
        write_html(hostile_study(tmp_path / 'hostile'), hostile_path)
        page.on('dialog', lambda dialog: said.append('a script ran'))
        page.goto(hostile_path.as_uri())
        assert page.locator('img').count() == 0
        page.emulate_media(color_scheme='dark')
        page.goto(page_path.as_uri())
        dark = page.evaluate('getComputedStyle(document.body).backgroundColor')
        # A click on a head sorts, a point shows its network and its wiring.
        table = page.locator('table').first
        column = table.locator('th').all_inner_texts().index('top-1 (%)')
        table.locator('th').nth(column).click()
        ordered = [float(text.split()[0]) for text in table.locator(f'td:nth-child({column + 1})').all_inner_texts()]
        tests = page.locator('table', has=page.locator('th', has_text='second')).first
        tests.locator('th').nth(1).click()
        seconds = tests.locator('td:nth-child(2)').all_inner_texts()
        page.locator('[id*="-network-0"]').first.hover(force=True)
        card = page.locator('#card')
        shown = card.inner_text(), card.locator('svg').count(), card.locator('circle').count()
        page.mouse.move(2, 2)
        hidden_again = card.is_hidden()
        page.set_viewport_size({'width': 400, 'height': 800})
        narrow = page.evaluate('document.documentElement.scrollWidth')
        browser.close()
    assert dark == 'rgb(21, 24, 29)' and ordered == sorted(ordered, reverse=True) and len(ordered) > 5
    # By the letters of the names: by the numbers in them, er(0.2) would be the last.
    assert [name[:2] for name in seconds] == ['ws', 'ws', 'ws', 'er', 'ba', 'ba']
    assert 'ws-4-0-75--sep-conv-s1' in shown[0] and shown[1:] == (3, 24) and hidden_again
    assert len(boxes) == len(TITLES) and all(box and box['width'] > 300 and box['height'] > 100 for box in boxes), boxes
    # The page itself, and its empty icon.
    assert [line for line in said if line not in (page_path.as_uri(), hostile_path.as_uri(), 'data:,')] == []
    assert hidden == 0, 'a picture refers to an id that is not there'
    assert narrow <= 400, 'the page is wider than a narrow window'


def test_the_report_of_a_study_says_what_was_studied(tmp_path: Path) -> None:
    folder = write(tmp_path / 'study', [row('ws(4,0.75)', 1, 55.0)], settings={'epochs': 2})
    write_html(folder, tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text(encoding='utf-8')
    told = yaml.safe_load(page.split('<pre>')[1].split('</pre>')[0].replace('&#39;', "'"))
    assert told['settings'] == {'epochs': 2} and told['recipe'] == 'cifar10/study' and 'damage' not in told
