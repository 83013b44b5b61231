"""The pictures of a study's report, each an SVG drawn from rows of results."""
from __future__ import annotations

import io
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..drawing import LIGHT, draw_graphs, style
from ..graphs import Graph, graphs_sha256
from .analysis import (
    MEASURES,
    Row,
    accuracy,
    error_distribution,
    learned,
    losses_by_degree,
    operation_correlation,
    operation_means,
)
from .study import Network, graphs_of

EDGE, INK, INPUT, OUTPUT, PAPER, RUNS = (
    LIGHT.edge, LIGHT.ink, LIGHT.input, LIGHT.output, LIGHT.paper, LIGHT.runs)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ['damage_figure', 'distributions_figure', 'draw_pictures']

Groups = Mapping[str, Sequence[Row]]
WIDTH = 9.0  # inches
LONGEST_NAME = 48  # of a series, in letters
# More is not drawn: a file of results may claim graphs of any size.
LARGEST_GRAPH, MOST_EDGES, MOST_GRAPHS = 256, 8192, 8


def _words_are_words(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Draw with text as it stands: matplotlib would read `$x^2$` as mathematics, and fail at `$x^$`."""
    @wraps(draw)
    def drawing(*args: Any, **kwargs: Any) -> Any:
        import matplotlib
        with matplotlib.rc_context({'text.parse_math': False, 'svg.fonttype': 'none', 'svg.hashsalt': 'randwire-zoo'}):
            return draw(*args, **kwargs)
    return drawing


@_words_are_words
def draw_pictures(groups: Groups, paper: Mapping[str, Any], classes: int | None = None) -> dict[str, str]:
    """Every picture that the rows have data for, as SVG text by its title.

    Args:
        groups: Rows that are done, by series.
        paper: The paper's mean accuracy by series, where there is one.
        classes: Classes of the data set, for rows that do not say it.
    """
    groups = {_label(series, i): group for i, (series, group) in enumerate(groups.items())}
    rows = [row for group in groups.values() for row in group]
    pictures: dict[str, str] = {}

    def add(title: str, draw: Callable[[], Figure]) -> None:
        pictures[title] = _inline(_svg(draw()), f'p{len(pictures)}')

    metric = 'AP' if any('detection' in row for row in rows) else 'top-1 (%)'
    add(f'{metric} by series: mean and standard deviation over all seeds', lambda: _bars(groups, paper, metric))
    if metric != 'AP':
        add('Error distribution of each series', lambda: distributions_figure(groups))
    measured = [row for row in rows if row.get('measures')]
    if measured:
        add('Accuracy against graph measures', lambda: _against_measures(
            {series: learned(group, classes) for series, group in groups.items()}))
    if any(len(row.get('history', ())) > 1 for row in rows):
        add('Training curves', lambda: _curves(groups, metric))
    if any('damage' in row for row in rows):
        add('Graph damage (Figure 5): loss in top-1 when a node or an edge is removed', lambda: damage_figure(groups))
    if len({row['node_op'] for row in rows if row['node_op']}) > 1:
        add('Node operations (Figure 6)', lambda: _operations(rows))
    for series, group in groups.items():
        network = next((row for row in group if row['node_op'] == 'sep_conv' and row['graph']), None)
        if network is not None and (graphs := _graphs(network)):
            pictures[f'Graphs of {series}, seed {network["graph_seed"]}'] = _inline(
                _wiring(graphs), f'p{len(pictures)}')
    return pictures


def _label(series: str, place: int) -> str:
    """A name that a legend takes: one that begins with an underscore it would leave out, a very long one fills it."""
    series = f' {series}' if series.startswith('_') else series
    return series if len(series) <= LONGEST_NAME else f'{series[:LONGEST_NAME - 6]}… {place + 1}'


def _figure(panels: int, height: float = 3.6, columns: int | None = None) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure
    columns = columns or panels
    rows = -(-panels // columns)
    figure = Figure(figsize=(WIDTH, height * rows), facecolor=PAPER, layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in axes[panels:]:
        unused.set_visible(False)
    return figure, axes[:panels]


def _colours(groups: Groups) -> dict[str, str]:
    if len(groups) <= len(RUNS):
        return dict(zip(groups, RUNS, strict=False))
    from matplotlib import colormaps
    from matplotlib.colors import to_hex
    return {series: to_hex(colormaps['turbo'](0.04 + 0.92 * i / (len(groups) - 1))) for i, series in enumerate(groups)}


def _legend(figure: Figure, axes: Axes) -> None:
    """The legend of all panels below them, in as many columns as its names leave room for."""
    lines, names = axes.get_legend_handles_labels()
    if not names:
        return
    size = 9 if len(names) <= 40 else 6
    inches = 0.6 + max(map(len, names)) * size / 110
    figure.legend(lines, names, loc='outside lower center', ncols=max(min(len(names), int((WIDTH - 0.2) / inches)), 1),
                  frameon=False, fontsize=size)


def _bars(groups: Groups, paper: Mapping[str, Any], metric: str) -> Figure:
    figure, (axes,) = _figure(1, 4.0)
    lowest = min(accuracy(row) for group in groups.values() for row in group)
    highest = max(accuracy(row) for group in groups.values() for row in group)
    room = max((highest - lowest) * 0.4, 0.5)
    for i, (series, group) in enumerate(groups.items()):
        values = [accuracy(row) for row in group]
        mean, deviation = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        axes.bar(i, mean, yerr=deviation or None, color=_colours(groups)[series], alpha=0.75, width=0.7, capsize=4)
        beside = [i + 0.12 * (j - (len(values) - 1) / 2) / max(len(values) / 3, 1) for j in range(len(values))]
        axes.plot(beside, values, 'o', color='black', markersize=2.5, alpha=0.7)
        axes.annotate(f'{mean:.2f}', (i, max(mean + deviation, *values)), ha='center', va='bottom',
                      fontsize=min(8.0, 180 / len(groups)), xytext=(0, 4), textcoords='offset points')
    beside_each_other = sum(map(len, groups)) + 3 * len(groups) < 100
    axes.set_xticks(range(len(groups)), list(groups), rotation=0 if beside_each_other else 60,
                    ha='center' if beside_each_other else 'right', rotation_mode='anchor',
                    fontsize=min(9.0, 300 / len(groups)))
    axes.set_ylim(max(lowest - room, 0), highest + room)
    axes.margins(x=0.02)
    # What was measured on other data may lie far outside; the table has it all.
    given = {i: number for i, series in enumerate(groups) if (number := _number(paper.get(series))) is not None
             and axes.get_ylim()[0] < number < axes.get_ylim()[1]}
    if given:
        axes.plot(list(given), list(given.values()), 'D', color='none', markeredgecolor=INK, label='paper')
        axes.legend(frameon=False, fontsize=9, loc='upper right')
    style(axes, '', metric)
    return figure


def _number(text: Any) -> float | None:
    """The number that a figure of the paper's begins with, such as `74.7 ± 0.25`."""
    try:
        return float(str(text).split()[0])
    except (ValueError, IndexError):
        return None


def distributions_figure(groups: Groups) -> Figure:
    """The distribution of each series' errors, a step per network."""
    figure, (axes,) = _figure(1)
    for series, group in groups.items():
        errors, shares = error_distribution(group)
        axes.step([errors[0], *errors], [0, *shares], where='post', label=series, color=_colours(groups)[series])
    style(axes, 'top-1 error (%)', 'share of networks')
    _legend(figure, axes)
    return figure


def _against_measures(groups: Groups) -> Figure:
    figure, panels = _figure(len(MEASURES), 3.2, columns=2)
    for axes, measure in zip(panels, MEASURES, strict=True):
        for series, group in groups.items():
            measured = [row for row in group if measure in (row.get('measures') or {})]
            if measured:
                axes.plot([row['measures'][measure] for row in measured], [accuracy(row) for row in measured], 'o',
                          markersize=5, alpha=0.8, color=_colours(groups)[series], label=series)
        style(axes, measure, 'top-1 (%)')
    _legend(figure, panels[0])
    return figure


def _curves(groups: Groups, metric: str) -> Figure:
    from matplotlib.ticker import MaxNLocator
    figure, (loss, top1) = _figure(2)
    for series, group in groups.items():
        for j, row in enumerate(group):
            steps = [point[0] for point in row['history']]
            options: dict[str, Any] = {'color': _colours(groups)[series], 'alpha': 0.6, 'linewidth': 1.1,
                                       'label': None if j else series}
            loss.plot(steps, [point[1] for point in row['history']], **options)
            top1.plot(steps, [point[2] for point in row['history']], **options)
    for axes in (loss, top1):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style(loss, 'epoch' if metric != 'AP' else 'iteration', 'training loss')
    style(top1, 'epoch' if metric != 'AP' else 'iteration', metric)
    _legend(figure, loss)
    return figure


def damage_figure(groups: Groups) -> Figure:
    """Loss by degree: a point per network, the mean of its removals, and the mean of the networks.

    Panels of nodes stand above those of edges, a column for each series that was damaged.
    """
    from matplotlib.ticker import FixedLocator, MaxNLocator
    damaged = {series: group for series, group in groups.items() if any('damage' in row for row in group)}
    figure, panels = _figure(2 * len(damaged), 2.9, columns=len(damaged))
    for i, (series, group) in enumerate(damaged.items()):
        for axes, kind, label in ((panels[i], 'nodes', "node's out-degree"),
                                  (panels[len(damaged) + i], 'edges', "target's in-degree")):
            if i:  # so that series can be compared
                axes.sharey(panels[0] if kind == 'nodes' else panels[len(damaged)])
            means: dict[int, list[float]] = {}
            for row in group:
                for degree, losses in losses_by_degree(row, kind).items():
                    means.setdefault(degree, []).append(statistics.mean(losses))
            degrees = sorted(means)
            if degrees:
                pairs = [(degree, loss) for degree in degrees for loss in means[degree]]
                axes.plot([pair[0] for pair in pairs], [pair[1] for pair in pairs], 'o', color=INPUT, markersize=4,
                          alpha=0.5, label='a network: mean of its removals')
                axes.errorbar(degrees, [statistics.mean(means[degree]) for degree in degrees],
                              [statistics.stdev(means[degree]) if len(means[degree]) > 1 else 0 for degree in degrees],
                              fmt='o-', color=OUTPUT, markersize=4, linewidth=1, capsize=3,
                              label='mean and standard deviation of the networks')
                axes.axhline(0, color=EDGE, linewidth=0.7, zorder=0)
                axes.set_xlim(degrees[0] - 0.7, degrees[-1] + 0.7)
                axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True) if len(degrees) > 2 else
                                             FixedLocator(degrees))
            style(axes, label, 'loss in top-1 (points)' if i == 0 else '')
            if kind == 'nodes':
                axes.set_title(series, fontsize=10)
    _legend(figure, panels[0])
    return figure


