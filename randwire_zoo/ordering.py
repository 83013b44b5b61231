"""The order in which the nodes of a stage run: the topological order whose peak of memory is the lowest.

Any topological order computes the same. What differs is how many results wait for their readers at once, and that is
the memory of a stage. The problem was posed for networks like these by Ahn et al., "Ordering Chaos: Memory-Aware
Scheduling of Irregularly Wired Neural Networks for Edge Devices" (MLSys 2020). Here it is a shortest path, by the
worst step, through the sets of nodes that have run; N = 32 takes a few hundred to ten thousand of them.
"""
from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import lru_cache

from .graphs import Graph

__all__ = ['lowest_peak_order', 'peak_memory']

#: Nodes up to which the exact search is tried, and sets of nodes that it may look at: the frozen graphs need up to ten
#: thousand, a tenth of a second.
EXACT_NODES, LIMIT = 40, 20_000


def peak_memory(graph: Graph, order: Sequence[int], input_size: float = 2.0) -> float:
    """The most memory that a stage's data take while it runs in an order, in units of one node's output.

    Counted while a node runs are its own output, every earlier output that some later node, or this one, still reads,
    one sum of the sinks that have run (the stage's output), and the stage's input as long as an original input node
    has not run.

    Args:
        graph: The wiring.
        order: All nodes, each after its predecessors.
        input_size: Size of the stage's input: 2 where the stage halves the resolution and doubles the width.

    Raises:
        ValueError: if the order is no topological one.
    """
    if sorted(order) != list(range(graph.num_nodes)):
        raise ValueError(f'an order names every node from 0 to {graph.num_nodes - 1} once, got {list(order)}')
    state = _Sets(graph, input_size)
    done, peak = 0, 0.0
    for node in order:
        if state.sources[node] & ~done:
            raise ValueError(f'node {node} runs before one of its predecessors {list(graph.predecessors[node])}')
        peak = max(peak, state.waiting(done) + 1)
        done |= 1 << node
    return peak


@lru_cache(maxsize=1024)
def lowest_peak_order(graph: Graph, input_size: float = 2.0, limit: int | None = None) -> tuple[int, ...]:
    """A topological order with the lowest `peak_memory` there is.

    Args:
        graph: The wiring.
        input_size: Size of the stage's input in units of one node's output.
        limit: Sets of nodes to look at before the exact search is given up; by default 20,000 for up to 40 nodes, and
            none for more. The order is then the better one of that of the indices and of always running the node that
            leaves the least behind.

    Returns:
        The nodes in the order in which to run them.
    """
    if limit is None:
        limit = LIMIT if graph.num_nodes <= EXACT_NODES else 0
    return _search(graph, input_size, limit) or min(
        (tuple(range(graph.num_nodes)), _greedy(graph, input_size)),
        key=lambda order: peak_memory(graph, order, input_size))


class _Sets:
    """Sets of nodes that have run, as bits of an integer, and what waits after each."""

    def __init__(self, graph: Graph, input_size: float) -> None:
        self.num_nodes = graph.num_nodes
        self.everything = (1 << graph.num_nodes) - 1
        self.sources = [_bits(nodes) for nodes in graph.predecessors]
        self.targets = [_bits(nodes) for nodes in graph.successors]
        self.inputs, self.sinks = _bits(graph.inputs), _bits(graph.outputs)
        self.input_size = input_size

    def waiting(self, done: int) -> float:
        """The data that are kept once the nodes of `done` have run."""
        count, rest = 0, done & ~self.sinks
        while rest:
            lowest = rest & -rest
            count += bool(self.targets[lowest.bit_length() - 1] & ~done)
            rest ^= lowest
        return count + bool(done & self.sinks) + (self.input_size if self.inputs & ~done else 0)

    def ready(self, done: int) -> list[int]:
        """The nodes that can run next."""
        return [node for node in range(self.num_nodes)
                if not done >> node & 1 and not self.sources[node] & ~done]


def _bits(nodes: Sequence[int]) -> int:
    return sum(1 << node for node in nodes)


def _search(graph: Graph, input_size: float, limit: int) -> tuple[int, ...] | None:
    """The exact order, or None where more than `limit` sets would have to be looked at."""
    sets = _Sets(graph, input_size)
    best: dict[int, tuple[float, int]] = {0: (0.0, -1)}  # peak on the way to a set, and the node that ran last
    heap: list[tuple[float, int, int]] = [(0.0, 0, 0)]  # at equal peaks the fullest set first: it is nearly there
    closed: set[int] = set()
    while heap:
        peak, rank, done = heapq.heappop(heap)
        if done in closed:
            continue
        if done == sets.everything:
            return _way_to(done, best)
        if len(closed) == limit:
            return None
        closed.add(done)
        waiting = sets.waiting(done)
        peak = max(peak, waiting + 1)
        ready = sets.ready(done)
        # Every node that could run next costs the same now. One that leaves no more behind than there was can be run
        # at once: the later it ran, the more of its sources it would free, never the fewer, but they would wait longer.
        ready = next(([node] for node in ready if sets.waiting(done | 1 << node) <= waiting), ready)
        for node in ready:
            following = done | 1 << node
            if following not in closed and peak < best.get(following, (float('inf'), -1))[0]:
                best[following] = peak, node
                heapq.heappush(heap, (peak, rank - 1, following))
    raise AssertionError('a graph without cycles always has an order')


def _way_to(done: int, best: dict[int, tuple[float, int]]) -> tuple[int, ...]:
    order: list[int] = []
    while done:
        node = best[done][1]
        order.append(node)
        done ^= 1 << node
    return tuple(reversed(order))


def _greedy(graph: Graph, input_size: float) -> tuple[int, ...]:
    sets, order, done = _Sets(graph, input_size), [], 0
    while done != sets.everything:
        node = min(sets.ready(done), key=lambda node: sets.waiting(done | 1 << node))
        order.append(node)
        done |= 1 << node
    return tuple(order)
