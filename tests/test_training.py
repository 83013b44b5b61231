"""The trainer: the same files as train.py, the same weights after a kill, one result from two processes."""
from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from timm.optim import Lookahead
from timm.utils.summary import trim_summary, update_summary

from randwire_zoo.files import Locked
from randwire_zoo.training.arguments import add_train_arguments
from randwire_zoo.training.evaluation import evaluate_folder
from randwire_zoo.training.recipes import DEFAULTS, STOCK, scheduled_epochs
from randwire_zoo.training.trainer import main, read_summary, train
from randwire_zoo.weights.description import Description, build_model

NETWORK = {'graph': 'ws(2,0.5)', 'seed': 1, 'channels': 4, 'num_nodes': 4}
# Everything random that a run can have: augmentation in a worker, mixing, erasing, edge removal, dropout.
SETTINGS: dict[str, Any] = {
    'model': 'randwire', 'model_kwargs': NETWORK, 'num_classes': 3, 'img_size': 32, 'mean': [0.5] * 3, 'std': [0.5] * 3,
    'crop_pct': 1.0, 'batch_size': 8, 'epochs': 4, 'warmup_epochs': 1, 'lr': 0.05, 'opt': 'momentum', 'device': 'cpu',
    'workers': 1, 'mixup': 0.2, 'cutmix': 0.5, 'reprob': 0.3, 'drop': 0.2, 'drop_path': 0.5, 'clip_grad': 1.0,
    'grad_accum_steps': 2, 'model_ema': True, 'model_ema_decay': 0.9, 'sched_on_updates': True,
}
PLAIN: dict[str, Any] = {**SETTINGS, 'workers': 0, 'mixup': 0.0, 'cutmix': 0.0, 'model_ema': False, 'epochs': 1}


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of three noisy colours: 15 pictures each to train on, 3 held out."""
    folder, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for split, count in (('train', 15), ('validation', 3)):
        for label, colour in enumerate(((200, 40, 40), (40, 200, 40), (40, 40, 200))):
            (folder / split / str(label)).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(colour, 60, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / str(label) / f'{index}.png')
    return folder


def load(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def differences(left: Any, right: Any, where: str = '') -> list[str]:
    """The places where two checkpoints are not equal, bit for bit."""
    if isinstance(left, torch.Tensor):
        return [] if torch.equal(left, right) else [where]
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        return [place for key in left for place in differences(left[key], right[key], f'{where}/{key}')]
    if isinstance(left, (list, tuple)):
        return [place for i in range(len(left)) for place in differences(left[i], right[i], f'{where}/{i}')]
    return [] if left == right else [where]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_a_killed_run_continues_to_the_weights_of_an_uninterrupted_one(images: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, 'data_dir': str(images), 'output': str(tmp_path)}
    whole = train(**settings, experiment='whole', progress=False)
    assert whole.folder is not None

    killed = tmp_path / 'killed'
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(settings))
    process = subprocess.run([sys.executable, '-c', textwrap.dedent(f"""
        import os, signal
        from randwire_zoo.training import trainer as training
        backward, steps = training._Run._backward, []

        def step(*args):
            backward(*args)
            steps.append(1)
            if len(steps) == 13:  # in the middle of the third epoch, of five steps each
                os.kill(os.getpid(), signal.SIGKILL)

        training._Run._backward = step
        training.train({str(tmp_path / 'recipe.yaml')!r}, experiment='killed', progress=False)
    """)], timeout=500)
    assert process.returncode == -signal.SIGKILL
    assert sorted(path.name for path in killed.glob('checkpoint-*')) == ['checkpoint-0.pth.tar', 'checkpoint-1.pth.tar']
    # The row of the third epoch may have been written, its checkpoint not.
    with (killed / 'summary.csv').open('a') as summary:
        summary.write('2,9,9,9,9,9\n')

    resumed = train(resume=str(killed / 'last.pth.tar'), progress=False)
    assert resumed.folder == killed
    ours, theirs = load(killed / 'last.pth.tar'), load(whole.folder / 'last.pth.tar')
    parts = ('state_dict', 'state_dict_ema', 'optimizer', 'epoch', 'metric')
    assert differences({key: ours[key] for key in parts}, {key: theirs[key] for key in parts}) == []
    assert (killed / 'summary.csv').read_text() == (whole.folder / 'summary.csv').read_text()
    assert resumed.history == whole.history and resumed.best_epoch == whole.best_epoch
    best, other = load(killed / 'model_best.pth.tar'), load(whole.folder / 'model_best.pth.tar')
    assert differences(best['state_dict'], other['state_dict']) == []


def test_images_kept_in_memory_are_read_once_and_change_nothing(
        images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**PLAIN, 'epochs': 3, 'data_dir': str(images), 'output': str(tmp_path), 'progress': False}
    plain, opened, read_bytes = train(**settings, experiment='plain'), [], Path.read_bytes

    def counted(path: Path) -> bytes:
        if path.suffix == '.png':
            opened.append(path)
        return read_bytes(path)
    monkeypatch.setattr(Path, 'read_bytes', counted)
    kept = train(**settings, experiment='kept', cache_images=True)
    assert len(opened) == len(set(opened)) == 3 * 15 + 3 * 3
    assert plain.folder is not None and kept.folder is not None
    states = [load(folder / 'last.pth.tar')['state_dict'] for folder in (plain.folder, kept.folder)]
    assert differences(*states) == [] and plain.history == kept.history


def test_a_run_leaves_the_files_of_train_py(images: Path, tmp_path: Path) -> None:
    result = train(**{**PLAIN, 'epochs': 2}, data_dir=str(images), output=str(tmp_path), experiment='run',
                   progress=False)
    folder = tmp_path / 'run'
    assert sorted(path.name for path in folder.iterdir()) == [
        '.lock', 'args.yaml', 'checkpoint-0.pth.tar', 'checkpoint-1.pth.tar', 'last.pth.tar', 'model_best.pth.tar',
        'summary.csv']
    assert (folder / 'summary.csv').read_text().splitlines()[0] == \
        'epoch,train_loss,eval_loss,eval_top1,eval_top5,lr'
    assert read_summary(folder / 'summary.csv') == list(result.history)
    recorded = yaml.safe_load((folder / 'args.yaml').read_text())
    assert recorded['model_kwargs'] == NETWORK and recorded['img_size'] == 32 and recorded['lr'] == 0.05
    assert load(folder / 'last.pth.tar')['arch'] == 'randwire'
    description = Description.from_checkpoint(folder / 'last.pth.tar')
    assert (description.mean, description.crop_pct, description.input_size) == ((0.5,) * 3, 1.0, (3, 32, 32))
    assert description.label_names == ('0', '1', '2') and description.arguments['drop_path_rate'] == 0.5


def test_a_summary_of_a_resumed_run_is_read_as_timm_trims_it(tmp_path: Path) -> None:
    kept, trimmed = str(tmp_path / 'kept.csv'), str(tmp_path / 'trimmed.csv')
    for course, (start, stop) in enumerate(((0, 6), (3, 5), (2, 3))):
        trim_summary(trimmed, start)
        for epoch in range(start, stop):
            for path, header in ((kept, epoch == start), (trimmed, None)):  # as older train.py, and as newer
                update_summary(epoch, {'loss': course}, {'top1': 10 * epoch}, path, lr=0.5, write_header=header)
    with open(trimmed, newline='') as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert read_summary(kept) == read_summary(trimmed) == rows
    assert [(row['epoch'], row['train_loss']) for row in rows] == [(0, 0), (1, 0), (2, 2)]
    assert read_summary(kept, ['lr']) == [{'epoch': float(epoch), 'lr': 0.5} for epoch in range(3)]
    (tmp_path / 'some.csv').write_text('epoch,train_loss,eval_loss\n0,1,\n1,2\n\n')
    assert read_summary(tmp_path / 'some.csv') == [{'epoch': 0, 'train_loss': 1}, {'epoch': 1, 'train_loss': 2}]
    for epoch in ('inf', 'nan', ''):
        (tmp_path / 'some.csv').write_text(f'epoch,train_loss\n0,1\n{epoch},1\n')
        with pytest.raises(ValueError, match=r'some.csv, line 3: no epoch'):
            read_summary(tmp_path / 'some.csv')


#: One process group for all runs of a script: gloo finds the old addresses if it is asked to connect once more.
ONE_GROUP = """
import torch.distributed
connect = torch.distributed.init_process_group
torch.distributed.init_process_group = lambda *args, **kwargs: (
    None if torch.distributed.is_initialized() else connect(*args, **kwargs))
