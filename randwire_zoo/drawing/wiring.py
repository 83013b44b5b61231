"""The wiring of a network's stages, as in the paper's Figures 1 and 4; large graphs as adjacency matrices.

Where nodes and edges go is Graphviz's affair: its `dot` comes with pygraphviz's wheels, and nothing else has to be
installed.
"""
from __future__ import annotations

import math
import os
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..architectures import find_wiring, stage_names
from ..graphs import Graph
from .themes import ON_INPUT, ON_OUTPUT, Theme, as_words, check_format, new_figure, save, theme_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ['MOST_EDGES', 'draw', 'draw_graphs', 'graphs_figure', 'layered_layout', 'panel_names']

XY = tuple[float, float]

MOST_EDGES = 300  # of a graph whose edges are drawn as lines; above, nobody could follow one
RADIUS = 0.34  # of a node
LEVEL = 1.4  # from one row of isolated nodes to the next
INCHES = 0.36  # for one unit
MAX_INCHES = 30.0  # a side of the picture; larger graphs are drawn smaller
EASILY_READ = 30.0  # units: words in a picture as wide as this are as large as those of a page
WIDE = 1.7  # width to height, of a picture of several panels
MATRIX = 12.0  # units, a side of the largest matrix of a picture
POINTS_PER_UNIT = 36.0  # of Graphviz
#: Matrices of more entries are pixels in an SVG, too.
MOST_ENTRIES = 20_000
#: Graphviz keeps global state.
_graphviz = Lock()


def draw(
        subject: Any, *, seed: int | None = None, num_nodes: int | None = None, regime: str | None = None,
        title: str | None = None, theme: str = 'auto',
) -> Figure:
    """Draw the wiring of a graph, a stage, a network, or whatever a name stands for.

        randwire_zoo.draw('randwire_ws_c109')                # a frozen name
        randwire_zoo.draw('ba(5)', seed=3).savefig('ba.pdf') # a random graph model
        randwire_zoo.draw(model)                             # a network, also within another module

    Args:
        subject: A `Graph` or several, a stage, a network, a frozen name, or a random graph model.
        seed: For a random graph model: seed of the generator (1).
        num_nodes: For a random graph model: N (32).
        regime: For a random graph model: 'small' or 'regular' ('small').
        title: Stands above; what the subject says of itself by default.
        theme: 'light', 'dark', or 'auto': light, but a notebook's or page's picture follows its reader's system.

    Returns:
        The matplotlib figure, which pyplot knows nothing of.

    Raises:
        ValueError: naming what is unknown, or does not fit together.
        TypeError: if there is no wiring in the subject.
    """
    arguments = {name: value for name, value in (('seed', seed), ('num_nodes', num_nodes), ('regime', regime))
                 if value is not None}
    if arguments and not isinstance(subject, str):
        raise ValueError(f'only a random graph model takes {", ".join(arguments)}')
    if isinstance(subject, str):
        wiring = find_wiring(subject, **arguments)
        return graphs_figure(wiring.graphs, wiring.title if title is None else title, theme=theme)
    graphs, names, own = _wiring_of(subject)
    return graphs_figure(graphs, own if title is None else title, names, theme)


def draw_graphs(
        graphs: Sequence[Graph], path: str | os.PathLike[str], title: str = '', names: Sequence[str] | None = None,
        theme: str = 'auto', progress: bool = False,
) -> None:
    """Write the picture of `graphs_figure`.

    Args:
        graphs: One graph per panel.
        path: The picture to write, .png or .svg.
        title: Stands above the panels, such as the name of the network.
        names: One per graph.
        theme: 'light', 'dark', or 'auto': light, but an SVG follows its reader's system.
        progress: Show a bar where it takes more than three seconds.

    Raises:
        ValueError: if there is no graph, the names do not fit the graphs, or the suffix is neither .png nor .svg.
        OSError: if the file cannot be written.
    """
    path = check_format(path)
    save(graphs_figure(graphs, title, names, theme, progress), path)


