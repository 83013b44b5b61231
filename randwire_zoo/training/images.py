"""timm's data sets: of an image folder, with images that stay in memory, with numbers instead of classes."""
from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageDataset, create_dataset, get_img_extensions
from timm.data.readers.class_map import load_class_map
from torch.utils.data import Dataset, IterableDataset

from ..errors import nearest
from .archives import SUFFIXES, BrokenFileError, DeepImageError, check_depth, open_image

__all__ = ['CachedImages', 'FolderImages', 'NumberedImages', 'open_folder']

_logger = logging.getLogger(__name__)

#: Of names of images that timm may pass over; the last two are such as Pillow does not read everywhere.
KNOWN = (*SUFFIXES, '.avif', '.heic')
#: How many images in a row may be broken, as in timm.
RETRIES = 10
#: Images whose depth is looked at before anything is done; that of the others is when they are decoded.
SAMPLE = 16
#: How many names an error has.
NAMES = 5


class FolderImages(ImageDataset):
    """timm's data set of an image folder: the same images, classes and order, but another end where one is unusable.

    timm takes the next image for one that cannot be read. A training does so, too, and names each such file once. A
    measurement would be of other images than it says: it ends. And an image of more than 8 bits a pixel, of which timm
    makes a white one, ends both.

    Args:
        images: The data set of timm's; it has no transform yet.
        is_training: Put the next image in the place of one that cannot be read.
    """

    def __init__(self, images: Any, is_training: bool = False) -> None:
        super().__init__(images.reader.root, reader=images.reader, input_img_mode=images.input_img_mode)
        self.is_training = is_training
        # The processes of a loader share it: they are others in each epoch.
        self.named = torch.zeros(len(images) if is_training else 0, dtype=torch.bool).share_memory_()

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The image, transformed, and the index of its class.

        Raises:
            BrokenFileError: naming the file, if it cannot be read; in a training, if the next ones cannot either.
        """
        if index >= len(self):
            raise IndexError(index)  # by which a loop over the images ends
        broken: BrokenFileError | None = None
        for number in (number % len(self) for number in range(index, index + RETRIES)):
            path, target = self.reader.samples[number]
            try:
                image = self._read(path)
            except DeepImageError:
                raise
            except BrokenFileError as error:
                if not self.is_training:
                    raise
                broken = error
                if not self.named[number]:
                    self.named[number] = True
                    _logger.warning('%s; the next image takes its place', error)
            else:
                return image if self.transform is None else self.transform(image), target
        raise BrokenFileError(f'{RETRIES} images in a row cannot be read, and the last is {broken}')

    def check_sample(self) -> None:
        """Look at the depth of some images, without decoding them.

        Raises:
            DeepImageError: naming one that has more than 8 bits a pixel.
        """
        for path, _ in self.reader.samples[::-(-len(self) // SAMPLE)]:
            with suppress(OSError, Image.DecompressionBombError), Image.open(path) as image:
                self._check_depth(path, image)

    def _read(self, path: str) -> Image.Image:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise BrokenFileError(f'{path} cannot be read: {error.strerror}') from None
        with open_image(path, data) as image:
            self._check_depth(path, image)
            return image.convert(self.input_img_mode)

    def _check_depth(self, path: str, image: Image.Image) -> None:
        if not str(self.input_img_mode).startswith(('I', 'F')):  # these have more bits themselves
            check_depth(path, image)


def open_folder(
        root: str | Path, split: str, mode: str = 'RGB', class_map: str = '', is_training: bool = False,
) -> FolderImages:
    """timm's `create_dataset` of an image folder, refusing what it would pass over or take for something else.

    timm's scripts find the same images and classes there as long as this raises nothing.

    Args:
        root: Root folder.
        split: Folder below it, see `evaluation.open_images`.
        mode: Of Pillow's, that images are converted to.
        class_map: File with the index of each class; by the order of the names if empty.
        is_training: See `FolderImages`; and the class map has no class without images then.

    Raises:
        ValueError: if there are images of kinds that timm passes over, or not in one folder per class, or folders that
            the class map does not have, or images of more than 8 bits a pixel.
        RuntimeError, AssertionError: of timm, if there are no images, or no such class map.
    """
    kinds = ';'.join({*get_img_extensions(), *KNOWN})
    images = create_dataset('', root=str(root), split=split, input_img_mode=mode, input_key=kinds)
    reader = images.reader
    _check_kinds(reader)
    _check_places(reader, bool(class_map))
    if class_map:
        _map_classes(reader, class_map, load_class_map(class_map, reader.root), is_training)
    found = FolderImages(images, is_training)
    found.check_sample()
    return found


def _check_kinds(reader: Any) -> None:
    """Refuse a folder with images that timm passes over, and their classes perhaps with them."""
    taken = get_img_extensions()
    if passed := [path for path, _ in reader.samples if not path.lower().endswith(taken)]:
        counts = Counter(os.path.splitext(path)[1].lower() for path in passed)
        raise ValueError(f'{reader.root} has {len(passed):,} images of kinds that timm passes over '
                         f'({", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))}), such as '
                         f'{os.path.relpath(passed[0], reader.root)}; write them as {", ".join(taken)}')


def _check_places(reader: Any, is_mapped: bool) -> None:
    """Refuse images that do not lie in a folder per class: timm knows the innermost folders alone.

    A class map says that these are the classes.
    """
    counts = Counter(path.rpartition(os.sep)[0] for path, _ in reader.samples)
    places = {Path(os.path.relpath(folder, reader.root)): count for folder, count in counts.items()}
    if loose := places.get(Path('.')):
        raise ValueError(f'{reader.root} has {loose:,} images in no class folder, which timm takes for a class without '
                         'a name; move them into folders, one per class')
    if (deeper := [place for place in places if len(place.parts) > 1]) and not is_mapped:
        raise ValueError(f'{reader.root} has {sum(places[place] for place in deeper):,} images deeper than in a folder '
                         f'per class, such as in {deeper[0]}, and timm takes {deeper[0].name} for their class; move '
                         'them up, or say with --class-map that the innermost folders are the classes')


def _map_classes(reader: Any, class_map: str, classes: Mapping[str, int], is_training: bool) -> None:
    """Give the images of a folder the indices of a class map.

    timm drops the images of folders that the map does not have. And whoever trains with a class that has no images has
    misspelt it; where images are measured, they may well be of some of the classes only.
    """
    unknown = [name for name in reader.class_to_idx if name not in classes]
    unused = [name for name in classes if name not in reader.class_to_idx]
    problems = []
    if unknown:
        problems.append(f'does not have {_some(unknown)}, of which there are images in {reader.root}'
                        + nearest(unknown[0], map(str, unused)))
    if unused and is_training:
        problems.append(f'has {_some(unused)}, of which there are no images in {reader.root}')
    if problems:
        raise ValueError(f'the class map {class_map} {", and ".join(problems)}')
    names = {index: name for name, index in reader.class_to_idx.items()}
    reader.samples = [(path, classes[names[index]]) for path, index in reader.samples]
    reader.class_to_idx = dict(classes)


def _some(names: Sequence[str]) -> str:
    more = f' and {len(names) - NAMES:,} more' if len(names) > NAMES else ''
    return ', '.join(str(name) or 'an empty line' for name in names[:NAMES]) + more


class CachedImages(Dataset[Any]):
    """A data set of timm's or torchvision's that decodes each image once and keeps it; what is done to it is done anew.

    Args:
        images: The data set; it has no transform yet.

    Raises:
        ValueError: if its images have no numbers by which they could be found again.
    """

    def __init__(self, images: Any) -> None:
        if isinstance(images, IterableDataset):
            raise ValueError(f'cache_images needs images with numbers, which a {type(images).__name__} does not have')
        self.images = images
        self.decoded: list[tuple[Any, Any] | None] = [None] * len(images)
        self.transform: Any = None  # timm's loader sets it

    def __len__(self) -> int:
        return len(self.decoded)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        found = self.decoded[number]
        if found is None:
            found = self.decoded[number] = self.images[number]
        image, target = found
        return image if self.transform is None else self.transform(image), target


class NumberedImages(Dataset[Any]):
    """A data set of timm's that gives each image's number instead of its class."""

    def __init__(self, images: Any) -> None:
        self.images = images

    @property
    def transform(self) -> Any:
        """Of the data set, which timm's loader sets."""
        return self.images.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.images.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        return self.images[number][0], number
