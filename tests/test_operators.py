"""The native operators wherever torch can take a function: each against the network's own modules in float64."""
from __future__ import annotations

import copy
import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import timm
import torch
import torch.autograd.forward_ad as forward_ad
from layers import randomise_
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from randwire_zoo import use_kernels
from randwire_zoo.graphs import Graph
from randwire_zoo.kernels import native
from randwire_zoo.kernels import operators as plans
from randwire_zoo.kernels.stages import Operands, Settings, check
from randwire_zoo.network import Node, Stage

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
    randomise_(stage)
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


def forward(stage: nn.Module, x: Tensor) -> Tensor:
    return stage(x)


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
    close: dict[str, float] = {'atol': 1e-4, 'rtol': 1e-3}
    if not close.keys() <= inspect.signature(torch.library.opcheck).parameters.keys():  # before torch 2.6
        close = {}
    torch.library.opcheck(torch.ops.randwire_zoo.stage.default, arguments, **close)
    out, mean, variance, nodes = torch.ops.randwire_zoo.stage(*arguments)
    operands = [[t.detach() for t in x] if isinstance(x, list) else None if x is None else x.detach()
                for x in arguments[:len(Operands._fields)]]
    torch.library.opcheck(
        torch.ops.randwire_zoo.stage_backward.default,
        (torch.randn_like(out), *operands, mean, variance, [node.detach() for node in nodes],
         [i % 3 > 0 for i in range(len(Operands(*operands).flat()))], *arguments[len(operands):]))


