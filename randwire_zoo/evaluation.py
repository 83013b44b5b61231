"""Top-1 and top-5 accuracy of a model on a folder of images, at any image size."""
from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import load_checkpoint
from timm.task import ClassificationEvaluator, evaluation_sample_limit
from timm.utils import ParseKwargs
from torch import nn
from tqdm import tqdm

from .description import build_model
from .weights_io import loading, one_line

__all__ = ['add_arguments', 'autocast', 'class_indices', 'default_device', 'evaluate', 'evaluate_folder', 'main',
           'open_images']


def evaluate(
        model: Callable[..., Any],
        loader: Any,
        device: torch.device | str = 'cpu',
        amp_autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        channels_last: bool = False,
        distributed: bool = False,
        description: str = 'evaluate',
        progress: bool = True,
) -> dict[str, float]:
    """Measure a model on everything that a timm loader yields.

    Args:
        model: The network; it is left in eval mode.
        loader: Yields images [B, C, H, W] and class indices [B].
        device: Where both go.
        amp_autocast: Makes the context of each forward pass.
        channels_last: Memory layout of the images.
        distributed: Add up over all processes; the images that pad the last process's share are not counted.
        description: Stands before the progress bar.
        progress: Show the bar.

    Returns:
        'loss' (mean cross-entropy), 'top1' and 'top5' in per cent.
    """
    device = torch.device(device)
    if isinstance(model, nn.Module):
        model.eval()
    evaluator = ClassificationEvaluator(device, max_samples=evaluation_sample_limit(loader))
    with torch.inference_mode(), tqdm(loader, desc=description, leave=False, disable=not progress) as bar:
        for images, targets in bar:
            images, targets = images.to(device), targets.to(device)
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with amp_autocast():
                logits = model(images)
            evaluator.update(logits, targets)
    return dict(evaluator.compute(distributed=distributed))


def evaluate_folder(
        model: nn.Module,
        data_dir: str | Path,
        split: str = 'validation',
        dataset: str = '',
        img_size: int | None = None,
        crop_pct: float | None = None,
        batch_size: int = 64,
        workers: int = 2,
        device: torch.device | str = 'cpu',
        amp_dtype: str | None = None,
        channels_last: bool = False,
        progress: bool = True,
) -> dict[str, float]:
    """Measure a model on an image folder, with the preprocessing that its pretrained_cfg states.

    Args:
        model: The network.
        data_dir: Folder with a folder per split, and in it one folder of images per class.
        split: Name of the split's folder; empty if the classes stand in data_dir itself.
        dataset: TYPE/NAME for one of timm's other kinds of data sets.
        img_size: Side of the images; the model's own if None.
        crop_pct: Part of the resized image that is seen; the model's own if None.
        batch_size: Images per step.
        workers: Processes that load images; 0 loads them here.
        device: Where to run.
        amp_dtype: Run in this lower precision.
        channels_last: Memory layout.
        progress: Show a progress bar.

    Returns:
        What `evaluate` returns, and 'img_size' and 'images', how many there were.

    Raises:
        ValueError: if there are no images, or more classes than the model has outputs.
    """
    device = torch.device(device)
    data_config = resolve_data_config(
        {'img_size': img_size, 'crop_pct': crop_pct}, model=model, use_test_size=True)
    images = open_images(data_dir, split, dataset=dataset, input_size=data_config['input_size'],
                         num_classes=getattr(model, 'num_classes', None))
    loader = create_loader(
        images, input_size=data_config['input_size'], batch_size=batch_size, interpolation=data_config['interpolation'],
        mean=data_config['mean'], std=data_config['std'], crop_pct=data_config['crop_pct'],
        crop_mode=data_config['crop_mode'], num_workers=workers, device=device, persistent_workers=False)
    model = model.to(device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    metrics = evaluate(model, loader, device, autocast(device, amp_dtype), channels_last, progress=progress)
    return {**metrics, 'img_size': data_config['input_size'][-1], 'images': len(images)}


def autocast(device: torch.device, amp_dtype: str | None) -> Callable[[], AbstractContextManager[Any]]:
    """What makes the context of a forward pass in 'float16' or 'bfloat16'; in full precision for None."""
    if amp_dtype is None:
        return nullcontext
    return partial(torch.autocast, device_type=device.type, dtype=getattr(torch, amp_dtype))


def default_device(device: str | None = None) -> str:
    """The named device, or a GPU if there is one, or the CPU.

    Raises:
        ValueError: if the named device is not here.
    """
    if device is None:
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        kind, index = torch.device(device).type, torch.device(device).index
        if kind == 'cuda':
            # Asked without touching it: each process of a node would leave its context on the first GPU.
            if (index or 0) >= torch.cuda.device_count():
                raise RuntimeError(f'there are {torch.cuda.device_count()} GPUs')
        else:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'device {device!r} is not available: {one_line(error)}') from None
    return device


