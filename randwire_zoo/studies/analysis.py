"""What rows of results say together. Tables and pictures take it from here.

Networks of one wiring share what the wiring decides: where wirings are compared, each counts once, with the mean of its
trainings. What takes ten values to say is not said of fewer.
"""
from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from ..architectures import stage_names
from ..graphs import Graph, graphs_sha256
from .measures import depths, edge_betweenness, node_betweenness
from .study import Network, graphs_of

if TYPE_CHECKING:
    import numpy as np

__all__ = ['ENOUGH', 'MEASURES', 'ORDERS', 'Correlation', 'DamageCorrelation', 'Difference', 'Distance',
           'OperationCorrelation', 'Row', 'Variance', 'accuracy', 'band', 'by_series', 'by_wiring', 'correlate',
           'damage_correlation', 'differences', 'distances', 'error_distribution', 'graphs_of_row', 'has_one_wiring',
           'has_wirings_to_come', 'holm', 'learned', 'losses_by_degree', 'mean_interval', 'measure_correlation',
           'operation_correlations', 'operation_means', 'paired_differences', 'pearson', 'spread', 'units', 'variance',
           'width_of', 'wiring_means', 'worth_showing']

Row = dict[str, Any]
MEASURES = ('degree', 'path length', 'clustering', 'betweenness', 'depth', 'edge depth', 'paths', 'peak memory')
ENOUGH = 10  # values that a correlation is worth giving for, or that can be drawn from again and again
ORDERS = 999  # random ones that a correlation is compared with
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


def wiring_means(rows: Iterable[Row], name: str, kind: str = 'measures') -> list[tuple[float, float]]:
    """A measure, or one of the 'proxies', and the accuracy of each wiring of a series: means over its trainings."""
    groups = by_wiring(row for row in rows if name in (row.get(kind) or {})).values()
    return [(statistics.mean(row[kind][name] for row in group), statistics.mean(map(accuracy, group)))
            for group in groups]


def learned(rows: Iterable[Row], classes: int | None) -> list[Row]:
    """Rows of networks that are better than guessing; all where the number of classes is not known."""
    return [row for row in rows if 'detection' in row or not (number := row.get('classes') or classes)
            or accuracy(row) > ABOVE_CHANCE * 100 / number]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation (of a sample), as the paper gives it; two values are no spread, and stand singly."""
    if len(values) < 3:
        return ', '.join(f'{value:.{digits}f}' for value in values) or '–'
    return f'{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}'


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of a mean.

    Of fewer than `ENOUGH` values it is Student's, as what is drawn from a few values cannot leave their range. Of more
    it is the bootstrap's (Efron, 1979), always with the same draws; its percentiles lie as far out as Student's t is
    wider than the normal distribution (Hesterberg, The American Statistician 69, 2015), as they would cover too little
    of ten values otherwise. Of few values of a skewed distribution either holds the mean less often than it says.

    Returns:
        None of fewer than three values, or without spread.
    """
    count = len(values)
    if count < 3 or not _varies(values):
        return None
    import numpy as np
    from scipy.stats import norm, t
    quantile = float(t.ppf(0.975, count - 1))
    if count < ENOUGH:
        mean, half = statistics.mean(values), quantile * statistics.stdev(values) / math.sqrt(count)
        return mean - half, mean + half
    draws = np.random.default_rng(0).integers(count, size=(9999, count))
    tail = float(norm.cdf(-quantile * math.sqrt(count / (count - 1))))
    low, high = np.quantile(np.asarray(values)[draws].mean(1), (tail, 1 - tail))
    return float(low), float(high)


def _varies(values: Sequence[float]) -> bool:
    """Whether values differ by more than rounding."""
    return bool(values) and max(values) - min(values) > 1e-9 * max(map(abs, values))


def _centred(values: Sequence[float]) -> list[float]:
    """What is left of values when their mean is taken off; nothing at all of values that differ by rounding alone."""
    mean = statistics.fmean(values)
    return [value - mean for value in values] if _varies(values) else [0.0] * len(values)


@dataclass(frozen=True)
class Variance:
    """The standard deviations that the accuracy of a series is made of, in points.

    Args:
        wirings: How many wirings there are.
        networks: How many networks.
        between: Of the wirings; None if there is one.
        within: Of the trainings of one wiring.
        ratio: The 95 % interval of the first by the second, from F; exact where all wirings have as many trainings.
        p: Of F: how often wirings that do not differ would seem to differ as much.
    """

    wirings: int
    networks: int
    between: float | None
    within: float
    ratio: tuple[float, float] | None = None
    p: float | None = None


