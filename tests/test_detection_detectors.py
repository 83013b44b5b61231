"""torchvision's Faster R-CNN on a RandWire backbone, against torchvision's own one; detector files; `detect`."""
from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from pretrained import NAME, random_model, timm_checkpoint
from safetensors.torch import load_file, save_file
from shapes import CLASSES, write_shapes
from torch import nn
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.transforms.functional import to_tensor

from randwire_zoo.cli import main
from randwire_zoo.detection import fasterrcnn_randwire_fpn, load_detector, save_detector
from randwire_zoo.detection.torchvision import detect as detect_module
from randwire_zoo.detection.torchvision.detect import detect
from randwire_zoo.weights.files import read_metadata, save_weights

SMALL: dict[str, Any] = {'min_size': 64, 'max_size': 96, 'box_score_thresh': 0.0}


def small_detector(**kwargs: Any) -> FasterRCNN:
    return fasterrcnn_randwire_fpn(NAME, 3, **{**SMALL, **kwargs})


@pytest.fixture(scope='module')
def detector_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('detector') / 'detector.safetensors'
    save_detector(small_detector().eval(), path, CLASSES)
    return path


def test_everything_but_the_body_is_as_in_torchvisions_own_detector() -> None:
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    ours = fasterrcnn_randwire_fpn('randwire_ws_c109')

    def parts(detector: nn.Module) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in detector.state_dict().items()
                if '.body.' not in name and 'inner_blocks' not in name}

    assert parts(ours) == parts(theirs)
    for attribute in ('min_size', 'max_size', 'image_mean', 'image_std'):
        mine, other = getattr(ours.transform, attribute), getattr(theirs.transform, attribute)
        assert list(mine) == list(other) if hasattr(mine, '__iter__') else mine == other
    mine, other = ours.rpn.anchor_generator, theirs.rpn.anchor_generator
    for mine_cell, other_cell in zip(mine.cell_anchors, other.cell_anchors, strict=True):
        assert torch.equal(mine_cell, other_cell)
    for part in ('score_thresh', 'nms_thresh', 'detections_per_img'):
        assert getattr(ours.roi_heads, part) == getattr(theirs.roi_heads, part)
    assert vars(ours.roi_heads.box_coder) == vars(theirs.roi_heads.box_coder)
    assert ours.rpn._pre_nms_top_n == theirs.rpn._pre_nms_top_n
    assert ours.rpn._post_nms_top_n == theirs.rpn._post_nms_top_n


def test_the_body_computes_timms_features() -> None:
    body = small_detector(weights_backbone='randwire://randwire_ws_pico.digits').eval().backbone.body
    images = torch.randn(1, 3, 64, 96)
    model = timm.create_model(NAME, pretrained=True).eval()
    with torch.no_grad():
        expected = model.forward_intermediates(images, indices=[1, 2, 3, 4], intermediates_only=True)
        for output, features in zip(body(images).values(), expected, strict=True):
            torch.testing.assert_close(output, features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('trained', 'layers', 'trainable'), [
    (True, None, 3), (True, 0, 0), (True, 2, 2), (True, 5, 5), (False, None, 5), (False, 5, 5)])
def test_trainable_layers_and_frozen_norms_follow_torchvisions_conventions(
        trained: bool, layers: int | None, trainable: int) -> None:
    source = 'randwire://randwire_ws_pico.digits' if trained else None
    detector = small_detector(weights_backbone=source, trainable_backbone_layers=layers)
    body = detector.backbone.body
    learns = [all(parameter.requires_grad for parameter in body[f'conv{i}'].parameters()) for i in range(1, 6)]
    assert learns == [False] * (5 - trainable) + [True] * trainable
    assert all(parameter.requires_grad for name, parameter in detector.named_parameters() if '.body.' not in name)
    assert any(isinstance(module, FrozenBatchNorm2d) for module in body.modules()) == trained
    assert any(isinstance(module, nn.BatchNorm2d) for module in body.modules()) != trained


