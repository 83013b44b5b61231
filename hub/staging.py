"""From a training's checkpoint to a folder with all that a repository needs, measured before it counts."""
from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from randwire_zoo import __version__
from randwire_zoo.detection.weights import detectors_backbone
from randwire_zoo.drawing import draw_curves, draw_detection_curves, draw_graphs
from randwire_zoo.files import atomic_folder, read_json, write_atomically
from randwire_zoo.training.datasets import read_label_texts
from randwire_zoo.training.evaluation import Conditions, class_indices, default_device, evaluate_description
from randwire_zoo.weights.description import Description, labels_beside
from randwire_zoo.weights.errors import loading
from randwire_zoo.weights.files import round_to_half, save_weights
from randwire_zoo.weights.manifest import FILENAME

from .card import render_card
from .checks import CARD, CONFIG, CURVES, GRAPHS, WIRING, CheckFailed, Staged, check_folder, check_names, disagreement
from .checks import load_model as load_staged
from .config import from_config, to_config, with_graphs
from .probe import PROBE, write_probe
from .runs import RECORDS, Run, find_records, is_training_checkpoint, read_run, typed_run

__all__ = ['stage']

#: What timm converts images of so many channels to, whoever loads the weights.
MODES = {1: 'L', 3: 'RGB'}


