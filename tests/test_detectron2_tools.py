"""detectron2's own tools, unmodified, in processes that never import this project by name.

They train on shapes that the test draws, with the recipe of the blood cells and the weights that come with the package.
"""
from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from shapes import write_shapes
from upstream import DETECTRON2, HOW, checkout
from waiting import wait_for

from randwire_zoo.cli import main
from randwire_zoo.models import find_weights
from randwire_zoo.studies.results import read_results
from randwire_zoo.studies.study import load_study

pytest.importorskip('detectron2', reason='detectron2 is not installed (`make upstream` builds a wheel)')
SOURCE = checkout(DETECTRON2)
pytestmark = pytest.mark.skipif(SOURCE is None, reason=f"detectron2's tools are not in the cache folder ({HOW})")

CONFIGS = Path(__file__).parent.parent / 'configs'
CONFIG = CONFIGS / 'bccd' / 'faster_rcnn_randwire_ws_pico.yaml'
OPTIONS = [
    'MODEL.DEVICE', 'cpu', 'DATASETS.TRAIN', "('shapes_train',)", 'DATASETS.TEST', "('shapes_val',)",
    'MODEL.ROI_HEADS.NUM_CLASSES', '2', 'INPUT.MIN_SIZE_TRAIN', '(128,)', 'INPUT.MIN_SIZE_TEST', '128',
    'DATALOADER.NUM_WORKERS', '0', 'SOLVER.STEPS', '(140,)', 'SOLVER.MAX_ITER', '160', 'SOLVER.WARMUP_ITERS', '20',
    'SOLVER.CHECKPOINT_PERIOD', '80', 'TEST.EVAL_PERIOD', '0']


FINE_TUNING = sorted(path for path in (CONFIGS / 'finetune').glob('*.yaml') if path.stem != 'base')


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for DETECTRON2_DATASETS, with the data sets shapes_train and shapes_val."""
    root = tmp_path_factory.mktemp('datasets')
    write_shapes(root / 'shapes', 'train', 24, seed=1)
    write_shapes(root / 'shapes', 'val', 8, seed=2)
    return root


def command(tool: str, *arguments: str | Path) -> list[str]:
    assert SOURCE is not None
    return [str(SOURCE / 'tools' / tool), *map(str, arguments)]


def environment(data: Path, **variables: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name != 'TORCH_DEVICE_BACKEND_AUTOLOAD'}
    return {**env, 'DETECTRON2_DATASETS': str(data), 'OMP_NUM_THREADS': '1', **variables}


def run_tool(tool: str, *arguments: str | Path, data: Path, cwd: Path) -> str:
    """Run a tool as a user does; give its output."""
    done = subprocess.run(
        [sys.executable, *command(tool, *arguments)], cwd=cwd, env=environment(data), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / 'metrics.json').read_text().splitlines()]


def printed_ap(output: str) -> dict[str, float]:
    """AP, AP50, … from the last two lines that detectron2 prints for copying."""
    names, values = [line.split('copypaste: ')[1].split(',') for line in output.splitlines()
                     if 'copypaste: ' in line][-2:]
    return dict(zip(names, map(float, values), strict=True))


@pytest.fixture(scope='module')
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of train_net.py."""
    folder = tmp_path_factory.mktemp('train')
    run_tool('train_net.py', '--config', CONFIG, *OPTIONS, 'OUTPUT_DIR', str(folder), data=data, cwd=folder)
    return folder


def test_train_net_learns_shapes_from_our_weights(trained: Path) -> None:
    rows = metrics(trained)
    losses = [row['total_loss'] for row in rows if 'total_loss' in row]
    assert losses[-1] < 0.6 * losses[0]
    last = [row for row in rows if 'bbox/AP50' in row][-1]
    assert last['bbox/AP50'] > 50
    assert 'Loading from randwire://randwire_ws_pico.digits' in (trained / 'log.txt').read_text()


