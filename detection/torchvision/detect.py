"""`randwire-zoo detect`: draw what a detector finds. torchvision is all it needs."""
from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.transforms.functional import pil_to_tensor

from randwire_zoo.drawing import draw_detections
from randwire_zoo.files import atomic_path, write_atomically
from randwire_zoo.training.evaluation import default_device

from .detectors import load_detector
from .images import SUFFIXES, convert_to_rgb, read_image

__all__ = ['detect', 'draw_detections', 'main']


@torch.inference_mode()
def detect(detector: FasterRCNN, image: Image.Image) -> dict[str, Tensor]:
    """Find objects in one image.

    The image is resized as detectron2 does it, with PIL's antialiased bilinear filter, and not by torchvision.

    Args:
        detector: In eval mode.
        image: Any mode and size; upright, as `images.read_image` gives it.

    Returns:
        'boxes' [N, 4] as left, top, right, bottom in pixels of the image, 'labels' [N], 'scores' [N], best first.
    """
    image = convert_to_rgb(image)
    transform = detector.transform
    width, height = image.size
    scale = min(transform.min_size[-1] / min(width, height), transform.max_size / max(width, height))
    size = (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))
    device = next(detector.parameters()).device
    pixels = pil_to_tensor(image.resize(size, Image.Resampling.BILINEAR)).to(device) / 255
    found = detector([pixels])[0]
    stretch = torch.tensor([width / size[0], height / size[1]] * 2, device=device)
    return {**found, 'boxes': found['boxes'] * stretch}


def _image_paths(arguments: list[str]) -> list[Path]:
    paths: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = sorted(child for child in path.iterdir() if child.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(f'{path} holds no images ({", ".join(SUFFIXES)})')
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            raise FileNotFoundError(f'no image at {path}')
    return paths


def main(args: argparse.Namespace) -> int:
    """Run `randwire-zoo detect`; 1 where an image could not be read."""
    if not 0 <= args.score_thresh <= 1:
        raise ValueError(f'--score-thresh must be within [0, 1], got {args.score_thresh}')
    paths = _image_paths(args.images)
    pictures = _picture_names(paths, Path(args.output))
    _check_folder('--output', Path(args.output))
    if args.json is not None:
        _check_json(Path(args.json), [*paths, Path(args.weights)])
    detector, classes = load_detector(args.weights)
    # A lower threshold lets more through and takes none away: boxes of lower scores suppress none of higher ones.
    detector.roi_heads.score_thresh = min(detector.roi_heads.score_thresh, args.score_thresh)
    detector.to(default_device(args.device))
    Path(args.output).mkdir(parents=True, exist_ok=True)  # before an earlier run's JSON is replaced
    skipped = 0
    with _json_array(args.json) as add:
        for path, picture in zip(paths, pictures, strict=True):
            try:
                image = read_image(path)
            except ValueError as error:
                print(f'skipped: {error}', file=sys.stderr, flush=True)
                skipped += 1
                continue
            found = detect(detector, image)
            likely = {key: rows[found['scores'] >= args.score_thresh] for key, rows in found.items()}
            with atomic_path(picture) as temporary:
                draw_detections(image, likely, classes).save(temporary, format='PNG')
            names = [classes[label] for label in found['labels'].tolist()]
            counts = Counter(classes[label] for label in likely['labels'].tolist())
            summary = ', '.join(f'{count} {name}' for name, count in sorted(counts.items()))
            print(f'{picture}: {summary or "nothing"}', flush=True)
            add({'image': str(path), 'boxes': [[round(x, 1) for x in box] for box in found['boxes'].tolist()],
                 'classes': names, 'scores': [round(score, 4) for score in found['scores'].tolist()]})
    if args.json:
        print(args.json)
    if skipped:
        print(f'{skipped} of {len(paths)} images could not be read and were skipped', file=sys.stderr)
    return 1 if skipped else 0


@contextmanager
def _json_array(path: str | None) -> Iterator[Callable[[Any], None]]:
    """Give a function that adds a row to the JSON array in a file, which is whole at any time, one row a line.

    The file is written anew with each row, unless that would take more than a twentieth of the time: then after some of
    them, and when the block is left, in whatever way.
    """
    rows: list[str] = []
    due = 0.0

    def write() -> None:
        nonlocal due
        if path is not None:
            start = time.monotonic()
            write_atomically(path, f'[{",".join(rows)}\n]\n' if rows else '[]\n')
            due = time.monotonic() + 20 * (time.monotonic() - start)

    def add(row: Any) -> None:
        rows.append('\n' + json.dumps(row))
        if time.monotonic() >= due:
            write()

    write()
    try:
        yield add
    finally:
        write()


def _picture_names(paths: list[Path], folder: Path) -> list[Path]:
    """A picture's path for each image; images of one name in several folders get a number.

    Raises:
        ValueError: if a picture would take the place of an image, or, in a folder of images, of any other picture.
    """
    images = {path.resolve() for path in paths}
    among_images = folder.resolve() in {path.parent.resolve() for path in paths}
    taken: set[str] = set()
    pictures = []
    for path in paths:
        name, number = path.stem, 1
        while name in taken:
            number += 1
            name = f'{path.stem}_{number}'
        taken.add(name)
        pictures.append(folder / f'{name}.png')
        if pictures[-1].resolve() in images:
            raise ValueError(f'{pictures[-1]} is one of the images, and its picture would take its place; name another '
                             'folder with --output')
        if among_images and pictures[-1].exists():  # elsewhere it is an earlier run's
            raise ValueError(f'{pictures[-1]} is there already, among the images; name another folder with --output')
    return pictures


def _check_json(path: Path, inputs: list[Path]) -> None:
    """Refuse a file for --json that would take the place of what is read, or of a picture."""
    if path.resolve() in {one.resolve() for one in inputs}:
        raise ValueError(f'--json {path} is one of the images or the weights; name another file')
    if path.suffix.lower() in (*SUFFIXES, '.safetensors'):
        raise ValueError(f'--json {path}: JSON is not written as {path.suffix}; name another file')
    if path.is_dir():
        raise ValueError(f'--json {path} is a folder; name a file')
    _check_folder('--json', path.parent)


def _check_folder(option: str, folder: Path) -> None:
    """Refuse a folder that can be neither made nor written to."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f'{option}: {there} is no folder that can be written to')