def test_it_learns_and_detects() -> None:
    detector = small_detector().train()
    target = {'boxes': torch.tensor([[8.0, 8.0, 40.0, 44.0]]), 'labels': torch.tensor([1])}
    losses = detector([torch.rand(3, 64, 64)], [target])
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.backbone.body.parameters())
    found = detector.eval()([torch.rand(3, 64, 64)])[0]
    assert set(found) == {'boxes', 'labels', 'scores'}


@pytest.mark.parametrize('scripted', [False, True])
def test_what_a_detector_finds_does_not_depend_on_the_image_before(scripted: bool) -> None:
    torch.manual_seed(0)
    wide, other = torch.rand(3, 40, 120), torch.rand(3, 80, 70)  # the first one is resized to 42 by 128, padded to 64

    def found(*images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        torch.manual_seed(1)
        detector = small_detector(max_size=128).eval()
        detector = torch.jit.script(detector) if scripted else detector
        with torch.no_grad():
            results = [detector([image]) for image in images]
        return [result[1][0] if scripted else result[0] for result in results]

    (alone,), (first, later) = found(other), found(wide, other)
    before, second = found(other, wide)
    for one, same in ((alone, later), (alone, before), (first, second)):
        assert one['scores'].numel() > 10
        for key in one:
            torch.testing.assert_close(one[key], same[key], rtol=1e-4, atol=1e-3)


def test_training_begins_with_any_image_and_a_pool_of_ones_own_is_left_alone() -> None:
    detector = small_detector(max_size=128).train()
    detector([torch.rand(3, 40, 120)], [{'boxes': torch.tensor([[8.0, 8.0, 30.0, 34.0]]), 'labels': torch.tensor([1])}])
    usual = MultiScaleRoIAlign(['0', '1', '2', '3'], 7, 2)
    usual({level: torch.rand(1, 1, 64 >> int(level), 64 >> int(level)) for level in '0123'},
          [torch.tensor([[0.0, 0.0, 9.0, 9.0]])], [(256, 256)])
    pool = detector.roi_heads.box_roi_pool
    assert pool.scales == usual.scales and vars(pool.map_levels) == vars(usual.map_levels)
    own = MultiScaleRoIAlign(['0', '1', '2', '3'], 7, 2)
    assert small_detector(box_roi_pool=own).roi_heads.box_roi_pool is own and own.scales is None


def test_images_are_normalised_as_those_that_the_backbone_was_trained_on(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def statistics(**kwargs: Any) -> list[list[float]]:
        transform = small_detector(**kwargs).transform
        return [list(transform.image_mean), list(transform.image_std)]

    usual = statistics()
    model = random_model()
    path = timm_checkpoint(tmp_path / 'trained', model)
    checkpoint = torch.load(path, weights_only=False)
    for settings, expected in (
            ({'mean': [0.1, 0.2, 0.3], 'std': [0.4, 0.5, 0.6]}, [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]),
            ({'model': 'a network of nobody'}, usual)):
        for name, value in settings.items():
            setattr(checkpoint['args'], name, value)
        torch.save(checkpoint, path)
        assert statistics(weights_backbone=path) == expected
        given = statistics(weights_backbone=path, image_mean=[0.7, 0.7, 0.7])
        assert given == [[0.7, 0.7, 0.7], expected[1]]
    torch.save(model.state_dict(), tmp_path / 'bare.pth')
    assert statistics(weights_backbone=tmp_path / 'bare.pth') == usual
    # Weights that are in the cache without their config.json serve, with a word.
    folder = tmp_path / 'models--someone--pico' / 'snapshots' / ('0' * 40)
    folder.mkdir(parents=True)
    save_weights(model, folder / 'model.safetensors')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    source = f'hf-hub:someone/pico@{"0" * 40}'
    with pytest.warns(UserWarning, match='not in the cache.*image_mean and image_std are those of randwire_ws_pico'):
        assert statistics(weights_backbone=source) == usual


@pytest.mark.parametrize('kwargs', [
    {}, {'image_mean': [0.5, 0.5, 0.5], 'box_detections_per_img': 7, 'rpn_post_nms_top_n_test': 30},
    {'weights_backbone': 'randwire://randwire_ws_pico.digits', 'trainable_backbone_layers': 1}])
def test_a_saved_detector_computes_the_same(kwargs: dict[str, Any], tmp_path: Path) -> None:
    detector = small_detector(**kwargs).eval()
    save_detector(detector, tmp_path / 'detector.safetensors', CLASSES, metrics={'AP50': 1.5})
    restored, classes = load_detector(tmp_path / 'detector.safetensors')
    assert classes == ['background', *CLASSES]
    images = [torch.rand(3, 80, 70), torch.rand(3, 50, 90)]
    with torch.no_grad():
        for expected, found in zip(detector(images), restored(images), strict=True):
            assert expected['scores'].numel() > 0
            for key in expected:
                torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4)
    again = fasterrcnn_randwire_fpn(NAME, weights=tmp_path / 'detector.safetensors')
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in restored.state_dict().items())
    assert not next(again.backbone.body['conv1'].parameters()).requires_grad


