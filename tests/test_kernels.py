"""The native kernels compute what the modules compute: against float64 references, forward and backward."""
from __future__ import annotations

import copy
import dataclasses
import os
import pickle
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
from layers import randomise_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from randwire_zoo import Graph, deploy, use_kernels
from randwire_zoo.complexity import count_complexity
from randwire_zoo.kernels import build, native
from randwire_zoo.kernels import library as kernels
from randwire_zoo.kernels import operators as plans
from randwire_zoo.kernels.library import KernelError
from randwire_zoo.kernels.stages import STATISTICS, Operands, Settings, compute, nested
from randwire_zoo.network import RandWire, Stage

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


def naive_depthwise(total: Tensor, kernel: Tensor, stride: int, dilation: int) -> Tensor:
    return F.conv2d(F.relu(total), kernel, stride=stride, padding=dilation, dilation=dilation, groups=total.shape[1])


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


# Beside the shapes above: several groups of images and tiles of rows, whole images that share tiles, bands of one
# image, fewer pixels than channels (threads share out matrices), with strides, dilations and odd numbers of pixels
LEARNING = [*SHAPES, (2, 20, 41, 60, 1, 3, 2, 9), (1, 16, 60, 60, 2, 2, 2, 33), (40, 33, 3, 3, 1, 1, 3, 17),
            (70, 24, 2, 2, 1, 1, 2, 50), (23, 66, 14, 15, 1, 1, 2, 131), (1, 3, 12, 12, 1, 1, 20, 5),
            (3, 24, 2, 3, 1, 1, 3, 200)]


def a_learning_stage(
        shape: tuple[int, ...], dtype: torch.dtype, parameters: torch.dtype = torch.float32,
) -> tuple[Operands, Settings]:
    """One node that reads the input for each source of one that reads all of them, which is put out like the first."""
    batch, channels, height, width, stride, dilation, count, out_channels = shape
    torch.manual_seed(count)
    nodes = count + 1
    inputs = [channels] * count + [out_channels]
    operands = Operands(
        torch.randn(batch, channels, height, width).to(dtype), torch.rand(count) + 0.1 if count > 1 else torch.zeros(0),
        torch.rand(nodes, out_channels) + 0.5, torch.randn(nodes, out_channels), torch.randn(nodes, out_channels),
        torch.rand(nodes, out_channels) + 0.5, [torch.randn(inner, 1, 3, 3).div(3).to(parameters) for inner in inputs],
        [torch.randn(out_channels, inner, 1, 1).div(inner ** 0.5).to(parameters) for inner in inputs], [])
    values = batch * ((height - 1) // stride + 1) * ((width - 1) // stride + 1)
    # The last does not take the batch's statistics: those undo what the weights of its edges have in common.
    return operands, Settings(
        [1e-3] * nodes, [i % 2 == 0 and i < count and values > 1 for i in range(nodes)], [*[-1] * count, *range(count)],
        [*[1] * count, count], [0, count], stride, dilation, dilation, keep=True)


def gradients(operands: Operands, settings: Settings, run: Any, frozen: frozenset[int] = frozenset()) -> list[Any]:
    """Of a loss in which every output counts differently, for all operands but statistics and those frozen."""
    leaves = [None if t is None else t.detach().clone().requires_grad_(i not in {*STATISTICS, *frozen})
              for i, t in enumerate(operands.flat())]
    out = run(nested(leaves, settings), settings).out
    # At random: what is smooth cancels in BN.
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)).sum().backward()
    return [None if leaf is None or leaf.numel() == 0 else leaf.grad for leaf in leaves]


def double(operands: Operands, settings: Settings) -> Operands:
    return nested([None if t is None else t.double() for t in operands.flat()], settings)


