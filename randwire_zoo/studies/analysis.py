"""What rows of results say together: means, correlations, losses by degree. Tables and pictures take it from here."""
from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ['MEASURES', 'Row', 'accuracy', 'by_series', 'losses_by_degree', 'measure_correlation',
           'operation_correlation', 'operation_means', 'pearson', 'spread']

Row = dict[str, Any]
MEASURES = ('degree', 'path length', 'clustering', 'depth')


def accuracy(row: Row) -> float:
    """Top-1, or AP of a detector."""
    return float(row['detection']['AP'] if 'detection' in row else row['top1'])


def by_series(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by the series that they are instances of."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row['series'], []).append(row)
    return groups


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation (of a sample), as the paper gives it."""
    if not values:
        return '–'
    mean = f'{statistics.mean(values):.{digits}f}'
    return f'{mean} ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else mean


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's correlation; None where it has no meaning."""
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return statistics.correlation(x, y)


def measure_correlation(rows: Iterable[Row], measure: str) -> float | None:
    """Correlation of accuracy with a graph measure, over all networks that have it."""
    measured = [row for row in rows if measure in (row.get('measures') or {})]
    return pearson([row['measures'][measure] for row in measured], [accuracy(row) for row in measured])


def operation_means(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Mean accuracy of each random graph model, by node operation (Figure 6)."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row['node_op'] and row['graph']:
            values.setdefault(row['node_op'], {}).setdefault(row['graph'], []).append(accuracy(row))
    return {operation: {graph: statistics.mean(found) for graph, found in graphs.items()}
            for operation, graphs in values.items()}


def operation_correlation(one: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    """Correlation of two node operations' means, over the random graph models that both have."""
    both = [graph for graph in one if graph in other]
    return pearson([one[graph] for graph in both], [other[graph] for graph in both])


def losses_by_degree(rows: Iterable[Row], kind: str) -> dict[int, list[float]]:
    """Losses in accuracy of all removals, in points, by degree in rising order (Figure 5).

    Args:
        rows: Rows with 'damage'; others are passed over.
        kind: 'nodes', by their out-degree, or 'edges', by their target's in-degree.
    """
    losses: dict[int, list[float]] = {}
    for row in rows:
        for *_, degree, loss in row.get('damage', {}).get(kind, ()):
            losses.setdefault(degree, []).append(loss)
    return dict(sorted(losses.items()))
