"""Eval and train images/s of RandWire networks beside other networks, in one run.

    python benchmarks/speed.py --seungwonpark PATH/TO/RandWireNN       # small regime, beside that implementation
    python benchmarks/speed.py --c109                                  # beside timm's resnet50: eager, compiled, bf16

The other implementation gets exactly our graphs. Medians of paired rounds; the ratio is taken round by round.
"""
from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import timm
import torch
import torch.nn.functional as F
from common import describe_machine, paired_seconds, ratio
from tabulate import tabulate
from torch import Tensor, nn

from randwire_zoo import deploy  # this registers the models, too


def eval_step(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """A forward pass in eval mode."""
    model.eval()

    def step() -> object:
        with torch.inference_mode():
            return model(images)
    return step


def train_step(model: nn.Module, images: Tensor, amp: bool = False) -> Callable[[], object]:
    """Forward, backward and an SGD update on fixed labels."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    labels = torch.arange(images.shape[0], device=images.device) % 10

    def step() -> object:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss
    return step


def seungwonpark_network(path: Path, model: nn.Module) -> nn.Module:
    """seungwonpark/RandWireNN's network (a clone at path) on the graphs of our small-regime model."""
    if not (path / 'model' / 'model.py').is_file():
        raise SystemExit(f'speed.py: {path} is no clone of seungwonpark/RandWireNN')
    sys.path.insert(0, str(path))
    from model.model import RandWire  # type: ignore[import-not-found]

    hyperparameters = SimpleNamespace(model=SimpleNamespace(channel=78, classes=1000, input_maps=3))
    return RandWire(hyperparameters, [graph.to_dict() for graph in model.graphs])  # type: ignore[union-attr]


def compare(title: str, runs: dict[str, Callable[[], object]], baseline: str, batch: int, rounds: int) -> None:
    """Time the runs in turn and print images/s and how many times faster than the baseline each is."""
    seconds = paired_seconds(runs, rounds)
    rows = [(name, f'{statistics.median(values):.3f}', f'{batch / statistics.median(values):.2f}',
             f'{ratio(seconds[baseline], values):.2f}×') for name, values in seconds.items()]
    print(f'\n{title}, batch {batch}, {rounds} rounds')
    print(tabulate(rows, headers=('network', 's', 'images/s', f'against {baseline}')), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seungwonpark', type=Path, metavar='DIR', help='a clone of seungwonpark/RandWireNN')
    parser.add_argument('--c109', action='store_true',
                        help='randwire_ws_c109 beside resnet50 (default without --seungwonpark)')
    parser.add_argument('--modes', nargs='+', default=['eager', 'compiled', 'bf16'],
                        choices=['eager', 'compiled', 'bf16', 'bf16-compiled'], help='modes of the c109 comparison')
    parser.add_argument('--train', action='store_true', help='c109: time training steps too')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=7)
    args = parser.parse_args()
    print(describe_machine())
    torch.manual_seed(0)
    device = torch.device(args.device)
    plain = torch.randn(args.batch, 3, args.size, args.size, device=device)
    channels_last = plain.contiguous(memory_format=torch.channels_last)

    def create(name: str) -> nn.Module:
        return timm.create_model(name).to(device, memory_format=torch.channels_last)

    if args.seungwonpark:
        ours = create('randwire_ws_small_s1')
        theirs = seungwonpark_network(args.seungwonpark, ours).to(device)
        theirs_channels_last = seungwonpark_network(args.seungwonpark, ours).to(
            device, memory_format=torch.channels_last)
        for title, step in (('eval', eval_step), ('train', train_step)):
            deployed = {'randwire_ws_small_s1, deployed': step(deploy(ours), channels_last)} if title == 'eval' else {}
            compare(f'small regime, {title}, eager fp32', {
                'randwire_ws_small_s1': step(ours, channels_last),
                **deployed,
                'seungwonpark': step(theirs, plain),
                'seungwonpark, channels_last': step(theirs_channels_last, channels_last),
            }, 'seungwonpark', args.batch, args.rounds)
    if args.c109 or not args.seungwonpark:
        networks = {name: create(name) for name in ('randwire_ws_c109', 'resnet50')}
        for mode in args.modes:
            images = channels_last
            runs = {**networks, 'randwire_ws_c109, deployed': deploy(networks['randwire_ws_c109'])}
            if 'bf16' in mode:
                runs = {name: copy.deepcopy(model).bfloat16() for name, model in runs.items()}
                images = channels_last.bfloat16()
            if 'compiled' in mode:
                runs = {name: torch.compile(model.eval()) for name, model in runs.items()}  # type: ignore[misc]
            compare(f'eval, {mode}', {name: eval_step(model, images) for name, model in runs.items()},
                    'resnet50', args.batch, args.rounds)
        if args.train:
            compare('train, eager fp32', {name: train_step(model, channels_last) for name, model in networks.items()},
                    'resnet50', args.batch, args.rounds)


if __name__ == '__main__':
    main()
