"""The frozen graphs of every registered model name, one JSON file each.

A registered name reads its graphs from here and never from a sampler, so that a checkpoint keeps its meaning whatever
networkx does. `randwire-zoo freeze --check` samples all of them again and compares.
"""
from __future__ import annotations

from functools import cache
from pathlib import Path

from ..files import read_json
from ..graphs import Graph, check_graphs

__all__ = ['FOLDER', 'frozen_names', 'load_graphs', 'read_graphs']

FOLDER = Path(__file__).parent


def frozen_names() -> list[str]:
    """The names that have a file of graphs, sorted."""
    return sorted(path.stem for path in FOLDER.glob('*.json'))


@cache
def load_graphs(name: str) -> tuple[Graph, ...]:
    """Read the graphs of a registered name, one per random stage, first stage first.

    Raises:
        ValueError: if the name has no frozen graphs, or its file does not match the sha256 that it records.
    """
    path = FOLDER / f'{name}.json'
    if not path.is_file():
        raise ValueError(f'no frozen graphs for {name!r}; there are {", ".join(frozen_names())}')
    return read_graphs(path)


def read_graphs(path: Path) -> tuple[Graph, ...]:
    """Read a file of frozen graphs.

    Raises:
        ValueError: if it is no such file, or does not match the sha256 that it records.
        OSError: if it cannot be read.
    """
    try:
        data = read_json(path)
        recorded, stages = data['sha256'], list(data['stages'])
        graphs = tuple(Graph.from_dict(stage) for stage in stages)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path.name} is no file of frozen graphs: {error}') from error
    check_graphs(graphs, recorded, path.name)
    return graphs
