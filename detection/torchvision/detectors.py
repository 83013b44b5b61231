"""torchvision's Faster R-CNN on a RandWire backbone: nothing to compile, and a file format for finished detectors.

A finished detector is one safetensors file. Its metadata describe the detector (`DetectorConfig`), name the classes and
carry the graphs, so that `load_detector` needs the file alone. `convert` writes the same files from what detectron2 has
trained: for the parts that `DetectorConfig` can say, both libraries compute the same function.
"""
from __future__ import annotations

import json
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from randwire_zoo.files import atomic_path
from randwire_zoo.graphs import graphs_sha256
from randwire_zoo.models import network_arguments
from randwire_zoo.network import RandWire
from randwire_zoo.weights.errors import loading
from randwire_zoo.weights.files import read_metadata
from randwire_zoo.weights.manifest import HubError

from ..weights import fit_weights, read_state, read_statistics

__all__ = ['DetectorConfig', 'build_detector', 'fasterrcnn_randwire_fpn', 'load_detector', 'save_detector']

FORMAT = 'randwire_zoo.detector'
NUM_STAGES = 5
LEVELS = ('0', '1', '2', '3')  # torchvision's names of P2 … P5
#: What a detector's parts keep of the last images, or that passes.
PASSING = ('training', '_has_warned', 'scales', 'map_levels', 'strides')
COCO_CLASSES = 91  # torchvision counts the background and the ids that COCO left out


@dataclass(frozen=True)
class DetectorConfig:
    """What decides the function that a detector computes, beside its tensors.

    Args:
        name: The backbone's registered name.
        num_classes: With the background, which is class 0.
        fpn_channels: Width of the feature pyramid.
        fpn_norm: The pyramid's convolutions have BN instead of biases.
        box_features: Width of the box head's two layers.
        anchor_sizes: Of P2 … P6, in pixels of the resized image.
        anchor_ratios: Height to width.
        round_anchors: torchvision rounds the corners of its anchors to whole pixels, detectron2 does not.
        min_size: The images' shorter side after resizing; the longer one is at most max_size.
        max_size: See min_size.
        image_mean: Of RGB values within 0 … 1.
        image_std: Likewise.
        rpn_pre_nms_top_n: Proposals that enter NMS, per level, when testing; rpn_post_nms_top_n leave it.
        rpn_post_nms_top_n: See rpn_pre_nms_top_n.
        rpn_nms_thresh: NMS threshold of the proposals.
        box_score_thresh: Detections below it are dropped.
        box_nms_thresh: NMS threshold of the detections.
        box_detections_per_img: At most so many detections in an image.
        sampling_ratio: Of RoIAlign.
        bbox_reg_weights: Of the box regression.
    """

    name: str
    num_classes: int = COCO_CLASSES
    fpn_channels: int = 256
    fpn_norm: bool = False
    box_features: int = 1024
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    round_anchors: bool = True
    min_size: int = 800
    max_size: int = 1333
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    rpn_pre_nms_top_n: int = 1000
    rpn_post_nms_top_n: int = 1000
    rpn_nms_thresh: float = 0.7
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_detections_per_img: int = 100
    sampling_ratio: int = 2
    bbox_reg_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)


class _ExactAnchors(AnchorGenerator):
    """detectron2's anchors: not rounded, and on P6 at steps of 64 pixels whatever the image measures."""

    def __init__(self, sizes: Sequence[tuple[float, ...]], ratios: Sequence[tuple[float, ...]]) -> None:
        super().__init__(sizes, ratios)
        self.strides = [4 * 2 ** level for level in range(len(sizes))]

    def generate_anchors(
            self, scales: Any, aspect_ratios: Any, dtype: torch.dtype = torch.float32, device: Any = 'cpu') -> Tensor:
        """Corners [len(ratios) · len(scales), 4] around 0."""
        heights = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        scale = torch.as_tensor(scales, dtype=dtype, device=device)
        width, height = (side[:, None] * scale for side in (1 / heights, heights))
        return torch.stack([-width, -height, width, height], dim=-1).reshape(-1, 4) / 2

    def grid_anchors(self, grid_sizes: Any, strides: Any) -> list[Tensor]:
        """All anchors of each level."""
        exact = [[torch.full_like(step, stride) for step in steps]
                 for stride, steps in zip(self.strides, strides, strict=True)]
        return super().grid_anchors(grid_sizes, exact)


