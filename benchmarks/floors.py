"""The limits of a machine, and what they let a network reach.

    python benchmarks/floors.py [--batch 8 --size 224 --dtype float32 bfloat16 --json FILE] [NAME …]

Three limits, each measured here:

- the peak: multiply-adds per second of the processor's own units (FMA; for bf16 dot products or tiles where it has
  them), in a loop that touches no memory (`peak.cpp`, built with $CXX for the processor at hand). On a GPU, torch's
  best square product stands in for it;
- copies: bytes per second of a copy of 256 MiB. Every output of a node (or of a convolution outside of the graphs) is
  written once and read once by each of its readers; weights are read once. What an implementation writes in between
  counts as nothing;
- the library: the time that torch (that is oneDNN, or cuDNN) takes for the network's convolutions alone, each shape by
  itself in the memory format that suits it, forward and, for training, both gradients.

The first cannot be passed. The second can where data stay in a cache, the third by whoever does more in one pass or
multiplies faster.
"""
from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from common import add_json_argument, compiler, paired_seconds, write_json
from tables import floors_table, format_table, machine_line
from torch import Tensor, nn

from randwire_zoo.complexity import count_complexity
from randwire_zoo.network import Node, Stage

__all__ = ['Floors', 'floors_of', 'measure_limits', 'measure_network', 'measure_peak']

LAYOUTS = (torch.channels_last, torch.contiguous_format)
UNITS = {torch.float32: ['fma_fp32'], torch.bfloat16: ['fma_fp32', 'dot_bf16', 'tile_bf16']}


@dataclass(frozen=True)
class Floors:
    """What one batch takes at least.

    Args:
        macs: Multiply-adds.
        bytes: Bytes moved.
    """

    macs: int
    bytes: int


@dataclass(frozen=True)
class Convolution:
    """A convolution of a network, as `torch.nn.functional.conv2d` takes it."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def measure_peak(dtype: torch.dtype, rounds: int = 9) -> dict[str, list[float]]:
    """G multiply-adds/s of each unit of the processor that serves the type, all threads at once, every round."""
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
        path = Path(folder) / 'peak.so'
        subprocess.run([*compiler(), '-O3', '-march=native', '-ffp-contract=fast', '-std=c++17', '-shared', '-fPIC',
                        '-o', str(path), str(Path(__file__).with_name('peak.cpp'))], check=True)
        library = ctypes.CDLL(str(path))
        found = {}
        for name in UNITS[dtype]:
            loop = getattr(library, name)
            loop.argtypes, loop.restype = [ctypes.c_int64], ctypes.c_int64
            if loop(1) == 0:
                continue
            rates = []
            for _ in range(rounds):
                start = time.perf_counter()
                done = sum(pool.map(loop, [8_000_000] * threads))  # a hundredth of a second; ctypes lets go of the lock
                rates.append(done / (time.perf_counter() - start) / 1e9)
            found[name] = rates
    return found


def measure_limits(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Peak in G multiply-adds/s and copies in GB/s, every round of them."""
    def product(size: int) -> list[float]:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        return [size ** 3 / seconds / 1e9 for seconds in paired_seconds({'': lambda: a @ b}, 9)['']]

    source = torch.randn(2 ** 26, device=device)
    target = torch.empty_like(source)
    copies = paired_seconds({'': lambda: target.copy_(source)}, 9)['']
    peak = measure_peak(dtype) if device.type == 'cpu' else {f'product_{n}': product(n) for n in (4096, 8192)}
    return {'peak': peak, 'copy': [2 * source.nbytes / seconds / 1e9 for seconds in copies]}


def floors_of(model: nn.Module, batch: int, size: int, dtype: torch.dtype) -> Floors:
    """Multiply-adds and bytes of a forward pass; the model may be on the meta device."""
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


