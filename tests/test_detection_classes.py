"""The names of a detector's classes, where detectron2's data sets have them; and `convert` without detectron2."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from randwire_zoo.cli import main
from randwire_zoo.detection import load_detector
from randwire_zoo.detection.convert import FIXED, _read_config
from randwire_zoo.detection.detectron2.datasets import compare_classes, find_listing, read_classes
from randwire_zoo.detection.torchvision.detectors import build_detector

VALUES: dict[str, Any] = {
    **{key: values[0] for key, values in FIXED.items()},
    'MODEL.BACKBONE.NAME': 'build_randwire_ws_pico_fpn_backbone', 'MODEL.PIXEL_MEAN': [127.5] * 3,
    'MODEL.PIXEL_STD': [127.5] * 3, 'MODEL.FPN.OUT_CHANNELS': 8,
    'MODEL.ANCHOR_GENERATOR.SIZES': [[8], [16], [32], [64], [128]],
    'MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS': [[0.5, 1.0, 2.0]], 'MODEL.RPN.PRE_NMS_TOPK_TEST': 100,
    'MODEL.RPN.POST_NMS_TOPK_TEST': 50, 'MODEL.RPN.NMS_THRESH': 0.7, 'MODEL.ROI_HEADS.NUM_CLASSES': 3,
    'MODEL.ROI_HEADS.SCORE_THRESH_TEST': 0.05, 'MODEL.ROI_HEADS.NMS_THRESH_TEST': 0.5,
    'MODEL.ROI_BOX_HEAD.FC_DIM': 16, 'MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO': 2,
    'MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS': [10.0, 10.0, 5.0, 5.0], 'INPUT.MIN_SIZE_TEST': 64,
    'INPUT.MAX_SIZE_TEST': 96, 'TEST.DETECTIONS_PER_IMAGE': 100}


def write_config(folder: Path, train: list[str], num_classes: int = 3) -> None:
    """A config.yaml as detectron2 writes it, with what `convert` reads."""
    tree: dict[str, Any] = {'DATASETS': {'TRAIN': train}}
    for key, value in {**VALUES, 'MODEL.ROI_HEADS.NUM_CLASSES': num_classes}.items():
        node = tree
        *parents, last = key.split('.')
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    (folder / 'config.yaml').write_text(yaml.safe_dump(tree))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output folder of a training of three classes."""
    write_config(tmp_path, ['cells_train'])
    state = build_detector(_read_config(tmp_path / 'config.yaml')).state_dict()
    for name in ('weight', 'bias'):  # detectron2's background is the last class, and has no box
        score, box = (f'roi_heads.box_predictor.{kind}.{name}' for kind in ('cls_score', 'bbox_pred'))
        state[score], state[box] = state[score].roll(-1, 0), state[box][4:].clone()
    torch.save({'model': state}, tmp_path / 'model_final.pth')
    monkeypatch.setenv('DETECTRON2_DATASETS', str(tmp_path))
    return tmp_path


