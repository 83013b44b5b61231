"""How long one waits for the first result: native kernels and torch.compile, each in a fresh process with empty caches.

    python benchmarks/compile_time.py [--network randwire_ws_c109 --rounds 1 --json FILE]

Importing and making the network do not count; the first forward pass (batch 8, 224 pixels) does.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from common import add_json_argument, write_json
from tables import compile_table, format_table, machine_line

BEFORE = """
import sys, time, timm, torch
from randwire_zoo import deploy, use_kernels
model = timm.create_model(sys.argv[1]).eval()
images = torch.randn(8, 3, 224, 224)
start = time.perf_counter()
with torch.inference_mode():
    {}
print(time.perf_counter() - start)
"""
WAYS = {
    'eager': 'model(images)',
    'native kernels, which are built once for all networks': "use_kernels('native'); model(images)",
    '`torch.compile(deploy(model))`': 'torch.compile(deploy(model))(images)',
    '`torch.compile(model)`': 'torch.compile(model)(images)',
}


def first_result(network: str, statement: str) -> float:
    """Seconds, in a process of its own with caches of its own."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', BEFORE.format(statement), network], check=True,
            stdout=subprocess.PIPE, text=True,
            env={**os.environ, 'RANDWIRE_ZOO_CACHE': folder, 'TORCHINDUCTOR_CACHE_DIR': folder})
    return float(done.stdout.split()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', default='randwire_ws_c109', help='default: %(default)s')
    parser.add_argument('--rounds', type=int, default=1)
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    record = write_json(args, {'network': args.network, 'seconds': {
        way: [first_result(args.network, statement) for _ in range(args.rounds)] for way, statement in WAYS.items()}})
    print(machine_line(record))
    print(format_table(compile_table(record)))


if __name__ == '__main__':
    main()
