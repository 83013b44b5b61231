"""Graph damage against a naive forward pass, written here from the definition, of networks that lack a node or edge."""
from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from randwire_zoo import use_kernels
from randwire_zoo.graphs import Graph
from randwire_zoo.kernels import library as kernels
from randwire_zoo.network import Node, RandWire, Stage
from randwire_zoo.studies.damage import measure_damage

# A chain with a shortcut and two sinks, an isolated node beside a fork (three sinks), and a node that is a stage.
GRAPHS = (Graph(5, ((0, 1), (0, 2), (1, 2), (2, 3), (1, 4))), Graph(4, ((0, 1), (0, 2))), Graph(1, ()))
IMAGES = 100
COMPILER = os.environ.get('CXX', 'c++').split()[0]


@pytest.fixture(autouse=True)
def kernels_as_before() -> Iterator[None]:
    before = kernels.kernels_in_use()
    yield
    use_kernels(before)


def make(graphs: tuple[Graph, ...], regime: str = 'small', node_op: str = 'sep_conv') -> RandWire:
    """A network with random BN statistics, edge weights and classifier, whose predictions differ between images."""
    network = RandWire(graphs, regime=regime, channels=3, num_classes=6, stem_stride=1, node_op=node_op).eval()
    generator = torch.Generator().manual_seed(4)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5),
                                      (module.running_mean, -0.3, 0.3), (module.running_var, 0.05, 0.2)):
                assert tensor is not None
                tensor.data.uniform_(low, high, generator=generator)
        elif isinstance(module, Node) and module.edge_weight is not None:
            module.edge_weight.data.uniform_(-2, 2, generator=generator)
    nn.init.normal_(network.fc.weight, std=0.3, generator=generator)
    with torch.no_grad():  # so that no class is favoured
        network.fc.bias -= network(torch.randn(100, 3, 16, 16, generator=generator)).mean(0)
    return network


def naive_bn(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, var, weight, bias = (state[f'{name}.{part}'].view(1, -1, 1, 1)
                               for part in ('running_mean', 'running_var', 'weight', 'bias'))
    return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias


def naive_stage(
        x: Tensor, graph: Graph, stride: int, state: dict[str, Tensor], name: str, lost: int | tuple[int, int] | None,
) -> Tensor | float:
    """A stage without one node, or without one edge."""
    sent: dict[int, Tensor] = {}
    empty = None
    for node in range(graph.num_nodes):
        key = f'{name}.nodes.{node}'
        sources = [source for source, target in sorted(graph.edges) if target == node]
        if not sources:
            data: Tensor = torch.relu(x)
        else:
            weights = torch.sigmoid(state[f'{key}.edge_weight']).tolist() if len(sources) > 1 else [1.0]
            here = [weight * sent[source] for weight, source in zip(weights, sources, strict=True)
                    if source != lost and (source, node) != lost]
            data = torch.relu(sum(here)) if here else torch.zeros_like(sent[sources[0]])
        if f'{key}.conv.weight' in state:
            data = F.conv2d(data, state[f'{key}.conv.weight'], stride=1 if sources else stride, padding=1)
        else:
            data = F.conv2d(data, state[f'{key}.conv_dw.weight'], stride=1 if sources else stride, padding=1,
                            groups=data.shape[1])
            data = F.conv2d(data, state[f'{key}.conv_pw.weight'])
        sent[node] = naive_bn(data, state, f'{key}.bn')
        empty = torch.zeros_like(sent[node])
    sinks = [node for node in range(graph.num_nodes) if all(source != node for source, _ in graph.edges)]
    left = [sent[node] for node in sinks if node != lost]
    assert empty is not None
    return torch.stack(left).mean(0) if left else empty


def naive_correct(
        network: RandWire, images: Tensor, targets: Tensor, where: str = '', lost: int | tuple[int, int] | None = None,
) -> int:
    """How many images the network classifies without the node or edge `lost` of the stage `where`."""
    state = network.state_dict()
    x, first = images, 6 - len(network.graphs)
    for index, stride in enumerate((1, 1, 2, 2, 2), start=1):
        name = f'conv{index}'
        if index < first:
            if index > 1:
                x = torch.relu(x)
            x = naive_bn(F.conv2d(x, state[f'{name}.conv.weight'], stride=stride, padding=1), state, f'{name}.bn')
        else:
            x = naive_stage(x, network.graphs[index - first], stride, state, name,  # type: ignore[assignment]
                            lost if name == where else None)
    x = torch.relu(naive_bn(F.conv2d(torch.relu(x), state['conv_head.weight']), state, 'bn_head'))
    logits = x.mean((2, 3)) @ state['fc.weight'].T + state['fc.bias']
    return int((logits.argmax(1) == targets).sum())


def batches(images: Tensor, targets: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(size), targets.split(size), strict=True))


