"""A study's report: the table against figures worked out by hand, and the page as a browser shows it."""
from __future__ import annotations

import json
import math
import os
import random
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from randwire_zoo import cli
from randwire_zoo.graphs import parse_graph_model, sample_graphs
from randwire_zoo.network import NODE_OPS
from randwire_zoo.studies.analysis import pearson
from randwire_zoo.studies.report import report_table, write_html
from randwire_zoo.studies.results import read_results
from randwire_zoo.studies.study import load_study

ROOT = Path(__file__).resolve().parents[1]

SPEC: dict[str, Any] = {
    'title': 'By hand', 'recipe': 'cifar10/study', 'data': '', 'graphs': [], 'seeds': [1, 2, 3], 'node_ops': [],
    'models': [], 'model': {'num_nodes': 8}, 'channels': None, 'macs': 1e6, 'settings': {}, 'eval_sizes': [],
    'damage': 0, 'detection': {}, 'generators': '', 'paper': {}, 'notes': ''}
BROWSER = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
           '--disable-background-networking', '--disable-component-update', '--disable-sync']


def row(series: str, seed: int, top1: float, **more: Any) -> dict[str, Any]:
    graph = more.pop('graph', series)
    operation = more.pop('node_op', 'sep_conv') if graph else None
    kwargs = {'num_nodes': 8, 'graph': graph, 'seed': seed, 'node_op': operation, 'channels': 12} if graph else {}
    return {'id': ''.join(c if c.isalnum() else '-' for c in f'{series} s{seed}'), 'series': series,
            'model': 'randwire' if graph else series, 'kwargs': kwargs, 'graph': graph, 'seed': seed,
            'node_op': operation, 'channels': 12 if graph else None, 'macs': 1_234_000, 'params': 50_000 + seed,
            'status': 'done', 'top1': top1, 'top5': 90.0, 'loss': 1.0, 'epochs': 2, 'seconds': 90.0,
            'measures': {}, 'history': [[1, 2.0, top1 - 5], [2, 1.5, top1]], **more}


def failed(series: str, seed: int, reason: str) -> dict[str, Any]:
    kept = row(series, seed, 0.0)
    for name in ('top1', 'top5', 'loss', 'epochs', 'history', 'measures', 'seconds'):
        del kept[name]
    return {**kept, 'status': 'failed', 'reason': reason}


