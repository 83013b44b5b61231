"""What a network must do at least, multiply-adds and bytes to move, and how fast this machine does either.

    python benchmarks/floors.py [--batch 8 --size 224 --dtype float32] [NAME …]

Bytes: every output of a node (or of a convolution outside of the graphs) is written once and read once by each of its
readers; weights are read once. What an implementation writes in between counts as nothing.
"""
from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass

import timm
import torch
from common import describe_machine, paired_seconds
from tabulate import tabulate
from torch import nn

from randwire_zoo.complexity import count_complexity
from randwire_zoo.network import Node, Stage

__all__ = ['Floors', 'Rates', 'floors_of', 'measure_rates']


@dataclass(frozen=True)
class Rates:
    """What the machine reaches: multiply-adds per second of a matrix product, bytes per second of a copy."""

    macs: float
    bytes: float


@dataclass(frozen=True)
class Floors:
    """What one batch takes at least.

    Args:
        macs: Multiply-adds.
        bytes: Bytes moved.
    """

    macs: int
    bytes: int

    def seconds(self, rates: Rates) -> float:
        """The larger of the two floors."""
        return max(self.macs / rates.macs, self.bytes / rates.bytes)


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Of the best square product (1024 … 4096) and of a copy of 256 MiB; medians, the runs taking turns."""
    def product(size: int) -> float:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        return size ** 3 / statistics.median(paired_seconds({'': lambda: a @ b}, 9)[''])

    source = torch.randn(2 ** 26, device=device)
    target = torch.empty_like(source)
    copy = statistics.median(paired_seconds({'': lambda: target.copy_(source)}, 9)[''])
    sizes = (1024, 2048) if device.type == 'cpu' else (4096, 8192)
    return Rates(max(map(product, sizes)), 2 * source.nbytes / copy)


def floors_of(model: nn.Module, batch: int, size: int, dtype: torch.dtype) -> Floors:
    """Both floors of a forward pass; the model may be on the meta device."""
    elements = 0

    def count(module: nn.Module, args: object, output: torch.Tensor) -> None:
        nonlocal elements
        elements += output.numel() * readers.get(module, 1) + output.numel()

    readers: dict[nn.Module, int] = {}
    inside: set[nn.Module] = set()
    for stage in model.modules():
        if isinstance(stage, Stage):
            for i, node in enumerate(stage.nodes):
                # A sink's reader is the mean of the stage.
                readers[node] = sum(i in sources for sources in stage.graph.predecessors) or 1
                inside.update(node.modules())
    watched = [m for m in model.modules() if isinstance(m, Node) or (isinstance(m, nn.Conv2d) and m not in inside)]
    hooks = [m.register_forward_hook(count) for m in watched]
    try:
        complexity = count_complexity(model, (3, size, size))
    finally:
        for hook in hooks:
            hook.remove()
    width = torch.empty((), dtype=dtype).element_size()
    return Floors(batch * complexity.macs, width * (batch * elements + complexity.params))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', default=[
        'randwire_ws_small_s1', 'randwire_ws_c109', 'randwire_ws_c154', 'resnet50', 'resnet101', 'mobilenetv2_140'])
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32')
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    rates = measure_rates(torch.device(args.device), dtype)
    print(describe_machine())
    print(f'{args.dtype}: {rates.macs / 1e9:.0f} G multiply-adds/s in matrix products, {rates.bytes / 1e9:.1f} GB/s in '
          f'copies; batch {args.batch}, {args.size} px')
    rows = []
    for name in args.names:
        floors = floors_of(timm.create_model(name, device='meta'), args.batch, args.size, dtype)
        rows.append((name, floors.macs / 1e9, floors.bytes / 1e6, 1e3 * floors.macs / rates.macs,
                     1e3 * floors.bytes / rates.bytes, args.batch / floors.seconds(rates)))
    print(tabulate(rows, ('network', 'G multiply-adds', 'MB', 'ms of products', 'ms of copies', 'images/s at most'),
                   floatfmt='.1f'))


if __name__ == '__main__':
    main()
