"""What stands on a card and in a manifest's row, for a detector's backbone and for weights with typed settings."""
from __future__ import annotations

import json
import re
import shlex
import shutil
from ast import literal_eval
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from layers import randomise_
from PIL import Image
from run_files import NAME, write_detectron2, write_timm
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data import IMAGENET_DEFAULT_STD as IMAGENET_STD

from randwire_zoo.cli import main
from randwire_zoo.detection.weights import compare_statistics
from randwire_zoo.hub.card import END, START, check_card, own_text, render_card
from randwire_zoo.hub.checks import CheckFailed, check_folder
from randwire_zoo.training.recipes import CONFIGS
from randwire_zoo.weights.files import read_metadata


def stage(checkpoint: Path, *options: object) -> int:
    return main(['hub', 'stage', str(checkpoint), '--tag', 'some', *map(str, options)])


def tables(card: str) -> list[list[str]]:
    """The cells of the lines of all tables."""
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in card.splitlines() if line.startswith('|')]


@pytest.fixture(scope='module')
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What detectron2 leaves of a training of 8 iterations: settings, history, weights of the whole detector."""
    folder = tmp_path_factory.mktemp('detector') / 'run'
    folder.mkdir()
    write_detectron2(folder, DATASETS={'TRAIN': ['cells_train', 'more_train'], 'TEST': ['cells_test']}, MODEL={
        'BACKBONE': {'NAME': f'build_{NAME}_retinanet_fpn_backbone'}, 'WEIGHTS': str(folder / 'first.pth'),
        'PIXEL_MEAN': [127.5, 51.0, 0.0], 'PIXEL_STD': [255.0, 127.5, 63.75]})
    rows = [{'iteration': 3, 'total_loss': 2.0, 'bbox/AP': 1.0}, {'iteration': 7, 'total_loss': 1.5},
            {'iteration': 8, 'bbox/AP': 12.3456, 'bbox/AP50': 34.5, 'bbox/AP75': 5.0, 'bbox/APs': 1.0}]
    (folder / 'metrics.json').write_text('\n'.join(map(json.dumps, rows)) + '\n')
    model = timm.create_model(NAME, num_classes=0, head=False)
    randomise_(model)
    state = {f'backbone.bottom_up.{name}': tensor for name, tensor in model.state_dict().items()}
    torch.save({'model': {**state, 'proposal_generator.anchors': torch.ones(2)}, 'iteration': 7},
               folder / 'model_final.pth')
    return folder


@pytest.fixture
def staged_detector(detector: Path, tmp_path: Path) -> Path:
    assert stage(detector / 'model_final.pth', '--license', 'apache-2.0', '-o', tmp_path / 'backbone') == 0
    return tmp_path / 'backbone'


@pytest.fixture
def staged_half(tmp_path: Path) -> Path:
    """A classifier of which nothing is known but what was typed."""
    model = timm.create_model(NAME, num_classes=4)
    randomise_(model)
    save_file(model.state_dict(), tmp_path / 'weights.safetensors')
    assert stage(tmp_path / 'weights.safetensors', '--license', 'mit', '--model', NAME, '--img-size', 96, '--mean', 0.5,
                 '--std', 0.25, '--dataset', 'someone/leaves', '--half', '--no-eval', '--metric', 'top1=61.234',
                 'top5=90', 'loss=1.5', '-o', tmp_path / 'staged') == 0
    return tmp_path / 'staged'


def test_the_card_of_a_detectors_backbone_says_what_detectron2_recorded(staged_detector: Path) -> None:
    text = (staged_detector / 'README.md').read_text()
    card: Any = ModelCard(text)
    assert card.data.pipeline_tag == 'image-feature-extraction' and card.data.library_name == 'timm'
    assert card.data.tags == ['object-detection', 'timm', 'randwire'] and card.data.license == 'apache-2.0'
    assert card.data.datasets is None and card.data.model_name == f'{NAME}.some'  # two names are no name of a data set
    assert [(result.task_type, result.task_name, result.dataset_type, result.dataset_name, result.dataset_split,
             result.metric_type, result.metric_name, result.metric_value) for result in card.data.eval_results] == [
        ('object-detection', 'Object detection', *['cells_train, more_train'] * 2, 'cells_test', 'mAP', name, value)
        for name, value in (('box AP, %', 12.35), ('box AP50, %', 34.5), ('box AP75, %', 5.0))]
    rows = tables(text)
    assert rows[-3:] == [
        ['data', 'weights of iteration', 'box AP, %', 'box AP50, %', 'box AP75, %'], ['---'] * 5,
        ['cells_train, more_train, measured on `cells_test`', '8 of 8', '12.35', '34.50', '5.00']]
    facts = {row[0]: row[1] for row in rows if len(row) == 2}
    assert facts['input'] == '3×64×64 pixels, mean 0.5, 0.2, 0, std 1, 0.5, 0.25, bilinear, crop 1.0 (center)'
    assert facts['classes'] == '0' and facts['random graph model'] == 'WS(4,0.75), seed 1'
    assert 'were not measured again when the backbone was published' in text
    assert 'Trained from other weights, which are not published here, with seed 3;' in text
    assert read_metadata(staged_detector / 'model.safetensors')['beginning'] == 'a file'
    assert "`train_net.py --config-file config.yaml`, the history is in [metrics.json](metrics.json)" in " ".join(
        text.split()) and f'build_{NAME}_fpn_backbone' in text and 'transformers' not in text
    assert text.endswith('}\n```\n') and own_text(text) == own_text(render_card(staged_detector)) == ''
    published = yaml.safe_load((staged_detector / 'config.yaml').read_text())
    assert 'OUTPUT_DIR' not in published and published['MODEL']['WEIGHTS'] == 'first.pth'
    assert published['SOLVER'] == {'MAX_ITER': 8}


def test_the_card_tells_detectron2_of_other_pixels_than_its_configs(staged_detector: Path, tmp_path: Path) -> None:
    """The command's options over the config, as detectron2 reads both, are the statistics of the training."""
    config = yaml.safe_load((CONFIGS / 'base_rcnn_fpn_randwire.yaml').read_text())
    named = yaml.safe_load((CONFIGS / 'faster_rcnn_randwire.yaml').read_text())
    assert named['_BASE_'] == 'base_rcnn_fpn_randwire.yaml' and 'PIXEL_MEAN' not in named['MODEL']
    usual = tmp_path / 'usual'
    network = timm.create_model(NAME, num_classes=4)
    save_file(network.state_dict(), tmp_path / 'weights.safetensors')
    assert stage(tmp_path / 'weights.safetensors', '--license', 'mit', '--model', NAME, '--mean', *IMAGENET_MEAN,
                 '--std', *IMAGENET_STD, '--dataset', 'leaves', '--no-eval', '-o', usual) == 0
    for folder in (staged_detector, usual):
        text = (folder / 'README.md').read_text()
        command = text[text.index('    python tools/train_net.py'):].partition('\n\n')[0].replace('\\\n', ' ')
        words = shlex.split(command)
        options = dict(zip(*[iter(words[words.index('MODEL.BACKBONE.NAME'):])] * 2, strict=True))
        assert options['MODEL.WEIGHTS'] == 'FOLDER/model.safetensors'
        given = {key: literal_eval(options[f'MODEL.{key}']) if folder is staged_detector else config['MODEL'][key]
                 for key in ('PIXEL_MEAN', 'PIXEL_STD')}
        trained = json.loads((folder / 'config.json').read_text())['pretrained_cfg']
        assert [value / 255 for value in given['PIXEL_MEAN']] == pytest.approx(trained['mean'])
        assert [value / 255 for value in given['PIXEL_STD']] == pytest.approx(trained['std'])
        assert ('MODEL.PIXEL_MEAN' in options) == (folder is staged_detector)
        assert compare_statistics(str(folder / 'model.safetensors'), *given.values(), config['INPUT']['FORMAT']) == ''
    # Of a config in detectron2's BGR the channels would be others, and not only their statistics in another order.
    assert config['INPUT']['FORMAT'] == 'RGB'


