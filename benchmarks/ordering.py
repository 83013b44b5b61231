"""Peak of the feature maps alive in evaluation, nodes in the order of their indices and in that of the lowest peak,
for every frozen name.

    python benchmarks/ordering.py [--size 224 --measure NAME … --json FILE]

Computed by `randwire_zoo.ordering`: what a node puts out while it runs, what is still to be read, the sum of outputs,
and the stage's input, of the stage where that is most. Of the names after `--measure` it is also what the storages
alive take that torch's operators allocate in a forward pass of the deployed network (`memory.LiveBytes`): those have
what one node's operators hand to each other, too.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import timm
import torch
from common import add_json_argument, write_json
from memory import LiveBytes
from tables import format_table, machine_line, ordering_table

from randwire_zoo import deploy
from randwire_zoo.frozen import load_graphs
from randwire_zoo.models import ARCHITECTURES
from randwire_zoo.network import Stage
from randwire_zoo.ordering import lowest_peak_order, peak_memory


def compute(name: str, size: int) -> dict[str, Any]:
    """Elements alive at the peak of each random stage, in the order of the indices and in the best one."""
    channels, regular = ARCHITECTURES[name].channels, ARCHITECTURES[name].regime == 'regular'
    stages = []
    for index, graph in enumerate(load_graphs(name)):
        side = size // 2 ** (index + (2 if regular else 3))
        unit = channels * 2 ** index * side ** 2
        # The first stage of the small regime has as many channels as its input, all others twice as many.
        input_size = 2.0 if regular or index else 4.0
        orders = range(graph.num_nodes), lowest_peak_order(graph, input_size)
        stages.append([int(peak_memory(graph, order, input_size) * unit) for order in orders])
    before, after = (max(peaks) for peaks in zip(*stages, strict=True))
    return {'network': name, 'stages': stages, 'before': before, 'after': after}


def measure(name: str, size: int) -> list[int]:
    """Bytes alive at the peak of a forward pass at batch 1, in either order."""
    model, images = timm.create_model(name), torch.randn(1, 3, size, size)
    found = []
    with patch.object(Stage, 'reorder', lambda stage: None):
        forms = [deploy(model)]
    for form in (*forms, deploy(model)):
        with torch.no_grad(), LiveBytes() as counter:
            form(images)
        found.append(counter.peak)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', default=list(ARCHITECTURES))
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--measure', nargs='*', metavar='NAME', default=[])
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    networks = [compute(name, args.size) for name in args.names]
    for network in networks:
        if network['network'] in args.measure:
            network['measured'] = measure(network['network'], args.size)
    record = write_json(args, {'size': args.size, 'networks': networks})
    print(machine_line(record))
    print(format_table(ordering_table(record)))


if __name__ == '__main__':
    main()
