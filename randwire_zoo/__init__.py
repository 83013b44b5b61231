"""RandWire networks (Xie et al., ICCV 2019) as timm models. Importing this package registers them with timm."""
from . import models as models
from .graphs import BarabasiAlbert, ErdosRenyi, Graph, GraphModel, WattsStrogatz, parse_graph_model, sample_graphs
from .models import ARCHITECTURES, Architecture
from .network import RandWire

__all__ = [
    'ARCHITECTURES', 'Architecture', 'BarabasiAlbert', 'ErdosRenyi', 'Graph', 'GraphModel', 'RandWire',
    'WattsStrogatz', 'parse_graph_model', 'sample_graphs',
]
__version__ = '0.1.0'
