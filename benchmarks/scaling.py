"""How cost grows with the number of nodes, the width and the resolution: a table and a plot.

    python benchmarks/scaling.py --json docs/data/scaling.json [--rounds 5]
    python benchmarks/scaling.py --draw docs/data/scaling.json docs/images/scaling.svg

Evaluation of deployed small-regime networks of WS(4, 0.75) on the native kernels (on a GPU, eager), batch 8. All runs
of one axis take turns. Beside the time stand the multiply-adds, drawn as a line through the largest point, and for
the number of nodes the peak of activations beside the widest cut.
"""
from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from common import add_json_argument, paired_seconds, write_json
from floors import floors_of
from memory import measure_evaluation
from speed import eval_step, on_kernels
from tables import format_table, machine_line, scaling_table

from randwire_zoo import deploy, use_kernels
from randwire_zoo.drawing import LIGHT, new_figure, run_style, style, svg_text
from randwire_zoo.files import write_atomically

AXES: dict[str, list[int]] = {
    'num_nodes': [32, 64, 96, 128, 192, 256], 'channels': [39, 78, 117, 156, 234], 'size': [96, 128, 160, 224, 320]}
LABELS = {'num_nodes': 'N, nodes per stage', 'channels': 'C', 'size': 'resolution (pixels per side)'}
DEFAULTS = {'num_nodes': 32, 'channels': 78, 'size': 224}


def measure(axis: str, values: list[int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per value."""
    runs, rows = {}, []
    for value in values:
        setting = {**DEFAULTS, axis: value}
        size = setting.pop('size')
        kwargs: dict[str, Any] = {'graph': 'ws(4,0.75)', 'seed': 1, **setting}
        model = timm.create_model('randwire', **kwargs).to(memory_format=torch.channels_last).eval()
        floors = floors_of(timm.create_model('randwire', device='meta', **kwargs), args.batch, size, torch.float32)
        row = {'value': value, 'macs': floors.macs}
        if axis == 'num_nodes':
            row['peak_mib'], _, row['cut_mib'] = measure_evaluation(model, args.batch, size)
        rows.append(row)
        images = torch.randn(args.batch, 3, size, size, device=args.device).contiguous(
            memory_format=torch.channels_last)
        kernels = 'native' if args.device == 'cpu' else 'torch'
        runs[str(value)] = on_kernels(kernels, eval_step(deploy(model).to(args.device), images))
    return [{**row, 'seconds': seconds}
            for row, seconds in zip(rows, paired_seconds(runs, args.rounds).values(), strict=True)]


def source(record: dict[str, Any]) -> str:
    """What a picture says of its record, so that it can be held against it."""
    return f'<!-- drawn from the record of {record["commit"]}, {record["date"]} -->'


def draw(record: dict[str, Any], path: Path) -> None:
    """Time against multiply-adds for every axis, and peak memory against the widest cut; an SVG."""
    axes = record['results']['axes']
    figure = new_figure('auto', figsize=(9, 6.6), layout='constrained')
    panels = figure.subplots(2, 2).flat
    lines: dict[str, dict[str, Sequence[float]]] = {}
    for axis, rows in axes.items():
        ms = [1e3 * statistics.median(row['seconds']) for row in rows]
        lines[axis] = {'measured': ms,
                       'in proportion to multiply-adds': [ms[-1] * row['macs'] / rows[-1]['macs'] for row in rows]}
    lines['memory'] = {label: [row[name] for row in axes['num_nodes']]
                       for name, label in (('peak_mib', 'peak of activations'), ('cut_mib', 'widest cut'))}
    for panel, (axis, found) in zip(panels, lines.items(), strict=True):
        x = [row['value'] for row in axes['num_nodes' if axis == 'memory' else axis]]
        for i, (label, values) in enumerate(found.items()):
            panel.plot(x, values, label=label, linewidth=1.6, markersize=4.5, **run_style(i, LIGHT))
        style(panel, LABELS.get(axis, LABELS['num_nodes']), 'MiB' if axis == 'memory' else 'ms per batch')
        panel.set(ylim=0, xlim=0)
        panel.legend(frameon=False, labelcolor=LIGHT.ink)
    write_atomically(path, f'{svg_text(figure)}{source(record)}\n')


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--draw', type=Path, nargs=2, metavar=('FILE', 'PICTURE'), help='draw what was measured before')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--rounds', type=int, default=5)
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    if args.draw:
        draw(json.loads(args.draw[0].read_text(encoding='utf-8')), args.draw[1])
        return
    if args.device == 'cpu':
        use_kernels('native')
    record = write_json(args, {'batch': args.batch, 'graph': 'ws(4,0.75)', 'axes': {
        axis: measure(axis, values, args) for axis, values in AXES.items()}})
    print(machine_line(record))
    for axis in AXES:
        print(format_table(scaling_table(record, axis)), flush=True)


if __name__ == '__main__':
    main()
