"""Which stages run on the native operators: those that compute what the modules would, with nobody looking on.

Everything is decided from what the modules are. What tensors may be, and what transforms and modes are at work, is the
business of `operators` and of torch's dispatcher. Parameters, and their names, are those of the modules.
"""
from __future__ import annotations

from operator import itemgetter
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .library import kernels_in_use
from .operators import run
from .stages import DTYPES, Operands, Settings

__all__ = ['SeparableNode', 'changes_what_passes', 'is_frozen_norm', 'is_watched', 'run_stage']

# BN whose statistics and parameters are constants; named, since neither package is to be imported for it.
FROZEN_NORMS = ('torchvision.ops.misc.FrozenBatchNorm2d', 'detectron2.layers.batch_norm.FrozenBatchNorm2d')


class SeparableNode(NamedTuple):
    """What a separable node consists of.

    Args:
        module: Itself.
        depthwise: The 3×3 convolution.
        pointwise: The 1×1 convolution.
        norm: BN, or None where it is part of the 1×1 convolution.
        edge_weight: The parameter before its sigmoid; without BN the weights themselves, as numbers; None or empty for
            a node with one source.
    """

    module: nn.Module
    depthwise: Any
    pointwise: Any
    norm: Any
    edge_weight: Any


def run_stage(stage: Any, x: Tensor, kept_edges: Optional[Tensor]) -> Optional[Tensor]:
    """Run a stage on the native operators if they are in use; None where its modules have to do it.

    Args:
        stage: A `network.Stage`.
        x: Its input, [B, in_chs, H, W].
        kept_edges: One entry per removable edge of this stage, 0 for a removed one; None keeps all.
    """
    if kernels_in_use() != 'native' or not _takes(x) or _all_are_watched():
        return None
    if torch.is_autocast_enabled('cpu'):
        if torch.get_autocast_dtype('cpu') not in DTYPES:
            return None
        x = x.to(torch.get_autocast_dtype('cpu'))
    nodes: list[_Node] = []
    for module in stage.nodes:
        separable = module.separable() if hasattr(module, 'separable') else None
        # A wrapper may hand on what it is asked for, of the node in it, whose forward is not what it does itself.
        node = _read(separable, x) if separable is not None and separable.module is module else None
        if node is None:
            return None
        nodes.append(node)
    steps = _steps(stage, nodes)
    deployed = nodes[0].norm is None
    if steps is None or any((node.norm is None) != deployed for node in nodes):
        return None
    values = x.shape[0] * ((x.shape[2] - 1) // steps['stride'] + 1) * ((x.shape[3] - 1) // steps['stride'] + 1)
    of_batch = [_of_the_batch(node.norm) for node in nodes if node.norm is not None]
    if values < 2 and any(of_batch):
        return None  # BN itself says what is wrong with a single value per channel
    operands = _deployed_operands(nodes, x) if deployed else _operands(nodes, x, of_batch, kept_edges)
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands.flat())
    if learns and deployed:
        return None
    result = run(operands, Settings(
        eps=[node.norm.eps for node in nodes if node.norm is not None], of_batch=of_batch,
        sources=[source for sources in stage.sources for source in sources],
        in_degrees=[len(sources) for sources in stage.sources],
        outputs=[i for i, is_output in enumerate(stage.is_output) if is_output], **steps,
        keep=learns and not (stage.recompute and x.dtype == torch.float32), constant=deployed))
    if any(of_batch):
        for i, node in enumerate(nodes):
            if (node.norm.training and type(node.norm) is nn.BatchNorm2d and node.norm.running_mean is not None
                    and node.norm.track_running_stats):
                _update(node.norm, result.mean[i], result.variance[i], values)
    return result.out


def _takes(x: Tensor) -> bool:
    return (not torch.jit.is_tracing() and _is_plain(x) and x.is_cpu
            and x.layout == torch.strided and x.dim() == 4 and x.numel() > 0 and x.dtype in DTYPES)


def _is_plain(x: Any) -> bool:
    """Whether this is a tensor that no subclass gives another meaning."""
    return type(x) is Tensor or type(x) is nn.Parameter


class _Node(NamedTuple):
    """A node's tensors, each read once, and what else matters of its modules."""

    depthwise: Tensor
    pointwise: Tensor
    bias: Optional[Tensor]
    norm: Any
    edge_weight: Any
    stride: tuple[int, ...]
    dilation: tuple[int, ...]


_CONV = itemgetter(
    'kernel_size', 'stride', 'padding', 'dilation', 'groups', 'in_channels', 'out_channels', 'padding_mode')
_POINTWISE = itemgetter('kernel_size', 'stride', 'padding', 'groups')


