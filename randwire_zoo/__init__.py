"""RandWire networks (Xie et al., ICCV 2019) as timm models and as detection backbones.

Importing this package registers them: with timm and detectron2 where they are imported already, otherwise as soon as
they are. It imports neither itself, nor torch, until one of the names below is asked for.
"""
from importlib import import_module
from typing import TYPE_CHECKING, Any

import _randwire_zoo_autoload

if TYPE_CHECKING:
    from .architectures import ARCHITECTURES, Architecture
    from .deployment import deploy
    from .drawing import draw
    from .graphs import (
        BarabasiAlbert,
        ErdosRenyi,
        Graph,
        GraphModel,
        WattsStrogatz,
        WattsStrogatzFlex,
        parse_graph_model,
        sample_graphs,
    )
    from .kernels.library import use_kernels
    from .network import RandWire

__all__ = [
    'ARCHITECTURES', 'Architecture', 'BarabasiAlbert', 'ErdosRenyi', 'Graph', 'GraphModel', 'RandWire',
    'WattsStrogatz', 'WattsStrogatzFlex', 'deploy', 'draw', 'parse_graph_model', 'sample_graphs', 'use_kernels',
]
__version__ = '0.2.0'

# All others are in graphs.
_MODULES = {'ARCHITECTURES': 'architectures', 'Architecture': 'architectures', 'RandWire': 'network',
            'deploy': 'deployment', 'draw': 'drawing', 'use_kernels': 'kernels.library'}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_MODULES.get(name, "graphs")}', __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_randwire_zoo_autoload.install()