def write(folder: Path, rows: list[dict[str, Any]], **spec: Any) -> Path:
    header = {'study': spec.get('title', SPEC['title']), 'sha256': '0' * 64, 'randwire_zoo': '0', 'spec': {
        **SPEC, **spec}}
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
    found = cells(table)
    assert found['series'] == ['networks', 'C', 'params, M', 'multiply-adds, M', 'top-1 (%)', 'top-5 (%)', 'paper']
    # (70 + 71 + 75) / 3, and sqrt((4 + 1 + 9) / 2)
    assert found['ws(4,0.75)'] == ['3', '12', '0.050 ± 0.000', '1.23 ± 0.00', '72.00 ± 2.65', '90.00 ± 0.00',
                                   '74.7 ± 0.25']
    assert found['er(0.2)'] == ['1 of 2', '12', '0.050 ± 0.000', '1.23 ± 0.00', '60.00', '90.00', '–']
    assert found['ba(5)'][0] == '0 of 1' and found['ba(5)'][4:] == ['–', '–', '–']
    assert found['resnet18'][:2] == ['1', '–']
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
    assert found['ba(5)'][-2:] == ['50.50 ± 0.71', '54.00 ± 2.83']

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
    assert found['series'][4:] == [*names, 'paper']
    assert found['resnet50'] == ['2', '–', '–', '–', '31.5 ± 2.1', '32.5 ± 2.1', '33.5 ± 2.1', '34.5 ± 2.1',
                                 '35.5 ± 2.1', '36.5 ± 2.1', '37.1']
    write_html(folder, tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text(encoding='utf-8')
    assert 'AP by series' in page and page.count('<figure>') == 2 and '31.50' in page


def test_correlation_is_pearsons_and_none_where_it_has_no_meaning() -> None:
    x, y = [1.0, 2.0, 4.0, 7.0], [3.0, 1.0, 5.0, 6.0]
    mx, my = 3.5, 3.75
    expected = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / math.sqrt(
        sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))
    assert pearson(x, y) == pytest.approx(expected)
    assert pearson([1.0, 2.0], [1.0, 2.0]) is None and pearson([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None


def test_series_stand_in_the_order_of_the_study(tmp_path: Path) -> None:
    rows = [row(f'{graph} {operation}', seed, 50.0 + seed, graph=graph, node_op=operation)
            for graph in ('ba(2)', 'er(0.2)') for operation in ('sep_conv', 'conv') for seed in (3, 1)]
    random.Random(0).shuffle(rows)
    text = report_table(write(tmp_path, [row('resnet18', 1, 60.0, graph=None), *rows], models=['resnet18'],
                              graphs=['er(0.2)', 'ba(2)'], node_ops=['conv', 'sep_conv']), 'github')
    assert list(cells(text[:text.index("Pearson's r")]))[2:] == [
        'er(0.2) conv', 'ba(2) conv', 'er(0.2) sep_conv', 'ba(2) sep_conv', 'resnet18']


def test_correlations_are_those_of_numpy(tmp_path: Path) -> None:
    rng = random.Random(1)
    names = ('degree', 'path length', 'clustering', 'depth')
    rows = [row(f'{graph} {operation}', seed, rng.uniform(30, 60), graph=graph, node_op=operation,
                measures={name: rng.uniform(1, 4) for name in names})
            for graph in ('er(0.2)', 'ba(2)', 'ws(4,0.75)') for operation in ('sep_conv', 'conv') for seed in (1, 2)]
    text = report_table(write(tmp_path, [*rows, failed('er(0.2) conv', 3, 'ValueError: x')]), 'github')
    found = cells(text[text.index("Pearson's r of the networks"):])
    for operation in ('sep_conv', 'conv'):
        same = [one for one in rows if one['node_op'] == operation]
        expected = [np.corrcoef([one['measures'][name] for one in same], [one['top1'] for one in same])[0, 1]
                    for name in names]
        assert cells(text[:text.index('between node operations')])[operation] == [
            '6', *(f'{r:.2f}' for r in expected)]
    means = {operation: [np.mean([one['top1'] for one in rows if one['series'] == f'{graph} {operation}'])
                         for graph in ('er(0.2)', 'ba(2)', 'ws(4,0.75)')] for operation in ('sep_conv', 'conv')}
    between = f'{np.corrcoef(means["sep_conv"], means["conv"])[0, 1]:.2f}'
    assert found['conv'] == [between, ''] and found['sep_conv'] == ['', between]


def test_losses_are_averaged_by_degree_over_all_networks_of_a_series(tmp_path: Path) -> None:
    def damage(*nodes: tuple[int, float]) -> dict[str, Any]:
        return {'images': 300, 'top1': 50.0, 'edges': [],
                'nodes': [['conv3', i, degree, loss] for i, (degree, loss) in enumerate(nodes)]}

    rows = [row('ba(2)', 1, 50.0, damage=damage((0, 1.0), (0, 2.0), (5, 4.0), (12, 20.0))),
            row('ba(2)', 2, 51.0, damage=damage((0, 6.0), (6, 5.0), (11, 10.0))), row('resnet18', 1, 60.0, graph=None)]
    text = report_table(write(tmp_path, rows), 'github')
    assert "a removed edge's target" not in text
    found = cells(text[text.index("by a removed node's out-degree"):])
    assert found['series'] == ['0', '5–6', '10+', 'r']
    r = np.corrcoef([0, 0, 5, 12, 0, 6, 11], [1, 2, 4, 20, 6, 5, 10])[0, 1]
    assert found['ba(2)'] == ['3.00 (3)', '4.50 (2)', '15.00 (2)', f'{r:.2f}']
    assert 'resnet18' not in found


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
                    wiring = sample_graphs(parse_graph_model(graph), (8,) * 3, seed)
                    more['damage'] = {'images': 300, 'top1': top1, 'nodes': [
                        [f'conv{3 + k}', node, len(g.successors[node]), 2 + 3 * rng.random() * len(g.successors[node])]
                        for k, g in enumerate(wiring) for node in range(8)], 'edges': [
                        [f'conv{3 + k}', *edge, len(g.predecessors[edge[1]]), 3 * rng.random()]
                        for k, g in enumerate(wiring) for edge in g.edges]}
                measures = {'degree': 3 + i + rng.random(), 'path length': 2.5 - 0.2 * i + rng.random() / 3,
                            'clustering': 0.1 * i + rng.random() / 8, 'edges': 16.0}
                history = [[epoch, 2.3 / epoch ** 0.3 + rng.random() / 20, top1 - 20 / epoch] for epoch in range(1, 9)]
                rows.append(row(f'{graph} {operation}', seed, top1, graph=graph, node_op=operation, measures=measures,
                                history=history, eval_sizes={'64': {'top1': top1 + 1, 'top5': 95.0}}, **more))
    hand_made = row('mobilenetv2_035', 1, 58.3, graph=None, eval_sizes={'64': {'top1': 57.0, 'top5': 95.0}})
    lost = failed('ba(2) conv', 2, 'its process ended 2 times & <left> no result')
    return write(folder, [*rows, hand_made, {**lost, 'graph': 'ba(2)', 'node_op': 'conv'}],
                 title='Everything <at once>', notes='Figures of no study: they show every picture & its labels.',
                 eval_sizes=[64], paper={'er(0.2) sep_conv': 62.5, 'ws(4,0.75) sep_conv': '73.8 ± 0.2'}, damage=300,
                 graphs=['er(0.2)', 'ba(2)', 'ws(4,0.75)', 'ws(4,0)'], node_ops=list(NODE_OPS))


TITLES = ['top-1 (%) by series: mean and standard deviation over all seeds', 'Error distribution of each series',
          'Accuracy against graph measures', 'Training curves',
          'Graph damage (Figure 5): loss in top-1 when a node or an edge is removed', 'Node operations (Figure 6)',
          'Graphs of er(0.2) sep_conv, seed 1', 'Graphs of ba(2) sep_conv, seed 1',
          'Graphs of ws(4,0.75) sep_conv, seed 1', 'Graphs of ws(4,0) sep_conv, seed 1']


def test_the_page_is_complete_in_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = study_of_everything(tmp_path / 'study')
    assert cli.main(['study', 'report', str(folder), '--html', str(tmp_path / 'page.html')]) == 0
    assert 'Everything <at once>' in capsys.readouterr().out
    page = (tmp_path / 'page.html').read_text(encoding='utf-8')
    assert [title for title in TITLES if f'<h2>{title}</h2>' not in page] == []
    assert page.count('<figure>') == len(TITLES)
    assert '<title>Everything &lt;at once&gt;</title>' in page and 'ended 2 times &amp; &lt;left&gt; no' in page
    assert '73.8 ± 0.2' in page and '25 of 26 networks' in page and '58.30' in page
    assert 'src=' not in page and '@import' not in page
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids)), 'two pictures share an id'


