"""A lean trainer made of timm's own parts: data, augmentation, optimiser, schedule, task, average, checkpoints.

It reads the recipes of timm's train.py (`recipes`) and writes what train.py writes: `args.yaml`, `summary.csv` and
checkpoints that validate.py reads. What it adds: it needs no script beside the package, shows a progress bar, runs in
several processes on CPUs as well, refuses to write over an earlier experiment, and a run that was killed continues to
the very weights of an uninterrupted one.
"""
from __future__ import annotations

import argparse
import copy
import hashlib
import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from timm.data import FastCollateMixup, create_loader
from timm.layers import convert_sync_batchnorm
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import safe_model_name
from timm.optim import create_optimizer_v2, list_optimizers, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import (
    ClassificationTask,
    LogitDistillationTask,
    load_task_ema_checkpoint,
    resume_task_checkpoint,
)
from timm.utils import (
    AverageMeter,
    CheckpointSaver,
    NativeScaler,
    dispatch_clip_grad,
    distribute_bn,
    init_distributed_device,
    random_seed,
    reduce_tensor,
    setup_default_logging,
    update_summary,
)
from timm.utils.checkpoint_saver import load_checkpoint_metadata
from timm.utils.summary import trim_summary
from torch import nn
from tqdm import tqdm

from ..errors import nearest, one_line
from ..files import Locked, atomic_path, lock, read_summary, write_atomically
from ..graphs import graphs_sha256
from ..kernels.library import chosen
from ..network import RandWire
from ..weights.description import ARGUMENTS, WEIGHT_SOURCES, Description, read_settings
from ..weights.errors import loading
from .distillation import RecordedTeacher, check_teachers_classes
from .evaluation import (
    Conditions,
    autocast,
    check_classes,
    checking_loaders,
    class_indices,
    default_device,
    evaluate,
    import_modules,
    open_images,
    prepare_device,
)
from .images import CachedImages, NumberedImages
from .recipes import DEFAULTS, KEYS, check_settings, learning_rate, load_recipe, recorded_recipe

__all__ = ['PeerFailure', 'TrainingResult', 'main', 'read_summary', 'seed_everything', 'train']

SUMMARY = 'summary.csv'
LAST = 'last.pth.tar'
LEFT_OVER = '.tmp'
BEST = 'model_best.pth.tar'
LOCK = '.lock'
#: What an optimiser's groups have of its settings, beside the rate; other entries may be what it remembers.
HYPERPARAMETERS = ('weight_decay', 'momentum', 'dampening', 'nesterov', 'betas', 'alpha', 'eps', 'lr_scale', 'fused',
                   'foreach')
#: What a training began from. It is read at the start alone; a resumed one keeps it, as the origin of its weights.
BEGINNING = ('pretrained', 'pretrained_path', 'initial_checkpoint')
#: Where things lie and what computes: the processes of one training may differ in it, and so may one that goes on.
PLACES = (*BEGINNING, 'data_dir', 'dataset_download', 'class_map', 'cache_images', 'device', 'kernels',
          'device_modules', 'workers', 'pin_mem', 'kd_outputs', 'output', 'experiment', 'resume')
#: How much is said of what differs: settings, and of the classes those that differ.
SAID = 5


Made = TypeVar('Made')


class PeerFailure(ValueError):
    """Another process of the training has failed, and says why itself; this one ends with it."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training leaves behind.

    Args:
        folder: The experiment's folder; None in processes other than the first.
        best_metric: The best value of the recipe's `eval_metric`; None if nothing was measured.
        best_epoch: The epoch, counted from 0, that reached it.
        history: One row of summary.csv per measured epoch: epoch, train_loss, eval_loss, eval_top1, eval_top5, lr.
    """

    folder: Path | None
    best_metric: float | None
    best_epoch: int | None
    history: tuple[dict[str, float], ...]

    @property
    def last(self) -> dict[str, float]:
        """The last row of the history; empty if there is none."""
        return self.history[-1] if self.history else {}


def train(
        config: str | Path | None = None, *, progress: bool = True, lines: bool = True, **settings: Any,
) -> TrainingResult:
    """Train a model as a recipe says.

    Under torchrun every process calls this; the first one writes. The state of every random generator follows from
    (seed, epoch, process), which is why a resumed run goes the way of an uninterrupted one.

    Args:
        config: A recipe, see `recipes.load_recipe`. A resumed run takes the args.yaml beside its checkpoint if none
            is given, and the settings in the checkpoint where there is no such file.
        progress: Show progress bars, on a terminal.
        lines: Print a line about device and kernels, and one per epoch, counted from 1, on stdout.
        settings: Keys of `recipes.KEYS`, which override the recipe.

    Raises:
        ValueError: naming what is wrong with a setting, the model, the data or the checkpoint, or what the processes
            do not agree in; nothing is written. `files.Locked` if another training is at work in the folder.
        OSError: if a file or folder is missing; FileExistsError if the experiment's folder is in use.
        KernelError: if the native kernels were asked for and cannot be built.
        PeerFailure: in all processes but one, if there is anything wrong in that one.
    """
    args, dropped = _resolve(config, settings)
    import_modules(args.device_modules or ())
    written_args = yaml.safe_dump(vars(args), default_flow_style=False)
    device = init_distributed_device(args)
    try:
        first = args.rank == 0
        training = _together(args, lambda: _Run(args, device, written_args, progress and first, lines and first))
        _check_agreement(args, training.decided())
        with training.held as stack:
            # What is compiled has no use for the native kernels.
            kernels = args.kernels or ('torch' if args.torchcompile else None)
            amp_dtype = args.amp_dtype if args.amp else None
            training.say(_together(args, lambda: stack.enter_context(chosen(kernels, device, amp_dtype=amp_dtype))))
            for line in dropped:
                training.say(line)
            training.connect()
            try:
                return training.run()
            except KeyboardInterrupt:
                raise KeyboardInterrupt(training.leave()) from None
            except Exception:
                training.leave()
                raise
    finally:
        if args.distributed:
            torch.distributed.destroy_process_group()


