"""Data sets for detectron2 without code: folders of `DETECTRON2_DATASETS` that are laid out as COCO is.

    $DETECTRON2_DATASETS/bccd/annotations/instances_train.json
    $DETECTRON2_DATASETS/bccd/train/*.jpg

is the data set `bccd_train`, with the classes that the file lists. detectron2 learns of it

- where the config of a RandWire backbone names `bccd_train` and nobody has registered that name, when the backbone is
  built, or in a LazyConfig with `load_dataset_dicts`, when the data are;
- by `register_coco_folders()`, which registers all of them, in a program of one's own;
- by DETECTRON2_ENV_MODULE=randwire_zoo.detection.datasets in the environment, which is detectron2's own way to run such
  a call, for those of its tools that build no model (visualize_data.py) or read data before they do
  (analyze_model.py).

Importing this module registers nothing, so that every name is still the user's to register.
"""
from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from randwire_zoo.files import read_json

__all__ = ['compare_classes', 'find_listing', 'load_dataset_dicts', 'logger', 'read_classes', 'register_and_compare',
           'register_coco_folders', 'setup_environment']

#: Below detectron2's own logger: what comes by that one is in its log.txt, and on the screen only once of all ranks.
logger = logging.getLogger('detectron2.randwire_zoo')
LAYOUT = '*/annotations/instances_*.json'
#: What has been asked of data sets' classes, and what has been said: nobody is told twice.
_TOLD: set[Any] = set()


def register_coco_folders(root: str | os.PathLike[str] | None = None, names: Sequence[str] | None = None) -> list[str]:
    """Register the COCO-like data sets below a folder that are not registered yet, and return their names.

    Args:
        root: The folder; by default `DETECTRON2_DATASETS`, or `datasets` where that is unset, as in detectron2.
        names: Only these; those that have no such folder are left alone. By default all that there are.

    Raises:
        ValueError: if two folders have the same name of a data set.
    """
    # Not at the top, where detectron2 is only being imported if this is its DETECTRON2_ENV_MODULE.
    from detectron2.data.catalog import DatasetCatalog
    from detectron2.data.datasets.coco import register_coco_instances

    wanted = None if names is None else {name for name in names if name not in DatasetCatalog}
    if wanted is not None and not wanted:
        return []
    found: dict[str, tuple[Path, Path]] = {}
    for name, listing, images in _coco_folders(root):
        if name in DatasetCatalog if wanted is None else name not in wanted:
            continue
        if name in found:
            raise ValueError(f'two folders are the data set {name}: {found[name][1]} and {images}')
        found[name] = listing, images
    for name, (listing, images) in found.items():
        register_coco_instances(name, {}, str(listing), str(images))
        logger.info('the data set %s is %s with %s', name, images, listing.name)
    return list(found)


def find_listing(name: str) -> Path | None:
    """The annotations of the data set of this name, where they are there.

    It is a folder that `register_coco_folders` would register, or one of COCO's own, which detectron2 registers itself:
    `coco_2017_train` is `coco/annotations/instances_train2017.json`.
    """
    if match := re.fullmatch(r'coco_(\d{4})_(train|val|minival|valminusminival)(_100)?', name):
        listing = _root() / 'coco' / 'annotations' / f'instances_{match[2]}{match[1]}{match[3] or ""}.json'
        return listing if listing.is_file() else None
    return next((listing for found, listing, _ in _coco_folders() if found == name), None)


def read_classes(path: str | Path) -> list[str]:
    """The classes of a COCO file in the order of their ids, as detectron2 has it.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it lists none.
    """
    try:
        categories = read_json(path)['categories']
        # What is no text fails here, too.
        return [str.strip(category['name']) for category in sorted(categories, key=lambda category: category['id'])]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f'{path} lists no categories as COCO does') from None


