"""What `randwire-zoo curves` is asked."""
from __future__ import annotations

import argparse

from .themes import THEMES

__all__ = ['add_curves_arguments']


def add_curves_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `randwire-zoo curves`."""
    parser.add_argument('runs', metavar='[NAME=]FOLDER', nargs='+',
                        help="a training's folder, with a summary.csv (timm's, `randwire-zoo train`'s) or a "
                             "metrics.json (detectron2's OUTPUT_DIR), and its name in the legend")
    parser.add_argument('-o', '--output', metavar='FILE', default='curves.png',
                        help='picture to write, .png or .svg (default: curves.png)')
    parser.add_argument('--theme', choices=THEMES, default='auto',
                        help="colours (default: auto: light, and an SVG turns dark with its reader's system)")
