"""The golden files: what every registered architecture is made of, and what it costs.

    python tests/make_golden.py

writes both again. They change only on purpose: parameter names are for ever, and a frozen graph never changes.
"""
from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import timm
import torch

import randwire_zoo
from randwire_zoo.complexity import count_complexity
from randwire_zoo.files import write_atomically
from randwire_zoo.graphs import graphs_sha256
from randwire_zoo.models import ARCHITECTURES

PARAMETERS = Path(__file__).parent / 'golden' / 'parameters.json'
COMPLEXITY = Path(randwire_zoo.__file__).parent / 'complexity.json'  # in the package: `randwire-zoo list` reads it
IN_FULL = ('randwire_ws_pico', 'randwire_ws_c109')  # the other names: a hash of the same list


def tensors_of(model: torch.nn.Module) -> dict[str, list[int]]:
    """Names and shapes of a state dict, in its order."""
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def digest(tensors: dict[str, list[int]]) -> str:
    """One hash for names and shapes, in order."""
    return hashlib.sha256(json.dumps(list(tensors.items())).encode()).hexdigest()


def measure(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two golden entries of a name: its tensors and its figures."""
    model = timm.create_model(name, device='meta')
    tensors = tensors_of(model)
    parameters: dict[str, Any] = {'count': len(tensors), 'sha256': digest(tensors)}
    if name in IN_FULL:
        parameters['tensors'] = tensors
    figures: dict[str, Any] = {'graphs_sha256': graphs_sha256(model.graphs)}
    sizes = [model.pretrained_cfg['input_size'][-1]] + ([320] if '_c154' in name else [])
    for size in sizes:
        complexity = count_complexity(model, (3, size, size))
        figures['params'] = complexity.params
        figures[str(size)] = {'macs': complexity.macs, 'activations': complexity.activations}
    return parameters, figures


def main() -> None:
    """Write both files."""
    warnings.simplefilter('ignore')
    parameters, complexity = {}, {}
    for name in ARCHITECTURES:
        parameters[name], complexity[name] = measure(name)
    for path, content in ((PARAMETERS, parameters), (COMPLEXITY, complexity)):
        # Shapes and figures on one line each.
        write_atomically(path, _flat(json.dumps(content, indent=1)) + '\n')


def _flat(text: str) -> str:
    import re

    return re.sub(r'\[[^\[\]]*\]|(?<=\d": )\{[^{}]*\}', lambda match: ' '.join(match[0].split()), text)


if __name__ == '__main__':
    main()
