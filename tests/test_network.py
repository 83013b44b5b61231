"""The network against a naive one written here from the paper's definition (section 3.2, Table 1, Figure 6)."""
from __future__ import annotations

import copy
import functools
import html
import math
import random
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import networkx
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from randwire_zoo.aggregation import aggregate
from randwire_zoo.graphs import (
    BarabasiAlbert,
    ErdosRenyi,
    Graph,
    GraphModel,
    WattsStrogatz,
    graphs_sha256,
    sample_graphs,
)
from randwire_zoo.network import (
    NODE_OPS,
    Node,
    RandWire,
    Stage,
    checkpoint_filter_fn,
    draw_kept_edges,
    stage_node_counts,
)
from randwire_zoo.weights.mark import WiringMark

FAMILIES: list[GraphModel] = [ErdosRenyi(0.3), BarabasiAlbert(2), WattsStrogatz(4, 0.75)]


def tiny(
        model: GraphModel = FAMILIES[2], regime: str = 'small', seed: int = 1, channels: int = 4, num_nodes: int = 10,
        num_classes: int = 5, stem_stride: int = 1, **kwargs: Any,
) -> RandWire:
    """A network with random BN statistics and edge weights, so that nothing is 1 or 0 by accident."""
    network = RandWire(
        sample_graphs(model, stage_node_counts(regime, num_nodes), seed), regime=regime, channels=channels,
        num_classes=num_classes, stem_stride=stem_stride, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                    (module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5), (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 1.5)):
                tensor.data.uniform_(low, high, generator=generator)
        elif isinstance(module, Node) and module.edge_weight is not None:
            module.edge_weight.data.uniform_(-2, 2, generator=generator)
    return network


# The definition, naively: a dictionary of nodes, plain sums, the library's convolutions


def naive_bn(x: Tensor, tensors: dict[str, Tensor], name: str, training: bool) -> Tensor:
    shape = (1, -1, 1, 1)
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    else:
        mean, var = tensors[f'{name}.running_mean'], tensors[f'{name}.running_var']
    normal = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + 1e-5)
    return normal * tensors[f'{name}.weight'].view(shape) + tensors[f'{name}.bias'].view(shape)


def naive_stage(
        x: Tensor, graph: Graph, stride: int, tensors: dict[str, Tensor], name: str, training: bool,
        removed: tuple[int, int] | None = None,
) -> Tensor:
    sent: dict[int, Tensor] = {}
    for node in range(graph.num_nodes):
        key = f'{name}.nodes.{node}'
        sources = [source for source, target in sorted(graph.edges) if target == node]
        if not sources:
            data = x
        elif len(sources) == 1:
            data = sent[sources[0]]
        else:
            weights = torch.sigmoid(tensors[f'{key}.edge_weight'])
            assert len(weights) == len(sources)
            data = sum(  # type: ignore[assignment]
                weight * sent[source] for weight, source in zip(weights, sources, strict=True)
                if (source, node) != removed)
        data = torch.relu(data)
        node_stride = 1 if sources else stride
        if f'{key}.conv_dw.weight' in tensors:
            data = F.conv2d(
                data, tensors[f'{key}.conv_dw.weight'], stride=node_stride, padding=1, groups=data.shape[1])
        elif f'{key}.conv.weight' in tensors:
            data = F.conv2d(data, tensors[f'{key}.conv.weight'], stride=node_stride, padding=1)
        elif 'max_pool' in name:
            data = F.max_pool2d(data, 3, node_stride, padding=1)
        else:  # the average of those of the nine neighbours that exist
            ones = torch.ones_like(data)
            data = F.avg_pool2d(data, 3, node_stride, 1) / F.avg_pool2d(ones, 3, node_stride, 1)
        if f'{key}.conv_pw.weight' in tensors:
            data = F.conv2d(data, tensors[f'{key}.conv_pw.weight'])
        sent[node] = naive_bn(data, tensors, f'{key}.bn', training)
    sinks = [node for node in range(graph.num_nodes) if all(source != node for source, _ in graph.edges)]
    return torch.stack([sent[node] for node in sinks]).mean(0)


def naive_network(
        x: Tensor, graphs: tuple[Graph, ...], strides: tuple[int, ...], state: dict[str, Tensor], training: bool,
        node_op: str, removed: tuple[int, tuple[int, int]] | None = None,
) -> Tensor:
    tensors = {name.replace('conv', f'{node_op} conv', 1): value for name, value in state.items()}
    first = len(strides) - len(graphs)
    for index, stride in enumerate(strides):
        name = f'{node_op} conv{index + 1}'
        if index < first:
            x = torch.relu(x) if index else x
            x = naive_bn(F.conv2d(x, tensors[f'{name}.conv.weight'], stride=stride, padding=1), tensors, f'{name}.bn',
                         training)
        else:
            edge = removed[1] if removed and removed[0] == index - first else None
            x = naive_stage(x, graphs[index - first], stride, tensors, name, training, edge)
    x = F.conv2d(torch.relu(x), state['conv_head.weight'])
    x = torch.relu(naive_bn(x, state, 'bn_head', training))
    return x.mean((2, 3)) @ state['fc.weight'].T + state['fc.bias']


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('regime', ['small', 'regular'])
@pytest.mark.parametrize('node_op', NODE_OPS)
@pytest.mark.parametrize('model', FAMILIES, ids=str)
def test_the_network_equals_the_definition_forward_and_backward(
        model: GraphModel, node_op: str, regime: str, training: bool) -> None:
    network = tiny(model, regime, node_op=node_op).double().train(training)
    assert all(hasattr(node, 'conv_dw') == (node_op == 'sep_conv') and hasattr(node, 'conv') == (node_op == 'conv')
               for stage in network.children() if isinstance(stage, Stage) for node in stage.nodes)
    state = {
        name: tensor.detach().clone().requires_grad_(tensor.is_floating_point() and 'running' not in name)
        for name, tensor in network.state_dict().items()}
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    expected = naive_network(x, network.graphs, (1, 1, 2, 2, 2), state, training, node_op)
    logits = network(x)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    direction = torch.randn_like(logits)
    (logits * direction).sum().backward()
    (expected * direction).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'nhwc'])