def _operations(rows: Sequence[Row]) -> Figure:
    figure, (axes,) = _figure(1)
    means = operation_means(rows)
    first_operation, first = next(iter(means.items()))
    graphs = dict.fromkeys(graph for found in means.values() for graph in found)
    order = sorted(graphs, key=lambda graph: -first.get(graph, 0.0))
    for i, (operation, found) in enumerate(means.items()):
        line = [found.get(graph, float('nan')) for graph in order]
        _, correlation = operation_correlation(first, found)
        label = operation if i == 0 or correlation is None else f'{operation} (r = {correlation:.2f})'
        axes.plot(range(len(order)), line, 'o-', color=RUNS[i % len(RUNS)], label=label)
    flat = sum(map(len, order)) + 3 * len(order) < 100
    axes.set_xticks(range(len(order)), order, rotation=0 if flat else 60, ha='center' if flat else 'right',
                    rotation_mode='anchor', fontsize=9)
    style(axes, f'generators, by accuracy with {first_operation}', 'mean top-1 (%)')
    axes.legend(frameon=False, fontsize=9)
    return figure


def _graphs(row: Row) -> tuple[Graph, ...]:
    """The graphs that a row has, or that its sha256 says this package samples for it; none otherwise."""
    network = Network(**{field.name: row.get(field.name) for field in fields(Network)})  # type: ignore[arg-type]
    nodes = row['kwargs'].get('num_nodes', 32)
    try:
        if row.get('graphs') is not None:
            graphs = tuple(Graph.from_dict(graph) for graph in row['graphs'][:MOST_GRAPHS + 1])
        elif isinstance(nodes, int) and nodes <= LARGEST_GRAPH:  # a row of an earlier release
            graphs = graphs_of(network)
        else:
            return ()
        small = len(graphs) <= MOST_GRAPHS and all(
            graph.num_nodes <= LARGEST_GRAPH and len(graph.edges) <= MOST_EDGES for graph in graphs)
        return graphs if small and graphs_sha256(graphs) == row.get('wiring') else ()
    except (ValueError, TypeError):  # no graphs, or of a random graph model that is not here
        return ()


def _wiring(graphs: Sequence[Graph]) -> str:
    names = [f'conv{6 - len(graphs) + i}' for i in range(len(graphs))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'graphs.svg'
        draw_graphs(graphs, path, names=names)
        return path.read_text(encoding='utf-8')


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format='svg', facecolor=PAPER, metadata={'Date': None})
    return text.getvalue()


def _inline(svg: str, prefix: str) -> str:
    """An SVG file as a part of a page, where the ids of several pictures must not meet."""
    svg = svg[svg.index('<svg'):]
    for mark in ('id="', 'href="#', 'url(#'):
        svg = svg.replace(mark, f'{mark}{prefix}-')
    return svg


