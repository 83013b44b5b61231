"""`randwire-zoo convert`: backbone weights as a detectron2 file, and detectron2's detectors as torchvision's."""
from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from randwire_zoo.files import atomic_path, read_yaml
from randwire_zoo.models import network_arguments
from randwire_zoo.network import RandWire
from randwire_zoo.weights.errors import loading
from randwire_zoo.weights.files import read_metadata

from .detectron2.datasets import find_listing, read_classes
from .torchvision.detectors import DetectorConfig, build_detector, save_detector
from .weights import fit_weights, locate_weights, read_state

__all__ = ['convert_backbone', 'convert_detector', 'main']

# Every key of detectron2's MODEL is in one of the three tables below, or it is refused: a config with anything else is
# another function than torchvision's Faster R-CNN computes.

#: Keys that decide what a detector computes, and the values that torchvision's has.
FIXED: dict[str, tuple[Any, ...]] = {
    'VERSION': (2,), 'INPUT.FORMAT': ('RGB',),
    'MODEL.META_ARCHITECTURE': ('GeneralizedRCNN',), 'MODEL.LOAD_PROPOSALS': (False,), 'MODEL.MASK_ON': (False,),
    'MODEL.KEYPOINT_ON': (False,),
    'MODEL.RESNETS.NORM': ('FrozenBN', 'BN', 'SyncBN'), 'MODEL.RESNETS.RES5_DILATION': (1,),
    'MODEL.RESNETS.OUT_FEATURES': (['res2', 'res3', 'res4', 'res5'],),
    'MODEL.FPN.IN_FEATURES': (['res2', 'res3', 'res4', 'res5'],), 'MODEL.FPN.FUSE_TYPE': ('sum',),
    'MODEL.FPN.NORM': ('', 'BN', 'SyncBN', 'FrozenBN'),
    'MODEL.ANCHOR_GENERATOR.NAME': ('DefaultAnchorGenerator',), 'MODEL.ANCHOR_GENERATOR.OFFSET': (0.0,),
    'MODEL.PROPOSAL_GENERATOR.NAME': ('RPN',), 'MODEL.PROPOSAL_GENERATOR.MIN_SIZE': (0,),
    'MODEL.RPN.HEAD_NAME': ('StandardRPNHead',), 'MODEL.RPN.IN_FEATURES': (['p2', 'p3', 'p4', 'p5', 'p6'],),
    'MODEL.RPN.CONV_DIMS': ([-1],), 'MODEL.RPN.BBOX_REG_WEIGHTS': ([1.0, 1.0, 1.0, 1.0],),
    'MODEL.ROI_HEADS.NAME': ('StandardROIHeads',), 'MODEL.ROI_HEADS.IN_FEATURES': (['p2', 'p3', 'p4', 'p5'],),
    'MODEL.ROI_BOX_HEAD.NAME': ('FastRCNNConvFCHead',), 'MODEL.ROI_BOX_HEAD.NUM_CONV': (0,),
    'MODEL.ROI_BOX_HEAD.NUM_FC': (2,), 'MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION': (7,),
    'MODEL.ROI_BOX_HEAD.POOLER_TYPE': ('ROIAlign',), 'MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG': (False,),
    'MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE': (False,),
}
#: Keys that a detector's file takes over, and what their values must be.
TAKEN: dict[str, str] = {
    'MODEL.BACKBONE.NAME': 'text', 'MODEL.PIXEL_MEAN': '3 numbers', 'MODEL.PIXEL_STD': '3 numbers',
    'MODEL.FPN.OUT_CHANNELS': 'a positive integer', 'MODEL.ANCHOR_GENERATOR.SIZES': 'lists of numbers',
    'MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS': 'lists of numbers',
    'MODEL.RPN.PRE_NMS_TOPK_TEST': 'a positive integer', 'MODEL.RPN.POST_NMS_TOPK_TEST': 'a positive integer',
    'MODEL.RPN.NMS_THRESH': 'a number', 'MODEL.ROI_HEADS.NUM_CLASSES': 'a positive integer',
    'MODEL.ROI_HEADS.SCORE_THRESH_TEST': 'a number', 'MODEL.ROI_HEADS.NMS_THRESH_TEST': 'a number',
    'MODEL.ROI_BOX_HEAD.FC_DIM': 'a positive integer', 'MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO': 'an integer',
    'MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS': '4 numbers',
    'INPUT.MIN_SIZE_TEST': 'a positive integer', 'INPUT.MAX_SIZE_TEST': 'a positive integer',
    'TEST.DETECTIONS_PER_IMAGE': 'a positive integer',
}
#: Keys, or all below a key, that do not change what a trained detector of the kind above computes.
FREE = (
    # How it was trained, and where.
    'MODEL.DEVICE', 'MODEL.WEIGHTS', 'MODEL.BACKBONE.FREEZE_AT',
    *(f'MODEL.RPN.{key}' for key in (
        'BOUNDARY_THRESH', 'IOU_THRESHOLDS', 'IOU_LABELS', 'BATCH_SIZE_PER_IMAGE', 'POSITIVE_FRACTION',
        'BBOX_REG_LOSS_TYPE', 'BBOX_REG_LOSS_WEIGHT', 'SMOOTH_L1_BETA', 'LOSS_WEIGHT', 'PRE_NMS_TOPK_TRAIN',
        'POST_NMS_TOPK_TRAIN')),
    *(f'MODEL.ROI_HEADS.{key}' for key in (
        'IOU_THRESHOLDS', 'IOU_LABELS', 'BATCH_SIZE_PER_IMAGE', 'POSITIVE_FRACTION', 'PROPOSAL_APPEND_GT')),
    *(f'MODEL.ROI_BOX_HEAD.{key}' for key in (
        'BBOX_REG_LOSS_TYPE', 'BBOX_REG_LOSS_WEIGHT', 'SMOOTH_L1_BETA', 'TRAIN_ON_PRED_BOXES', 'USE_FED_LOSS',
        'FED_LOSS_FREQ_WEIGHT_POWER', 'FED_LOSS_NUM_CLASSES')),
    # Of parts that it does not have: convolutions in the box head, turned anchors, other heads and architectures.
    'MODEL.ROI_BOX_HEAD.CONV_DIM', 'MODEL.ROI_BOX_HEAD.NORM', 'MODEL.ANCHOR_GENERATOR.ANGLES',
    'MODEL.ROI_BOX_CASCADE_HEAD', 'MODEL.ROI_MASK_HEAD', 'MODEL.ROI_KEYPOINT_HEAD', 'MODEL.SEM_SEG_HEAD',
    'MODEL.PANOPTIC_FPN', 'MODEL.RETINANET',
    # Of ResNets, and read by no RandWire backbone.
    *(f'MODEL.RESNETS.{key}' for key in (
        'DEPTH', 'NUM_GROUPS', 'WIDTH_PER_GROUP', 'STRIDE_IN_1X1', 'RES2_OUT_CHANNELS', 'STEM_OUT_CHANNELS',
        'DEFORM_ON_PER_STAGE', 'DEFORM_MODULATED', 'DEFORM_NUM_GROUPS')),
)
#: Newer than detectron2 0.6, whose configs lack them and which computes what their allowed value says.
NEWER = ('MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE',)


