"""RandWire networks as timm models: one frozen architecture per name (`architectures`), and `randwire` for all others.

Importing this module registers the names with timm.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from . import network  # the module: whoever imports it first, imports timm and so this one, while it has nothing yet
from .architectures import ARCHITECTURES, Architecture, sample_architecture
from .frozen import load_graphs
from .graphs import Graph
from .weights.manifest import FILENAME, PublishedWeights, published_weights, read_weights

__all__ = ['ARCHITECTURES', 'WEIGHTS', 'Architecture', 'find_weights', 'network_arguments', 'sample_architecture']


def network_arguments(name: str, **kwargs: Any) -> dict[str, Any]:
    """The arguments with which `RandWire` becomes the network of a registered name.

    Args:
        name: A frozen name; or `randwire`, whose graphs are sampled here from graph, seed, channels, num_nodes, regime.
        kwargs: Arguments of `RandWire`, laid over the name's own. `graphs` of `randwire` are taken as they are, also as
            JSON data; graph and seed, which may be of a generator that is not known here, are then passed over.

    Raises:
        ValueError: naming the name or the argument, and what is allowed.
    """
    if name in ARCHITECTURES:
        architecture = ARCHITECTURES[name]
        return {'graphs': load_graphs(name), 'regime': architecture.regime, 'channels': architecture.channels,
                'origin': f'{name}: {architecture.generator}', **kwargs}
    if name != 'randwire':
        raise ValueError(f'unknown name {name!r}; `randwire-zoo list` shows the frozen ones, `randwire` is any other')
    own = {field.name: kwargs.pop(field.name) for field in fields(Architecture) if field.name in kwargs}
    architecture = Architecture(**own)
    if 'graphs' in kwargs:
        graphs = kwargs['graphs']
        if isinstance(graphs, list):  # of a config.json
            graphs = tuple(Graph.from_dict(graph) if isinstance(graph, Mapping) else graph for graph in graphs)
        return {'regime': architecture.regime, 'channels': architecture.channels, **kwargs, 'graphs': graphs}
    return {'graphs': sample_architecture(architecture), 'regime': architecture.regime,
            'channels': architecture.channels, 'origin': architecture.generator, **kwargs}


@dataclass
class PublishedCfg(PretrainedCfg):
    """timm's configuration of a tag, with the arguments of the network that has its weights.

    Args:
        model_args: Arguments of `create_model`, as in the config.json of timm's repositories.
    """

    model_args: Mapping[str, Any] | None = None


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7),
        'crop_pct': 0.875, 'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'conv1.conv', 'classifier': 'fc', 'license': 'apache-2.0',
        'paper_ids': 'arXiv:1904.01569',
        'paper_name': 'Exploring Randomly Wired Neural Networks for Image Recognition',
        'origin_url': 'https://github.com/facebookresearch/RandWire',
        **kwargs,
    }


def _place(row: PublishedWeights) -> dict[str, str | None]:
    return {'file': row.file} if row.repo_id is None else {
        'hf_hub_id': f'{row.repo_id}@{row.revision}', 'hf_hub_filename': FILENAME}


def _published_cfg(row: PublishedWeights) -> PublishedCfg:
    return PublishedCfg(model_args=dict(row.model_args), **_cfg(
        num_classes=row.num_classes, input_size=row.input_size,
        pool_size=tuple(math.ceil(side / 32) for side in row.input_size[1:]), crop_pct=row.crop_pct,
        crop_mode=row.crop_mode, interpolation=row.interpolation, mean=row.mean, std=row.std,
        label_names=row.label_names or None, label_descriptions=dict(row.label_descriptions) or None,
        license=row.license, description=row.description, **_place(row)))


#: What in a configuration of timm's says where weights lie.
SOURCES = ('url', 'file', 'state_dict', 'hf_hub_id')

#: What is published, by `arch.tag`.
WEIGHTS: dict[str, PublishedWeights] = published_weights()

# The paper's network of a name, which has timm's tag for one without weights, is its default unless a row says
# otherwise. It is the default of `randwire` whatever is published of it: each of its tags is another network.
_DEFAULTS = {row.architecture: row.name for row in reversed(WEIGHTS.values())
             if row.is_default and row.architecture != 'randwire'}
# The asterisk makes a tag the default, whichever come before it.
default_cfgs = generate_default_cfgs({
    **{f'{name}*' if name in _DEFAULTS.values() else name: _published_cfg(row) for name, row in WEIGHTS.items()},
    **{f'{name}.untrained*': _cfg() for name in ('randwire', *ARCHITECTURES) if name not in _DEFAULTS},
})


class RandWireFeatures(FeatureGetterNet):
    """What `features_only=True` gives: timm's getter, with gradient checkpointing, and for TorchScript a list.

    timm's own does not pass the former on, and what it returns in TorchScript is what `forward_intermediates` declares:
    a list or a tuple, over which no loop can be compiled.
    """

    def __init__(self, model: nn.Module, flatten_sequential: bool = False, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)  # some releases of timm pass flatten_sequential to any class given to them

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [B, in_chans, H, W] to the maps of `feature_info`."""
        features = self.model.forward_intermediates(  # type: ignore[operator]
            x, indices=self.out_indices, norm=self.norm, output_fmt=self.output_fmt, intermediates_only=True)
        if torch.jit.is_scripting():
            assert torch.jit.isinstance(features, list[Tensor])
        return features

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the stages' inputs for the backward pass and compute the rest again."""
        self.model.set_grad_checkpointing(enable)  # type: ignore[operator]


