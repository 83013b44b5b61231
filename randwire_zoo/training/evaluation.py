"""Top-1 and top-5 accuracy of a network on a folder of images.

`evaluate_checkpoint` measures what a training left as the training measured it; `evaluate_description` measures a
network under a `weights.description.Description`, on a folder and under `Conditions`, those of the training
(`Conditions.from_settings`) or others.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import ImageMode
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import load_checkpoint
from timm.task import ClassificationEvaluator, evaluation_sample_limit
from timm.utils.checkpoint_saver import load_checkpoint_metadata
from torch import nn
from tqdm import tqdm

from ..errors import one_line
from ..files import atomic_path
from ..kernels.library import chosen
from ..weights.description import Description, labels_beside, read_settings
from ..weights.errors import loading
from ..weights.files import read_metadata
from .archives import check_label
from .arguments import DATA, EVAL
from .confusion import Confusion, check_table
from .images import open_folder
from .recipes import DEFAULTS, KEYS, check_settings

__all__ = ['Conditions', 'autocast', 'check_classes', 'checked', 'checking_loaders', 'class_indices', 'conditions_of',
           'default_device', 'evaluate', 'evaluate_checkpoint', 'evaluate_description', 'evaluate_folder',
           'find_description', 'has_split', 'import_modules', 'load_network', 'main', 'open_images', 'prepare_device']

#: The prefixes of data sets that timm reads without a folder of images.
READERS = ('torch', 'tfds', 'hfds', 'hfids', 'wds')

#: Settings that say which images a training had.
OF_IMAGES = ('val_split', 'data_dir', 'data', 'dataset', 'class_map')
#: Names of folders that timm takes for each other.
SPLIT_SYNONYMS = (('train', 'training'), ('val', 'valid', 'validation', 'eval', 'evaluation'))


def evaluate(
        model: Callable[..., Any],
        loader: Any,
        device: torch.device | str = 'cpu',
        amp_autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        channels_last: bool = False,
        distributed: bool = False,
        description: str = 'evaluate',
        progress: bool = True,
        watch: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
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
        progress: Show the bar, on a terminal.
        watch: Sees the logits and the class indices of each batch of this process, padding included.

    Returns:
        'loss' (mean cross-entropy), 'top1' and 'top5' in per cent.
    """
    device = torch.device(device)
    if isinstance(model, nn.Module):
        model.eval()
    evaluator = ClassificationEvaluator(device, max_samples=evaluation_sample_limit(loader))
    with torch.inference_mode(), tqdm(loader, desc=description, leave=False,
                                           disable=None if progress else True) as bar:
        for images, targets in bar:
            images, targets = images.to(device), targets.to(device)
            if channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with amp_autocast():
                logits = model(images)
            evaluator.update(logits, targets)
            if watch is not None:
                watch(logits, targets)
    return dict(evaluator.compute(distributed=distributed))


@dataclass(frozen=True)
class Conditions:
    """On which images, and how, a network is measured; what of it the description does not say.

    Args:
        data_dir: Folder with a folder per split, and in it one folder of images per class.
        split: Name of the split's folder; empty if the classes stand in data_dir itself.
        dataset: TYPE/NAME for one of timm's other kinds of data sets.
        dataset_download: Let such a data set be downloaded.
        class_map: File that maps class names to indices.
        input_img_mode: Mode that images are converted to; by the number of channels if None.
        batch_size: Images per step.
        amp_dtype: Run in this lower precision.
        channels_last: Memory layout.
        use_ema: Of a checkpoint, measure the moving average of the weights.
        some_classes: Images of some of the network's classes will do, where their names are known.
    """

    data_dir: str | Path | None = None
    split: str = 'validation'
    dataset: str = ''
    dataset_download: bool = False
    class_map: str = ''
    input_img_mode: str | None = None
    batch_size: int = 64
    amp_dtype: str | None = None
    channels_last: bool = False
    use_ema: bool = False
    some_classes: bool = False

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Conditions:
        """Those under which a training of these settings measures, train.py's too. Its folder may lie elsewhere now."""
        get = {**DEFAULTS, **settings}.get
        return cls(
            data_dir=get('data_dir') or get('data'), split=get('val_split') or '', dataset=get('dataset') or '',
            dataset_download=bool(get('dataset_download')), class_map=get('class_map') or '',
            input_img_mode=get('input_img_mode'),
            batch_size=get('validation_batch_size') or get('batch_size') or cls.batch_size,
            amp_dtype=get('amp_dtype') if get('amp') else None, channels_last=bool(get('channels_last')),
            # train.py does not measure an average that it keeps on the CPU.
            use_ema=bool(get('model_ema')) and not get('model_ema_force_cpu'))

    def open(self, description: Description, **kwargs: Any) -> Any:
        """The images, see `open_images`; of classes that are the network's, where the names of both are known."""
        def open_by(class_map: str | Mapping[str, int]) -> Any:
            return open_images(
                self.data_dir, self.split, self.dataset, description.input_size, self.input_img_mode,
                description.arguments.get('num_classes'), class_map=class_map, download=self.dataset_download,
                batch_size=self.batch_size, **kwargs)

        images, trained = open_by(self.class_map), description.label_names
        if self.class_map:
            return images
        names = tuple(class_indices(images))
        if self.some_classes and _is_folder(self.dataset) and names != trained and set(names) <= set(trained):
            # By its place among the folders a class would have another's index.
            return open_by({name: index for index, name in enumerate(trained)})
        check_classes(self.data_dir, names, trained)
        return images

    def loader(self, description: Description, images: Any, device: torch.device, workers: int, **kwargs: Any) -> Any:
        """timm's loader over them, fed as the description says."""
        with checking_loaders():
            return create_loader(
                images, batch_size=self.batch_size, num_workers=workers, device=device, persistent_workers=False,
                **description.data_config(), **kwargs)