@pytest.mark.parametrize(('kwargs', 'message'), [
    ({'name': 'randwire_ws_c110'}, "unknown name 'randwire_ws_c110'"),
    ({'name': 'resnet18'}, "unknown name 'resnet18'"),
    ({'num_classes': 1}, 'num_classes must be an integer of at least 2, background included, got 1'),
    ({'trainable_backbone_layers': 3}, 'trainable_backbone_layers=3 would keep random parameters'),
    ({'trainable_backbone_layers': 6}, 'trainable_backbone_layers must be an integer from 0 to 5, got 6'),
    ({'weights_backbone': 'randwire://randwire_ws_c154'}, 'no such weights are published'),
    ({'name': 'randwire_ws_small_s1', 'weights_backbone': 'randwire://randwire_ws_pico.digits'}, 'other wiring'),
])
def test_arguments_out_of_range_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        fasterrcnn_randwire_fpn(**{'name': NAME, **kwargs})
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_files_that_are_no_detectors_or_another_one_are_refused(detector_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='holds a detector on randwire_ws_pico, not on randwire_ws_small_s1'):
        fasterrcnn_randwire_fpn('randwire_ws_small_s1', weights=detector_file)
    with pytest.raises(ValueError, match=r'num_classes must be 3, as in .*, got 5'):
        fasterrcnn_randwire_fpn(NAME, 5, weights=detector_file)
    save_weights(random_model(), tmp_path / 'classifier.safetensors')
    with pytest.raises(ValueError, match=r'classifier\.safetensors holds no detector'):
        load_detector(tmp_path / 'classifier.safetensors')
    (tmp_path / 'last.pth.tar').write_bytes(b'a checkpoint')
    with pytest.raises(ValueError, match=r'last\.pth\.tar holds no detector .*`randwire-zoo convert` makes a'):
        load_detector(tmp_path / 'last.pth.tar')
    for key, value in (('detector', '{"name": "randwire_ws_pico", "soft_nms": true}'), ('detector', '[]'),
                       ('classes', '["disc"]')):
        metadata = {**read_metadata(detector_file), key: value}
        save_file(load_file(detector_file), tmp_path / 'odd.safetensors', metadata=metadata)
        with pytest.raises(ValueError, match=r'odd\.safetensors does not describe its detector: '):
            load_detector(tmp_path / 'odd.safetensors')
    data = detector_file.read_bytes()
    (tmp_path / 'half.safetensors').write_bytes(data[:len(data) // 2])
    with pytest.raises(ValueError, match=r'half\.safetensors cannot be loaded: '):
        load_detector(tmp_path / 'half.safetensors')


def test_only_what_a_file_can_describe_is_saved(tmp_path: Path) -> None:
    path = tmp_path / 'detector.safetensors'
    with pytest.raises(ValueError, match='only detectors of fasterrcnn_randwire_fpn can be saved, got Linear'):
        save_detector(nn.Linear(1, 1), path)
    with pytest.raises(ValueError, match='2 class names are needed, got 3'):
        save_detector(small_detector(), path, ['a', 'b', 'c'])
    with pytest.raises(ValueError, match='metadata graphs, kind are written by save_detector itself'):
        save_detector(small_detector(), path, kind='x', graphs='y', metrics={'AP': 1})
    with pytest.raises(ValueError, match=r"class names must be text and differ from each other, got 'a'"):
        save_detector(small_detector(), path, ['a', 'a'])
    for odd in (3, None, ['b']):
        with pytest.raises(ValueError, match=rf'class names must be text and .*, got {re.escape(repr(odd))} in '):
            save_detector(small_detector(), path, ['a', odd])
    with pytest.raises(ValueError, match=r'detector files end in \.safetensors'):
        save_detector(small_detector(), tmp_path / 'detector.pth')
    other = small_detector()
    other.rpn.head = nn.Conv2d(256, 3, 1)
    with pytest.raises(ValueError, match=r'describes torchvision.s own parts only; here differ rpn\.head\.'):
        save_detector(other, path)
    for arguments, differs in (
            ({'fixed_size': (96, 96)}, 'transform.fixed_size'), ({'rpn_score_thresh': 0.5}, 'rpn.score_thresh'),
            ({'box_roi_pool': MultiScaleRoIAlign(['0', '1', '2', '3'], 7, 2, canonical_scale=112)},
             'roi_heads.box_roi_pool.canonical_scale')):
        with pytest.raises(ValueError, match=f"here differ {re.escape(differs)}$"):
            save_detector(small_detector(**arguments), path)
    assert not path.exists()


def test_detect_finds_boxes_in_the_pixels_of_the_image_it_was_given(detector_file: Path) -> None:
    detector, _ = load_detector(detector_file)
    image = Image.effect_noise((256, 128), 60).convert('RGB')
    found = detect(detector, image)
    assert found['scores'].numel() > 0
    assert found['boxes'].min() >= 0 and found['boxes'][:, 0::2].max() <= 256 and found['boxes'][:, 1::2].max() <= 128
    assert found['boxes'].max() > 128


def test_the_detector_gets_pixels_from_0_to_1_at_its_size_and_its_boxes_are_scaled_back(detector_file: Path) -> None:
    """Of the second image the longer side is at 96 before the shorter one is at 64."""
    detector, _ = load_detector(detector_file)
    for size, seen in (((96, 64), (96, 64)), ((200, 130), (96, 62))):
        image = Image.effect_noise(size, 60).convert('RGB')
        found = detect(detector, image)
        if seen != size:
            image = image.resize(seen, Image.Resampling.BILINEAR)
        with torch.inference_mode():
            expected = detector([to_tensor(image)])[0]
        assert expected['scores'].numel() > 10
        left, top, right, bottom = expected['boxes'].unbind(1)
        x, y = size[0] / seen[0], size[1] / seen[1]
        torch.testing.assert_close(found['boxes'], torch.stack([x * left, y * top, x * right, y * bottom], 1))
        assert torch.equal(found['scores'], expected['scores']) and torch.equal(found['labels'], expected['labels'])


class Knowing(nn.Module):
    """A detector that finds one square and, less surely, one disc, at half the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))
        self.transform = SimpleNamespace(min_size=(64,), max_size=80)
        self.roi_heads = SimpleNamespace(score_thresh=0.05)

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        assert [image.shape for image in images] == [(3, 64, 80)]
        return [{'boxes': torch.tensor([[10.02, 20.0, 40.0, 50.0], [3.0, 5.0, 7.0, 9.0]]),
                 'labels': torch.tensor([2, 1]), 'scores': torch.tensor([0.75678, 0.25])}]


def test_what_is_found_has_its_name_and_its_box_in_json_in_the_summary_and_in_the_picture(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'knowing.safetensors').touch()
    Image.new('RGB', (160, 128)).save(tmp_path / 'image.png')
    written, text = [], ImageDraw.ImageDraw.text
    monkeypatch.setattr(detect_module, 'load_detector', lambda path: (Knowing(), ['background', *CLASSES]))
    monkeypatch.setattr(ImageDraw.ImageDraw, 'text', lambda pen, place, string, **kwargs: written.append(
        (place, string)) or text(pen, place, string, **kwargs))
    assert main(['detect', str(tmp_path / 'image.png'), '--weights', str(tmp_path / 'knowing.safetensors'), '-o',
                 str(tmp_path / 'drawn'), '--score-thresh', '0.5', '--json', str(tmp_path / 'found.json'), '--device',
                 'cpu']) == 0
    assert json.loads((tmp_path / 'found.json').read_text()) == [{
        'image': str(tmp_path / 'image.png'), 'boxes': [[20.0, 40.0, 80.0, 100.0], [6.0, 10.0, 14.0, 18.0]],
        'classes': ['square', 'disc'], 'scores': [0.7568, 0.25]}]
    assert capsys.readouterr().out.splitlines()[0] == f'{tmp_path / "drawn" / "image.png"}: 1 square'
    (place, string), = written
    assert string == 'square 0.76' and place[0] == pytest.approx(22, abs=0.1)  # the label begins where the box does
    with Image.open(tmp_path / 'drawn/image.png') as drawn:
        lines = np.asarray(drawn).any(axis=2)
    # Below the label, which stands on the box, nothing is drawn but the box, by lines of one pixel.
    box = np.zeros_like(lines)
    box[40:101, 20:81], box[41:100, 21:80] = True, False
    assert (lines[41:] == box[41:]).all() and not lines[:20].any()


def test_detect_draws_a_picture_for_each_image_and_writes_json(
        detector_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shapes(tmp_path / 'data', 'train', 2)
    (tmp_path / 'other').mkdir()
    Image.open(tmp_path / 'data/train/1.png').convert('L').save(tmp_path / 'other/1.png')
    images = [str(tmp_path / 'data/train'), str(tmp_path / 'other/1.png')]
    assert main(['detect', *images, '--weights', str(detector_file), '-o', str(tmp_path / 'drawn'), '--score-thresh',
                 '0', '--json', str(tmp_path / 'found.json'), '--device', 'cpu']) == 0
    assert sorted(path.name for path in (tmp_path / 'drawn').iterdir()) == ['1.png', '1_2.png', '2.png']
    found = json.loads((tmp_path / 'found.json').read_text())
    assert [Path(row['image']).name for row in found] == ['1.png', '2.png', '1.png']
    assert all(len(row['boxes']) == len(row['classes']) == len(row['scores']) > 0 for row in found)
    assert set(found[0]['classes']) <= set(CLASSES)
    with Image.open(tmp_path / 'drawn/1.png') as drawn, Image.open(tmp_path / 'data/train/1.png') as plain:
        assert drawn.size == plain.size and drawn.tobytes() != plain.tobytes()
    assert capsys.readouterr().out.count('.png: ') == 3


def test_json_has_all_that_the_detector_gives_and_the_picture_what_was_asked_for(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shapes(tmp_path, 'images', 1)
    torch.manual_seed(0)
    detector = small_detector().eval()
    scores = detect(detector, Image.open(tmp_path / 'images/1.png'))['scores']
    middle, high = scores[len(scores) // 2].item(), scores[0].item()

    def found(own: float, asked: float) -> tuple[int, int]:
        """How many boxes the JSON has and how many the summary counts."""
        detector.roi_heads.score_thresh = own
        save_detector(detector, tmp_path / 'own.safetensors', CLASSES)
        assert main(['detect', str(tmp_path / 'images'), '--weights', str(tmp_path / 'own.safetensors'), '-o',
                     str(tmp_path / 'drawn'), '--score-thresh', str(asked), '--json', str(tmp_path / 'found.json'),
                     '--device', 'cpu']) == 0
        row, = json.loads((tmp_path / 'found.json').read_text())
        assert len(row['boxes']) == len(row['classes']) == len(row['scores'])
        summary = capsys.readouterr().out.splitlines()[0].partition('.png: ')[2]
        return len(row['boxes']), sum(map(int, re.findall(r'\d+', summary)))

    every, half = len(scores), int((scores >= middle).sum())
    assert found(0.0, middle) == (every, half) and 0 < half < every
    plain = (tmp_path / 'images/1.png').read_bytes(), (tmp_path / 'drawn/1.png').read_bytes()
    assert found(0.0, min(1, high + 0.01)) == (every, 0)
    with Image.open(tmp_path / 'drawn/1.png') as drawn, Image.open(tmp_path / 'images/1.png') as image:
        assert drawn.tobytes() == image.tobytes() and plain[0] != plain[1]
    assert found(0.999, 0.0) == (every, every)  # lower than its own


@pytest.mark.parametrize(('arguments', 'message'), [
    (['image.png', '--weights', '{weights}', '--json', 'image.png'], '--json image.png is one of the images or the'),
    (['scan', '--weights', '{weights}', '--json', 'link.json'], '--json link.json is one of the images or the weights'),
    (['image.png', '--weights', '{weights}', '--json', '{weights}'], ' is one of the images or the weights; name'),
    (['image.png', '--weights', '{weights}', '--json', 'output/detect/image.png'], 'JSON is not written as .png'),
    (['image.png', '--weights', '{weights}', '--json', 'photo.JPG'], 'JSON is not written as .JPG; name another file'),
    (['image.png', '--weights', '{weights}', '--json', 'a.safetensors'], 'JSON is not written as .safetensors'),
    (['image.png', '--weights', '{weights}', '--json', 'empty'], '--json empty is a folder; name a file'),
    (['image.png', '--weights', '{weights}', '--json', 'scan/found.json'], 'scan is no folder that can be written to'),
    (['image.png', '--weights', '{weights}', '--json', 'earlier.json', '-o', 'scan'], '--output: scan is no folder'),
    (['image.png', '--weights', '{weights}', '--json', 'earlier.json', '-o', 'scan/a/b'], '--output: '),
    (['nowhere.png', '--weights', '{weights}'], 'no image at nowhere.png'),
    (['empty', '--weights', '{weights}'], 'empty holds no images'),
    (['image.png', '--weights', 'nowhere.safetensors'], 'no weights at nowhere.safetensors'),
    (['image.png', '--weights', '{weights}', '--score-thresh', '1.5'], '--score-thresh must be within [0, 1], got 1.5'),
    (['image.png', '--weights', '{weights}', '--device', 'abacus'], 'abacus'),
])
def test_detect_says_in_one_line_what_is_wrong(
        arguments: list[str], message: str, detector_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path('empty').mkdir()
    Image.new('RGB', (64, 64)).save('image.png')
    Image.new('RGB', (64, 64)).save('scan', format='PNG')
    Path('link.json').symlink_to('scan')
    Path('earlier.json').write_text('of an earlier run')
    before = {path: path.read_bytes() for path in (*tmp_path.iterdir(), detector_file) if path.is_file()}
    assert main(['detect', *[argument.format(weights=detector_file) for argument in arguments]]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count('\n') == 1
    assert not Path('output').exists()
    assert {path: path.read_bytes() for path in (*tmp_path.iterdir(), detector_file) if path.is_file()} == before


def test_without_detectron2_the_package_imports_and_says_how_to_install_it(tmp_path: Path) -> None:
    """In an interpreter where importing detectron2 fails, as where it was never installed."""
    code = (
        'import sys\n'
        'sys.modules["detectron2"] = None\n'
        'import randwire_zoo.detection as detection\n'
        'assert "torch" not in sys.modules and "timm" not in sys.modules\n'
        'detection.fasterrcnn_randwire_fpn("randwire_ws_pico", 2)\n'
        'try:\n'
        '    detection.RandWireBackbone\n'
        'except ModuleNotFoundError as error:\n'
        '    print(error)\n')
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('detectron2 is not installed') and 'pip install --no-build-isolation' in done.stdout
    assert done.stdout.count('\n') == 1
