"""Fused passes over a stage's data for the CPU, in C++: built on first use, off unless they are asked for.

The functions take dense channels_last tensors in fp32 or bf16, [B, C, H, W], and compute without autograd; `plans`
makes the forward and backward pass of a stage of them. Numbers per channel are fp32, [C].

    RANDWIRE_ZOO_KERNELS=native python train.py …        # or, in Python: randwire_zoo.use_kernels('native')

The library is one C++ file without dependencies, compiled with $CXX (c++) for the processor at hand, in a few seconds,
and kept under $RANDWIRE_ZOO_CACHE (~/.cache/randwire_zoo).
"""
from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from .files import atomic_path, cache_folder

__all__ = [
    'KERNELS', 'KernelError', 'Source', 'SumGradients', 'affine', 'channel_dots', 'kernels_in_use', 'mean_and_variance',
    'sum_relu_depthwise', 'sum_relu_depthwise_backward', 'use_kernels', 'weighted_sum',
]

KERNELS = ('torch', 'native')
VARIABLE = 'RANDWIRE_ZOO_KERNELS'
_FLAGS = ('-O3', '-march=native', '-std=c++17', '-fopenmp', '-shared', '-fPIC')
_in_use: Optional[str] = None


class KernelError(RuntimeError):
    """The native kernels were asked for and cannot be had."""


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
    """The compiled kernels, built unless the same source was built here before."""
    source = Path(__file__).with_name('kernels.cpp').read_bytes()
    compiler = shlex.split(os.environ.get('CXX', '')) or ['c++']
    built_for = f'{compiler} {_FLAGS} {platform.machine()} {_processor()}'.encode()
    path = cache_folder() / 'kernels' / f'{hashlib.sha256(source + built_for).hexdigest()[:16]}.so'
    if not path.is_file():
        with atomic_path(path) as temporary:
            _compile(compiler, Path(__file__).with_name('kernels.cpp'), temporary)
    try:
        return ctypes.CDLL(str(path))
    except OSError as e:
        raise KernelError(f'the native kernels were built and cannot be loaded: {e}') from None


def _keep_freed_memory() -> None:
    """Let malloc reuse what tensors free, where it would give it back to the system and get it again as zeroed pages.

    That costs as much as a pass over the data for every tensor. The process holds on to its peak of memory in return.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    for parameter in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
        mallopt(parameter, 2 ** 30)


def _compile(compiler: list[str], source: Path, to: Path) -> None:
    command = [*compiler, *_FLAGS, '-o', str(to), str(source)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise KernelError(f'the native kernels need a C++ compiler, and there is no {compiler[0]!r}: install g++ or '
                          f'set CXX, or unset {VARIABLE}') from None
    except subprocess.CalledProcessError as e:
        lines = [line for line in e.stderr.splitlines() if 'error' in line] or e.stderr.splitlines() or ['no message']
        raise KernelError(f'{shlex.join(command[:1])} could not build the native kernels: {lines[0].strip()}') from None


def _processor() -> str:
    """What `-march=native` depends on: a cache folder may be shared by several machines."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(('flags', 'Features'))), '')


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


