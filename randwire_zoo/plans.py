"""How a stage runs on the native kernels: fewer passes over the data than its modules make one by one.

Nothing is written but what the nodes' 1×1 convolutions put out. The nodes that read it apply its BN as they sum, since
both are linear, and a tile of the sum goes through ReLU, depthwise and 1×1 convolution while it is in the processor's
cache (`kernels.separable_node`). A deployed network's BN is part of its 1×1 convolutions, which are laid out once.

In training the same outputs are all that is kept: the backward pass computes sums and depthwise convolutions again,
adds each edge's gradient to its source's in the pass that computes it, and gets the sums that BN's backward pass needs
out of that same pass. Parameters, and their names, are those of the modules.
"""
from __future__ import annotations

from typing import Any, NamedTuple, Optional
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .kernels import (
    Source,
    SumGradients,
    affine,
    channel_dots,
    kernels_in_use,
    mean_and_variance,
    pack_pointwise,
    separable_node,
    sum_relu_depthwise,
    sum_relu_depthwise_backward,
    weighted_sum,
)

__all__ = ['run_stage']

def run_stage(stage: Any, x: Tensor, kept_edges: Optional[Tensor]) -> Optional[Tensor]:
    """Run a stage on the native kernels if they are in use; None where its modules have to do it.

    Args:
        stage: A `network.Stage`.
        x: Its input, [B, in_chs, H, W].
        kept_edges: One entry per removable edge of this stage, 0 for a removed one; None keeps all.
    """
    if kernels_in_use() != 'native':
        return None
    nodes = [_operations(node) for node in stage.nodes]
    if not _serves(nodes, x):
        return None
    x = x.contiguous(memory_format=torch.channels_last)
    if torch.is_grad_enabled():
        parameters = [p for node in stage.nodes for p in node.parameters()]
        if x.requires_grad or any(p.requires_grad for p in parameters):
            if x.dtype != torch.float32 or any(node.norm is None for node in nodes):
                return None
            return _LearningStage.apply(stage, nodes, kept_edges, x, *parameters)
    with torch.no_grad():
        return _forward(stage, nodes, x, kept_edges)[0]


class _Operations(NamedTuple):
    """A node's modules: those of a `network.Node`, or of a `deployment.DeployedNode`, which has no norm."""

    module: Any
    depthwise: Any
    pointwise: Any
    norm: Any

    def edge_weights(self, kept_edges: Optional[Tensor]) -> list[float]:
        """One per source, 0 for a removed edge."""
        if self.norm is None:
            return self.module.weights or [1.0]
        if self.module.edge_weight is None:
            return [1.0]
        weights = torch.sigmoid(self.module.edge_weight.detach()).float()
        return (weights if kept_edges is None else weights * kept_edges).tolist()


def _operations(node: Any) -> _Operations:
    if hasattr(node, 'first'):
        return _Operations(node, node.first, node.last, None)
    return _Operations(node, getattr(node, 'conv_dw', None), getattr(node, 'conv_pw', None), node.bn)


