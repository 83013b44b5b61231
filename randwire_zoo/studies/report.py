"""What a study found: tables, first that of mean ± standard deviation over all networks, and one page with pictures.

A file of results is data: nothing that it names is imported or run.
"""
from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..training.recipes import load_recipe, recipe_names
from .analysis import (
    DAMAGE_MEASURES,
    ENOUGH,
    MEASURES,
    ORDERS,
    Correlation,
    Difference,
    Distance,
    Row,
    by_series,
    damage_correlation,
    differences,
    distances,
    has_one_wiring,
    has_wirings_to_come,
    holm,
    learned,
    losses_by_degree,
    mean_interval,
    measure_correlation,
    operation_correlations,
    paired_differences,
    spread,
    units,
    variance,
    width_of,
    worth_showing,
)
from .page import Report, Table, interval_text, made_with, p_text, printable, write_page
from .plots import draw_pictures
from .proxies import PROXIES
from .results import load_results

__all__ = ['report_table', 'write_html']

# Degrees that share a column of the tables of damage: each from its number up to the next one.
DEGREES = (0, 1, 2, 3, 4, 5, 7, 10)


@dataclass(frozen=True)
class _Study:
    """A file of results, ready to be shown.

    Args:
        title: Of the study.
        spec: Its keys.
        rows: In the order of the study, as networks end in any order.
        one_wiring: Series whose graphs do not depend on the seed.
        to_come: Series of which one wiring is there so far, which stands for no others.
        summary, problems, made: Sentences: on the whole, on what is wrong with the file, on what it was made with.
    """

    title: str
    spec: dict[str, Any]
    rows: list[Row]
    one_wiring: list[str]
    to_come: list[str]
    summary: str
    problems: str
    made: str

    @property
    def done(self) -> list[Row]:
        return [row for row in self.rows if row['status'] == 'done']


def report_table(path: str | Path, tablefmt: str = 'simple') -> str:
    """The tables of a study's results, and a line for each network that failed.

    Args:
        path: Its folder, or the file of results.
        tablefmt: As `tabulate` names it; 'github' for Markdown.
    """
    return _report(_read(path)).text(tablefmt)


def write_html(path: str | Path, output: str | Path) -> None:
    """The same with pictures, as one page that needs nothing else.

    Raises:
        ValueError: if no network is done yet.
    """
    study = _read(path)
    if not study.done:
        raise ValueError(f'{path} has no network that is done, so there is nothing to draw')
    groups = by_series(study.done)
    write_page(output, _report(study), draw_pictures(groups, study.spec['paper'], _classes(study.spec), study.to_come),
               [row for group in groups.values() for row in group])


def _report(study: _Study) -> Report:
    return Report(study.title, study.summary, study.spec['notes'], study.spec, _tables(study), study.rows, study.made,
                  study.problems)


def _read(path: str | Path) -> _Study:
    found = load_results(path)
    header, rows = printable(found.header), printable(found.rows)
    spec = header['spec']

    def place(names: list[str], name: str | None) -> int:
        return names.index(name) if name in names else len(names)

    rows.sort(key=lambda row: (
        place(spec['node_ops'], row['node_op']), place(spec['graphs'], row['graph']),
        place(spec['models'], row['model']), row.get('channels') or 0, row['graph_seed'] or 0, row['training_seed']))
    problems = '; '.join(found.problems)
    groups, seeds = by_series(row for row in rows if row['status'] == 'done'), spec['graph_seeds'] or ()
    named = header.get('one_wiring', [])  # files of earlier releases say neither this nor the number of networks
    return _Study(
        header['study'], spec, rows,
        [series for series, group in groups.items() if has_one_wiring(group, seeds, named)],
        [series for series, group in groups.items() if has_wirings_to_come(group, seeds, named)],
        _summary(spec, rows, header.get('networks', 0)),
        problems and f'Of {found.path.name}: {problems}.', made_with(header, rows))


def _summary(spec: dict[str, Any], rows: Sequence[Row], asked: int) -> str:
    done = sum(row['status'] == 'done' for row in rows)
    hours = sum(row.get('seconds') or 0 for row in rows) / 3600
    again = sum(bool(row.get('earlier')) for row in rows)
    text = f'Not done yet: {len(rows)} of {asked} networks have ended. ' if len(rows) < asked else ''
    text += (f'{done} of {len(rows)} networks that ended gave a result; {hours:.1f} hours of work in all'
            f'{f", of {again} only since the last start" if again else ""}. Mean ± standard deviation over all '
            'networks, never the best.')
    if spec['seeds'] is not None and spec['graphs']:
        text += ' Graphs and training have one seed: ± is of both together.'
    return text


