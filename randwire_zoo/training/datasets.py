"""Data sets as image folders: `train/` and `val/`, `validation/` or `test/`, with a folder for each class."""
from __future__ import annotations

import argparse
import io
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import ImageOps
from timm.data import get_img_extensions

from ..errors import one_line
from ..files import atomic_folder, cache_folder
from .archives import (
    EVERY,
    SUFFIXES,
    BrokenFileError,
    Files,
    check_depth,
    check_label,
    copy_files,
    free_folder,
    hold_out,
    is_hidden,
    is_turned,
    open_files,
    open_image,
    read_file,
)
from .boxes import SPLITS, write_voc
from .digits import write_digits

__all__ = ['ImageFolder', 'main', 'read_label_texts', 'write_caltech101', 'write_class_folders', 'write_downloaded',
           'write_tiny_imagenet']

LABEL_TEXTS = 'words.txt'
CALTECH = '101_ObjectCategories'
#: Photographs of nothing in particular, which are no category (torchvision leaves them out, too).
BACKGROUND = 'BACKGROUND_Google'
#: Modes of Pillow's that a file of each kind has.
MODES = {'PNG': ('1', 'L', 'LA', 'P', 'RGB', 'RGBA'), 'JPEG': ('L', 'RGB', 'CMYK')}
#: What is lost of a photograph that is turned and written once more is not to be seen.
QUALITY = {'PNG': {}, 'JPEG': {'quality': 95, 'subsampling': 0}}

@dataclass(frozen=True)
class ImageFolder:
    """What was written.

    Args:
        folder: The image folder.
        classes: Number of classes.
        training: Number of training images.
        validation: Number of images that are held out.
        left_out: What is not there, a phrase each.
        rewritten: How many images are there as PNG files, by what their names ended in.
        turned: How many images were set upright.
    """

    folder: Path
    classes: int
    training: int
    validation: int
    left_out: Sequence[str] = ()
    rewritten: Mapping[str, int] = field(default_factory=dict)
    turned: int = 0

    def __str__(self) -> str:
        counts = f'{self.classes:,} classes, {self.training:,} training and {self.validation:,} validation images'
        rewritten = [f'written as PNG: {_counted(self.rewritten)}'] if self.rewritten else []
        turned = [f'set upright, as EXIF says: {self.turned:,}'] if self.turned else []
        return '\n'.join(
            [f'{self.folder}: {counts}', *rewritten, *turned, *(f'left out: {phrase}' for phrase in self.left_out)])


def write_tiny_imagenet(source: str | Path, folder: str | Path) -> ImageFolder:
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
    folder = free_folder(folder)
    with open_files(Path(source), 'wnids.txt') as files:
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
            copy_files(source, files, wanted, temporary)
            (temporary / LABEL_TEXTS).write_text(
                ''.join(f'{wnid}\t{texts.get(wnid, wnid)}\n' for wnid in sorted(wnids)), encoding='utf-8')
    return ImageFolder(folder, len(wnids), training, len(wanted) - training)


def write_caltech101(
        source: str | Path, folder: str | Path, per_class: int | None = None, seed: int = 1) -> ImageFolder:
    """Write the image folder of Caltech-101: train/CATEGORY/ and val/CATEGORY/, of 101 categories.

    Which images are trained on, lists `train.txt` and `test.txt` beside the folder of the images say, a line such as
    `accordion/image_0002.jpg` each; without them, or where `per_class` is given, so many of each category are drawn,
    and all others are measured on, as publications about this data set have it. `BACKGROUND_Google` is left out.

    Args:
        source: The archive `caltech-101.zip`, the `101_ObjectCategories.tar.gz` in it, or a folder with
            `101_ObjectCategories/` in it.
        folder: Where to; it appears only when it is complete.
        per_class: Images of each category to train on; 30 where there are no lists.
        seed: Of the draw.

    Raises:
        FileNotFoundError: if there is no such source.
        FileExistsError: if the folder exists and is not empty.
        ValueError: if the source is something else or is not whole, or a category is too small.
    """
    folder = free_folder(folder)
    if per_class is not None and per_class < 1:
        raise ValueError(f'per_class must be at least 1, got {per_class}')
    with open_files(Path(source), CALTECH) as files:
        images = sorted(name.removeprefix(f'{CALTECH}/') for name in files
                        if re.fullmatch(rf'{CALTECH}/(?!{BACKGROUND}/)[^/]+/\w[^/]*\.jpg', name))
        if not images:
            raise ValueError(f'{source} is no Caltech-101: it has no images in {CALTECH}')
        categories = sorted({name.partition('/')[0] for name in images})
        if per_class is None and 'train.txt' in files and 'test.txt' in files:
            splits = {split: [line.strip() for line in _lines(source, files, name)]
                      for split, name in (('train', 'train.txt'), ('val', 'test.txt'))}
            splits = {split: [name for name in names if not name.startswith(f'{BACKGROUND}/')]
                      for split, names in splits.items()}
            listed = splits['train'] + splits['val']
            if odd := sorted(set(images) ^ set(listed)):
                raise ValueError(f'{source}: the lists and the images differ in {len(odd):,}, such as {odd[0]}')
            if len(set(listed)) != len(listed):
                raise ValueError(f'{source}: train.txt and test.txt name an image twice')
        else:
            generator, count = random.Random(seed), 30 if per_class is None else per_class
            splits = {'train': [], 'val': []}
            for category in categories:
                members = [name for name in images if name.startswith(f'{category}/')]
                if len(members) <= count:
                    raise ValueError(f'{source}: {category} has {len(members)} images, too few to train on {count} '
                                     'and measure on others')
                drawn = set(generator.sample(members, count))
                splits['train'] += sorted(drawn)
                splits['val'] += [name for name in members if name not in drawn]
        with atomic_folder(folder) as temporary:
            copy_files(source, files, {f'{split}/{name}': f'{CALTECH}/{name}' for split, names in splits.items()
                                  for name in names}, temporary)
    return ImageFolder(folder, len(categories), len(splits['train']), len(splits['val']))