def stage(checkpoint: str | Path, output: str | Path | None = None, name: str | None = None, tag: str | None = None,
          license: str | None = None, recipe: str | Path | None = None, summary: str | Path | None = None,
          dataset: str | None = None, use_ema: bool = True, measure: bool = True, data_dir: str | Path | None = None,
          split: str | None = None, settings: Mapping[str, Any] | None = None,
          metrics: Mapping[str, float] | None = None, text: str = '', device: str | None = None,
          workers: int | None = None, progress: bool = True, half: bool = False) -> Staged:
    """Make a folder that `publishing.push` sends, and check it.

    The network is built from the one description that the training left, and the finished files are measured on the
    data that the training names, so that what is published is what was found; figures that they do not reproduce are
    refused.

    Args:
        checkpoint: Of timm's train.py or of `randwire-zoo train`; of detectron2, whose backbone is taken; a
            safetensors file of the zoo; or weights from anywhere, if settings say what they are.
        output: The folder, which must not exist; by default `output/hub/NAME.TAG`.
        name: The registered name; by default what the training recorded.
        tag: Of the weights, such as `in1k`.
        license: Of the weights, an SPDX identifier.
        recipe: The training's args.yaml or config.yaml; by default the one beside the checkpoint.
        summary: The training's summary.csv or metrics.json; by default the one beside the checkpoint.
        dataset: What the network was trained on; by default what the training recorded.
        use_ema: Take the moving average where there is one.
        measure: Evaluate the finished files. Without it the card says so.
        data_dir: Folder of the data; by default the one that the training names.
        split: Of the data; by default the one that the training measured.
        settings: Of weights without args.yaml: those of the model and the data, by train.py's names.
        metrics: Of weights without args.yaml: what is known of them, in per cent.
        text: The publisher's own words for the card.
        device: Where to measure; a GPU if there is one.
        workers: Processes that load images.
        progress: Show a progress bar.
        half: Round the large tensors to float16 and store them so; what is measured are the rounded ones.

    Raises:
        CheckFailed: naming what does not fit, is recorded nowhere, or is not reproduced.
        FileNotFoundError: if a file is not there.
        FileExistsError: if output exists.
        ValueError: if an argument is out of range.
    """
    checkpoint = Path(checkpoint)
    if output is not None:
        _check_is_free(Path(output))
    if not checkpoint.is_file():
        raise FileNotFoundError(f'no file at {checkpoint}')
    for value, option in ((tag, '--tag'), (license, '--license')):
        if not value:
            raise ValueError(f'{option} must be given: it is recorded nowhere')
    check_names(tag, license)
    if dataset is not None and ('|' in dataset or len(dataset.splitlines()) != 1):
        raise ValueError(f'--dataset must be one line without |, got {dataset!r}')
    settings_file, history = _find_records(checkpoint, recipe, summary)
    if settings_file is not None:
        if settings or metrics:
            given = ', '.join(f'--{key.replace("_", "-")}' for key in settings or ()) or '--metric'
            raise ValueError(f'{given}: {settings_file} says what was trained; that is for weights without settings')
        run = read_run(checkpoint, settings_file, history, name, dataset, use_ema)
    else:
        run = typed_run({**_guess(checkpoint), **(settings or {}), **({'model': name} if name else {})}, dataset,
                        metrics or {})
    if measure and split is None and run.conditions is not None and not run.conditions.split:
        raise CheckFailed('the training measured nothing; name the images with --split, or publish without measuring '
                          'with --no-eval')
    _check_mode(run)
    run = _elsewhere(run, data_dir, split)
    output = Path(output) if output is not None else Path('output/hub') / f'{run.network.architecture}.{tag}'
    _check_is_free(output)
    names, texts = labels_beside(checkpoint)
    state, run = _load(checkpoint, run, use_ema, names)

    with atomic_folder(output) as folder:
        model = run.network.create_model()
        run = replace(run, network=with_graphs(run.network, model.graphs))
        with loading(checkpoint):
            model.load_state_dict(state)
        if half:
            round_to_half(model)
        record: dict[str, Any] = {'tag': tag, 'license': license, 'dataset': run.dataset,
                  'randwire_zoo': __version__, **({'weights': run.weights} if run.weights else {}),
                  **({'stored': 'float16'} if half else {})}
        if run.unit:
            record.update({run.unit: str(run.step), 'steps': str(run.steps), 'seed': str(run.seed)})
        record.update({name: getattr(run, name) for name in ('beginning', 'teacher') if getattr(run, name)})
        if run.settings and settings_file is not None:
            record['recipe'] = settings_file.name
            (folder / settings_file.name).write_text(yaml.safe_dump(dict(run.settings)), encoding='utf-8')
        if run.conditions is not None:
            texts = {**texts, **read_label_texts(run.conditions.data_dir or '')}
        (folder / CONFIG).write_text(json.dumps(to_config(
            run.network, model, str(tag), str(license), _describe(run), texts), indent=2) + '\n', encoding='utf-8')
        save_weights(model, folder / FILENAME, half)
        found, evaluation = _measure(folder, run, measure, device, workers, progress)
        if evaluation['how'] == 'measured' and run.conditions is not None:
            run = replace(run, split=run.conditions.split)
        save_weights(
            model, folder / FILENAME, half, metrics=dict(found), evaluation=evaluation, split=run.split, **record)
        write_probe(model, run.network, folder / PROBE)
        (folder / GRAPHS).write_text(
            json.dumps([graph.to_dict() for graph in model.graphs], indent=1) + '\n', encoding='utf-8')
        draw_graphs(model.graphs, folder / WIRING, title=run.network.architecture)
        if history is not None:
            copy = folder / next(pair[1] for pair in RECORDS if Path(pair[1]).suffix == history.suffix)
            copy.write_text(history.read_text(encoding='utf-8'), encoding='utf-8')
            if run.unit == 'epoch':
                draw_curves(copy, folder / CURVES)
            else:
                draw_detection_curves({run.dataset: copy}, folder / CURVES)
        write_atomically(folder / CARD, render_card(folder, text=text.strip()))
        check_folder(folder)
    return check_folder(output)


def _check_is_free(output: Path) -> None:
    if output.exists():
        raise FileExistsError(f'{output} exists; choose another --output')


def _check_mode(run: Run) -> None:
    """Refuse a network of images that nobody who loads it from its description would feed it.

    Raises:
        CheckFailed: naming the mode.
    """
    mode = run.conditions.input_img_mode if run.conditions is not None else None
    usual = MODES.get(run.network.input_size[0])  # of other numbers of channels there is none: one has to be named
    if mode and usual and mode != usual:
        raise CheckFailed(f'the network was trained on images of the mode {mode} (input_img_mode), of which timm and '
                          f'transformers know nothing: they would feed it {usual}. It cannot be published')