def _classes(spec: dict[str, Any]) -> int | None:
    """The number of classes, which rows of earlier releases lack. No file is read because the results name it."""
    settings = spec['settings']
    if 'num_classes' not in settings and spec['recipe'] in recipe_names():
        settings = load_recipe(spec['recipe'])
    classes = settings.get('num_classes')
    return classes if isinstance(classes, int) and classes > 0 else None


def _tables(study: _Study) -> list[Table]:
    """The main table first, then those that there are rows for."""
    done = study.done
    classes = _classes(study.spec)
    tables = [_main_table(study), _variance_table(done), *_differences_tables(
                  {series: group for series, group in by_series(done).items() if series not in study.to_come}),
              _measures_table(done, classes), _proxies_table(done, classes), _operations_table(done, classes),
              _damage_table(done, classes, 'nodes', "a removed node's out-degree"),
              _damage_correlations_table(done, classes, 'nodes', 'node'),
              _damage_table(done, classes, 'edges', "the in-degree of a removed edge's target"),
              _damage_correlations_table(done, classes, 'edges', 'edge')]
    return [table for table in tables if table is not None]


def _main_table(study: _Study) -> Table:
    spec, done = study.spec, study.done
    sizes = [str(size) for size in spec['eval_sizes']]
    heads = ['series', 'networks', 'wirings', 'C', 'params, M', 'multiply-adds, M']
    detection = bool(spec['detection'])
    heads += ['AP', 'AP50', 'AP75', 'APs', 'APm', 'APl'] if detection else ['top-1 (%)', 'top-5 (%)']
    intervals = {series: mean_interval(units(group)) for series, group in by_series(done).items()
                 if series not in study.to_come}
    if any(intervals.values()):
        heads.insert(heads.index('AP' if detection else 'top-1 (%)') + 1, '95 % interval')
    heads += [f'top-1 at {size} px' for size in sizes] + (['paper'] if spec['paper'] else [])
    lines = []
    for series, group in by_series(study.rows).items():
        good = [row for row in group if row['status'] == 'done']
        widths = sorted({row['channels'] for row in group if row.get('channels')})
        wirings = {row['wiring'] for row in good if row.get('wiring')}
        line = [series, str(len(good)) if len(good) == len(group) else f'{len(good)} of {len(group)}',
                str(len(wirings) or '–'),
                ', '.join(map(str, widths)) or '–',
                spread([row['params'] / 1e6 for row in group], 3) if group[0]['params'] else '–',
                spread([row['macs'] / 1e6 for row in group], 2) if group[0]['macs'] else '–']
        if detection:
            line += [spread([row['detection'][name] for row in good
                             if row['detection'].get(name) is not None], 1) for name in heads if name[:2] == 'AP']
        else:
            line += [spread([row[name] for row in good]) for name in ('top1', 'top5')]
        if any(intervals.values()):
            line.insert(7, interval_text(intervals.get(series)))
        line += [spread([row['eval_sizes'][size]['top1'] for row in good if size in row.get('eval_sizes', {})])
                 for size in sizes]
        if spec['paper']:
            line.append(str(spec['paper'].get(series, '–')))
        lines.append(line)
    notes = []
    if any(intervals.values()):
        notes.append('95 % interval: of the mean over wirings, each with the mean of its trainings, or over trainings '
                     f"where there is one wiring; Student's of fewer than {ENOUGH}, the bootstrap's of more.")
    if study.one_wiring:
        notes.append(f'{", ".join(study.one_wiring)}: all seeds give the same graphs, one wiring. Its spread is that '
                     'of the training alone.')
    if study.to_come:
        notes.append(f'{", ".join(study.to_come)}: one wiring so far, which stands for no others and is compared with '
                     'none.')
    return Table('', heads, lines, ' '.join(notes))


def _variance_table(rows: Sequence[Row]) -> Table | None:
    """What of the spread is the wiring's and what the training's: where a wiring was trained more than once."""
    lines = []
    for series, group in by_series(rows).items():
        parts = variance(group)
        if parts is None or group[0]['graph'] is None:
            continue
        lines.append([series, str(parts.wirings), str(parts.networks),
                      '–' if parts.between is None else f'{parts.between:.2f}', f'{parts.within:.2f}',
                      interval_text(parts.ratio), p_text(parts.p)])
    if not lines:
        return None
    heads = ['series', 'wirings', 'networks', 'between wirings', 'between trainings', 'ratio, 95 % interval', 'p']
    note = 'By one-way analysis of variance with random effects.'
    if all(line[-1] == '–' for line in lines):
        heads, lines = heads[:-2], [line[:-2] for line in lines]
    else:
        note += ' Ratio: of the two. p: of F, if wirings do not differ at all.'
    return Table('Standard deviation of the accuracy between wirings, and between trainings of one wiring, in points',
                 heads, lines, note)