def list_classes(path: Path, *names: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = [{'id': number, 'name': name} for number, name in enumerate(names, 1)]
    path.write_text(json.dumps({'categories': categories[::-1]}))
    return path


def convert(folder: Path, *options: str) -> int:
    return main(['convert', str(folder / 'model_final.pth'), str(folder / 'detector.safetensors'), '--config',
                 str(folder / 'config.yaml'), *options])


def test_names_are_those_given_or_of_the_training_and_convert_says_whose(
        folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def converted(*options: str) -> tuple[list[str], str]:
        assert convert(folder, *options) == 0
        names = load_detector(folder / 'detector.safetensors')[1]
        return names[1:], capsys.readouterr().out.splitlines()[-1]

    assert converted() == (
        ['class 1', 'class 2', 'class 3'], 'names of the classes: none, as --classes is not given and DATASETS.TRAIN, '
        "['cells_train'], is not one data set in DETECTRON2_DATASETS")
    assert converted('--classes', 'red cell, white cell ,plate') == (
        ['red cell', 'white cell', 'plate'], 'names of the classes: those of --classes')
    (folder / 'cells/train').mkdir(parents=True)
    listing = list_classes(folder / 'cells/annotations/instances_train.json', 'a', 'b', 'c')
    assert converted() == (['a', 'b', 'c'], f'names of the classes: those of {listing}')
    other = list_classes(folder / 'other.json', 'x', 'y', 'z')
    assert converted('--classes', str(other)) == (['x', 'y', 'z'], f'names of the classes: those of {other}')


@pytest.mark.parametrize(('options', 'listed', 'message'), [
    (['--classes', 'a, ,c'], 'abc', "--classes a, ,c: the names must not be empty, got ['a', '', 'c']"),
    (['--classes', ''], 'abc', "--classes : the names must not be empty, got ['']"),
    (['--classes', 'c, b, a'], 'abc', 'which has them in the order a,b,c'),
    (['--classes', 'a,b'], 'abc', '3 class names are needed, got 2'),
    ([], 'ab', 'trained with 3 classes, and {listing} has 2: name them with --classes'),
    ([], [1, 'b', 'c'], '{listing} lists no categories as COCO does'),
])
def test_names_that_cannot_be_right_are_one_line_and_nothing_is_written(
        options: list[str], listed: Any, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / 'cells/train').mkdir(parents=True)
    listing = list_classes(folder / 'cells/annotations/instances_train.json', *listed)
    assert convert(folder, *options) == 2
    said = capsys.readouterr().err
    assert message.format(listing=listing) in said and said.count('\n') == 1
    assert not (folder / 'detector.safetensors').exists()


def test_a_number_of_classes_that_the_images_do_not_have_can_be_named(folder: Path) -> None:
    (folder / 'cells/train').mkdir(parents=True)
    list_classes(folder / 'cells/annotations/instances_train.json', 'a', 'b')
    assert convert(folder, '--classes', 'x,y,z') == 0


@pytest.mark.parametrize(('name', 'file'), [
    ('coco_2017_train', 'instances_train2017.json'), ('coco_2014_val', 'instances_val2014.json'),
    ('coco_2014_valminusminival', 'instances_valminusminival2014.json'),
    ('coco_2017_val_100', 'instances_val2017_100.json')])
def test_cocos_own_names_are_found_where_detectron2_has_them(
        name: str, file: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_listing(name) is None
    listing = list_classes(folder / 'coco/annotations' / file, 'person', 'bicycle', 'car')
    assert find_listing(name) == listing and read_classes(listing) == ['person', 'bicycle', 'car']
    write_config(folder, [name])
    assert convert(folder) == 0
    assert '3 classes (person, bicycle, car), images of ' in capsys.readouterr().out
    assert find_listing('coco_2017_minival_100') is None


def test_classes_that_are_not_those_of_the_config_or_of_the_training_are_named(tmp_path: Path) -> None:
    cells, same, fewer, swapped, renamed = (
        list_classes(tmp_path / f'{number}.json', *classes)
        for number, classes in enumerate(('abc', 'abc', 'ab', 'acb', 'abx')))
    broken, key = tmp_path / 'broken.json', 'MODEL.RETINANET.NUM_CLASSES'
    broken.write_text('{')
    assert compare_classes([broken, cells, fewer], [cells, same, broken, tmp_path / 'nowhere.json'], key, 3) == [
        f'{key} is 3, and {fewer} lists 2 classes']
    number, *others = compare_classes([broken, cells, fewer], [swapped, same, fewer, renamed, broken], key, 3)
    assert number == f'{key} is 3, and {fewer} lists 2 classes'
    assert [line.partition(':')[0] for line in others] == [
        f"class 1 is 'b' in {cells} and 'c' in {swapped}", f"class 2 is 'c' in {cells} and 'x' in {renamed}"]
    assert compare_classes([], [cells, swapped], key, 3) == compare_classes([broken], [cells, swapped], key, 3) == []
