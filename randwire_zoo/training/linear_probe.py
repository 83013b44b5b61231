"""A linear probe: what the features of a network say of a data set that it was not trained on.

The network is left as it is. A linear classifier of its pooled features is fitted to the training images, without
augmentation, by L-BFGS on the cross-entropy with a penalty on the squared weights (multinomial logistic regression),
as Kornblith, Shlens and Le compare networks (Do Better ImageNet Models Transfer Better?, CVPR 2019). The penalty is
chosen on a fifth of the training images.
"""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from ..kernels.library import chosen
from ..weights.description import Description
from .arguments import PROBE
from .evaluation import (
    Conditions,
    autocast,
    checked,
    class_indices,
    conditions_of,
    default_device,
    find_description,
    load_network,
    open_images,
    prepare_device,
)

__all__ = ['LinearProbe', 'choose_decay', 'fit_classifier', 'linear_probe', 'main', 'pooled_features',
           'probe_weights']

#: Penalties that are tried, for features of variance 1.
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
ITERATIONS = 50
CALIBRATION = 512  # images that give batch normalisation its statistics
HELD_OUT = 5  # every fifth training image decides on the penalty


@dataclass(frozen=True)
class LinearProbe:
    """What a linear probe found.

    Args:
        top1: Accuracy on the held-out images, in per cent.
        mean_per_class: Mean over the classes of the accuracy on their images, in per cent.
        decay: The penalty that was chosen of `DECAYS`.
        num_features: Width of the pooled features.
        num_classes: Of the data set.
        training: Number of training images.
        held_out: Number of images measured on.
        img_size: Side of the images.
    """

    top1: float
    mean_per_class: float
    decay: float
    num_features: int
    num_classes: int
    training: int
    held_out: int
    img_size: int


def pooled_features(
        network: Any, loader: Any, device: torch.device, amp_dtype: str | None = None, channels_last: bool = True,
        title: str = 'features', progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """What the classifier of a network sees of all images of a loader: features [N, F] in fp32, and their classes [N].

    Args:
        network: Of timm, on the device, in eval mode.
        loader: timm's, without shuffling.
        device: Where to run.
        amp_dtype: Run in this lower precision.
        channels_last: Memory layout of the images.
        title: Stands before the progress bar.
        progress: Show the bar, on a terminal.
    """
    features, targets = [], []
    with torch.inference_mode(), autocast(device, amp_dtype)():
        for images, classes in tqdm(loader, desc=title, disable=None if progress else True, leave=False):
            images = images.to(device)
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            features.append(network.forward_head(network.forward_features(images), pre_logits=True).float().cpu())
            targets.append(classes.cpu())
    return torch.cat(features).clone(), torch.cat(targets).clone()  # tensors that are not made for inference only


def fit_classifier(
        features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, decay: float = 3e-3, iterations: int = 20,
) -> tuple[Tensor, Tensor]:
    """Fit a linear classifier by L-BFGS, drawn towards the one that it starts from.

    Args:
        features: [N, F].
        targets: [N], the classes.
        weight: [K, F] to start from.
        bias: [K] to start from.
        decay: Half of it times the squared distance of the weight from its start is added to the mean cross-entropy.
        iterations: Of L-BFGS.

    Returns:
        The weight [K, F] and the bias [K].
    """
    fitted = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(fitted, max_iter=iterations, line_search_fn='strong_wolfe')

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, *fitted), targets) + decay / 2 * (fitted[0] - weight).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return fitted[0].detach(), fitted[1].detach()


def choose_decay(features: Tensor, targets: Tensor, num_classes: int, progress: bool = True) -> float:
    """The penalty of `DECAYS` with which a classifier of four fifths of the images does best on the others.

    Args:
        features: [N, F], of variance 1.
        targets: [N], the classes, sorted, so that every fifth image is a fifth of each class.
        num_classes: K.
        progress: Show a progress bar.
    """
    held_out = torch.arange(len(targets)) % HELD_OUT == HELD_OUT - 1
    found = []
    for decay in tqdm(DECAYS, desc='penalties', disable=None if progress else True, leave=False):
        fitted = _fit(features[~held_out], targets[~held_out], num_classes, decay)
        found.append(_hits(features[held_out], targets[held_out], fitted).mean().item())
    # Of penalties that do equally well the strongest.
    return max(zip(found, DECAYS, strict=True))[1]


