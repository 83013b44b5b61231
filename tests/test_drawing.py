"""Pictures hold what they shall show: counted in the SVG's elements, measured in the PNG's pixels."""
from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from pathlib import Path

import networkx as nx
import pytest
from PIL import Image

from randwire_zoo.cli import main
from randwire_zoo.drawing import INPUT, OUTPUT, draw_curves, draw_graphs, draw_predictions, layered_layout
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
            assert (INPUT in style) == (reference.in_degree(node) == 0)
            assert (OUTPUT in style) == (reference.out_degree(node) == 0)
    shown = texts(tmp_path / 'g.svg')
    assert 'a title' in shown and set(stages) <= set(shown)
    assert f'N = {graphs[0].num_nodes}, {len(graphs[0].edges)} edges' in shown


@pytest.mark.parametrize('model', ['ws(4,0.75)', 'er(0.2)', 'ba(5)', 'er(0.03)', 'er(0)', 'ws(2,0)'])
def test_no_two_nodes_touch_and_every_edge_points_downwards(model: str) -> None:
    for graph in sample_graphs(parse_graph_model(model), (32, 9, 6), seed=4):
        positions, routes = layered_layout(graph)
        assert sorted(positions) == list(range(graph.num_nodes))
        places = list(positions.values())
        for i, (x, y) in enumerate(places):
            for other_x, other_y in places[:i]:
                assert (x - other_x) ** 2 + (y - other_y) ** 2 > 0.9 ** 2
        assert set(routes) == set(graph.edges)
        for (source, target), route in routes.items():
            assert route[0] == positions[source] and route[-1] == positions[target]
            heights = [y for _, y in route]
            assert heights == sorted(heights, reverse=True) and len(set(heights)) == len(heights)


def test_nodes_that_read_something_stand_on_the_level_of_their_longest_path() -> None:
    graph = load_graphs('randwire_ws_small_s1')[0]
    positions, _ = layered_layout(graph)
    heights = sorted({y for _, y in positions.values()}, reverse=True)
    for level, nodes in enumerate(nx.topological_generations(graph.to_networkx())):
        for node in nodes:
            if graph.predecessors[node]:
                assert heights.index(positions[node][1]) == level


def test_an_isolated_node_is_both_blue_and_red(tmp_path: Path) -> None:
    draw_graphs([Graph(1, ())], tmp_path / 'one.png')
    colours = {colour for _, colour in Image.open(tmp_path / 'one.png').convert('RGB').getcolors(1 << 20)}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in (INPUT, OUTPUT)} <= colours


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
    assert 'best top-1 80.25 %, epoch 1' in texts(picture)

    summary.write_text('epoch,train_loss\n0,2.3\n1,1.3\n')
    draw_curves(summary, picture)
    assert 'train_loss' in groups(picture)
    assert not {'eval_loss', 'eval_top1', 'eval_top5', 'lr'} & set(groups(picture))


@pytest.mark.parametrize(('content', 'message'), [
    ('', 'no finished epoch'),
    (f'{HEADER}\n', 'no finished epoch'),
    ('step,train_loss\n1,2\n', 'line 2: no epoch'),
    (f'{HEADER}\n0,high,1,2,3,4\n', 'line 2: train_loss is no number'),
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
    assert 'no metrics.json in' in capsys.readouterr().err
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


def test_a_sheet_needs_one_label_per_image(tmp_path: Path) -> None:
    image = Image.new('L', (8, 8))
    with pytest.raises(ValueError, match='2 images need as many'):
        draw_predictions([image, image], ['0', '1'], ['0'], [1.0], tmp_path / 'sheet.png')
    with pytest.raises(ValueError, match='no image'):
        draw_predictions([], [], [], [], tmp_path / 'sheet.png')
    assert not list(tmp_path.iterdir())


def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums(), plt.rcParams['svg.fonttype']
    draw_graphs([Graph(2, ((0, 1),))], tmp_path / 'g.svg')
    assert (plt.get_fignums(), plt.rcParams['svg.fonttype']) == before
