"""What the benchmarks share: paired timing, and the file that a run leaves: raw values, and where they come from."""
from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from randwire_zoo.files import write_atomically
from randwire_zoo.provenance import git_environment, provenance

__all__ = ['add_json_argument', 'check_same', 'claim', 'compiler', 'describe', 'paired_seconds', 'ratio', 'to_json',
           'write_json']

ROOT = Path(__file__).resolve().parents[1]
#: Instruction sets that decide how fast products are.
INSTRUCTIONS = ('avx2', 'fma', 'avx512f', 'avx512_bf16', 'avx512_fp16', 'amx_tile', 'amx_bf16', 'asimd', 'bf16', 'sve')


def describe(args: argparse.Namespace | None = None, device: str | None = 'cpu') -> dict[str, Any]:
    """Where a measurement comes from: the package's provenance (versions, processor, threads, commit, date), the
    command, and what else of the machine decides how fast it is.

    Args:
        args: The arguments of the script. Folders among them are no one else's and go, but for the commit of the clone
            that lies there.
        device: What was measured on, for scripts that have no `--device`; None for what commands choose by themselves.
    """
    values = vars(args or argparse.Namespace())
    folders = {name: Path(value) for name, value in values.items() if isinstance(value, Path) or (
        isinstance(value, str) and os.path.isabs(value))}  # what may be a file or a name is text
    command = shlex.join(['python', f'benchmarks/{Path(sys.argv[0]).name}', *sys.argv[1:]])
    for name, folder in sorted(folders.items(), key=lambda item: len(str(item[1])), reverse=True):  # /a/b before /a
        command = command.replace(shlex.quote(str(folder)), folder.name if folder.suffix else name.upper())
    found = provenance(values.get('device', device))
    del found['kernels']  # a benchmark says so of every run
    meminfo = Path('/proc/meminfo')
    memory = int(meminfo.read_text().split()[1]) / 2 ** 20 if meminfo.is_file() else None  # kB, MemTotal
    return {
        'command': command, **found,
        # What one benchmark writes into docs does not concern the next one.
        'changed_since_commit': bool(_git('status', '--porcelain', '--', '.', ':(exclude)docs')),
        'clones': {name: _git('rev-parse', 'HEAD', folder=folder) for name, folder in folders.items()
                   if folder.is_dir()},
        'instructions': _instructions(), 'memory_gib': memory and round(memory, 1),
        'system': f'{platform.system()} {platform.machine()}', 'compiler': _compiler_version(),
        'numpy': version('numpy'), 'networkx': version('networkx')}


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """`--json FILE`."""
    parser.add_argument('--json', type=Path, metavar='FILE',
                        help='write every single value there, with machine, versions, commit, date and command')


def write_json(args: argparse.Namespace, results: Any, made: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What was measured together with where it comes from; written to `--json` if that was given.

    Args:
        args: Of the script.
        results: What was measured.
        made: What `describe` said when the measurement began; by default what it says now.
    """
    record = {**(describe(args) if made is None else made), 'results': results}
    if args.json:
        write_atomically(args.json, to_json(record) + '\n')
    return record


def check_same(results: Path, kept: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> None:
    """Refuse to take results that were made with other settings for those that are asked for.

    Args:
        results: Where they are.
        kept: What they were made with; None if nothing says it.
        wanted: All that decides the results.

    Raises:
        SystemExit: naming what differs.
    """
    if kept is None:
        raise SystemExit(f'{results}: nothing says what this was made with; give another --output')
    wanted = json.loads(json.dumps(wanted))
    for name in (*wanted, *kept):
        if kept.get(name) != wanted.get(name):
            raise SystemExit(f'{results} was made with {name} {kept.get(name)!r}, not {wanted.get(name)!r}; give '
                             'another --output')


def claim(results: Path, file: Path, wanted: Mapping[str, Any]) -> None:
    """Keep in a file what results are made with; where there are some already, see that it is the same.

    Raises:
        SystemExit: naming what differs.
    """
    if file.is_file():
        check_same(results, json.loads(file.read_text(encoding='utf-8')), wanted)
    elif results.is_dir() and any(results.iterdir()):
        check_same(results, None, wanted)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(wanted, indent=1) + '\n')


def to_json(value: Any, indent: int = 0) -> str:
    """JSON in which numbers have six digits, and what fits has one line, as have lists of numbers."""
    value = _rounded(value) if not indent else value
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or len(line) + indent <= 110 or (
            isinstance(value, list) and not any(isinstance(item, (dict, list, str)) for item in value)):
        return line
    inner = indent + 1
    lines = ([f'{" " * inner}{json.dumps(name, ensure_ascii=False)}: {to_json(item, inner)}'
              for name, item in value.items()] if isinstance(value, dict) else
             [f'{" " * inner}{to_json(item, inner)}' for item in value])
    first, last = '{}' if isinstance(value, dict) else '[]'
    return f'{first}\n' + ',\n'.join(lines) + f'\n{" " * indent}{last}'


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f'{value:.6g}')
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def _git(*arguments: str, folder: Path = ROOT) -> str | None:
    try:
        done = subprocess.run(['git', *arguments], cwd=folder, env=git_environment(), capture_output=True, text=True)
    except OSError:  # no git
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _instructions() -> list[str]:
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    flags = next((line.split(':', 1)[1].split() for line in lines if line.startswith(('flags', 'Features'))), [])
    return [name for name in INSTRUCTIONS if name in flags]


def compiler() -> list[str]:
    """The command of the C++ compiler, as the kernels find it."""
    return shlex.split(os.environ.get('CXX', '')) or ['c++']


def _compiler_version() -> str | None:
    try:
        return subprocess.run([*compiler(), '--version'], check=True, capture_output=True,
                              text=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError):
        return None


def paired_seconds(
        runs: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2,
        clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time the runs in turn, A B C A B C …, so that a drift of the machine's speed meets all of them alike."""
    for _ in range(warmup):
        for run in runs.values():
            run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # or the first call that is timed waits for the ones before it
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(clock() - start)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median, over the rounds, of how many times faster the second is than the first."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