def linear_probe(
        network: Any, description: Description, conditions: Conditions, train_split: str = 'train',
        device: torch.device | str = 'cpu', workers: int = 2, calibrate: bool = False, progress: bool = True,
) -> LinearProbe:
    """Fit a linear classifier to the features of a folder's training images, and measure it on its other images.

    Args:
        network: Of timm, with the weights in it.
        description: Of it; its image size, normalisation and cropping hold for the images.
        conditions: The images to measure on, the precision, the batch.
        train_split: Folder of the images to fit to.
        device: Where to run.
        workers: Processes that load images.
        calibrate: First let the batch normalisation of the network see the training images: for random parameters,
            whose statistics are of nothing.
        progress: Show progress bars.

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if there are no images, or the splits have different classes.
    """
    device = torch.device(device)
    prepare_device(device)
    training, held_out = (
        open_images(conditions.data_dir, split, conditions.dataset, description.input_size, conditions.input_img_mode)
        for split in (train_split, conditions.split))
    classes = class_indices(training)
    if class_indices(held_out) != classes:
        raise ValueError(f'{conditions.data_dir}: the training and the held-out images have different classes')
    loaders = [conditions.loader(description, images, device, workers) for images in (training, held_out)]
    network = network.to(device)
    if conditions.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if calibrate:
        update_bn(_sample(loaders[0], CALIBRATION, conditions.batch_size), network, device)
    network.eval()
    (features, targets), (others, answers) = (
        pooled_features(network, loader, device, conditions.amp_dtype, conditions.channels_last, title, progress)
        for loader, title in zip(loaders, ('training images', 'held-out images'), strict=True))
    mean, std = features.mean(0), features.std(0)
    std[std < 1e-6 * std.max()] = 1.0  # a feature that never changes
    features, others = (features - mean) / std, (others - mean) / std
    num_classes = int(targets.max()) + 1
    decay = choose_decay(features, targets, num_classes, progress)
    hits = _hits(others, answers, _fit(features, targets, num_classes, decay))
    present = answers.unique()
    return LinearProbe(
        100 * hits.mean().item(), 100 * torch.stack([hits[answers == one].mean() for one in present]).mean().item(),
        decay, features.shape[1], num_classes, len(targets), len(answers), description.input_size[-1])


def probe_weights(
        checkpoint: str | Path = '', settings: Mapping[str, Any] | None = None, seed: int | None = None,
        progress: bool = True, lines: bool = False,
) -> LinearProbe:
    """`linear_probe` of the weights in a file, of published ones, or of random ones.

    Args:
        checkpoint: See `evaluation.evaluate_checkpoint`; images are fed as its training recorded it.
        settings: Those of `arguments.PROBE`, model, split and use_ema, by the names of validate.py, and kernels.
        seed: Random parameters of this seed instead of weights.
        progress: Show progress bars.
        lines: Print a line about device and kernels on stdout.

    Raises:
        FileNotFoundError: if a file or folder is missing.
        ValueError: naming what is wrong with a setting, the model, the weights or the images.
        KernelError: if the native kernels were asked for and cannot be built.
    """
    given = checked(settings)
    if seed is not None and checkpoint:
        raise ValueError('random parameters and a checkpoint are two things; name one of them')
    description, recorded = find_description(checkpoint, given)
    conditions = conditions_of(recorded, given, same_images=False)
    device = default_device(given.get('device'))
    if seed is None:
        network = load_network(checkpoint, description, given.get('model', ''), conditions.use_ema)
    else:
        torch.manual_seed(seed)
        network = description.create_model(given.get('model', ''))
    with chosen(given.get('kernels'), device, amp_dtype=conditions.amp_dtype) as header:
        if lines:
            print(header, flush=True)
        return linear_probe(network, description, conditions, device=device, workers=given.get('workers', 2),
                            calibrate=seed is not None, progress=progress)


def main(args: argparse.Namespace) -> int:
    """Probe as the parsed arguments of `add_probe_arguments` say, and print one line.

    Raises:
        ValueError, OSError: see `probe_weights`.
    """
    given = {name: value for name, value in vars(args).items() if name in (
        *PROBE, 'model', 'split', 'use_ema', 'device_modules', 'kernels')}
    found = probe_weights(args.checkpoint, given, args.random, not args.no_progress, lines=True)
    print(f'linear classifier of {found.num_features:,} features at {found.img_size} px, fitted to {found.training:,} '
          f'images with penalty {found.decay:g}: on {found.held_out:,} others top-1 {found.top1:.2f} %, mean over '
          f'{found.num_classes:,} classes {found.mean_per_class:.2f} %')
    return 0


def _sample(loader: Any, count: int, batch_size: int) -> list[Tensor]:
    """Batches of images that lie evenly in a loader's data set, mixed: folders hold one class after another."""
    seen, every, found = 0, -(-len(loader.dataset) // count), []
    for images, _ in loader:
        found.append(images[-seen % every::every].cpu().clone())  # a view would keep all of the batch
        seen += len(images)
    mixed = torch.randperm(sum(map(len, found)), generator=torch.Generator().manual_seed(0))
    return list(torch.cat(found)[mixed].split(batch_size))


def _fit(features: Tensor, targets: Tensor, num_classes: int, decay: float) -> tuple[Tensor, Tensor]:
    return fit_classifier(features, targets, features.new_zeros(num_classes, features.shape[1]),
                          features.new_zeros(num_classes), decay, ITERATIONS)


def _hits(features: Tensor, targets: Tensor, classifier: tuple[Tensor, Tensor]) -> Tensor:
    return (F.linear(features, *classifier).argmax(1) == targets).double()