def length_of_error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm().clamp(min=1e-6)).item()


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize('shape', LEARNING, ids=str)
def test_the_backward_pass_of_nodes_of_any_shape(shape: tuple[int, ...], threads: int) -> None:
    operands, settings = a_learning_stage(shape, torch.float32)
    found, by_torch = (gradients(operands, settings, run) for run in (plans.run, compute))
    for ours, theirs, exact in zip(
            found, by_torch, gradients(double(operands, settings), settings, compute), strict=True):
        assert (ours is None) == (exact is None)
        if ours is not None:
            # Sums that cancel are no better than their terms.
            tolerance = max(1e-5, 4 * length_of_error(theirs, exact))
            assert ours.dtype == torch.float32 and length_of_error(ours, exact) < tolerance


@pytest.mark.parametrize('parameters', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('shape', LEARNING, ids=str)
def test_the_backward_pass_of_nodes_in_bfloat16(
        shape: tuple[int, ...], parameters: torch.dtype, threads: int) -> None:
    operands, settings = a_learning_stage(shape, torch.bfloat16, parameters)
    found, by_torch = (gradients(operands, settings, run) for run in (plans.run, compute))
    expected = gradients(double(operands, settings), settings, compute)
    for i, (ours, theirs, exact) in enumerate(zip(found, by_torch, expected, strict=True)):
        assert (ours is None) == (exact is None)
        if ours is not None:
            # Some pixels change sides at the ReLU; edges have a few numbers only, sums of what cancels.
            tolerance = max(0.2 if i == 1 else 0.06, 3 * length_of_error(theirs, exact))
            assert ours.dtype == theirs.dtype and length_of_error(ours, exact) < tolerance


def test_a_stage_tells_the_statistics_that_it_has_normalised_by() -> None:
    operands, settings = a_learning_stage((3, 20, 14, 14, 2, 1, 2, 40), torch.float32)
    found, expected = plans.run(operands, settings), compute(double(operands, settings), settings)
    assert found.mean.shape == found.variance.shape == (settings.num_nodes, 40)
    assert length_of_error(found.mean, expected.mean.double()) < 1e-5
    assert length_of_error(found.variance, expected.variance.double()) < 1e-5


def test_what_is_frozen_gets_no_gradient_and_changes_no_other() -> None:
    operands, settings = a_learning_stage((2, 17, 9, 8, 1, 1, 3, 19), torch.float32)
    everything = gradients(operands, settings, plans.run)
    matrices = range(len(everything) - settings.num_nodes, len(everything))
    for frozen in ([0], [1], [2, 3], [*matrices], [0, *matrices]):
        for i, (ours, all_ours) in enumerate(
                zip(gradients(operands, settings, plans.run, frozenset(frozen)), everything, strict=True)):
            assert ours is None if i in frozen else all_ours is None or torch.equal(ours, all_ours)


def test_nodes_that_were_not_kept_are_computed_again(threads: int) -> None:
    operands, settings = a_learning_stage((3, 20, 14, 14, 2, 1, 2, 40), torch.float32)
    assert plans.run(operands, settings).nodes
    again = dataclasses.replace(settings, keep=False)
    assert not plans.run(operands, again).nodes
    for kept, computed in zip(*[gradients(operands, s, plans.run) for s in (settings, again)], strict=True):
        assert kept is None or torch.equal(kept, computed)


def test_the_same_number_of_threads_gives_the_same_bits(threads: int) -> None:
    operands, settings = a_learning_stage((5, 40, 30, 30, 1, 1, 3, 40), torch.float32)
    # Several times, as threads take tasks in another order each time.
    for first, *others in zip(*[gradients(operands, settings, plans.run) for _ in range(4)], strict=True):
        assert first is None or all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('shape', LEARNING, ids=str)
def test_what_memory_held_before_changes_nothing(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """What is padded, or read behind an end, is not what somebody else has left there."""
    operands, settings = a_learning_stage(shape, dtype)
    before = gradients(operands, settings, plans.run)
    left = [torch.full((2 ** size,), float('nan')) for size in range(4, 23) for _ in range(4)]
    del left
    for found, expected in zip(gradients(operands, settings, plans.run), before, strict=True):
        assert found is None or torch.equal(found, expected)


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


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_values_that_are_no_numbers_stay_so(dtype: torch.dtype) -> None:
    operands, settings = a_learning_stage((2, 5, 9, 9, 1, 1, 2, 6), dtype)
    operands.x[0, 1, 2, 2] = float('nan')
    settings = dataclasses.replace(settings, of_batch=[False] * 3)
    found, expected = plans.run(operands, settings).out.isnan(), compute(operands, settings).out.isnan()
    assert 0 < found.sum() < found.numel() and torch.equal(found, expected)
    for ours, theirs in zip(*[gradients(operands, settings, run) for run in (plans.run, compute)], strict=True):
        assert ours is None or torch.equal(ours.isnan(), theirs.isnan())


# What a processor must have for the levels of x86-64 (its flags in /proc/cpuinfo), and what the kernels then are.
LEVELS = {'x86-64-v2': ({'sse4_2', 'ssse3'}, 'sse'), 'x86-64-v3': ({'avx2', 'fma', 'bmi2', 'f16c'}, 'avx2'),
          'x86-64-v4': ({'avx512f', 'avx512bw', 'avx512vl', 'avx512dq', 'avx512cd'}, 'avx512'),
          'cooperlake': ({'avx512_bf16', 'amx_bf16'}, 'avx512_bf16')}  # where AMX takes the place of its pairs of bf16
FEW = [LEARNING[i] for i in (1, 3, 6, 11, 13)]  # strides, dilations, odd channels, several images in a tile, bands


@pytest.mark.parametrize('variant', [*LEVELS, "LLVM's, one thread"])
def test_every_variant_that_the_processor_has_computes_the_same(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built for less than this processor, without a warning; and by LLVM's compiler, if there is one, without OpenMP.
    What is built for the processor itself is what all other tests run."""
    flags, expected = LEVELS.get(variant, (set(), ''))
    if flags:
        cpuinfo = Path('/proc/cpuinfo')
        found = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
        if not flags <= found:
            pytest.skip(f'this processor does not have {", ".join(sorted(flags - found))}')
        monkeypatch.setattr(build, '_PROCESSOR', (f'-march={variant}',))
    else:
        monkeypatch.setenv('CXX', 'clang++' if shutil.which('clang++') else COMPILER)
        monkeypatch.setattr(build, '_OPENMP', ((),))
        expected = kernels.instruction_set()
    # Half the time of -O3 to build. They are kept with the others: their key has their flags. GCC says where a vector
    # fits no register, which is several times as slow as what is not native. GCC 12 finds its own header of AVX-512
    # wanting (its bug 105593).
    monkeypatch.setattr(build, '_FLAGS', ('-O1', '-Wall', '-Wextra', '-Wvector-operation-performance', '-Werror',
                                          '-Wno-unknown-warning-option', '-Wno-maybe-uninitialized',
                                          '-Wno-unknown-pragmas', *build._FLAGS[1:]))
    library = build.load_library()
    monkeypatch.setattr(kernels, '_library', lambda: library)
    for cached in (kernels._function, kernels._packed_bytes):
        cached.cache_clear()
    try:
        assert kernels.instruction_set() == expected and kernels.has_threads() == bool(flags)
        for shape in FEW:
            for dtype, tolerance in DTYPES:
                test_a_stage_of_one_node_that_reads_the_input_and_one_that_reads_it_many_times(shape, dtype, tolerance)
            test_the_backward_pass_of_nodes_of_any_shape(shape, 1)
            test_the_backward_pass_of_nodes_in_bfloat16(shape, torch.float32, 1)
        test_statistics_of_a_batch_far_from_zero_or_with_a_pixel_far_from_all_others(3.0, 1e4)
    finally:
        for cached in (kernels._function, kernels._packed_bytes):
            cached.cache_clear()


REFUSED = """
import ctypes, sys
class Stack(ctypes.Structure):
    _fields_ = [('sp', ctypes.c_void_p), ('flags', ctypes.c_int), ('size', ctypes.c_size_t)]
memory = ctypes.create_string_buffer(8192)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, len(memory))), None) == 0

