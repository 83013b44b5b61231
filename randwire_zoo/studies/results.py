"""The file of results: a line about the study, then one line of JSON per network.

A line counts once its newline is on disk. What else may lie in the file (half a line after a full disk or a kill, a
line that something else has damaged, the results of another study) is passed over when it is read, said, and set aside
when the study goes on.
"""
from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

from .. import __version__
from ..files import atomic_path
from .study import Study

__all__ = ['ASIDE', 'RESULTS', 'Results', 'ResultsFile', 'load_results', 'read_results']

RESULTS = 'results.jsonl'
ASIDE = 'results.broken'  # lines that could not be read, or are another study's
FORMAT = 2  # 1 had one seed for graphs and training
# What the line about the study says of its networks, and no sha256 is of; a search's says how many when it is done.
ASKED = ('networks', 'one_wiring')
Row = dict[str, Any]
Check = Callable[[Any], bool]


@dataclass(frozen=True)
class ResultsFile:
    """What a file of results holds.

    Args:
        path: The file.
        header: The line about the study: 'study', its title; 'sha256'; 'spec', its keys, with the defaults of those
            that its release did not have; of later releases also 'networks', how many the study asks for, and
            'one_wiring', see `Study.one_wiring`.
        rows: One per network. Those of releases with one seed for everything have it as both of theirs.
        problems: What is wrong with the file, in a few words each.
        broken: The lines that could not be read, or are not this study's.
    """

    path: Path
    header: dict[str, Any]
    rows: list[Row]
    problems: list[str]
    broken: list[bytes]


class Subject(Protocol):
    """A study, or whatever else rows are of: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def title(self) -> str:
        """One line."""

    @property
    def sha256(self) -> str:
        """Of all that decides on the rows."""


class Results:
    """Rows by network, on disk as soon as they are added. One process writes.

    Args:
        folder: Where the file lies or will lie.
        study: What it must be of.

    Raises:
        ValueError: if there is a file that is of another study, or none of ours.
    """

    def __init__(self, folder: Path, study: Subject) -> None:
        self.path = folder / RESULTS
        self.rows: dict[str, Row] = {}
        self._header = {'study': study.title, 'sha256': study.sha256, 'randwire_zoo': __version__, 'format': FORMAT,
                        'spec': asdict(study)}
        self._size = -1  # of the file, as far as its lines are whole and known here; below 0 before `create`
        self._found: ResultsFile | None = None
        if self.path.exists():
            self._found = load_results(self.path)
            header = self._found.header
            if header['sha256'] != study.sha256:
                raise ValueError(f'{self.path} belongs to another study, {header["study"]!r}; choose another --output')
            self.rows = {row['id']: row for row in self._found.rows}
            self._header.update({name: header[name] for name in ASKED if name in header})

    @property
    def sha256(self) -> str:
        """Of the study, as it was when this was made."""
        return str(self._header['sha256'])

    def create(self, asked: Mapping[str, Any] | None = None) -> list[str]:
        """Begin the file, or mend it; returns what was wrong with it. Broken lines are kept beside it.

        Args:
            asked: What the line about the study is to say of `ASKED`; by default what it says already.
        """
        problems = [] if self._found is None else self._found.problems
        self._header.update(asked or {})
        if self._found is not None and self._found.broken:
            with open(self.path.with_name(ASIDE), 'ab') as file:
                file.write(b''.join(line + b'\n' for line in self._found.broken))
                file.flush()
                os.fsync(file.fileno())
        if self._found is None or problems or any(
                self._found.header.get(name) != self._header.get(name) for name in ('format', *ASKED)):
            self._write()
        else:
            self._size = self.path.stat().st_size
        self._found = None
        return problems

    def add(self, row: Row) -> None:
        """Append a row. A network that has one already is an error of the caller's.

        Raises:
            OSError: if it cannot be written; the file is as it was, or is made so by the next call that succeeds.
        """
        assert row['id'] not in self.rows and self._size >= 0, row['id']
        line, size = json.dumps(row).encode() + b'\n', self._size
        try:
            file = os.open(self.path, os.O_RDWR)
            try:
                found = os.fstat(file).st_size
                if found != size and not (found > size and self._is_ours_cut_off(file, size)):
                    raise OSError('something else has written to it since')
                try:
                    os.ftruncate(file, size)  # what an append that failed may have left
                    os.lseek(file, size, os.SEEK_SET)
                    rest = line
                    while rest:
                        rest = rest[os.write(file, rest):]
                    os.fsync(file)
                    self._size = size + len(line)
                    self.rows[row['id']] = row
                except BaseException:  # an interruption as well
                    self._size = size
                    self.rows.pop(row['id'], None)
                    with suppress(OSError):
                        os.ftruncate(file, size)
                    raise
            finally:
                os.close(file)
        except OSError as error:
            raise OSError(f'cannot write {self.path}: {error.strerror or error}') from error

    @staticmethod
    def _is_ours_cut_off(file: int, size: int) -> bool:
        """Whether what follows the last known line is the beginning of one: another writer's line would be whole."""
        os.lseek(file, size, os.SEEK_SET)
        return b'\n' not in os.read(file, 1 << 24)

    def forget_failed(self) -> list[str]:
        """Drop the rows of networks that failed, and return their names."""
        failed = [name for name, row in self.rows.items() if row['status'] != 'done']
        self.forget(failed)
        return failed

    def forget(self, names: Collection[str]) -> None:
        """Drop rows, where there are such."""
        for name in names:
            self.rows.pop(name, None)
        if names:
            self._write()

    def _write(self) -> None:
        text = ''.join(json.dumps(line) + '\n' for line in [self._header, *self.rows.values()]).encode()
        with atomic_path(self.path) as temporary, open(temporary, 'wb') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # before it takes the place of a file that is on disk
        self._size = len(text)


