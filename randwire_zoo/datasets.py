"""Data sets as image folders: `train/` and `val/` or `validation/`, with a folder for each class."""
from __future__ import annotations

import argparse
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .digits import write_digits
from .errors import one_line
from .files import atomic_folder

__all__ = ['TinyImageNet', 'add_arguments', 'main', 'read_label_texts', 'write_tiny_imagenet']

LABEL_TEXTS = 'words.txt'


@dataclass(frozen=True)
class TinyImageNet:
    """What was written.

    Args:
        folder: The image folder.
        classes: Number of classes.
        training: Number of training images.
        validation: Number of validation images.
    """

    folder: Path
    classes: int
    training: int
    validation: int


def write_tiny_imagenet(source: str | Path, folder: str | Path) -> TinyImageNet:
    """Write the image folder of Tiny ImageNet: train/WNID/ and val/WNID/, and the classes' names in `words.txt`.

    The archive has its validation images in one folder and their labels in a table, and no labels of its test images,
    which are left out. It says itself how many images there must be: one line for each, of a box in a training image or
    of the label of a validation image.

    Args:
        source: The archive `tiny-imagenet-200.zip`, or a folder with what is in it.
        folder: Where to; it appears only when it is complete.

    Raises:
        FileNotFoundError: if there is no such source.
        FileExistsError: if the folder exists and is not empty.
        ValueError: if the source is something else, or is not whole.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f'{folder} exists and is not empty; name another folder')
    with _files(Path(source)) as files:
        wnids = _lines(source, files, 'wnids.txt')
        if not wnids or len(set(wnids)) != len(wnids) or any('/' in wnid or '.' in wnid for wnid in wnids):
            raise ValueError(f'{source}: wnids.txt names no classes, or one twice')
        texts = dict(line.split('\t', 1) for line in _lines(source, files, 'words.txt') if '\t' in line)
        wanted: dict[str, str] = {}  # from the name here to the name there
        for wnid in wnids:
            for line in _lines(source, files, f'train/{wnid}/{wnid}_boxes.txt'):
                image = line.split('\t')[0]
                wanted[f'train/{wnid}/{image}'] = f'train/{wnid}/images/{image}'
        training = len(wanted)
        for line in _lines(source, files, 'val/val_annotations.txt'):
            image, wnid = line.split('\t')[:2]
            if wnid not in wnids:
                raise ValueError(f'{source}: val_annotations.txt has the class {wnid!r}, which wnids.txt has not')
            wanted[f'val/{wnid}/{image}'] = f'val/images/{image}'
        missing = [name for name in wanted.values() if name not in files]
        if missing:
            raise ValueError(f'{source} lacks {len(missing):,} of {len(wanted):,} images, such as {missing[0]}')
        if len(set(wanted.values())) != len(wanted):
            raise ValueError(f'{source}: val_annotations.txt names an image twice')

        with atomic_folder(folder) as temporary:
            for wnid in wnids:
                for split in ('train', 'val'):
                    (temporary / split / wnid).mkdir(parents=True)
            for here, there in wanted.items():
                try:
                    data = files[there]()
                except zipfile.BadZipFile as error:
                    raise ValueError(f'{source} is damaged: {one_line(error)}') from None
                if not data:
                    raise ValueError(f'{source}: {there} is empty')
                (temporary / here).write_bytes(data)
            (temporary / LABEL_TEXTS).write_text(
                ''.join(f'{wnid}\t{texts.get(wnid, wnid)}\n' for wnid in sorted(wnids)), encoding='utf-8')
    return TinyImageNet(folder, len(wnids), training, len(wanted) - training)


def read_label_texts(folder: str | Path) -> dict[str, str]:
    """What the classes of an image folder are called, by the names of their folders; empty if it does not say so."""
    path = Path(folder) / LABEL_TEXTS
    if not path.is_file():
        return {}
    lines = path.read_text(encoding='utf-8').splitlines()
    return dict(line.split('\t', 1) for line in lines if '\t' in line)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser the arguments of `main`."""
    kinds = parser.add_subparsers(dest='kind', metavar='NAME', required=True)
    sub = kinds.add_parser('digits', help="scikit-learn's 1,797 handwritten digits, which come with it")
    sub.add_argument('folder', metavar='FOLDER', help='image folder to write')
    sub = kinds.add_parser(
        'tiny-imagenet', help='200 classes of ImageNet at 64 pixels, from its archive',
        description="Tiny ImageNet as an image folder. The images are under ImageNet's terms of use, and you have to "
                    'fetch the archive yourself.')
    sub.add_argument('source', metavar='SOURCE', help='tiny-imagenet-200.zip, or a folder with what is in it')
    sub.add_argument('folder', metavar='FOLDER', help='image folder to write')


def main(args: argparse.Namespace) -> int:
    """Write the data set that the parsed arguments name.

    Raises:
        ValueError, OSError: see `write_tiny_imagenet` and `write_digits`.
    """
    if args.kind == 'digits':
        print(write_digits(args.folder))
        return 0
    written = write_tiny_imagenet(args.source, args.folder)
    print(f'{written.folder}: {written.classes:,} classes, {written.training:,} training and '
          f'{written.validation:,} validation images')
    return 0


@contextmanager
def _files(source: Path) -> Iterator[Mapping[str, Callable[[], bytes]]]:
    """How to read each file of the source, by its name below the folder that wnids.txt lies in."""
    if source.is_dir():
        found = [path.parent for path in (source / 'wnids.txt', source / 'tiny-imagenet-200' / 'wnids.txt')
                 if path.is_file()]
        root = found[0] if found else source
        yield {path.relative_to(root).as_posix(): path.read_bytes for path in root.rglob('*') if path.is_file()}
        return
    if not source.exists():
        raise FileNotFoundError(f'no archive or folder at {source}')
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError):
        raise ValueError(f'{source} is no whole zip archive') from None
    with archive:
        names = [name for name in archive.namelist() if not name.endswith('/')]
        root_name = next((name[:-len('wnids.txt')] for name in names if name.rpartition('/')[2] == 'wnids.txt'), '')
        yield {name[len(root_name):]: partial(archive.read, name) for name in names if name.startswith(root_name)}


def _lines(source: str | Path, files: Mapping[str, Callable[[], bytes]], name: str) -> list[str]:
    if name not in files:
        raise ValueError(f'{source} is no Tiny ImageNet, or not a whole one: it has no {name}')
    try:
        return [line for line in files[name]().decode('utf-8').splitlines() if line.strip()]
    except (UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise ValueError(f'{source}: {name} cannot be read: {one_line(error)}') from None