def test_the_card_of_a_training_without_a_history_names_none_and_has_no_figures(detector: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(detector, tmp_path / 'run'))
    (run / 'metrics.json').unlink()
    assert stage(run / 'model_final.pth', '--license', 'mit', '-o', tmp_path / 'staged') == 0
    text = ' '.join((tmp_path / 'staged' / 'README.md').read_text().split())
    assert 'config.yaml` and the wiring in [graphs.json](graphs.json)' in text and '| data |' not in text


def test_a_dilated_backbone_is_published_as_the_network_that_it_was(
        detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path(shutil.copytree(detector, tmp_path / 'run'))
    settings = yaml.safe_load((run / 'config.yaml').read_text())
    settings['MODEL']['RESNETS'] = {'RES5_DILATION': 2}
    (run / 'config.yaml').write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    assert stage(run / 'model_final.pth', '--license', 'mit') == 0
    folder = tmp_path / 'output' / 'hub' / f'{NAME}.some'
    assert stage(run / 'model_final.pth', '--license', 'mit') == 2, 'it is there'
    config = json.loads((folder / 'config.json').read_text())
    assert config['model_args'] == {'head': False, 'output_stride': 16}
    assert config['pretrained_cfg']['pool_size'] == [4, 4] and 'strides 2 … 16' in (folder / 'README.md').read_text()
    trained = timm.create_model(NAME, num_classes=0, head=False, output_stride=16).eval()
    trained.load_state_dict({name.removeprefix('backbone.bottom_up.'): tensor for name, tensor in torch.load(
        run / 'model_final.pth')['model'].items() if name.startswith('backbone.')})
    published = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert published.forward_features(images).shape[-2:] == (4, 4)
        torch.testing.assert_close(published.forward_features(images), trained.forward_features(images))


def test_a_published_backbone_can_be_fine_tuned(staged_detector: Path) -> None:
    backbone = timm.create_model(f'local-dir:{staged_detector}', pretrained=True)
    model = timm.create_model(f'local-dir:{staged_detector}', pretrained=True, num_classes=5).eval()
    assert backbone.num_classes == 0 and model(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    trained = model.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize(('recorded', 'said', 'base'), [
    ({}, 'Trained with seed 3;', None),  # of an earlier version
    ({'beginning': 'random parameters'}, 'Trained from random parameters with seed 3;', None),
    ({'beginning': f'{NAME}.digits'}, f'Trained from the weights `{NAME}.digits` with seed 3;', None),
    ({'beginning': 'hf-hub:someone/leaves'}, 'from the weights `hf-hub:someone/leaves` with seed 3;', 'someone/leaves'),
    ({'beginning': 'hf-hub:someone/leaves@v1'}, 'from the weights `hf-hub:someone/leaves@v1` with', 'someone/leaves'),
    ({'teacher': 'a file'}, "A teacher's outputs are part of the loss: they are not among the settings, which train "
     'without them.', None),
    ({'teacher': 'resnet18'}, 'are part of the loss: those of `resnet18`.', None),
])
def test_the_card_says_what_a_training_began_from_and_learnt_of(
        recorded: dict[str, str], said: str, base: str | None, staged_detector: Path) -> None:
    weights = staged_detector / 'model.safetensors'
    kept = {name: value for name, value in read_metadata(weights).items() if name not in ('beginning', 'teacher')}
    save_file(load_file(weights), weights, metadata={**kept, **recorded})
    text = render_card(staged_detector)
    assert said in ' '.join(text.split()) and ModelCard(text).data.base_model == base
    assert ('teacher' in text) == ('teacher' in recorded)


def test_another_split_and_a_history_from_elsewhere_are_taken_as_they_are_named(tmp_path: Path) -> None:
    for label in ('ash', 'beech', 'cedar'):
        (tmp_path / 'leaves' / 'test' / label).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(tmp_path / 'leaves' / 'test' / label / '0.png')
    run, history = write_timm(tmp_path, model=NAME, model_kwargs=..., data_dir=str(tmp_path / 'leaves')), 'other.csv'
    (run / history).write_text((run / 'summary.csv').read_text().replace('41.5', '42.5'))
    torch.save({'arch': NAME, 'epoch': 1, 'state_dict': timm.create_model(NAME, num_classes=3).state_dict()},
               run / 'last.pth.tar')
    (run / 'args.yaml').write_text((run / 'args.yaml').read_text().replace('model_ema: true', 'model_ema: false'))
    named = ['--license', 'mit', '--no-eval', '--summary', run / history]
    for options, split, metrics in (
            ([], 'held out', {'top1': 42.5, 'top5': 81.0, 'loss': 1.5}), (['--split', 'test'], 'test', {})):
        folder = tmp_path / f'staged {split}'
        assert stage(run / 'last.pth.tar', *named, *options, '-o', folder) == 0
        metadata = read_metadata(folder / 'model.safetensors')
        assert metadata['split'] == split and json.loads(metadata['metrics']) == metrics
        assert '42.5' in (folder / 'summary.csv').read_text()
        labels = json.loads((folder / 'config.json').read_text()).get('label_names')
        assert labels == (['ash', 'beech', 'cedar'] if options else None), 'there is no folder of the other split'


def test_a_training_that_measured_nothing_is_measured_where_it_is_told_to_or_not_at_all(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ('train', 'test'):
        for label in ('ash', 'beech', 'cedar'):
            (tmp_path / 'leaves' / split / label).mkdir(parents=True)
            Image.new('RGB', (8, 8)).save(tmp_path / 'leaves' / split / label / '0.png')
    run = write_timm(tmp_path, model=NAME, model_kwargs=..., data_dir=str(tmp_path / 'leaves'), val_split='',
                     model_ema=False)
    torch.save({'arch': NAME, 'epoch': 1, 'state_dict': timm.create_model(NAME, num_classes=3).state_dict()},
               run / 'last.pth.tar')
    named = ['--license', 'mit', '--device', 'cpu', '--workers', 0]
    for history in ('epoch,train_loss,lr\n0,2.5,0.1\n1,2.0,0.1\n', None):
        (run / 'summary.csv').write_text(history) if history else (run / 'summary.csv').unlink()
        capsys.readouterr()
        assert stage(run / 'last.pth.tar', *named, '-o', tmp_path / 'none') == 1
        assert 'the training measured nothing; name the images with --split' in capsys.readouterr().err
        assert not (tmp_path / 'none').exists()
        unmeasured, measured = tmp_path / f'unmeasured {bool(history)}', tmp_path / f'measured {bool(history)}'
        assert stage(run / 'last.pth.tar', *named, '--no-eval', '-o', unmeasured) == 0
        assert json.loads(read_metadata(unmeasured / 'model.safetensors')['metrics']) == {}
        assert 'no figures are published of these weights' in (unmeasured / 'README.md').read_text()
        assert stage(run / 'last.pth.tar', *named, '--split', 'test', '-o', measured) == 0
        assert 'Measured on 3 images' in (measured / 'README.md').read_text()
    # What was staged names its classes, wherever the data are.
    shutil.rmtree(tmp_path / 'leaves')
    assert stage(measured / 'model.safetensors', *named, '--no-eval', '-o', tmp_path / 'again') == 0
    assert json.loads((tmp_path / 'again' / 'config.json').read_text())['label_names'] == ['ash', 'beech', 'cedar']


def test_the_card_has_the_width_of_the_network_and_not_of_its_name(tmp_path: Path) -> None:
    model = timm.create_model(NAME, num_classes=4, channels=32)
    save_file(model.state_dict(), tmp_path / 'weights.safetensors')
    assert stage(tmp_path / 'weights.safetensors', '--license', 'mit', '--model', NAME, '--model-kwargs', 'channels=32',
                 '--dataset', 'leaves', '--no-eval', '-o', tmp_path / 'staged') == 0
    assert ['regime, C, N', 'small, 32, 8'] in tables((tmp_path / 'staged' / 'README.md').read_text())


def test_the_row_of_a_staged_folder_has_all_that_the_folder_says(staged_detector: Path, staged_half: Path) -> None:
    row = check_folder(staged_detector).row(file='weights/some.safetensors')
    assert (row.name, row.file, row.repo_id, row.revision, row.is_default) == (
        f'{NAME}.some', 'weights/some.safetensors', None, None, False)
    assert row.metrics == {'bbox/AP': 12.3456, 'bbox/AP50': 34.5, 'bbox/AP75': 5.0} and row.num_classes == 0
    assert row.recipe == 'config.yaml' and row.description == 'cells_train, more_train, 8 iterations, seed 3'
    assert row.model_args == {'head': False} and row.label_names == () and row.input_size == (3, 64, 64)
    assert row.mean == (0.5, 0.2, 0.0) and row.std == (1.0, 0.5, 0.25)
    row = check_folder(staged_half).row('someone/leaves', 'a' * 40)
    assert (row.file, row.repo_id, row.revision, row.is_default) == (None, 'someone/leaves', 'a' * 40, False)
    assert row.recipe is None and row.metrics == {'top1': 61.234, 'top5': 90.0, 'loss': 1.5}
    assert row.size == (staged_half / 'model.safetensors').stat().st_size and row.description == 'someone/leaves'


def test_figures_that_a_detectors_history_does_not_have_are_refused(staged_detector: Path) -> None:
    history = staged_detector / 'metrics.json'
    history.write_text(history.read_text().replace('34.5', '34.6'))
    with pytest.raises(CheckFailed, match=r"'bbox/AP50': 34\.6.* for step 7: they must be equal"):
        check_folder(staged_detector)


def test_the_card_of_rounded_weights_with_typed_settings_says_so(staged_half: Path) -> None:
    text = (staged_half / 'README.md').read_text()
    card: Any = ModelCard(text)
    assert card.data.pipeline_tag == 'image-classification' and card.data.datasets == ['someone/leaves']
    assert [(result.task_type, result.task_name, result.dataset_type, result.dataset_name, result.dataset_split,
             result.metric_type, result.metric_name, result.metric_value) for result in card.data.eval_results] == [
        ('image-classification', 'Image classification', *['someone/leaves'] * 2, None, 'accuracy', name, value)
        for name, value in (('top-1 accuracy, %', 61.23), ('top-5 accuracy, %', 90.0))]
    assert tables(text)[-3:] == [['data', 'top-1 accuracy, %', 'top-5 accuracy, %', 'loss'], ['---'] * 4,
                                 ['someone/leaves', '61.23', '90.00', '1.5000']]
    assert 'As the publisher states them; not measured when the files were made. The large tensors are stored in ' \
           'float16.' in ' '.join(text.split())
    assert any(tensor.dtype == torch.float16 for tensor in load_file(staged_half / 'model.safetensors').values())


@pytest.mark.parametrize(('dataset', 'named'), [
    ('leaves', None), ('someone/leaves', ['someone/leaves']), ('hfds/someone/leaves', ['someone/leaves']),
    ('hfids/leaves', ['leaves']), ('torch/cifar10', None), ('tfds/leaves', None), ('wds/leaves', None), ('a/b/c', None),
])
def test_the_header_names_a_data_set_that_lies_on_the_hub_and_no_other(
        dataset: str, named: list[str] | None, staged_half: Path) -> None:
    weights = staged_half / 'model.safetensors'
    save_file(load_file(weights), weights, {**read_metadata(weights), 'dataset': dataset})
    assert ModelCard(render_card(staged_half)).data.datasets == named


def test_images_of_a_mode_that_nobody_would_feed_are_refused(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_timm(tmp_path, model=NAME, model_kwargs=..., model_ema=False, input_img_mode='HSV')
    state = timm.create_model(NAME, num_classes=3).state_dict()
    torch.save({'arch': NAME, 'epoch': 1, 'state_dict': state}, run / 'last.pth.tar')
    named = [run / 'last.pth.tar', '--license', 'mit', '--no-eval', '-o', tmp_path / 'staged']
    assert stage(*named) == 1
    assert 'was trained on images of the mode HSV (input_img_mode), of which' in capsys.readouterr().err
    assert not (tmp_path / 'staged').exists()
    write_timm(tmp_path, model=NAME, model_kwargs=..., model_ema=False, input_img_mode='RGB')
    torch.save({'arch': NAME, 'epoch': 1, 'state_dict': state}, run / 'last.pth.tar')
    assert stage(*named) == 0


def test_a_folder_whose_config_has_no_arguments_has_none(staged_half: Path) -> None:
    path = staged_half / 'config.json'
    config = json.loads(path.read_text())
    assert config.pop('model_args') == {'in_chans': 3}
    path.write_text(json.dumps(config))
    (staged_half / 'README.md').write_text(render_card(staged_half))
    assert check_folder(staged_half).row(file='weights/some.safetensors').model_args == {}


def test_a_card_of_another_version_is_held_to_its_facts_alone(staged_half: Path) -> None:
    weights, card = staged_half / 'model.safetensors', staged_half / 'README.md'
    assert f'in version {read_metadata(weights)["randwire_zoo"]} or newer' in card.read_text()
    save_file(load_file(weights), weights, {**read_metadata(weights), 'randwire_zoo': '0.0.1'})
    text = render_card(staged_half, text='Mine.')
    for words in (text, text.replace('## Use', '## How to use it'), text.replace('Mine.', '')):
        card.write_text(words)
        check_card(staged_half)
    for fact, other in (('license: mit', 'license: gpl'), ('| 90.00 |', '| 99.00 |'), ('value: 90.0', 'value: 99.0')):
        assert fact in text
        card.write_text(text.replace(fact, other))
        with pytest.raises(CheckFailed, match=re.escape(other.strip('| '))):
            check_card(staged_half)
    # Without a header, or with one that never ends, the tables are left.
    for headless in (text.partition('\n---\n')[2], text.replace('\n---\n', '\n', 1)):
        card.write_text(headless)
        with pytest.raises(CheckFailed, match=r'first in line [12]: '):
            check_card(staged_half)


@pytest.mark.parametrize('mark', [START, END])
def test_marks_in_own_words_are_refused(mark: str, staged_half: Path) -> None:
    with pytest.raises(ValueError, match='the own text must not hold the marks of its section'):
        render_card(staged_half, text=f'My {mark}')


def test_files_that_run_code_are_refused_by_their_endings(staged_half: Path) -> None:
    for ending in ('bin', 'pt', 'pth', 'pkl', 'pickle', 'ckpt', 'tar', 'joblib'):
        path = staged_half / f'more.{ending}'
        path.write_bytes(b'x')
        with pytest.raises(CheckFailed, match=f'holds more.{ending}; only safetensors are published'):
            check_folder(staged_half)
        path.unlink()
    check_folder(staged_half)
