"""One network of a study, from its graph to its row of results, in a process of its own.

    python -m randwire_zoo.studies.work TASK.json

The row is written beside the task when the work is done, or has failed with a reason; a process that is killed leaves
no row, and a second one continues from the last epoch. Nor does one whose files cannot be written, or whose recipe or
generators have changed since the study was started: that is no matter of the network, and it ends with `os.EX_IOERR` or
`os.EX_CONFIG`.
"""
from __future__ import annotations

import errno
import json
import math
import os
import platform
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..errors import one_line
from ..files import cache_folder, lock, read_json, write_atomically
from ..provenance import provenance
from .measures import graph_measures
from .processes import end_with_parent, keep_niceness, run_child
from .study import AS_WRITTEN, Execution, Network, Study, data_folder, graphs_of, load_generators, wiring_of

__all__ = ['CANNOT_WRITE', 'CHANGED', 'WATCH', 'CannotWrite', 'Changed', 'changed', 'chosen_kernels',
           'forget_training', 'is_row_of', 'read_row', 'row_of', 'row_path', 'run_network', 'run_task', 'train_net',
           'write_task']

WATCH = '--end-with-parent'
TRAIN = '--train'
LAST_DETECTOR = 'last_checkpoint'  # where detectron2 names the last of its own
CANNOT_WRITE = 'cannot write'
CHANGED = 'has changed since the study was started'
# Of the disk, and not of the network: full, over its quota, read-only, gone, broken.
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO,
           errno.ENOTCONN)
# What torch.save says then, which has no number, and what a program that was started here says last.
WRITERS = ('PytorchStreamWriter', 'inline_container', 'file write failed', *(
    os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)))


class CannotWrite(OSError):
    """A file of a network could not be written."""


class Changed(ValueError):
    """What a network would be trained by is no longer what its study was started with."""


def write_task(
        folder: Path, study: Study, network: Network, data_dir: str | None,
        execution: Execution = AS_WRITTEN) -> Path:
    """Write down what a process has to do; returns the file.

    What the folder has of a network of the same id that is another one, as after a change of the study's file, is
    thrown away: its training would be gone on with, and its accuracy taken for this one's. So is what nothing says of
    which settings it is, as it may come from another folder: a training without its task, and a row without either its
    task or, as those of earlier releases, a sha256 of its own.
    """
    path = folder / 'tasks' / f'{network.id}.json'
    sha256 = study.network_sha256(network)
    before = _mapping(path)
    other = ''
    if 'sha256' in before:
        other = '' if before['sha256'] == sha256 else 'of other settings'
    elif 'network' in before:  # an earlier release wrote the network alone
        other = '' if before['network'] == json.loads(json.dumps(asdict(network))) else 'of other settings'
    elif _mapping(row_path(path)).get('sha256') != sha256 and (
            row_path(path).is_file() or _has_checkpoint(folder / 'runs' / network.id)):
        other = f'of unknown settings, as {path} is missing or broken'
    if other:
        print(f'{network.id}: what {folder} has of it is {other}, and is trained anew', file=sys.stderr)
        forget_training(folder, network.id)
    write_atomically(path, json.dumps(
        {'study': asdict(study), 'network': asdict(network), 'folder': str(folder), 'data_dir': data_dir,
         'execution': asdict(execution), 'sha256': sha256}))
    return path


def forget_training(folder: Path, name: str) -> None:
    """Throw away what a network's training has left in the folder of its study, but for its log."""
    task = folder / 'tasks' / f'{name}.json'
    for path in (row_path(task), _starts_path(task)):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / 'runs' / name, ignore_errors=True)


def row_of(network: Network) -> dict[str, Any]:
    """The beginning of a network's row: what it is."""
    return {**asdict(network), 'channels': network.kwargs.get('channels')}


def is_row_of(row: Mapping[str, Any], study: Study, network: Network) -> bool:
    """Whether a row is what a network of a study gave, and not of the same id's in other settings.

    A row of an earlier release says no more than what was trained.
    """
    return _is_of(row, study.network_sha256(network), asdict(network))


def _is_of(row: Mapping[str, Any], sha256: str | None, network: Mapping[str, Any]) -> bool:
    if sha256 is not None and 'sha256' in row:
        return bool(row['sha256'] == sha256)
    trained = {name: network[name] for name in ('id', 'model', 'kwargs', 'training_seed')}
    return all(row.get(name) == value for name, value in json.loads(json.dumps(trained)).items())