@pytest.mark.parametrize('training', [False, True], ids=['running statistics', 'batch statistics'])
def test_the_operators_themselves_take_batches_of_gradients_and_of_images(
        training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, x = a_stage(training), images().requires_grad_()
    x_first, *others = calls(stage, x, monkeypatch)
    assert x_first is x

    def operator(x: Tensor) -> Tensor:
        return torch.ops.randwire_zoo.stage(x, *others)[0]

    def of_modules(x: Tensor) -> Tensor:
        use_kernels('torch')
        return exact(x)
    exact = copy.deepcopy(stage).double()
    out, expected_out = operator(x), of_modules(exact_x := x.detach().double().requires_grad_())
    directions = torch.stack([torch.ones_like(out), out.detach()])
    assert_equal(
        torch.autograd.grad(out, [x, *stage.parameters()], directions, is_grads_batched=True),
        torch.autograd.grad(expected_out, [exact_x, *exact.parameters()], directions.double(), is_grads_batched=True),
        1e-4)
    several = torch.stack([x.detach(), 2 * x.detach() - 1], dim=1)
    with torch.no_grad():
        assert_equal(vmap(operator, in_dims=1)(several),
                     torch.stack([of_modules(one) for one in several.double().unbind(1)]), 1e-4)
        operands = others[:len(Operands._fields) - 1]
        constants = others[len(operands):]
        results = torch.ops.randwire_zoo.stage(x.detach(), *operands, *constants)

        def backward(grad: Tensor) -> list[Tensor]:
            _, mean, variance, nodes = results
            needed = [True] * len(Operands(x, *operands).flat())
            return torch.ops.randwire_zoo.stage_backward(grad, x.detach(), *operands, mean, variance, nodes, needed,
                                                         *constants)
        expected = [torch.stack(pair) for pair in zip(*map(backward, directions), strict=True)]
        assert all(map(torch.equal, vmap(backward)(directions), expected))


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


def test_the_wiring_of_a_network_that_is_traced_by_make_fx_is_one_operator() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx
    stage = a_stage()
    with torch.no_grad():
        traced = make_fx(stage)(images())
        assert [node.target for node in traced.graph.nodes].count(torch.ops.randwire_zoo.stage.default) == 1
        assert_equal(traced(images() * 2), by_modules(forward, stage, images() * 2))


def test_a_compiler_gets_the_modules_and_computes_the_same(served: list[Any]) -> None:
    stage = a_stage(training=True)

    def step(stage: nn.Module, x: Tensor) -> list[Tensor]:
        form = torch.compile(stage, backend='aot_eager', fullgraph=True) if x.dtype == torch.float32 else stage
        out = form(x)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        return [out, *[parameter.grad for parameter in stage.parameters()], *stage.buffers()]  # type: ignore[list-item]
    expected = by_modules(step, stage, images())
    assert_equal(step(stage, images()), expected, 1e-4)
    assert not served


def test_shapes_without_data_are_those_with() -> None:
    stage = a_stage(device='meta')
    assert stage(images().to('meta')).shape == a_stage()(images()).shape
    assert deploy_stage(a_stage()).to('meta')(images().to('meta')).shape == a_stage()(images()).shape


def deploy_stage(stage: Stage) -> Stage:
    """A stage as `deploy` leaves it."""
    from randwire_zoo.deployment import DeployedNode
    stage = copy.deepcopy(stage).eval()
    stage.nodes = nn.ModuleList(DeployedNode(node) for node in stage.nodes)  # type: ignore[arg-type]
    return stage.requires_grad_(False)


# What the backward pass reads


def learn(stage: nn.Module, x: Tensor, direction: Callable[[Tensor], Tensor] = lambda out: out) -> list[Any]:
    """Output, gradients of the input and of all parameters, and the buffers afterwards."""
    x = x.detach().requires_grad_()
    out = stage(x)
    loss = (direction(out) * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()
    parameters = [p for p in stage.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [x, *parameters])
    return [out.detach(), *gradients, *stage.buffers()]


@pytest.mark.parametrize('training', [False, True])
def test_saved_tensors_may_come_back_laid_out_otherwise(training: bool, served: list[Any]) -> None:
    stage = a_stage(training)
    expected = by_modules(learn, stage, images())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.contiguous().clone(), lambda t: t):
        assert_equal(learn(stage, images()), expected, 1e-4)
    assert served


def test_weights_given_by_functional_call_are_those_that_learn(served: list[Any]) -> None:
    stage = a_stage()
    others = {name: value * 1.5 for name, value in parameters_of(stage).items()}

    def gradients(stage: nn.Module, others: dict[str, Tensor], x: Tensor) -> Any:
        others = {name: value.clone().requires_grad_() for name, value in others.items()}
        return torch.autograd.grad(loss(stage, others, x), list(others.values()))
    assert_equal(gradients(stage, others, images()), by_modules(gradients, stage, others, images()), 1e-4)
    assert served


def test_tied_weights_learn_from_both_nodes(served: list[Any]) -> None:
    stage = a_stage()
    stage.nodes[3].conv_pw.weight = stage.nodes[2].conv_pw.weight
    stage.nodes[3].bn.weight = stage.nodes[2].bn.weight
    assert_equal(learn(stage, images()), by_modules(learn, stage, images()), 1e-4)
    assert served


def test_weights_that_are_plain_attributes_learn(served: list[Any]) -> None:
    stage = a_stage()

    def gradient(stage: nn.Module, x: Tensor) -> Tensor:
        conv = copy.deepcopy(stage).nodes[2].conv_pw
        weight = conv.weight.detach().clone().requires_grad_()
        changed = copy.deepcopy(stage)
        del changed.nodes[2].conv_pw.weight
        changed.nodes[2].conv_pw.weight = weight * 2
        return torch.autograd.grad(changed(x).square().sum(), weight)[0]
    assert_equal(gradient(stage, images()), by_modules(gradient, stage, images()), 1e-4)
    assert served


def test_a_weight_that_changes_before_the_backward_pass_is_an_error() -> None:
    stage = a_stage()
    out = stage(images())
    with torch.no_grad():
        stage.nodes[2].conv_pw.weight.mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        out.sum().backward()


def test_statistics_are_functions_of_the_batch_and_only_their_owner_changes(served: list[Any]) -> None:
    stage = a_stage(training=True)
    before = copy.deepcopy(stage)
    buffers = {name: buffer.clone() for name, buffer in stage.named_buffers()}
    functional_call(stage, buffers, (images(),))
    for (name, buffer), untouched in zip(stage.named_buffers(), before.buffers(), strict=True):
        assert torch.equal(buffer, untouched), name
        assert not torch.equal(buffers[name], untouched), name
    assert served
    before(images())
    assert_equal(buffers, dict(before.named_buffers()))


@pytest.mark.parametrize('kept', [True, False], ids=['with a graph', 'without'])
def test_the_backward_pass_of_the_backward_pass_of_the_operator_itself_is_an_error(kept: bool) -> None:
    settings = Settings([1e-5], [True], [-1], [1], [0], 1, 1, 1, keep=True)
    x = images().requires_grad_()
    operands = Operands(x, torch.zeros(0), torch.ones(1, 3), torch.zeros(1, 3), None, None,
                        [torch.ones(3, 1, 3, 3)], [torch.ones(3, 3, 1, 1)], [])
    out, mean, variance, nodes = torch.ops.randwire_zoo.stage(*operands, *settings.values())
    needed = [True] * len(operands.flat())
    gradient = torch.ops.randwire_zoo.stage_backward(
        out, *operands, mean, variance, nodes, needed, *settings.values())[0]
    with pytest.raises(RuntimeError, match='not differentiable itself; differentiate randwire_zoo::stage with create_'):
        gradient.sum().backward(retain_graph=kept)


# Which stages the operators compute


class AnotherNode(Node):
    def transform(self, x: Tensor) -> Tensor:
        return super().transform(x) * 2


class AnotherConv(nn.Conv2d):
    pass


class AnotherNorm(nn.BatchNorm2d):
    pass


def replace(
        name: str, make: Callable[[Any], nn.Module], keep: tuple[str, ...] = ('weight',)) -> Callable[[Stage], None]:
    """Put another module into node 2, with what it keeps of the one that was there."""
    def change(stage: Stage) -> None:
        old = getattr(stage.nodes[2], name)
        new = make(old)
        for attribute in keep:
            getattr(new, attribute).data.copy_(getattr(old, attribute).data)
        setattr(stage.nodes[2], name, new.train(stage.training))
    return change


def depthwise(kernel_size: Any = 3, padding: Any = 1, **options: Any) -> Callable[[Stage], None]:
    options = {'bias': False, 'groups': 5, **options}
    return replace('conv_dw', lambda old: nn.Conv2d(5, 5, kernel_size, padding=padding, **options),
                   ('weight',) if kernel_size == 3 and options['groups'] == 5 else ())


def pointwise(kernel_size: Any = 1, **options: Any) -> Callable[[Stage], None]:
    options = {'bias': False, **options}
    return replace('conv_pw', lambda old: nn.Conv2d(5, 5, kernel_size, **options), ())


def another_node(stage: Stage) -> None:
    stage.nodes[2].__class__ = AnotherNode


class Wrapped(nn.Module):
    """A node inside of something else, as tools put it there."""

    def __init__(self, node: nn.Module) -> None:
        super().__init__()
        self.node = node

    def forward(self, *args: Any) -> Any:
        return self.node(*args)


class PassingOn(Wrapped):
    """One that has the attributes of what is in it, as those of torch's checkpointing and sharding have."""

    def forward(self, *args: Any) -> Any:
        return self.node(*args) * 1.5

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__('node'), name)