def convert_backbone(source: str, output: str | Path, name: str | None = None, use_ema: bool = True) -> str:
    """Write backbone weights as a file that detectron2 reads without randwire-zoo's help, and return the name.

    Args:
        source: See `weights`.
        output: Where to; must end in `.pth`.
        name: The network's registered name, if the weights do not say it.
        use_ema: Take the moving average where there is one.

    Raises:
        FileNotFoundError: if the source is not there.
        ValueError: if output ends otherwise, the name is unknown, or the weights do not fit.
    """
    output = _suffixed(output, '.pth')
    state = read_state(source, use_ema)
    name = name or _recorded_name(locate_weights(source))
    with torch.device('meta'):
        network = RandWire(**network_arguments(name, num_classes=0))
    network.prune_intermediate_layers(list(range(5)))
    weights = fit_weights(state, network, name, source)
    with atomic_path(output) as temporary:
        torch.save({'model': weights, '__author__': 'randwire-zoo', 'matching_heuristics': True}, temporary)
    return name


def convert_detector(
        source: str, config_file: str | Path, output: str | Path, classes: list[str] | None = None, **metadata: Any,
) -> FasterRCNN:
    """Turn a Faster R-CNN that detectron2 has trained into a file of torchvision's, which computes the same.

    Args:
        source: detectron2's checkpoint, such as `model_final.pth`.
        config_file: The whole config, which detectron2 writes as `config.yaml` beside its checkpoints.
        output: Where to; must end in `.safetensors`.
        classes: Their names, in detectron2's order.
        metadata: See `save_detector`.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: naming what torchvision's detector does not have, or the tensors that do not fit.
    """
    output = _suffixed(output, '.safetensors')
    config = _read_config(Path(config_file))
    detector = build_detector(config)
    wanted = detector.state_dict()
    trained = read_state(source)
    for key, values in (('pixel_mean', config.image_mean), ('pixel_std', config.image_std)):
        own = trained.pop(key, None)  # older versions of detectron2 saved them, and then they count
        if own is not None and not torch.allclose(own.flatten().double() / 255, torch.tensor(values).double(),
                                                  rtol=1e-4, atol=1e-6):
            raise ValueError(f'{source} has {key} {own.flatten().tolist()}, which {config_file} does not say')
    state = {name: tensor for name, tensor in _rename(trained).items()
             if name in wanted or not name.endswith('.num_batches_tracked')}
    # The count of minibatches is missing after frozen BN, and nothing reads it.
    state.update({name: tensor for name, tensor in wanted.items()
                  if name.endswith('.num_batches_tracked') and name not in state})
    with loading(source):
        detector.load_state_dict(state)
    save_detector(detector, output, classes, **metadata)
    return detector.eval()


