"""Distillation: a teacher for the classes of a data set, and its outputs recorded once for all training images.

timm's train.py asks a teacher about every crop (`kd_model_name`), which costs several times what a small student
costs. Where the classes are photographs of ImageNet's, an ImageNet network is such a teacher, with other weights of its
last layer: the rows of those classes, fitted to the training images. What it says of each whole training image is
recorded, and serves for all crops of it (`kd_outputs`). A classifier knows the images that it was fitted to, and so
each image's record comes from one that was fitted to others.
"""
from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from timm.data import ImageNetInfo, create_loader
from timm.models import load_state_dict, save_for_hf
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import one_line
from ..files import atomic_folder, atomic_path
from ..weights.description import build_model
from ..weights.errors import loading
from ..weights.manifest import sha256_of
from .evaluation import class_indices, default_device, open_images
from .linear_probe import fit_classifier, pooled_features

__all__ = ['RecordedTeacher', 'Teacher', 'check_teachers_classes', 'main', 'write_teacher']

OUTPUTS = 'outputs.safetensors'
WEIGHTS = 'model.safetensors'
FOLDS = 4


@dataclass(frozen=True)
class Teacher:
    """What `write_teacher` made.

    Args:
        folder: A model folder of timm's, `local-dir:FOLDER`, and the recorded outputs `outputs.safetensors` in it.
        before: Top-1 accuracy on the held-out images with the rows of ImageNet's classifier, in per cent.
        after: The same with the fitted classifier.
        recorded: Top-1 accuracy of the recorded outputs on the training images.
    """

    folder: Path
    before: float
    after: float
    recorded: float

    @property
    def outputs(self) -> Path:
        """The recorded outputs."""
        return self.folder / OUTPUTS


class RecordedTeacher(nn.Module):
    """Stands for a teacher whose outputs for all training images are at hand.

    `look_up` says which images the next batch holds; the call then gives their outputs, whatever the crops are.

    Args:
        logits: [N, num_classes], of the training images in their order.
        targets: [N], their classes.
    """

    def __init__(self, logits: Tensor, targets: Tensor) -> None:
        super().__init__()
        # No buffers: they are no part of what a checkpoint holds.
        self.logits, self.targets = logits, targets
        self.current = logits[:0]

    @classmethod
    def load(cls, path: str | Path, images: Any, num_classes: int) -> RecordedTeacher:
        """Read what `write_teacher` recorded.

        Args:
            path: The file.
            images: The training images, an image folder opened by `open_images`.
            num_classes: Of the student.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it cannot be read, or was recorded for other images or classes.
        """
        names, targets = _members(images)
        with loading(path), safe_open(path, framework='pt') as file:
            record, logits = dict(file.metadata() or {}), file.get_tensor('logits')
        if record.get('images_sha256') != _sha256(names):
            raise ValueError(f'{path} was recorded for other training images than these {len(names):,}')
        if tuple(logits.shape) != (len(names), num_classes):
            raise ValueError(f'{path} holds outputs of shape {tuple(logits.shape)} and must have {len(names)} of '
                             f'{num_classes} classes')
        check_teachers_classes(str(path), json.loads(record.get('classes', '[]')), class_indices(images))
        return cls(logits, torch.tensor(targets))

    def look_up(self, numbers: Tensor) -> Tensor:
        """Take a batch's numbers [B] of images, and give their classes [B], on the same device."""
        here = numbers.cpu()
        self.current = self.logits[here].to(numbers.device)
        return self.targets[here].to(numbers.device)

    def forward(self, images: Tensor) -> Tensor:
        """The outputs [B, num_classes] of the images that were looked up last."""
        return self.current.float()


def check_teachers_classes(
        teacher: str, names: Sequence[str], classes: Mapping[str, int], mapped: bool = False) -> None:
    """Refuse a teacher whose outputs are known not to be those of the training images' classes.

    Args:
        teacher: Who it is, for the error.
        names: Of its classes, in the order of its outputs; empty if it does not say.
        classes: The index of each of the images' classes.
        mapped: The indices are those of the user's class map, which may give other names the teacher's indices.

    Raises:
        ValueError: naming the first class that it has not at that index.
    """
    if mapped and set(names) != set(classes):
        return
    for name, index in classes.items():
        its = names[index] if index < len(names) else None
        if names and its != name:
            raise ValueError(f'{teacher} has other classes than the training images, or in another order: output '
                             f'{index} is {its!r}, not {name!r}')


