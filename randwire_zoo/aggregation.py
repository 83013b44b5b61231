"""A node's aggregation, the ReLU of the weighted sum of its inputs (paper section 3.2), in few passes over the data."""
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['aggregate']


def aggregate(inputs: list[Tensor], weights: Tensor) -> Tensor:
    """ReLU of the weighted sum of the inputs, as one fresh tensor and without stacking them.

    Args:
        inputs: At least two tensors of one shape.
        weights: One positive weight per input.
    """
    weights = weights.to(inputs[0].dtype)  # under autocast the data may be bf16 and the weights fp32
    if not torch.jit.is_scripting():
        # Compilers fuse the plain form better, and exporters know no Python functions.
        if not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            return _Aggregate.apply(weights, *inputs)
    return F.relu_(_weighted_sum(inputs, weights))


def _weighted_sum(inputs: list[Tensor], weights: Tensor) -> Tensor:
    total = inputs[0] * weights[0]
    for i in range(1, len(inputs)):
        total.addcmul_(inputs[i], weights[i])
    return total


class _Aggregate(torch.autograd.Function):
    """`aggregate` with a backward pass that writes one tensor per edge, where autograd's own would write four."""

    @staticmethod
    def forward(weights: Tensor, *inputs: Tensor) -> Tensor:
        return F.relu_(_weighted_sum(list(inputs), weights))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(output, *inputs)
        ctx.save_for_forward(output, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
        output, weights, *inputs = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
        grad_weights = torch.stack([_inner_product(grad, x) for x in inputs]) if ctx.needs_input_grad[0] else None
        grad_inputs: list[Optional[Tensor]] = [
            grad * weight if needed else None
            for weight, needed in zip(weights[:-1], ctx.needs_input_grad[1:-1], strict=True)]
        # The last product may take the place of grad, unless this pass is itself being recorded.
        grad_inputs.append(grad * weights[-1] if torch.is_grad_enabled() else grad.mul_(weights[-1]))
        return (grad_weights, *grad_inputs)

    @staticmethod
    def jvp(ctx: Any, grad_weights: Optional[Tensor], *grad_inputs: Optional[Tensor]) -> Tensor:
        output, weights, *inputs = ctx.saved_tensors
        total = torch.zeros_like(output)
        for i, (x, grad) in enumerate(zip(inputs, grad_inputs, strict=True)):
            if grad is not None:
                total = total + weights[i] * grad
            if grad_weights is not None:
                total = total + grad_weights[i] * x
        return torch.ops.aten.threshold_backward(total, output, 0)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        def plain(weights: Tensor, *inputs: Tensor) -> Tensor:
            total = inputs[0] * weights[0]
            for i in range(1, len(inputs)):
                total = total + inputs[i] * weights[i]
            return F.relu(total)
        return torch.vmap(plain, in_dims, randomness=info.randomness)(*inputs), 0


def _inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a·b over all elements, without writing the products where both lie alike in memory."""
    if a.dtype in (torch.float32, torch.float64) and a.stride() == b.stride():
        for order in ((0, 1, 2, 3), (0, 2, 3, 1)):
            if a.permute(order).is_contiguous():
                return torch.dot(a.permute(order).reshape(-1), b.permute(order).reshape(-1))
    return (a * b).sum(dtype=torch.promote_types(a.dtype, torch.float32)).to(a.dtype)
