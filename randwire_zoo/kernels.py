"""Fused passes over a stage's data for the CPU, in C++: built on first use (`build`), off unless they are asked for.

The functions take dense channels_last tensors in fp32 or bf16, [B, C, H, W], and compute without autograd; `plans`
makes operators of torch of them. Numbers per channel are fp32, [C]. This is where tensors become addresses, so this is
where type, device, layout and every size are checked: what does not fit is a ValueError.

    RANDWIRE_ZOO_KERNELS=native python train.py …        # or, in Python: randwire_zoo.use_kernels('native')
"""
from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from .build import KernelError, load_library
from .stages import DTYPES, Operands, Settings, StageResult, check

__all__ = [
    'KERNELS', 'KernelError', 'Source', 'SumGradients', 'affine', 'channel_dots', 'kernels_in_use', 'match_threads',
    'pack_pointwise', 'samples', 'stage', 'sum_relu_depthwise', 'sum_relu_depthwise_backward', 'use_kernels',
    'weighted_sum',
]

KERNELS = ('torch', 'native')
VARIABLE = 'RANDWIRE_ZOO_KERNELS'
_in_use: Optional[str] = None


class Source(NamedTuple):
    """One term of a weighted sum: weight · (scale · data + shift).

    Args:
        data: [B, C, H, W], channels_last.
        weight: The weight of the edge.
        scale: [C] fp32 of a BN that was not applied yet; None for 1.
        shift: [C] fp32, likewise; None for 0.
    """

    data: Tensor
    weight: float = 1.0
    scale: Optional[Tensor] = None
    shift: Optional[Tensor] = None


def use_kernels(kernels: str) -> None:
    """Choose, for this process, what runs the stages of all RandWire networks on the CPU.

    Args:
        kernels: 'torch', or 'native' for the C++ ones, which are built now if this machine has none yet. They serve
            stages in fp32, and in evaluation bf16, wherever nothing stands in the way that only single modules can do
            (hooks, autocast, a compiler, another norm or node operation than the paper's); such stages run as before.

    Raises:
        ValueError: if it is neither.
        KernelError: if the native kernels cannot be built.
    """
    global _in_use
    if kernels not in KERNELS:
        raise ValueError(f'kernels must be one of {", ".join(map(repr, KERNELS))}, got {kernels!r}')
    if kernels == 'native':
        _library()
        _keep_freed_memory()
    _in_use = kernels


def kernels_in_use() -> str:
    """'torch' or 'native': what `use_kernels` or, before it was ever called, RANDWIRE_ZOO_KERNELS says."""
    if _in_use is None:
        try:
            use_kernels(os.environ.get(VARIABLE) or 'torch')
        except ValueError as e:
            raise ValueError(f'{VARIABLE}: {e}') from None
    assert _in_use is not None
    return _in_use


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    return load_library()


