"""The same training on the native kernels and on those of torch, over several seeds: last accuracy, seed by seed.

    OMP_NUM_THREADS=1 python benchmarks/accuracy.py --json docs/data/accuracy.json

The recipe is the quick start's, on its digits. No epoch is chosen: the figure is that of the last one. The file is
written after every run. An interrupted measurement goes on where it was, in a checkout without changes; runs of
another commit, machine or number of threads are measured anew, so that what the file says of its origin is true of all.
"""
from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import add_json_argument, describe, to_json, write_json
from tables import accuracy_table, format_table, machine_line

from randwire_zoo.kernels.library import KERNELS
from randwire_zoo.training.digits import write_digits
from randwire_zoo.training.quickstart import RECIPE
from randwire_zoo.training.recipes import load_recipe
from randwire_zoo.training.trainer import train


def run_once(data_dir: Path, seed: int, epochs: int, kernels: str) -> dict[str, Any]:
    """One training."""
    recipe = load_recipe(RECIPE)
    mixed = round(epochs * recipe['mixup_off_epoch'] / recipe['epochs'])
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        last = train(RECIPE, progress=False, lines=False, data_dir=str(data_dir), output=folder, experiment='run',
                     seed=seed, epochs=epochs, mixup_off_epoch=mixed, kernels=kernels).last
    return {'seed': seed, 'kernels': kernels, 'top1': last['eval_top1'], 'loss': last['eval_loss'],
            'train_loss': last['train_loss'], 'cpu_seconds': time.process_time() - start}


def same_origin(record: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Whether a record's runs were made as those of this process are: by one clean commit, and on one machine."""
    own = {name: value for name, value in json.loads(to_json(made)).items() if name not in ('command', 'date')}
    clean = own['commit'] is not None and not own['changed_since_commit']
    return clean and all(name in record and record[name] == value for name, value in own.items())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[1, 2, 3, 4, 5])
    parser.add_argument('--epochs', type=int, default=load_recipe(RECIPE)['epochs'])
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    made = describe(args, device=None)
    record: dict[str, Any] = {**made, 'results': {'epochs': args.epochs, 'runs': []}}
    if args.json and args.json.is_file():
        kept = json.loads(args.json.read_text(encoding='utf-8'))
        if kept['results']['epochs'] == args.epochs and same_origin(kept, made):
            record = kept
    results = record['results']
    done = {(run['seed'], run['kernels']) for run in results['runs']}
    with tempfile.TemporaryDirectory() as folder:
        data_dir = write_digits(Path(folder) / 'digits')
        for seed in args.seeds:
            for kernels in KERNELS:
                if (seed, kernels) not in done:
                    results['runs'].append(run_once(data_dir, seed, args.epochs, kernels))
                    record = write_json(args, results, made)
    print(machine_line(record))
    print(format_table(accuracy_table(record)))


if __name__ == '__main__':
    main()
