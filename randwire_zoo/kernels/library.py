"""Fused passes over a stage's data for the CPU, in C++: built on first use (`build`).

This package's own commands use them wherever they can be had (`chosen`); everybody else asks for them:

    RANDWIRE_ZOO_KERNELS=native python train.py …        # or, in Python: randwire_zoo.use_kernels('native')

The functions take dense channels_last tensors in fp32 or bf16, [B, C, H, W], and compute without autograd; `operators`
makes operators of torch of them. Numbers per channel are fp32, [C]. This is where tensors become addresses, so this is
where type, device, layout and every size are checked: what does not fit is a ValueError.
"""
from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any, Optional

import torch
from torch import Tensor

from .build import KernelError, load_library
from .stages import Operands, Settings, StageResult, check

__all__ = [
    'KERNELS', 'KernelError', 'chosen', 'has_threads', 'instruction_set', 'kernels_in_use', 'match_threads',
    'pack_pointwise', 'samples', 'stage', 'stage_backward', 'use_kernels',
]

KERNELS = ('torch', 'native')
VARIABLE = 'RANDWIRE_ZOO_KERNELS'
_in_use: Optional[str] = None


def use_kernels(kernels: str) -> None:
    """Choose, for this process, what runs the stages of all RandWire networks on the CPU.

    Args:
        kernels: 'torch', or 'native' for the C++ ones, which are built now if this machine has none yet. They serve
            stages in fp32 and bf16, and under autocast to bf16, wherever nothing stands in the way that only single
            modules can do (hooks, a compiler, another norm or node operation than the paper's); such stages run as
            before.

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
    if _in_use is None and (asked := os.environ.get(VARIABLE)):
        try:
            use_kernels(asked)
        except ValueError as e:
            raise ValueError(f'{VARIABLE}: {e}') from None
    return _in_use or 'torch'


@contextmanager
def chosen(kernels: Optional[str], device: str | torch.device, threads: Optional[int] = None,
           amp_dtype: Optional[str] = None) -> Iterator[str]:
    """What a command of ours computes with while the block lasts: on the CPU the native kernels, if they can be had.

    What is said counts first, in this order: `kernels`, `use_kernels`, RANDWIRE_ZOO_KERNELS. Only if none of them says
    anything, kernels that cannot be built are no error, and those built without OpenMP, as Apple's compiler does it,
    are not taken where torch has several threads.

    Args:
        kernels: 'torch', 'native', or None.
        device: Where the networks are.
        threads: How many the line names, if not those of this process.
        amp_dtype: The lower precision that the command computes in, if any.

    Yields:
        A line for the command's header: device, threads, kernels with their instructions, or why there are none, and
        whether full precision would be faster.

    Raises:
        ValueError: if it is neither, or `kernels` are native and the device is not the CPU.
        KernelError: if the native kernels were asked for and cannot be built.
    """
    global _in_use
    before, reason = _in_use, ''
    device = torch.device(device)
    count = threads or torch.get_num_threads()
    try:
        if kernels is not None:
            if kernels == 'native' and device.type != 'cpu':
                raise ValueError(f"kernels 'native' compute on the CPU, and the device is '{device}'")
            use_kernels(kernels)
        elif device.type != 'cpu':
            use_kernels('torch')
        elif before is None and not os.environ.get(VARIABLE):
            try:
                use_kernels('native')
                if count > 1 and not has_threads():
                    raise KernelError('the native kernels were built without OpenMP and have one thread')
            except KernelError as e:
                reason = f': {e}'
                use_kernels('torch')
        in_use = kernels_in_use()
        if in_use == 'native':
            alone = ', one thread: built without OpenMP' if count > 1 and not has_threads() else ''
            reason = f' ({instruction_set()}{alone})'
        name = f' ({torch.cuda.get_device_name(device)})' if device.type == 'cuda' else ''
        slow = '; bfloat16, for which this processor has no instructions: full precision is several times as fast' if (
            device.type == 'cpu' and amp_dtype == 'bfloat16' and platform.machine().lower() in ('x86_64', 'amd64')
            and not torch.backends.cpu.get_cpu_capability().startswith('AVX512')) else ''
        if device.type == 'cpu' and amp_dtype == 'float16':
            slow = '; float16, which no kernel here computes in: bfloat16 or full precision is many times as fast'
        yield f'device {device}{name}, {count} thread{"s" if count > 1 else ""}, kernels {in_use}{reason}{slow}'
    finally:
        _in_use = before


def instruction_set() -> str:
    """What the native kernels were compiled for, such as 'avx512_bf16'."""
    function = _library().instruction_set
    function.restype = ctypes.c_char_p
    return function().decode()


def has_threads() -> bool:
    """Whether the native kernels take as many threads as torch does: without OpenMP they have one."""
    function = _library().has_threads
    function.restype = ctypes.c_bool
    return function()


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    return load_library()


def _keep_freed_memory() -> None:
    """Let malloc reuse what tensors free, where it would give it back to the system and get it again as zeroed pages.

    That costs as much as a pass over the data for every tensor. The process holds on to its peak of memory in return.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # the last on Windows, where it wants a name
        return  # not glibc
    for parameter in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
        # Older versions of glibc refuse what is above half of a heap's largest size, which most tensors are below.
        if not mallopt(parameter, 2 ** 30):
            mallopt(parameter, 2 ** 25)


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    function = getattr(_library(), f'{name}_{str(dtype).removeprefix("torch.")}')
    function.restype = {'packed_bytes': ctypes.c_int64, 'stage': ctypes.c_bool, 'stage_backward': ctypes.c_bool}.get(
        name)
    return function


