"""Pictures hold what they shall show: counted in the SVG's elements, measured in the PNG's pixels."""
from __future__ import annotations

import math
import random
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.utils.summary import trim_summary, update_summary

from randwire_zoo.cli import main
from randwire_zoo.drawing import (
    DARK,
    LIGHT,
    Theme,
    draw,
    draw_curves,
    draw_detection_curves,
    draw_graphs,
    draw_predictions,
    layered_layout,
    svg_text,
)
from randwire_zoo.frozen import load_graphs
from randwire_zoo.graphs import Graph, parse_graph_model, sample_graphs

SVG = '{http://www.w3.org/2000/svg}'
HEADER = 'epoch,train_loss,eval_loss,eval_top1,eval_top5,lr'


def groups(path: Path) -> dict[str, ET.Element]:
    return {group.get('id', ''): group for group in ET.parse(path).iter(f'{SVG}g')}


def texts(path: Path) -> list[str]:
    return [''.join(text.itertext()).strip() for text in ET.parse(path).iter(f'{SVG}text')]


def fill(group: ET.Element) -> str:
    return next(group.iter(f'{SVG}path')).get('style', '')


@pytest.mark.parametrize('name', ['randwire_ws_c109', 'randwire_ba_small_s1'])
def test_an_svg_has_every_node_and_edge_once_and_marks_inputs_blue_and_sinks_red(name: str, tmp_path: Path) -> None:
    graphs = load_graphs(name)
    stages = ['conv2', 'conv3', 'conv4', 'conv5'][-len(graphs):]
    draw_graphs(graphs, tmp_path / 'g.svg', title='a title', names=stages)
    drawn = groups(tmp_path / 'g.svg')
    for stage, graph in zip(stages, graphs, strict=True):
        reference = graph.to_networkx()
        assert {key for key in drawn if key.startswith(f'{stage}-node-')} == {
            f'{stage}-node-{node}' for node in reference}
        assert {key for key in drawn if key.startswith(f'{stage}-edge-')} == {
            f'{stage}-edge-{source}-{target}' for source, target in reference.edges}
        for node in reference:
            style = fill(drawn[f'{stage}-node-{node}'])
            assert (LIGHT.input in style) == (reference.in_degree(node) == 0)
            assert (LIGHT.output in style) == (reference.out_degree(node) == 0)
    shown = texts(tmp_path / 'g.svg')
    assert 'a title' in shown and set(stages) <= set(shown)
    assert f'N = {graphs[0].num_nodes}, {len(graphs[0].edges)} edges' in shown


def bezier(points: list[tuple[float, float]], count: int = 24) -> list[tuple[float, float]]:
    """Points along a curve of cubic pieces."""
    along = []
    for start in range(0, len(points) - 1, 3):
        a, b, c, d = points[start:start + 4]
        for t in (i / count for i in range(count + 1)):
            u = 1 - t
            along.append(tuple(u ** 3 * a[k] + 3 * u * u * t * b[k] + 3 * u * t * t * c[k] + t ** 3 * d[k]
                               for k in (0, 1)))
    return along


@pytest.mark.parametrize('model', ['ws(4,0.75)', 'er(0.2)', 'ba(5)', 'er(0.03)', 'er(0)', 'ws(2,0)'])
def test_no_two_nodes_touch_and_every_edge_goes_down_from_rim_to_rim_and_through_no_node(model: str) -> None:
    radius = 0.34
    for graph in sample_graphs(parse_graph_model(model), (32, 9, 6), seed=4):
        positions, curves = layered_layout(graph)
        assert sorted(positions) == list(range(graph.num_nodes))
        places = list(positions.values())
        for i, place in enumerate(places):
            assert all(math.dist(place, other) > 2.1 * radius for other in places[:i])
        assert set(curves) == set(graph.edges)
        for (source, target), curve in curves.items():
            assert positions[source][1] > positions[target][1] + 2 * radius
            assert len(curve) % 3 == 1
            assert math.dist(curve[0], positions[source]) < 1.3 * radius > math.dist(curve[-1], positions[target])
            others = [place for node, place in positions.items() if node not in (source, target)]
            assert all(math.dist(point, place) > 0.8 * radius for point in bezier(curve) for place in others)


