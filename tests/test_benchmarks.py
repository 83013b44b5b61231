"""The benchmarks: what they write, and what they say a machine can do at most."""
from __future__ import annotations

import argparse
import ctypes
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from shapes import write_shapes
from timm.models import save_for_hf

from randwire_zoo import deploy, use_kernels
from randwire_zoo.complexity import count_complexity
from randwire_zoo.graphs import Graph
from randwire_zoo.hub.card import END, START, own_text
from randwire_zoo.network import Stage
from randwire_zoo.ordering import lowest_peak_order, peak_memory
from randwire_zoo.training.evaluation import evaluate_folder
from randwire_zoo.training.recipes import load_recipe
from randwire_zoo.training.trainer import read_summary, train
from randwire_zoo.weights.manifest import published_weights

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'benchmarks'))

import accuracy  # noqa: E402
import common  # noqa: E402
import detector_start  # noqa: E402
import detectors  # noqa: E402
import floors  # noqa: E402
import interoperator  # noqa: E402
import ordering  # noqa: E402
import speed  # noqa: E402
import tables  # noqa: E402
import trained  # noqa: E402
import transfer  # noqa: E402


def test_transfer_from_weights_random_parameters_and_a_teacher_goes_on_where_it_was(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rng, data = np.random.default_rng(0), tmp_path / 'images'
    for split, count in (('train', 32), ('val', 6)):
        for label in range(2):
            (data / split / str(label)).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 128, (16, 16, 3)) + 120 * label
                Image.fromarray(pixels.astype(np.uint8)).save(data / split / str(label) / f'{index}.png')
    teacher: Any = timm.create_model('test_efficientnet')
    save_for_hf(teacher, str(tmp_path / 'teacher'), safe_serialization=True)
    command = ['--data-dir', str(data), '--output', str(tmp_path / 'runs'), '--weights', 'randwire_ws_pico.digits',
               '--network', 'randwire_ws_pico', '--teacher', str(tmp_path / 'teacher'), '--img-size', '32',
               '--seeds', '1', '--epochs', '1', '--workers', '0', '--device', 'cpu',
               '--json', str(tmp_path / 'record.json')]
    transfer.main([*command[:-2], '--seeds'])  # the probes alone
    assert 'fine-tuned' in capsys.readouterr().out
    alone = [*command[:-2], '--output', str(tmp_path / 'alone'), '--seeds', '--starts', 'random', '--no-amp']
    transfer.main(alone)  # one start, in full precision
    assert [path.name for path in (tmp_path / 'alone').iterdir()] == ['random_32px_fp32_probe.json']
    without = alone[:alone.index('--teacher')] + alone[alone.index('--teacher') + 2:]
    with pytest.raises(SystemExit):
        transfer.main([*without, '--starts', 'teacher'])
    assert '--starts teacher: not given (--teacher)' in capsys.readouterr().err
    monkeypatch.setattr(transfer, 'probe_weights', None)  # what was measured is not measured again
    transfer.main(command)
    found = json.loads((tmp_path / 'record.json').read_text('utf-8'))
    rows = {row['start']: row for row in found['results']['rows']}
    assert {start: row['network'] for start, row in rows.items()} == {
        'weights': 'randwire_ws_pico.digits', 'random': 'randwire_ws_pico', 'teacher': 'test_efficientnet'}
    for start, row in rows.items():
        run, = (tmp_path / 'runs').glob(f'{start}_*s1')
        top1 = read_summary(run / 'summary.csv')[-1]['eval_top1']
        assert row['fine_tuned'] == [{'seed': 1, 'epochs': 1, 'top1': pytest.approx(top1, rel=1e-5)}]
        assert load_recipe(run / 'args.yaml')['lr_base'] == (0.4 if start == 'random' else 0.08)
        assert row['probe']['training'] == 64 and row['probe']['held_out'] == 12
    assert str(tmp_path) not in (tmp_path / 'record.json').read_text('utf-8')
    assert [line[0] for line in tables.transfer_table(found).rows] == [f'`{row["network"]}`' for row in rows.values()]