def test_aggregation_has_the_right_first_and_second_derivatives(layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 3, 3, generator=generator, dtype=torch.float64).contiguous(memory_format=layout)
              .requires_grad_() for _ in range(3)]
    weights = torch.rand(3, generator=generator, dtype=torch.float64).requires_grad_()

    def function(weights: Tensor, *inputs: Tensor) -> Tensor:
        return aggregate(list(inputs), weights)

    assert torch.autograd.gradcheck(function, (weights, *inputs))
    assert torch.autograd.gradgradcheck(function, (weights, *inputs))


def test_aggregation_has_forward_derivatives_and_maps_over_any_dimension() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    weights = torch.rand(3, generator=generator, dtype=torch.float64) + 0.2

    def function(weights: Tensor, *inputs: Tensor) -> Tensor:
        return aggregate(list(inputs), weights)

    def plain(weights: Tensor, *inputs: Tensor) -> Tensor:
        return torch.relu(torch.einsum('i,i...->...', weights, torch.stack(inputs)))

    args = (weights, *inputs)
    tangents = tuple(torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in args)
    # Everything moves; the weights alone; one of the data.
    for moving in ((0, 1, 2, 3), (0,), (2,)):
        def part(*moved: Tensor, f: Any, moving: tuple[int, ...] = moving) -> Tensor:
            return f(*(moved[moving.index(i)] if i in moving else x for i, x in enumerate(args)))
        found, expected = (torch.func.jvp(functools.partial(part, f=f), tuple(args[i] for i in moving),
                                          tuple(tangents[i] for i in moving)) for f in (function, plain))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
    many = torch.rand(5, 3, generator=generator, dtype=torch.float64) + 0.2
    batch = torch.randn(2, 3, 5, 3, 3, generator=generator, dtype=torch.float64)
    for in_dims, mapped in (
            ((0, None, None, None), (many, *inputs)), ((None, None, 2, None), (weights, inputs[0], batch, inputs[2])),
            ((0, None, 2, None), (many, inputs[0], batch, inputs[2]))):
        torch.testing.assert_close(torch.vmap(function, in_dims)(*mapped), torch.vmap(plain, in_dims)(*mapped))


