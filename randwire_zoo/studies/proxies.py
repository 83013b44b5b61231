"""Cheap predictions of a network's accuracy, from its first weights and one minibatch: nothing is trained.

As Abdelfattah et al. ("Zero-Cost Proxies for Lightweight NAS", ICLR 2021) compare them, one number for each network:

    gradient norm   sum of the 2-norms of the loss' gradients by the weights of convolutions and linear layers
    synflow         sum of θ ∂R/∂θ over the same weights, where R is the sum of the outputs for an image of ones and all
                    parameters are made positive (Tanaka et al., NeurIPS 2020); its decimal logarithm
    naswot          logarithm of the determinant of the matrix of how many rectified elements two images agree in, on or
                    off (Mellor et al., "Neural Architecture Search without Training", ICML 2021)
    jacobian        −Σ (log(v + k) + 1 / (v + k)), k = 1e-5, over the eigenvalues v of the correlations between images'
                    gradients by the image (its first version, arXiv 2006.04647v1)

More is better, in all of them, by the claims of their authors.
"""
from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ['PROXIES', 'gradient_norm', 'jacobian_covariance', 'measure_proxies', 'naswot', 'synflow']

PROXIES = ('gradient norm', 'synflow', 'naswot', 'jacobian')
RECTIFIERS = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default, torch.ops.aten.hardtanh.default,
              torch.ops.aten.hardtanh_.default)


def measure_proxies(model: nn.Module, images: Tensor, targets: Tensor) -> dict[str, float]:
    """All of them, by their names; one that is no finite number for this network is left out.

    Args:
        model: A network at its first weights; it is left as it was.
        images: A minibatch [B, C, H, W], on the model's device.
        targets: Their classes [B].
    """
    found = {'gradient norm': gradient_norm(model, images, targets), 'synflow': synflow(model, images[:1]),
             'naswot': naswot(model, images), 'jacobian': jacobian_covariance(model, images)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def gradient_norm(model: nn.Module, images: Tensor, targets: Tensor) -> float:
    """Σ ‖∂L/∂W‖₂ over the weights W of convolutions and linear layers; L is the cross-entropy, BN uses the batch."""
    model = copy.deepcopy(model).train()
    weights = _weights(model)
    gradients = torch.autograd.grad(F.cross_entropy(model(images), targets), weights)
    return float(sum(gradient.double().norm() for gradient in gradients))


def synflow(model: nn.Module, image: Tensor) -> float:
    """log₁₀ Σ θ ∂R/∂θ, in double precision; BN takes the statistics it begins with, and so hands on what it gets.

    Args:
        model: The network.
        image: [1, C, H, W], whose shape counts.
    """
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    weights = _weights(model)
    gradients = torch.autograd.grad(model(torch.ones_like(image, dtype=torch.float64)).sum(), weights)
    total = sum(float((gradient * weight.detach()).sum()) for gradient, weight in zip(gradients, weights, strict=True))
    return math.log10(total) if total else -math.inf


def naswot(model: nn.Module, images: Tensor) -> float:
    """log |K|, where K[i, j] is in how many of all rectified elements the images i and j are both on or both off."""
    model, codes = copy.deepcopy(model).train(), _Codes(len(images))
    for module in model.modules():  # native kernels, which rectify unseen, leave modules with hooks to torch
        module.register_forward_hook(_look_on)
    with torch.no_grad(), codes:
        model(images)
    return float(torch.linalg.slogdet(codes.agreements)[1])


def _look_on(module: nn.Module, args: Any, output: Any) -> None:
    """A hook that changes nothing."""


class _Codes(TorchDispatchMode):
    """Looks at every rectification of a minibatch."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.agreements = torch.zeros(images, images, dtype=torch.float64)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in RECTIFIERS and len(result) == len(self.agreements):
            on = (result > 0).flatten(1).float()
            self.agreements += (on @ on.T + (1 - on) @ (1 - on).T).double().cpu()
        return result


def jacobian_covariance(model: nn.Module, images: Tensor) -> float:
    """The score of the correlations between the images' gradients of the summed logits by the image."""
    model = copy.deepcopy(model).train()
    images = images.detach().clone().requires_grad_()
    gradient, = torch.autograd.grad(model(images).sum(), images)
    correlations = torch.corrcoef(gradient.flatten(1).double())
    if not correlations.isfinite().all():  # an image that no output depends on
        return math.nan
    values = torch.linalg.eigvalsh(correlations) + 1e-5
    return -float((values.log() + 1 / values).sum())


def _weights(model: nn.Module) -> list[Tensor]:
    return [module.weight for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
