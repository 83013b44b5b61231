"""Weight files: safetensors that carry the graphs they were trained on.

timm reads them like any other safetensors file. Weights of another wiring are refused while they are loaded, by
`network.Stage.set_extra_state`; the metadata written here says in words what such a file is.
"""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import one_line
from ..files import atomic_path
from ..graphs import Graph, check_graphs, graphs_sha256
from .errors import loading

__all__ = ['check_weights', 'is_large', 'read_graphs', 'read_metadata', 'round_to_half',
           'save_weights']


def save_weights(model: nn.Module, path: str | os.PathLike[str], half: bool = False, **metadata: Any) -> None:
    """Write a RandWire model's weights, its graphs, and whatever else is worth knowing about them.

    The metadata of the file are text: `format`, `architecture`, `num_classes`, `graphs` (JSON, one graph per random
    stage), `graphs_sha256`, `tensors_sha256`, and the given ones (as JSON unless they are text).

    Args:
        model: The network, not wrapped in anything.
        path: Where to; must end in `.safetensors`, because timm goes by that.
        half: Write the large tensors, see `is_large`, in float16. Whoever loads them gets the dtype of the network.
        metadata: More entries, such as `recipe='digits/randwire_ws_pico'` or `metrics={'top1': 99.0}`.

    Raises:
        ValueError: if the model has no graphs, the path has another suffix, or a given entry has the name of one above.
    """
    path = _checked_suffix(path)
    graphs = getattr(model, 'graphs', None)
    if not graphs:
        raise ValueError(f'only RandWire models carry graphs, got {type(model).__name__}')
    state = {name: (tensor.half() if half and is_large(tensor) else tensor).detach().cpu().contiguous()
             for name, tensor in model.state_dict().items()}
    entries = {
        'format': 'pt',
        'architecture': (getattr(model, 'pretrained_cfg', None) or {}).get('architecture', 'randwire'),
        'num_classes': model.num_classes,
        'graphs': [graph.to_dict() for graph in graphs],
        'graphs_sha256': graphs_sha256(graphs),
        'tensors_sha256': _tensors_sha256(state),
    }
    taken = sorted(entries.keys() & metadata.keys())
    if taken:
        raise ValueError(f'metadata {", ".join(taken)} are written by save_weights itself')
    text = {name: value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))
            for name, value in {**entries, **metadata}.items()}
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata=text)
        _sort_metadata(temporary)


def is_large(tensor: Tensor) -> bool:
    """Whether a tensor is one of those that take the space and can be rounded: kernels, and no statistics."""
    return tensor.is_floating_point() and tensor.dim() >= 2 and tensor.numel() >= 1024


def round_to_half(model: nn.Module) -> None:
    """Give a network the values that it has after `save_weights(…, half=True)` and loading."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if is_large(tensor):
                tensor.copy_(tensor.half())


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the text that a safetensors file carries, without its tensors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty, truncated, or no safetensors file.
    """
    path = _checked_suffix(path)
    with loading(path), safe_open(path, framework='pt') as file:
        return dict(file.metadata() or {})


def read_graphs(path: str | os.PathLike[str]) -> tuple[Graph, ...]:
    """Read the graphs that the weights in a file were trained on, one per random stage.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no whole safetensors file, has no graphs, or graphs that are not what their sha256 says.
    """
    metadata = read_metadata(path)
    try:
        graphs = tuple(Graph.from_dict(graph) for graph in json.loads(metadata['graphs']))
        recorded = metadata['graphs_sha256']
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} carries no graphs: {one_line(error)}') from None
    check_graphs(graphs, recorded, path)
    return graphs


def check_weights(path: str | os.PathLike[str]) -> None:
    """Check that a file of `save_weights` is whole: its graphs and its tensors have the sha256 that it records.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, has been altered, or does not come from `save_weights`.
    """
    read_graphs(path)
    recorded = read_metadata(path).get('tensors_sha256')
    with loading(path):
        found = _tensors_sha256(load_file(path))
    if found != recorded:
        raise ValueError(f'{path} has been altered: its tensors have sha256 {found}, but it records {recorded}')


def _sort_metadata(path: Path) -> None:
    """Give the metadata an order: safetensors writes them in a random one, and equal weights would differ in bytes."""
    with path.open('r+b') as file:
        length = int.from_bytes(file.read(8), 'little')
        header = json.loads(file.read(length))
        header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
        text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
        if len(text) <= length:  # it is as long, but for the spaces at its end
            file.seek(8)
            file.write(text.ljust(length))


def _checked_suffix(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != '.safetensors':
        raise ValueError(f'weight files end in .safetensors, got {path.name!r}')
    return path


def _tensors_sha256(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.reshape(-1).view(dtype=torch.uint8).numpy().tobytes())
    return digest.hexdigest()