def test_an_isolated_node_is_both_blue_and_red(tmp_path: Path) -> None:
    draw_graphs([Graph(1, ())], tmp_path / 'one.png')
    colours = {colour for _, colour in Image.open(tmp_path / 'one.png').convert('RGB').getcolors(1 << 20)}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in (LIGHT.input, LIGHT.output)} <= colours


def test_a_png_is_wider_than_high_for_three_stages_and_of_readable_size(tmp_path: Path) -> None:
    draw_graphs(load_graphs('randwire_ws_pico'), tmp_path / 'new' / 'pico.png')
    with Image.open(tmp_path / 'new' / 'pico.png') as picture:
        picture.load()
        assert picture.format == 'PNG'
        assert 800 < picture.width < 4000 and 400 < picture.height < picture.width
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['pico.png']


def test_the_same_graph_gives_the_same_svg(tmp_path: Path) -> None:
    graph = Graph(4, ((0, 1), (1, 2), (0, 3), (2, 3)))
    for name in 'ab':
        draw_graphs([graph], tmp_path / f'{name}.svg')
    assert (tmp_path / 'a.svg').read_bytes() == (tmp_path / 'b.svg').read_bytes()


def test_above_300_edges_all_stages_are_matrices_of_one_scale_below_2_megabytes(tmp_path: Path) -> None:
    graphs = sample_graphs(parse_graph_model('er(0.2)'), (16, 128), seed=1)
    assert len(graphs[0].edges) < 300 < len(graphs[1].edges)
    draw_graphs(graphs, tmp_path / 'g.svg', names=['a', 'b'])
    drawn = groups(tmp_path / 'g.svg')
    assert not any('-node-' in name or '-edge-' in name for name in drawn)
    sides = []
    for name, graph in zip('ab', graphs, strict=True):
        data = next(drawn[f'{name}-edges'].iter(f'{SVG}path')).get('d', '')
        corners = [(float(x), float(y)) for x, y in re.findall(r'M (\S+) (\S+)', data)]
        assert len(corners) == len(graph.edges)
        # Back from places to edges: columns are sources, rows are targets.
        columns, rows = sorted({x for x, _ in corners}), sorted({y for _, y in corners})
        cell = min(b - a for a, b in pairwise(columns))
        sides.append(cell)
        found = {(round((x - columns[0]) / cell), round((y - rows[0]) / cell)) for x, y in corners}
        first = min(source for source, _ in graph.edges), min(target for _, target in graph.edges)
        assert found == {(source - first[0], target - first[1]) for source, target in graph.edges}
    assert sides[0] == pytest.approx(sides[1], rel=1e-3)
    draw_graphs(sample_graphs(parse_graph_model('ws(4,0.75)'), (128,) * 3, 1), tmp_path / 'g.png')
    assert (tmp_path / 'g.png').stat().st_size < 2_000_000


def test_a_png_that_would_be_too_large_has_fewer_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = load_graphs('randwire_ws_pico')[:1]
    draw_graphs(graph, tmp_path / 'large.png')
    monkeypatch.setattr('randwire_zoo.drawing.themes.LARGEST_PNG', (tmp_path / 'large.png').stat().st_size - 1)
    draw_graphs(graph, tmp_path / 'small.png')
    with Image.open(tmp_path / 'large.png') as large, Image.open(tmp_path / 'small.png') as small:
        assert 0.7 < small.width / large.width < 0.9


def luminance(colour: str) -> float:
    """Relative luminance, as in WCAG 2."""
    parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize('theme', [LIGHT, DARK])