def write_downloaded(name: str, folder: str | Path, root: str | Path | None = None) -> ImageFolder:
    """Write the image folder of a data set that torchvision downloads: train/CLASS/ and test/CLASS/, of PNG files.

    Args:
        name: 'cifar10', whose classes have their names, or 'mnist', whose classes are the digits.
        folder: Where to; it appears only when it is complete.
        root: Where torchvision keeps its files, or finds them: a folder of the package's cache by default.

    Raises:
        FileExistsError: if the folder exists and is not empty.
        OSError, ValueError: if torchvision cannot download or read its files.
    """
    from torchvision import datasets

    folder, root = free_folder(folder), Path(root) if root is not None else cache_folder() / 'torchvision'
    source = {'cifar10': datasets.CIFAR10, 'mnist': datasets.MNIST}[name]
    try:
        splits = {split: source(root, train=split == 'train', download=True) for split in ('train', 'test')}
    except (RuntimeError, EOFError) as error:
        raise ValueError(f'torchvision has no whole {name} in {root}: {one_line(error)}') from None
    names = splits['train'].classes if name == 'cifar10' else [str(digit) for digit in range(10)]
    with atomic_folder(folder) as temporary:
        for split, images in splits.items():
            for index, (image, label) in enumerate(images):
                place = temporary / split / names[label]
                place.mkdir(parents=True, exist_ok=True)
                image.save(place / f'{index:05}.png')
    return ImageFolder(folder, len(names), len(splits['train']), len(splits['test']))


def write_class_folders(source: str | Path, folder: str | Path, every: int = EVERY) -> ImageFolder:
    """Write the image folder of photographs in a folder per class: train/CLASS/ and validation/CLASS/.

    Of each class every so manieth image by name is held out; of one that has fewer, the last. Images are the files that
    timm or Pillow takes for such by the ending of their name, and that can be decoded to 8 bits a channel; others are
    left out. Those that timm would pass over are written as PNG, and upright those that EXIF says are turned: timm does
    not heed it.

    Args:
        source: A folder with a folder of images per class, or an archive of such folders or of one with them in it.
        folder: Where to; it appears only when it is complete.
        every: Hold out every so manieth.

    Raises:
        FileNotFoundError: if there is no such source.
        FileExistsError: if the folder exists and is not empty.
        ValueError: if the folders are not such, or are split already, or a class has less than two images, or a name
            that is no UTF-8.
    """
    folder, source = free_folder(folder), Path(source)
    if folder.resolve().is_relative_to(source.resolve()):
        raise ValueError(f'{folder} lies in {source}, of which it is to be made; name another folder')
    with open_files(source) as found:
        files = {name: read for name, read in found.items() if not is_hidden(name)}
        tops = {name.partition('/')[0] for name in files}
        if not source.is_dir() and len(tops) == 1 and all(name.count('/') > 1 for name in files):
            files = {name.partition('/')[2]: read for name, read in files.items()}  # the folder that was packed
        classes, turned, left_out = _class_folders(source, files)
        wanted: dict[str, str] = {}  # from the name here to the name there
        training = 0
        rewritten: Counter[str] = Counter()
        for names in classes.values():
            train, held_out = hold_out(names, every)
            if not held_out:
                train, held_out = names[:-1], names[-1:]
            for split, members in (('train', train), ('validation', held_out)):
                for name in members:
                    here = name
                    if not name.lower().endswith(get_img_extensions()):
                        rewritten[PurePosixPath(name).suffix.lower()] += 1
                        while here in files:
                            here += '.png'
                    if here != name or name in turned:
                        kind = 'PNG' if here.lower().endswith('.png') else 'JPEG'
                        files[name] = partial(_rewritten, name, files[name], kind)
                    wanted[f'{split}/{here}'] = name
            training += len(train)
        with atomic_folder(folder) as temporary:
            copy_files(source, files, wanted, temporary)
    return ImageFolder(folder, len(classes), training, len(wanted) - training, left_out, rewritten, len(turned))


