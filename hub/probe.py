"""A proof of behaviour: two fixed pictures, and the logits that the staged network computed of them.

Hashes prove that bytes arrived; the probe proves that whoever builds the network from config.json and prepares the
pictures as it says computes what was measured. The pictures go through the whole of timm's evaluation transform, so
that pooling, strides, wiring, resizing, cropping and normalisation all show in the logits.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform
from torch import Tensor, nn

from randwire_zoo.weights.description import Description
from randwire_zoo.weights.errors import loading

__all__ = ['PROBE', 'TOLERANCE', 'check_probe', 'write_probe']

PROBE = 'probe.safetensors'
#: The largest ‖difference‖ / ‖logits‖. In single precision, oneDNN or not, one thread or two, either memory layout, BN
#: folded by `deploy` and the native kernels moved the logits of randwire_ws_pico, _small_s1 and _c109 by at most 3e-6;
#: the mildest mistakes that were tried, a std or mean off by a fiftieth, by 1.3e-2, another interpolation or crop by
#: 7e-2 and another pooling by 0.5. Pictures resized by another release of Pillow lie in between.
TOLERANCE = 1e-3
HEIGHT, WIDTH = 72, 96  # not square, so that the way of cropping shows


def write_probe(model: nn.Module, network: Description, path: Path) -> None:
    """Write the pictures and the network's logits of them."""
    pixels = _pictures(network.input_size)
    save_file({'pictures': pixels, 'logits': _logits(model, network, pixels)}, path, {'format': 'pt'})


def check_probe(model: nn.Module, network: Description, path: Path) -> None:
    """Compare the network's logits of the stored pictures with the stored ones.

    Raises:
        ValueError: if they differ by more than rounding.
    """
    with loading(path):
        stored: Mapping[str, Tensor] = load_file(path)
        pixels, then = stored['pictures'], stored['logits']
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[3] != network.input_size[0]:
            raise ValueError(f'its pictures must be bytes [N, H, W, {network.input_size[0]}], got {pixels.dtype} '
                             f'{list(pixels.shape)}')
    now = _logits(model, network, pixels)
    if now.shape != then.shape:
        raise ValueError(f'{path.name}: the network gives logits {list(now.shape)}, stored are {list(then.shape)}')
    scale = float(then.norm())
    difference = float((now - then).norm()) / scale if scale else float(now.norm())
    if not difference <= TOLERANCE:  # NaN is no agreement
        raise ValueError(f'the network computes other logits than when it was staged ({PROBE}: they differ by '
                         f'{difference:.2g} of their size, rounding by less than {TOLERANCE:g})')


def _pictures(input_size: tuple[int, int, int]) -> Tensor:
    """Two pictures [2, H, W, C]: noise, so that a resizing or cropping shows, on a slope, so that colours do."""
    slope = np.linspace(0, 127, WIDTH)[None, :, None] + np.zeros((HEIGHT, 1, input_size[0]))
    noise = np.random.default_rng(0).uniform(0, 128, (2, HEIGHT, WIDTH, input_size[0]))
    return torch.from_numpy((slope + noise).astype(np.uint8))


def _logits(model: Any, network: Description, pixels: Tensor) -> Tensor:
    channels = network.input_size[0]
    config = network.data_config()
    if channels in (1, 3):
        transform = create_transform(**config)
        images = torch.stack([transform(Image.fromarray(picture.squeeze(-1).numpy())) for picture in pixels])
    else:  # no picture files have so many channels; what remains is to normalise and to resize somehow
        mean, std = (torch.tensor(config[key])[:, None, None] for key in ('mean', 'std'))
        images = nn.functional.interpolate(
            (pixels.movedim(3, 1) / 255 - mean) / std, network.input_size[1:], mode='bilinear')
    with torch.inference_mode():
        return model.eval()(images).float().contiguous()
