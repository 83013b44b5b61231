"""The command line `randwire-zoo`.

Whatever a user can get wrong ends in one line on stderr and exit code 2; other exceptions are bugs and keep their
traceback. Commands import what they need when they run.
"""
from __future__ import annotations

import argparse
import codecs
import fnmatch
import importlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from . import __version__
from .architectures import ARCHITECTURES, REGIMES, Wiring, find_wiring, stage_names, suggest
from .errors import nearest
from .files import read_json
from .frozen import load_graphs
from .graphs import Graph, graphs_sha256
from .interrupts import EXIT, is_first_process, raise_on_interrupt
from .weights.manifest import PublishedWeights, published_weights

__all__ = ['build_parser', 'main']

PROGRAM = 'randwire-zoo'
COMPLEXITY = Path(__file__).parent / 'complexity.json'  # counting 26 networks takes half a minute, reading does not

# Commands of the rooms: what they are asked is in a room's `arguments`, as add_NAME_arguments(parser), and imports
# little; main(args) of their module imports torch and timm, and is imported when a command runs.
LATE_COMMANDS = {
    'data': ('training.datasets', 'write a data set as a folder of images', """\
examples:
  randwire-zoo data digits output/digits
  randwire-zoo data cifar10 data/cifar10
  randwire-zoo data tiny-imagenet tiny-imagenet-200.zip output/tiny-imagenet
  randwire-zoo data caltech-101 caltech-101.zip output/caltech-101
  randwire-zoo data folder photographs output/photographs
  randwire-zoo data voc labelled output/mine
"""),
    'teacher': ('training.distillation', 'an ImageNet network as the teacher of a set of some of its classes', """\
example:
  randwire-zoo teacher efficientnet-lite2-9656183e.pth output/teacher --data-dir output/tiny-imagenet
"""),
    'train': ('training.trainer', 'train a network as a recipe says', """\
examples:
  randwire-zoo train -c configs/digits/randwire_ws_pico.yaml --data-dir digits
  torchrun --nproc-per-node=8 -m randwire_zoo train -c configs/imagenet/randwire_ws_c109.yaml --data-dir /data/imagenet
"""),
    'eval': ('training.evaluation', 'top-1 and top-5 accuracy of a network on a folder of images', """\
examples:
  randwire-zoo eval --model randwire_ws_pico --data-dir digits
  randwire-zoo eval --checkpoint output/train/RUN/last.pth.tar
  randwire-zoo eval --checkpoint output/train/RUN/model_best.pth.tar --img-size 320
  randwire-zoo eval --checkpoint output/train/RUN/last.pth.tar --confusion confusion.csv
"""),
    'probe': ('training.linear_probe', 'accuracy of a linear classifier of the features of a network', """\
examples:
  randwire-zoo probe --model randwire_ws_pico --data-dir digits
  randwire-zoo probe --checkpoint output/train/RUN/last.pth.tar --data-dir caltech-101
  randwire-zoo probe --model randwire_ws_small_s1 --random 1 --img-size 128 --data-dir caltech-101
"""),
    'quickstart': ('training.quickstart', 'train, evaluate, save and reload a small network on handwritten digits', """\
example:
  randwire-zoo quickstart
"""),
    'curves': ('drawing.cli', 'loss, accuracy or AP of trainings as one picture', """\
examples:
  randwire-zoo curves output/train/RUN
  randwire-zoo curves pretrained=output/run1 random=output/run2 -o curves.svg
"""),
    'detect': ('detection.torchvision.detect', 'draw what a detector finds in images', """\
examples:
  randwire-zoo detect photo.jpg --weights detector.safetensors
"""),
    'hub': ('hub.cli', 'publish weights on the Hugging Face Hub, and check what is published', """\
examples:
  randwire-zoo hub stage output/train/run/model_best.pth.tar --tag in1k --license apache-2.0
  randwire-zoo hub push output/hub/randwire_ws_c109.in1k owner/randwire_ws_c109.in1k > row.json
  randwire-zoo hub verify owner/randwire_ws_c109.in1k@REVISION
exit codes: 0 done, 1 a check failed, 2 usage, 3 network or permission
"""),
    'study': ('studies.cli', "populations of networks: the paper's experiments, and your own", """\
examples:
  randwire-zoo study show figure3_small
  randwire-zoo study run figure3_small --data-dir data --workers 2
  randwire-zoo study report output/study/figure3_small --html report.html
"""),
    'convert': ('detection.convert', 'backbone weights for detectron2, and its detectors for torchvision', """\
examples:
  randwire-zoo convert model_best.pth.tar randwire_ws_c109.pth
  randwire-zoo convert output/model_final.pth detector.safetensors --config output/config.yaml --classes cat,dog
"""),
}


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        if match := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            choices = match[2].replace("'", '').split(', ')
            message = message[:match.start()] + f'invalid choice: {match[1]!r}' + nearest(
                match[1], choices, f'; it must be one of {", ".join(choices)}')
        self.exit(2, f'{PROGRAM}: error: {message} (see {self.prog} --help)\n')


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; of the late ones only the given one has its options."""
    parser = _Parser(
        prog=PROGRAM, description='RandWire networks (Xie et al., ICCV 2019) for timm: look at them, draw them, train '
        'them.', epilog='Each command has its own help: randwire-zoo COMMAND --help')
    versions = ', '.join(f'{name} {version(name)}' for name in ('timm', 'torch', 'networkx'))
    parser.add_argument('--version', action='version', version=f'{PROGRAM} {__version__} ({versions})')
    parser.add_argument('--traceback', action='store_true', help='show the whole traceback of an error')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int] | None, summary: str, epilog: str) -> _Parser:
        sub = commands.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + '.', epilog=epilog)
        sub.set_defaults(run=run, parser=sub)
        return sub

    sub = add('list', _list, 'every frozen name with its figures', """\