def read_results(path: str | Path) -> tuple[dict[str, Any], list[Row]]:
    """The line about the study, and the rows: see `load_results`."""
    found = load_results(path)
    return found.header, found.rows


def load_results(path: str | Path) -> ResultsFile:
    """Read a file of results. Nothing that it names is imported or run.

    Args:
        path: The file, or the folder of a study.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no file of results.
    """
    path = Path(path) / RESULTS if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no results at {path}')
    first, *lines = path.read_bytes().split(b'\n')
    header = _parse(first)
    if header is None or not _is_header(header):
        raise ValueError(f'{path} is no file of results of a study')
    spec = {**{name: value for entry in fields(Study) if (name := entry.name) and (
        value := _default(entry)) is not MISSING}, **header['spec']}
    rows: dict[str, Row] = {}
    problems, broken = [], []
    for number, line in enumerate(lines, start=2):
        if not line and number == len(lines) + 1:
            continue  # what follows the last newline
        row = _parse(line)
        if row is None and number <= len(lines):
            # A row, or another file's first line, that was appended to the half line of one before it, which is lost.
            row = _parse(line[max(line.rfind(b'{"id": '), line.rfind(b'{"study": '), 0):])
            problems.append(f'line {number} is broken' + (
                ', but a whole row follows in it' if row and 'id' in row else ''))
            broken.append(line)
        elif row is None:
            problems.append('the last line was cut off')
            continue
        elif number > len(lines):
            problems.append('the last line lacks its newline')
        if row is None:
            continue
        if _is_header(row):
            if row['sha256'] == header['sha256']:
                continue  # two machines' files of one study, put together
            problems.append(f'line {number} begins the results of another study, {row["study"]!r}: they are left out')
            rest = [other for other in lines[number - 2:] if other]
            broken += rest[1:] if broken and broken[-1] is line else rest
            break
        if not _is_row(row):
            problems.append(f'line {number} is no row of a network')
            broken.append(line)
        elif row['id'] in rows:
            problems.append(f'line {number} is a second row of {row["id"]!r}')
            broken.append(line)
        else:
            rows[row['id']] = _with_both_seeds(row)
    return ResultsFile(path, {**header, 'spec': spec}, list(rows.values()), problems, broken)


