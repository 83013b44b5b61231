"""What studies measure of graphs, against formulas and counting; and the images that damage is measured on."""
from __future__ import annotations

import itertools
import json
import math
import random
import statistics
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest
import torch
from scipy.stats import spearmanr
from timm.data import create_loader
from torch.utils.data import Dataset

from randwire_zoo.graphs import Graph, parse_graph_model, sample_graphs
from randwire_zoo.studies.analysis import correlate
from randwire_zoo.studies.measures import depths, edge_betweenness, graph_measures, node_betweenness
from randwire_zoo.studies.work import _spread


def complete(n: int) -> Graph:
    return Graph(n, tuple(itertools.combinations(range(n), 2)))


def path(n: int) -> Graph:
    return Graph(n, tuple((i, i + 1) for i in range(n - 1)))


@pytest.mark.parametrize('n', [5, 8, 13])
def test_measures_of_graphs_with_a_formula(n: int) -> None:
    half = (n - 1) // 2
    # In a complete DAG node j is as deep as its index, and any subset of those between the ends is a path.
    assert graph_measures([complete(n)]) == pytest.approx({
        'edges': n * (n - 1) / 2, 'degree': n - 1, 'path length': 1, 'clustering': 1, 'betweenness': 0, 'depth': n,
        'edge depth': 2 * (n + 1) / 3, 'paths': (n - 2) * math.log10(2), 'inputs': 1, 'sinks': 1, 'peak memory': n})
    # The mean distance on a path is (N + 1) / 3; what is on one side of its middle reaches the other through it.
    assert graph_measures([path(n)]) == pytest.approx({
        'edges': n - 1, 'degree': 2 * (n - 1) / n, 'path length': (n + 1) / 3, 'clustering': 0,
        'betweenness': half * (n - 1 - half) / ((n - 1) * (n - 2) / 2), 'depth': n, 'edge depth': (n + 2) / 2,
        'paths': 0, 'inputs': 1, 'sinks': 1, 'peak memory': 3})
    star = Graph(n, tuple((0, i) for i in range(1, n)))
    assert graph_measures([star]) == pytest.approx({
        'edges': n - 1, 'degree': 2 * (n - 1) / n, 'path length': 2 - 2 / n, 'clustering': 0, 'betweenness': 1,
        'depth': 2, 'edge depth': 2, 'paths': math.log10(n - 1), 'inputs': 1, 'sinks': n - 1, 'peak memory': 3})
    assert graph_measures([Graph(n, ())]) == pytest.approx({
        'edges': 0, 'degree': 0, 'path length': 0, 'clustering': 0, 'betweenness': 0, 'depth': 1, 'edge depth': 0,
        'paths': math.log10(n), 'inputs': n, 'sinks': n, 'peak memory': 4})
    assert graph_measures([]) == {}
    # Of several components the largest counts, wherever it stands; a pair is one.
    assert graph_measures([Graph(5, ((0, 1), (2, 3), (3, 4)))])['path length'] == pytest.approx(4 / 3)
    assert graph_measures([Graph(3, ((1, 2),))])['path length'] == 1
    # Means over stages.
    assert graph_measures([complete(n), Graph(n, ())])['depth'] == (n + 1) / 2