def variance(rows: Sequence[Row]) -> Variance | None:
    """Split the variance of a series: one-way analysis of variance with random effects.

    The mean square within wirings estimates the variance of the trainings, σ²; that between them σ² + n₀ σ_w², where n₀
    is the number of trainings of each (Searle's weighting where they differ). An estimate below 0 is given as 0.

    Returns:
        None where no wiring was trained twice.
    """
    from scipy.stats import f
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
    parts = Variance(count, total, math.sqrt(max(between - within, 0.0) / each), math.sqrt(within))
    if not within:
        return parts
    found = between / within
    distribution = f(count - 1, total - count)
    low, high = (math.sqrt(max(found / float(distribution.ppf(share)) - 1, 0.0) / each) for share in (0.975, 0.025))
    return replace(parts, ratio=(low, high), p=float(distribution.sf(found)))


@dataclass(frozen=True)
class Difference:
    """The difference in mean accuracy of two series, in points, by a t test.

    Args:
        one, other: The two.
        n: How many values each has; of paired ones, how many pairs, twice.
        mean: The first less the second.
        low, high: Its 95 % interval.
        t, df: The statistic and its degrees of freedom.
        p: Two-sided.
    """

    one: str
    other: str
    n: tuple[int, int]
    mean: float
    low: float
    high: float
    t: float
    df: float
    p: float


SHOWN = 8  # series of which a text shows every test between two; a page always does


def _pairs(groups: Mapping[str, Sequence[Row]]) -> list[tuple[str, str]]:
    """Each two series that have two independent accuracies; where a text does not show all, the better one first."""
    values = {series: found for series, rows in groups.items() if len(found := units(rows)) > 1}
    if len(values) > SHOWN:
        values = dict(sorted(values.items(), key=lambda item: -statistics.mean(item[1])))
    return list(combinations(values, 2))


def worth_showing(tested: Sequence[Difference | Distance], groups: Mapping[str, Sequence[Row]]) -> list[bool]:
    """Of each test between two series whether a text shows it: of more than `SHOWN` series, the best with the rest.

    Which is the best is seen in the values that are tested, so that p is corrected for all tests and not for these.
    """
    series = {name for one in tested for name in (one.one, one.other)}
    best = max(series, key=lambda name: statistics.mean(units(groups[name])), default=None)
    return [len(series) <= SHOWN or best in (one.one, one.other) for one in tested]


def differences(groups: Mapping[str, Sequence[Row]]) -> list[Difference]:
    """Compare series by Welch's t test (1947): their variances may differ. Values are those of `units`."""
    from scipy.stats import ttest_ind
    tested = []
    for one, other in _pairs(groups):
        first, second = units(groups[one]), units(groups[other])
        if _varies(first) or _varies(second):
            with warnings.catch_warnings():  # of two of which one has no spread
                warnings.simplefilter('ignore', RuntimeWarning)
                result = ttest_ind(first, second, equal_var=False)
                low, high = result.confidence_interval()
            tested.append(Difference(
                one, other, (len(first), len(second)), statistics.mean(first) - statistics.mean(second), float(low),
                float(high), float(result.statistic), float(result.df), float(result.pvalue)))
    return tested


