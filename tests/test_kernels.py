"""The native kernels compute what the modules compute: against float64 references, forward and backward."""
from __future__ import annotations

import copy
import os
import pickle
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from randwire_zoo import build, deploy, kernels, native, plans, use_kernels
from randwire_zoo.complexity import count_complexity
from randwire_zoo.kernels import KernelError, Source
from randwire_zoo.network import Node, RandWire, Stage
from randwire_zoo.stages import Operands, Settings

COMPILER = os.environ.get('CXX', 'c++').split()[0]
pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f'the kernels are built with {COMPILER}')

CHANNELS_LAST = torch.channels_last
DTYPES = [(torch.float32, 3e-6), (torch.bfloat16, 1e-2)]
# batch, channels, height, width, stride, dilation, sources, output channels
SHAPES = [
    (2, 5, 7, 9, 1, 1, 2, 5), (2, 17, 8, 6, 2, 1, 3, 40), (3, 32, 7, 7, 2, 2, 1, 64), (1, 109, 14, 14, 1, 2, 6, 109),
    (1, 20, 1, 1, 1, 1, 2, 7), (2, 20, 2, 3, 1, 1, 2, 16), (3, 10, 9, 5, 2, 1, 4, 33), (9, 78, 28, 28, 1, 1, 5, 97),
    (1, 70, 23, 4, 1, 1, 2, 80)]


