"""Files: written so that a reader never sees half of one, read with one line about what is wrong, and locked."""
from __future__ import annotations

import csv
import errno
import json
import math
import os
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ['Locked', 'atomic_folder', 'atomic_path', 'cache_folder', 'lock', 'read_json', 'read_summary', 'read_yaml',
           'write_atomically']

# What flock says where another process has the lock, and where the file system has no locks at all.
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
NONE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def cache_folder() -> Path:
    """Where things are kept that can be made or fetched again: $RANDWIRE_ZOO_CACHE, or ~/.cache/randwire_zoo.

    Raises:
        FileNotFoundError: if neither is there: the user has no home folder.
    """
    if chosen := os.environ.get('RANDWIRE_ZOO_CACHE'):
        return Path(chosen)
    try:
        return Path.home() / '.cache' / 'randwire_zoo'
    except RuntimeError:
        raise FileNotFoundError('there is no home folder to keep things in: set RANDWIRE_ZOO_CACHE to a folder that '
                                'you may write to') from None


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside path, with the same suffix, and move it into place if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:  # with a part of the name, so that any name that a file may have leaves room for the rest
        handle, name = tempfile.mkstemp(prefix=f'.{path.stem[:32]}-', suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder beside this one, which is missing or empty, and move it into place if the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
            prefix=f'.{folder.name}-', dir=folder.parent, ignore_cleanup_errors=True) as private:
        temporary = Path(private) / folder.name
        temporary.mkdir()  # by whom it may be read is as the user's umask and the folder above say
        yield temporary
        if folder.exists():
            folder.rmdir()
        temporary.replace(folder)


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8 under a temporary name, then move it into place."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def read_yaml(path: Path) -> Any:
    """What a yaml file holds: plain values, lists and mappings.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not yaml, or not UTF-8; one line that names the file.
    """
    try:
        return yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not a yaml file: {" ".join(str(error).split())}') from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a file of JSON holds.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not JSON, or not UTF-8; one line that names the file.
    """
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is no JSON: {error}') from None


def read_summary(path: str | os.PathLike[str], columns: Collection[str] | None = None) -> list[dict[str, float]]:
    """Read a summary.csv, as timm's trainer and this package's write it: a dict per epoch, in the order of the epochs.

    A training that was resumed into its own folder may have written its header once more, and a second row of epochs
    that it trained again. As in timm's `trim_summary`, a row ends what was written before of its epoch and of later
    ones: the weights are no longer those.

    Args:
        path: The file.
        columns: What to read beside `epoch`; all by default, and then all must be numbers.

    Returns:
        Numbers by column, with `epoch` counted from 0; cells that are empty are left out.

    Raises:
        ValueError: naming the file and the line, if a row has no epoch, or something other than a number; or the file
            alone, if it is no CSV, or not UTF-8.
        OSError: if the file cannot be read.
    """
    try:
        return _read_summary(path, columns)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is no CSV: {error}') from None


def _read_summary(path: str | os.PathLike[str], columns: Collection[str] | None) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    header: list[str] = []
    with open(path, newline='', encoding='utf-8-sig') as file:  # spreadsheets begin it with a mark of the encoding
        lines = csv.reader(file)
        for cells in lines:
            if not cells:
                continue
            if not header or 'epoch' in cells:
                header = cells
                continue
            row = {}
            for name, text in zip(header, cells, strict=False):  # a line that is being written may lack some
                if text and (columns is None or name == 'epoch' or name in columns):
                    try:
                        row[name] = float(text)
                    except ValueError as error:
                        raise ValueError(
                            f'{path}, line {lines.line_num}: {name} is no number ({error})') from None
            if not math.isfinite(row.get('epoch', math.nan)):
                raise ValueError(
                    f'{path}, line {lines.line_num}: no epoch; a summary.csv of timm has that column')
            while rows and rows[-1]['epoch'] >= row['epoch']:
                rows.pop()
            rows.append(row)
    return rows


class Locked(ValueError):
    """Another process has the lock."""


@contextmanager
def lock(
        path: Path, wait: bool = False, held: str = 'another process has the lock', forked: bool = True,
) -> Iterator[int | None]:
    """Hold a lock on a file for as long as the block, or a child that was given it, is at work.

    Args:
        path: The file, which is made.
        wait: Wait for whoever has it, instead of raising.
        held: What to say where another process has it.
        forked: Processes that are forked from this one hold it, too, for as long as they live.

    Yields:
        The file's descriptor, for `run_child`; None where the file system has no locks, which is said on stderr.

    Raises:
        Locked: if another process has it.
        OSError: if the lock cannot be had for any other reason, such as a file system that is gone.
    """
    with open(path, 'w', encoding='utf-8') as file:
        if not forked and hasattr(os, 'register_at_fork'):
            os.register_at_fork(after_in_child=file.close)
        yield file.fileno() if fcntl is None or _flock(file.fileno(), path, wait, held) else None


def _flock(file: int, path: Path, wait: bool, held: str) -> bool:
    """Whether there is a lock now."""
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD:
                raise
            if not wait:
                raise Locked(held) from None
            print(f'waiting: {held}', file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NONE:
            raise OSError(error.errno, f'cannot be locked: {error.strerror}', str(path)) from None
        print(f'{path.parent} lies on a file system without locks ({error.strerror}): start no second run there',
              file=sys.stderr, flush=True)
        return False
    return True
