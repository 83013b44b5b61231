"""config.json: the description of a network in the form in which timm and transformers read it from a repository."""
from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from randwire_zoo.graphs import Graph, GraphModel, parse_graph_model
from randwire_zoo.models import Architecture
from randwire_zoo.network import RandWire
from randwire_zoo.weights.description import Description

__all__ = ['differences', 'from_config', 'is_of_own_generator', 'to_config', 'with_graphs']

#: What the architecture itself says in timm's configuration, whoever trained it.
ARCHITECTURE = ('first_conv', 'classifier', 'origin_url', 'paper_name', 'paper_ids')


def to_config(network: Description, model: Any, tag: str, license: str, text: str,
              label_texts: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What config.json holds.

    num_classes stands in it once: transformers passes `model_args` on beside its own and cannot have it twice.

    Args:
        network: The description.
        model: The network, built from it.
        tag: Of the weights.
        license: Of the weights.
        text: One line about them.
        label_texts: What the classes are called, where that is not their name.
    """
    descriptions = {name: (label_texts or {})[name] for name in network.label_names if name in (label_texts or {})}
    model_args = {name: value for name, value in network.arguments.items() if name != 'num_classes'}
    cfg = model.pretrained_cfg or {}
    return {
        'architecture': network.architecture,
        'num_classes': model.num_classes,
        'num_features': model.num_features,
        **({'label_names': list(network.label_names)} if network.label_names else {}),
        **({'label_descriptions': descriptions} if descriptions else {}),
        'model_args': model_args,
        'pretrained_cfg': {
            'tag': tag, 'license': license, 'description': text, 'custom_load': False,
            **{key: list(value) if isinstance(value, tuple) else value
               for key, value in network.data_config().items()},
            'fixed_input_size': False, 'pool_size': [
                math.ceil(side / model.feature_info[-1]['reduction']) for side in network.input_size[1:]],
            **{key: cfg.get(key) for key in ARCHITECTURE}}}


def from_config(config: Mapping[str, Any]) -> Description:
    """The description that a config.json holds.

    Raises:
        ValueError: naming what is missing or wrong.
    """
    try:
        cfg = config['pretrained_cfg']
        data = {key: cfg[key] for key in ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')}
        arguments = {'num_classes': config['num_classes'], **config.get('model_args', {})}
        return Description(config['architecture'], arguments, **data, label_names=tuple(config.get('label_names', ())))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'config.json lacks {str(error).strip(chr(39))}') from None


def is_of_own_generator(network: Description) -> bool:
    """Whether a network's graphs were sampled by a random graph model that does not come with this package.

    Raises:
        ValueError: if it is known to nobody here.
    """
    if network.architecture != 'randwire' or 'graphs' in network.arguments:
        return False
    model = parse_graph_model(network.arguments.get('graph', Architecture.graph))
    return type(model).__module__ != GraphModel.__module__


def with_graphs(network: Description, graphs: Sequence[Graph]) -> Description:
    """The description by which anybody builds the network: with its graphs, where only its publisher can sample them.

    Args:
        network: The description.
        graphs: One per random stage.
    """
    if not is_of_own_generator(network):
        return network
    arguments = dict(network.arguments)
    generator = Architecture(**{f.name: arguments[f.name] for f in fields(Architecture) if f.name in arguments})
    return replace(network, arguments={
        **arguments, 'graphs': [graph.to_dict() for graph in graphs], 'origin': generator.generator})


def differences(there: Description, own: Description) -> list[str]:
    """What tells two networks apart, such as `node_op='conv' instead of 'sep_conv'`; what is left out has its default.

    Args:
        there: The one.
        own: The other.
    """
    def values(network: Description) -> dict[str, Any]:
        defaults = {f.name: f.default for f in fields(Architecture)} if network.architecture == 'randwire' else {}
        defaults.update({name: parameter.default for name, parameter in inspect.signature(RandWire).parameters.items()
                         if parameter.default is not parameter.empty and name not in defaults})
        data = {f.name: getattr(network, f.name) for f in fields(network) if f.name != 'arguments'}
        return {**{name: value for name, value in defaults.items() if value is not None}, **network.arguments, **data}

    found, wanted = values(there), values(own)
    return [f'{name}={_short(found.get(name))} instead of {_short(wanted.get(name))}'
            for name in (*found, *(name for name in wanted if name not in found))
            if found.get(name) != wanted.get(name)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f'{text[:37]}…'