@pytest.fixture(autouse=True)
def on_native_kernels() -> Iterator[None]:
    """Every test starts on the native kernels and leaves those of torch behind."""
    use_kernels('native')
    yield
    use_kernels('torch')


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return ((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


# The kernels one by one


def terms(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Source]:
    batch, channels, height, width, _, _, count, _ = shape
    return [Source(torch.randn(batch, channels, height, width).to(dtype).contiguous(memory_format=CHANNELS_LAST),
                   torch.rand(()).item(), None if i % 2 else torch.rand(channels) + 0.5,
                   None if i % 3 == 1 else torch.randn(channels)) for i in range(count)]


def naive_sum(sources: list[Source], data: list[Tensor]) -> Tensor:
    """In float64, from `data` in the place of the sources' own."""
    total = torch.zeros_like(data[0])
    for source, x in zip(sources, data, strict=True):
        scale = 1.0 if source.scale is None else source.scale.double().view(-1, 1, 1)
        shift = 0.0 if source.shift is None else source.shift.double().view(-1, 1, 1)
        total = total + source.weight * (scale * x + shift)
    return total


def naive_depthwise(total: Tensor, kernel: Tensor, stride: int, dilation: int) -> Tensor:
    return F.conv2d(F.relu(total), kernel, stride=stride, padding=dilation, dilation=dilation, groups=total.shape[1])


@pytest.mark.parametrize(('dtype', 'tolerance'), DTYPES, ids=str)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_a_weighted_sum_and_a_depthwise_convolution_in_one_pass(
        shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    channels, stride, dilation = shape[1], *shape[4:6]
    sources = terms(shape, dtype)
    kernel = torch.randn(channels, 1, 3, 3)
    total = naive_sum(sources, [source.data.double() for source in sources])
    found = kernels.sum_relu_depthwise(sources, kernel, stride, dilation)
    assert found.dtype == dtype and found.is_contiguous(memory_format=CHANNELS_LAST)
    assert error(found, naive_depthwise(total, kernel.double(), stride, dilation)) < tolerance
    assert error(kernels.weighted_sum(sources), total) < tolerance


@pytest.mark.parametrize(('dtype', 'tolerance'), DTYPES, ids=str)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_a_stage_of_one_node_that_reads_the_input_and_one_that_reads_it_many_times(
        shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    batch, channels, height, width, stride, dilation, count, out_channels = shape
    x = torch.randn(batch, channels, height, width).to(dtype)
    edge_weights = torch.rand(count if count > 1 else 0)
    shapes = [(channels, out_channels), (out_channels, out_channels)]
    depthwise = [torch.randn(inner, 1, 3, 3).div(3).to(dtype) for inner, _ in shapes]
    pointwise = [torch.randn(outer, inner, 1, 1).div(inner ** 0.5).to(dtype) for inner, outer in shapes]
    biases = [torch.randn(out_channels).to(dtype) for _ in range(2)]
    found = plans.run(
        Operands(x, edge_weights, None, None, None, None, depthwise, pointwise, biases),
        Settings([], [], [-1, *[0] * count], [1, count], [1], stride, dilation, dilation)).out
    hidden = naive_depthwise(x.double(), depthwise[0].double(), stride, dilation)
    first = F.conv2d(hidden, pointwise[0].double(), biases[0].double()).to(dtype).double()
    total = first * (edge_weights.double().sum() if count > 1 else 1)
    expected = F.conv2d(naive_depthwise(total, depthwise[1].double(), 1, dilation), pointwise[1].double(),
                        biases[1].double())
    assert found.dtype == dtype and found.is_contiguous(memory_format=CHANNELS_LAST)
    assert error(found, expected) < tolerance


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_the_backward_pass_of_the_sum_and_the_depthwise_convolution(shape: tuple[int, ...]) -> None:
    channels, stride, dilation = shape[1], *shape[4:6]
    sources = terms(shape)
    data = [source.data.double().requires_grad_() for source in sources]
    kernel = torch.randn(channels, 1, 3, 3)
    reference = kernel.double().requires_grad_()
    total = naive_sum(sources, data)
    total.retain_grad()
    out = naive_depthwise(total, reference, stride, dilation)
    grad = torch.randn_like(out)
    out.backward(grad)
    before = [torch.randn_like(source.data) for source in sources]
    edge_grads: list[Tensor | None] = [tensor.clone() for tensor in before]
    first = [i % 2 == 0 for i in range(len(sources))]
    edge_grads[-1] = edge_grads[-1] if len(sources) < 3 else None
    sums = kernels.sum_relu_depthwise_backward(
        sources, kernel, stride, dilation, grad.float().contiguous(memory_format=CHANNELS_LAST), edge_grads, first)
    assert total.grad is not None and reference.grad is not None
    assert error(sums.kernel, reference.grad) < 1e-5
    assert error(sums.total, total.grad.sum((0, 2, 3))) < 1e-5
    for i, source in enumerate(sources):
        assert error(sums.dots[i], (total.grad * source.data).sum((0, 2, 3))) < 1e-5
        if edge_grads[i] is not None:
            added = edge_grads[i] - (0 if first[i] else before[i])
            assert error(added, source.weight * total.grad) < 1e-5


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance by which a stage of one node normalises x, which passes its convolutions as it is."""
    channels = x.shape[1]
    kernel = torch.zeros(channels, 1, 3, 3)
    kernel[:, :, 1, 1] = 1
    result = plans.run(
        Operands(x, torch.zeros(0), torch.ones(1, channels), torch.zeros(1, channels), None, None, [kernel],
                 [torch.eye(channels)[:, :, None, None]], []),
        Settings([1e-5], [True], [-1], [1], [0], 1, 1, 1))
    return result.mean[0], result.variance[0]


@pytest.mark.parametrize(('offset', 'outlier'), [(1000.0, 0.0), (0.0, 1e6), (3.0, 1e4)])
def test_statistics_of_a_batch_far_from_zero_or_with_a_pixel_far_from_all_others(offset: float, outlier: float) -> None:
    x = (torch.randn(7, 21, 13, 11) + offset).relu()
    x[0, :, 0, 0] += outlier  # in an image's first pixel and in its last: no pixel is a good origin for all
    x[-1, 3, -1, -1] += outlier
    mean, variance = statistics(x)
    expected = x.double().var((0, 2, 3), correction=0)
    assert ((mean - x.double().mean((0, 2, 3))) / expected.sqrt()).abs().max() < 1e-4
    assert ((variance - expected) / expected).abs().max() < 1e-4


def test_values_that_are_no_numbers_stay_so() -> None:
    x = torch.zeros(1, 3, 4, 4).contiguous(memory_format=CHANNELS_LAST).bfloat16()
    x[0, 1, 2, 2] = float('nan')
    assert kernels.weighted_sum([Source(x)]).isnan().sum() == 1


@pytest.mark.parametrize('openmp', [True, False], ids=['OpenMP', 'one thread'])
def test_the_same_built_otherwise(openmp: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AVX-512; and without OpenMP, by LLVM's compiler where there is one."""
    x86 = platform.machine() in ('x86_64', 'AMD64')
    monkeypatch.setenv('CXX', 'clang++' if not openmp and shutil.which('clang++') else
                       f'{COMPILER} -mno-avx512f' if openmp and x86 else COMPILER)
    monkeypatch.setenv('RANDWIRE_ZOO_CACHE', str(tmp_path))
    if not openmp:
        monkeypatch.setattr(build, '_OPENMP', ((),))
    library = build.load_library()
    monkeypatch.setattr(kernels, '_library', lambda: library)
    for cached in (kernels._function, kernels._packed_bytes):
        cached.cache_clear()
    try:
        for shape in SHAPES:
            for dtype, tolerance in DTYPES:
                test_a_weighted_sum_and_a_depthwise_convolution_in_one_pass(shape, dtype, tolerance)
                test_a_stage_of_one_node_that_reads_the_input_and_one_that_reads_it_many_times(shape, dtype, tolerance)
            test_the_backward_pass_of_the_sum_and_the_depthwise_convolution(shape)
        test_statistics_of_a_batch_far_from_zero_or_with_a_pixel_far_from_all_others(3.0, 1e4)
    finally:
        for cached in (kernels._function, kernels._packed_bytes):
            cached.cache_clear()


# Whole networks


def network(**kwargs: Any) -> RandWire:
    """A network whose BN and edges have numbers of their own."""
    torch.manual_seed(7)
    model = timm.create_model('randwire', **{'num_nodes': 9, 'channels': 10, 'num_classes': 7, **kwargs})
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            elif isinstance(module, Node) and module.edge_weight is not None:
                module.edge_weight.normal_()
    return model


def learn(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and gradient of the images; parameters get theirs."""
    torch.manual_seed(11)  # of edge removal
    images = images.clone().requires_grad_()
    out = model(images)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    assert images.grad is not None
    return out.detach(), images.grad


def distance(model: nn.Module, reference: nn.Module) -> float:
    """Of all gradients, each relative to its own length: the root mean square over the parameters.

    A single number close to 0 changes its sign now and then, and the ReLU lets through what it held back; it is a small
    part of this figure and all of the largest error.
    """
    squares = []
    for (name, ours), exact in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (ours.grad is None) == (exact.grad is None), name
        if ours.grad is not None and exact.grad is not None:
            length = exact.grad.double().norm()
            squares.append(((ours.grad.double() - exact.grad).norm() / length.clamp(min=1e-30)).square().item())
    return float(sum(squares) / len(squares)) ** 0.5


def planned(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What `run_stage` answered: True for each stage that ran on the kernels."""
    answers: list[bool] = []
    original = native.run_stage

    def run_stage(*args: Any) -> Any:
        out = original(*args)
        answers.append(out is not None)
        return out
    monkeypatch.setattr('randwire_zoo.network.run_stage', run_stage)
    return answers


NETWORKS = [
    {'graph': 'ws(4,0.75)'}, {'graph': 'er(0.3)', 'seed': 3}, {'graph': 'ba(3)', 'regime': 'regular'},
    {'graph': 'ws(2,0)', 'num_nodes': 5}, {'output_stride': 8}, {'channels': 34, 'num_nodes': 6, 'stem_stride': 2},
    {'drop_path_rate': 1.0, 'num_nodes': 12, 'regime': 'regular'}]


@pytest.mark.parametrize('training', [True, False], ids=['batch statistics', 'running statistics'])
@pytest.mark.parametrize('kwargs', NETWORKS, ids=str)
def test_a_network_and_its_gradients_are_those_of_float64(
        kwargs: dict[str, Any], training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(**kwargs).train(training)
    reference, plain = copy.deepcopy(model).double(), copy.deepcopy(model)
    torch.manual_seed(3)
    images = torch.randn(3, 3, 64, 96)
    answers = planned(monkeypatch)
    found = learn(model, images)
    assert answers == [True] * len(model.graphs)
    use_kernels('torch')
    expected, by_modules = learn(reference, images.double()), learn(plain, images)
    assert error(found[0], expected[0]) < max(1e-5, 10 * error(by_modules[0], expected[0]))
    # With batch statistics one such number reaches all others.
    tolerance = 3e-3 if training else 1e-5
    assert ((found[1] - expected[1]).norm() / expected[1].norm()).item() < tolerance
    assert distance(model, reference) < max(tolerance, 10 * distance(plain, reference))
    for (name, buffer), exact in zip(model.named_buffers(), reference.buffers(), strict=True):
        assert error(buffer, exact.double()) < 1e-5, name


@pytest.mark.parametrize('kwargs', NETWORKS, ids=str)
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)], ids=str)
def test_evaluation_as_it_is_and_deployed(kwargs: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    model = network(**kwargs).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        expected = copy.deepcopy(model).double()(images.double())
        for form in (model, deploy(model)):
            form = form.to(dtype)
            assert error(form(images.to(dtype)), expected) < tolerance
            assert error(form(images.to(dtype)), expected) < tolerance  # from what was laid out the first time


def test_weights_that_change_between_two_evaluations_are_noticed() -> None:
    model = network().eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model(images)
        for parameter in model.parameters():
            parameter.data.mul_(0.9)  # no version tells of this
        assert error(model(images), copy.deepcopy(model).double()(images.double())) < 1e-5


def test_half_of_the_parameters_may_be_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad = i % 2 == 0
    reference = copy.deepcopy(model).double()
    torch.manual_seed(3)
    images = torch.randn(3, 3, 64, 96)
    answers = planned(monkeypatch)
    learn(model, images)
    assert answers == [True] * 3
    learn(reference, images.double())
    assert distance(model, reference) < 1e-4


@pytest.mark.parametrize('momentum', [0.1, None], ids=str)
def test_running_statistics_without_gradients(momentum: float | None) -> None:
    model = network().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    plain = copy.deepcopy(model)
    with torch.no_grad():
        for _ in range(3):
            images = torch.randn(2, 3, 64, 64)
            use_kernels('native')
            found = model(images)
            use_kernels('torch')
            assert error(found, plain(images).double()) < 1e-4
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        assert error(ours, theirs.double()) < 1e-4


def test_checkpointing_changes_nothing() -> None:
    model = network().train()
    again = copy.deepcopy(model)
    again.set_grad_checkpointing()
    images = torch.randn(2, 3, 64, 64)
    for ours, theirs in zip(learn(again, images), learn(model, images), strict=True):
        assert error(ours, theirs.double()) < 1e-5


def test_everything_that_holds_of_the_modules_holds_of_the_kernels() -> None:
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider',
         str(Path(__file__).with_name('test_network.py'))],
        env={**os.environ, 'RANDWIRE_ZOO_KERNELS': 'native'}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# Where the modules have to run themselves


def test_hooks_see_what_passes_through_their_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network().eval()
    seen: list[nn.Module] = []
    stage = next(m for m in model.modules() if isinstance(m, Stage))
    stage.nodes[3].bn.register_forward_hook(lambda module, args, out: seen.append(module))
    answers = planned(monkeypatch)
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    assert seen == [stage.nodes[3].bn]
    assert answers == [False, True, True]


def test_multiply_adds_are_counted_as_without_the_kernels() -> None:
    model = network().eval()
    found = count_complexity(model, (3, 64, 64))
    use_kernels('torch')
    assert found == count_complexity(model, (3, 64, 64))


@pytest.mark.parametrize(
    'change', [lambda model: model.double(), nn.SyncBatchNorm.convert_sync_batchnorm], ids=['double', 'SyncBN'])
def test_other_types_run_as_before(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = change(network()).eval()
    dtype = next(model.parameters()).dtype
    answers = planned(monkeypatch)
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64, dtype=dtype))
    assert answers == [False] * 3


def test_other_node_operations_and_autocast_run_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = planned(monkeypatch)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for operation in ('conv', 'max_pool', 'avg_pool'):
            network(node_op=operation).eval()(images)
            deploy(network(node_op=operation))(images)
        with torch.autocast('cpu', torch.bfloat16):
            network().eval()(images)
    assert answers and not any(answers)


def test_a_single_value_per_channel_is_bns_own_error() -> None:
    with pytest.raises(ValueError, match='Expected more than 1 value per channel'):
        network().train()(torch.randn(1, 3, 32, 32))


def test_compilers_and_exporters_do_not_meet_the_kernels() -> None:
    model = network().eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).double()
        for form in (torch.jit.script(model), torch.jit.trace(model, images), torch.compile(model, backend='eager'),
                     torch.export.export(model, (images,)).module()):
            assert error(form(images), expected) < 1e-5


def test_a_network_that_ran_can_be_copied_and_pickled() -> None:
    model = deploy(network())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(images), expected)