def test_colours_can_be_read_and_told_apart_in_grey(theme: Theme) -> None:
    from randwire_zoo.drawing.themes import ON_INPUT, ON_OUTPUT

    assert contrast(theme.ink, theme.paper) > 7 and contrast(theme.ink, theme.node) > 7
    assert contrast(theme.edge, theme.paper) > 4.5
    assert contrast(ON_INPUT, theme.input) > 4.5 and contrast(ON_OUTPUT, theme.output) > 4.5
    assert contrast(theme.input, theme.output) > 1.9 and contrast(theme.output, theme.paper) > 1.9
    assert all(contrast(colour, theme.paper) > 4 for colour in theme.runs)


def test_an_svg_turns_dark_with_its_reader_and_a_theme_stays(tmp_path: Path) -> None:
    """Every colour that the picture uses has its dark one in the rules, or is meant to stand on a coloured node."""
    draw_graphs(load_graphs('randwire_ws_pico'), tmp_path / 'auto.svg', title='a')
    draw_curves(write_summary(tmp_path), tmp_path / 'curves.svg')
    for name in ('auto', 'curves'):
        text = (tmp_path / f'{name}.svg').read_text()
        assert '@media (prefers-color-scheme: dark)' in text
        used = set(re.findall(r'(?:fill|stroke): (#[0-9a-f]{6})', text[text.index('</style>'):]))
        assert used and used <= {*vars(LIGHT).values(), *LIGHT.runs, '#fdfdfd', '#1b1e24'} - {LIGHT.runs}
    for theme in ('light', 'dark'):
        draw_graphs(load_graphs('randwire_ws_pico'), tmp_path / f'{theme}.svg', theme=theme)
        assert '@media' not in (tmp_path / f'{theme}.svg').read_text()
    assert DARK.paper in (tmp_path / 'dark.svg').read_text()
    with pytest.raises(ValueError, match="one of auto, light, dark, got 'sepia'"):
        draw_graphs([Graph(1, ())], tmp_path / 'x.svg', theme='sepia')


