"""Recipes: flat yaml files of training settings, the same that timm's `train.py -c` reads.

Every key is an argument of train.py, with its name, type and default; the keys listed here are those that `trainer`
knows as well. One default differs: `device` is the GPU if there is one and otherwise the CPU, where train.py insists
on a GPU. Three keys are not train.py's, which passes them over (`OWN`).
"""
from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import nearest
from ..files import read_yaml

__all__ = ['CONFIGS', 'DEFAULTS', 'KEYS', 'OWN', 'STOCK', 'Key', 'add_key', 'add_recipe_arguments', 'check_settings',
           'learning_rate', 'load_recipe', 'packaged_names', 'public_settings', 'read_packaged', 'recipe_names',
           'recorded_recipe', 'scheduled_epochs']


@dataclass(frozen=True)
class Key:
    """One setting of a recipe.

    Args:
        name: Key of the yaml file; the flag is the same with dashes.
        kind: bool, int, float, str, or dict for `NAME=VALUE …`.
        default: What train.py takes without it.
        help: One line for `--help`.
        many: Number of values, as argparse's nargs; None for a single one.
        choices: The allowed values; empty where there is no such list.
        minimum: The smallest allowed number.
        maximum: The largest; there is a smallest, then.
        flag: A short flag.
        public: Of a text, or of the texts in a mapping, the pattern of those that may be published; none may if it is
            empty. Numbers, switches and choices say nothing about a machine or a person and always may.
    """

    name: str
    kind: type
    default: Any
    help: str
    many: int | str | None = None
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    flag: str = ''
    public: str = ''

    @property
    def flags(self) -> tuple[str, ...]:
        long = f'--{self.name.replace("_", "-")}'
        return (self.flag, long) if self.flag else (long,)


# What may be published: single words, such as names of timm's; nothing with a path in it.
#: The packaged configs. By name, as pyproject.toml maps the package from the top-level folder, which type checkers do
#: not see.
CONFIGS = Path(import_module('randwire_zoo.configs').__path__[0])
_WORD = r'[\w.+-]+'
_MODEL = rf'(hf-hub:{_WORD}/)?[\w.@+-]+'
_DATASET = rf'(torch|tfds|hfds|hfids)/{_WORD}(/{_WORD})?'
_SPLIT = r'[\w.\[\]:%+-]+'
_ARGUMENT = r'[\w.,()=+-]+'

# Plateau is left out: its state depends on the past, is in no checkpoint, and so a resumed run would go another way.
_SCHEDULES = ('cosine', 'tanh', 'step', 'constant', 'multistep', 'poly', 'wsd', 'rsqrt', 'none')

