"""The random graph models against processes written down here from the paper's sections 3.2 and 3.3."""
from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import networkx
import numpy
import pytest

from randwire_zoo.graphs import (
    BarabasiAlbert,
    ErdosRenyi,
    Graph,
    GraphModel,
    WattsStrogatz,
    WattsStrogatzFlex,
    check_graphs,
    graphs_sha256,
    parse_graph_model,
    sample_graphs,
)

MODELS = [
    *(ErdosRenyi(p) for p in (0, 0.2, 0.4, 0.6, 0.8, 1)),
    *(BarabasiAlbert(m) for m in (1, 2, 3, 5, 7)),
    *(WattsStrogatz(k, p) for k in (2, 4, 6, 8) for p in (0, 0.25, 0.5, 0.75, 1.0)),
]

Edges = frozenset[tuple[int, int]]


def samples(model: GraphModel, num_nodes: int, count: int) -> Iterator[Graph]:
    rng = random.Random(2019)
    for _ in range(count):
        yield model.sample(num_nodes, rng)


def deviation(counts: Counter[Edges], probabilities: dict[Edges, float]) -> float:
    """Chi-square of observed graphs, in standard deviations of its distribution; above 4 the law is another."""
    assert math.isclose(sum(probabilities.values()), 1.0)
    assert set(counts) <= set(probabilities)
    total = sum(counts.values())
    chi_square = sum((counts[graph] - total * p) ** 2 / (total * p) for graph, p in probabilities.items())
    return (chi_square - (len(probabilities) - 1)) / math.sqrt(2 * (len(probabilities) - 1))


# The paper's processes, naively


