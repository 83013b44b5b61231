"""From a training's checkpoint to a folder with all that a repository needs; nothing is typed by hand."""
from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import timm
import yaml
from torch import Tensor, nn

from randwire_zoo.drawing import draw_curves, draw_detection_curves, draw_graphs
from randwire_zoo.manifest import FILENAME
from randwire_zoo.weights_io import loading, save_weights

from .card import write_card
from .checks import CONFIG, GRAPHS, Staged, check_folder
from .runs import Run, find_records, read_run

__all__ = ['stage']

BACKBONE = 'backbone.bottom_up.'  # of detectron2's detectors


def stage(checkpoint: str | Path, output: str | Path, name: str | None = None, tag: str | None = None,
          license: str | None = None, recipe: str | Path | None = None, summary: str | Path | None = None,
          dataset: str | None = None, use_ema: bool = True) -> Staged:
    """Make a folder that `publishing.push` sends, and check it.

    Args:
        checkpoint: Of timm's train.py or of `randwire-zoo train`; of detectron2, whose backbone is taken; or a
            safetensors file of the zoo that says its epoch.
        output: The folder, which must not exist.
        name: The registered name; by default what the training recorded.
        tag: Of the weights, such as `in1k`.
        license: Of the weights, an SPDX identifier.
        recipe: The training's args.yaml or config.yaml; by default the one beside the checkpoint.
        summary: The training's summary.csv or metrics.json; by default the one beside the checkpoint.
        dataset: What the network was trained on; by default what the training recorded.
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
    beside = find_records(checkpoint.parent) or (checkpoint.parent / 'args.yaml', checkpoint.parent / 'summary.csv')
    settings_file, history = Path(recipe or beside[0]), Path(summary or beside[1])
    for path, option in ((checkpoint, ''), (settings_file, '--recipe'), (history, '--summary')):
        if not path.is_file():
            raise FileNotFoundError(f'no file at {path}' + (f'; name it with {option}' if option else ''))
    for value, option in ((tag, '--tag'), (license, '--license')):
        if not value:
            raise ValueError(f'{option} must be given: it is recorded nowhere')
    if not str(tag).isidentifier():
        raise ValueError(f'--tag must be letters, digits and _, such as in1k, got {tag!r}')
    run = read_run(checkpoint, settings_file, history, name, dataset)
    model = _load(checkpoint, run, use_ema)

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{output.name}-', dir=output.parent) as temporary:
        folder = Path(temporary)
        save_weights(
            model, folder / FILENAME, tag=tag, metrics=dict(run.metrics), license=license, dataset=run.dataset,
            split=run.split, recipe=settings_file.name, seed=str(run.seed), steps=str(run.steps),
            **{run.unit: str(run.step)})
        _write_config(model, folder / CONFIG, run, str(tag), str(license))
        _write_text(folder / GRAPHS, json.dumps([graph.to_dict() for graph in model.graphs], indent=1) + '\n')
        _write_text(folder / settings_file.name, yaml.safe_dump(dict(run.settings)))
        _write_text(folder / history.name, history.read_text(encoding='utf-8'))
        stages = [f'conv{6 - len(model.graphs) + i}' for i in range(len(model.graphs))]
        draw_graphs(model.graphs, folder / 'wiring.png', title=run.name, names=stages)
        if run.unit == 'epoch':
            draw_curves(folder / history.name, folder / 'curves.png')
        else:
            draw_detection_curves({run.dataset: folder / history.name}, folder / 'curves.png')
        write_card(folder)
        check_folder(folder)
        os.chmod(folder, 0o755)
        folder.rename(output)
        folder.mkdir()  # for the context manager to remove
    return check_folder(output)


def _load(checkpoint: Path, run: Run, use_ema: bool) -> Any:
    from timm.models import load_state_dict

    with loading(checkpoint):
        state: dict[str, Tensor] = load_state_dict(str(checkpoint), use_ema=use_ema)
        arguments = dict(run.arguments)
        if run.unit == 'epoch':
            arguments.setdefault('num_classes', len(state.get('fc.bias', ())))
        else:
            state = {name.removeprefix(BACKBONE): tensor for name, tensor in state.items() if name.startswith(BACKBONE)}
        model: nn.Module = timm.create_model(run.name, **arguments)
        own = model.state_dict()
        # Frozen BN counts no minibatches, and nothing reads their number.
        state.update({name: own[name] for name in own if name.endswith('.num_batches_tracked') and name not in state})
        model.load_state_dict(state)
    return model.eval()


def _write_config(model: nn.Module, path: Path, run: Run, tag: str, license: str) -> None:
    from timm.data import resolve_data_config
    from timm.models._hub import save_config_for_hf

    data = resolve_data_config(dict(run.data), model=model)
    data = {key: data[key] for key in ('input_size', 'interpolation', 'mean', 'std', 'crop_pct')}
    description = f'{run.dataset}, {run.steps} {run.unit}s, seed {run.seed}'
    save_config_for_hf(model, str(path), data_config=data, model_config={
        'pretrained_cfg': {'tag': tag, 'license': license, 'description': description}})


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding='utf-8')