def build_detector(config: DetectorConfig, norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
                   network: RandWire | None = None, **kwargs: Any) -> FasterRCNN:
    """Build a detector with random parameters outside of the network.

    Args:
        config: What it is.
        norm_layer: Of the pyramid, where it has any.
        network: The backbone, which is taken apart; by default a new one with BN.
        kwargs: Arguments of `torchvision.models.detection.FasterRCNN` that take the place of what config says.

    Raises:
        ValueError: naming the argument that is out of range.
    """
    if network is None:
        network = _network(config.name)
    stages = network.feature_info[1:]
    backbone = BackboneWithFPN(
        network, {info['module']: level for info, level in zip(stages, LEVELS, strict=True)},
        [info['num_chs'] for info in stages], config.fpn_channels,
        norm_layer=norm_layer if config.fpn_norm else None)
    sizes = tuple((size,) for size in config.anchor_sizes)
    ratios = (tuple(config.anchor_ratios),) * len(sizes)
    resolution = 7
    pool = MultiScaleRoIAlign(LEVELS, resolution, config.sampling_ratio)
    # Otherwise torchvision infers them from the first image and keeps them: from a wide one it may get twice as much,
    # as the height of the maps is that of the padded image.
    pool.scales = [1 / 2 ** level for level in range(2, 6)]
    pool.map_levels = initLevelMapper(2, 5, pool.canonical_scale, pool.canonical_level)
    arguments = {
        'min_size': config.min_size, 'max_size': config.max_size,
        'image_mean': list(config.image_mean), 'image_std': list(config.image_std),
        'rpn_anchor_generator': (AnchorGenerator if config.round_anchors else _ExactAnchors)(sizes, ratios),
        'rpn_pre_nms_top_n_test': config.rpn_pre_nms_top_n, 'rpn_post_nms_top_n_test': config.rpn_post_nms_top_n,
        'rpn_nms_thresh': config.rpn_nms_thresh,
        'box_roi_pool': pool, 'box_head': TwoMLPHead(config.fpn_channels * resolution ** 2, config.box_features),
        'box_predictor': FastRCNNPredictor(config.box_features, config.num_classes),
        'box_score_thresh': config.box_score_thresh, 'box_nms_thresh': config.box_nms_thresh,
        'box_detections_per_img': config.box_detections_per_img, 'bbox_reg_weights': config.bbox_reg_weights,
        **kwargs}
    detector = FasterRCNN(backbone, **arguments)
    detector.graphs = network.graphs
    detector.randwire_config = config
    return detector


def fasterrcnn_randwire_fpn(
        name: str, num_classes: int | None = None, *, weights: str | os.PathLike[str] | None = None,
        progress: bool = True, weights_backbone: str | os.PathLike[str] | None = None,
        trainable_backbone_layers: int | None = None, **kwargs: Any,
) -> FasterRCNN:
    """Faster R-CNN with FPN on a RandWire backbone, with the conventions of torchvision's `fasterrcnn_resnet50_fpn`.

    Args:
        name: A registered name of the zoo.
        num_classes: With the background, which is class 0; 91, or what `weights` has, by default.
        weights: A finished detector's file (see `save_detector`); its backbone must be of this name.
        progress: Show progress bars of downloads.
        weights_backbone: A backbone source: a file, `randwire://arch.tag` or `hf-hub:owner/name`. None starts from
            random parameters. image_mean and image_std, unless they are given, are those that it was trained with
            where it says so (a file does with the settings of its training), and otherwise those of the name.
        trainable_backbone_layers: How many of conv5 … conv1 to train, 0 to 5. With weights the default is 3, and all
            BN of the backbone is frozen; without weights all is trained, and this must be None or 5.
        kwargs: Arguments of `torchvision.models.detection.FasterRCNN`, such as `min_size`.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: naming the argument, its value and what is allowed, or the weights that do not fit.
    """
    trained = weights is not None or weights_backbone is not None
    layers = _trainable_layers(trained, trainable_backbone_layers)
    if weights is not None:
        config, _ = _read_description(weights)
        if config.name != name:
            raise ValueError(f'{weights} holds a detector on {config.name}, not on {name}')
        if num_classes not in (None, config.num_classes):
            raise ValueError(f'num_classes must be {config.num_classes}, as in {weights}, got {num_classes!r}')
    else:
        config = _default_config(name, num_classes)
    network = _network(name)
    if trained:
        network = _freeze_batch_norm(network)
    if weights_backbone is not None and weights is None:
        with _progress_bars(progress):
            state = read_state(str(weights_backbone))
            statistics = None
            if not kwargs.keys() >= {'image_mean', 'image_std'}:
                try:
                    statistics = read_statistics(str(weights_backbone))
                except HubError as error:  # the weights are in the cache, and their config.json is not
                    warnings.warn(f'{error}: image_mean and image_std are those of {name}, unless they are given',
                                  stacklevel=2)
        if statistics is not None:
            config = replace(config, image_mean=statistics[0], image_std=statistics[1])
        network.load_state_dict(fit_weights(state, network, name, weights_backbone), strict=False)
    for index in range(NUM_STAGES - layers):
        for parameter in getattr(network, f'conv{index + 1}').parameters():
            parameter.requires_grad = False
    detector = build_detector(config, network=network, **kwargs)
    if weights is not None:
        _load(detector, weights)
    return detector


