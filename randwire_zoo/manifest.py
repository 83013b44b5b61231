"""Published weights: which there are (`weights.json`), and how they are brought here and checked.

One row of the manifest says of an `arch.tag` where its file lies, a 40-digit revision, the file's size and sha256, and
what timm must know of it. `RANDWIRE_ZOO_WEIGHTS` names another such file whose rows are laid over it. No row, no
weights. timm's configurations are made of these rows in `models`.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from .weights_io import one_line

__all__ = ['FILENAME', 'HubError', 'PublishedWeights', 'check_file', 'download', 'fetch', 'hub_errors', 'read_manifest',
           'sha256_of']

PACKAGED = Path(__file__).parent / 'weights.json'
OVERLAY = 'RANDWIRE_ZOO_WEIGHTS'
FILENAME = 'model.safetensors'
HEX = {'revision': 40, 'sha256': 64, 'graphs_sha256': 64}


class HubError(OSError):
    """The Hub cannot be reached or refuses; the message is one line that names what was wanted and the cause."""


@dataclass(frozen=True)
class PublishedWeights:
    """A row of the manifest.

    Args:
        name: `arch.tag`.
        sha256: Of the file, 64 hexadecimal digits.
        size: Of the file, in bytes.
        num_classes: Width of the classifier.
        graphs_sha256: Of the wiring.
        license: SPDX identifier.
        repo_id: Repository on the Hub; its file is `model.safetensors`.
        revision: Commit of that repository, 40 hexadecimal digits.
        file: Instead of a repository: a path, relative to the manifest's folder.
        input_size: Channels, height and width.
        mean: Of the normalisation.
        std: Of the normalisation.
        interpolation: Of the resizing.
        crop_pct: Share of the image's shorter side that is left after cropping.
        metrics: As measured by the recorded run, in per cent.
        recipe: The recipe's name.
        description: One line.
    """

    name: str
    sha256: str
    size: int
    num_classes: int
    graphs_sha256: str
    license: str
    repo_id: str | None = None
    revision: str | None = None
    file: str | None = None
    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = 'bilinear'
    crop_pct: float = 0.875
    metrics: Mapping[str, float] = field(default_factory=dict)
    recipe: str | None = None
    description: str | None = None

    @property
    def architecture(self) -> str:
        """The registered name."""
        return self.name.partition('.')[0]

    @property
    def place(self) -> str:
        """Where the file lies, for people."""
        return f'{self.repo_id}@{self.revision}' if self.repo_id else str(self.file)

    def to_dict(self) -> dict[str, Any]:
        """The row as it stands in the file, under its name: what has a value that is not the default's."""
        row = asdict(self)
        del row['name']
        defaults = {f.name: f.default for f in fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in row.items()
                if value != defaults[key] and value != {}}

    @classmethod
    def from_dict(cls, name: str, row: Any) -> PublishedWeights:
        """Read a row.

        Raises:
            ValueError: naming the row, the key and what is allowed.
        """
        known = {f.name: f for f in fields(cls) if f.name != 'name'}
        if not re.fullmatch(r'randwire\w+\.\w+', name):
            raise ValueError(f'{name!r} is no arch.tag')
        if not isinstance(row, dict) or (unknown := sorted(row.keys() - known.keys())):
            raise ValueError(f'{name} has {"no" if not isinstance(row, dict) else "unknown"} keys'
                             + (f' ({", ".join(unknown)})' if isinstance(row, dict) else ''))
        required = [key for key, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
        if missing := [key for key in required if key not in row]:
            raise ValueError(f'{name} lacks {", ".join(missing)}')
        for key, digits in HEX.items():
            if row.get(key) is not None and not re.fullmatch(rf'[0-9a-f]{{{digits}}}', str(row[key])):
                raise ValueError(f'{name}: {key} must be {digits} hexadecimal digits, got {row[key]!r}')
        if ('file' in row) == ('repo_id' in row) or ('repo_id' in row) != ('revision' in row):
            raise ValueError(f'{name} must have either repo_id and revision, or file')
        if not isinstance(row['size'], int) or row['size'] < 1:
            raise ValueError(f'{name}: size must be a number of bytes, got {row["size"]!r}')
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        return cls(name=name, **values)


def read_manifest(path: str | os.PathLike[str] | None = None) -> dict[str, PublishedWeights]:
    """The rows of a manifest, by name; of the packaged one, with the overlay, by default.

    Rows of the overlay come first: of several tags of one name, timm takes the first one by default.

    Raises:
        FileNotFoundError: if a file that was named is not there.
        ValueError: naming the file, the row and the key that is wrong.
    """
    if path is not None:
        return _read(Path(path))
    rows = _read(PACKAGED)
    if overlay := os.environ.get(OVERLAY):
        laid_over = _read(Path(overlay).expanduser(), OVERLAY)
        rows = {**laid_over, **{name: row for name, row in rows.items() if name not in laid_over}}
    return rows


def _read(path: Path, source: str = '') -> dict[str, PublishedWeights]:
    where = f'{source} {path}'.strip()
    try:
        table = json.loads(path.read_text(encoding='utf-8'))
        if not isinstance(table, dict):
            raise ValueError('it must be an object with a row for each arch.tag')
        rows = {name: PublishedWeights.from_dict(name, row) for name, row in table.items()}
    except FileNotFoundError:
        raise FileNotFoundError(f'{where}: there is no such file') from None
    except (ValueError, TypeError) as error:
        raise ValueError(f'{where}: {one_line(error)}') from None
    folder = path.parent.resolve()
    return {name: row if row.file is None else PublishedWeights(**{**vars(row), 'file': str(folder / row.file)})
            for name, row in rows.items()}


def fetch(row: PublishedWeights) -> Path:
    """Bring a row's file here, unless it is, and make sure that it is the published one.

    A file that is in the Hub's cache costs no request, and is hashed once in a process.

    Raises:
        HubError: if it is not here and cannot be had.
        ValueError: if it has been altered.
    """
    what = f'{row.name} ({row.place})'
    if row.repo_id is None or row.revision is None:
        path = Path(str(row.file))
        if not path.is_file():
            raise FileNotFoundError(f'{what}: there is no such file')
    else:
        path = download(row.repo_id, row.revision, what=what)
    check_file(path, row.size, row.sha256, what)
    return path


def check_file(path: Path, size: int, sha256: str, what: str) -> None:
    """Compare a file's size and sha256 with what they must be.

    Raises:
        ValueError: naming both.
    """
    stat = path.stat()
    if stat.st_size != size:
        raise ValueError(f'{what} has been altered: {path} has {stat.st_size:,} bytes and must have {size:,}')
    found = _hash_once(str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if found != sha256:
        raise ValueError(f'{what} has been altered: {path} has sha256 {found} and must have {sha256}')


@cache
def _hash_once(path: str, inode: int, size: int, modified: int) -> str:
    return sha256_of(path)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with open(path, 'rb') as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def download(repo_id: str, revision: str | None = None, filename: str = FILENAME, what: str = '') -> Path:
    """The local path of a file of a model repository, from the Hub's cache or from the Hub.

    Args:
        repo_id: Such as `owner/name`.
        revision: Commit, tag or branch; a commit that is cached costs no request.
        filename: Of the file in the repository.
        what: Names the file in errors; the repository and revision by default.

    Raises:
        HubError: naming the cause.
        ValueError: if the repository's name is none.
    """
    from huggingface_hub import hf_hub_download

    what = what or f'{repo_id}@{revision or "main"}'
    with hub_errors(what, filename):
        return Path(hf_hub_download(repo_id, filename, revision=revision))


@contextmanager
def hub_errors(what: str, filename: str = FILENAME) -> Iterator[None]:
    """Turn whatever the Hub's client raises into one line that names the cause.

    Raises:
        HubError: for everything that the Hub, the network or a permission is to blame for.
        ValueError: if a repository's name is none.
    """
    from huggingface_hub import constants, errors

    start = time.monotonic()
    try:
        yield
    except errors.HFValidationError as error:
        raise ValueError(f'{what}: {one_line(error)}') from None
    except (OSError, errors.EntryNotFoundError) as error:
        raise HubError(f'{what}: {_cause(error, filename, time.monotonic() - start)}') from error
    except Exception as error:
        # Transport errors of the client's HTTP library, which depends on the client's version: httpx2 in 2.4.
        if not type(error).__module__.startswith(('httpx', 'httpcore', 'requests', 'urllib3', 'hf_xet')):
            raise
        raise HubError(f'{what}: the transfer from {constants.ENDPOINT} broke off ({type(error).__name__}: '
                       f'{one_line(error, 120)}); run it again to go on with it') from error


def _cause(error: BaseException, filename: str, seconds: float) -> str:
    from huggingface_hub import constants, errors

    endpoint = constants.ENDPOINT
    status = getattr(getattr(error, 'response', None), 'status_code', None)
    if isinstance(error, errors.GatedRepoError):
        return f'the repository is gated: ask for access at {endpoint} and log in (HF_TOKEN or `hf auth login`)'
    if isinstance(error, errors.RevisionNotFoundError):
        return 'the repository has no such revision (any more)'
    if isinstance(error, errors.RepositoryNotFoundError):
        return ('not published: there is no such repository, or it is private and the token, if there is one, may '
                'not read it')
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return 'it is not in the cache, and HF_HUB_OFFLINE is set'
        return f'it is not in the cache, and {endpoint} could not be reached (gave up after {seconds:.0f} s)'
    if isinstance(error, errors.EntryNotFoundError):
        return f'the repository has no {filename} at this revision'
    if isinstance(error, errors.OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set'
    if status == 401:
        return 'the Hub does not accept the token (HF_TOKEN, or the login)'
    if status == 403:
        return 'the token may not do this (HF_TOKEN, or the login)'
    if status is not None:
        return f'the Hub answered {status}: {one_line(error, 160)}'
    if 'Consistency check failed' in str(error):
        return 'the file arrived incomplete; run it again'
    return f'{type(error).__name__} after {seconds:.0f} s: {one_line(error, 200)}'
