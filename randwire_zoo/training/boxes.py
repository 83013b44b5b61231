"""Boxes in the XML files of Pascal VOC, which most programs for drawing them write, as a data set in COCO's layout.

That is what detectron2 and `configs/finetune` read: `annotations/instances_train.json` and `instances_val.json`, and
the images in `train/` and `val/`.
"""
from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from ..errors import one_line
from ..files import atomic_folder
from .archives import (
    EVERY,
    SUFFIXES,
    BrokenFileError,
    Files,
    check_depth,
    copy_files,
    free_folder,
    hold_out,
    is_hidden,
    open_files,
    open_image,
    read_file,
)

__all__ = ['BoxFolder', 'write_voc']

#: What the folders of the two splits are called, by whoever splits.
SPLITS = {'train': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val'}
LISTS = 'ImageSets/Main'
#: Folders of Pascal VOC's masks, which have the names of the images that they are of.
MASKS = {'SegmentationClass', 'SegmentationObject'}
ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # values of it by which width and height change places


@dataclass
class BoxFolder:
    """What was written.

    Args:
        folder: The folder.
        classes: Their names; the numbers in the listings count from 1 in this order.
        images: How many, by split.
        boxes: How many, by split.
        cut: Boxes that reached over the edge of their image, and end there now.
        left_out: What is not there, a phrase each.
    """

    folder: Path
    classes: tuple[str, ...]
    images: Mapping[str, int]
    boxes: Mapping[str, int]
    cut: int
    left_out: Sequence[str]

    def __str__(self) -> str:
        named = ', '.join(self.classes)
        lines = [f'{self.folder}: {len(self.classes)} class{"es" if len(self.classes) > 1 else ""} ({named}), '
                 f'{self.images["train"]:,} images with {self.boxes["train"]:,} boxes to train on, '
                 f'{self.images["val"]:,} with {self.boxes["val"]:,} to measure on']
        if self.cut:
            lines.append(f'cut at the edge of their image: {self.cut:,} boxes')
        return '\n'.join([*lines, *(f'left out: {phrase}' for phrase in self.left_out)])


@dataclass
class _Annotation:
    """One XML file, read.

    Args:
        name: Of the XML file.
        image: Name of its image.
        size: Width and height in pixels, as the image is shown.
        boxes: Class, and left, top, right and bottom in pixels from 0, the latter two beyond the last pixel.
        cut: How many of them reached over the edge.
        empty: How many more had no area.
    """

    name: str
    image: str
    size: tuple[int, int]
    boxes: list[tuple[str, tuple[float, float, float, float]]] = field(default_factory=list)
    cut: int = 0
    empty: int = 0


def write_voc(
        source: str | Path, folder: str | Path, every: int | None = None, skip_broken: bool = False) -> BoxFolder:
    """Write images and boxes of Pascal VOC's XML files in COCO's layout.

    An XML file belongs to the image of the same name but for the ending, and where there is none, or there are several
    equally near, to the one that its `filename` names. Masks of Pascal VOC are no images. Pixels are counted from 1
    there, and a box holds its last row and column. What is `difficult` is an object like others, as in detectron2.

    Which images are held out, lists `ImageSets/Main/train.txt` and `val.txt` say, or folders that the XML files lie in,
    `train` and `val` or `valid`; without either, or where `every` is given, every so manieth one by name is.

    Args:
        source: A folder with XML files and images anywhere in it, or an archive of such a folder.
        folder: Where to; it appears only when it is complete.
        every: Hold out every so manieth; 5 where nothing says which.
        skip_broken: Leave out what cannot be read, where it is an error otherwise.

    Raises:
        FileNotFoundError: if there is no such source.
        FileExistsError: if the folder exists and is not empty.
        ValueError: if there are no such files, one is broken or does not fit its image, or a split is empty.
    """
    folder = free_folder(folder)
    with open_files(Path(source)) as found:
        files = {name: read for name, read in found.items() if not is_hidden(name)}
        names = sorted(name for name in files if name.lower().endswith('.xml'))
        if not names:
            raise ValueError(f'{source} has no XML files')
        splits, others = _split(source, files, names, every)
        left_out = [f'{others:,} XML files that are in neither split'] if others else []
        images = _Images(name for name in files if name.lower().endswith(SUFFIXES)
                         and not MASKS & set(PurePosixPath(name).parts))
        read: dict[str, list[_Annotation]] = {'train': [], 'val': []}
        for split, members in splits.items():
            for name in members:
                try:
                    read[split].append(_read(name, source, files, images))
                except BrokenFileError as error:
                    if not skip_broken:
                        raise ValueError(f'{source}: {error}; --skip-broken leaves out what is so') from None
                    left_out.append(str(error))
        both = [*read['train'], *read['val']]
        of_image: dict[str, str] = {}
        for one in both:  # in both splits, what is measured on would have been trained on
            if one.image in of_image:
                raise ValueError(f'{source}: {of_image[one.image]} and {one.name} are of the same image, {one.image}')
            of_image[one.image] = one.name
        classes = tuple(sorted({label for one in both for label, _ in one.boxes}))
        for split, annotations in read.items():
            if not any(one.boxes for one in annotations):
                raise ValueError(f'{source}: there is not one box to {"train" if split == "train" else "measure"} on')
        known = {label for one in read['train'] for label, _ in one.boxes}
        if unknown := sorted(set(classes) - known):
            raise ValueError(f'{source}: no image to train on has a box of {", ".join(unknown)}; split them otherwise')
        wanted: dict[str, str] = {}  # from the name here to the name there
        for split, annotations in read.items():
            for one in annotations:
                here = f'{split}/{PurePosixPath(one.image).name}'
                if here in wanted:
                    raise ValueError(f'{source}: two images of {split} are called {PurePosixPath(one.image).name}')
                wanted[here] = one.image
        with atomic_folder(folder) as temporary:
            copy_files(source, files, wanted, temporary)
            (temporary / 'annotations').mkdir()
            for split, annotations in read.items():
                (temporary / 'annotations' / f'instances_{split}.json').write_text(
                    json.dumps(_listing(annotations, classes)), encoding='utf-8')
    if empty := sum(one.empty for one in both):
        left_out.append(f'{empty:,} boxes without area inside of their image')
    if unused := len(images.names - images.used):
        left_out.append(f'{unused:,} images without an XML file')
    return BoxFolder(
        folder, classes, {split: len(annotations) for split, annotations in read.items()},
        {split: sum(len(one.boxes) for one in annotations) for split, annotations in read.items()},
        sum(one.cut for one in both), left_out)


class _Images:
    """The images of a source, by which an XML file finds its own."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self.used: set[str] = set()
        self.by_stem: dict[str, list[str]] = {}
        self.by_name: dict[str, list[str]] = {}
        for name in sorted(self.names):
            self.by_stem.setdefault(PurePosixPath(name).stem, []).append(name)
            self.by_name.setdefault(PurePosixPath(name).name, []).append(name)

    def find(self, annotation: str, filename: str) -> str:
        """The image of an XML file: of several of its name, the one that lies nearest."""
        filename = PurePosixPath(filename.replace('\\', '/')).name  # programs on Windows write its paths
        found = self.by_stem.get(PurePosixPath(annotation).stem) or self.by_name.get(filename) or []
        if not found:
            raise BrokenFileError(f'{annotation} has no image' + (f', nor is there a {filename}' if filename else ''))
        steps = {name: _steps(name, annotation) for name in found}
        nearest = [name for name in found if steps[name] == min(steps.values())]
        nearest = [name for name in nearest if PurePosixPath(name).name == filename] or nearest
        if len(nearest) > 1:
            raise BrokenFileError(f'{annotation} may be of {nearest[0]} or of {nearest[1]}')
        self.used.add(nearest[0])
        return nearest[0]


def _steps(one: str, other: str) -> int:
    """How many folders lie on the way from one file to the other, up and down."""
    left, right = PurePosixPath(one).parts[:-1], PurePosixPath(other).parts[:-1]
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
    return len(left) + len(right) - 2 * shared


def _split(
        source: str | Path, files: Files, names: Sequence[str], every: int | None) -> tuple[dict[str, list[str]], int]:
    """The XML files to train and to measure on, and how many are neither."""
    splits: dict[str, list[str]] = {'train': [], 'val': []}
    if every is None:
        listed = {split: [line.split()[0] for name in files if f'/{name}'.endswith(f'/{LISTS}/{split}.txt')
                          for line in read_file(source, files, name).decode('utf-8', 'replace').splitlines()
                          if line.strip()] for split in splits}
        if all(listed.values()):
            by_stem: dict[str, str] = {}
            for name in names:
                if (other := by_stem.setdefault(PurePosixPath(name).stem, name)) != name:
                    raise ValueError(f'{source}: the lists cannot tell {other} from {name}')
            if missing := [stem for stems in listed.values() for stem in stems if stem not in by_stem]:
                raise ValueError(f'{source}: the lists name {len(missing):,} without an XML file, such as {missing[0]}')
            if twice := set(listed['train']) & set(listed['val']):
                raise ValueError(f'{source}: both lists name {min(twice)}')
            splits = {split: [by_stem[stem] for stem in dict.fromkeys(stems)] for split, stems in listed.items()}
        else:
            for name in names:
                split = next((SPLITS[part.lower()] for part in reversed(PurePosixPath(name).parts[:-1])
                              if part.lower() in SPLITS), None)
                if split is not None:
                    splits[split].append(name)
        if all(splits.values()):
            return splits, len(names) - sum(map(len, splits.values()))
    training, held_out = hold_out(names, EVERY if every is None else every)
    return {'train': training, 'val': held_out}, 0


def _read(name: str, source: str | Path, files: Files, images: _Images) -> _Annotation:
    """One XML file and the size of its image."""
    try:
        root = ElementTree.fromstring(read_file(source, files, name))
    except ElementTree.ParseError as error:
        raise BrokenFileError(f'{name} is no XML: {one_line(error)}') from None
    if root.tag != 'annotation':
        raise BrokenFileError(f'{name} is no annotation of Pascal VOC: it begins with <{root.tag}>')
    image = images.find(name, root.findtext('filename', '').strip())
    size = _size(image, read_file(source, files, image))
    said = tuple(_number(name, root.find('size'), side, 0.0) for side in ('width', 'height'))
    if all(said) and said != size:
        turned = ' as its EXIF data turn it' if said == size[::-1] else ''
        raise BrokenFileError(f'{name} is of an image of {said[0]:g}×{said[1]:g} pixels, and {image} has '
                           f'{size[0]}×{size[1]}{turned}')
    read = _Annotation(name, image, size)
    for thing in root.findall('object'):
        label, box = thing.findtext('name', '').strip(), thing.find('bndbox')
        if not label or box is None:
            raise BrokenFileError(f'{name} has an object without {"a name" if not label else "a bndbox"}')
        left, top, right, bottom = (_number(name, box, side) for side in ('xmin', 'ymin', 'xmax', 'ymax'))
        whole = (left - 1, top - 1, right, bottom)
        inside = (max(left - 1, 0.0), max(top - 1, 0.0), min(right, float(size[0])), min(bottom, float(size[1])))
        # A box from 0, of a program that counts from there, is not what is meant by cut.
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            read.empty += 1
            continue
        read.cut += any(abs(a - b) > 1 for a, b in zip(inside, whole, strict=True))
        read.boxes.append((label, inside))
    return read


def _number(name: str, parent: ElementTree.Element | None, tag: str, otherwise: float | None = None) -> float:
    text = parent.findtext(tag) if parent is not None else None
    if text is None and otherwise is not None:
        return otherwise
    try:
        value = float(text or '')
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BrokenFileError(f'{name} has the {tag} {text!r}, which is no number')
    return value


def _size(name: str, data: bytes) -> tuple[int, int]:
    """Width and height of an image as it is shown, which is how detectron2 reads it; all of its pixels are decoded."""
    with open_image(name, data) as image:
        check_depth(name, image)
        width, height = image.size
        turned = image.getexif().get(ORIENTATION) in TURNED
    return (height, width) if turned else (width, height)


def _listing(annotations: Sequence[_Annotation], classes: Sequence[str]) -> dict[str, Any]:
    """COCO's layout of one split; a box is left, top, width and height."""
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number, one in enumerate(annotations, 1):
        images.append({'id': number, 'file_name': PurePosixPath(one.image).name, 'width': one.size[0],
                       'height': one.size[1]})
        for label, (left, top, right, bottom) in one.boxes:
            box = [left, top, right - left, bottom - top]
            boxes.append({'id': len(boxes) + 1, 'image_id': number, 'category_id': classes.index(label) + 1,
                          'bbox': box, 'area': box[2] * box[3], 'iscrowd': 0})
    return {'info': {}, 'licenses': [], 'images': images, 'annotations': boxes,
            'categories': [{'id': number, 'name': label} for number, label in enumerate(classes, 1)]}