def _rewritten(name: str, read: Callable[[], bytes], kind: str) -> bytes:
    """An image, set upright, as a file of a kind."""
    file = io.BytesIO()
    with open_image(name, read()) as image:
        upright = ImageOps.exif_transpose(image) if is_turned(image) else image
        (upright if upright.mode in MODES[kind] else upright.convert('RGB')).save(file, kind, **QUALITY[kind])
    return file.getvalue()


def _class_folders(source: Path, files: Files) -> tuple[dict[str, list[str]], set[str], list[str]]:
    """The images of each class that can be read, by name, those of them that are turned, and what is left out."""
    endings = tuple(dict.fromkeys((*get_img_extensions(), *SUFFIXES)))
    classes: dict[str, list[str]] = {}
    if source.is_dir():  # an empty one is a class, too
        classes = {path.name: [] for path in sorted(source.iterdir()) if path.is_dir() and not is_hidden(path.name)}
    outside: list[str] = []
    others: Counter[str] = Counter()
    deeper = ''
    for name in sorted(files):
        label, ending = name.rpartition('/')[0], PurePosixPath(name).suffix.lower()
        if ending not in endings:
            others[ending or 'without an ending'] += 1
        elif '/' in label:
            deeper = deeper or name
        elif label:
            classes.setdefault(label, []).append(name)
        else:
            outside.append(name)
    # A class may be called train, and then its folder has images in it.
    splits = {SPLITS[label.lower()]: label for label in classes if label.lower() in SPLITS}
    if len(splits) == 2 or deeper.partition('/')[0].lower() in SPLITS:
        first = splits.get('train') or deeper.partition('/')[0]
        raise ValueError(f'{source} is split already: it has {first}/; name it as the --data-dir of a training')
    if deeper:
        raise ValueError(f'{source}: {deeper} lies deeper than in a folder per class; name the folder that has these')
    if len(classes) < 2:
        raise ValueError(f'{source} has {f"one class, {min(classes)}" if classes else "no folder of images"}; it must '
                         f'have a folder of images ({", ".join(endings)}) for each of two classes or more')
    whole: dict[str, list[str]] = {label: [] for label in classes}
    turned: set[str] = set()
    broken: list[str] = []
    for label, names in classes.items():
        check_label(source, label)
        for name in names:
            try:
                with open_image(name, read_file(source, files, name)) as image:
                    check_depth(name, image)
                    whole[label].append(name)
                    if is_turned(image):
                        turned.add(name)
            except BrokenFileError as error:
                broken.append(str(error))
    for label, names in whole.items():
        if len(names) < 2:
            raise ValueError(f'{source}: the class {label} has {len(names) or "no"} image that can be read '
                             f'({", ".join(endings)}); it needs one to train on and one to hold out')
    left_out = []
    if others:
        left_out.append(f'{others.total():,} files that are not {", ".join(endings)}: {_counted(others)}')
    if outside:
        left_out.append(f'{len(outside):,} images in no class folder, such as {outside[0]}')
    if broken:
        left_out.append(f'{len(broken):,} that cannot be read, such as {broken[0]}')
    return whole, turned, left_out


def _counted(endings: Mapping[str, int]) -> str:
    return ', '.join(f'{count:,} {ending}' for ending, count in sorted(endings.items()))


def read_label_texts(folder: str | Path) -> dict[str, str]:
    """What the classes of an image folder are called, by the names of their folders; empty if it does not say so."""
    path = Path(folder) / LABEL_TEXTS
    if not path.is_file():
        return {}
    lines = path.read_text(encoding='utf-8').splitlines()
    return dict(line.split('\t', 1) for line in lines if '\t' in line)


def main(args: argparse.Namespace) -> int:
    """Write the data set that the parsed arguments name.

    Raises:
        ValueError, OSError: see the functions that write them.
    """
    if args.kind == 'digits':
        print(write_digits(args.folder))
        return 0
    if args.kind == 'folder':
        print(write_class_folders(args.source, args.folder, args.every))
        return 0
    if args.kind == 'voc':
        print(write_voc(args.source, args.folder, args.every, args.skip_broken))
        return 0
    if args.kind == 'caltech-101':
        written = write_caltech101(args.source, args.folder, args.per_class, args.seed)
    elif args.kind in ('cifar10', 'mnist'):
        written = write_downloaded(args.kind, args.folder, args.root)
    else:
        written = write_tiny_imagenet(args.source, args.folder)
    print(written)
    return 0


def _lines(source: str | Path, files: Files, name: str) -> list[str]:
    if name not in files:
        raise ValueError(f'{source} is no Tiny ImageNet, or not a whole one: it has no {name}')
    try:
        return [line for line in read_file(source, files, name).decode('utf-8').splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f'{source}: {name} cannot be read: {one_line(error)}') from None
