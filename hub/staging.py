"""From a training's checkpoint to a folder with all that a repository needs; nothing is typed by hand."""
from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import timm
import yaml
from torch import nn

from randwire_zoo.drawing import draw_curves, draw_graphs
from randwire_zoo.manifest import FILENAME
from randwire_zoo.weights_io import loading, read_metadata, save_weights

from .card import write_card
from .checks import ARGS, CONFIG, GRAPHS, SUMMARY, CheckFailed, Staged, check_folder, summary_metrics

__all__ = ['stage']

#: Settings of a training that name places on its machine and say nothing about the weights.
PRIVATE = ('output', 'experiment', 'resume', 'initial_checkpoint', 'pretrained_path', 'log_wandb', 'device_modules')


def stage(checkpoint: str | Path, output: str | Path, name: str | None = None, tag: str | None = None,
          license: str | None = None, recipe: str | Path | None = None, summary: str | Path | None = None,
          dataset: str | None = None, use_ema: bool = True) -> Staged:
    """Make a folder that `publishing.push` sends, and check it.

    Args:
        checkpoint: Of timm's train.py or of `randwire-zoo train`, or a safetensors file of the zoo.
        output: The folder, which must not exist.
        name: The registered name; by default what the checkpoint says.
        tag: Of the weights, such as `in1k`.
        license: Of the weights, an SPDX identifier.
        recipe: The args.yaml of the training; by default the one beside the checkpoint.
        summary: The summary.csv of the training; by default the one beside the checkpoint.
        dataset: What the network was trained on; by default what args.yaml says.
        use_ema: Take the moving average where there is one.

    Raises:
        CheckFailed: naming what does not fit, or what is recorded nowhere.
        FileNotFoundError: if a file is not there.
        FileExistsError: if output exists.
        ValueError: if an argument is out of range.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    if output.exists():
        raise FileExistsError(f'{output} exists; choose another --output')
    recipe, summary = Path(recipe or checkpoint.parent / ARGS), Path(summary or checkpoint.parent / SUMMARY)
    for path, option in ((checkpoint, ''), (recipe, '--recipe'), (summary, '--summary')):
        if not path.is_file():
            raise FileNotFoundError(f'no file at {path}' + (f'; name it with {option}' if option else ''))
    for value, option in ((tag, '--tag'), (license, '--license')):
        if not value:
            raise ValueError(f'{option} must be given: it is recorded nowhere')
    if not str(tag).isidentifier():
        raise ValueError(f'--tag must be letters, digits and _, such as in1k, got {tag!r}')
    settings = _read_settings(recipe)
    recorded_name, epoch = _describe(checkpoint)
    name = name or recorded_name or settings.get('model')
    if not name or name != settings.get('model'):
        raise CheckFailed(f'{recipe} is of a training of {settings.get("model")}, not of {name}')
    dataset = dataset or str(settings.get('dataset') or '') or Path(str(settings.get('data_dir') or '')).name
    if not dataset:
        raise CheckFailed(f'{recipe} does not say which data the network was trained on; name them with --dataset')
    metrics = summary_metrics(summary, epoch)
    model = _load(checkpoint, name, settings, use_ema)

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{output.name}-', dir=output.parent) as temporary:
        folder = Path(temporary)
        save_weights(
            model, folder / FILENAME, tag=tag, epoch=str(epoch), metrics=metrics, license=license, dataset=dataset,
            recipe=ARGS, seed=str(settings['seed']))
        _write_config(model, folder / CONFIG, settings, str(tag), str(license), dataset)
        _write_text(folder / GRAPHS, json.dumps([graph.to_dict() for graph in model.graphs], indent=1) + '\n')
        _write_text(folder / ARGS, yaml.safe_dump(_public(settings)))
        _write_text(folder / SUMMARY, summary.read_text(encoding='utf-8'))
        stages = [f'conv{6 - len(model.graphs) + i}' for i in range(len(model.graphs))]
        draw_graphs(model.graphs, folder / 'wiring.png', title=name, names=stages)
        draw_curves(folder / SUMMARY, folder / 'curves.png')
        write_card(folder)
        check_folder(folder)
        os.chmod(folder, 0o755)
        folder.rename(output)
        folder.mkdir()  # for the context manager to remove
    return check_folder(output)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckFailed(f'{path} is no YAML: {" ".join(str(error).split())}') from None
    if not isinstance(settings, dict):
        raise CheckFailed(f'{path} holds no settings of a training')
    if missing := [key for key in ('model', 'epochs', 'seed') if settings.get(key) is None]:
        raise CheckFailed(f'{path} lacks {", ".join(missing)}')
    return settings


def _describe(checkpoint: Path) -> tuple[str | None, int]:
    """The network's name and the epoch of a checkpoint."""
    if checkpoint.suffix == '.safetensors':
        metadata = read_metadata(checkpoint)
        if 'epoch' not in metadata:
            raise CheckFailed(f'{checkpoint} does not say of which epoch it is; stage the checkpoint of the training')
        return metadata.get('architecture'), int(metadata['epoch'])
    from timm.utils.checkpoint_saver import load_checkpoint_metadata

    with loading(checkpoint):
        state = load_checkpoint_metadata(str(checkpoint))
        if not isinstance(state, dict) or 'epoch' not in state:
            raise ValueError('it is no checkpoint of timm: it has no epoch')
        return state.get('arch'), int(state['epoch'])


def _load(checkpoint: Path, name: str, settings: dict[str, Any], use_ema: bool) -> Any:
    from timm.models import load_state_dict

    with loading(checkpoint):
        state = load_state_dict(str(checkpoint), use_ema=use_ema)
        kwargs = dict(settings.get('model_kwargs') or {})
        num_classes = settings.get('num_classes') or len(state['fc.bias'])
        model: nn.Module = timm.create_model(name, num_classes=num_classes, **kwargs)
        model.load_state_dict(state)
    return model.eval()


def _write_config(model: nn.Module, path: Path, settings: dict[str, Any], tag: str, license: str, dataset: str) -> None:
    from timm.data import resolve_data_config
    from timm.models._hub import save_config_for_hf

    data = resolve_data_config(settings, model=model)
    data = {key: data[key] for key in ('input_size', 'interpolation', 'mean', 'std', 'crop_pct')}
    description = f'{dataset}, {settings["epochs"]} epochs, seed {settings["seed"]}'
    save_config_for_hf(model, str(path), data_config=data, model_config={
        'pretrained_cfg': {'tag': tag, 'license': license, 'description': description}})


def _public(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without what names places on the machine; of the data's folder its own name is left."""
    public = {key: value for key, value in settings.items() if key not in PRIVATE}
    if public.get('data_dir'):
        public['data_dir'] = Path(str(public['data_dir'])).name
    return public


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding='utf-8')