def _differences_tables(groups: Mapping[str, Sequence[Row]]) -> list[Table]:
    heads = ['first', 'second', 'n', 'first − second', '95 % interval', 't', 'df', 'p', 'p (Holm)']

    def lines(tested: Sequence[Difference | Distance], in_text: bool) -> list[list[str]]:
        return [[one.one, one.other, str(one.n[0]) if one.n[0] == one.n[1] else f'{one.n[0]}, {one.n[1]}', *(
                    [f'{one.statistic:.2f}'] if isinstance(one, Distance) else
                    [f'{one.mean:.2f}', f'{one.low:.2f} to {one.high:.2f}', f'{one.t:.2f}', f'{one.df:.1f}']),
                 p_text(one.p), p_text(corrected)] for one, corrected, shown in zip(
                     tested, holm([one.p for one in tested]), worth_showing(tested, groups), strict=True)
                if shown == in_text]

    def table(title: str, heads: list[str], tested: Sequence[Difference | Distance], note: str) -> Table:
        allowed = f'p (Holm) allows for {len(tested)} tests'
        allowed += ('.' if all(worth_showing(tested, groups)) else ', those of all pairs: a text has those of the '
                    'series with the best mean, a page all of them.')
        return Table(title, heads, lines(tested, True), note + allowed, 2, lines(tested, False))

    wirings = 'n: wirings, each with the mean of its trainings; trainings where there is one wiring. '
    tables = []
    if welch := differences(groups):
        tables.append(table("Differences between series, in points (Welch's t test)", heads, welch, wirings))
    if paired := paired_differences(groups):
        tables.append(table(
            'Differences at equal seeds, in points (t test of pairs)', heads, paired,
            'Pairs have the same seeds of graphs and training, or of training alone where one of the two has one '
            'wiring; where that leaves one value, the two are left out. n: pairs, of which those that share one of '
            'several wirings count as one. '))
    if apart := distances(groups):
        tables.append(table(
            'Distributions of the errors (test of Kolmogorov and Smirnov)',
            ['first', 'second', 'n', 'D', 'p', 'p (Holm)'], apart,
            'D: the largest difference between two empirical distributions, from 0 to 1. ' + wirings))
    return tables


def _correlation_lines(rows: Sequence[Row], names: Sequence[str], kind: str) -> list[list[str]]:
    """Accuracy against what each wiring has; node operations apart, and given widths: they differ for other reasons."""
    lines = []
    kinds: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows:
        if row['node_op'] and row['graph']:
            kinds.setdefault((row['node_op'], width_of(row)), []).append(row)
    for (operation, width), same in kinds.items():
        which = [operation] if len({one for one, _ in kinds}) > 1 else []
        which += [f'C={width}'] if width is not None else []
        for name in names:
            found = measure_correlation(same, name, kind, rank=kind == 'proxies')
            if found.over_all is not None:
                lines.append([', '.join([name, *which]), *_correlation_cells(found)])
    return lines


# After what r is of; ρ where ranks are correlated.
CORRELATION_HEADS = ('wirings', 'r over all', 'r without one generator', 'free within', 'r within generators', 'p',
                     'r within, without one')


def _correlation_cells(found: Correlation) -> list[str]:
    return [str(found.wirings), _with_interval(found.over_all, found.over_all_interval),
            interval_text(found.without_one), str(found.free_within), _signed(found.within), p_text(found.p),
            interval_text(found.within_without_one)]


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    return _signed(value) + (f' ({interval_text(interval)})' if interval and value is not None else '')


def _correlation_note(rows: Sequence[Row], better: Sequence[Row], letter: str = 'r') -> str:
    note = (f'Wirings count once each, and {letter} is given of {ENOUGH} or more. Over all, differences between '
            'generators are in it; a 95 % interval is given where wirings are independent of each other: of one '
            "generator, or one of each. Within generators: of deviations from each generator's means, where there are "
            f'any, and {ENOUGH - 1} of them are free, as of {ENOUGH} wirings of one. p: how often that is as far from '
            f'0 where the accuracies of each generator stand in random order, of {ORDERS} orders and the true one; it '
            'allows for one line alone. Without one: the range of what is left without any one generator.')
    return note + _at_chance(rows, better)


