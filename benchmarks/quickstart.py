"""Quick starts by seed, threads and kernels, each a row of a file; those that the file has are not run again.

    python benchmarks/quickstart.py --seeds 1 2 3 --threads 1 2 --kernels torch native --json digits.jsonl

A row has what `randwire-zoo quickstart` printed, and where it comes from. `--svm` adds, for comparison, a support
vector machine on the raw pixels of the same split.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from common import add_json_argument, describe
from tables import format_table, quickstart_table


def run_once(seed: int, threads: int, kernels: str) -> dict[str, Any]:
    """One quick start in a process of its own, as its user sees it.

    Raises:
        RuntimeError: if it did not come to its end.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, '-m', 'randwire_zoo', 'quickstart', '--no-progress', '--seed', str(seed)], cwd=folder,
            capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': str(threads),
                                                 'RANDWIRE_ZOO_KERNELS': kernels})
    found = re.search(r'top-1\s+([\d.]+) %', done.stdout)
    if found is None:
        raise RuntimeError(f'the quick start ended with {done.returncode}: {(done.stderr or done.stdout)[-2000:]}')
    printed = done.stdout[done.stdout.index('trained in'):].splitlines()
    return {'seed': seed, 'kernels': kernels, 'top1': float(found[1]), 'status': done.returncode, 'printed': printed}


def support_vector_machine() -> dict[str, Any]:
    """Per cent of the held-out digits that scikit-learn's RBF machine gets right, by gamma for pixels of 0 … 16."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.svm import SVC

    from randwire_zoo.training.digits import HELD_OUT, SPLIT_SEED
    digits = load_digits()
    data = train_test_split(digits.data, digits.target, test_size=HELD_OUT, random_state=SPLIT_SEED,
                            stratify=digits.target)
    return {'svm': {str(gamma): 100 * SVC(gamma=gamma).fit(data[0], data[2]).score(data[1], data[3])
                    for gamma in (0.0005, 0.001, 0.002)}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='*', default=list(range(1, 11)))
    parser.add_argument('--threads', type=int, nargs='*', default=[1, 2])
    parser.add_argument('--kernels', nargs='*', default=['torch', 'native'])
    parser.add_argument('--svm', action='store_true')
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    if args.json is None:
        parser.error('--json FILE is needed: rows are kept as soon as they are there')
    rows = [json.loads(line) for line in args.json.read_text('utf-8').splitlines()] if args.json.is_file() else []
    known = {(row['results'].get('seed'), row['threads'], row['results'].get('kernels')) for row in rows}

    def add(results: dict[str, Any], threads: int, device: str | None = None) -> None:
        rows.append({**describe(args, device), 'threads': threads, 'results': results})
        with open(args.json, 'a', encoding='utf-8') as file:
            file.write(json.dumps(rows[-1], ensure_ascii=False) + '\n')

    if args.svm and not any('svm' in row['results'] for row in rows):
        add(support_vector_machine(), 1, 'cpu')
    for seed in args.seeds:
        for threads in args.threads:
            for kernels in args.kernels:
                if (seed, threads, kernels) not in known:
                    add(run_once(seed, threads, kernels), threads)
    print(format_table(quickstart_table([row for row in rows if 'svm' not in row['results']])))


if __name__ == '__main__':
    main()
