"""Graph damage: what a trained network loses when one node, or one edge, is taken away (paper section 4.1, Figure 5).

Nothing is trained again. A removed edge leaves its target's sum; a node is removed with all its edges, and, where it is
a sink, from the stage's mean. A node that is left without any input sees zeros.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..network import RandWire, Stage

__all__ = ['measure_damage']


def measure_damage(model: RandWire, batches: Any, device: torch.device, max_images: int) -> dict[str, Any]:
    """Remove every node and every edge in turn.

    Args:
        model: A trained network; it is left in eval mode.
        batches: Yields images [B, C, H, W] and class indices [B].
        device: Where to run.
        max_images: Stop after this many images.

    Returns:
        'images' and the 'top1' of the whole network on them; under 'nodes' one [stage, node, out-degree, loss] and
        under 'edges' one [stage, source, target, in-degree of the target, loss] per removal, where loss is top-1 of the
        whole network less that of the damaged one, in points.
    """
    model.eval()
    stages = [(index, stage) for index, stage in enumerate(model.children()) if isinstance(stage, Stage)]
    damages: list[tuple[int, Stage, list[Any], Callable[[], Any]]] = []
    for index, stage in stages:
        name = f'conv{index + 1}'
        for node in range(stage.graph.num_nodes):
            damages.append((index, stage, [name, node, len(stage.graph.successors[node])],
                            partial(_without_node, stage, node)))
        for source, target in stage.graph.edges:
            damages.append((index, stage, [name, source, target, len(stage.graph.predecessors[target])],
                            partial(_without_edge, stage, source, target)))
    correct = [0] * len(damages)
    whole = images_seen = 0
    with torch.inference_mode():
        for images, targets in batches:
            rest = max_images - images_seen
            images, targets = images[:rest].to(device), targets[:rest].to(device)
            reached = [images]  # the input of each of conv1 … conv5, then the features
            for index in range(5):
                reached.append(model.run_stage(index, reached[-1], None))
            whole += _correct(model, reached[5], targets)
            for i, (index, _, _, damaged) in enumerate(damages):
                with damaged():
                    x = model.run_stage(index, reached[index], None)
                for later in range(index + 1, 5):
                    x = model.run_stage(later, x, None)
                correct[i] += _correct(model, x, targets)
            images_seen += len(targets)
            if images_seen >= max_images:
                break
    if images_seen == 0:
        raise ValueError('there are no images to measure damage on')
    found: dict[str, Any] = {'images': images_seen, 'top1': 100 * whole / images_seen, 'nodes': [], 'edges': []}
    for (_, _, label, _), count in zip(damages, correct, strict=True):
        found['nodes' if len(label) == 3 else 'edges'].append([*label, 100 * (whole - count) / images_seen])
    return found


def _correct(model: RandWire, x: Tensor, targets: Tensor) -> int:
    return int((model.forward_head(model.forward_conv_head(x)).argmax(1) == targets).sum())


@contextmanager
def _hooked(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _without_edge(stage: Stage, source: int, target: int) -> Any:
    position = stage.graph.predecessors[target].index(source)

    def cut(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs = list(args[0])
        inputs[position] = torch.zeros_like(inputs[position])
        return (inputs, *args[1:])
    return _hooked(stage.nodes[target].register_forward_pre_hook(cut))


def _without_node(stage: Stage, node: int) -> Any:
    sinks = len(stage.graph.outputs)
    handles = [stage.nodes[node].register_forward_hook(lambda module, args, out: torch.zeros_like(out))]
    if node in stage.graph.outputs and sinks > 1:  # the mean of the others
        handles.append(stage.register_forward_hook(lambda module, args, out: out * (sinks / (sinks - 1))))
    return _hooked(*handles)