def row_path(task: Path) -> Path:
    """Where the row of a task will lie."""
    return task.with_suffix('.row')


def read_row(task: Path) -> dict[str, Any] | None:
    """The row that lies beside a task, if it is this task's.

    Any other is thrown away, and what was trained with it: put there by hand, or by a process that outlived the study
    which it was started for.
    """
    path = row_path(task)
    if not path.is_file():
        return None
    said, row = read_json(task), _mapping(path)
    if _is_of(row, said.get('sha256'), said['network']):
        return row
    if row:
        print(f'{path} is of other settings than {task.name}, and its network is trained anew', file=sys.stderr)
        forget_training(task.parent.parent, task.stem)
    else:  # which says nothing against the training
        print(f'{path} is no row of a network, and is dropped', file=sys.stderr)
        path.unlink()
    return None


def _mapping(path: Path) -> dict[str, Any]:
    """The object of JSON that a file holds; an empty one where it is missing or broken."""
    with suppress(FileNotFoundError, ValueError):
        found = read_json(path)
        if isinstance(found, dict):
            return found
    return {}


def _starts_path(task: Path) -> Path:
    """Where it lies what a task was started with, each time."""
    return task.with_suffix('.starts')


def run_task(path: str) -> str:
    """Do a task and write its row, whose reason says what went wrong if something did; returns the row's path.

    Raises:
        CannotWrite: if its files cannot be written.
        Changed: if it would be trained by something else than its study was started with.
    """
    task = Path(path)
    # A process that outlived the study that started it is waited for: it may be at this network still.
    try:
        with lock(task.with_suffix('.lock'), wait=True, held=f'another process is at {task.stem}') as held:
            if read_row(task) is None:
                _do(task, held)
    except Exception as error:
        reason = _storage_trouble(error, task.parent)
        if reason is None:
            raise
        raise CannotWrite(f'{CANNOT_WRITE} in {task.parent.parent}: {reason}') from error
    return str(row_path(task))


def _do(path: Path, held: int | None) -> None:
    task = read_json(path)
    study, network, execution = Study(**task['study']), Network(**task['network']), Execution(**task['execution'])
    start = time.time()
    row = row_of(network)
    if 'sha256' in task:  # an earlier release wrote none
        row['sha256'] = task['sha256']
    with ExitStack() as stack:
        made: list[dict[str, Any]] = []
        try:
            _check_unchanged(study, network, task)
            print(stack.enter_context(chosen_kernels(study, execution)), flush=True)
            settings = execution.settings(study) if study.recipe else {'device': _device_of_detectors(study)}
            made = _note_start(path, {**provenance(settings['device']),
                                      **({'precision': precision_of(settings)} if study.recipe else {})})
            row.update(run_network(study, network, Path(task['folder']), task['data_dir'], execution, held),
                       status='done')
        except Exception as error:  # whatever it is, the other networks go on
            if isinstance(error, Changed) or _storage_trouble(error, path.parent) is not None or _came_from_outside(
                    error):
                raise
            row.update(status='failed', reason=f'{type(error).__name__}: {one_line(error)}')
            traceback.print_exc()
        row.update(seconds=round(time.time() - start, 1), host=platform.node(),
                   provenance=made[-1] if made else provenance(), **({'earlier': made[:-1]} if made[1:] else {}))
    write_atomically(row_path(path), json.dumps(_finite(row), allow_nan=False))


def _check_unchanged(study: Study, network: Network, task: Mapping[str, Any]) -> None:
    """See that the files which a study names say what they said when the task was written, maybe days ago.

    Raises:
        Changed: if they do not, or one of them is no longer there.
    """
    try:
        same = 'sha256' not in task or study.network_sha256(network) == task['sha256']
    except (OSError, ValueError) as error:
        raise changed(study, f' ({one_line(error)})') from error
    if not same:
        raise changed(study)


def changed(study: Study, how: str = '') -> Changed:
    """The error that one of the files which a study names is another one now."""
    names = [name for name in (study.generators, study.recipe, study.detection.get('config')) if name]
    return Changed(f'{" or ".join(names)} {CHANGED}{how}; put back what it was to go on, or choose another --output')


def _has_checkpoint(run: Path) -> bool:
    """Whether there is something in the folder of a training to go on with."""
    if not run.is_dir():
        return False
    from ..training.trainer import LAST
    return any((run / name).is_file() for name in (LAST, LAST_DETECTOR))


