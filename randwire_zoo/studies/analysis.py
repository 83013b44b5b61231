"""What rows of results say together. Tables and pictures take it from here.

Networks of one wiring share what the wiring decides: where wirings are compared, each counts once, with the mean of its
trainings. What takes ten values to say is not said of fewer.
"""
from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

__all__ = ['ENOUGH', 'MEASURES', 'Correlation', 'Difference', 'Row', 'Variance', 'accuracy', 'by_series', 'by_wiring',
           'correlate', 'differences', 'error_distribution', 'holm', 'learned', 'losses_by_degree',
           'measure_correlation', 'network_correlations', 'operation_correlation', 'operation_means', 'pearson',
           'spread', 'units', 'variance']

Row = dict[str, Any]
MEASURES = ('degree', 'path length', 'clustering', 'depth')
ENOUGH = 10  # values that a correlation is worth giving for
ABOVE_CHANCE = 1.2  # times the accuracy of guessing: what has less has not begun to learn


def accuracy(row: Row) -> float:
    """Top-1, or AP of a detector."""
    return float(row['detection']['AP'] if 'detection' in row else row['top1'])


def by_series(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by the series that they are instances of."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row['series'], []).append(row)
    return groups


def by_wiring(rows: Iterable[Row]) -> dict[Any, list[Row]]:
    """Rows of a series by the sha256 of their graphs; all together for a model that is no random one."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.get('wiring'), []).append(row)
    return groups


def units(rows: Iterable[Row]) -> list[float]:
    """The accuracies of a series that are independent of each other.

    One for each wiring, the mean of its trainings; where there is one wiring, those of its trainings.
    """
    wirings = list(by_wiring(rows).values())
    if len(wirings) == 1:
        return [accuracy(row) for row in wirings[0]]
    return [statistics.mean(map(accuracy, group)) for group in wirings]


def learned(rows: Iterable[Row], classes: int | None) -> list[Row]:
    """Rows of networks that are better than guessing; all where the number of classes is not known."""
    return [row for row in rows if 'detection' in row or not (number := row.get('classes') or classes)
            or accuracy(row) > ABOVE_CHANCE * 100 / number]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation (of a sample), as the paper gives it; two values are no spread, and stand singly."""
    if len(values) < 3:
        return ', '.join(f'{value:.{digits}f}' for value in values) or '–'
    return f'{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}'


@dataclass(frozen=True)
class Variance:
    """The standard deviations that the accuracy of a series is made of, in points.

    Args:
        wirings: How many wirings there are.
        networks: How many networks.
        between: Of the wirings; None if there is one.
        within: Of the trainings of one wiring.
    """

    wirings: int
    networks: int
    between: float | None
    within: float


def variance(rows: Sequence[Row]) -> Variance | None:
    """Split the variance of a series: one-way analysis of variance with random effects.

    The mean square within wirings estimates the variance of the trainings, σ²; that between them σ² + n₀ σ_w², where n₀
    is the number of trainings of each (Searle's weighting where they differ). An estimate below 0 is given as 0.

    Returns:
        None where no wiring was trained twice.
    """
    groups = [[accuracy(row) for row in group] for group in by_wiring(rows).values()]
    total, count = sum(map(len, groups)), len(groups)
    if total == count:
        return None
    means = [statistics.mean(group) for group in groups]
    within = sum((value - mean) ** 2 for group, mean in zip(groups, means, strict=True) for value in group) / (
        total - count)
    if count == 1:
        return Variance(count, total, None, math.sqrt(within))
    grand = sum(map(sum, groups)) / total
    between = sum(len(group) * (mean - grand) ** 2 for group, mean in zip(groups, means, strict=True)) / (count - 1)
    each = (total - sum(len(group) ** 2 for group in groups) / total) / (count - 1)
    return Variance(count, total, math.sqrt(max(between - within, 0.0) / each), math.sqrt(within))


@dataclass(frozen=True)
class Difference:
    """The difference in mean accuracy of two series, in points, by Welch's t test (1947): variances may differ.

    Args:
        one, other: The two.
        mean: The first less the second.
        low, high: Its 95 % interval.
        t, df: Welch's statistic and its degrees of freedom.
        p: Two-sided.
    """

    one: str
    other: str
    mean: float
    low: float
    high: float
    t: float
    df: float
    p: float


def differences(groups: Mapping[str, Sequence[Row]], every: int = 6) -> list[Difference]:
    """Compare each two series that have two independent accuracies; of more than `every`, the best with the rest."""
    from scipy.stats import ttest_ind
    values = {series: found for series, rows in groups.items() if len(found := units(rows)) > 1}
    pairs = list(combinations(values, 2))
    if len(values) > every:
        best = max(values, key=lambda series: statistics.mean(values[series]))
        pairs = [(best, series) for series in values if series != best]
    tested = []
    for one, other in pairs:
        if len(set(values[one])) > 1 or len(set(values[other])) > 1:
            with warnings.catch_warnings():  # of two of which one has no spread
                warnings.simplefilter('ignore', RuntimeWarning)
                result = ttest_ind(values[one], values[other], equal_var=False)
                low, high = result.confidence_interval()
            tested.append(Difference(
                one, other, statistics.mean(values[one]) - statistics.mean(values[other]), float(low), float(high),
                float(result.statistic), float(result.df), float(result.pvalue)))
    return tested


def holm(p: Sequence[float]) -> list[float]:
    """p values of several tests made together, as Holm (1979) corrects them."""
    corrected, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min((len(p) - rank) * p[index], 1.0))
        corrected[index] = largest
    return corrected


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's correlation; None of fewer than `ENOUGH` values, or where one of the two does not vary."""
    if len(x) < ENOUGH or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return statistics.correlation(x, y)


