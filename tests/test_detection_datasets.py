"""Folders in COCO's layout become data sets of detectron2, and registering costs next to nothing."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shapes import CLASSES, write_shapes

pytest.importorskip('detectron2', reason='detectron2 is not installed (`make upstream` builds a wheel)')

from detectron2.data import DatasetCatalog, MetadataCatalog

from randwire_zoo.detection.datasets import register_coco_folders


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


def test_importing_detectron2_registers_everything_and_imports_neither_timm_nor_annotations(tmp_path: Path) -> None:
    write_shapes(tmp_path / 'cells', 'train', 1)
    (tmp_path / 'cells/annotations/instances_train.json').write_text('not read until it is used')
    code = (
        'import sys\n'
        'import detectron2.checkpoint, detectron2.data, detectron2.modeling\n'
        'assert "timm" not in sys.modules\n'
        'assert "build_randwire_ws_c109_fpn_backbone" in detectron2.modeling.BACKBONE_REGISTRY\n'
        'assert "cells_train" in detectron2.data.DatasetCatalog\n'
        'assert hasattr(detectron2.checkpoint.DetectionCheckpointer._load_model, "__wrapped__")\n')
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, env={**os.environ, 'DETECTRON2_DATASETS': str(tmp_path)},
        capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'randwire' not in done.stderr
