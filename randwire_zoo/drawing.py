"""Pictures: the wiring of a network's stages (as in Figures 1 and 4), the course of a training, a sheet of predictions.

Everything is drawn on a matplotlib `Figure` of its own, without pyplot and its global state, so that a training or a
test may draw from any thread. The suffix of the path, .png or .svg, decides the format.
"""
from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from .files import atomic_path
from .graphs import Graph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Curve
    from PIL.Image import Image

__all__ = ['FORMATS', 'check_format', 'draw_curves', 'draw_detection_curves', 'draw_graphs', 'draw_predictions',
           'layered_layout', 'style']

FORMATS = ('.png', '.svg')

XY = tuple[float, float]
Point = tuple[int, ...]  # of a level: a node as (node,), a waypoint of an edge as (source, target, level)

# The paper's Figure 4: blue nodes are inputs, red nodes are outputs. An isolated node is both.
INPUT, OUTPUT, NODE, EDGE, INK, PAPER = '#3b7dd8', '#d8453b', '#e9e9ee', '#6d7480', '#22262e', '#ffffff'

# One colour for each run in a picture of several.
RUNS = ('#3b7dd8', '#d8453b', '#2f9e62', '#b8860b', '#8e4ec6', '#0f8b8d')

RADIUS = 0.34  # of a node, where neighbours within a level are at least 1 apart
LEVEL = 1.4  # at least, from one level to the next
INCHES = 0.36  # for one unit
MAX_INCHES = 48.0  # a side of the picture; larger graphs are drawn smaller
DPI = 160