def test_native_operators_are_told_of_separable_nodes_that_are_what_their_class_says() -> None:
    class Other(Node):
        pass

    node = Node([0, 1], 3, 4)
    told = node.separable()
    assert told is not None
    assert all(part is own for part, own in zip(told, (node, node.conv_dw, node.conv_pw, node.bn, node.edge_weight),
                                                strict=True))
    patched = Node([0, 1], 3, 4)
    patched.transform = lambda x: x  # type: ignore[method-assign, assignment]
    for other in (Other([0, 1], 3, 4), Node([0, 1], 3, 4, node_op='conv'), Node([0], 3, 4, node_op='max_pool'),
                  patched):
        assert other.separable() is None


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('orders', [('nchw', 'nchw'), ('nhwc', 'nhwc'), ('nchw', 'nhwc')], ids='-'.join)
def test_aggregation_gives_the_gradients_that_autograd_gives_of_the_plain_form(
        orders: tuple[str, str], dtype: torch.dtype) -> None:
    formats = {'nchw': torch.contiguous_format, 'nhwc': torch.channels_last}
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 4, 5, generator=generator, dtype=dtype).contiguous(memory_format=formats[order])
              for order in (*orders, orders[0])]
    weights = torch.rand(3, generator=generator, dtype=dtype) + 0.2
    direction = torch.randn(2, 3, 4, 5, generator=generator, dtype=dtype)

    def gradients(function: Any, learning: tuple[bool, ...], wide: bool, create_graph: bool) -> tuple[Tensor, ...]:
        leaves = [tensor.to(torch.float64 if wide else dtype).detach().requires_grad_(learns)
                  for tensor, learns in zip((weights, *inputs), learning, strict=True)]
        out = function(leaves[1:], leaves[0])
        return torch.autograd.grad((out * direction.to(out.dtype)).sum(), [leaf for leaf in leaves if
                                   leaf.requires_grad], create_graph=create_graph)

    def plain(inputs: list[Tensor], weights: Tensor) -> Tensor:
        return torch.relu(sum(x * weight for x, weight in zip(inputs, weights, strict=True)))  # type: ignore[arg-type]

    # All learn; the weights alone, behind a frozen stage; the data alone, with frozen weights; one of the data.
    for learning in ((True,) * 4, (True, False, False, False), (False, True, True, True), (False, False, True, False)):
        expected = gradients(plain, learning, True, False)
        for create_graph in (False, True):
            found = gradients(aggregate, learning, False, create_graph)
            assert all(gradient.dtype == dtype for gradient in found)
            for gradient, reference in zip(found, expected, strict=True):
                torch.testing.assert_close(gradient.double(), reference, rtol=0.05 if dtype == torch.bfloat16 else 1e-5,
                                           atol=0.1 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize('model', FAMILIES, ids=str)
def test_every_edge_carries_its_source_to_its_target_once_and_nothing_else_does(model: GraphModel) -> None:
    [graph] = sample_graphs(model, (16,), 1)
    stage = Stage(graph, 4, 4)
    sent: dict[int, Tensor] = {}
    received: list[tuple[int, int]] = []
    x = torch.randn(1, 4, 8, 8)

    def record(node: int, args: tuple[list[Tensor]], out: Tensor) -> None:
        sources = [next((source for source, value in sent.items() if value is tensor), None) for tensor in args[0]]
        if node in graph.inputs:  # these alone get the stage's input, after the ReLU that they share
            assert sources == [None] and torch.equal(args[0][0], x.relu())
        else:
            received.extend((source, node) for source in sources)
        sent[node] = out

    for index, module in enumerate(stage.nodes):
        module.register_forward_hook(lambda _, args, out, index=index: record(index, args, out))
    out = stage(x)
    assert Counter(received) == Counter(graph.edges)
    torch.testing.assert_close(out, sum(sent[node] for node in graph.outputs) / len(graph.outputs))


def test_an_isolated_node_takes_the_stages_input_and_counts_in_its_mean() -> None:
    stage = Stage(Graph(3, ((0, 1),)), 4, 6).eval()
    x = torch.randn(2, 4, 8, 8)
    expected = (stage.nodes[1]([stage.nodes[0]([x.relu()])]) + stage.nodes[2]([x.relu()])) / 2
    torch.testing.assert_close(stage(x), expected)
    lonely = Stage(Graph(2, ()), 4, 6).eval()
    torch.testing.assert_close(lonely(x), (lonely.nodes[0]([x.relu()]) + lonely.nodes[1]([x.relu()])) / 2)


def test_what_a_node_sends_is_not_activated_and_may_be_negative() -> None:
    stage = Stage(WattsStrogatz(4, 0.75).sample(8, random.Random(1)), 4, 4)
    assert (stage(torch.randn(4, 4, 8, 8)) < 0).any()


@pytest.mark.parametrize('grad', [False, True])
def test_a_stage_does_not_touch_its_input_in_place(grad: bool) -> None:
    stage = Stage(ErdosRenyi(0.3).sample(12, random.Random(1)), 4, 4)
    x = torch.randn(2, 4, 8, 8)
    copy = x.clone()
    with torch.set_grad_enabled(grad):
        stage(x)
    assert torch.equal(x, copy)


@pytest.mark.parametrize('model', FAMILIES, ids=str)
def test_a_result_is_freed_after_its_last_consumer(model: GraphModel) -> None:
    [graph] = sample_graphs(model, (24,), 1)
    stage = Stage(graph, 4, 4).eval()
    alive: dict[int, weakref.ref[Tensor]] = {}
    most = 0

    def check(node: int) -> None:
        nonlocal most
        needed = {source for source, target in graph.edges if source < node <= target}
        kept = {
            source for source, reference in alive.items() if reference() is not None and source not in graph.outputs}
        assert kept == needed
        most = max(most, len(needed))

    for index, module in enumerate(stage.nodes):
        module.register_forward_pre_hook(lambda _, args, index=index: check(index))
        module.register_forward_hook(lambda _, args, out, index=index: alive.update({index: weakref.ref(out)}))
    with torch.inference_mode():
        out = stage(torch.randn(1, 4, 8, 8))
    assert len(alive) == 24 and most < 24 - len(graph.outputs)
    assert sum(reference() is not None and reference() is not out for reference in alive.values()) == 0


# Edge removal (section 4.2)


def masked_edges(network: nn.Module) -> list[tuple[str, int]]:
    """Let the network's nodes report (node, edge) for each masked edge into a list."""
    masked: list[tuple[str, int]] = []

    def report(name: str, node: Node, args: tuple[Any, ...]) -> None:
        if len(args) > 1 and args[1] is not None:
            assert node.num_edges == len(args[1]) > 1
            masked.extend((name, edge) for edge, kept in enumerate(args[1].tolist()) if kept == 0)

    for name, module in network.named_modules():
        if isinstance(module, Node):
            module.register_forward_pre_hook(lambda node, args, name=name: report(name, node, args))
    return masked


def removable_edges(graphs: tuple[Graph, ...]) -> int:
    return sum(len(sources) for graph in graphs for sources in graph.predecessors if len(sources) > 1)


def is_uniform(counts: Counter[Any], cells: int) -> bool:
    total = sum(counts.values())
    chi_square = sum((count - total / cells) ** 2 for count in counts.values()) * cells / total
    chi_square += (cells - len(counts)) * total / cells
    return abs(chi_square - (cells - 1)) < 4 * math.sqrt(2 * (cells - 1))


def test_an_edge_is_drawn_uniformly_and_at_the_stated_rate() -> None:
    counts: Counter[int] = Counter()
    for _ in range(4000):
        kept = draw_kept_edges(7, 0.3, torch.empty(0))
        assert kept is not None and kept.shape == (7,) and set(kept.tolist()) <= {0.0, 1.0}
        zeros = (kept == 0).nonzero().flatten().tolist()
        assert len(zeros) <= 1
        counts.update(zeros)
    removed = sum(counts.values())
    assert abs(removed - 1200) < 4 * math.sqrt(4000 * 0.3 * 0.7)
    assert is_uniform(counts, 7)


def test_nothing_is_drawn_at_rate_zero_or_without_edges_and_what_is_drawn_lies_where_the_data_lie() -> None:
    state = torch.get_rng_state()
    assert draw_kept_edges(7, 0.0, torch.empty(0)) is None and draw_kept_edges(0, 1.0, torch.empty(0)) is None
    assert torch.equal(torch.get_rng_state(), state)
    kept = draw_kept_edges(7, 0.3, torch.empty(0, device='meta'))
    assert kept is not None and kept.is_meta


def test_training_removes_one_edge_of_the_whole_network_and_only_where_another_input_is_left() -> None:
    network = tiny(WattsStrogatz(2, 0.75), num_nodes=5, drop_path_rate=1.0)
    cells = removable_edges(network.graphs)
    masked = masked_edges(network)
    x = torch.randn(2, 3, 8, 8)
    for step in range(8 * cells):
        with torch.no_grad():
            network(x)
        assert len(masked) == step + 1
    assert is_uniform(Counter(masked), cells)


@pytest.mark.parametrize('regime', ['small', 'regular'])
def test_a_removed_edge_is_missing_from_the_sum_and_from_nothing_else(regime: str) -> None:
    network = tiny(ErdosRenyi(0.4), regime, drop_path_rate=1.0).double()
    masked = masked_edges(network)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    seen: set[int] = set()
    for _ in range(200):
        masked.clear()
        with torch.no_grad():
            logits = network(x)
        [(name, edge)] = masked
        stage, node = int(name[4]) - 1 - (5 - len(network.graphs)), int(name.rsplit('.', 1)[1])
        if stage in seen:
            continue
        seen.add(stage)
        removed = (network.graphs[stage].predecessors[node][edge], node)
        expected = naive_network(
            x, network.graphs, (1, 1, 2, 2, 2), state, True, 'sep_conv', removed=(stage, removed))
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
        if len(seen) == len(network.graphs):
            break
    assert len(seen) == len(network.graphs), 'an edge of every stage'


@pytest.mark.parametrize(('rate', 'training'), [(1.0, False), (0.0, True)])
def test_no_edge_is_removed_in_eval_mode_or_at_rate_zero(rate: float, training: bool) -> None:
    network = tiny(drop_path_rate=rate).train(training)
    masked = masked_edges(network)
    for _ in range(5):
        network(torch.randn(2, 3, 8, 8))
    assert masked == []


def test_a_rate_that_is_set_later_counts_for_the_network_and_for_its_stages() -> None:
    network = tiny(drop_path_rate=1.0)
    masked = masked_edges(network)
    x = torch.randn(2, 3, 8, 8)
    network.drop_path_rate = 0.0
    for _ in range(5):
        network(x)
    assert masked == []
    network.drop_path_rate = 0.5
    shares = {name: module.drop_path_rate for name, module in network.named_children() if isinstance(module, Stage)}
    cells = [removable_edges((graph,)) for graph in network.graphs]
    assert shares == pytest.approx({f'conv{3 + i}': 0.5 * count / sum(cells) for i, count in enumerate(cells)})
    network.drop_path_rate = 1.0
    network(x)
    assert len(masked) == 1
    network.prune_intermediate_layers([2])
    assert network.conv3.drop_path_rate == network.drop_path_rate == 1, 'all that is left of the edges'
    with pytest.raises(ValueError, match=r'^drop_path_rate must be a number within \[0, 1\], got 2$'):
        network.drop_path_rate = 2


def test_a_stage_in_eval_mode_keeps_its_edges_while_the_network_trains() -> None:
    network = tiny(drop_path_rate=1.0)
    masked = masked_edges(network)
    x = torch.randn(2, 3, 8, 8)
    network.conv4.eval()
    with torch.no_grad():
        for _ in range(60):
            network(x)
        assert {name.split('.')[0] for name, _ in masked} == {'conv3', 'conv5'} and len(masked) < 60
        masked.clear()
        network.conv3.eval(), network.conv5.eval()
        network(x)
    assert masked == []


def test_a_removed_edges_weight_still_gets_a_gradient_for_ddp() -> None:
    network = tiny(drop_path_rate=1.0)
    masked = masked_edges(network)
    network(torch.randn(4, 3, 16, 16)).square().sum().backward()
    [(name, edge)] = masked
    assert all(parameter.grad is not None for parameter in network.parameters())
    gradient = network.get_submodule(name).edge_weight.grad  # type: ignore[union-attr]
    assert gradient[edge] == 0 and gradient.count_nonzero() == len(gradient) - 1  # type: ignore[index,arg-type,union-attr]


def test_networks_without_a_removable_edge_train_at_any_rate() -> None:
    network = tiny(BarabasiAlbert(1), drop_path_rate=1.0)
    assert network.num_edges == 0
    network(torch.randn(2, 3, 8, 8)).sum().backward()


def feature_network(feature_cls: str, rate: float) -> nn.Module:
    return timm.create_model(
        'randwire', num_nodes=4, graph='er(0.7)', channels=2, stem_stride=1, drop_path_rate=rate, features_only=True,
        feature_cls=feature_cls)


def test_the_getter_removes_one_edge_per_minibatch() -> None:
    features = feature_network('getter', 1.0)
    masked = masked_edges(features)
    for step in range(10):
        features(torch.randn(2, 3, 8, 8))
        assert len(masked) == step + 1


def test_stages_that_run_on_their_own_remove_every_edge_as_often_as_the_network_does() -> None:
    features = feature_network('list', 0.5)
    cells = sum(module.num_edges for module in features.modules() if isinstance(module, Stage))
    masked = masked_edges(features)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for _ in range(200):
            features(x)
    assert abs(len(masked) - 100) < 4 * math.sqrt(200 * 0.5 * 0.5)
    assert is_uniform(Counter(masked), cells)


# Everything else in Table 1 and section 4


def test_dropout_stands_between_pooling_and_fc() -> None:
    network = tiny(drop_rate=0.75)
    seen: list[Tensor] = []
    network.fc.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pooled: list[Tensor] = []
    network.global_pool.register_forward_hook(lambda _, args, out: pooled.append(out))
    x = torch.randn(4, 3, 16, 16)
    network(x)
    network.eval()(x)
    dropped = seen[0] == 0
    assert 0.7 < dropped[pooled[0] > 0].float().mean() < 0.8
    torch.testing.assert_close(seen[0][~dropped], 4 * pooled[0][~dropped])
    assert torch.equal(seen[1], pooled[1])


@pytest.mark.parametrize('reentrant', [False, True], ids=['plain', 'reentrant'])
@pytest.mark.parametrize('regime', ['small', 'regular'])
def test_gradient_checkpointing_changes_no_gradient(
        regime: str, reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm.layers.config, '_USE_REENTRANT_CKPT', reentrant)
    network = tiny(regime=regime, drop_path_rate=1.0).double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    gradients = []
    for enable in (False, True):
        network.set_grad_checkpointing(enable)
        network.zero_grad()
        torch.manual_seed(3)
        network(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize('momentum', [0.1, None], ids=str)
@pytest.mark.parametrize('reentrant', [False, True], ids=['plain', 'reentrant'])
def test_gradient_checkpointing_counts_no_batch_twice(reentrant: bool, momentum: float | None) -> None:
    plain = tiny()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    tracked = next(checkpointed.conv4.buffers())
    before = timm.layers.use_reentrant_ckpt()
    timm.layers.set_reentrant_ckpt(reentrant)
    try:
        for _ in range(2):
            x = torch.randn(4, 3, 16, 16, requires_grad=True)
            for network in (plain, checkpointed):
                network(x).square().sum().backward()
    finally:
        timm.layers.set_reentrant_ckpt(before)
    for (name, ours), theirs in zip(checkpointed.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    assert next(checkpointed.conv4.buffers()) is tracked, 'the copies are gone again'


def test_gradient_checkpointing_keeps_only_the_stages_inputs() -> None:
    network = tiny()
    sizes = []
    for enable in (False, True):
        network.set_grad_checkpointing(enable)
        kept = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network.forward_intermediates(torch.randn(2, 3, 16, 16), intermediates_only=True)
        sizes.append(kept)
    assert sizes[1] < sizes[0] / 4


@pytest.mark.parametrize('regime', ['small', 'regular'])
@pytest.mark.parametrize(('stem_stride', 'sizes'), [
    (4, (16, 8, 4, 2, 1)), (2, (32, 16, 8, 4, 2)), (1, (32, 32, 16, 8, 4))])
def test_the_stem_stride_sets_the_sizes_of_all_features(regime: str, stem_stride: int, sizes: tuple[int, ...]) -> None:
    network = tiny(regime=regime, stem_stride=stem_stride).eval()
    size = 32
    features = network.forward_intermediates(torch.randn(1, 3, size, size), intermediates_only=True)
    assert tuple(feature.shape[-1] for feature in features) == sizes
    assert [info['reduction'] for info in network.feature_info] == [size // side for side in sizes]


@pytest.mark.parametrize(('regime', 'widths'), [('small', (3, 7, 7, 14, 28)), ('regular', (3, 7, 14, 28, 56))])
def test_the_widths_are_those_of_table_1_with_c_2_rounded_down(regime: str, widths: tuple[int, ...]) -> None:
    network = tiny(ErdosRenyi(0.3), regime=regime, channels=7, num_nodes=9)
    features = network.forward_intermediates(torch.randn(2, 3, 8, 8), intermediates_only=True)
    assert tuple(feature.shape[1] for feature in features) == widths
    assert [len(stage.nodes) for stage in network.children() if isinstance(stage, Stage)] == (
        [9, 9, 9] if regime == 'small' else [4, 9, 9, 9])
    assert network.conv_head.weight.shape == (1280, widths[-1], 1, 1)


@pytest.mark.parametrize('regime', ['small', 'regular'])
@pytest.mark.parametrize('node_op', ['sep_conv', 'conv', 'max_pool'])
@pytest.mark.parametrize('output_stride', [8, 16])
def test_a_dilated_network_contains_the_strided_one(regime: str, node_op: str, output_stride: int) -> None:
    strided = tiny(regime=regime, node_op=node_op, stem_stride=4).double().eval()
    dilated = tiny(regime=regime, node_op=node_op, stem_stride=4, output_stride=output_stride).double().eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 96, 128, dtype=torch.float64)
    with torch.no_grad():
        features = dilated.forward_features(x)
        assert features.shape[-2:] == (96 // output_stride, 128 // output_stride)
        step = 32 // output_stride
        torch.testing.assert_close(features[..., ::step, ::step], strided.forward_features(x))
        for info, coarse, fine in zip(
                dilated.feature_info, strided.forward_intermediates(x, intermediates_only=True),
                dilated.forward_intermediates(x, intermediates_only=True), strict=True):
            assert fine.shape[-1] == 128 // info['reduction']
            step = fine.shape[-1] // coarse.shape[-1]
            torch.testing.assert_close(fine[..., ::step, ::step], coarse)


@pytest.mark.parametrize('regime', ['small', 'regular'])
@pytest.mark.parametrize('node_op', NODE_OPS)
def test_every_part_is_made_on_the_device_and_of_the_type_asked_for(node_op: str, regime: str) -> None:
    for network in (tiny(regime=regime, node_op=node_op, device='meta', dtype=torch.float64),
                    tiny(regime=regime, node_op=node_op, device='meta', dtype=torch.float64, head=False)):
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            assert tensor.is_meta and tensor.dtype in (torch.float64, torch.int64), name
        network.reset_classifier(7)
        assert network.fc.weight.is_meta and network.fc.weight.dtype == torch.float64


@pytest.mark.parametrize(('regime', 'num_nodes', 'counts'), [
    ('small', 1, (1, 1, 1)), ('small', 32, (32, 32, 32)), ('regular', 2, (1, 2, 2, 2)), ('regular', 9, (4, 9, 9, 9))])
def test_the_smallest_networks_have_a_node_in_every_stage(
        regime: str, num_nodes: int, counts: tuple[int, ...]) -> None:
    assert stage_node_counts(regime, num_nodes) == counts
    with pytest.raises(ValueError, match='got True'):
        stage_node_counts(regime, True)
    network = tiny(ErdosRenyi(0.5), regime, num_nodes=num_nodes, channels=2, in_chans=1, num_classes=1)
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 1)


def test_a_batch_of_one_gives_in_eval_mode_what_it_gives_within_a_batch() -> None:
    network = tiny().eval()
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat([network(image[None]) for image in x]), network(x))


@pytest.mark.parametrize('size', [(17, 23), (1, 1), (8, 40)])
def test_images_of_any_size_are_taken(size: tuple[int, int]) -> None:
    assert tiny().eval()(torch.randn(1, 3, *size)).shape == (1, 5)


def test_initial_weights_follow_he_and_edges_start_where_they_are_told() -> None:
    network = RandWire(sample_graphs(FAMILIES[2], (6,) * 3, 1), channels=64, edge_weight_init=1.5)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            window = 9 if module.kernel_size == (3, 3) else 1
            fan_out = window if 'conv_dw' in name else window * module.out_channels
            count = module.weight.numel()
            assert abs(module.weight.std().item() / math.sqrt(2 / fan_out) - 1) < 4 / math.sqrt(2 * count), name
            assert module.bias is None
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
        elif isinstance(module, Node) and module.edge_weight is not None:
            assert (module.edge_weight == 1.5).all()
    assert abs(network.fc.weight.std().item() / 0.01 - 1) < 0.01 and (network.fc.bias == 0).all()
    assert all(
        (node.edge_weight == 0).all() for stage in tiny_default_stages() for node in stage.nodes
        if node.edge_weight is not None)


def tiny_default_stages() -> list[Stage]:
    network = RandWire(sample_graphs(FAMILIES[2], (6,) * 3, 1), channels=2)
    return [stage for stage in network.children() if isinstance(stage, Stage)]


def test_a_node_has_one_weight_per_edge_and_none_for_a_single_input() -> None:
    network = tiny(ErdosRenyi(0.2), num_nodes=16)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if 'edge_weight' in name}
    assert shapes == {
        f'conv{3 + stage}.nodes.{node}.edge_weight': (len(sources),)
        for stage, graph in enumerate(network.graphs)
        for node, sources in enumerate(graph.predecessors) if len(sources) > 1}
    assert any(len(sources) == 1 for graph in network.graphs for sources in graph.predecessors)


@pytest.mark.parametrize(('node_op', 'names'), [
    ('sep_conv', {'conv_dw.weight', 'conv_pw.weight'}), ('conv', {'conv.weight'}),
    ('max_pool', {'conv_pw.weight'}), ('avg_pool', {'conv_pw.weight'})])
def test_the_parameters_of_a_node_have_the_names_that_are_for_ever(node_op: str, names: set[str]) -> None:
    parameters = {name for name, _ in Node((0, 1), 4, 4, node_op=node_op).named_parameters()}
    assert parameters == names | {'edge_weight', 'bn.weight', 'bn.bias'}


# Weights belong to a wiring


def test_weights_of_another_wiring_are_refused_though_all_shapes_agree() -> None:
    ours, other = Graph(4, ((0, 2), (1, 2), (2, 3))), Graph(4, ((0, 2), (1, 2), (0, 3)))
    state = Stage(ours, 4, 4).state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in Stage(other, 4, 4).state_dict().items()}
    Stage(ours, 4, 4).load_state_dict(state)
    with pytest.raises(ValueError, match=f'other wiring: graph sha256 {ours.sha256}.* has {other.sha256}'):
        Stage(other, 4, 4).load_state_dict(state)


