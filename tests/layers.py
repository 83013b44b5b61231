"""Numbers for layers whose initial values would hide an error: as after a training, each tensor has its own."""
from __future__ import annotations

from torch import Tensor, nn


def randomise_(module: nn.Module) -> None:
    """Draw the weights of the edges, and the weights, biases and statistics of all BN."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.3)
            assert layer.running_mean is not None and layer.running_var is not None
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
        elif isinstance(weight := getattr(layer, 'edge_weight', None), Tensor):
            nn.init.normal_(weight)