def check_format(path: str | os.PathLike[str]) -> Path:
    """Return path if its suffix is one that can be drawn.

    Raises:
        ValueError: if the suffix is neither .png nor .svg.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f'{path}: a picture is written as {" or ".join(FORMATS)}, not {path.suffix or "no suffix"!r}')
    return path


def layered_layout(graph: Graph) -> tuple[dict[int, XY], dict[tuple[int, int], list[XY]]]:
    """Lay a DAG out in levels, so that every edge points downwards and passes beside the nodes it skips.

    The method of Sugiyama, Tagawa and Toda (1981): a node's level is the longest path that leads to it; an edge over
    several levels passes through a waypoint on each; levels are ordered by the barycentres of their neighbours, which
    removes most crossings; and places within a level follow from least squares. Isolated nodes stand in rows above.

    Returns:
        The centre (x, y) of each node, y falling from level to level, and for each edge the points it passes through,
        its two nodes included.
    """
    linked = [node for node in range(graph.num_nodes) if graph.predecessors[node] or graph.successors[node]]
    level = dict.fromkeys(linked, 0)
    for source, target in graph.edges:  # sorted by target, so a source's level is final
        level[target] = max(level[target], level[source] + 1)
    for node in linked:  # an input has no reason to stand far above the first node that reads it
        if not graph.predecessors[node]:
            level[node] = min(level[target] for target in graph.successors[node]) - 1

    levels: list[list[Point]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for node in linked:
        levels[level[node]].append((node,))
    above: dict[Point, list[Point]] = {}
    below: dict[Point, list[Point]] = {}
    chains: dict[tuple[int, int], list[Point]] = {}
    for source, target in graph.edges:
        waypoints: list[Point] = [(source, target, i) for i in range(level[source] + 1, level[target])]
        for waypoint in waypoints:
            levels[waypoint[2]].append(waypoint)
        chain: list[Point] = [(source,), *waypoints, (target,)]
        chains[source, target] = chain
        for upper, lower in pairwise(chain):
            below.setdefault(upper, []).append(lower)
            above.setdefault(lower, []).append(upper)

    _order_levels(levels, above, below)
    x = _place_levels(levels, above, below)
    # Levels far enough apart for a square: in a dense graph, flat edges would run through the nodes.
    width = max(x.values()) - min(x.values()) if x else 0.0
    step = max(LEVEL, 0.9 * width / max(len(levels) - 1, 8))
    height = {point: -step * i for i, points in enumerate(levels) for point in points}

    positions = {node: (x[node,], height[node,]) for node in linked}
    isolated = [node for node in range(graph.num_nodes) if node not in level]
    centre = (min(x.values()) + max(x.values())) / 2 if x else 0.0
    per_row = max(8, int(width), math.isqrt(2 * len(isolated)))
    for i, node in enumerate(isolated):
        row, column = divmod(i, per_row)
        in_row = min(per_row, len(isolated) - row * per_row)
        rows = math.ceil(len(isolated) / per_row)
        positions[node] = (centre + column - (in_row - 1) / 2, LEVEL * (rows - row))
    return positions, {edge: [(x[point], height[point]) for point in chain] for edge, chain in chains.items()}


def _order_levels(
        levels: list[list[Point]], above: dict[Point, list[Point]],
        below: dict[Point, list[Point]], sweeps: int = 24,
) -> None:
    """Order each level in place by barycentres, sweeping down and up, and keep the order with the fewest crossings."""
    best, fewest = [list(points) for points in levels], _crossings(levels, below)
    for sweep in range(sweeps):
        downwards = sweep % 2 == 0
        neighbours = above if downwards else below
        for i in range(1, len(levels)) if downwards else range(len(levels) - 2, -1, -1):
            places = _shares(levels[i]) | _shares(levels[i - 1 if downwards else i + 1])
            centres = {point: fmean(places[n] for n in neighbours.get(point) or (point,)) for point in levels[i]}
            levels[i].sort(key=centres.__getitem__)
        crossings = _crossings(levels, below)
        if crossings < fewest:
            best, fewest = [list(points) for points in levels], crossings
    levels[:] = best


def _shares(points: list[Point]) -> dict[Point, float]:
    return {point: i / max(len(points) - 1, 1) for i, point in enumerate(points)}


def _crossings(levels: list[list[Point]], below: dict[Point, list[Point]]) -> int:
    """Count the pairs of segments between neighbouring levels that cross."""
    crossings = 0
    for upper, lower in pairwise(levels):
        place = {point: j for j, point in enumerate(lower)}
        ends: list[int] = []
        for point in upper:
            targets = sorted(place[target] for target in below.get(point, ()))
            crossings += sum(end > target for target in targets for end in ends)
            ends.extend(targets)
    return crossings


def _place_levels(
        levels: list[list[Point]], above: dict[Point, list[Point]],
        below: dict[Point, list[Point]], sweeps: int = 60,
) -> dict[Point, float]:
    """Give every point an x: close to its neighbours', in the order of its level, and apart from the next point."""
    def gap(left: Point, right: Point) -> float:
        return (1.2, 0.75, 0.28)[(len(left) > 1) + (len(right) > 1)]  # waypoints are lines and need less room

    offsets = []
    x: dict[Point, float] = {}
    for points in levels:
        offset = [0.0]
        for left, right in pairwise(points):
            offset.append(offset[-1] + gap(left, right))
        offsets.append(offset)
        x.update({point: place - offset[-1] / 2 for point, place in zip(points, offset, strict=True)})
    for sweep in range(sweeps):
        order = range(len(levels)) if sweep % 2 == 0 else range(len(levels) - 1, -1, -1)
        for i in order:
            wanted, weights = [], []
            for point in levels[i]:
                # A line between two waypoints should be straight, or skips would zigzag through the picture.
                pulls = [(x[n], 4.0 if len(n) > 1 and len(point) > 1 else 1.0)
                         for n in (*above.get(point, ()), *below.get(point, ()))]
                weight = sum(pull[1] for pull in pulls)
                wanted.append(sum(place * pull for place, pull in pulls) / weight)
                weights.append(weight)
            x.update(zip(levels[i], _nearest_with_gaps(wanted, weights, offsets[i]), strict=True))
    return x