GROUPS: dict[str, tuple[Key, ...]] = {
    'data': (
        Key('data_dir', str, None, 'folder of the data set'),
        Key('dataset', str, '', 'TYPE/NAME as timm knows it; an image folder if empty', public=_DATASET),
        Key('train_split', str, 'train', 'folder or split to train on', public=_SPLIT),
        Key('val_split', str, 'validation', 'folder or split to evaluate on; none if empty', public=_SPLIT),
        Key('dataset_download', bool, False, 'let torch/… and tfds/… data sets be downloaded'),
        Key('class_map', str, '', 'file that maps class names to indices'),
        Key('input_img_mode', str, None, "mode that images are converted to, such as 'L'", public=_WORD),
        Key('cache_images', bool, False, 'keep decoded images in memory, of small ones a third of a step or more; '
            'needs workers 0'),
    ),
    'model': (
        Key('model', str, 'resnet50', 'name of the model', public=_MODEL),
        Key('model_kwargs', dict, {}, 'arguments of the model, such as graph=ws(4,0.75) seed=2; they take the place of '
            "all of the recipe's, which hold if not given", many='*', public=_ARGUMENT),
        Key('pretrained', bool, False, 'start from the published weights'),
        Key('pretrained_path', str, None, 'start from the weights in this file, with a new classifier; train.py wants '
            'pretrained beside it'),
        Key('initial_checkpoint', str, '', 'load this checkpoint into the new model'),
        Key('num_classes', int, None, "number of classes; the model's own if not given", minimum=1),
        Key('gp', str, None, "global pooling; the model's own if not given", public=_WORD),
        Key('img_size', int, None, "side of the square images; the model's own if not given", minimum=1),
        Key('in_chans', int, None, 'image channels; 3 if not given', minimum=1),
        Key('input_size', int, None, 'channels, height and width', many=3, minimum=1),
        Key('crop_pct', float, None, 'part of the image that evaluation sees, within 0 … 1', minimum=0, maximum=1),
        Key('mean', float, None, 'mean of the pixels, each within 0 … 1', many='+', minimum=0, maximum=1),
        Key('std', float, None, 'standard deviation of the pixels, each within 0 … 1', many='+', minimum=0,
            maximum=1),
        Key('interpolation', str, '', 'interpolation of evaluation images', public=_WORD),
        Key('grad_checkpointing', bool, False, 'trade time for memory'),
        Key('torchcompile', str, None, 'compile with this backend (inductor if none is named)', many='?', public=_WORD),
        Key('torchcompile_mode', str, None, 'mode of torch.compile', public=_WORD),
    ),
    'device': (
        Key('device', str, None, 'cuda, cpu, …; a GPU if there is one', public=r'[a-z]+(:\d+)?'),
        Key('kernels', str, None, 'what runs the random stages on the CPU; native if they can be built',
            choices=('torch', 'native')),
        Key('device_modules', str, None, 'modules to import first', many='+'),
        Key('channels_last', bool, False, 'channels_last memory layout'),
        Key('amp', bool, False, 'mixed precision'),
        Key('amp_dtype', str, 'float16', 'its lower precision', choices=('float16', 'bfloat16')),
        Key('workers', int, 4, 'processes that load data', minimum=0, flag='-j'),
        Key('pin_mem', bool, False, 'pin memory for the transfer to a GPU'),
    ),
    'optimiser': (
        Key('opt', str, 'sgd', "timm's optimisers; 'sgd' is Nesterov's, 'momentum' is not", public=_WORD),
        Key('opt_eps', float, None, 'epsilon of the optimiser', minimum=0),
        Key('opt_betas', float, None, 'betas of the optimiser', many='+', minimum=0),
        Key('opt_kwargs', dict, {}, 'more arguments of the optimiser', many='*', public=_ARGUMENT),
        Key('momentum', float, 0.9, 'momentum', minimum=0),
        Key('weight_decay', float, 2e-5, 'weight decay', minimum=0),
        Key('layer_decay', float, None, 'layer-wise decay of the learning rate', minimum=0),
        Key('clip_grad', float, None, 'clip gradients at this norm', minimum=0),
        Key('clip_mode', str, 'norm', 'how to clip', choices=('norm', 'value', 'agc')),
        Key('batch_size', int, 128, 'images per step and process', minimum=1, flag='-b'),
        Key('validation_batch_size', int, None, 'the same in evaluation', minimum=1, flag='-vb'),
        Key('grad_accum_steps', int, 1, 'steps whose gradients are added up', minimum=1),
    ),
    'schedule': (
        Key('epochs', int, 300, 'epochs of the schedule', minimum=1),
        Key('sched', str, 'cosine', 'schedule of the learning rate', choices=_SCHEDULES),
        Key('sched_on_updates', bool, False, 'change it with every update, not every epoch'),
        Key('lr', float, None, 'learning rate, instead of lr-base', minimum=0),
        Key('lr_base', float, 0.1, 'learning rate of a global batch of lr-base-size', minimum=0),
        Key('lr_base_size', int, 256, 'see lr-base', minimum=1),
        Key('lr_base_scale', str, '', "how the rate follows the batch; by the optimiser's name if empty",
            choices=('', 'linear', 'sqrt')),
        Key('min_lr', float, 0, 'learning rate at the end', minimum=0),
        Key('warmup_lr', float, 1e-5, 'learning rate at the start of the warm-up', minimum=0),
        Key('warmup_epochs', int, 5, 'epochs of linear warm-up', minimum=0),
        Key('warmup_prefix', bool, False, 'put the warm-up before the schedule'),
        Key('cooldown_epochs', int, 0, 'epochs at min-lr after the schedule', minimum=0),
        Key('decay_epochs', float, 90, 'see timm', minimum=0),
        Key('decay_milestones', int, [90, 180, 270], 'epochs of the multistep schedule', many='+', minimum=0),
        Key('decay_rate', float, 0.1, 'factor of the step schedules', minimum=0),
        Key('lr_k_decay', float, 1.0, 'see timm', minimum=0),
    ),
    'augmentation and regularisation': (
        Key('no_aug', bool, False, 'no augmentation at all'),
        Key('train_crop_mode', str, None, 'way of cropping', public=_WORD),
        Key('scale', float, [0.08, 1.0], 'area of random crops, from and to', many='+', minimum=0),
        Key('ratio', float, [3. / 4., 4. / 3.], 'aspect ratio of random crops, from and to', many='+', minimum=0),
        Key('hflip', float, 0.5, 'probability of a horizontal flip', minimum=0),
        Key('vflip', float, 0., 'probability of a vertical flip', minimum=0),
        Key('color_jitter', float, 0.4, 'strength of the colour jitter', minimum=0),
        Key('color_jitter_prob', float, None, 'probability of the colour jitter', minimum=0),
        Key('grayscale_prob', float, None, 'probability of turning grey', minimum=0),
        Key('gaussian_blur_prob', float, None, 'probability of a blur', minimum=0),
        Key('aa', str, None, "timm's name of an augmentation policy", public=_WORD),
        Key('aug_repeats', float, 0, 'repeated augmentation, in distributed training', minimum=0),
        Key('reprob', float, 0., 'probability of random erasing', minimum=0),
        Key('remode', str, 'pixel', 'what an erased patch holds', choices=('const', 'rand', 'pixel')),
        Key('recount', int, 1, 'number of erased patches', minimum=1),
        Key('train_interpolation', str, 'random', 'interpolation of training images', public=_WORD),
        Key('mixup', float, 0.0, 'alpha of mixup', minimum=0),
        Key('cutmix', float, 0.0, 'alpha of cutmix', minimum=0),
        Key('cutmix_minmax', float, None, 'range of cutmix, instead of alpha', many='+', minimum=0),
        Key('mixup_prob', float, 1.0, 'probability of mixing a batch', minimum=0),
        Key('mixup_switch_prob', float, 0.5, 'probability of cutmix where there are both', minimum=0),
        Key('mixup_mode', str, 'batch', 'what is mixed alike', choices=('batch', 'pair', 'elem')),
        Key('mixup_off_epoch', int, 0, 'epoch from which nothing is mixed; 0 for never', minimum=0),
        Key('smoothing', float, 0.1, 'label smoothing', minimum=0),
        Key('drop', float, 0.0, 'dropout before the classifier', minimum=0),
        Key('drop_path', float, None, "edge removal (the paper's 0.1 in the regular regime)", minimum=0),
        Key('sync_bn', bool, False, 'batch normalisation over all processes'),
        Key('dist_bn', str, 'reduce', "make the processes' BN statistics agree", choices=('broadcast', 'reduce', '')),
        Key('model_ema', bool, False, 'keep a moving average of the weights, and evaluate it'),
        Key('model_ema_decay', float, 0.9998, 'its decay', minimum=0),
        Key('model_ema_warmup', bool, False, 'warm it up'),
    ),
    'image sizes that change during the training': (
        Key('train_img_sizes', int, None, 'sides of the training images; evaluation keeps img-size', many='+',
            minimum=1),
        Key('train_size_schedule', str, 'constant', 'all of them all the time, or from the first to the last',
            choices=('constant', 'progressive')),
        Key('train_size_schedule_spread', float, 0.65, 'how many sizes beside the current one are drawn', minimum=0),
        Key('train_size_random_mix', float, 0.1, 'share of the steps that draw any size', minimum=0),
    ),
    'distillation': (
        Key('kd_model_name', str, None, "the teacher's name, such as local-dir:FOLDER", public=_MODEL),
        Key('kd_distill_type', str, 'logit', 'what the student learns of it', choices=('logit',)),
        Key('kd_temperature', float, 4.0, "softens the teacher's and the student's probabilities", minimum=0),
        Key('distill_loss_weight', float, None, "weight of the teacher's loss, see train.py", minimum=0),
        Key('task_loss_weight', float, None, "weight of the labels' loss, see train.py", minimum=0),
        Key('kd_outputs', str, '', "the teacher's outputs for all training images, recorded by `randwire-zoo teacher`, "
            'instead of the teacher'),
    ),
    'run': (
        Key('seed', int, 42, 'seed of everything random but the graphs', minimum=0),
        Key('worker_seeding', str, 'all', "seeding of the workers' generators", choices=('all', 'part')),
        Key('val_interval', int, 1, 'epochs between evaluations and checkpoints', minimum=1),
        Key('checkpoint_hist', int, 10, 'number of checkpoints to keep', minimum=1),
        Key('eval_metric', str, 'top1', 'what the best checkpoint is best in', choices=('loss', 'top1', 'top5')),
        Key('output', str, '', 'folder of experiments; output/train if empty'),
        Key('experiment', str, '', 'name of the experiment; time, model and image size if empty'),
        Key('resume', str, '', 'continue from this checkpoint'),
    ),
}
#: train.py's arguments that are no keys here, with its defaults. These have no part in the weights:
_RUNNING: dict[str, Any] = {
    'data': None, 'dataset_trust_remote_code': False, 'fuser': '', 'synchronize_step': False, 'local_rank': 0,
    'patience_epochs': 10, 'log_interval': 50, 'recovery_interval': 0, 'save_images': False, 'no_prefetcher': False,
    'use_multi_epochs_loader': False, 'log_wandb': False, 'wandb_project': None, 'wandb_tags': [],
    'wandb_resume_id': '',
}
# These have, and `trainer` has no such thing:
_ELSEWHERE: dict[str, Any] = {'input_key': None, 'target_key': None, 'start_epoch': None, 'no_resume_opt': False}
_HYPERPARAMETERS: dict[str, Any] = {
    'train_num_samples': None, 'val_num_samples': None, 'fast_norm': False, 'head_init_scale': None,
    'head_init_bias': None, 'torchscript': False, 'model_dtype': None, 'no_ddp_bb': False, 'layer_decay_min_scale': 0,
    'layer_decay_no_opt_scale': None, 'lr_noise': None, 'lr_noise_pct': 0.67, 'lr_noise_std': 1.0, 'lr_cycle_mul': 1.0,
    'lr_cycle_decay': 0.5, 'lr_cycle_limit': 1, 'epoch_repeats': 0.0, 'aug_splits': 0, 'jsd_loss': False,
    'bce_loss': False, 'bce_sum': False, 'bce_target_thresh': None, 'bce_pos_weight': None, 'resplit': False,
    'drop_connect': None, 'drop_block': None, 'bn_momentum': None, 'bn_eps': None, 'split_bn': False,
    'model_ema_force_cpu': False, 'tta': 0, 'train_batch_sizes': None, 'train_size_probs': None,
    'train_batches_per_epoch': None, 'variable_batch_loss_scale': 'none',
    'naflex_loader': False, 'naflex_train_seq_lens': [128, 256, 576, 784, 1024], 'naflex_max_seq_len': 576,
    'naflex_patch_sizes': None, 'naflex_patch_size_probs': None, 'naflex_loss_scale': 'linear',
    'naflex_patchify_channels_first': False, 'kd_loss_type': 'kl', 'kd_student_feature_dim': None,
    'kd_teacher_feature_dim': None, 'kd_token_distill_type': 'soft',
}
STOCK: dict[str, Any] = {**_RUNNING, **_ELSEWHERE, **_HYPERPARAMETERS}
KEYS: dict[str, Key] = {key.name: key for keys in GROUPS.values() for key in keys}
#: The keys that train.py does not have.
OWN = ('cache_images', 'kd_outputs', 'kernels')
DEFAULTS: dict[str, Any] = {key.name: key.default for key in KEYS.values()}