def open_images(
        data_dir: str | Path | None,
        split: str,
        dataset: str = '',
        input_size: tuple[int, ...] = (3, 224, 224),
        input_img_mode: str | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
) -> Any:
    """timm's `create_dataset`, refusing what it would accept by guessing.

    Args:
        data_dir: Root folder.
        split: Folder below it, or one of its usual synonyms (val, valid, …); empty for the root itself.
        dataset: As in timm.
        input_size: Channels, height, width; decides on colour or grey where input_img_mode does not.
        input_img_mode: Mode that images are converted to.
        num_classes: Outputs of the model.
        kwargs: Further arguments of `create_dataset`.

    Raises:
        FileNotFoundError: if the folder of the split is missing.
        ValueError: if there are no images, or more classes than outputs.
    """
    is_folder = not dataset
    if is_folder and (data_dir is None or not Path(data_dir).is_dir()):
        raise FileNotFoundError(f'no data folder {data_dir}; name one with --data-dir')
    mode = input_img_mode or ('L' if input_size[0] == 1 else 'RGB')
    try:
        images = create_dataset(
            dataset, root=None if data_dir is None else str(data_dir), split=split, input_img_mode=mode, **kwargs)
    except (RuntimeError, AssertionError, KeyError, ImportError) as error:
        raise ValueError(f'no images of the split {split!r} in {data_dir}: {one_line(error)}') from error
    reader = getattr(images, 'reader', None)
    root = getattr(reader, 'root', None)
    if is_folder and split and root is not None and Path(root) == Path(str(data_dir)):
        raise FileNotFoundError(f'no folder {split!r} in {data_dir}')  # timm would take the root for the split
    classes = class_indices(images)
    if num_classes is not None and len(classes) > num_classes:
        raise ValueError(f'{data_dir} has {len(classes)} classes, but the model has {num_classes} outputs')
    return images


def class_indices(images: Any) -> dict[str, int]:
    """The index of each class by its name, in the order of the indices; empty where a data set of timm names none."""
    classes = getattr(getattr(images, 'reader', images), 'class_to_idx', None) or {}
    return dict(sorted(classes.items(), key=lambda item: item[1]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser the arguments of `main`."""
    parser.add_argument('--model', required=True, metavar='NAME', help='name of the model')
    parser.add_argument('--data-dir', required=True, metavar='DIR', help='folder of the data set')
    parser.add_argument('--split', default='validation', metavar='NAME',
                        help="folder of the split, '' if there is none (default: %(default)s)")
    parser.add_argument('--dataset', default='', metavar='TYPE/NAME', help="another of timm's kinds of data sets")
    parser.add_argument('--checkpoint', default='', metavar='FILE',
                        help='weights (safetensors or a timm checkpoint); the published ones if not given')
    parser.add_argument('--use-ema', action='store_true', help="the checkpoint's moving average, if it has one")
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE',
                        help='arguments of the model')
    parser.add_argument('--num-classes', type=int, metavar='N', help="number of classes; the model's own if not given")
    parser.add_argument('--img-size', type=int, metavar='N', help="side of the images; the model's own if not given")
    parser.add_argument('--crop-pct', type=float, metavar='N', help='part of the resized image that is seen')
    parser.add_argument('-b', '--batch-size', type=int, default=64, metavar='N', help='default: %(default)s')
    parser.add_argument('-j', '--workers', type=int, default=2, metavar='N',
                        help='processes that load images (default: %(default)s)')
    parser.add_argument('--device', metavar='NAME', help='cuda, cpu, …; a GPU if there is one')
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument('--amp-dtype', default='bfloat16', choices=('float16', 'bfloat16'), help='default: %(default)s')
    parser.add_argument('--channels-last', action='store_true', help='channels_last memory layout')


def main(args: argparse.Namespace) -> int:
    """Evaluate as the parsed arguments of `add_arguments` say, and print one line.

    Raises:
        ValueError: naming what is wrong with the model, the weights or the images.
        OSError: if a file or folder is missing.
    """
    for name in ('img_size', 'batch_size', 'num_classes'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}')
    device = default_device(args.device)
    kwargs: Mapping[str, Any] = {'num_classes': args.num_classes, **args.model_kwargs}
    model = build_model(args.model, pretrained=not args.checkpoint, **kwargs)
    if args.checkpoint:
        with loading(args.checkpoint):
            load_checkpoint(model, args.checkpoint, use_ema=args.use_ema)
    metrics = evaluate_folder(
        model, args.data_dir, args.split, args.dataset, args.img_size, args.crop_pct, args.batch_size, args.workers,
        device, args.amp_dtype if args.amp else None, args.channels_last)
    print(f"{args.model} at {metrics['img_size']} px on {metrics['images']} images: "
          f"top-1 {metrics['top1']:.2f} %, top-5 {metrics['top5']:.2f} %, loss {metrics['loss']:.4f}")
    return 0
