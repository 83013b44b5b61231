"""The native operators wherever torch can take a function: each against the network's own modules in float64."""
from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from randwire_zoo import native, plans, use_kernels
from randwire_zoo.graphs import Graph
from randwire_zoo.network import Node, Stage
from randwire_zoo.stages import Operands, Settings

COMPILER = os.environ.get('CXX', 'c++').split()[0]
pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f'the kernels are built with {COMPILER}')


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every test starts on the native operators and sees which stages they computed."""
    settings: list[Any] = []
    original = plans.run

    def run(operands: Operands, chosen: Settings) -> Any:
        settings.append(chosen)
        return original(operands, chosen)
    monkeypatch.setattr(native, 'run', run)
    use_kernels('native')
    yield settings
    use_kernels('torch')


# Two input nodes, two sinks, in-degrees up to 3
EDGES = ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3), (2, 4))


def a_stage(training: bool = False, **kwargs: Any) -> Stage:
    """A small stage whose edges and BN have numbers of their own."""
    torch.manual_seed(5)
    stage = Stage(Graph(5, EDGES), **{'in_chs': 3, 'out_chs': 5, 'stride': 2, **kwargs})
    with torch.no_grad():
        for module in stage.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            elif isinstance(module, Node) and module.edge_weight is not None:
                module.edge_weight.normal_()
    return stage.train(training)


def images(batch: int = 3) -> Tensor:
    torch.manual_seed(6)
    return torch.randn(batch, 3, 9, 8)


def by_modules(function: Callable[..., Any], *args: Any) -> Any:
    """The same in float64, on the modules."""
    def double(x: Any) -> Any:
        return copy.deepcopy(x).double() if isinstance(x, (Tensor, nn.Module)) else (
            {name: double(value) for name, value in x.items()} if isinstance(x, dict) else x)
    use_kernels('torch')
    try:
        return function(*[double(x) for x in args])
    finally:
        use_kernels('native')


def assert_equal(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Every tensor, relative to its largest value."""
    if isinstance(found, Tensor):
        assert found.shape == expected.shape
        assert (found.double() - expected).abs().max() <= tolerance * expected.abs().max(), 'they differ'
    elif isinstance(found, dict):
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert_equal(value, expected[name], tolerance)
    else:
        for ours, theirs in zip(found, expected, strict=True):
            assert_equal(ours, theirs, tolerance)


def parameters_of(stage: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in stage.named_parameters()}


# Transforms


def loss(stage: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    out = functional_call(stage, parameters, (x,))
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()


def the_gradients(stage: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Any:
    return grad(loss, argnums=(1, 2))(stage, parameters, x)


def a_vmapped_stage(stage: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Any:
    return vmap(stage)(x.unflatten(0, (-1, 1)))


def gradients_of_each_sample(stage: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Any:
    return vmap(grad(loss, argnums=1), in_dims=(None, None, 0))(stage, parameters, x.unflatten(0, (-1, 1)))


def an_ensemble(stage: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Any:
    stacked = {name: torch.stack([value, value * 1.25]) for name, value in parameters.items()}
    return vmap(functional_call, in_dims=(None, 0, None))(stage, stacked, (x,))


def a_tangent(stage: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Any:
    return jvp(stage, (x,), (torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x),))


def a_tangent_of_the_parameters(stage: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Any:
    directions = {name: torch.linspace(-1, 1, value.numel(), dtype=x.dtype).view_as(value)
                  for name, value in parameters.items()}
    return jvp(lambda parameters: functional_call(stage, parameters, (x,)), (parameters,), (directions,))


def a_dual_number(stage: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Any:
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(stage(forward_ad.make_dual(x, torch.ones_like(x))))
        return [dual.primal, dual.tangent]


def a_tangent_of_the_gradients(stage: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Any:
    return jvp(lambda x: grad(loss, argnums=2)(stage, parameters, x), (x,), (torch.ones_like(x),))


def a_hessian(stage: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Any:
    name = next(name for name in parameters if name.endswith('edge_weight'))
    return hessian(lambda weight: loss(stage, {**parameters, name: weight}, x))(parameters[name])


def a_jacobian(stage: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Any:
    return jacrev(lambda scale: stage(x * scale).mean((2, 3)))(torch.ones(3, 1, 1, dtype=x.dtype))


def a_batch_of_gradients(stage: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Any:
    x = x.clone().requires_grad_()
    out = stage(x)
    return torch.autograd.grad(out, [x, *stage.parameters()], torch.stack([torch.ones_like(out), out.detach()]),
                               is_grads_batched=True)


def gradients_of_the_gradients(stage: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Any:
    x = x.clone().requires_grad_()
    out = stage(x)
    first = torch.autograd.grad((out * out).sum(), [x, *stage.parameters()], create_graph=True)
    return [*first, *torch.autograd.grad(sum((g * g).sum() for g in first), [x, *stage.parameters()])]


TRANSFORMS = [
    the_gradients, a_vmapped_stage, gradients_of_each_sample, an_ensemble, a_tangent, a_tangent_of_the_parameters,
    a_dual_number, a_tangent_of_the_gradients, a_hessian, a_jacobian, a_batch_of_gradients, gradients_of_the_gradients]


@pytest.mark.parametrize('kernels', ['native', 'torch'])
@pytest.mark.parametrize('transform', TRANSFORMS, ids=lambda transform: transform.__name__)
def test_every_transform_gives_what_the_modules_give_in_float64(
        transform: Callable[..., Any], kernels: str, served: list[Any]) -> None:
    stage = a_stage()
    expected = by_modules(transform, stage, parameters_of(stage), images())
    use_kernels(kernels)
    assert_equal(transform(stage, parameters_of(stage), images()), expected, 1e-4)
    assert bool(served) == (kernels == 'native'), 'the stage ran on something else'


# What else torch asks of an operator


def calls(stage: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """What the operator is called with for this stage."""
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(native, 'run', lambda operands, settings: seen.append((operands, settings)) or plans.run(
        operands, settings))
    stage(x)
    (operands, settings), = seen
    return (*operands, *settings.values())


@pytest.mark.parametrize('training', [False, True], ids=['running statistics', 'batch statistics'])
def test_torch_finds_nothing_wrong_with_the_operators(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = calls(a_stage(training), images().requires_grad_(), monkeypatch)
    torch.library.opcheck(torch.ops.randwire_zoo.stage.default, arguments, atol=1e-4, rtol=1e-3)
    out, mean, variance, nodes = torch.ops.randwire_zoo.stage(*arguments)
    operands = [[t.detach() for t in x] if isinstance(x, list) else None if x is None else x.detach()
                for x in arguments[:len(Operands._fields)]]
    torch.library.opcheck(
        torch.ops.randwire_zoo.stage_backward.default,
        (torch.randn_like(out), *operands, mean, variance, [node.detach() for node in nodes],
         [i % 3 > 0 for i in range(len(Operands(*operands).flat()))], *arguments[len(operands):]))


def test_operations_are_counted_as_without_the_kernels(served: list[Any]) -> None:
    model = timm.create_model('randwire', num_nodes=5, channels=6, num_classes=3)
    counts = []
    for kernels in ('torch', 'native'):
        use_kernels(kernels)
        with FlopCounterMode(display=False) as counter:
            model(torch.randn(2, 3, 64, 64)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    assert not served, 'the counter looks at modules, so these have to run'
