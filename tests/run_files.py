"""Folders as a training of timm or of detectron2 leaves them, without a training."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

NAME = 'randwire_ws_pico'
SUMMARY = ('epoch,train_loss,eval_loss,eval_top1,eval_top5\n0,2.5,2.25,20.0,60.0\n1,2.0,1.75,40.5,80.0\n'
           '1,2.0,1.5,41.5,81.0\n')


def write_timm(folder: Path, **changes: Any) -> Path:
    """A run folder of timm: the moving average of the second epoch, which was written twice."""
    settings = {'model': f'{NAME}.digits', 'num_classes': 3, 'epochs': 2, 'seed': 7, 'val_split': 'held out', 'lr': 0.5,
                'data_dir': '/home/me/data/leaves', 'img_size': 48, 'mean': [0.5] * 3, 'std': [0.25] * 3,
                'interpolation': 'bilinear', 'crop_pct': 0.9, 'sched': 'cosine', 'model_ema': True, 'amp': True,
                'amp_dtype': 'bfloat16', 'output': '/home/me/output', 'smoothing': None, 'model_kwargs': {
                    'node_op': 'conv', 'pretrained_cfg_overlay': {'file': '/home/me/x'}}, **changes}
    (folder / 'args.yaml').write_text(yaml.safe_dump({key: value for key, value in settings.items() if value != ...}))
    (folder / 'summary.csv').write_text(SUMMARY)
    torch.save({'arch': settings['model'], 'epoch': 1, 'state_dict': {}, 'state_dict_ema': {}}, folder / 'last.pth.tar')
    return folder


def write_detectron2(folder: Path, **changes: Any) -> Path:
    """A run folder of detectron2 after its 8 iterations."""
    settings = {'SEED': 3, 'VERSION': 2, 'OUTPUT_DIR': '/home/me/output', 'INPUT': {'FORMAT': 'RGB'},
                'DATASETS': {'TRAIN': ['cells_train'], 'TEST': ['cells_a', 'cells_b']}, 'SOLVER': {'MAX_ITER': 8},
                'MODEL': {'BACKBONE': {'NAME': f'build_{NAME}_fpn_backbone'}, 'WEIGHTS': 'C:\\data\\first.pth',
                          'PIXEL_MEAN': [127.5] * 3, 'PIXEL_STD': [51.0] * 3,
                          'FILES': ['~/a.pth', './b.pth', '/home/me/c.pth', 'd/e']}, **changes}
    (folder / 'config.yaml').write_text(yaml.safe_dump(settings))
    (folder / 'metrics.json').write_text('{"iteration": 8, "bbox/AP": 12.5, "bbox/AP50": 30.0, "total_loss": 1.0}\n')
    torch.save({'model': {}, 'iteration': 7}, folder / 'model_final.pth')
    return folder