def _serves(nodes: list[_Operations], x: Tensor) -> bool:
    """Whether the kernels compute what the modules would, and nobody has to see the modules at work."""
    if (type(x) is not Tensor or x.device.type != 'cpu' or x.dim() != 4 or x.numel() == 0
            or x.dtype not in (torch.float32, torch.bfloat16) or torch.is_autocast_enabled('cpu')
            or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0
            or torch._C._functorch.maybe_current_level() is not None or _has_hooks(vars(torch_module), '_global')):
        return False
    for node in nodes:
        depthwise, norm = node.depthwise, node.norm
        if type(depthwise) is not nn.Conv2d or depthwise.groups != depthwise.in_channels or type(
                node.pointwise) is not nn.Conv2d or type(norm) not in (nn.BatchNorm2d, type(None)):
            return False
        if depthwise.weight.dtype != x.dtype or node.pointwise.weight.dtype != x.dtype:
            return False
        if any(_has_hooks(module.__dict__) for module in node if module is not None):
            return False
        if norm is not None:
            stride = depthwise.stride[0]
            height, width = ((size - 1) // stride + 1 for size in x.shape[2:])
            if norm.weight is None or (_of_the_batch(norm) and x.shape[0] * height * width < 2):
                return False  # BN itself says what is wrong with a single value per channel
    return True


def _has_hooks(attributes: dict[str, Any], prefix: str = '') -> bool:
    """Of a module, or of all modules with the prefix `_global`."""
    return bool(attributes[f'{prefix}_forward_hooks'] or attributes[f'{prefix}_forward_pre_hooks']
                or attributes[f'{prefix}_backward_hooks'] or attributes[f'{prefix}_backward_pre_hooks'])


class _Record(NamedTuple):
    """What a node leaves behind: the output of its 1×1 convolution, and its BN if that is still to be applied."""

    out: Tensor
    norm: Optional[_Normalisation]
    edge_weights: list[float]

    def source(self, weight: float) -> Source:
        """This node's output as a term of a sum."""
        return Source(self.out, weight) if self.norm is None else Source(
            self.out, weight, self.norm.scale, self.norm.shift)


class _Normalisation(NamedTuple):
    """BN, each [C]: scale · x + shift, where scale = weight · inv_std."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    inv_std: Tensor


def _forward(
        stage: Any, nodes: list[_Operations], x: Tensor, kept_edges: Optional[Tensor], keep: bool = False,
) -> tuple[Tensor, dict[int, _Record]]:
    """The stage's output, and the records of all nodes, or of the outputs alone unless all are to be kept."""
    records: dict[int, _Record] = {}
    for i, node in enumerate(nodes):
        weights = node.edge_weights(_edges_of(stage, i, kept_edges))
        sources = [Source(x, weight) if source < 0 else records[source].source(weight)
                   for source, weight in zip(stage.sources[i], weights, strict=True)]
        out = separable_node(
            sources, *_constants(node), node.pointwise.out_channels, *_steps(node))
        records[i] = _Record(out, None if node.norm is None else _normalisation(node.norm, out), weights)
        del out, sources
        if not keep:
            for source in stage.expired[i]:
                records.pop(source, None)
    sinks = [records[i] for i in range(len(nodes)) if stage.is_output[i]]
    if len(sinks) == 1 and sinks[0].norm is None:
        return sinks[0].out, records
    return weighted_sum([sink.source(1.0 / len(sinks)) for sink in sinks]), records


def _edges_of(stage: Any, i: int, kept_edges: Optional[Tensor]) -> Optional[Tensor]:
    """A node's part of the stage's kept_edges."""
    count = stage.nodes[i].num_edges
    start = stage.edge_offsets[i]
    return None if kept_edges is None or count == 0 else kept_edges[start:start + count]


class _Constants(NamedTuple):
    """A node's convolutions as the kernels take them: [C, 1, 3, 3], laid out, and [out_channels]."""

    kernel: Tensor
    packed: Tensor
    bias: Optional[Tensor]


# What deployed nodes have laid out, with the storage it was made of: their parameters are constants. Those of a network
# that may still learn are laid out anew each time, as nothing tells for sure that they are what they were.
_laid_out: WeakKeyDictionary[nn.Module, tuple[int, _Constants]] = WeakKeyDictionary()


def _constants(node: _Operations) -> _Constants:
    """A node's convolutions."""
    known = _laid_out.get(node.module) if node.norm is None else None
    address = node.pointwise.weight.data_ptr()
    if known is not None and known[0] == address:
        return known[1]
    with torch.no_grad(), torch.inference_mode(False):
        weight, bias = node.pointwise.weight.detach(), node.pointwise.bias
        constants = _Constants(_kernel(node), pack_pointwise(weight.flatten(1).contiguous()),
                               None if bias is None else bias.detach().float())
    if node.norm is None:
        _laid_out[node.module] = address, constants
    return constants


def _kernel(node: _Operations) -> Tensor:
    return node.depthwise.weight.detach().float().contiguous()


def _steps(node: _Operations) -> tuple[int, int]:
    """Stride and dilation."""
    return node.depthwise.stride[0], node.depthwise.dilation[0]


def _normalisation(norm: nn.BatchNorm2d, out: Tensor) -> _Normalisation:
    """BN of what a 1×1 convolution put out, with the running statistics brought up to date as BN does it."""
    if norm.training or norm.running_mean is None or norm.running_var is None:
        mean, variance = mean_and_variance(out)
        if norm.training and norm.running_mean is not None and norm.running_var is not None:
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.add_(1)
            momentum = 1.0 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
            count = out.numel() // out.shape[1]
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
            norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var.dtype), momentum)
    else:
        mean, variance = norm.running_mean.float(), norm.running_var.float()
    inv_std = torch.rsqrt(variance + norm.eps)
    scale = norm.weight.float() * inv_std
    return _Normalisation(scale, norm.bias.float() - mean * scale, mean, inv_std)


def _of_the_batch(norm: nn.BatchNorm2d) -> bool:
    """Whether a BN takes mean and variance from the batch."""
    return norm.training or norm.running_mean is None or norm.running_var is None