@pytest.mark.parametrize('path', sorted((ROOT / 'docs' / 'studies').glob('*.jsonl')), ids=lambda path: path.stem)
def test_the_document_says_what_the_results_say(path: Path) -> None:
    spec = read_results(path)[0]['spec']
    ours = asdict(load_study(path.stem))
    assert [name for name in spec if name not in ('title', 'notes', 'paper') and spec[name] != ours[name]] == []
    document = (ROOT / 'docs' / 'results.md').read_text(encoding='utf-8').splitlines()
    lines = [line for line in report_table(path, 'github').splitlines() if line.startswith('|')]
    assert len(lines) > 2 and [line for line in lines if line not in document] == []


def test_there_is_no_page_without_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / 'study', [failed('ba(5)', 1, 'ValueError: x')])
    assert cli.main(['study', 'report', str(folder), '--html', str(tmp_path / 'page.html')]) == 2
    assert 'no network that is done' in capsys.readouterr().err
    assert not (tmp_path / 'page.html').exists()
    assert cli.main(['study', 'report', str(tmp_path)]) == 2
    assert 'no results at' in capsys.readouterr().err


def test_a_single_network_and_a_lost_generator_still_make_a_page(tmp_path: Path) -> None:
    folder = write(tmp_path / 'one', [row('ws(4,0.75)', 1, 55.0, history=[[1, 2.0, 55.0]])])
    write_html(folder, tmp_path / 'one.html')
    assert (tmp_path / 'one.html').read_text(encoding='utf-8').count('<figure>') == 3
    # Node operations of which one network failed: what both have is correlated, and the rest drawn.
    rows = [row(f'{graph} {operation}', 1, 50.0 + i + 3 * j, graph=graph, node_op=operation)
            for i, graph in enumerate(('er(0.2)', 'ba(2)', 'ws(4,0)', 'ws(4,0.75)'))
            for j, operation in enumerate(('sep_conv', 'conv')) if (i, j) not in ((0, 1), (3, 0))]
    write_html(write(tmp_path / 'gaps', rows), tmp_path / 'gaps.html')
    page = (tmp_path / 'gaps.html').read_text(encoding='utf-8')
    operations = page[page.index('Node operations (Figure 6)'):page.index('<h2>Graphs of')]
    assert 'nan' not in operations.lower() and 'ws(4,0.75)' in operations

    # Results that were copied from the machine that has the generators.
    known = row('ws(4,0.75)', 1, 55.0)
    other = row('lattice(2)', 1, 56.0)
    write_html(write(tmp_path / 'moved', [known, other], generators='/nowhere/own.py'), tmp_path / 'moved.html')
    page = (tmp_path / 'moved.html').read_text(encoding='utf-8')
    assert 'Graphs of ws(4,0.75)' in page and 'Graphs of lattice(2)' not in page and 'lattice(2)' in page