def write_teacher(
        weights: str | Path,
        data_dir: str | Path,
        folder: str | Path,
        model: str = 'tf_efficientnet_lite2',
        img_size: int = 160,
        batch_size: int = 64,
        workers: int = 1,
        device: str | None = None,
        amp_dtype: str | None = 'bfloat16',
        progress: bool = True,
) -> Teacher:
    """Make a teacher for an image folder with classes of ImageNet out of a network for all of ImageNet.

    Args:
        weights: Of the network with ImageNet's 1,000 outputs. They may come from another implementation, with other
            names for the same tensors in the same order.
        data_dir: The image folder; the folders of the classes have the names of ImageNet's (n01443537, …).
        folder: Where to; it appears only when it is complete.
        model: timm's name of the network, whose last layer is linear.
        img_size: Side to which the images are enlarged.
        batch_size: Images per step.
        workers: Processes that load images.
        device: Where to run.
        amp_dtype: The lower precision of the network; none if None.
        progress: Show progress bars.

    Raises:
        FileExistsError: if the folder exists.
        FileNotFoundError: if the weights or the images are missing.
        ValueError: if they do not fit.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f'{folder} exists; name another folder')
    where = torch.device(default_device(device))
    network: Any = _load(model, weights)
    size = (3, img_size, img_size)
    training, held_out = (open_images(data_dir, split, input_size=size) for split in ('train', 'validation'))
    names, numbers = _members(training)
    targets = torch.tensor(numbers)
    wnids = list(class_indices(training))
    if list(class_indices(held_out)) != wnids:
        raise ValueError(f'{data_dir}: the training and the held-out images have different classes')
    known = ImageNetInfo('imagenet-1k').label_names()
    if foreign := [wnid for wnid in wnids if wnid not in known]:
        raise ValueError(f'{data_dir}: {len(foreign)} of {len(wnids)} classes are none of ImageNet-1k, such as '
                         f'{foreign[0]}')
    rows = torch.tensor([known.index(wnid) for wnid in wnids])
    classifier: Any = network.get_classifier()
    if not isinstance(classifier, nn.Linear) or classifier.out_features != len(known):
        raise ValueError(f'{model} has no linear classifier of {len(known)} classes')
    start = classifier.weight.detach()[rows].float(), classifier.bias.detach()[rows].float()

    network.eval().to(where, memory_format=torch.channels_last)
    data = {'mean': network.pretrained_cfg['mean'], 'std': network.pretrained_cfg['std'], 'interpolation': 'bicubic',
            'crop_pct': 1.0}

    def features(images: Any, title: str) -> Tensor:
        loader = create_loader(images, size, batch_size, num_workers=workers, device=where, persistent_workers=False,
                               **data)
        return pooled_features(network, loader, where, amp_dtype, title=title, progress=progress)[0]

    seen, unseen = features(training, 'training images'), features(held_out, 'held-out images')
    answers = torch.tensor(_members(held_out)[1])
    logits = torch.empty(len(targets), len(wnids))
    fold = torch.arange(len(targets)) % FOLDS  # the images are sorted by class: every fold has as many of each
    for left_out in tqdm(range(FOLDS), desc='classifiers', disable=None if progress else True, leave=False):
        others = fold != left_out
        weight, bias = fit_classifier(seen[others], targets[others], *start)
        logits[~others] = F.linear(seen[~others], weight, bias)
    weight, bias = fit_classifier(seen, targets, *start)
    teacher = Teacher(folder, _top1(F.linear(unseen, *start), answers), _top1(F.linear(unseen, weight, bias), answers),
                      _top1(logits, targets))

    network.reset_classifier(len(wnids))
    with torch.no_grad():
        network.get_classifier().weight.copy_(weight)
        network.get_classifier().bias.copy_(bias)
    network.pretrained_cfg = {**network.pretrained_cfg, **data, 'input_size': size, 'num_classes': len(wnids),
                              'label_names': wnids}
    with atomic_folder(folder) as temporary:
        save_for_hf(network.cpu().to(memory_format=torch.contiguous_format), str(temporary),
                    safe_serialization=True)
        record = {
            'format': 'pt', 'model': model, 'weights_sha256': sha256_of(weights), 'img_size': str(img_size),
            'teacher_sha256': sha256_of(temporary / WEIGHTS), 'images_sha256': _sha256(names),
            'classes': json.dumps(wnids), 'metrics': json.dumps(
                {name: round(getattr(teacher, name), 4) for name in ('before', 'after', 'recorded')})}
        with atomic_path(temporary / OUTPUTS) as path:
            save_file({'logits': logits.half()}, path, metadata=record)
    return teacher


def main(args: argparse.Namespace) -> int:
    """Make a teacher as the parsed arguments say, and print what it is worth.

    Raises:
        ValueError, OSError: see `write_teacher`.
    """
    teacher = write_teacher(
        args.weights, args.data_dir, args.folder, args.model, args.img_size, args.batch_size, args.workers, args.device,
        None if args.no_amp else 'bfloat16', not args.no_progress)
    print(f'held-out images: top-1 {teacher.before:.2f} % with the rows of ImageNet, {teacher.after:.2f} % fitted')
    print(f'training images: top-1 {teacher.recorded:.2f} % of the recorded outputs')
    print(teacher.outputs)
    return 0


def _load(model: str, weights: str | Path) -> nn.Module:
    network: nn.Module = build_model(model)
    own = network.state_dict()
    with loading(weights):
        state: Mapping[str, Any] = load_state_dict(str(weights))
        if state.keys() != own.keys():
            shapes = [tuple(tensor.shape) for tensor in state.values()]
            if shapes != [tuple(tensor.shape) for tensor in own.values()]:
                raise ValueError(f'it has neither the names nor the shapes of {model}')
            state = dict(zip(own, state.values(), strict=True))
        network.load_state_dict(state)
    return network


def _members(images: Any) -> tuple[list[str], list[int]]:
    """The names of the images, below the folder of the split, and their classes."""
    try:
        samples = [(Path(path), target) for path, target in images.reader.samples]
        root = Path(images.reader.root)
        return [path.relative_to(root).as_posix() for path, _ in samples], [int(target) for _, target in samples]
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f'recorded outputs are of an image folder, and these images are none ({one_line(error)})'
                         ) from None


def _sha256(names: list[str]) -> str:
    return hashlib.sha256('\n'.join(names).encode()).hexdigest()


def _top1(logits: Tensor, targets: Tensor) -> float:
    return 100 * (logits.argmax(1) == targets).double().mean().item()