def register_and_compare(train: Sequence[str], test: Sequence[str], key: str, num_classes: int | None) -> None:
    """Register what of these data sets is a folder and nobody has registered, say what is none, and warn of classes as
    `compare_classes` does; each once.

    Args:
        train: Names of the data sets that are trained on.
        test: Of those that are tested on.
        key: The config's key of the number of classes.
        num_classes: Its value; None compares nothing.
    """
    from detectron2.data.catalog import DatasetCatalog

    names = [*train, *test]
    register_coco_folders(names=names)
    for name in names:
        if name not in DatasetCatalog:
            folder, _, split = name.rpartition('_')
            _say_once(logging.INFO, f'nobody has registered the data set {name}, and DETECTRON2_DATASETS, {_root()}, '
                                    f'lacks {folder}/annotations/instances_{split}.json or {folder}/{split}')
    question = (tuple(_registered_listings(train)), tuple(_registered_listings(test)), key, num_classes)
    if num_classes is None or question in _TOLD:
        return
    _TOLD.add(question)
    for difference in compare_classes(question[0], question[1], key, num_classes):
        _say_once(logging.WARNING, difference)


def _say_once(level: int, line: str) -> None:
    if line not in _TOLD:
        _TOLD.add(line)
        logger.log(level, '%s', line)


def _registered_listings(names: Iterable[str]) -> list[Path]:
    """The annotations of those of these data sets that are registered and are the COCO-like folders of their names."""
    from detectron2.data.catalog import DatasetCatalog, MetadataCatalog

    listings = [(name, Path(str(MetadataCatalog.get(name).get('json_file'))))
                for name in names if name in DatasetCatalog]
    # Others may be anything: COCO itself is not read for this, as that takes long.
    return [listing for name, listing in listings if listing.match(LAYOUT) and _name_and_images(listing)[0] == name]


def compare_classes(train: Sequence[Path], test: Sequence[Path], key: str, num_classes: int) -> list[str]:
    """One line about each COCO file with another number of classes than a config has, and about each that is tested on
    and has other classes, or the same in another order, than the first one that is trained on.

    Args:
        train: The files of the data sets that are trained on.
        test: Of those that are tested on.
        key: The config's key.
        num_classes: Its value.
    """
    classes = {}
    for listing in dict.fromkeys((*train, *test)):
        with suppress(OSError, ValueError):  # for whoever needs its images to say
            classes[listing] = read_classes(listing)
    lines = [f'{key} is {num_classes}, and {listing} lists {len(names)} classes'
             for listing, names in classes.items() if len(names) != num_classes]
    first = next((listing for listing in train if listing in classes), None)
    if first is None:
        return lines
    for listing in test:
        for index, (own, other) in enumerate(zip(classes[first], classes.get(listing, ()), strict=False)):
            if own != other:
                lines.append(f'class {index} is {own!r} in {first} and {other!r} in {listing}: the AP would be of '
                             'another class than the one that was trained')
                break
    return lines


def _root() -> Path:
    return Path(os.getenv('DETECTRON2_DATASETS', 'datasets')).expanduser()


def _coco_folders(root: str | os.PathLike[str] | None = None) -> Iterator[tuple[str, Path, Path]]:
    """Name, annotations and images of each data set."""
    folder = _root() if root is None else Path(root).expanduser()
    for listing in sorted(folder.glob(LAYOUT)):
        name, images = _name_and_images(listing)
        if images.is_dir():
            yield name, listing, images


def _name_and_images(listing: Path) -> tuple[str, Path]:
    split = listing.stem.removeprefix('instances_')
    folder = listing.parent.parent
    return f'{folder.name}_{split}', folder / split


def load_dataset_dicts(names: str | Sequence[str], num_classes: int | None = None,
                       trained_on: str | Sequence[str] = (), **kwargs: Any) -> Any:
    """detectron2's `get_detection_dataset_dicts` for a LazyConfig: a name nobody registered may be a COCO-like folder.

    Args:
        names: Of one or more data sets.
        num_classes: The model's, to be compared with what is in such folders.
        trained_on: If these are tested on, the names of those that are trained on, to compare the classes with.
        kwargs: detectron2's.
    """
    from detectron2.data import get_detection_dataset_dicts

    own, others = ([one] if isinstance(one, str) else one for one in (names, trained_on))
    train, test = (others, own) if others else (own, ())
    register_and_compare(train, test, 'num_classes', num_classes)
    return get_detection_dataset_dicts(names, **kwargs)


def setup_environment() -> None:
    """What detectron2 calls on import where DETECTRON2_ENV_MODULE names this module."""
    register_coco_folders()