def _measures_table(rows: Sequence[Row], classes: int | None) -> Table | None:
    better = learned(rows, classes)
    lines = _correlation_lines(better, MEASURES, 'measures')
    said = ('Degree, path length, clustering and betweenness (of the node that has most) are of the undirected graph. '
            'Depth: nodes on the longest path; edge depth: on that which ends with an edge, mean over edges; paths: '
            'the logarithm (10) of their number; peak memory: outputs that are kept at a time, in the best order. ')
    return Table("Pearson's r of accuracy and the mean of a graph measure over the stages",
                 ['measure', *CORRELATION_HEADS], lines, said + _correlation_note(rows, better)) if lines else None


def _proxies_table(rows: Sequence[Row], classes: int | None) -> Table | None:
    better = learned(rows, classes)
    lines = _correlation_lines(better, PROXIES, 'proxies')
    heads = ['prediction', *(re.sub(r'\br\b', 'ρ', head) for head in CORRELATION_HEADS)]
    return Table("Spearman's ρ of accuracy and what the first weights predict of it", heads, lines,
                 _correlation_note(rows, better, 'ρ') + ' Within generators, ranks are those within each.'
                 ) if lines else None


def _operations_table(rows: Sequence[Row], classes: int | None) -> Table | None:
    better = learned(rows, classes)
    lines = [[f'{found.one}, {found.other}', str(found.models.wirings),
              _with_interval(found.models.over_all, found.models.over_all_interval), *_correlation_cells(found.wirings)]
             for found in operation_correlations(better)
             if found.models.over_all is not None or found.wirings.over_all is not None]
    heads = ['node operations', 'generators', 'r of their means', *CORRELATION_HEADS]
    note = "The paper's r is that of the generators' means. " + _correlation_note(rows, better)
    return Table("Pearson's r of accuracy with one node operation and with another (Figure 6)", heads, lines, note
                 ) if lines else None


def _damage_table(rows: Sequence[Row], classes: int | None, kind: str, degree: str) -> Table | None:
    better, lines = learned(rows, classes), []
    for series, group in by_series(better).items():
        networks = [losses for row in group if (losses := losses_by_degree(row, kind))]
        if not networks:
            continue
        line = [series, str(len(networks))]
        for first, last in zip(DEGREES, [*(number - 1 for number in DEGREES[1:]), 1 << 30], strict=True):
            found = [[loss for number, values in losses.items() if first <= number <= last for loss in values]
                     for losses in networks]
            means = [statistics.mean(losses) for losses in found if losses]
            line.append(f'{spread(means)} ({sum(map(len, found))})' if means else '–')
        lines.append(line)
    if not lines:
        return None
    ends = [f'{first}' if last == first else f'{first}–{last}' for first, last in zip(
        DEGREES, [second - 1 for second in DEGREES[1:]], strict=False)]
    columns = [*ends, f'{DEGREES[-1]}+']
    used = [i for i, _ in enumerate(columns) if any(line[i + 2] != '–' for line in lines)]
    return Table(f'Mean loss in top-1, in points, by {degree} (Figure 5)',
                 ['series', 'networks', *(columns[i] for i in used)],
                 [[*line[:2], *(line[i + 2] for i in used)] for line in lines],
                 'Each network is averaged for itself, then they are: mean ± standard deviation over networks, and '
                 'how many removals in all.' + _at_chance(rows, better))


def _damage_correlations_table(rows: Sequence[Row], classes: int | None, kind: str, what: str) -> Table | None:
    better, lines = learned(rows, classes), []
    for series, group in by_series(better).items():
        found = [damage_correlation(group, kind, measure) for measure in DAMAGE_MEASURES]
        if any(one.values for one in found):
            lines.append([series, str(max(len(one.values) for one in found)), *(
                cell for one in found for cell in (spread(one.values), p_text(one.p)))])
    if not lines:
        return None
    degree = 'out-degree' if kind == 'nodes' else "target's in-degree"
    return Table(f"Pearson's r of the loss and of what the removed {what} was", [
        'series', 'wirings', degree, 'p', 'betweenness', 'p', 'depth', 'p'], lines,
        "r is that of each wiring's removals, their losses averaged over its trainings"
        + (' and, for in-degree and depth, over the edges with one target' if kind == 'edges' else '')
        + ", and of deviations from each stage's means; mean ± standard deviation over wirings. p: how often their "
        f'mean is as far from 0 where the losses in each stage stand in random order, of {ORDERS} orders and the true '
        f'one. Depth: nodes on the longest path that ends with the {what}.' + _at_chance(rows, better))


def _at_chance(rows: Sequence[Row], better: Sequence[Row]) -> str:
    return f' {len(rows) - len(better)} networks at chance are left out.' if len(better) < len(rows) else ''


def _signed(correlation: float | None) -> str:
    return '–' if correlation is None else f'{correlation:.2f}'