import torch
from randwire_zoo import use_kernels
from randwire_zoo.kernels.library import instruction_set
use_kernels('native')
assert instruction_set() == 'avx512_bf16'
from test_kernels import FEW, test_the_backward_pass_of_nodes_in_bfloat16
for shape in FEW:
    test_the_backward_pass_of_nodes_in_bfloat16(shape, torch.float32, 1)
"""


@pytest.mark.skipif(not Path('/proc/cpuinfo').is_file() or 'amx_bf16' not in Path('/proc/cpuinfo').read_text().split(),
                    reason='this processor does not have AMX')
def test_where_linux_refuses_amx_pairs_of_bfloat16_serve() -> None:
    """It does to a process whose signals have too small a stack for what is to be saved there."""
    subprocess.run([sys.executable, '-c', REFUSED], check=True, cwd=Path(__file__).parent)


# Whole networks


def network(**kwargs: Any) -> RandWire:
    """A network whose BN and edges have numbers of their own."""
    torch.manual_seed(7)
    model = timm.create_model('randwire', **{'num_nodes': 9, 'channels': 10, 'num_classes': 7, **kwargs})
    randomise_(model)
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

    A single number close to 0 changes its sign now and then, and the ReLU lets through what it held back: no parameter
    counts for more than a gradient that is as far off as it is long.
    """
    squares = []
    for (name, ours), exact in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (ours.grad is None) == (exact.grad is None), name
        if ours.grad is not None and exact.grad is not None:
            length = exact.grad.double().norm()
            error = (ours.grad.double() - exact.grad).norm() / length.clamp(min=1e-30)
            squares.append(error.clamp(max=1).square().item())
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
    answers = planned(monkeypatch)
    # A sum that is zero but for rounding may pass the ReLU in one of the two only, and with batch statistics one such
    # number reaches all others; that does not happen in two of three batches.
    tolerance = 3e-3 if training else 1e-5
    close = 0
    for seed in (3, 4, 7):
        native, reference, plain = copy.deepcopy(model), copy.deepcopy(model).double(), copy.deepcopy(model)
        torch.manual_seed(seed)
        images = torch.randn(3, 3, 64, 96)
        use_kernels('native')
        answers.clear()
        found = learn(native, images)
        assert answers == [True] * len(model.graphs)
        use_kernels('torch')
        expected, by_modules = learn(reference, images.double()), learn(plain, images)
        assert error(found[0], expected[0]) < max(1e-5, 10 * error(by_modules[0], expected[0]))
        close += (((found[1] - expected[1]).norm() / expected[1].norm()).item() < tolerance
                  and distance(native, reference) < max(tolerance, 10 * distance(plain, reference)))
        for (name, buffer), exact in zip(native.named_buffers(), reference.buffers(), strict=True):
            assert error(buffer, exact.double()) < 1e-5, name
    assert close >= 2