def test_a_browser_shows_the_dark_colours_of_lines_text_and_markers(tmp_path: Path) -> None:
    """Markers are copies in a shadow tree, which not every selector reaches."""
    browser = shutil.which('chromium') or shutil.which('google-chrome')
    if browser is None:
        pytest.skip('needs chromium or google-chrome on the PATH')
    sync_playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed').sync_playwright

    draw_graphs([Graph(3, ((0, 1), (1, 2)))], tmp_path / 'g.svg', names=['conv3'])
    colours = {}
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=['--no-sandbox', '--disable-gpu'])
        for scheme in ('light', 'dark'):
            page = opened.new_page(color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(f'file://{tmp_path / "g.svg"}')
            page.screenshot(path=tmp_path / f'{scheme}.png')
            with Image.open(tmp_path / f'{scheme}.png') as shot:
                colours[scheme] = {colour for _, colour in shot.convert('RGB').getcolors(1 << 20)}
        opened.close()
    for theme, other, found in ((LIGHT, DARK, colours['light']), (DARK, LIGHT, colours['dark'])):
        rgb = {name: tuple(bytes.fromhex(getattr(theme, name)[1:])) for name in ('paper', 'ink', 'node', 'input')}
        assert set(rgb.values()) <= found
        assert tuple(bytes.fromhex(other.ink[1:])) not in found


def write_summary(folder: Path) -> Path:
    path = folder / 'summary.csv'
    path.write_text(f'{HEADER}\n0,2.3,2.1,20.5,60,0.1\n1,1.3,1.1,80.25,97,0.05\n')
    return path


def test_draw_takes_a_graph_a_name_a_model_of_graphs_a_stage_and_a_network() -> None:
    model = timm.create_model('randwire_ws_pico', device='meta', features_only=True, out_indices=(2, 3))
    network = timm.create_model('randwire_ws_pico', device='meta')
    pico = load_graphs('randwire_ws_pico')
    graph = sample_graphs(parse_graph_model('ba(2)'), (8, 8, 8), 3)

    def edges(figure: object) -> list[str]:
        return sorted(set(re.findall(r'id="([^"]*edge[^"]*)"', svg_text(figure))))  # type: ignore[arg-type]

    def of(names: list[str], graphs: Sequence[Graph]) -> list[str]:
        return sorted(f'{name}edge-{source}-{target}' for name, graph in zip(names, graphs, strict=True)
                      for source, target in graph.edges)

    stages = ['conv3-', 'conv4-', 'conv5-']
    assert edges(draw('randwire_ws_pico.digits')) == edges(draw(network)) == edges(draw(pico)) == of(stages, pico)
    assert edges(draw(torch.nn.Sequential(network))) == of(stages, pico)
    assert edges(draw(model)) == of(stages[:2], pico[:2])
    assert edges(draw(pico[0])) == edges(draw(network.conv3)) == of([''], pico[:1])
    assert edges(draw('ba(2)', seed=3, num_nodes=8)) == of(stages, graph)
    for subject, error in ((torch.nn.Linear(1, 1), TypeError), (3, TypeError), ([], TypeError),
                           ('resnet50', ValueError)):
        with pytest.raises(error):
            draw(subject)
    with pytest.raises(TypeError, match=r'got Graph of networkx; Graph\.from_undirected takes'):
        draw(pico[0].to_networkx().to_undirected())
    with pytest.raises(ValueError, match='frozen and takes no seed'):
        draw('randwire_ws_pico', seed=3)
    with pytest.raises(ValueError, match='only a random graph model takes num_nodes'):
        draw(network, num_nodes=3)


def test_a_notebook_shows_graphs_stages_figures_and_networks_with_their_modules() -> None:
    network = timm.create_model('randwire', graph='er(0.3)', seed=5, channels=6, num_nodes=6, device='meta')
    for shown in (network.graphs[0], network.conv3, draw(network.graphs[0])):
        assert ET.fromstring(shown._repr_svg_().encode()).tag == f'{SVG}svg'
    html = network._repr_html_()
    assert 'ER(0.3), seed 5, small regime, N = 6, C = 6' in html and '(conv_pw): Conv2d' in html
    assert html.count('<svg') == 1 and '<details>' in html
    assert not hasattr(torch.nn.Linear(1, 1), '_repr_html_')


@pytest.mark.parametrize('name', ['g.pdf', 'g', 'g.png.txt'])
def test_another_suffix_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'\.png or \.svg'):
        draw_graphs([Graph(1, ())], tmp_path / 'folder' / name)
    assert not list(tmp_path.iterdir())


def test_names_must_fit_the_graphs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='2 graphs need as many names, got 1'):
        draw_graphs([Graph(1, ())] * 2, tmp_path / 'g.png', names=['conv3'])
    with pytest.raises(ValueError, match='no graph'):
        draw_graphs([], tmp_path / 'g.png')
    assert not list(tmp_path.iterdir())


def test_curves_show_the_columns_that_are_there(tmp_path: Path) -> None:
    summary, picture = tmp_path / 'summary.csv', tmp_path / 'curves.svg'
    summary.write_text(f'{HEADER}\n0,2.3,2.1,20.5,60,0.1\n1,1.3,1.1,80.25,97,0.05\n2,1.0,,,,0.01\n')
    draw_curves(summary, picture)
    assert {'train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr'} <= set(groups(picture))
    assert 'best top-1 80.25 %, epoch 2; last 80.25 %' in texts(picture)

    summary.write_text('epoch,train_loss\n0,2.3\n1,1.3\n')
    draw_curves(summary, picture)
    assert 'train_loss' in groups(picture)
    assert not {'eval_loss', 'eval_top1', 'eval_top5', 'lr'} & set(groups(picture))