def convolutions_of(model: nn.Module, batch: int, size: int) -> dict[Convolution, int]:
    """The different convolutions of a model on the meta device, and how often it has each."""
    found: dict[Convolution, int] = {}

    def note(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        convolution = Convolution(
            tuple(args[0].shape), tuple(module.weight.shape), module.stride, tuple(module.padding), module.dilation,
            module.groups)
        found[convolution] = found.get(convolution, 0) + 1

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model.eval()(torch.empty(batch, 3, size, size, device='meta'))
    for hook in hooks:
        hook.remove()
    return found


def measure_network(
        name: str, batch: int, size: int, dtype: torch.dtype, device: torch.device, train: bool, rounds: int,
) -> dict[str, Any]:
    """A network's floors, and the library's seconds for each of its convolutions: forward, and for training both
    gradients, every round, in the memory format that was faster when both were tried."""
    model = timm.create_model(name, device='meta')
    floors = floors_of(model, batch, size, dtype)
    rows = []
    for convolution, count in convolutions_of(model, batch, size).items():
        x = torch.randn(convolution.input, device=device, dtype=dtype)
        weight = torch.randn(convolution.weight, device=device, dtype=dtype)
        settings = {'stride': convolution.stride, 'padding': convolution.padding, 'dilation': convolution.dilation,
                    'groups': convolution.groups}
        with torch.no_grad():
            y = F.conv2d(x, weight, **settings)  # type: ignore[call-overload]
        row: dict[str, Any] = {
            'count': count, 'input': convolution.input, 'weight': convolution.weight, 'stride': convolution.stride,
            'groups': convolution.groups, 'macs': y.numel() * weight[0].numel()}
        passes = _passes(x, weight, y, settings, first=x.shape[1] == 3)
        for kind in (passes if train else ['forward']):
            row[kind] = _best_seconds([passes[kind](layout) for layout in LAYOUTS], rounds)
        rows.append(row)
    return {'macs': floors.macs, 'bytes': floors.bytes, 'convolutions': rows}


def _best_seconds(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """All rounds of the call whose median was the least when each was tried three times, after a call to warm up."""
    with torch.no_grad():
        tried = paired_seconds({str(i): call for i, call in enumerate(calls)}, 3, warmup=1)
        best = calls[int(min(tried, key=lambda i: statistics.median(tried[i])))]
        return paired_seconds({'': best}, rounds, warmup=0)['']


def _passes(
        x: Tensor, weight: Tensor, y: Tensor, settings: dict[str, Any], first: bool,
) -> dict[str, Callable[[torch.memory_format], Callable[[], object]]]:
    """Makers of what is timed, by name, for a memory format. Nobody needs the gradient of the image."""
    def forward(layout: torch.memory_format) -> Callable[[], object]:
        data, kernel = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
        return lambda: F.conv2d(data, kernel, **settings)

    def gradient(of_input: bool, of_weight: bool) -> Callable[[torch.memory_format], Callable[[], object]]:
        def make(layout: torch.memory_format) -> Callable[[], object]:
            data, kernel, out = (t.contiguous(memory_format=layout) for t in (x, weight, y))
            return lambda: torch.ops.aten.convolution_backward(
                out, data, kernel, None, settings['stride'], settings['padding'], settings['dilation'], False, [0, 0],
                settings['groups'], [of_input, of_weight, False])
        return make

    found = {'forward': forward, 'weight_gradient': gradient(False, True)}
    return found if first else {**found, 'input_gradient': gradient(True, False)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', default=[
        'randwire_ws_small_s1', 'randwire_ws_c109', 'randwire_ws_c154', 'resnet50', 'resnet101', 'mobilenetv2_140'])
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', choices=['float32', 'bfloat16'], nargs='+', default=['float32'])
    parser.add_argument('--rounds', type=int, default=3)
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    results: dict[str, Any] = {'batch': args.batch, 'size': args.size, 'dtypes': {}}
    for name in args.dtype:
        dtype = getattr(torch, name)
        results['dtypes'][name] = {**measure_limits(device, dtype), 'networks': {
            network: measure_network(network, args.batch, args.size, dtype, device, True, args.rounds)
            for network in args.names}}
    record = write_json(args, results)
    print(machine_line(record))
    for name in args.dtype:
        print(name)
        print(format_table(floors_table(record, name)))


if __name__ == '__main__':
    main()