def recipe_names() -> list[str]:
    """The recipes that come with the package, such as `digits/randwire_ws_pico`, sorted."""
    folder = CONFIGS
    return sorted(path.relative_to(folder).with_suffix('').as_posix() for path in folder.rglob('*.yaml')
                  if _is_recipe(path))


def load_recipe(path_or_name: str | Path) -> dict[str, Any]:
    """Read a recipe, or the args.yaml of a training.

    A whole args.yaml of train.py may be one: the arguments that `trainer` does not have are passed over where they
    have no part in the weights, or have train.py's default.

    Args:
        path_or_name: A yaml file, or the name of a packaged recipe such as `digits/randwire_ws_pico`.

    Returns:
        The settings in the file, converted to their types and checked; the others have `DEFAULTS`.

    Raises:
        FileNotFoundError: if there is neither such a file nor such a packaged recipe.
        ValueError: if the file is not a flat yaml mapping, or naming the key that is unknown or has a bad value.
    """
    return _as_recipe(*read_packaged('recipe', path_or_name, CONFIGS, recipe_names()))


def recorded_recipe(path: str | Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a training from the settings that its checkpoint holds, train.py's too.

    What a training notes there beside its settings is left out.

    Args:
        path: The checkpoint, for the errors.
        settings: See `weights.description.read_settings`.

    Raises:
        ValueError: see `load_recipe`.
    """
    found = _as_recipe(path, {name: value for name, value in settings.items() if name in KEYS or name in STOCK})
    # There lr is the rate of the global batch. Where lr_base made it, it does so again, for another batch, too.
    if found.get('lr') is not None and found.get('lr_base') and found['lr'] == learning_rate(
            {**found, 'lr': None}, settings.get('world_size') or 1):
        found['lr'] = None
    if found.get('device'):
        found['device'] = found['device'].partition(':')[0]  # each process has an index of its own
    return found


def _as_recipe(path: str | Path, data: dict[str, Any]) -> dict[str, Any]:
    if data.get('data') and not data.get('data_dir'):
        data['data_dir'] = data['data']  # train.py takes the folder as a positional argument, too
    refused = [f'{name}: {value!r} (without it {STOCK[name]!r})' for name, value in data.items()
               if name in STOCK and name not in _RUNNING and value != STOCK[name]]
    if refused:
        raise ValueError(f"{path}: this trainer does not have train.py's {', '.join(refused)}")
    try:
        return check_settings({name: value for name, value in data.items() if name not in STOCK})
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None


def read_packaged(kind: str, path_or_name: str | Path, folder: Path, names: list[str]) -> tuple[Path, dict[str, Any]]:
    """Read a yaml mapping from a file, or by its name from those that come with the package.

    Args:
        kind: What it is, for the errors.
        path_or_name: A file, or one of the names.
        folder: Where the packaged ones lie.
        names: Those.

    Returns:
        The file, and what it holds.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if the file is not a yaml mapping.
    """
    path = Path(path_or_name)
    if not path.is_file():
        path = folder / f'{path_or_name}.yaml'
        if str(path_or_name) not in names:
            raise FileNotFoundError(f'no {kind} {str(path_or_name)!r}: neither a file nor one of the packaged ones' +
                                    nearest(str(path_or_name), names, f': {", ".join(names)}'))
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ValueError(f'{path} must hold lines of `key: value`, got {type(data).__name__}')
    return path, data


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings to the types of their keys.

    Raises:
        ValueError: naming the key that is unknown, or that has a value of another type or out of range.
    """
    unknown = [str(name) for name in settings if name not in KEYS]
    if unknown:
        raise ValueError(f'unknown key {", ".join(map(repr, unknown))}' + nearest(
            unknown[0], KEYS, f'; the trainer knows {len(KEYS)}: randwire-zoo train --help shows them'))
    return {name: _convert(KEYS[name], value) for name, value in settings.items()}


def learning_rate(settings: Mapping[str, Any], processes: int = 1) -> float:
    """The rate of a training, as train.py has it: lr if it is given, otherwise lr_base scaled with the global batch.

    Raises:
        ValueError: if it is 0; train.py would take an lr of 0 for one that is not given.
    """
    values: dict[str, Any] = {**DEFAULTS, **settings}
    if values['lr'] is not None:
        if values['lr'] == 0:
            raise ValueError('lr must be above 0, got 0: train.py takes that for none, and scales lr_base')
        return float(values['lr'])
    ratio = values['batch_size'] * processes * values['grad_accum_steps'] / values['lr_base_size']
    adaptive = any(name in values['opt'].lower() for name in ('ada', 'lamb'))
    scale = values['lr_base_scale'] or ('sqrt' if adaptive else 'linear')
    if values['lr_base'] == 0:
        raise ValueError('lr_base must be above 0, got 0: nothing would be trained')
    return float(values['lr_base'] * (ratio ** 0.5 if scale == 'sqrt' else ratio))


def scheduled_epochs(settings: Mapping[str, Any]) -> int:
    """How many epochs a training of these settings has, by timm's scheduler: with cooldown, and a warm-up before it.

    Checkpoints and summary.csv count epochs from 0, as timm does: the last one of a whole training is one less.
    """
    import torch
    from timm.scheduler import create_scheduler_v2, scheduler_kwargs

    args = argparse.Namespace(**{**DEFAULTS, **settings})
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    return int(create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=1)[1])


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of a training's settings may be published: what a key allows, see `Key.public`, and nothing else.

    Folders, files, names of runs and of machines are no part of it, nor are keys that neither `KEYS` nor train.py has,
    nor values of another type than their key's.

    Args:
        settings: Of `trainer` or of train.py: an args.yaml, or the arguments in a checkpoint.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = KEYS.get(name)
        if key is not None:
            try:
                value = _convert(key, value)
            except ValueError:
                continue
            pattern = _WORD if key.choices else key.public
        elif name in _HYPERPARAMETERS:
            pattern = _WORD
        else:
            continue
        value = _public(value, pattern)
        if value is not _PRIVATE:
            found[name] = value
    return found


