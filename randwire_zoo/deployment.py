"""`deploy`: an eval-only form of a network, with BN folded into the convolutions and constant edge weights.

Without an activation between a node's convolutions and its BN, the node is one depthwise and one pointwise convolution
with a bias; the weights of its sum become numbers, so that each input costs one multiply-add pass over the data.
"""
from copy import deepcopy
from typing import Any, NoReturn, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from .kernels.native import SeparableNode, changes_what_passes, is_frozen_norm
from .network import ConvBN, Node, RandWire, Stage

__all__ = ['DeployedNode', 'deploy']


class DeployedNode(nn.Module):
    """A node for evaluation alone; see `network.Node`.

    The weights of its sum are numbers of the code, which `load_state_dict` alone sets: `input_weights` is a copy.

    Args:
        node: The node it computes the same as, which is taken apart.
    """

    # Annotated here because TorchScript cannot infer the type of an empty list.
    weights: list[float]
    __jit_unused_properties__ = ['input_weights']

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.rectified = node.rectified
        self.num_edges = 0  # none can be removed
        self.weights = [] if node.edge_weight is None else torch.sigmoid(node.edge_weight.double()).tolist()
        if hasattr(node, 'conv'):
            self.first: nn.Module = nn.Identity()
            self.last = _fold(node.conv, node.bn)
        else:
            self.first = node.conv_dw if hasattr(node, 'conv_dw') else node.pool
            self.last = _fold(node.conv_pw, node.bn)

    @property
    def input_weights(self) -> Tensor:
        """The weights of the sum, [inputs] in float64 on the CPU; what a state dict names needs an attribute, too."""
        return torch.tensor(self.weights, dtype=torch.float64, device='cpu')

    @torch.jit.unused
    def separable(self) -> Optional[SeparableNode]:
        """As `network.Node.separable`."""
        if type(self) is not DeployedNode:
            return None
        return SeparableNode(self, self.first, self.last, None, self.weights)

    # The weights are numbers of the code, and of the trained network all the same: a state dict has them as
    # `input_weights`, whatever precision the network is in. (Extra states are the wiring marks.)
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f'{prefix}input_weights'] = self.input_weights

    def _load_from_state_dict(
            self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, missing_keys: list[str],
            unexpected_keys: list[str], error_msgs: list[str]) -> None:
        name = f'{prefix}input_weights'
        others = {key: value for key, value in state_dict.items() if key != name}
        super()._load_from_state_dict(
            others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        loaded = state_dict.get(name)
        if loaded is None:
            missing_keys += [name] if strict and self.weights else []
        elif loaded.shape != (len(self.weights),):
            error_msgs.append(f'{name} must have shape ({len(self.weights)},), got {tuple(loaded.shape)}')
        else:
            self.weights[:] = loaded.tolist()

    def forward(self, inputs: list[Tensor], kept_edges: Optional[Tensor] = None) -> Tensor:
        """Transform the inputs, each [B, in_chs, H, W], to [B, out_chs, H/stride, W/stride]."""
        x = inputs[0]
        if len(self.weights) > 0:
            x = x * self.weights[0]
            for i in range(1, len(self.weights)):
                x = x.add_(inputs[i], alpha=self.weights[i])
            x = F.relu_(x)
        elif not self.rectified:
            x = F.relu(x)
        return self.last(self.first(x))


def deploy(model: nn.Module) -> RandWire:
    """A copy of a network for evaluation: the same function, up to rounding, in fewer passes over the data.

    It keeps the class, its methods and the graphs; it has other parameters, none of which learns, and neither dropout
    nor edge removal. A stage's nodes stand in the order in which they take the least memory (`ordering`). Its
    convolutions are channels_last, and so is what it computes.

    The native kernels keep the 1×1 convolutions as they were laid out for them. Where weights are written to past torch
    (`.data`, NumPy), they notice it if many of a layer's numbers change, and otherwise have to be told by
    `torch.autograd.graph.increment_version(weight)`.

    Args:
        model: Any RandWire network or backbone, trained. (Its type is all that timm's `create_model` promises.)

    Returns:
        The copy, in eval mode, on the same device and in the same precision.

    Raises:
        ValueError: if it is another kind of model, was deployed already, or has a normalisation without running
            statistics, which no convolution can do; naming the module, if one that is taken apart is of another class
            than those of this package and torch, or has hooks or a forward of its own, which would be lost.
    """
    if not isinstance(model, RandWire):
        inner = '; of features_only, deploy its .model' if isinstance(getattr(model, 'model', None), RandWire) else ''
        raise ValueError(f'only RandWire networks can be deployed, got {type(model).__name__}{inner}')
    if any(isinstance(module, DeployedNode) for module in model.modules()):
        raise ValueError('this network was deployed already')
    _check(model)
    model = deepcopy(model).eval()
    for stage in model.children():
        if isinstance(stage, ConvBN):
            stage.conv = _fold(stage.conv, stage.bn)
            stage.bn = nn.Identity()  # type: ignore[assignment]
        elif isinstance(stage, Stage):
            stage.nodes = nn.ModuleList(DeployedNode(node) for node in stage.nodes)  # type: ignore[arg-type]
            stage.num_edges = 0
            stage.reorder()
    if model.has_conv_head:
        model.conv_head, model.bn_head = _fold(model.conv_head, model.bn_head), nn.Identity()
    model.num_edges, model.drop_path_rate, model.drop_rate = 0, 0.0, 0.0
    for parameter in model.parameters():
        parameter.requires_grad = False
    return model.to(memory_format=torch.channels_last)


def _check(model: RandWire) -> None:
    """Refuse what `deploy` would take apart and lose something of."""
    names = {module: name for name, module in model.named_modules()}

    def refuse(module: nn.Module, what: str) -> NoReturn:
        raise ValueError(f'{names[module]}: {type(module).__name__} {what}')

    def check(conv: nn.Module, norm: nn.Module) -> None:
        """A convolution and the normalisation behind it, which become one convolution."""
        check_hooks(conv, norm)
        if type_before_parametrizations(conv) is not nn.Conv2d:  # a parametrised weight is computed, and folded
            refuse(conv, 'cannot be deployed: it is another class than Conv2d')
        if any(getattr(norm, name, None) is None for name in ('running_mean', 'running_var')):
            refuse(norm, 'without running statistics cannot be deployed: a convolution cannot compute those of a batch')
        known = type(norm) is nn.SyncBatchNorm or type(norm).forward is nn.BatchNorm2d.forward
        if not known and not is_frozen_norm(norm):
            refuse(norm, 'cannot be deployed: it is another class than BatchNorm2d, SyncBatchNorm or FrozenBatchNorm2d')

    def check_hooks(*modules: nn.Module) -> None:
        for module in modules:
            if changes_what_passes(module):
                refuse(module, 'with hooks, or a forward of its own, cannot be deployed: they would be lost')

    for stage in model.children():
        if isinstance(stage, ConvBN):
            if type(stage) is not ConvBN or 'forward' in vars(stage):
                refuse(stage, 'with a forward of its own cannot be deployed: it may do more than convolution and BN')
            check(stage.conv, stage.bn)
        elif isinstance(stage, Stage):
            for node in stage.nodes:
                if not isinstance(node, Node) or not node.as_written():
                    refuse(node, 'cannot be deployed: its operation is none of those of Node')
                check_hooks(node)
                check(node.conv if hasattr(node, 'conv') else node.conv_pw, node.bn)
    if model.has_conv_head:
        check(model.conv_head, model.bn_head)


def _fold(conv: Any, bn: Any) -> nn.Conv2d:
    """One convolution with a bias that does what a convolution and the BN behind it do, computed in float64."""
    scale, bias = (bn.running_var.double() + bn.eps).rsqrt(), -bn.running_mean.double()
    if conv.bias is not None:
        bias = bias + conv.bias.double()
    bias = bias * scale
    if bn.weight is not None:
        scale, bias = scale * bn.weight.double(), bias * bn.weight.double()
    if bn.bias is not None:
        bias = bias + bn.bias.double()
    options: dict[str, Any] = {
        name: getattr(conv, name) for name in ('stride', 'padding', 'dilation', 'groups', 'padding_mode')}
    folded = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, device=conv.weight.device, dtype=conv.weight.dtype,
        **options)
    with torch.no_grad():
        folded.weight.copy_(conv.weight.double() * scale[:, None, None, None])
        assert folded.bias is not None
        folded.bias.copy_(bias)
    return folded