def a_node_that_is_passed_on(stage: Stage) -> None:
    stage.nodes[2] = PassingOn(stage.nodes[2])


def a_wrapped_node(stage: Stage) -> None:
    stage.nodes[2] = Wrapped(stage.nodes[2])


def half_more(name: str) -> Callable[..., Any]:
    """What the class does, times 1.5."""
    return lambda module, *args: getattr(type(module), name)(module, *args) * 1.5


def an_own_forward(of: Callable[[Any], nn.Module]) -> Callable[[Stage], None]:
    def change(stage: Stage) -> None:
        module = of(stage.nodes[2])
        module.forward = MethodType(half_more('forward'), module)  # type: ignore[method-assign]
    return change


def an_own_transform(stage: Stage) -> None:
    node: Any = stage.nodes[2]
    node.transform = MethodType(half_more('transform'), node)


def hook(kind: str, of: Callable[[Node], nn.Module]) -> Callable[[Stage], None]:
    def change(stage: Stage) -> None:
        module = of(stage.nodes[2])  # type: ignore[arg-type]
        returned = {'forward_hook': lambda module, args, out: out * 1.5,
                    'forward_pre_hook': lambda module, args: tuple(
                        [x * 1.5 for x in arg] if isinstance(arg, list) else arg * 1.5 for arg in args),
                    'full_backward_hook': lambda module, inner, outer: tuple(
                        None if x is None else x * 1.5 for x in inner),
                    'full_backward_pre_hook': lambda module, outer: tuple(x * 1.5 for x in outer)}[kind]
        getattr(module, f'register_{kind}')(returned)
    return change


MODULES: dict[str, Callable[[Any], nn.Module]] = {
    'node': lambda node: node, 'conv_dw': lambda node: node.conv_dw, 'conv_pw': lambda node: node.conv_pw,
    'bn': lambda node: node.bn}
OTHERS: dict[str, Callable[[Stage], None]] = {
    'a kernel of 5': depthwise(5, 2),
    'a kernel of 3 by 1': depthwise((3, 1), (1, 0)),
    'a bias of the depthwise': depthwise(bias=True),
    'circular padding': depthwise(padding_mode='circular'),
    'padding by reflection': depthwise(padding_mode='reflect'),
    'same padding, as a word': depthwise(padding='same'),
    'fewer groups': depthwise(groups=1),
    'another dilation of one node': depthwise(padding=2, dilation=2),
    'dilation on one side': depthwise(padding=(2, 1), dilation=(2, 1)),
    'a subclass of Conv2d': replace('conv_dw', lambda old: AnotherConv(5, 5, 3, padding=1, groups=5, bias=False)),
    'a bias of the 1×1': pointwise(bias=True),
    'groups of the 1×1': pointwise(groups=5),
    'a 3×3 in the place of the 1×1': pointwise(3, padding=1),
    'something else in the place of the 1×1': replace(
        'conv_pw', lambda old: nn.Sequential(nn.Conv2d(5, 5, 1, padding=1, bias=False), nn.ZeroPad2d(-1)), ()),
    'BN without parameters': replace('bn', lambda old: nn.BatchNorm2d(5, affine=False), ()),
    'a subclass of BN': replace('bn', lambda old: AnotherNorm(5)),
    'GroupNorm': replace('bn', lambda old: nn.GroupNorm(1, 5)),
    'no norm': replace('bn', lambda old: nn.Identity(), ()),
    'a subclass of Node': another_node, 'a node inside of another module': a_wrapped_node,
    'a node in a module that passes on its attributes': a_node_that_is_passed_on,
    'a transform of its own': an_own_transform,
    'a weight made of others': lambda stage: nn.utils.parametrizations.weight_norm(stage.nodes[2].conv_pw) and None,
    **{f'a forward of its own of {name}': an_own_forward(of) for name, of in MODULES.items()},
    **{f'{kind} of {name}': hook(kind, of) for name, of in MODULES.items() for kind in (
        'forward_hook', 'forward_pre_hook', 'full_backward_hook', 'full_backward_pre_hook')
        if (name, kind) not in (('node', 'full_backward_hook'),)}}