def save_detector(detector: FasterRCNN, path: str | os.PathLike[str], classes: Sequence[str] | None = None,
                  **metadata: Any) -> None:
    """Write a detector as one safetensors file that `load_detector` and `randwire-zoo detect` read.

    Args:
        detector: What `fasterrcnn_randwire_fpn` or `load_detector` gave, trained.
        path: Where to; must end in `.safetensors`.
        classes: Their names, without the background; no two alike.
        metadata: More entries, such as `metrics={'AP50': 80.0}`; written as JSON unless they are text.

    Raises:
        ValueError: if it is another model, its parts are not those that such a file can describe, the number of names
            is wrong or two are alike, or a given entry is one that this function writes itself.
    """
    path = Path(path)
    if path.suffix != '.safetensors':
        raise ValueError(f'detector files end in .safetensors, got {path.name!r}')
    config = _describe(detector)
    classes = None if classes is None else list(classes)
    if classes is not None and len(classes) != config.num_classes - 1:
        raise ValueError(f'{config.num_classes - 1} class names are needed, got {len(classes)}')
    odd = [name for name in classes or () if not isinstance(name, str) or not name.strip()
           or (classes or []).count(name) > 1]
    if odd:
        raise ValueError(f'class names must be text and differ from each other, got {odd[0]!r} in {classes!r}')
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in detector.state_dict().items()}
    entries = {
        'format': 'pt', 'kind': FORMAT, 'detector': asdict(config), 'classes': classes,
        'graphs': [graph.to_dict() for graph in detector.graphs], 'graphs_sha256': graphs_sha256(detector.graphs)}
    taken = sorted(entries.keys() & metadata.keys())
    if taken:
        raise ValueError(f'metadata {", ".join(taken)} are written by save_detector itself')
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={
            key: value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))
            for key, value in {**entries, **metadata}.items()})


def load_detector(path: str | os.PathLike[str]) -> tuple[FasterRCNN, list[str]]:
    """Load a finished detector, in eval mode, and the names of its classes, the background first.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, no detector's, or was trained on other wiring than the registered name has.
    """
    config, classes = _read_description(path)
    detector = build_detector(config, network=_freeze_batch_norm(_network(config.name)))
    _load(detector, path)
    return detector.eval(), classes


def _network(name: str) -> RandWire:
    network = RandWire(**network_arguments(name, num_classes=0))
    network.prune_intermediate_layers(list(range(NUM_STAGES)))
    return network


def _default_config(name: str, num_classes: int | None) -> DetectorConfig:
    import timm

    if num_classes is not None and (isinstance(num_classes, bool) or not isinstance(num_classes, int)
                                    or num_classes < 2):
        raise ValueError(f'num_classes must be an integer of at least 2, background included, got {num_classes!r}')
    network_arguments(name)  # an unknown name is an error of ours before it is one of timm's
    cfg: Any = timm.get_pretrained_cfg(name)
    return DetectorConfig(name, num_classes or COCO_CLASSES, image_mean=tuple(cfg.mean), image_std=tuple(cfg.std))


def _trainable_layers(trained: bool, layers: int | None) -> int:
    if layers is None:
        return 3 if trained else NUM_STAGES
    if isinstance(layers, bool) or not isinstance(layers, int) or not 0 <= layers <= NUM_STAGES:
        raise ValueError(f'trainable_backbone_layers must be an integer from 0 to {NUM_STAGES}, got {layers!r}')
    if not trained and layers < NUM_STAGES:
        raise ValueError(f'trainable_backbone_layers={layers} would keep random parameters; without weights all '
                         f'{NUM_STAGES} are trained')
    return layers


