"""detectron2 with this package installed is detectron2 as it was, until a config names a RandWire backbone; and folders
in COCO's layout are data sets where such a config, or somebody's call, asks for them."""
from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from shapes import CLASSES, write_shapes
from voc import annotation, lay, picture

pytest.importorskip('detectron2', reason='detectron2 is not installed (`make upstream` builds a wheel)')

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, load_voc_instances, register_coco_instances
from detectron2.modeling import build_backbone
from detectron2.structures import BoxMode
from detectron2.utils.logger import setup_logger

from randwire_zoo.detection import register_coco_folders
from randwire_zoo.detection.detectron2.datasets import load_dataset_dicts
from randwire_zoo.frozen import frozen_names
from randwire_zoo.training.boxes import write_voc

CONFIGS = Path(__file__).parent.parent / 'configs'

# Everything that can be seen of a library that is loaded: what each module and class of it holds, functions by their
# code, values by what they say, and what its registries, catalogs and path handlers list.
PORTRAIT = '''
import hashlib, json, sys, types
import detectron2, detectron2.checkpoint, detectron2.data, detectron2.data.datasets, detectron2.engine
import detectron2.evaluation, detectron2.modeling, detectron2.solver, detectron2.utils.file_io
from detectron2.config import get_cfg
from detectron2.utils.file_io import PathManager
from fvcore.common.registry import Registry

OURS = ('detectron2', 'fvcore', 'iopath')

def look(value, depth=0):
    if isinstance(value, (staticmethod, classmethod)):
        return [type(value).__name__, look(value.__func__, depth)]
    if isinstance(value, property):
        return ['property', *(look(part, depth) for part in (value.fget, value.fset, value.fdel))]
    if isinstance(value, types.FunctionType):
        code = value.__code__
        said = repr((code.co_filename, code.co_firstlineno, code.co_code, code.co_names, value.__defaults__ is None))
        return [value.__module__, value.__qualname__, hashlib.sha256(said.encode()).hexdigest(), sorted(vars(value))]
    if isinstance(value, type):
        if depth or not value.__module__.startswith(OURS):
            return [value.__module__, value.__qualname__]
        return {name: look(part, 1) for name, part in sorted(vars(value).items())}
    if isinstance(value, Registry):
        return {name: look(entry, 1) for name, entry in value}
    if isinstance(value, (bool, int, float, str, bytes, type(None))):
        return repr(value)
    if isinstance(value, (list, tuple)) and depth < 4:
        return [type(value).__name__, *(look(part, depth + 1) for part in value)]
    if isinstance(value, dict) and depth < 4:
        return {repr(key): look(part, depth + 1) for key, part in value.items()}
    return [type(value).__module__, type(value).__qualname__]

seen = {}
for name, module in sorted(sys.modules.items()):
    if name.partition('.')[0] in OURS and module is not None:
        for attribute, value in sorted(vars(module).items()):
            if attribute not in ('__builtins__', '__cached__') and not isinstance(value, types.ModuleType):
                seen[f'{name}.{attribute}'] = look(value)
from detectron2.data import DatasetCatalog, MetadataCatalog
seen['data sets'] = DatasetCatalog.list()
seen['metadata'] = {name: sorted(vars(MetadataCatalog.get(name)).items()) for name in MetadataCatalog.list()}
seen['paths'] = [(prefix, type(handler).__qualname__) for prefix, handler in PathManager._path_handlers.items()]
seen['config'] = get_cfg().dump()
seen['hooks'] = [type(finder).__qualname__ for finder in sys.meta_path]
timm = 'timm' in sys.modules
ours = sorted(name for name in sys.modules if name.startswith('randwire_zoo'))
DatasetCatalog.register('balloon_train', lambda: [])  # a user's own, whatever folders there are
for name in [name for name in sys.modules if name.partition('.')[0] == 'detectron2']:
    del sys.modules[name]
from detectron2.modeling import BACKBONE_REGISTRY
again = sorted(name for name, _ in BACKBONE_REGISTRY)
print(json.dumps({'seen': seen, 'timm': timm, 'ours': ours, 'again': again}, default=str, sort_keys=True))
'''


