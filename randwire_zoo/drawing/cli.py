"""`randwire-zoo curves`: the course of trainings, timm's, this package's or detectron2's, as one picture."""
from __future__ import annotations

import argparse
from pathlib import Path

from . import THEMES, check_format, draw_curves, draw_detection_curves

__all__ = ['add_arguments', 'main']

#: What a training leaves of its course, and what draws it.
FILES = {'summary.csv': draw_curves, 'metrics.json': draw_detection_curves}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `randwire-zoo curves`."""
    parser.add_argument('runs', metavar='[NAME=]FOLDER', nargs='+',
                        help="a training's folder, with a summary.csv (timm's, `randwire-zoo train`'s) or a "
                             "metrics.json (detectron2's OUTPUT_DIR), and its name in the legend")
    parser.add_argument('-o', '--output', metavar='FILE', default='curves.png',
                        help='picture to write, .png or .svg (default: curves.png)')
    parser.add_argument('--theme', choices=THEMES, default='auto',
                        help="colours (default: auto: light, and an SVG turns dark with its reader's system)")


def main(args: argparse.Namespace) -> int:
    """Run `randwire-zoo curves`."""
    check_format(args.output)
    runs: dict[str, Path] = {}
    for text in args.runs:
        # A folder may have a = in its name.
        name, path = ('', text) if Path(text).exists() or '=' not in text else text.split('=', 1)
        folder = Path(path)
        if folder.name in FILES and folder.is_file():
            folder = folder.parent
        name = name or folder.resolve().name
        if name in runs:
            raise ValueError(f'two runs are called {name!r}; name them apart with NAME=FOLDER')
        if not folder.is_dir():
            raise FileNotFoundError(f'no folder {folder}')
        found = [folder / file for file in FILES if (folder / file).is_file()]
        if not found:
            raise FileNotFoundError(f'no summary.csv and no metrics.json in {folder}; timm writes one into its '
                                    'experiment folder, detectron2 the other into OUTPUT_DIR')
        runs[name] = found[0]
    kinds = {path.name for path in runs.values()}
    if len(kinds) > 1:
        raise ValueError('classification counts in epochs and detection in iterations: draw them apart')
    FILES[kinds.pop()](runs, args.output, theme=args.theme)
    print(args.output)
    return 0