examples:
  randwire-zoo list
  randwire-zoo list --filter '*_c109*'
""")
    sub.add_argument('--filter', metavar='GLOB', default='*', help='only names that match, such as "*small*"')
    sub.add_argument('--json', action='store_true', help='print JSON instead of a table')

    sub = add('info', _info, 'everything about one network', """\
examples:
  randwire-zoo info randwire_ws_c154 --img-size 320
  randwire-zoo info 'er(0.2)' --seed 7 --channels 78
""")
    _add_network(sub)
    sub.add_argument('--channels', type=int, metavar='C', help='width C of a random graph model (default: 78)')
    sub.add_argument('--img-size', type=_positive, metavar='PIXELS',
                     help="side of the image to count for (default: the network's own, mostly 224)")

    sub = add('draw', _draw, "the wiring of a network's stages as PNG and SVG", """\
examples:
  randwire-zoo draw randwire_ws_c109
  randwire-zoo draw 'ba(5)' --seed 3 --num-nodes 16 --output ba.svg
""")
    _add_network(sub)
    sub.add_argument('-o', '--output', metavar='FILE',
                     help='picture to write, .png or .svg (default: both, in the current folder)')
    sub.add_argument('--theme', choices=('auto', 'light', 'dark'), default='auto',
                     help="colours (default: auto: light, and an SVG turns dark with its reader's system)")

    sub = add('freeze', _freeze, 'sample the graphs of every name that has no frozen ones yet, or check them all', """\
examples:
  randwire-zoo freeze --check
""")
    sub.add_argument('--check', action='store_true',
                     help='write nothing; sample every graph again and exit with 1 if one differs')

    for name, (module, summary, epilog) in LATE_COMMANDS.items():
        sub = add(name, None, summary, epilog)
        if name == command:
            room = importlib.import_module(f'.{module.partition(".")[0]}.arguments', __package__)
            getattr(room, f'add_{name}_arguments')(sub)
            sub.set_defaults(module=module)
    return parser


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('network', metavar='NAME|MODEL',
                        help='a frozen name (see randwire-zoo list), or a random graph model: er(P), ba(M), ws(K,P) or '
                             'ws_flex(K,P) (WS-flex)')
    model = parser.add_argument_group('for a random graph model')
    model.add_argument('--seed', type=int, metavar='S', help='seed of the generator (default: 1)')
    model.add_argument('--num-nodes', type=int, metavar='N', help='nodes of a stage (default: 32)')
    model.add_argument('--regime', choices=REGIMES, help='three or four random stages (default: small)')


def _positive(text: str) -> int:
    if not re.fullmatch(r'[0-9]+', text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no integer of at least 1')
    return int(text)


def _print_anything() -> None:
    """Where the encoding of a file or a pipe lacks letters, as on Windows, it gets UTF-8; a terminal question marks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name not in ('utf-8', 'utf-16'):
            if stream.isatty():
                stream.reconfigure(errors='replace')
            else:
                stream.reconfigure(encoding='utf-8')


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments, without the program's name; those of the process by default.

    Returns:
        0, or 1 where a check failed, 2 for an error of the user, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _print_anything()
    show_traceback = '--traceback' in arguments
    try:
        command = next((argument for argument in arguments if not argument.startswith('-')), None)
        args, unknown = build_parser(command).parse_known_args(arguments)
        if unknown:
            options = dict.fromkeys(re.findall(r'--[\w-]+', args.parser.format_help()))
            args.parser.error(f'unrecognized arguments: {" ".join(unknown)}{nearest(unknown[0], options)}')
        run = importlib.import_module(f'.{args.module}', __package__).main if 'module' in args else args.run
        raise_on_interrupt()
        code: int = run(args)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse, after --help, --version or an error
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt as stop:
        # What was at work says how to go on, where it is not by giving the same command again.
        if is_first_process():
            how = str(stop) or 'the same command starts again'
            print(f'\n{PROGRAM}: interrupted; {how}', file=sys.stderr)
        return EXIT
    except BrokenPipeError:  # the reader, such as head, has seen enough
        # What is left in the buffer must go somewhere, or Python complains when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        message = _explain(error)
        if message is None or show_traceback:
            raise
        print(f'{PROGRAM}: error: {message}', file=sys.stderr)
        return 2