@pytest.mark.parametrize('altered', [torch.tensor([300.0]), torch.zeros(3), torch.tensor([-1]), torch.full((256,), 1e9),
                                     torch.full((256,), 2), torch.full((256,), float('nan')), 'no mark'], ids=str)
def test_a_damaged_wiring_mark_is_refused_in_the_same_words(altered: Any) -> None:
    stage = Stage(Graph(2, ((0, 1),)), 4, 4)
    with pytest.raises(ValueError, match='these weights were trained on other wiring'):
        stage.load_state_dict({**stage.state_dict(), '_extra_state': altered})


def test_a_wiring_mark_is_its_bytes_bit_by_bit_and_nothing_but_near_bits_is_read_as_one() -> None:
    mark = WiringMark('0f' * 32, 'node_op=conv')
    bits = mark.to_tensor()
    expected = ''.join(f'{byte:08b}' for byte in bytes.fromhex('0f' * 32) + b'node_op=conv')
    assert ''.join(map(str, bits.tolist())) == expected and bits.dtype == torch.uint8
    assert WiringMark.from_tensor(bits.float() * 0.9 + 0.05) == mark == WiringMark.from_tensor(bits.tolist())
    for wrong in (bits[:8], bits[:248], bits[:-1], bits.new_zeros(0), torch.cat([bits, bits[:3]]),
                  *(bits.float().index_fill(0, torch.tensor([3]), value) for value in (-0.6, -1.0, 1.6, 2.0, 1e9))):
        with pytest.raises(ValueError, match='cannot be read'):
            WiringMark.from_tensor(wrong)
    foreign = WiringMark.from_tensor(torch.cat([bits, torch.ones(8)]))  # 0xff is no ASCII
    assert foreign.graph_sha256 == mark.graph_sha256 and foreign.architecture == 'node_op=conv\N{REPLACEMENT CHARACTER}'
    assert len({mark, foreign, WiringMark('0f' * 32)}) == 3


