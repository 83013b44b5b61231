"""The wiring mark: what the weights of a random stage were trained as, where tensor shapes cannot tell.

Networks that compute different functions can have tensors of the same names and shapes: other edges, another pooling
in the nodes, another stride. Every state dict therefore says in one entry per random stage (`conv3._extra_state`, …)
which graph the stage has and which architecture the network. It does not say `output_stride`, because the same
weights may be used dilated.
"""
from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['OPTIONAL', 'WiringMark', 'accept_unmarked', 'checkpoint_filter_fn']

SHA256_BYTES = 32
#: Entries of a state dict that may be missing in one from elsewhere: the marks, and what no computation reads.
OPTIONAL = ('._extra_state', '.num_batches_tracked')


@dataclass(frozen=True)
class WiringMark:
    """What a random stage's weights belong to.

    Args:
        graph_sha256: Of the stage's graph, 64 hexadecimal digits.
        architecture: What else decides the function, such as `node_op=sep_conv stem_stride=4 regime=small channels=78`;
            empty for a stage that belongs to no network.
    """

    graph_sha256: str
    architecture: str = ''

    def to_tensor(self) -> Tensor:
        """The mark as zeros and ones, uint8 on the CPU.

        Single bits, because averaging tools turn every tensor into floats, often of low precision: whatever they
        make of a 0 and a 1 is still nearest to it, where bytes would be off by one or more.
        """
        data = bytes.fromhex(self.graph_sha256) + self.architecture.encode('ascii')
        bits = [byte >> shift & 1 for byte in data for shift in range(7, -1, -1)]
        # Real data wherever the network lives: also on, or under a context of, the meta device.
        return torch.tensor(bits, dtype=torch.uint8, device='cpu')

    @classmethod
    def from_tensor(cls, state: Any) -> WiringMark:
        """Read a mark, also from values that are only near zeros and ones.

        Raises:
            ValueError: if it is none.
        """
        values: Sequence[float] = torch.as_tensor(state).detach().flatten().double().tolist()
        if len(values) < 8 * SHA256_BYTES or len(values) % 8 or not all(-0.5 < value < 1.5 for value in values):
            raise ValueError('their wiring mark cannot be read')
        bits = [round(value) for value in values]
        data = bytes(sum(bit << 7 - i for i, bit in enumerate(bits[start:start + 8]))
                     for start in range(0, len(bits), 8))
        return cls(data[:SHA256_BYTES].hex(), data[SHA256_BYTES:].decode('ascii', errors='replace'))

    def check(self, loaded: Any) -> None:
        """Compare with the mark in some weights.

        Raises:
            ValueError: if they were trained on another graph, or as another architecture; or if they have no values.
        """
        if isinstance(loaded, Tensor) and loaded.is_meta:
            raise ValueError('these weights are on the meta device, where tensors have no values, nor has their wiring '
                             'mark')
        refusal = 'these weights were trained on other wiring:'
        try:
            mark = self.from_tensor(loaded)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f'{refusal} {error}') from None
        if mark.graph_sha256 != self.graph_sha256:
            raise ValueError(f'{refusal} graph sha256 {mark.graph_sha256}, but this stage has {self.graph_sha256}')
        if mark.architecture != self.architecture:
            raise ValueError(f'these weights were trained as another architecture: {mark.architecture or "unknown"}, '
                             f'but this network has {self.architecture or "none"}')


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """The weights in what timm has read from a file; timm looks for it beside the network's class.

    For another number of classes timm loads without complaint what there is; nothing but the classifier may be missing,
    and what `RandWire.load_state_dict` does without.

    Raises:
        ValueError: if it is.
    """
    state_dict = state_dict.get('state_dict', state_dict)
    missing = [name for name in model.state_dict() if name not in state_dict and not name.startswith('fc.')
               and not name.endswith(OPTIONAL)]
    if missing:
        more = f' and {len(missing) - 3} more' if len(missing) > 3 else ''
        raise ValueError(f'these weights lack {", ".join(missing[:3])}{more}')
    return state_dict


def accept_unmarked(network: nn.Module, incompatible_keys: Any) -> None:
    """Of weights from elsewhere, do without the wiring mark, with a warning, and without BN's count of minibatches.

    Registered with `register_load_state_dict_post_hook`: what is taken out of the missing keys is not missed.
    """
    missing: list[str] = incompatible_keys.missing_keys
    # Of the network within whatever it is a part of, whose name for it stands before.
    own = tuple(f'.{name}' for name in network.state_dict() if name.endswith(OPTIONAL))
    optional = {key for key in missing if own and f'.{key}'.endswith(own)}
    unmarked = [key.removesuffix('_extra_state') for key in optional if key.endswith('_extra_state')]
    # A stage of which nothing at all was loaded has no weights whose wiring could be asked for.
    absent = [stage for stage in unmarked if all(
        f'{stage}{name}' in missing for name, _ in network.get_submodule(stage.split('.')[-2]).named_parameters())]
    missing[:] = [key for key in missing if key not in optional or key.removesuffix('_extra_state') in absent]
    if len(unmarked) > len(absent):
        warnings.warn('these weights carry no wiring mark: nothing says that they were trained on these graphs',
                      stacklevel=3)