def _nearest_with_gaps(wanted: list[float], weights: list[float], offsets: list[float]) -> list[float]:
    """The least-squares nearest places that keep the given gaps: isotonic regression by pooling adjacent violators."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, members
    for place, weight, offset in zip(wanted, weights, offsets, strict=True):
        mean, members = place - offset, 1
        while pools and pools[-1][0] > mean:
            other, other_weight, count = pools.pop()
            mean = (mean * weight + other * other_weight) / (weight + other_weight)
            weight, members = weight + other_weight, members + count
        pools.append((mean, weight, members))
    means = [mean for mean, _, members in pools for _ in range(members)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def draw_graphs(
        graphs: Sequence[Graph], path: str | os.PathLike[str], title: str = '', names: Sequence[str] | None = None,
) -> None:
    """Draw the wiring of each stage, one panel a stage, data flowing from top to bottom.

    As in Figure 4, blue nodes are inputs and red nodes outputs of the graph; the extra input and output node of the
    stage are not shown. In an SVG, each node and edge is a group with an id: `conv3-node-7`, `conv3-edge-2-7`.

    Args:
        graphs: One graph per panel.
        path: The picture to write, .png or .svg.
        title: Stands above the panels, such as the name of the network.
        names: One per graph, such as 'conv3'; 'stage 1', 'stage 2', … by default.

    Raises:
        ValueError: if there is no graph, the names do not fit the graphs, or the suffix is neither .png nor .svg.
        OSError: if the file cannot be written.
    """
    path = check_format(path)
    if not graphs:
        raise ValueError('there is no graph to draw')
    names = [f'stage {i + 1}' for i in range(len(graphs))] if names is None else list(names)
    if len(names) != len(graphs):
        raise ValueError(f'{len(graphs)} graphs need as many names, got {len(names)}')
    from matplotlib.figure import Figure

    layouts = [layered_layout(graph) for graph in graphs]
    boxes = [_bounding_box(*layout) for layout in layouts]
    margin, header = 0.9, 1.9
    widths = [max(right - left, 8.5) + 2 * margin for left, right, _, _ in boxes]
    height = max(top - bottom for _, _, bottom, top in boxes) + header + 2 * margin
    head, foot = (2.0 if title else 0.4), 1.6
    total_width, total_height = max(sum(widths), 0.34 * len(title) + 2 * margin, 15.0), height + head + foot
    unit = min(INCHES, MAX_INCHES / total_width, MAX_INCHES / total_height)
    points = unit / INCHES  # scales fonts and lines with everything else

    figure = Figure(figsize=(total_width * unit, total_height * unit), facecolor=PAPER)
    x = (total_width - sum(widths)) / 2
    for graph, name, (positions, routes), box, width in zip(graphs, names, layouts, boxes, widths, strict=True):
        axes = figure.add_axes((x / total_width, foot / total_height, width / total_width, height / total_height))
        x += width
        centre, top = (box[0] + box[1]) / 2, box[3]
        axes.set_xlim(centre - width / 2, centre + width / 2)
        axes.set_ylim(top + margin + header - height, top + margin + header)
        axes.set_axis_off()
        _draw_graph(axes, graph, name, positions, routes, points)
        axes.text(centre, top + margin + 1.15, name, ha='center', va='bottom', fontsize=13 * points, color=INK,
                  fontweight='bold')
        axes.text(centre, top + margin + 0.95, _caption(graph), ha='center', va='top', fontsize=9 * points, color=EDGE)
    if title:
        figure.text(0.5, 1 - 0.55 / total_height, title, ha='center', va='top', fontsize=15 * points, color=INK)
    isolated = any(set(graph.inputs) & set(graph.outputs) for graph in graphs)
    _draw_legend(figure, isolated, total_height, points)
    _save(figure, path)


def _caption(graph: Graph) -> str:
    def count(number: int, noun: str) -> str:
        return f'{number} {noun}' + ('' if number == 1 else 's')

    return (f'N = {graph.num_nodes}, {count(len(graph.edges), "edge")}\n'
            f'{count(len(graph.inputs), "input")}, {count(len(graph.outputs), "output")}')


def _bounding_box(
        positions: dict[int, XY], routes: dict[tuple[int, int], list[XY]],
) -> tuple[float, float, float, float]:
    everything = [*positions.values(), *(point for route in routes.values() for point in route)]
    xs, ys = zip(*everything, strict=True)
    return min(xs) - RADIUS, max(xs) + RADIUS, min(ys) - RADIUS, max(ys) + RADIUS


def _draw_graph(
        axes: Axes, graph: Graph, name: str, positions: dict[int, XY],
        routes: dict[tuple[int, int], list[XY]], points: float,
) -> None:
    from matplotlib.patches import Circle, FancyArrowPatch, Wedge

    for (source, target), route in routes.items():
        axes.add_patch(FancyArrowPatch(
            path=_smooth(route), arrowstyle='-|>,head_length=3.2,head_width=1.5', mutation_scale=points,
            linewidth=0.75 * points, edgecolor=EDGE, facecolor=EDGE, alpha=0.85, shrinkA=0, shrinkB=0, zorder=1,
            gid=f'{name}-edge-{source}-{target}'))
    for node, (x, y) in positions.items():
        is_input, is_output = not graph.predecessors[node], not graph.successors[node]
        face = INPUT if is_input else OUTPUT if is_output else NODE
        axes.add_patch(Circle((x, y), RADIUS, facecolor=face, edgecolor=INK, linewidth=0.7 * points, zorder=3,
                              gid=f'{name}-node-{node}'))
        if is_input and is_output:
            axes.add_patch(Wedge((x, y), RADIUS, 270, 90, facecolor=OUTPUT, edgecolor='none', zorder=4))
        axes.text(x, y, str(node), ha='center', va='center_baseline', zorder=5,
                  fontsize=(8 if graph.num_nodes <= 100 else 6) * points, color=PAPER if is_input or is_output else INK)


def _smooth(route: list[XY]) -> Curve:
    """A smooth curve through the points of a route, a straight line where there are two, cut at the nodes' rims."""
    from matplotlib.path import Path as Curve

    # Catmull-Rom: at a waypoint the curve runs parallel to the line between the points before and after it.
    slopes = [((after[0] - before[0]) / 6, (after[1] - before[1]) / 6)
              for before, after in zip([route[0], *route[:-1]], [*route[1:], route[-1]], strict=True)]
    knots = [_towards(route[0], route[1], RADIUS), *route[1:-1], _towards(route[-1], route[-2], RADIUS * 1.08)]
    vertices, codes = [knots[0]], [Curve.MOVETO]
    for (p, q), (m, n) in zip(pairwise(knots), pairwise(slopes), strict=True):
        vertices += [(p[0] + m[0], p[1] + m[1]), (q[0] - n[0], q[1] - n[1]), q]
        codes += [Curve.CURVE4] * 3
    return Curve(vertices, codes)