def _pointers(tensors: Sequence[Optional[Tensor]]) -> Any:
    return _array(ctypes.c_void_p, len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _sum_arguments(sources: Sequence[Source]) -> tuple[Any, ...]:
    data, weights, scales, shifts = zip(*sources, strict=True)
    return (_pointers(data), ctypes.c_int64(len(sources)), _array(ctypes.c_float, len(sources))(*weights),
            _pointers(scales), _pointers(shifts))


def _pixels(x: Tensor) -> ctypes.c_int64:
    return ctypes.c_int64(x.numel() // x.shape[1])


def sum_relu_depthwise(sources: Sequence[Source], kernel: Tensor, stride: int, dilation: int) -> Tensor:
    """Depthwise 3×3 convolution of the ReLU of a weighted sum, in one pass that writes neither.

    Args:
        sources: The terms, all of one shape.
        kernel: [C, 1, 3, 3], contiguous fp32.
        stride: 1 or 2.
        dilation: Also the padding.
    """
    x = sources[0].data
    batch, channels, height, width = x.shape
    out = torch.empty((batch, channels, (height - 1) // stride + 1, (width - 1) // stride + 1), dtype=x.dtype,
                      memory_format=torch.channels_last)
    shape = _Shape(batch, height, width, channels, stride, dilation)
    _function('forward', x.dtype)(*_sum_arguments(sources), _pointer(kernel), _pointer(out), ctypes.byref(shape))
    return out


def pack_pointwise(matrix: Tensor) -> Tensor:
    """The matrix of a 1×1 convolution, [out, in] and contiguous, laid out for `separable_node`: bytes."""
    out_channels, in_channels = matrix.shape
    sizes = ctypes.c_int64(in_channels), ctypes.c_int64(out_channels)
    # Vectors begin where cache lines do.
    memory = torch.empty(_function('packed_bytes', matrix.dtype)(*sizes) + 64, dtype=torch.uint8)
    packed = memory[-memory.data_ptr() % 64:]
    _function('pack', matrix.dtype)(_pointer(matrix), *sizes, _pointer(packed))
    return packed


def separable_node(
        sources: Sequence[Source], kernel: Tensor, packed: Tensor, bias: Optional[Tensor], out_channels: int,
        stride: int, dilation: int,
) -> Tensor:
    """`sum_relu_depthwise` and the 1×1 convolution that follows, in one pass that writes only what comes out.

    Args:
        sources, kernel, stride, dilation: As in `sum_relu_depthwise`.
        packed: From `pack_pointwise`, of the dtype of the data.
        bias: [out_channels] fp32, or None.
        out_channels: Channels of the result.
    """
    x = sources[0].data
    batch, channels, height, width = x.shape
    out = torch.empty((batch, out_channels, (height - 1) // stride + 1, (width - 1) // stride + 1), dtype=x.dtype,
                      memory_format=torch.channels_last)
    shape = _Shape(batch, height, width, channels, stride, dilation)
    _function('node', x.dtype)(
        *_sum_arguments(sources), _pointer(kernel), _pointer(packed), None if bias is None else _pointer(bias),
        _pointer(out), ctypes.byref(shape), ctypes.c_int64(out_channels))
    return out


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
    x = sources[0].data
    batch, channels, height, width = x.shape
    out = SumGradients(torch.empty_like(kernel), torch.empty(len(sources), channels), torch.empty(channels))
    shape = _Shape(batch, height, width, channels, stride, dilation)
    _function('backward', x.dtype)(
        *_sum_arguments(sources), _pointer(kernel), _pointer(grad), _pointers(edge_grads),
        _array(ctypes.c_uint8, len(first))(*first), _pointer(out.kernel), _pointer(out.dots), _pointer(out.total),
        ctypes.byref(shape))
    return out


def weighted_sum(sources: Sequence[Source]) -> Tensor:
    """The weighted sum alone."""
    x = sources[0].data
    out = torch.empty_like(x)
    _function('sum', x.dtype)(*_sum_arguments(sources), _pointer(out), _pixels(x), ctypes.c_int64(x.shape[1]))
    return out


def affine(x: Tensor, y: Tensor, scale: Tensor, slope: Tensor, shift: Tensor, out: Optional[Tensor] = None) -> Tensor:
    """scale · x + slope · y + shift, each [C]; out may be x."""
    if out is None:
        out = torch.empty_like(x)
    _function('affine', x.dtype)(_pointer(out), _pointer(x), _pointer(y), _pointer(scale), _pointer(slope),
                                 _pointer(shift), _pixels(x), ctypes.c_int64(x.shape[1]))
    return out


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over batch and pixels, from one pass over the data."""
    first, second = _moments(x, None)
    count = x.numel() // x.shape[1]
    shifted = first / count
    return x[0, :, 0, 0] + shifted, (second / count - shifted * shifted).clamp_(min=0)


def channel_dots(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of x, and of x · y, over batch and pixels: each [C]."""
    return _moments(x, y)


def _moments(x: Tensor, y: Optional[Tensor]) -> tuple[Tensor, Tensor]:
    sums = torch.empty(2, x.shape[1])
    _function('moments', x.dtype)(_pointer(x), None if y is None else _pointer(y), _pointer(sums[0]),
                                  _pointer(sums[1]), _pixels(x), ctypes.c_int64(x.shape[1]))
    return sums[0], sums[1]
