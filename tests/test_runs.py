"""What a training has left of itself, as `hub stage` reads it: timm's files, detectron2's files, or what was typed."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from run_files import NAME, SUMMARY, write_detectron2, write_timm

from randwire_zoo.hub.runs import CheckFailed, find_records, is_training_checkpoint, read_metrics, read_run, typed_run
from randwire_zoo.weights.description import Description
from randwire_zoo.weights.files import save_weights


def read(folder: Path, checkpoint: str = 'last.pth.tar', **options: Any) -> Any:
    settings, history = find_records(folder)
    assert settings is not None
    return read_run(folder / checkpoint, settings, history, **options)


def test_a_run_of_timm_is_read_whole_and_only_what_may_be_is_published(tmp_path: Path) -> None:
    run = read(write_timm(tmp_path))
    assert (run.dataset, run.unit, run.step, run.steps, run.seed, run.split, run.weights) == (
        'leaves', 'epoch', 1, 2, 7, 'held out', 'average')
    assert run.metrics == {'top1': 41.5, 'top5': 81.0, 'loss': 1.5}
    network = run.network
    assert network.architecture == NAME and network.input_size == (3, 48, 48) and network.crop_pct == 0.9
    assert network.arguments['num_classes'] == 3 and network.arguments['node_op'] == 'conv'
    assert run.conditions.amp_dtype is None and run.conditions.split == 'held out'
    assert str(run.conditions.data_dir) == '/home/me/data/leaves'
    assert run.settings['model'] == NAME and run.settings['data_dir'] == 'leaves' and run.settings['lr'] == 0.5
    assert run.settings['model_kwargs'] == {'node_op': 'conv'}
    assert 'smoothing' not in run.settings and '/home/me' not in json.dumps(run.settings)


def test_what_was_asked_comes_before_what_is_recorded_and_the_trained_weights_have_no_figures_of_their_average(
        tmp_path: Path) -> None:
    run = read(write_timm(tmp_path), use_ema=False, dataset='Leaves of trees')
    assert run.weights == 'trained' and run.metrics == {} and run.dataset == 'Leaves of trees'
    run = read(write_timm(tmp_path, model_ema=False), use_ema=False)
    assert run.metrics['top1'] == 41.5
    run = read(write_timm(tmp_path, dataset='hfds/leaves', data_dir=...))
    assert run.dataset == 'hfds/leaves' and 'data_dir' not in run.settings
    with pytest.raises(CheckFailed, match=f'of a training of {NAME}, not of randwire_ws_c109'):
        read(write_timm(tmp_path), name='randwire_ws_c109')
    torch.save({'arch': 'randwire_ws_c109', 'epoch': 1, 'state_dict': {}}, tmp_path / 'last.pth.tar')
    with pytest.raises(CheckFailed, match=f'of a training of {NAME}, not of randwire_ws_c109'):
        read(tmp_path, use_ema=False)
    with pytest.raises(CheckFailed, match=r'does not say which data .* name them with --dataset'):
        read(write_timm(tmp_path, data_dir=...))


@pytest.mark.parametrize(('changes', 'beginning', 'model', 'teacher'), [
    ({}, 'random parameters', NAME, ''),
    ({'pretrained': True}, f'{NAME}.digits', f'{NAME}.digits', ''),
    ({'pretrained': True, 'model': NAME}, f'{NAME}.digits', f'{NAME}.digits', ''),  # timm takes the default
    ({'pretrained': True, 'model_kwargs': {'pretrained_cfg_overlay': {'file': '/home/me/x'}}}, 'a file', NAME, ''),
    ({'pretrained': True, 'initial_checkpoint': '/home/me/x.pth'}, 'a file', NAME, ''),
    ({'pretrained_path': '/home/me/x.pth', 'kernels': None}, 'a file', NAME, ''),
    ({'pretrained_path': '/home/me/x.pth', 'pretrained': True}, 'a file', NAME, ''),
    ({'pretrained_path': '/home/me/x.pth'}, 'random parameters', NAME, ''),  # train.py does not read it
    ({'kd_model_name': 'resnet18'}, 'random parameters', NAME, 'resnet18'),
    ({'kd_model_name': 'local-dir:/home/me/teacher'}, 'random parameters', NAME, 'a file'),
    ({'kd_outputs': '/home/me/teacher/outputs.safetensors'}, 'random parameters', NAME, 'a file'),
])
def test_what_a_training_began_from_is_recorded_and_what_is_published_begins_there_too(
        changes: dict[str, Any], beginning: str, model: str, teacher: str, tmp_path: Path) -> None:
    run = read(write_timm(tmp_path, **{'model_kwargs': {}, **changes}))
    assert (run.beginning, run.teacher) == (beginning, teacher)
    assert (run.settings['model'], run.settings['pretrained']) == (model, model != NAME)
    assert run.network.architecture == NAME and '/home/me' not in json.dumps(run.settings)


#: Nothing is said of the network beside its name.
ALONE: dict[str, Any] = {**dict.fromkeys(
    ('img_size', 'mean', 'std', 'interpolation', 'crop_pct', 'num_classes'), ...), 'model_kwargs': {}}


@pytest.mark.parametrize('changes', [
    {}, ALONE, {**ALONE, 'img_size': 40}, {**ALONE, 'pretrained': True},
    {**ALONE, 'pretrained': True, 'pretrained_path': '/home/me/x.pth'},
    {**ALONE, 'model': NAME, 'model_kwargs': {'pretrained_cfg_overlay': {'crop_pct': 0.5}}},
    {**ALONE, 'model': 'local-dir', 'in_chans': 1}, {**ALONE, 'model': 'local-dir', 'in_chans': 1, 'pretrained': True},
], ids=str)
def test_the_published_settings_describe_the_network_that_was_trained(changes: dict[str, Any], tmp_path: Path) -> None:
    if changes.get('model') == 'local-dir':
        arguments = {'graph': 'ws(2,0.5)', 'seed': 3, 'channels': 4, 'num_nodes': 4, 'in_chans': 1}
        timm.models.save_for_hf(
            timm.create_model('randwire', num_classes=5, **arguments), str(tmp_path / 'weights'), model_args=arguments,
            model_config={'pretrained_cfg': {
                'tag': 'x', 'mean': [0.1], 'std': [0.2], 'input_size': [1, 32, 40], 'crop_pct': 0.75}})
        changes = {**changes, 'model': f'local-dir:{tmp_path / "weights"}'}
    run = read(write_timm(tmp_path, **changes))
    assert Description.from_settings(run.settings) == run.network and '/' not in json.dumps(run.settings)


def test_a_training_without_a_split_has_no_figures(tmp_path: Path) -> None:
    write_timm(tmp_path, val_split='')
    (tmp_path / 'summary.csv').write_text('epoch,train_loss,lr\n0,2.5,0.1\n1,2.0,0.1\n')
    run = read(tmp_path)
    assert run.metrics == {} and run.split == '' and run.step == 1


@pytest.mark.parametrize(('weights', 'beginning'), [
    ('', 'random parameters'), (f'randwire://{NAME}.digits', f'{NAME}.digits'),
    (f'randwire://{NAME}', f'{NAME}.digits'), ('hf-hub:someone/leaves', 'hf-hub:someone/leaves'),
    ('/home/me/first.pth', 'a file')])
def test_what_a_detectors_training_began_from_is_recorded(weights: str, beginning: str, tmp_path: Path) -> None:
    run = read(write_detectron2(tmp_path, MODEL={
        'BACKBONE': {'NAME': f'build_{NAME}_fpn_backbone'}, 'PIXEL_MEAN': [100] * 3, 'PIXEL_STD': [255] * 3,
        'WEIGHTS': weights}), 'model_final.pth')
    assert run.beginning == beginning


def test_the_settings_of_an_evaluation_are_not_taken_for_those_of_the_training(tmp_path: Path) -> None:
    model = {'BACKBONE': {'NAME': f'build_{NAME}_fpn_backbone'}, 'PIXEL_MEAN': [100] * 3, 'PIXEL_STD': [255] * 3}
    for output, weights, refused in (
            ('./output', 'output/model_final.pth', True), ('./output', 'first.pth', False),
            ('/home/me/eval', '/home/me/output/model_final.pth', False), ('/home/me/run', '/home/me/run/x.pth', True)):
        write_detectron2(tmp_path, OUTPUT_DIR=output, MODEL={**model, 'WEIGHTS': weights})
        if refused:
            with pytest.raises(CheckFailed, match=r'config\.yaml: it is of an evaluation, .* MODEL.WEIGHTS .*pth says'):
                read(tmp_path, 'model_final.pth')
        else:
            assert read(tmp_path, 'model_final.pth').beginning == 'a file'


@pytest.mark.parametrize(('epochs', 'steps'), [(1, 2), ('5', 5), (5, 5)])
def test_a_training_is_as_long_as_its_settings_or_as_it_became(epochs: object, steps: int, tmp_path: Path) -> None:
    assert read(write_timm(tmp_path, epochs=epochs)).steps == steps


def test_settings_that_are_none_or_lack_something_are_named(tmp_path: Path) -> None:
    for key in ('epochs', 'seed', 'val_split'):
        with pytest.raises(CheckFailed, match=f'args.yaml lacks {key}$'):
            read(write_timm(tmp_path, **{key: ...}))
    (tmp_path / 'args.yaml').write_text('- a list')
    with pytest.raises(CheckFailed, match=r'args\.yaml holds no settings of a training'):
        read(tmp_path)


def test_weights_of_the_zoo_say_their_epoch_and_what_they_are_themselves(tmp_path: Path) -> None:
    model = timm.create_model(NAME, num_classes=3)
    save_weights(model, tmp_path / 'a.safetensors', epoch='1', weights='trained')
    save_weights(model, tmp_path / 'b.safetensors', epoch='0')
    save_weights(model, tmp_path / 'c.safetensors')
    write_timm(tmp_path, model_kwargs=...)
    run = read(tmp_path, 'a.safetensors')
    assert (run.step, run.weights, run.metrics) == (1, 'trained', {})
    run = read(tmp_path, 'b.safetensors')
    assert (run.step, run.steps, run.weights, run.metrics['top1']) == (0, 2, '', 20.0)
    with pytest.raises(CheckFailed, match='does not say of which epoch it is'):
        read(tmp_path, 'c.safetensors')
    assert [is_training_checkpoint(tmp_path / name) for name in (
        'a.safetensors', 'c.safetensors', 'last.pth.tar', 'args.yaml')] == [True, False, True, False]


def test_a_run_of_detectron2_is_read_whole_and_places_of_the_machine_are_left_out(tmp_path: Path) -> None:
    run = read(write_detectron2(tmp_path), 'model_final.pth')
    assert (run.dataset, run.unit, run.step, run.steps, run.seed, run.split, run.conditions) == (
        'cells_train', 'iteration', 7, 8, 3, 'cells_a, cells_b', None)
    assert run.metrics == {'bbox/AP': 12.5, 'bbox/AP50': 30.0}
    assert run.network.arguments == {'num_classes': 0, 'head': False} and run.network.input_size == (3, 64, 64)
    assert run.network.mean == (0.5,) * 3 and run.network.std == (0.2,) * 3
    assert 'OUTPUT_DIR' not in run.settings and run.settings['SOLVER'] == {'MAX_ITER': 8}
    assert run.settings['MODEL']['WEIGHTS'] == 'first.pth'
    assert run.settings['MODEL']['FILES'] == ['a.pth', 'b.pth', 'c.pth', 'd/e']
    assert read(write_detectron2(tmp_path, SOLVER={'MAX_ITER': 4}), 'model_final.pth', dataset='Cells').steps == 8
    for weights, published in (
            ('https://me:SECRET@host.example/a/first.pth?token=SECRET#SECRET', 'first.pth'),
            ('s3://SECRET-bucket/first.pth', 'first.pth'), ('hf-hub:someone/leaves', 'hf-hub:someone/leaves'),
            ('randwire://randwire_ws_pico', 'randwire://randwire_ws_pico'),
            ('detectron2://ImageNetPretrained/MSRA/R-50.pkl', 'R-50.pkl')):
        run = read(write_detectron2(tmp_path, MODEL={
            'BACKBONE': {'NAME': f'build_{NAME}_fpn_backbone'}, 'PIXEL_MEAN': [100] * 3, 'PIXEL_STD': [255] * 3,
            'WEIGHTS': weights}), 'model_final.pth')
        assert run.settings['MODEL']['WEIGHTS'] == published
    with pytest.raises(CheckFailed, match='the detector was trained on BGR images; timm has RGB'):
        read(write_detectron2(tmp_path, INPUT={'FORMAT': 'BGR'}), 'model_final.pth')
    for builder in ('backbone', 'fpn_backbone', 'retinanet_fpn_backbone'):
        run = read(write_detectron2(tmp_path, MODEL={
            'BACKBONE': {'NAME': f'build_randwire_ws_c109_{builder}'}, 'PIXEL_MEAN': [100] * 3,
            'PIXEL_STD': [255] * 3}), 'model_final.pth')
        assert run.network.architecture == 'randwire_ws_c109' and run.network.std == (1.0,) * 3
        assert run.network.mean == (0.392157,) * 3


def test_what_is_typed_is_meant_for_evaluation() -> None:
    run = typed_run({'model': NAME, 'crop_mode': 'squash'}, 'noise', {'top1': 10.0})
    assert run.network.crop_mode == 'squash' and run.metrics == {'top1': 10.0} and run.dataset == 'noise'
    assert run.settings == {}


def test_the_files_of_a_training_are_found_as_far_as_they_are_there(tmp_path: Path) -> None:
    assert find_records(tmp_path) == (None, None)
    for name, expected in (('summary.csv', (None, 'summary.csv')), ('args.yaml', ('args.yaml', 'summary.csv'))):
        (tmp_path / name).touch()
        assert find_records(tmp_path) == tuple(name and tmp_path / name for name in expected)
    (tmp_path / 'summary.csv').unlink()
    assert find_records(tmp_path) == (tmp_path / 'args.yaml', None)
    (tmp_path / 'args.yaml').unlink()
    (tmp_path / 'metrics.json').touch()
    assert find_records(tmp_path) == (None, tmp_path / 'metrics.json')
    (tmp_path / 'config.yaml').touch()
    assert find_records(tmp_path) == (tmp_path / 'config.yaml', tmp_path / 'metrics.json')


def test_figures_are_those_of_the_step_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / 'metrics.json'
    rows = [{'iteration': 3, 'bbox/AP': 1.0}, {'iteration': 7, 'bbox/AP': 2.0}, {'iteration': 9, 'bbox/AP50': 3.0}]
    path.write_text('\n'.join(map(json.dumps, rows)))
    assert read_metrics(path, 7) == read_metrics(path, 6) == {'bbox/AP': 2.0}
    for step in (8, 4):
        with pytest.raises(CheckFailed, match=f'has no bbox/AP for step {step}'):
            read_metrics(path, step)
    path.write_text('{"iteration": 7, "bbox/AP": NaN}')
    with pytest.raises(CheckFailed, match='has no bbox/AP for step 7'):
        read_metrics(path, 7)
    (tmp_path / 'summary.csv').write_text(SUMMARY.replace('41.5', ''))
    assert read_metrics(tmp_path / 'summary.csv', 0) == {'top1': 20.0, 'top5': 60.0, 'loss': 2.25}
    with pytest.raises(CheckFailed, match='has no top1 for step 1'):
        read_metrics(tmp_path / 'summary.csv', 1)
    with pytest.raises(CheckFailed, match='has no epoch 2'):
        read_metrics(tmp_path / 'summary.csv', 2)


def test_a_training_that_went_back_and_wrote_its_header_again_has_the_figures_of_its_last_course(
        tmp_path: Path) -> None:
    header, *rows = SUMMARY.splitlines()
    write_timm(tmp_path, epochs=1)
    summary = tmp_path / 'summary.csv'
    summary.write_text('\n'.join([header, *rows, '2,1.5,1.25,60.0,90.0', header, '1,1.9,1.4,43.5,82.0']) + '\n')
    run = read(tmp_path)
    assert run.metrics == {'top1': 43.5, 'top5': 82.0, 'loss': 1.4} and run.steps == 2
    with pytest.raises(CheckFailed, match='has no epoch 2'):  # its weights are no longer this training's
        read_metrics(summary, 2)
    summary.write_text(f'{header}\n0,2.5,2.25,many,60.0\n')
    with pytest.raises(CheckFailed, match=r'summary\.csv, line 2: eval_top1 is no number'):
        read_metrics(summary, 0)


def test_what_is_typed_stands_in_for_a_run() -> None:
    run = typed_run({'model': NAME, 'num_classes': 4}, 'leaves', {'top1': 50.0})
    assert (run.dataset, run.unit, run.step, run.steps, run.seed, run.split, run.settings, run.weights) == (
        'leaves', '', 0, 0, None, '', {}, '')
    assert run.metrics == {'top1': 50.0} and run.conditions is not None and run.conditions.data_dir is None
    assert run.network.architecture == NAME and run.network.arguments['num_classes'] == 4
    with pytest.raises(CheckFailed, match='--model must be given'):
        typed_run({}, 'leaves', {})
    with pytest.raises(CheckFailed, match='--dataset must be given'):
        typed_run({'model': NAME}, '', {})