def pictures(network: RandWire) -> tuple[Tensor, Tensor]:
    """Images, and what the network says of them but for a fifth, so that a damage may also gain."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(IMAGES, 3, 16, 16, generator=generator).to(next(network.parameters()).dtype)
    with torch.no_grad():
        targets = network(images).argmax(1)
    assert len(targets.unique()) > 3
    targets[::5] = (targets[::5] + 1) % 6
    return images, targets


@pytest.mark.parametrize('regime, node_op', [('small', 'sep_conv'), ('regular', 'sep_conv'), ('small', 'conv')])
def test_every_loss_is_that_of_a_network_without_the_node_or_edge(regime: str, node_op: str) -> None:
    graphs = GRAPHS if regime == 'small' else (Graph(2, ((0, 1),)), *GRAPHS)
    network = make(graphs, regime, node_op).double()
    images, targets = pictures(network)
    found = measure_damage(network, batches(images, targets, 16), torch.device('cpu'), IMAGES)
    whole = naive_correct(network, images, targets)
    assert found['images'] == IMAGES and found['top1'] == pytest.approx(100 * whole / IMAGES) == 80
    nodes, edges = [], []
    for number, graph in enumerate(graphs):
        name = f'conv{6 - len(graphs) + number}'
        for node in range(graph.num_nodes):
            out = sum(source == node for source, _ in graph.edges)
            loss = whole - naive_correct(network, images, targets, name, node)
            nodes.append([name, node, out, pytest.approx(100 * loss / IMAGES)])
        for edge in graph.edges:
            into = sum(target == edge[1] for _, target in graph.edges)
            loss = whole - naive_correct(network, images, targets, name, edge)
            edges.append([name, *edge, into, pytest.approx(100 * loss / IMAGES)])
    assert found['nodes'] == nodes and found['edges'] == edges
    assert len({entry[-1] for entry in found['nodes']}) > 2 and len({entry[-1] for entry in found['edges']}) > 2


def test_the_network_is_left_as_it_was_and_at_most_so_many_images_are_read() -> None:
    network = make(GRAPHS)
    images, targets = pictures(network)
    state, logits = copy.deepcopy(network.state_dict()), network(images)
    found = measure_damage(network.train(), batches(images, targets, 16), torch.device('cpu'), 20)
    part = measure_damage(network, batches(images[:20], targets[:20], 7), torch.device('cpu'), 1000)
    assert found == part and found['images'] == 20
    assert not network.training and torch.equal(network(images), logits)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    with pytest.raises(ValueError, match='no images'):
        measure_damage(network, [], torch.device('cpu'), 20)


def test_an_error_on_the_way_leaves_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make(GRAPHS)
    forward, calls = Stage.forward, []

    def fail(self: Stage, x: Tensor, kept_edges: Any = None) -> Tensor:
        calls.append(self)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return forward(self, x, kept_edges)

    monkeypatch.setattr(Stage, 'forward', fail)
    with pytest.raises(KeyboardInterrupt):
        measure_damage(network, [(torch.zeros(1, 3, 16, 16), torch.zeros(1))], torch.device('cpu'), 1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize('kind', [
    pytest.param('native', marks=pytest.mark.skipif(
        shutil.which(COMPILER) is None, reason=f'the kernels are built with {COMPILER}')), 'torch'])
def test_the_losses_do_not_depend_on_the_kernels(kind: str) -> None:
    network = make(GRAPHS)
    images, targets = pictures(network)
    double = copy.deepcopy(network).double()
    expected = measure_damage(double, [(images.double(), targets)], torch.device('cpu'), IMAGES)
    use_kernels(kind)
    assert measure_damage(network, [(images, targets)], torch.device('cpu'), IMAGES) == expected
