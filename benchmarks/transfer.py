"""Transfer to another data set: a linear classifier of frozen features, and fine-tuning, beside random parameters.

    python benchmarks/transfer.py --data-dir caltech-101 --weights randwire_ws_small_s1.tin200_kd --teacher teacher \
        --output output/caltech --json docs/data/caltech101.json

The same command goes on where it was interrupted; what `--output` has is not measured again, and is refused where it
was made with other settings. Random parameters of the same network are the mark below, and a teacher, the folder that
`randwire-zoo teacher` made, is the mark above: of it the features count, its classifier of other classes is left out.
`--starts` measures some of the three alone.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import add_json_argument, check_same, claim, write_json
from tables import format_table, transfer_table

from randwire_zoo.files import write_atomically
from randwire_zoo.models import find_weights
from randwire_zoo.training.linear_probe import probe_weights
from randwire_zoo.training.recipes import load_recipe
from randwire_zoo.training.trainer import LAST, train
from randwire_zoo.weights.manifest import sha256_of

CLASSIFIER = 'model.safetensors'
#: What may change while the same thing is measured. Of files, the sha256 counts, wherever they lie.
FREE = ('workers', 'device', 'pretrained_path')


def start_of(kind: str, source: str, network: str) -> dict[str, Any]:
    """Settings of a training that begins there: weights (a name with a tag, or a file), a teacher, or 'random'."""
    if kind == 'random':
        return {'model': network}
    if kind == 'teacher':
        config = json.loads((Path(source) / 'config.json').read_text('utf-8'))
        return {'model': config['architecture'], 'pretrained_path': str(Path(source) / CLASSIFIER)}
    return {'model': network, 'pretrained_path': source} if Path(source).is_file() else {
        'model': source, 'pretrained': True}


def probe(kind: str, source: str, network: str, seed: int, shared: dict[str, Any]) -> dict[str, Any]:
    """The linear classifier of one network's features."""
    if kind == 'weights' and Path(source).is_file():
        return asdict(probe_weights(source, shared))
    name = {'random': network, 'teacher': f'local-dir:{source}', 'weights': source}[kind]
    return asdict(probe_weights('', {**shared, 'model': name}, seed if kind == 'random' else None))


def decisive(settings: Mapping[str, Any], sha256: str) -> dict[str, Any]:
    """Of settings and the weights that they begin with, all that decides what comes of them."""
    kept = {name: value for name, value in settings.items() if name not in FREE}
    return {**kept, 'data_dir': str(Path(settings['data_dir']).resolve()), 'sha256': sha256}


def fine_tune(folder: Path, settings: dict[str, Any], recipe: str, sha256: str) -> dict[str, float]:
    """Train, or go on, or take what was trained; the last row of its history.

    Raises:
        SystemExit: if what was trained has other settings.
    """
    # Beside the folder, which must be empty when the training begins.
    claim(folder, folder.with_name(f'{folder.name}_settings.json'),
          decisive({**load_recipe(recipe), **settings}, sha256))
    last = folder / LAST
    result = train(**({'resume': str(last)} if last.is_file() else {
        'config': recipe, **settings, 'output': str(folder.parent), 'experiment': folder.name}))
    return result.last


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-dir', type=Path, required=True)
    parser.add_argument('--output', type=Path, required=True, help='folder of the trainings and what was measured')
    parser.add_argument('--weights', default='', help='arch.tag of the manifest, or a checkpoint')
    parser.add_argument('--network', default='randwire_ws_small_s1', help='name of the network without its weights')
    parser.add_argument('--teacher', default='', help='folder of a teacher')
    parser.add_argument('--starts', nargs='+', choices=('weights', 'random', 'teacher'),
                        help='what to begin from; all that are given, and random parameters, if not said')
    parser.add_argument('--recipes', nargs=2, default=('caltech101/finetune', 'caltech101/scratch'),
                        metavar=('FINE', 'SCRATCH'))
    parser.add_argument('--img-size', type=int, default=128)
    parser.add_argument('--seeds', type=int, nargs='*', default=(1, 2, 3), help='of the fine-tuning; none: probes only')
    parser.add_argument('--epochs', type=int, help='those of the recipes if not given')
    parser.add_argument('--workers', type=int, default=1)
    parser.add_argument('--device')
    parser.add_argument('--no-amp', action='store_true', help='full precision instead of bfloat16')
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    sources = {'weights': args.weights, 'random': '', 'teacher': args.teacher}
    given = [kind for kind, source in sources.items() if source or kind == 'random']
    if missing := set(args.starts or ()) - set(given):
        parser.error(f'--starts {" ".join(sorted(missing))}: not given (--{" --".join(sorted(missing))})')
    starts = [(kind, sources[kind]) for kind in given if kind in (args.starts or given)]
    shared = {name: value for name, value in {
        'data_dir': str(args.data_dir), 'img_size': args.img_size, 'workers': args.workers, 'device': args.device,
        'amp': False if args.no_amp else None,
    }.items() if value is not None}
    rows = []
    for kind, source in starts:
        digest = _digest(kind, source)
        # Other weights or sizes are other work.
        name = '_'.join([kind, *([digest[:8]] if digest else []), f'{args.img_size}px', *(['fp32'] * args.no_amp)])
        file = args.output / f'{name}_probe.json'
        start = start_of(kind, source, args.network)
        precise = {'amp': True, 'amp_dtype': 'bfloat16', **shared}
        wanted = decisive({**precise, **start}, digest)
        if file.is_file():
            kept = json.loads(file.read_text('utf-8'))
            check_same(file, kept.get('settings'), wanted)
        else:
            kept = {'settings': wanted, 'probe': probe(kind, source, args.network, 1, precise)}
            write_atomically(file, json.dumps(kept))
        row: dict[str, Any] = {
            'start': kind, 'network': start['model'], 'sha256': digest,
            'img_size': args.img_size, 'probe': kept['probe'],
            'recipe': args.recipes[kind == 'random'], 'fine_tuned': []}
        for seed in args.seeds:
            settings = {**shared, **start, 'seed': seed}
            if args.epochs is not None:
                settings['epochs'] = args.epochs
            last = fine_tune(args.output / f'{name}_s{seed}', settings, row['recipe'], digest)
            row['fine_tuned'].append({'seed': seed, 'top1': last['eval_top1'], 'epochs': int(last['epoch']) + 1})
        rows.append(row)
    record = write_json(args, {'rows': rows})
    print(format_table(transfer_table(record)))


def _digest(kind: str, source: str) -> str:
    """The sha256 of the weights of a start; empty for random ones."""
    if kind == 'random':
        return ''
    if kind == 'teacher' or Path(source).is_file():
        return sha256_of(Path(source) / CLASSIFIER if kind == 'teacher' else source)
    row = find_weights(source)
    if row is None:
        raise ValueError(f'{source} is neither a file nor a row of the manifest')
    return row.sha256


if __name__ == '__main__':
    main()