@contextmanager
def checking_loaders() -> Iterator[None]:
    """timm asserts, or looks up, what it is told of augmentation and interpolation."""
    try:
        yield
    except (AssertionError, KeyError, IndexError) as error:
        raise ValueError('timm cannot load images with these settings of augmentation and interpolation: '
                         f'{one_line(error) or type(error).__name__}') from error


def check_classes(data_dir: str | Path | None, names: tuple[str, ...], trained: tuple[str, ...]) -> None:
    """Refuse images whose classes are known not to be those of a network.

    Raises:
        ValueError: naming some that one has and the other has not.
    """
    if trained and names and names != trained:
        there, own = set(names), set(trained)
        odd = [f'{", ".join(sorted(some)[:5])} only {where}' for where, some in (
            ('there', there - own), ('in the network', own - there)) if some]
        raise ValueError(f'{data_dir} has other classes than the network was trained on: '
                         f'{"; ".join(odd) or ", ".join(names[:5])}; a --class-map says which index each has')


def evaluate_description(
        model: nn.Module,
        description: Description,
        conditions: Conditions,
        device: torch.device | str = 'cpu',
        workers: int = 2,
        progress: bool = True,
        confusion: str | Path | None = None,
        lines: bool = False,
) -> dict[str, float]:
    """Measure a network on a folder of images, fed as its description says.

    On the machine of the training, in one process, this gives the very digits that the training recorded.

    Args:
        model: The network, with the weights in it.
        description: Of it.
        conditions: The images, the precision, the batch.
        device: Where to run.
        workers: Processes that load images; 0 loads them here.
        progress: Show a progress bar.
        confusion: File of comma-separated values to write: for each class how many of its images were taken for which.
        lines: Print a line on stdout where the images are of fewer classes than the network has.

    Returns:
        What `evaluate` returns, and 'img_size' and 'images', how many there were.

    Raises:
        OSError: if the folder of the split is missing, or the file cannot be written; before anything is measured.
        ValueError: if there are no images, or other classes than the network has.
    """
    device = torch.device(device)
    prepare_device(device)
    images = conditions.open(description)
    if lines and (note := _of_fewer_classes(images, description, conditions, getattr(model, 'num_classes', 0))):
        print(note, flush=True)
    loader = conditions.loader(description, images, device, workers)
    model = model.to(device)
    if conditions.channels_last:
        model = model.to(memory_format=torch.channels_last)
    counts = Confusion()
    with nullcontext() if confusion is None else atomic_path(check_table(confusion)) as table:
        metrics = evaluate(
            model, loader, device, autocast(device, conditions.amp_dtype), conditions.channels_last, progress=progress,
            watch=None if table is None else counts.update)
        if table is not None:
            counts.write(table, class_indices(images), description.label_names)
    return {**metrics, 'img_size': description.input_size[-1], 'images': len(images)}


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
    """`evaluate_description` of a model that says itself, in its pretrained_cfg, how it is fed.

    Args:
        model: The network.
        data_dir: See `Conditions`, as for the others that are not named here.
        split: Folder of the images.
        dataset: Another of timm's kinds of data sets.
        img_size: Side of the images; the model's own if None.
        crop_pct: Part of the resized image that is seen; the model's own if None.
        batch_size: Images per step.
        workers: Processes that load images; 0 loads them here.
        device: Where to run.
        amp_dtype: Run in this lower precision.
        channels_last: Memory layout.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError, ValueError: see `evaluate_description`.
    """
    cfg: dict[str, Any] = dict(getattr(model, 'pretrained_cfg', None) or {})
    arguments = {'num_classes': getattr(model, 'num_classes', None)}
    data = resolve_data_config({}, pretrained_cfg=cfg, use_test_size=True)
    description = Description(cfg.get('architecture') or type(model).__name__, arguments, **data)
    return evaluate_description(
        model, description.with_settings({'img_size': img_size, 'crop_pct': crop_pct}),
        Conditions(data_dir, split, dataset, batch_size=batch_size, amp_dtype=amp_dtype, channels_last=channels_last),
        device, workers, progress)