def _read(node: Optional[SeparableNode], x: Tensor) -> Optional[_Node]:
    """A node as the operators take it; None if they compute something else, or somebody watches its modules."""
    if node is None:
        return None
    module, depthwise, pointwise, norm, edge_weight = node
    if type(depthwise) is not nn.Conv2d or type(pointwise) is not nn.Conv2d:
        return None
    of_depthwise, of_pointwise = vars(depthwise), vars(pointwise)
    if is_watched(vars(module)) or is_watched(of_depthwise) or is_watched(of_pointwise) or (
            norm is not None and is_watched(vars(norm))):
        return None
    size, stride, padding, dilation, groups, in_channels, channels, padding_mode = _CONV(of_depthwise)
    if (size != (3, 3) or padding != dilation or padding_mode != 'zeros' or not groups == in_channels == channels
            or _POINTWISE(of_pointwise) != ((1, 1), (1, 1), (0, 0), 1) or _parameter(depthwise, 'bias') is not None):
        return None
    read = _Node(_parameter(depthwise, 'weight'), _parameter(pointwise, 'weight'), _parameter(pointwise, 'bias'), norm,
                 edge_weight, stride, dilation)
    if (read.bias is None) == (norm is None):
        return None
    tensors = [read.depthwise, read.pointwise]
    if norm is None:
        tensors.append(read.bias)  # type: ignore[arg-type]
    else:
        if type(norm) is not nn.BatchNorm2d and not is_frozen_norm(norm):
            return None
        numbers = [norm.weight, norm.bias]
        if norm.running_mean is not None or norm.running_var is not None:
            numbers += [norm.running_mean, norm.running_var]
        if not all(_fits(t, x, torch.float32) for t in numbers):
            return None
        if edge_weight is not None:
            tensors.append(edge_weight)
    return read if all(_fits(t, x, torch.float32) for t in tensors) else None


def _parameter(module: Any, name: str) -> Any:
    """An attribute, found several times as fast where it is a parameter: this is done in every step."""
    parameters = vars(module)['_parameters']
    return parameters[name] if name in parameters else getattr(module, name)


def _fits(t: Any, x: Tensor, or_dtype: torch.dtype) -> bool:
    return _is_plain(t) and (t.dtype == x.dtype or t.dtype == or_dtype) and t.is_cpu


def is_frozen_norm(norm: Any) -> bool:
    """Whether this is one of `FROZEN_NORMS`, and no subclass of it."""
    return f'{type(norm).__module__}.{type(norm).__qualname__}' in FROZEN_NORMS


def is_watched(attributes: dict[str, Any]) -> bool:
    """Whether this module has hooks, or a forward of its own; torch has no public way to ask."""
    return bool(attributes['_forward_hooks'] or attributes['_forward_pre_hooks'] or attributes['_backward_hooks']
                or attributes['_backward_pre_hooks'] or 'forward' in attributes)


def changes_what_passes(module: Any) -> bool:
    """Whether this module may compute something else than its class does: by a hook, or by a forward of its own."""
    attributes = vars(module)
    return bool(attributes['_forward_hooks'] or attributes['_forward_pre_hooks'] or 'forward' in attributes)


def _all_are_watched() -> bool:
    """Whether there are hooks for all modules."""
    return bool(
        torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks)


def _steps(stage: Any, nodes: list[_Node]) -> Optional[dict[str, int]]:
    """Strides and dilations, if they are the same for all nodes that read the stage's input, and for all others."""
    found: dict[bool, set[tuple[Any, Any]]] = {True: set(), False: set()}
    for sources, node in zip(stage.sources, nodes, strict=True):
        found[sources == [-1]].add((node.stride, node.dilation))
    inputs, others = found[True], found[False] or {((1, 1), (1, 1))}
    if len(inputs) != 1 or len(others) != 1:
        return None
    (stride, input_dilation), = inputs
    (other_stride, dilation), = others
    if stride not in ((1, 1), (2, 2)) or other_stride != (1, 1) or len({*dilation}) > 1 or len({*input_dilation}) > 1:
        return None
    return {'stride': stride[0], 'input_dilation': input_dilation[0], 'dilation': dilation[0]}


def _deployed_operands(nodes: list[_Node], x: Tensor) -> Operands:
    weights = torch.tensor(
        [weight for node in nodes for weight in node.edge_weight], dtype=torch.float32, device='cpu')
    return Operands(
        x, weights, None, None, None, None, [node.depthwise for node in nodes], [node.pointwise for node in nodes],
        [node.bias if node.bias.dtype == x.dtype else node.bias.to(x.dtype)
         for node in nodes if node.bias is not None])


def _operands(nodes: list[_Node], x: Tensor, of_batch: list[bool], kept_edges: Optional[Tensor]) -> Operands:
    parameters = [node.edge_weight for node in nodes if node.edge_weight is not None]
    edge_weights = torch.sigmoid(torch.cat(parameters)) if parameters else x.new_zeros(0)
    if kept_edges is not None:
        edge_weights = edge_weights * kept_edges
    norms = [node.norm for node in nodes]
    mean = variance = None
    if not all(of_batch):
        # Rows of nodes that normalise by the batch are not read.
        mean, variance = (_rows([norm.bias if getattr(norm, name) is None else getattr(norm, name) for norm in norms])
                          for name in ('running_mean', 'running_var'))
        mean, variance = mean.detach(), variance.detach()
    return Operands(
        x, edge_weights.float(), _rows([norm.weight for norm in norms]), _rows([norm.bias for norm in norms]), mean,
        variance, [node.depthwise for node in nodes], [node.pointwise for node in nodes], [])


def _rows(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).float()


def _of_the_batch(norm: Any) -> bool:
    """Whether a BN takes mean and variance from the batch."""
    return type(norm) is nn.BatchNorm2d and (norm.training or norm.running_mean is None)


def _update(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Bring running statistics up to date, as BN does it."""
    assert norm.running_mean is not None and norm.running_var is not None
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        momentum = 1.0 / norm.num_batches_tracked.item() if momentum is None else momentum
    momentum = 0.0 if momentum is None else momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var.dtype), momentum)
