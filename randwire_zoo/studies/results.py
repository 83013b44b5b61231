"""The file of results: a line about the study, then one line of JSON per network."""
from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import __version__
from ..files import atomic_path
from .study import Study

__all__ = ['RESULTS', 'Results', 'read_results']

RESULTS = 'results.jsonl'
Row = dict[str, Any]


class Results:
    """Rows by network, on disk as soon as they are added. One process writes.

    Args:
        folder: Where the file lies or will lie.
        study: What it must be of.

    Raises:
        ValueError: if there is a file that is of another study, or none of ours.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self.path = folder / RESULTS
        self.rows: dict[str, Row] = {}
        self._header = {'study': study.title, 'sha256': study.sha256, 'randwire_zoo': __version__,
                        'spec': asdict(study)}
        if self.path.exists():
            header, rows = read_results(self.path)
            if header['sha256'] != study.sha256:
                raise ValueError(f'{self.path} belongs to another study, {header["study"]!r}; choose another --output')
            self.rows = {row['id']: row for row in rows}

    def create(self) -> None:
        """Begin the file, or make it whole: a line that was cut off when its writer was killed goes."""
        self._write()

    def add(self, row: Row) -> None:
        """Append a row. A network that has one already is an error of the caller's."""
        assert row['id'] not in self.rows, row['id']
        self.rows[row['id']] = row
        with open(self.path, 'a', encoding='utf-8') as file:
            file.write(json.dumps(row) + '\n')
            file.flush()
            os.fsync(file.fileno())

    def forget_failed(self) -> list[str]:
        """Drop the rows of networks that failed, and return their names."""
        failed = [name for name, row in self.rows.items() if row['status'] != 'done']
        for name in failed:
            del self.rows[name]
        if failed:
            self._write()
        return failed

    def _write(self) -> None:
        with atomic_path(self.path) as temporary:
            temporary.write_text(''.join(
                json.dumps(line) + '\n' for line in [self._header, *self.rows.values()]), encoding='utf-8')


def read_results(path: str | Path) -> tuple[dict[str, Any], list[Row]]:
    """The line about the study, and the rows. A last line that was cut off counts as not written.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no file of results.
    """
    path = Path(path) / RESULTS if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no results at {path}')
    lines = path.read_text(encoding='utf-8').split('\n')
    complete = lines[:-1]  # every line that was written whole ends in a newline
    try:
        header, *rows = [json.loads(line) for line in complete]
        if not {'study', 'sha256', 'spec'} <= set(header) or not all('id' in row for row in rows):
            raise ValueError
    except (ValueError, TypeError):
        raise ValueError(f'{path} is no file of results of a study') from None
    return header, rows
