"""The native operators on stages, data and settings that are drawn by the hundred, against the modules in float64."""
from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm  # noqa: F401  (registers)
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

from randwire_zoo import use_kernels
from randwire_zoo.deployment import DeployedNode
from randwire_zoo.graphs import Graph
from randwire_zoo.kernels import native
from randwire_zoo.network import Stage

COMPILER = os.environ.get('CXX', 'c++').split()[0]
pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f'the kernels are built with {COMPILER}')
# The same examples in every run; a failure is told as it was drawn, since making it smaller takes minutes.
SETTINGS = settings(derandomize=True, deadline=None, database=None, phases=[Phase.generate],
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any DAG of up to six nodes."""
    count = draw(st.integers(1, 6))
    pairs = [(i, j) for j in range(count) for i in range(j)]
    return Graph(count, tuple(sorted(draw(st.sets(st.sampled_from(pairs))) if pairs else ())))


@st.composite
def stages(draw: st.DrawFn) -> Stage:
    """A stage with numbers of its own in every tensor, and parts of it frozen in one way or another."""
    torch.manual_seed(draw(st.integers(0, 2 ** 16)))
    stage = Stage(
        draw(graphs()), in_chs=draw(st.integers(1, 20)), out_chs=draw(st.integers(1, 20)), stride=draw(
            st.sampled_from([1, 2])), dilation=draw(st.integers(1, 3)), input_dilation=draw(st.integers(1, 2)))
    for node in stage.nodes:
        node.conv_dw.weight.data.normal_(std=0.5)
        node.conv_pw.weight.data.normal_(std=node.conv_pw.in_channels ** -0.5)
        node.bn.weight.data.uniform_(0.5, 1.5)
        node.bn.bias.data.normal_(0, 0.3)
        node.bn.running_mean.normal_()
        node.bn.running_var.uniform_(0.5, 2)
        node.bn.eps = draw(st.sampled_from([1e-5, 1e-3]))
        node.bn.momentum = draw(st.sampled_from([0.1, 0.5, None]))
        if node.edge_weight is not None:
            node.edge_weight.data.normal_()
    stage.train(draw(st.booleans()))
    for node in stage.nodes:
        kind = draw(st.sampled_from(['as it is', 'as it is', 'frozen', 'eval', 'no statistics', 'no gradients']))
        if kind == 'frozen':
            frozen = FrozenBatchNorm2d(stage.nodes[0].bn.weight.numel(), eps=node.bn.eps)
            frozen.load_state_dict({name: t for name, t in node.bn.state_dict().items() if 'num' not in name})
            node.bn = frozen
        elif kind == 'eval':
            node.bn.eval()
        elif kind == 'no statistics':
            node.bn = nn.BatchNorm2d(node.bn.num_features, eps=node.bn.eps, track_running_stats=False)
        elif kind == 'no gradients':
            node.requires_grad_(False)
    return stage


@st.composite
def inputs(draw: st.DrawFn, channels: int) -> Tensor:
    """Images that lie in memory in one way or another."""
    batch, height, width = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    layout = draw(st.sampled_from(['NCHW', 'channels_last', 'sliced', 'transposed', 'expanded', 'a part']))
    if layout == 'sliced':
        return torch.randn(batch, channels, height, width * 2)[..., ::2]
    if layout == 'transposed':
        return torch.randn(batch, channels, width, height).transpose(2, 3)
    if layout == 'expanded':
        return torch.randn(1, channels, height, width).expand(batch, -1, -1, -1)
    if layout == 'a part':
        whole = torch.randn(batch + 1, channels + 2, height, width)
        return whole.contiguous(memory_format=torch.channels_last)[1:, 1:-1]
    x = torch.randn(batch, channels, height, width)
    return x.contiguous(memory_format=torch.channels_last) if layout == 'channels_last' else x


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def on_kernels(kernels: str) -> Iterator[list[bool]]:
    """What `run_stage` answered: True where the operators computed the stage."""
    served: list[bool] = []
    original = native.run_stage

    def run_stage(*args: Any) -> Any:
        out = original(*args)
        served.append(out is not None)
        return out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('randwire_zoo.network.run_stage', run_stage)
        use_kernels(kernels)
        try:
            yield served
        finally:
            use_kernels('torch')


def weighted(out: Tensor) -> Tensor:
    """A number that every value has its own part in."""
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)).sum()


def learn(stage: nn.Module, x: Tensor, kept: Tensor | None, call: Callable[..., Tensor] | None = None) -> list[Tensor]:
    x = x.detach().requires_grad_()
    out = (call or stage)(x, kept)
    learning = [p for p in stage.parameters() if p.requires_grad]
    return [out.detach(), *torch.autograd.grad(weighted(out), [x, *learning], allow_unused=True), *stage.buffers()]


def with_hooks(stage: nn.Module, x: Tensor, kept: Tensor | None) -> list[Tensor]:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.contiguous().clone(), lambda t: t):
        return learn(stage, x, kept)


def checkpointed(stage: nn.Module, x: Tensor, kept: Tensor | None) -> list[Tensor]:
    """Without running statistics: torch brings those of some modules up to date twice, and of others once."""
    found = learn(stage, x, kept, lambda x, kept: checkpoint(stage, x, kept, use_reentrant=False))
    return found[:len(found) - len(list(stage.buffers()))]


def with_other_weights(stage: nn.Module, x: Tensor, kept: Tensor | None) -> list[Tensor]:
    others = {name: (t * 1.25).detach().requires_grad_() for name, t in stage.named_parameters()}
    return list(torch.autograd.grad(weighted(functional_call(stage, others, (x, kept))), list(others.values())))


def without_gradients(stage: nn.Module, x: Tensor, kept: Tensor | None) -> list[Tensor]:
    with torch.no_grad():
        return [stage(x, kept), *stage.buffers()]


def in_inference_mode(stage: nn.Module, x: Tensor, kept: Tensor | None) -> list[Tensor]:
    with torch.inference_mode():
        return [stage(x, kept).clone(), *stage.buffers()]


def under_autocast(stage: nn.Module, x: Tensor, kept: Tensor | None) -> list[Tensor]:
    with torch.autocast('cpu', torch.bfloat16):
        return [t.float() for t in learn(stage, x, kept)]


def of_each_image(stage: nn.Module, x: Tensor, kept: Tensor | None) -> list[Tensor]:
    stage.eval()
    parameters = {name: t.detach() for name, t in stage.named_parameters()}
    if not parameters or any(not isinstance(m, FrozenBatchNorm2d) and getattr(m, 'running_mean', 0) is None
                             for m in stage.modules()):
        return without_gradients(stage, x, kept)

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return weighted(functional_call(stage, parameters, (image[None], kept)))
    return list(vmap(grad(loss), in_dims=(None, 0))(parameters, x).values())


CONTEXTS = [learn, learn, with_hooks, checkpointed, with_other_weights, without_gradients, in_inference_mode,
            under_autocast, of_each_image]


def distance(found: Any, expected: Any) -> float:
    """Relative to what is expected, unless that is next to nothing, as gradients before a BN can be."""
    if found is None or expected is None:
        assert found is expected is None
        return 0.0
    assert found.shape == expected.shape
    return ((found.double() - expected.double()).norm() / (expected.double().norm() + 0.1)).item()


@given(st.data())
@settings(SETTINGS, max_examples=300)
def test_stages_in_all_contexts_are_those_of_the_modules_in_float64(data: st.DataObject) -> None:
    stage = data.draw(stages())
    x = data.draw(inputs(stage.nodes[0].conv_dw.in_channels))
    kept = torch.tensor(data.draw(st.lists(st.sampled_from([1.0, 1.0, 0.0]), min_size=stage.num_edges,
                                           max_size=stage.num_edges))) if data.draw(st.booleans()) else None
    context = data.draw(st.sampled_from(CONTEXTS))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float64]))

    def run(stage: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32) -> Any:
        given = None if kept is None else kept.to(x.dtype)
        with default_dtype(dtype):
            try:
                return context(stage, x, given)
            except ValueError as e:  # of a single value per channel, as BN says it
                return str(e)
    exact, plain = copy.deepcopy(stage).double(), copy.deepcopy(stage)
    expected, by_modules = run(exact, x.double()), run(plain, x)
    with on_kernels('native') as served:
        found = run(stage, x, dtype)
    if isinstance(expected, str):
        assert found == expected
        return
    assert all(served), served
    stride = stage.nodes[0].conv_dw.stride[0]
    values = x.shape[0] * ((x.shape[2] - 1) // stride + 1) * ((x.shape[3] - 1) // stride + 1)
    least = 1e-3 if values <= 4 else 1e-4  # BN of a few values per channel leaves little but rounding of its gradients
    for ours, theirs, truth in zip(found, by_modules, expected, strict=True):
        if context is under_autocast:  # in bf16 some pixels change sides at the ReLU, here a large part of them all
            assert distance(ours, truth) < max(0.3, 5 * distance(theirs, truth))
        else:
            assert distance(ours, truth) < max(least, 20 * distance(theirs, truth))


@given(st.data())
@settings(SETTINGS, max_examples=100)
def test_evaluation_in_both_types_as_it_is_and_deployed(data: st.DataObject) -> None:
    stage = data.draw(stages()).eval()
    x = data.draw(inputs(stage.nodes[0].conv_dw.in_channels))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    if data.draw(st.booleans()) and all(type(node.bn) is nn.BatchNorm2d and node.bn.track_running_stats
                                        for node in stage.nodes):
        stage.nodes = nn.ModuleList(DeployedNode(node) for node in stage.nodes)  # type: ignore[arg-type]
    stage, x = stage.to(dtype), x.to(dtype)
    if data.draw(st.booleans()):  # BN in fp32 beside convolutions in bf16
        for module in stage.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()
    with torch.no_grad():
        try:
            expected = copy.deepcopy(stage).double()(x.double())
            by_modules = stage(x)
        except ValueError:
            return
        with on_kernels('native') as served:
            found = stage(x)
    assert served == [True] and found.dtype == dtype
    assert distance(found, expected) < max(1e-5, 3 * distance(by_modules, expected))