@pytest.mark.parametrize('other', OTHERS)
def test_whatever_a_node_does_otherwise_is_done(other: str, served: list[Any]) -> None:
    stage = a_stage()
    OTHERS[other](stage)
    expected = by_modules(learn, stage, images())
    assert_equal(learn(stage, images()), expected, 1e-4)
    assert not served


@pytest.mark.parametrize('kind', ['forward_hook', 'forward_pre_hook', 'full_backward_hook', 'full_backward_pre_hook'])
def test_hooks_of_all_modules_see_the_modules_at_work(kind: str, served: list[Any]) -> None:
    stage = a_stage(training=True)
    seen: set[nn.Module] = set()
    handle = getattr(nn.modules.module, f'register_module_{kind}')(lambda module, *args: seen.add(module))
    try:
        learn(stage, images())
    finally:
        handle.remove()
    assert {stage.nodes[2].conv_dw, stage.nodes[2].conv_pw, stage.nodes[2].bn} <= seen and not served


@pytest.mark.parametrize('norm', ['torchvision.ops.FrozenBatchNorm2d', 'detectron2.layers.FrozenBatchNorm2d'])
def test_frozen_bn_is_computed_in_training_too(norm: str, served: list[Any]) -> None:
    package, name = norm.rsplit('.', 1)
    frozen = getattr(pytest.importorskip(package, reason=f'{package} is not installed'), name)
    stage = a_stage()
    for node in stage.nodes:
        bn = frozen(5, eps=1e-5)
        bn.load_state_dict({key: value for key, value in node.bn.state_dict().items() if key in bn.state_dict()},
                           strict=False)
        node.bn = bn
    stage.train()
    assert_equal(learn(stage, images()), by_modules(learn, stage, images()), 1e-4)
    assert served


def test_a_bn_without_running_statistics_takes_the_batchs(served: list[Any]) -> None:
    stage = a_stage()
    stage.nodes[2].bn = nn.BatchNorm2d(5, track_running_stats=False)
    stage.nodes[4].bn.train()
    stage.nodes[4].bn.num_batches_tracked = None
    expected = by_modules(learn, stage, images())
    assert_equal(learn(stage, images()), expected, 1e-4)
    assert [settings.of_batch for settings in served] == [[False, False, True, False, True]]


def test_running_statistics_follow_in_bf16(served: list[Any]) -> None:
    stage = a_stage(training=True).bfloat16()
    exact = copy.deepcopy(stage).double()
    with torch.no_grad():
        stage(images().bfloat16())
        use_kernels('torch')
        exact(images().bfloat16().double())
    assert len(served) == 1
    for ours, theirs in zip(stage.nodes, exact.nodes, strict=True):
        assert ours.bn.running_var.dtype == torch.bfloat16
        assert_equal([ours.bn.running_mean, ours.bn.running_var], [theirs.bn.running_mean, theirs.bn.running_var], 0.05)


def test_a_subclass_of_tensor_goes_through_the_modules(served: list[Any]) -> None:
    class Logged(Tensor):
        names: list[str] = []

        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            cls.names.append(getattr(function, '__name__', ''))
            return super().__torch_function__(function, types, args, kwargs or {})
    with torch.no_grad():
        a_stage()(images().as_subclass(Logged))
        stage = a_stage()
        stage.nodes[2].conv_pw.weight = nn.Parameter(stage.nodes[2].conv_pw.weight.detach().as_subclass(Logged))
        stage(images())
    assert 'conv2d' in Logged.names and not served