def _suffixed(path: str | Path, suffix: str) -> Path:
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f'{path}: what this writes ends in {suffix}')
    return path


def _recorded_name(path: Path) -> str:
    if path.suffix == '.safetensors':
        name = read_metadata(path).get('architecture')
    else:
        from timm.utils.checkpoint_saver import load_checkpoint_metadata

        with loading(path):
            name = load_checkpoint_metadata(str(path)).get('arch')
    if not name:
        raise ValueError(f'{path} does not say which network it is for; name it with --model')
    return name


def _read_config(path: Path) -> DetectorConfig:
    """What a detectron2 config says, once it is certain that torchvision's detector can do all of it."""
    config = dict(_leaves(_read_tree(path)))
    for key in (*FIXED, *TAKEN):
        if key not in config and key not in NEWER:
            raise ValueError(f'{path} lacks {key}; it must be the whole config, which detectron2 writes as '
                             'config.yaml beside its checkpoints')
    for key, value in config.items():
        if key in FIXED:
            if value not in FIXED[key]:
                raise ValueError(f"{path}: torchvision's detector has {key} {' or '.join(map(repr, FIXED[key]))}, "
                                 f'got {value!r}')
        elif key in TAKEN:
            if not _is(value, TAKEN[key]):
                raise ValueError(f'{path}: {key} must be {TAKEN[key]}, got {value!r}')
        elif key.startswith('MODEL.') and not any(f'{key}.'.startswith(f'{free}.') for free in FREE):
            raise ValueError(f"{path}: torchvision's detector has no {key}, got {value!r}")
    builder = re.fullmatch(r'build_(randwire\w*?)_fpn_backbone', config['MODEL.BACKBONE.NAME'])
    if not builder:
        raise ValueError(f'{path}: MODEL.BACKBONE.NAME must be build_<name>_fpn_backbone, '
                         f'got {config["MODEL.BACKBONE.NAME"]!r}')
    sizes, (ratios, *others) = config['MODEL.ANCHOR_GENERATOR.SIZES'], config['MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS']
    if len(sizes) != 5 or any(len(level) != 1 for level in sizes) or any(other != ratios for other in others):
        raise ValueError(f'{path}: MODEL.ANCHOR_GENERATOR must have five levels of one size each and the same ratios')
    return DetectorConfig(
        builder[1], config['MODEL.ROI_HEADS.NUM_CLASSES'] + 1, fpn_channels=config['MODEL.FPN.OUT_CHANNELS'],
        fpn_norm=config['MODEL.FPN.NORM'] != '', box_features=config['MODEL.ROI_BOX_HEAD.FC_DIM'],
        anchor_sizes=tuple(level[0] for level in sizes), anchor_ratios=tuple(ratios), round_anchors=False,
        min_size=config['INPUT.MIN_SIZE_TEST'], max_size=config['INPUT.MAX_SIZE_TEST'],
        image_mean=tuple(value / 255 for value in config['MODEL.PIXEL_MEAN']),
        image_std=tuple(value / 255 for value in config['MODEL.PIXEL_STD']),
        rpn_pre_nms_top_n=config['MODEL.RPN.PRE_NMS_TOPK_TEST'],
        rpn_post_nms_top_n=config['MODEL.RPN.POST_NMS_TOPK_TEST'], rpn_nms_thresh=config['MODEL.RPN.NMS_THRESH'],
        box_score_thresh=config['MODEL.ROI_HEADS.SCORE_THRESH_TEST'],
        box_nms_thresh=config['MODEL.ROI_HEADS.NMS_THRESH_TEST'],
        box_detections_per_img=config['TEST.DETECTIONS_PER_IMAGE'],
        sampling_ratio=config['MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO'],
        bbox_reg_weights=tuple(config['MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS']))


