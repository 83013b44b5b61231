"""How results are shown, a study's and a search's alike: tables as text, and one page with pictures.

A file of results is data: nothing that it says is taken for markup.
"""
from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from tabulate import tabulate

from ..drawing import dark_rules
from ..files import write_atomically
from .analysis import Row, accuracy, graphs_of_row
from .measures import depths
from .plots import Picture

__all__ = ['Report', 'Table', 'interval_text', 'made_with', 'p_text', 'printable', 'write_page']


@dataclass(frozen=True)
class Table:
    """Cells as text, of which the first `texts` columns are words. The main table has no title.

    What is in `more` follows on a page alone, where a reader can sort it.
    """

    title: str
    heads: list[str]
    lines: list[list[str]]
    note: str = ''
    texts: int = 1
    more: Sequence[list[str]] = ()


@dataclass(frozen=True)
class Report:
    """What a file of results has to say.

    Args:
        title: Of the study or search.
        summary: Sentences on the whole.
        notes: What its file says to readers.
        spec: Its keys.
        tables: The main one first.
        rows: All of them, in the order in which they are listed.
        made: What the networks were made with, see `made_with`.
        problems: What is wrong with the file; empty if nothing is.
    """

    title: str
    summary: str
    notes: str
    spec: Mapping[str, Any]
    tables: list[Table]
    rows: list[Row]
    made: str
    problems: str

    @property
    def failed(self) -> list[Row]:
        """Rows without a result."""
        return [row for row in self.rows if row['status'] != 'done']

    def text(self, tablefmt: str) -> str:
        """All of it but pictures and notes, with a line for each network that failed.

        Args:
            tablefmt: As `tabulate` names it; 'github' for Markdown.
        """
        def text(cell: str) -> str:
            if tablefmt != 'github':
                return cell
            return re.sub(r'([\\|`\[\]])', r'\\\1', html.escape(cell, quote=False))

        parts = [text(self.title), text(self.summary)]
        for table in self.tables:
            lines = [list(map(text, line)) for line in table.lines]
            parts += ['', *([table.title, ''] if table.title else []),
                      tabulate(lines, list(map(text, table.heads)), tablefmt=tablefmt, disable_numparse=True, colalign=(
                          *('left',) * table.texts, *('right',) * (len(table.heads) - table.texts))),
                      *(['', text(table.note)] if table.note else [])]
        failed = [text(f'{row["id"]} failed: {row["reason"]}') for row in self.failed]
        return '\n'.join([*parts, '', text(self.made), *([text(self.problems)] if self.problems else []),
                          *([''] if failed else []), *failed])


def write_page(output: str | Path, report: Report, pictures: Sequence[Picture], numbered: Sequence[Row]) -> None:
    """All of it with pictures, as one page that needs nothing else.

    Args:
        output: The file.
        report: What it says.
        pictures: The first stands below the main table.
        numbered: Rows in the order in which the pictures number their points.
    """
    here = Path(__file__)
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        here.with_name('report.html').read_text(encoding='utf-8'))
    script = here.with_name('report.js').read_text(encoding='utf-8')
    # Nothing of the page may ask for anything, and nothing but this very script may run, whatever the results say.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    done = [row for row in report.rows if row['status'] == 'done']
    write_atomically(output, template.render(
        report=report, pictures=pictures, metric='AP' if report.spec.get('detection') else 'top-1 (%)',
        rows=[{'epochs': None, 'channels': None, 'seconds': 0, **row, 'value': accuracy(row)} for row in done],
        spec=yaml.safe_dump({name: value for name, value in report.spec.items() if value}, sort_keys=False),
        dark=dark_rules(), script=script, policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'", networks=_data(numbered)))


def _data(rows: Sequence[Row]) -> str:
    """What the page shows where a point is pointed at, as JSON that cannot end the element that it stands in."""
    networks = []
    for row in rows:
        graphs = graphs_of_row(row)
        networks.append({
            'id': row['id'], 'said': f'{"AP" if "detection" in row else "top-1"} {accuracy(row):.2f}',
            'stages': [{'nodes': graph.num_nodes, 'edges': graph.edges, 'depths': depths(graph)} for graph in graphs]})
    return json.dumps(networks, separators=(',', ':')).replace('<', '\\u003c')


def printable(value: Any) -> Any:
    """The same data, without characters that would steer a terminal or hide in a page."""
    if isinstance(value, str):
        return ''.join(' ' if c in '\n\t' else '\ufffd' if unicodedata.category(c)[0] == 'C' else c for c in value)
    if isinstance(value, dict):
        return {printable(name): printable(entry) for name, entry in value.items()}
    return [printable(entry) for entry in value] if isinstance(value, list) else value


def made_with(header: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """What the networks were trained with: one sentence, with all values where rows differ."""
    trained = [row['provenance'] for row in rows if row.get('provenance')]
    known = [made for row in rows if row.get('provenance') for made in [*row.get('earlier', ()), row['provenance']]]
    if not known:
        if header.get('randwire_zoo'):
            return f'Made with randwire_zoo {header["randwire_zoo"]}; the rows do not say on what.'
        return 'The rows do not say what they were made with.'
    parts = []
    for name in ('randwire_zoo', 'commit', 'python', 'torch', 'timm', 'processor', 'device', 'kernels', 'precision',
                 'threads'):
        said = [str(made[name]) for made in known if made.get(name) is not None]
        if said:
            some = f' (as {len(said)} of {len(known)} say)' if name != 'device' and len(said) < len(known) else ''
            parts.append(f'{name} {" and ".join(dict.fromkeys(said))}{some}')
    dates = sorted(str(made.get('date', ''))[:10] for made in known)
    unknown = f'; {len(rows) - len(trained)} rows do not say what they were made with' if len(trained) < len(
        rows) else ''
    return f'Made {" to ".join(dict.fromkeys((dates[0], dates[-1])))} with {", ".join(parts)}{unknown}.'


def p_text(value: float | None) -> str:
    """A p value, or a dash."""
    return '–' if value is None else 'below 0.001' if value < 0.001 else f'{value:.3f}'


def interval_text(interval: tuple[float, float] | None) -> str:
    """An interval, or a dash."""
    return '–' if interval is None else '{:.2f} to {:.2f}'.format(*interval)