def paired_differences(groups: Mapping[str, Sequence[Row]]) -> list[Difference]:
    """Compare series at equal seeds, by the t test of pairs: what a seed does to both of them falls out.

    Networks are paired by both seeds; by that of the training alone where one of the two has one wiring. Pairs that
    share a wiring on either side, be it through pairs between them, count once, with their mean; of a series that has
    one wiring it is the training that pairs may share, as in `units`. Where one of the two has one wiring, and all
    wirings of the other were trained with the same seeds, that leaves one value: these two are not compared here.
    """
    import networkx
    from scipy.stats import ttest_1samp
    tested = []
    for one, other in _pairs(groups):
        several = {series: len(by_wiring(groups[series])) > 1 for series in (one, other)}
        names = ('graph_seed', 'training_seed') if all(several.values()) else ('training_seed',)
        both: dict[tuple[int, ...], tuple[list[Row], list[Row]]] = {}
        for place, series in enumerate((one, other)):
            for row in groups[series]:
                both.setdefault(tuple(row[name] for name in names), ([], []))[place].append(row)
        pairs = {seeds: statistics.mean(map(accuracy, first)) - statistics.mean(map(accuracy, second))
                 for seeds, (first, second) in both.items() if first and second}
        shared = networkx.Graph()  # each pair beside what it shares with others
        for seeds in pairs:
            for series, rows in zip((one, other), both[seeds], strict=True):
                name = 'wiring' if several[series] else 'training_seed'
                shared.add_edges_from(((None, seeds), (series, row.get(name))) for row in rows)
        values = [round(statistics.mean(pairs[seeds] for series, seeds in found if series is None), 9)
                  for found in networkx.connected_components(shared)]  # equal ones without their rounding
        if len(values) > 1 and _varies(values):
            result = ttest_1samp(values, 0)
            low, high = result.confidence_interval()
            tested.append(Difference(
                one, other, (len(values), len(values)), statistics.mean(values), float(low), float(high),
                float(result.statistic), float(result.df), float(result.pvalue)))
    return tested


@dataclass(frozen=True)
class Distance:
    """How far apart the distributions of two series' errors are, by the test of Kolmogorov and Smirnov.

    Args:
        one, other: The two.
        n: How many values each has.
        statistic: The largest difference between the two empirical distributions, from 0 to 1.
        p: Two-sided; exact where no two values are equal, and larger than it need be otherwise.
    """

    one: str
    other: str
    n: tuple[int, int]
    statistic: float
    p: float


def distances(groups: Mapping[str, Sequence[Row]]) -> list[Distance]:
    """Compare the distributions of series, as "On Network Design Spaces" does; values are those of `units`."""
    from scipy.stats import ks_2samp
    tested = []
    for one, other in _pairs(groups):
        first, second = units(groups[one]), units(groups[other])
        with warnings.catch_warnings():  # that the smallest statistic's p, which is 1, was rounded to more than 1
            warnings.simplefilter('ignore', RuntimeWarning)
            result = ks_2samp(first, second)
        tested.append(Distance(one, other, (len(first), len(second)), float(result.statistic), float(result.pvalue)))
    return tested


def holm(p: Sequence[float]) -> list[float]:
    """p values of several tests made together, as Holm (1979) corrects them."""
    corrected, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min((len(p) - rank) * p[index], 1.0))
        corrected[index] = largest
    return corrected


def pearson(x: Sequence[float], y: Sequence[float], least: int = ENOUGH) -> float | None:
    """Pearson's correlation; None of fewer than so many values, or where one of the two does not vary."""
    if len(x) < least or not _varies(x) or not _varies(y):
        return None
    return statistics.correlation(x, y)


def _in_random_order(x: Sequence[Sequence[float]], y: Sequence[Sequence[float]], orders: int,
                     rng: np.random.Generator) -> np.ndarray:
    """Pearson's r of deviations from the means of groups, with the second ones of each group in random order."""
    import numpy as np
    whole = np.concatenate(x)
    shuffled = np.concatenate([rng.permuted(np.tile(group, (orders, 1)), axis=1) for group in y], axis=1)
    return shuffled @ whole / math.sqrt(float(np.square(whole).sum() * np.square(shuffled[0]).sum()))


def _permutation_p(true: float, random: np.ndarray) -> float:
    """The share of orders, of random ones and the true one, whose value is as far from 0 as the true one's."""
    as_far = int((abs(random) >= abs(true) - 1e-12).sum())  # the same value may be rounded to another
    return (as_far + 1) / (len(random) + 1)


@dataclass(frozen=True)
class Correlation:
    """How accuracy goes with a number that each wiring has.

    Args:
        wirings: How many wirings: each counts once.
        over_all: r over all of them, which is made of differences between generators too.
        over_all_interval: Its 95 % interval by Fisher's z, where wirings are independent of each other: of one
            generator, or one of each. Those of one generator are more alike than others, so that several of several
            say less than their number.
        without_one: The smallest and the largest r that is left when one generator is left out.
        free_within: How many of the deviations from generators' means are free: the wirings of generators within which
            the number varies, less one for each of these.
        within: r of these deviations; None where fewer are free than of `ENOUGH` wirings of one generator.
        p: How often it is as far from 0 with the accuracies of each generator in random order.
        within_without_one: The smallest and the largest r of deviations that is left when one generator is left out;
            None where it leaves less than two that are free.
    """

    wirings: int
    over_all: float | None
    over_all_interval: tuple[float, float] | None
    without_one: tuple[float, float] | None
    free_within: int
    within: float | None
    p: float | None
    within_without_one: tuple[float, float] | None