_PRIVATE = object()


def _public(value: Any, pattern: str) -> Any:
    """The value without what may not be published in it, or _PRIVATE if it is that itself."""
    if value is None or isinstance(value, (bool, int, float)) or value == '':
        return value
    if isinstance(value, str):
        return value if pattern and re.fullmatch(pattern, value) else _PRIVATE
    if isinstance(value, (list, tuple)):
        items = [_public(item, pattern) for item in value]
        return _PRIVATE if any(item is _PRIVATE for item in items) else items
    if isinstance(value, Mapping):
        entries = {name: _public(item, pattern) for name, item in value.items()
                   if isinstance(name, str) and re.fullmatch(_WORD, name)}
        return {name: item for name, item in entries.items() if item is not _PRIVATE}
    return _PRIVATE


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser one flag per key. What the command line does not name is absent from the parsed namespace."""
    for title, keys in GROUPS.items():
        group = parser.add_argument_group(title)
        for key in keys:
            default = ' '.join(map(str, key.default)) if isinstance(key.default, list) else str(key.default)
            add_key(group, key, '' if key.default in (None, '', {}) else default)


def add_key(group: Any, key: Key, default: str = '') -> None:
    """Give a parser, or a group of one, the flag of a key; where it is not used, nothing is parsed.

    Args:
        group: The parser or the group.
        key: The key.
        default: What holds without the flag, for the help.
    """
    said = re.sub('; .* if not given$', '', key.help) if default else key.help
    text = f'{said} (default: {default})' if default else said
    kwargs: dict[str, Any] = {'help': text.replace('%', '%%'), 'default': argparse.SUPPRESS}
    if key.kind is bool:
        # train.py can switch on only; here a recipe's `amp: true` can also be switched off, with --no-amp.
        kwargs['action'] = 'store_true' if key.name.startswith('no_') else argparse.BooleanOptionalAction
    elif key.kind is dict:
        kwargs.update(nargs=key.many, action=_ParseKwargs, metavar='KEY=VALUE')
    else:
        kwargs.update(type=key.kind, nargs=key.many, metavar=key.kind.__name__.upper())
        if key.many == '?':
            kwargs['const'] = 'inductor'
        if key.choices:
            kwargs.update(choices=key.choices, metavar=None)
    group.add_argument(*key.flags, **kwargs)


class _ParseKwargs(argparse.Action):
    """timm's action of that name, which is imported where there is something to parse."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        from timm.utils import ParseKwargs

        for value in values:  # timm's takes such a text apart before it looks
            if value and '=' not in value:
                raise argparse.ArgumentError(self, f'expected KEY=VALUE, got {value!r}')
        ParseKwargs(self.option_strings, self.dest, nargs=self.nargs)(parser, namespace, values, option_string)