def portrait(folder: Path, **variables: str) -> dict[str, Any]:
    env = {name: value for name, value in os.environ.items() if name != 'TORCH_DEVICE_BACKEND_AUTOLOAD'}
    done = subprocess.run(
        [sys.executable, '-c', PORTRAIT], cwd=folder, env={**env, 'DETECTRON2_DATASETS': str(folder), **variables},
        capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and 'randwire' not in done.stderr, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_detectron2_without_our_backbone_is_detectron2_as_it_was(tmp_path: Path) -> None:
    write_shapes(tmp_path / 'balloon', 'train', 1)
    plain, installed = portrait(tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD='0'), portrait(tmp_path)
    assert plain['ours'] == [] and not installed['timm']
    assert 'randwire_zoo.detection.detectron2.builders' in installed['ours']
    before, after = plain['seen'], installed['seen']
    assert len(before) > 2000 and '_torch_load' in before['detectron2.checkpoint.DetectionCheckpointer']
    assert after.pop('hooks') == ['_Finder', *before.pop('hooks')]
    # The names that a config can have as MODEL.BACKBONE.NAME, in detectron2's own registry; it is all there is.
    builders = {f'build_{name}_{kind}backbone' for name in (*frozen_names(), 'randwire')
                for kind in ('', 'fpn_', 'retinanet_fpn_')}
    registries = [name for name in before if name.endswith('.BACKBONE_REGISTRY')]
    assert registries
    for name in registries:
        assert after[name].keys() - before[name].keys() == builders
        after[name] = {key: value for key, value in after[name].items() if key not in builders}
    assert builders <= set(installed['again']), 'not registered with a detectron2 that was purged and imported again'
    assert [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)] == []


def test_every_coco_folder_with_its_images_is_registered_once(tmp_path: Path) -> None:
    write_shapes(tmp_path / 'cells', 'train', 3)
    write_shapes(tmp_path / 'cells', 'val', 2)
    (tmp_path / 'cells/annotations/instances_test.json').write_text('{}')  # its images are not there
    (tmp_path / 'other/annotations').mkdir(parents=True)
    assert register_coco_folders(tmp_path) == ['cells_train', 'cells_val']
    assert register_coco_folders(tmp_path) == []
    rows = DatasetCatalog.get('cells_train')
    assert len(rows) == 3 and all(len(row['annotations']) == 2 for row in rows)
    assert MetadataCatalog.get('cells_train').thing_classes == list(CLASSES)
    assert MetadataCatalog.get('cells_val').evaluator_type == 'coco'
    assert register_coco_folders(tmp_path / 'nowhere') == []
    write_shapes(tmp_path / 'a', 'b_c', 1)
    write_shapes(tmp_path / 'a_b', 'c', 1)
    with pytest.raises(ValueError, match=r'two folders are the data set a_b_c: \S+ and \S+'):
        register_coco_folders(tmp_path)
    assert 'a_b_c' not in DatasetCatalog


def test_boxes_of_pascal_voc_are_where_detectron2_reads_them_itself(tmp_path: Path) -> None:
    source = lay(tmp_path / 'VOC', {
        **{f'JPEGImages/{number}.jpg': picture(shade=number) for number in range(5)},
        **{f'Annotations/{number}.xml': annotation(('cat', 1, 1, 10 + number, 20), ('dog', 11, 6, 40, 30))
           for number in range(5)},
        'ImageSets/Main/train.txt': b'0\n2\n', 'ImageSets/Main/val.txt': b'1\n4\n'})
    write_voc(source, tmp_path / 'here')
    for split in ('train', 'val'):
        theirs = load_voc_instances(str(source), split, ['cat', 'dog'])
        ours = load_coco_json(tmp_path / f'here/annotations/instances_{split}.json', str(tmp_path / 'here' / split),
                              f'{tmp_path.name}_{split}')
        assert MetadataCatalog.get(f'{tmp_path.name}_{split}').thing_classes == ['cat', 'dog']
        assert len(ours) == len(theirs) == 2
        for one, other in zip(ours, theirs, strict=True):
            assert (one['width'], one['height']) == (other['width'], other['height']) == (40, 30)
            assert Path(one['file_name']).read_bytes() == Path(other['file_name']).read_bytes()
            boxes = [(box['category_id'], *BoxMode.convert(box['bbox'], box['bbox_mode'], BoxMode.XYXY_ABS))
                     for box in one['annotations']]
            assert boxes == [(box['category_id'], *box['bbox']) for box in other['annotations']]
            assert len(boxes) == 2


