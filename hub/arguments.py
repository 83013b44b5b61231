"""What `randwire-zoo hub` is asked. Nothing here imports torch, so that its help is there at once."""
from __future__ import annotations

import argparse
import math

from randwire_zoo.training.recipes import KEYS, add_key

from .transfer import TIMEOUT

__all__ = ['TYPED', 'add_hub_arguments']

#: What can be typed of weights that come without settings of a training.
TYPED = ('model_kwargs', 'num_classes', 'gp', 'in_chans', 'img_size', 'input_size', 'crop_pct', 'mean', 'std',
         'interpolation')


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `randwire-zoo hub`."""
    commands = parser.add_subparsers(dest='hub_command', metavar='COMMAND', required=True)

    sub = commands.add_parser('stage', help="make a repository's folder of a training's checkpoint")
    sub.add_argument('checkpoint', metavar='CHECKPOINT', help='of timm, of randwire-zoo train, or .safetensors')
    sub.add_argument('--model', metavar='NAME', help='registered name (default: what the checkpoint says)')
    sub.add_argument('--tag', required=True, help='of the weights, such as in1k')
    sub.add_argument('--license', required=True, help='of the weights, such as apache-2.0')
    sub.add_argument('--recipe', metavar='FILE', help='args.yaml of the training (default: beside the checkpoint)')
    sub.add_argument('--summary', metavar='FILE', help='summary.csv of the training (default: beside the checkpoint)')
    sub.add_argument('--dataset', metavar='NAME', help='what it was trained on (default: what args.yaml says)')
    sub.add_argument('--no-ema', action='store_true', help='take the trained weights, not their moving average')
    sub.add_argument('--half', action='store_true', help='store the large tensors in float16')
    sub.add_argument('--text', metavar='FILE', help="your own words for the card's section for them (Markdown)")
    sub.add_argument('-o', '--output', metavar='FOLDER', help='default: output/hub/NAME.TAG')
    group = sub.add_argument_group('measuring', 'The finished files are measured on the data of the training.')
    group.add_argument('--data-dir', metavar='DIR', help='folder of the data (default: the one of the training)')
    group.add_argument('--split', metavar='NAME', help='of the data (default: the one that the training measured)')
    group.add_argument('--no-eval', action='store_true', help='measure nothing; the card says so')
    add_key(group, KEYS['device'])
    add_key(group, KEYS['workers'], '2')
    add_key(sub, KEYS['device_modules'])
    group = sub.add_argument_group('for weights without args.yaml', 'What is known of them, as in `train`.')
    for key in TYPED:
        add_key(group, KEYS[key])
    group.add_argument('--metric', nargs='+', metavar='NAME=VALUE', default=[], type=_metric,
                       help='top1, top5 (per cent) or loss, as known; measured unless --no-eval')

    sub = commands.add_parser('push', help='publish a staged folder; prints the row of the manifest')
    sub.add_argument('folder', metavar='FOLDER')
    sub.add_argument('repo', metavar='REPO', help='such as owner/randwire_ws_c109.in1k')
    sub.add_argument('--dry-run', action='store_true', help='check everything, send nothing')
    sub.add_argument('--private', action='store_true', help='make a private repository')
    sub.add_argument('--overwrite', action='store_true',
                     help='replace also what is another network, changed since, or public')
    sub.add_argument('--pull-request', action='store_true', help='propose the change instead of making it')
    _add_timeout(sub)

    for name, text in (('verify', 'download published weights afresh and check them in every way'),
                       ('pull', "bring published weights into the Hub's cache and print their path")):
        sub = commands.add_parser(name, help=text)
        sub.add_argument('target', metavar='NAME|REPO@REV', help='weights of the manifest, or a repository')
        _add_timeout(sub)
    sub.add_argument('-o', '--output', metavar='FILE', help='also copy them there')

    sub = commands.add_parser('manifest', help='list, extend or check the manifest of published weights')
    sub.add_argument('action', choices=('list', 'add', 'check'))
    sub.add_argument('row', metavar='ROW', nargs='?',
                     help='for add: a file with what push printed, - for stdin; or a staged folder, whose weights then '
                          'lie beside the manifest')
    sub.add_argument('--manifest', metavar='FILE',
                     help="default: for add the package's own, for the others all rows in use")
    sub.add_argument('--overwrite', action='store_true', help="for add: replace another network's row, too")
    sub.add_argument('--online', action='store_true', help='for check: also ask the Hub what it records')
    _add_timeout(sub)


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--timeout', type=float, default=TIMEOUT, metavar='SECONDS',
                        help='give up when the whole transfer takes longer (default: %(default)g)')


def _metric(text: str) -> tuple[str, float]:
    name, _, value = text.partition('=')
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if name not in ('top1', 'top5', 'loss') or not math.isfinite(number) or number < 0:
        raise argparse.ArgumentTypeError(f'{text!r} is not top1=, top5= or loss= and a number')
    return name, number