def _towards(start: XY, end: XY, distance: float) -> XY:
    share = distance / math.hypot(end[0] - start[0], end[1] - start[1])
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def _draw_legend(figure: Figure, isolated: bool, total_height: float, points: float) -> None:
    from matplotlib.lines import Line2D

    def marker(face: str, **kwargs: str) -> Line2D:
        return Line2D([], [], linestyle='none', marker='o', markersize=10 * points, markerfacecolor=face,
                      markeredgecolor=INK, markeredgewidth=0.7 * points, **kwargs)  # type: ignore[arg-type]

    handles = [marker(INPUT, label='input'), marker(OUTPUT, label='output (sink)'), marker(NODE, label='node')]
    if isolated:
        handles.append(marker(INPUT, label='isolated: both', fillstyle='left', markerfacecoloralt=OUTPUT))
    figure.legend(handles=handles, loc='lower center', ncols=4, frameon=False, fontsize=10 * points, labelcolor=INK,
                  bbox_to_anchor=(0.5, 0.25 / total_height), borderaxespad=0, handletextpad=0.2)


def draw_curves(summary_csv: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draw loss, accuracy and learning rate against the epoch, from the summary.csv that timm's trainer writes.

    Args:
        summary_csv: A file with the column `epoch` and any of `train_loss`, `eval_loss`, `eval_top1`, `eval_top5`,
            `lr`; what is missing is left out.
        path: The picture to write, .png or .svg.

    Raises:
        ValueError: if the file has no finished epoch or nothing to draw, holds something other than numbers, or the
            suffix of path is neither .png nor .svg.
        OSError: if a file cannot be read or written.
    """
    path = check_format(path)
    columns = _read_summary(Path(summary_csv))
    panels = [panel for panel in (
        ('loss', (('train_loss', 'training', INPUT), ('eval_loss', 'evaluation', OUTPUT))),
        ('accuracy, %', (('eval_top1', 'top-1', OUTPUT), ('eval_top5', 'top-5', EDGE))),
        ('learning rate', (('lr', '', INK),)),
    ) if any(name in columns for name, _, _ in panel[1])]
    if not panels:
        raise ValueError(f'{summary_csv}: none of train_loss, eval_loss, eval_top1, eval_top5 and lr to draw')
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.6 * len(panels), 3.6), layout='constrained', facecolor=PAPER)
    for axes, (label, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, legend, colour in lines:
            if name in columns:
                epochs, values = zip(*columns[name], strict=True)
                axes.plot(epochs, values, color=colour, label=legend, linewidth=1.8, gid=name,
                          marker='o' if len(epochs) <= 30 else '', markersize=3.5)
                if name == 'eval_top1':
                    best = max(range(len(values)), key=values.__getitem__)
                    axes.set_title(f'best top-1 {values[best]:.2f} %, epoch {epochs[best]:g}', fontsize=10, color=INK)
        style(axes, 'epoch', label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        if label == 'learning rate':
            axes.ticklabel_format(axis='y', scilimits=(-3, 3))
        if len(axes.lines) > 1:
            axes.legend(frameon=False, fontsize=10)
    _save(figure, path)


def draw_detection_curves(runs: Mapping[str, str | os.PathLike[str]], path: str | os.PathLike[str]) -> None:
    """Draw loss, AP and AP50 against the iteration, from the metrics.json files that detectron2 writes.

    Args:
        runs: A metrics.json for each name in the legend.
        path: The picture to write, .png or .svg.

    Raises:
        ValueError: if a file has no iteration to draw or is not what detectron2 writes, there are more runs than
            colours, or the suffix of path is neither .png nor .svg.
        OSError: if a file cannot be read or written.
    """
    path = check_format(path)
    if len(runs) > len(RUNS):
        raise ValueError(f'at most {len(RUNS)} runs fit into one picture, got {len(runs)}')
    histories = {name: _read_metrics(Path(file)) for name, file in runs.items()}
    from matplotlib.figure import Figure

    panels = [(key, label) for key, label in (
        ('total_loss', 'training loss'), ('bbox/AP', 'box AP, %'), ('bbox/AP50', 'box AP50, %'),
    ) if any(key in history for history in histories.values())]
    figure = Figure(figsize=(4.6 * len(panels), 3.8), layout='constrained', facecolor=PAPER)
    for axes, (key, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for (name, history), colour in zip(histories.items(), RUNS, strict=False):
            if key in history:
                iterations, values = zip(*history[key], strict=True)
                marker = 'o' if len(values) <= 30 else ''
                if key == 'total_loss':
                    # A minibatch's loss is noise for the most part: the mean of nine stands out, the single ones stay.
                    axes.plot(iterations, values, color=colour, linewidth=0.8, alpha=0.3)
                    values, marker = tuple(fmean(values[max(0, i - 4):i + 5]) for i in range(len(values))), ''
                axes.plot(iterations, values, color=colour, label=name, linewidth=1.8, marker=marker, markersize=3.5,
                          gid=f'{key} of {name}')
        style(axes, 'iteration', label)
        axes.set_ylim(bottom=0)
    if len(runs) > 1:
        lines, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(lines, names, loc='outside lower center', ncols=min(len(names), 4), frameon=False, fontsize=10)
    _save(figure, path)


def style(axes: Axes, x_label: str, y_label: str) -> None:
    """Labels, a light grid, and no frame on the right and above: as all plots here."""
    axes.set_xlabel(x_label, fontsize=11)
    axes.set_ylabel(y_label, fontsize=11)
    axes.grid(color=NODE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)


def _read_metrics(path: Path) -> dict[str, list[XY]]:
    """For each number that detectron2 logs, the pairs (iteration, value); a resumed run's later rows count."""
    columns: dict[str, dict[int, float]] = {}
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1):
        try:
            row = json.loads(line)
            iteration = row.pop('iteration')
            for name, value in row.items():
                if math.isfinite(value):  # AP is nan where nothing was found
                    columns.setdefault(name, {})[int(iteration)] = float(value)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f'{path}, line {number}: not what detectron2 writes') from None
    if 'total_loss' not in columns and 'bbox/AP' not in columns:
        raise ValueError(f'{path}: no iteration to draw')
    return {name: sorted(values.items()) for name, values in columns.items()}


