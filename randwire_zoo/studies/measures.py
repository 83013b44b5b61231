"""Measures of a network's graphs, which its accuracy is compared with, and of their nodes and edges, for damage."""
from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache

from ..graphs import Graph
from ..ordering import lowest_peak_order, peak_memory

__all__ = ['depths', 'edge_betweenness', 'graph_measures', 'node_betweenness']


def graph_measures(graphs: Sequence[Graph]) -> dict[str, float]:
    """Means over the stages of:

    edges, degree      of the undirected graph, as the next three
    path length        mean shortest path over all pairs of the largest component, L of "Graph Structure of Neural
                       Networks" (You et al., ICML 2020)
    clustering         Watts and Strogatz' coefficient, mean over the nodes, C there
    betweenness        share of the shortest paths between others that pass through a node, of the node that has most
    depth              nodes on the longest path of the DAG, as the rest is of the DAG
    edge depth         the same of the longest path that ends with an edge, mean over the edges
    paths              decimal logarithm of the number of paths from an input to a sink
    inputs, sinks      nodes without predecessors, without successors
    peak memory        in the order that needs least, in outputs of a node, see `ordering.peak_memory`

    Args:
        graphs: One graph per stage; without any there are no measures.
    """
    import networkx
    collected: dict[str, list[float]] = {}
    for graph in graphs:
        undirected = graph.to_networkx().to_undirected()
        largest = undirected.subgraph(max(networkx.connected_components(undirected), key=len))
        depth = depths(graph)
        for name, value in (
                ('edges', len(graph.edges)), ('degree', 2 * len(graph.edges) / graph.num_nodes),
                ('path length', networkx.average_shortest_path_length(largest)),
                ('clustering', networkx.average_clustering(undirected)),
                ('betweenness', max(node_betweenness(graph))),
                ('depth', max(depth)),
                ('edge depth', statistics.fmean(depth[target] for _, target in graph.edges) if graph.edges else 0),
                ('paths', math.log10(number_of_paths(graph))),
                ('inputs', len(graph.inputs)), ('sinks', len(graph.outputs)),
                ('peak memory', peak_memory(graph, lowest_peak_order(graph)))):
            collected.setdefault(name, []).append(float(value))
    return {name: statistics.fmean(values) for name, values in collected.items()}


def depths(graph: Graph) -> list[int]:
    """For each node the nodes on the longest path that ends there, itself included; of an edge, that of its target."""
    found = [1] * graph.num_nodes
    for source, target in graph.edges:  # by target, so that what leads to a source has been seen
        found[target] = max(found[target], found[source] + 1)
    return found


def number_of_paths(graph: Graph) -> int:
    """The paths from an input to a sink. An isolated node is one by itself."""
    found = [0 if sources else 1 for sources in graph.predecessors]
    for source, target in graph.edges:
        found[target] += found[source]
    return sum(found[sink] for sink in graph.outputs)


@lru_cache(maxsize=4096)
def node_betweenness(graph: Graph) -> tuple[float, ...]:
    """Freeman's betweenness (1977) of each node in the undirected graph, from 0 to 1."""
    import networkx
    found = networkx.betweenness_centrality(graph.to_networkx().to_undirected())
    return tuple(found[node] for node in range(graph.num_nodes))


@lru_cache(maxsize=4096)
def edge_betweenness(graph: Graph) -> Mapping[tuple[int, int], float]:
    """The same of each edge (Girvan and Newman, 2002)."""
    import networkx
    found = networkx.edge_betweenness_centrality(graph.to_networkx().to_undirected())
    return {(min(edge), max(edge)): value for edge, value in found.items()}
