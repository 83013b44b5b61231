"""Measures of a network's graphs that its accuracy is compared with."""
from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..graphs import Graph

__all__ = ['graph_measures']


def graph_measures(graphs: Sequence[Graph]) -> dict[str, float]:
    """Means over the stages of:

    edges, degree      of the undirected graph, as the two below
    path length        mean shortest path over all pairs of the largest component
    clustering         Watts and Strogatz' coefficient, mean over the nodes
    depth              nodes on the longest path of the DAG
    inputs, sinks      nodes without predecessors, without successors

    Args:
        graphs: One graph per stage; without any there are no measures.
    """
    import networkx
    collected: dict[str, list[float]] = {}
    for graph in graphs:
        directed = graph.to_networkx()
        undirected = directed.to_undirected()
        largest = undirected.subgraph(max(networkx.connected_components(undirected), key=len))
        for name, value in (
                ('edges', len(graph.edges)), ('degree', 2 * len(graph.edges) / graph.num_nodes),
                ('path length', networkx.average_shortest_path_length(largest)),
                ('clustering', networkx.average_clustering(undirected)),
                ('depth', networkx.dag_longest_path_length(directed) + 1),
                ('inputs', len(graph.inputs)), ('sinks', len(graph.outputs))):
            collected.setdefault(name, []).append(float(value))
    return {name: statistics.fmean(values) for name, values in collected.items()}