# Building and choosing


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, '-c', code], env={**os.environ, **variables}, capture_output=True, text=True)


def test_the_variable_chooses_for_scripts_that_know_nothing_of_us() -> None:
    code = ("import timm, torch; m = timm.create_model('randwire_ws_pico').eval(); m(torch.zeros(1, 3, 64, 64));"
            "from randwire_zoo import kernels; print(kernels.kernels_in_use())")
    assert run(code, RANDWIRE_ZOO_KERNELS='native').stdout.strip() == 'native'
    assert run(code).stdout.strip() == 'torch'


def test_what_stands_in_the_way_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels._library.cache_clear()
    monkeypatch.setenv('RANDWIRE_ZOO_CACHE', str(tmp_path))
    monkeypatch.setenv('CXX', 'nothing-there')
    with pytest.raises(KernelError, match=r"^the native kernels need a C\+\+ compiler, and there is no 'nothing-there'"
                                          r': install g\+\+ or set CXX, or unset RANDWIRE_ZOO_KERNELS$'):
        use_kernels('native')
    monkeypatch.setenv('CXX', 'false')
    with pytest.raises(KernelError, match=r'^false could not build the native kernels: no message$'):
        use_kernels('native')
    assert kernels.kernels_in_use() == 'native', 'what cannot be had was chosen'
    with pytest.raises(ValueError, match="kernels must be one of 'torch', 'native', got 'cuda'"):
        use_kernels('cuda')
    monkeypatch.setattr(kernels, '_in_use', None)
    monkeypatch.setenv('RANDWIRE_ZOO_KERNELS', 'fast')
    with pytest.raises(ValueError, match=r"^RANDWIRE_ZOO_KERNELS: kernels must be one of .*, got 'fast'$"):
        network()(torch.zeros(2, 3, 64, 64))
    assert issubclass(KernelError, RuntimeError)