def test_a_training_that_was_resumed_into_its_own_folder_is_drawn_as_the_course_that_counts(tmp_path: Path) -> None:
    """Older train.py has not trimmed its summary, and has written the header again; timm's own trimming is the rule."""
    kept, trimmed = tmp_path / 'kept.csv', tmp_path / 'trimmed.csv'
    for course, (start, stop) in enumerate(((0, 6), (3, 5), (5, 6), (2, 4))):
        trim_summary(str(trimmed), start)
        for epoch in range(start, stop):
            value = 7 * epoch - course
            for path, header in ((kept, epoch == start and course != 2), (trimmed, None)):
                update_summary(epoch, {'loss': 3 - 0.1 * value}, {'loss': 2, 'top1': value, 'top5': 60}, str(path),
                               lr=0.1, write_header=header)
    assert kept.read_text().count('epoch') == 3 and trimmed.read_text().count('epoch') == 1
    for path in (kept, trimmed):
        draw_curves(path, path.with_suffix('.svg'))
    assert kept.with_suffix('.svg').read_bytes() == trimmed.with_suffix('.svg').read_bytes()
    # Of the first course are the epochs 0 and 1, of the last 2 and 3: all that came later was given up.
    assert 'best top-1 18.00 %, epoch 4; last 18.00 %' in texts(kept.with_suffix('.svg'))


@pytest.mark.parametrize(('content', 'message'), [
    ('', 'no finished epoch'),
    (f'{HEADER}\n', 'no finished epoch'),
    ('step,train_loss\n1,2\n', 'line 2: no epoch'),
    (f'{HEADER}\n0,high,1,2,3,4\n', 'line 2: train_loss is no number'),
    (f'{HEADER}\n0,1,1,2,3,4\n{HEADER}\none,1,1,2,3,4\n', 'line 4: epoch is no number'),
])
def test_a_summary_that_holds_no_curve_is_refused(content: str, message: str, tmp_path: Path) -> None:
    summary = tmp_path / 'summary.csv'
    summary.write_text(content)
    with pytest.raises(ValueError, match=message):
        draw_curves(summary, tmp_path / 'curves.png')
    assert [path.name for path in tmp_path.iterdir()] == ['summary.csv']


def test_a_missing_summary_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'none\.csv'):
        draw_curves(tmp_path / 'none.csv', tmp_path / 'curves.png')


def colours_of_runs(group: ET.Element) -> list[str]:
    """Each once, in the order in which they are used."""
    found = re.findall('#[0-9a-f]{6}', ET.tostring(group, encoding='unicode'))
    return list(dict.fromkeys(colour for colour in found if colour in LIGHT.runs))


def test_every_run_has_its_colour_in_the_legend_whatever_it_is_called_and_records(tmp_path: Path) -> None:
    write_summary(tmp_path)
    (tmp_path / 'short.csv').write_text('epoch,train_loss\n0,2.3\n1,1.3\n')
    names = ['_baseline', 'mine', 'its loss alone', '$x^$']
    files = [tmp_path / f'{name}.csv' for name in ('summary', 'summary', 'short', 'summary')]
    draw_curves(dict(zip(names, files, strict=True)), tmp_path / 'curves.svg')
    folder = write_metrics(tmp_path / 'detector', '{"iteration": 19, "total_loss": 1.0}')
    draw_detection_curves(dict.fromkeys(names, folder / 'metrics.json'), tmp_path / 'detectors.svg')
    for picture in ('curves', 'detectors'):
        drawn = groups(tmp_path / f'{picture}.svg')
        assert [''.join(text.itertext()).strip() for text in drawn['legend_1'].iter(f'{SVG}text')] == names
        loss = 'train_loss' if picture == 'curves' else 'total_loss'
        lines = [colours_of_runs(drawn[f'{loss} of {name}']) for name in names]
        assert colours_of_runs(drawn['legend_1']) == [colour for line in lines for colour in line]
        assert all(len(line) == 1 for line in lines)


def write_metrics(folder: Path, *rows: str) -> Path:
    folder.mkdir()
    (folder / 'metrics.json').write_text('\n'.join(rows) + '\n')
    return folder