def test_the_wiring_mark_is_real_data_even_for_a_network_on_the_meta_device() -> None:
    with torch.device('meta'):
        stage = Stage(Graph(2, ((0, 1),)), 4, 4)
        mark = stage.state_dict()['_extra_state']
    assert WiringMark.from_tensor(mark) == WiringMark(stage.graph.sha256)


TWINS = {
    'node operation': ({'node_op': 'max_pool'}, {'node_op': 'avg_pool'}, 'node_op=max_pool .* has node_op=avg_pool'),
    'stem stride': ({'stem_stride': 1}, {'stem_stride': 4}, 'stem_stride=1 .* has .*stem_stride=4'),
    # conv1 has half of C, rounded down: of the networks whose C differs by one, some have stages of one width.
    'C': ({'channels': 4}, {'channels': 5}, 'channels=4, .* has .*channels=5'),
    'regime': ({'regime': 'small'}, {'regime': 'regular'}, 'regime=small .* has .*regime=regular'),
}


@pytest.mark.parametrize('kind', TWINS)
def test_weights_of_another_architecture_are_refused_where_shapes_cannot_tell(kind: str) -> None:
    trained, built, message = TWINS[kind]
    first, second = tiny(**trained), tiny(**built)
    if kind in ('node operation', 'stem stride'):
        assert {name: tensor.shape for name, tensor in first.state_dict().items() if '_extra' not in name} == {
            name: tensor.shape for name, tensor in second.state_dict().items() if '_extra' not in name}
        with pytest.raises(ValueError, match=f'trained as another architecture: .*{message}'):
            second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=f'trained as another architecture: .*{message}'):
        foreign = WiringMark('0' * 64, first.conv5.architecture).to_tensor()
        WiringMark('0' * 64, second.conv5.architecture).check(foreign)