def _explain(error: Exception) -> str | None:
    """One line about an error that the user can mend; None for all others."""
    from safetensors import SafetensorError

    from .kernels.build import KernelError

    if isinstance(error, OSError) and error.strerror:
        path = error.filename2 or error.filename  # where a file was to be moved into place, that place
        message = error.strerror if path is None else f'{path}: {error.strerror}'
    elif isinstance(error, (OSError, ValueError, SafetensorError, KernelError, MemoryError)):
        message = str(error) or type(error).__name__
    elif isinstance(error, ModuleNotFoundError) and not (error.name or '').startswith('randwire_zoo'):
        message = f'{error}; this command needs that package'
    elif isinstance(error, RuntimeError):  # timm's and torch's own; they have no type of their own
        message = str(error)
        if message.startswith('Error(s) in loading state_dict'):
            head, *problems = [line.strip() for line in message.splitlines() if line.strip()]
            more = f' (and {len(problems) - 1} more)' if len(problems) > 1 else ''
            message = ' '.join([head, *problems[:1]]) + more
        elif not message.startswith(('Unknown model', 'No pretrained weights', 'Invalid pretrained', 'Found 0 images')):
            return None
    else:
        return None
    if match := re.search(r'Unknown model \((.*?)\)', message):
        message += suggest(match[1])
    return ' '.join(message.split())


def _find_network(args: argparse.Namespace) -> Wiring:
    """Read NAME|MODEL and its options; ValueError where they do not fit together."""
    given = {name: value for name in ('seed', 'num_nodes', 'regime', 'channels')
             if (value := getattr(args, name, None)) is not None}
    name = args.network
    if name.startswith('randwire') and '.' in name and name not in published_weights():
        raise ValueError(f'no weights {name}' + nearest(name, published_weights(), f'; {PROGRAM} list shows them'))
    return find_wiring(name, **given)


def _count(name: str, kwargs: dict[str, Any], img_size: int | None = None) -> dict[str, int]:
    """Params, multiply-adds and activations at img_size, by default that of the model's own configuration."""
    import timm

    from .complexity import count_complexity

    model: Any = timm.create_model(name, device='meta', **kwargs)
    channels, *size = model.pretrained_cfg['input_size']
    height, width = (img_size, img_size) if img_size else size
    return {'img_size': height, **vars(count_complexity(model, (channels, height, width)))}


def _recorded(name: str, size: int) -> dict[str, int] | None:
    """Figures from the packaged file, if it has this name with this very wiring."""
    if not COMPLEXITY.is_file():
        return None
    row = read_json(COMPLEXITY).get(name, {})
    if row.get('graphs_sha256') != graphs_sha256(load_graphs(name)) or str(size) not in row:
        return None
    return {'img_size': size, 'params': row['params'], **row[str(size)]}


def _weights() -> dict[str, list[PublishedWeights]]:
    """For each name its published weights, the default's first."""
    rows: dict[str, list[PublishedWeights]] = {}
    for row in published_weights().values():
        rows.setdefault(row.architecture, []).append(row)
    return rows


