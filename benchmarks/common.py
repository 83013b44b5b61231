"""What the benchmarks share: paired timing, and a line about the machine."""
from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

__all__ = ['describe_machine', 'paired_seconds', 'ratio']


def describe_machine() -> str:
    """One line on processor, threads, device and versions, to stand under every table."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file():
        names = [line.split(':', 1)[1].strip() for line in cpuinfo.read_text().splitlines()
                 if line.startswith('model name')]
        cpu = f'{len(names)} × {names[0]}' if names else cpu
    gpu = f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''
    return (f'{cpu}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}{gpu}, '
            f'torch {torch.__version__}, Python {platform.python_version()}')


def paired_seconds(
        runs: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2,
) -> dict[str, list[float]]:
    """Time the runs in turn, A B C A B C …, so that a drift of the machine's speed meets all of them alike."""
    for _ in range(warmup):
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median, over the rounds, of how many times faster the second is than the first."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
