"""`randwire-zoo curves`: what detectron2 logged of one or more trainings, as one picture."""
from __future__ import annotations

import argparse
from pathlib import Path

from randwire_zoo.drawing import draw_detection_curves

__all__ = ['add_arguments', 'main']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `randwire-zoo curves`."""
    parser.add_argument('runs', metavar='[NAME=]FOLDER', nargs='+',
                        help="a training's OUTPUT_DIR, and its name in the legend")
    parser.add_argument('-o', '--output', metavar='FILE', default='curves.png',
                        help='picture to write, .png or .svg (default: curves.png)')


def main(args: argparse.Namespace) -> int:
    """Run `randwire-zoo curves`."""
    runs: dict[str, Path] = {}
    for text in args.runs:
        # A folder may have a = in its name.
        name, folder = ('', text) if Path(text).is_dir() or '=' not in text else text.split('=', 1)
        name = name or Path(folder).name
        if name in runs:
            raise ValueError(f'two runs are called {name!r}; name them apart with NAME=FOLDER')
        metrics = Path(folder) / 'metrics.json'
        if not metrics.is_file():
            raise FileNotFoundError(f'no metrics.json in {folder}; detectron2 writes it into OUTPUT_DIR')
        runs[name] = metrics
    draw_detection_curves(runs, args.output)
    print(args.output)
    return 0