def packaged_names(kind: str) -> list[str]:
    """The yaml files in a folder of the packaged configs, such as `studies`, without their suffix, sorted."""
    return sorted(path.stem for path in (CONFIGS / kind).glob('*.yaml'))


def _is_recipe(path: Path) -> bool:
    """Recipes stand one folder deep (`imagenet/…`); detectron2's files have upper-case sections, studies a folder."""
    return path.parent.name != 'studies' and any(
        line.startswith('model:') for line in path.read_text(encoding='utf-8').splitlines())


def _convert(key: Key, value: Any) -> Any:
    if value is None:
        if key.default is None:
            return None
        raise ValueError(f'{key.name} must not be empty')
    if key.kind is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f'{key.name} must be a mapping of names to values, got {value!r}')
        return dict(value)
    if key.many in (None, '?'):
        return _convert_one(key, value)
    if not isinstance(value, (list, tuple)) or not value or (isinstance(key.many, int) and len(value) != key.many):
        count = key.many if isinstance(key.many, int) else 'one or more'
        raise ValueError(f'{key.name} must be a list of {count} values, got {value!r}')
    return [_convert_one(key, item) for item in value]


def _convert_one(key: Key, value: Any) -> Any:
    kinds: dict[type, str] = {bool: 'true or false', int: 'an integer', float: 'a number', str: 'text'}
    converted: Any = value
    if key.kind in (int, float) and isinstance(value, str):
        # yaml reads 1e-5 as text; argparse converts defaults that are text, and so do we.
        try:
            converted = key.kind(value)
        except ValueError:
            pass
    if key.kind is float and isinstance(converted, int) and not isinstance(converted, bool):
        converted = float(converted)
    if not isinstance(converted, key.kind) or isinstance(converted, bool) is not (key.kind is bool):
        raise ValueError(f'{key.name} must be {kinds[key.kind]}, got {value!r}')
    if key.choices and converted not in key.choices:
        raise ValueError(f'{key.name} must be one of {", ".join(map(repr, key.choices))}, got {value!r}')
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ValueError(f'{key.name} must be finite, got {value!r}')
    if key.minimum is not None and isinstance(converted, (int, float)):
        if key.maximum is not None and not key.minimum <= converted <= key.maximum:
            raise ValueError(f'{key.name} must be within {key.minimum:g} … {key.maximum:g}, got {value!r}')
        if converted < key.minimum:
            raise ValueError(f'{key.name} must be at least {key.minimum:g}, got {value!r}')
    return converted