def _wiring_of(subject: Any) -> tuple[Sequence[Graph], list[str] | None, str]:
    """The graphs in an object, their names and its title, by what it has: no torch is needed to draw a graph."""
    if isinstance(subject, Graph):
        return [subject], [''], ''
    if isinstance(subject, Sequence) and subject and all(isinstance(graph, Graph) for graph in subject):
        return subject, None, ''
    if isinstance(getattr(subject, 'graph', None), Graph):  # a stage
        return [subject.graph], [''], ''
    for module in subject.modules() if hasattr(subject, 'modules') else ():
        if hasattr(module, 'graphs'):
            stages = {name: stage.graph for name, stage in module.named_children()
                      if isinstance(getattr(stage, 'graph', None), Graph)}  # pruning takes some away
            if stages:
                return list(stages.values()), list(stages), module.extra_repr()
    hint = ' of networkx; Graph.from_undirected takes an undirected one' if hasattr(subject, 'is_directed') else ''
    raise TypeError(f'draw takes a Graph, a stage, a network or a name, got {type(subject).__name__}{hint}')


def graphs_figure(
        graphs: Sequence[Graph], title: str = '', names: Sequence[str] | None = None, theme: str = 'auto',
        progress: bool = False,
) -> Figure:
    """The wiring of each stage, one panel a stage, data flowing from top to bottom, all in one scale.

    As in Figure 4, blue nodes are inputs and red nodes outputs of the graph; inputs are squares as well and outputs
    diamonds. The extra input and output node of the stage are not shown. If one of the graphs has more than
    `MOST_EDGES` edges, all are shown as adjacency matrices. In an SVG, each node and edge is a group with an id:
    `conv3-node-7`, `conv3-edge-2-7`; of a matrix `conv3-edges`.

    Args:
        graphs: One graph per panel.
        title: Stands above the panels.
        names: One per graph, such as 'conv3'; by default see `panel_names`.
        theme: See `draw`.
        progress: Show a bar where it takes more than three seconds.

    Raises:
        ValueError: if there is no graph, or the names do not fit the graphs.
    """
    if not graphs:
        raise ValueError('there is no graph to draw')
    names = panel_names(len(graphs)) if names is None else list(names)
    if len(names) != len(graphs):
        raise ValueError(f'{len(graphs)} graphs need as many names, got {len(names)}')
    colours = theme_named(theme)
    panels: list[_Nodes | _Matrix] = []
    as_matrix = any(len(graph.edges) > MOST_EDGES for graph in graphs)
    largest = max(graph.num_nodes for graph in graphs)
    for graph in tqdm(graphs, desc='lay out', delay=3, leave=False, disable=None if progress else True):
        panels.append(_Matrix(graph, largest) if as_matrix else _Nodes(graph))

    margin, header = 0.9, (1.9 if any(names) else 1.3)
    sizes = [(max(panel.box[1] - panel.box[0], 8.5) + 2 * margin, panel.box[3] - panel.box[2] + 2 * margin)
             for panel in panels]
    rows = _rows([(width, height + header) for width, height in sizes])
    widths = [sum(sizes[i][0] for i in row) for row in rows]
    # Wide drawings are shown smaller, and their words are larger, as far as a panel has room for its own.
    large = max(min(max(widths) / EASILY_READ, 0.17 * min(width for width, _ in sizes), 4.0), 1.0)
    header *= large
    heights = [max(sizes[i][1] for i in row) + header for row in rows]
    head, foot = (2.0 if title else 0.4) * large, 1.6 * large
    total_width = max(*widths, 0.34 * large * len(title) + 2 * margin, 15.0)
    total_height = sum(heights) + head + foot
    unit = min(INCHES, MAX_INCHES / total_width, MAX_INCHES / total_height)
    points = unit / INCHES  # scales fonts and lines with everything else
    figure = new_figure(theme, figsize=(total_width * unit, total_height * unit))
    bar = tqdm(total=len(panels), desc='draw', delay=3, leave=False, disable=None if progress else True)
    for number, (row, row_height) in enumerate(zip(rows, heights, strict=True)):
        x = (total_width - widths[number]) / 2
        y = foot + sum(heights[number + 1:])
        for i in row:
            panel, width = panels[i], sizes[i][0]
            axes = figure.add_axes((x / total_width, y / total_height, width / total_width, row_height / total_height))
            x += width
            centre, top = (panel.box[0] + panel.box[1]) / 2, panel.box[3]
            axes.set_xlim(centre - width / 2, centre + width / 2)
            axes.set_ylim(top + margin + header - row_height, top + margin + header)
            axes.set_axis_off()
            panel.draw(axes, f'{names[i]}-' if names[i] else '', points, colours)
            as_words(axes.text(centre, top + margin + 1.15 * large, names[i], ha='center', va='bottom',
                               fontsize=13 * large * points, color=colours.ink, fontweight='bold'))
            axes.text(centre, top + margin + 0.95 * large, _caption(graphs[i]), ha='center', va='top',
                      fontsize=9 * large * points, color=colours.edge)
            bar.update()
    bar.close()
    if title:
        as_words(figure.text(0.5, 1 - 0.55 * large / total_height, title, ha='center', va='top',
                             fontsize=15 * large * points, color=colours.ink))
    kinds = dict.fromkeys(kind for kind in _KINDS if any(kind in map(panel.kind, range(panel.graph.num_nodes))
                                                         for panel in panels))
    _draw_legend(figure, list(kinds), as_matrix, total_height / large, large * points, colours)
    return figure