def test_a_gradient_lies_in_memory_as_its_parameter_does() -> None:
    # Of a kernel with one input channel, and of a 1×1 convolution, channels-last is the same memory by other strides:
    # DDP compares them, and warned of every such parameter.
    model = network().to(memory_format=CHANNELS_LAST).train()
    found = torch.autograd.grad(model(torch.randn(2, 3, 64, 64)).square().sum(), list(model.parameters()))
    assert [grad.stride() for grad in found] == [parameter.stride() for parameter in model.parameters()]


def test_a_stage_in_eval_mode_keeps_its_edges_on_both_kernels() -> None:
    stage = Stage(Graph(3, ((0, 1), (0, 2), (1, 2))), 3, 20)
    x, removed = torch.randn(2, 3, 8, 8), torch.tensor([0.0, 1.0])
    for name in ('native', 'torch'):
        use_kernels(name)
        assert error(stage.train()(x, removed), stage(x).double()) > 0.01
        assert torch.equal(stage.eval()(x, removed), stage(x))


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


def test_gradients_are_differentiated_again_where_saved_tensors_have_hooks() -> None:
    model, images = network().eval(), torch.randn(2, 3, 64, 64, requires_grad=True)

    def penalty(x: Tensor) -> Tensor:
        grad, = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return grad.square().sum()

    def learnt(loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, [images, *model.parameters()])

    with torch.autograd.graph.save_on_cpu():
        saved = penalty(images)
    found = [learnt(saved), learnt(checkpoint(penalty, images, use_reentrant=False))]
    use_kernels('torch')
    for expected, *ours in zip(learnt(penalty(images)), *found, strict=True):
        assert all(length_of_error(one, expected.double()) < 1e-3 for one in ours)


