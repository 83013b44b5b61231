"""The course of trainings: loss, accuracy, learning rate, AP."""
from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from ..files import read_summary
from .themes import SERIES, as_words, check_format, new_figure, run_style, save, style, theme_named

__all__ = ['draw_curves', 'draw_detection_curves']

XY = tuple[float, float]
COLUMNS = ('train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr')
MARKERS = 15  # at most, on a line
LINE: dict[str, Any] = {'linewidth': 1.8, 'markersize': 4.5}


def draw_curves(
        summary_csv: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]], path: str | os.PathLike[str],
        theme: str = 'auto',
) -> None:
    """Draw loss, accuracy and learning rate against the epoch, from the summary.csv that timm's trainer writes.

    Epochs are counted from 1, where the file counts them from 0.

    Args:
        summary_csv: A file with the column `epoch` and any of `train_loss`, `eval_loss`, `eval_top1`, `eval_top5`,
            `lr`; what is missing is left out. Or several such files, by their names in the legend.
        path: The picture to write, .png or .svg.
        theme: 'light', 'dark', or 'auto': light, but an SVG follows its reader's system.

    Raises:
        ValueError: if a file has no finished epoch or nothing to draw, or holds something other than numbers, there are
            more runs than shapes, or the suffix of path is neither .png nor .svg.
        OSError: if a file cannot be read or written.
    """
    path = check_format(path)
    runs = summary_csv if isinstance(summary_csv, Mapping) else {'': summary_csv}
    _check_count(runs)
    colours = theme_named(theme)
    histories = {name: _read_summary(Path(file)) for name, file in runs.items()}
    # What of a run is drawn in a panel: of one run its columns differ in shape and colour, of several the runs.
    panels = [(label, found) for label, columns in (
        ('loss', {'train_loss': 'training', 'eval_loss': 'evaluation'}),
        ('accuracy, %', {'eval_top1': 'top-1', 'eval_top5': 'top-5'}), ('learning rate', {'lr': ''}),
    ) if (found := {name: legend for name, legend in columns.items()
                    if any(name in history for history in histories.values())})]
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(theme, figsize=(4.6 * len(panels), 3.6 if len(runs) == 1 else 4.0), layout='constrained')
    for axes, (label, columns) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for i, (run, history) in enumerate(histories.items()):
            for name, legend in columns.items():
                if name not in history:
                    continue
                steps, values = zip(*history[name], strict=True)
                place = i if len(runs) > 1 else {'train_loss': 1, 'eval_top5': 5, 'lr': 5}.get(name, 0)
                minor = len(runs) > 1 and name in ('train_loss', 'eval_top5')
                _line(axes, steps, values, run_style(place, colours), gid=f'{name} of {run}' if run else name,
                      label='' if len(runs) > 1 else legend, minor=minor)
                if name == 'eval_top1' and len(runs) == 1:
                    best = max(range(len(values)), key=values.__getitem__)
                    axes.set_title(f'best top-1 {values[best]:.2f} %, epoch {steps[best]:g}; '
                                   f'last {values[-1]:.2f} %', fontsize=10, color=colours.ink)
        style(axes, 'epoch', label + (', bold: evaluation' if len(runs) > 1 and len(columns) > 1 and label == 'loss'
                                      else ', bold: top-1' if len(runs) > 1 and len(columns) > 1 else ''), colours)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        if label == 'learning rate':
            axes.ticklabel_format(axis='y', scilimits=(-3, 3))
        if len(columns) > 1 and len(runs) == 1:
            axes.legend(frameon=False, fontsize=10, labelcolor=colours.ink)
    _legend(figure, list(runs), colours)
    save(figure, path)


