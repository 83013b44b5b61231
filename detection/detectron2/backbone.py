"""The zoo's one network class as a native detectron2 backbone."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from randwire_zoo.models import network_arguments
from randwire_zoo.network import RandWire

from .. import DETECTRON2_MISSING

try:
    from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
    from detectron2.modeling.backbone.backbone import Backbone
except ModuleNotFoundError as error:
    if (error.name or '').partition('.')[0] != 'detectron2':
        raise
    raise ModuleNotFoundError(DETECTRON2_MISSING, name='detectron2') from None

from .checkpoints import extend_checkpointer

__all__ = ['FEATURES', 'NORMS', 'RandWireBackbone']

#: What detectron2 calls the outputs of conv1 … conv5. Reductions 2, 4, 8, 16, 32; detectron2's own stems have 4.
FEATURES = ('stem', 'res2', 'res3', 'res4', 'res5')
NORMS = ('FrozenBN', 'BN', 'SyncBN', 'GN')
GN_GROUPS = 32  # detectron2's


class RandWireBackbone(RandWire, Backbone):
    """A RandWire network that returns the outputs of its stages, for detectron2.

    Parameters have the names they have in the zoo (`conv3.nodes.7.edge_weight`); stages behind the last output, and
    the classification head, are left out. Edge removal is off unless `drop_path_rate` asks for it.

    Args:
        name: A frozen name, or `randwire` with its arguments in kwargs.
        out_features: Of `FEATURES`, those to return.
        norm: One of `NORMS`. FrozenBN leaves statistics and affine parameters as loaded; GN has detectron2's 32 groups.
        freeze_at: How many of conv1 … conv5 to freeze, parameters and BN statistics, as `MODEL.BACKBONE.FREEZE_AT`
            counts them: 1 is the stem, 2 is the stem and res2, and so on.
        in_chans: Image channels.
        kwargs: Other arguments of `RandWire`, such as `output_stride` or `drop_path_rate`.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    num_frozen = 0  # of conv1 … conv5
    input_format = ''  # of the images: `INPUT.FORMAT`, where a config says it

    def __init__(
            self, name: str, out_features: Sequence[str] = FEATURES[1:], norm: str = 'FrozenBN', freeze_at: int = 0,
            in_chans: int = 3, **kwargs: Any,
    ) -> None:
        out_features = tuple(out_features)
        unknown = [feature for feature in out_features if feature not in FEATURES]
        if unknown or not out_features:
            raise ValueError(f'out_features must be some of {", ".join(FEATURES)}, got {list(out_features)!r}')
        if norm not in NORMS:
            raise ValueError(f'norm must be one of {", ".join(NORMS)}, got {norm!r}')
        if isinstance(freeze_at, bool) or not isinstance(freeze_at, int) or not 0 <= freeze_at <= len(FEATURES):
            raise ValueError(f'freeze_at must be an integer from 0 to {len(FEATURES)}, got {freeze_at!r}')
        super().__init__(**network_arguments(name, in_chans=in_chans, num_classes=0, **kwargs))
        self.name = name
        if norm == 'GN' and (widths := [i['num_chs'] for i in self.feature_info if i['num_chs'] % GN_GROUPS]):
            raise ValueError(f'norm GN has {GN_GROUPS} groups, which do not divide the {widths[0]} channels of {name}; '
                             'use FrozenBN, BN or SyncBN')
        indices = [index for index, feature in enumerate(FEATURES) if feature in out_features]
        self.prune_intermediate_layers(indices)
        # Pruning left only empty ones.
        del self.relu5, self.conv_head, self.bn_head, self.relu_head, self.global_pool, self.fc
        self.num_stages = indices[-1] + 1
        self.stage_outputs = [feature if feature in out_features else '' for feature in FEATURES]
        # For Backbone.output_shape.
        self._out_features = [FEATURES[index] for index in indices]
        self._out_feature_strides = {FEATURES[i]: self.feature_info[i]['reduction'] for i in indices}
        self._out_feature_channels = {FEATURES[i]: self.feature_info[i]['num_chs'] for i in indices}
        if norm != 'BN':
            _replace_batch_norm(self, norm)
        self.freeze(freeze_at)

    @torch.jit.ignore
    def freeze(self, freeze_at: int = 0) -> RandWireBackbone:
        """Freeze the first stages: no gradients, BN that normalises with the statistics it has, and all edges kept.

        Args:
            freeze_at: How many of conv1 … conv5; what is frozen already stays so.
        """
        self.num_frozen = max(self.num_frozen, freeze_at)
        for info in self.feature_info[:self.num_frozen]:
            stage = getattr(self, info['module'])
            for parameter in stage.parameters():
                parameter.requires_grad = False
            # Our BN is torch's, without an activation in it, so that the conversion is exact.
            FrozenBatchNorm2d.convert_frozen_batchnorm(stage)
            stage.eval()
        return self

    def train(self, mode: bool = True) -> RandWireBackbone:
        """Set the mode of what is not frozen. Frozen stages stay in eval mode, in which no edge is removed."""
        super().train(mode)
        for info in self.feature_info[:self.num_frozen]:
            getattr(self, info['module']).eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Images [B, in_chans, H, W] to maps [B, channels, H/stride, W/stride], by the names of `FEATURES`."""
        if not x.is_cuda:
            # detectron2's batches are NCHW. On the CPU the other layout took 9 % less time in training and 30 % less in
            # inference (randwire_ws_small_s1, 320×448); on a GPU nobody has measured it.
            x = x.contiguous(memory_format=torch.channels_last)
        outputs: dict[str, Tensor] = {}
        kept_edges = self.draw_kept_edges(x)
        for index in range(self.num_stages):
            x = self.forward_stage(index, x, kept_edges)
            if self.stage_outputs[index] != '':
                outputs[self.stage_outputs[index]] = x
        return outputs

    @torch.jit.ignore
    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each output."""
        return super().output_shape()


def _replace_batch_norm(module: nn.Module, norm: str) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, get_norm(norm, child.num_features))
        else:
            _replace_batch_norm(child, norm)


extend_checkpointer()  # from here on there may be such backbones, made or unpickled