class _LearningStage(torch.autograd.Function):
    """A stage and its backward pass; the parameters are given so that autograd knows of them."""

    @staticmethod
    def forward(
            ctx: Any, stage: Any, nodes: list[_Operations], kept_edges: Optional[Tensor], x: Tensor,
            *parameters: Tensor) -> Tensor:
        out, records = _forward(stage, nodes, x, kept_edges, keep=True)
        tensors = [tensor for i in range(len(nodes)) for tensor in (records[i].out, *(records[i].norm or ()))]
        ctx.save_for_backward(x, *tensors, *parameters)
        ctx.stage, ctx.nodes, ctx.kept_edges = stage, nodes, kept_edges
        ctx.edge_weights = [records[i].edge_weights for i in range(len(nodes))]
        ctx.batch_statistics = [_of_the_batch(node.norm) for node in nodes]
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
        stage, nodes = ctx.stage, ctx.nodes
        x, *tensors = ctx.saved_tensors
        records = [_Record(tensors[5 * i], _Normalisation(*tensors[5 * i + 1:5 * i + 5]), weights)
                   for i, weights in enumerate(ctx.edge_weights)]
        parameters = [p for node in stage.nodes for p in node.parameters()]
        needed = dict(zip(parameters, ctx.needs_input_grad[4:], strict=True))
        grad = grad.contiguous(memory_format=torch.channels_last)
        parameter_grads: dict[Tensor, Tensor] = {}
        collected = [_Collected() for _ in range(len(nodes) + 1)]  # the last one, index -1, is the stage's input
        share = 1.0 / stage.num_outputs
        for i in reversed(range(len(nodes))):
            node, record, received = nodes[i], records[i], collected[i]
            if stage.is_output[i]:
                total, dot = channel_dots(grad, record.out)
                received = _Collected(grad, total * share, dot * share)
            inner, parameter_grads[node.norm.weight] = _through_norm(
                record, received, ctx.batch_statistics[i], share if stage.is_output[i] else None)
            parameter_grads[node.norm.bias] = received.total
            collected[i] = _Collected()
            targets = stage.sources[i]
            sources = [Source(x, weight) if source < 0 else records[source].source(weight)
                       for source, weight in zip(targets, record.edge_weights, strict=True)]
            kernel, (stride, dilation) = _kernel(node), _steps(node)
            hidden = sum_relu_depthwise(sources, kernel, stride, dilation)
            hidden_grad, pointwise_grad, _ = torch.ops.aten.convolution_backward(
                inner, hidden, node.pointwise.weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
                [True, needed[node.pointwise.weight], False])
            del inner, received, hidden
            if pointwise_grad is not None:
                parameter_grads[node.pointwise.weight] = pointwise_grad
            first = [collected[target].grad is None for target in targets]
            for target, source in zip(targets, sources, strict=True):
                if collected[target].grad is None and (target >= 0 or ctx.needs_input_grad[3]):
                    collected[target].grad = torch.empty_like(source.data)
            sums = sum_relu_depthwise_backward(
                sources, kernel, stride, dilation, hidden_grad.contiguous(memory_format=torch.channels_last),
                [collected[target].grad for target in targets], first)
            parameter_grads[node.depthwise.weight] = sums.kernel
            if node.module.edge_weight is not None and needed[node.module.edge_weight]:
                parameter_grads[node.module.edge_weight] = _edge_weight_grad(
                    node, sources, sums, _edges_of(stage, i, ctx.kept_edges))
            for target, weight, dots in zip(targets, record.edge_weights, sums.dots, strict=True):
                collected[target].total = collected[target].total + weight * sums.total
                collected[target].dot = collected[target].dot + weight * dots
        return (None, None, None, collected[-1].grad,
                *(parameter_grads.get(p) if wanted else None for p, wanted in needed.items()))


class _Collected:
    """The gradient of a node's output, after its BN, and what of its sums is needed to go through the BN."""

    def __init__(self, grad: Optional[Tensor] = None, total: Any = 0.0, dot: Any = 0.0) -> None:
        self.grad, self.total, self.dot = grad, total, dot


def _through_norm(
        record: _Record, received: _Collected, batch_statistics: bool, share: Optional[float],
) -> tuple[Tensor, Tensor]:
    """The gradient before the BN, in the place of that after it unless that is `share` of somebody else's; and its
    weight's."""
    assert record.norm is not None and received.grad is not None
    scale, _, mean, inv_std = record.norm
    weight_grad = (received.dot - mean * received.total) * inv_std
    slope, shift = torch.zeros_like(scale), torch.zeros_like(scale)
    if batch_statistics:
        count = record.out.numel() // record.out.shape[1]
        slope = scale * inv_std * weight_grad / -count
        shift = scale * received.total / -count - slope * mean
    if share is None:
        grad = affine(received.grad, record.out, scale, slope, shift, out=received.grad)
    else:
        grad = affine(received.grad, record.out, scale * share, slope, shift)
    return grad, weight_grad


def _edge_weight_grad(
        node: _Operations, sources: list[Source], sums: SumGradients, kept_edges: Optional[Tensor]) -> Tensor:
    """Of the parameter before its sigmoid."""
    of_sum = torch.stack([
        dots.sum() if source.scale is None or source.shift is None else source.scale @ dots + source.shift @ sums.total
        for source, dots in zip(sources, sums.dots, strict=True)])
    sigmoid = torch.sigmoid(node.module.edge_weight.detach())
    grad = of_sum * sigmoid * (1 - sigmoid)
    return grad if kept_edges is None else grad * kept_edges
