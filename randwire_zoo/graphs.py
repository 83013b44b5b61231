"""Graphs and the classical random graph models that sample them (paper sections 3.2 and 3.3).

A stage of a RandWire network is wired by one directed acyclic graph. `Graph` is that DAG as a frozen value;
`ErdosRenyi`, `BarabasiAlbert` and `WattsStrogatz` sample one with networkx, and `WattsStrogatzFlex` one of any mean
degree. Nothing here needs torch, and networkx is imported only when a graph is sampled: models read their graphs from
files.
"""
from __future__ import annotations

import hashlib
import itertools
import json
import operator
import os
import random
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import networkx

__all__ = [
    'BarabasiAlbert', 'ErdosRenyi', 'Graph', 'GraphModel', 'WattsStrogatz', 'WattsStrogatzFlex', 'check_graphs',
    'graphs_sha256', 'parse_graph_model', 'sample_graphs',
]


@dataclass(frozen=True)
class Graph:
    """A directed acyclic graph on nodes 0 … num_nodes − 1 whose edges all point from the smaller index to the larger.

    Args:
        num_nodes: N, the number of nodes (the stage's extra input and output nodes are not counted, section 3.2).
        edges: Pairs (source, target) in any order; stored by target, then source.

    Raises:
        ValueError: if N < 1, an edge does not point from a smaller to a larger existing index, or is repeated.
    """

    num_nodes: int
    edges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        num_nodes = _index(self.num_nodes)
        if num_nodes is None or num_nodes < 1:
            raise ValueError(f'a graph needs at least 1 node, got num_nodes={self.num_nodes!r}')
        edges = []
        for edge in self.edges:
            source, target = map(_index, edge) if isinstance(edge, (tuple, list)) and len(edge) == 2 else (None, None)
            if source is None or target is None:
                raise ValueError(f'an edge is a pair of node indices, got {edge!r}')
            edges.append((source, target))
        edges.sort(key=lambda edge: (edge[1], edge[0]))
        for source, target in edges:
            if not 0 <= source < target < num_nodes:
                raise ValueError(
                    f'edge ({source}, {target}) must point from a smaller to a larger index '
                    f'within 0 … {num_nodes - 1}')
        for edge, following in itertools.pairwise(edges):
            if edge == following:
                raise ValueError(f'edge {edge} appears more than once')
        object.__setattr__(self, 'num_nodes', num_nodes)
        object.__setattr__(self, 'edges', tuple(edges))

    @classmethod
    def from_undirected(cls, graph: networkx.Graph) -> Graph:
        """Turn an undirected graph on nodes 0 … N − 1 into a DAG: every edge points to the larger index (supplement).

        Raises:
            ValueError: if it is directed, its nodes are not labelled 0 … N − 1, or an edge is a loop or repeated.
        """
        if graph.is_directed():
            raise ValueError(f'an undirected graph was expected, got a {type(graph).__name__}; a DAG on the nodes '
                             '0 … N − 1 is Graph(num_nodes, edges)')
        num_nodes = graph.number_of_nodes()
        if set(graph.nodes) != set(range(num_nodes)):
            raise ValueError('the nodes of an undirected graph must be labelled 0 … N − 1')
        # Called, edges are pairs of a multigraph, too.
        return cls(num_nodes, tuple((min(u, v), max(u, v)) for u, v in graph.edges()))

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """For each node the sources of its incoming edges, ascending."""
        sources: list[list[int]] = [[] for _ in range(self.num_nodes)]
        for source, target in self.edges:
            sources[target].append(source)
        return tuple(map(tuple, sources))

    @cached_property
    def successors(self) -> tuple[tuple[int, ...], ...]:
        """For each node the targets of its outgoing edges, ascending."""
        targets: list[list[int]] = [[] for _ in range(self.num_nodes)]
        for source, target in self.edges:
            targets[source].append(target)
        return tuple(map(tuple, targets))

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """The original input nodes (in-degree 0), which the stage's input feeds."""
        return tuple(node for node, sources in enumerate(self.predecessors) if not sources)

    @cached_property
    def outputs(self) -> tuple[int, ...]:
        """The original output nodes or sinks (out-degree 0), which the stage's output averages."""
        return tuple(node for node, targets in enumerate(self.successors) if not targets)

    def __repr__(self) -> str:
        """One line: of a small graph the expression that makes it, of others what tells them apart."""
        if len(self.edges) <= 10:
            return f'Graph({self.num_nodes}, {self.edges})'
        return (f'<Graph: N = {self.num_nodes}, {len(self.edges)} edges, {len(self.inputs)} inputs, '
                f'{len(self.outputs)} outputs, sha256 {self.sha256[:8]}>')

    def _repr_svg_(self) -> str:
        """The wiring, in a notebook."""
        from .drawing import draw, svg_text  # which needs this module

        return svg_text(draw(self))

    @cached_property
    def sha256(self) -> str:
        """64 hexadecimal digits that change with any change of the wiring."""
        return hashlib.sha256(json.dumps(self.to_dict(), separators=(',', ':')).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The graph as JSON data: `{"num_nodes": N, "edges": [[source, target], …]}`."""
        return {'num_nodes': self.num_nodes, 'edges': [list(edge) for edge in self.edges]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Graph:
        """Inverse of `to_dict`; raises ValueError where the data is no such graph."""
        try:
            return cls(data['num_nodes'], tuple(tuple(edge) for edge in data['edges']))
        except (KeyError, TypeError) as error:
            raise ValueError(f'not a graph as JSON data: {error!r}') from error

    def to_networkx(self) -> networkx.DiGraph:
        """The same graph as a networkx DiGraph, for graph measures and drawing."""
        import networkx

        graph = networkx.DiGraph()
        graph.add_nodes_from(range(self.num_nodes))
        graph.add_edges_from(self.edges)
        return graph


def graphs_sha256(graphs: Iterable[Graph]) -> str:
    """One hash for the wiring of a whole network: sha256 over the stages' hashes, in order of the stages."""
    return hashlib.sha256(''.join(graph.sha256 for graph in graphs).encode()).hexdigest()


def check_graphs(graphs: Iterable[Graph], recorded: str, source: object) -> None:
    """Compare the graphs read from a source with the sha256 that it records.

    Raises:
        ValueError: naming the source and both hashes, if they differ.
    """
    sha256 = graphs_sha256(graphs)
    if sha256 != recorded:
        raise ValueError(f'{source} has been altered: its graphs have sha256 {sha256}, but it records {recorded}')


class GraphModel(ABC):
    """A random graph model: the random part of the network generator g(θ, s) of section 3.1.

    A subclass is a frozen dataclass whose fields are the model's parameters, has a `name`, and says in `undirected`
    how one general graph is sampled. `str(model)` is the text that `parse_graph_model` reads, such as `ws(4,0.75)`.
    Its definition registers it, unless it is abstract itself.

    Raises:
        TypeError: if a subclass has no name of its own: it would take that of the model it is made from.
        ValueError: if the name is none that `parse_graph_model` reads, or another definition has it already, in
            whatever case. The same one may be run again, as a notebook's cell is.
    """

    name: ClassVar[str]
    registry: ClassVar[dict[str, type[GraphModel]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if 'name' not in vars(cls):
            if getattr(cls.undirected, '__isabstractmethod__', False):
                return
            raise TypeError(f"the random graph model {cls.__name__} needs a name of its own: name: ClassVar[str] = '…'")
        if not isinstance(cls.name, str) or not re.fullmatch(r'\w+', cls.name):
            raise ValueError(f'the name of the random graph model {cls.__name__} must be of letters, digits and _, got '
                             f'{cls.name!r}')
        key = cls.name.lower()  # as `parse_graph_model` looks it up
        known = GraphModel.registry.get(key)
        if known is not None and _definition(known) != _definition(cls):
            raise ValueError(f'the name {cls.name!r} of the random graph model {cls.__name__} is that of '
                             f'{known.__module__}.{known.__qualname__}; give it another')
        GraphModel.registry[key] = cls

    @abstractmethod
    def undirected(self, num_nodes: int, rng: random.Random) -> networkx.Graph:
        """Sample an undirected graph on nodes 0 … num_nodes − 1, labelled in the order that the DAG shall have."""

    def check(self, num_nodes: int) -> None:  # noqa: B027 - most models take any N
        """Raise ValueError where the model's parameters do not allow N = num_nodes."""

    def sample(self, num_nodes: int, rng: random.Random) -> Graph:
        """Sample a general graph and turn it into a DAG (section 3.2 and supplement).

        Raises:
            ValueError: if num_nodes is below 1 or too small for the model's parameters, or the model gives
                another number of nodes.
        """
        if not _is_int(num_nodes) or num_nodes < 1:
            raise ValueError(f'num_nodes must be an integer of at least 1, got {num_nodes!r}')
        self.check(num_nodes)
        graph = Graph.from_undirected(self.undirected(num_nodes, rng))
        if graph.num_nodes != num_nodes:  # as N, the wrong number would be on record
            raise ValueError(f'{self} sampled a graph of {graph.num_nodes} nodes for num_nodes={num_nodes}: the random '
                             f'graph model {type(self).__name__} must give as many as it is asked for')
        return graph

    def __str__(self) -> str:
        parameters = ','.join(f'{getattr(self, name)}' for name in _parameters(type(self)))
        return f'{self.name}({parameters})'


def _parameters(model: type[GraphModel]) -> list[str]:
    """The names of a model's parameters; ValueError where its class lacks the decorator that makes them."""
    if not is_dataclass(model):
        raise ValueError(f'the random graph model {model.__name__} is no dataclass: write @dataclass(frozen=True) '
                         'above its class')
    return [field.name for field in fields(model)]


def _definition(model: type[GraphModel]) -> tuple[str, str]:
    """Where a class is written, whatever name its file was imported by; in a notebook no file is known.

    Without `__qualname__`: `dataclass(slots=True)` makes the class a second time, and gives it that one later.
    """
    file = getattr(sys.modules.get(model.__module__), '__file__', None)
    return os.path.realpath(file) if file else model.__module__, model.__name__


@dataclass(frozen=True)
class ErdosRenyi(GraphModel):
    """ER(P): each of the N(N−1)/2 pairs is an edge with probability P, independently (Gilbert's model [9], [7]).

    Disconnected graphs are legal. The nodes are exchangeable, so the sampled order serves as the order of the DAG.
    """

    p: float
    name: ClassVar[str] = 'er'

    def __post_init__(self) -> None:
        _check_probability('ER(P)', self.p)

    def undirected(self, num_nodes: int, rng: random.Random) -> networkx.Graph:
        import networkx

        return networkx.gnp_random_graph(num_nodes, self.p, seed=rng)


@dataclass(frozen=True)
class BarabasiAlbert(GraphModel):
    """BA(M): M nodes without edges; each later node adds M edges, chosen in proportion to degree [1].

    The first added node finds only degrees of zero and connects to all M. Exactly M·(N − M) edges; indices are the
    order of addition, so nodes 0 … M − 1 are the DAG's inputs.
    """

    m: int
    name: ClassVar[str] = 'ba'

    def __post_init__(self) -> None:
        _check_integer('BA(M)', 'M', self.m, minimum=1)

    def check(self, num_nodes: int) -> None:
        if self.m >= num_nodes:
            raise ValueError(f'BA(M) needs M < N, got M={self.m} and N={num_nodes}')

    def undirected(self, num_nodes: int, rng: random.Random) -> networkx.Graph:
        import networkx

        # networkx >= 2.7 starts from a star centred on node 0, which would make node 0 the only input. The star
        # centred on node M is the paper's process after its first step, with the nodes in the order of addition.
        start = networkx.Graph()
        start.add_nodes_from(range(self.m + 1))
        start.add_edges_from((node, self.m) for node in range(self.m))
        return networkx.barabasi_albert_graph(num_nodes, self.m, seed=rng, initial_graph=start)


@dataclass(frozen=True)
class WattsStrogatz(GraphModel):
    """WS(K, P): a ring where each node has K/2 neighbours on either side, each edge rewired with probability P [51].

    N·K/2 undirected edges (the paper's "N·K" counts both directions). Indices run clockwise along the ring.
    """

    k: int
    p: float
    name: ClassVar[str] = 'ws'

    def __post_init__(self) -> None:
        _check_integer('WS(K, P)', 'K', self.k, minimum=2)
        if self.k % 2:
            raise ValueError(f'WS(K, P) needs an even K, got K={self.k}')
        _check_probability('WS(K, P)', self.p)

    def check(self, num_nodes: int) -> None:
        if self.k >= num_nodes:
            raise ValueError(f'WS(K, P) needs K < N, got K={self.k} and N={num_nodes}')

    def undirected(self, num_nodes: int, rng: random.Random) -> networkx.Graph:
        import networkx

        return networkx.watts_strogatz_graph(num_nodes, self.k, self.p, seed=rng)


@dataclass(frozen=True)
class WattsStrogatzFlex(GraphModel):
    """WS-flex(K, P): WS with a mean degree K that is any real number from 2 to N − 1 (You et al., "Graph Structure of
    Neural Networks", ICML 2020), so that path length and clustering can be chosen finely.

    Of round(N·K/2) undirected edges every node has as many to its next ones clockwise, the first nodes one more where
    they do not divide. Each is rewired with probability P to a uniform non-self, non-duplicate node, node by node. What
    is not connected is thrown away and sampled again, as there.
    """

    k: float
    p: float
    name: ClassVar[str] = 'ws_flex'
    tries: ClassVar[int] = 100

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, (int, float)) or not self.k >= 2:  # NaN fails this too
            raise ValueError(f'WS-flex(K, P) needs a number K of at least 2, got K={self.k!r}')
        _check_probability('WS-flex(K, P)', self.p)

    def check(self, num_nodes: int) -> None:
        if self.k > num_nodes - 1:
            raise ValueError(f'WS-flex(K, P) needs K of at most N − 1, got K={self.k} and N={num_nodes}')

    def undirected(self, num_nodes: int, rng: random.Random) -> networkx.Graph:
        import networkx

        for _ in range(self.tries):
            graph = self._any(num_nodes, rng)
            if networkx.is_connected(graph):
                return graph
        raise ValueError(f'{self} gave no connected graph on {num_nodes} nodes in {self.tries} tries')

    def _any(self, num_nodes: int, rng: random.Random) -> networkx.Graph:
        import networkx

        each, rest = divmod(round(num_nodes * self.k / 2), num_nodes)
        lattice = [(node, (node + step) % num_nodes) for node in range(num_nodes)
                   for step in range(1, each + (node < rest) + 1)]
        graph = networkx.Graph()
        graph.add_nodes_from(range(num_nodes))
        graph.add_edges_from(lattice)
        for node, neighbour in lattice:
            if rng.random() >= self.p or graph.degree(node) >= num_nodes - 1:
                continue
            free = [other for other in range(num_nodes) if other != node and not graph.has_edge(node, other)]
            graph.remove_edge(node, neighbour)
            graph.add_edge(node, rng.choice(free))
        return graph


def parse_graph_model(text: str) -> GraphModel:
    """Read a random graph model written as in the paper: `er(0.2)`, `ba(5)`, `ws(4,0.75)`; case does not matter.

    Raises:
        ValueError: if the model is unknown, or a parameter is missing, extra, no number or out of range; also if it is
            no text but a model, which timm could not write into a config.json.
    """
    if isinstance(text, GraphModel):
        raise ValueError(f'a random graph model is given by its text, {str(text)!r}, got {text!r}')
    match = re.fullmatch(r'\s*(\w+)\s*\(([^()]*)\)\s*', text if isinstance(text, str) else '')
    cls = GraphModel.registry.get(match[1].lower()) if match else None
    if match is None or cls is None:
        known = ', '.join(f'{name}({",".join(_parameters(model))})'
                          for name, model in sorted(GraphModel.registry.items()) if is_dataclass(model))
        raise ValueError(f'unknown random graph model {text!r}; known are {known}, and one of your own once its module '
                         'is imported, as --device-modules does')
    names = _parameters(cls)
    values = [value.strip() for value in match[2].split(',')] if match[2].strip() else []
    if len(values) != len(names):
        raise ValueError(f'{cls.name}({",".join(names)}) takes {len(names)} number{"s"[:len(names) > 1]}, got {text!r}')
    numbers: list[float] = []
    for value in values:
        try:
            numbers.append(int(value) if re.fullmatch(r'[+-]?\d+', value) else float(value))
        except ValueError:
            raise ValueError(f'{value!r} in {text!r} is not a number') from None
    return cls(**dict(zip(names, numbers, strict=True)))


def sample_graphs(model: GraphModel, node_counts: Sequence[int], seed: int) -> tuple[Graph, ...]:
    """Sample one graph per stage, a different one for each, from a single random stream: g(θ, s) of section 3.1.

    Args:
        model: The random graph model.
        node_counts: N of each stage, first stage first.
        seed: s; the same seed always gives the same graphs.

    Raises:
        ValueError: if the seed is no non-negative integer, a node count does not suit the model, or the model does not
            sample the same graphs twice.
    """
    if not _is_int(seed) or seed < 0:
        raise ValueError(f'seed must be a non-negative integer, got {seed!r}')

    def sample() -> tuple[Graph, ...]:
        rng = random.Random(seed)
        return tuple(model.sample(num_nodes, rng) for num_nodes in node_counts)

    graphs = sample()
    # Weights trained on a wiring that nobody can sample again would be lost.
    if sample() != graphs:
        raise ValueError(f'{model} sampled two different wirings from seed {seed}: the random graph model '
                         f'{type(model).__name__} must draw from its rng alone')
    return graphs


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _index(value: Any) -> int | None:
    """An integer, numpy's too, as Python's own, which JSON can hold; None for anything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _check_integer(model: str, symbol: str, value: object, minimum: int) -> None:
    if not _is_int(value) or value < minimum:  # type: ignore[operator]
        raise ValueError(f'{model} needs an integer {symbol} of at least {minimum}, got {symbol}={value!r}')


def _check_probability(model: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:  # NaN fails this too
        raise ValueError(f'{model} needs a probability P within [0, 1], got P={value!r}')
