"""A stage of separable nodes as operators of torch: fewer passes over the data than its modules make one by one.

The operators
    randwire_zoo::stage(operands, settings) -> (out, mean, variance, nodes)
    randwire_zoo::stage_backward(grad, operands, mean, variance, nodes, settings) -> gradients
compute a whole stage, and its gradients, as functions of tensors: nothing that they are given is written to, and all
that the backward pass reads is an argument of it. They are registered with `torch.library` for the CPU (fp32 and bf16,
and bf16 data beside fp32 parameters, as under autocast), with shapes for fake tensors, with autograd and with vmap.

    operands, see `Operands`: the stage's input, the edges' weights as they are multiplied (after sigmoid and removal),
        the parameters of the convolutions and BN, and running statistics for the nodes that normalise by them
    settings, see `Settings`: the wiring, strides and dilations, each BN's eps and whether it normalises by the batch
    out: [B, C, H', W'], channels_last: the mean of the output nodes
    mean, variance: [N, C] fp32, what each node normalised by, the variance biased; where that is the batch, the caller
        brings the running statistics up to date
    nodes: if `keep` is set, what the N 1×1 convolutions put out, each like `out`; otherwise none, and the backward pass
        computes them again
    gradients: those of all operands in one row, empty where they are not `needed`

Nothing else is written to memory: the nodes that read an output apply its BN as they sum, since both are linear, and a
tile of the sum goes through ReLU, depthwise and 1×1 convolution while it is in the processor's cache. The backward pass
computes sums and depthwise convolutions again, leaves each node's gradient of its sum for the sources to take their
share of, and gets the sums that BN's backward pass needs out of that same pass.

`stages.compute` is the same function in torch's own operators. It stands in where the C++ does not reach: under vmap,
for forward-mode tangents, and for gradients that are to be differentiated again. `run` is how to call the operators: as
an `autograd.Function`, since what `torch.library.register_autograd` makes fails under `torch.func`'s transforms.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import is_
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from . import library as kernels
from .stages import LISTS, STATISTICS, Operands, Settings, StageResult, check, check_lists, compute, nested

__all__ = ['run']

_TENSORS = ('Tensor x, Tensor edge_weights, Tensor? norm_weight, Tensor? norm_bias, Tensor? mean, Tensor? variance, '
            'Tensor[] depthwise, Tensor[] pointwise, Tensor[] biases')
_CONSTANTS = ('float[] eps, bool[] of_batch, int[] sources, int[] in_degrees, int[] outputs, int stride, '
              'int input_dilation, int dilation, bool keep, bool constant')


def run(operands: Operands, settings: Settings) -> StageResult:
    """The operator `randwire_zoo::stage`, differentiable by all of torch's means.

    Raises:
        ValueError: where operands and settings do not fit each other.
    """
    check_lists(operands, settings)
    return _result(_Stage.apply(settings, *operands.flat()))


def _result(row: Sequence[Tensor]) -> StageResult:
    out, mean, variance, *nodes = row
    return StageResult(out, mean, variance, nodes)


# The operators


@torch.library.custom_op('randwire_zoo::stage', mutates_args=(), device_types='cpu',
                         schema=f'({_TENSORS}, {_CONSTANTS}) -> (Tensor, Tensor, Tensor, Tensor[])')
def _stage(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    operands, settings = Operands(*arguments[:LISTS]), Settings(*arguments[LISTS:])
    kernels.match_threads()
    return kernels.stage(
        operands, settings, (lambda: _laid_out(operands.pointwise, operands.x.dtype)) if settings.constant else None)


class _Layout(NamedTuple):
    """What the constant matrices of a stage were laid out as, with what they were like then.

    Version and address tell of what torch knows of, and a sample of the numbers of what is written behind its back,
    through `.data` or NumPy, unless few of a matrix's numbers change: to read all of them costs several per cent of a
    forward pass with one image. `torch.autograd.graph.increment_version` tells of such a change.
    """

    others: list[Tensor]  # all matrices but the first, by which this is found and whose life it ends with
    states: list[tuple[int, int, int, torch.dtype]]
    packed: list[Tensor]


_layouts: Any = WeakTensorKeyDictionary()


def _laid_out(matrices: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Constant 1×1 convolutions as the kernels take them."""
    def lay_out(matrix: Tensor) -> Tensor:
        return kernels.pack_pointwise(matrix.detach().flatten(1).contiguous(), dtype)

    if any(matrix.is_inference() or not matrix.is_contiguous() for matrix in matrices):
        return [lay_out(matrix) for matrix in matrices]  # inference tensors have no versions
    states = [(matrix._version, matrix.data_ptr(), sample, dtype)
              for matrix, sample in zip(matrices, kernels.samples(matrices), strict=True)]
    known = _layouts.get(matrices[0])
    if known is not None and known.states == states and all(map(is_, known.others, matrices[1:])):
        return known.packed
    packed = [lay_out(matrix) for matrix in matrices]
    _layouts[matrices[0]] = _Layout(matrices[1:], states, packed)
    return packed