def _note_start(task: Path, made: dict[str, Any]) -> list[dict[str, Any]]:
    """Keep what a training is made with before it begins, as files may change while it lasts; returns all its starts.

    Only those count that what is there of it comes from.
    """
    starts = []
    if _has_checkpoint(task.parent.parent / 'runs' / task.stem):
        with suppress(OSError, ValueError):
            starts = read_json(_starts_path(task))
    starts.append(made)
    write_atomically(_starts_path(task), json.dumps(starts))
    return starts


class _KilledError(RuntimeError):
    """One of the processes of a network was ended by a signal, which is no matter of the network."""


def _came_from_outside(error: Exception) -> bool:
    """Whether it is not the network that failed, but its job that was ended: it deserves another try."""
    return (isinstance(error, _KilledError) or type(error).__module__.partition('.')[0] == 'submitit'
            or (isinstance(error, RuntimeError) and re.search(  # what torch says of a process that loads images
                r'DataLoader worker .*(killed by signal|exited unexpectedly)', str(error), re.DOTALL) is not None))


def _finite(value: Any) -> Any:
    """The same, with None for numbers that are none: JSON has neither NaN nor infinity, and a loss may be either."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def chosen_kernels(
        study: Study, execution: Execution, threads: int | None = None) -> AbstractContextManager[str]:
    """`kernels.library.chosen` for the networks of a study, whose recipe has a word in it, too."""
    from ..kernels.library import chosen
    from ..training.evaluation import default_device
    settings = execution.settings(study) if study.recipe else {}
    return chosen(execution.kernels or settings.get('kernels'), default_device(settings.get('device')), threads,
                  settings.get('amp_dtype') if settings.get('amp') else None)


def precision_of(settings: dict[str, Any]) -> str:
    """Of multiplications in training and evaluation: 'float32', or the lower one of mixed precision."""
    return settings['amp_dtype'] if settings['amp'] else 'float32'


def _device_of_detectors(study: Study) -> str | None:
    """What a study says of it, as detectron2's configs are for a GPU; None where it says nothing."""
    overrides = [str(item) for item in study.detection.get('overrides', [])]
    return dict(zip(overrides[::2], overrides[1::2], strict=False)).get('MODEL.DEVICE')


def _environment() -> dict[str, str]:
    """Of a program that trains on the same kernels as this process would."""
    from ..kernels.library import VARIABLE, kernels_in_use
    return {**os.environ, VARIABLE: kernels_in_use()}