def naive_watts_strogatz(n: int, k: int, p: float, rng: random.Random) -> set[frozenset[int]]:
    edges = {frozenset((v, (v + i) % n)) for v in range(n) for i in range(1, k // 2 + 1)}
    for i in range(1, k // 2 + 1):
        for v in range(n):
            if rng.random() < p:
                if all(frozenset((v, w)) in edges for w in range(n) if w != v):
                    rng.choice(range(n)), rng.choice(range(n))  # nowhere to go: networkx gives up after two draws
                    continue
                w = rng.choice(range(n))
                while w == v or frozenset((v, w)) in edges:
                    w = rng.choice(range(n))
                edges.remove(frozenset((v, (v + i) % n)))
                edges.add(frozenset((v, w)))
    return edges


def barabasi_albert_law(n: int, m: int) -> dict[Edges, float]:
    """The probability of every graph of BA(M), by following every choice of every added node."""
    law: dict[Edges, float] = {frozenset((v, m) for v in range(m)): 1.0}  # all degrees are 0: connect to all M
    for node in range(m + 1, n):
        following: dict[Edges, float] = {}
        for edges, probability in law.items():
            degree = [sum(v in edge for edge in edges) for v in range(node)]
            for chosen in itertools.permutations(range(node), m):
                p, left = probability, sum(degree)
                for v in chosen:
                    p *= degree[v] / left
                    left -= degree[v]
                if p > 0:
                    graph = edges | {(v, node) for v in chosen}
                    following[graph] = following.get(graph, 0.0) + p
        law = following
    return law


def erdos_renyi_law(n: int, p: float) -> dict[Edges, float]:
    pairs = list(itertools.combinations(range(n), 2))
    return {
        frozenset(edges): p ** size * (1 - p) ** (len(pairs) - size)
        for size in range(len(pairs) + 1) for edges in itertools.combinations(pairs, size)}


@pytest.mark.parametrize(('n', 'k', 'p'), [
    (32, 4, 0.75), (32, 2, 0.25), (32, 8, 1.0), (16, 6, 0.5), (7, 6, 0.75), (5, 4, 1.0), (6, 4, 0.5)])
def test_ws_rewires_in_the_papers_clockwise_loops(n: int, k: int, p: float) -> None:
    for seed in range(20):
        graph = WattsStrogatz(k, p).sample(n, random.Random(seed))
        assert {frozenset(edge) for edge in graph.edges} == naive_watts_strogatz(n, k, p, random.Random(seed))


def test_ws_without_rewiring_is_the_ring_lattice() -> None:
    graph = WattsStrogatz(4, 0).sample(12, random.Random(1))
    assert set(graph.edges) == {tuple(sorted((v, (v + i) % 12))) for v in range(12) for i in (1, 2)}
    assert graph.inputs == (0,) and graph.outputs == (11,)


def test_ws_moves_an_edge_to_every_allowed_node_equally_often() -> None:
    # WS(2, 1) on five nodes: the first rewired edge, of node 0, may go to node 2 or 3, so each graph with its
    # first step there is as likely; followed to the end by enumeration of all uniform choices.
    law: dict[Edges, float] = {}

    def follow(edges: frozenset[frozenset[int]], v: int, p: float) -> None:
        if v == 5:
            key = frozenset(tuple(sorted(edge)) for edge in edges)
            law[key] = law.get(key, 0.0) + p  # type: ignore[index,arg-type]
            return
        allowed = [w for w in range(5) if w != v and frozenset((v, w)) not in edges]
        for w in allowed:
            follow(edges - {frozenset((v, (v + 1) % 5))} | {frozenset((v, w))}, v + 1, p / len(allowed))
        if not allowed:
            follow(edges, v + 1, p)

    follow(frozenset(frozenset((v, (v + 1) % 5)) for v in range(5)), 0, 1.0)
    counts = Counter(frozenset(graph.edges) for graph in samples(WattsStrogatz(2, 1), 5, 3000))
    assert deviation(counts, law) < 4


@pytest.mark.parametrize(('n', 'm'), [(5, 1), (5, 2), (6, 2), (6, 3)])
def test_ba_chooses_neighbours_in_proportion_to_degree(n: int, m: int) -> None:
    counts = Counter(frozenset(graph.edges) for graph in samples(BarabasiAlbert(m), n, 3000))
    assert deviation(counts, barabasi_albert_law(n, m)) < 4


@pytest.mark.parametrize('m', [1, 2, 3, 5, 7, 31])
def test_ba_starts_from_m_nodes_without_edges_that_become_the_only_inputs(m: int) -> None:
    for graph in samples(BarabasiAlbert(m), 32, 20):
        assert len(graph.edges) == m * (32 - m)
        assert graph.inputs == tuple(range(m))
        assert graph.predecessors[m] == tuple(range(m)), 'the first added node connects to all M'
        assert all(len(sources) == m for sources in graph.predecessors[m:])


@pytest.mark.parametrize('p', [0.2, 0.5, 0.8])
def test_er_makes_every_pair_an_edge_independently(p: float) -> None:
    counts = Counter(frozenset(graph.edges) for graph in samples(ErdosRenyi(p), 3, 3000))
    assert deviation(counts, erdos_renyi_law(3, p)) < 4


@pytest.mark.parametrize('p', [0.2, 0.4, 0.6, 0.8])
def test_er_has_as_many_edges_as_a_binomial(p: float) -> None:
    pairs, count = 32 * 31 // 2, 200
    sizes = [len(graph.edges) for graph in samples(ErdosRenyi(p), 32, count)]
    sigma = math.sqrt(pairs * p * (1 - p))
    assert abs(sum(sizes) / count - pairs * p) < 4 * sigma / math.sqrt(count)
    assert all(abs(size - pairs * p) < 5 * sigma for size in sizes)


def test_er_may_be_disconnected_and_an_isolated_node_is_input_and_sink() -> None:
    graph = ErdosRenyi(0).sample(4, random.Random(1))
    assert graph.edges == ()
    assert graph.inputs == graph.outputs == (0, 1, 2, 3)
    assert len(ErdosRenyi(1).sample(4, random.Random(1)).edges) == 6


# Every model


@pytest.mark.parametrize('model', MODELS, ids=str)
def test_every_edge_points_from_the_smaller_to_the_larger_index_and_appears_once(model: GraphModel) -> None:
    for seed in range(1, 6):
        graph = model.sample(32, random.Random(seed))
        assert graph.num_nodes == 32
        assert all(0 <= source < target < 32 for source, target in graph.edges)
        assert len(set(graph.edges)) == len(graph.edges)
        if isinstance(model, WattsStrogatz):
            assert len(graph.edges) == 32 * model.k // 2
        if isinstance(model, BarabasiAlbert):
            assert len(graph.edges) == model.m * (32 - model.m)
        nx = graph.to_networkx()
        assert networkx.is_directed_acyclic_graph(nx)
        assert graph.inputs == tuple(v for v, degree in nx.in_degree if degree == 0)
        assert graph.outputs == tuple(v for v, degree in nx.out_degree if degree == 0)
        for v in range(32):
            assert graph.predecessors[v] == tuple(sorted(nx.predecessors(v)))
            assert graph.successors[v] == tuple(sorted(nx.successors(v)))


@pytest.mark.parametrize('model', MODELS, ids=str)
def test_a_model_reads_back_from_its_own_text(model: GraphModel) -> None:
    assert parse_graph_model(str(model)) == model
    assert parse_graph_model(f'  {str(model).upper()} ') == model


def naive_ws_flex(n: int, k: float, p: float, rng: random.Random) -> set[frozenset[int]]:
    """graph2nn's process, one attempt: a node that knows all others is left alone."""
    count = round(n * k / 2)
    per_node = [count // n + (node < count % n) for node in range(n)]
    edges = {frozenset((v, (v + i) % n)) for v in range(n) for i in range(1, per_node[v] + 1)}
    for v in range(n):
        for i in range(1, per_node[v] + 1):
            if rng.random() < p and sum(v in edge for edge in edges) < n - 1:
                w = rng.randrange(n)
                while w == v or frozenset((v, w)) in edges:
                    w = rng.randrange(n)
                edges.remove(frozenset((v, (v + i) % n)))
                edges.add(frozenset((v, w)))
    return edges


@pytest.mark.parametrize(('n', 'k', 'p'), [(5, 2.4, 0.5), (5, 3.2, 0.4), (4, 3, 1)])
def test_ws_flex_graphs_are_as_likely_as_in_the_process_where_it_connects(n: int, k: float, p: float) -> None:
    rng, naive = random.Random(7), Counter[Edges]()
    while naive.total() < 4000:
        edges = naive_ws_flex(n, k, p, rng)
        if networkx.is_connected(networkx.Graph(map(tuple, edges))) and len(frozenset().union(*edges)) == n:
            naive[frozenset((min(edge), max(edge)) for edge in edges)] += 1
    counts = Counter(frozenset(graph.edges) for graph in samples(WattsStrogatzFlex(k, p), n, 4000))
    # Two samples of one law: chi-square of the two, where both together have enough.
    often = [graph for graph in {*naive, *counts} if naive[graph] + counts[graph] >= 20]
    chi_square = sum((naive[graph] - counts[graph]) ** 2 / (naive[graph] + counts[graph]) for graph in often)
    assert (chi_square - len(often)) / math.sqrt(2 * len(often)) < 4
    assert {len(edges) for edges in counts} == {round(n * k / 2)}


def test_ws_flex_takes_any_degree_and_joins_ws_where_that_is_even() -> None:
    for n, k in ((16, 5.3), (32, 2.0), (32, 9.71), (9, 8)):
        graph = WattsStrogatzFlex(k, 0).sample(n, random.Random(1))
        assert len(graph.edges) == round(n * k / 2)
        near = [len(graph.predecessors[node]) + len(graph.successors[node]) for node in range(n)]
        assert max(near) - min(near) <= 2  # a neighbour more on either side
    assert WattsStrogatzFlex(4, 0).sample(12, random.Random(1)) == WattsStrogatz(4, 0).sample(12, random.Random(1))
    model = parse_graph_model('ws_flex(3.5, 0.4)')
    assert model == WattsStrogatzFlex(3.5, 0.4) and parse_graph_model(str(model)) == model
    for k, p, message in (('3', 0.5, "number K of at least 2, got K='3'"), (True, 0.5, 'got K=True'),
                          (1.9, 0.5, 'got K=1.9'), (float('nan'), 0.5, 'got K=nan'),
                          (3.5, 1.5, '^WS-flex.K, P. .*1.5')):
        with pytest.raises(ValueError, match=message):
            WattsStrogatzFlex(k, p)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(
            ValueError, match=r'ws_flex\(2,1\) gave no connected graph on 8 nodes in 100 tries'):
        patch.setattr(networkx, 'is_connected', lambda graph: False)
        WattsStrogatzFlex(2, 1).sample(8, random.Random(1))


@pytest.mark.parametrize('model', [ErdosRenyi(0.2), BarabasiAlbert(5), WattsStrogatz(4, 0.75)], ids=str)
def test_stages_and_seeds_get_different_graphs_and_a_seed_always_the_same(model: GraphModel) -> None:
    networks = [sample_graphs(model, (32, 32, 32), seed) for seed in range(1, 6)]
    graphs = [graph for network in networks for graph in network]
    assert len(set(graphs)) == len(graphs) == 15
    assert networks == [sample_graphs(model, (32, 32, 32), seed) for seed in range(1, 6)]


def test_sampling_leaves_the_global_random_state_alone() -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    sample_graphs(WattsStrogatz(4, 0.75), (32, 32), 1)
    assert random.random() == expected


# Graph as a value


def test_a_graph_survives_json_and_does_not_depend_on_the_order_of_its_edges() -> None:
    import json

    graph = ErdosRenyi(0.3).sample(20, random.Random(3))
    shuffled = list(graph.edges)
    random.Random(0).shuffle(shuffled)
    assert Graph.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph == Graph(20, tuple(shuffled))
    assert Graph(20, tuple(shuffled)).sha256 == graph.sha256
    assert hash(Graph(20, tuple(shuffled))) == hash(graph)


def test_the_sha256_changes_with_any_edge_and_with_an_isolated_node() -> None:
    graph = WattsStrogatz(4, 0.75).sample(12, random.Random(1))
    others = [Graph(12, tuple(e for e in graph.edges if e != edge)) for edge in graph.edges]
    others += [
        Graph(12, (*graph.edges, pair)) for pair in itertools.combinations(range(12), 2) if pair not in graph.edges]
    others.append(Graph(13, graph.edges))
    assert len({other.sha256 for other in others} | {graph.sha256}) == 12 * 11 // 2 + 2
    assert len(graph.sha256) == 64 and int(graph.sha256, 16) >= 0


def test_the_hash_of_a_network_depends_on_the_order_of_its_graphs() -> None:
    a, b = sample_graphs(WattsStrogatz(4, 0.75), (12, 12), 1)
    assert len({graphs_sha256(graphs) for graphs in ((a, b), (b, a), (a,), (a, a), ())}) == 5


def test_edges_are_stored_by_target_and_the_sha256_is_that_of_the_graph_as_json() -> None:
    graph = Graph(4, ((0, 3), (1, 2), (0, 2)))
    assert graph.edges == ((0, 2), (1, 2), (0, 3))
    assert graph.sha256 == hashlib.sha256(b'{"num_nodes":4,"edges":[[0,2],[1,2],[0,3]]}').hexdigest()


def test_a_network_of_other_graphs_than_recorded_is_refused_with_both_hashes() -> None:
    graphs = sample_graphs(WattsStrogatz(4, 0.75), (12, 12), 1)
    recorded = hashlib.sha256(''.join(graph.sha256 for graph in graphs).encode()).hexdigest()
    check_graphs(graphs, recorded, 'pico.json')
    with pytest.raises(ValueError, match=rf'^pico.json .*{graphs_sha256(graphs[::-1])}, but it records {recorded}$'):
        check_graphs(graphs[::-1], recorded, 'pico.json')


@pytest.mark.parametrize('value', [
    ErdosRenyi(0.2), BarabasiAlbert(5), WattsStrogatz(4, 0.75), WattsStrogatzFlex(3.5, 0.75), Graph(1, ())], ids=str)
def test_a_graph_and_a_model_are_values_that_nothing_changes(value: object) -> None:
    for name in vars(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 1)
    assert value in {copy.deepcopy(value)}


@pytest.mark.parametrize(('model', 'text'), [
    (ErdosRenyi(0.2), 'er(0.2)'), (BarabasiAlbert(5), 'ba(5)'), (WattsStrogatz(4, 0.75), 'ws(4,0.75)')])
def test_a_model_is_written_as_in_the_paper(model: GraphModel, text: str) -> None:
    assert str(model) == text and repr(model) == repr(parse_graph_model(text))


def test_a_stage_may_have_one_node_and_the_seed_may_be_0() -> None:
    assert sample_graphs(ErdosRenyi(0.5), (1, 2), 0)[0] == Graph(1, ())
    assert len({sample_graphs(WattsStrogatz(4, 0.75), (32,), seed) for seed in range(3)}) == 3


def test_an_undirected_graph_must_be_labelled_by_index() -> None:
    with pytest.raises(ValueError, match='labelled 0 … N − 1'):
        Graph.from_undirected(networkx.path_graph(['a', 'b']))
    assert Graph.from_undirected(networkx.Graph([(2, 0), (1, 2)])).edges == ((0, 2), (1, 2))


@pytest.mark.parametrize(('graph', 'named'), [
    (networkx.MultiGraph([(0, 1), (1, 2), (0, 1)]), r'^edge \(0, 1\) appears more than once$'),
    (networkx.Graph([(0, 0), (0, 1)]), r'^edge \(0, 0\) must point from a smaller to a larger index'),
    (networkx.Graph([(0, 'a')]), '^the nodes of an undirected graph must be labelled 0 … N − 1$'),
    (networkx.Graph([(1, 2)]), 'labelled 0 … N − 1'),
    (networkx.DiGraph([(2, 0), (2, 1)]), r'^an undirected graph was expected, got a DiGraph; .* Graph\('),
], ids=['a repeated edge', 'a loop', 'mixed labels', 'from 1', 'directed'])
def test_a_graph_of_networkx_that_would_lose_something_is_refused(graph: networkx.Graph, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Graph.from_undirected(graph)


def test_a_multigraph_without_repeated_edges_is_a_graph() -> None:
    assert Graph.from_undirected(networkx.MultiGraph([(2, 0), (1, 2)])).edges == ((0, 2), (1, 2))


def test_integers_of_numpy_become_pythons_own() -> None:
    """As networkx gives them where it reads a sparse matrix, or a generator of one's own draws with numpy."""
    plain, path = Graph(3, ((0, 1), (1, 2))), networkx.Graph()
    path.add_edges_from([(0, numpy.int64(1)), (numpy.int32(2), 1)])
    for graph in (Graph.from_undirected(path), Graph(numpy.int64(3), tuple(map(tuple, numpy.array([[0, 1], [1, 2]]))))):
        assert graph == plain and graph.sha256 == plain.sha256
        assert {type(number) for number in (graph.num_nodes, *itertools.chain(*graph.edges))} == {int}


@pytest.mark.parametrize(('num_nodes', 'edges', 'named'), [
    (0, (), 'num_nodes=0'),
    (numpy.int64(0), (), 'num_nodes='),
    (numpy.float64(3), (), 'num_nodes='),
    (3, ((0, numpy.float64(1)),), 'an edge is a pair of node indices'),
    (3, ((False, 1),), r'\(False, 1\)'),
    (3, ((0, numpy.bool_(True)),), 'an edge is a pair of node indices'),
    (-3, (), 'num_nodes=-3'),
    (2.0, (), 'num_nodes=2.0'),
    (True, (), 'num_nodes=True'),
    ('4', (), "num_nodes='4'"),
    (3, ((1, 0),), r'edge \(1, 0\)'),
    (3, ((1, 1),), r'edge \(1, 1\)'),
    (3, ((0, 3),), r'edge \(0, 3\)'),
    (3, ((-1, 2),), r'edge \(-1, 2\)'),
    (3, ((0, 1), (0, 2), (0, 1)), r'edge \(0, 1\) appears more than once'),
    (3, ((0.5, 1),), r'\(0.5, 1\)'),
    (3, ((0, 1, 2),), r'\(0, 1, 2\)'),
    (3, ('01',), "'01'"),
])
def test_what_is_no_graph_is_refused_by_name(num_nodes: int, edges: tuple[tuple[int, int], ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Graph(num_nodes, edges)


@pytest.mark.parametrize('data', [
    None, [], {}, {'num_nodes': 3}, {'num_nodes': 3, 'edges': None}, {'num_nodes': 3, 'edges': [3]},
    {'num_nodes': 3, 'edges': [[0, 1.5]]}, {'num_nodes': 3, 'edges': [[0]]}, {'num_nodes': 'x', 'edges': []}])
def test_json_data_that_is_no_graph_is_refused(data: object) -> None:
    with pytest.raises(ValueError):
        Graph.from_dict(data)  # type: ignore[arg-type]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[GraphModel]]:
    """The models that have a name, of which those of a test are forgotten after it."""
    monkeypatch.setattr(GraphModel, 'registry', dict(GraphModel.registry))
    return GraphModel.registry


def test_no_model_takes_the_name_of_another(registry: dict[str, type[GraphModel]]) -> None:
    before, drawn = dict(registry), sample_graphs(parse_graph_model('ws(4,0.75)'), (32,), 1)
    with pytest.raises(TypeError, match=r'^the random graph model Mine needs a name of its own'):
        class Mine(WattsStrogatz):
            def undirected(self, num_nodes: int, rng: random.Random) -> networkx.Graph:
                return networkx.path_graph(num_nodes)
    with pytest.raises(ValueError, match=r"^the name 'ws' of the random graph model Taken is that of "
                                         r'randwire_zoo\.graphs\.WattsStrogatz; give it another$'):
        class Taken(WattsStrogatz):
            name = 'ws'
    assert registry == before
    assert sample_graphs(parse_graph_model('ws(4,0.75)'), (32,), 1) == drawn


def test_a_definition_may_be_run_again_and_the_last_one_counts(registry: dict[str, type[GraphModel]]) -> None:
    def define(step: int, **options: bool) -> type[GraphModel]:
        @dataclasses.dataclass(frozen=True, **options)
        class Lattice(GraphModel):
            k: int
            name = 'lattice'

            def undirected(self, num_nodes: int, rng: random.Random) -> networkx.Graph:
                return networkx.circulant_graph(num_nodes, [step])
        return Lattice

    for step, options in ((1, {}), (2, {}), (2, {'slots': True})):
        model = define(step, **options)
        assert registry['lattice'] is model
        assert parse_graph_model('lattice(2)').sample(6, random.Random(1)).edges == Graph.from_undirected(
            networkx.circulant_graph(6, [step])).edges


@pytest.mark.parametrize('name', ['Lattice', 'latTICE_2'])
def test_case_matters_neither_in_a_name_nor_where_it_is_read(
        name: str, registry: dict[str, type[GraphModel]]) -> None:
    def define(name: str) -> type[GraphModel]:
        return dataclasses.dataclass(frozen=True)(type('Lattice', (GraphModel,), {
            '__annotations__': {'k': int}, 'name': name,
            'undirected': lambda self, num_nodes, rng: networkx.circulant_graph(num_nodes, [self.k])}))
    model = define(name)
    for text in (f'{name}(2)', f'{name.lower()}(2)', f'{name.upper()}(2)', str(model(2))):  # type: ignore[call-arg]
        assert type(parse_graph_model(text)) is model
    with pytest.raises(ValueError, match=rf"the name '{name.upper()}' of .* Other is that of .*Lattice; give it "):
        type('Other', (GraphModel,), {'name': name.upper(), 'undirected': lambda self, num_nodes, rng: None})
    with pytest.raises(ValueError, match=r"Lattice must be of letters, digits and _, got 'my-lattice'"):
        define('my-lattice')


def test_a_model_that_draws_from_elsewhere_is_refused_before_anybody_uses_its_graphs(
        registry: dict[str, type[GraphModel]]) -> None:
    def define(draw: Callable[[random.Random], Any]) -> GraphModel:
        @dataclasses.dataclass(frozen=True)
        class Own(GraphModel):
            p: float
            name = 'own'

            def undirected(self, num_nodes: int, rng: random.Random) -> networkx.Graph:
                return networkx.gnp_random_graph(num_nodes, self.p, seed=draw(rng))
        return Own(0.5)
    for draw in (lambda rng: None, lambda rng: random.randrange(2 ** 32)):  # None is the global generator
        with pytest.raises(ValueError, match=r'^own\(0\.5\) sampled two different wirings from seed 3: the random '
                                             'graph model Own must draw from its rng alone$'):
            sample_graphs(define(draw), (16, 16), 3)
    graphs = sample_graphs(define(lambda rng: rng), (16, 16), 3)
    rng = random.Random(3)
    assert [graph.edges for graph in graphs] == [
        Graph.from_undirected(networkx.gnp_random_graph(16, 0.5, seed=rng)).edges for _ in range(2)]


def test_a_model_that_gives_another_number_of_nodes_is_refused(registry: dict[str, type[GraphModel]]) -> None:
    """N of the network is what was asked for; a generator that drops isolated nodes would make that untrue."""
    @dataclasses.dataclass(frozen=True)
    class Square(GraphModel):
        name = 'square'

        def undirected(self, num_nodes: int, rng: random.Random) -> networkx.Graph:
            side = math.isqrt(num_nodes)
            return networkx.convert_node_labels_to_integers(networkx.grid_2d_graph(side, side))

    assert sample_graphs(parse_graph_model('square()'), (9, 16), 1)[1].num_nodes == 16
    with pytest.raises(ValueError, match=r'^square\(\) sampled a graph of 9 nodes for num_nodes=10: the random graph '
                                         'model Square must give as many as it is asked for$'):
        sample_graphs(Square(), (9, 10), 1)


def test_a_model_without_the_decorator_is_named_and_spoils_no_other(registry: dict[str, type[GraphModel]]) -> None:
    class Bare(GraphModel):
        name = 'bare'

        def undirected(self, num_nodes: int, rng: random.Random) -> networkx.Graph:
            return networkx.path_graph(num_nodes)

    line = r'^the random graph model Bare is no dataclass: write @dataclass\(frozen=True\) above its class$'
    for read in (lambda: parse_graph_model('bare()'), lambda: str(Bare())):
        with pytest.raises(ValueError, match=line):
            read()
    with pytest.raises(ValueError, match=r"^unknown random graph model 'grid\(3\)'; known are ba\(m\), er\(p\), ws"):
        parse_graph_model('grid(3)')


def test_the_parameters_of_a_model_may_have_to_be_named(registry: dict[str, type[GraphModel]]) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Lattice(GraphModel):
        k: int
        p: float = 0.5
        name = 'named'

        def undirected(self, num_nodes: int, rng: random.Random) -> networkx.Graph:
            return networkx.circulant_graph(num_nodes, [self.k])
    assert parse_graph_model('named(2,0.25)') == Lattice(k=2, p=0.25)


def test_a_base_for_several_models_needs_no_name(registry: dict[str, type[GraphModel]]) -> None:
    before = dict(registry)

    class Base(GraphModel):
        def check(self, num_nodes: int) -> None:
            raise ValueError('too few')
    assert registry == before

    class Derived(Base):
        name = 'derived'

        def undirected(self, num_nodes: int, rng: random.Random) -> networkx.Graph:
            return networkx.path_graph(num_nodes)
    assert registry == {**before, 'derived': Derived}


def test_a_model_is_given_by_its_text() -> None:
    with pytest.raises(ValueError, match=r"is given by its text, 'ws\(4,0.75\)', got WattsStrogatz"):
        parse_graph_model(WattsStrogatz(4, 0.75))  # type: ignore[arg-type]


@pytest.mark.parametrize(('text', 'named'), [
    ('ws(3,0.5)', r'^WS\(K, P\) needs an even K, got K=3'),
    ('ws(0,0.5)', r'^WS\(K, P\) needs an integer K of at least 2, got K=0'),
    ('ws(-2,0.5)', 'K=-2'),
    ('ws(4.0,0.5)', 'K=4.0'),
    ('ws(4,-0.1)', r'^WS\(K, P\) needs .*P=-0.1'),
    ('ws(4,1.5)', 'P=1.5'),
    ('ws(4,nan)', 'P=nan'),
    ('ws(4,inf)', 'P=inf'),
    ('er(1.01)', r'^ER\(P\) needs .*P=1.01'),
    ('er(nan)', 'P=nan'),
    ('er(-1)', 'P=-1'),
    ('ba(0)', r'^BA\(M\) needs an integer M of at least 1, got M=0'),
    ('ba(-5)', 'M=-5'),
    ('ba(2.5)', 'M=2.5'),
    ('ba(nan)', 'M=nan'),
    ('ws(4)', r"takes 2 numbers, got 'ws\(4\)'"),
    ('ws(4,0.5,1)', 'takes 2 numbers'),
    ('er()', 'takes 1 number, got'),
    ('er(0.1,)', 'takes 1 number, got'),
    ('ba(five)', "'five'"),
    ('grid(3)', r"'grid\(3\)'; known are ba\(m\), er\(p\), ws\(k,p\), ws_flex\(k,p\)"),
    ('ws', "'ws'"),
    ('', "unknown random graph model ''"),
    ('ws(4,0.75', r"'ws\(4,0.75'"),
    (None, 'None'),
    (5, '5'),
])
def test_bad_text_for_a_graph_model_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_graph_model(text)


@pytest.mark.parametrize(('make', 'named'), [
    (lambda: ErdosRenyi('0.2'), "P='0.2'"),  # type: ignore[arg-type]
    (lambda: ErdosRenyi(True), 'P=True'),
    (lambda: BarabasiAlbert(5.0), 'M=5.0'),  # type: ignore[arg-type]
    (lambda: BarabasiAlbert(True), 'M=True'),
    (lambda: WattsStrogatz('4', 0.5), "K='4'"),  # type: ignore[arg-type]
    (lambda: WattsStrogatz(4, None), 'P=None'),  # type: ignore[arg-type]
    (lambda: WattsStrogatz(4, 0.75).sample(4, random.Random(1)), 'K=4 and N=4'),
    (lambda: WattsStrogatz(8, 0.75).sample(5, random.Random(1)), 'K=8 and N=5'),
    (lambda: WattsStrogatzFlex(1.9, 0.5), 'K=1.9'),
    (lambda: WattsStrogatzFlex(float('nan'), 0.5), 'K=nan'),
    (lambda: WattsStrogatzFlex(2.5, 1.5), 'P=1.5'),
    (lambda: WattsStrogatzFlex(4.1, 0.5).sample(5, random.Random(1)), 'K=4.1 and N=5'),
    (lambda: BarabasiAlbert(5).sample(5, random.Random(1)), 'M=5 and N=5'),
    (lambda: ErdosRenyi(0.5).sample(0, random.Random(1)), 'got 0'),
    (lambda: ErdosRenyi(0.5).sample(3.0, random.Random(1)), 'got 3.0'),  # type: ignore[arg-type]
    (lambda: sample_graphs(ErdosRenyi(0.5), (3,), -1), 'seed must be a non-negative integer, got -1'),
    (lambda: sample_graphs(ErdosRenyi(0.5), (3,), 1.0), 'got 1.0'),  # type: ignore[arg-type]
    (lambda: sample_graphs(ErdosRenyi(0.5), (3,), None), 'got None'),  # type: ignore[arg-type]
    (lambda: sample_graphs(ErdosRenyi(0.5), (3,), True), 'got True'),
])
def test_arguments_out_of_range_are_refused_by_name(make: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()  # type: ignore[operator]


def test_a_graph_is_one_line_that_makes_it_or_tells_it_from_others() -> None:
    small = Graph(4, ((0, 1), (1, 2), (0, 3)))
    assert eval(repr(small)) == small
    ten, eleven = (Graph(count + 1, tuple((i, i + 1) for i in range(count))) for count in (10, 11))
    assert eval(repr(ten)) == ten
    assert repr(eleven) == f'<Graph: N = 12, 11 edges, 1 inputs, 1 outputs, sha256 {eleven.sha256[:8]}>'
    assert '<svg' in small._repr_svg_() != ten._repr_svg_()
    first, second = sample_graphs(WattsStrogatz(4, 0.75), (32, 32), seed=1)
    assert repr(first) != repr(second)
    for graph in (first, second):
        assert repr(graph).startswith(f'<Graph: N = 32, 64 edges, {len(graph.inputs)} inputs, ')
        assert graph.sha256[:8] in repr(graph) and len(repr(graph)) < 100