def main(args: argparse.Namespace) -> int:
    """Train as the parsed arguments of `add_train_arguments` say.

    Raises:
        ValueError, OSError: see `train`.
    """
    if not logging.root.handlers:
        setup_default_logging(logging.WARNING)
    settings = {name: value for name, value in vars(args).items() if name in KEYS}
    try:
        result = train(args.config, progress=not args.no_progress, **settings)
    except PeerFailure:
        return 1  # one line, by the process that failed
    if result.folder is not None:
        if result.best_metric is not None and result.best_epoch is not None:
            print(f'best: {result.best_metric:.4g} in epoch {result.best_epoch + 1}')  # counted from 1, for people
        print(result.folder)
    return 0


def _resolve(config: str | Path | None, settings: dict[str, Any]) -> tuple[argparse.Namespace, list[str]]:
    """Defaults, recipe and explicit settings in one namespace, checked as far as that needs no model and no data.

    And a line about each mapping of the recipe of which some is lost: as in train.py, another one takes its place.
    """
    explicit = check_settings(settings)
    resume = explicit.get('resume')
    if config is None and resume:
        # The run goes on where its checkpoint lies, wherever it lay when its settings were written.
        recipe = {name: value for name, value in _begun_recipe(resume, explicit).items() if name not in (
            'output', 'experiment', 'resume')}
    else:
        recipe = load_recipe(config) if config is not None else {}
    if not (explicit.get('model') or recipe.get('model')):
        raise ValueError('name the network, with --model or in a recipe (-c)')
    args = argparse.Namespace(**{**copy.deepcopy(DEFAULTS), **recipe, **explicit})
    args.device = default_device(args.device)
    if args.resume:
        if not Path(args.resume).is_file():
            raise FileNotFoundError(f'no checkpoint at {args.resume}')
        with suppress(ValueError):  # `_resume_and_setup_ema` says what is wrong with the checkpoint
            began = read_settings(args.resume)
            vars(args).update({name: began[name] for name in BEGINNING if name in began and name not in explicit})
            kwargs = began.get('model_kwargs') or {}
            sources = {name: kwargs[name] for name in WEIGHT_SOURCES if name in kwargs}
            args.model_kwargs = {**sources, **args.model_kwargs}
    if args.sync_bn and not args.device.startswith('cuda'):
        raise ValueError(f'sync_bn needs GPUs, got device {args.device!r}')
    dropped = []
    for name in ('model_kwargs', 'opt_kwargs'):
        lost = {key: value for key, value in recipe.get(name, {}).items() if key not in getattr(args, name)}
        if lost:
            dropped.append(f"{name} takes the place of the recipe's, and drops its "
                           + ', '.join(f'{key}: {value}' for key, value in lost.items()))
    return args, dropped


def _begun_recipe(resume: str, explicit: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of the training that a checkpoint is of: the args.yaml beside it, or else what it holds itself."""
    beside = Path(resume).parent / 'args.yaml'
    if beside.is_file():
        return load_recipe(beside)
    if not Path(resume).is_file():
        raise FileNotFoundError(f'no checkpoint at {resume}')
    try:
        settings = read_settings(resume)
    except ValueError:
        if 'model' not in explicit:
            raise
        return {}  # `_resume_and_setup_ema` says what is wrong with the checkpoint
    return recorded_recipe(resume, settings)


def _check_agreement(args: argparse.Namespace, decided: Mapping[str, Any]) -> None:
    """See that what decides a training is the same in all of its processes.

    Raises:
        ValueError: in every process, naming what differs and who has which.
    """
    if not args.distributed:
        return

    def gather(mine: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[Any] = [None] * args.world_size
        torch.distributed.all_gather_object(found, mine)
        return found

    # Of thousands of classes in hundreds of processes only what differs is sent.
    hashes = gather({name: hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()
                     for name, value in decided.items()})
    names = [name for name in dict.fromkeys(name for one in hashes for name in one)
             if len({one.get(name) for one in hashes}) > 1]
    if not names:
        return
    found = gather({name: decided[name] for name in names[:SAID] if name in decided})
    said = []
    for name in names[:SAID]:
        ranks: dict[str, list[int]] = {}
        for rank, text in enumerate(_apart([one.get(name, 'not given') for one in found])):
            ranks.setdefault(text, []).append(rank)
        said.append(f'{name}: ' + ', '.join(
            f'{text} (process{"es" if len(those) > 1 else ""} {_some(those)})' for text, those in ranks.items()))
    raise ValueError('the processes of this training do not agree in ' + '; '.join(said))


def _apart(values: Sequence[Any]) -> list[str]:
    """Values as text; of mappings, such as class tables, what is not the same in all of them."""
    if not all(isinstance(value, Mapping) for value in values):
        return [str(value) for value in values]
    texts = [[f'{name} = {item}' for name, item in value.items()] for value in values]
    same = set(texts[0]).intersection(*texts[1:])
    return [_some([text for text in one if text not in same]) or 'no others' for one in texts]


def _some(items: Sequence[Any]) -> str:
    return ', '.join(map(str, items[:SAID])) + (', …' if len(items) > SAID else '')


def _together(args: argparse.Namespace, action: Callable[[], Made]) -> Made:
    """What action gives; if it fails in one process, it fails in all of them, and nobody waits for the one."""
    error: Exception | None = None
    try:
        made = action()
    except Exception as caught:  # whatever it is, the others must know
        error = caught
    if args.distributed:
        errors: list[str | None] = [None] * args.world_size
        torch.distributed.all_gather_object(errors, None if error is None else one_line(error))
        failed = [rank for rank, text in enumerate(errors) if text is not None]
        if failed and failed[0] != args.rank:
            raise PeerFailure(f'process {failed[0]}: {errors[failed[0]]}') from error
    if error is not None:
        raise error
    return made


def seed_everything(seed: int, epoch: int, rank: int) -> None:
    """Seed Python's, numpy's and torch's generators from all three numbers."""
    random_seed(int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0]))


