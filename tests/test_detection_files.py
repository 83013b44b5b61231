"""What a detector's file describes: torchvision's own parts, whose types say what they compute; and what it gives."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layers import randomise_
from pretrained import NAME
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork

from randwire_zoo.detection import fasterrcnn_randwire_fpn, save_detector


class ShiftedAnchors(AnchorGenerator):
    def grid_anchors(self, grid_sizes: Any, strides: Any) -> list[Tensor]:
        return [anchors + 3 for anchors in super().grid_anchors(grid_sizes, strides)]


class SmoothHead(TwoMLPHead):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.fc7(F.gelu(self.fc6(x.flatten(start_dim=1)))))


class DarkTransform(GeneralizedRCNNTransform):
    def normalize(self, image: Tensor) -> Tensor:
        return super().normalize(image / 2)


class HalfBoxes(BoxCoder):
    def decode(self, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
        return super().decode(rel_codes / 2, boxes)


class HalfPyramid(FeaturePyramidNetwork):
    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: found / 2 for name, found in super().forward(x).items()}


class OtherDetector(FasterRCNN):
    def forward(self, images: Any, targets: Any = None) -> Any:
        return super().forward([image / 2 for image in images], targets)


def narrow_detector(**kwargs: Any) -> FasterRCNN:
    """A detector of two classes with little behind its backbone."""
    return fasterrcnn_randwire_fpn(
        NAME, box_head=TwoMLPHead(256 * 7 ** 2, 8), box_predictor=FastRCNNPredictor(8, 3), **kwargs)


def test_a_part_of_another_type_is_refused_though_its_tensors_and_settings_are_the_same(tmp_path: Path) -> None:
    """A file would be loaded as a detector that computes something else."""
    detector, path = narrow_detector(), tmp_path / 'detector.safetensors'
    for name, part, kind in (
            ('rpn.anchor_generator', detector.rpn.anchor_generator, ShiftedAnchors),
            ('roi_heads.box_head', detector.roi_heads.box_head, SmoothHead),
            ('transform', detector.transform, DarkTransform),
            ('backbone.fpn', detector.backbone.fpn, HalfPyramid),
            ('detector', detector, OtherDetector),
            ('roi_heads.box_coder', detector.roi_heads.box_coder, HalfBoxes)):
        usual, part.__class__ = type(part), kind
        with pytest.raises(ValueError, match=rf"describes torchvision's own parts only; here differ {name}$"):
            save_detector(detector, path)
        part.__class__ = usual
    detector.rpn.head.conv.append(nn.Hardtanh())
    with pytest.raises(ValueError, match=r'here differ rpn\.head\.conv\.1$'):
        save_detector(detector, path)
    del detector.rpn.head.conv[1]
    detector.rpn.box_coder = BoxCoder((2.0, 2.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r'here differ rpn\.box_coder\.weights$'):
        save_detector(detector, path)
    detector.rpn.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    assert not path.exists()
    save_detector(detector, path)


def test_the_backbone_in_a_file_and_the_statistics_of_its_images_begin_another_detector(tmp_path: Path) -> None:
    source = narrow_detector(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    randomise_(source.backbone.body)
    expected = source.backbone.body.state_dict()
    save_detector(source, tmp_path / 'detector.safetensors')
    torch.save({'model': source.state_dict(), 'epoch': 3}, tmp_path / 'detector.pth')  # as torchvision's train.py does
    own = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]
    for name, statistics in (('detector.safetensors', own), ('detector.pth', [[0.5] * 3] * 2)):
        detector = narrow_detector(weights_backbone=tmp_path / name)
        body = detector.backbone.body.state_dict()
        assert len(body) > 100 and all(torch.equal(tensor, expected[key]) for key, tensor in body.items())
        assert [list(detector.transform.image_mean), list(detector.transform.image_std)] == statistics
