"""The main job in one command: digits to a trained, measured, saved, reloaded and drawn network."""
from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform, resolve_data_config
from timm.models import load_checkpoint
from torch import Tensor, nn

from ..files import read_yaml
from ..kernels.library import chosen
from ..weights.description import build_model
from ..weights.files import check_weights, save_weights
from .digits import write_digits
from .evaluation import evaluate_folder, open_images
from .recipes import load_recipe
from .trainer import LAST, SUMMARY, TrainingResult, train

__all__ = ['Quickstart', 'main', 'quickstart']

RECIPE = 'digits/randwire_ws_pico'
#: Of the held-out digits, per cent. Chance never came near it in the runs on record (docs/data/digits.jsonl, with
#: several seeds, threads and kernels): what stays below is broken.
REQUIRED_TOP1 = 96.0
SHEET = 40  # digits on the sheet of predictions


@dataclass(frozen=True)
class Quickstart:
    """What a quick start leaves behind.

    Args:
        folder: All of it.
        weights: The trained weights, with their graphs.
        pictures: Wiring, training curve, predictions.
        top1: Per cent of the held-out digits that the reloaded network gets right.
        images: How many held-out digits there are.
        equal_logits: Whether the reloaded network's logits are those of the trained one, bit for bit.
        seconds: Training time.
    """

    folder: Path
    weights: Path
    pictures: tuple[Path, ...]
    top1: float
    images: int
    equal_logits: bool
    seconds: float


def quickstart(
        output: str | Path = 'output/quickstart', seed: int | None = None, epochs: int | None = None,
        progress: bool = True, kernels: str | None = None,
) -> Quickstart:
    """Write the digits, train on them, measure, save, reload through timm, compare, draw.

    No epoch is chosen by its held-out accuracy: the weights are those after the last one. The recipe was tuned on
    these very digits, so the figure is a check of the installation and no estimate of anything else.

    Args:
        output: Folder for everything.
        seed: Seed of the training; the recipe's if None.
        epochs: Epochs of the training; the recipe's if None.
        progress: Show progress bars.
        kernels: 'torch' or 'native', see `kernels.library.chosen`.

    Raises:
        KernelError: if the native kernels were asked for and cannot be built.
        FileExistsError: if the folder holds an earlier quick start. One that was interrupted goes on.
        ValueError: if scikit-learn is missing, or a setting is bad.
    """
    folder = Path(output)
    recipe = load_recipe(RECIPE)
    name = recipe['model']
    weights = folder / f'{name}.safetensors'
    settings: dict[str, Any] = {key: recipe[key] if value is None else value
                                for key, value in (('seed', seed), ('epochs', epochs))}
    _check_folder(folder, weights, settings)
    data_dir = write_digits(folder / 'digits')
    last = folder / 'training' / LAST
    start = time.monotonic()
    try:
        if last.is_file():
            result = train(progress=progress, resume=str(last), data_dir=str(data_dir), kernels=kernels)
        else:
            result = train(RECIPE, progress=progress, data_dir=str(data_dir), output=str(folder),
                           experiment='training', kernels=kernels, **settings)
        seconds = time.monotonic() - start
        assert result.folder is not None  # one process
        with chosen(kernels, 'cpu'):
            return _finish(result, folder, data_dir, weights, seconds, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt('the same command goes on') from None


def _check_folder(folder: Path, weights: Path, settings: dict[str, int]) -> None:
    """Refuse a folder that holds a whole quick start, or one with other settings; one that was interrupted goes on."""
    written = folder / 'training' / 'args.yaml'
    if weights.exists():
        raise FileExistsError(f'{folder} holds an earlier quick start; name another folder with --output')
    if written.is_file():
        recorded = read_yaml(written)
        for key, value in settings.items():
            if recorded.get(key) != value:
                raise FileExistsError(f'{folder} holds an interrupted quick start with {key} {recorded.get(key)}, not '
                                      f'{value}; name another folder with --output')
        if not written.with_name(LAST).is_file():  # killed in its first epoch
            shutil.rmtree(written.parent)


def _finish(
        result: TrainingResult, folder: Path, data_dir: Path, weights: Path, seconds: float, progress: bool,
) -> Quickstart:
    """Measure, save, reload and draw the trained network."""
    from ..drawing import draw_curves, draw_graphs

    name = weights.stem
    assert result.folder is not None
    trained = build_model(name)
    load_checkpoint(trained, str(result.folder / LAST))
    temporary = folder / 'training' / weights.name  # in its place it says that everything is done
    save_weights(trained, temporary, recipe=RECIPE, metrics=result.last)
    check_weights(temporary)
    reloaded = build_model(name, pretrained=True, pretrained_cfg_overlay={'file': str(temporary)})
    held_out = open_images(data_dir, 'validation')
    logits = _logits(reloaded, held_out)
    equal_logits = torch.equal(_logits(trained, held_out), logits)
    metrics = evaluate_folder(reloaded, data_dir, workers=0, progress=progress)

    pictures = tuple(folder / picture for picture in ('wiring.png', 'curves.png', 'predictions.png'))
    draw_graphs(trained.graphs, pictures[0], title=trained.extra_repr())
    draw_curves(result.folder / SUMMARY, pictures[1])
    _draw_sheet(held_out, logits, pictures[2])
    temporary.replace(weights)
    return Quickstart(
        folder, weights, pictures, metrics['top1'], int(metrics['images']), equal_logits, seconds)


def main(args: argparse.Namespace) -> int:
    """Run the quick start and print what came out.

    Returns:
        0; 1 if too few of the held-out digits are right, or the reloaded network's logits differ.

    Raises:
        ValueError, OSError, KernelError: see `quickstart`.
    """
    result = quickstart(args.output, args.seed, args.epochs, not args.no_progress, getattr(args, 'kernels', None))
    good = result.top1 >= REQUIRED_TOP1
    print(f'trained in  {result.seconds:.0f} s')
    print(f'top-1       {result.top1:.2f} % of {result.images} held-out digits'
          + ('' if good else f', less than {REQUIRED_TOP1:g} %'))
    print(f'weights     {result.weights} ({result.weights.stat().st_size / 1e6:.2f} MB)')
    print('reloaded    ' + ('through timm.create_model(…, pretrained=True): equal logits' if result.equal_logits
                            else 'through timm.create_model(…, pretrained=True): LOGITS DIFFER'))
    for title, picture in zip(('wiring', 'curves', 'predictions'), result.pictures, strict=True):
        print(f'{title:<11} {picture}')
    return 0 if good and result.equal_logits else 1


def _logits(model: nn.Module, images: Any) -> Tensor:
    """Logits [N, num_classes] for a data set, with the model's own preprocessing."""
    images.transform = create_transform(**resolve_data_config({}, model=model))
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(torch.stack(batch)) for batch in _batches([image for image, _ in images])])