def _elsewhere(run: Run, data_dir: str | Path | None, split: str | None) -> Run:
    """The run, measured on other data than it names."""
    if data_dir is None and split is None:
        return run
    conditions = run.conditions
    if conditions is None:
        raise ValueError("a detector's figures are the whole detector's; --data-dir and --split are for classifiers")
    if data_dir is not None:
        conditions = replace(conditions, data_dir=data_dir)
    if split is not None and split != conditions.split:
        conditions = replace(conditions, split=split)
        run = replace(run, split=split, metrics={} if run.unit else run.metrics)  # what is on record is of another
    return replace(run, conditions=conditions)


def _find_records(checkpoint: Path, recipe: str | Path | None, summary: str | Path | None) -> tuple[
        Path | None, Path | None]:
    """The settings and the history: those named, or those beside the checkpoint of a training."""
    for path, option in ((recipe, '--recipe'), (summary, '--summary')):
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f'no file at {path}; name it with {option}')
    beside = find_records(checkpoint.parent) if recipe or is_training_checkpoint(checkpoint) else (None, None)
    return Path(recipe) if recipe else beside[0], Path(summary) if summary else beside[1]


def _guess(checkpoint: Path) -> dict[str, Any]:
    """What weights without settings say themselves: the number of classes, and the name if this package saved them."""
    from randwire_zoo.weights.files import read_metadata

    state = _read_state(checkpoint, True)
    known: dict[str, Any] = {'num_classes': len(state['fc.bias'])} if 'fc.bias' in state else {}
    if checkpoint.suffix == '.safetensors' and 'architecture' in (metadata := read_metadata(checkpoint)):
        known['model'] = metadata['architecture']
    return known


def _read_state(checkpoint: Path, use_ema: bool) -> dict[str, Tensor]:
    from timm.models import load_state_dict

    with loading(checkpoint):
        return dict(load_state_dict(str(checkpoint), use_ema=use_ema))


def _load(checkpoint: Path, run: Run, use_ema: bool, names: tuple[str, ...]) -> tuple[dict[str, Tensor], Run]:
    """The network's own weights, and the run with the names of its classes where they or the data tell them."""
    state = _read_state(checkpoint, use_ema)
    if run.unit == 'iteration':
        state = detectors_backbone(state)
    return state, replace(run, network=_with_labels(run.network, run.conditions, names))


def _with_labels(network: Description, conditions: Conditions | None, names: tuple[str, ...]) -> Description:
    """The description with the name of every class, or with none where the data here do not name as many."""
    names = network.label_names or names
    if not names and conditions is not None:
        with suppress(OSError, ValueError):  # measuring says what is missing, where anything is to be measured
            names = tuple(class_indices(conditions.open(network)))
    return replace(network, label_names=names if len(names) == network.arguments.get('num_classes') else ())


def _measure(folder: Path, run: Run, measure: bool, device: str | None, workers: int | None,
             progress: bool) -> tuple[Mapping[str, float], dict[str, Any]]:
    """The figures to publish, and how they came about: of the folder's own files where they can be measured."""
    recorded = bool(run.metrics) and bool(run.unit)
    if run.conditions is None:
        return run.metrics, {'how': 'detector', 'recorded': recorded}
    if not measure:
        how = 'none' if not run.metrics else 'recorded' if recorded else 'stated'
        return run.metrics, {'how': how, 'recorded': recorded}
    conditions = run.conditions
    if not conditions.dataset and (conditions.data_dir is None or not Path(conditions.data_dir).is_dir()):
        where = f'{conditions.data_dir} is not here' if conditions.data_dir else 'no data folder is recorded'
        raise CheckFailed(f'the published figures must be measured, and {where}: name the data with --data-dir, or '
                          'publish without measuring with --no-eval')
    network = from_config(read_json(folder / CONFIG))
    model = load_staged(folder / FILENAME, network)
    measured = evaluate_description(
        model, network, conditions, default_device(device), 2 if workers is None else workers, progress)
    images = int(measured['images'])
    found = {name: measured[name] for name in ('top1', 'top5', 'loss')}
    if differs := disagreement(found, run.metrics, images):
        raise CheckFailed(f'the staged files do not reproduce what was recorded: {differs} on {images} images of '
                          f'{conditions.split or conditions.data_dir}')
    return found, {'how': 'measured', 'recorded': recorded, 'images': images}


def _describe(run: Run) -> str:
    length = f', {run.steps} {run.unit}s, seed {run.seed}' if run.unit else ''
    return f'{run.dataset}{length}'
