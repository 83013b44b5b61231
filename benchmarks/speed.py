"""Evaluation and training steps of RandWire networks beside others', in one run, beside the limits of the machine.

    python benchmarks/speed.py --network randwire_ws_small_s1 --seungwonpark CLONE --jiaminren CLONE
    python benchmarks/speed.py --network randwire_ws_c109 --beside resnet50 --dtype bfloat16
    python benchmarks/speed.py --network randwire_ws_c109 --train --beside resnet50 --dtype float32 bfloat16
    python benchmarks/speed.py --network randwire_ws_small_s1 --beside mobilenetv2_140 --batch 1 --size 320
    python benchmarks/speed.py --network randwire_ws_small_s1 --beside mobilenetv2_140 --train --batch 64 --size 64

Every network is run in each of its modes and types. The other implementations (clones of seungwonpark/RandWireNN and
JiaminRen/RandWireNN) get exactly our graphs. All runs take turns, round by round; figures are medians over the rounds,
ratios are taken round by round. On the CPU all of them profit from memory that malloc keeps (`kernels.library`). Beside
them stand the limits of `floors.py`, measured in the same process.
"""
from __future__ import annotations

import argparse
import copy
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networkx as nx
import timm
import torch
import torch.nn.functional as F
from common import add_json_argument, paired_seconds, write_json
from floors import measure_limits, measure_network
from tables import format_table, machine_line, speed_table
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
    """What is to be timed: steps, with what a record says of each."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        self.images = torch.randn(args.batch, 3, args.size, args.size, device=self.device)
        self.steps: dict[str, Step] = {}
        self.runs: list[dict[str, Any]] = []

    def add(self, network: str, mode: str, model: nn.Module, floors: str, dtype: str, compiled: bool = False,
            channels_last: bool = True, kernels: str = 'torch') -> None:
        """Add a network in one mode and type; `floors` is the name of timm's that has its floors."""
        # Training keeps fp32 parameters and casts as autocast does; evaluation has everything in the type.
        kind = torch.float32 if self.args.train else getattr(torch, dtype)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        images = self.images.to(kind).contiguous(memory_format=layout)
        model = copy.deepcopy(model).to(self.device, kind).to(memory_format=layout)
        if not self.args.train:
            model = model.eval()
        if compiled:
            model = torch.compile(model, mode='max-autotune-no-cudagraphs' if self.args.autotune else None)
        amp = self.args.train and dtype != 'float32'
        step = on_kernels(kernels, train_step(model, images, amp) if self.args.train else eval_step(model, images))
        start = time.perf_counter()
        step()
        self.steps[f'{len(self.runs)}'] = step
        self.runs.append({'network': network, 'mode': mode, 'dtype': dtype, 'floors': floors,
                          'first_call': time.perf_counter() - start})

    def measure(self) -> list[dict[str, Any]]:
        """All runs with their seconds in every round."""
        seconds = paired_seconds(self.steps, self.args.rounds)
        return [{**run, 'seconds': seconds[f'{i}']} for i, run in enumerate(self.runs)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', default='randwire_ws_small_s1', help='ours (default: %(default)s)')
    parser.add_argument('--beside', nargs='*', default=[], metavar='NAME', help="timm's, such as resnet50")
    parser.add_argument('--seungwonpark', type=Path, metavar='DIR', help='a clone; small regime only')
    parser.add_argument('--jiaminren', type=Path, metavar='DIR', help='a clone')
    parser.add_argument('--train', action='store_true', help='training steps instead of evaluation')
    parser.add_argument('--compile', nargs='*', metavar='NAME',
                        help='networks of the table to run compiled too, which takes minutes (default: all; none if no '
                             'name follows)')
    parser.add_argument('--autotune', action='store_true', help="torch.compile's max-autotune")
    parser.add_argument('--dtype', choices=['float32', 'bfloat16'], nargs='+', default=['float32'],
                        help='of everything; in training, what autocast casts to')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=9)
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    device = torch.device(args.device)
    if device.type == 'cpu':
        use_kernels('native')  # malloc keeps memory from here on, for all
    runs = Runs(args)

    ours = timm.create_model(args.network)
    forms = {'': ours} if args.train else {'': ours, 'deployed, ': deploy(ours)}
    peers: dict[str, tuple[nn.Module, str]] = {}
    if args.seungwonpark:
        peers['seungwonpark'] = seungwonpark_network(args.seungwonpark, ours), args.network
    if args.jiaminren:
        peers['JiaminRen'] = jiaminren_network(args.jiaminren, ours), args.network
    peers.update({name: (timm.create_model(name), name) for name in args.beside})

    def add_compiled(network: str, *settings: Any) -> None:
        if args.compile is None or network in args.compile:
            runs.add(network, *settings, compiled=True)

    for dtype in args.dtype:
        for form, model in forms.items():
            runs.add(args.network, f'{form}eager', model, args.network, dtype)
            if args.train or form:  # whoever compiles for evaluation deploys first
                add_compiled(args.network, f'{form}compiled', model, args.network, dtype)
            if device.type == 'cpu':
                runs.add(args.network, f'{form}native', model, args.network, dtype, kernels='native')
        for name, (model, floors) in peers.items():
            runs.add(name, 'eager, contiguous', model, floors, dtype, channels_last=False)
            runs.add(name, 'eager', model, floors, dtype)
            add_compiled(name, 'compiled', model, floors, dtype)

    few = min(3, args.rounds)
    limits = {dtype: {**measure_limits(device, getattr(torch, dtype)), 'networks': {
        name: measure_network(name, args.batch, args.size, getattr(torch, dtype), device, args.train, few)
        for name in dict.fromkeys([args.network, *args.beside])}} for dtype in args.dtype}
    record = write_json(args, {'train': args.train, 'batch': args.batch, 'size': args.size, 'limits': limits,
                               'runs': runs.measure()})
    print(machine_line(record))
    for dtype in args.dtype:
        print(format_table(speed_table(record, dtype)))
    for run in runs.runs:
        if run['mode'].endswith('compiled'):
            print(f'first call of {run["network"]}, {run["mode"]}, {run["dtype"]}: {run["first_call"]:.0f} s')


if __name__ == '__main__':
    main()