def evaluate_checkpoint(
        checkpoint: str | Path = '', settings: Mapping[str, Any] | None = None, progress: bool = True,
        lines: bool = False, confusion: str | Path | None = None,
) -> dict[str, Any]:
    """Measure the weights in a file, or published ones, as they were trained, but for what is given here.

    What the training recorded counts: the network, the images, the precision, the batch, the moving average. Without a
    record the settings must name a model, and are resolved as timm's validate.py does. Where the names of the network's
    classes are known, a folder of some of them will do: each has the index that it was trained with.

    Args:
        checkpoint: Of timm's train.py or of `trainer`, or other weights that timm reads; the published weights of the
            model if there is none.
        settings: Those of `arguments.EVAL`, model, split, crop_mode, use_ema and device_modules, by the names of
            validate.py, and kernels.
        progress: Show a progress bar.
        lines: Print a line about device and kernels on stdout, and one where the images are of fewer classes than the
            network has.
        confusion: See `evaluate_description`.

    Returns:
        What `evaluate_description` returns, and 'name'.

    Raises:
        FileNotFoundError: if a file or folder is missing.
        ValueError: naming what is wrong with a setting, the model, the weights or the images.
        KernelError: if the native kernels were asked for and cannot be built.
    """
    given = checked(settings)
    if confusion is not None:
        check_table(confusion)
    description, recorded = find_description(checkpoint, given)
    conditions = replace(conditions_of(recorded, given), some_classes=True)
    if recorded and not recorded.get('val_split', True) and 'split' not in given:
        raise ValueError(f'the training of {checkpoint} measured nothing; name the images with --split')
    device = default_device(given.get('device') or _here(recorded.get('device')))
    workers = given.get('workers', recorded.get('workers', 2))
    model = load_network(checkpoint, description, given.get('model', ''), conditions.use_ema)
    with chosen(given.get('kernels'), device, amp_dtype=conditions.amp_dtype) as header:
        if lines:
            print(header, flush=True)
        metrics = evaluate_description(model, description, conditions, device, workers, progress, confusion, lines)
    return {'name': given.get('model') or description.architecture, **metrics}


def conditions_of(recorded: Mapping[str, Any], given: Mapping[str, Any], same_images: bool = True) -> Conditions:
    """Those of a training, but for what is given; without a training, timm's.

    Args:
        recorded: Settings of the training; empty if there was none.
        given: Settings by the names of validate.py, split and use_ema.
        same_images: What is given are the images of the training, in another place perhaps; otherwise others.
    """
    kept = {name: value for name, value in recorded.items() if same_images or name not in OF_IMAGES}
    conditions = Conditions.from_settings({**kept, **given})
    if 'batch_size' in given or not recorded:
        conditions = replace(conditions, batch_size=given.get('batch_size', Conditions.batch_size))
    split = conditions.split if recorded and same_images else Conditions.split
    return replace(conditions, split=given.get('split', split), use_ema=given.get('use_ema', conditions.use_ema))