# Runs tools one after the other as `python TOOL ARGUMENTS` would, each in a folder of its own where its output goes
# too: importing detectron2 takes longer than most of them.
DRIVER = '''
import json, os, runpy, sys, traceback
for name, (script, *arguments) in json.load(open("tools.json")).items():
    os.makedirs(name)
    os.chdir(name)
    file = os.open("output.txt", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv, sys.path[0] = [script, *arguments], os.path.dirname(script)
    try:
        runpy.run_path(script, run_name="__main__")
        print("ended well", flush=True)
    except (Exception, SystemExit):
        traceback.print_exc()
        sys.stderr.flush()
    os.chdir("..")
'''


class Tools:
    """Tools that are run in one process when the output of the first one is asked for."""

    def __init__(self, folder: Path, data: Path, tools: dict[str, list[str]], **variables: str) -> None:
        self.folder, self.tools, self.environment = folder, tools, environment(data, **variables)

    def __getitem__(self, name: str) -> str:
        if not (self.folder / 'tools.json').exists():
            (self.folder / 'tools.json').write_text(json.dumps(self.tools))
            subprocess.run([sys.executable, '-c', DRIVER], cwd=self.folder, env=self.environment,
                           stdin=subprocess.DEVNULL, timeout=600)
        output = (self.folder / name / 'output.txt').read_text()
        assert output.endswith('ended well\n'), output[-5000:]
        return output


