"""Published weights: which there are (`weights.json`), and how they are brought here and checked.

One row of the manifest says of an `arch.tag` where its file lies, a 40-digit revision, the file's size and sha256, and
everything it takes to build the network and to feed it. `RANDWIRE_ZOO_WEIGHTS` names another such file whose rows are
laid over it. No row, no weights. timm's configurations are made of these rows in `models`.
"""
from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..architectures import ARCHITECTURES
from ..errors import one_line
from ..files import read_json
from .description import WEIGHT_SOURCES, Description
from .errors import loading

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ['FILENAME', 'LICENSE', 'HubError', 'PublishedWeights', 'check_repo_id', 'download', 'fetch', 'hub_errors',
           'published_weights', 'read_manifest', 'read_rows', 'read_weights', 'rows_in_use',
           'set_aside', 'sha256_of']

PACKAGED = Path(__file__).parents[1] / 'weights.json'
OVERLAY = 'RANDWIRE_ZOO_WEIGHTS'
FILENAME = 'model.safetensors'
HEX = {'revision': 40, 'sha256': 64, 'graphs_sha256': 64}
#: What an identifier of SPDX or of the Hub looks like.
LICENSE = re.compile(r'[A-Za-z0-9][A-Za-z0-9.+-]*')

_logger = logging.getLogger(__name__)


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
        model_args: What `create_model` is given beside the name and num_classes.
        input_size: Channels, height and width.
        mean: Of the normalisation.
        std: Of the normalisation.
        interpolation: Of the resizing.
        crop_pct: Share of the image's shorter side that is left after cropping.
        crop_mode: How the image is cropped.
        label_names: Of the classes, in the order of their indices.
        metrics: As measured by the recorded run, in per cent.
        recipe: The recipe's name.
        description: One line.
        label_descriptions: What the classes are called, by their names in label_names.
        is_default: Whether the network without a tag has these classes and this image size where no weights are asked
            for, as timm's default tag has it; otherwise it is that of the paper.

    Raises:
        ValueError: naming the row, the key and what is allowed.
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
    model_args: Mapping[str, Any] = field(default_factory=dict)
    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = 'bilinear'
    crop_pct: float = 0.875
    crop_mode: str = 'center'
    label_names: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    recipe: str | None = None
    description: str | None = None
    label_descriptions: Mapping[str, str] = field(default_factory=dict)
    is_default: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r'randwire(_\w+)?\.\w+', self.name, re.ASCII):
            raise ValueError(f'{self.name!r} is no arch.tag')
        try:
            self._check()
            network = self.network
        except ValueError as error:
            raise ValueError(f'{self.name}: {error}') from None
        for key in ('input_size', 'mean', 'std', 'crop_pct', 'label_names'):  # as the description converted them
            object.__setattr__(self, key, getattr(network, key))

    def _check(self) -> None:
        for key in (f.name for f in fields(self) if f.type in ('str', 'str | None')):
            value, optional = getattr(self, key), key in ('repo_id', 'revision', 'file', 'recipe', 'description')
            if not (optional and value is None) and (
                    not isinstance(value, str) or not value.strip() or len(value.splitlines()) > 1):
                raise ValueError(f'{key} must be one line of text, got {value!r}')
        for key, digits in HEX.items():
            value = getattr(self, key)
            if value is not None and not re.fullmatch(rf'[0-9a-f]{{{digits}}}', value):
                raise ValueError(f'{key} must be {digits} hexadecimal digits, got {value!r}')
        if (self.file is None) == (self.repo_id is None) or (self.repo_id is None) != (self.revision is None):
            raise ValueError('it must have either repo_id and revision, or file')
        if self.repo_id is not None:
            check_repo_id(self.repo_id)
        for key, least, unit in (('size', 1, 'number of bytes'), ('num_classes', 0, 'number of classes')):
            if type(getattr(self, key)) is not int or getattr(self, key) < least:
                raise ValueError(f'{key} must be a {unit}, got {getattr(self, key)!r}')
        if not LICENSE.fullmatch(self.license):
            raise ValueError(f'license must be an identifier such as apache-2.0, got {self.license!r}')
        if not isinstance(self.model_args, Mapping) or {'num_classes', *WEIGHT_SOURCES} & set(self.model_args):
            raise ValueError(f'model_args must be a mapping without num_classes and sources of weights, got '
                             f'{self.model_args!r}')
        if not isinstance(self.label_names, (list, tuple)):
            raise ValueError(f'label_names must be a list of names, got {self.label_names!r}')
        if self.label_names and len(self.label_names) != self.num_classes:
            raise ValueError(f'label_names has {len(self.label_names)} names for {self.num_classes} classes')
        if not isinstance(self.label_descriptions, Mapping) or not all(
                isinstance(text, str) for item in self.label_descriptions.items() for text in item):
            raise ValueError(f'label_descriptions must be texts by name, got {self.label_descriptions!r}')
        if not isinstance(self.is_default, bool):
            raise ValueError(f'is_default must be true or false, got {self.is_default!r}')
        if not isinstance(self.metrics, Mapping) or any(
                not isinstance(value, (int, float)) or isinstance(value, bool) for value in self.metrics.values()):
            raise ValueError(f'metrics must be numbers by name, got {self.metrics!r}')

    @property
    def architecture(self) -> str:
        """The registered name."""
        return self.name.partition('.')[0]

    @property
    def tag(self) -> str:
        """timm's, of the weights."""
        return self.name.partition('.')[2]

    @property
    def network(self) -> Description:
        """How to build the network and to feed it."""
        return Description(
            self.architecture, {'num_classes': self.num_classes, **self.model_args}, self.input_size, self.mean,
            self.std, self.interpolation, self.crop_pct, self.crop_mode, self.label_names)

    @property
    def place(self) -> str:
        """Where the file lies, for people."""
        return f'{self.repo_id}@{self.revision}' if self.repo_id else str(self.file)

    def to_dict(self) -> dict[str, Any]:
        """The row as it stands in the file, under its name: what has a value that is not the default's."""
        row = {}
        for f in fields(self):
            value = getattr(self, f.name)
            default = f.default if f.default_factory is MISSING else f.default_factory()
            if f.name != 'name' and value != default:
                row[f.name] = (list(value) if isinstance(value, tuple)
                               else dict(value) if isinstance(value, Mapping) else value)
        return row

    @classmethod
    def from_dict(cls, name: str, row: Any) -> PublishedWeights:
        """Read a row.

        Raises:
            ValueError: naming the row, the key and what is allowed.
        """
        known = {f.name: f for f in fields(cls) if f.name != 'name'}
        if not isinstance(row, dict):
            raise ValueError(f'{name} has no keys, but is {row!r}')
        if unknown := sorted(row.keys() - known.keys()):
            raise ValueError(f'{name} has unknown keys ({", ".join(unknown)})')
        required = [key for key, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
        if missing := [key for key in required if key not in row]:
            raise ValueError(f'{name} lacks {", ".join(missing)}')
        if empty := [key for key, value in row.items() if value is None]:
            raise ValueError(f'{name}: {empty[0]} must be left out where there is none, got null')
        return cls(name=name, **row)


@cache
def published_weights() -> dict[str, PublishedWeights]:
    """The rows of `read_manifest`, as this process found them first."""
    return read_manifest()


def read_manifest(path: str | os.PathLike[str] | None = None) -> dict[str, PublishedWeights]:
    """The rows of a manifest, by name; of the packaged one, with the overlay, by default.

    A wrong row is left out, and an overlay that cannot be read is, with one line in the log. Rows of the overlay come
    first, and in either those that are a name's default: `pretrained=True` takes the first.

    Raises:
        FileNotFoundError: if a file that was named is not there.
        ValueError: if it is no manifest.
    """
    if path is None:
        rows, problems = rows_in_use()
    else:
        rows, problems = read_rows(path)
        rows = _defaults_first(rows)
    for problem in problems:
        _logger.warning('%s', problem)
    return rows


def rows_in_use() -> tuple[dict[str, PublishedWeights], list[str]]:
    """What `read_manifest` reads by default, and one line about each row, or file, that it leaves out."""
    rows, problems = read_rows(PACKAGED)
    if overlay := os.environ.get(OVERLAY):
        try:
            laid_over, wrong = read_rows(Path(overlay).expanduser())
        except (OSError, ValueError) as error:
            laid_over, wrong = {}, [f'{one_line(error)}; it is left out']
        problems += [f'{OVERLAY} {problem}' for problem in wrong]
        rows = {**_defaults_first(laid_over), **{
            name: row for name, row in _defaults_first(rows).items() if name not in laid_over}}
    else:
        rows = _defaults_first(rows)
    for name in [name for name, row in rows.items() if row.architecture not in (*ARCHITECTURES, 'randwire')]:
        problems.append(f'the manifest has weights {name}, but there is no such network; the row is left out')
        del rows[name]
    return rows, problems


def _defaults_first(rows: Mapping[str, PublishedWeights]) -> dict[str, PublishedWeights]:
    return dict(sorted(rows.items(), key=lambda item: not item[1].is_default))


def read_rows(path: str | os.PathLike[str]) -> tuple[dict[str, PublishedWeights], list[str]]:
    """The right rows of a manifest, by name, and one line about each that is wrong.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no table of rows.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: there is no such file')
    table = read_json(path)
    if not isinstance(table, dict):
        raise ValueError(f'{path}: it must be an object with a row for each arch.tag')
    rows, problems = {}, []
    for name, row in table.items():
        try:
            rows[name] = PublishedWeights.from_dict(name, row)
        except ValueError as error:
            problems.append(f'{path}: {one_line(error)}; the row is left out')
            continue
        if (file := rows[name].file) is not None:
            rows[name] = replace(rows[name], file=str(path.parent.resolve() / file))
    return rows, problems


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        ValueError: if it is not OWNER/NAME as the Hub allows it.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        parts = repo_id.split('/')
        if len(parts) != 2 or not all(re.fullmatch(r'[A-Za-z0-9_][\w.-]*', part, re.ASCII) for part in parts):
            raise HFValidationError
    except HFValidationError:
        raise ValueError(f'a repository is named OWNER/NAME, of letters, digits, ., - and _, got {repo_id!r}') from None


def fetch(row: PublishedWeights, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Bring a row's file here, unless it is, and make sure that it is the published one.

    A file that is in the Hub's cache costs no request. One that is not what it must be is set aside and fetched anew.

    Args:
        row: Of the manifest.
        cache_dir: Instead of the Hub's own cache.

    Raises:
        FileNotFoundError: if it is to lie here, and does not.
        HubError: if it is not here and cannot be had.
        ValueError: if it has been altered, and comes no better from the Hub.
    """
    return _read(row, cache_dir)[0]


def read_weights(row: PublishedWeights, cache_dir: str | os.PathLike[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a row: what is hashed is what is loaded, so that nothing can come in between.

    Args and errors are those of `fetch`.
    """
    import safetensors.torch  # and torch with it; the rows are read without either

    path, data = _read(row, cache_dir)
    with loading(path):
        return safetensors.torch.load(data)


def _read(row: PublishedWeights, cache_dir: str | os.PathLike[str] | None) -> tuple[Path, bytes]:
    what = f'{row.name} ({row.place})'
    if row.repo_id is None or row.revision is None:
        path = Path(str(row.file))
        if not path.is_file():
            raise FileNotFoundError(f'{what}: there is no such file')
        data = path.read_bytes()
        if difference := _difference(row, data):
            raise ValueError(f'{what} has been altered: {path} {difference}')
        return path, data
    path = download(row.repo_id, row.revision, what=what, cache_dir=cache_dir)
    data = path.read_bytes()
    if not (difference := _difference(row, data)):
        return path, data
    altered = f'{what} has been altered: {path} {difference}'
    aside = set_aside(path, altered)
    try:
        path = download(row.repo_id, row.revision, what=what, cache_dir=cache_dir)
    except HubError as error:
        raise HubError(f'{altered}; it was set aside as {aside}, but cannot be fetched anew: {error}') from error
    data = path.read_bytes()
    if not _difference(row, data):
        _logger.warning('%s; it was set aside as %s and fetched anew', altered, aside)
        return path, data
    aside = set_aside(path, altered)
    raise ValueError(f'{altered}; fetched anew it is no better, and lies as {aside}')


def _difference(row: PublishedWeights, data: bytes) -> str:
    if len(data) != row.size:
        return f'has {len(data):,} bytes and must have {row.size:,}'
    found = hashlib.sha256(data).hexdigest()
    return '' if found == row.sha256 else f'has sha256 {found} and must have {row.sha256}'


def set_aside(path: Path, altered: str) -> Path:
    """Rename a file of the Hub's cache, so that nothing finds it there; the cache's links lead to the file.

    Args:
        path: Of the file.
        altered: What is wrong with it, for the error.

    Returns:
        Where it lies now.

    Raises:
        ValueError: if it cannot be renamed.
    """
    file = path.resolve()
    aside = file.with_name(f'{file.name}.altered')
    try:
        if file.exists():  # another process may have been faster
            file.replace(aside)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f'{altered}, and cannot be set aside ({error.strerror}): remove {file}') from error
    return aside


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with open(path, 'rb') as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def download(repo_id: str, revision: str | None = None, filename: str = FILENAME, what: str = '',
             cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The local path of a file of a model repository, from the Hub's cache or from the Hub.

    Args:
        repo_id: Such as `owner/name`.
        revision: Commit, tag or branch; a commit that is cached costs no request.
        filename: Of the file in the repository.
        what: Names the file in errors; the repository and revision by default.
        cache_dir: Instead of the Hub's own cache.

    Raises:
        HubError: naming the cause.
        ValueError: if the repository's name is none.
    """
    from huggingface_hub import hf_hub_download

    what = what or f'{repo_id}@{revision or "main"}'
    with hub_errors(what, filename):
        return Path(hf_hub_download(
            repo_id, filename, revision=revision, cache_dir=None if cache_dir is None else os.fspath(cache_dir)))


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
    except HubError:
        raise  # of a transfer within this one, which has said it
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
    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        return f'the repository is gated: ask for access at {endpoint} and log in (HF_TOKEN or `hf auth login`)'
    if isinstance(error, errors.RevisionNotFoundError):
        return 'the repository has no such revision (any more)'
    if isinstance(error, errors.RepositoryNotFoundError):
        return ('not published: there is no such repository, or it is private and the token, if there is one, may '
                'not read it')
    if isinstance(error, errors.LocalEntryNotFoundError) and status is None:
        if constants.HF_HUB_OFFLINE:
            return 'it is not in the cache, and HF_HUB_OFFLINE is set'
        return f'it is not in the cache, and {endpoint} could not be reached (gave up after {seconds:.0f} s)'
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
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


def _status(error: BaseException | None) -> int | None:
    """What the server answered, where the client tells it, or tells it as the cause of what it raises."""
    while error is not None:
        status = getattr(getattr(error, 'response', None), 'status_code', None)
        if status is not None:
            return int(status)
        error = error.__cause__
    return None