def test_a_config_with_our_backbone_registers_what_it_names_and_nothing_else(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in ('seeds', 'leaves', 'roots', 'stems'):
        write_shapes(tmp_path / name, 'train', 1)
    monkeypatch.setenv('DETECTRON2_DATASETS', str(tmp_path))
    DatasetCatalog.register('roots_train', lambda: [{'mine': True}])
    cfg = get_cfg()
    cfg.merge_from_list([
        'MODEL.DEVICE', 'cpu', 'DATASETS.TRAIN', ('seeds_train', 'roots_train', 'unheard_of'), 'DATASETS.TEST',
        ('stems_train', 'coco_2017_val'), 'MODEL.RESNETS.DEPTH', 18, 'MODEL.RESNETS.RES2_OUT_CHANNELS', 64])
    before = set(DatasetCatalog)
    build_backbone(cfg)  # detectron2's ResNet
    assert set(DatasetCatalog) == before
    cfg.MODEL.BACKBONE.NAME = 'build_randwire_ws_pico_backbone'
    with caplog.at_level(logging.INFO, 'detectron2.randwire_zoo'):
        build_backbone(cfg)
        build_backbone(cfg)
    assert set(DatasetCatalog) - before == {'seeds_train', 'stems_train'}
    assert caplog.text.count('the data set seeds_train is ') == 1
    assert [record.getMessage() for record in caplog.records if 'nobody has' in record.getMessage()] == [
        f'nobody has registered the data set unheard_of, and DETECTRON2_DATASETS, {tmp_path}, lacks '
        'unheard/annotations/instances_of.json or unheard/of']
    assert caplog.text.count('MODEL.ROI_HEADS.NUM_CLASSES is 80, and ') == 2  # of seeds and stems, and only once
    assert len(DatasetCatalog.get('seeds_train')) == 1 and DatasetCatalog.get('roots_train') == [{'mine': True}]
    DatasetCatalog.register('leaves_train', lambda: [])
    # A LazyConfig names its data sets where no backbone sees them.
    write_shapes(tmp_path / 'bark', 'train', 2)
    assert len(load_dataset_dicts('bark_train')) == 2 and len(load_dataset_dicts(['bark_train', 'seeds_train'])) == 3
    with pytest.raises(KeyError, match="'unheard_of' is not registered"):
        load_dataset_dicts('unheard_of')


def test_classes_of_data_sets_that_are_registered_already_are_compared_too(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As they are with DETECTRON2_ENV_MODULE, or in a program of one's own."""
    train, val = (write_shapes(tmp_path / 'moss', split, 1) for split in ('train', 'val'))
    listed = json.loads(val.read_text())
    listed['categories'] = [{'id': number, 'name': name} for number, name in enumerate(CLASSES[::-1], 1)]
    val.write_text(json.dumps(listed))
    assert register_coco_folders(tmp_path) == ['moss_train', 'moss_val']
    other = write_shapes(tmp_path / 'lichen', 'train', 1)
    register_coco_instances('lichen', {}, str(other), str(tmp_path / 'lichen/train'))  # somebody's own, however it lies
    cfg = get_cfg()
    cfg.merge_from_list([
        'MODEL.DEVICE', 'cpu', 'MODEL.BACKBONE.NAME', 'build_randwire_ws_pico_backbone', 'DATASETS.TRAIN',
        ('lichen', 'moss_train'), 'DATASETS.TEST', ('moss_val', 'coco_2017_val')])
    order = f"class 0 is 'disc' in {train} and 'square' in {val}: the AP would be of another class"
    for num_classes in (80, 80, 2):
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
        build_backbone(cfg)
        assert caplog.text.count(order) == 1
        assert all(caplog.text.count(f'NUM_CLASSES is 80, and {listing} lists 2 classes') == 1
                   for listing in (train, val))
    assert 'NUM_CLASSES is 2' not in caplog.text and str(other) not in caplog.text


def test_the_classes_of_a_lazyconfigs_folders_are_compared_with_its_model_and_with_each_other(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """When lazyconfig_train_net.py builds its loaders: before a training, at its evaluations, with --eval-only."""
    monkeypatch.setenv('DETECTRON2_DATASETS', str(tmp_path))

    def said(folder: str, *splits: str, **numbers: int) -> list[str]:
        caplog.clear()
        cfg = LazyConfig.apply_overrides(LazyConfig.load(str(CONFIGS / 'faster_rcnn_randwire.py')), [
            f'dataloader.train.dataset.names={folder}_train', f'dataloader.test.dataset.names=[{folder}_val]',
            'dataloader.train.total_batch_size=1', 'dataloader.train.num_workers=0', 'dataloader.test.num_workers=0',
            *(f'model.roi_heads.{key}={number}' for key, number in numbers.items())])
        for split in splits:
            next(iter(instantiate(cfg.dataloader[split])))
        return [record.getMessage() for record in caplog.records
                if record.name == 'detectron2.randwire_zoo' and record.levelno >= logging.WARNING]

    for folder in ('algae', 'dulse', 'kelp'):
        train, val = (write_shapes(tmp_path / folder, split, 1) for split in ('train', 'val'))
    listed = json.loads(val.read_text())
    listed['categories'] = [{'id': number, 'name': name} for number, name in enumerate(CLASSES[::-1], 1)]
    val.write_text(json.dumps(listed))
    assert said('algae', 'train', 'test', 'test', num_classes=2) == []
    assert said('dulse', 'train', 'test', 'test') == [
        f'num_classes is 80, and {tmp_path}/dulse/annotations/instances_{split}.json lists 2 classes'
        for split in ('train', 'val')]
    assert said('kelp', 'train', num_classes=2) == []
    line, = said('kelp', 'test', num_classes=2)
    assert line.startswith(f"class 0 is 'disc' in {train} and 'square' in {val}: ")


def test_what_is_said_while_a_backbone_is_built_and_loaded_is_in_detectron2s_log(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shapes(tmp_path / 'fern', 'train', 1)
    monkeypatch.setenv('DETECTRON2_DATASETS', str(tmp_path))
    theirs = logging.getLogger('detectron2')
    before = {'level': theirs.level, 'propagate': theirs.propagate, 'handlers': list(theirs.handlers)}
    try:
        setup_logger(str(tmp_path / 'output'), configure_stdout=False)
        cfg = get_cfg()
        cfg.merge_from_list([
            'MODEL.DEVICE', 'cpu', 'MODEL.BACKBONE.NAME', 'build_randwire_ws_pico_backbone', 'DATASETS.TRAIN',
            ('fern_train',), 'DATASETS.TEST', ()])
        DetectionCheckpointer(build_backbone(cfg)).load('')
    finally:
        vars(theirs).update(before)
        theirs.setLevel(before['level'])  # with what loggers below it have remembered
    log = (tmp_path / 'output/log.txt').read_text()
    for said in ('the data set fern_train is ', 'WARNING: MODEL.ROI_HEADS.NUM_CLASSES is 80, and ',
                 'WARNING: MODEL.WEIGHTS is empty'):
        assert log.count(said) == 1
