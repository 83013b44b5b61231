"""Detectors from trained weights, as the paper's recipe has it, beside the same detectors from random parameters.

    python benchmarks/detectors.py --data-dir data --weights randwire://randwire_ws_small_s1.tin200_kd \
        --output output/detection --json docs/data/detection.json

From weights: FREEZE_AT 2 and FrozenBN; from random parameters everything is trained. All else is the same, through
detectron2's train_net.py. The same command goes on where it was interrupted; what `--output` has of other settings is
refused. DATA_DIR holds `bccd/` and `coco/` as the configs have them. Any other NAME of --data is a folder in it as
`configs/finetune` wants a user's own, by the recipe of two CPU cores there.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import ROOT, add_json_argument, claim, describe, write_json
from tables import detection_table, format_table

from randwire_zoo.detection.weights import locate_weights
from randwire_zoo.studies.processes import run_child
from randwire_zoo.studies.work import train_net
from randwire_zoo.weights.manifest import sha256_of

OWN = 'finetune/cpu.yaml'
CONFIGS = {name: f'{name}/faster_rcnn_randwire_ws_small_s1.yaml' for name in ('bccd', 'coco128')}


def fine_tune(
        folder: Path, config: Path, data_dir: Path, period: int, options: Sequence[str], sha256: str,
) -> list[dict[str, float]]:
    """Run train_net.py, go on with it, or take what it left: iteration, AP and AP50 of every evaluation.

    `sha256` is that of the weights it begins from, which another release may have by the same name; empty for none.

    Raises:
        RuntimeError: if it fails, naming its log.
        SystemExit: if what it left has other settings.
    """
    given = dict(zip(options[::2], options[1::2], strict=False))  # train_net.py says so if one has no value
    claim(folder, folder / 'settings.json', {
        'config': str(config.relative_to(ROOT)), 'data_dir': str(data_dir.resolve()), **given,
        'sha256': sha256})
    lines = _metrics(folder)
    # The last line is of the last evaluation, which comes after the last weights have been written.
    if not (folder / 'model_final.pth').is_file() or not lines or 'bbox/AP' not in lines[-1]:
        folder.mkdir(parents=True, exist_ok=True)
        resume = ['--resume'] if (folder / 'last_checkpoint').is_file() else []
        with open(folder / 'stdout.txt', 'a', encoding='utf-8') as log:
            code = run_child(
                [sys.executable, str(train_net()), '--config-file', str(config), *resume, 'OUTPUT_DIR', str(folder),
                 *options], log, {**os.environ, 'DETECTRON2_DATASETS': str(data_dir),
                                  'DETECTRON2_ENV_MODULE': 'randwire_zoo.detection.datasets'}, None)
        if code:
            raise RuntimeError(f'train_net.py ended with {code}: see {folder / "stdout.txt"}')
        lines = _metrics(folder)
    # Iterations count from 0, but for what is measured after the last one; a resumed run may measure twice.
    found = {number + 1 if (number + 1) % period == 0 else number: line
             for line in lines if 'bbox/AP' in line for number in [line['iteration']]}
    return [{'iteration': number, 'AP': _number(line['bbox/AP']), 'AP50': _number(line['bbox/AP50'])}
            for number, line in sorted(found.items())]


def _metrics(folder: Path) -> list[dict[str, Any]]:
    file = folder / 'metrics.json'
    return [json.loads(line) for line in file.read_text('utf-8').splitlines()] if file.is_file() else []


def _number(value: float) -> float:
    return 0.0 if math.isnan(value) else value  # detectron2's NaN: not one box found


def own_data(data_dir: Path, name: str) -> list[str]:
    """What has to be said of a user's own images.

    Raises:
        ValueError: if there are none of that name.
    """
    listing = data_dir / name / 'annotations' / 'instances_train.json'
    if not listing.is_file():
        raise ValueError(f'--data {name} is none of {", ".join(CONFIGS)}, and there is no {listing}')
    classes = len(json.loads(listing.read_text('utf-8'))['categories'])
    return ['DATASETS.TRAIN', f"('{name}_train',)", 'DATASETS.TEST', f"('{name}_val',)",
            'MODEL.ROI_HEADS.NUM_CLASSES', str(classes)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-dir', type=Path, required=True)
    parser.add_argument('--output', type=Path, required=True, help='folder of the trainings')
    parser.add_argument('--weights', required=True, help='what MODEL.WEIGHTS takes')
    parser.add_argument('--data', nargs='+', metavar='NAME', default=list(CONFIGS))
    parser.add_argument('--seeds', type=int, nargs='+', default=(1, 2, 3))
    parser.add_argument('--iterations', type=int, nargs='+', metavar='N',
                        help="budget, one for each of --data; the configs' own if not given")
    parser.add_argument('--periods', type=int, nargs='+', metavar='N',
                        help='iterations between evaluations, one for each of --data (100)')
    parser.add_argument('--options', nargs='*', default=(), metavar='KEY VALUE', help='for both starts alike')
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    for name in ('iterations', 'periods'):
        if (given := getattr(args, name)) and len(given) != len(args.data):
            parser.error(f'--{name} needs a number for each of {", ".join(args.data)}')
    try:
        digests = {'weights': sha256_of(locate_weights(args.weights)), 'random': ''}
        own = {data: [] if data in CONFIGS else own_data(args.data_dir, data) for data in args.data}
    except (OSError, ValueError) as error:
        parser.error(str(error))
    periods = args.periods or [100] * len(args.data)
    starts = {
        'weights': ['MODEL.WEIGHTS', args.weights, 'MODEL.BACKBONE.FREEZE_AT', '2', 'MODEL.RESNETS.NORM', 'FrozenBN'],
        'random': ['MODEL.WEIGHTS', '', 'MODEL.BACKBONE.FREEZE_AT', '0', 'MODEL.RESNETS.NORM', 'BN']}
    rows = []
    for seed in args.seeds:  # a whole comparison comes first, its repetitions later
        for index, data in enumerate(args.data):
            budget: list[str] = []
            if args.iterations:
                budget = ['SOLVER.MAX_ITER', str(args.iterations[index]),
                          'SOLVER.STEPS', f'({round(0.8 * args.iterations[index])},)']
            for start, options in starts.items():
                history = fine_tune(
                    args.output / f'{data}_{start}_s{seed}', ROOT / 'configs' / CONFIGS.get(data, OWN), args.data_dir,
                    periods[index], ['MODEL.DEVICE', 'cpu', *own[data], *options, 'SEED', str(seed),
                                  'TEST.EVAL_PERIOD', str(periods[index]), *budget, *args.options], digests[start])
                rows.append({'data': data, 'start': start, 'sha256': digests[start], 'seed': seed, 'history': history})
                print(data, start, seed, history[-1], flush=True)
    device = dict(zip(args.options[::2], args.options[1::2], strict=False)).get('MODEL.DEVICE', 'cpu')
    record = write_json(args, {'rows': rows}, describe(args, device))
    print(format_table(detection_table(record)))


if __name__ == '__main__':
    main()