def draw_detection_curves(
        runs: Mapping[str, str | os.PathLike[str]], path: str | os.PathLike[str], theme: str = 'auto',
) -> None:
    """Draw loss, AP and AP50 against the iteration, from the metrics.json files that detectron2 writes.

    Args:
        runs: A metrics.json for each name in the legend.
        path: The picture to write, .png or .svg.
        theme: As for `draw_curves`.

    Raises:
        ValueError: if a file has no iteration to draw or is not what detectron2 writes, there are more runs than
            shapes, or the suffix of path is neither .png nor .svg.
        OSError: if a file cannot be read or written.
    """
    path = check_format(path)
    _check_count(runs)
    colours = theme_named(theme)
    histories = {name: _read_metrics(Path(file)) for name, file in runs.items()}
    panels = [(key, label) for key, label in (
        ('total_loss', 'training loss'), ('bbox/AP', 'box AP, %'), ('bbox/AP50', 'box AP50, %'),
    ) if any(key in history for history in histories.values())]
    figure = new_figure(theme, figsize=(4.6 * len(panels), 3.8), layout='constrained')
    for axes, (key, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for i, (name, history) in enumerate(histories.items()):
            if key not in history:
                continue
            steps, values = zip(*history[key], strict=True)
            look = run_style(i, colours)
            if key == 'total_loss':
                # A minibatch's loss is noise for the most part: the mean of nine stands out, the single ones stay.
                axes.plot(steps, values, color=look['color'], linewidth=0.8, alpha=0.3)
                values = tuple(fmean(values[max(0, i - 4):i + 5]) for i in range(len(values)))
            _line(axes, steps, values, look, gid=f'{key} of {name}')
        style(axes, 'iteration', label, colours)
        axes.set_ylim(bottom=0)
    _legend(figure, list(runs), colours)
    save(figure, path)


def _check_count(runs: Mapping[str, Any]) -> None:
    if not 1 <= len(runs) <= len(SERIES):
        raise ValueError(f'one to {len(SERIES)} runs fit into a picture, got {len(runs)}')


def _line(
        axes: Any, steps: tuple[float, ...], values: tuple[float, ...], look: dict[str, Any], minor: bool = False,
        **kwargs: Any,
) -> None:
    """A line with markers here and there, which show which line it is without colours."""
    thin = {'linewidth': 0.9, 'alpha': 0.6, 'marker': ''} if minor else {}
    axes.plot(steps, values, markevery=max(1, math.ceil(len(steps) / MARKERS)), **{**LINE, **look, **thin}, **kwargs)


def _legend(figure: Any, names: list[str], colours: Any) -> None:
    """All runs below the panels, once each; nothing where there is one."""
    if len(names) < 2:
        return
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **LINE, **run_style(i, colours)) for i in range(len(names))]
    # With numbers at first: matplotlib leaves out what has a name that begins with an underscore.
    legend = figure.legend(
        handles, list(map(str, range(len(names)))), loc='outside lower center', ncols=min(len(names), 4), frameon=False,
        fontsize=10, labelcolor=colours.ink, handlelength=3.5)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
        as_words(text)


def _read_metrics(path: Path) -> dict[str, list[XY]]:
    """For each number that detectron2 logs, the pairs (iteration, value); a resumed run's later rows count."""
    columns: dict[str, dict[int, float]] = {}
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1):
        try:
            row = json.loads(line)
            iteration = row.pop('iteration')
            for name, value in row.items():
                if math.isfinite(value):  # AP is nan where nothing was found
                    columns.setdefault(name, {})[int(iteration)] = float(value)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f'{path}, line {number}: not what detectron2 writes') from None
    if 'total_loss' not in columns and 'bbox/AP' not in columns:
        raise ValueError(f'{path}: no iteration to draw')
    return {name: sorted(values.items()) for name, values in columns.items()}


def _read_summary(path: Path) -> dict[str, list[XY]]:
    """For each column that is drawn, the pairs (epoch counted from 1, value); empty cells are left out."""
    rows = read_summary(path, COLUMNS)
    columns = {name: found for name in COLUMNS
               if (found := [(row['epoch'] + 1, row[name]) for row in rows if name in row])}
    if not columns:
        raise ValueError(f'{path}: none of {", ".join(COLUMNS)} to draw' if rows else
                         f'{path}: no finished epoch to draw')
    return columns
