"""What a data set is made from: an archive as it is published, or a folder with what is in it."""
from __future__ import annotations

import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from PIL import ExifTags, Image, UnidentifiedImageError

from ..errors import one_line

__all__ = ['EVERY', 'SUFFIXES', 'BrokenFileError', 'DeepImageError', 'Files', 'check_depth', 'check_label',
           'copy_files', 'free_folder', 'hold_out', 'is_hidden', 'is_turned', 'open_files', 'open_image', 'read_file']

#: How to read each file, by its name.
Files = Mapping[str, Callable[[], bytes]]
#: Which share of images is held out where nothing says which: every so manieth.
EVERY = 5
#: How names of images end that Pillow reads by itself.
SUFFIXES = ('.bmp', '.gif', '.jfif', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


class BrokenFileError(ValueError):
    """A file of a source that makes no sense; one line that names it.

    torch raises what a loader's process raised once more, with that process's traceback before the message: it goes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f'{type(self).__name__}: ')[2].strip())


class DeepImageError(BrokenFileError):
    """An image of more than 8 bits a pixel, of which Pillow would make one that is almost all white."""


def free_folder(folder: str | Path) -> Path:
    """The folder, which has to be missing or empty."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f'{folder} exists and is not empty; name another folder')
    return folder


def copy_files(source: str | Path, files: Files, wanted: Mapping[str, str], folder: Path) -> None:
    """Write files of a source, by their names here and there."""
    for parent in {(folder / here).parent for here in wanted}:
        parent.mkdir(parents=True, exist_ok=True)
    for here, there in wanted.items():
        data = read_file(source, files, there)
        if not data:
            raise ValueError(f'{source}: {there} is empty')
        (folder / here).write_bytes(data)


def read_file(source: str | Path, files: Files, name: str) -> bytes:
    """What a file of the source holds.

    Raises:
        ValueError: if the archive is damaged there, or packed in a way that Python cannot read.
    """
    try:
        return files[name]()
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f'{source} is damaged: {name}: {one_line(error)}') from None
    except RuntimeError as error:  # a password, or Deflate64, in which Windows packs large archives
        raise ValueError(f'{source}: {name} cannot be unpacked: {one_line(error)}; unpack the archive with another '
                         'program and name the folder') from None


def is_hidden(name: str) -> bool:
    """Whether a file is a system's own, such as what a Mac leaves in archives."""
    return any(part.startswith('.') or part == '__MACOSX' for part in PurePosixPath(name).parts)


def hold_out(names: Sequence[str], every: int) -> tuple[list[str], list[str]]:
    """What to train on and what to measure on: every so manieth is held out.

    Raises:
        ValueError: if there would be nothing to train on.
    """
    if every < 2:
        raise ValueError(f'every must be at least 2, got {every}')
    return [name for index, name in enumerate(names) if index % every != every - 1], list(names[every - 1::every])


@contextmanager
def open_image(name: str, data: bytes) -> Iterator[Image.Image]:
    """An image of which all pixels are decoded.

    Raises:
        BrokenFileError: if that cannot be done, or what the block reads of it is broken.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            yield image
    except BrokenFileError:
        raise
    except UnidentifiedImageError:
        raise BrokenFileError(f'{name} is no image') from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BrokenFileError(f'{name} is broken: {one_line(error)}') from None


def check_depth(name: str, image: Image.Image) -> None:
    """Refuse an image that Pillow cannot turn to 8 bits: it takes all above 255 for white.

    Raises:
        DeepImageError: naming the image, if it has more bits a pixel, such as a grey PNG of 16.
    """
    if image.mode.startswith(('I', 'F')):
        raise DeepImageError(f'{name} has more than 8 bits a pixel, of which all above 255 would be taken for white; '
                             'write it with 8 bits first')


def is_turned(image: Image.Image) -> bool:
    """Whether EXIF says that an image is shown otherwise than its pixels lie.

    Args:
        image: A decoded one: Pillow turns TIFF itself, and then forgets that it was turned.
    """
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    except Exception:  # an EXIF block that cannot be read says nothing
        return False


def check_label(place: object, label: str) -> None:
    """Refuse the name of a class that none of the files can hold that have it: tables, cards, JSON.

    Raises:
        ValueError: naming the place and the class.
    """
    try:
        label.encode()
    except UnicodeEncodeError:
        raise ValueError(f'{place}: the name of the class folder {label!r} is no UTF-8; rename the folder') from None


@contextmanager
def open_files(source: Path, mark: str | None = None) -> Iterator[Files]:
    """How to read each file of the source, by its name there, or below the folder that the mark lies in.

    Args:
        source: A folder, or an archive of zip or tar.
        mark: A file or folder in it, or in an archive `<mark>.tar.gz` in it.

    Raises:
        FileNotFoundError: if there is no such source.
        ValueError: if it is no whole archive.
    """
    if source.is_dir():
        marks = [] if mark is None else [source / mark, *sorted(source.glob(f'*/{mark}'))]
        root = next((path.parent for path in marks if path.exists()), source)
        yield {path.relative_to(root).as_posix(): path.read_bytes for path in _walk(root)}
        return
    if not source.exists():
        raise FileNotFoundError(f'no archive or folder at {source}')
    with source.open('rb') as file, _archive(source, file) as files:
        if mark is None:
            yield files
            return
        nested = [name for name in files if name.rpartition('/')[2] == f'{mark}.tar.gz']
        if not nested:
            yield _below(files, mark)
            return
        with _archive(source, io.BytesIO(read_file(source, files, nested[0]))) as files:
            yield _below(files, mark)


def _walk(root: Path) -> Iterator[Path]:
    """The files below a folder, those behind links to other folders too."""
    for place, folders, names in os.walk(root, followlinks=True):
        here = Path(place).resolve()
        folders[:] = [name for name in folders if not here.is_relative_to((here / name).resolve())]  # a link back up
        yield from (path for name in names if (path := Path(place) / name).is_file())


@contextmanager
def _archive(source: Path, file: IO[bytes]) -> Iterator[Files]:
    """How to read each file of a zip archive, or of a tar archive that is compressed."""
    try:
        is_zip = file.read(2) == b'PK'
        file.seek(0)
        archive = zipfile.ZipFile(file) if is_zip else None
        members = {} if is_zip else _unpacked(file)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error):
        raise ValueError(f'{source} is no whole archive') from None
    if archive is None:
        yield {name: partial(bytes, data) for name, data in members.items()}
        return
    with archive:
        yield {_plain(name): partial(archive.read, name) for name in archive.namelist() if not name.endswith('/')}


def _unpacked(file: IO[bytes]) -> dict[str, bytes]:
    """All files of a tar archive, read in one pass: to seek in a compressed one is to decompress it again."""
    found = {}
    with tarfile.open(fileobj=file) as members:
        for member in members:
            content = members.extractfile(member)
            if content is not None:
                found[_plain(member.name)] = content.read()
    return found


def _plain(name: str) -> str:
    """A name in an archive without the ./ before it that `tar -C FOLDER .` writes."""
    return PurePosixPath(name).as_posix()


def _below(files: Files, mark: str) -> Files:
    """The same by their names below the folder that the mark lies in."""
    places = [name.split('/') for name in files]
    root = next((''.join(f'{part}/' for part in parts[:parts.index(mark)]) for parts in places if mark in parts), '')
    return {name[len(root):]: read for name, read in files.items() if name.startswith(root)}