def test_the_same_weights_may_run_dilated() -> None:
    first, second = tiny(), tiny(output_stride=8)
    second.load_state_dict(first.state_dict())


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('decay', [0.5, 0.9, 0.99, 0.9998])
def test_an_average_over_state_dicts_keeps_the_wiring_mark(decay: float, dtype: torch.dtype) -> None:
    model = tiny()
    average = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    for _ in range(50):
        average = {name: decay * average[name] + (1 - decay) * tensor.to(dtype)
                   for name, tensor in model.state_dict().items()}
    tiny().load_state_dict(average)
    # A sum that comes out below 1 in most precisions.
    shares = {name: sum(tensor.to(dtype) / 49 for _ in range(49)) for name, tensor in model.state_dict().items()}
    assert not torch.equal(shares['conv3._extra_state'], model.state_dict()['conv3._extra_state'].to(dtype))
    tiny().load_state_dict(shares)
    with pytest.raises(ValueError, match='other wiring'):
        tiny(seed=2).load_state_dict(average)


@pytest.mark.parametrize('place', ['', 'backbone.network'])
def test_a_state_dict_of_parameters_and_buffers_loads_strictly_with_one_warning(place: str) -> None:
    """What somebody else's code collects has no wiring marks, and often no counts of minibatches."""
    first, second = tiny(), tiny()
    torch.nn.init.normal_(first.fc.weight)
    loader: torch.nn.Module = second
    prefix = ''
    for name in reversed(place.split('.') if place else []):
        outer = torch.nn.Module()
        outer.add_module(name, loader)
        loader, prefix = outer, f'{name}.{prefix}'
    for dropped in ('nothing', 'num_batches_tracked'):
        state = {prefix + name: tensor for name, tensor in (*first.named_parameters(), *first.named_buffers())
                 if not name.endswith(dropped)}
        with pytest.warns(UserWarning, match='no wiring mark') as caught:
            loader.load_state_dict(state)
        assert len(caught) == 1
        assert torch.equal(second.fc.weight, first.fc.weight)
    marked = first.state_dict()
    for name in [name for name in marked if name.endswith('num_batches_tracked')]:
        del marked[name]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        second.load_state_dict(marked)
        assert checkpoint_filter_fn(dict(marked), second) == marked

    del state[f'{prefix}conv3.nodes.0.bn.weight']
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "[\w.]*conv3.nodes.0.bn.weight"'):
        loader.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        missing = loader.load_state_dict({f'{prefix}fc.weight': first.fc.weight}, strict=False).missing_keys
    assert f'{prefix}conv3._extra_state' in missing, 'nothing of the stage was loaded'