def test_the_beginning_of_a_detector_is_measured_on_the_images_it_is_trained_on(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('detectron2', reason='detectron2 is not installed (`make upstream` builds a wheel)')
    write_shapes(tmp_path / 'few', 'train', 4)
    monkeypatch.setenv('DETECTRON2_DATASETS', '')
    detector_start.main(['--data-dir', str(tmp_path), '--dataset', 'few_train', '--cases', 'pico, digits',
                         'pico, digits, four times the rate', 'small_s1, weights, FrozenBN', '--iterations', '40',
                         '--size', '96', '--images', '2', '--json', str(tmp_path / 'record.json')])
    slow, fast = json.loads((tmp_path / 'record.json').read_text('utf-8'))['results']['rows']  # no weights, no case
    assert slow['objects'] == fast['objects'] == 4  # a shape in each half of two images
    assert slow['options'] == [] and fast['options'] == ['SOLVER.BASE_LR', '0.08']
    assert 0 < slow['moved'] < fast['moved']
    assert fast['losses']['loss_rpn_cls'] < 0.5 * slow['losses']['loss_rpn_cls'] and slow['found'] <= fast['found'] <= 4


def test_results_of_other_settings_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    (tmp_path / 'a').mkdir()
    (tmp_path / 'w.safetensors').write_bytes(b'one')
    monkeypatch.setattr(transfer, 'probe', lambda *_: measured.append('probe') or {
        'num_features': 1, 'top1': 1.0, 'mean_per_class': 1.0})

    def train_(**settings: Any) -> Any:
        measured.append('train')
        if 'output' in settings:
            (Path(settings['output']) / settings['experiment']).mkdir()
            (Path(settings['output']) / settings['experiment'] / 'last.pth.tar').touch()
        return SimpleNamespace(last={'eval_top1': 1.0, 'epoch': 0})

    monkeypatch.setattr(transfer, 'train', train_)
    command = ['--data-dir', str(tmp_path / 'a'), '--output', str(tmp_path / 'runs'), '--weights',
               str(tmp_path / 'w.safetensors'), '--network', 'randwire_ws_pico', '--seeds', '1', '--starts', 'weights']
    transfer.main([*command, '--workers', '0'])
    transfer.main([*command, '--workers', '2'])  # the same work
    assert measured == ['probe', 'train', 'train'], 'the second time the training alone, which goes on where it was'
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text(yaml.safe_dump({**load_recipe('caltech101/finetune'), 'weight_decay': 0.25}))
    for change, said in (
            (['--data-dir', str(tmp_path / 'b')], f'data_dir {str(tmp_path / "a")!r}, not {str(tmp_path / "b")!r}'),
            (['--network', 'randwire_ws_small_s1'], "model 'randwire_ws_pico', not 'randwire_ws_small_s1'"),
            (['--epochs', '1'], f'epochs {load_recipe("caltech101/finetune")["epochs"]}, not 1'),
            (['--recipes', str(recipe), str(recipe)], 'not 0.25')):
        with pytest.raises(SystemExit, match=re.escape(said)):
            transfer.main([*command, *change])
    assert len(measured) == 3
    for path in (tmp_path / 'runs').glob('*.json'):  # as earlier versions left it
        path.write_text(json.dumps({'top1': 1.0})) if 'probe' in path.name else path.unlink()
    with pytest.raises(SystemExit, match=r'_probe\.json: nothing says what this was made with; give another --output'):
        transfer.main(command)


def test_accuracies_of_another_commit_or_machine_are_measured_anew(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained_now: list[tuple[int, str]] = []

    def run_once(data_dir: Path, seed: int, epochs: int, kernels: str) -> dict[str, Any]:
        trained_now.append((seed, kernels))
        return {'seed': seed, 'kernels': kernels, 'top1': 90.0 + len(trained_now)}

    monkeypatch.setattr(accuracy, 'run_once', run_once)
    monkeypatch.setattr(accuracy, 'write_digits', lambda folder: folder)
    committed = json.loads((ROOT / 'docs' / 'data' / 'accuracy.json').read_text('utf-8'))
    file, made = tmp_path / 'accuracy.json', {name: value for name, value in committed.items() if name != 'results'}
    monkeypatch.setattr(accuracy, 'describe', lambda args, device: {**made, 'date': 'today', 'command': 'mine'})
    command, epochs = ['--seeds', '1', '2', '--json', str(file)], str(committed['results']['epochs'])
    # On the same machine and commit nothing is left to do, and the file stays as it is.
    common.write_json(argparse.Namespace(json=file), committed['results'], made)
    before = file.read_text()
    accuracy.main([*command, '--epochs', epochs])
    assert trained_now == [] and file.read_text() == before
    # What is missing is added.
    kept = {**committed['results'], 'runs': [run for run in committed['results']['runs'] if run['seed'] != 2]}
    common.write_json(argparse.Namespace(json=file), kept, made)
    accuracy.main([*command, '--epochs', epochs])
    assert trained_now == [(2, 'torch'), (2, 'native')]
    assert json.loads(file.read_text())['results']['runs'][:len(kept['runs'])] == kept['runs']
    for other in ({'commit': 'f' * 40}, {'processor': '4 × other'}, {'threads': 64}, {'torch': '9'},
                  {'changed_since_commit': True}):
        file.write_text(before)
        trained_now.clear()
        changed = {**made, **other, 'date': 'today', 'command': 'mine'}
        monkeypatch.setattr(accuracy, 'describe', lambda args, device, changed=changed: changed)
        accuracy.main([*command, '--epochs', epochs])
        assert len(trained_now) == 4
        found = json.loads(file.read_text())
        assert {**found, 'results': None} == {**changed, 'results': None}
        assert [run['top1'] for run in found['results']['runs']] == [91.0, 92.0, 93.0, 94.0]


class Queue:
    """A device that is told what to do, and does it later: it is at it while its clock is asked to wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = self.left = 0.0
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
        monkeypatch.setattr(torch.cuda, 'synchronize', self.wait)

    def call(self, *seconds: float) -> Callable[[], None]:
        """Something that takes so long, the first times, and then as the last time."""
        left = list(seconds)

        def run() -> None:
            self.left += left.pop(0) if len(left) > 1 else left[0]
        return run

    def wait(self) -> None:
        self.time, self.left = self.time + self.left, 0.0

    def clock(self) -> float:
        return self.time


def test_what_is_timed_on_a_device_that_works_later_does_not_wait_for_the_warm_up(
        monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(monkeypatch)
    found = common.paired_seconds({'a': queue.call(1), 'b': queue.call(2)}, 2, clock=queue.clock)
    assert found == {'a': [1, 1], 'b': [2, 2]}
    # The layout that is faster is taken wherever it stands, also where one round was not as usual.
    monkeypatch.setattr(floors, 'paired_seconds', partial(common.paired_seconds, clock=queue.clock))
    for calls in ([queue.call(1), queue.call(2)], [queue.call(2), queue.call(1)],
                  [queue.call(9, 9, 1), queue.call(2)]):
        assert floors._best_seconds(calls, 2) == [1, 1]


def test_top1_before_rounding_has_the_size_of_its_images() -> None:
    """Of records that do not say it, the size in the published weights' settings."""
    names = ('randwire_ws_small_s1.tin200_kd', 'randwire_ws_c109.tin200_kd')
    records = [json.loads((ROOT / 'docs' / 'data' / f'{name}.json').read_text('utf-8'))
               for name in ('tin200_small_s1', 'tin200_c109')]
    table = tables.trained_table(records)
    for name, record, row in zip(names, records, table.rows, strict=True):
        assert row[0] == f'`{name}`'
        size = load_recipe(ROOT / 'docs' / 'weights' / name / 'args.yaml')['img_size']
        assert row[2] == f'{record["results"]["float32"]["top1"]:.2f} ({size} px)'
        # Rounding moves no more than one image in a thousand, at the same size.
        same, = (line['top1'] for line in record['results']['sizes'] if line['size'] == size)
        assert same == pytest.approx(record['results']['float32']['top1'], abs=0.1)
    records[0]['results']['float32']['size'] = 56
    assert tables.trained_table(records[:1]).rows[0][2].endswith(' (56 px)')


TRAIN_NET = '''
import json, sys
from pathlib import Path
options = dict(zip(*[iter(sys.argv[sys.argv.index("OUTPUT_DIR"):])] * 2))
folder = Path(options["OUTPUT_DIR"])
with open(folder / "calls", "a") as calls:
    calls.write(json.dumps([sys.argv[1:sys.argv.index("OUTPUT_DIR")], options]) + "\\n")
frozen, resumed = options["MODEL.BACKBONE.FREEZE_AT"] == "2", "--resume" in sys.argv
points = {99: 20, 199: 60, 300: 70} if frozen else {99: 10, 199: 49, 300: 50}
for iteration, ap50 in points.items():
    if not resumed or iteration > 99:
        with open(folder / "metrics.json", "a") as file:
            file.write(json.dumps({"iteration": iteration, "bbox/AP": ap50 / 2, "bbox/AP50": ap50}) + "\\n")
    if iteration == 99 and not frozen and not resumed:
        (folder / "last_checkpoint").touch()
        sys.exit("killed")
(folder / "model_final.pth").touch()
'''


def test_detectors_from_weights_and_from_random_parameters_have_one_budget(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'train_net.py').write_text(TRAIN_NET)
    monkeypatch.setenv('DETECTRON2_TRAIN_NET', str(tmp_path / 'train_net.py'))
    command = ['--data-dir', str(tmp_path), '--weights', 'randwire://randwire_ws_small_s1.tin200_kd', '--data', 'bccd',
               '--seeds', '3', '--iterations', '300', '--output', str(tmp_path / 'runs'),
               '--json', str(tmp_path / 'record.json')]
    with pytest.raises(RuntimeError, match=r'ended with 1: see .*bccd_random_s3.stdout.txt'):
        detectors.main(command)
    for _ in range(2):  # the second time there is nothing to do
        detectors.main(command)
    # Killed after the last weights had been written, while they were measured.
    metrics = tmp_path / 'runs' / 'bccd_weights_s3' / 'metrics.json'
    metrics.write_text(''.join(metrics.read_text().splitlines(keepends=True)[:2]) + '{"iteration": 299}\n')
    (metrics.parent / 'last_checkpoint').touch()
    detectors.main(command)
    other_weights = tmp_path / 'other.pth'
    other_weights.touch()
    for change, said in (
            (['--weights', str(other_weights)],
             f"MODEL.WEIGHTS 'randwire://randwire_ws_small_s1.tin200_kd', not {str(other_weights)!r}"),
            (['--iterations', '200'], "SOLVER.MAX_ITER '300', not '200'"),
            (['--options', 'SOLVER.BASE_LR', '0.5'], "SOLVER.BASE_LR None, not '0.5'"),
            (['--data-dir', str(tmp_path / 'runs')], 'data_dir ')):
        with pytest.raises(SystemExit, match=f'bccd_weights_s3 was made with {re.escape(said)}'):
            detectors.main([*command, *change])
    # Those that another release has by that name.
    settings = metrics.with_name('settings.json')
    ours = settings.read_text('utf-8')
    sha256 = published_weights()['randwire_ws_small_s1.tin200_kd'].sha256
    settings.write_text(ours.replace(sha256, '0' * 64), 'utf-8')
    with pytest.raises(SystemExit, match=f"bccd_weights_s3 was made with sha256 '0+', not '{sha256}'"):
        detectors.main(command)
    settings.write_text(ours, 'utf-8')
    results = json.loads((tmp_path / 'record.json').read_text('utf-8'))['results']['rows']
    assert [row['sha256'] for row in results] == [sha256, '']
    assert [(row['start'], [(point['iteration'], point['AP50']) for point in row['history']]) for row in results] == [
        ('weights', [(100, 20), (200, 60), (300, 70)]), ('random', [(100, 10), (200, 49), (300, 50)])]
    table = capsys.readouterr().out
    assert '70.0 200' in ' '.join(table.split()) and '50.0 never' in ' '.join(table.split())
    calls = {start: [json.loads(line) for line in (tmp_path / 'runs' / f'bccd_{start}_s3' / 'calls').read_text(
        ).splitlines()] for start in ('weights', 'random')}
    assert [len(found) for found in calls.values()] == [2, 2] and '--resume' in calls['random'][1][0]
    one, other = (found[0][1] for found in calls.values())
    assert {key: (value, other[key]) for key, value in one.items() if value != other[key]} == {
        'OUTPUT_DIR': (str(tmp_path / 'runs' / 'bccd_weights_s3'), str(tmp_path / 'runs' / 'bccd_random_s3')),
        'MODEL.WEIGHTS': ('randwire://randwire_ws_small_s1.tin200_kd', ''), 'MODEL.BACKBONE.FREEZE_AT': ('2', '0'),
        'MODEL.RESNETS.NORM': ('FrozenBN', 'BN')}
    assert (one['SEED'], one['SOLVER.MAX_ITER'], one['SOLVER.STEPS']) == ('3', '300', '(240,)')


def test_detectors_of_a_users_own_images_know_these_and_their_classes(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'train_net.py').write_text(TRAIN_NET.replace('"killed"', '0'))
    monkeypatch.setenv('DETECTRON2_TRAIN_NET', str(tmp_path / 'train_net.py'))
    command = ['--data-dir', str(tmp_path), '--weights', 'randwire://randwire_ws_small_s1.tin200_kd', '--data', 'mine',
               '--seeds', '1', '--output', str(tmp_path / 'runs'), '--json', str(tmp_path / 'record.json')]
    with pytest.raises(SystemExit):
        detectors.main([*command, '--weights', 'none.pth'])
    assert 'error: no weights at none.pth' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        detectors.main(command)
    assert '--data mine is none of bccd, coco128, and there is no' in capsys.readouterr().err
    assert not (tmp_path / 'runs').exists()
    (tmp_path / 'mine' / 'annotations').mkdir(parents=True)
    (tmp_path / 'mine' / 'annotations' / 'instances_train.json').write_text(
        json.dumps({'images': [], 'annotations': [], 'categories': [{'id': 3}, {'id': 7}]}))
    detectors.main(command)
    arguments, options = json.loads((tmp_path / 'runs' / 'mine_weights_s1' / 'calls').read_text())
    assert arguments[-1].endswith('configs/finetune/cpu.yaml')
    assert options['DATASETS.TRAIN'] == "('mine_train',)" and options['DATASETS.TEST'] == "('mine_val',)"
    assert options['MODEL.ROI_HEADS.NUM_CLASSES'] == '2' and 'SOLVER.MAX_ITER' not in options


def test_a_record_names_no_folder_whether_it_is_given_as_a_path_or_as_what_may_be_a_name(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other = str(tmp_path / 'last.pth.tar'), str(tmp_path / 'images')
    monkeypatch.setattr(sys, 'argv', ['some.py', '--weights', file, '--network', 'resnet18', '--data-dir', other,
                                      '--output', f'{other}-out'])
    args = argparse.Namespace(weights=file, network='resnet18', data_dir=Path(other), output=Path(f'{other}-out'))
    assert common.describe(args)['command'] == (
        'python benchmarks/some.py --weights last.pth.tar --network resnet18 --data-dir DATA_DIR --output OUTPUT')


def test_published_weights_are_measured_at_several_sizes_beside_the_course_of_a_training(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for split in ('train', 'validation'):
        for label in range(10):
            (tmp_path / split / str(label)).mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
                tmp_path / split / str(label) / '0.png')
    run = train('digits/randwire_ws_pico', data_dir=str(tmp_path), epochs=1, warmup_epochs=0, batch_size=10, workers=0,
                output=str(tmp_path), experiment='run', progress=False)
    path, card = tmp_path / 'record.json', tmp_path / 'README.md'
    card.write_text(f'# A card\n\n{START}\nMy words.\n{END}\n\n| other |\n')
    trained.main(['randwire_ws_pico.digits', '--data-dir', str(tmp_path), '--run', str(tmp_path / 'run'), '--times',
                  '0.5', '1', '--workers', '0', '--json', str(path), '--card', str(card)])
    table, = re.findall(r'^My words\.\n\nImages .*:\n\n((?:\|.*\n)+)$', own_text(card.read_text()) + '\n', re.MULTILINE)
    assert '0.5×' in table and '(32 px)' in table and card.read_text().startswith('# A card')
    found = json.loads(path.read_text('utf-8'))
    assert str(tmp_path) not in path.read_text('utf-8') and found['commit']
    results = found['results']
    assert [(line['times'], line['size']) for line in results['sizes']] == [(0.5, 32), (1, 64)]
    for line in results['sizes']:
        model = timm.create_model('randwire_ws_pico', pretrained=True)
        alone = evaluate_folder(model, tmp_path, img_size=line['size'], batch_size=100, workers=0, channels_last=True,
                                progress=False)
        assert line['top1'] == alone['top1'] and line['loss'] == pytest.approx(alone['loss'], rel=1e-5)
    assert results['float32']['size'] == 64
    assert results['float32']['loss'] == pytest.approx(run.last['eval_loss'], rel=1e-5)
    assert results['history'] == [pytest.approx(dict(row), rel=1e-5) for row in run.history]
    assert f'{results["sizes"][0]["top1"]:.2f} (32 px)' in capsys.readouterr().out
    # Where the last images of the training were larger than its img_size, all is measured at theirs.
    settings = yaml.safe_load((tmp_path / 'run' / 'args.yaml').read_text())
    (tmp_path / 'run' / 'args.yaml').write_text(yaml.safe_dump({**settings, 'train_img_sizes': [64, 96]}))
    trained.main(['randwire_ws_pico.digits', '--data-dir', str(tmp_path), '--run', str(tmp_path / 'run'), '--times',
                  '1', '--workers', '0', '--json', str(path)])
    results = json.loads(path.read_text('utf-8'))['results']
    model = timm.create_model('randwire_ws_pico', num_classes=10, checkpoint_path=str(tmp_path / 'run/last.pth.tar'))
    alone = evaluate_folder(model, tmp_path, img_size=96, batch_size=100, workers=0, progress=False)
    assert results['float32']['size'] == results['sizes'][0]['size'] == 96
    assert results['float32']['loss'] == pytest.approx(alone['loss'], rel=1e-4)


NEEDS_COMPILER = pytest.mark.skipif(
    shutil.which(common.compiler()[0]) is None, reason='the peak is measured by what a compiler builds')


@pytest.fixture
def built(tmp_path: Path) -> ctypes.CDLL:
    path = tmp_path / 'peak.so'
    subprocess.run([*common.compiler(), '-O1', '-std=c++17', '-shared', '-fPIC', '-o', str(path),
                    str(ROOT / 'benchmarks' / 'peak.cpp')], check=True)
    library = ctypes.CDLL(str(path))
    for name in ('fma_fp32', 'dot_bf16', 'tile_bf16'):
        getattr(library, name).argtypes, getattr(library, name).restype = [ctypes.c_int64], ctypes.c_int64
    return library


@NEEDS_COMPILER
def test_the_loop_counts_its_multiply_adds_and_says_what_the_processor_has_not(built: ctypes.CDLL) -> None:
    """Built for the oldest processor: vectors of four, no dot products, no tiles."""
    assert [built.fma_fp32(rounds) for rounds in (1, 5)] == [12 * 4, 5 * 12 * 4]
    assert built.dot_bf16(5) == built.tile_bf16(5) == 0


@NEEDS_COMPILER
def test_the_peak_is_above_what_the_library_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every unit of the processor has a rate; a product of torch is below the best of them, but for noise.

    Both by the processor's time on one thread, which does not go on while others have the processor.
    """
    clock, threads = time.process_time, torch.get_num_threads()
    monkeypatch.setattr(floors, 'time', SimpleNamespace(perf_counter=clock))
    a = torch.randn(512, 512)
    try:
        torch.set_num_threads(1)
        found = floors.measure_peak(torch.float32, rounds=3)
        seconds = common.paired_seconds({'': lambda: a @ a}, 5, clock=clock)['']
    finally:
        torch.set_num_threads(threads)
    assert list(found) == ['fma_fp32'] and len(found['fma_fp32']) == 3
    assert 1e9 * max(found['fma_fp32']) > 0.5 * 512 ** 3 / min(seconds)


@pytest.mark.parametrize('name', ['randwire_ws_pico', 'mobilenetv2_050'])
def test_the_convolutions_of_a_network_are_all_its_multiply_adds(name: str) -> None:
    model = timm.create_model(name, device='meta')
    macs = 0
    for convolution, count in floors.convolutions_of(model, 2, 64).items():
        side = [(size + 2 * padding - kernel) // stride + 1 for size, padding, kernel, stride in zip(
            convolution.input[2:], convolution.padding, convolution.weight[2:], convolution.stride, strict=True)]
        channels, width, height, length = convolution.weight
        assert convolution.input[1] == width * convolution.groups
        macs += count * 2 * channels * side[0] * side[1] * width * height * length
    classifier = model.get_classifier()
    assert macs + 2 * classifier.weight.numel() == 2 * count_complexity(model, (3, 64, 64)).macs


@pytest.mark.parametrize('name', ['randwire_ws_pico', 'randwire_ws_c109_s3'])
def test_peaks_are_in_units_of_what_the_nodes_of_a_stage_put_out(name: str) -> None:
    """Sizes from a forward pass; the peaks themselves are tested in test_ordering."""
    model = timm.create_model(name, device='meta').eval()
    sizes: dict[torch.nn.Module, int] = {}
    for stage in model.modules():
        if isinstance(stage, Stage):
            stage.nodes[-1].register_forward_hook(lambda node, args, out: sizes.update({node: out.numel()}))
    model(torch.empty(1, 3, 224, 224, device='meta'))
    expected = [[int(peak_memory(stage.graph, order, stage.input_size) * sizes[stage.nodes[-1]])
                 for order in (range(stage.graph.num_nodes), lowest_peak_order(stage.graph, stage.input_size))]
                for stage in model.modules() if isinstance(stage, Stage)]
    found = ordering.compute(name, 224)
    assert found['stages'] == expected
    assert (found['before'], found['after']) == tuple(max(peaks) for peaks in zip(*expected, strict=True))


def test_nodes_on_streams_wait_for_their_sources_and_compute_the_same() -> None:
    """With streams that only note what they are told; on a GPU the same function is given real ones."""
    class Noting(interoperator.Here):
        def __init__(self) -> None:
            self.waits: list[Any] = []
            self.events = 0

        def wait_event(self, event: Any) -> None:
            self.waits.append(event)

        def record_event(self) -> Any:
            self.events += 1
            return id(self), self.events

    model = deploy(timm.create_model('randwire_ws_pico'))
    images, streams = torch.randn(1, 3, 64, 64), [Noting() for _ in range(3)]
    with torch.inference_mode():
        expected = model(images)
        assert torch.allclose(interoperator.put_on_streams(model, streams)(images), expected, atol=1e-5)
    stages = [stage for stage in model.modules() if isinstance(stage, Stage)]
    assert sum(stream.events for stream in streams) == sum(len(stage.nodes) for stage in stages)
    waits = 0
    for stage in stages:
        places = interoperator.streams_of(stage.sources, 3)
        waits += sum(source < 0 or places[source] != places[node]
                     for node, sources in enumerate(stage.sources) for source in sources)
        assert len(set(places)) > 1
    assert sum(len(stream.waits) for stream in streams) == waits
    # A chain stays where it is; what does not wait for it goes elsewhere.
    assert interoperator.streams_of([[-1], [0], [-1], [1], [2], [3, 4]], 2) == [0, 0, 1, 0, 1, 0]


def test_a_graph_of_the_scheduler_is_read(tmp_path: Path) -> None:
    (tmp_path / 'graph.txt').write_text('3\n2\n1 2\n0 1\n')
    assert interoperator.read_graph(tmp_path / 'graph.txt') == Graph(3, ((0, 1), (1, 2)))
    (tmp_path / 'graph.txt').write_text('3\n2\n1 2\n')
    with pytest.raises(SystemExit, match='names 2 edges and has 1'):
        interoperator.read_graph(tmp_path / 'graph.txt')


@pytest.mark.skipif(shutil.which('git') is None, reason='git is not on the PATH')
def test_a_benchmark_leaves_every_round_and_where_it_comes_from(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / 'speed.json'
    monkeypatch.setattr(sys, 'argv', [
        '/somewhere/benchmarks/speed.py', '--network', 'randwire_ws_pico', '--beside', 'mobilenetv2_050', '--batch',
        '1', '--size', '32', '--rounds', '2', '--compile', '--json', str(file)])
    monkeypatch.setattr(speed, 'measure_limits', lambda device, dtype: {'peak': {'fma_fp32': [100.0]}, 'copy': [10.0]})
    try:
        speed.main()
    finally:
        use_kernels('torch')
    record = json.loads(file.read_text(encoding='utf-8'))
    assert record['command'] == (
        'python benchmarks/speed.py --network randwire_ws_pico --beside mobilenetv2_050 --batch 1 --size 32 --rounds 2 '
        '--compile --json speed.json')
    head = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert (record['commit'] or '').rstrip('+') == head and record['torch'] == torch.__version__
    results = record['results']
    assert [(run['network'], run['mode'], len(run['seconds'])) for run in results['runs']] == [
        ('randwire_ws_pico', 'eager', 2), ('randwire_ws_pico', 'native', 2), ('randwire_ws_pico', 'deployed, eager', 2),
        ('randwire_ws_pico', 'deployed, native', 2), ('mobilenetv2_050', 'eager, contiguous', 2),
        ('mobilenetv2_050', 'eager', 2)]
    networks = results['limits']['float32']['networks']
    assert set(networks) == {'randwire_ws_pico', 'mobilenetv2_050'}
    assert all(len(row['forward']) == 2 for network in networks.values() for row in network['convolutions'])
    said = capsys.readouterr().out
    assert tables.machine_line(record) in said and tables.format_table(tables.speed_table(record, 'float32')) in said


def test_numbers_are_short_and_lists_of_them_one_line() -> None:
    value = {'a': [0.123456789, 1e-7 / 3], 'b': {'c': list(range(100))}, 'd': None, 'e': 'ä'}
    text = common.to_json(value)
    assert json.loads(text) == {**value, 'a': [0.123457, 3.33333e-08]}
    assert [line for line in text.splitlines() if '99' in line] == [f'  "c": {json.dumps(list(range(100)))}']
