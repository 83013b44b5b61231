"""Data sets for detectron2 without code: every folder of `DETECTRON2_DATASETS` that is laid out as COCO is.

    $DETECTRON2_DATASETS/bccd/annotations/instances_train.json
    $DETECTRON2_DATASETS/bccd/train/*.jpg

becomes the data set `bccd_train`, with the classes that the file lists. Annotations are read when the data set is used.
"""
from __future__ import annotations

import os
from pathlib import Path

from detectron2.data.catalog import DatasetCatalog
from detectron2.data.datasets.coco import register_coco_instances

__all__ = ['register_coco_folders']


def register_coco_folders(root: str | os.PathLike[str] | None = None) -> list[str]:
    """Register the COCO-like data sets below a folder that are not registered yet, and return their names.

    Args:
        root: The folder; by default `DETECTRON2_DATASETS`, or `datasets` where that is unset, as in detectron2.
    """
    folder = Path(os.getenv('DETECTRON2_DATASETS', 'datasets') if root is None else root).expanduser()
    names = []
    for listing in sorted(folder.glob('*/annotations/instances_*.json')):
        split = listing.stem.removeprefix('instances_')
        images = listing.parent.parent / split
        name = f'{images.parent.name}_{split}'
        if images.is_dir() and name not in DatasetCatalog:
            register_coco_instances(name, {}, str(listing), str(images))
            names.append(name)
    return names


register_coco_folders()
