"""The pictures of a study's report, or a search's, each of one or more SVG panels drawn from rows of results.

Panels are narrow, and stand beside each other or below each other as the page has room. Points of networks have the id
`network-N`, where N counts the rows from 0: the page says of them what it knows.
"""
from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from ..drawing import LIGHT, graphs_figure, new_figure, panel_names, run_style, style, svg_text
from ..drawing.themes import matplotlib_settings
from .analysis import (
    MEASURES,
    Row,
    accuracy,
    band,
    by_wiring,
    error_distribution,
    graphs_of_row,
    learned,
    losses_by_degree,
    mean_interval,
    operation_correlations,
    operation_means,
    units,
)
from .proxies import PROXIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ['Picture', 'accuracies_figure', 'damage_figure', 'distributions_figure', 'draw_pictures',
           'draw_search']

Groups = Mapping[str, Sequence[Row]]
WIDTH = 4.5  # inches of a panel: 432 pixels
LONGEST_NAME = 36  # of a series, in letters
FEW = 6  # series that colours and markers can tell apart
MIDDLE = 0.21  # luminance between white and the dark page's


@dataclass(frozen=True)
class Picture:
    """A title, what has to be said of it, and SVG panels."""

    title: str
    panels: list[str]
    note: str = ''


def _words_are_words(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Draw with text as it stands: matplotlib would read `$x^2$` as mathematics, and fail at `$x^$`."""
    @wraps(draw)
    def drawing(*args: Any, **kwargs: Any) -> Any:
        with matplotlib_settings({'text.parse_math': False}):
            return draw(*args, **kwargs)
    return drawing


@_words_are_words
def draw_pictures(groups: Groups, paper: Mapping[str, Any], classes: int | None = None,
                  to_come: Container[str] = ()) -> list[Picture]:
    """Every picture that the rows have data for.

    Args:
        groups: Rows that are done, by series.
        paper: The paper's mean accuracy by series, where there is one.
        classes: Classes of the data set, for rows that do not say it.
        to_come: Series of which one wiring is there so far, which stands for no others: they have no distribution.
    """
    alone = {_label(series, i) for i, series in enumerate(groups) if series in to_come}
    paper = {_label(series, i): paper[series] for i, series in enumerate(groups) if series in paper}
    groups = {_label(series, i): group for i, (series, group) in enumerate(groups.items())}
    rows = [row for group in groups.values() for row in group]
    numbers = {row['id']: number for number, row in enumerate(rows)}
    better = {series: found for series, group in groups.items() if (found := learned(group, classes))}
    metric = 'AP' if any('detection' in row for row in rows) else 'top-1 (%)'
    album = _Album(groups)
    add = album.add

    given = (" Squares are the paper's; an arrow points to one that lies outside."
             if any(_number(value) is not None for value in paper.values()) else '')
    populations = {series: group for series, group in groups.items() if series not in alone}
    add(f'{metric} by series', [accuracies_figure(groups, paper, metric, numbers, populations)],
        'A point is a network. Diamonds are means over wirings, with their 95 % intervals; n counts networks, and '
        'wirings in brackets.' + given, legend=False)
    several = {series: group for series, group in populations.items() if len(units(group)) > 1}
    if metric != 'AP' and several:
        # Of many the bands would cover each other: then each has a panel, with the others in grey.
        add('Error distribution of each series', [distributions_figure(several, groups)] if len(several) <= FEW else [
            distributions_figure(several, groups, one) for one in several],
            'Each wiring counts once, with the mean of its trainings. Bands hold a whole distribution with 95 % '
            'confidence (Dvoretzky, Kiefer and Wolfowitz).', legend=len(several) <= FEW)
    measures = [measure for measure in MEASURES if _has(better, 'measures', measure)]
    add('Accuracy against graph measures', (
        _against(better, groups, 'measures', measure, metric, numbers) for measure in measures))
    if {'clustering', 'path length'} <= set(measures):
        add('Accuracy over clustering and path length', [_map(better, metric, numbers)],
            'As in "Graph Structure of Neural Networks"; the mean over the stages of each.', legend=False)
    add('Accuracy against what the first weights predict', (
        _against(better, groups, 'proxies', name, metric, numbers) for name in PROXIES
        if _has(better, 'proxies', name)))
    if any(len(row.get('history', ())) > 1 for row in rows):
        add('Training curves', (_curves(groups, metric, column) for column in (1, 2)))
    damaged = {series: group for series, group in better.items() if any('damage' in row for row in group)}
    if damaged:
        add('Graph damage (Figure 5): loss in top-1 when a node or an edge is removed',
            damage_figures(damaged, numbers), "A point is the mean of a network's removals; the line has the mean and "
            'the standard deviation of the networks.', legend=False)
    if len({row['node_op'] for group in better.values() for row in group if row['node_op']}) > 1:
        add('Node operations (Figure 6)', [_operations([row for group in better.values() for row in group])],
            legend=False)
    for series, group in groups.items():
        network = next((row for row in group if row['node_op'] == 'sep_conv' and row['graph']), None)
        if network is not None and (graphs := graphs_of_row(network)):
            names = panel_names(len(graphs))
            add(f'Graphs of {series}, seed {network["graph_seed"]}', [
                graphs_figure([graph], names=[name], theme='light')
                for name, graph in zip(names, graphs, strict=True)], legend=False)
    return album.pictures


@_words_are_words
def draw_search(tried: Groups, again: Groups, parameters: Mapping[str, Mapping[str, Any]],
                rows: Sequence[Row]) -> list[Picture]:
    """What a search's candidates did.

    Args:
        tried: Candidates of each search, in the order in which they ended.
        again: What each search's winner did with other seeds.
        parameters: By name of the space, what each row has of it, by the row's id.
        rows: All of them, in the order in which the page numbers them.
    """
    numbers = {row['id']: number for number, row in enumerate(rows)}
    album = _Album(tried)
    longest = max((row['epochs'] for group in tried.values() for row in group), default=0)
    album.add('The best so far against its cost', [_best_so_far(tried, longest)],
              f'Of the candidates that were trained for {longest} epochs; the cost is that of all.')
    if again:
        album.add("The searches' winners trained again", [accuracies_figure(again, {}, 'top-1 (%)', numbers)],
                  'A point is a network. Diamonds are means with their 95 % intervals.', legend=False)
    by_length: dict[str, list[Row]] = {}
    for row in sorted((row for group in tried.values() for row in group), key=lambda row: row['epochs']):
        by_length.setdefault(f'{row["epochs"]} epoch{"s" if row["epochs"] > 1 else ""}', []).append(row)
    lengths = _Album(by_length, album)
    lengths.add('Accuracy against the parameters', (
        _against_parameter(by_length, name, values, numbers) for name, values in parameters.items()),
        'A point is a training of a candidate, of both searches.')
    return album.pictures


class _Album:
    """Pictures of one page, whose ids must not meet; `groups` are what their legends tell apart."""

    def __init__(self, groups: Groups, other: _Album | None = None) -> None:
        self.groups = groups
        self.pictures: list[Picture] = other.pictures if other else []

    def add(self, title: str, figures: Iterable[Figure], note: str = '', legend: bool = True) -> None:
        """Add a picture, unless it has no panel."""
        panels = list(figures)
        if not panels:
            return
        key = [_key(self.groups)] if legend and len(self.groups) > 1 else []
        place = len(self.pictures)
        svgs = [_inline(svg_text(figure), f'p{place}-{number}') for number, figure in enumerate([*panels, *key])]
        self.pictures.append(Picture(title, svgs, note))


def _label(series: str, place: int) -> str:
    """A name that a legend takes: one that begins with an underscore it would leave out, a very long one fills it."""
    series = f' {series}' if series.startswith('_') else series
    return series if len(series) <= LONGEST_NAME else f'{series[:LONGEST_NAME - 6]}… {place + 1}'


def _panel(height: float = 3.1) -> tuple[Figure, Axes]:
    figure = new_figure('light', figsize=(WIDTH, height), layout='constrained')
    return figure, figure.subplots()


def _styles(groups: Groups) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of each series."""
    if len(groups) <= FEW:
        return {series: run_style(i, LIGHT) for i, series in enumerate(groups)}
    return {series: {**run_style(i, LIGHT), 'color': _hue(i / len(groups))} for i, series in enumerate(groups)}


def _hue(hue: float) -> str:
    """A colour of this hue that stands out from white and from nearly black by 3:1 and more (WCAG 2.2, 1.4.11).

    A page in the dark does not change it, as it does those of few series.
    """
    from colorsys import hls_to_rgb

    def luminance(lightness: float) -> float:
        linear = [(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
                  for c in hls_to_rgb(hue, lightness, 0.75)]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if luminance(middle) < MIDDLE else (low, middle)
    return '#' + ''.join(f'{round(255 * c):02x}' for c in hls_to_rgb(hue, low, 0.75))


def _key(groups: Groups) -> Figure:
    """The legend of all panels of a picture, as one more panel."""
    from matplotlib.lines import Line2D
    longest = max(map(len, groups))
    columns = max(min(int(WIDTH / (0.5 + 0.085 * longest)), len(groups)), 1)
    figure = new_figure('light', figsize=(WIDTH, 0.22 * -(-len(groups) // columns) + 0.2))
    figure.legend([Line2D([], [], **look) for look in _styles(groups).values()], list(groups), loc='center',
                  ncols=columns, frameon=False, fontsize=9, labelcolor=LIGHT.ink)
    return figure


def _points(axes: Axes, rows: Sequence[Row], xs: Sequence[float], ys: Sequence[float], numbers: Mapping[str, int],
            **look: Any) -> None:
    """A point for each row, which the page can tell from others."""
    for row, x, y in zip(rows, xs, ys, strict=True):
        axes.plot([x], [y], linestyle='none', gid=f'network-{numbers[row["id"]]}', zorder=4, **look)


@_words_are_words
def accuracies_figure(groups: Groups, paper: Mapping[str, Any], metric: str, numbers: Mapping[str, int],
                      populations: Container[str] | None = None) -> Figure:
    """Every network, and the mean of each series with its interval; a line for each.

    Series outside of `populations` have their points alone: their networks stand for no others.
    """
    figure, axes = _panel(0.9 + 0.42 * len(groups))
    values = [accuracy(row) for group in groups.values() for row in group]
    room = max((max(values) - min(values)) * 0.08, 0.3)
    low, high = max(min(values) - room, 0.0), min(max(values) + room, 100.0)
    looks = _styles(groups)
    for i, (series, group) in enumerate(groups.items()):
        look = looks[series]
        # Networks of one wiring stand at one height.
        wirings = {wiring: place for place, wiring in enumerate(by_wiring(group))}
        offsets = [0.3 * ((wirings[row.get('wiring')] + 0.5) / len(wirings) - 0.5) for row in group]
        _points(axes, group, [accuracy(row) for row in group], [i + offset for offset in offsets], numbers,
                color=look['color'], marker='o', markersize=3.5, alpha=0.6)
        if len(group) > 1 and (populations is None or series in populations):
            if interval := mean_interval(units(group)):
                axes.plot(interval, [i, i], color=LIGHT.ink, linewidth=2)
            axes.plot([statistics.mean(units(group))], [i], marker='D', color=LIGHT.ink, markersize=5)
        count = f'n = {len(group)}' + (f' ({len(wirings)})' if None not in wirings else '')
        axes.annotate(count, (1.01, i), xycoords=('axes fraction', 'data'), va='center', fontsize=8, color=LIGHT.edge,
                      annotation_clip=False)
        if (number := _number(paper.get(series))) is not None:
            if low <= number <= high:
                axes.plot([number], [i + 0.3], marker='s', color='none', markeredgecolor=LIGHT.ink, markersize=5)
            else:
                side = 'left' if number < low else 'right'
                text = f'← paper {number:g}' if side == 'left' else f'paper {number:g} →'
                axes.annotate(text, (low if side == 'left' else high, i + 0.33), ha=side, va='center', fontsize=8,
                              color=LIGHT.ink)
    axes.set_yticks(range(len(groups)), list(groups), fontsize=9)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(low, high)
    style(axes, metric, '')
    return figure


def _number(text: Any) -> float | None:
    """The number of a figure such as `74.7` or `74.7 ± 0.25`; None of one that has other words, as of other images."""
    found = re.fullmatch(r'\s*(\d+(?:\.\d+)?)\s*(?:±\s*\d+(?:\.\d+)?)?\s*', str(text))
    return float(found[1]) if found else None


@_words_are_words
def distributions_figure(groups: Groups, all_groups: Groups | None = None, of: str | None = None) -> Figure:
    """The distribution of each series' errors, a step for each of its independent networks, with bands.

    Args:
        groups: By series.
        all_groups: Those of the whole page, which have the same colours everywhere.
        of: One of them, which the panel is of; the others are in grey and without their bands.
    """
    figure, axes = _panel(3.6 if of is None else 2.6)
    looks = _styles(all_groups or groups)
    for series, group in groups.items():
        errors, shares = error_distribution(group)
        look, half, here = looks[series], band(len(errors)), of in (None, series)
        axes.step([errors[0], *errors], [0, *shares], where='post', label=series, linewidth=1.5 if here else 0.8,
                  color=look['color'] if here else LIGHT.edge, linestyle=look['linestyle'] if here else '-',
                  alpha=1 if here else 0.5, zorder=3 if here else 2)
        if here:
            axes.fill_between([errors[0], *errors], [max(share - half, 0) for share in (0, *shares)],
                              [min(share + half, 1) for share in (0, *shares)], step='post', color=look['color'],
                              alpha=0.1, linewidth=0)
    style(axes, 'top-1 error (%)', 'share of the population')
    if of is not None:
        axes.set_title(of, fontsize=10, color=LIGHT.ink)
    return figure


def _has(groups: Groups, kind: str, name: str) -> bool:
    """Whether there is anything to see: the number is known, and does not stay the same."""
    found = {row[kind][name] for group in groups.values() for row in group if name in (row.get(kind) or {})}
    return len(found) > 1


def _against(groups: Groups, all_groups: Groups, kind: str, name: str, metric: str, numbers: Mapping[str, int],
             ) -> Figure:
    figure, axes = _panel()
    looks = _styles(all_groups)
    for series, group in groups.items():
        rows = [row for row in group if name in (row.get(kind) or {})]
        _points(axes, rows, [row[kind][name] for row in rows], list(map(accuracy, rows)), numbers, markersize=5,
                alpha=0.7, color=looks[series]['color'], marker=looks[series]['marker'])
    style(axes, {'paths': 'log₁₀ of the number of paths', 'synflow': 'log₁₀ synflow'}.get(name, name), metric)
    return figure


def _against_parameter(groups: Groups, name: str, values: Mapping[str, Any], numbers: Mapping[str, int]) -> Figure:
    figure, axes = _panel()
    looks = _styles(groups)
    shown = list(dict.fromkeys(str(value) for value in values.values()))
    try:
        places = {text: float(text) for text in shown}
    except ValueError:  # words stand side by side
        places = {text: float(place) for place, text in enumerate(shown)}
        axes.set_xticks(list(places.values()), shown, fontsize=9)
    for series, group in groups.items():
        _points(axes, group, [places[str(values[row['id']])] for row in group], list(map(accuracy, group)), numbers,
                markersize=5, alpha=0.7, color=looks[series]['color'], marker=looks[series]['marker'])
    style(axes, name, 'top-1 (%)')
    return figure


def _best_so_far(groups: Groups, longest: int) -> Figure:
    figure, axes = _panel(3.6)
    looks = _styles(groups)
    for series, group in groups.items():
        cost, best, line = 0.0, 0.0, []
        for row in group:
            cost += row['epochs'] * row['macs'] / 1e6
            best = max(best, accuracy(row)) if row['epochs'] == longest else best
            if best:
                line.append((cost, best))
        if line:
            axes.step(*zip(*line, strict=True), where='post', color=looks[series]['color'],
                      linestyle=looks[series]['linestyle'])
            axes.plot(*line[-1], color=looks[series]['color'], marker=looks[series]['marker'])
    style(axes, 'cost (M multiply-adds of an image × epochs)', 'top-1 (%)')
    return figure


def _map(groups: Groups, metric: str, numbers: Mapping[str, int]) -> Figure:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_hex
    figure, axes = _panel(3.6)
    rows = [row for group in groups.values() for row in group
            if {'clustering', 'path length'} <= (row.get('measures') or {}).keys()]
    values = list(map(accuracy, rows))
    scale, colours = Normalize(min(values), max(values)), colormaps['viridis']
    for row in sorted(rows, key=accuracy):
        _points(axes, [row], [row['measures']['clustering']], [row['measures']['path length']], numbers, marker='o',
                markersize=7, markeredgecolor=LIGHT.edge, markeredgewidth=0.4, color=to_hex(
                    colours(scale(accuracy(row)))))
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes)
    bar.set_label(metric, color=LIGHT.ink)
    bar.ax.tick_params(colors=LIGHT.edge, labelcolor=LIGHT.ink)
    style(axes, 'clustering', 'path length')
    return figure


def _curves(groups: Groups, metric: str, column: int) -> Figure:
    from matplotlib.ticker import MaxNLocator
    figure, axes = _panel()
    looks = _styles(groups)
    for series, group in groups.items():
        for row in group:
            axes.plot([point[0] for point in row['history']], [point[column] for point in row['history']], alpha=0.6,
                      linewidth=1, color=looks[series]['color'], linestyle=looks[series]['linestyle'])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style(axes, 'epoch' if metric != 'AP' else 'iteration', 'training loss' if column == 1 else metric)
    return figure


def damage_figures(groups: Groups, numbers: Mapping[str, int]) -> list[Figure]:
    """`damage_figure` of each series' nodes and edges, with the same scale for all nodes and for all edges."""
    figures = {kind: [damage_figure(series, group, kind, numbers) for series, group in groups.items()]
               for kind in ('nodes', 'edges')}
    for drawn in figures.values():
        limits = [figure.axes[0].get_ylim() for figure in drawn]
        for figure in drawn:
            figure.axes[0].set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    return [figure for pair in zip(figures['nodes'], figures['edges'], strict=True) for figure in pair]


@_words_are_words
def damage_figure(series: str, rows: Sequence[Row], kind: str, numbers: Mapping[str, int]) -> Figure:
    """Loss by degree: a point per network, the mean of its removals, and the mean of the networks.

    Args:
        series: The title.
        rows: Its networks.
        kind: 'nodes', by their out-degree, or 'edges', by their target's in-degree.
        numbers: Of the rows, by their id.
    """
    from matplotlib.ticker import FixedLocator, MaxNLocator
    figure, axes = _panel(2.7)
    means: dict[int, list[float]] = {}
    for row in rows:
        found = {degree: statistics.mean(losses) for degree, losses in losses_by_degree(row, kind).items()}
        for degree, mean in found.items():
            means.setdefault(degree, []).append(mean)
        if found:
            axes.plot(list(found), list(found.values()), linestyle='none', marker='o', color=LIGHT.input, markersize=4,
                      alpha=0.5, gid=f'network-{numbers[row["id"]]}')
    degrees = sorted(means)
    if degrees:
        axes.errorbar(degrees, [statistics.mean(means[degree]) for degree in degrees],
                      [statistics.stdev(means[degree]) if len(means[degree]) > 1 else 0 for degree in degrees],
                      fmt='D-', color=LIGHT.runs[1], markersize=4, linewidth=1, capsize=3)
        axes.axhline(0, color=LIGHT.edge, linewidth=0.7, zorder=0)
        axes.set_xlim(degrees[0] - 0.7, degrees[-1] + 0.7)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True) if len(degrees) > 2 else FixedLocator(degrees))
    style(axes, "node's out-degree" if kind == 'nodes' else "in-degree of the edge's target", 'loss in top-1 (points)')
    axes.set_title(f'{series}, {kind}', fontsize=10, color=LIGHT.ink)
    return figure


def _operations(rows: Sequence[Row]) -> Figure:
    means = operation_means(rows)
    first_operation, first = next(iter(means.items()))
    with_first = {found.other: found.models.over_all for found in operation_correlations(rows)
                  if found.one == first_operation}
    graphs = dict.fromkeys(graph for found in means.values() for graph in found)
    order = sorted(graphs, key=lambda graph: -first.get(graph, 0.0))
    figure, axes = _panel(3.8)
    for i, (operation, found) in enumerate(means.items()):
        line = [found.get(graph, float('nan')) for graph in order]
        r = with_first.get(operation)
        label = operation if r is None else f'{operation} (r = {r:.2f})'
        axes.plot(range(len(order)), line, label=_label(label, i), **run_style(i, LIGHT))
    axes.set_xticks(range(len(order)), [_label(graph, i) for i, graph in enumerate(order)], rotation=60, ha='right',
                    rotation_mode='anchor', fontsize=8)
    style(axes, f'generators, by accuracy with {_label(first_operation, 0)}', 'mean top-1 (%)')
    figure.legend(loc='outside upper center', ncols=2, frameon=False, fontsize=9, labelcolor=LIGHT.ink)
    return figure


def _inline(svg: str, prefix: str) -> str:
    """An SVG file as a part of a page, where the ids of several pictures must not meet."""
    svg = svg[svg.index('<svg'):]
    for mark in ('id="', 'href="#', 'url(#'):
        svg = svg.replace(mark, f'{mark}{prefix}-')
    return svg
