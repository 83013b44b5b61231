"""The registered names: what each stands for. Nothing here needs torch.

The paper's tables that a name belongs to:

    randwire_ws_small_s1 … _s5                      WS(4, 0.75), C = 78: Table 2 and the best bar of Figure 3
    randwire_er_small_s1 … _s5, randwire_ba_small_… ER(0.2) and BA(5), C = 78: Figure 3
    randwire_ws_c109, randwire_ws_c109_s2 … _s5     WS(4, 0.75), C = 109: Tables 3 and 5
    randwire_ws_c154, randwire_ws_c154_s2 … _s5     WS(4, 0.75), C = 154: Tables 3, 4 (at 320 px) and 5
    randwire_ws_pico                                for quick starts and tests, not in the paper

`models` gives them to timm.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .errors import nearest
from .frozen import load_graphs
from .graphs import Graph, GraphModel, parse_graph_model, sample_graphs

__all__ = ['ARCHITECTURES', 'REGIMES', 'Architecture', 'Wiring', 'find_wiring', 'sample_architecture', 'stage_names',
           'stage_node_counts', 'suggest']

REGIMES = ('small', 'regular')


@dataclass(frozen=True)
class Architecture:
    """What a registered name stands for: the arguments θ and the seed s of the network generator g(θ, s).

    Args:
        graph: The random graph model, such as `ws(4,0.75)`.
        seed: s.
        channels: C.
        regime: 'small' or 'regular' (Table 1).
        num_nodes: N.
    """

    graph: str = 'ws(4,0.75)'
    seed: int = 1
    channels: int = 78
    regime: str = 'small'
    num_nodes: int = 32

    @property
    def generator(self) -> str:
        """The random graph model and the seed, as people read them: `WS(4, 0.75), seed 1`."""
        return f'{str(parse_graph_model(self.graph)).upper().replace(",", ", ")}, seed {self.seed}'


#: Every frozen name. `randwire` itself is not among them: it samples its graphs from its arguments.
ARCHITECTURES: dict[str, Architecture] = {
    'randwire_ws_pico': Architecture(channels=24, num_nodes=8),
    'randwire_ws_small_s1': Architecture('ws(4,0.75)', seed=1),
    'randwire_er_small_s1': Architecture('er(0.2)', seed=1),
    'randwire_ba_small_s1': Architecture('ba(5)', seed=1),
    'randwire_ws_c109': Architecture(seed=1, channels=109, regime='regular'),
    'randwire_ws_c154': Architecture(seed=1, channels=154, regime='regular'),
    'randwire_ws_small_s2': Architecture('ws(4,0.75)', seed=2),
    'randwire_er_small_s2': Architecture('er(0.2)', seed=2),
    'randwire_ba_small_s2': Architecture('ba(5)', seed=2),
    'randwire_ws_c109_s2': Architecture(seed=2, channels=109, regime='regular'),
    'randwire_ws_c154_s2': Architecture(seed=2, channels=154, regime='regular'),
    'randwire_ws_small_s3': Architecture('ws(4,0.75)', seed=3),
    'randwire_er_small_s3': Architecture('er(0.2)', seed=3),
    'randwire_ba_small_s3': Architecture('ba(5)', seed=3),
    'randwire_ws_c109_s3': Architecture(seed=3, channels=109, regime='regular'),
    'randwire_ws_c154_s3': Architecture(seed=3, channels=154, regime='regular'),
    'randwire_ws_small_s4': Architecture('ws(4,0.75)', seed=4),
    'randwire_er_small_s4': Architecture('er(0.2)', seed=4),
    'randwire_ba_small_s4': Architecture('ba(5)', seed=4),
    'randwire_ws_c109_s4': Architecture(seed=4, channels=109, regime='regular'),
    'randwire_ws_c154_s4': Architecture(seed=4, channels=154, regime='regular'),
    'randwire_ws_small_s5': Architecture('ws(4,0.75)', seed=5),
    'randwire_er_small_s5': Architecture('er(0.2)', seed=5),
    'randwire_ba_small_s5': Architecture('ba(5)', seed=5),
    'randwire_ws_c109_s5': Architecture(seed=5, channels=109, regime='regular'),
    'randwire_ws_c154_s5': Architecture(seed=5, channels=154, regime='regular'),
}


def stage_node_counts(regime: str, num_nodes: int) -> tuple[int, ...]:
    """N of each random stage: conv3 … conv5 in the small regime, conv2 … conv5 in the regular one (Table 1).

    Raises:
        ValueError: if the regime is unknown or N is too small for it.
    """
    if regime not in REGIMES:
        raise ValueError(f'regime must be one of {", ".join(map(repr, REGIMES))}, got {regime!r}')
    smallest = 1 if regime == 'small' else 2
    if isinstance(num_nodes, bool) or not isinstance(num_nodes, int) or num_nodes < smallest:
        raise ValueError(f'num_nodes must be an integer of at least {smallest} in the {regime} regime, '
                         f'got {num_nodes!r}')
    return (num_nodes,) * 3 if regime == 'small' else (num_nodes // 2,) + (num_nodes,) * 3


def stage_names(count: int) -> list[str]:
    """The names of a network's random stages, its last ones: conv3 … conv5 of three, conv2 … conv5 of four."""
    return [f'conv{6 - count + i}' for i in range(count)]