def measure_correlation(rows: Iterable[Row], measure: str, kind: str = 'measures', rank: bool = False) -> Correlation:
    """Correlate accuracy with a graph measure, over all wirings that have it and within their series."""
    return correlate({series: points for series, group in by_series(rows).items()
                      if (points := wiring_means(group, measure, kind))}, rank)


def correlate(points: Mapping[str, Sequence[tuple[float, float]]], rank: bool = False,
              orders: int = ORDERS) -> Correlation:
    """Correlate pairs, given by the group that they belong to.

    What is left within groups is tested by a permutation test, which holds however differently the groups spread: an
    interval of Fisher's is of deviations that are all of one distribution.

    Args:
        points: The pairs.
        rank: Spearman's correlation instead of Pearson's: of ranks, over all, or within each group.
        orders: How many random orders of the second values of each group the test takes, always the same ones.
    """
    def ranked(pairs: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
        if not rank or not pairs:
            return pairs
        from scipy.stats import rankdata
        return list(zip(*(map(float, rankdata(side)) for side in zip(*pairs, strict=True)), strict=True))

    def r(groups: Iterable[Sequence[tuple[float, float]]]) -> float | None:
        pairs = ranked([pair for group in groups for pair in group])
        return pearson([pair[0] for pair in pairs], [pair[1] for pair in pairs])

    def interval(value: float | None, count: int) -> tuple[float, float] | None:
        """Fisher's; that of ranks is Fieller's (1957)."""
        if value is None or abs(value) >= 1:
            return None
        half = 1.959964 * math.sqrt((1.06 if rank else 1) / (count - 3))
        return math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)

    def r_within(groups: Sequence[tuple[list[float], list[float]]], least: int) -> float | None:
        """Of deviations, so many of which have to be free: those of two wirings are one, twice, nothing but a sign."""
        x, y = ([value for group in groups for value in group[side]] for side in (0, 1))
        return pearson(x, y, 0) if len(x) - len(groups) >= least else None

    total = sum(map(len, points.values()))
    over_all = r(points.values())
    independent = len(points) == 1 or total == len(points)
    varying = [ranked(group) for group in points.values() if _varies([x for x, _ in group])]
    # A mean of each group was taken off within, where a plain correlation takes off one in all.
    centred = [(_centred([x for x, _ in group]), _centred([y for _, y in group])) for group in varying]
    within, p = r_within(centred, ENOUGH - 1), None
    if within is not None:
        import numpy as np
        x, y = ([group[side] for group in centred] for side in (0, 1))
        p = _permutation_p(within, _in_random_order(x, y, orders, np.random.default_rng(0)))
    return Correlation(
        total, over_all, interval(over_all, total) if independent else None,
        _range(r(group for name, group in points.items() if name != series) for series in points),
        sum(len(x) - 1 for x, _ in centred), within, p, None if within is None else _range(
            r_within(centred[:i] + centred[i + 1:], 2) for i in range(len(centred))))


def _range(values: Iterable[float | None]) -> tuple[float, float] | None:
    """The smallest and the largest, where all are known."""
    found = list(values)
    known = [value for value in found if value is not None]
    return (min(known), max(known)) if known and len(known) == len(found) else None


def width_of(row: Row) -> int | None:
    """C, where it is what tells series of a study apart and not tuned for each of them."""
    return row['channels'] if row['channels'] and row['series'].endswith(f' C={row["channels"]}') else None


