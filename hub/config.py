"""config.json: the description of a network in the form in which timm and transformers read it from a repository."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from randwire_zoo.weights.description import Description

__all__ = ['from_config', 'to_config']

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
