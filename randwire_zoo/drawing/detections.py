"""Boxes, classes and scores on an image."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

__all__ = ['draw_detections']

#: Labels take at most this part of a picture, the best detections' first, so that they do not hide it.
LABELLED = 1 / 10
#: White text can be read on each; classes are told apart by their labels as well.
COLOURS = ('#c84f00', '#0067a5', '#00795a', '#8a5e00', '#a3478a', '#0b7a86', '#b3261e', '#5b5fc7')

Box = tuple[float, float, float, float]  # left, top, right, bottom


def draw_detections(image: Image, found: dict[str, Tensor], classes: Sequence[str]) -> Image:
    """Draw boxes with class and score on an image, in a colour per class.

    The better ones lie on top. A label is left out where it would cover another one or too much of the picture, in the
    order of scores; lines get thinner where there are many.

    Args:
        image: RGB, upright, as `detection.images.read_image` gives it. It is left as it is.
        found: What `detection.detect.detect` gave: 'boxes' [N, 4] in pixels, 'labels' [N], 'scores' [N], best first.
        classes: Names, the background first.
    """
    from matplotlib import font_manager
    from PIL import ImageDraw, ImageFont

    drawn = image.convert('RGB')
    if drawn is image:
        drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    shorter, many = min(image.size), len(found['scores']) > 25
    font = ImageFont.truetype(font_manager.findfont('DejaVu Sans'), max(9, shorter // (48 if many else 36)))
    width = max(1, shorter // (400 if many else 200))
    rows = list(zip(found['boxes'].tolist(), found['labels'].tolist(), found['scores'].tolist(), strict=True))
    for box, label, _ in reversed(rows):
        pen.rectangle(box, outline=COLOURS[(label - 1) % len(COLOURS)], width=width)
    placed: list[Box] = []
    room = LABELLED * drawn.width * drawn.height
    for box, label, score in rows:
        text = f'{classes[label]} {score:.2f}'
        _, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        size = (right + 4, bottom - top + 4)
        place = next((place for place in _places(box, size, drawn.size)
                      if not any(_overlap(place, other) for other in placed)), None)
        if place is None:
            continue
        room -= size[0] * size[1]
        if room < 0 and placed:
            break
        placed.append(place)
        pen.rectangle(place, fill=COLOURS[(label - 1) % len(COLOURS)])
        pen.text((place[0] + 2, place[1] + 2 - top), text, fill='white', font=font)
    return drawn


def _places(box: list[float], size: tuple[float, float], picture: tuple[int, int]) -> Iterator[Box]:
    """Where a box's label may go, the best place first: above it, below it, inside."""
    width, height = size
    left = max(0.0, min(box[0], picture[0] - width))
    for top in (box[1] - height, box[3], box[1], box[3] - height):
        if 0 <= top <= picture[1] - height:
            yield left, top, left + width, top + height
    yield left, 0.0, left + width, height


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