def _freeze_batch_norm(module: Any) -> Any:
    """Replace BN by torchvision's frozen one, which has the same tensors and the same eps."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps=child.eps))
        else:
            _freeze_batch_norm(child)
    return module


def _describe(detector: Any) -> DetectorConfig:
    """The config of a detector as it is now, once it is certain that building it again gives the same function."""
    config = getattr(detector, 'randwire_config', None)
    if config is None or not isinstance(detector, FasterRCNN):
        raise ValueError(f'only detectors of fasterrcnn_randwire_fpn can be saved, got {type(detector).__name__}')
    heads, rpn, transform = detector.roi_heads, detector.rpn, detector.transform
    anchors, pool = rpn.anchor_generator, heads.box_roi_pool
    described = replace(
        config, num_classes=heads.box_predictor.cls_score.out_features, box_features=heads.box_head.fc6.out_features,
        anchor_sizes=tuple(size for sizes in anchors.sizes for size in sizes),
        anchor_ratios=tuple(anchors.aspect_ratios[0]), round_anchors=not isinstance(anchors, _ExactAnchors),
        min_size=transform.min_size[-1], max_size=transform.max_size, image_mean=tuple(transform.image_mean),
        image_std=tuple(transform.image_std), rpn_pre_nms_top_n=rpn._pre_nms_top_n['testing'],
        rpn_post_nms_top_n=rpn._post_nms_top_n['testing'], rpn_nms_thresh=rpn.nms_thresh,
        box_score_thresh=heads.score_thresh, box_nms_thresh=heads.nms_thresh,
        box_detections_per_img=heads.detections_per_img, sampling_ratio=pool.sampling_ratio,
        bbox_reg_weights=tuple(heads.box_coder.weights))
    with torch.device('meta'):
        rebuilt = build_detector(described)
    ours, theirs = ({name: tuple(tensor.shape) for name, tensor in one.state_dict().items()}
                    for one in (detector, rebuilt))
    odd = sorted(name for name in ours.keys() | theirs.keys()
                 if ours.get(name) != theirs.get(name) and not name.endswith('num_batches_tracked'))
    parts, usual = map(_parts, (detector, rebuilt))
    odd += sorted(name for name in parts.keys() | usual.keys() if type(parts.get(name)) is not type(usual.get(name)))
    settings, expected = map(_settings, (parts, usual))
    odd += sorted(name for name in settings.keys() & expected.keys() if settings[name] != expected[name])
    if odd or len(set(anchors.aspect_ratios)) > 1 or any(len(sizes) > 1 for sizes in anchors.sizes):
        raise ValueError('a detector file describes torchvision\'s own parts only; here differ '
                         + (', '.join(odd[:3]) or 'the anchors'))
    return described


def _parts(detector: FasterRCNN) -> dict[str, Any]:
    """What computes something beside the network itself, by name: modules, and the coders of boxes, which are none."""
    modules = {name or 'detector': module for name, module in detector.named_modules()
               if not name.startswith('backbone.body')}
    coders = {f'{name}.box_coder': modules[name].box_coder for name in ('rpn', 'roi_heads')}
    return {**modules, **coders}


def _settings(parts: dict[str, Any]) -> dict[str, Any]:
    """What parts keep of their arguments, by the part's name and their own."""
    found = {}
    for part, module in parts.items():
        for name, value in vars(module).items():
            value = tuple(value) if isinstance(value, list) else value
            plain = all(one is None or isinstance(one, (str, int, float)) for one in (
                value if isinstance(value, tuple) else (value,)))
            if plain and name not in PASSING and (part, name) != ('transform', 'min_size'):
                found[f'{part}.{name}'] = value
    return found


def _read_description(path: str | os.PathLike[str]) -> tuple[DetectorConfig, list[str]]:
    metadata = read_metadata(path) if Path(path).suffix == '.safetensors' else {}
    if metadata.get('kind') != FORMAT:
        raise ValueError(f'{path} holds no detector of randwire-zoo; `randwire-zoo convert` makes a .safetensors of '
                         'what detectron2 has trained, and save_detector of a detector in Python')
    try:
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                                  for name, value in json.loads(metadata['detector']).items()}
        config = DetectorConfig(**values)
        names = json.loads(metadata.get('classes', 'null'))
        if names is not None and len(names) != config.num_classes - 1:
            raise ValueError(f'{config.num_classes - 1} class names are needed, it has {len(names)}')
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} does not describe its detector: {error}') from None
    names = names or [f'class {index}' for index in range(1, config.num_classes)]
    return config, ['background', *names]


def _load(detector: FasterRCNN, path: str | os.PathLike[str]) -> None:
    with loading(path):
        state = load_file(path)
        wanted = detector.state_dict()
        # Frozen BN has no count of minibatches, which nothing reads.
        detector.load_state_dict(OrderedDict(
            (name, tensor) for name, tensor in state.items()
            if name in wanted or not name.endswith('num_batches_tracked')))


@contextmanager
def _progress_bars(show: bool) -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not show and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()
