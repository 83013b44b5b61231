"""Images/s and training steps/s of RandWire networks beside others', in one run, beside the floors of the machine.

    python benchmarks/speed.py --network randwire_ws_small_s1 --seungwonpark CLONE --jiaminren CLONE
    python benchmarks/speed.py --network randwire_ws_c109 --beside resnet50 --dtype bfloat16
    python benchmarks/speed.py --network randwire_ws_c109 --train --beside resnet50 --jiaminren CLONE

Every network is run in each of its modes. The other implementations (clones of seungwonpark/RandWireNN and
JiaminRen/RandWireNN) get exactly our graphs. All runs take turns, round by round; figures are medians over the rounds,
ratios are taken round by round. On the CPU all of them profit from memory that malloc keeps (`randwire_zoo.kernels`).
"""
from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networkx as nx
import timm
import torch
import torch.nn.functional as F
from common import describe_machine, paired_seconds, ratio
from floors import Floors, Rates, floors_of, measure_rates
from tabulate import tabulate
from torch import Tensor, nn

from randwire_zoo import deploy, use_kernels  # this registers the models, too

Step = Callable[[], object]


def eval_step(model: nn.Module, images: Tensor) -> Step:
    """A forward pass in eval mode."""
    model.eval()

    def step() -> object:
        with torch.inference_mode():
            return model(images)
    return step


def train_step(model: nn.Module, images: Tensor, amp: bool = False) -> Step:
    """Forward, backward and an SGD update on fixed labels."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    labels = torch.arange(images.shape[0], device=images.device) % 10

    def step() -> object:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss
    return step


def on_kernels(kernels: str, step: Step) -> Step:
    """The step with `use_kernels(kernels)`."""
    def chosen() -> object:
        use_kernels(kernels)
        return step()
    return chosen


def _from_clone(clone: Path, file: str, modules: tuple[str, ...]) -> list[Any]:
    if not (clone / file).is_file():
        raise SystemExit(f'speed.py: {clone} is no clone of the repository: it has no {file}')
    sys.path.insert(0, str(clone))
    try:
        for name in ('model', 'utils'):  # both repositories call theirs so
            for loaded in [m for m in sys.modules if m == name or m.startswith(f'{name}.')]:
                del sys.modules[loaded]
        return [importlib.import_module(name) for name in modules]
    finally:
        sys.path.remove(str(clone))


def seungwonpark_network(clone: Path, model: Any) -> nn.Module:
    """seungwonpark/RandWireNN's network on the graphs of our small-regime model."""
    module, = _from_clone(clone, 'model/model.py', ('model.model',))
    hyperparameters = SimpleNamespace(model=SimpleNamespace(
        channel=model.conv2.conv.out_channels, classes=1000, input_maps=3))
    return module.RandWire(hyperparameters, [graph.to_dict() for graph in model.graphs])


def jiaminren_network(clone: Path, model: Any) -> nn.Module:
    """JiaminRen/RandWireNN's network on our graphs, one per stage, where it would give every stage the same."""
    module, = _from_clone(clone, 'model.py', ('model',))
    graphs = iter(model.graphs)

    def build_graph(nodes: int, args: object) -> nx.Graph:
        graph = next(graphs)
        undirected = nx.Graph()
        undirected.add_nodes_from(range(graph.num_nodes))
        undirected.add_edges_from(graph.edges)
        return undirected

    # Their file format needs a function that networkx has no more.
    module.build_graph, module.save_graph = build_graph, lambda graph, path: None
    channels = model.conv1.conv.out_channels * 2 + (model.feature_info[1]['num_chs'] % 2)
    return module.CNN(SimpleNamespace(
        channels=channels, net_type=model.regime, resume=False, nodes=32, model_dir=''))