torch.distributed.destroy_process_group = lambda: None
"""


def run_in_two_processes(script: Path) -> None:
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo', 'MASTER_ADDR': '127.0.0.1'}
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--master_addr', '127.0.0.1',
         '--master_port', '0', '--rdzv_backend', 'c10d', '--rdzv_endpoint', '127.0.0.1:0', script],
        env=env, capture_output=True, text=True, timeout=500)  # of a process that waits for the other for ever
    assert done.returncode == 0, done.stderr[-3000:]


def test_processes_that_do_not_agree_say_in_what_before_anything_is_trained(images: Path, tmp_path: Path) -> None:
    for name in ('zebra', 'fewer'):
        shutil.copytree(images, tmp_path / name)
    for split in ('train', 'validation'):
        (tmp_path / 'zebra' / split / '1').rename(tmp_path / 'zebra' / split / 'zebra')
    (tmp_path / 'fewer' / 'train' / '1' / '0.png').unlink()
    (tmp_path / 'fewer' / 'validation' / '2' / '0.png').unlink()
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({'data_dir': str(tmp_path / 'zebra')}, ['classes: 1 = 1, 2 = 2 (process 0), 2 = 1, zebra = 2 (process 1)']),
        ({'model_kwargs': {**NETWORK, 'stem_stride': 2}},
         ['stem_stride of the network: not given (process 0), 2 (process 1)']),
        ({'model_kwargs': {**NETWORK, 'seed': 2}}, ['seed of the network: 1 (process 0), 2 (process 1)', 'graphs: ']),
        ({'lr': 0.5, 'seed': 7, 'smoothing': 0.0},
         ['lr: 0.05 (process 0), 0.5 (process 1)', 'smoothing: 0.1 (process 0), 0.0 (process 1)',
          'seed: 42 (process 0), 7 (process 1)']),
        ({'data_dir': str(tmp_path / 'fewer')},
         ['images to train on: 45 (process 0), 44 (process 1)', 'images held out: 9 (process 0), 8 (process 1)'])]
    script = tmp_path / 'differ.py'
    script.write_text(ONE_GROUP + textwrap.dedent(f"""
        import json, os
        from pathlib import Path
        from randwire_zoo.training.trainer import train
        rank, said = int(os.environ['RANK']), []
        settings = dict(**{ {**PLAIN, 'batch_size': 4}!r}, data_dir={str(images)!r}, output={str(tmp_path / 'out')!r})
        for change in {[change for change, _ in cases]!r}:
            try:
                train(**(settings if rank == 0 else {{**settings, **change}}), experiment='run', progress=False)
                said.append('trained')
            except Exception as error:
                said.append(f'{{type(error).__name__}}: {{error}}')
            Path({str(tmp_path)!r}, f'said{{rank}}').write_text(json.dumps(said))
    """))
    run_in_two_processes(script)
    first, second = (json.loads((tmp_path / f'said{rank}').read_text()) for rank in (0, 1))
    assert first == second and len(first) == len(cases) and not (tmp_path / 'out').exists()
    for line, (_, expected) in zip(first, cases, strict=True):
        assert line.startswith('ValueError: the processes of this training do not agree in ') and '\n' not in line
        for text in expected:
            assert text in line


def test_two_processes_fail_together_agree_and_measure_every_held_out_image_once(images: Path, tmp_path: Path) -> None:
    script = tmp_path / 'two.py'
    script.write_text(ONE_GROUP + textwrap.dedent(f"""
        import hashlib, os
        from pathlib import Path
        import torch
        from randwire_zoo.training import trainer as training
        finish, distribute, own = training._Run.run, training.distribute_bn, []

        def distribute_bn(model, *args):
            own.append(next(buffer for name, buffer in model.named_buffers() if 'running_mean' in name).clone())
            distribute(model, *args)

        def run(self):
            result = finish(self)
            state = self.task.get_eval_model().state_dict()
            digest = hashlib.sha256(b''.join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest()
            Path({str(tmp_path)!r}, f'rank{{self.args.rank}}').write_text(
                f'{{digest}} {{result.last["eval_loss"]}} {{result.folder is not None}} {{torch.initial_seed()}}')
            mean = next(tensor for name, tensor in state.items() if 'running_mean' in name)
            torch.save([own[-1], mean], Path({str(tmp_path)!r}, f'statistics{{self.args.rank}}'))
            return result

        # In each process: the folder is in use, which the first alone can see; then the second alone has no data.
        rank, said = int(os.environ['RANK']), []
        settings = dict(**{ {**PLAIN, 'epochs': 2, 'batch_size': 4}!r}, output={str(tmp_path)!r}, progress=False)
        for experiment, data_dir in (('used', {str(images)!r}), ('none', ({str(images)!r}, 'nowhere')[rank])):
            try:
                training.train(**settings, data_dir=data_dir, experiment=experiment)
            except Exception as error:
                said.append(f'{{type(error).__name__}}: {{error}}')
        Path({str(tmp_path)!r}, f'said{{rank}}').write_text('\\n'.join(said))
        training._Run.run, training.distribute_bn = run, distribute_bn
        training.train(**{ {**PLAIN, 'epochs': 2, 'batch_size': 4}!r}, data_dir={str(images)!r},
                       output={str(tmp_path)!r}, experiment='two', progress=False)
    """))
    (tmp_path / 'used').mkdir()
    (tmp_path / 'used' / 'precious').write_text('precious')
    run_in_two_processes(script)
    in_use = f'{tmp_path / "used"} is in use; choose another --experiment'
    missing = 'no data folder nowhere; name one with --data-dir'
    assert [(tmp_path / f'said{rank}').read_text().splitlines() for rank in (0, 1)] == [
        [f'FileExistsError: {in_use}', f'PeerFailure: process 1: {missing}'],
        [f'PeerFailure: process 0: {in_use}', f'FileNotFoundError: {missing}']]
    assert [path.name for path in (tmp_path / 'used').iterdir()] == ['precious'] and not (tmp_path / 'none').exists()
    first, second = ((tmp_path / f'rank{rank}').read_text().split() for rank in (0, 1))
    assert first[:2] == second[:2], 'weights or metrics differ between the processes'
    assert (first[2], second[2]) == ('True', 'False'), 'the first process alone writes'
    assert first[3] != second[3], 'the processes draw the same augmentation'
    (own, mean), (other, _) = (torch.load(tmp_path / f'statistics{rank}', weights_only=True) for rank in (0, 1))
    assert not torch.equal(own, other)
    torch.testing.assert_close(mean, (own + other) / 2)

    # Nine images in two processes: one process has a tenth to pad with, which must not count.
    model = build_model('randwire', num_classes=3, checkpoint_path=str(tmp_path / 'two' / 'last.pth.tar'), **NETWORK)
    model.pretrained_cfg = {**model.pretrained_cfg, 'mean': (0.5,) * 3, 'std': (0.5,) * 3}
    alone = evaluate_folder(model, images, img_size=32, crop_pct=1.0, workers=0, progress=False)
    assert float(first[1]) == pytest.approx(alone['loss'], rel=1e-5)
    assert read_summary(tmp_path / 'two' / 'summary.csv')[-1]['eval_top1'] == pytest.approx(alone['top1'])


def test_the_rate_is_half_a_cosine_over_the_updates_and_follows_the_batch(images: Path, tmp_path: Path) -> None:
    result = train(
        **{**PLAIN, 'epochs': 3, 'lr': None, 'warmup_epochs': 0, 'lr_base': 0.1, 'batch_size': 16, 'val_split': '',
           'grad_accum_steps': 1},
        data_dir=str(images), output=str(tmp_path), progress=False)
    # 45 images give two whole batches of 16; the rate is noted after each epoch's last update.
    expected = [0.1 * 16 / 256 * 0.5 * (1 + math.cos(math.pi * updates / 6)) for updates in (2, 4, 6)]
    assert [row['lr'] for row in result.history] == pytest.approx(expected)
    assert result.best_metric == min(row['train_loss'] for row in result.history)  # no held-out images: the loss


def test_a_new_run_never_writes_over_an_earlier_one(images: Path, tmp_path: Path) -> None:
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'summary.csv').write_text('precious')
    for name, hint in (('run', '$'), ('last.pth.tar', ', or continue with --resume .*last.pth.tar$')):
        (tmp_path / 'run' / name).touch()
        before = contents(tmp_path)
        with pytest.raises(FileExistsError, match=f'is in use; choose another --experiment{hint}'):
            train(**PLAIN, data_dir=str(images), output=str(tmp_path), experiment='run', progress=False)
        assert contents(tmp_path) == before
        shutil.copy(tmp_path / 'run' / 'summary.csv', tmp_path / 'run' / 'last.pth.tar')


@pytest.mark.parametrize('settings', [
    {'aa': 'foo'}, {'interpolation': 'foo'}, {'train_interpolation': 'foo'}, {'train_crop_mode': 'foo'}],
    ids=str)
def test_what_timm_only_asserts_is_one_line_before_anything_is_written(
        settings: dict[str, Any], images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='timm cannot load images with these settings of augmentation and'):
        train(**{**PLAIN, **settings}, data_dir=str(images), output=str(tmp_path), experiment='run', progress=False)
    assert not contents(tmp_path)


@pytest.mark.parametrize('name', ['scale', 'ratio', 'cutmix_minmax'])
def test_a_range_has_two_ends(name: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf'{name} must be two numbers, from and to, got \[0.5\]'):
        train(**{**PLAIN, name: [0.5]}, data_dir=str(images), output=str(tmp_path), experiment='run', progress=False)
    assert not contents(tmp_path)


def test_a_run_that_fails_in_its_first_epoch_leaves_its_name_free(
        images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError('out of memory')

    monkeypatch.setattr('randwire_zoo.training.trainer._Run._backward', fail)
    with pytest.raises(RuntimeError, match='out of memory'):
        train(**PLAIN, data_dir=str(images), output=str(tmp_path), experiment='run', progress=False)
    assert not contents(tmp_path)


def test_other_classes_are_refused_where_a_training_goes_on(images: Path, tmp_path: Path) -> None:
    train(**{**PLAIN, 'epochs': 1}, data_dir=str(images), output=str(tmp_path), experiment='run', progress=False)
    other = Path(shutil.copytree(images, tmp_path / 'other'))
    for split in other.iterdir():
        next(iter(sorted(split.iterdir()))).rename(split / 'zebra')
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r'other has other classes than the network was trained on: .*zebra'):
        train(**{**PLAIN, 'epochs': 2}, data_dir=str(other), resume=str(tmp_path / 'run' / 'last.pth.tar'),
              progress=False)
    assert contents(tmp_path) == before


def test_a_resumed_run_keeps_its_origin_whatever_the_recipe_says_and_does_not_need_its_files(
        images: Path, tmp_path: Path) -> None:
    settings = {**PLAIN, 'data_dir': str(images)}
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump({**settings, 'epochs': 2}))
    (tmp_path / 'pico.yaml').write_text(yaml.safe_dump({
        **settings, 'epochs': 2, 'model': 'randwire_ws_pico', 'model_kwargs': {}}))
    first = train(**settings, output=str(tmp_path), experiment='first', progress=False)
    assert first.folder is not None
    start = first.folder / 'last.pth.tar'
    runs = [({name: str(start)}, 'recipe.yaml') for name in ('initial_checkpoint', 'pretrained_path')]
    for number, (origin, recipe) in enumerate([*runs, ({'pretrained': True}, 'pico.yaml')]):
        before = train(tmp_path / recipe, **origin, epochs=1, output=str(tmp_path), experiment=f'run{number}',
                       progress=False)
        assert before.folder is not None
        began, last = yaml.safe_load((before.folder / 'args.yaml').read_text()), before.folder / 'last.pth.tar'
        description = Description.from_checkpoint(last)
        start.rename(start.with_suffix('.gone'))
        after = train(tmp_path / recipe, resume=str(last), progress=False)
        start.with_suffix('.gone').rename(start)
        assert len(after.history) == 2
        recorded = yaml.safe_load((before.folder / 'args.yaml').read_text())
        for name in ('pretrained', 'pretrained_path', 'initial_checkpoint'):
            assert recorded[name] == began[name] == origin.get(name, DEFAULTS[name])
        assert Description.from_checkpoint(last) == description


def test_another_number_of_images_is_told_where_a_training_goes_on(
        images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(**PLAIN, data_dir=str(images), output=str(tmp_path), experiment='run', progress=False)
    fewer, last = Path(shutil.copytree(images, tmp_path / 'fewer')), tmp_path / 'run' / 'last.pth.tar'
    for gone in ('train/0/0.png', 'train/1/0.png', 'validation/2/1.png'):
        (fewer / gone).unlink()
    train(resume=str(last), epochs=2, progress=False)
    assert 'warning' not in capsys.readouterr().out
    train(resume=str(last), epochs=3, data_dir=str(fewer), progress=False)
    assert [line for line in capsys.readouterr().out.splitlines() if 'warning' in line] == [
        f'warning: {last} was trained on 45 images, and now there are 43',
        f'warning: {last} was measured on 9 images, and now there are 8']


def test_a_checkpoint_alone_goes_on_with_the_settings_that_it_holds(
        images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**PLAIN, 'epochs': 2, 'data_dir': str(images), 'output': str(tmp_path), 'progress': False}
    whole = train(**settings, experiment='whole').folder
    assert whole is not None
    state = load(whole / 'checkpoint-0.pth.tar')
    for name in ('ours', 'theirs', 'longer'):
        (tmp_path / name).mkdir()
        if name == 'theirs':  # train.py's has all of its arguments, and no description
            state['args'] = argparse.Namespace(**{
                **STOCK, **{key: value for key, value in vars(state['args']).items() if key in DEFAULTS},
                'world_size': 1, 'prefetcher': True})
        torch.save(state, tmp_path / name / 'last.pth.tar')
    capsys.readouterr()
    expected = load(whole / 'last.pth.tar')['state_dict']
    for name in ('ours', 'theirs'):
        assert train(resume=str(tmp_path / name / 'last.pth.tar'), progress=False).folder == tmp_path / name
        assert differences(load(tmp_path / name / 'last.pth.tar')['state_dict'], expected) == []
    assert 'other settings' not in capsys.readouterr().out
    last = tmp_path / 'longer' / 'last.pth.tar'
    train(resume=str(last), epochs=3, lr=0.5, progress=False)
    assert f'other settings than those in {last}: epochs 3 (was 2), lr 0.5 (was 0.05)\n' in capsys.readouterr().out
    recorded = yaml.safe_load((tmp_path / 'longer' / 'args.yaml').read_text())
    assert (recorded['img_size'], recorded['epochs'], recorded['lr']) == (32, 3, 0.5)


def test_no_second_training_goes_on_in_a_folder_where_one_is_at_work(
        images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from randwire_zoo.training import trainer as training

    last, whole = tmp_path / 'run' / 'last.pth.tar', training._Run._train_one_epoch
    command = [sys.executable, '-m', 'randwire_zoo', 'train', '--resume', str(last), '--no-progress']
    seconds: list[subprocess.CompletedProcess[str]] = []

    def one_epoch(run: training._Run, epoch: int) -> dict[str, float]:
        if epoch == 1:
            before = contents(tmp_path)
            seconds.append(subprocess.run(command, capture_output=True, text=True, timeout=500))
            assert contents(tmp_path) == before
        return whole(run, epoch)
    monkeypatch.setattr(training._Run, '_train_one_epoch', one_epoch)
    train(**{**PLAIN, 'epochs': 2}, data_dir=str(images), output=str(tmp_path), experiment='run', progress=False)
    [second] = seconds
    assert second.returncode == 2
    assert second.stderr == f'randwire-zoo: error: another training is at work in {tmp_path / "run"}\n'
    monkeypatch.undo()

    choose = training._Run._choose_folder

    def written_meanwhile(run: training._Run) -> tuple[Path, bool]:  # by one that has ended since
        os.utime(last, ns=(0, 0))
        return choose(run)
    monkeypatch.setattr(training._Run, '_choose_folder', written_meanwhile)
    with pytest.raises(Locked, match=r'another training has written .*last\.pth\.tar since it was read'):
        train(resume=str(last), epochs=3, progress=False)
    monkeypatch.undo()
    assert len(train(resume=str(last), epochs=3, progress=False).history) == 3


def test_a_moving_average_is_not_dropped_on_the_way(images: Path, tmp_path: Path) -> None:
    settings = {**PLAIN, 'data_dir': str(images), 'output': str(tmp_path), 'progress': False}
    train(**{**settings, 'model_ema': True}, experiment='run')
    before = contents(tmp_path)
    with pytest.raises(ValueError, match='holds a moving average of the weights, which would end: model_ema is not'):
        train(resume=str(tmp_path / 'run' / 'last.pth.tar'), model_ema=False, epochs=2, progress=False)
    assert contents(tmp_path) == before


def test_what_is_wrong_with_the_network_is_not_blamed_on_the_file_that_it_starts_from(
        images: Path, tmp_path: Path) -> None:
    settings = {**PLAIN, 'data_dir': str(images), 'output': str(tmp_path), 'progress': False}
    train(**settings, experiment='run')
    before = contents(tmp_path)
    for name in ('initial_checkpoint', 'pretrained_path'):
        with pytest.raises(ValueError, match=r"^cannot create the model 'randwire': .*stem_strid\b"):
            train(**{**settings, 'model_kwargs': {**NETWORK, 'stem_strid': 1}, name: str(
                tmp_path / 'run' / 'last.pth.tar')})
        with pytest.raises(ValueError, match=r'last\.pth\.tar cannot be loaded: '):
            train(**{**settings, 'model_kwargs': {**NETWORK, 'channels': 6}, name: str(
                tmp_path / 'run' / 'last.pth.tar')})
    assert contents(tmp_path) == before


def test_optimisers_get_what_train_py_gives_them(
        images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**PLAIN, 'data_dir': str(images), 'output': str(tmp_path), 'progress': False}
    curved = train(**{**settings, 'opt': 'adahessian', 'lr': 0.01}, experiment='second order')
    assert math.isfinite(curved.last['train_loss'])
    synchronised: list[int] = []
    monkeypatch.setattr(Lookahead, 'sync_lookahead', lambda self: synchronised.append(1))
    train(**{**settings, 'opt': 'lookahead_momentum', 'epochs': 2}, experiment='lookahead')
    assert len(synchronised) == 2


def test_a_resumed_run_writes_nothing_unless_there_is_something_to_train(images: Path, tmp_path: Path) -> None:
    settings = {**PLAIN, 'data_dir': str(images), 'output': str(tmp_path), 'checkpoint_hist': 1}
    first = train(**{**settings, 'epochs': 2}, experiment='run', progress=False)
    assert first.folder is not None
    before = contents(tmp_path)
    last = str(first.folder / 'last.pth.tar')
    with pytest.raises(ValueError) as error:
        train(resume=last, epochs=1, lr=0.5, progress=False)
    assert str(error.value) == f'nothing to train: {last} has 2 epochs behind it, and epochs: 1 asks for 1'
    with pytest.raises(ValueError, match=r'nothing to train: .* has 2 epochs behind it, and epochs: 2 asks for 2'):
        train(resume=last, experiment='new', progress=False)
    # A study that was killed after the last epoch asks for the run that is whole.
    assert train(resume=last, lr=0.5, progress=False).history == first.history
    # The best epoch is the last one: model_best and the checkpoint are two names of one file.
    assert contents(tmp_path) == before
    # One more epoch, with half of a copy that a kill left behind; in a folder that has moved.
    (first.folder / 'checkpoint-7.pth.tar.tmp').write_bytes(b'half')
    moved = shutil.copytree(first.folder, tmp_path / 'elsewhere' / 'moved')
    longer = train(resume=str(moved / 'last.pth.tar'), epochs=3, progress=False)
    assert [row['epoch'] for row in longer.history] == [0, 1, 2] and longer.folder == moved
    assert [path.name for path in moved.iterdir() if 'tmp' in path.name] == []


def test_settings_that_change_on_the_way_take_effect(images: Path, tmp_path: Path) -> None:
    settings = {**PLAIN, 'data_dir': str(images), 'output': str(tmp_path), 'warmup_epochs': 0,
                'sched_on_updates': False}
    first = train(**{**settings, 'epochs': 2, 'lr': None, 'lr_base': 0.64, 'grad_accum_steps': 1}, experiment='run',
                  progress=False)
    assert first.folder is not None
    last = str(first.folder / 'last.pth.tar')
    for number, (changes, rate, decay) in enumerate([
            ({}, 0.64 * 8 / 256, 2e-5), ({'lr': 0.001, 'weight_decay': 0.5}, 0.001, 0.5),
            ({'batch_size': 16}, 0.64 * 16 / 256, 2e-5), ({'momentum': 0.5}, 0.64 * 8 / 256, 2e-5)]):
        folder = Path(shutil.copytree(first.folder, tmp_path / f'copy{number}'))
        more = train(resume=str(folder / 'last.pth.tar'), epochs=3, progress=False, **changes)
        groups = load(folder / 'last.pth.tar')['optimizer']['param_groups']
        assert [group['initial_lr'] for group in groups] == pytest.approx([rate] * len(groups))
        assert {group['weight_decay'] for group in groups} == {0.0, decay}
        assert {group['momentum'] for group in groups} == {changes.get('momentum', 0.9)}
        assert more.last['lr'] == pytest.approx(rate * 0.5 * (1 + math.cos(math.pi * 2 / 3)), rel=1e-3)
    folder = Path(shutil.copytree(first.folder, tmp_path / 'dampened'))
    train(resume=str(folder / 'last.pth.tar'), epochs=3, opt_kwargs={'dampening': 0.5, 'fused': True}, progress=False)
    groups = load(folder / 'last.pth.tar')['optimizer']['param_groups']
    assert {(group['dampening'], group['fused']) for group in groups} == {(0.5, True)}
    with pytest.raises(ValueError, match=r"with opt_kwargs \{\}, of which maximize must not change on the way, got"):
        train(resume=last, epochs=3, opt_kwargs={'maximize': True}, progress=False)
    with pytest.raises(ValueError, match=r"it is of another optimiser than 'adamw', without .*betas") as error:
        train(resume=last, epochs=3, opt='adamw', progress=False)
    assert '\n' not in str(error.value)


def test_a_whole_args_yaml_of_train_py_resumes_to_the_same_weights(images: Path, tmp_path: Path) -> None:
    settings = {**PLAIN, 'data_dir': str(images), 'output': str(tmp_path)}
    whole = train(**{**settings, 'epochs': 2}, experiment='whole', progress=False)
    half = train(**{**settings, 'epochs': 2, 'sched': 'constant'}, experiment='half', progress=False)
    assert whole.folder is not None and half.folder is not None
    for name in ('last', 'checkpoint-0'):  # the state after the first epoch, as train.py keeps it
        state = load(whole.folder / 'checkpoint-0.pth.tar')
        del state['args'].description
        torch.save(state, half.folder / f'{name}.pth.tar')
    (half.folder / 'args.yaml').write_text(yaml.safe_dump({
        **DEFAULTS, **STOCK, **PLAIN, 'epochs': 2, 'data': str(images), 'data_dir': None, 'log_interval': 7}))
    resumed = train(resume=str(half.folder / 'last.pth.tar'), progress=False)
    ours, theirs = load(half.folder / 'last.pth.tar'), load(whole.folder / 'last.pth.tar')
    assert differences(ours['state_dict'], theirs['state_dict']) == []
    assert resumed.folder == half.folder and resumed.last == whole.last


@pytest.mark.parametrize(('change', 'epochs'), [
    ({}, 4), ({'cooldown_epochs': 3}, 7), ({'warmup_epochs': 2, 'warmup_prefix': True}, 6),
    ({'sched': 'step', 'warmup_epochs': 2, 'warmup_prefix': True, 'cooldown_epochs': 3}, 6), ({'sched': 'none'}, 4),
], ids=str)
def test_the_epochs_of_a_run_are_those_of_its_schedule(change: dict[str, Any], epochs: int) -> None:
    assert scheduled_epochs({**DEFAULTS, 'epochs': 4, 'warmup_epochs': 0, **change}) == epochs


class Hostile:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


def test_a_damaged_or_foreign_checkpoint_is_one_line_and_nothing_is_written(images: Path, tmp_path: Path) -> None:
    output = tmp_path / 'runs'
    train(**PLAIN, data_dir=str(images), output=str(output), experiment='run', progress=False)
    good = output / 'run' / 'last.pth.tar'
    bad = output / 'bad.pth.tar'
    before = contents(output)
    state = load(good)
    torch.save({**state, 'state_dict': {'fc.weight': torch.zeros(1)}}, tmp_path / 'other')
    torch.save({'state_dict': state['state_dict']}, tmp_path / 'weights')
    torch.save({**state, 'epoch': Hostile(tmp_path / 'victim')}, tmp_path / 'hostile')
    cases: list[tuple[bytes, dict[str, Any], str]] = [
        (good.read_bytes()[:-100], {}, 'cannot be loaded'),
        (b'', {}, 'is empty'),
        (b'no checkpoint at all', {}, 'cannot be loaded'),
        ((tmp_path / 'other').read_bytes(), {}, 'Missing key'),
        ((tmp_path / 'weights').read_bytes(), {}, 'lacks optimizer, epoch'),
        ((tmp_path / 'hostile').read_bytes(), {}, 'it is no checkpoint, or one with more in it than tensors'),
        (good.read_bytes(), {'model_kwargs': {**NETWORK, 'seed': 2}}, 'trained on other wiring'),
        (good.read_bytes(), {'model': 'randwire_ws_pico', 'model_kwargs': {}}, "the model 'randwire', not"),
        (good.read_bytes(), {'opt': 'adamw'}, 'cannot be loaded'),
        (good.read_bytes(), {'model_ema': True}, 'no moving average'),
    ]
    for data, change, message in cases:
        bad.write_bytes(data)
        with pytest.raises(ValueError) as error:
            train(**{**PLAIN, **change}, data_dir=str(images), resume=str(bad), progress=False)
        assert message in str(error.value) and str(bad) in str(error.value) and '\n' not in str(error.value), message
        bad.unlink()
        assert contents(output) == before
    assert not (tmp_path / 'victim').exists()


@pytest.mark.parametrize(('change', 'error', 'message'), [
    ({'epocs': 3}, ValueError, "unknown key 'epocs'; did you mean epochs"),
    ({'zzz': 3}, ValueError, "unknown key 'zzz'; the trainer knows "),
    ({'epochs': 0}, ValueError, 'epochs must be at least 1, got 0'),
    ({'batch_size': 64}, ValueError,
     "'train' has 45 images, fewer than the batch of 64: choose a smaller --batch-size"),
    ({'model': 'randwire_ws_huge'}, ValueError, 'Unknown model'),
    ({'model_kwargs': {'graph': 'ws(3,0.5)'}}, ValueError, 'K'),
    ({'model_kwargs': {'num_node': 3}}, ValueError, "'num_node'; did you mean num_nodes"),
    ({'pretrained': True}, ValueError, "cannot create the model 'randwire'"),
    ({'num_classes': 2}, ValueError, '3 classes, but the model has 2 outputs'),
    ({'val_split': 'test'}, FileNotFoundError, "no folder 'test' in {images}; an image folder has train/ and "
     'validation/, with a folder per class in each: `randwire-zoo data folder` makes them of class folders'),
    ({'data_dir': 'nowhere'}, FileNotFoundError, 'no data folder nowhere'),
    ({'device': 'cuda:99'}, ValueError, "device 'cuda:99' is not available"),
    ({'lr': 0}, ValueError, 'lr must be above 0, got 0: train.py takes that for none'),
    ({'lr': None, 'lr_base': 0}, ValueError, 'lr_base must be above 0, got 0'),
    ({'in_chans': 4, 'mean': None, 'std': None}, ValueError,
     "the model takes images of 4 channels, and those of mode 'RGB' have 3; input_img_mode"),
    ({'input_img_mode': 'FOO'}, ValueError, "input_img_mode must be one of Pillow's, such as 'RGB' or 'L', got 'FOO'"),
    ({'lr': None, 'lr_base': 0.1, 'warmup_lr': 0.1, 'warmup_epochs': 1}, ValueError,
     'the warm-up would lower the rate: warmup_lr is 0.1, and the rate of this batch 0.00625'),
    ({'mixup': 0.5, 'batch_size': 7}, ValueError, 'even batch_size, got 7'),
    ({'aug_repeats': 3}, ValueError, 'aug_repeats needs several processes'),
    ({'cache_images': True, 'workers': 2}, ValueError, 'cache_images needs workers 0, got 2'),
    ({'opt': 'sgdd'}, ValueError,
     "cannot create the optimiser 'sgdd': Optimizer sgdd not found in registry; did you mean sgd"),
    ({'resume': 'nothing.pth.tar'}, FileNotFoundError, 'no checkpoint at nothing.pth.tar'),
    ({'initial_checkpoint': 'nothing.pth'}, FileNotFoundError, 'no weights at nothing.pth'),
    ({'device_modules': ['no_such_module']}, ValueError, 'no_such_module'),
])
def test_a_bad_setting_is_one_line_and_nothing_is_written(
        change: dict[str, Any], error: type[Exception], message: str, images: Path, tmp_path: Path) -> None:
    settings = {**PLAIN, 'data_dir': str(images), 'output': str(tmp_path / 'output'), **change}
    with pytest.raises(error) as caught:
        train(**settings, progress=False)
    assert message.replace('{images}', str(images)) in str(caught.value) and '\n' not in str(caught.value)
    assert not (tmp_path / 'output').exists()


def test_no_other_optimiser_is_proposed_where_its_argument_is_wrong(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^cannot create the optimiser 'sgd': .* unexpected keyword argument 'foo'$"):
        train(**{**PLAIN, 'data_dir': str(images), 'output': str(tmp_path), 'opt': 'sgd', 'opt_kwargs': {'foo': 1}},
              progress=False)


def test_without_a_model_nothing_is_trained_and_not_timms_default(images: Path) -> None:
    with pytest.raises(ValueError, match=r'name the network, with --model or in a recipe \(-c\)'):
        train(data_dir=str(images))


def test_a_compiled_run_saves_the_plain_names_and_the_plain_weights(images: Path, tmp_path: Path) -> None:
    # Dynamo traces and runs the graph as it is, so that the arithmetic stays the same.
    for name, backend in (('plain', None), ('compiled', 'eager')):
        train(**{**PLAIN, 'drop_path': 0.0}, torchcompile=backend, data_dir=str(images), output=str(tmp_path),
              experiment=name, progress=False)
    plain, compiled = (load(tmp_path / name / 'last.pth.tar')['state_dict'] for name in ('plain', 'compiled'))
    assert list(plain) == list(compiled)
    for name in plain:
        torch.testing.assert_close(plain[name], compiled[name], rtol=1e-4, atol=1e-5)


def test_splits_with_different_class_folders_are_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / 'train').symlink_to(images / 'train')
    for name, source in (('0', '0'), ('2', '2')):
        (tmp_path / 'validation').mkdir(exist_ok=True)
        (tmp_path / 'validation' / name).symlink_to(images / 'validation' / source)
    with pytest.raises(ValueError, match='different classes: 1'):
        train(**PLAIN, data_dir=str(tmp_path), output=str(tmp_path / 'output'), progress=False)


def test_the_command_line_trains_in_mixed_precision_and_prints_its_folder(
        images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(PLAIN))
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    args = parser.parse_args(['-c', str(tmp_path / 'recipe.yaml'), '--data-dir', str(images), '--output', str(tmp_path),
                              '--experiment', 'run', '--amp', '--amp-dtype', 'bfloat16', '--channels-last'])
    assert main(args) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == str(tmp_path / 'run')
    # Into a file go the lines and no bar; --no-progress takes away no line either.
    assert (f'model randwire (WS(2, 0.5), seed 1, small regime, N = 4, C = 4, stem stride 4) with 3 outputs, data '
            f'{images} (45 images of 3 classes, 9 held out), output {tmp_path / "run"}\n') in output.out
    assert 'epoch 1/1: train_loss' in output.out and '\r' not in output.out + output.err
    args = parser.parse_args(['--resume', str(tmp_path / 'run' / 'last.pth.tar'), '--epochs', '2', '--no-progress'])
    assert main(args) == 0
    said = capsys.readouterr().out
    assert 'going on at epoch 2 of 2' in said and 'epoch 2/2: train_loss' in said and 'in epoch ' in said
    assert math.isfinite(read_summary(tmp_path / 'run' / 'summary.csv')[0]['train_loss'])
    recorded = yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())
    assert (recorded['amp'], recorded['amp_dtype'], recorded['channels_last']) == (True, 'bfloat16', True)


def test_outputs_without_images_are_told(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # As with a recipe for 101 categories beside a folder of three: nothing fails, and 98 outputs learn to be silent.
    train(**{**PLAIN, 'num_classes': 101}, data_dir=str(images), output=str(tmp_path), experiment='more')
    assert '98 of the 101 outputs have no images; --num-classes 3 leaves none without\n' in capsys.readouterr().out
    train(**{**PLAIN, 'num_classes': 3}, data_dir=str(images), output=str(tmp_path), experiment='as_many')
    assert 'have no images' not in capsys.readouterr().out


@pytest.mark.parametrize(('model', 'kwargs', 'said'), [
    ('randwire', {**NETWORK, 'graph': 'er(0.5)', 'seed': 3, 'channels': 6, 'stem_stride': 2},
     'randwire (ER(0.5), seed 3, small regime, N = 4, C = 6, stem stride 2) with 3'),
    ('randwire_ws_small_s2', {'channels': 4, 'stem_stride': 1},
     'randwire_ws_small_s2 (WS(4, 0.75), seed 2, small regime, N = 32, C = 4, stem stride 1) with 3'),
    ('resnet10t', {}, 'resnet10t with 3'),
])
def test_the_wiring_that_is_trained_is_told(
        model: str, kwargs: dict[str, Any], said: str, images: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    train(**{**PLAIN, 'model': model, 'model_kwargs': kwargs, 'drop_path': None, 'data_dir': str(images)},
          output=str(tmp_path), progress=False)
    assert f'model {said} outputs, data' in capsys.readouterr().out


def test_arguments_of_a_recipe_that_are_dropped_are_told(
        images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text(yaml.safe_dump({
        **PLAIN, 'model_kwargs': {**NETWORK, 'stem_stride': 1, 'node_op': 'conv'}, 'data_dir': str(images)}))
    for number, (kwargs, dropped) in enumerate([
            ({**NETWORK, 'node_op': 'sep_conv'}, 'stem_stride: 1'), (NETWORK, 'node_op: conv, stem_stride: 1'),
            ({**NETWORK, 'stem_stride': 2, 'node_op': 'conv'}, ''), (None, '')]):
        given = {} if kwargs is None else {'model_kwargs': kwargs}
        result = train(recipe, output=str(tmp_path), experiment=str(number), progress=False, **given)
        lines = [line for line in capsys.readouterr().out.splitlines() if 'model_kwargs' in line]
        assert lines == ([f"model_kwargs takes the place of the recipe's, and drops its {dropped}"] if dropped else [])
        assert result.folder is not None
        used = yaml.safe_load((result.folder / 'args.yaml').read_text())['model_kwargs']
        assert used == (kwargs or {**NETWORK, 'stem_stride': 1, 'node_op': 'conv'}), 'as train.py has it'


def test_an_interrupted_run_says_how_to_go_on_and_leaves_nothing_where_it_cannot(
        images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from randwire_zoo import cli
    from randwire_zoo.training import trainer as training

    whole, settings = training._Run._train_one_epoch, {**PLAIN, 'epochs': 2, 'data_dir': str(images)}
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(settings))
    argv = ['train', '-c', str(tmp_path / 'recipe.yaml'), '--output', str(tmp_path / 'out put'), '--experiment', 'run']
    for after in (0, 1):
        def one_epoch(run: training._Run, epoch: int, after: int = after) -> dict[str, float]:
            if epoch == after:
                raise KeyboardInterrupt
            return whole(run, epoch)

        monkeypatch.setattr(training._Run, '_train_one_epoch', one_epoch)
        assert cli.main(argv) == 130
        said = capsys.readouterr().err.splitlines()[-1]
        if after == 0:
            assert said == 'randwire-zoo: interrupted; no epoch was finished; the same command starts again'
            assert not (tmp_path / 'out put' / 'run').exists()
    monkeypatch.undo()
    _, command = said.split('go on with: randwire-zoo ')
    assert cli.main(shlex.split(command)) == 0
    assert len(read_summary(tmp_path / 'out put' / 'run' / 'summary.csv')) == 2