def panel_names(count: int) -> list[str]:
    """Of so many graphs: those of a network's stages, of one none, and of others their numbers."""
    if count in (3, 4):  # as a network has
        return stage_names(count)
    return [f'graph {i + 1}' for i in range(count)] if count > 1 else ['']


def _rows(sizes: Sequence[tuple[float, float]]) -> list[list[int]]:
    """Which panels stand beside each other: as many as give a picture that is wide, but not too wide to be read."""
    def rows_of(columns: int) -> list[list[int]]:
        return [list(range(start, min(start + columns, len(sizes)))) for start in range(0, len(sizes), columns)]

    def stretch(columns: int) -> float:
        rows = rows_of(columns)
        width = max(sum(sizes[i][0] for i in row) for row in rows)
        return abs(math.log(width / sum(max(sizes[i][1] for i in row) for row in rows) / WIDE))

    return rows_of(min(range(1, len(sizes) + 1), key=stretch))


def layered_layout(graph: Graph) -> tuple[dict[int, XY], dict[tuple[int, int], list[XY]]]:
    """Lay a DAG out in levels, as Graphviz's `dot` does it: every edge points downwards and passes beside other nodes.

    Isolated nodes stand in rows above.

    Returns:
        The centre (x, y) of each node, y falling from level to level, and for each edge the points of a Bézier curve
        from the rim of its source to that of its target: 3 n + 1 of them.
    """
    import pygraphviz

    linked = [node for node in range(graph.num_nodes) if graph.predecessors[node] or graph.successors[node]]
    positions: dict[int, XY] = {}
    curves: dict[tuple[int, int], list[XY]] = {}
    if linked:
        with _graphviz, pygraphviz.AGraph(directed=True, nodesep='0.1', ranksep='0.34', splines='true') as dot:
            # No text: Graphviz would look for fonts. Arrows are drawn here.
            dot.node_attr.update(shape='circle', width=f'{2 * RADIUS * POINTS_PER_UNIT / 72:g}', fixedsize='true',
                                 label='')
            dot.edge_attr.update(dir='none')
            dot.add_nodes_from(linked)
            dot.add_edges_from(graph.edges)
            dot.layout('dot')
            left, bottom, right, top = map(float, dot.graph_attr['bb'].split(','))
            if (stretch := (right - left) / max(top - bottom, 1.0)) > 1.1:
                # Levels far enough apart for a square: in a dense graph, flat edges would run along the nodes.
                dot.graph_attr['ranksep'] = f'{min(0.34 * stretch + 0.34 * (stretch - 1), 1.6):g}'
                dot.layout('dot')
            for node in linked:
                positions[node] = _point(dot.get_node(node).attr['pos'])
            for edge in graph.edges:
                curves[edge] = [_point(text) for text in dot.get_edge(*edge).attr['pos'].split()]
    isolated = [node for node in range(graph.num_nodes) if node not in positions]
    xs, top = [x for x, _ in positions.values()] or [0.0], max((y for _, y in positions.values()), default=-LEVEL)
    centre, width = (min(xs) + max(xs)) / 2, max(xs) - min(xs)
    per_row = max(8, int(width), math.isqrt(2 * len(isolated)))
    rows = math.ceil(len(isolated) / per_row)
    for i, node in enumerate(isolated):
        row, column = divmod(i, per_row)
        in_row = min(per_row, len(isolated) - row * per_row)
        positions[node] = (centre + column - (in_row - 1) / 2, top + LEVEL * (rows - row))
    return positions, curves