def _default(entry: Any) -> Any:
    return entry.default_factory() if entry.default_factory is not MISSING else entry.default


def _parse(line: bytes) -> dict[str, Any] | None:
    """The object that a line holds, if it holds one."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _with_both_seeds(row: Row) -> Row:
    if 'training_seed' in row:
        return row
    return {**row, 'graph_seed': row['seed'] if row['graph'] is not None else None, 'training_seed': row['seed']}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(of: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(of, value))


def _is_dict(of: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(_is_text, value)) and all(map(of, value.values()))


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_anything(value: Any) -> bool:
    return True


def _fits(data: dict[str, Any], needed: dict[str, Check], optional: dict[str, Check]) -> bool:
    return all(name in data and check(data[name]) for name, check in needed.items()) and all(
        name not in data or check(data[name]) for name, check in optional.items())


# What reports read, and what they expect it to be: a file of results may come from anywhere.
SPEC: dict[str, Check] = {
    **dict.fromkeys(('title', 'recipe', 'data', 'generators', 'notes'), _is_text),
    **dict.fromkeys(('graphs', 'node_ops', 'models'), _is_list(_is_text)), 'eval_sizes': _is_list(_is_whole),
    **dict.fromkeys(('seeds', 'graph_seeds', 'training_seeds'), _or_none(_is_list(_is_whole))),
    **dict.fromkeys(('model', 'settings', 'detection', 'paper'), _is_dict(_is_anything))}
NETWORK: dict[str, Check] = {
    **dict.fromkeys(('id', 'series', 'model', 'status'), _is_text), 'kwargs': _is_dict(_is_anything),
    **dict.fromkeys(('graph', 'node_op'), _or_none(_is_text)), **dict.fromkeys(('macs', 'params'), _is_number)}
MORE: dict[str, Check] = {
    **dict.fromkeys(('seed', 'training_seed'), _is_whole),
    **dict.fromkeys(('graph_seed', 'channels', 'epochs', 'classes'), _or_none(_is_whole)),
    **dict.fromkeys(('seconds', 'loss'), _or_none(_is_number)), 'wiring': _or_none(_is_text), 'sha256': _is_text,
    'measures': _is_dict(_is_number), 'proxies': _is_dict(_is_number),
    'eval_sizes': _is_dict(_is_dict(_or_none(_is_number))),
    'graphs': _is_list(_is_dict(_is_anything)), 'provenance': _is_dict(_is_anything),
    'earlier': _is_list(_is_dict(_is_anything)),
    'history': _is_list(lambda point: isinstance(point, list) and len(point) == 3 and all(
        map(_or_none(_is_number), point))),
    'damage': lambda found: isinstance(found, dict) and all(
        _is_list(lambda entry, length=length: isinstance(entry, list) and len(entry) == length  # type: ignore[misc]
                 and _is_text(entry[0]) and all(map(_is_whole, entry[1:-1])) and _is_number(entry[-1]))(
                     found.get(kind, []))
        for kind, length in (('nodes', 4), ('edges', 5)))}


def _is_header(header: dict[str, Any]) -> bool:
    return _fits(header, {'study': _is_text, 'sha256': _is_text, 'spec': _is_dict(_is_anything)},
                 {'networks': _is_whole, 'one_wiring': _is_list(_is_text)}) and _fits(header['spec'], {}, SPEC)


def _is_row(row: Row) -> bool:
    if not _fits(row, NETWORK, MORE) or ('seed' not in row and 'training_seed' not in row):
        return False
    if row['status'] != 'done':
        return _is_text(row.get('reason'))
    if 'detection' in row:
        return _is_dict(_or_none(_is_number))(row['detection']) and _is_number(row['detection'].get('AP'))
    return _is_number(row.get('top1')) and _is_number(row.get('top5')) and all(
        'top1' in size for size in row.get('eval_sizes', {}).values())