@dataclass(frozen=True)
class Correlation:
    """How accuracy goes with a graph measure.

    Args:
        wirings: How many wirings: each counts once.
        over_all: r over all of them, which is made of differences between generators too.
        without_one: The smallest and the largest r that is left when one generator is left out.
        wirings_within: How many wirings are of generators within which the measure varies.
        within: r of what is left when each generator's means are taken off; its 95 % interval by Fisher's z.
        low, high: That.
    """

    wirings: int
    over_all: float | None
    without_one: tuple[float, float] | None
    wirings_within: int
    within: float | None
    low: float | None
    high: float | None


def measure_correlation(rows: Iterable[Row], measure: str) -> Correlation:
    """Correlate accuracy with a graph measure, over all wirings that have it and within their series."""
    points: dict[str, list[tuple[float, float]]] = {}
    for series, group in by_series(rows).items():
        for same in by_wiring(row for row in group if measure in (row.get('measures') or {})).values():
            points.setdefault(series, []).append(
                (same[0]['measures'][measure], statistics.mean(map(accuracy, same))))
    return correlate(points)


def correlate(points: Mapping[str, Sequence[tuple[float, float]]]) -> Correlation:
    """Correlate pairs, given by the group that they belong to."""
    def r(groups: Iterable[Sequence[tuple[float, float]]]) -> float | None:
        pairs = [pair for group in groups for pair in group]
        return pearson([pair[0] for pair in pairs], [pair[1] for pair in pairs])

    left = [r(group for name, group in points.items() if name != series) for series in points]
    known = [value for value in left if value is not None]
    varying = [group for group in points.values() if len({pair[0] for pair in group}) > 1]
    centred = [[(x - statistics.mean(pair[0] for pair in group), y - statistics.mean(pair[1] for pair in group))
                for x, y in group] for group in varying]
    count, within = sum(map(len, centred)), r(centred)
    low = high = None
    if within is not None and abs(within) < 1:
        # A mean of each group was taken off, where a plain correlation takes off one in all. Groups have two or more.
        half = 1.959964 / math.sqrt(count - len(centred) - 2)
        low, high = math.tanh(math.atanh(within) - half), math.tanh(math.atanh(within) + half)
    return Correlation(sum(map(len, points.values())), r(points.values()),
                       (min(known), max(known)) if known and len(known) == len(left) else None,
                       count, within, low, high)


def operation_means(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Mean accuracy of each random graph model, by node operation (Figure 6)."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row['node_op'] and row['graph']:
            values.setdefault(row['node_op'], {}).setdefault(row['graph'], []).append(accuracy(row))
    return {operation: {graph: statistics.mean(found) for graph, found in graphs.items()}
            for operation, graphs in values.items()}


def operation_correlation(one: Mapping[str, float], other: Mapping[str, float]) -> tuple[int, float | None]:
    """How many random graph models two node operations share, and the correlation of their means over those."""
    both = [graph for graph in one if graph in other]
    return len(both), pearson([one[graph] for graph in both], [other[graph] for graph in both])


def error_distribution(rows: Iterable[Row]) -> tuple[list[float], list[float]]:
    """The empirical distribution of a population's errors, as in "On Network Design Spaces" (Radosavovic et al., 2019).

    Returns:
        Top-1 errors in per cent, ascending, and the share of the networks that have at most this error.
    """
    errors = sorted(100 - accuracy(row) for row in rows)
    return errors, [i / len(errors) for i in range(1, len(errors) + 1)]


def losses_by_degree(row: Row, kind: str) -> dict[int, list[float]]:
    """Losses in accuracy of a network's removals, in points, by degree in rising order (Figure 5).

    Networks are averaged each for itself before they are averaged with others: removals within one are no independent
    trials, and networks have different numbers of them.

    Args:
        row: A row; without 'damage' it has none.
        kind: 'nodes', by their out-degree, or 'edges', by their target's in-degree.
    """
    losses: dict[int, list[float]] = {}
    for *_, degree, loss in row.get('damage', {}).get(kind, ()):
        losses.setdefault(degree, []).append(loss)
    return dict(sorted(losses.items()))


def network_correlations(rows: Iterable[Row], kind: str) -> list[float]:
    """Of each network that has them, the correlation of its removals' losses with their degrees."""
    found = []
    for row in rows:
        pairs = [(degree, loss) for degree, losses in losses_by_degree(row, kind).items() for loss in losses]
        r = pearson([float(pair[0]) for pair in pairs], [pair[1] for pair in pairs])
        if r is not None:
            found.append(r)
    return found
