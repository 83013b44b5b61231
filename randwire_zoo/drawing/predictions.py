"""A sheet of images with what a network takes them for."""
from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .themes import as_words, check_format, new_figure, save, theme_named

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ['draw_predictions']


def draw_predictions(
        images: Sequence[Image], labels: Sequence[str], predictions: Sequence[str], confidences: Sequence[float],
        path: str | os.PathLike[str], title: str = '', theme: str = 'auto',
) -> None:
    """Draw a sheet of images with true and predicted class; wrong ones have a thick frame and a cross.

    Args:
        images: PIL images of any size, of a mode with at most 8 bits a channel.
        labels: The true class of each.
        predictions: The predicted class of each.
        confidences: The probability of each prediction, within [0, 1].
        path: The picture to write, .png or .svg.
        title: Stands above: of a choice of images, what they were chosen from, and how many of those are right.
            Without one the images stand for themselves, and their number is given.
        theme: 'light', 'dark', or 'auto': light, but an SVG follows its reader's system.

    Raises:
        ValueError: if there is no image, the lengths differ, an image has more than 8 bits a channel (Pillow would cut
            all values off at 255), or the suffix is neither .png nor .svg.
        OSError: if the file cannot be written.
    """
    path = check_format(path)
    if not images:
        raise ValueError('there is no image to draw')
    if not len(images) == len(labels) == len(predictions) == len(confidences):
        raise ValueError(f'{len(images)} images need as many labels, predictions and confidences, got {len(labels)}, '
                         f'{len(predictions)} and {len(confidences)}')
    for i, image in enumerate(images):
        if image.mode.startswith(('I', 'F')):
            raise ValueError(f'image {i} has the mode {image.mode!r}; a sheet takes modes of at most 8 bits a channel, '
                             "such as 'L' or 'RGB'")
    colours = theme_named(theme)
    columns = min(8, len(images))
    rows = math.ceil(len(images) / columns)
    if not title:
        correct = sum(str(label) == str(prediction) for label, prediction in zip(labels, predictions, strict=True))
        title = f'{correct} of {len(images)} right'
    figure = new_figure(theme, figsize=(max(1.55 * columns, 3.2, 0.09 * len(title)), 2.05 * rows + 0.6),
                        layout='constrained')
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    for axes, image, label, prediction, confidence in zip(
            grid[:len(images)], images, labels, predictions, confidences, strict=True):
        right = str(label) == str(prediction)
        axes.set_axis_on()
        axes.set_xticks([])
        axes.set_yticks([])
        axes.imshow(image.convert('RGB'), interpolation='nearest' if max(image.size) <= 64 else 'antialiased')
        for spine in axes.spines.values():
            spine.set_color(colours.edge if right else colours.runs[1])
            spine.set_linewidth(0.8 if right else 3.0)
        mark = '' if right else '✗ '
        as_words(axes.set_title(f'true {_shorten(label)}', fontsize=9, color=colours.ink, pad=4))
        as_words(axes.set_xlabel(
            f'{mark}{_shorten(prediction)} ({confidence:.0%})', fontsize=9, labelpad=4,
            color=colours.ink if right else colours.runs[1], fontweight='normal' if right else 'bold'))
    as_words(figure.suptitle(f'{title}\nabove: true class, below: prediction', fontsize=11, color=colours.ink))
    save(figure, path)


def _shorten(name: str, width: int = 13) -> str:
    """Cut a class name to what fits under a small image."""
    name = str(name)
    return name if len(name) <= width else name[:width - 1].rstrip() + '…'