def _read_summary(path: Path) -> dict[str, list[XY]]:
    """For each column of numbers, the pairs (epoch, value); empty cells are left out."""
    columns: dict[str, list[XY]] = {}
    with path.open(newline='', encoding='utf-8') as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            if not row.get('epoch'):
                raise ValueError(f'{path}, line {number}: no epoch; a summary.csv of timm has that column')
            for name, value in row.items():
                if name in ('train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr') and value:
                    try:
                        columns.setdefault(name, []).append((float(row['epoch']), float(value)))
                    except ValueError as error:
                        raise ValueError(f'{path}, line {number}: {name} is no number ({error})') from None
    if not columns:
        raise ValueError(f'{path}: no finished epoch to draw')
    return columns


def draw_predictions(
        images: Sequence[Image], labels: Sequence[str], predictions: Sequence[str], confidences: Sequence[float],
        path: str | os.PathLike[str],
) -> None:
    """Draw a sheet of images with true and predicted class; wrong predictions have a red frame and red text.

    Args:
        images: PIL images, of any mode and size.
        labels: The true class of each.
        predictions: The predicted class of each.
        confidences: The probability of each prediction, within [0, 1].
        path: The picture to write, .png or .svg.

    Raises:
        ValueError: if there is no image, the lengths differ, or the suffix is neither .png nor .svg.
        OSError: if the file cannot be written.
    """
    path = check_format(path)
    if not images:
        raise ValueError('there is no image to draw')
    if not len(images) == len(labels) == len(predictions) == len(confidences):
        raise ValueError(f'{len(images)} images need as many labels, predictions and confidences, got {len(labels)}, '
                         f'{len(predictions)} and {len(confidences)}')
    from matplotlib.figure import Figure

    columns = min(8, len(images))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(max(1.55 * columns, 3.2), 2.05 * rows + 0.5), layout='constrained', facecolor=PAPER)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    for axes, image, label, prediction, confidence in zip(
            grid[:len(images)], images, labels, predictions, confidences, strict=True):
        right = str(label) == str(prediction)
        axes.set_axis_on()
        axes.set_xticks([])
        axes.set_yticks([])
        axes.imshow(image.convert('RGB'), interpolation='nearest' if max(image.size) <= 64 else 'antialiased')
        for spine in axes.spines.values():
            spine.set_color(EDGE if right else OUTPUT)
            spine.set_linewidth(0.8 if right else 3.0)
        mark = '' if right else '✗ '
        axes.set_title(f'true {_shorten(label)}', fontsize=9, color=INK, pad=4)
        axes.set_xlabel(f'{mark}{_shorten(prediction)} ({confidence:.0%})', fontsize=9, labelpad=4,
                        color=INK if right else OUTPUT, fontweight='normal' if right else 'bold')
    correct = sum(str(label) == str(prediction) for label, prediction in zip(labels, predictions, strict=True))
    figure.suptitle(f'{correct} of {len(images)} right\nabove: true class, below: prediction', fontsize=11, color=INK)
    _save(figure, path)


def _shorten(name: str, width: int = 13) -> str:
    """Cut a class name to what fits under a small image."""
    name = str(name)
    return name if len(name) <= width else name[:width - 1].rstrip() + '…'


def _save(figure: Figure, path: Path) -> None:
    import matplotlib

    # Text stays text in an SVG, and the same drawing gives the same file: no date, no random ids.
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'randwire-zoo'}):
        with atomic_path(path) as temporary:
            metadata = {'Date': None} if path.suffix.lower() == '.svg' else None
            figure.savefig(temporary, dpi=DPI, format=path.suffix.lower()[1:], facecolor=PAPER, metadata=metadata)
