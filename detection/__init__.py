"""RandWire networks as detection backbones, for detectron2 and for torchvision.

    weights       backbone weights from wherever they lie, with names checked against the network
    detectron2/
      backbone    the zoo's one network class as a native detectron2 `Backbone`
      builders    `build_<name>_backbone`, `…_fpn_backbone` and `…_retinanet_fpn_backbone` in detectron2's registry
      checkpoints detectron2's `MODEL.WEIGHTS` takes all of those weights, for models with such a backbone
      datasets    folders of `DETECTRON2_DATASETS` in COCO's layout as data sets, where a config names them
    torchvision/
      detectors   torchvision's Faster R-CNN on a RandWire backbone, and how it takes over a detectron2 detector
      images      pictures as a detector wants them: RGB, 8 bits, upright
      detect      the command
    convert       the command, from the one to the other

Importing this package imports neither detectron2 nor torch.
"""
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .detectron2.backbone import RandWireBackbone
    from .detectron2.datasets import register_coco_folders
    from .torchvision.detectors import fasterrcnn_randwire_fpn, load_detector, save_detector

__all__ = ['RandWireBackbone', 'fasterrcnn_randwire_fpn', 'load_detector', 'register_coco_folders', 'save_detector']

DETECTRON2_MISSING = (
    'detectron2 is not installed and has no wheel on PyPI; after torch: pip install "setuptools<81" wheel ninja && '
    'pip install --no-build-isolation "git+https://github.com/facebookresearch/detectron2.git@'
    '02b5c4e295e990042a714712c21dc79b731e8833" (fasterrcnn_randwire_fpn needs torchvision only)')


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module = {'RandWireBackbone': 'detectron2.backbone', 'register_coco_folders': 'detectron2.datasets'}.get(
        name, 'torchvision.detectors')
    return getattr(import_module(f'.{module}', __name__), name)
