"""How cost grows with the number of nodes, the width and the resolution: a table and a plot.

    python benchmarks/scaling.py --plot docs/images/scaling.png [--rounds 5]

Evaluation of deployed small-regime networks of WS(4, 0.75) on the native kernels (on a GPU, eager), batch 8. All runs
of one axis take turns. Beside the time stand the multiply-adds, drawn as a line through the largest point, and for
the number of nodes the peak of activations beside the widest cut.
"""
from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import timm
import torch
from common import describe_machine, paired_seconds
from floors import floors_of
from memory import measure_evaluation
from speed import eval_step, on_kernels
from tabulate import tabulate

from randwire_zoo import deploy
from randwire_zoo.files import atomic_path

AXES: dict[str, list[int]] = {
    'num_nodes': [32, 64, 96, 128, 192, 256], 'channels': [39, 78, 117, 156, 234], 'size': [96, 128, 160, 224, 320]}
LABELS = {'num_nodes': 'N, nodes per stage', 'channels': 'C', 'size': 'resolution (pixels per side)'}
DEFAULTS = {'num_nodes': 32, 'channels': 78, 'size': 224}


def measure(axis: str, values: list[int], args: argparse.Namespace) -> list[dict[str, float]]:
    """One row per value."""
    runs, rows = {}, []
    for value in values:
        setting = {**DEFAULTS, axis: value}
        size = setting.pop('size')
        kwargs: dict[str, Any] = {'graph': 'ws(4,0.75)', 'seed': 1, **setting}
        model = timm.create_model('randwire', **kwargs).to(memory_format=torch.channels_last).eval()
        floors = floors_of(timm.create_model('randwire', device='meta', **kwargs), args.batch, size, torch.float32)
        row = {axis: value, 'multiply-adds (G)': floors.macs / 1e9}
        if axis == 'num_nodes':
            row['peak of activations (MiB)'], _, row['widest cut (MiB)'] = measure_evaluation(model, args.batch, size)
        rows.append(row)
        images = torch.randn(args.batch, 3, size, size, device=args.device).contiguous(
            memory_format=torch.channels_last)
        kernels = 'native' if args.device == 'cpu' else 'torch'
        runs[str(value)] = on_kernels(kernels, eval_step(deploy(model).to(args.device), images))
    for row, seconds in zip(rows, paired_seconds(runs, args.rounds).values(), strict=True):
        row['ms'] = 1e3 * statistics.median(seconds)
        row['G multiply-adds/s'] = row['multiply-adds (G)'] / row['ms'] * 1e3
    return rows


def draw(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Time against multiply-adds for every axis, and peak memory against the widest cut."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, panels = plt.subplots(1, 4, figsize=(16, 3.8), layout='constrained')
    for panel, (axis, rows) in zip(panels, results.items(), strict=False):
        x = [row[axis] for row in rows]
        last = rows[-1]
        panel.plot(x, [row['ms'] for row in rows], 'o-', label='measured')
        panel.plot(x, [last['ms'] * row['multiply-adds (G)'] / last['multiply-adds (G)'] for row in rows], 'k--',
                   label='in proportion to multiply-adds')
        panel.set(xlabel=LABELS[axis], ylabel='ms per batch', ylim=0, xlim=0)
        panel.legend(frameon=False)
    rows = results['num_nodes']
    for name in ('peak of activations (MiB)', 'widest cut (MiB)'):
        panels[3].plot([row['num_nodes'] for row in rows], [row[name] for row in rows], 'o-', label=name)
    panels[3].set(xlabel=LABELS['num_nodes'], ylabel='MiB', ylim=0, xlim=0)
    panels[3].legend(frameon=False)
    for panel in panels:
        panel.spines[['top', 'right']].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--plot', type=Path, metavar='FILE', help='where to put the picture')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--rounds', type=int, default=5)
    args = parser.parse_args()
    print(describe_machine())
    results = {axis: measure(axis, values, args) for axis, values in AXES.items()}
    for rows in results.values():
        print(tabulate(rows, headers='keys', floatfmt='.1f'), flush=True)
    if args.plot:
        draw(results, args.plot)


if __name__ == '__main__':
    main()
