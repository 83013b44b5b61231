"""detectron2's builders of every registered name; importing this module puts them into its registry.

    MODEL.BACKBONE.NAME: build_randwire_ws_c109_backbone                 the network alone
                         build_randwire_ws_c109_fpn_backbone             FPN with P6 by pooling, for R-CNNs
                         build_randwire_ws_c109_retinanet_fpn_backbone   FPN with P6 and P7, for RetinaNet

They read the keys that detectron2's ResNet reads: MODEL.BACKBONE.FREEZE_AT, MODEL.RESNETS.NORM, OUT_FEATURES and
RES5_DILATION, MODEL.FPN.*. What DATASETS.TRAIN and TEST name and nobody has registered, they register if it is a folder
in COCO's layout. timm and the network are imported when one of them is called: importing them here would make `import
detectron2` seconds slower.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from detectron2.modeling.backbone.build import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7

from randwire_zoo.frozen import frozen_names

if TYPE_CHECKING:
    from detectron2.layers import ShapeSpec

    from .backbone import RandWireBackbone

__all__ = ['build_backbone', 'build_fpn_backbone', 'build_retinanet_fpn_backbone']


def build_backbone(name: str, cfg: Any, input_shape: ShapeSpec) -> RandWireBackbone:
    """Build the network of a name as a detectron2 config says.

    Raises:
        ValueError: naming the key's value and what is allowed.
    """
    from .backbone import RandWireBackbone
    from .datasets import register_and_compare

    head = {'GeneralizedRCNN': 'ROI_HEADS', 'RetinaNet': 'RETINANET'}.get(cfg.MODEL.META_ARCHITECTURE)
    register_and_compare(cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, f'MODEL.{head}.NUM_CLASSES',
                         None if head is None else cfg.MODEL[head].NUM_CLASSES)
    keys = cfg.MODEL.RESNETS
    if keys.RES5_DILATION not in (1, 2):
        raise ValueError(f'MODEL.RESNETS.RES5_DILATION must be 1 or 2, got {keys.RES5_DILATION}')
    backbone = RandWireBackbone(
        name, out_features=keys.OUT_FEATURES, norm=keys.NORM, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_chans=input_shape.channels, output_stride=32 // keys.RES5_DILATION)
    backbone.input_format = cfg.INPUT.FORMAT
    return backbone


def build_fpn_backbone(name: str, cfg: Any, input_shape: ShapeSpec) -> FPN:
    """The network with a feature pyramid and P6 by max-pooling, for Faster and Mask R-CNN."""
    return _add_fpn(build_backbone(name, cfg, input_shape), cfg, LastLevelMaxPool())


def build_retinanet_fpn_backbone(name: str, cfg: Any, input_shape: ShapeSpec) -> FPN:
    """The network with a feature pyramid and P6, P7 by convolutions of res5, for RetinaNet."""
    bottom_up = build_backbone(name, cfg, input_shape)
    res5 = bottom_up.output_shape().get('res5')
    if res5 is None:
        raise ValueError('RetinaNet computes P6 and P7 from res5, which MODEL.RESNETS.OUT_FEATURES lacks: '
                         f'{list(cfg.MODEL.RESNETS.OUT_FEATURES)}')
    return _add_fpn(bottom_up, cfg, LastLevelP6P7(res5.channels, cfg.MODEL.FPN.OUT_CHANNELS))


def _add_fpn(bottom_up: RandWireBackbone, cfg: Any, top_block: Any) -> FPN:
    keys = cfg.MODEL.FPN
    return FPN(
        bottom_up=bottom_up, in_features=keys.IN_FEATURES, out_channels=keys.OUT_CHANNELS, norm=keys.NORM,
        top_block=top_block, fuse_type=keys.FUSE_TYPE)


def _register(name: str, build: Callable[..., Any]) -> None:
    def builder(cfg: Any, input_shape: ShapeSpec) -> Any:
        return build(name, cfg, input_shape)

    builder.__name__ = builder.__qualname__ = build.__name__.replace('build_', f'build_{name}_')
    builder.__doc__ = (build.__doc__ or '').replace('a name', name).replace('The network', name)
    if builder.__name__ not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY.register(builder)


for _name in (*frozen_names(), 'randwire'):
    for _build in (build_backbone, build_fpn_backbone, build_retinanet_fpn_backbone):
        _register(_name, _build)