def _batches(items: list[Tensor], size: int = 64) -> list[list[Tensor]]:
    return [items[start:start + size] for start in range(0, len(items), size)]


def _draw_sheet(images: Any, logits: Tensor, path: Path) -> None:
    """Draw every digit that the network got wrong, and others, up to SHEET in all."""
    from ..drawing import draw_predictions

    images.transform = None
    confidences, predictions = logits.softmax(dim=1).max(dim=1)
    targets = torch.tensor([target for _, target in images])
    wrong = (predictions != targets).nonzero().flatten().tolist()
    right = (predictions == targets).nonzero().flatten().tolist()
    # The images are sorted by class; steps through them reach all classes.
    step = max(1, len(right) // max(1, SHEET - len(wrong)))
    chosen = [*wrong, *right[::step]][:SHEET]
    names = {index: name for name, index in images.reader.class_to_idx.items()}
    shown = f'all {len(wrong)} wrong ones' if 0 < len(wrong) <= SHEET else f'{SHEET} wrong ones' if wrong else 'some'
    draw_predictions(
        [images[i][0] for i in chosen], [names[int(targets[i])] for i in chosen],
        [names[int(predictions[i])] for i in chosen], [float(confidences[i]) for i in chosen], path,
        title=f'{len(right)} of {len(targets)} held-out digits right ({100 * len(right) / len(targets):.2f} %); shown '
              f'here: {shown}' + (' and some of the others' if 0 < len(wrong) < SHEET else ''))
