"""A detector that detectron2 has trained, turned into torchvision's: both must find the same boxes."""
from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip('detectron2', reason='detectron2 is not installed (`make upstream` builds a wheel)')

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import nn
from torchvision.models.detection.image_list import ImageList

from randwire_zoo.cli import main
from randwire_zoo.detection import load_detector

CONFIGS = Path(__file__).parent.parent / 'configs'


def trained(folder: Path, *options: Any) -> nn.Module:
    """A detector with statistics of its own, its checkpoint and its config, as train_net.py leaves them."""
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / 'bccd' / 'faster_rcnn_randwire_ws_pico.yaml'))
    cfg.merge_from_list(['MODEL.DEVICE', 'cpu', 'MODEL.ROI_HEADS.SCORE_THRESH_TEST', 0.0, *options])
    detector = build_model(cfg)
    for name, tensor in detector.state_dict().items():
        if name.endswith('running_mean'):
            tensor.normal_(0, 0.1)
        elif name.endswith('running_var'):
            tensor.uniform_(0.5, 1.5)
        elif name.startswith(('proposal_generator', 'roi_heads')):
            tensor.normal_(0, 0.05)
    DetectionCheckpointer(detector, str(folder)).save('model_final')
    (folder / 'config.yaml').write_text(cfg.dump())
    return detector.eval()


def convert(folder: Path, *options: str) -> int:
    return main(['convert', str(folder / 'model_final.pth'), str(folder / 'detector.safetensors'), '--config',
                 str(folder / 'config.yaml'), *options])


@pytest.mark.parametrize('options', [
    (), ('MODEL.FPN.NORM', '', 'MODEL.RESNETS.NORM', 'FrozenBN', 'MODEL.ROI_BOX_HEAD.FC_DIM', 1024),
    ('MODEL.ANCHOR_GENERATOR.SIZES', [[13], [27], [55], [111], [200]], 'MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO', 0)])
@pytest.mark.parametrize('size', [(320, 352), (224, 96)])
def test_both_libraries_find_the_same_boxes(options: tuple[Any, ...], size: tuple[int, int], tmp_path: Path) -> None:
    theirs = trained(tmp_path, 'INPUT.MIN_SIZE_TEST', min(size), *options)
    assert convert(tmp_path, '--classes', 'RBC,WBC,Platelets') == 0
    ours, classes = load_detector(tmp_path / 'detector.safetensors')
    assert classes == ['background', 'RBC', 'WBC', 'Platelets']
    pixels = torch.randint(0, 256, (3, *size)).float()
    with torch.no_grad():
        expected = theirs([{'image': pixels}])[0]['instances']
        found = ours([pixels / 255])[0]
    assert len(expected) == len(found['scores']) > 10
    torch.testing.assert_close(found['scores'], expected.scores, rtol=1e-4, atol=1e-5)
    # Scores that are equal but for rounding may come in either order.
    rows = [torch.cat([boxes, 100 * labels[:, None], 1000 * scores[:, None]], dim=1) for boxes, labels, scores in (
        (expected.pred_boxes.tensor, expected.pred_classes + 1, expected.scores),
        (found['boxes'], found['labels'], found['scores']))]
    assert torch.cdist(*rows, compute_mode='donot_use_mm_for_euclid_dist').min(dim=1).values.max() < 0.1


def test_the_anchors_are_detectron2s_on_every_level(tmp_path: Path) -> None:
    theirs = trained(tmp_path)
    assert convert(tmp_path) == 0
    ours, _ = load_detector(tmp_path / 'detector.safetensors')
    size = (352, 416)  # P6 is 6×7: torchvision itself would divide and step by 58 and 59 pixels
    maps = [torch.zeros(1, 1, math.ceil(size[0] / step), math.ceil(size[1] / step)) for step in (4, 8, 16, 32, 64)]
    expected = torch.cat([boxes.tensor for boxes in theirs.proposal_generator.anchor_generator(maps)])
    found, = ours.rpn.anchor_generator(ImageList(torch.zeros(1, 3, *size), [size]), maps)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(('key', 'value', 'message'), [
    ('MODEL.ROI_BOX_HEAD.POOLER_TYPE', 'ROIAlignV2', "has MODEL.ROI_BOX_HEAD.POOLER_TYPE 'ROIAlign', got 'ROIAlignV2'"),
    ('MODEL.META_ARCHITECTURE', 'RetinaNet', "has MODEL.META_ARCHITECTURE 'GeneralizedRCNN', got 'RetinaNet'"),
    ('MODEL.BACKBONE.NAME', 'build_resnet_fpn_backbone', 'MODEL.BACKBONE.NAME must be build_<name>_fpn_backbone'),
    ('MODEL.BACKBONE.NAME', 'build_randwire_ws_c7_fpn_backbone', "unknown name 'randwire_ws_c7'"),
    ('MODEL.BACKBONE.NAME', 'build_randwire_ws_small_s1_fpn_backbone', 'trained on other wiring'),
    ('MODEL.FPN.OUT_CHANNELS', 48, 'size mismatch'),
    ('MODEL.ROI_HEADS.NUM_CLASSES', 5, 'size mismatch'),
    ('INPUT', None, 'lacks INPUT.FORMAT; it must be the whole config'),
])
def test_what_torchvisions_detector_cannot_do_is_named(
        key: str, value: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path)
    tree = node = yaml.safe_load((tmp_path / 'config.yaml').read_text())
    *parents, last = key.split('.')
    for parent in parents:
        node = node[parent]
    node[last] = value
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(tree))
    assert convert(tmp_path) == 2
    said = capsys.readouterr().err
    assert message in said and said.count('\n') == 1
    assert not (tmp_path / 'detector.safetensors').exists()


def test_class_names_come_from_a_list_or_from_coco_json_and_must_be_as_many(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path)
    categories = [{'id': 7, 'name': 'c'}, {'id': 1, 'name': 'a'}, {'id': 3, 'name': 'b'}]
    assert convert(tmp_path, '--classes', 'a,b') == 2
    assert re.search('3 class names are needed, got 2', capsys.readouterr().err)
    (tmp_path / 'coco.json').write_text(json.dumps({'categories': categories}))
    assert convert(tmp_path, '--classes', str(tmp_path / 'coco.json')) == 0
    assert load_detector(tmp_path / 'detector.safetensors')[1] == ['background', 'a', 'b', 'c']