def test_measures_of_a_ring_lattice() -> None:
    """WS(K, 0): clustering 3 (K − 2) / (4 (K − 1)) (Newman, 2003), a longest path through all nodes."""
    for n, k in ((32, 4), (32, 6), (20, 8)):
        found = graph_measures(sample_graphs(parse_graph_model(f'ws({k},0)'), (n,) * 3, 1))
        steps = [-(-min(i, n - i) // (k // 2)) for i in range(1, n)]
        expected = {'edges': n * k / 2, 'degree': k, 'clustering': 3 * (k - 2) / (4 * (k - 1)), 'depth': n,
                    'path length': sum(steps) / (n - 1),
                    # All nodes are alike, and what passes through them is what distances exceed 1 by.
                    'betweenness': (sum(steps) / (n - 1) - 1) / (n - 2)}
        assert {name: found[name] for name in expected} == pytest.approx(expected)


def ways(graph: Graph, node: int) -> Iterator[tuple[int, ...]]:
    """Every path from a node to a sink."""
    if not graph.successors[node]:
        yield (node,)
    for following in graph.successors[node]:
        for rest in ways(graph, following):
            yield (node, *rest)


def test_measures_of_random_graphs_are_those_that_counting_gives() -> None:
    rng = random.Random(0)
    for seed in range(12):
        graph, = sample_graphs(parse_graph_model(rng.choice(('er(0.25)', 'ba(2)', 'ws(4,0.5)'))), (12,), seed)
        n = graph.num_nodes
        near = [set(graph.predecessors[i]) | set(graph.successors[i]) for i in range(n)]
        clustering = sum(
            sum(b in near[a] for a, b in itertools.combinations(near[i], 2)) / (len(near[i]) * (len(near[i]) - 1) / 2)
            for i in range(n) if len(near[i]) > 1) / n
        longest = [1] * n
        for source, target in graph.edges:  # by target
            longest[target] = max(longest[target], longest[source] + 1)
        parts, distances = [], []
        for start in range(n):
            reached, queue = {start: 0}, deque([start])
            while queue:
                node = queue.popleft()
                for other in near[node] - reached.keys():
                    reached[other] = reached[node] + 1
                    queue.append(other)
            parts.append(reached)
        largest = max(map(len, parts))
        if sum(len(part) == largest for part in parts) == largest:  # of two as large, networkx takes the first
            distances = [d for part in parts if len(part) == largest for other, d in part.items() if d]
            assert graph_measures([graph])['path length'] == pytest.approx(sum(distances) / len(distances))
        found = graph_measures([graph])
        assert found['clustering'] == pytest.approx(clustering) and found['depth'] == max(longest)
        assert found['clustering'] == pytest.approx(networkx.average_clustering(graph.to_networkx().to_undirected()))
        assert found['degree'] == sum(map(len, near)) / n and found['edges'] == len(graph.edges)
        everything = [way for start in graph.inputs for way in ways(graph, start)]
        assert 10 ** found['paths'] == pytest.approx(len(everything)) and max(map(len, everything)) == max(longest)
        assert depths(graph) == longest
        assert found['edge depth'] == pytest.approx(sum(
            max(way.index(target) + 1 for way in everything if target in way) for _, target in graph.edges)
            / len(graph.edges))


def test_betweenness_is_the_share_of_shortest_paths() -> None:
    graph, = sample_graphs(parse_graph_model('ws(4,0.5)'), (9,), 3)
    undirected = graph.to_networkx().to_undirected()
    nodes, edges = [0.0] * 9, dict.fromkeys(graph.edges, 0.0)
    for a, b in itertools.combinations(range(9), 2):
        ways = list(networkx.all_shortest_paths(undirected, a, b))
        for way in ways:
            for node in way[1:-1]:
                nodes[node] += 1 / len(ways) / (8 * 7 / 2)
            for one, other in itertools.pairwise(way):
                edges[min(one, other), max(one, other)] += 1 / len(ways) / (9 * 8 / 2)
    assert node_betweenness(graph) == pytest.approx(nodes) and edge_betweenness(graph) == pytest.approx(edges)
    assert graph_measures([graph])['betweenness'] == pytest.approx(max(nodes))


class Numbered(Dataset):  # type: ignore[type-arg]
    """Pictures whose class is their place."""

    transform = None

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 4, 4), index % 256, dtype=torch.uint8), index


@pytest.mark.parametrize('prefetched', [True, False])
@pytest.mark.parametrize('total, count', [(10_000, 300), (100, 7), (50, 50), (5, 300)])
def test_images_for_damage_lie_evenly_over_the_whole_split(total: int, count: int, prefetched: bool) -> None:
    """Folders hold one class after another: the first images are of one class."""
    images = Numbered(total)
    loader = create_loader(images, (3, 4, 4), 16, use_prefetcher=prefetched, num_workers=0, device=torch.device('cpu'),
                           persistent_workers=False)
    images.transform = None
    spread = _spread(loader, count)
    base = getattr(spread, 'loader', spread)
    seen = [index for _, targets in base for index in torch.as_tensor(targets).tolist()]
    assert len(seen) == len(set(seen)) == min(total, count) and seen == sorted(seen)
    steps = {b - a for a, b in itertools.pairwise(seen)}
    assert max(steps) - min(steps) <= 1 and seen[0] == 0 and total - seen[-1] <= max(steps)
    assert base.batch_size == 16


def test_measures_are_those_of_a_published_table_of_random_dags() -> None:
    """Sixteen of the 1,030 networks of Nowak and Janik, whose features are square roots of values scaled to 0 … 1."""
    rows = json.loads((Path(__file__).parent / 'golden' / 'random_dags.json').read_text(encoding='utf-8'))['rows']
    measures = [graph_measures([Graph(30, tuple(map(tuple, row['edges'])))]) for row in rows]
    assert len(rows) == 16
    # Of graphs with as many nodes, Wiener's index, the sum of all shortest paths, is the mean path but for a factor.
    for theirs, ours in (('log_paths', 'paths'), ('max_path', 'depth'), ('average_clustering', 'clustering'),
                         ('wiener_index', 'path length'), ('num_edges', 'edges')):
        squares = [row[theirs] ** 2 for row in rows]
        r = statistics.correlation(squares, [found[ours] for found in measures])
        assert r == pytest.approx(1, abs=1e-9), theirs
        # The order of the accuracies by theirs is that by ours.
        by_both = [correlate({'all': [(x, row['test_acc']) for x, row in zip(side, rows, strict=True)]}, rank=True)
                   for side in (squares, [round(found[ours], 9) for found in measures])]
        expected = spearmanr(squares, [row['test_acc'] for row in rows])[0]
        assert [one.over_all for one in by_both] == pytest.approx([expected] * 2)