@_stage.register_fake
def _stage_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    operands, settings = Operands(*arguments[:LISTS]), Settings(*arguments[LISTS:])
    check(operands, settings)

    def node() -> Tensor:
        return torch.empty(settings.output_shape(operands), dtype=operands.x.dtype, device=operands.x.device,
                           memory_format=torch.channels_last)
    out = node()
    mean, variance = (torch.empty((settings.num_nodes * (operands.norm_weight is not None), out.shape[1]),
                                  dtype=torch.float32, device=out.device) for _ in range(2))
    return out, mean, variance, [node() for _ in range(settings.num_nodes * settings.keep)]


@torch.library.custom_op(
    'randwire_zoo::stage_backward', mutates_args=(), device_types='cpu',
    schema=f'(Tensor grad, {_TENSORS}, Tensor batch_mean, Tensor batch_variance, Tensor[] nodes, bool[] needed, '
           f'{_CONSTANTS}) -> Tensor[]')
def _stage_backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
    """The gradients of all operands in one row, empty where not needed."""
    operands, mean, variance, nodes, needed, settings = _backward_arguments(arguments)
    _check_backward(grad, operands, mean, variance, nodes, needed, settings)
    kernels.match_threads()
    gradients = kernels.stage_backward(grad, operands, mean, variance, nodes, nested(needed, settings), settings)
    return [_none(grad) if gradient is None or not wanted else gradient.to(operand.dtype)  # type: ignore[union-attr]
            for operand, gradient, wanted in zip(operands.flat(), gradients, needed, strict=True)]


def _none(like: Tensor) -> Tensor:
    """Stands for a gradient that nobody needs."""
    return torch.empty(0, dtype=torch.float32, device=like.device)


def _backward_arguments(arguments: Sequence[Any]) -> tuple[
        Operands, Tensor, Tensor, list[Tensor], list[bool], Settings]:
    mean, variance, nodes, needed = arguments[LISTS:LISTS + 4]
    return Operands(*arguments[:LISTS]), mean, variance, nodes, needed, Settings(*arguments[LISTS + 4:])


def _check_backward(grad: Tensor, operands: Operands, mean: Tensor, variance: Tensor, nodes: list[Tensor],
                    needed: list[bool], settings: Settings) -> None:
    check(operands, settings)
    shape = settings.output_shape(operands)
    if operands.norm_weight is None:
        raise ValueError('randwire_zoo::stage_backward: only stages with BN have a backward pass')
    if len(nodes) != settings.num_nodes or len(needed) != len(operands.flat()) or any(
            t.shape != shape or t.dtype != operands.x.dtype or t.device != operands.x.device for t in (grad, *nodes)):
        raise ValueError(f'randwire_zoo::stage_backward: grad and {settings.num_nodes} nodes must be '
                         f'{operands.x.dtype} {shape}')
    if any(t.shape != operands.norm_weight.shape or t.dtype != torch.float32 or t.device != operands.x.device
           for t in (mean, variance)):
        raise ValueError('randwire_zoo::stage_backward: statistics must be those of the forward pass')