@pytest.fixture(scope='module')
def tools(trained: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """Those that train and evaluate: a data set that a config names is enough for them."""
    folder = tmp_path_factory.mktemp('tools')
    options = [*OPTIONS, 'MODEL.WEIGHTS', str(trained / 'model_final.pth'), 'OUTPUT_DIR', '.']
    lazy = [
        '--config', CONFIGS / 'faster_rcnn_randwire.py', 'train.device=cpu', 'train.output_dir=.', 'train.max_iter=4',
        'train.eval_period=4', 'dataloader.train.total_batch_size=2', 'dataloader.train.num_workers=0',
        'dataloader.test.num_workers=0', 'dataloader.train.dataset.names=shapes_train',
        'dataloader.test.dataset.names=shapes_val', 'model.backbone.bottom_up.name=randwire_ws_pico',
        'model.roi_heads.num_classes=2', 'dataloader.train.mapper.augmentations.0.short_edge_length=[128]',
        'dataloader.test.mapper.augmentations.0.short_edge_length=128']
    fine_tuning = [  # the network and the weights that are here, two small images a step and few proposals
        'MODEL.RPN.POST_NMS_TOPK_TRAIN', '50', 'MODEL.RPN.POST_NMS_TOPK_TEST', '20',
        'MODEL.DEVICE', 'cpu', 'MODEL.BACKBONE.NAME', 'build_randwire_ws_pico_fpn_backbone',
        'MODEL.WEIGHTS', 'randwire://randwire_ws_pico.digits', 'MODEL.ROI_HEADS.NUM_CLASSES', '2', 'DATASETS.TRAIN',
        "('shapes_train',)", 'DATASETS.TEST', "('shapes_val',)", 'DATALOADER.NUM_WORKERS', '0', 'INPUT.MIN_SIZE_TRAIN',
        '(96,)', 'INPUT.MIN_SIZE_TEST', '96', 'SOLVER.IMS_PER_BATCH', '2', 'SOLVER.STEPS', '(1,)',
        'SOLVER.MAX_ITER', '2', 'TEST.EVAL_PERIOD', '0', 'OUTPUT_DIR', '.']
    return Tools(folder, data, {
        # First, while nobody has registered the data sets that it names.
        'lazy': command('lazyconfig_train_net.py', *lazy, 'train.init_checkpoint=randwire://randwire_ws_pico.digits'),
        'lazy eval': command('lazyconfig_train_net.py', '--eval-only', *lazy,
                             f'train.init_checkpoint={folder / "lazy" / "model_final.pth"}'),
        'plain': command('plain_train_net.py', '--config', CONFIG, *OPTIONS, 'SOLVER.MAX_ITER', '6', 'OUTPUT_DIR', '.'),
        'eval': command('train_net.py', '--config', CONFIG, '--eval-only', *options),
        'eval augmented': command('train_net.py', '--config', CONFIG, '--eval-only', *options, 'TEST.AUG.ENABLED',
                                  'True', 'TEST.AUG.MIN_SIZES', '(112,128)'),
        'benchmark': command('benchmark.py', '--config', CONFIG, '--task', 'eval', *options),
        **{path.stem: command('train_net.py', '--config', path, *fine_tuning) for path in FINE_TUNING}})


@pytest.fixture(scope='module')
def inspection(trained: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """Those that read data before they build a model, or build none, and those that export."""
    options = [*OPTIONS, 'MODEL.WEIGHTS', str(trained / 'model_final.pth'), 'OUTPUT_DIR', '.']
    export = ['deploy/export_model.py', '--config-file', CONFIG, '--format', 'torchscript', '--output', '.',
              '--sample-image', data / 'shapes' / 'val' / '1.png', '--export-method']
    return Tools(tmp_path_factory.mktemp('inspection'), data, {
        'analysis': command('analyze_model.py', '--config', CONFIG, '--tasks', 'parameter', 'structure', 'flop',
                            'activation', '--num-inputs', '2', *options),
        'truth': command('visualize_data.py', '--source', 'annotation', '--config-file', CONFIG, '--output-dir',
                         'pictures', *OPTIONS, 'DATASETS.TRAIN', "('shapes_val',)"),
        'found': command('visualize_json_results.py', '--dataset', 'shapes_val', '--output', 'pictures', '--input',
                         trained / 'inference' / 'coco_instances_results.json'),
        'tracing': command(*export, 'tracing', '--run-eval', *options),
        'scripting': command(*export, 'scripting', *options),  # which the tool cannot evaluate
    }, DETECTRON2_ENV_MODULE='randwire_zoo.detection.datasets')


def test_eval_only_measures_what_training_measured_and_so_does_test_time_augmentation(
        trained: Path, tools: Tools) -> None:
    found = printed_ap(tools['eval'])
    expected = [row for row in metrics(trained) if 'bbox/AP50' in row][-1]
    assert found['AP'] == pytest.approx(expected['bbox/AP'], abs=0.01)
    assert found['AP50'] == pytest.approx(expected['bbox/AP50'], abs=0.01)
    output = tools['eval augmented']
    assert 'Running inference with test-time augmentation' in output
    assert printed_ap(output)['AP50'] > 50 and printed_ap(output) != found


def test_a_killed_training_resumes_to_the_same_iteration(data: Path, tmp_path: Path) -> None:
    options = [*OPTIONS, 'SOLVER.MAX_ITER', '40', 'SOLVER.CHECKPOINT_PERIOD', '10', 'OUTPUT_DIR', str(tmp_path)]
    with subprocess.Popen([sys.executable, *command('train_net.py', '--config', CONFIG, *options)], cwd=tmp_path,
                          env=environment(data), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        last = tmp_path / 'last_checkpoint'
        wait_for(lambda: last.is_file() and last.read_text() >= 'model_0000019.pth', process)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / 'model_final.pth').exists()
    output = run_tool('train_net.py', '--config', CONFIG, '--resume', *options, data=data, cwd=tmp_path)
    assert int(re.findall(r'Starting training from iteration (\d+)', output)[-1]) in (20, 30)
    last_row = metrics(tmp_path)[-1]
    assert last_row['iteration'] == 40 and math.isfinite(last_row['bbox/AP'])


def test_plain_train_net(tools: Tools) -> None:
    assert math.isfinite(printed_ap(tools['plain'])['AP'])
    assert (tools.folder / 'plain' / 'model_final.pth').is_file()


def test_lazyconfig_train_net_trains_and_evaluates_the_twin(tools: Tools) -> None:
    assert 'copypaste: Task: bbox' in tools['lazy']
    assert metrics(tools.folder / 'lazy')[-1]['iteration'] == 4
    # Its pixels are those of other weights, and its folders have the classes that it says.
    assert 'randwire://randwire_ws_pico.digits was trained with MODEL.PIXEL_MEAN [127.5, ' in tools['lazy']
    assert 'num_classes is' not in tools['lazy']
    assert 'copypaste: Task: bbox' in tools['lazy eval']


@pytest.mark.parametrize('config', FINE_TUNING, ids=lambda path: path.stem)
def test_a_recipe_for_ones_own_images_trains_what_was_not_trained_before(config: Path, tools: Tools) -> None:
    assert 'copypaste: Task: bbox' in tools[config.stem] or 'No predictions from the model' in tools[config.stem]
    assert 'MODEL.WEIGHTS is empty' not in tools[config.stem]
    state = torch.load(tools.folder / config.stem / 'model_final.pth', weights_only=False)['model']
    start = timm.create_model('randwire_ws_pico', pretrained=True).state_dict()
    moved = {name.split('.')[2] for name, tensor in state.items() if name.startswith('backbone.bottom_up.')
             and name.endswith('weight') and not torch.equal(tensor, start[name.removeprefix('backbone.bottom_up.')])}
    assert moved == {'conv3', 'conv4', 'conv5'}
    statistics = [name for name in state if name.startswith('backbone.bottom_up.') and 'running_mean' in name]
    assert statistics and all(torch.equal(state[name], start[name.removeprefix('backbone.bottom_up.')])
                              for name in statistics)


def test_analyze_model_counts_all_of_the_backbone(inspection: Tools) -> None:
    output = inspection['analysis']
    assert 'RandWireBackbone(' in output and 'Total GFlops:' in output and 'Total (Million) Activations' in output
    assert re.search(r'backbone\.bottom_up\.conv5 ', output)


@pytest.mark.parametrize('kind', ['truth', 'found'])
def test_visualize_data_and_json_results_draw_every_image(kind: str, inspection: Tools) -> None:
    assert inspection[kind]
    pictures = list((inspection.folder / kind / 'pictures').iterdir())
    assert len(pictures) == 8
    with Image.open(pictures[0]) as picture:
        assert picture.size[0] >= 160


def test_benchmark_times_inference(tools: Tools) -> None:
    assert re.search(r'300 iters in [\d.]+ seconds', tools['benchmark'])


@pytest.mark.parametrize('method', ['tracing', 'scripting'])
def test_export_model_writes_torchscript(method: str, trained: Path, inspection: Tools) -> None:
    output = inspection[method]
    assert (inspection.folder / method / 'model.ts').is_file()
    if method == 'tracing':
        expected = [row for row in metrics(trained) if 'bbox/AP50' in row][-1]
        assert printed_ap(output)['AP50'] == pytest.approx(expected['bbox/AP50'], abs=1)


def test_the_trained_backbone_can_be_staged_for_the_hub_and_timm_loads_it(trained: Path, tmp_path: Path) -> None:
    assert main(['hub', 'stage', str(trained / 'model_final.pth'), '--tag', 'shapes', '--license', 'mit', '-o',
                 str(tmp_path / 'staged')]) == 0
    state = torch.load(trained / 'model_final.pth', weights_only=True)['model']
    model = timm.create_model(f'local-dir:{tmp_path / "staged"}', pretrained=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[f'backbone.bottom_up.{name}']), name
    card = (tmp_path / 'staged' / 'README.md').read_text()
    last = [row for row in metrics(trained) if 'bbox/AP50' in row][-1]
    assert f'| {last["bbox/AP50"]:.2f} |' in card and 'shapes_train' in card
    assert 'were not measured again when the backbone was published' in card


@pytest.mark.parametrize('config', sorted(path.name for path in CONFIGS.glob('*_randwire*.yaml')))
def test_every_packaged_config_is_understood(config: str, data: Path, tmp_path: Path) -> None:
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / config))
    assert cfg.INPUT.FORMAT == 'RGB' and re.fullmatch(r'build_randwire_ws_c\d+_.*fpn_backbone', cfg.MODEL.BACKBONE.NAME)
    assert cfg.SOLVER.MAX_ITER == 90000 and cfg.SOLVER.IMS_PER_BATCH == 16
    if cfg.MODEL.WEIGHTS:  # the package's own, of the network that is built, fed as it was trained
        row = find_weights(cfg.MODEL.WEIGHTS.removeprefix('randwire://'))
        assert row is not None and row.file and cfg.MODEL.BACKBONE.NAME.startswith(f'build_{row.architecture}_')
        for pixels, numbers in ((cfg.MODEL.PIXEL_MEAN, row.mean), (cfg.MODEL.PIXEL_STD, row.std)):
            assert pixels == pytest.approx([255 * number for number in numbers])