def operation_means(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Mean accuracy of each random graph model, by node operation (Figure 6)."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row['node_op'] and row['graph']:
            values.setdefault(row['node_op'], {}).setdefault(row['graph'], []).append(accuracy(row))
    return {operation: {graph: statistics.mean(found) for graph, found in graphs.items()}
            for operation, graphs in values.items()}


@dataclass(frozen=True)
class OperationCorrelation:
    """How accuracy with one node operation goes with that with another.

    Args:
        one, other: The node operations.
        models: Of the means of the random graph models that both have, as in Figure 6.
        wirings: Of the wirings that both have, each with the mean of its trainings.
    """

    one: str
    other: str
    models: Correlation
    wirings: Correlation


def operation_correlations(rows: Sequence[Row]) -> list[OperationCorrelation]:
    """Correlate each two node operations."""
    means = operation_means(rows)
    values: dict[str, dict[tuple[str, Any], float]] = {operation: {} for operation in means}
    for operation, found in values.items():
        for graph in means[operation]:
            same = [row for row in rows if (row['node_op'], row['graph']) == (operation, graph)]
            found.update({(graph, wiring): statistics.mean(map(accuracy, trainings))
                          for wiring, trainings in by_wiring(same).items()})
    correlations = []
    for one, other in combinations(means, 2):
        models = {graph: [(mean, means[other][graph])] for graph, mean in means[one].items() if graph in means[other]}
        wirings: dict[str, list[tuple[float, float]]] = {}
        for key, value in values[one].items():
            if key in values[other]:
                wirings.setdefault(key[0], []).append((value, values[other][key]))
        correlations.append(OperationCorrelation(one, other, correlate(models), correlate(wirings)))
    return correlations


def error_distribution(rows: Iterable[Row]) -> tuple[list[float], list[float]]:
    """The empirical distribution of a population's errors, as in "On Network Design Spaces" (Radosavovic et al., 2019).

    Returns:
        Errors in per cent, ascending, of what `units` gives; and the share of the population that has at most this one.
    """
    errors = sorted(100 - value for value in units(rows))
    return errors, [i / len(errors) for i in range(1, len(errors) + 1)]


def band(count: int, level: float = 0.95) -> float:
    """By how much a whole distribution function may be off that `count` independent values estimate.

    The inequality of Dvoretzky, Kiefer and Wolfowitz with Massart's constant (1990): with this probability the true one
    lies within ± this, everywhere at once.
    """
    return min(math.sqrt(math.log(2 / (1 - level)) / (2 * count)), 1.0)


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


# More is not looked at: a file of results may claim graphs of any size.
LARGEST_GRAPH, MOST_EDGES, MOST_GRAPHS = 256, 8192, 8


def graphs_of_row(row: Row) -> tuple[Graph, ...]:
    """The graphs that a row has, or that its sha256 says this package samples for it; none otherwise."""
    network = Network(**{field.name: row.get(field.name) for field in fields(Network)})  # type: ignore[arg-type]
    nodes = row['kwargs'].get('num_nodes', 32)
    try:
        if row.get('graphs') is not None:
            graphs = tuple(Graph.from_dict(graph) for graph in row['graphs'][:MOST_GRAPHS + 1])
        elif isinstance(nodes, int) and nodes <= LARGEST_GRAPH:  # a row of an earlier release
            graphs = graphs_of(network)
        else:
            return ()
        small = len(graphs) <= MOST_GRAPHS and all(
            graph.num_nodes <= LARGEST_GRAPH and len(graph.edges) <= MOST_EDGES for graph in graphs)
        return graphs if small and graphs_sha256(graphs) == row.get('wiring') else ()
    except (ValueError, TypeError):  # no graphs, or of a random graph model that is not here
        return ()


def has_one_wiring(rows: Sequence[Row], graph_seeds: Iterable[int], named: Container[str] = ()) -> bool:
    """Whether a series' graphs do not depend on the seed.

    Args:
        rows: Of the series.
        graph_seeds: Those that the study asks for. Where all give one wiring it is trained under the first of them, and
            where the study is not done the others may be still to come: what no row has is sampled, if it can be.
        named: Series of which the file of results says so itself. It knows of generators that are not here.
    """
    trained = {row['graph_seed'] for row in rows if row['graph_seed'] is not None}
    if len(by_wiring(rows)) != 1 or not rows[0].get('wiring'):
        return False
    left = set(graph_seeds) - trained
    return rows[0]['series'] in named or (len(trained | left) > 1 and all(
        graphs_of_row({**rows[0], 'graphs': None, 'kwargs': {**rows[0]['kwargs'], 'seed': seed}}) for seed in left))


def has_wirings_to_come(rows: Sequence[Row], graph_seeds: Iterable[int], named: Container[str] = ()) -> bool:
    """Whether a series has one wiring only because its study is not done: then its trainings stand for no others.

    Args:
        rows: Of the series.
        graph_seeds: Those that the study asks for.
        named: Series that have one wiring, as the file of results says.
    """
    seeds = set(graph_seeds)
    return (len(seeds) > 1 and len(by_wiring(rows)) == 1 and bool(rows[0].get('wiring'))
            and not has_one_wiring(rows, seeds, named))


DAMAGE_MEASURES = ('degree', 'betweenness', 'depth')


@dataclass(frozen=True)
class Removal:
    """What was taken away of a wiring's networks.

    Args:
        stage: That it was in.
        node: The node, or the edge's target.
        measures: What it is compared by, as far as the graphs are known: 'degree' is a node's out-degree, or the
            in-degree of an edge's target; 'betweenness' that of the node or edge; 'depth' the nodes on the longest path
            that ends with it.
        loss: In top-1, in points: the mean of the trainings.
    """

    stage: str
    node: Any
    measures: dict[str, float]
    loss: float


def removals(rows: Sequence[Row], kind: str) -> list[Removal]:
    """Those of 'nodes' or 'edges' of a wiring's trainings."""
    losses: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        for *place, loss in row.get('damage', {}).get(kind, ()):
            losses.setdefault(tuple(place), []).append(float(loss))
    graphs = graphs_of_row(rows[0]) if losses else ()
    stages = dict(zip(stage_names(len(graphs)), graphs, strict=True))
    betweenness: dict[str, Any] = {name: node_betweenness(graph) if kind == 'nodes' else edge_betweenness(graph)
                                   for name, graph in stages.items()}
    depth = {name: depths(graph) for name, graph in stages.items()}
    found = []
    for (stage, *what, degree), values in losses.items():
        measures = {'degree': float(degree)}
        with suppress(KeyError, IndexError, TypeError):  # a file of results may name any node
            measures |= {'betweenness': betweenness[stage][what[0] if kind == 'nodes' else tuple(what)],
                         'depth': float(depth[stage][what[-1]])}
        found.append(Removal(stage, what[-1], measures, statistics.fmean(values)))
    return found


def _by_node(found: Iterable[Removal]) -> list[Removal]:
    """Edges that end in one node as one, with their mean loss."""
    groups: dict[tuple[str, Any], list[Removal]] = {}
    for removal in found:
        groups.setdefault((removal.stage, removal.node), []).append(removal)
    return [replace(group[0], loss=statistics.fmean(removal.loss for removal in group)) for group in groups.values()]


@dataclass(frozen=True)
class DamageCorrelation:
    """How the losses of removals go with a measure of what was removed.

    Args:
        values: Pearson's r of each wiring that has enough removals, within its stages.
        p: How often the mean of these is as far from 0 in random order of each stage's losses; None without any.
    """

    values: list[float]
    p: float | None


def damage_correlation(rows: Iterable[Row], kind: str, measure: str, orders: int = ORDERS) -> DamageCorrelation:
    """Correlate within each stage of each wiring of a series, and test the mean of the wirings.

    Trainings of one wiring lose alike, so that what is compared is the mean loss of each removal over them. So do edges
    with one target, which have its in-degree and its depth: for these measures they count once, with their mean. Stages
    lose differently, and their graphs differ, for other reasons: r is of deviations from each stage's means. The test
    is a permutation test: in each stage of each wiring the losses are handed out to the removals in random order,
    `orders` times.
    """
    import numpy as np
    rng, values, random = np.random.default_rng(0), [], []
    for trainings in by_wiring(rows).values():
        stages: dict[str, list[Removal]] = {}
        each = removals(trainings, kind)
        for removal in each if measure == 'betweenness' else _by_node(each):
            stages.setdefault(removal.stage, []).append(removal)
        known = [removal for found in stages.values() for removal in found]
        if not all(measure in removal.measures for removal in known):
            continue
        x = [_centred([removal.measures[measure] for removal in found]) for found in stages.values()]
        y = [_centred([removal.loss for removal in found]) for found in stages.values()]
        r = pearson([value for found in x for value in found], [value for found in y for value in found])
        if r is not None:
            values.append(r)
            random.append(_in_random_order(x, y, orders, rng))
    if not values:
        return DamageCorrelation([], None)
    return DamageCorrelation(values, _permutation_p(statistics.mean(values), np.mean(random, axis=0)))