# Where torch's defaults are others


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize('training', [False, True])
def test_the_default_dtype_changes_nothing(dtype: torch.dtype, training: bool, served: list[Any]) -> None:
    stage, x = a_stage(training), images()
    expected = by_modules(learn, stage, x)
    weights = torch.linspace(-1, 1, expected[0].numel(), dtype=torch.float32).view_as(expected[0])
    deployed = deploy_stage(stage)
    torch.set_default_dtype(dtype)
    try:
        x.requires_grad_()
        out = stage(x)
        found = [out.detach(), *torch.autograd.grad((out * weights).sum(), [x, *stage.parameters()]), *stage.buffers()]
        with torch.no_grad():
            in_default = deployed(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_equal(found, expected, 1e-4)
    assert_equal(in_default, by_modules(forward, deployed, images()))
    assert len(served) == 2


@pytest.mark.parametrize('training', [False, True])
def test_the_default_device_changes_nothing(training: bool, served: list[Any]) -> None:
    stage, x = a_stage(training), images()
    deployed = deploy_stage(stage)

    def gradients(stage: nn.Module, x: Tensor) -> Any:
        return torch.autograd.grad(stage(x).square().sum(), [*stage.parameters()])
    expected = by_modules(gradients, stage, x)
    with torch.device('meta'):
        found = gradients(stage, x)
        with torch.no_grad():
            assert deployed(x).device.type == 'cpu'
    assert_equal(found, expected, 1e-4)
    assert len(served) == 2


@pytest.mark.parametrize('change', [
    lambda stage: stage.to('meta'), lambda stage: deploy_stage(stage).to('meta'),
    lambda stage: stage.nodes[3].conv_dw.to('meta') and stage,
    lambda stage: stage.nodes[3].conv_pw.to('meta') and stage,
    lambda stage: stage.nodes[3].bn.to('meta') and stage], ids=['all', 'deployed', 'conv_dw', 'conv_pw', 'bn'])
def test_weights_on_another_device_are_torchs_business(change: Callable[[Stage], Stage], served: list[Any]) -> None:
    stage = change(a_stage())
    outcomes = []
    for kernels in ('torch', 'native'):
        use_kernels(kernels)
        try:
            with torch.no_grad():
                outcomes.append(stage(images()).device.type)
        except Exception as e:
            outcomes.append(type(e))
    assert outcomes[0] == outcomes[1] and not served


# What crosses into C++


def operands(**changed: Any) -> Operands:
    """Those of a stage of two nodes, the second of which reads the first twice."""
    return Operands(**{
        'x': images(), 'edge_weights': torch.ones(2), 'norm_weight': torch.ones(2, 5), 'norm_bias': torch.zeros(2, 5),
        'mean': torch.zeros(2, 5), 'variance': torch.ones(2, 5),
        'depthwise': [torch.ones(3, 1, 3, 3), torch.ones(5, 1, 3, 3)],
        'pointwise': [torch.ones(5, 3, 1, 1), torch.ones(5, 5, 1, 1)], 'biases': [], **changed})


def settings(**changed: Any) -> Settings:
    return Settings(**{
        'eps': [1e-5] * 2, 'of_batch': [False, True], 'sources': [-1, 0, 0], 'in_degrees': [1, 2], 'outputs': [1],
        'stride': 2, 'input_dilation': 1, 'dilation': 1, **changed})


def node_1(depthwise: Any = None, pointwise: Any = None) -> dict[str, Any]:
    """Operands with other convolutions of the second node."""
    return {'depthwise': [torch.ones(3, 1, 3, 3), torch.ones(5, 1, 3, 3) if depthwise is None else depthwise],
            'pointwise': [torch.ones(5, 3, 1, 1), torch.ones(5, 5, 1, 1) if pointwise is None else pointwise]}


WRONG: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (r'x must be float32 or bfloat16 \[B, C, H, W\], got torch.float32 \(3, 9, 8\)', {'x': torch.ones(3, 9, 8)}, {}),
    ('got torch.float64', {'x': images().double()}, {}),
    (r'got torch.float32 \(0, 3', {'x': torch.ones(0, 3, 9, 8)}, {}),
    (r'node 0 takes 4 and puts out 5 channels, but its convolutions are torch.Size\(\[3, 1, 3, 3\]\) and torch.Size\('
     r'\[5, 3, 1, 1\]\)', {'x': torch.ones(2, 4, 9, 8)}, {}),
    ('node 1 takes 5', node_1(pointwise=torch.ones(5, 6, 1, 1)), {}),
    ('node 1 takes 5', node_1(pointwise=torch.ones(6, 5, 1, 1)), {}),
    ('node 1 takes 5', node_1(pointwise=torch.ones(5, 5)), {}),
    ('but its convolutions', node_1(torch.ones(5, 1, 5, 5)), {}),
    ('but its convolutions', node_1(torch.ones(5, 2, 3, 3)), {}),
    ('x is torch.float32 and the convolutions of node 1 are torch.bfloat16 and torch.float32',
     node_1(torch.ones(5, 1, 3, 3).bfloat16()), {}),
    ('convolutions of node 1 are torch.float32 and torch.bfloat16', node_1(
        pointwise=torch.ones(5, 5, 1, 1).bfloat16()), {}),
    ('x is on cpu and the convolutions of node 1 are on meta and cpu',
     node_1(torch.ones(5, 1, 3, 3, device='meta')), {}),
    ('on cpu and the convolutions of node 1 are on cpu and meta', node_1(
        pointwise=torch.ones(5, 5, 1, 1, device='meta')), {}),
    (r'2 nodes need as many kernels, matrices and biases \(or none\), got 1, 2 and 0',
     {'depthwise': [torch.ones(3, 1, 3, 3)]}, {}),
    ('got 2, 2 and 1', {'biases': [torch.ones(5)]}, {}),
    ('a bias must be', {'biases': [torch.ones(5), torch.ones(4)]}, {}),
    ('a bias must be', {'biases': [torch.ones(5), torch.ones(5).double()]}, {}),
    (r'edge_weights must be torch.float32 \(2,\) on DEVICE, got torch.float32 \(3,\) on DEVICE',
     {'edge_weights': torch.ones(3)}, {}),
    ('edge_weights must be torch.float32', {'edge_weights': torch.ones(2).double()}, {}),
    ('norm_weight must be', {'norm_weight': torch.ones(2, 4)}, {}),
    ('norm_bias must be', {'norm_bias': torch.ones(2, 5).bfloat16()}, {}),
    ('mean must be', {'mean': torch.ones(1, 5)}, {}),
    (r'variance must be torch.float32 \(2, 5\) on cpu, got torch.float32 \(2, 5\) on meta',
     {'variance': torch.ones(2, 5, device='meta')}, {}),
    ('weight, bias, eps and of_batch of BN belong together', {'norm_bias': None}, {}),
    ('of BN belong together', {}, {'eps': [1e-5]}),
    ('of BN belong together', {}, {'of_batch': [True]}),
    ('running statistics are missing', {'mean': None, 'variance': None}, {}),
    ('running statistics are missing', {'mean': None}, {'of_batch': [True, True]}),
    ('3 sources are not those of nodes with', {}, {'in_degrees': [1, 1]}),
    (r'nodes with \(0, 3\)', {}, {'in_degrees': [0, 3]}),
    (r'-1 is alone, got \(\(-1,\), \(0, -1\)\)', {}, {'sources': [-1, 0, -1]}),
    (r'got \(\(-1,\), \(0, 1\)\)', {}, {'sources': [-1, 0, 1]}),
    (r'got \(\(0,\), \(0, 0\)\)', {}, {'sources': [0, 0, 0]}),
    (r'got \(\(-1,\), \(0, -2\)\)', {}, {'sources': [-1, 0, -2]}),
    (r'outputs must be nodes, those that nobody reads among them, got \(\)', {}, {'outputs': []}),
    (r'among them, got \(0,\)', {}, {'outputs': [0]}),
    (r'among them, got \(1, 2\)', {}, {'outputs': [1, 2]}),
    (r'among them, got \(1, 1\)', {}, {'outputs': [1, 1]}),
    ('strides are 1 and 2 and dilations positive, got 3, 1 and 1', {}, {'stride': 3}),
    ('dilations positive, got 2, 1 and 0', {}, {'dilation': 0}),
    ('got 2, 1 and 1048576', {}, {'dilation': 2 ** 20}),
    ('got 2, 1048576 and 1', {}, {'input_dilation': 2 ** 20}),
    ('got 2, -1 and 1', {}, {'input_dilation': -1})]