def test_the_blood_cells_configs_run_what_the_documents_say_without_any_override() -> None:
    from detectron2.config import get_cfg

    for path in (CONFIGS / 'bccd').glob('*.yaml'):
        cfg = get_cfg()
        cfg.merge_from_file(str(path))
        assert cfg.SOLVER.MAX_ITER == 1200 and cfg.SOLVER.IMS_PER_BATCH == 2, path
        assert cfg.MODEL.DEVICE == 'cpu', path
        assert max(cfg.SOLVER.STEPS) < 1200 and 1200 % cfg.TEST.EVAL_PERIOD == 0, path
    study = load_study('table5_small')
    assert study.detection['overrides'] == ['MODEL.DEVICE', 'cpu'] and study.seeds == [1, 2, 3, 4, 5]


def test_a_study_of_detectors_has_the_ap_that_train_net_measured(
        data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert SOURCE is not None
    monkeypatch.setenv('DETECTRON2_TRAIN_NET', str(SOURCE / 'tools' / 'train_net.py'))
    (tmp_path / 'study.yaml').write_text(yaml.safe_dump({
        'title': 'Shapes', 'models': ['randwire_ws_pico', 'resnet18'], 'seeds': [1], 'data': 'shapes',
        'detection': {'config': 'bccd/faster_rcnn_{model}.yaml', 'overrides': [
            *OPTIONS, 'SOLVER.MAX_ITER', '8', 'SOLVER.STEPS', '(6,)', 'TEST.EVAL_PERIOD', '4',
            # Weights that only one of them has.
            'MODEL.WEIGHTS', 'randwire://{model}.digits']}}))
    output = tmp_path / 'output'
    assert main(['study', 'run', str(tmp_path / 'study.yaml'), '--data-dir', str(data), '--output', str(output),
                 '--no-progress', '--workers', '1']) == 1
    rows = {row['model']: row for row in read_results(output)[1]}
    run = output / 'runs' / 'randwire-ws-pico-s1'
    measured = [line for line in metrics(run) if 'bbox/AP' in line]
    row = rows['randwire_ws_pico']
    assert row['status'] == 'done' and [point[0] for point in row['history']] == [4, 8]
    assert row['history'][-1][1] == [line['total_loss'] for line in metrics(run) if 'total_loss' in line][-1]
    assert row['detection'] == {
        name: None if math.isnan(value := measured[-1][f'bbox/{name}']) else value
        for name in ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')}
    printed = printed_ap((run / 'stdout.txt').read_text())
    assert row['detection'] == {name: None if math.isnan(value) else pytest.approx(value, abs=1e-3)
                                for name, value in printed.items()}
    failed = rows['resnet18']  # its data were found, and detectron2 alone knows no such weights
    assert failed['status'] == 'failed'
    assert 'ended with 1: AssertionError: Checkpoint randwire://resnet18.digits not found' in failed['reason']
    assert '1 of 2 networks' in capsys.readouterr().out
