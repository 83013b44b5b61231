"""timm's unmodified train.py, validate.py, inference.py, benchmark.py and onnx_export.py on our models.

The scripts run in processes of their own and know nothing of randwire_zoo.
"""
from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import timm
import torch
import upstream
import yaml
from PIL import Image
from timm.models import save_for_hf

import randwire_zoo.configs
from randwire_zoo.training.evaluation import evaluate_checkpoint
from randwire_zoo.training.recipes import load_recipe
from randwire_zoo.training.trainer import train

RECIPE = Path(randwire_zoo.configs.__file__).parent / 'digits' / 'randwire_ws_pico.yaml'
SCRIPTS = upstream.timm_scripts()
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40))
SIZE = 48

pytestmark = pytest.mark.skipif(SCRIPTS is None, reason=f"timm's stock scripts are not there; {upstream.HOW}")


# Importing torch and timm is most of what these scripts do here. One interpreter imports both, as the scripts' own
# first lines do, and forks for each script, which then runs as `python script.py …` does.
STARTER = """
import json, os, runpy, sys, traceback
import torch, timm
assert 'randwire_zoo' in sys.modules, 'registered by importing timm'
for line in sys.stdin:
    log, cwd, script, *arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        output, code = os.open(log, os.O_WRONLY | os.O_CREAT), 1
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(cwd)
        sys.argv, sys.path[0] = [script, *arguments], os.path.dirname(script)
        try:
            runpy.run_path(script, run_name='__main__')
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def environment(**variables: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name != 'TORCH_DEVICE_BACKEND_AUTOLOAD'}
    return {**env, 'OMP_NUM_THREADS': '1', **variables}


class RunScript(Protocol):
    """Run a stock script as a user does; give its output and log."""

    def __call__(self, name: str, *arguments: str | Path, cwd: Path) -> str: ...


@pytest.fixture(scope='module')
def run_script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunScript]:
    assert SCRIPTS is not None
    folder = tmp_path_factory.mktemp('starter')  # an empty one, away from the checkout
    starter = subprocess.Popen([sys.executable, '-c', STARTER], cwd=folder, env=environment(), stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert starter.stdin and starter.stdout
    logs = (folder / f'{number}.log' for number in itertools.count())

    def run(name: str, *arguments: str | Path, cwd: Path) -> str:
        log = next(logs)
        print(json.dumps([*map(str, (log, cwd, SCRIPTS / name, *arguments))]), file=starter.stdin, flush=True)
        code, output = starter.stdout.readline(), log.read_text(errors='replace') if log.exists() else ''
        assert code == '0\n', output
        return output

    with starter:
        yield run
        starter.kill()  # its children are done, and leaving Python takes a while with torch


def result(output: str) -> dict[str, float]:
    """What validate.py and benchmark.py print as JSON at the end."""
    return json.loads(output.split('--result')[1])


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of four noisy colours, four pictures each for training and for validation."""
    folder, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for split in ('train', 'validation'):
        for label, colour in enumerate(COLOURS):
            (folder / split / str(label)).mkdir(parents=True)
            for index in range(4):
                pixels = np.clip(rng.normal(colour, 30, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / str(label) / f'{index}.png')
    return folder


@pytest.fixture(scope='module')
def trained(images: Path, run_script: RunScript, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a short run of train.py."""
    folder = tmp_path_factory.mktemp('train')
    run_script(
        'train.py', '-c', RECIPE, '--data-dir', images, '--num-classes', '4',
        '--img-size', str(SIZE), '--epochs', '16', '--warmup-epochs', '0', '-b', '8', '--device', 'cpu',
        '--output', folder, '--experiment', 'run', cwd=folder)
    return folder / 'run'


def summary(trained: Path) -> list[dict[str, str]]:
    with (trained / 'summary.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def test_train_py_learns_with_a_packaged_recipe_and_writes_what_it_always_writes(trained: Path) -> None:
    rows = summary(trained)
    assert len(rows) == 16 and all(np.isfinite(float(value)) for row in rows for value in row.values())
    assert float(rows[-1]['eval_top1']) > 60
    assert yaml.safe_load((trained / 'args.yaml').read_text())['model'] == 'randwire_ws_pico'
    assert (trained / 'last.pth.tar').is_file()


def test_validate_py_measures_what_train_py_measured(
        run_script: RunScript, trained: Path, images: Path, tmp_path: Path) -> None:
    measured = result(run_script(
        'validate.py', '--data-dir', images, '--model', 'randwire_ws_pico', '--num-classes', '4', '--img-size',
        str(SIZE), '--checkpoint', trained / 'last.pth.tar', '-b', '16', '-j', '0', '--device', 'cpu', cwd=tmp_path))
    row = summary(trained)[-1]
    assert measured['top1'] == pytest.approx(float(row['eval_top1']), abs=0.01)
    assert measured['img_size'] == SIZE


def test_a_run_of_train_py_is_evaluated_and_resumed_by_this_package(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / 'run')
    row = {name: float(value) for name, value in summary(folder)[-1].items()}
    measured = evaluate_checkpoint(folder / 'last.pth.tar', {'workers': 0}, progress=False)
    for name in ('loss', 'top1', 'top5'):  # train.py adds up single-precision batch means
        assert measured[name] == pytest.approx(row[f'eval_{name}'], rel=1e-6)
    resumed = train(resume=str(folder / 'last.pth.tar'), epochs=18, workers=0, progress=False)
    assert resumed.folder == folder and [row['epoch'] for row in resumed.history] == list(range(18))
    assert [float(row['eval_loss']) for row in summary(trained)] == [row['eval_loss'] for row in resumed.history[:16]]
    before, after = ({int(state['step']) for state in torch.load(
        run / 'last.pth.tar', weights_only=False)['optimizer']['state'].values()} for run in (trained, folder))
    assert len(before) == 1 and after == {steps // 16 * 18 for steps in before}, 'the optimiser goes on where it was'


def test_train_py_distils_by_the_same_recipe_with_growing_images_and_this_package_goes_on_with_both(
        run_script: RunScript, images: Path, tmp_path: Path) -> None:
    save_for_hf(timm.create_model('test_efficientnet', num_classes=4), str(tmp_path / 'teacher'),
                safe_serialization=True)
    recipe = Path(__file__).parents[1] / 'configs' / 'tin200' / 'randwire_ws_small_s1.yaml'
    output = run_script(
        'train.py', '-c', recipe, '--data-dir', images, '--model', 'randwire_ws_pico', '--num-classes', '4',
        '--epochs', '3', '--warmup-epochs', '0', '-b', '8', '--device', 'cpu', '--workers', '0', '--kd-model-name',
        f'local-dir:{tmp_path / "teacher"}', '--output', tmp_path, '--experiment', 'run', cwd=tmp_path)
    assert 'resolutions [64, 96, 128]' in output and "KD teacher model: 'local-dir:" in output
    settings = load_recipe(tmp_path / 'run' / 'args.yaml')
    assert settings['kd_temperature'] == 2.0 and settings['train_size_schedule'] == 'progressive'
    resumed = train(resume=str(tmp_path / 'run' / 'last.pth.tar'), epochs=4, progress=False)
    assert [row['epoch'] for row in resumed.history] == list(range(4))
    with pytest.raises(ValueError, match='cannot create the teacher'):
        train(resume=str(tmp_path / 'run' / 'last.pth.tar'), epochs=5, kd_model_name='local-dir:none', progress=False)


def test_inference_py_predicts_what_validate_py_counted(
        run_script: RunScript, trained: Path, images: Path, tmp_path: Path) -> None:
    pytest.importorskip('pandas', reason='inference.py needs pandas')
    run_script(
        'inference.py', '--data-dir', images / 'validation', '--model', 'randwire_ws_pico', '--num-classes', '4',
        '--img-size', str(SIZE), '--checkpoint', trained / 'last.pth.tar', '-b', '16', '-j', '0', '--device', 'cpu',
        '--include-index', '--fullname', '--results-dir', tmp_path, '--results-file', 'predictions.csv', cwd=tmp_path)
    with (tmp_path / 'predictions.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    right = [Path(row['filename']).parent.name == row['index'] for row in rows]
    assert len(right) == 16
    assert 100 * sum(right) / 16 == pytest.approx(float(summary(trained)[-1]['eval_top1']), abs=0.01)


def test_onnx_export_py_writes_a_graph_that_computes_the_same_logits(
        run_script: RunScript, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip('onnx', reason='onnx_export.py needs onnx')
    onnxruntime = pytest.importorskip('onnxruntime', reason='onnxruntime runs what onnx_export.py wrote')
    run_script(
        'onnx_export.py', tmp_path / 'pico.onnx', '--model', 'randwire_ws_pico', '--num-classes', '4', '--img-size',
        str(SIZE), '--checkpoint', trained / 'last.pth.tar', cwd=tmp_path)
    timm, torch = pytest.importorskip('timm'), pytest.importorskip('torch')
    model = timm.create_model(
        'randwire_ws_pico', num_classes=4, checkpoint_path=str(trained / 'last.pth.tar')).eval()
    image = torch.rand(1, 3, SIZE, SIZE)
    session = onnxruntime.InferenceSession(tmp_path / 'pico.onnx', providers=['CPUExecutionProvider'])
    logits, = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(image).numpy(), rtol=1e-3, atol=1e-4)


def test_benchmark_py_times_inference_and_training(run_script: RunScript, tmp_path: Path) -> None:
    measured = result(run_script(
        'benchmark.py', '--model', 'randwire_ws_pico', '--img-size', str(SIZE), '-b', '2', '--device', 'cpu',
        '--num-warm-iter', '1', '--num-bench-iter', '5', cwd=tmp_path))
    assert measured['model'] == 'randwire_ws_pico'
    assert measured['infer_samples_per_sec'] > 0 and measured['train_samples_per_sec'] > 0


def test_device_modules_registers_where_the_hook_is_switched_off(images: Path, tmp_path: Path) -> None:
    assert SCRIPTS is not None
    done = subprocess.run(
        [sys.executable, SCRIPTS / 'train.py', '--device-modules', 'randwire_zoo', '--model', 'randwire_ws_pico',
         '--data-dir', images, '--num-classes', '4', '--img-size', str(SIZE), '--epochs', '1', '--warmup-epochs', '0',
         '-b', '8', '-j', '0', '--device', 'cpu', '--output', tmp_path, '--experiment', 'run'],
        cwd=tmp_path, env=environment(TORCH_DEVICE_BACKEND_AUTOLOAD='0'), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert len(summary(tmp_path / 'run')) == 1