@pytest.mark.parametrize('device', ['cpu', 'meta'])
@pytest.mark.parametrize(('message', 'of_operands', 'of_settings'), WRONG, ids=[row[0] for row in WRONG])
def test_operands_that_do_not_fit_are_refused_with_and_without_data(
        message: str, of_operands: dict[str, Any], of_settings: dict[str, Any], device: str) -> None:
    if device == 'meta' and 'on cpu' in message:
        pytest.skip('all of it is on one device')
    moved = Operands(*[
        x if x is None or device == 'cpu' else [t.to(device) for t in x] if isinstance(x, list) else x.to(device)
        for x in operands(**of_operands)])
    with pytest.raises(ValueError, match=f'^a stage cannot be computed: (.* )?{message.replace("DEVICE", device)}'):
        plans.run(moved, settings(**of_settings))


def test_sizes_up_to_the_limits_fit() -> None:
    for limits in ({'dilation': 2 ** 20 - 1}, {'input_dilation': 2 ** 20 - 1}, {'stride': 1}):
        check(operands(), settings(**limits))


def test_operands_that_fit_are_computed_however_they_lie_in_memory() -> None:
    def scattered(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, -1)[..., ::2]
    expected = plans.run(operands(), settings())
    found = plans.run(Operands(*[
        [scattered(t) for t in x] if isinstance(x, list) else scattered(x) for x in operands()]), settings())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[:3], expected[:3], strict=True))


@pytest.mark.parametrize('changed', [
    {'grad': torch.ones(3, 5, 5, 5)}, {'grad': torch.ones(3, 5, 5, 4).double()}, {'nodes': []}, {'needed': [True]},
    {'nodes': [torch.ones(3, 5, 5, 4), torch.ones(3, 4, 5, 4)]}, {'mean': torch.ones(2, 4)},
    {'variance': torch.ones(2, 5).bfloat16()}, {'norm': False}], ids=str)
def test_gradients_of_something_else_are_refused(changed: dict[str, Any]) -> None:
    given = operands() if changed.pop('norm', True) else operands(
        norm_weight=None, norm_bias=None, mean=None, variance=None)
    chosen = settings(keep=True) if given.norm_weight is not None else settings(eps=[], of_batch=[])
    arguments = {'grad': torch.ones(3, 5, 5, 4), 'mean': torch.zeros(2, 5), 'variance': torch.ones(2, 5),
                 'nodes': [torch.ones(3, 5, 5, 4)] * 2, 'needed': [True] * len(given.flat()), **changed}
    with pytest.raises(ValueError, match=r'^randwire_zoo::stage_backward: '):
        torch.ops.randwire_zoo.stage_backward(
            arguments['grad'], *given, *[arguments[name] for name in ('mean', 'variance', 'nodes', 'needed')],
            *chosen.values())


BACKWARD = {  # what a backward pass of `operands()` is given that does not fit, and the whole of what is said of it
    'grad': (torch.ones(3, 5, 5, 5), 'grad and 2 nodes must be torch.float32 (3, 5, 5, 4)'),
    'mean': (torch.ones(2, 4), 'statistics must be those of the forward pass'),
    'norm_weight': (None, 'only stages with BN have a backward pass')}