def test_a_browser_shows_every_picture_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
    playwright = pytest.importorskip('playwright.sync_api', reason='needs the package playwright')
    chromium = shutil.which('chromium') or shutil.which('google-chrome')
    if chromium is None:
        pytest.skip('needs chromium or google-chrome on the PATH')
    page_path = tmp_path / 'page.html'
    write_html(study_of_everything(tmp_path / 'study'), page_path)
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
            .filter(use => !document.querySelector(use.getAttribute('xlink:href').replace(/\\./g, '\\\\.'))).length''')
        if picture := os.environ.get('RANDWIRE_ZOO_SCREENSHOT'):
            page.screenshot(path=picture, full_page=True)
        page.set_viewport_size({'width': 400, 'height': 800})
        narrow = page.evaluate('document.documentElement.scrollWidth')
        browser.close()
    assert len(boxes) == len(TITLES) and all(box and box['width'] > 300 and box['height'] > 100 for box in boxes), boxes
    # The page itself, and its empty icon.
    assert [line for line in said if line not in (page_path.as_uri(), 'data:,')] == []
    assert hidden == 0, 'a picture refers to an id that is not there'
    assert narrow <= 400, 'the page is wider than a narrow window'


def test_the_report_of_a_study_says_what_was_studied(tmp_path: Path) -> None:
    folder = write(tmp_path / 'study', [row('ws(4,0.75)', 1, 55.0)], settings={'epochs': 2})
    write_html(folder, tmp_path / 'page.html')
    page = (tmp_path / 'page.html').read_text(encoding='utf-8')
    told = yaml.safe_load(page.split('<pre>')[1].split('</pre>')[0].replace('&#39;', "'"))
    assert told['settings'] == {'epochs': 2} and told['recipe'] == 'cifar10/study' and 'damage' not in told
