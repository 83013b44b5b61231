"""Freezing: sample the graphs of every registered name and write them, or compare them with the written ones."""
from __future__ import annotations

import json
from pathlib import Path

from .architectures import ARCHITECTURES, Architecture, sample_architecture
from .files import write_atomically
from .frozen import FOLDER, read_graphs
from .graphs import graphs_sha256

__all__ = ['check_frozen', 'write_frozen']


def _document(architecture: Architecture) -> str:
    graphs = sample_architecture(architecture)
    head = {'graph': architecture.graph, 'seed': architecture.seed, 'sha256': graphs_sha256(graphs)}
    stages = ',\n'.join(f'  {json.dumps(graph.to_dict(), separators=(",", ":"))}' for graph in graphs)
    return json.dumps(head)[:-1] + f', "stages": [\n{stages}\n]}}\n'


def write_frozen(folder: Path = FOLDER) -> list[Path]:
    """Sample and write the graphs of every registered name that has no file yet; return the new files.

    An existing file is never rewritten: frozen means frozen.
    """
    written = []
    for name, architecture in ARCHITECTURES.items():
        path = folder / f'{name}.json'
        if not path.exists():
            write_atomically(path, _document(architecture))
            written.append(path)
    return written


def check_frozen(folder: Path = FOLDER) -> list[str]:
    """Sample the graphs of every registered name again with the installed networkx and compare.

    Returns:
        One line per name whose graphs differ, are missing or cannot be read, and one per file that belongs to no
        name; empty where all agree.
    """
    problems = []
    for name, architecture in ARCHITECTURES.items():
        try:
            frozen = read_graphs(folder / f'{name}.json')
        except (OSError, ValueError) as error:
            problems.append(f'{name}: {error}')
            continue
        sampled = sample_architecture(architecture)
        if len(frozen) != len(sampled):
            problems.append(f'{name}: {len(frozen)} graphs are frozen, but {len(sampled)} sampled')
        for stage, (old, new) in enumerate(zip(frozen, sampled, strict=False), start=1):
            if old != new:
                problems.append(
                    f'{name}: graph {stage} is frozen as {old.sha256[:12]}, but sampled as {new.sha256[:12]}')
    problems += [f'{path.name}: no model of this name is registered'
                 for path in sorted(folder.glob('*.json')) if path.stem not in ARCHITECTURES]
    return problems
