"""A tiny COCO data set that tests draw themselves: discs and squares, in two colours, on grey noise."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ('disc', 'square')
COLOURS = ((200, 60, 50), (40, 90, 200))


def write_shapes(folder: Path, split: str, count: int, size: tuple[int, int] = (160, 128), seed: int = 0) -> Path:
    """Write `folder/<split>/*.png` and `folder/annotations/instances_<split>.json`; return the latter."""
    rng = np.random.default_rng(seed)
    (folder / split).mkdir(parents=True)
    images, annotations = [], []
    for index in range(1, count + 1):
        noise = rng.normal(128, 20, (size[1], size[0], 3)).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(noise)
        pen = ImageDraw.Draw(picture)
        # One shape in each half, so that they never overlap.
        for half in range(2):
            side = int(rng.integers(30, 56))
            left = half * size[0] // 2 + int(rng.integers(2, size[0] // 2 - side - 2))
            top = int(rng.integers(2, size[1] - side - 2))
            label = int(rng.integers(0, 2))
            (pen.ellipse if label == 0 else pen.rectangle)((left, top, left + side, top + side), fill=COLOURS[label])
            corners = [left, top, left + side, top, left + side, top + side, left, top + side]
            annotations.append({
                'id': len(annotations) + 1, 'image_id': index, 'category_id': label + 1,
                'bbox': [left, top, side, side], 'area': side * side, 'iscrowd': 0, 'segmentation': [corners]})
        picture.save(folder / split / f'{index}.png')
        images.append({'id': index, 'file_name': f'{index}.png', 'width': size[0], 'height': size[1]})
    categories = [{'id': index + 1, 'name': name} for index, name in enumerate(CLASSES)]
    path = folder / 'annotations' / f'instances_{split}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({'info': {}, 'licenses': [], 'images': images, 'annotations': annotations,
                                'categories': categories}), encoding='utf-8')
    return path
