"""`randwire-zoo curves`: the course of trainings, timm's, this package's or detectron2's, as one picture."""
from __future__ import annotations

import argparse
from pathlib import Path

from . import check_format, draw_curves, draw_detection_curves

__all__ = ['main']

#: What a training leaves of its course, and what draws it.
FILES = {'summary.csv': draw_curves, 'metrics.json': draw_detection_curves}


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