def find_weights(name: str) -> PublishedWeights | None:
    """The published weights `arch.tag`, or those of the default tag of `arch`; None where there are none."""
    architecture, _, tag = name.partition('.')
    if not tag and architecture == 'randwire':
        return None  # no tag of it is any other's default
    return next((row for row in WEIGHTS.values() if row.architecture == architecture and row.name == (
        name if tag else row.name)), None)


def _meant_weights(
        variant: str, pretrained: bool, cfg: str | dict[str, Any] | None, elsewhere: bool) -> PublishedWeights | None:
    """The row that a call means: by its tag, by timm's configuration of that, or as the default's weights."""
    asked = pretrained and not elsewhere
    if not cfg:
        return find_weights(variant) if asked else None
    if isinstance(cfg, str):
        return find_weights(f'{variant}.{cfg}')
    if cfg.get('source'):
        return None  # of a repository or a folder
    row = find_weights(f'{variant}.{cfg["tag"]}') if cfg.get('tag') else None
    if row is not None:
        return row if all(cfg.get(name) == _place(row).get(name) for name in SOURCES) else None
    # As of a name alone, which `timm.models.resolve_model_input_args` makes this of.
    unchanged = {**asdict(default_cfgs[variant].default), 'architecture': variant, 'tag': cfg.get('tag')}
    return find_weights(variant) if asked and all(unchanged.get(name) == value for name, value in cfg.items()) else None


def _no_weights(variant: str) -> str:
    """What there is instead, in one line that begins as timm's own."""
    if variant == 'randwire':
        how = 'name a tag'
    else:
        recipe = 'randwire_ws_c109' if ARCHITECTURES[variant].regime == 'regular' else 'randwire_ws_small_s1'
        how = f'train it: randwire-zoo train -c tin200/{recipe}' + (f' --model {variant}' if variant != recipe else '')
    return (f'No pretrained weights exist for {variant}; there are {", ".join(sorted(WEIGHTS)) or "none"}. '
            f'Use pretrained=False, or {how}')


def _create_randwire(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    filter_fn: Callable[..., dict[str, Any]] = network.checkpoint_filter_fn
    cfg, overlay = kwargs.get('pretrained_cfg'), kwargs.get('pretrained_cfg_overlay') or {}
    if isinstance(cfg, PretrainedCfg):
        cfg = {field.name: getattr(cfg, field.name) for field in fields(cfg)}
    elsewhere = any(overlay.get(source) for source in SOURCES)
    row = _meant_weights(variant, pretrained, cfg, elsewhere)
    if row is None and pretrained and not elsewhere and not isinstance(cfg, dict):
        raise RuntimeError(_no_weights(variant))
    model_args = dict(row.model_args) if row is not None else {}
    if isinstance(cfg, dict) and cfg.get('model_args') is not None:  # of a `PublishedCfg`
        model_args = dict(cfg['model_args'])
    if row is not None and not (isinstance(cfg, dict) and cfg.get('tag') == row.tag):
        cfg = row.tag
    elif isinstance(cfg, dict):  # which timm takes without them
        cfg = {name: value for name, value in cfg.items() if name != 'model_args'}
    if row is not None and pretrained and not elsewhere:
        state = read_weights(row, kwargs.get('cache_dir'))
        # timm is told that the tensors are at hand, and gets those that were hashed; the file is not opened again.
        overlay = {**overlay, 'state_dict': {row.name: row.sha256}}

        def filter_fn(_: object, model: nn.Module) -> dict[str, Any]:
            return network.checkpoint_filter_fn(state, model)
    elif elsewhere and not (isinstance(cfg, dict) and cfg.get('source')):
        # Of several places timm takes the one that it ranks first, which may be that of the tag and not the call's.
        overlay = {**dict.fromkeys((*SOURCES, 'hf_hub_filename')), **overlay}
    kwargs = {**model_args, **kwargs, 'pretrained_cfg': cfg, 'pretrained_cfg_overlay': overlay}
    # The getter runs the network's own forward, with its edge removal and checkpointing; 'list' works as well.
    feature_cfg = {
        'out_indices': (0, 1, 2, 3, 4), 'feature_cls': RandWireFeatures, **(kwargs.pop('feature_cfg', None) or {})}
    model: Any = build_model_with_cfg(
        network.RandWire, variant, pretrained, feature_cfg=feature_cfg, pretrained_filter_fn=filter_fn,
        **network_arguments(variant, **kwargs))
    for key in ('state_dict', 'model_args'):  # no fields of timm's, or not what timm is to write into a config.json
        model.pretrained_cfg.pop(key, None)
    if model_args:
        model._model_args = model_args  # which timm writes into one, with what create_model was given
    return model


def _register(name: str, architecture: Architecture) -> None:
    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create_randwire(name, pretrained, **kwargs)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = (
        f'{architecture.graph.upper()}, seed {architecture.seed}, {architecture.regime} regime, '
        f'N = {architecture.num_nodes}, C = {architecture.channels}. Takes the arguments of `RandWire`.')
    globals()[name] = register_model(entry_point)


for _name, _architecture in ARCHITECTURES.items():
    _register(_name, _architecture)


@register_model
def randwire(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Any network of the paper's generator g(θ, s), wired when it is created.

    Args:
        pretrained: Take the weights of a tag of the manifest, `randwire.TAG`, which has the arguments below; there are
            none without a tag, and True raises timm's error.
        kwargs: `graph`, the random graph model `er(P)`, `ba(M)` or `ws(K,P)` (default: 'ws(4,0.75)'); `seed`, s of the
            generator (1); `channels`, C (78); `num_nodes`, N (32); `regime`, 'small' or 'regular' ('small'); `graphs`
            instead of what samples them, also as `Graph.to_dict` has them; and the other arguments of `RandWire`, such
            as `node_op`, `stem_stride` or `drop_path_rate`.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    return _create_randwire('randwire', pretrained, **kwargs)
