"""What a study will cost, from one measured step of training for each kind of network in it."""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import Subset

from ..training.evaluation import Conditions, autocast, default_device, prepare_device
from ..training.images import CachedImages
from ..weights.description import Description
from .study import AS_WRITTEN, Execution, Network, Study, data_folder

__all__ = ['NO_DATA', 'Cost', 'measure_cost']

# Multiply-adds of a forward pass that is timed: a second or two of one core. With fewer, what a step does once for any
# number of images, as in the optimiser, weighs too much.
ENOUGH = 2e10
REPEATS = 2
NO_DATA = 'The data are not here, so hours cannot be told.'


@dataclass(frozen=True)
class Cost:
    """Hours of one process that trains all networks of a study, one after another.

    Args:
        hours: Of loading, training and evaluation; None where the data are not here to be counted.
        images: How many images there are to train on, and to measure on.
        epochs: Of each network.
        steps: A line for each network that was measured.
    """

    hours: float | None
    images: tuple[int, int]
    epochs: int
    steps: list[str]

    def __str__(self) -> str:
        text = '\n'.join(self.steps)
        if self.hours is None:
            return f'{text}\n{NO_DATA}'
        return (f'{text}\nCost: {self.hours:.1f} hours of one process, {self.epochs} epochs of {self.images[0]:,} '
                f'images and {self.images[1]:,} to measure on for each network, without damage, predictions, further '
                'sizes and what a teacher says.')


def measure_cost(study: Study, networks: Sequence[Network], data_dir: str | None = None,
                 execution: Execution = AS_WRITTEN) -> Cost:
    """Time a step of the first network of each node operation and random graph model, and of each other model; the rest
    cost by their multiply-adds.

    Args:
        study: A study of classifiers.
        networks: Its networks.
        data_dir: See `study.data_folder`.
        execution: What this machine runs it with.

    Raises:
        ValueError: if it is a study of detectors, whose steps detectron2 takes.
    """
    if study.detection:
        raise ValueError('the cost of a study of detectors is not measured here')
    settings = execution.settings(study)
    device = torch.device(default_device(settings['device']))
    try:
        settings['data_dir'] = str(data_folder(study, data_dir))
    except FileNotFoundError:
        settings['data_dir'] = None
    images, loading = (0, 0), 0.0
    if settings['data_dir'] is not None and not settings['dataset']:
        images, loading = _images(study, networks[0], settings)
    evaluations = -(-settings['epochs'] // settings['val_interval'])  # the last epoch has one in any case
    # A recipe may train at other sizes than it measures at, and a step costs by its pixels.
    side = study.input_size[-1]
    sides = settings['train_img_sizes'] or [side]
    pixels = sum((one / side) ** 2 for one in sides) / len(sides)
    seconds, steps = 0.0, []
    measured: dict[str, tuple[float, float]] = {}  # of training and of evaluation, for a multiply-add of an image
    for network in networks:
        # Sums of inputs cost by edges, of which sparse graphs have few for their multiply-adds.
        kind = f'{network.node_op} {network.graph}' if network.node_op else network.model
        if kind not in measured:
            # On a GPU small steps would be all launches.
            batch = settings['batch_size'] if device.type == 'cuda' else max(
                min(settings['batch_size'], int(ENOUGH / max(network.macs, 1))), 2)
            training, evaluation = _step(study, network, settings, device, batch)
            measured[kind] = training / network.macs, evaluation / network.macs
            steps.append(f'{network.id}: {1000 * training:.3g} ms an image to train on, {1000 * evaluation:.3g} to '
                         f'measure on, in steps of {batch}; {1000 * loading:.3g} to load')
        training, evaluation = (_with_loading(one * network.macs * share, loading, settings['workers'], device)
                                for one, share in zip(measured[kind], (pixels, 1.0), strict=True))
        seconds += settings['epochs'] * images[0] * training + evaluations * images[1] * evaluation
    return Cost(seconds / 3600 if images[0] else None, images, settings['epochs'], steps)


def _with_loading(computing: float, loading: float, workers: int, device: torch.device) -> float:
    """Seconds an image takes where processes load some while a GPU computes; on the CPU both want the same cores."""
    return max(computing, loading / workers) if device.type == 'cuda' and workers else computing + loading


def _images(study: Study, network: Network, settings: dict[str, Any]) -> tuple[tuple[int, int], float]:
    """How many there are of each split, and the seconds that one takes to be loaded, on average over the epochs."""
    from timm.data import create_loader
    description = Description.from_settings({**settings, 'model': network.model, 'model_kwargs': network.kwargs})
    held_out = Conditions.from_settings(settings)
    splits = [replace(held_out, split=split).open(description) for split in (settings['train_split'], held_out.split)]
    some = Subset(splits[0], range(min(64, len(splits[0]))))
    images: Any = CachedImages(some)
    loader = create_loader(images, batch_size=len(some), is_training=True, num_workers=0,
                           persistent_workers=False, device=torch.device('cpu'), color_jitter=settings['color_jitter'],
                           color_jitter_prob=settings['color_jitter_prob'], auto_augment=settings['aa'],
                           re_prob=settings['reprob'], **{
                               **description.data_config(), 'interpolation': settings['train_interpolation']})
    decoding = _seconds(lambda: [some[number] for number in range(len(some))], lambda: None)
    handling = _seconds(lambda: list(loader), lambda: None)
    decoded = 1 if settings['cache_images'] else settings['epochs']  # times
    return (len(splits[0]), len(splits[1])), (handling + decoding * decoded / settings['epochs']) / len(some)


def _step(study: Study, network: Network, settings: dict[str, Any], device: torch.device, batch: int,
          ) -> tuple[float, float]:
    """Seconds an image takes in training and in evaluation."""
    description = Description.from_settings({**settings, 'model': network.model, 'model_kwargs': network.kwargs})
    model = description.create_model(network.model).to(device)
    layout = torch.channels_last if settings['channels_last'] else torch.contiguous_format
    model = model.to(memory_format=layout)
    images = torch.randn(batch, *study.input_size, device=device).to(memory_format=layout)
    targets = torch.zeros(batch, dtype=torch.long, device=device)
    prepare_device(device)
    in_precision = autocast(device, settings['amp_dtype'] if settings['amp'] else None)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)

    def train() -> None:
        optimizer.zero_grad()
        with in_precision():
            loss = F.cross_entropy(model.train()(images), targets)
        loss.backward()
        optimizer.step()

    def evaluate() -> None:
        with torch.inference_mode(), in_precision():
            model.eval()(images)

    def wait() -> None:
        if device.type == 'cuda':
            torch.cuda.synchronize(device)

    return _seconds(train, wait) / batch, _seconds(evaluate, wait) / batch


def _seconds(action: Callable[[], object], wait: Callable[[], None]) -> float:
    """Seconds that an action takes once it is warm; of one thread those that it has a core, however busy others are."""
    clock = time.perf_counter if torch.cuda.is_available() or torch.get_num_threads() > 1 else time.process_time
    action()
    wait()
    start = clock()
    for _ in range(REPEATS):
        action()
    wait()
    return (clock() - start) / REPEATS