def test_detection_curves_show_each_run_in_its_panels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_metrics(
        tmp_path / 'first', *(f'{{"iteration": {i}, "total_loss": {3 / i}, "lr": 0.1}}' for i in range(1, 40)),
        '{"iteration": 40, "bbox/AP": 12.5, "bbox/AP50": NaN}', '{"iteration": 39, "total_loss": 0.5}')
    second = write_metrics(tmp_path / 'second', '{"iteration": 19, "total_loss": 1.0}')
    picture = tmp_path / 'curves.svg'
    assert main(['curves', f'a name={first}', str(second), '-o', str(picture)]) == 0
    assert capsys.readouterr().out == f'{picture}\n'
    drawn = set(groups(picture))
    assert {'total_loss of a name', 'total_loss of second', 'bbox/AP of a name'} <= drawn
    assert not any(name.startswith(('bbox/AP50', 'bbox/AP of second')) for name in drawn)
    assert {'a name', 'second', 'iteration', 'training loss', 'box AP, %'} <= set(texts(picture))


def test_curves_takes_trainings_of_timm_and_compares_several(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        write_summary(tmp_path / name)
    picture = str(tmp_path / 'curves.svg')
    assert main(['curves', str(tmp_path / 'a'), '-o', picture]) == 0
    assert {'train_loss of a', 'eval_top1 of a', 'lr of a'} <= set(groups(tmp_path / 'curves.svg'))
    assert 'best top-1 80.25 %, epoch 2; last 80.25 %' in texts(tmp_path / 'curves.svg')
    assert main(['curves', str(tmp_path / 'a'), f'other={tmp_path / "b" / "summary.csv"}', '-o', picture]) == 0
    assert {'train_loss of a', 'eval_top1 of other', 'lr of other'} <= set(groups(tmp_path / 'curves.svg'))
    assert {'a', 'other'} <= set(texts(tmp_path / 'curves.svg'))
    assert '@media' in (tmp_path / 'curves.svg').read_text()
    assert main(['curves', str(tmp_path / 'a'), '-o', picture, '--theme', 'dark']) == 0
    dark = (tmp_path / 'curves.svg').read_text()
    assert f'fill: {DARK.paper}' in dark and '@media' not in dark
    detector = write_metrics(tmp_path / 'detector', '{"iteration": 19, "total_loss": 1.0}')
    capsys.readouterr()
    assert main(['curves', str(tmp_path / 'a'), str(detector), '-o', picture]) == 2
    assert 'draw them apart' in capsys.readouterr().err


@pytest.mark.parametrize(('rows', 'message'), [
    (('{"iteration": 1}',), 'no iteration to draw'), (('{"total_loss": 1}',), 'line 1: not what detectron2 writes'),
    (('{"iteration": 1, "total_loss": 1}', '{"iter'), 'line 2: not what detectron2 writes'), (('3',), 'line 1: not')])
def test_metrics_that_hold_no_curve_are_refused(
        rows: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_metrics(tmp_path / 'run', *rows)
    assert main(['curves', str(folder), '-o', str(tmp_path / 'curves.png')]) == 2
    assert message in capsys.readouterr().err
    assert main(['curves', str(folder), f'run={folder}', '-o', str(tmp_path / 'curves.png')]) == 2
    assert "two runs are called 'run'" in capsys.readouterr().err
    assert main(['curves', str(tmp_path), '-o', str(tmp_path / 'curves.png')]) == 2
    assert 'no summary.csv and no metrics.json in' in capsys.readouterr().err
    assert not (tmp_path / 'curves.png').exists()


def test_the_sheet_names_both_classes_and_marks_wrong_predictions(tmp_path: Path) -> None:
    rng = random.Random(0)
    images = [Image.new(mode, (28, 20), rng.randrange(200)) for mode in ('L', 'RGB', '1') * 3]
    labels = [f'class {i}' for i in range(9)]
    predictions = ['other' if i == 4 else label for i, label in enumerate(labels)]
    draw_predictions(images, labels, predictions, [i / 10 for i in range(9)], tmp_path / 'sheet.svg')
    shown = texts(tmp_path / 'sheet.svg')
    for i, label in enumerate(labels):
        assert f'true {label}' in shown
        assert (f'✗ other ({i * 10}%)' if i == 4 else f'{label} ({i * 10}%)') in shown
    assert sum('✗' in text for text in shown) == 1
    assert '8 of 9 right' in shown
    draw_predictions(images, labels, predictions, [0.5] * 9, tmp_path / 'sheet.svg', title='355 of 360 right')
    assert '355 of 360 right' in texts(tmp_path / 'sheet.svg')


def test_a_sheet_needs_one_label_per_image(tmp_path: Path) -> None:
    image = Image.new('L', (8, 8))
    with pytest.raises(ValueError, match='2 images need as many'):
        draw_predictions([image, image], ['0', '1'], ['0'], [1.0], tmp_path / 'sheet.png')
    with pytest.raises(ValueError, match='no image'):
        draw_predictions([], [], [], [], tmp_path / 'sheet.png')
    assert not list(tmp_path.iterdir())


def test_a_sheet_refuses_images_that_pillow_would_cut_off_at_255(tmp_path: Path) -> None:
    grey = Image.new('L', (8, 8), 128)
    for values, mode in ((np.uint16, 'I;16'), (np.int32, 'I'), (np.float32, 'F')):
        image = Image.fromarray(np.full((8, 8), 300, values))
        assert image.mode == mode and image.convert('RGB').getpixel((0, 0)) == (255, 255, 255)
        with pytest.raises(ValueError, match=rf"^image 1 has the mode '{mode}'; a sheet takes modes of at most 8 bits"):
            draw_predictions([grey, image], ['a', 'b'], ['a', 'b'], [1.0, 1.0], tmp_path / 'sheet.png')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('suffix', ['svg', 'png'])
def test_names_and_titles_are_words_and_no_mathematics(suffix: str, tmp_path: Path) -> None:
    """matplotlib cannot parse the first, and would set the second in italics, without its dollars."""
    picture, image = tmp_path / f'picture.{suffix}', Image.new('L', (8, 8))
    for text in ('$x^$', 'a$b$c'):
        draw_graphs([Graph(2, ((0, 1),))] * 2, picture, title=text, names=[text, f'{text}2'])
        assert suffix == 'png' or {text, f'{text}2'} <= set(texts(picture))
        draw_curves(dict.fromkeys((text, 'b'), write_summary(tmp_path)), picture)
        assert suffix == 'png' or text in texts(picture)
        draw_predictions([image], [text], [f'{text}2'], [0.5], picture, title=text)
        assert suffix == 'png' or {text, f'true {text}', f'✗ {text}2 (50%)'} <= set(texts(picture))


def test_panels_are_named_as_stages_only_where_there_are_as_many(tmp_path: Path) -> None:
    picture = tmp_path / 'g.svg'
    for count, names in ((1, []), (2, ['graph 1', 'graph 2']), (3, ['conv3', 'conv4', 'conv5']),
                         (4, ['conv2', 'conv3', 'conv4', 'conv5']), (8, [f'graph {i}' for i in range(1, 9)])):
        draw_graphs([Graph(2, ((0, 1),))] * count, picture)
        assert [text for text in texts(picture) if text.startswith(('conv', 'graph'))] == names
        assert {name for name in groups(picture) if 'node-0' in name} == {f'{name}-node-0' for name in names} | (
            {'node-0'} if count == 1 else set())


def test_threads_draw_the_svgs_of_one_and_leave_matplotlib_as_it_was() -> None:
    def figures() -> list[object]:
        return [draw(Graph(nodes, tuple(pairwise(range(nodes))))) for nodes in range(2, 14)]

    before = dict(matplotlib.rcParams)
    alone = [svg_text(figure) for figure in figures()]  # type: ignore[arg-type]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(svg_text, figures()))  # type: ignore[arg-type]
    assert dict(matplotlib.rcParams) == before and together == alone


def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums(), plt.rcParams['svg.fonttype']
    draw_graphs([Graph(2, ((0, 1),))], tmp_path / 'g.svg')
    assert (plt.get_fignums(), plt.rcParams['svg.fonttype']) == before
