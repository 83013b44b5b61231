"""The order of a stage's nodes: as low a peak of memory as any topological order has."""
import random

import networkx
import pytest

from randwire_zoo.frozen import load_graphs
from randwire_zoo.graphs import Graph, parse_graph_model
from randwire_zoo.ordering import lowest_peak_order, peak_memory


def naive_peak(graph: Graph, order: list[int], input_size: float) -> float:
    """From the definition: at each step, go through all tensors and ask who still reads them."""
    peak = 0.0
    for step in range(len(order)):
        before, later = order[:step], order[step:]
        live = 1.0  # what the node itself puts out
        live += sum(any(target in later for target in graph.successors[source]) for source in before)
        live += any(not graph.successors[source] for source in before)
        live += input_size if any(not graph.predecessors[other] for other in later) else 0
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize('model', ['er(0.3)', 'ba(2)', 'ws(4,0.75)', 'ws(2,0)'])
@pytest.mark.parametrize('seed', [1, 2, 3])
@pytest.mark.parametrize('input_size', [2, 4])
def test_no_topological_order_has_a_lower_peak(model: str, seed: int, input_size: int) -> None:
    graph = parse_graph_model(model).sample(7, random.Random(seed))
    lowest = min(naive_peak(graph, order, input_size)
                 for order in networkx.all_topological_sorts(graph.to_networkx()))
    order = lowest_peak_order(graph, input_size)
    assert naive_peak(graph, list(order), input_size) == peak_memory(graph, order, input_size) == lowest


def test_every_frozen_graph_is_solved_exactly_and_some_get_much_better() -> None:
    graphs = load_graphs('randwire_ws_c109')
    found = [(peak_memory(graph, range(graph.num_nodes)), peak_memory(graph, lowest_peak_order(graph, limit=10_000)))
             for graph in graphs]
    assert found == [(9, 9), (18, 14), (19, 13), (23, 16)]


def test_a_graph_too_large_for_the_search_gets_an_order_no_worse_than_that_of_its_indices() -> None:
    graph = parse_graph_model('ws(4,0.75)').sample(200, random.Random(0))
    order = lowest_peak_order(graph)  # with the search, this would take minutes
    assert order == lowest_peak_order(graph, limit=0)
    assert sorted(order) == list(range(200))
    assert peak_memory(graph, order) < peak_memory(graph, range(200))


def test_without_the_search_the_better_order_is_the_one_for_the_given_size_of_the_input() -> None:
    graph = parse_graph_model('er(0.3)').sample(8, random.Random(2))
    order = lowest_peak_order(graph, 1, limit=0)
    assert peak_memory(graph, order, 1) == 4 < peak_memory(graph, range(8), 1)
    assert peak_memory(graph, order, 2) == 5 == peak_memory(graph, range(8), 2), 'at the usual size it is no better'


@pytest.mark.parametrize('order', [[0, 2, 1], [0, 1], [0, 1, 1], [0, 1, 2, 3]])
def test_what_is_no_topological_order_is_refused(order: list[int]) -> None:
    graph = Graph(3, ((0, 1), (1, 2)))
    with pytest.raises(ValueError, match=r'order|runs before'):
        peak_memory(graph, order)