def _set_hyperparameters(optimizer: torch.optim.Optimizer, given: Sequence[Mapping[str, Any]]) -> None:
    """Give a restored optimiser the settings of this run, in place of those that its checkpoint brought."""
    for group, settings in zip(optimizer.param_groups, given, strict=True):
        # The rate itself is where the schedule was; what the schedule starts from is the setting.
        if group.get('initial_lr', group['lr']) != settings['lr']:
            group['lr'] = group['initial_lr'] = settings['lr']
        group.update({name: settings[name] for name in HYPERPARAMETERS if name in settings})


class _Saver(CheckpointSaver):
    """timm's saver, without the instants in which last.pth.tar and the others do not exist or are half copied."""

    def _replace(self, src: str, dst: str) -> None:
        os.replace(src, dst)

    def _duplicate(self, src: str, dst: str) -> None:
        if os.path.exists(dst) and os.path.samefile(src, dst):
            return  # to move one link of a file over another does nothing, and would leave both
        temporary = f'{dst}{LEFT_OVER}'
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        try:
            os.link(src, temporary)
        except (OSError, NotImplementedError):
            shutil.copy2(src, temporary)
        os.replace(temporary, dst)


class _Run:
    """One call of `train`, in one process: everything is built and checked first, then the folder is made."""

    def __init__(
            self, args: argparse.Namespace, device: torch.device, written_args: str, progress: bool, lines: bool,
    ) -> None:
        self.args = args
        self.device = device
        self.written_args = written_args
        self.progress = progress
        self.lines = lines
        self.held = ExitStack()
        self.began: dict[str, Any] = {}  # what the checkpoint records of the training that goes on
        self.read: tuple[int, int] | None = None
        prepare_device(device)

        # The first process' seed for all: each starts from the same weights, and so does each moving average.
        seed_everything(args.seed, 0, 0)
        self.description = Description.from_settings(vars(args))
        model = self._build_model()
        self.wiring = _wiring(model, self.description.architecture)
        self.graphs = graphs_sha256(model.graphs)[:12] if isinstance(model, RandWire) else None
        self.mixup = args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None
        if self.mixup and args.batch_size % 2:
            raise ValueError(f'mixup and cutmix need an even batch_size, got {args.batch_size}')
        if self.mixup and args.kd_outputs:
            raise ValueError('kd_outputs holds what the teacher says of single images, and mixup and cutmix mix them')
        if args.cache_images and args.workers:
            raise ValueError(f'cache_images needs workers 0, got {args.workers}: they live for an epoch, and forget')
        if args.aug_repeats and not args.distributed:
            raise ValueError(f'aug_repeats needs several processes, got aug_repeats={args.aug_repeats:g} in one')
        self.recorded: RecordedTeacher | None = None
        self.loader_train, self.loader_eval = self._build_loaders()
        held_out = 0 if self.loader_eval is None else len(self.loader_eval.dataset)
        # In the arguments that every checkpoint holds, but not in args.yaml, which is a recipe for other runs as well.
        args.description = self.description.to_dict()
        args.trained_on = {'images': len(self.loader_train.dataset), 'held_out': held_out}
        self.updates_per_epoch = -(-len(self.loader_train) // args.grad_accum_steps)

        self.amp_autocast = autocast(device, args.amp_dtype if args.amp else None)
        needs_scaler = args.amp and args.amp_dtype == 'float16' and device.type == 'cuda'
        self.loss_scaler = NativeScaler(device=device.type) if needs_scaler else None
        self.task: Any = self._create_task(model)
        args.lr = learning_rate(vars(args), args.world_size)
        if args.warmup_epochs and args.sched != 'none' and args.warmup_lr > args.lr:
            raise ValueError(f'the warm-up would lower the rate: warmup_lr is {args.warmup_lr:g}, and the rate of this '
                             f'batch {args.lr:g}')
        self.optimizer = self._create_optimizer()
        self.start_epoch = self._resume_and_setup_ema()
        decreasing = self._eval_metric() == 'loss'
        self.scheduler, self.num_epochs = create_scheduler_v2(
            self.optimizer, **scheduler_kwargs(args, decreasing_metric=decreasing),
            updates_per_epoch=self.updates_per_epoch)
        self.folder, self.continues = self._choose_folder()
        self.made_folder = False
        # A whole run may be resumed, by whoever does not know that it is; a new folder would remain empty.
        if args.resume and self.start_epoch > self.num_epochs - (not self.continues):
            raise ValueError(f'nothing to train: {args.resume} has {self.start_epoch} epochs behind it, and '
                             f'epochs: {args.epochs} asks for {self.num_epochs}')
        if self.scheduler is not None and self.start_epoch > 0:
            if args.sched_on_updates:
                self.scheduler.step_update(self.start_epoch * self.updates_per_epoch)
            else:
                self.scheduler.step(self.start_epoch)

    def decided(self) -> dict[str, Any]:
        """What decides the training and so has to be the same in all of its processes, by its name."""
        described, trained_on = self.description.to_dict(), self.args.trained_on
        del described['label_names']  # which are classes
        network = {f'{name} of the network': value for name, value in described.pop('arguments').items()}
        settings = {name: getattr(self.args, name) for name in KEYS
                    if name not in (*PLACES, *ARGUMENTS, 'model_kwargs')}
        return {
            **settings, **described, **network, 'graphs': self.graphs, 'classes': self.classes,
            'images to train on': trained_on['images'], 'images held out': trained_on['held_out'],
            'epochs behind it': self.start_epoch}

    def connect(self) -> None:
        """Compile, and join the other processes: what follows is done by all of them at once, or hangs."""
        args = self.args
        if args.torchcompile:
            self.task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
            if self.task.has_ema():
                self.task.compile_ema(backend=args.torchcompile, mode=args.torchcompile_mode)
        self.eval_model: Any = self.task.get_eval_model()  # not wrapped: evaluation is no affair of DDP
        if args.distributed:
            # DDP takes no device for a module on the CPU.
            self.task.prepare_distributed(device_ids=None if self.device.type == 'cpu' else [self.device])

    def _build_model(self) -> nn.Module:
        args = self.args
        source = {name: args.model_kwargs[name] for name in WEIGHT_SOURCES if name in args.model_kwargs}
        if args.pretrained_path:
            # As train.py does it: -1 adapts the classifier, whatever number of classes the file has.
            source['pretrained_cfg_overlay'] = {'file': args.pretrained_path, 'num_classes': -1}
        start = args.initial_checkpoint or args.pretrained_path
        if args.resume:
            model = self.description.create_model(args.model)
        else:
            if start:  # what is wrong with the network itself is not the file's fault, and shows without it
                with torch.random.fork_rng(devices=[]):
                    self.description.create_model(args.model)
            with loading(start) if start else nullcontext():
                model = self.description.create_model(
                    args.model, pretrained=args.pretrained or bool(args.pretrained_path),
                    checkpoint_path=args.initial_checkpoint, **source)
        args.num_classes = model.num_classes
        if args.grad_checkpointing:
            model.set_grad_checkpointing(enable=True)
        model.to(self.device)
        if args.channels_last:
            model.to(memory_format=torch.channels_last)
        if args.distributed and args.sync_bn:
            args.dist_bn = ''
            model = convert_sync_batchnorm(model)
        return model

    def _build_loaders(self) -> tuple[Any, Any]:
        args, config = self.args, self.description.data_config()
        for name in ('scale', 'ratio', 'cutmix_minmax'):
            if (value := getattr(args, name)) is not None and len(value) != 2:
                raise ValueError(f'{name} must be two numbers, from and to, got {value!r}')
        conditions = Conditions.from_settings(vars(args))
        images = open_images(
            args.data_dir, args.train_split, args.dataset, self.description.input_size, args.input_img_mode,
            args.num_classes, is_training=True, class_map=args.class_map, download=args.dataset_download,
            batch_size=args.batch_size, seed=args.seed)
        held_out = conditions.open(self.description, seed=args.seed) if args.val_split else None
        _check_same_classes(images, held_out)
        self.classes = classes = class_indices(images)
        if list(classes.values()) == list(range(len(classes))):
            self.description = replace(self.description, label_names=tuple(classes))
        if args.kd_outputs:
            self.recorded = RecordedTeacher.load(args.kd_outputs, images, args.num_classes)
        if args.cache_images:
            images, held_out = CachedImages(images), None if held_out is None else CachedImages(held_out)
        if args.kd_outputs:
            images = NumberedImages(images)
        shared = {'pin_memory': args.pin_mem, 'distributed': args.distributed}
        with checking_loaders():
            collate = FastCollateMixup(
                mixup_alpha=args.mixup, cutmix_alpha=args.cutmix, cutmix_minmax=args.cutmix_minmax,
                prob=args.mixup_prob, switch_prob=args.mixup_switch_prob, mode=args.mixup_mode,
                label_smoothing=args.smoothing, num_classes=args.num_classes) if self.mixup else None
            plain = args.no_aug or not args.train_interpolation
            loader_train = create_loader(
                images, batch_size=args.batch_size, is_training=True, no_aug=args.no_aug,
                re_prob=args.reprob, re_mode=args.remode, re_count=args.recount, train_crop_mode=args.train_crop_mode,
                scale=args.scale, ratio=args.ratio, hflip=args.hflip, vflip=args.vflip, color_jitter=args.color_jitter,
                color_jitter_prob=args.color_jitter_prob, grayscale_prob=args.grayscale_prob,
                gaussian_blur_prob=args.gaussian_blur_prob, auto_augment=args.aa, num_aug_repeats=args.aug_repeats,
                interpolation=config['interpolation'] if plain else args.train_interpolation, collate_fn=collate,
                worker_seeding=args.worker_seeding, input_size=config['input_size'], mean=config['mean'],
                std=config['std'], num_workers=args.workers, device=self.device,
                input_size_choices=args.train_img_sizes, batch_choice_seed=args.seed,
                batch_choice_schedule=args.train_size_schedule,
                batch_schedule_epochs=args.epochs if args.train_size_schedule == 'progressive' else None,
                batch_schedule_spread=args.train_size_schedule_spread,
                batch_schedule_random_mix=args.train_size_random_mix,
                # Workers that live on would carry their random state over from an epoch that a resumed run never saw.
                persistent_workers=False, **shared)
        if len(loader_train) == 0:
            batch = (f'one batch of {args.batch_size} in each of {args.world_size} processes' if args.distributed
                     else f'the batch of {args.batch_size}')
            raise ValueError(f'{args.train_split!r} has {len(images)} images, fewer than {batch}: choose a smaller '
                             '--batch-size')
        if held_out is None:
            return loader_train, None
        return loader_train, conditions.loader(self.description, held_out, self.device, args.workers, **shared)

    def _create_task(self, model: nn.Module) -> Any:
        """timm's task: the labels alone, or a teacher beside them."""
        args, criterion = self.args, self._criterion().to(self.device)
        teacher = self.recorded or args.kd_model_name
        if teacher is None:
            return ClassificationTask(model, criterion, device=self.device, verbose=False)
        try:
            task: Any = LogitDistillationTask(
                model, teacher, criterion, distill_loss_weight=args.distill_loss_weight,
                task_loss_weight=args.task_loss_weight, temperature=args.kd_temperature, device=self.device,
                verbose=False)
        except (OSError, RuntimeError, TypeError, KeyError, AssertionError) as error:
            raise ValueError(f'cannot create the teacher {args.kd_model_name!r}: {one_line(error)}') from error
        if self.recorded is None:
            # timm gives a teacher as many outputs as the student has, and new weights where it had another number.
            cfg, said = task.teacher.model.pretrained_cfg or {}, f'the teacher {args.kd_model_name!r}'
            if cfg.get('num_classes') not in (None, args.num_classes):
                raise ValueError(f'{said} was trained on {cfg["num_classes"]} classes, and the student has '
                                 f'{args.num_classes}: it must be fitted to them, see randwire-zoo teacher')
            check_teachers_classes(said, cfg.get('label_names') or (), self.classes, bool(args.class_map))
        return task

    def _criterion(self) -> nn.Module:
        if self.mixup:
            return SoftTargetCrossEntropy()  # the smoothing is in the mixed targets
        if (self.args.smoothing or 0) >= 1:
            raise ValueError(f'smoothing must be below 1, got {self.args.smoothing}')
        if self.args.smoothing:
            return LabelSmoothingCrossEntropy(smoothing=self.args.smoothing)
        return nn.CrossEntropyLoss()

    def _create_optimizer(self) -> torch.optim.Optimizer:
        try:
            return create_optimizer_v2(
                self.task.get_trainable_module(), **optimizer_kwargs(cfg=self.args), **self.args.opt_kwargs)
        except (ValueError, TypeError, AssertionError) as error:
            known = [str(name) for name in list_optimizers()]
            hint = '' if self.args.opt in known else nearest(self.args.opt, known)
            raise ValueError(f'cannot create the optimiser {self.args.opt!r}: {one_line(error)}{hint}') from error

    def _eval_metric(self) -> str:
        return self.args.eval_metric if self.args.val_split else 'loss'

    def _resume_and_setup_ema(self) -> int:
        """Restore what the checkpoint holds and return the epoch to go on with."""
        args, start_epoch = self.args, 0
        given = [{name: value for name, value in group.items() if name != 'params'}
                 for group in self.optimizer.param_groups]
        if args.resume:
            with loading(args.resume):
                self.read = _stamp(args.resume)
                state = load_checkpoint_metadata(args.resume)
                missing = [key for key in ('state_dict', 'optimizer', 'epoch') if key not in state]
                if missing:
                    raise ValueError(f'not a training checkpoint, it lacks {", ".join(missing)}')
                if state.get('arch') != args.model:
                    raise ValueError(f'it holds the model {state.get("arch")!r}, not {args.model!r}')
                if args.model_ema and 'state_dict_ema' not in state:
                    raise ValueError('it holds no moving average of the weights, but model_ema is set')
                if not args.model_ema and state.get('state_dict_ema') is not None:
                    raise ValueError('it holds a moving average of the weights, which would end: model_ema is not set')
                unknown = {name for group in given for name in group} - {
                    name for group in state['optimizer']['param_groups'] for name in group}
                if unknown:
                    raise ValueError(f'it is of another optimiser than {args.opt!r}, without '
                                     f'{", ".join(sorted(unknown))}')
                self.began = read_settings(args.resume)
                kwargs = self.began.get('opt_kwargs') or {}
                changed = {name for name in {*kwargs, *args.opt_kwargs} - set(HYPERPARAMETERS)
                           if kwargs.get(name) != args.opt_kwargs.get(name)}
                if changed:  # it may decide what the optimiser remembers
                    raise ValueError(f'it was trained with opt_kwargs {kwargs}, of which {", ".join(sorted(changed))} '
                                     f'must not change on the way, got {args.opt_kwargs}')
                trained = (self.began.get('description') or {}).get('label_names') or ()
                check_classes(args.data_dir, self.description.label_names, tuple(trained))
                del state  # its tensors are mapped into memory
                start_epoch = int(resume_task_checkpoint(
                    self.task, args.resume, self.optimizer, self.loss_scaler, log_info=False) or 0)
                _set_hyperparameters(self.optimizer, given)
        if args.model_ema:
            self.task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)
            if args.resume:
                with loading(args.resume):
                    load_task_ema_checkpoint(self.task, args.resume)
        return start_epoch

    def _changes(self) -> Iterator[str]:
        """A line about each thing in which this training is not the one that it goes on with."""
        args, began = self.args, self.began
        changed = [f'{name} {getattr(args, name)} (was {began[name]})' for name in KEYS
                   if name not in PLACES and name in began and began[name] != getattr(args, name)]
        if changed:
            yield f'other settings than those in {args.resume}: {", ".join(changed)}'
        for name, what in (('images', 'trained on'), ('held_out', 'measured on')):
            before, now = (began.get('trained_on') or {}).get(name), args.trained_on[name]
            if before is not None and before != now:
                yield f'warning: {args.resume} was {what} {before:,} images, and now there are {now:,}'

    def _choose_folder(self) -> tuple[Path, bool]:
        """The experiment's folder, and whether the run goes on there: in the one that the checkpoint lies in."""
        args = self.args
        resumed = Path(args.resume).resolve().parent if args.resume else None
        if resumed is not None and not args.experiment:
            return resumed, True
        parts = datetime.now().strftime('%Y%m%d-%H%M%S'), safe_model_name(args.model), self.description.input_size[-1]
        name = args.experiment or '-'.join(map(str, parts))
        folder = Path(args.output or 'output/train') / name
        return folder, resumed is not None and folder.resolve() == resumed

    def _make_folder(self) -> tuple[Path, CheckpointSaver]:
        """Make the experiment's folder, or enter it again."""
        args, folder, continues = self.args, self.folder, self.continues
        if not continues and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            go_on = f', or continue with --resume {folder / LAST}' if (folder / LAST).is_file() else ''
            raise FileExistsError(f'{folder} is in use; choose another --experiment{go_on}')
        folder.mkdir(parents=True, exist_ok=True)
        # By this process alone: those that load images outlive one that is killed by some seconds.
        self.held.enter_context(lock(folder / LOCK, held=f'another training is at work in {folder}', forked=False))
        if continues and self.read != _stamp(args.resume):
            raise Locked(f'another training has written {args.resume} since it was read')
        self.made_folder = not continues
        if self.start_epoch < self.num_epochs:  # settings with which nothing is trained are not kept
            write_atomically(folder / 'args.yaml', self.written_args)
        saver = _Saver(
            model=self.task.get_trainable_module(), optimizer=self.optimizer, args=args, amp_scaler=self.loss_scaler,
            checkpoint_dir=str(folder), recovery_dir=str(folder), decreasing=self._eval_metric() == 'loss',
            max_history=args.checkpoint_hist, task=self.task)
        if continues:
            for left_over in folder.glob(f'*.pth.tar{LEFT_OVER}'):  # by a kill
                left_over.unlink()
            self._restore_best(saver)
            summary = folder / SUMMARY
            if summary.is_file():
                # The row of an epoch is written before its checkpoint; a kill in between leaves one row too many.
                with atomic_path(summary) as temporary:
                    shutil.copyfile(summary, temporary)
                    trim_summary(str(temporary), self.start_epoch)
        return folder, saver

    def _restore_best(self, saver: CheckpointSaver) -> None:
        """Let the saver know the best epoch so far, and have its weights, as far as there is something to tell."""
        args, folder, last = self.args, self.folder, self.start_epoch - 1
        saver.load_state_dict_from_checkpoint(args.resume)
        state = load_checkpoint_metadata(args.resume)
        # What was measured by another metric than now says nothing; summary.csv has all of them.
        anew = bool(args.val_split) and self.began.get('eval_metric', args.eval_metric) != args.eval_metric
        # In the saver's state the last epoch is only while its own checkpoint is there.
        scores = {} if anew else {last: state.get('metric')}
        if anew or 'saver' not in state:  # the latter of earlier releases of timm
            column = f'eval_{self._eval_metric()}' if args.val_split else 'train_loss'
            summary = folder / SUMMARY
            rows = read_summary(summary, [column]) if summary.is_file() else []
            scores |= {int(row['epoch']): row[column] for row in rows if row['epoch'] < last + anew and column in row}
            if not scores or (last > 0 and min(scores) == last):
                self.say(f'the best epoch before epoch {self.start_epoch} is not known: neither {args.resume} nor a '
                         f'{SUMMARY} beside it says it')
        if anew:
            saver.best_epoch = saver.best_metric = None
            of_epochs = {str(folder / f'checkpoint-{epoch}.pth.tar'): score for epoch, score in scores.items()}
            saver.checkpoint_files = sorted(
                ((path, of_epochs[path]) for path, _ in saver.checkpoint_files if path in of_epochs),
                key=lambda file: file[1], reverse=not saver.decreasing)
        for epoch, metric in sorted(scores.items()):
            if metric is not None and (saver.best_metric is None or saver.cmp(metric, saver.best_metric)):
                saver.best_epoch, saver.best_metric = epoch, metric
        # A kill may have come just before these copies were made.
        best = folder / f'checkpoint-{saver.best_epoch}.pth.tar'
        if not best.is_file() and saver.best_epoch == last:
            best = Path(args.resume)
        if best.is_file():
            saver._duplicate(str(best), str(folder / BEST))
        elif saver.best_epoch is not None and not (folder / BEST).is_file():
            self.say(f'the weights of the best epoch so far, {saver.best_epoch + 1}, are gone: {BEST} comes with a '
                     'better one')

    def say(self, line: str) -> None:
        """Print a line on stdout, above the progress bar if there is one, and at once also into a file."""
        if self.lines:
            tqdm.write(line)
            sys.stdout.flush()

    def leave(self) -> str:
        """Put in order what an interrupted run leaves, and say how to go on."""
        last = self.folder / LAST
        if last.is_file():
            return f'go on with: randwire-zoo train --resume {shlex.quote(str(last))}'
        if self.made_folder:  # there is nothing in it to go on from, and it would stand in the way
            shutil.rmtree(self.folder, ignore_errors=True)
        return 'no epoch was finished; the same command starts again'

    def run(self) -> TrainingResult:
        """Train from the start epoch to the last."""
        args, folder, saver = self.args, None, None
        history: list[dict[str, float]] = []
        made = _together(args, lambda: self._make_folder() if args.rank == 0 else None)
        if made is not None:
            folder, saver = made
            if (folder / SUMMARY).is_file():
                history = read_summary(folder / SUMMARY)
        held_out = f', {len(self.loader_eval.dataset):,} held out' if self.loader_eval is not None else ''
        classes = f' of {len(self.description.label_names)} classes' if self.description.label_names else ''
        images = f'{len(self.loader_train.dataset):,} images{classes}{held_out}'
        self.say(f'model {args.model}{self.wiring} with {args.num_classes} outputs, '
                 f'data {args.data_dir or args.dataset} ({images}), output {self.folder}')
        unused = args.num_classes - len(self.description.label_names)
        if self.description.label_names and unused:  # a recipe's number beside one's own images, most often
            advice = f'; --num-classes {len(self.description.label_names)} leaves none without'
            self.say(f'{unused} of the {args.num_classes} outputs have no images{"" if args.resume else advice}')
        if self.start_epoch == self.num_epochs:
            self.say(f'nothing left to train: all {self.num_epochs} epochs are done')
        elif self.args.resume:
            self.say(f'going on at epoch {self.start_epoch + 1} of {self.num_epochs}, from {self.args.resume}')
            for line in self._changes():
                self.say(line)
        best_metric, best_epoch = (saver.best_metric, saver.best_epoch) if saver is not None else (None, None)
        for epoch in range(self.start_epoch, self.num_epochs):
            train_metrics = self._train_one_epoch(epoch)
            if args.distributed and args.dist_bn:
                distribute_bn(self.task.get_trainable_module(), args.world_size, args.dist_bn == 'reduce')
            if (epoch + 1) % args.val_interval != 0 and epoch + 1 != self.num_epochs:
                if self.scheduler is not None:
                    self.scheduler.step(epoch + 1)
                continue
            eval_metrics = self._evaluate(epoch)
            metric = (eval_metrics or train_metrics)[self._eval_metric()]
            row = {'epoch': float(epoch), **{f'train_{name}': value for name, value in train_metrics.items()},
                   **{f'eval_{name}': value for name, value in (eval_metrics or {}).items()}, 'lr': self._lr()}
            history.append(row)
            if folder is not None and saver is not None:
                update_summary(epoch, train_metrics, eval_metrics, filename=str(folder / SUMMARY), lr=self._lr())
                best_metric, best_epoch = saver.save_checkpoint(epoch, metric=metric)
            self.say(f'epoch {epoch + 1}/{self.num_epochs}: ' + ', '.join(
                f'{name} {value:.4g}' for name, value in row.items() if name not in ('epoch', 'eval_top5')))
            if self.scheduler is not None:
                self.scheduler.step(epoch + 1, metric)
        return TrainingResult(folder, best_metric, best_epoch, tuple(history))

    def _lr(self) -> float:
        rates = [group['lr'] for group in self.optimizer.param_groups]
        return sum(rates) / len(rates)

    def _evaluate(self, epoch: int) -> dict[str, float] | None:
        """Measure the weights on the held-out images; their moving average where there is one."""
        if self.loader_eval is None:
            return None
        model: Any = self.eval_model
        if self.task.has_ema():
            if self.args.distributed and self.args.dist_bn:
                distribute_bn(self.task.get_trainable_module(ema=True), self.args.world_size,
                              self.args.dist_bn == 'reduce')
            model = self.task.get_eval_model(ema=True)
        return evaluate(
            model, self.loader_eval, self.device, self.amp_autocast, self.args.channels_last, self.args.distributed,
            description=f'evaluate {epoch + 1}/{self.num_epochs}', progress=self.progress)

    def _train_one_epoch(self, epoch: int) -> dict[str, float]:
        args, loader = self.args, self.loader_train
        seed_everything(args.seed, epoch + 1, args.rank)
        for part in (loader.dataset, loader.sampler, loader.batch_sampler):
            if hasattr(part, 'set_epoch'):
                part.set_epoch(epoch)
        loader.mixup_enabled = not args.mixup_off_epoch or epoch < args.mixup_off_epoch
        self.task.get_trainable_module().train()
        losses = AverageMeter()
        num_updates = epoch * self.updates_per_epoch
        self.optimizer.zero_grad()
        with self._progress_bar(epoch) as bar:
            for index, (images, targets) in enumerate(loader):
                if args.channels_last:
                    images = images.contiguous(memory_format=torch.channels_last)
                if self.recorded is not None:
                    targets = self.recorded.look_up(targets)
                # The last update of an epoch may add up fewer steps than the others.
                accumulated = min(args.grad_accum_steps,
                                  len(loader) - index // args.grad_accum_steps * args.grad_accum_steps)
                updates = index + 1 == len(loader) or (index + 1) % args.grad_accum_steps == 0
                synchronised: Callable[[], AbstractContextManager[Any]] = nullcontext if updates else self.task.no_sync
                with synchronised():
                    with self.amp_autocast():
                        loss = self.task(images, targets)['loss'] / accumulated
                    self._backward(loss, updates)
                losses.update(loss.item() * accumulated, len(images))
                bar.update(len(images) * args.world_size)
                if not updates:
                    continue
                num_updates += 1
                self.optimizer.zero_grad()
                self.task.update_ema(step=num_updates)
                bar.set_postfix(loss=f'{losses.avg:.3f}', lr=f'{self._lr():.2g}', refresh=False)
                if self.scheduler is not None:
                    self.scheduler.step_update(num_updates=num_updates, metric=losses.avg)
        if hasattr(self.optimizer, 'sync_lookahead'):
            self.optimizer.sync_lookahead()
        loss_avg = losses.avg
        if args.distributed:
            loss_avg = reduce_tensor(torch.tensor([loss_avg], device=self.device), args.world_size).item()
        return {'loss': loss_avg}

    def _backward(self, loss: torch.Tensor, updates: bool) -> None:
        args = self.args
        parameters = None
        second_order = getattr(self.optimizer, 'is_second_order', False)  # it differentiates the gradients again
        if args.clip_grad is not None:
            parameters = self.task.get_clip_parameters(exclude_head=args.clip_mode == 'agc')
        if self.loss_scaler is not None:
            self.loss_scaler(loss, self.optimizer, clip_grad=args.clip_grad, clip_mode=args.clip_mode,
                             parameters=parameters, create_graph=second_order, need_update=updates)
            return
        loss.backward(create_graph=second_order)
        if updates:
            if parameters is not None:
                dispatch_clip_grad(parameters, value=args.clip_grad, mode=args.clip_mode)
            self.optimizer.step()

    @contextmanager
    def _progress_bar(self, epoch: int) -> Iterator[Any]:
        args = self.args
        total = len(self.loader_train) * args.batch_size * args.world_size
        with tqdm(total=total, desc=f'train {epoch + 1}/{self.num_epochs}', unit='img', leave=False,
                  disable=None if self.progress else True) as bar:
            yield bar


def _wiring(model: nn.Module, name: str) -> str:
    """Which RandWire network it is, in brackets; nothing of another."""
    if not isinstance(model, RandWire):
        return ''
    # The name that a frozen wiring begins with has been said; at conv2 all strides of the stem are behind.
    return f' ({model.extra_repr().removeprefix(f"{name}: ")}, stem stride {model.feature_info[1]["reduction"]})'


def _stamp(path: str | os.PathLike[str]) -> tuple[int, int]:
    """What changes whenever a file is written anew."""
    stat = os.stat(path)
    return stat.st_ino, stat.st_mtime_ns


def _check_same_classes(images: Any, held_out: Any) -> None:
    """Class indices follow the folders' names, so splits with other folders would be measured against other classes."""
    if held_out is None:
        return
    classes, others = class_indices(images), class_indices(held_out)
    if classes and others and classes != others:
        odd = sorted(set(classes) ^ set(others))
        raise ValueError(f'the training and the held-out images have different classes: {", ".join(odd[:5])}')