def test_everything_that_holds_of_the_modules_holds_of_the_kernels() -> None:
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider',
         str(Path(__file__).with_name('test_network.py'))],
        env={**os.environ, 'TESTED_KERNELS': 'native'}, capture_output=True, text=True)
    assert done.returncode == 0 and 'kernels native' in done.stdout.splitlines(), done.stdout


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


def test_other_node_operations_and_autocast_to_float16_run_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = planned(monkeypatch)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for operation in ('conv', 'max_pool', 'avg_pool'):
            network(node_op=operation).eval()(images)
            deploy(network(node_op=operation))(images)
        with torch.autocast('cpu', torch.float16):
            network().eval()(images)
    assert answers and not any(answers)


@pytest.mark.parametrize('kwargs', NETWORKS, ids=str)
def test_under_autocast_a_network_learns_as_well_as_by_its_modules(
        kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(**kwargs).eval()  # in training mode no two runs in bf16 are alike
    reference, plain = copy.deepcopy(model).double(), copy.deepcopy(model)
    torch.manual_seed(3)
    images = torch.randn(3, 3, 64, 96)
    answers = planned(monkeypatch)
    with torch.autocast('cpu', torch.bfloat16):
        found = learn(model, images)
    assert answers == [True] * len(model.graphs)
    use_kernels('torch')
    expected = learn(reference, images.double())
    with torch.autocast('cpu', torch.bfloat16):
        by_modules = learn(plain, images)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert found[0].dtype == by_modules[0].dtype
    # Within one bit: whether operands or only results are rounded depends on the processor, in torch and here.
    assert length_of_error(found[0], expected[0]) < 2 * length_of_error(by_modules[0], expected[0])
    assert distance(model, reference) < 2 * distance(plain, reference)


def test_under_autocast_a_deployed_network_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = deploy(network()), torch.randn(2, 3, 64, 64)
    answers = planned(monkeypatch)
    with torch.inference_mode():
        exact = model(images)
        with torch.autocast('cpu', torch.bfloat16):
            found = model(images)
        assert torch.equal(model(images), exact)
    assert answers == [True] * 9 and error(found, exact.double()) < 0.1


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


# Too little memory


# An allocator that gives the kernels no memory at the one request, or at all requests from then on; torch has another.
ALLOCATOR = '''
#include <atomic>
#include <cstdlib>
static std::atomic<long> left{-1};
static std::atomic<bool> once;
extern "C" void refuse(long after, bool only_once) { once = only_once, left = after; }
extern "C" void* aligned_alloc(size_t alignment, size_t size) {
  const long before = left.load() < 0 ? -1 : left.fetch_sub(1);
  if (before == 0 && !once) left = 0;
  void* memory;
  return before == 0 || posix_memalign(&memory, alignment, size) ? nullptr : memory;
}
'''
STARVED = '''
import ctypes, sys, torch
from randwire_zoo import Graph, cli, use_kernels
from randwire_zoo.network import Stage

use_kernels('native')
torch.set_num_threads(int(sys.argv[1]))
refuse = ctypes.CDLL(None).refuse
refuse.argtypes = ctypes.c_long, ctypes.c_bool
stage = Stage(Graph(4, ((0, 1), (0, 2), (1, 3), (2, 3))), 3, 20).train()
x = torch.randn(2, 3, 12, 12)


def refused(call, only_once):
    for after in range(10000):
        refuse(after, only_once)
        try:
            call()
        except MemoryError as error:
            assert str(error).startswith('the native kernels got too little memory for a stage whose input is (2, 3')
            assert cli._explain(error) == str(error)
        else:
            return after
        finally:
            refuse(-1, False)


def learn():
    gradients = torch.autograd.grad(out.square().sum(), list(stage.parameters()), retain_graph=True)
    return [out, *gradients]


out = stage(x)
expected = learn()
for only_once in (False, True):
    print(refused(lambda: stage(x), only_once), refused(learn, only_once))
    out = stage(x)
    assert all(map(torch.equal, learn(), expected))
'''


@pytest.mark.skipif(sys.platform != 'linux', reason='takes the place of an allocator as the GNU loader lets it')
@pytest.mark.parametrize('threads', ['1', '3'])
def test_whatever_memory_is_refused_is_an_error_of_python_and_the_next_pass_is_right(
        threads: str, tmp_path: Path) -> None:
    (tmp_path / 'allocator.cpp').write_text(ALLOCATOR)
    subprocess.run([COMPILER, '-shared', '-fPIC', '-o', tmp_path / 'allocator.so', tmp_path / 'allocator.cpp'],
                   check=True)
    done = subprocess.run(
        [sys.executable, '-c', STARVED, threads], capture_output=True, text=True, timeout=120,
        env={**os.environ, 'LD_PRELOAD': str(tmp_path / 'allocator.so')})
    assert done.returncode == 0, done.stderr
    forward, backward = map(int, done.stdout.splitlines()[0].split())
    assert forward > 10 and backward > 20, 'so many requests, each of which was refused once'


# Building and choosing


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, '-c', code], env={**os.environ, **variables}, capture_output=True, text=True)


