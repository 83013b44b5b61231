"""A stage of separable nodes as tensors and numbers, and what it computes, in torch's own operators."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    'DTYPES', 'LISTS', 'STATISTICS', 'Operands', 'Settings', 'StageResult', 'check', 'check_lists', 'compute', 'nested',
]

DTYPES = (torch.float32, torch.bfloat16)  # of what the native kernels compute


class Operands(NamedTuple):
    """The tensors that a stage of N nodes is computed from, those of channels in fp32.

    Args:
        x: [B, in_chs, H, W], the stage's input.
        edge_weights: [E] fp32, of the nodes with more than one source, one node after the other.
        norm_weight: [N, C], BN's; None for a stage without BN.
        norm_bias: [N, C], likewise.
        mean: [N, C], the running statistics of the nodes that normalise by them; None where none does.
        variance: [N, C], likewise.
        depthwise: N kernels [C_in, 1, 3, 3], in the dtype of x or, as under autocast, fp32.
        pointwise: N matrices [C, C_in, 1, 1], likewise.
        biases: N × [C] of the 1×1 convolutions, or none at all.
    """

    x: Tensor
    edge_weights: Tensor
    norm_weight: Optional[Tensor]
    norm_bias: Optional[Tensor]
    mean: Optional[Tensor]
    variance: Optional[Tensor]
    depthwise: list[Tensor]
    pointwise: list[Tensor]
    biases: list[Tensor]

    def flat(self) -> tuple[Optional[Tensor], ...]:
        """All of them in one row."""
        return (*self[:6], *self.depthwise, *self.pointwise, *self.biases)


LISTS = len(Operands._fields)  # operands as the operators take them
FLAT = LISTS - 3  # those before the lists
STATISTICS = (Operands._fields.index('mean'), Operands._fields.index('variance'))  # nobody learns them


@dataclass(frozen=True, eq=False)
class Settings:
    """What a stage is, besides its tensors.

    Args:
        eps: Of each BN; none without.
        of_batch: Which BN take the batch's statistics.
        sources: The sources of all nodes, one node after the other: -1 for the stage's input, which has no other beside
            it, otherwise a node that comes before.
        in_degrees: How many of them each node has.
        outputs: The nodes whose mean the stage puts out.
        stride: Of the nodes that read the stage's input.
        input_dilation: Of the same nodes.
        dilation: Of all others.
        keep: Put out `nodes`, which the backward pass reads, and without which it computes them again.
        constant: The matrices hardly ever change: keep what they are laid out as.
    """

    eps: list[float]
    of_batch: list[bool]
    sources: list[int]
    in_degrees: list[int]
    outputs: list[int]
    stride: int
    input_dilation: int
    dilation: int
    keep: bool = False
    constant: bool = False

    def values(self) -> tuple[Any, ...]:
        """In the order of the fields, as the operators take them."""
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.in_degrees)

    @property
    def wiring(self) -> tuple[tuple[int, ...], ...]:
        """The sources of each node."""
        return _wiring(tuple(self.sources), tuple(self.in_degrees))

    def weights_of_edges(self, edge_weights: Sequence[Any]) -> list[Any]:
        """The weights of each node; a single source is not weighted."""
        weights, start = [], 0
        for count in self.in_degrees:
            weights.append(edge_weights[start:start + count] if count > 1 else [1.0])
            start += count if count > 1 else 0
        return weights

    def steps(self, sources: Sequence[int]) -> tuple[int, int]:
        """Stride and dilation of a node with these sources."""
        return (self.stride, self.input_dilation) if sources[0] < 0 else (1, self.dilation)

    def output_shape(self, operands: Operands) -> tuple[int, int, int, int]:
        """Of every node's output, and of the stage's."""
        batch, _, height, width = operands.x.shape
        return (batch, operands.pointwise[0].shape[0], (height - 1) // self.stride + 1, (width - 1) // self.stride + 1)


# These are asked for in every step of every stage, whose wiring stays the same.


@lru_cache(maxsize=1024)
def _wiring(sources: tuple[int, ...], in_degrees: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(sources[start:end] for start, end in pairwise([0, *accumulate(in_degrees)]))


@lru_cache(maxsize=1024)
def _check_wiring(sources: tuple[int, ...], in_degrees: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    count = len(in_degrees)
    if count == 0 or min(in_degrees) < 1 or len(sources) != sum(in_degrees):
        raise ValueError(f'a stage cannot be computed: {len(sources)} sources are not those of nodes with {in_degrees}')
    wiring = _wiring(sources, in_degrees)
    if not all(of_node == (-1,) or (min(of_node) >= 0 and max(of_node) < i) for i, of_node in enumerate(wiring)):
        raise ValueError(f'a stage cannot be computed: sources come before their nodes, and -1 is alone, got {wiring}')
    if len(outputs) == 0 or len(set(outputs)) < len(outputs) or not (
            {*outputs} <= {*range(count)} <= {*outputs, *sources}):
        raise ValueError('a stage cannot be computed: outputs must be nodes, those that nobody reads among them, got '
                         f'{outputs}')


class StageResult(NamedTuple):
    """What a stage puts out.

    Args:
        out: [B, C, H', W'], the mean of the output nodes.
        mean: [N, C] fp32, what each node normalised by; [0, C] without BN.
        variance: [N, C] fp32, biased, likewise.
        nodes: What the N 1×1 convolutions put out, shaped like `out`, if `Settings.keep` asks for them; otherwise none.
    """

    out: Tensor
    mean: Tensor
    variance: Tensor
    nodes: list[Tensor]


def compute(operands: Operands, settings: Settings) -> StageResult:
    """What a stage computes: whatever torch can do with a function of its operators, it can do with this one."""
    x = operands.x
    data = {-1: x}
    means, variances, nodes = [], [], []
    edge_weights = operands.edge_weights.to(x.dtype)
    weights = settings.weights_of_edges(edge_weights.unbind() if edge_weights.numel() else ())
    with torch.autocast(x.device.type, enabled=False):  # whoever wants autocast asks the modules
        for i, sources in enumerate(settings.wiring):
            total = data[sources[0]]
            if len(sources) > 1:
                total = weighted([data[source] for source in sources], weights[i])
            stride, dilation = settings.steps(sources)
            kernel = operands.depthwise[i].to(x.dtype)
            hidden = F.conv2d(F.relu(total), kernel, None, stride, dilation, dilation, kernel.shape[0])
            bias = operands.biases[i].to(x.dtype) if operands.biases else None
            node = F.conv2d(hidden, operands.pointwise[i].to(x.dtype), bias)
            nodes.append(node)
            if operands.norm_weight is None or operands.norm_bias is None:
                data[i] = node
                continue
            affine = operands.norm_weight[i], operands.norm_bias[i]
            if settings.of_batch[i]:
                values = node.detach().float()
                mean, variance = values.mean((0, 2, 3)), values.var((0, 2, 3), correction=0)
                data[i] = F.batch_norm(node, None, None, *affine, True, 0.0, settings.eps[i])
            else:
                assert operands.mean is not None and operands.variance is not None
                mean, variance = operands.mean[i], operands.variance[i]
                data[i] = F.batch_norm(node, mean, variance, *affine, False, 0.0, settings.eps[i])
            means.append(mean)
            variances.append(variance)
        out = weighted([data[i] for i in settings.outputs], [1.0 / len(settings.outputs)] * len(settings.outputs))
    none = torch.zeros((0, nodes[0].shape[1]), dtype=torch.float32, device=x.device)
    return StageResult(out, torch.stack(means) if means else none, torch.stack(variances) if variances else none,
                       nodes if settings.keep else [])


def weighted(tensors: Sequence[Tensor], weights: Sequence[Any]) -> Tensor:
    """Their weighted sum."""
    total = tensors[0] * weights[0]
    for x, weight in zip(tensors[1:], weights[1:], strict=True):
        total = total + x * weight
    return total


def nested(flat: Sequence[Any], settings: Settings) -> Operands:
    """The reverse of `Operands.flat`."""
    rest, count = list(flat[FLAT:]), settings.num_nodes
    return Operands(
        *flat[:FLAT], rest[:count], rest[count:2 * count], rest[2 * count:])  # type: ignore[call-arg]


def check_lists(operands: Operands, settings: Settings) -> None:
    """Refuse lists of other lengths than the number of nodes, before they are put in a row."""
    count, found = settings.num_nodes, [len(tensors) for tensors in operands[FLAT:]]  # type: ignore[arg-type]
    if found not in ([count, count, 0], [count, count, count]):
        raise ValueError(f'a stage cannot be computed: {count} nodes need as many kernels, matrices and biases (or '
                         f'none), got {found[0]}, {found[1]} and {found[2]}')


def check(operands: Operands, settings: Settings) -> None:
    """Refuse what does not fit together: whatever passes can be computed without looking at a size again.

    Raises:
        ValueError: naming it.
    """
    count, x = settings.num_nodes, operands.x

    def fits(holds: bool, what: str, *values: Any) -> None:
        if not holds:
            raise ValueError(f'a stage cannot be computed: {what.format(*values)}')

    fits(x.dim() == 4 and x.numel() > 0 and x.dtype in DTYPES, 'x must be float32 or bfloat16 [B, C, H, W], got {} {}',
         x.dtype, tuple(x.shape))
    _check_wiring(tuple(settings.sources), tuple(settings.in_degrees), tuple(settings.outputs))
    fits(settings.stride in (1, 2) and 0 < settings.dilation < 2 ** 20 and 0 < settings.input_dilation < 2 ** 20,
         'strides are 1 and 2 and dilations positive, got {}, {} and {}', settings.stride, settings.input_dilation,
         settings.dilation)
    check_lists(operands, settings)
    channels, device = operands.pointwise[0].shape[0], x.device
    for i, (sources, depthwise, pointwise) in enumerate(
            zip(settings.wiring, operands.depthwise, operands.pointwise, strict=True)):
        in_channels = x.shape[1] if sources[0] < 0 else channels
        fits(depthwise.shape == (in_channels, 1, 3, 3) and pointwise.shape == (channels, in_channels, 1, 1),
             'node {} takes {} and puts out {} channels, but its convolutions are {} and {}', i, in_channels, channels,
             depthwise.shape, pointwise.shape)
        fits({depthwise.dtype, pointwise.dtype} <= {x.dtype, torch.float32},
             'x is {} and the convolutions of node {} are {} and {}', x.dtype, i, depthwise.dtype, pointwise.dtype)
        fits(depthwise.device == pointwise.device == device, 'x is on {} and the convolutions of node {} are on {} and '
             '{}', device, i, depthwise.device, pointwise.device)
    norm, edges = operands.norm_weight is not None, sum(degree for degree in settings.in_degrees if degree > 1)
    fits(norm == (operands.norm_bias is not None) and len(settings.eps) == len(settings.of_batch) == count * norm,
         'weight, bias, eps and of_batch of BN belong together')
    fits((operands.mean is None) == (operands.variance is None)
         and (operands.mean is not None or not norm or all(settings.of_batch)), 'running statistics are missing')
    for name, tensor, shape, dtype in (
            ('edge_weights', operands.edge_weights, (edges,), torch.float32),
            *[(name, getattr(operands, name), (count, channels), torch.float32) for name in Operands._fields[2:FLAT]],
            *[('a bias', bias, (channels,), x.dtype) for bias in operands.biases]):
        if tensor is not None and (tensor.shape, tensor.dtype, tensor.device) != (shape, dtype, device):
            raise ValueError(f'a stage cannot be computed: {name} must be {dtype} {shape} on {device}, got '
                             f'{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}')
