"""`randwire-zoo hub`: stage, push, verify, pull, manifest.

Exit codes: 0 done, 1 a check failed, 2 usage, 3 network or permission.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

from randwire_zoo.files import atomic_path, read_json, write_atomically
from randwire_zoo.models import WEIGHTS
from randwire_zoo.training.evaluation import import_modules
from randwire_zoo.training.recipes import check_settings
from randwire_zoo.weights.manifest import FILENAME, PACKAGED, HubError, PublishedWeights, read_rows, rows_in_use

from .arguments import TYPED
from .checks import CheckFailed, check_folder, figures
from .config import differences
from .publishing import check_row, pull, push, verify
from .staging import stage
from .transfer import bounded, left_behind

__all__ = ['main']


def main(args: argparse.Namespace) -> int:
    """Run `randwire-zoo hub`."""
    try:
        code = {'stage': _stage, 'push': _push, 'verify': _verify, 'pull': _pull, 'manifest': _manifest}[
            args.hub_command](args)
    except CheckFailed as error:
        code = _fail(error, 1)
    except HubError as error:
        code = _fail(error, 3)
    except KeyboardInterrupt:
        if not left_behind():
            raise
        code = _fail(KeyboardInterrupt('interrupted'), 130)
    if left_behind():
        # Python waits at its end for the threads of the client, which wait for the Hub.
        sys.stdout.flush()
        os._exit(code)
    return code


def _fail(error: BaseException, code: int) -> int:
    print(f'randwire-zoo: error: {" ".join(str(error).split())}', file=sys.stderr)
    return code


def _stage(args: argparse.Namespace) -> int:
    text = Path(args.text).read_text(encoding='utf-8') if args.text else ''
    import_modules(getattr(args, 'device_modules', None) or ())
    typed = {key: getattr(args, key) for key in TYPED if hasattr(args, key)}
    staged = stage(
        args.checkpoint, args.output, args.model, args.tag, args.license, args.recipe, args.summary, args.dataset,
        not args.no_ema, not args.no_eval, args.data_dir, args.split, check_settings(typed), dict(args.metric), text,
        getattr(args, 'device', None), getattr(args, 'workers', None), half=args.half)
    print(f'{staged.folder}: {staged.name}, {figures(staged.metrics)}')
    return 0


def _push(args: argparse.Namespace) -> int:
    row = push(args.folder, args.repo, args.private, args.dry_run, args.overwrite, args.pull_request, args.timeout)
    if row is not None:
        print(json.dumps({row.name: row.to_dict()}, indent=1))
    return 0


def _verify(args: argparse.Namespace) -> int:
    print(verify(args.target, args.timeout))
    return 0


def _pull(args: argparse.Namespace) -> int:
    path = pull(args.target, args.timeout)
    if args.output:
        with atomic_path(args.output) as temporary:
            shutil.copyfile(path, temporary)
        path = Path(args.output)
    print(path)
    return 0


def _manifest(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    if (args.row is not None) != (args.action == 'add'):
        raise ValueError('hub manifest add takes one ROW, the other actions none')
    if args.action == 'add':
        return _add(args.row, Path(args.manifest) if args.manifest else PACKAGED, args.overwrite)
    # Of the rows in use it was said when they were read which are left out; a check must fail for them, too.
    rows, wrong = read_rows(args.manifest) if args.manifest else (WEIGHTS, [])
    if args.action == 'check' and not args.manifest:
        _, wrong = rows_in_use()
    for problem in wrong:
        print(f'randwire-zoo: {problem}', file=sys.stderr)
    if args.action == 'list':
        print(tabulate(
            [(row.name, row.num_classes, '×'.join(map(str, row.input_size)),
              figures(row.metrics), f'{row.size / 1e6:.1f}',
              row.license, (row.repo_id and row.place) or Path(str(row.file)).name) for row in rows.values()],
            headers=('weights', 'classes', 'input', 'metrics', 'MB', 'licence', 'place'), disable_numparse=True))
        return 0
    failed = len(wrong)
    for row in rows.values():
        try:
            bounded(partial(check_row, row, args.online), args.timeout, row.name)
        except CheckFailed as error:
            failed += 1
            _fail(error, 1)
    print(f'{len(rows) + len(wrong) - failed} rows are right' + (f', {failed} wrong' if failed else ''))
    return 1 if failed else 0


def _add(source: str, path: Path, overwrite: bool) -> int:
    staged = check_folder(source) if Path(source).is_dir() else None
    file = '' if staged is None else f'weights/{staged.name}.safetensors'
    if staged is not None:
        rows = {staged.name: staged.row(file=file)}
    else:
        text = sys.stdin.read() if source == '-' else Path(source).read_text(encoding='utf-8')
        try:
            added = json.loads(text)
            rows = {name: PublishedWeights.from_dict(name, row) for name, row in added.items()}
        except (ValueError, AttributeError) as error:
            raise ValueError(f'{source} is not what `randwire-zoo hub push` prints: {error}') from None
        for row in rows.values():
            check_row(row)
    there, _ = read_rows(path) if path.is_file() else ({}, [])  # so that nothing else than a manifest is extended
    if not overwrite:
        for name, row in rows.items():
            _check_same_network(path, there.get(name), row)
    if staged is not None:
        with atomic_path(path.parent / file) as temporary:
            shutil.copyfile(staged.folder / FILENAME, temporary)
    table = read_json(path) if path.is_file() else {}
    table.update({name: row.to_dict() for name, row in rows.items()})
    write_atomically(path, json.dumps(table, indent=1) + '\n')
    print(f'{path}: {", ".join(rows)}')
    return 0


def _check_same_network(path: Path, there: PublishedWeights | None, row: PublishedWeights) -> None:
    """Leave a row alone that is another network's.

    Raises:
        CheckFailed: saying what tells them apart.
    """
    if there is None:
        return
    odd = differences(there.network, row.network)
    if there.graphs_sha256 != row.graphs_sha256:
        odd.append('other graphs')
    if odd:
        raise CheckFailed(f'{path} has another network as {row.name}, with {", ".join(odd)}; nothing was written, and '
                          '--overwrite replaces it')
