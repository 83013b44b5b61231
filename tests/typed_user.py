"""A script as users write them, which mypy --strict accepts against the installed package (test_packaging.py)."""
from __future__ import annotations

import timm
import torch

from randwire_zoo import Architecture, Graph, RandWire, WattsStrogatz, deploy, draw, parse_graph_model, sample_graphs


def classes(name: str, images: torch.Tensor) -> list[int]:
    """The likeliest class of every image."""
    model = deploy(timm.create_model(name, pretrained=True))
    wired: tuple[Graph, ...] = model.graphs
    assert isinstance(model, RandWire) and wired[0].inputs
    with torch.inference_mode():
        found: list[int] = model(images).argmax(dim=1).tolist()
    return found


graphs = sample_graphs(WattsStrogatz(4, 0.75), (16, 32, 32), seed=1)
draw(graphs, title='three stages', theme='dark').savefig('wiring.svg')
edges: list[tuple[int, int]] = [edge for graph in graphs for edge in graph.edges]
print(parse_graph_model('ba(5)'), Architecture(channels=24).regime, len(edges))
print(classes('randwire_ws_pico', torch.zeros(2, 3, 64, 64)))