def _point(text: str) -> XY:
    x, y = text.split(',')
    return float(x) / POINTS_PER_UNIT, float(y) / POINTS_PER_UNIT


_KINDS = ('input', 'output', 'node', 'isolated')
#: The shape of each kind of node, as a marker of matplotlib.
_MARKERS = {'input': 's', 'output': 'D', 'node': 'o', 'isolated': 'h'}


class _Panel:
    """A graph and where it is drawn; `box` is left, right, bottom, top."""

    box: tuple[float, float, float, float]

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def kind(self, node: int) -> str:
        is_input, is_output = not self.graph.predecessors[node], not self.graph.successors[node]
        return 'isolated' if is_input and is_output else 'input' if is_input else 'output' if is_output else 'node'


class _Nodes(_Panel):
    """Nodes, and edges between them."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.positions, self.curves = layered_layout(graph)
        points = [*self.positions.values(), *(point for curve in self.curves.values() for point in curve)]
        xs, ys = zip(*points, strict=True)
        self.box = min(xs) - RADIUS, max(xs) + RADIUS, min(ys) - RADIUS, max(ys) + RADIUS

    def draw(self, axes: Axes, prefix: str, points: float, theme: Theme) -> None:
        from matplotlib.patches import FancyArrowPatch, Wedge
        from matplotlib.path import Path

        for (source, target), curve in self.curves.items():
            path = Path(curve, [Path.MOVETO] + [Path.CURVE4] * (len(curve) - 1))
            axes.add_patch(FancyArrowPatch(
                path=path, arrowstyle='-|>,head_length=3.2,head_width=1.5', mutation_scale=points,
                linewidth=0.75 * points, edgecolor=theme.edge, facecolor=theme.edge, alpha=0.85, shrinkA=0, shrinkB=0,
                zorder=1, gid=f'{prefix}edge-{source}-{target}'))
        size = (8 if self.graph.num_nodes <= 100 else 6) * points
        text = {'input': ON_INPUT, 'output': ON_OUTPUT, 'node': theme.ink, 'isolated': ON_INPUT}
        for node, (x, y) in self.positions.items():
            kind = self.kind(node)
            face = {'input': theme.input, 'output': theme.output, 'node': theme.node, 'isolated': theme.input}[kind]
            axes.add_patch(_shape(kind, (x, y), facecolor=face, edgecolor=theme.ink, linewidth=0.7 * points, zorder=3,
                                  gid=f'{prefix}node-{node}'))
            if kind == 'isolated':
                axes.add_patch(Wedge((x, y), 0.8 * RADIUS, 270, 90, facecolor=theme.output, edgecolor='none', zorder=4))
            axes.text(x, y, str(node), ha='center', va='center_baseline', zorder=5, fontsize=size, color=text[kind])


def _shape(kind: str, centre: XY, **kwargs: Any) -> Any:
    from matplotlib.patches import Circle, RegularPolygon

    if kind == 'node':
        return Circle(centre, RADIUS, **kwargs)
    corners, radius, turned = {'input': (4, 1.22, math.pi / 4), 'output': (4, 1.3, 0.0), 'isolated': (6, 1.12, 0.0)}[
        kind]
    return RegularPolygon(centre, corners, radius=radius * RADIUS, orientation=turned, **kwargs)


class _Matrix(_Panel):
    """The adjacency matrix: an entry in the column of the source and the row of the target, nodes on the diagonal."""

    def __init__(self, graph: Graph, largest: int) -> None:
        super().__init__(graph)
        self.cell = MATRIX / largest  # of all panels
        side = self.cell * graph.num_nodes
        self.box = -1.0, side, -side, 0.4

    def draw(self, axes: Axes, prefix: str, points: float, theme: Theme) -> None:
        from matplotlib.patches import PathPatch, Rectangle
        from matplotlib.path import Path

        graph, cell = self.graph, self.cell
        side = cell * graph.num_nodes
        axes.add_patch(Rectangle((0, -side), side, side, facecolor='none', edgecolor=theme.edge, linewidth=points))
        corners = [(source * cell + dx * cell, -(target + dy) * cell) for source, target in graph.edges
                   for dx, dy in ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))]
        codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(graph.edges)
        if corners:
            axes.add_patch(PathPatch(Path(corners, codes), facecolor=theme.ink, edgecolor='none',
                                     rasterized=len(graph.edges) > MOST_ENTRIES, gid=f'{prefix}edges'))
        for kind in _KINDS:
            nodes = [node for node in range(graph.num_nodes) if self.kind(node) == kind]
            if nodes and kind != 'node':
                colour = theme.output if kind == 'output' else theme.input
                axes.plot([(node + 0.5) * cell for node in nodes], [-(node + 0.5) * cell for node in nodes],
                          linestyle='none', marker=_MARKERS[kind], markersize=max(3.5, 18 * cell) * points,
                          markerfacecolor=colour, markeredgecolor=theme.ink, markeredgewidth=0.4 * points,
                          gid=f'{prefix}{kind}s')
        for node in {0, graph.num_nodes - 1}:
            axes.text(-0.15, -(node + 0.5) * cell, str(node), ha='right', va='center', fontsize=8 * points,
                      color=theme.edge)
            axes.text((node + 0.5) * cell, 0.1, str(node), ha='center', va='bottom', fontsize=8 * points,
                      color=theme.edge)
        axes.text(side / 2, 0.1, 'source →', ha='center', va='bottom', fontsize=9 * points, color=theme.edge)
        axes.text(-0.15, -side / 2, '← target', ha='right', va='center', rotation=90, fontsize=9 * points,
                  color=theme.edge)


def _caption(graph: Graph) -> str:
    def count(number: int, noun: str) -> str:
        return f'{number} {noun}' + ('' if number == 1 else 's')

    return (f'N = {graph.num_nodes}, {count(len(graph.edges), "edge")}\n'
            f'{count(len(graph.inputs), "input")}, {count(len(graph.outputs), "output")}')


def _draw_legend(
        figure: Figure, kinds: list[str], as_matrix: bool, total_height: float, points: float, theme: Theme,
) -> None:
    from matplotlib.lines import Line2D

    faces = {'input': theme.input, 'output': theme.output, 'node': theme.node, 'isolated': theme.input}
    labels = {'input': 'input', 'output': 'output (sink)', 'node': 'node', 'isolated': 'isolated: both'}
    handles = []
    for kind in kinds:
        if kind == 'node' and as_matrix:
            handles.append(Line2D([], [], linestyle='none', marker='s', markersize=6 * points, color=theme.ink,
                                  label='edge'))
            continue
        half: dict[str, Any] = {'fillstyle': 'left', 'markerfacecoloralt': theme.output} if kind == 'isolated' else {}
        handles.append(Line2D([], [], linestyle='none', marker=_MARKERS[kind], markersize=9 * points,
                              markerfacecolor=faces[kind], markeredgecolor=theme.ink, markeredgewidth=0.7 * points,
                              label=labels[kind], **half))
    figure.legend(handles=handles, loc='lower center', ncols=4, frameon=False, fontsize=10 * points,
                  labelcolor=theme.ink, bbox_to_anchor=(0.5, 0.25 / total_height), borderaxespad=0, handletextpad=0.2)