class Runs:
    """What is to be timed: steps by name, with the floors of their network."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.dtype = getattr(torch, args.dtype)
        self.device = torch.device(args.device)
        images = torch.randn(args.batch, 3, args.size, args.size, device=self.device)
        # Training keeps fp32 parameters and casts as autocast does; evaluation has everything in the type.
        self.contiguous = images if args.train else images.to(self.dtype)
        self.channels_last = self.contiguous.contiguous(memory_format=torch.channels_last)
        self.steps: dict[str, Step] = {}
        self.floors: dict[str, Floors] = {}
        self.compile_seconds: dict[str, float] = {}

    def add(self, name: str, model: nn.Module, floors: Floors, compiled: bool = False, channels_last: bool = True,
            kernels: str = 'torch') -> None:
        """Add a network in one mode."""
        images = self.channels_last if channels_last else self.contiguous
        model = copy.deepcopy(model).to(self.device)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        if not self.args.train:
            model = model.eval().to(self.dtype)
        if compiled:
            model = torch.compile(model, mode='max-autotune-no-cudagraphs' if self.args.autotune else None)
        amp = self.args.train and self.dtype != torch.float32
        step = on_kernels(kernels, train_step(model, images, amp) if self.args.train else eval_step(model, images))
        start = time.perf_counter()
        step()
        if compiled:
            self.compile_seconds[name] = time.perf_counter() - start
        self.steps[name], self.floors[name] = step, floors

    def table(self, rates: Rates, baselines: Iterable[str]) -> str:
        """Run all, and put them beside the floors and beside the fastest run of every other network."""
        seconds = paired_seconds(self.steps, self.args.rounds)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        others = {}
        for baseline in baselines:
            runs = [name for name in medians if name.startswith(baseline)]
            if runs:
                others[baseline] = min(runs, key=lambda name: medians[name])
        passes = 3 if self.args.train else 1  # the backward pass multiplies twice as much
        rows = []
        for name, values in seconds.items():
            floors, median = self.floors[name], medians[name]
            rows.append((
                name, 1e3 * median, self.args.batch / median, f'{passes * floors.macs / rates.macs / median:.0%}',
                '' if self.args.train else f'{floors.bytes / rates.bytes / median:.0%}',
                *(f'{ratio(seconds[other], values):.2f}×' for other in others.values())))
        return tabulate(rows, ('network, mode', 'ms', 'images/s', 'of product rate', 'of copy rate', *(
            f'against {other}' for other in others.values())), floatfmt='.1f')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', default='randwire_ws_small_s1', help='ours (default: %(default)s)')
    parser.add_argument('--beside', nargs='*', default=[], metavar='NAME', help="timm's, such as resnet50")
    parser.add_argument('--seungwonpark', type=Path, metavar='DIR', help='a clone; small regime only')
    parser.add_argument('--jiaminren', type=Path, metavar='DIR', help='a clone')
    parser.add_argument('--train', action='store_true', help='training steps instead of evaluation')
    parser.add_argument('--no-compile', action='store_true', help='leave out torch.compile, which takes minutes')
    parser.add_argument('--autotune', action='store_true', help="torch.compile's max-autotune")
    parser.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=9)
    args = parser.parse_args()
    torch.manual_seed(0)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    if device.type == 'cpu':
        use_kernels('native')  # malloc keeps memory from here on, for all
    compiled = () if args.no_compile else (True,)
    runs = Runs(args)

    ours = timm.create_model(args.network)
    floors = floors_of(timm.create_model(args.network, device='meta'), args.batch, args.size, dtype)
    forms = {args.network: ours} if args.train else {args.network: ours, f'{args.network} deployed': deploy(ours)}
    for name, model in forms.items():
        for compile_it in (False, *compiled):
            runs.add(f'{name}, {"compiled" if compile_it else "eager"}', model, floors, compile_it)
        if device.type == 'cpu' and not (args.train and dtype != torch.float32):
            runs.add(f'{name}, native', model, floors, kernels='native')
    peers: dict[str, tuple[nn.Module, Floors]] = {}
    if args.seungwonpark:
        peers['seungwonpark'] = seungwonpark_network(args.seungwonpark, ours), floors
    if args.jiaminren:
        peers['jiaminren'] = jiaminren_network(args.jiaminren, ours), floors
    for name in args.beside:
        peers[name] = timm.create_model(name), floors_of(
            timm.create_model(name, device='meta'), args.batch, args.size, dtype)
    for name, (model, theirs) in peers.items():
        runs.add(f'{name}, eager', model, theirs, channels_last=False)
        runs.add(f'{name}, eager, channels_last', model, theirs)
        for _ in compiled:
            runs.add(f'{name}, compiled, channels_last', model, theirs, compiled=True)

    rates = measure_rates(device, dtype)
    print(describe_machine())
    print(f'{rates.macs / 1e9:.0f} G multiply-adds/s in {args.dtype} products, {rates.bytes / 1e9:.1f} GB/s in copies')
    print(f'{"training steps" if args.train else "evaluation"}, {args.dtype}, batch {args.batch}, {args.size} px, '
          f'{args.rounds} rounds')
    print(runs.table(rates, peers))
    for name, seconds in runs.compile_seconds.items():
        print(f'first call of {name}: {seconds:.0f} s')


if __name__ == '__main__':
    main()
