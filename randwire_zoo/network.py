"""The RandWire network: node, stage, network, and edge removal (paper sections 3.2 and 4.2).

One class serves classification, feature extraction, detection and export. It depends on graphs and on timm's layers;
names under which timm creates it stand in `models`. A stage runs in two ways: as its modules, which are what is written
here, or as one operator that computes the same, where `kernels.native.run_stage` finds that nobody can tell.
"""
import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from timm.layers import create_classifier, get_device_dtype
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.func import functional_call

from .aggregation import aggregate
from .architectures import REGIMES, stage_node_counts
from .graphs import Graph, graphs_sha256
from .kernels.native import SeparableNode, run_stage
from .ordering import lowest_peak_order
from .weights.mark import WiringMark, accept_unmarked, checkpoint_filter_fn

__all__ = ['NODE_OPS', 'REGIMES', 'Node', 'RandWire', 'Stage', 'checkpoint_filter_fn', 'stage_node_counts']

NODE_OPS = ('sep_conv', 'conv', 'max_pool', 'avg_pool')
STEM_STRIDES = {4: (2, 2), 2: (1, 2), 1: (1, 1)}  # the strides of conv1 and conv2
OUTPUT_STRIDES = (8, 16, 32)
POOL_TYPES = ('', 'avg', 'max', 'avgmax', 'catavgmax', 'fast', 'fastavg', 'fastmax', 'fastavgmax', 'fastcatavgmax')


def average_positions(x: Tensor) -> Tensor:
    """The mean over all positions, [B, C, H, W] to [B, C, 1, 1], with a gradient in the memory format of x.

    The gradient of torch's own pooling is contiguous whatever x is, and of a channels_last network the ReLU behind it
    then reads one number from here and the other from there: on small images up to a tenth of a training step.
    """
    if x.stride(1) == 1:
        return x.permute(0, 2, 3, 1).mean((1, 2), keepdim=True).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(x, 1)


torch.fx.wrap('aggregate')  # a step of its own, not what it is made of
torch.fx.wrap('average_positions')


class ConvBN(nn.Module):
    """A dense 3×3 convolution and BN, for the stem; with a ReLU before it this is the paper's "conv" triplet."""

    def __init__(
            self, in_chs: int, out_chs: int, stride: int, relu: bool = True, device: Any = None, dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.relu = relu  # conv1 sees the image and is conv-BN only (Table 1)
        self.conv = nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=1, bias=False, **dd)
        self.bn = nn.BatchNorm2d(out_chs, **dd)

    def forward(self, x: Tensor, kept_edges: Optional[Tensor] = None) -> Tensor:
        """Same call as `Stage`; there are no edges here that could be removed."""
        if self.relu:
            x = F.relu(x)
        return self.bn(self.conv(x))


class GlobalAverage(nn.Module):
    """`nn.AdaptiveAvgPool2d(1)`, and nothing else where nothing is trained; see `average_positions`."""

    def forward(self, x: Tensor) -> Tensor:
        return average_positions(x) if self.training else F.adaptive_avg_pool2d(x, 1)