# Bad input


@pytest.mark.parametrize(('kwargs', 'named'), [
    ({'regime': 'large'}, "regime must be one of 'small', 'regular', got 'large'"),
    ({'node_op': 'linear'}, "node_op must be one of 'sep_conv', 'conv', 'max_pool', 'avg_pool', got 'linear'"),
    ({'stem_stride': 3}, 'stem_stride must be one of 4, 2, 1, got 3'),
    ({'stem_stride': 2.0}, r'stem_stride must be one of 4, 2, 1, got 2\.0'),
    ({'stem_stride': True}, 'stem_stride must be one of 4, 2, 1, got True'),
    ({'output_stride': 16.0}, r'output_stride must be one of 8, 16, 32, got 16\.0'),
    ({'output_stride': 4}, 'output_stride must be one of 8, 16, 32, got 4'),
    ({'output_stride': 8, 'node_op': 'avg_pool'}, 'output_stride=8 .*average pooling'),
    ({'output_stride': 16, 'node_op': 'avg_pool'}, 'output_stride=16 .*average pooling'),
    ({'channels': 1}, 'channels must be an integer of at least 2, got 1'),
    ({'channels': 78.0}, 'channels .* got 78.0'),
    ({'channels': True}, 'channels .* got True'),
    ({'num_classes': -1}, 'num_classes must be an integer of at least 0, got -1'),
    ({'in_chans': 0}, 'in_chans must be an integer of at least 1, got 0'),
    ({'drop_rate': 1.5}, r'drop_rate must be a number within \[0, 1\], got 1.5'),
    ({'drop_rate': math.nan}, 'drop_rate .* got nan'),
    ({'drop_path_rate': -0.1}, 'drop_path_rate .* got -0.1'),
    ({'drop_path_rate': '0.1'}, "drop_path_rate .* got '0.1'"),
    ({'edge_weight_init': math.inf}, 'edge_weight_init must be a finite number, got inf'),
    ({'global_pool': 'median'}, "global_pool must be one of .* got 'median'"),
    ({'graph': 'ws(5,0.5)'}, 'K=5'),
    ({'graph': 'ws(4,0.75)', 'num_nodes': 4}, 'K=4 and N=4'),
    ({'graph': 'ba(5)', 'num_nodes': 8, 'regime': 'regular'}, 'M=5 and N=4'),
    ({'graph': 'tree(2)'}, r"unknown random graph model 'tree\(2\)'"),
    ({'num_nodes': 0}, 'num_nodes must be an integer of at least 1 in the small regime, got 0'),
    ({'num_nodes': 1, 'regime': 'regular'}, 'num_nodes must be an integer of at least 2 in the regular regime, got 1'),
    ({'num_nodes': 8.0}, 'num_nodes .* got 8.0'),
    ({'seed': -1}, 'seed must be a non-negative integer, got -1'),
    ({'seed': 'one'}, "seed .* got 'one'"),
])
def test_an_argument_out_of_range_is_refused_in_one_line_that_names_it(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named) as error:
        timm.create_model('randwire', device='meta', **kwargs)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('regime', 'count', 'needed'), [('small', 4, 3), ('regular', 3, 4)])
def test_the_number_of_graphs_must_suit_the_regime(regime: str, count: int, needed: int) -> None:
    with pytest.raises(ValueError, match=f'the {regime} regime needs {needed} graphs, got {count}'):
        RandWire([Graph(4, ((0, 1),))] * count, regime=regime)