def _read_tree(path: Path) -> Any:
    # Before it is parsed, as a LazyConfig may have Python objects in it, which no safe reader takes.
    sections = set(re.findall(r'^(\w+):', path.read_text(encoding='utf-8', errors='replace'), re.MULTILINE))
    if sections & {'model', 'dataloader'} and 'MODEL' not in sections:
        raise ValueError(f'{path} is of a LazyConfig, which convert does not read; it takes the config.yaml of a '
                         'training with a yaml config')
    return read_yaml(path)


def _leaves(tree: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """The values of a config by their keys, such as `MODEL.RPN.NMS_THRESH`."""
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, dict):
            yield from _leaves(value, f'{path}{name}.')
        else:
            yield f'{path}{name}', value


def _is(value: Any, kind: str) -> bool:
    """Whether a config's value is what `TAKEN` says."""
    def number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    def numbers(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(map(number, value))

    if kind == 'text':
        return isinstance(value, str)
    if kind.endswith('integer'):
        return number(value) and isinstance(value, int) and value >= (1 if 'positive' in kind else 0)
    if kind == 'lists of numbers':
        return isinstance(value, list) and bool(value) and all(map(numbers, value))
    if kind.endswith(' numbers'):
        return numbers(value) and len(value) == int(kind[0])
    return number(value)


def _rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """detectron2's names to torchvision's; its background is the last class, torchvision's is the first."""
    rules = (
        (r'backbone\.bottom_up\.(.*)', r'backbone.body.\1'),
        (r'backbone\.fpn_lateral(\d)\.norm\.(.*)', r'backbone.fpn.inner_blocks.\1.1.\2'),
        (r'backbone\.fpn_lateral(\d)\.(.*)', r'backbone.fpn.inner_blocks.\1.0.\2'),
        (r'backbone\.fpn_output(\d)\.norm\.(.*)', r'backbone.fpn.layer_blocks.\1.1.\2'),
        (r'backbone\.fpn_output(\d)\.(.*)', r'backbone.fpn.layer_blocks.\1.0.\2'),
        (r'proposal_generator\.rpn_head\.conv\.(.*)', r'rpn.head.conv.0.0.\1'),
        (r'proposal_generator\.rpn_head\.objectness_logits\.(.*)', r'rpn.head.cls_logits.\1'),
        (r'proposal_generator\.rpn_head\.anchor_deltas\.(.*)', r'rpn.head.bbox_pred.\1'),
        (r'roi_heads\.box_head\.fc1\.(.*)', r'roi_heads.box_head.fc6.\1'),
        (r'roi_heads\.box_head\.fc2\.(.*)', r'roi_heads.box_head.fc7.\1'),
        (r'(roi_heads\.box_predictor\..*)', r'\1'),
    )
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            if match := re.fullmatch(pattern, name):
                new = match.expand(replacement)
                # detectron2 numbers the pyramid's levels by their strides, 2 … 5; torchvision from 0.
                new = re.sub(r'(_blocks\.)(\d)', lambda level: f'{level[1]}{int(level[2]) - 2}', new)
                if 'cls_score' in new:
                    tensor = torch.cat([tensor[-1:], tensor[:-1]])
                elif 'roi_heads.box_predictor.bbox_pred' in new:
                    tensor = torch.cat([torch.zeros_like(tensor[:4]), tensor])
                renamed[new] = tensor
                break
        else:  # for whoever loads it to refuse
            renamed[name] = tensor
    return renamed


def _class_names(given: str | None, config: dict[str, Any], num_classes: int) -> tuple[list[str] | None, str]:
    """The names in a comma-separated list or a COCO file, or without either those of the images that were trained on.

    Returns:
        The names, None where there are none, and whose they are.

    Raises:
        ValueError: if the file lists none, one is empty, the images that were trained on have another number of
            classes, or what is given has their names in another order, by which every box would have a wrong one.
    """
    train: Any = config.get('DATASETS.TRAIN') or ()
    listing = find_listing(str(train[0])) if len(train) == 1 else None
    trained = [] if listing is None else read_classes(listing)
    if given is None:
        if listing is None:
            return None, (f'none, as --classes is not given and DATASETS.TRAIN, {list(train)}, is not one data set in '
                          'DETECTRON2_DATASETS')
        if len(trained) != num_classes:
            raise ValueError(f'trained with {num_classes} classes, and {listing} has {len(trained)}: name them with '
                             '--classes')
        return trained, f'those of {listing}'
    names = read_classes(given) if given.endswith('.json') else [name.strip() for name in given.split(',')]
    if '' in names:
        raise ValueError(f'--classes {given}: the names must not be empty, got {names!r}')
    if names != trained and sorted(names) == sorted(trained):
        raise ValueError(f'--classes {given}: the detector was trained by {listing}, which has them in the order '
                         f'{",".join(trained)}')
    return names, f'those of {given if given.endswith(".json") else "--classes"}'


def main(args: argparse.Namespace) -> int:
    """Run `randwire-zoo convert`."""
    if Path(args.output).suffix == '.safetensors':
        if not args.config:
            raise ValueError('a detector needs --config, the config.yaml that detectron2 wrote beside it')
        if args.model or args.no_ema:
            raise ValueError('--model and --no-ema are for backbones; a detector takes --config and --classes')
        config = _read_config(Path(args.config))
        names, origin = _class_names(args.classes, dict(_leaves(read_yaml(Path(args.config)))), config.num_classes - 1)
        convert_detector(args.source, args.config, args.output, names)
        named = f' ({", ".join(names)})' if names else ''
        print(f"{args.output}: torchvision's Faster R-CNN on {config.name}, {config.num_classes - 1} classes{named}, "
              f'images of {config.min_size} to {config.max_size} pixels')
        print(f'names of the classes: {origin}')
    else:
        if args.config or args.classes is not None:
            raise ValueError('--config and --classes are for detectors, which are written as .safetensors')
        name = convert_backbone(args.source, args.output, args.model, not args.no_ema)
        print(f'{args.output}: {name} for detectron2 (MODEL.WEIGHTS {args.output})')
    return 0
