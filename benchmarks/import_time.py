"""What the autoload hook adds to importing torch and detectron2, and our models to importing timm.

Every figure is CPU time of a fresh interpreter, which other work on the machine disturbs less than wall time does. The
two sides of a comparison take turns, and the difference is the median over the pairs. As the imports of torch and timm
themselves vary by more than what is added to them, that part is also timed alone, in an interpreter that has the rest.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from common import add_json_argument, write_json
from tables import format_table, import_table, machine_line

TIMED = 'import time; start = time.process_time(); {}; print(time.process_time() - start)'
OFF = {'TORCH_DEVICE_BACKEND_AUTOLOAD': '0'}
ON = {'TORCH_DEVICE_BACKEND_AUTOLOAD': '1'}
PAIRS = [
    ('import torch: hook off, on', ('import torch', OFF), ('import torch', ON)),
    ('import timm, import randwire_zoo.models (hook off)', ('import timm', OFF), ('import randwire_zoo.models', OFF)),
]
if find_spec('detectron2') is not None:
    DETECTRON2 = 'import detectron2.checkpoint, detectron2.data, detectron2.modeling'
    PAIRS.append(('import detectron2: hook off, on', (DETECTRON2, OFF), (DETECTRON2, ON)))
ALONE = [
    ('alone: torch reads all entry points, calls ours', 'import torch', 'torch._import_device_backends()'),
    ('alone: our entry point', 'import torch', 'import _randwire_zoo_autoload; _randwire_zoo_autoload.install()'),
    ('alone: import randwire_zoo.models once timm is there', 'import timm', 'import randwire_zoo.models'),
]


def seconds(statement: str, variables: dict[str, str], before: str = 'pass') -> float:
    """CPU seconds of a statement in a fresh interpreter."""
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONDONTWRITEBYTECODE'}
    code = f'{before}; {TIMED.format(statement)}'
    return float(subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], check=True, stdout=subprocess.PIPE, text=True,
        env={**env, **variables}).stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', type=int, default=7, help='interpreters per side (default: 7)')
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    pairs = {}
    for name, first, second in PAIRS:
        seconds(*first), seconds(*second)  # files into the page cache, bytecode onto the disk
        pairs[name] = [(seconds(*first), seconds(*second)) for _ in range(args.pairs)]
    alone = {name: [seconds(statement, OFF, before) for _ in range(args.pairs)] for name, before, statement in ALONE}
    record = write_json(args, {'pairs': pairs, 'alone': alone})
    print(machine_line(record))
    print(format_table(import_table(record)))


if __name__ == '__main__':
    main()
