"""Peak memory of activations in evaluation, and of a training step.

    python benchmarks/memory.py [--batch 8 --size 224] [NAME …]
    python benchmarks/memory.py --train --seungwonpark CLONE --jiaminren CLONE [NAME …]

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
from pathlib import Path
from typing import Any

import timm
import torch
from common import describe_machine
from tabulate import tabulate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from randwire_zoo import use_kernels
from randwire_zoo.network import Node, Stage


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
        peer = {'seungwonpark': seungwonpark_network, 'jiaminren': jiaminren_network}[case['peer']]
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


def measure_training(args: argparse.Namespace) -> None:
    """A table of all ways to train each network, each in its own process."""
    for network in args.names:
        ways: list[tuple[str, str, bool, bool]] = [(network, '', True, False)]
        if args.device == 'cpu':
            ways.append((f'{network}, native', '', True, True))
        for peer in ('seungwonpark', 'jiaminren'):
            if getattr(args, peer) and (peer != 'seungwonpark' or 'small' in network):
                ways += [(peer, peer, False, False), (f'{peer}, channels_last', peer, True, False)]
        rows = []
        for label, peer, channels_last, native in ways:
            case = {'network': network, 'peer': peer, 'clone': str(getattr(args, peer)) if peer else '',
                    'channels_last': channels_last, 'native': native, 'batch': args.batch, 'size': args.size,
                    'device': args.device}
            done = subprocess.run([sys.executable, __file__, '--case', json.dumps(case)], check=True,
                                  capture_output=True, text=True, env={**os.environ, 'MALLOC_ARENA_MAX': '1'})
            rows.append((label, float(done.stdout.split()[-1])))
        least = min((mib for label, mib in rows if not label.startswith(network)), default=float('nan'))
        print(tabulate([(label, mib, mib / least) for label, mib in rows], floatfmt='.2f',
                       headers=('training step', 'peak growth (MiB)', 'against the leanest peer')), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', default=['randwire_ws_small_s1', 'randwire_ws_c109'])
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--train', action='store_true')
    parser.add_argument('--seungwonpark', type=Path, metavar='DIR', help='a clone; small regime only')
    parser.add_argument('--jiaminren', type=Path, metavar='DIR', help='a clone')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--case', type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(train_once(args.case))
        return
    print(describe_machine())
    print(f'{"training" if args.train else "eval"}, batch {args.batch}, {args.size} px, fp32')
    if args.train:
        measure_training(args)
        return
    rows = []
    for name in args.names:
        peak, nodes, cut = measure_evaluation(timm.create_model(name, device='cpu'), args.batch, args.size)
        rows.append((name, peak, nodes, cut, peak / nodes, peak / cut))
    print(tabulate(rows, floatfmt='.2f', headers=(
        'network', 'peak of activations (MiB)', 'all node outputs (MiB)', 'widest cut (MiB)', 'peak / all',
        'peak / widest cut')))


if __name__ == '__main__':
    main()
