"""Params, multiply-adds and activations of a network, counted without running it on real memory."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ['Complexity', 'count_complexity']


@dataclass(frozen=True)
class Complexity:
    """Figures of one network for one image.

    Args:
        params: Learnable parameters.
        macs: Multiply-adds of convolutions and linear layers, the paper's "FLOPs".
        activations: Elements that convolutions put out (pycls' measure; it follows memory traffic better than macs).
    """

    params: int
    macs: int
    activations: int


def count_complexity(model: nn.Module, input_size: tuple[int, int, int]) -> Complexity:
    """Count for one image of (channels, height, width); a model on the meta device costs no memory."""
    activations = 0

    def count(module: nn.Module, args: object, output: torch.Tensor) -> None:
        nonlocal activations
        activations += output.numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    training = model.training
    try:
        parameter = next(model.parameters())
        image = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(image)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    params = sum(p.numel() for p in model.parameters())
    return Complexity(params, counter.get_total_flops() // 2, activations)  # a multiply-add is two operations