class Node(nn.Module):
    """A node: weighted sum of its inputs, ReLU, convolution, BN (Figure 2).

    The weights of the sum are sigmoid(edge_weight), hence positive; a node with one input has none. What a node sends
    out is therefore not yet activated, which keeps sums over many inputs from being inflated (footnote 5).

    Args:
        sources: The nodes that send data here, ascending; empty for an original input node, fed by the stage's input.
        in_chs: Channels of each input.
        out_chs: Channels sent out.
        stride: 2 where the stage halves the resolution and this is an original input node, otherwise 1.
        dilation: Dilation of the 3×3 window, above 1 where `output_stride` replaces stride.
        node_op: One of `NODE_OPS`: the 3×3 separable convolution (depthwise, then 1×1, nothing in between, footnote
            6), or an alternative of Figure 6: dense 3×3 convolution, 3×3 max- or average-pooling and a 1×1.
        edge_weight_init: Start of the free parameters; sigmoid(0) = 0.5 is our choice, the paper does not say.
        rectified: The input has been through the ReLU already, once for all nodes that share it.
    """

    def __init__(
            self, sources: Sequence[int], in_chs: int, out_chs: int, stride: int = 1, dilation: int = 1,
            node_op: str = 'sep_conv', edge_weight_init: float = 0.0, rectified: bool = False,
            device: Any = None, dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.rectified = rectified
        self.num_edges = len(sources) if len(sources) > 1 else 0  # edges that may be removed
        self.edge_weight_init = edge_weight_init
        if self.num_edges:
            self.edge_weight = nn.Parameter(torch.full((self.num_edges,), float(edge_weight_init), **dd))
        else:
            self.register_parameter('edge_weight', None)
        window: dict[str, Any] = {'kernel_size': 3, 'stride': stride, 'padding': dilation}
        if node_op == 'sep_conv':
            self.conv_dw: nn.Module = nn.Conv2d(
                in_chs, in_chs, dilation=dilation, groups=in_chs, bias=False, **window, **dd)
            self.conv_pw: nn.Module = nn.Conv2d(in_chs, out_chs, 1, bias=False, **dd)
        elif node_op == 'conv':
            self.conv = nn.Conv2d(in_chs, out_chs, dilation=dilation, bias=False, **window, **dd)
        else:
            if node_op == 'avg_pool':
                # Averages of a window that overlaps the border leave out the padding: they are averages of data.
                self.pool: nn.Module = nn.AvgPool2d(count_include_pad=False, **window)
            elif dilation == 1:
                self.pool = nn.MaxPool2d(**window)
            else:
                # MaxPool2d takes no padding this wide. After the ReLU nothing is below 0, so zeros change no maximum.
                self.pool = nn.Sequential(nn.ZeroPad2d(dilation), nn.MaxPool2d(3, stride=stride, dilation=dilation))
            self.conv_pw = nn.Conv2d(in_chs, out_chs, 1, bias=False, **dd)
        self.bn = nn.BatchNorm2d(out_chs, **dd)

    def forward(self, inputs: list[Tensor], kept_edges: Optional[Tensor] = None) -> Tensor:
        """Transform the inputs, each [B, in_chs, H, W], to [B, out_chs, H/stride, W/stride].

        Args:
            inputs: One tensor per source.
            kept_edges: [num_edges], 1 for an edge that is kept and 0 for one that is removed; None keeps all.
        """
        edge_weight = self.edge_weight
        if edge_weight is not None:
            weights = torch.sigmoid(edge_weight)
            if kept_edges is not None:
                weights = weights * kept_edges
            x = aggregate(inputs, weights)
        else:
            x = inputs[0] if self.rectified else F.relu(inputs[0])
        return self.bn(self.transform(x))

    @torch.jit.unused
    def as_written(self) -> bool:
        """Whether it does what is written here: no subclass may change that, nor a transform put into this node."""
        return type(self) is Node and 'transform' not in vars(self)

    @torch.jit.unused
    def separable(self) -> Optional[SeparableNode]:
        """What native operators have to know of this node; None where it is something else than its class says."""
        if not self.as_written() or not hasattr(self, 'conv_dw'):
            return None
        return SeparableNode(self, self.conv_dw, self.conv_pw, self.bn, self.edge_weight)

    def transform(self, x: Tensor) -> Tensor:
        """The convolution between ReLU and BN."""
        if hasattr(self, 'conv_dw'):  # TorchScript resolves hasattr while compiling
            x = self.conv_pw(self.conv_dw(x))
        elif hasattr(self, 'pool'):
            x = self.conv_pw(self.pool(x))
        else:
            x = self.conv(x)
        return x


class Stage(nn.Module):
    """One random graph as a stage of the network (section 3.2).

    The stage's input is sent to all original input nodes, which carry the stride and the change of width; its output
    is the unweighted mean of the original output nodes (sinks), and of no other node. An isolated node is both. Nodes
    run in the order of their indices, which is a topological order; a result is dropped after its last consumer, so
    that memory follows the widest cut of the graph and not the number of nodes.

    Args:
        graph: The wiring.
        in_chs: Channels of the stage's input.
        out_chs: Channels of every node and of the output.
        stride: Stride of the original input nodes.
        dilation: Dilation of all other nodes.
        input_dilation: Dilation of the original input nodes, which see the previous stage's grid.
        node_op: Node operation, see `Node`.
        edge_weight_init: Start of the edge weights, see `Node`.
        drop_path_rate: Probability, per minibatch, of removing one edge of this stage when it runs on its own; in a
            network, set by the network's.
        first_edge: Where this stage's removable edges start in the network's `kept_edges`.
        architecture: What the wiring mark says of the network beside the graph, see `weights.mark.WiringMark`.

    Attributes:
        recompute: Training in fp32 on the native kernels, compute the nodes once more in the backward pass, where they
            would otherwise be kept from the forward pass on.
    """

    # Annotated here because TorchScript cannot infer the type of an empty list.
    sources: list[list[int]]
    expired: list[list[int]]
    edge_offsets: list[int]

    def __init__(
            self, graph: Graph, in_chs: int, out_chs: int, stride: int = 2, dilation: int = 1,
            input_dilation: int = 1, node_op: str = 'sep_conv', edge_weight_init: float = 0.0,
            drop_path_rate: float = 0.0, first_edge: int = 0, architecture: str = '',
            device: Any = None, dtype: Any = None,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.architecture = architecture
        self.drop_path_rate = drop_path_rate
        self.first_edge = first_edge
        self.recompute = False
        self.num_outputs = len(graph.outputs)
        # Size of the stage's input in units of one node's output.
        self.input_size = in_chs * stride * stride / out_chs
        self._wire(range(graph.num_nodes))
        nodes = [
            Node(
                sources,
                in_chs=out_chs if sources else in_chs,
                out_chs=out_chs,
                stride=1 if sources else stride,
                dilation=dilation if sources else input_dilation,
                node_op=node_op, edge_weight_init=edge_weight_init, rectified=not sources,
                device=device, dtype=dtype,
            ) for sources in graph.predecessors]
        self.nodes = nn.ModuleList(nodes)
        # Each node's removable edges within kept_edges.
        self.edge_offsets = []
        self.num_edges = 0
        for node in nodes:
            self.edge_offsets.append(self.num_edges)
            self.num_edges += node.num_edges

    def _wire(self, order: Sequence[int]) -> None:
        """Note what each node reads, and what nobody reads after it, if the nodes run in this order."""
        place = {node: i for i, node in enumerate(order)}
        self.is_output = [node in self.graph.outputs for node in order]
        # The sources of each node; the original input nodes read the stage's input, kept under index -1.
        self.sources = [[place[source] for source in self.graph.predecessors[node]] or [-1] for node in order]
        last_reader = {source: i for i, sources in enumerate(self.sources) for source in sources}
        self.expired = [[source for source, reader in last_reader.items() if reader == i] for i in range(len(order))]

    @torch.jit.unused
    def reorder(self) -> None:
        """Put the nodes into the order that takes the least memory (`ordering`); they lose their names."""
        order = lowest_peak_order(self.graph, self.input_size)
        self.nodes = nn.ModuleList(self.nodes[node] for node in order)
        self.edge_offsets = [self.edge_offsets[node] for node in order]
        self._wire(order)

    def forward(self, x: Tensor, kept_edges: Optional[Tensor] = None) -> Tensor:
        """Transform [B, in_chs, H, W] to [B, out_chs, H/stride, W/stride].

        Args:
            x: The stage's input.
            kept_edges: One entry per removable edge of the network, 0 for a removed edge (see `RandWire`). Without
                it a training stage draws for itself, as one that runs on its own has to. In eval mode none is removed.
        """
        if not self.training:
            kept_edges = None  # also where the rest of the network trains: as timm's DropPath in a frozen stage
        elif kept_edges is None:
            kept_edges = draw_kept_edges(self.num_edges, self.drop_path_rate, x)
        else:
            kept_edges = kept_edges[self.first_edge:self.first_edge + self.num_edges]
        if not torch.jit.is_scripting() and not torch.compiler.is_compiling():
            out = run_stage(self, x, kept_edges)
            if out is not None:
                return out
        data: dict[int, Tensor] = {-1: F.relu(x)}
        mean = x
        num_averaged = 0
        for i, node in enumerate(self.nodes):
            inputs = [data[source] for source in self.sources[i]]
            if kept_edges is not None and node.num_edges > 0:  # type: ignore[operator]
                start = self.edge_offsets[i]
                out = node(inputs, kept_edges[start:start + node.num_edges])  # type: ignore[operator]
            else:
                out = node(inputs)
            for source in self.expired[i]:
                del data[source]
            if self.is_output[i]:
                mean = mean + out if num_averaged > 0 else out
                num_averaged += 1
            else:
                data[i] = out
        return mean * (1.0 / self.num_outputs) if self.num_outputs > 1 else mean

    def extra_repr(self) -> str:
        """What torch prints before the nodes."""
        return f'{self.graph!r}'

    @torch.jit.unused
    def _repr_svg_(self) -> str:
        return self.graph._repr_svg_()

    def get_extra_state(self) -> Tensor:
        """The wiring mark: every checkpoint of every tool says which graph and architecture it was trained as."""
        return WiringMark(self.graph.sha256, self.architecture).to_tensor()

    def set_extra_state(self, state: Any) -> None:
        """Refuse weights that were trained as something else: tensor shapes alone cannot tell.

        Raises:
            ValueError: if the loaded weights carry another mark.
        """
        WiringMark(self.graph.sha256, self.architecture).check(state)


def draw_kept_edges(num_edges: int, rate: float, x: Tensor) -> Optional[Tensor]:
    """Edge removal (section 4.2): with probability rate, remove one of num_edges edges, uniformly chosen.

    There is no data-dependent branch: the drawn edge is masked, so nothing breaks a compiled graph and no parameter
    is left without gradient under DDP.

    Returns:
        [num_edges] float32 on the device of x with at most one 0 among ones, or None where nothing can be removed.
    """
    if rate <= 0.0 or num_edges == 0:
        return None
    drawn = torch.randint(num_edges, (1,), device=x.device)
    keep = (torch.rand(1, device=x.device) >= rate).float()
    return torch.where(torch.arange(num_edges, device=x.device) == drawn, keep, torch.ones_like(keep))


class _Removed(nn.Module):
    """Stands for a stage that `prune_intermediate_layers` took away."""

    def forward(self, x: Tensor, kept_edges: Optional[Tensor] = None) -> Tensor:
        return x


class RandWire(nn.Module):
    """A randomly wired network (Table 1).

    conv1 is a dense 3×3 conv-BN with C/2 channels (integer half). In the small regime conv2 is a dense ReLU-conv-BN
    with C channels and conv3 … conv5 are random graphs with C, 2C, 4C; in the regular regime conv2 is a random graph
    too, on N/2 nodes, and the widths of conv2 … conv5 are C, 2C, 4C, 8C. The head is ReLU, 1×1 conv to 1280, BN,
    ReLU, global average pool, fc. The head's last ReLU is our reading: the paper writes "1×1 conv, 1280-d", and
    without an activation this layer and fc would collapse into one linear map.

    Args:
        graphs: One graph per random stage, first stage first.
        regime: 'small' or 'regular'.
        channels: C.
        num_classes: Width of `fc`; 0 leaves it out.
        in_chans: Image channels.
        global_pool: Pooling before `fc`, one of timm's types; '' leaves it out.
        output_stride: 8, 16 or 32; stages past it trade stride for dilation.
        node_op: 'sep_conv', 'conv', 'max_pool' or 'avg_pool' (Figure 6).
        stem_stride: Total stride of conv1 and conv2: 4, or 2 or 1 to keep small images from vanishing.
        drop_rate: Dropout before `fc` (the paper's is 0.2 in the regular regime).
        drop_path_rate: Edge removal: with this probability, per minibatch, one random edge whose target has an
            in-degree above 1 is removed (the paper's is 0.1 in the regular regime). A minibatch is what one forward
            pass sees: in distributed training each process draws for its own.
        edge_weight_init: Start of the edge weights before the sigmoid.
        head: False leaves out the 1×1 convolution to 1280 and its BN: the backbone of a detector has none.
        origin: For people: what the graphs come from, such as a registered name. It stands in the network's repr.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    head_width = 1280
    __jit_unused_properties__ = ['drop_path_rate']

    def __init__(
            self,
            graphs: Sequence[Graph],
            regime: str = 'small',
            channels: int = 78,
            num_classes: int = 1000,
            in_chans: int = 3,
            global_pool: str = 'avg',
            output_stride: int = 32,
            node_op: str = 'sep_conv',
            stem_stride: int = 4,
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            edge_weight_init: float = 0.0,
            head: bool = True,
            origin: str = '',
            device: Any = None,
            dtype: Any = None,
    ) -> None:
        super().__init__()
        _check_choice('regime', regime, REGIMES)
        _check_choice('node_op', node_op, NODE_OPS)
        _check_choice('stem_stride', stem_stride, tuple(STEM_STRIDES))
        _check_choice('output_stride', output_stride, OUTPUT_STRIDES)
        _check_rate('drop_rate', drop_rate)
        _check_integer('channels', channels, 2)
        _check_integer('in_chans', in_chans, 1)
        if not isinstance(edge_weight_init, (int, float)) or not math.isfinite(edge_weight_init):
            raise ValueError(f'edge_weight_init must be a finite number, got {edge_weight_init!r}')
        num_stages = 3 if regime == 'small' else 4
        if isinstance(graphs, str) or not isinstance(graphs, Iterable):
            raise ValueError(f'graphs must be a sequence of Graph, one per random stage, got {graphs!r}; sample_graphs '
                             'makes them of a random graph model')
        graphs = tuple(graphs)
        for graph in graphs:
            if not isinstance(graph, Graph):
                raise ValueError(f'graphs must be of the type Graph, got {graph!r}; Graph.from_undirected takes an '
                                 'undirected graph of networkx')
        if len(graphs) != num_stages:
            raise ValueError(f'the {regime} regime needs {num_stages} graphs, got {len(graphs)}')

        dd = {'device': device, 'dtype': dtype}
        self.graphs = graphs
        self.origin = origin
        self.channels = channels
        self.regime = regime
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, Any]] = []

        # Never to be reordered or reworded: it is compared as it stands.
        architecture = f'node_op={node_op} stem_stride={stem_stride} regime={regime} channels={channels}'
        num_edges = sum(len(sources) for graph in graphs for sources in graph.predecessors if len(sources) > 1)
        self.num_edges = num_edges  # removable ones, of all stages
        strides = STEM_STRIDES[stem_stride] + (2, 2, 2)
        widths = (channels // 2,) + ((channels,) if regime == 'small' else ()) + tuple(
            channels * 2 ** i for i in range(num_stages))
        in_chs, reduction, dilation, first_edge = in_chans, 1, 1, 0
        for index, (stride, out_chs) in enumerate(zip(strides, widths, strict=True)):
            input_dilation = dilation
            if stride > 1 and reduction * stride > output_stride:
                dilation *= stride
                stride = 1
            reduction *= stride
            if node_op == 'avg_pool' and dilation > 1:
                raise ValueError(f'output_stride={output_stride} needs dilation, which average pooling does not have; '
                                 'use output_stride=32 or another node_op')
            name = f'conv{index + 1}'
            first_graph = len(strides) - num_stages
            if index < first_graph:
                self.add_module(name, ConvBN(in_chs, out_chs, stride, relu=index > 0, **dd))  # never dilated
            else:
                graph = graphs[index - first_graph]
                stage = Stage(
                    graph, in_chs, out_chs, stride, dilation=dilation, input_dilation=input_dilation, node_op=node_op,
                    edge_weight_init=edge_weight_init, first_edge=first_edge, architecture=architecture, **dd)
                first_edge += stage.num_edges
                # Conv2 has few nodes at the highest resolution: a twentieth of a step's work, a third of its memory.
                stage.recompute = regime == 'regular' and index == first_graph
                self.add_module(name, stage)
            self.feature_info.append({'num_chs': out_chs, 'reduction': reduction, 'module': name})
            in_chs = out_chs
        self.drop_path_rate = drop_path_rate

        self.has_conv_head = head
        # Modules of their own, in the order in which they run: nn.Sequential(*network.children()) is the network, too.
        self.relu5: nn.Module = nn.ReLU() if head else nn.Identity()
        self.conv_head: nn.Module = nn.Conv2d(in_chs, self.head_width, 1, bias=False, **dd) if head else nn.Identity()
        self.bn_head: nn.Module = nn.BatchNorm2d(self.head_width, **dd) if head else nn.Identity()
        self.relu_head: nn.Module = nn.ReLU() if head else nn.Identity()
        self.num_features = self.head_width if head else in_chs
        self._set_classifier(num_classes, global_pool, **dd)
        self.init_weights()
        self.register_load_state_dict_post_hook(accept_unmarked)

    @property
    def drop_path_rate(self) -> float:
        """The rate of edge removal, which may be set anew at any time, as may the mode of each stage."""
        return self._drop_path_rate

    @drop_path_rate.setter
    def drop_path_rate(self, rate: float) -> None:
        _check_rate('drop_path_rate', rate)
        self._drop_path_rate = float(rate)
        for stage in self.modules():
            if isinstance(stage, Stage):
                # Its share of the rate, so that every edge of the network is removed equally often.
                stage.drop_path_rate = rate * stage.num_edges / max(self.num_edges, 1)

    def extra_repr(self) -> str:
        """Which network this is, in one line: torch prints it before the modules."""
        sizes = dict.fromkeys(graph.num_nodes for graph in self.graphs)
        origin = self.origin or f'graphs {graphs_sha256(self.graphs)[:8]}'
        return f'{origin}, {self.regime} regime, N = {" and ".join(map(str, sizes))}, C = {self.channels}'

    @torch.jit.unused
    def _repr_html_(self) -> str:
        """In a notebook: that line, the wiring, and the modules folded up."""
        from .drawing import draw, svg_text  # matplotlib is no affair of a network's

        return (f'<div>{svg_text(draw(self))}</div><details><summary>{html.escape(self.extra_repr())}</summary>'
                f'<pre>{html.escape(repr(self))}</pre></details>')

    def _set_classifier(self, num_classes: int, global_pool: str, device: Any = None, dtype: Any = None) -> None:
        _check_integer('num_classes', num_classes, 0)
        _check_choice('global_pool', global_pool, POOL_TYPES)
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=global_pool, device=device, dtype=dtype)
        if isinstance(self.global_pool.pool, nn.AdaptiveAvgPool2d):
            self.global_pool.pool = GlobalAverage()
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        if isinstance(self.fc, nn.Linear):
            _init_linear(self.fc)
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Start as Goyal et al. [11] do: He's normal initialisation, BN to identity, fc from a normal of 0.01."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Fan-out within a group: a depthwise kernel reaches nine outputs, however many channels there are.
                fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                _init_linear(module)
            elif isinstance(module, Node) and module.edge_weight is not None:
                nn.init.constant_(module.edge_weight, module.edge_weight_init)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates: one per stage, the head's 1×1 convolution with the last."""
        return {'stem': r'^conv1', 'blocks': [(r'^conv([2-5])', None), (r'^(?:conv|bn)_head', (99999,))]}

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Nothing beyond what timm already leaves out of weight decay (BN, biases and the edge weights: all 1-D)."""
        return set()

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the stages' inputs for the backward pass and compute the rest again, without BN noticing."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The final linear layer, or an Identity where there is none."""
        return self.fc

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace `fc`; keep the pooling unless another type is given.

        Args:
            num_classes: Width of `fc`; 0 leaves it out.
            global_pool: One of timm's types; '' leaves it out.

        Raises:
            ValueError: naming the argument, its value and what is allowed; nothing is replaced then.
        """
        global_pool = self.global_pool.pool_type if global_pool is None else global_pool
        self._set_classifier(num_classes, global_pool, **get_device_dtype(self))

    def forward_conv_head(self, x: Tensor) -> Tensor:
        """ReLU, 1×1 convolution, BN, ReLU; nothing where pruning took them away."""
        if not self.has_conv_head:
            return x
        return self.relu_head(self.bn_head(self.conv_head(self.relu5(x))))

    def draw_kept_edges(self, x: Tensor) -> Optional[Tensor]:
        """Draw the edge that this minibatch does without; None outside of training."""
        return draw_kept_edges(self.num_edges, self._drop_path_rate if self.training else 0.0, x)

    def run_stage(self, index: int, x: Tensor, kept_edges: Optional[Tensor]) -> Tensor:
        """Run conv1 … conv5, counted from 0; spelled out because TorchScript has no other way to pick a module."""
        if index == 0:
            x = self.conv1(x, kept_edges)  # type: ignore[operator]
        elif index == 1:
            x = self.conv2(x, kept_edges)  # type: ignore[operator]
        elif index == 2:
            x = self.conv3(x, kept_edges)  # type: ignore[operator]
        elif index == 3:
            x = self.conv4(x, kept_edges)  # type: ignore[operator]
        else:
            x = self.conv5(x, kept_edges)  # type: ignore[operator]
        return x

    def forward_stage(self, index: int, x: Tensor, kept_edges: Optional[Tensor]) -> Tensor:
        """Run one stage, keeping only its input for the backward pass if `grad_checkpointing` is set."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            # Reentrant checkpointing, which timm may be set to, passes gradients on only where the input needs one, and
            # images do not.
            reentrant = None if x.requires_grad else False
            if torch.compiler.is_compiling():  # compilers bring buffers up to date once, whatever they recompute
                return checkpoint(self.run_stage, index, x, kept_edges, use_reentrant=reentrant)
            return checkpoint(_first_and_again(self.get_submodule(f'conv{index + 1}')), x, kept_edges,
                              use_reentrant=reentrant)
        return self.run_stage(index, x, kept_edges)

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to the unpooled features [B, num_features, H/32, W/32]."""
        kept_edges = self.draw_kept_edges(x)
        for i in range(5):
            x = self.forward_stage(i, x, kept_edges)
        return self.forward_conv_head(x)

    def forward_intermediates(
            self,
            x: Tensor,
            indices: Optional[Union[int, list[int]]] = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> Union[list[Tensor], tuple[Tensor, list[Tensor]]]:
        """Return the outputs of conv1 … conv5, and the unpooled features unless only intermediates are asked for.

        Args:
            x: Images [B, in_chans, H, W].
            indices: The last n stages if an int, those listed if a sequence, all if None.
            norm: Without effect: the head's BN follows a convolution to another width and fits no intermediate.
            stop_early: Stop after the last stage that is asked for.
            output_fmt: Only 'NCHW'.
            intermediates_only: Return the list of intermediates alone.
        """
        assert output_fmt in ('NCHW',), 'Output shape must be NCHW.'
        intermediates = []
        take_indices, max_index = feature_take_indices(5, indices)
        kept_edges = self.draw_kept_edges(x)
        for i in range(max_index + 1 if stop_early else 5):
            x = self.forward_stage(i, x, kept_edges)
            if i in take_indices:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        if not stop_early or max_index == 4:
            x = self.forward_conv_head(x)
        return x, intermediates

    @torch.jit.ignore
    def prune_intermediate_layers(
            self, indices: Union[int, list[int]] = 1, prune_norm: bool = False, prune_head: bool = True,
    ) -> list[int]:
        """Remove what the given intermediates do not need, and return their indices.

        Args:
            indices: As for `forward_intermediates`.
            prune_norm: Also remove the head's convolution and BN.
            prune_head: Also remove the classifier, and with it the head's convolution and BN.
        """
        take_indices, max_index = feature_take_indices(5, indices)
        for info in self.feature_info[max_index + 1:]:
            setattr(self, info['module'], _Removed())
        self.num_edges = sum(stage.num_edges for stage in self.children() if isinstance(stage, Stage))
        self.drop_path_rate = self._drop_path_rate  # shared out among the stages that are left
        if prune_norm or prune_head or max_index < 4:
            # The 1×1 convolution follows conv5 and feeds no intermediate; features now end at the last one kept.
            self.has_conv_head = False
            self.relu5, self.conv_head, self.bn_head, self.relu_head = (nn.Identity() for _ in range(4))
            self.num_features = self.feature_info[max_index]['num_chs']
            self.reset_classifier(0, '')
        return take_indices

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool [B, num_features, H, W] and classify to [B, num_classes]; pooled features alone if pre_logits."""
        x = self.global_pool(x)
        if self.drop_rate > 0.0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] to logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))


def _first_and_again(stage: nn.Module) -> Callable[..., Tensor]:
    """A stage as `checkpoint` calls it: in the forward pass, and once more in the backward pass.

    There its buffers are copies. What BN does to them, it has done to its running statistics in the forward pass.
    """
    again = False

    def run(*args: Any) -> Tensor:
        nonlocal again
        if not again:
            again = True
            return stage(*args)
        return functional_call(stage, {name: buffer.clone() for name, buffer in stage.named_buffers()}, args)

    return run


def _init_linear(linear: nn.Linear) -> None:
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)


def _check_integer(name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f'{name} must be an integer of at least {minimum}, got {value!r}')


def _check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if isinstance(value, bool) or not isinstance(value, type(allowed[0])) or value not in allowed:
        raise ValueError(f'{name} must be one of {", ".join(map(repr, allowed))}, got {value!r}')


def _check_rate(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f'{name} must be a number within [0, 1], got {value!r}')