@pytest.mark.parametrize('name', BACKWARD)
def test_what_a_backward_pass_is_refused_for(name: str) -> None:
    wrong, message = BACKWARD[name]
    without = name == 'norm_weight'
    given = operands(norm_weight=None, norm_bias=None, mean=None, variance=None) if without else operands()
    chosen = settings(eps=[], of_batch=[]) if without else settings(keep=True)
    grad, mean = (wrong if name == 'grad' else torch.ones(3, 5, 5, 4)), (wrong if name == 'mean' else torch.zeros(2, 5))
    with pytest.raises(ValueError) as error:
        torch.ops.randwire_zoo.stage_backward(grad, *given, mean, torch.ones(2, 5), [torch.ones(3, 5, 5, 4)] * 2,
                                              [True] * len(given.flat()), *chosen.values())
    assert str(error.value) == f'randwire_zoo::stage_backward: {message}'


def test_addresses_are_taken_of_what_lies_in_memory_as_it_is_said_to() -> None:
    library, f32 = plans.kernels, torch.float32
    x = images().contiguous(memory_format=torch.channels_last)
    assert library._picture(x, (3, 3, 9, 8), f32) == library._numbers(x.permute(0, 2, 3, 1), (3, 9, 8, 3), f32) == (
        x.data_ptr())
    for wrong, shape, dtype in ((x.double(), x.shape, f32), (x, (3, 3, 8, 9), f32), (x.to('meta'), x.shape, f32),
                                (x.contiguous(), x.shape, f32), (x, x.shape, torch.bfloat16)):
        with pytest.raises(ValueError) as error:
            library._picture(wrong, shape, dtype)
        assert str(error.value) == (
            f'the native kernels take {dtype} {tuple(shape)} in channels_last on the CPU here, got {wrong.dtype} '
            f'(3, 3, 9, 8) on {wrong.device} with strides {wrong.stride()}')
    row = torch.ones(8)
    for wrong, shape in ((row.double(), (8,)), (row, (4,)), (row[::2], (4,)), (row.to('meta'), (8,))):
        with pytest.raises(ValueError) as error:
            library._numbers(wrong, shape)
        assert str(error.value) == (
            f'the native kernels take contiguous torch.float32 {shape} on the CPU here, got {wrong.dtype} '
            f'{tuple(wrong.shape)} on {wrong.device} with strides {wrong.stride()}')
    with pytest.raises(ValueError, match=r'^the native kernels compute on the CPU, and this stage is on meta$'):
        library.stage(Operands(*[[t.to('meta') for t in given] if isinstance(given, list) else given.to('meta')
                                 for given in operands()]), settings())
    assert library.samples([row, row[:4], row.clone()]) == library.samples([row, row[:4], row])
    assert library.samples([row]) != library.samples([2 * row])
    for wrong in (row[::2], row.to('meta')):
        with pytest.raises(ValueError, match=r'^the native kernels take samples of contiguous tensors on the CPU$'):
            library.samples([row, wrong])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_matrices_are_laid_out_where_cache_lines_begin(dtype: torch.dtype) -> None:
    library = plans.kernels
    for _ in range(8):  # wherever the memory is
        packed = library.pack_pointwise(torch.randn(5, 3), dtype)
        assert packed.dtype is torch.uint8 and packed.data_ptr() % 64 == 0
        assert len(packed) == library._packed_bytes(3, 5, dtype) >= 15 * dtype.itemsize
    assert torch.equal(library.pack_pointwise(torch.ones(5, 3), dtype), library.pack_pointwise(
        torch.ones(5, 3).to(dtype), dtype))
    for wrong in (torch.ones(5, 3, 1), torch.ones(5, 3).double(), torch.ones(0, 3)):
        with pytest.raises(ValueError) as error:
            library.pack_pointwise(wrong, dtype)
        assert str(error.value) == (
            f'the native kernels take a float32 or bfloat16 matrix here, got {wrong.dtype} {tuple(wrong.shape)} on cpu '
            f'with strides {wrong.stride()}')
    without_bn = operands(norm_weight=None, norm_bias=None, mean=None, variance=None)
    packed = [library.pack_pointwise(matrix.flatten(1), torch.float32) for matrix in without_bn.pointwise]
    expected = library.stage(without_bn, settings(eps=[], of_batch=[]))
    assert torch.equal(library.stage(without_bn, settings(eps=[], of_batch=[]), lambda: packed).out, expected.out)
    for other in ([packed[0], packed[1][:-1]], [packed[0], packed[1].view(torch.int8)]):
        with pytest.raises(ValueError, match=r'^this is no matrix \(5, \d, 1, 1\) from pack_pointwise: torch\.u?int8 '):
            library.stage(without_bn, settings(eps=[], of_batch=[]), lambda other=other: other)
    with pytest.raises(ValueError, match='shorter'):
        library.stage(without_bn, settings(eps=[], of_batch=[]), lambda: packed[:1])


