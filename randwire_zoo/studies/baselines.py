"""The hand-made networks for 28×28 digits that a study on MNIST set beside RandWire networks, as models of timm.

    mnist_tiny_cnn       three 3×3 convolutions (32, 64, 64), three linear layers (70, 30, classes)
    mnist_handmade_cnn   five convolutions with BN and dropout, two linear layers (128, classes)
    mnist_alexnet        AlexNet's five convolutions and three linear layers, its strides and widths cut to small images

The study (Corum, "More Random Graphs for Neural Architecture Search", 2021) gives layers and widths of the first; of
the others it names the kind, and the rest here is ours. They are made for this comparison and not listed elsewhere.
"""
from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

__all__ = ['SmallCNN']


class SmallCNN(nn.Module):
    """Convolutions, then linear layers.

    Args:
        features: What comes before pooling to 3×3 positions.
        width: Channels of that.
        hidden: Widths of the linear layers before the classifier.
        num_classes: Outputs.
        drop_rate: Dropout before each linear layer.
    """

    def __init__(self, features: nn.Sequential, width: int, hidden: tuple[int, ...], num_classes: int,
                 drop_rate: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.features = features
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(3), nn.Flatten()]
        size = 9 * width
        for wider in hidden:
            layers += [nn.Dropout(drop_rate), nn.Linear(size, wider), nn.ReLU(inplace=True)]
            size = wider
        self.hidden = nn.Sequential(*layers)
        self.num_features = size
        self.fc = nn.Linear(size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to logits [B, num_classes]."""
        return self.fc(self.hidden(self.features(x)))


class _Tiny(SmallCNN):
    def __init__(self, num_classes: int = 10, in_chans: int = 1, drop_rate: float = 0.0, **_: Any) -> None:
        features = nn.Sequential(
            nn.Conv2d(in_chans, 32, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3), nn.ReLU(inplace=True))
        super().__init__(features, 64, (70, 30), num_classes, drop_rate)


class _Handmade(SmallCNN):
    def __init__(self, num_classes: int = 10, in_chans: int = 1, drop_rate: float = 0.0, **_: Any) -> None:
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(((in_chans, 32), (32, 32), (32, 64), (64, 64), (64, 128))):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            if i in (1, 3):
                layers += [nn.MaxPool2d(2), nn.Dropout(0.25)]
        super().__init__(nn.Sequential(*layers), 128, (128,), num_classes, max(drop_rate, 0.25))


class _AlexNet(SmallCNN):
    def __init__(self, num_classes: int = 10, in_chans: int = 1, drop_rate: float = 0.0, **_: Any) -> None:
        features = nn.Sequential(
            nn.Conv2d(in_chans, 64, 5, stride=2, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True))
        super().__init__(features, 256, (512, 512), num_classes, max(drop_rate, 0.5))


default_cfgs = generate_default_cfgs({name: {
    'num_classes': 10, 'input_size': (1, 28, 28), 'pool_size': None, 'crop_pct': 1.0, 'interpolation': 'bilinear',
    'mean': (0.1307,), 'std': (0.3081,), 'first_conv': 'features.0', 'classifier': 'fc'}
    for name in ('mnist_tiny_cnn', 'mnist_handmade_cnn', 'mnist_alexnet')})


@register_model
def mnist_tiny_cnn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Three convolutions and three linear layers, as the study describes it."""
    return build_model_with_cfg(_Tiny, 'mnist_tiny_cnn', pretrained, **kwargs)


@register_model
def mnist_handmade_cnn(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Five convolutions with BN and dropout, and two linear layers."""
    return build_model_with_cfg(_Handmade, 'mnist_handmade_cnn', pretrained, **kwargs)


@register_model
def mnist_alexnet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """AlexNet for small images."""
    return build_model_with_cfg(_AlexNet, 'mnist_alexnet', pretrained, **kwargs)
