"""What a study found: tables, first that of mean ± standard deviation over all seeds, and one page with pictures."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from tabulate import tabulate

from ..files import write_atomically
from .analysis import (
    MEASURES,
    Row,
    accuracy,
    by_series,
    losses_by_degree,
    measure_correlation,
    operation_correlation,
    operation_means,
    pearson,
    spread,
)
from .plots import draw_pictures
from .results import read_results
from .study import load_generators

__all__ = ['report_table', 'write_html']

# Degrees that share a column of the tables of damage: each from its number up to the next one.
DEGREES = (0, 1, 2, 3, 4, 5, 7, 10)
ENOUGH = 5  # networks that a correlation is worth giving for


@dataclass(frozen=True)
class _Table:
    """Cells as text. The main table has no title."""

    title: str
    heads: list[str]
    lines: list[list[str]]


def report_table(path: str | Path, tablefmt: str = 'simple') -> str:
    """The tables of a study's results, and a line for each network that failed.

    Args:
        path: Its folder, or the file of results.
        tablefmt: As `tabulate` names it; 'github' for Markdown.
    """
    header, rows = _read(path)
    parts = [header['study'], _summary(rows)]
    for table in _tables(header['spec'], rows):
        parts += ['', *([table.title, ''] if table.title else []),
                  tabulate(table.lines, table.heads, tablefmt=tablefmt, disable_numparse=True,
                           colalign=('left', *('right',) * (len(table.heads) - 1)))]
    failed = [f'{row["id"]} failed: {row["reason"]}' for row in rows if row['status'] != 'done']
    return '\n'.join([*parts, *([''] if failed else []), *failed])


def write_html(path: str | Path, output: str | Path) -> None:
    """The same with pictures, as one page that needs nothing else.

    Raises:
        ValueError: if no network is done yet.
    """
    header, rows = _read(path)
    spec = header['spec']
    if spec['generators'] and Path(spec['generators']).is_file():  # not where the results were copied to
        load_generators(spec['generators'])
    done = [row for row in rows if row['status'] == 'done']
    if not done:
        raise ValueError(f'{path} has no network that is done, so there is nothing to draw')
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        Path(__file__).with_name('report.html').read_text(encoding='utf-8'))
    write_atomically(output, template.render(
        title=header['study'], summary=_summary(rows), notes=spec['notes'], tables=_tables(spec, rows),
        pictures=draw_pictures(by_series(done), spec['paper']), failed=[r for r in rows if r['status'] != 'done'],
        metric='AP' if spec['detection'] else 'top-1 (%)',
        rows=[{'epochs': None, **row, 'value': accuracy(row)} for row in done],
        spec=yaml.safe_dump({name: value for name, value in spec.items() if value}, sort_keys=False)))


def _read(path: str | Path) -> tuple[dict[str, Any], list[Row]]:
    """Results with their rows as the study names them, since networks end in any order."""
    header, rows = read_results(path)
    spec = header['spec']

    def place(names: list[str], name: str | None) -> int:
        return names.index(name) if name in names else len(names)

    return header, sorted(rows, key=lambda row: (
        place(spec['node_ops'], row['node_op']), place(spec['graphs'], row['graph']),
        place(spec['models'], row['model']), row['channels'] or 0, row['graph_seed'] or 0,
        row['training_seed']))


def _summary(rows: Sequence[Row]) -> str:
    done = sum(row['status'] == 'done' for row in rows)
    hours = sum(row.get('seconds', 0) for row in rows) / 3600
    return (f'{done} of {len(rows)} networks that ended gave a result; {hours:.1f} hours of work in all. Mean ± '
            'standard deviation over all seeds, never the best.')


def _tables(spec: dict[str, Any], rows: Sequence[Row]) -> list[_Table]:
    """The main table first, then those that there are rows for."""
    done = [row for row in rows if row['status'] == 'done']
    tables = [_main_table(spec, rows), _measures_table(done), _operations_table(done),
              _damage_table(done, 'nodes', "a removed node's out-degree"),
              _damage_table(done, 'edges', "the in-degree of a removed edge's target")]
    return [table for table in tables if table is not None]


def _main_table(spec: dict[str, Any], rows: Sequence[Row]) -> _Table:
    done = [row for row in rows if row['status'] == 'done']
    sizes = [str(size) for size in spec['eval_sizes']]
    heads = ['series', 'networks', 'C', 'params, M', 'multiply-adds, M']
    detection = bool(spec['detection'])
    heads += ['AP', 'AP50', 'AP75', 'APs', 'APm', 'APl'] if detection else ['top-1 (%)', 'top-5 (%)']
    heads += [f'top-1 at {size} px' for size in sizes] + (['paper'] if spec['paper'] else [])
    lines = []
    for series, group in by_series(rows).items():
        good = [row for row in group if row in done]
        widths = sorted({row['channels'] for row in group if row['channels']})
        line = [series, str(len(good)) if len(good) == len(group) else f'{len(good)} of {len(group)}',
                ', '.join(map(str, widths)) or '–',
                spread([row['params'] / 1e6 for row in group], 3) if group[0]['params'] else '–',
                spread([row['macs'] / 1e6 for row in group], 2) if group[0]['macs'] else '–']
        if detection:
            line += [spread([row['detection'][name] for row in good], 1) for name in heads[5:11]]
        else:
            line += [spread([row[name] for row in good]) for name in ('top1', 'top5')]
        line += [spread([row['eval_sizes'][size]['top1'] for row in good]) for size in sizes]
        if spec['paper']:
            line.append(str(spec['paper'].get(series, '–')))
        lines.append(line)
    return _Table('', heads, lines)


def _measures_table(rows: Sequence[Row]) -> _Table | None:
    """Accuracy against graph measures; node operations apart, as they differ in accuracy for other reasons."""
    lines = []
    for operation in operation_means(rows):
        same = [row for row in rows if row['node_op'] == operation]
        correlations = [_signed(measure_correlation(same, name)) for name in MEASURES]
        if len(same) >= ENOUGH and any(r != '–' for r in correlations):
            lines.append([operation, str(len(same)), *correlations])
    if not lines:
        return None
    return _Table("Pearson's r of the networks' accuracy and the means of their graphs' measures",
                  ['node operation', 'networks', *MEASURES], lines)


def _operations_table(rows: Sequence[Row]) -> _Table | None:
    means = operation_means(rows)
    if len(means) < 2:
        return None
    return _Table("Pearson's r between node operations, of the random graph models' mean accuracy (Figure 6)",
                  ['', *means], [[name, *('' if other == name else _signed(operation_correlation(one, means[other]))
                                          for other in means)] for name, one in means.items()])


def _damage_table(rows: Sequence[Row], kind: str, degree: str) -> _Table | None:
    lines = []
    for series, group in by_series(rows).items():
        losses = losses_by_degree(group, kind)
        if not losses:
            continue
        line = [series]
        for i, first in enumerate(DEGREES):
            last = DEGREES[i + 1] - 1 if i + 1 < len(DEGREES) else max(first, *losses)
            found = [loss for number, values in losses.items() if first <= number <= last for loss in values]
            line.append(f'{sum(found) / len(found):.2f} ({len(found)})' if found else '–')
        pairs = [(float(number), loss) for number, values in losses.items() for loss in values]
        lines.append([*line, _signed(pearson([pair[0] for pair in pairs], [pair[1] for pair in pairs]))])
    if not lines:
        return None
    ends = [f'{first}' if last == first else f'{first}–{last}' for first, last in zip(
        DEGREES, [second - 1 for second in DEGREES[1:]], strict=False)]
    columns = [*ends, f'{DEGREES[-1]}+']
    used = [i for i, _ in enumerate(columns) if any(line[i + 1] != '–' for line in lines)]
    return _Table(f"Mean loss in top-1, in points, by {degree} (number of removals), and Pearson's r (Figure 5)",
                  ['series', *(columns[i] for i in used), 'r'],
                  [[line[0], *(line[i + 1] for i in used), line[-1]] for line in lines])


def _signed(correlation: float | None) -> str:
    return '–' if correlation is None else f'{correlation:.2f}'