@pytest.mark.parametrize(('graphs', 'named'), [
    ('ws(4,0.75)', r"graphs must be a sequence of Graph, .* got 'ws\(4,0\.75\)'; sample_graphs makes them"),
    (None, 'graphs must be a sequence of Graph, .* got None'),
    (Graph(2, ((0, 1),)), r'graphs must be a sequence of Graph, .* got Graph\(2, \(\(0, 1\),\)\)'),
    (['ws(4,0.75)'] * 3, r"graphs must be of the type Graph, got 'ws\(4,0\.75\)'"),
    ([networkx.path_graph(3)] * 3, 'graphs must be of the type Graph, got .*networkx.* Graph.from_undirected takes'),
], ids=['text', 'None', 'a graph', 'texts', 'networkx'])
def test_what_is_no_graph_is_refused_in_one_line(graphs: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f'^{named}') as error:
        RandWire(graphs)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('arguments', 'named'), [
    ((-5,), 'num_classes must be an integer of at least 0, got -5'),
    ((True,), 'num_classes must be an integer of at least 0, got True'),
    ((2.5,), r'num_classes must be an integer of at least 0, got 2\.5'),
    ((3, 'median'), "global_pool must be one of .* got 'median'")], ids=str)
def test_a_classifier_that_cannot_be_is_refused_and_the_old_one_stays(arguments: tuple[Any, ...], named: str) -> None:
    network = tiny()
    before = network.fc, network.global_pool, network.num_classes
    with pytest.raises(ValueError, match=f'^{named}'):
        network.reset_classifier(*arguments)
    assert (network.fc, network.global_pool, network.num_classes) == before


@pytest.mark.parametrize('training', [False, True], ids=['eval', 'train'])
@pytest.mark.parametrize('change', [
    lambda network: network, lambda network: network.prune_intermediate_layers([0, 3])], ids=['whole', 'pruned'])
@pytest.mark.parametrize('kwargs', [{}, {'regime': 'regular'}, {'head': False}, {'global_pool': 'catavgmax'}], ids=str)
def test_the_children_in_a_row_are_the_network(
        kwargs: dict[str, Any], change: Callable[[RandWire], Any], training: bool) -> None:
    network = tiny(**kwargs).train(training)
    change(network)
    children, x = list(network.children()), torch.randn(2, 3, 16, 16)
    features = network.forward_features(x)
    assert torch.equal(nn.Sequential(*children[:-2])(x), features)
    assert torch.equal(nn.Sequential(*children[:-1])(x), network.forward_head(features, pre_logits=True))
    assert torch.equal(nn.Sequential(*children)(x), network(x))


def test_without_a_head_the_network_ends_with_conv5() -> None:
    whole = timm.create_model('randwire_ws_pico', num_classes=0, global_pool='').eval()
    bare = timm.create_model('randwire_ws_pico', num_classes=0, global_pool='', head=False).eval()
    missing, unexpected = bare.load_state_dict(whole.state_dict(), strict=False)
    assert not missing and {name.partition('.')[0] for name in unexpected} == {'conv_head', 'bn_head'}
    assert bare.num_features == 96
    assert timm.create_model('randwire_ws_pico', num_classes=3, head=False).fc.in_features == 96
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole.forward_intermediates(images, indices=1, intermediates_only=True)[0]
        torch.testing.assert_close(bare(images), expected)


def test_what_timm_reads_may_be_wrapped_and_lacks_nothing_but_the_classifier() -> None:
    network = tiny()
    state = network.state_dict()
    assert checkpoint_filter_fn({'state_dict': state, 'epoch': 3}, network) == state
    assert checkpoint_filter_fn({key: t for key, t in state.items() if not key.startswith('fc.')}, network)
    names = [key for key in state if key.startswith('conv1.') and 'num_batches' not in key]
    for count, more in ((1, ''), (3, ''), (4, ' and 1 more'), (5, ' and 2 more')):
        gone = names[:count]
        with pytest.raises(ValueError, match=f'^these weights lack {", ".join(gone[:3])}{more}$'):
            checkpoint_filter_fn({key: t for key, t in state.items() if key not in gone}, network)


def test_pruning_keeps_the_last_features_and_the_head_only_where_it_is_asked_to() -> None:
    network = tiny(channels=6)
    assert network.prune_intermediate_layers(prune_head=False) == [4]
    assert network.has_conv_head is True and network.num_classes == 5 and network.num_features == 1280
    for kwargs in ({'prune_norm': True, 'prune_head': False}, {'prune_head': True}):
        pruned = tiny(channels=6)
        assert pruned.prune_intermediate_layers([4], **kwargs) == [4]
        assert pruned.has_conv_head is False and pruned.num_classes == 0 and pruned.num_features == 24
        assert isinstance(pruned.global_pool.pool, nn.Identity) and pruned.global_pool.pool_type == ''
        assert pruned(torch.randn(1, 3, 32, 32)).shape == (1, 24, 4, 4)
    assert tiny().prune_intermediate_layers(1) == [4] and tiny().prune_intermediate_layers(2) == [3, 4]


def test_layers_are_grouped_by_stages_and_the_heads_convolution_goes_with_the_last() -> None:
    network = tiny()
    assert set(network.group_matcher()) == {'stem', 'blocks'}, 'which timm asks for'
    groups = timm.models.group_parameters(network, network.group_matcher(), reverse=True)
    assert [sorted({name.partition('.')[0] for name, _ in network.named_parameters() if groups[name] == layer})
            for layer in range(6)] == [
                ['conv1'], ['conv2'], ['conv3'], ['conv4'], ['bn_head', 'conv5', 'conv_head'], ['fc']]


def test_a_network_says_which_it_is_in_one_line_and_folds_its_modules_up() -> None:
    named = timm.create_model('randwire', graph='ba(5)', seed=3, channels=24, num_nodes=8)
    nameless = RandWire(named.graphs, channels=24, regime='small')
    assert named.extra_repr() == 'BA(5), seed 3, small regime, N = 8, C = 24'
    assert nameless.extra_repr() == f'graphs {graphs_sha256(named.graphs)[:8]}, small regime, N = 8, C = 24'
    shown = named._repr_html_()
    assert '<summary>BA(5), seed 3, small regime, N = 8, C = 24</summary>' in shown
    assert f'<pre>{html.escape(repr(named))}</pre></details>' in shown
    assert RandWire(named.graphs).channels == 78
