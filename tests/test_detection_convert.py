"""A detector that detectron2 has trained, turned into torchvision's: both must find the same boxes."""
from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip('detectron2', reason='detectron2 is not installed (`make upstream` builds a wheel)')

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg
from detectron2.modeling import build_model
from torch import nn
from torchvision.models.detection.image_list import ImageList

from randwire_zoo.cli import main
from randwire_zoo.detection import load_detector
from randwire_zoo.detection.convert import FIXED, FREE, TAKEN

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


@pytest.fixture(scope='module')
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a detector, for those who only read it."""
    folder = tmp_path_factory.mktemp('detector')
    trained(folder)
    return folder


def convert(folder: Path, *options: str) -> int:
    return main(['convert', str(folder / 'model_final.pth'), str(folder / 'detector.safetensors'), '--config',
                 str(folder / 'config.yaml'), *options])


# What decides how a detector is trained, or belongs to parts that it does not have.
ELSEWHERE: tuple[Any, ...] = (
    'MODEL.RPN.BATCH_SIZE_PER_IMAGE', 8, 'MODEL.RPN.SMOOTH_L1_BETA', 0.5, 'MODEL.RPN.BBOX_REG_LOSS_TYPE', 'giou',
    'MODEL.RPN.IOU_THRESHOLDS', [0.2, 0.8], 'MODEL.RPN.PRE_NMS_TOPK_TRAIN', 7, 'MODEL.RPN.POST_NMS_TOPK_TRAIN', 5,
    'MODEL.RPN.BOUNDARY_THRESH', 0, 'MODEL.RPN.LOSS_WEIGHT', 2.0, 'MODEL.ROI_HEADS.IOU_THRESHOLDS', [0.7],
    'MODEL.ROI_HEADS.PROPOSAL_APPEND_GT', False, 'MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE', 'ciou',
    'MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES', True, 'MODEL.ROI_BOX_HEAD.NORM', 'BN', 'MODEL.ROI_BOX_HEAD.CONV_DIM', 8,
    'MODEL.ANCHOR_GENERATOR.ANGLES', [[0]], 'MODEL.ROI_MASK_HEAD.NUM_CONV', 3, 'MODEL.RETINANET.NUM_CLASSES', 7,
    'MODEL.RESNETS.DEPTH', 18, 'MODEL.RESNETS.WIDTH_PER_GROUP', 8, 'MODEL.BACKBONE.FREEZE_AT', 1)


@pytest.mark.parametrize('options', [
    (), ('MODEL.FPN.NORM', '', 'MODEL.RESNETS.NORM', 'FrozenBN', 'MODEL.ROI_BOX_HEAD.FC_DIM', 1024),
    ('MODEL.ANCHOR_GENERATOR.SIZES', [[13], [27], [55], [111], [200]], 'MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO', 0,
     *ELSEWHERE)])
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


def altered(folder: Path, key: str, value: Any) -> None:
    """Write another value, or a key that was not there, into config.yaml."""
    tree = node = yaml.safe_load((folder / 'config.yaml').read_text())
    *parents, last = key.split('.')
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    (folder / 'config.yaml').write_text(yaml.safe_dump(tree))


def refusal(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line that says why nothing was converted."""
    assert convert(folder, *options) == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and not (folder / 'detector.safetensors').exists()
    return said


@pytest.mark.parametrize(('key', 'value', 'message'), [
    ('MODEL.ROI_BOX_HEAD.POOLER_TYPE', 'ROIAlignV2', "has MODEL.ROI_BOX_HEAD.POOLER_TYPE 'ROIAlign', got 'ROIAlignV2'"),
    ('MODEL.META_ARCHITECTURE', 'RetinaNet', "has MODEL.META_ARCHITECTURE 'GeneralizedRCNN', got 'RetinaNet'"),
    ('MODEL.BACKBONE.NAME', 'build_resnet_fpn_backbone', 'MODEL.BACKBONE.NAME must be build_<name>_fpn_backbone'),
    ('MODEL.BACKBONE.NAME', 'build_randwire_ws_c7_fpn_backbone', "unknown name 'randwire_ws_c7'"),
    ('MODEL.BACKBONE.NAME', 'build_randwire_ws_small_s1_fpn_backbone', 'other wiring'),
    ('MODEL.FPN.OUT_CHANNELS', 48, 'size mismatch'),
    ('MODEL.ROI_HEADS.NUM_CLASSES', 5, 'size mismatch'),
    ('INPUT', None, 'lacks INPUT.FORMAT; it must be the whole config'),
    ('MODEL.ROI_HEADS.IN_FEATURES', ['p3', 'p4', 'p5'], "IN_FEATURES ['p2', 'p3', 'p4', 'p5'], got ['p3', 'p4', 'p5']"),
    ('MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE', True, 'has MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE False, got True'),
    ('MODEL.PROPOSAL_GENERATOR.MIN_SIZE', 4, 'has MODEL.PROPOSAL_GENERATOR.MIN_SIZE 0, got 4'),
    ('MODEL.ANCHOR_GENERATOR.NAME', 'RotatedAnchorGenerator', "'DefaultAnchorGenerator', got 'RotatedAnchorGenerator'"),
    ('MODEL.MASK_ON', True, 'has MODEL.MASK_ON False, got True'),
    ('MODEL.SOMETHING.OF_ANOTHER_PROJECT', 1, 'has no MODEL.SOMETHING.OF_ANOTHER_PROJECT, got 1'),
    ('INPUT.MIN_SIZE_TEST', 0, 'INPUT.MIN_SIZE_TEST must be a positive integer, got 0'),
    ('TEST.DETECTIONS_PER_IMAGE', -1, 'TEST.DETECTIONS_PER_IMAGE must be a positive integer, got -1'),
    ('MODEL.PIXEL_MEAN', [1.0], 'MODEL.PIXEL_MEAN must be 3 numbers, got [1.0]'),
    ('MODEL.ROI_HEADS.NMS_THRESH_TEST', 'half', "MODEL.ROI_HEADS.NMS_THRESH_TEST must be a number, got 'half'"),
])
def test_what_torchvisions_detector_cannot_do_is_named(
        key: str, value: Any, message: str, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(detector, tmp_path / 'detector'))
    altered(folder, key, value)
    assert message in refusal(folder, capsys)


