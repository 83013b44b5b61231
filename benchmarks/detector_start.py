"""How a detector begins to learn: a few images over and over, and which of their objects it finds afterwards.

    python benchmarks/detector_start.py --data-dir FOLDER --dataset mine_train --json docs/data/detector_start.json

What keeps a detector from learning within some hundred iterations shows on eight images in a minute: no augmentation,
the recipe of the blood cells, and one thing changed at a time. FOLDER is what DETECTRON2_DATASETS names.
"""
from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import ROOT, add_json_argument, write_json
from tables import detector_start_table, format_table

PICO, SMALL, RESNET = (f'bccd/faster_rcnn_{name}.yaml'
                       for name in ('randwire_ws_pico', 'randwire_ws_small_s1', 'resnet18'))
RATE, WIDE, FC = ('SOLVER.BASE_LR', '0.08'), ('MODEL.FPN.OUT_CHANNELS', '64'), ('MODEL.ROI_BOX_HEAD.FC_DIM', '256')
FROZEN = ('MODEL.BACKBONE.FREEZE_AT', '2', 'MODEL.RESNETS.NORM', 'FrozenBN')
#: What is changed, by a name of it.
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    'resnet18, random': (RESNET, ()),
    'pico, random': (PICO, ('MODEL.WEIGHTS', '')),
    'pico, digits': (PICO, ()),
    'pico, digits, FPN of 64 channels': (PICO, WIDE),
    'pico, digits, box head of 256': (PICO, FC),
    'pico, digits, both': (PICO, (*WIDE, *FC)),
    'pico, digits, four times the rate': (PICO, RATE),
    'small_s1, random': (SMALL, ()),
    'small_s1, weights, FrozenBN': (SMALL, FROZEN),
}


def measure(case: str, dataset: str, weights: str, iterations: int, size: int, images: int) -> dict[str, Any]:
    """Losses in the last sixth of the iterations, objects found with a score above 0.3, how far weights have moved."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.data import DatasetCatalog, DatasetMapper
    from detectron2.modeling import build_model
    from detectron2.solver import build_lr_scheduler, build_optimizer
    from detectron2.structures import pairwise_iou
    from detectron2.utils.env import seed_all_rng
    from detectron2.utils.events import EventStorage

    config, options = CASES[case]
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / 'configs' / config))
    cfg.merge_from_list(['MODEL.DEVICE', 'cpu', 'INPUT.MIN_SIZE_TRAIN', (size,), 'INPUT.RANDOM_FLIP', 'none',
                         'SOLVER.MAX_ITER', iterations, 'SOLVER.STEPS', (round(0.8 * iterations),),
                         'SOLVER.WARMUP_ITERS', 10, *options])
    if 'weights' in case:
        cfg.MODEL.WEIGHTS = weights
    members = DatasetCatalog.get(dataset)[:images]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1 + max(one['category_id'] for member in members for one in member['annotations'])
    seed_all_rng(1)
    model = build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    data = [DatasetMapper(cfg, True)(member) for member in members]
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()
              if 'bottom_up' in name and tensor.dim() > 1 and tensor.requires_grad}
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    model.train()
    seed_all_rng(1)
    history: list[dict[str, float]] = []
    step = cfg.SOLVER.IMS_PER_BATCH
    batches = itertools.cycle([data[i:i + step] for i in range(0, images, step)])
    with EventStorage():
        for batch in itertools.islice(batches, iterations):
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            scheduler.step()
            history.append({name: loss.item() for name, loss in losses.items()})
    moved = [((tensor.detach() - before[name]).norm() / before[name].norm()).item()
             for name, tensor in model.named_parameters() if name in before]
    model.eval()
    found = objects = 0
    with torch.no_grad():
        for one in data:
            seen = model([{name: value for name, value in one.items() if name != 'instances'}])[0]['instances']
            truth = one['instances'].gt_boxes.clone()
            truth.scale(one['width'] / one['image'].shape[2], one['height'] / one['image'].shape[1])
            overlaps = pairwise_iou(truth, seen.pred_boxes[seen.scores > 0.3])
            objects += len(truth)
            found += int((overlaps.max(1).values > 0.5).sum()) if overlaps.numel() else 0
    last = history[-max(1, iterations // 6):]
    return {'case': case, 'config': config, 'options': list(options), 'found': found, 'objects': objects,
            'losses': {name: sum(row[name] for row in last) / len(last) for name in last[0]},
            'moved': sum(moved) / len(moved)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-dir', type=Path, required=True)
    parser.add_argument('--dataset', required=True, help='name of a COCO-like folder, such as mine_train')
    parser.add_argument('--weights', default='', help='of randwire_ws_small_s1; without any, that case is left out')
    parser.add_argument('--cases', nargs='+', choices=CASES, default=list(CASES), metavar='CASE')
    parser.add_argument('--iterations', type=int, default=90)
    parser.add_argument('--size', type=int, default=128)
    parser.add_argument('--images', type=int, default=8)
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    from randwire_zoo.detection import register_coco_folders

    os.environ['DETECTRON2_DATASETS'] = str(args.data_dir)
    register_coco_folders(args.data_dir, [args.dataset])
    rows = []
    for case in args.cases:
        if args.weights or 'weights' not in case:
            rows.append(measure(case, args.dataset, args.weights, args.iterations, args.size, args.images))
            print(rows[-1], flush=True)
    settings = {name: getattr(args, name) for name in ('dataset', 'iterations', 'size', 'images')}
    record = write_json(args, {**settings, 'rows': rows})
    print(format_table(detector_start_table(record)))


if __name__ == '__main__':
    main()
