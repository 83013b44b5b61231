"""What a search found: both searches' winners, how these did again, every candidate; and a page with pictures."""
from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from .analysis import Row, paired_differences, spread
from .page import Report, Table, interval_text, made_with, p_text, printable, write_page
from .plots import draw_search
from .results import load_results
from .search import HALVING, RANDOM, candidates, trained_again, winner

__all__ = ['search_table', 'write_search_html']

METHODS = (HALVING, RANDOM)


def search_table(path: str | Path, tablefmt: str = 'simple') -> str:
    """What both searches found with each seed, at what cost, how their winners did again, and all candidates.

    Args:
        path: The folder of a search, or its file of results.
        tablefmt: As `tabulate` names it.
    """
    return _report(path).text(tablefmt)


def write_search_html(path: str | Path, output: str | Path) -> None:
    """The same with pictures, as one page that needs nothing else.

    Raises:
        ValueError: if no candidate is done yet.
    """
    report = _report(path)
    done = [row for row in report.rows if row['status'] == 'done']
    if not done:
        raise ValueError(f'{path} has no network that is done, so there is nothing to draw')
    searches = {f'{method}, seed {seed}': (method, seed) for seed in _seeds(report.spec) for method in METHODS}
    tried = {name: found for name, search in searches.items() if (found := candidates(done, *search))}
    again = {name: found for name, search in searches.items() if (found := trained_again(done, *search))}
    parameters = {name: {row['id']: _parameter(report.spec, name, row) for row in done}
                  for name in report.spec['space']}
    write_page(output, report, draw_search(tried, again, parameters, done), done)


def _report(path: str | Path) -> Report:
    found = load_results(path)
    header, rows = printable(found.header), printable(found.rows)
    spec = header['spec']
    done = [row for row in rows if row['status'] == 'done']
    hours = sum(row.get('seconds') or 0 for row in rows) / 3600
    summary = 'Not done yet. ' if header.get('networks') != len(rows) else ''
    summary += f'{len(done)} of {len(rows)} trainings that ended gave a result; {hours:.1f} hours of work in all.'
    problems = '; '.join(found.problems)
    tables = [_winners(spec, rows), _again(spec, done), _candidates(spec, done)]
    return Report(header['study'], summary, spec['notes'], spec, [table for table in tables if table is not None], rows,
                  made_with(header, rows), problems and f'Of {found.path.name}: {problems}.')


def _seeds(spec: Mapping[str, Any]) -> list[int]:
    return spec.get('seeds') or []


def _winners(spec: Mapping[str, Any], rows: Sequence[Row]) -> Table:
    lines = []
    for seed in _seeds(spec):
        for method in METHODS:
            best = winner(rows, method, seed)
            if best is None:
                continue
            tried = candidates(rows, method, seed)
            done = [row for row in tried if row['status'] == 'done']
            lines.append([str(seed), method, best['series'], str(len({_candidate(row) for row in tried})),
                          str(sum(row['epochs'] for row in done)),
                          f'{sum(row["epochs"] * row["macs"] for row in done) / 1e6:.1f}', str(best['epochs']),
                          f'{best["top1"]:.2f}', spread([row['top1'] for row in trained_again(rows, method, seed)])])
    return Table('', ['seed', 'search', 'winner', 'candidates', 'epochs', 'M multiply-adds × epochs', 'its epochs',
                      'top-1 (%)', 'again, other seeds'], lines,
                 'The top-1 of a winner is the best of several, and too high for that; again it has other graphs and '
                 'trainings. All is measured on the images that the recipe evaluates with, by which the winners were '
                 'chosen, too. Random search ends before it costs more than halving and 5 %, so that it may have up to '
                 'one candidate less. Failed candidates cost nothing.', texts=3)


def _again(spec: Mapping[str, Any], done: Sequence[Row]) -> Table | None:
    """Whether halving's winners are better than random search's."""
    lines, gaps = [], []
    for seed in _seeds(spec):
        groups = {method: trained_again(done, method, seed) for method in METHODS}
        if not all(groups.values()):
            continue
        means = {method: statistics.mean(row['top1'] for row in group) for method, group in groups.items()}
        gaps.append(means[HALVING] - means[RANDOM])
        tested = next(iter(paired_differences(groups)), None)
        lines.append([str(seed), *(f'{means[method]:.2f}' for method in METHODS), f'{gaps[-1]:.2f}', *(
            [interval_text((tested.low, tested.high)), str(tested.n[0]), p_text(tested.p)] if tested else
            ['–', '–', '–'])])
    if not lines:
        return None
    return Table(
        'The winners trained again: halving less random, in points (t test of pairs with the same seeds)',
        ['seed', HALVING, RANDOM, 'difference', '95 % interval', 'n', 'p'], lines,
        f'Over the searches: {spread(gaps)} points. An interval is of what graphs and trainings do to these two. '
        'How much luck a search had with its candidates, only more searches tell.')


def _candidates(spec: Mapping[str, Any], done: Sequence[Row]) -> Table | None:
    """Each with what it did when it was trained longest."""
    lines = []
    for seed in _seeds(spec):
        for method in METHODS:
            longest: dict[str, Row] = {}
            for row in candidates(done, method, seed):
                if row['epochs'] >= longest.get(_candidate(row), row)['epochs']:
                    longest[_candidate(row)] = row
            for row in sorted(longest.values(), key=lambda row: (-row['epochs'], -row['top1'])):
                lines.append([_candidate(row), row['series'], str(row['epochs']), f'{row["top1"]:.2f}',
                              str(row.get('channels') or '–'), f'{row["macs"] / 1e6:.2f}'])
    return Table('Candidates, by how long they were trained', [
        'candidate', 'parameters', 'epochs', 'top-1 (%)', 'C', 'multiply-adds, M'], lines, texts=2) if lines else None


def _candidate(row: Row) -> str:
    return str(row['id']).rsplit('-e', 1)[0]


def _parameter(spec: Mapping[str, Any], name: str, row: Row) -> Any:
    """What a row has of a parameter of the space: an argument of its model, or what stands in the graph for it."""
    pattern, named = '', False
    for text, field, _, _ in Formatter().parse(spec['graph']):
        pattern += re.escape(text)
        if field is not None:
            pattern += '(?P<value>[^,()]*)' if field == name and not named else '[^,()]*'
            named = named or field == name
    if not named:
        return row['kwargs'].get(name)
    found = re.fullmatch(pattern, row['graph'])
    return found and found['value']