def _storage_trouble(error: BaseException, folder: Path) -> str | None:
    """In a line, what is wrong with the disk, if that is what an error comes from."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for one in chain:
        if isinstance(one, OSError) and (one.errno in STORAGE or not folder.is_dir()):
            return one_line(one)
    for one in chain:
        if isinstance(one, RuntimeError) and any(word in str(one) for word in WRITERS):
            return f'a checkpoint cannot be written whole, is there room for it? ({one_line(one)})'
    return None


def run_network(
        study: Study, network: Network, folder: Path, data_dir: str | None, execution: Execution = AS_WRITTEN,
        held: int | None = None) -> dict[str, Any]:
    """Train and evaluate one network; returns what its row holds beyond the network itself.

    Args:
        study: The study.
        network: One of its networks.
        folder: The study's output; the training goes to `runs/` in it, and goes on there if it was interrupted.
        data_dir: See `study.data_folder`.
        execution: What this machine runs it with.
        held: The lock that programs started here share, see `files.lock`.
    """
    if study.generators:
        load_generators(study.generators)
    data = data_folder(study, data_dir)
    if study.detection:
        return _fine_tune_detector(study, network, folder, data, held)
    from ..training.trainer import LAST, SUMMARY, read_summary, train
    run = folder / 'runs' / network.id
    settings = execution.settings(study)
    settings.update(data_dir=str(data), model=network.model, model_kwargs=network.kwargs,
                    output=str(run.parent), experiment=network.id, seed=network.training_seed, checkpoint_hist=1,
                    kernels=None)  # those that this process is on
    if (run / LAST).is_file():
        settings['resume'] = str(run / LAST)
    elif run.exists():
        shutil.rmtree(run)  # killed before its first epoch was over
    if study.processes == 1:
        history = train(progress=False, lines=False, **settings).history
    else:
        _train_together(study, network, folder, settings, held)
        history = tuple(read_summary(run / SUMMARY))
    last, graphs = history[-1], graphs_of(network)
    row: dict[str, Any] = {
        'top1': last['eval_top1'], 'top5': last['eval_top5'], 'loss': last['eval_loss'],
        'classes': settings['num_classes'], 'epochs': int(last['epoch']) + 1,
        'wiring': wiring_of(network), 'graphs': [graph.to_dict() for graph in graphs],
        'measures': graph_measures(graphs),
        'history': [[r['epoch'] + 1, r['train_loss'], r['eval_top1']] for r in history]}
    if study.proxies:
        row['proxies'] = {name: value for name, value in _proxies_of(study, settings).items() if math.isfinite(value)}
    if study.eval_sizes or (study.damage and network.graph is not None):
        row.update(_evaluate_again(study, network, run / LAST, settings))
    return row


def _train_together(
        study: Study, network: Network, folder: Path, settings: dict[str, Any], held: int | None) -> None:
    """Train with several processes, through torchrun."""
    task = folder / 'tasks' / f'{network.id}.train'
    write_atomically(task, json.dumps({'generators': study.generators, 'settings': settings}))
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={study.processes}',
               '--module', 'randwire_zoo.studies.work', str(task), TRAIN, WATCH]
    with open(task.with_suffix('.log'), 'a', encoding='utf-8') as log:
        before = log.tell()
        code = run_child(command, log, _environment(), held)
    if code:
        said = task.with_suffix('.log').read_bytes()[before:].decode('utf-8', 'replace')
        reason = f'{study.processes} processes: torchrun ended with {code}: {_last_error(said)}'
        # Processes that torchrun itself ends, after one has failed, have SIGTERM.
        killed = code < 0 or set(re.findall(r'exitcode *: -(\d+)', said)) - {str(int(signal.SIGTERM))}
        raise (_KilledError if killed else RuntimeError)(reason)


def _last_error(said: str) -> str:
    """The last line that names an exception, but for torchrun's own, which come after it."""
    lines = [line for line in said.splitlines() if line.strip(' =-')]
    named = [line for line in lines if re.match(r'(\[rank\d+\]: *)?[\w.]*(Error|Exception): ', line)
             and 'ChildFailedError' not in line]
    return ' '.join((named or lines or [''])[-1].split())


def _train(path: str) -> None:
    """One of the processes of `_train_together`."""
    task = read_json(path)
    if task['generators']:
        load_generators(task['generators'])
    from ..training.trainer import train
    train(progress=False, lines=False, **task['settings'])