def test_the_config_of_a_lazyconfig_is_called_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As lazyconfig_train_net.py writes it, and with a Python object in it, which no safe reader takes."""
    path = tmp_path / 'config.yaml'
    LazyConfig.save(LazyConfig.load(str(CONFIGS / 'faster_rcnn_randwire.py')), str(path))
    for _ in range(2):
        assert f'{path} is of a LazyConfig, which convert does not read' in refusal(tmp_path, capsys)
        path.write_text(f'{path.read_text()}more: !!python/tuple [1, 2]\n')


def leaves(tree: dict[str, Any], path: str) -> dict[str, Any]:
    return {key: entry for name, value in tree.items()
            for key, entry in (leaves(value, f'{path}.{name}') if isinstance(value, dict)
                               else {f'{path}.{name}': value}).items()}


def test_every_key_of_detectron2s_model_is_taken_over_fixed_or_free() -> None:
    """Against detectron2's own defaults: nothing of MODEL goes unread, and nothing that it does not have is named."""
    defaults = leaves(yaml.safe_load(get_cfg().dump())['MODEL'], 'MODEL')
    assert len(defaults) > 120
    assert sorted(key for key in (*FIXED, *TAKEN) if key.startswith('MODEL.') and key not in defaults) == []
    assert [free for free in FREE if not any(f'{key}.'.startswith(f'{free}.') for key in defaults)] == []
    for key, value in defaults.items():
        kinds = [key in FIXED, key in TAKEN, any(f'{key}.'.startswith(f'{free}.') for free in FREE)]
        assert sum(kinds) == 1, key
        if key in FIXED:  # either as detectron2 has it by default, or one of those that make it an R-CNN with FPN
            assert value in FIXED[key] or key.rpartition('.')[2] in (
                'IN_FEATURES', 'OUT_FEATURES', 'NAME', 'NUM_FC', 'POOLER_RESOLUTION', 'POOLER_TYPE'), key


def test_a_mask_head_and_other_pixel_statistics_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, 'MODEL.MASK_ON', True)
    assert 'has MODEL.MASK_ON False, got True' in refusal(tmp_path, capsys)
    altered(tmp_path, 'MODEL.MASK_ON', False)
    assert 'Unexpected key(s) in state_dict: "roi_heads.mask_head' in refusal(tmp_path, capsys)
    checkpoint = torch.load(tmp_path / 'model_final.pth', weights_only=True)
    state = {name: tensor for name, tensor in checkpoint['model'].items() if '.mask_' not in name}
    state['pixel_mean'] = torch.full((3, 1, 1), 100.0)
    torch.save({'model': state}, tmp_path / 'model_final.pth')
    assert 'has pixel_mean [100.0, 100.0, 100.0], which ' in refusal(tmp_path, capsys)
    state['pixel_mean'] = torch.full((3, 1, 1), 127.5)
    torch.save({'model': state}, tmp_path / 'model_final.pth')
    assert convert(tmp_path) == 0


def test_class_names_come_from_a_list_or_from_coco_json_and_must_be_as_many_and_differ(
        detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(detector, tmp_path / 'detector'))
    categories = [{'id': 7, 'name': 'c'}, {'id': 1, 'name': 'a'}, {'id': 3, 'name': 'b'}]
    assert '3 class names are needed, got 2' in refusal(folder, capsys, '--classes', 'a,b')
    assert "differ from each other, got 'A' in ['A', 'A', 'A']" in refusal(folder, capsys, '--classes', 'A,A,A')
    assert "must not be empty, got ['A', '', 'B']" in refusal(folder, capsys, '--classes', 'A,,B')
    (folder / 'coco.json').write_text(json.dumps({'categories': categories}))
    assert convert(folder, '--classes', str(folder / 'coco.json')) == 0
    assert load_detector(folder / 'detector.safetensors')[1] == ['background', 'a', 'b', 'c']


def test_class_names_are_those_of_the_images_that_were_trained_on(
        detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(detector, tmp_path / 'detector'))
    monkeypatch.setenv('DETECTRON2_DATASETS', str(tmp_path))
    (tmp_path / 'bccd/annotations').mkdir(parents=True)
    (tmp_path / 'bccd/train').mkdir()
    (tmp_path / 'bccd/annotations/instances_train.json').write_text(json.dumps({'categories': [
        {'id': number, 'name': name} for number, name in enumerate(('Platelets', 'RBC', 'WBC'), 1)]}))
    assert 'which has them in the order Platelets,RBC,WBC' in refusal(folder, capsys, '--classes', 'RBC,WBC,Platelets')
    for given, names in (([], ['Platelets', 'RBC', 'WBC']), (['--classes', 'plate,red,white'], [
            'plate', 'red', 'white'])):
        assert convert(folder, *given) == 0
        assert load_detector(folder / 'detector.safetensors')[1] == ['background', *names]
        assert f'3 classes ({", ".join(names)}), images of ' in capsys.readouterr().out