def _keep_freed_memory() -> None:
    """Let malloc reuse what tensors free, where it would give it back to the system and get it again as zeroed pages.

    That costs as much as a pass over the data for every tensor. The process holds on to its peak of memory in return.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    for parameter in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
        # Older versions of glibc refuse what is above half of a heap's largest size, which most tensors are below.
        if not mallopt(parameter, 2 ** 30):
            mallopt(parameter, 2 ** 25)


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ('batch', 'height', 'width', 'channels', 'stride', 'dilation')]


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    function = getattr(_library(), f'{name}_{str(dtype).removeprefix("torch.")}')
    function.restype = ctypes.c_int64 if name == 'packed_bytes' else None
    return function


@cache
def _array(kind: Any, length: int) -> Any:
    return kind * length


def _picture(x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> int:
    """The address of data of this shape."""
    if x.dtype is not dtype or x.shape != shape or not x.is_cpu or not x.is_contiguous(
            memory_format=torch.channels_last):
        raise ValueError(f'the native kernels take {dtype} {tuple(shape)} in channels_last on the CPU here, '
                         f'got {_described(x)}')
    return x.data_ptr()


def _numbers(x: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
    """The address of numbers that lie one after the other."""
    if x.dtype is not dtype or x.shape != shape or not x.is_cpu or not x.is_contiguous():
        raise ValueError(f'the native kernels take contiguous {dtype} {tuple(shape)} on the CPU here, '
                         f'got {_described(x)}')
    return x.data_ptr()


def _described(x: Tensor) -> str:
    return f'{x.dtype} {tuple(x.shape)} on {x.device} with strides {x.stride()}'


class _Data(NamedTuple):
    """The first source's data, which all others have to be like."""

    shape: torch.Size
    dtype: torch.dtype
    channels: tuple[int]

    def empty(self, channels: int, stride: int) -> Tensor:
        """What a node puts out."""
        batch, _, height, width = self.shape
        return torch.empty((batch, channels, (height - 1) // stride + 1, (width - 1) // stride + 1), dtype=self.dtype,
                           device='cpu', memory_format=torch.channels_last)

    def c_shape(self, stride: int, dilation: int) -> Any:
        """Batch, height, width, channels, stride and dilation, for C++."""
        batch, channels, height, width = self.shape
        if stride not in (1, 2) or not 0 < dilation < 2 ** 20:
            raise ValueError(f'the native kernels take strides 1 and 2 and dilations from 1, got {stride}, {dilation}')
        return ctypes.byref(_Shape(batch, height, width, channels, stride, dilation))


def _data(x: Tensor) -> _Data:
    if x.dim() != 4 or x.numel() == 0 or x.dtype not in DTYPES:
        raise ValueError(f'the native kernels take float32 and bfloat16 [B, C, H, W], got {_described(x)}')
    return _Data(x.shape, x.dtype, (x.shape[1],))


def _sum_arguments(sources: Sequence[Source], of: _Data) -> tuple[Any, ...]:
    count = len(sources)
    pointers = _array(ctypes.c_void_p, count)
    return (
        pointers(*[_picture(source.data, of.shape, of.dtype) for source in sources]), ctypes.c_int64(count),
        _array(ctypes.c_float, count)(*[source.weight for source in sources]),
        pointers(*[None if source.scale is None else _numbers(source.scale, of.channels) for source in sources]),
        pointers(*[None if source.shift is None else _numbers(source.shift, of.channels) for source in sources]))


def _pointer(address: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(address)


def _pixels(x: Tensor) -> ctypes.c_int64:
    return ctypes.c_int64(x.numel() // x.shape[1])


def match_threads() -> None:
    """Take as many threads as torch does: it may have been built with another OpenMP than the kernels."""
    _library().use_threads(ctypes.c_int64(torch.get_num_threads()))


def stage(operands: Operands, settings: Settings, packed: Sequence[Tensor]) -> StageResult:
    """A whole stage; see `stages`.

    Args:
        operands, settings: What it is.
        packed: The matrices of the 1×1 convolutions, from `pack_pointwise`.
    """
    check(operands, settings)
    if not operands.x.is_cpu:
        raise ValueError(f'the native kernels compute on the CPU, and this stage is on {operands.x.device}')
    x = operands.x.contiguous(memory_format=torch.channels_last)
    dtype, count = x.dtype, settings.num_nodes
    batch, channels, *size = settings.output_shape(operands)

    def picture() -> Tensor:
        return torch.empty((batch, channels, *size), dtype=dtype, device='cpu', memory_format=torch.channels_last)

    def addresses(tensors: Sequence[Tensor]) -> Any:
        return _array(ctypes.c_void_p, len(tensors))(*[tensor.data_ptr() for tensor in tensors])

    def address(tensor: Optional[Tensor]) -> Optional[int]:
        return None if tensor is None else tensor.data_ptr()

    for matrix, tensor in zip(operands.pointwise, packed, strict=True):
        if tensor.numel() != _packed_bytes(matrix.shape[1], channels, dtype) or tensor.dtype is not torch.uint8:
            raise ValueError(f'this is no matrix {tuple(matrix.shape)} from pack_pointwise: {_described(tensor)}')
    norm = operands.norm_weight is not None
    mean, variance = (torch.empty((count * norm, channels), dtype=torch.float32, device='cpu') for _ in range(2))
    alone = len(settings.outputs) == 1 and not norm and not settings.keep
    slots = range(count) if settings.keep else _slots(settings.wiring, tuple(settings.outputs))
    pictures = [picture() for _ in range(max(slots) + 1)]
    nodes = [pictures[slot] for slot in slots]
    out = nodes[settings.outputs[0]] if alone else picture()
    depthwise = [kernel.contiguous() for kernel in operands.depthwise]
    biases = [bias.contiguous() for bias in operands.biases]
    of_nodes = [None if tensor is None else tensor.contiguous() for tensor in (
        operands.norm_weight, operands.norm_bias, operands.mean, operands.variance)]
    edge_weights = operands.edge_weights.contiguous()
    arguments = _StageArguments(
        batch, *x.shape[2:], x.shape[1], channels, count, len(settings.outputs), settings.stride,
        settings.input_dilation, settings.dilation, *[
            _integers(tuple(row)) for row in (settings.sources, settings.in_degrees, settings.outputs)],
        edge_weights.data_ptr(), x.data_ptr(), addresses(depthwise), addresses(packed),
        addresses(biases) if biases else None, *[address(tensor) for tensor in of_nodes],
        _array(ctypes.c_double, count)(*settings.eps), _array(ctypes.c_uint8, count)(*settings.of_batch),
        addresses(nodes), mean.data_ptr(), variance.data_ptr(), None if alone else out.data_ptr())
    _function('stage', dtype)(ctypes.byref(arguments))
    return StageResult(out, mean, variance, nodes if settings.keep else [])


@lru_cache(maxsize=1024)
def _integers(values: tuple[int, ...]) -> Any:
    return _array(ctypes.c_int64, len(values))(*values)


@lru_cache(maxsize=1024)
def _slots(wiring: tuple[tuple[int, ...], ...], outputs: tuple[int, ...]) -> tuple[int, ...]:
    """Which memory each node writes to: that of nodes which nobody reads any more is taken again."""
    last_reader = {source: i for i, sources in enumerate(wiring) for source in sources}
    slots: list[int] = []
    free: list[int] = []
    taken = 0
    for i, sources in enumerate(wiring):
        if free:
            slots.append(free.pop())
        else:
            slots.append(taken)
            taken += 1
        free += [slots[source] for source in {*sources}
                 if source >= 0 and last_reader[source] == i and source not in outputs]
    return tuple(slots)


def sum_relu_depthwise(sources: Sequence[Source], kernel: Tensor, stride: int, dilation: int) -> Tensor:
    """Depthwise 3×3 convolution of the ReLU of a weighted sum, in one pass that writes neither.

    Args:
        sources: The terms, all of one shape.
        kernel: [C, 1, 3, 3], contiguous fp32.
        stride: 1 or 2.
        dilation: Also the padding.
    """
    data = _data(sources[0].data)
    shape, out = data.c_shape(stride, dilation), data.empty(data.shape[1], stride)
    _function('forward', data.dtype)(
        *_sum_arguments(sources, data), _pointer(_numbers(kernel, (data.shape[1], 1, 3, 3))), _pointer(out.data_ptr()),
        shape)
    return out


@cache
def _packed_bytes(in_channels: int, out_channels: int, dtype: torch.dtype) -> int:
    return _function('packed_bytes', dtype)(ctypes.c_int64(in_channels), ctypes.c_int64(out_channels))


def pack_pointwise(matrix: Tensor) -> Tensor:
    """The matrix of a 1×1 convolution, [out, in] and contiguous, laid out for `separable_node`: bytes."""
    if matrix.dim() != 2 or matrix.dtype not in DTYPES or matrix.numel() == 0:
        raise ValueError(f'the native kernels take a float32 or bfloat16 matrix here, got {_described(matrix)}')
    address = _numbers(matrix, matrix.shape, matrix.dtype)
    out_channels, in_channels = matrix.shape
    # Vectors begin where cache lines do.
    size = _packed_bytes(in_channels, out_channels, matrix.dtype)
    memory = torch.empty(size + 64, dtype=torch.uint8, device='cpu')
    packed = memory[-memory.data_ptr() % 64:][:size]
    _function('pack', matrix.dtype)(_pointer(address), ctypes.c_int64(in_channels), ctypes.c_int64(out_channels),
                                    _pointer(packed.data_ptr()))
    return packed


def samples(arrays: Sequence[Tensor]) -> list[int]:
    """A number for each array that changes, most likely, when all or many of its elements do."""
    count = len(arrays)
    out = _array(ctypes.c_uint64, count)()
    if not all(t.is_cpu and t.is_contiguous() for t in arrays):
        raise ValueError('the native kernels take samples of contiguous tensors on the CPU')
    _library().samples(
        _array(ctypes.c_void_p, count)(*[t.data_ptr() for t in arrays]),
        _array(ctypes.c_int64, count)(*[t.nbytes for t in arrays]), ctypes.c_int64(count), out)
    return list(out)


class _StageArguments(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in (
            'batch', 'height', 'width', 'in_channels', 'channels', 'num_nodes', 'num_outputs', 'stride',
            'input_dilation', 'dilation')],
        *[(name, ctypes.POINTER(ctypes.c_int64)) for name in ('sources', 'in_degrees', 'outputs')],
        ('edge_weights', ctypes.c_void_p), ('x', ctypes.c_void_p),
        *[(name, ctypes.POINTER(ctypes.c_void_p)) for name in ('depthwise', 'packed', 'biases')],
        *[(name, ctypes.c_void_p) for name in ('norm_weight', 'norm_bias', 'given_mean', 'given_variance')],
        ('eps', ctypes.POINTER(ctypes.c_double)), ('of_batch', ctypes.POINTER(ctypes.c_uint8)),
        ('nodes', ctypes.POINTER(ctypes.c_void_p)),
        *[(name, ctypes.c_void_p) for name in ('mean', 'variance', 'out')]]


class SumGradients(NamedTuple):
    """What `sum_relu_depthwise_backward` returns, with grad_sum the gradient of the sum before the ReLU.

    Args:
        kernel: [C, 1, 3, 3].
        dots: [K, C], the sums over batch and pixels of grad_sum · data of each source.
        total: [C], the sum of grad_sum.
    """

    kernel: Tensor
    dots: Tensor
    total: Tensor


def sum_relu_depthwise_backward(
        sources: Sequence[Source], kernel: Tensor, stride: int, dilation: int, grad: Tensor,
        edge_grads: Sequence[Optional[Tensor]], first: Sequence[bool],
) -> SumGradients:
    """The backward pass of `sum_relu_depthwise`, which computes the sum again.

    Args:
        sources, kernel, stride, dilation: As in the forward pass.
        grad: The gradient of its output.
        edge_grads: One tensor per source, shaped like its data, to which weight · grad_sum is added; None where no
            gradient is wanted.
        first: True for those to be written over instead, as nothing was added before.
    """
    data = _data(sources[0].data)
    batch, channels, height, width = data.shape
    count = len(sources)
    if len(edge_grads) != count or len(first) != count:
        raise ValueError(f'{count} sources need as many gradients, got {len(edge_grads)} and {len(first)} flags')
    out = SumGradients(*[torch.empty(shape, dtype=torch.float32, device='cpu')
                         for shape in ((channels, 1, 3, 3), (count, channels), (channels,))])
    shape = data.c_shape(stride, dilation)
    grad_shape = (batch, channels, (height - 1) // stride + 1, (width - 1) // stride + 1)
    _function('backward', data.dtype)(
        *_sum_arguments(sources, data), _pointer(_numbers(kernel, (channels, 1, 3, 3))),
        _pointer(_picture(grad, grad_shape, data.dtype)),
        _array(ctypes.c_void_p, count)(*[None if t is None else _picture(t, data.shape, data.dtype)
                                         for t in edge_grads]),
        _array(ctypes.c_uint8, count)(*first), *[_pointer(t.data_ptr()) for t in out], shape)
    return out


def weighted_sum(sources: Sequence[Source]) -> Tensor:
    """The weighted sum alone."""
    x = sources[0].data
    data = _data(x)
    out = data.empty(data.shape[1], 1)
    _function('sum', data.dtype)(
        *_sum_arguments(sources, data), _pointer(out.data_ptr()), _pixels(x), ctypes.c_int64(data.shape[1]))
    return out


def affine(x: Tensor, y: Tensor, scale: Tensor, slope: Tensor, shift: Tensor, out: Optional[Tensor] = None) -> Tensor:
    """scale · x + slope · y + shift, each [C]; out may be x."""
    data = _data(x)
    if out is None:
        out = data.empty(data.shape[1], 1)
    _function('affine', data.dtype)(
        *[_pointer(_picture(t, data.shape, data.dtype)) for t in (out, x, y)],
        *[_pointer(_numbers(t, data.channels)) for t in (scale, slope, shift)], _pixels(x),
        ctypes.c_int64(data.shape[1]))
    return out


def channel_dots(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of x, and of x · y, over batch and pixels: each [C]."""
    data = _data(x)
    total, dot = (torch.empty(data.channels, dtype=torch.float32, device='cpu') for _ in range(2))
    _function('dots', data.dtype)(
        *[_pointer(_picture(t, data.shape, data.dtype)) for t in (x, y)], _pointer(total.data_ptr()),
        _pointer(dot.data_ptr()), _pixels(x), ctypes.c_int64(data.shape[1]))
    return total, dot
