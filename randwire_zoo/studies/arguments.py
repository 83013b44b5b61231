"""What `randwire-zoo study` is asked. Nothing here imports torch, so that its help is there at once."""
from __future__ import annotations

import argparse

from ..training.recipes import KEYS, add_key, packaged_names

__all__ = ['ENGINES', 'add_study_arguments']

ENGINES = ('local', 'submitit')


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `randwire-zoo study`."""
    commands = parser.add_subparsers(dest='study_command', metavar='COMMAND', required=True)
    commands.add_parser('list', help='the studies and searches that come with the package')
    sub = commands.add_parser('show', help='what a study or search would train, with C tuned, and cost; trains nothing')
    sub.add_argument('study', metavar='STUDY', help='a yaml file, or a name of `study list`')
    sub.add_argument('--data-dir', metavar='DIR', help='as of `study run`: the cost needs to know how many images')
    _add_execution(sub)
    sub = commands.add_parser('run', help='train and evaluate every network of a study, or go on with it')
    sub.add_argument('study', metavar='STUDY', help='a yaml file, or a name of `study list`')
    _add_run_arguments(sub, 'study')
    sub = commands.add_parser('search', help="search over a generator's own parameters, or go on with it; needs Optuna")
    names = ', '.join(packaged_names('searches'))
    sub.add_argument('search', metavar='SEARCH', help=f'a yaml file, or one of: {names}')
    _add_run_arguments(sub, 'search')
    sub = commands.add_parser('report', help='the tables, and with --html a page with every picture')
    sub.add_argument('folder', metavar='FOLDER', help='output of `study run` or `study search`, or a file of results')
    sub.add_argument('--html', metavar='FILE', help='page to write')
    sub.add_argument('--markdown', action='store_true', help='the table in Markdown')


def _add_run_arguments(sub: argparse.ArgumentParser, kind: str) -> None:
    sub.add_argument('-o', '--output', metavar='FOLDER', help=f'default: output/{kind}/NAME')
    sub.add_argument('--data-dir', metavar='DIR',
                     help='folder of the data set or of all data sets (default: $RANDWIRE_ZOO_DATA, then '
                          '~/.cache/randwire_zoo/data)')
    sub.add_argument('--workers', type=int, metavar='N',
                     help='networks at a time (default: one per GPU or two cores; on a cluster 64)')
    sub.add_argument('--engine', choices=ENGINES, default='local', help='default: %(default)s')
    sub.add_argument('--engine-options', nargs='+', metavar='KEY=VALUE', default=[],
                     help="submitit's, such as slurm_partition=gpu gpus_per_node=1 cpus_per_task=8")
    sub.add_argument('--retry-failed', action='store_true', help='train networks again whose rows say that they failed')
    _add_execution(sub)
    sub.add_argument('--no-progress', action='store_true', help='no progress bar')


def _add_execution(sub: argparse.ArgumentParser) -> None:
    """What this machine runs a study with: fields of `study.Execution`."""
    for name in ('kernels', 'amp'):
        add_key(sub, KEYS[name])