@_stage_backward.register_fake
def _stage_backward_shapes(grad: Tensor, *arguments: Any) -> list[Tensor]:
    operands, mean, variance, nodes, needed, settings = _backward_arguments(arguments)
    _check_backward(grad, operands, mean, variance, nodes, needed, settings)
    flat = operands.flat()
    return [_none(grad) if t is None or not wanted or i in STATISTICS else torch.empty_like(
        t if i == 0 else t.contiguous(), memory_format=torch.channels_last if i == 0 else torch.preserve_format)
        for i, (t, wanted) in enumerate(zip(flat, needed, strict=True))]


# What makes them operators that everything in torch works with


def _gradients_by_torch(operands: Operands, settings: Settings, grad: Tensor) -> list[Optional[Tensor]]:
    """The gradients of all operands in one row, differentiable in turn."""
    flat = operands.flat()
    wanted = [i for i, t in enumerate(flat) if t is not None and i not in STATISTICS]

    def out(*tensors: Tensor) -> Tensor:
        row = list(flat)
        for i, t in zip(wanted, tensors, strict=True):
            row[i] = t
        return compute(nested(row, settings), settings).out

    found: Sequence[Optional[Tensor]]
    if all(_has_memory(t) for t in (grad, *flat) if t is not None):
        # No transform is at work, and none may be: they refuse hooks of saved tensors, such as `checkpoint` has.
        wanted = [i for i in wanted if flat[i].requires_grad]  # type: ignore[union-attr]
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            parts = [flat[i].view_as(flat[i]) for i in wanted]  # type: ignore[union-attr,arg-type]
            found = torch.autograd.grad(out(*parts), parts, grad, create_graph=again, allow_unused=True)
    else:
        found = torch.func.vjp(out, *[flat[i] for i in wanted])[1](grad)
    gradients: list[Optional[Tensor]] = [None] * len(flat)
    for i, gradient in zip(wanted, found, strict=True):
        gradients[i] = gradient
    return gradients


def _save(ctx: Any, operands: Operands, settings: Settings, result: Sequence[Any]) -> None:
    _, mean, variance, *nodes = result
    ctx.settings = settings
    ctx.save_for_backward(*operands.flat(), mean, variance, *nodes)
    ctx.mark_non_differentiable(mean, variance, *nodes)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Optional[Tensor], needed: Sequence[Any]) -> list[Optional[Tensor]]:
    """The gradients of all operands in one row: from the saved tensors alone."""
    settings, count = ctx.settings, len(needed)
    if grad is None:
        return [None] * count
    saved = ctx.saved_tensors
    operands = nested(saved[:count], settings)
    mean, variance, *nodes = saved[count:]
    # To be differentiated again, or asked for by an outer transform, or for many gradients at once.
    if torch.is_grad_enabled() or operands.norm_weight is None or not _has_memory(grad):
        return _gradients_by_torch(operands, settings, grad)
    if not nodes:  # they were not kept: the same again
        *_, nodes = torch.ops.randwire_zoo.stage(*operands, *replace(settings, keep=True).values())
    found = torch.ops.randwire_zoo.stage_backward(
        grad, *operands, mean, variance, nodes, list(needed), *settings.values())
    return [t if wanted and i not in STATISTICS else None
            for i, (t, wanted) in enumerate(zip(found, needed, strict=True))]


def _has_memory(grad: Tensor) -> bool:
    """False in `torch.func`'s transforms, and of the gradients of `torch.autograd.grad(is_grads_batched=True)`."""
    try:
        grad.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return False
    return True


