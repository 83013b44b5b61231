"""What a study found: a table of mean ± standard deviation over all seeds, and one html page with every picture."""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from tabulate import tabulate

from ..files import write_atomically
from .plots import accuracy, draw_pictures
from .results import read_results
from .study import load_generators

__all__ = ['report_table', 'write_html']

Row = dict[str, Any]


def report_table(path: str | Path, tablefmt: str = 'simple') -> str:
    """The table of a study's results, and a line for each network that failed.

    Args:
        path: Its folder, or the file of results.
        tablefmt: As `tabulate` names it; 'github' for Markdown.
    """
    header, rows = read_results(path)
    heads, lines = _table(header['spec'], rows)
    failed = [f'{row["id"]} failed: {row["reason"]}' for row in rows if row['status'] != 'done']
    table = tabulate(lines, heads, tablefmt=tablefmt, disable_numparse=True,
                     colalign=('left', *('right',) * (len(heads) - 1)))
    return '\n'.join([header['study'], _summary(rows), '', table, *failed])


def write_html(path: str | Path, output: str | Path) -> None:
    """The same with pictures, as one page that needs nothing else.

    Raises:
        ValueError: if no network is done yet.
    """
    header, rows = read_results(path)
    spec = header['spec']
    if spec['generators'] and Path(spec['generators']).is_file():  # not where the results were copied to
        load_generators(spec['generators'])
    done = [row for row in rows if row['status'] == 'done']
    if not done:
        raise ValueError(f'{path} has no network that is done, so there is nothing to draw')
    heads, lines = _table(spec, rows)
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        Path(__file__).with_name('report.html').read_text(encoding='utf-8'))
    write_atomically(output, template.render(
        title=header['study'], summary=_summary(rows), notes=spec['notes'], heads=heads, lines=lines,
        pictures=draw_pictures(_by_series(done), spec['paper']), failed=[r for r in rows if r['status'] != 'done'],
        metric='AP' if spec['detection'] else 'top-1 (%)',
        rows=[{'epochs': None, **row, 'value': accuracy(row)} for row in done],
        spec=yaml.safe_dump({name: value for name, value in spec.items() if value}, sort_keys=False)))


def _by_series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row['series'], []).append(row)
    return groups


def _summary(rows: Sequence[Row]) -> str:
    done = sum(row['status'] == 'done' for row in rows)
    hours = sum(row.get('seconds', 0) for row in rows) / 3600
    return (f'{done} of {len(rows)} networks that ended gave a result; {hours:.1f} hours of work in all. Mean ± '
            'standard deviation over all seeds, never the best.')


def _spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation (of a sample), as the paper gives it."""
    if not values:
        return '–'
    mean = f'{statistics.mean(values):.{digits}f}'
    return f'{mean} ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else mean


def _table(spec: dict[str, Any], rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    done = [row for row in rows if row['status'] == 'done']
    sizes = [str(size) for size in spec['eval_sizes']]
    heads = ['series', 'networks', 'C', 'params, M', 'multiply-adds, M']
    detection = bool(spec['detection'])
    heads += ['AP', 'AP50', 'AP75', 'APs', 'APm', 'APl'] if detection else ['top-1 (%)', 'top-5 (%)']
    heads += [f'top-1 at {size} px' for size in sizes] + (['paper'] if spec['paper'] else [])
    lines = []
    for series, group in _by_series(rows).items():
        good = [row for row in group if row in done]
        widths = sorted({row['channels'] for row in group if row['channels']})
        line = [series, str(len(good)) if len(good) == len(group) else f'{len(good)} of {len(group)}',
                ', '.join(map(str, widths)) or '–',
                _spread([row['params'] / 1e6 for row in group], 3) if group[0]['params'] else '–',
                _spread([row['macs'] / 1e6 for row in group], 2) if group[0]['macs'] else '–']
        if detection:
            line += [_spread([row['detection'][name] for row in good], 1) for name in heads[5:11]]
        else:
            line += [_spread([row[name] for row in good]) for name in ('top1', 'top5')]
        line += [_spread([row['eval_sizes'][size]['top1'] for row in good]) for size in sizes]
        if spec['paper']:
            line.append(str(spec['paper'].get(series, '–')))
        lines.append(line)
    return heads, lines
