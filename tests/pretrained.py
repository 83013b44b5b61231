"""Networks with weights of their own, and the checkpoints that timm's train.py would have written of them."""
from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

NAME = 'randwire_ws_pico'


def random_model(name: str = NAME, **kwargs: Any) -> nn.Module:
    model = timm.create_model(name, **kwargs)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def timm_checkpoint(folder: Path, model: nn.Module, ema: nn.Module | None = None) -> Path:
    """What timm's train.py writes, by timm's own saver, with its argparse namespace in it."""
    folder.mkdir(exist_ok=True)
    average = None
    if ema is not None:
        average = ModelEmaV3(model)
        average.module.load_state_dict(ema.state_dict())
    saver = CheckpointSaver(
        model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), Namespace(model=NAME), average,
        checkpoint_dir=str(folder), recovery_dir=str(folder))
    saver.save_checkpoint(0, metric=1.0)
    return folder / 'model_best.pth.tar'