def sample_architecture(architecture: Architecture) -> tuple[Graph, ...]:
    """Sample an architecture's graphs, one per random stage.

    Raises:
        ValueError: naming the argument that is out of range.
    """
    node_counts = stage_node_counts(architecture.regime, architecture.num_nodes)
    return sample_graphs(parse_graph_model(architecture.graph), node_counts, architecture.seed)


@dataclass(frozen=True)
class Wiring:
    """The graphs that somebody asked for by a name or a random graph model.

    Args:
        name: The frozen name; None where the graphs were sampled.
        architecture: What it stands for.
        graphs: One per random stage.
    """

    name: str | None
    architecture: Architecture
    graphs: tuple[Graph, ...]

    @property
    def title(self) -> str:
        """One line for people."""
        generator = self.architecture.generator
        return f'{self.name}: {generator}' if self.name else f'{generator}, {self.architecture.regime} regime'

    @property
    def create(self) -> tuple[str, dict[str, Any]]:
        """The model name and the arguments with which timm creates it."""
        if self.name is not None:
            return self.name, {}
        architecture, default = self.architecture, Architecture()
        kwargs = {name: value for name, value in vars(architecture).items() if value != getattr(default, name)}
        return 'randwire', {'graph': architecture.graph, 'seed': architecture.seed, **kwargs}


def find_wiring(text: str, **arguments: Any) -> Wiring:
    """Find a frozen name's graphs, or sample those of a random graph model.

    Args:
        text: A frozen name, also with the tag of its weights; or a random graph model such as `er(0.2)`.
        arguments: For a random graph model: seed, num_nodes, regime, channels, as in `Architecture`.

    Raises:
        ValueError: naming what is unknown, or does not fit together.
    """
    name = text.partition('.')[0] if text.startswith('randwire') else text
    if name in ARCHITECTURES:
        if arguments:
            raise ValueError(f'{name} is frozen and takes no {", ".join(arguments)}; that is for a random graph model '
                             f'such as {ARCHITECTURES[name].graph}')
        return Wiring(name, ARCHITECTURES[name], load_graphs(name))
    if name == 'randwire':
        raise ValueError('randwire has no graphs of its own; name a random graph model, such as ws(4,0.75)')
    if '(' not in text and text.lower() not in GraphModel.registry:
        raise ValueError(f'unknown name {text!r}' + suggest(text))
    architecture = replace(Architecture(str(parse_graph_model(text))), **arguments)
    if architecture.channels < 2:
        raise ValueError(f'channels must be an integer of at least 2, got {architecture.channels}')
    return Wiring(None, architecture, sample_architecture(architecture))


def suggest(name: str) -> str:
    """What to add to an error about an unknown name: the nearest frozen ones, or where they are listed."""
    return nearest(name, ARCHITECTURES, '; randwire-zoo list shows the frozen names')