def _list(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    names = fnmatch.filter(ARCHITECTURES, args.filter)
    if not names:
        raise ValueError(f'no name matches {args.filter!r}' + suggest(args.filter))
    weights = _weights()
    rows = []
    for name in sorted(names, key=lambda name: (ARCHITECTURES[name].channels, name.split('_')[1], name)):
        found = weights.get(name, [])
        size = next((row.input_size[-1] for row in found if row.is_default), 224)
        rows.append({'name': name, **vars(ARCHITECTURES[name]), **(_recorded(name, size) or _count(name, {})),
                     'weights': [row.tag for row in found]})
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(tabulate(
        [(row['name'], row['graph'], row['seed'], row['regime'], row['num_nodes'], row['channels'], row['img_size'],
          f'{row["params"] / 1e6:.2f}', f'{row["macs"] / 1e6:,.1f}', ', '.join(row['weights']) or '–') for row in rows],
        headers=('name', 'graph', 'seed', 'regime', 'N', 'C', 'image', 'params, M', 'MACs, M', 'weights'),
        disable_numparse=True,
        colalign=('left', 'left', 'right', 'left', 'right', 'right', 'right', 'right', 'right', 'left')))
    return 0


def _depth(graph: Graph) -> int:
    """Nodes on the longest path."""
    depth: list[int] = []
    for sources in graph.predecessors:
        depth.append(1 + max((depth[source] for source in sources), default=0))
    return max(depth)


def _info(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    network = _find_network(args)
    architecture = network.architecture
    name, kwargs = network.create
    figures = _count(name, kwargs, args.img_size)
    size = f'{figures["img_size"]}×{figures["img_size"]}'
    rows = [
        ('generator', architecture.generator + (' (frozen)' if network.name else '')),
        ('regime', architecture.regime),
        ('N', architecture.num_nodes),
        ('C', architecture.channels),
        ('params', f'{figures["params"]:,}'),
        (f'multiply-adds at {size}', f'{figures["macs"]:,}'),
        (f'activations at {size}', f'{figures["activations"]:,}'),
        ('sha256 of the graphs', graphs_sha256(network.graphs)),
    ]
    arguments = [repr(name), *(f'{key}={value!r}' for key, value in kwargs.items())]
    published = _weights().get(name, []) if name != 'randwire' else []  # each tag of it is another network
    for row in published:
        place = row.place
        if row.repo_id is None:
            installed = Path(place).is_file()
            place = f'{Path(place).name}, installed' if installed else f'{place} is missing'
        rows.append(('weights', f'{row.name.partition(".")[2]}: {row.num_classes} classes, '
                                f'{"×".join(map(str, row.input_size))} ({place})'))
    if published:
        arguments.append('pretrained=True')
    else:
        rows.append(('weights', 'none'))
    rows.append(('create', f'timm.create_model({", ".join(arguments)})'))
    print(network.name or architecture.generator)
    print(tabulate(rows, tablefmt='plain', disable_numparse=True))
    print()
    print(tabulate(
        [(stage, graph.num_nodes, len(graph.edges), len(graph.inputs), len(graph.outputs), _depth(graph),
          graph.sha256[:16]) for stage, graph in zip(stage_names(len(network.graphs)), network.graphs, strict=True)],
        headers=('stage', 'nodes', 'edges', 'inputs', 'outputs', 'depth', 'sha256'), disable_numparse=True,
        colalign=('left', 'right', 'right', 'right', 'right', 'right', 'left')))
    return 0


def _draw(args: argparse.Namespace) -> int:
    from .drawing import FORMATS, check_format, draw_graphs

    if args.output is not None:
        check_format(args.output)
    network = _find_network(args)
    architecture = network.architecture
    stem = network.name or '-'.join([*re.findall(r'[\w.]+', architecture.graph), f's{architecture.seed}',
                                     f'n{architecture.num_nodes}', architecture.regime])
    for path in [args.output] if args.output is not None else [stem + suffix for suffix in FORMATS]:
        draw_graphs(network.graphs, path, title=network.title, theme=args.theme, progress=True)
        print(path)
    return 0


def _freeze(args: argparse.Namespace) -> int:
    from .freeze import check_frozen, write_frozen

    if not args.check:
        written = write_frozen()
        for path in written:
            print(path)
        if not written:
            print(f'all {len(ARCHITECTURES)} names have frozen graphs already; nothing was written')
        return 0
    problems = check_frozen()
    for problem in problems:
        print(problem)
    if not problems:
        print(f'the frozen graphs of all {len(ARCHITECTURES)} names agree under networkx {version("networkx")}')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
