"""Peak memory of activations in evaluation, and of a training step.

    python benchmarks/memory.py [--batch 8 --size 224 --json FILE] [NAME …]
    python benchmarks/memory.py --train --seungwonpark CLONE --jiaminren CLONE --beside resnet50 [--json FILE] [NAME …]

Evaluation: every storage that an operator allocates is counted from its birth to its death, so the figure is exact and
the same on every machine; it stands beside the sum of all node outputs and beside the widest cut of the graphs, that is
what the most nodes alive at one time put out. Training: what a process of its own grows by, at its peak, over what it
had before its first step (on a GPU, what its allocator says), with and without the native kernels.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from common import add_json_argument, write_json
from tables import evaluation_memory_table, format_table, machine_line, training_memory_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from randwire_zoo import use_kernels
from randwire_zoo.network import Node, Stage

PEERS = ('seungwonpark', 'JiaminRen')


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages alive among those allocated inside, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def _free(self, key: int, size: int) -> None:
        self.live -= size
        self._known.discard(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in given and key not in self._known:
                self._known.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, key, size)
        return out


def widest_cut(stage: Stage) -> int:
    """The most node outputs of a stage that are alive at one time, while the last of them is computed."""
    alive: set[int] = set()
    widest = 0
    for node, expired in enumerate(stage.expired):
        widest = max(widest, len(alive) + 1)
        alive.difference_update(expired)
        if not stage.is_output[node]:
            alive.add(node)
    return widest


def measure_evaluation(model: torch.nn.Module, batch: int, size: int) -> tuple[float, float, float]:
    """In MiB: peak of live activations, sum of all node outputs, and the widest cut of all stages."""
    model.eval()
    node_bytes: dict[torch.nn.Module, int] = {}

    def count(module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
        node_bytes[module] = output.nbytes

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, Node)]
    images = torch.randn(batch, 3, size, size)
    with torch.no_grad(), LiveBytes() as counter:
        model(images)
    for hook in hooks:
        hook.remove()
    cut = max(widest_cut(stage) * node_bytes[stage.nodes[0]]  # type: ignore[index]
              for stage in model.modules() if isinstance(stage, Stage))
    return counter.peak / 2 ** 20, sum(node_bytes.values()) / 2 ** 20, cut / 2 ** 20


def train_once(case: dict[str, Any]) -> float:
    """MiB that two training steps add at their peak; run in a process of its own."""
    from speed import jiaminren_network, seungwonpark_network, train_step
    device = torch.device(case['device'])
    model = timm.create_model(case['network'])
    if case['peer']:
        peer = {'seungwonpark': seungwonpark_network, 'JiaminRen': jiaminren_network}[case['peer']]
        model = peer(Path(case['clone']), model)
    images = torch.randn(case['batch'], 3, case['size'], case['size'], device=device)
    if case['channels_last']:
        model, images = model.to(memory_format=torch.channels_last), images.contiguous(
            memory_format=torch.channels_last)
    if case['native']:
        use_kernels('native')
    step = train_step(model.to(device), images)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
        before = _status('VmRSS')
    step(), step()
    peak = torch.cuda.max_memory_allocated() if device.type == 'cuda' else _status('VmHWM')
    return (peak - before) / 2 ** 20


def _status(field: str) -> int:
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def measure_training(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All ways to train each network, each in its own process."""
    # implementation, mode, channels_last, native
    ours = [('ours', 'eager', True, False), *([('ours', 'native', True, True)] if args.device == 'cpu' else [])]
    ways = [(name, *way) for name in args.names for way in ours]
    for peer, network in [(peer, name) for name in args.names for peer in PEERS]:
        if getattr(args, peer.lower()) and (peer != 'seungwonpark' or 'small' in network):
            ways += [(network, peer, 'eager, contiguous', False, False), (network, peer, 'eager', True, False)]
    ways += [(name, 'ours', 'eager', True, False) for name in args.beside]
    cases = []
    for network, implementation, mode, channels_last, native in ways:
        peer = '' if implementation == 'ours' else implementation
        case = {'network': network, 'peer': peer, 'clone': str(getattr(args, peer.lower())) if peer else '',
                'channels_last': channels_last, 'native': native, 'batch': args.batch, 'size': args.size,
                'device': args.device}
        done = subprocess.run([sys.executable, __file__, '--case', json.dumps(case)], check=True,
                              stdout=subprocess.PIPE, text=True, env={**os.environ, 'MALLOC_ARENA_MAX': '1'})
        cases.append({'network': network, 'implementation': implementation, 'mode': mode,
                      'mib': float(done.stdout.split()[-1])})
    return sorted(cases, key=lambda case: [*args.names, *args.beside].index(case['network']))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', default=['randwire_ws_small_s1', 'randwire_ws_c109'])
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--train', action='store_true')
    parser.add_argument('--beside', nargs='*', default=[], metavar='NAME', help="timm's, such as resnet50; in training")
    parser.add_argument('--seungwonpark', type=Path, metavar='DIR', help='a clone; small regime only')
    parser.add_argument('--jiaminren', type=Path, metavar='DIR', help='a clone')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--case', type=json.loads, help=argparse.SUPPRESS)
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    if args.case:
        print(train_once(args.case))
        return
    if not args.train:
        args.device = 'cpu'  # where the activations of an evaluation are counted, whatever was asked for
    results: dict[str, Any] = {'batch': args.batch, 'size': args.size}
    if args.train:
        results['training'] = measure_training(args)
    else:
        figures = [measure_evaluation(timm.create_model(name, device='cpu'), args.batch, args.size)
                   for name in args.names]
        results['evaluation'] = [
            {'network': name, 'peak_mib': peak, 'nodes_mib': nodes, 'cut_mib': cut}
            for name, (peak, nodes, cut) in zip(args.names, figures, strict=True)]
    record = write_json(args, results)
    print(machine_line(record))
    print(format_table(training_memory_table(record) if args.train else evaluation_memory_table(record)))


if __name__ == '__main__':
    main()