def test_the_variable_chooses_for_scripts_that_know_nothing_of_us() -> None:
    code = ("import timm, torch; m = timm.create_model('randwire_ws_pico').eval(); m(torch.zeros(1, 3, 64, 64));"
            "from randwire_zoo.kernels import library; print(library.kernels_in_use())")
    assert run(code, RANDWIRE_ZOO_KERNELS='native').stdout.strip() == 'native'
    assert run(code).stdout.strip() == 'torch'


def test_what_stands_in_the_way_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_kernels('torch')
    kernels._library.cache_clear()
    monkeypatch.setenv('RANDWIRE_ZOO_CACHE', str(tmp_path))
    monkeypatch.setenv('CXX', 'nothing-there')
    with pytest.raises(KernelError, match=r"^the native kernels need a C\+\+ compiler, and there is no 'nothing-there'"
                                          r': install g\+\+ or set CXX$'):
        use_kernels('native')
    monkeypatch.setenv('CXX', 'false')
    with pytest.raises(KernelError, match=r'^false could not build the native kernels: no message$'):
        use_kernels('native')
    assert kernels.kernels_in_use() == 'torch', 'what cannot be had was chosen'
    with pytest.raises(ValueError, match="kernels must be one of 'torch', 'native', got 'cuda'"):
        use_kernels('cuda')
    monkeypatch.setattr(kernels, '_in_use', None)
    monkeypatch.setenv('RANDWIRE_ZOO_KERNELS', 'fast')
    with pytest.raises(ValueError, match=r"^RANDWIRE_ZOO_KERNELS: kernels must be one of .*, got 'fast'$"):
        network()(torch.zeros(2, 3, 64, 64))
    assert issubclass(KernelError, RuntimeError)
