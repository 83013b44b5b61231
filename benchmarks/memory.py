"""Peak memory of activations in eval mode, against the sum of all node outputs.

    python benchmarks/memory.py [--batch 8 --size 224] [NAME …]

Every storage that an operator allocates is counted from its birth to its death, so the figure is exact and the same
on every machine.
"""
from __future__ import annotations

import argparse
import weakref
from typing import Any

import timm
import torch
from common import describe_machine
from tabulate import tabulate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from randwire_zoo.network import Node


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


def measure(name: str, batch: int, size: int) -> tuple[str, str, str, str]:
    """Peak of live activations and the sum of all node outputs, in MiB, for one network."""
    model = timm.create_model(name, device='cpu').eval()
    node_bytes = 0

    def count(module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
        nonlocal node_bytes
        node_bytes += output.nbytes

    for module in model.modules():
        if isinstance(module, Node):
            module.register_forward_hook(count)
    images = torch.randn(batch, 3, size, size)
    with torch.no_grad(), LiveBytes() as counter:
        model(images)
    return name, f'{counter.peak / 2**20:.1f}', f'{node_bytes / 2**20:.1f}', f'{counter.peak / node_bytes:.2f}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', default=['randwire_ws_small_s1', 'randwire_ws_c109'])
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224)
    args = parser.parse_args()
    print(describe_machine())
    print(f'eval, batch {args.batch}, {args.size} px, fp32')
    print(tabulate([measure(name, args.batch, args.size) for name in args.names],
                   headers=('network', 'peak of activations (MiB)', 'all node outputs (MiB)', 'ratio')))


if __name__ == '__main__':
    main()