def checked(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings that are given, those of recipes as `recipes.check_settings` reads them."""
    given = {name: value for name, value in (settings or {}).items() if value is not None}
    return {**given, **check_settings({name: value for name, value in given.items() if name in KEYS})}


def load_network(checkpoint: str | Path, description: Description, name: str = '', use_ema: bool = False) -> nn.Module:
    """Build a network with the weights of a file, or with published ones if none is named.

    Args:
        checkpoint: Of timm's train.py or of `training`, or other weights that timm reads; empty for published ones.
        description: Of the network.
        name: Another name of it, with a tag or a source.
        use_ema: Of a checkpoint, take the moving average.

    Raises:
        ValueError: if there are no such weights, or they do not fit.
    """
    model: nn.Module = description.create_model(name, pretrained=not checkpoint)
    if checkpoint:
        with loading(checkpoint):
            if use_ema and not _has_ema(checkpoint):
                raise ValueError('it holds no moving average of the weights; --no-ema takes the weights themselves')
            load_checkpoint(model, str(checkpoint), use_ema=use_ema)
    return model


def find_description(checkpoint: str | Path, given: Mapping[str, Any]) -> tuple[Description, dict[str, Any]]:
    """The description and the settings of a training, or what the given settings name where there was none.

    The names of the classes are those of the training, or of the config.json beside the weights. What device_modules
    names is imported first.
    """
    import_modules(given.get('device_modules') or ())
    description, recorded = _find_description(checkpoint, given)
    if checkpoint and not description.label_names:
        names, _ = labels_beside(checkpoint, description.architecture)
        if len(names) == description.arguments.get('num_classes'):
            description = replace(description, label_names=names)
    return description, recorded


def _find_description(checkpoint: str | Path, given: Mapping[str, Any]) -> tuple[Description, dict[str, Any]]:
    recorded: dict[str, Any] = {}
    if checkpoint:
        try:
            recorded = read_settings(checkpoint)
        except ValueError:
            if 'model' not in given:
                raise
    trained = None
    if recorded.get('model'):
        with suppress(*((ValueError,) if 'model' in given else ())):  # a name that says nothing here
            trained = Description.from_checkpoint(checkpoint)
    elif 'model' not in given:
        raise ValueError('name a --model, or the --checkpoint of a training')
    if trained is not None and given.get('model') in (None, recorded['model']):
        return trained.with_settings(given), recorded
    # Another network keeps the data of the training, but nothing that is the recorded network's own.
    data = {key: value for key, value in recorded.items() if key in DATA}
    description = Description.from_settings(
        {**data, **given, 'pretrained': not checkpoint}, for_training=bool(recorded))
    if trained is not None and trained.architecture == description.architecture:
        return trained.with_settings(given), recorded  # under another name of it, with or without a tag
    return description.with_settings({'crop_mode': given.get('crop_mode')}), recorded


def _here(device: Any) -> str | None:
    """The kind of device that a training ran on, if there is one here."""
    try:
        return default_device(str(device).partition(':')[0]) if device else None
    except ValueError:
        return None


def _has_ema(checkpoint: str | Path) -> bool:
    if Path(checkpoint).suffix == '.safetensors':
        return read_metadata(checkpoint).get('weights') == 'average'  # staged weights are one or the other
    state = load_checkpoint_metadata(str(checkpoint))
    return isinstance(state, Mapping) and any(state.get(key) is not None for key in ('state_dict_ema', 'model_ema'))


def prepare_device(device: torch.device) -> None:
    """Let GPUs compute as timm's scripts let them: TF32 products, and the fastest algorithms of cuDNN."""
    if device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


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


def has_split(data_dir: str | Path, split: str) -> bool:
    """Whether an image folder has the folder of a split by its name or by a usual synonym, where timm finds it.

    Args:
        data_dir: Root folder.
        split: As for `open_images`; what follows a bracket is a part of it.
    """
    name = split.split('[')[0]
    synonyms = next((names for names in SPLIT_SYNONYMS if name in names), ())
    return any((Path(data_dir) / one).exists() for one in (name, *synonyms))


def open_images(
        data_dir: str | Path | None,
        split: str,
        dataset: str = '',
        input_size: tuple[int, ...] = (3, 224, 224),
        input_img_mode: str | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
) -> Any:
    """timm's `create_dataset`, refusing what it would accept by guessing, see also `images.open_folder`.

    Args:
        data_dir: Root folder.
        split: Folder below it, or one of its usual synonyms (val, valid, …); empty for the root itself.
        dataset: As in timm.
        input_size: Channels, height, width; decides on colour or grey where input_img_mode does not.
        input_img_mode: Mode that images are converted to.
        num_classes: Outputs of the model.
        kwargs: Further arguments of `create_dataset`. Without `is_training` an image that cannot be read is an error.

    Raises:
        FileNotFoundError: if the folder of the split is missing.
        ValueError: if there are no images, or some that timm passes over or takes for something else, if there are more
            classes than outputs or one whose name is no UTF-8, or for a mode with another number of channels.
    """
    is_folder = _is_folder(dataset)
    if not is_folder and dataset.partition('/')[0].lower() not in READERS:  # which timm would take for a folder
        raise ValueError(f'dataset must be TYPE/NAME, of the types {", ".join(READERS)}, or empty for an image folder, '
                         f'got {dataset!r}')
    if is_folder and (data_dir is None or not Path(data_dir).is_dir()):
        raise FileNotFoundError(f'no data folder{f" {data_dir}" if data_dir else ""}; name one with --data-dir')
    if is_folder and split and not has_split(str(data_dir), split):
        # timm would take the root for the split.
        raise FileNotFoundError(f'no folder {split!r} in {data_dir}; an image folder has train/ and validation/, with '
                                'a folder per class in each: `randwire-zoo data folder` makes them of class folders')
    mode = input_img_mode or ('L' if input_size[0] == 1 else 'RGB')
    _check_mode(mode, input_size[0])
    try:
        if is_folder and not split.endswith('.tar'):
            images = open_folder(
                str(data_dir), split, mode, kwargs.get('class_map') or '', kwargs.get('is_training', False))
        else:
            images = create_dataset(
                dataset, root=None if data_dir is None else str(data_dir), split=split, input_img_mode=mode, **kwargs)
    except (RuntimeError, AssertionError, KeyError, ImportError) as error:
        raise ValueError(f'no images of the split {split!r} in {data_dir}: {one_line(error)}') from error
    classes = class_indices(images)
    for label in classes:
        check_label(data_dir, label)
    if num_classes is not None and len(classes) > num_classes:
        raise ValueError(f'{data_dir} has {len(classes)} classes, but the model has {num_classes} outputs, which '
                         '--num-classes sets')
    return images


def _is_folder(dataset: str) -> bool:
    """Whether timm takes a data set's name for an image folder."""
    return not dataset.partition('/')[2]


def _of_fewer_classes(images: Any, description: Description, conditions: Conditions, outputs: int) -> str:
    """One line where the images of a folder are of fewer classes than the network has; '' where they are not."""
    samples = getattr(getattr(images, 'reader', None), 'samples', None)
    if not samples or not _is_folder(conditions.dataset):
        return ''
    found, known = len({index for _, index in samples}), len(description.label_names) or outputs
    if found >= known:
        return ''
    if conditions.class_map or description.label_names:
        return f'the images are of {found} of the {known} classes of the network'
    return (f'the images are of {found} classes, and the network has {known} outputs, whose names are not known: the '
            f"folders count as the first {found}, by their names' order; a --class-map says which they are")


def _check_mode(mode: str, channels: int) -> None:
    try:
        bands = len(ImageMode.getmode(mode).bands)
    except KeyError:
        raise ValueError(f"input_img_mode must be one of Pillow's, such as 'RGB' or 'L', got {mode!r}") from None
    if bands != channels:
        raise ValueError(f'the model takes images of {channels} channels, and those of mode {mode!r} have {bands}; '
                         'input_img_mode says what images are converted to')


def import_modules(names: Iterable[str]) -> None:
    """Import what --device-modules names, such as the file with a generator of one's own.

    Raises:
        ValueError: if one cannot be imported.
    """
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            raise ValueError(f'device_modules: {one_line(error)}') from error


def class_indices(images: Any) -> dict[str, int]:
    """The index of each class by its name, in the order of the indices; empty where a data set of timm names none."""
    classes = getattr(getattr(images, 'reader', images), 'class_to_idx', None) or {}
    return dict(sorted(classes.items(), key=lambda item: item[1]))


def main(args: argparse.Namespace) -> int:
    """Evaluate as the parsed arguments of `add_eval_arguments` say, and print one line.

    Raises:
        ValueError: naming what is wrong with the model, the weights or the images.
        OSError: if a file or folder is missing.
    """
    given = {name: value for name, value in vars(args).items()
             if name in (*EVAL, 'model', 'split', 'use_ema', 'crop_mode', 'device_modules', 'kernels')}
    metrics = evaluate_checkpoint(args.checkpoint, given, lines=True, confusion=args.confusion)
    print(f"{metrics['name']} at {metrics['img_size']} px on {metrics['images']} images: "
          f"top-1 {metrics['top1']:.4f} %, top-5 {metrics['top5']:.4f} %, loss {metrics['loss']:.4f}")
    if args.confusion is not None:
        print(args.confusion)
    return 0
