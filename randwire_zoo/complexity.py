"""Params, multiply-adds and activations of a network, counted without running it on real memory."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .graphs import Graph
from .network import STEM_STRIDES, RandWire

__all__ = ['Complexity', 'count_complexity', 'count_randwire']


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
    modes = {module: module.training for module in model.modules()}  # of which some may be frozen
    try:
        parameter = next(model.parameters())
        image = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(image)
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    params = sum(p.numel() for p in model.parameters())
    return Complexity(params, counter.get_total_flops() // 2, activations)  # a multiply-add is two operations


def count_randwire(
        graphs: Sequence[Graph],
        regime: str,
        channels: int,
        input_size: tuple[int, int, int],
        num_classes: int = 1000,
        node_op: str = 'sep_conv',
        stem_stride: int = 4,
        output_stride: int = 32,
        global_pool: str = 'avg',
        head: bool = True,
) -> Complexity:
    """What `count_complexity` gives for a `RandWire` network, from its shapes and without making it.

    A node's figures depend on its graph only through its number of inputs and on whether the stage's input feeds it,
    so that the whole is a polynomial in C: thousands of C can be tried in a second.

    Args:
        graphs: One graph per random stage; the others are arguments of `RandWire` too, which checks them.
        regime: 'small' or 'regular'.
        channels: C.
        input_size: Channels, height and width of the image.
        num_classes: Width of `fc`; 0 leaves it out.
        node_op: Node operation.
        stem_stride: 4, 2 or 1.
        output_stride: 8, 16 or 32.
        global_pool: Pooling before `fc`; those that concatenate two make it twice as wide.
        head: Whether there is a 1×1 convolution to 1280.
    """
    params = macs = activations = 0
    in_chs, height, width = input_size

    def conv(out_chs: int, fan_in: int, times: int = 1) -> None:
        nonlocal params, macs, activations
        params += times * fan_in * out_chs
        macs += times * fan_in * out_chs * height * width
        activations += times * out_chs * height * width

    def nodes(inputs: int, outputs: int, times: int) -> None:
        nonlocal params
        if node_op == 'sep_conv':
            conv(inputs, 9, times)
        conv(outputs, 9 * inputs if node_op == 'conv' else inputs, times)
        params += times * 2 * outputs  # BN

    first_graph = 5 - len(graphs)
    widths = [channels // 2, *[channels] * (first_graph - 1), *(channels * 2 ** i for i in range(len(graphs)))]
    reduction = 1
    for index, (stride, out_chs) in enumerate(zip((*STEM_STRIDES[stem_stride], 2, 2, 2), widths, strict=True)):
        if reduction * stride <= output_stride:  # past it the stride is traded for dilation, which costs the same
            reduction *= stride
            height, width = -(-height // stride), -(-width // stride)
        if index < first_graph:
            conv(out_chs, 9 * in_chs)
            params += 2 * out_chs
        else:
            graph = graphs[index - first_graph]
            nodes(in_chs, out_chs, len(graph.inputs))
            nodes(out_chs, out_chs, graph.num_nodes - len(graph.inputs))
            params += sum(len(sources) for sources in graph.predecessors if len(sources) > 1)  # edge weights
        in_chs = out_chs
    if head:
        conv(RandWire.head_width, in_chs)
        params += 2 * RandWire.head_width
        in_chs = RandWire.head_width
    in_chs *= 2 if 'cat' in global_pool else 1
    return Complexity(params + (in_chs + 1) * num_classes, macs + in_chs * num_classes, activations)