def _evaluate_again(study: Study, network: Network, checkpoint: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Other image sizes, and damage, with the weights that the row's accuracy is of, fed as they were."""
    import torch
    from timm.models import load_checkpoint

    from ..training.evaluation import Conditions, default_device, evaluate_description
    from ..weights.description import Description
    from .damage import measure_damage
    device, workers = torch.device(default_device(settings['device'])), settings['workers']
    description, conditions = Description.from_checkpoint(checkpoint), Conditions.from_settings(settings)
    model = description.create_model()
    load_checkpoint(model, str(checkpoint), use_ema=conditions.use_ema)
    found: dict[str, Any] = {}
    if study.eval_sizes:
        found['eval_sizes'] = {
            str(size): evaluate_description(model, description.with_settings({'img_size': size}), conditions, device,
                                            workers, progress=False)
            for size in study.eval_sizes}
    if study.damage and network.graph is not None:
        model = model.to(device)
        if conditions.channels_last:
            model = model.to(memory_format=torch.channels_last)
        # Every so many images of the whole split: folders hold one class after another.
        loader = conditions.loader(description, conditions.open(description), device, workers)
        found['damage'] = measure_damage(model, _spread(loader, study.damage), device, study.damage)
    return found


def _proxies_of(study: Study, settings: dict[str, Any]) -> dict[str, float]:
    """What the weights that a training began with say, of images of its training split that are not augmented."""
    import torch

    from ..training.evaluation import Conditions, default_device
    from ..training.trainer import seed_everything
    from ..weights.description import Description
    from .proxies import measure_proxies
    device = torch.device(default_device(settings['device']))
    description, conditions = Description.from_settings(settings), Conditions.from_settings(settings)
    conditions = replace(conditions, split=settings['train_split'], batch_size=study.proxies)
    seed_everything(settings['seed'], 0, 0)
    model = description.create_model(settings['model']).to(device)
    images = conditions.open(description)
    batch, targets = next(iter(_spread(conditions.loader(description, images, device, 0), study.proxies)))
    return measure_proxies(model, batch.float(), targets)


def _spread(loader: Any, count: int) -> Any:
    """The same loader over `count` images that lie evenly in its data set."""
    from torch.utils.data import DataLoader, Subset
    total = len(loader.dataset)
    chosen = Subset(loader.dataset, [i * total // min(count, total) for i in range(min(count, total))])
    base = getattr(loader, 'loader', loader)
    plain = DataLoader(chosen, batch_size=base.batch_size, num_workers=0, collate_fn=base.collate_fn)
    if base is loader:
        return plain
    loader.loader = plain  # timm's prefetcher stays around it
    return loader


def _fine_tune_detector(
        study: Study, network: Network, folder: Path, data: Path, held: int | None) -> dict[str, Any]:
    """detectron2's own train_net.py, and the box AP that it writes last."""
    script = train_net()
    run = folder / 'runs' / network.id
    run.mkdir(parents=True, exist_ok=True)
    overrides = [str(item).replace('{model}', network.model) for item in study.detection.get('overrides', [])]
    command = [sys.executable, str(script), '--config-file', str(study.detector_config(network.model))]
    if study.processes > 1:
        # Its port would otherwise be one for each user, whom two detectors at a time would meet on.
        command += ['--num-gpus', str(study.processes), '--dist-url', 'auto']
    if (run / LAST_DETECTOR).is_file():
        command.append('--resume')
    command += ['OUTPUT_DIR', str(run), 'SEED', str(network.training_seed), *overrides]
    with open(run / 'stdout.txt', 'a', encoding='utf-8') as log:
        # Data sets by their folders, whatever backbone the config has.
        code = run_child(command, log, {'DETECTRON2_ENV_MODULE': 'randwire_zoo.detection.datasets', **_environment(),
                                        'DETECTRON2_DATASETS': str(data)}, held)
    if code:
        tail = (run / 'stdout.txt').read_text(encoding='utf-8', errors='replace').strip().splitlines()[-1:]
        raise (_KilledError if code < 0 else RuntimeError)(f'train_net.py ended with {code}: {"".join(tail)}')
    lines = [json.loads(line) for line in (run / 'metrics.json').read_text(encoding='utf-8').splitlines()]
    measured = [line for line in lines if 'bbox/AP' in line]
    # detectron2 gives NaN where there is nothing to measure: no object of a size, or not one box found.
    for line in measured:
        line.update({name: None for name, value in line.items() if name.startswith('bbox/') and math.isnan(value)})
    if not measured or measured[-1]['bbox/AP'] is None:
        raise RuntimeError(f'train_net.py measured no box AP; see {run / "stdout.txt"}')
    losses = {line['iteration']: line['total_loss'] for line in lines if 'total_loss' in line}
    history = []
    for line in measured:
        # Iterations count from 0, and what is measured after the last one has the number that a next one would have.
        before = [iteration for iteration in losses if iteration <= line['iteration']]
        history.append([min(line['iteration'], max(losses, default=line['iteration'])) + 1,
                        losses[max(before)] if before else None, line['bbox/AP']])
    return {'detection': {name: measured[-1][f'bbox/{name}'] for name in ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')},
            'history': history}


def train_net() -> Path:
    """detectron2's script: $DETECTRON2_TRAIN_NET, or where `make upstream` puts it.

    Raises:
        FileNotFoundError: if it is not there.
    """
    built = cache_folder() / 'upstream' / 'detectron2' / 'tools' / 'train_net.py'
    path = Path(os.environ.get('DETECTRON2_TRAIN_NET') or built)
    if not path.is_file():
        raise FileNotFoundError(f'this study needs detectron2 and its train_net.py, and there is no {path}; name the '
                                'script in DETECTRON2_TRAIN_NET, or, in a clone of randwire-zoo, run make upstream')
    return path


def _main(arguments: list[str]) -> int:
    if WATCH in arguments:
        end_with_parent()
        keep_niceness()
    if TRAIN in arguments:
        _train(arguments[0])
        return 0
    try:
        run_task(arguments[0])
    except (CannotWrite, Changed) as error:
        with suppress(OSError):
            traceback.print_exc()
            print(error, file=sys.stderr, flush=True)
        return os.EX_IOERR if isinstance(error, CannotWrite) else os.EX_CONFIG
    return 0


if __name__ == '__main__':
    sys.exit(_main(sys.argv[1:]))
