"""Published weights on the images that they were not trained on, at several sizes, beside the course of their training.

    python benchmarks/trained.py randwire_ws_small_s1.tin200_kd --data-dir tiny-imagenet --run output/train/RUN \
        --json docs/data/tin200_small_s1.json

The sizes are the paper's Table 4 in small: the network as it is, shown smaller and larger images, up to 320/224 of the
side of the last ones that it was trained on. The run's checkpoint is measured as well, at the latter side: before
its large tensors were rounded to float16. `--card` adds the table to the own words of a staged folder's card.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import add_json_argument, describe, write_json
from tables import format_table, trained_table

from randwire_zoo.files import write_atomically
from randwire_zoo.hub.card import START, own_text
from randwire_zoo.models import find_weights
from randwire_zoo.training.evaluation import Conditions, evaluate_checkpoint, evaluate_description
from randwire_zoo.training.recipes import load_recipe
from randwire_zoo.training.trainer import LAST, SUMMARY, read_summary
from randwire_zoo.weights.description import Description

TIMES = (0.5, 0.75, 1, 1.25, 1.43)  # of the side in training, to the nearest multiple of 8


def measure(name: str, data_dir: Path, side: int, times: Sequence[float], workers: int) -> list[dict[str, float]]:
    """Top-1, top-5 and loss in fp32 by how many times `side` that of the images is."""
    network = Description.from_settings({'model': name, 'pretrained': True}, for_training=False)
    model: Any = network.create_model(name, pretrained=True)
    found = []
    for factor in times:
        size = 8 * round(factor * side / 8)
        metrics = evaluate_description(model, network.with_settings({'img_size': size}),
                                       Conditions(data_dir, batch_size=100, channels_last=True), workers=workers)
        found.append({'times': factor, 'size': size,
                      **{key: metrics[key] for key in ('top1', 'top5', 'loss', 'images')}})
        print(f'{size} px: top-1 {metrics["top1"]:.2f} %', flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('weights', help='arch.tag of the manifest')
    parser.add_argument('--data-dir', type=Path, required=True)
    parser.add_argument('--run', type=Path, required=True, help='folder of the training')
    parser.add_argument('--times', type=float, nargs='+', default=TIMES, help='sides of the images, of the trained one')
    parser.add_argument('--workers', type=int, default=1)
    parser.add_argument('--card', type=Path, help='README.md of the staged folder')
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    row = find_weights(args.weights)
    if row is None:
        parser.error(f'the manifest has no {args.weights}')
    settings = load_recipe(args.run / 'args.yaml')
    side = (settings.get('train_img_sizes') or [row.input_size[-1]])[-1]
    made = describe(args, device=None)
    # At the side of the column beside it: the run's own img_size can be another, larger one.
    unrounded = evaluate_checkpoint(
        args.run / LAST, {'amp': False, 'data_dir': str(args.data_dir), 'img_size': 8 * round(side / 8)})
    record = write_json(args, {
        'weights': row.name, 'sha256': row.sha256, 'bytes': row.size, 'trained_size': side,
        'recipe': {key: settings[key] for key in ('epochs', 'seed', 'batch_size', 'train_img_sizes')},
        'float32': {'size': unrounded['img_size'], **{key: unrounded[key] for key in ('top1', 'top5', 'loss')}},
        'history': read_summary(args.run / SUMMARY),
        'sizes': measure(row.name, args.data_dir, side, args.times, args.workers)}, made)
    table = trained_table([record])
    print(format_table(table))
    if args.card is not None:
        card = args.card.read_text(encoding='utf-8')
        words = own_text(card)
        write_atomically(args.card, card.replace(
            f'{START}\n{words}\n', f'{START}\n{words}\n\nImages so many times as large as in the training, top-1 in '
            f'%:\n\n{format_table(table, "github")}\n', 1))


if __name__ == '__main__':
    main()