class _Stage(torch.autograd.Function):
    """The operator for autograd and `torch.func`; settings first, then the operands in one row."""

    @staticmethod
    def forward(settings: Settings, *flat: Optional[Tensor]) -> tuple[Tensor, ...]:
        out, mean, variance, nodes = torch.ops.randwire_zoo.stage(*nested(flat, settings), *settings.values())
        return (out, mean, variance, *nodes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        settings, *flat = inputs
        _save(ctx, nested(flat, settings), settings, output)
        ctx.save_for_forward(*flat)

    @staticmethod
    def backward(ctx: Any, grad: Optional[Tensor], *others: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
        return (None, *_gradients(ctx, grad, ctx.needs_input_grad[1:]))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], settings: Settings, *flat: Optional[Tensor]) -> Any:
        def stage(*flat: Optional[Tensor]) -> tuple[Tensor, ...]:
            out, mean, variance, nodes = compute(nested(flat, settings), settings)
            return (out, mean, variance, *nodes)
        results = torch.vmap(stage, in_dims[1:], randomness=info.randomness)(*flat)
        return results, (0,) * len(results)

    @staticmethod
    def jvp(ctx: Any, settings: None, *tangents: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
        """The derivative along the tangents, by differentiating the backward pass: forward mode does not nest."""
        flat = ctx.saved_tensors[:len(tangents)]
        operands = nested(flat, ctx.settings)
        out = compute(operands, ctx.settings).out
        moved = [i for i, t in enumerate(tangents) if t is not None and i not in STATISTICS]

        def pull_back(grad: Tensor) -> list[Tensor]:
            gradients = _gradients_by_torch(operands, ctx.settings, grad)
            return [gradients[i] for i in moved]  # type: ignore[misc]
        push_forward = torch.func.vjp(pull_back, torch.zeros_like(out))[1]
        tangent, = push_forward([tangents[i] for i in moved])
        return (tangent, *[None] * (2 + ctx.settings.num_nodes * ctx.settings.keep))


def _whole(gradients: list[Optional[Tensor]], settings: Settings) -> tuple[Any, ...]:
    """Gradients in one row, in the structure of the operator's arguments."""
    empty: list[Any] = [[] if isinstance(value, list) and not value else None for value in settings.values()]
    return (*nested(gradients, settings), *empty)


def _stage_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    out, mean, variance, nodes = output
    _save(ctx, Operands(*inputs[:LISTS]), Settings(*inputs[LISTS:]), (out, mean, variance, *nodes))


def _stage_gradients(ctx: Any, grad: Optional[Tensor], *others: Any) -> tuple[Any, ...]:
    needed = Operands(*ctx.needs_input_grad[:LISTS]).flat()
    return _whole(_gradients(ctx, grad, needed), ctx.settings)


def _taken(value: Any, dims: Any, i: int) -> Any:
    """Of what an operator is given under vmap, what one of the batch is given."""
    if isinstance(value, (list, tuple)) and isinstance(dims, (list, tuple)):
        return [_taken(one, dim, i) for one, dim in zip(value, dims, strict=True)]
    return value if dims is None else value.select(dims, i)


def _stacked(rows: Sequence[Any]) -> tuple[Any, Any]:
    """Results, tensors or lists of them, as one of a batch, and where the batch then is."""
    if isinstance(rows[0], Tensor):
        return torch.stack(list(rows)), 0
    columns = [_stacked(column) for column in zip(*rows, strict=True)]
    return tuple(column for column, _ in columns), tuple(dim for _, dim in columns)


def _one_by_one(operator: Any) -> Callable[..., Any]:
    """The rule of vmap for whoever calls an operator itself, not `run`: transforms fail inside of such rules."""
    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return _stacked([operator(*_taken(arguments, in_dims, i)) for i in range(info.batch_size)])
    return rule


def _no_third_time(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError('randwire_zoo::stage_backward is not differentiable itself; differentiate randwire_zoo::stage '
                       'with create_graph=True')


_stage.register_autograd(_stage_gradients, setup_context=_stage_setup)
_stage.register_vmap(_one_by_one(torch.ops.randwire_zoo.stage))
_stage_backward.register_autograd(_no_third_time)
_stage_backward.register_vmap(_one_by_one(torch.ops.randwire_zoo.stage_backward))