@pytest.mark.parametrize('seed', range(12))
def test_memory_is_taken_again_as_soon_as_nobody_reads_it_and_no_sooner(seed: int) -> None:
    torch.manual_seed(seed)
    count, outputs = 12, {11, *torch.randint(12, (2,)).tolist()}
    wiring = [(-1,)] + [(-1,) if torch.rand(()) < 0.2 else tuple(sorted({*torch.randint(i, (3,)).tolist()}))
                        for i in range(1, count)]
    read = {source for sources in wiring for source in sources}
    outputs |= {i for i in range(count) if i not in read}
    slots = plans.kernels._slots(tuple(wiring), tuple(sorted(outputs)))
    holds: dict[int, int] = {}
    most = 0
    for i, sources in enumerate(wiring):
        assert all(holds[slots[source]] == source for source in sources if source >= 0), 'written over, and then read'
        needed = {j for j in range(i) if j in outputs or any(j in later for later in wiring[i:])}
        assert slots[i] not in {slots[j] for j in needed}
        most = max(most, len(needed) + 1)
        holds[slots[i]] = i
    assert all(holds[slots[i]] == i for i in outputs)
    assert max(slots) + 1 == len({*slots}) == most  # what a node reads is needed as long as it is computed


# Deployed networks


def change_under_another_name(conv: Any, other: Any) -> None:
    before = conv.weight
    conv.weight = nn.Parameter(before.data, requires_grad=False)  # the same memory, with a version of its own
    while conv.weight._version < before._version:
        conv.weight.mul_(1)
    before[0, 2].mul_(3)


CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    '.data': lambda conv, other: conv.weight.data.copy_(other.weight),
    'load_state_dict': lambda conv, other: conv.load_state_dict(other.state_dict()),
    'rounding': lambda conv, other: conv.weight.data.round_(decimals=1),
    'NumPy': lambda conv, other: conv.weight.numpy().__imul__(0.5),
    'one number': lambda conv, other: conv.weight[0, 2].mul_(3),
    'one number, under another name': change_under_another_name,
    'another tensor': lambda conv, other: setattr(
        conv, 'weight', nn.Parameter(other.weight.detach(), requires_grad=False))}


@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES.keys())
def test_a_deployed_stage_follows_its_weights(change: Callable[[Any, Any], Any], served: list[Any]) -> None:
    stage = deploy_stage(a_stage())
    torch.manual_seed(8)
    with torch.no_grad():
        stage(images())
        stage(images())
        change(stage.nodes[3].last, nn.Conv2d(5, 5, 1))
        assert_equal(stage(images()), by_modules(forward, stage, images()))
        stage.nodes[2].first.weight.data.mul_(2)
        stage.nodes[3].last.bias.data.add_(1)
        stage.nodes[3].weights[1] = 0.25
        assert_equal(stage(images()), by_modules(forward, stage, images()))
    assert len(served) == 4 and all(settings.constant for settings in served)


@pytest.mark.parametrize('channels', [8, 16])
def test_a_deployed_stage_follows_what_changes_signs_and_exponents_alone(channels: int, served: list[Any]) -> None:
    stage = deploy_stage(a_stage(out_chs=channels))
    torch.manual_seed(9)
    weight = stage.nodes[3].last.weight.data
    weight.copy_(weight.bfloat16())  # whose lower halves are zero
    with torch.no_grad():
        for change in (lambda: weight.mul_(2), weight.neg_, lambda: weight.copy_(torch.randn_like(weight).bfloat16())):
            stage(images())
            change()
            assert_equal(stage(images()), by_modules(forward, stage, images()))
    assert len(served) == 6


def test_statistics_are_left_where_they_are_not_tracked_for_a_while(served: list[Any]) -> None:
    stage = a_stage(training=True)
    for node in stage.nodes:
        node.bn.track_running_stats = False
    before = [buffer.clone() for buffer in stage.buffers()]
    expected = by_modules(learn, stage, images())
    assert_equal(learn(stage, images()), expected, 1e-4)
    assert served and all(map(torch.equal, before, stage.buffers()))


def test_what_a_deployed_stage_was_laid_out_as_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = deploy_stage(a_stage())
    laid_out: list[Tensor] = []
    original = plans.kernels.pack_pointwise
    monkeypatch.setattr(plans.kernels, 'pack_pointwise', lambda *args: laid_out.append(args[0]) or original(*args))
    with torch.no_grad():
        for _ in range(3):
            stage(images())
    assert len(laid_out) == 5
    with torch.inference_mode():
        stage(images())
        assert len(laid_out) == 5
        born_here = deploy_stage(a_stage())  # tensors without versions are laid out each time
        born_here(images())
        born_here.nodes[2].last.weight.flatten()[1].mul_(2)
        assert_equal(born_here(images()), by_modules(forward, born_here, images()))


def test_as_many_threads_as_torch_takes_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def __init__(self, library: Any) -> None:
            self.library = library
            self.threads: list[int] = []

        def __getattr__(self, name: str) -> Any:
            return getattr(self.library, name)

        def use_threads(self, count: Any) -> None:
            self.threads.append(count.value)
    library = Library(plans.kernels._library())
    monkeypatch.setattr(plans.kernels, '_library', lambda: library)
    learn(a_stage(training=True), images())
    assert library.threads == [torch.get_num_threads()] * 2  # forward and backward
