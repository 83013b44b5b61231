"""The RandWire network that the inter-operator scheduler was measured on (Ding et al., MLSys 2021), batch 1, 224 px.

    git clone https://github.com/mit-han-lab/inter-operator-scheduler
    git -C inter-operator-scheduler checkout 91963c06
    python benchmarks/interoperator.py --scheduler inter-operator-scheduler [--device cuda] [--json FILE]

Regular regime, C = 154, on the four graphs of that repository (`randwire_large`), without BN and without a classifier,
in fp32. Ours also weighs edges, averages the outputs of a stage where theirs adds them, and has a ReLU after the head;
the convolutions are the same. On the CPU: torch eagerly and compiled, and our native kernels. On a GPU: eagerly, as one
captured CUDA graph, and as one in which nodes of a stage that do not wait for each other are on several streams.
"""
from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from common import add_json_argument, paired_seconds, write_json
from speed import Step, eval_step, on_kernels
from tables import format_table, interoperator_table, machine_line
from torch import Tensor

from randwire_zoo import deploy, use_kernels
from randwire_zoo.graphs import Graph
from randwire_zoo.network import RandWire, Stage

GRAPHS = ('ws-16-4-0.75-2', 'ws-32-4-0.75-3', 'ws-32-4-0.75-4', 'ws-32-4-0.75-5')
FOLDER = 'python/ios/models/randwire_graphs/generated'


def read_graph(path: Path) -> Graph:
    """A graph of theirs: the numbers of nodes and edges, then the edges."""
    num_nodes, num_edges, *ends = map(int, path.read_text(encoding='utf-8').split())
    if len(ends) != 2 * num_edges:
        raise SystemExit(f'interoperator.py: {path} names {num_edges} edges and has {len(ends) / 2:g}')
    return Graph(num_nodes, tuple(sorted(zip(ends[::2], ends[1::2], strict=True))))


def streams_of(sources: Sequence[Sequence[int]], count: int) -> list[int]:
    """A stream for each node: that of a source which ran last there, so that a chain needs no events, or the next one.

    Args:
        sources: Of each node, in the order in which they run; -1 is the stage's input.
        count: Streams.
    """
    chosen: list[int] = []
    last: dict[int, int] = {}  # the node that was put last on each stream
    for node, before in enumerate(sources):
        free = [chosen[source] for source in before if source >= 0 and last[chosen[source]] == source]
        # With no such source, the stream whose last node is longest ago.
        stream = free[0] if free else min(range(count), key=lambda one: last.get(one, -1))
        chosen.append(stream)
        last[stream] = node
    return chosen


class Here:
    """What a stream is where there are none: everything is done at once, in order."""

    def wait_event(self, event: Any) -> None:
        """Nothing to wait for."""

    def record_event(self) -> None:
        """Nothing to record."""


def stage_on_streams(stage: Any, x: Tensor, kept_edges: Tensor | None = None, streams: Sequence[Any] = ()) -> Tensor:
    """A deployed stage whose nodes are put on streams: each waits for its sources, and for nothing else."""
    current = torch.cuda.current_stream() if x.is_cuda else Here()
    places = streams_of(stage.sources, len(streams))
    data: dict[int, Tensor] = {-1: F.relu(x)}
    events = {-1: current.record_event()}
    for node, (before, place) in enumerate(zip(stage.sources, places, strict=True)):
        stream = streams[place]
        for source in before:
            if source < 0 or places[source] != place:
                stream.wait_event(events[source])
        with torch.cuda.stream(stream) if x.is_cuda else nullcontext():
            data[node] = stage.nodes[node]([data[source] for source in before])
            events[node] = stream.record_event()
    # All of them: what is freed below may be written over by whatever comes next on these streams.
    for node in range(len(places)):
        current.wait_event(events[node])
    mean = sum(data[node] for node, is_output in enumerate(stage.is_output) if is_output)
    assert isinstance(mean, Tensor)
    return mean / stage.num_outputs


def put_on_streams(model: RandWire, streams: Sequence[Any]) -> RandWire:
    """Let all random stages of a deployed network run so; changes and returns it."""
    for stage in model.modules():
        if isinstance(stage, Stage):
            stage.forward = MethodType(  # type: ignore[method-assign]
                lambda self, x, kept_edges=None: stage_on_streams(self, x, kept_edges, streams), stage)
    return model


def captured(model: RandWire, images: Tensor) -> Step:
    """One CUDA graph of a forward pass."""
    step = eval_step(model, images)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--scheduler', type=Path, required=True, metavar='DIR', help='a clone of their repository')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--streams', type=int, nargs='+', default=[2, 4, 8])
    parser.add_argument('--channels', type=int, default=154)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--rounds', type=int, default=36)  # theirs: six times six
    parser.add_argument('--cpu-time', action='store_true', help='of one thread, on a machine that is at other work')
    parser.add_argument('--no-compile', action='store_true', help='which takes minutes')
    add_json_argument(parser)
    args = parser.parse_args(arguments)
    if args.cpu_time and (torch.get_num_threads() > 1 or args.device != 'cpu'):
        parser.error('--cpu-time needs one thread (OMP_NUM_THREADS=1) on the CPU')
    torch.manual_seed(0)
    device = torch.device(args.device)
    graphs = [read_graph(args.scheduler / FOLDER / f'{name}.txt') for name in GRAPHS]
    model = deploy(RandWire(graphs, regime='regular', channels=args.channels, num_classes=0)).to(device)
    images = torch.randn(1, 3, args.size, args.size, device=device)
    steps: dict[str, Step] = {}
    if device.type == 'cpu':
        use_kernels('native')  # malloc keeps memory from here on, for all
    for layout, words in ((torch.contiguous_format, ', contiguous'), (torch.channels_last, '')):
        form, pictures = deploy_in(model, layout), images.contiguous(memory_format=layout)
        steps[f'eager{words}'] = on_kernels('torch', eval_step(form, pictures))
        if layout == torch.channels_last and not args.no_compile:
            steps[f'compiled{words}'] = on_kernels('torch', eval_step(
                torch.compile(form, mode='max-autotune-no-cudagraphs' if device.type == 'cuda' else None), pictures))
        if device.type == 'cuda':
            steps[f'one CUDA graph{words}'] = captured(form, pictures)
            for count in args.streams:
                streams = [torch.cuda.Stream() for _ in range(count)]
                steps[f'one CUDA graph, {count} streams{words}'] = captured(
                    put_on_streams(deploy_in(model, layout), streams), pictures)
    if device.type == 'cpu':
        steps['native'] = on_kernels('native', eval_step(model, images.contiguous(memory_format=torch.channels_last)))
    seconds = paired_seconds(steps, args.rounds, clock=time.thread_time if args.cpu_time else time.perf_counter)
    record = write_json(args, {
        'clock': 'CPU' if args.cpu_time else 'wall', 'batch': 1, 'size': args.size, 'channels': args.channels,
        'dtype': 'float32', 'graphs': list(GRAPHS), 'seconds': seconds})
    print(machine_line(record))
    print(format_table(interoperator_table(record)))


def deploy_in(model: RandWire, layout: torch.memory_format) -> RandWire:
    """A copy in another memory format."""
    return copy.deepcopy(model).to(memory_format=layout)  # type: ignore[call-overload,no-any-return]


if __name__ == '__main__':
    main()