def _compute(name: str, x: Tensor, *arguments: Any) -> None:
    """Run one of the passes of a stage."""
    if not _function(name, x.dtype)(*map(ctypes.byref, arguments)):
        raise MemoryError(f'the native kernels got too little memory for a stage whose input is {tuple(x.shape)}: take '
                          'smaller batches')


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


def _pointer(address: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(address)


def match_threads() -> None:
    """Take as many threads as torch does: it may have been built with another OpenMP than the kernels."""
    _library().use_threads(ctypes.c_int64(torch.get_num_threads()))


def stage(operands: Operands, settings: Settings,
          lay_out: Optional[Callable[[], Sequence[Tensor]]] = None) -> StageResult:
    """A whole stage; see `stages`.

    Args:
        operands, settings: What it is.
        lay_out: Gives the matrices of the 1×1 convolutions, from `pack_pointwise`, once all has been checked; None
            where they change, and each is laid out as its node comes.

    Raises:
        MemoryError: if there is too little for what lies between its passes.
    """
    check(operands, settings)
    if not operands.x.is_cpu:
        raise ValueError(f'the native kernels compute on the CPU, and this stage is on {operands.x.device}')
    x = operands.x.contiguous(memory_format=torch.channels_last)
    dtype, count = x.dtype, settings.num_nodes
    batch, channels, *size = settings.output_shape(operands)

    def picture() -> Tensor:
        return torch.empty((batch, channels, *size), dtype=dtype, device='cpu', memory_format=torch.channels_last)

    packed = lay_out() if lay_out else []
    for matrix, tensor in zip(operands.pointwise, packed, strict=lay_out is not None):
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
    pointwise = [] if packed else [matrix.contiguous() for matrix in operands.pointwise]
    biases = [bias.contiguous() for bias in operands.biases]
    of_nodes = [None if tensor is None else tensor.contiguous() for tensor in (
        operands.norm_weight, operands.norm_bias, operands.mean, operands.variance)]
    edge_weights = operands.edge_weights.contiguous()
    arguments = _arguments(operands, settings, x, edge_weights, nodes, of_nodes[:2], [mean, variance])
    arguments.depthwise, arguments.wide_depthwise = _addresses(depthwise), _wide(depthwise)
    if packed:
        arguments.packed = _addresses(packed)
    else:
        arguments.pointwise, arguments.wide_pointwise = _addresses(pointwise), _wide(pointwise)
    if biases:
        arguments.biases = _addresses(biases)
    arguments.given_mean, arguments.given_variance = map(_address, of_nodes[2:])
    arguments.out = None if alone else out.data_ptr()
    _compute('stage', x, arguments)
    return StageResult(out, mean, variance, nodes if settings.keep else [])


def _addresses(tensors: Sequence[Optional[Tensor]]) -> Any:
    return _array(ctypes.c_void_p, len(tensors))(*[None if t is None else t.data_ptr() for t in tensors])


def _address(tensor: Optional[Tensor]) -> Optional[int]:
    return None if tensor is None else tensor.data_ptr()


def _wide(tensors: Sequence[Tensor]) -> Any:
    return _array(ctypes.c_uint8, len(tensors))(*[tensor.dtype == torch.float32 for tensor in tensors])


def _arguments(operands: Operands, settings: Settings, x: Tensor, edge_weights: Tensor, nodes: Sequence[Tensor],
               norm: Sequence[Optional[Tensor]], statistics: Sequence[Tensor]) -> _StageArguments:
    """What both passes are given. All tensors are checked and contiguous, and have to outlive the call."""
    count = settings.num_nodes
    return _StageArguments(
        x.shape[0], *x.shape[2:], x.shape[1], operands.pointwise[0].shape[0], count, len(settings.outputs),
        settings.stride, settings.input_dilation, settings.dilation,
        *[_integers(tuple(row)) for row in (settings.sources, settings.in_degrees, settings.outputs)],
        edge_weights.data_ptr(), x.data_ptr(), norm_weight=_address(norm[0]), norm_bias=_address(norm[1]),
        eps=_array(ctypes.c_double, count)(*settings.eps), of_batch=_array(ctypes.c_uint8, count)(*settings.of_batch),
        nodes=_addresses(nodes), mean=statistics[0].data_ptr(), variance=statistics[1].data_ptr())


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


@cache
def _packed_bytes(in_channels: int, out_channels: int, dtype: torch.dtype) -> int:
    return _function('packed_bytes', dtype)(ctypes.c_int64(in_channels), ctypes.c_int64(out_channels))


def pack_pointwise(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix of a 1×1 convolution, [out, in] and contiguous, laid out for data of a dtype: bytes."""
    if matrix.dim() != 2 or matrix.dtype not in (dtype, torch.float32) or matrix.numel() == 0:
        raise ValueError(f'the native kernels take a float32 or bfloat16 matrix here, got {_described(matrix)}')
    address = _numbers(matrix, matrix.shape, matrix.dtype)
    out_channels, in_channels = matrix.shape
    # Vectors begin where cache lines do.
    size = _packed_bytes(in_channels, out_channels, dtype)
    memory = torch.empty(size + 64, dtype=torch.uint8, device='cpu')
    packed = memory[-memory.data_ptr() % 64:][:size]
    _function('pack' if matrix.dtype is dtype else 'pack_from_float32', dtype)(
        _pointer(address), ctypes.c_int64(in_channels), ctypes.c_int64(out_channels), _pointer(packed.data_ptr()))
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
        *[(name, ctypes.POINTER(ctypes.c_void_p)) for name in ('depthwise', 'pointwise')],
        *[(name, ctypes.POINTER(ctypes.c_uint8)) for name in ('wide_depthwise', 'wide_pointwise')],
        *[(name, ctypes.POINTER(ctypes.c_void_p)) for name in ('packed', 'biases')],
        *[(name, ctypes.c_void_p) for name in ('norm_weight', 'norm_bias', 'given_mean', 'given_variance')],
        ('eps', ctypes.POINTER(ctypes.c_double)), ('of_batch', ctypes.POINTER(ctypes.c_uint8)),
        ('nodes', ctypes.POINTER(ctypes.c_void_p)),
        *[(name, ctypes.c_void_p) for name in ('mean', 'variance', 'out')]]


class _StageGradients(ctypes.Structure):
    _fields_ = [
        ('grad', ctypes.c_void_p), *[(name, ctypes.POINTER(ctypes.c_void_p)) for name in ('kernels', 'matrices')],
        *[(name, ctypes.c_void_p) for name in ('x_grad', 'edge_weight_grads', 'norm_weight_grads', 'norm_bias_grads')],
        *[(name, ctypes.POINTER(ctypes.c_void_p)) for name in ('kernel_grads', 'matrix_grads')]]


def stage_backward(grad: Tensor, operands: Operands, mean: Tensor, variance: Tensor, nodes: Sequence[Tensor],
                   needed: Operands, settings: Settings) -> list[Optional[Tensor]]:
    """The gradients of a stage's operands in one row, those of parameters in fp32; None where none is needed.

    Args:
        grad: Of the stage's output.
        operands, settings: What the stage is, as in `stage`.
        mean, variance, nodes: What it put out.
        needed: Whose gradients are; x and the matrices cost less without.

    Raises:
        MemoryError: as `stage`.
    """
    x = operands.x.contiguous(memory_format=torch.channels_last)
    shape = settings.output_shape(operands)

    def floats(tensors: Sequence[Optional[Tensor]]) -> list[Tensor]:
        return [tensor.float().contiguous() for tensor in tensors if tensor is not None]

    def empty(like: Tensor) -> Tensor:  # a channels-last parameter has other strides, which DDP wants of its gradient
        return torch.empty_like(like, dtype=torch.float32)

    nodes = [node.contiguous(memory_format=torch.channels_last) for node in nodes]
    grad = grad.contiguous(memory_format=torch.channels_last)
    depthwise, pointwise = floats(operands.depthwise), floats(operands.pointwise)
    norm, statistics = floats([operands.norm_weight, operands.norm_bias]), floats([mean, variance])
    edge_weights = operands.edge_weights.contiguous()
    x_grad = torch.empty_like(x, memory_format=torch.channels_last) if needed.x else None
    of_edges, of_weight, of_bias = map(empty, (edge_weights, *norm))
    of_depthwise = [empty(t) for t in depthwise]
    of_pointwise = [empty(t) if wanted else None for t, wanted in zip(pointwise, needed.pointwise, strict=True)]
    arguments = _arguments(operands, settings, x, edge_weights, nodes, norm, statistics)
    _compute('stage_backward', x, arguments, _StageGradients(
        _picture(grad, shape, x.dtype), _addresses(depthwise), _addresses(pointwise), _address(x_grad),
        *map(_address, (of_edges, of_weight, of_bias)), _addresses(of_depthwise), _addresses(of_pointwise)))
    return [x_grad, of_edges, of_weight, of_bias, None, None, *of_depthwise, *of_pointwise]
