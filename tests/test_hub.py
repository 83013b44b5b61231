"""Publishing and loading weights, with the Hub's real client over HTTP on 127.0.0.1."""
from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from hub_client import TOKEN, HubClient, HubProcess
from hub_server import HubServer
from huggingface_hub import ModelCard
from layers import randomise_
from PIL import Image
from safetensors.torch import load_file, save_file
from waiting import wait_for

from randwire_zoo.cli import main
from randwire_zoo.hub.card import END, START, render_card
from randwire_zoo.hub.checks import check_names, disagreement, figures, missing_files
from randwire_zoo.hub.config import from_config, to_config
from randwire_zoo.hub.probe import TOLERANCE, check_probe, write_probe
from randwire_zoo.hub.transfer import bounded, left_behind
from randwire_zoo.models import WEIGHTS
from randwire_zoo.training.trainer import train
from randwire_zoo.weights.description import Description
from randwire_zoo.weights.files import read_metadata, save_weights
from randwire_zoo.weights.manifest import HubError, PublishedWeights, fetch, read_rows, set_aside

ROOT = Path(__file__).resolve().parents[1]
NAME, REPO = 'randwire_ws_pico', 'someone/pico'
STAGE = ['--tag', 'noise', '--license', 'mit']
TINY: dict[str, Any] = {'graph': 'ws(2,0)', 'channels': 4, 'num_nodes': 4, 'num_classes': 3}


@pytest.fixture(scope='module')
def running() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def server(running: HubServer) -> HubServer:
    """A Hub with nothing on it."""
    running.clear()
    return running


@pytest.fixture(scope='module')
def client(running: HubServer) -> HubClient:
    return HubClient(running)


def overlaid(server: HubServer, home: Path, overlay: Path, *codes: str) -> list[Any]:
    """Run code, with an empty cache, in a new process, which takes its manifest when it starts."""
    home.mkdir()
    with HubProcess(server, home, RANDWIRE_ZOO_WEIGHTS=str(overlay)) as client:
        return [result for code in codes for result in client.run(home, code)]


def write_images(root: Path, mode: str) -> Path:
    """One image of noise per class and split, in ten classes."""
    rng = np.random.default_rng(0)
    for split in ('train', 'validation', 'test'):
        for label in range(10):
            (root / split / f'kind {label}').mkdir(parents=True)
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / split / f'kind {label}' / '0.png')
    return root


def train_on(images: Path, **settings: Any) -> Path:
    result = train('digits/randwire_ws_pico', data_dir=str(images), epochs=2, warmup_epochs=0, batch_size=10, workers=0,
                   output=str(images.parent), device='cpu', progress=False, val_split='validation', **settings)
    assert result.folder is not None
    return result.folder


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training with a moving average that lags behind."""
    images = write_images(tmp_path_factory.mktemp('training') / 'noise', 'RGB')
    return train_on(images, experiment='run', model_ema=True, model_ema_decay=0.5)


@pytest.fixture(scope='module')
def unusual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of a network, and on images, that no default describes."""
    images = write_images(tmp_path_factory.mktemp('unusual') / 'grey', 'L')
    return train_on(images, experiment='run', gp='max', in_chans=1, mean=[0.4], std=[0.2], interpolation='bicubic',
                    crop_pct=0.9, model_kwargs={'stem_stride': 2})


@pytest.fixture(scope='module')
def staged_once(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('staged') / 'folder'
    assert stage(trained / 'last.pth.tar', '-o', folder) == 0
    return folder


@pytest.fixture
def staged(staged_once: Path, tmp_path: Path) -> Path:
    """A staged folder of the test's own."""
    return Path(shutil.copytree(staged_once, tmp_path / 'staged'))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Copies: older safetensors give views of the file, which must not be written over while they live."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def stage(checkpoint: Path, *options: object) -> int:
    return main(['hub', 'stage', str(checkpoint), *STAGE, '--workers', '0', '--device', 'cpu', *map(str, options)])


def recorded(folder: Path) -> dict[str, float]:
    """The last row of a training's summary.csv."""
    header, *_, last = (folder / 'summary.csv').read_text().splitlines()
    return dict(zip(header.split(','), map(float, last.split(',')), strict=True))


def restage(staged: Path, name: str, tag: str = 'other') -> Path:
    """The same folder with other weights in it, as another training would have left it."""
    folder = Path(shutil.copytree(staged, staged.parent / name))
    config = json.loads((folder / 'config.json').read_text())
    config['pretrained_cfg']['tag'] = tag
    (folder / 'config.json').write_text(json.dumps(config))
    state, metadata = load_file(folder / 'model.safetensors'), read_metadata(folder / 'model.safetensors')
    state['fc.bias'] += 1
    network = from_config(config)
    model = network.create_model()
    model.load_state_dict(state)
    kept = {key: value for key, value in metadata.items() if key not in (
        'format', 'architecture', 'num_classes', 'graphs', 'graphs_sha256', 'tensors_sha256')}
    save_weights(model, folder / 'model.safetensors', **{**kept, 'tag': tag})
    write_probe(model, network, folder / 'probe.safetensors')
    (folder / 'README.md').write_text(render_card(folder))
    return folder


def one_line(result: dict[str, Any], code: int) -> str:
    """What a failed command said, which is one line."""
    assert result['code'] == code, result
    *_, last = result['err'].splitlines()
    assert last.startswith('randwire-zoo: error: ') and result['err'].count('error: ') == 1
    return str(last)


# Staging


def test_a_staged_folder_has_everything_and_no_pickle_nor_place_on_this_machine(
        staged: Path, trained: Path) -> None:
    assert sorted(path.name for path in staged.iterdir()) == [
        'README.md', 'args.yaml', 'config.json', 'curves.png', 'graphs.json', 'model.safetensors', 'probe.safetensors',
        'summary.csv', 'wiring.png']
    for name in ('README.md', 'args.yaml', 'config.json', 'graphs.json', 'summary.csv'):
        text = (staged / name).read_text()
        assert str(trained.parent) not in text and TOKEN not in text
    assert yaml.safe_load((staged / 'args.yaml').read_text())['data_dir'] == 'noise'
    ema = torch.load(trained / 'last.pth.tar', weights_only=False)['state_dict_ema']
    weights = load_file(staged / 'model.safetensors')
    assert all(torch.equal(tensor, ema[name]) for name, tensor in weights.items())
    assert sum(path.stat().st_size for path in staged.iterdir()) < 2e6


def test_settings_are_published_by_a_list_of_what_may_be(trained: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((trained / 'args.yaml').read_text())
    settings.update(class_map='', wandb_project='/home/me/secret', dataset_trust='secret', pretrained_path='/x/secret',
                    output='/data/secret', experiment='secret', device_modules=['secret'], log_dir='secret',
                    aa='/opt/odd/policy', model_kwargs={})
    settings['data'] = settings.pop('data_dir')  # the positional argument of train.py
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump(settings))
    assert stage(trained / 'last.pth.tar', '--recipe', tmp_path / 'args.yaml', '-o', tmp_path / 'out') == 0
    text = (tmp_path / 'out' / 'args.yaml').read_text()
    assert 'secret' not in text and '/' not in text and str(trained.parent) not in text
    public = yaml.safe_load(text)
    assert (public['data_dir'], public['lr_base']) == ('noise', settings['lr_base']) and 'aa' not in public
    assert ModelCard.load(tmp_path / 'out' / 'README.md').data.datasets is None  # type: ignore[attr-defined]


def test_what_was_trained_in_an_unusual_way_is_published_as_it_was_trained_and_measured(
        unusual: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage(unusual / 'last.pth.tar', '-o', tmp_path / 'out') == 0
    row = recorded(unusual)
    assert json.loads(read_metadata(tmp_path / 'out' / 'model.safetensors')['metrics']) == {
        'top1': row['eval_top1'], 'top5': row['eval_top5'], 'loss': pytest.approx(row['eval_loss'], rel=1e-6)}
    theirs = Description.from_checkpoint(unusual / 'last.pth.tar')
    model = theirs.create_model()
    model.load_state_dict(torch.load(unusual / 'last.pth.tar', weights_only=False)['state_dict'])
    batch = torch.randn(2, 1, 64, 64)
    published: Any = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
    with torch.inference_mode():
        torch.testing.assert_close(published.eval()(batch), model.eval()(batch), rtol=0, atol=0)
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert from_config(config) == theirs and config['label_names'] == [f'kind {i}' for i in range(10)]
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert "global_pool='max'" in card and 'stem_stride=2' in card and 'bicubic, crop 0.9' in card
    assert 'MODEL.BACKBONE.NAME' not in card, 'a builder of detectron2 makes another network of that name'
    assert 'transformers' not in card, 'its pipelines feed three channels'
    # The same settings without what decides the network, and the staged files give another loss than is on record.
    settings = yaml.safe_load((unusual / 'args.yaml').read_text())
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump({**settings, 'gp': 'avg'}))
    recipe = ['--recipe', tmp_path / 'args.yaml', '--summary', unusual / 'summary.csv', '-o', tmp_path / 'wrong']
    capsys.readouterr()
    assert stage(unusual / 'last.pth.tar', *recipe) == 1
    assert "describes another network than" in capsys.readouterr().err
    assert stage(tmp_path / 'out' / 'model.safetensors', *recipe) == 1
    assert 'the staged files do not reproduce what was recorded: loss ' in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ['args.yaml', 'out']


def test_weights_without_their_average_get_figures_of_their_own(trained: Path, tmp_path: Path) -> None:
    assert stage(trained / 'last.pth.tar', '--no-ema', '-o', tmp_path / 'raw') == 0
    state = torch.load(trained / 'last.pth.tar', weights_only=False)['state_dict']
    weights = load_file(tmp_path / 'raw' / 'model.safetensors')
    assert all(torch.equal(tensor, state[name]) for name, tensor in weights.items())
    measured = json.loads(read_metadata(tmp_path / 'raw' / 'model.safetensors')['metrics'])
    assert abs(measured['loss'] / recorded(trained)['eval_loss'] - 1) > 1e-4, 'the average was recorded'
    model: Any = timm.create_model(f'local-dir:{tmp_path / "raw"}', pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images = torch.stack([transform(Image.open(trained.parent / 'noise' / 'validation' / f'kind {i}' / '0.png'))
                          for i in range(10)])
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(model(images), torch.arange(10))
    assert measured['loss'] == pytest.approx(float(loss), rel=1e-5)
    assert stage(trained / 'last.pth.tar', '--no-ema', '--no-eval', '-o', tmp_path / 'unmeasured') == 0
    card: Any = ModelCard.load(tmp_path / 'unmeasured' / 'README.md')
    assert card.data.eval_results is None and 'no figures are published of these weights' in card.content
    # And a safetensors file that says its epoch, and which weights it holds, is staged as well.
    shutil.copy(tmp_path / 'raw' / 'model.safetensors', tmp_path / 'weights.safetensors')
    assert stage(tmp_path / 'weights.safetensors', '-o', tmp_path / 'again', '--recipe', trained / 'args.yaml',
                 '--summary', trained / 'summary.csv') == 0
    assert json.loads(read_metadata(tmp_path / 'again' / 'model.safetensors')['metrics']) == measured


def test_what_is_not_measured_is_said_and_what_cannot_be_measured_is_refused(
        trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(trained, tmp_path / 'run'))
    settings = yaml.safe_load((run / 'args.yaml').read_text())
    (run / 'args.yaml').write_text(yaml.safe_dump({**settings, 'data_dir': '/elsewhere/noise'}))
    assert stage(run / 'last.pth.tar', '-o', tmp_path / 'out') == 1
    said = capsys.readouterr().err
    assert '/elsewhere/noise is not here' in said and '--data-dir' in said and '--no-eval' in said
    assert stage(run / 'last.pth.tar', '--no-eval', '-o', tmp_path / 'out') == 0
    assert 'not measured again' in (tmp_path / 'out' / 'README.md').read_text()
    assert stage(run / 'last.pth.tar', '--data-dir', trained.parent / 'noise', '-o', tmp_path / 'there') == 0
    assert 'Measured on 10 images' in (tmp_path / 'there' / 'README.md').read_text()
    assert stage(run / 'last.pth.tar', '--data-dir', trained.parent / 'noise', '--split', 'test', '-o',
                 tmp_path / 'test') == 0
    assert 'measured on `test`' in (tmp_path / 'test' / 'README.md').read_text()


@pytest.mark.parametrize(('measured', 'published', 'images', 'agree'), [
    ({'top1': 98.3333, 'loss': 0.05}, {'top1': 98.3333, 'loss': 0.05}, 360, True),
    ({'top1': 98.3333, 'loss': 0.0504}, {'top1': 98.0556, 'loss': 0.05}, 360, True),  # one image of 360
    ({'top1': 98.3333}, {'top1': 97.7778}, 360, False),  # two
    ({'top1': 79.01}, {'top1': 78.93}, 50_000, True), ({'top1': 79.01}, {'top1': 78.9}, 50_000, False),
    ({'top1': 98.3, 'loss': 0.0985}, {'top1': 98.3, 'loss': 0.0355}, 360, False), ({}, {'top1': 50.0}, 10, False),
    ({'top1': 50.0}, {'top1': float('nan')}, 10, False),
])
def test_figures_agree_within_what_rounding_turns(
        measured: dict[str, float], published: dict[str, float], images: int, agree: bool) -> None:
    assert (disagreement(measured, published, images) == '') is agree


def test_weights_from_elsewhere_are_published_with_what_is_typed(
        unusual: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(unusual / 'last.pth.tar', weights_only=False)['state_dict']
    torch.save({name: tensor for name, tensor in state.items() if not name.endswith('_extra_state')},
               tmp_path / 'weights.pth')
    typed = ['--model', NAME, '--model-kwargs', 'stem_stride=2', '--gp', 'max', '--in-chans', 1, '--img-size', 64,
             '--mean', 0.4, '--std', 0.2, '--interpolation', 'bicubic', '--crop-pct', 0.9, '--dataset', 'grey noise']
    data = ['--data-dir', unusual.parent / 'grey']
    assert stage(tmp_path / 'weights.pth', *typed, *data, '-o', tmp_path / 'out') == 0
    row = recorded(unusual)
    metadata = read_metadata(tmp_path / 'out' / 'model.safetensors')
    assert json.loads(metadata['metrics'])['loss'] == pytest.approx(row['eval_loss'], rel=1e-6)
    assert 'args.yaml' not in {path.name for path in (tmp_path / 'out').iterdir()}
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert '\ndatasets:' not in card, 'the Hub takes no name with a space'
    assert 'No settings of a training were published' in card and 'measured on `validation`' in card
    stated = ['--metric', f'top1={row["eval_top1"]}']
    assert stage(tmp_path / 'weights.pth', *typed, '--no-eval', *stated, '-o', tmp_path / 'stated') == 0
    assert 'As the publisher states them' in (tmp_path / 'stated' / 'README.md').read_text()
    capsys.readouterr()
    for options, code, message in (
            ([*typed, *data, '--metric', 'top1=99'], 1, 'top1 99 is recorded, '),
            ([*typed, '--metric', 'top1=99'], 1, 'no data folder is recorded: name the data with --data-dir'),
            (typed[2:], 1, '--model must be given'), (typed[:-2], 1, '--dataset must be given'),
            ([*typed, '--metric', 'AP=1'], 2, "'AP=1' is not top1=")):
        assert stage(tmp_path / 'weights.pth', *options, '-o', tmp_path / 'none') == code
        said = capsys.readouterr().err
        assert message in said and said.count('\n') == 1
    assert stage(unusual / 'last.pth.tar', '--img-size', 32, '-o', tmp_path / 'none') == 2
    assert '--img-size: ' in capsys.readouterr().err and not (tmp_path / 'none').exists()


def test_the_card_reads_back_and_shows_what_was_recorded(staged: Path) -> None:
    card: Any = ModelCard.load(staged / 'README.md')
    metadata = read_metadata(staged / 'model.safetensors')
    metrics = json.loads(metadata['metrics'])
    assert card.data.license == 'mit' and card.data.library_name == 'timm' and card.data.datasets is None
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        'top-1 accuracy, %': metrics['top1'], 'top-5 accuracy, %': metrics['top5']}
    params = sum(tensor.numel() for name, tensor in load_file(staged / 'model.safetensors').items()
                 if not name.endswith(('running_mean', 'running_var', 'num_batches_tracked', '_extra_state')))
    for text in (metadata['graphs_sha256'], 'WS(4,0.75), seed 1', f'{params:,}', '@inproceedings', 'features_only=True',
                 f'build_{NAME}_fpn_backbone', '2 of 2', 'pip install', 'the moving average', 'kind 0, kind 1,',
                 "pipeline('image-classification', 'FOLDER')"):
        assert text in card.content, text


def test_a_run_that_went_on_past_its_epochs_and_endless_digits_are_told_as_they_are(
        trained: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((trained / 'args.yaml').read_text())
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump({**settings, 'epochs': 1}))
    assert stage(trained / 'last.pth.tar', '--recipe', tmp_path / 'args.yaml', '-o', tmp_path / 'out') == 0
    assert '| 2 of 2 |' in (tmp_path / 'out' / 'README.md').read_text()
    path = tmp_path / 'out' / 'model.safetensors'
    metadata = {**read_metadata(path), 'metrics': json.dumps({'top1': 295 / 3, 'loss': 1 / 3})}
    save_file(read_tensors(path), path, metadata)
    card = render_card(tmp_path / 'out')
    assert '| 98.33 | 0.3333 |' in card and '333333' not in card


@pytest.mark.parametrize('key', ['val_split', 'epochs'])
def test_a_value_that_is_recorded_nowhere_is_an_error(
        key: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = yaml.safe_load((trained / 'args.yaml').read_text())
    del settings[key]
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump(settings))
    assert stage(trained / 'last.pth.tar', '--recipe', tmp_path / 'args.yaml', '-o', tmp_path / 'out') == 1
    assert key in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['args.yaml']


@pytest.mark.parametrize(('arguments', 'code', 'message'), [
    (['nowhere.pth.tar', *STAGE], 2, 'no file at nowhere.pth.tar'),
    (['{run}/last.pth.tar', '--tag', 'a b', '--license', 'mit'], 2, '--tag must be letters, digits and _'),
    (['{run}/last.pth.tar', '--tag', 'ü', '--license', 'mit'], 2, "and _, such as in1k, got 'ü'"),
    (['{run}/last.pth.tar', '--tag', 'a', '--license', 'MIT\nevil: 1'], 2, r"got 'MIT\nevil: 1'"),
    (['{run}/last.pth.tar', *STAGE, '--dataset', 'a | b'], 2, '--dataset must be one line'),
    (['{run}/last.pth.tar', *STAGE, '--summary', 'nowhere.csv'], 2, 'no file at nowhere.csv'),
    (['{run}/last.pth.tar', *STAGE, '--model', 'randwire_ws_c109'], 1,
     'is of a training of randwire_ws_pico, not of randwire_ws_c109'),
    (['{run}/last.pth.tar', *STAGE, '-o', '{run}'], 2, 'exists; choose another --output'),
    (['{run}/last.pth.tar', *STAGE, '--text', 'nowhere.md'], 2, 'nowhere.md'),
    (['{run}/last.pth.tar', '--license', 'mit'], 2, '--tag'),
    (['hostile.pth.tar', *STAGE, '--recipe', '{run}/args.yaml', '--summary', '{run}/summary.csv'], 2,
     'hostile.pth.tar cannot be loaded'),
])
def test_stage_says_in_one_line_what_is_wrong_and_writes_nothing(
        arguments: list[str], code: int, message: str, trained: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / 'ran',))

    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': Code(), 'epoch': 0}, 'hostile.pth.tar')
    assert main(['hub', 'stage', *[argument.format(run=trained) for argument in arguments]]) == code
    said = capsys.readouterr().err
    assert message in said and said.count('\n') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['hostile.pth.tar']


def test_a_safetensors_file_without_its_epoch_is_not_staged_as_a_trainings(
        trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(timm.create_model(NAME), tmp_path / 'weights.safetensors')
    assert stage(tmp_path / 'weights.safetensors', '--recipe', trained / 'args.yaml', '--summary',
                 trained / 'summary.csv', '-o', tmp_path / 'out') == 1
    assert 'does not say of which epoch it is' in capsys.readouterr().err


# What is staged is what it says


def test_the_probe_passes_rounding_and_no_other_network_or_preprocessing(staged: Path) -> None:
    network = from_config(json.loads((staged / 'config.json').read_text()))
    model = network.create_model()
    model.load_state_dict(load_file(staged / 'model.safetensors'))
    probe = staged / 'probe.safetensors'
    with torch.backends.mkldnn.flags(enabled=False):
        check_probe(model.to(memory_format=torch.channels_last), network, probe)
    for other in ({'interpolation': 'bicubic'}, {'crop_pct': 0.9}, {'crop_mode': 'squash'}, {'mean': (0.5, 0.5, 0.51)},
                  {'std': (0.51,) * 3}, {'input_size': (3, 72, 72)}):
        with pytest.raises(ValueError, match='computes other logits than when it was staged'):
            check_probe(model, replace(network, **other), probe)
    for arguments in ({'global_pool': 'max'}, {'global_pool': 'avgmax'}):
        changed = replace(network, arguments={**network.arguments, **arguments})
        pooled = changed.create_model()
        pooled.load_state_dict(model.state_dict())
        with pytest.raises(ValueError, match='computes other logits'):
            check_probe(pooled, changed, probe)
    stored = load_file(probe)
    assert TOLERANCE < 0.01 and stored['pictures'].dtype == torch.uint8 and probe.stat().st_size < 100_000


def test_the_probe_is_the_same_whoever_writes_it_and_shows_every_channel(tmp_path: Path) -> None:
    """Content that is staged again must be the same bytes; and a probe of any number of channels is checked."""
    path = tmp_path / 'probe.safetensors'
    for channels in (2, 3):
        network = Description('randwire', {**TINY, 'in_chans': channels}, (channels, 32, 40), (0.25,) * channels,
                              tuple(0.5 + i / 10 for i in range(channels)), 'bilinear', 1.0)
        model = network.create_model()
        torch.nn.init.normal_(model.fc.weight)
        write_probe(model, network, path)
        check_probe(model, network, path)
        stored = read_tensors(path)
        assert stored['pictures'].shape == (2, 72, 96, channels) and stored['logits'].shape == (2, 3)
        with pytest.raises(ValueError, match='computes other logits'):
            check_probe(model, replace(network, mean=(0.25,) * (channels - 1) + (0.3,)), path)
    assert hashlib.sha256(stored['pictures'].numpy().tobytes()).hexdigest() == (
        'd00e488105f77e6fecef956474ff0549efa94ce54754190545651d8b03a12e50')
    few = Description('randwire', {**TINY, 'in_chans': 2}, (2, 32, 40), (0.25, 0.25), (0.5, 0.6), 'bilinear', 1.0)
    with pytest.raises(ValueError, match=r'pictures must be bytes \[N, H, W, 2\], got torch.uint8 \[2, 72, 96, 3\]'):
        check_probe(model, few, path)
    for name, tensor, message in (
            ('pictures', stored['pictures'].int(), r'got torch.int32 \[2, 72, 96, 3\]'),
            ('pictures', stored['pictures'][0], r'got torch.uint8 \[72, 96, 3\]'),
            ('logits', stored['logits'][:, :2], r'safetensors: the network gives logits \[2, 3\], stored are \[2, 2\]'),
            ('logits', stored['logits'] * 1.002, 'they differ by 0.002 of their size, rounding by less than 0.001'),
            ('logits', stored['logits'] * 0, 'computes other logits'),
            ('logits', stored['logits'] / 0, 'computes other logits')):
        save_file({**stored, name: tensor.contiguous()}, path)
        with pytest.raises(ValueError, match=message):
            check_probe(model, network, path)
    save_file({**stored, 'logits': stored['logits'] * 1.0005}, path)
    check_probe(model, network, path)
    # By hand, the images of two channels: no picture file has so many.
    model = few.create_model()
    torch.nn.init.normal_(model.fc.weight)
    write_probe(model, few, path)
    stored = read_tensors(path)
    assert read_metadata(path) == {'format': 'pt'}, 'which transformers asks of any safetensors file'
    std = torch.tensor([0.5, 0.6])
    images = torch.nn.functional.interpolate(
        ((stored['pictures'] / 255 - 0.25) / std).permute(0, 3, 1, 2), (32, 40), mode='bilinear')
    with torch.inference_mode():
        torch.testing.assert_close(stored['logits'], model.eval()(images))


def test_config_json_says_everything_once_in_timms_form() -> None:
    network = Description('randwire', {**TINY, 'stem_stride': 2}, (3, 32, 65), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6),
                          'bicubic', 0.9, 'squash', ('cat', 'dog', 'n3'))
    config = to_config(network, network.create_model(), 'x', 'mit', 'one line', {'n3': 'a bird', 'n4': 'a fish'})
    assert config == {
        'architecture': 'randwire', 'num_classes': 3, 'num_features': 1280, 'label_names': ['cat', 'dog', 'n3'],
        'label_descriptions': {'n3': 'a bird'},
        'model_args': {'graph': 'ws(2,0)', 'channels': 4, 'num_nodes': 4, 'stem_stride': 2},
        'pretrained_cfg': {
            'tag': 'x', 'license': 'mit', 'description': 'one line', 'custom_load': False, 'input_size': [3, 32, 65],
            'interpolation': 'bicubic', 'mean': [0.1, 0.2, 0.3], 'std': [0.4, 0.5, 0.6], 'crop_pct': 0.9,
            'crop_mode': 'squash', 'fixed_input_size': False, 'pool_size': [2, 5], 'first_conv': 'conv1.conv',
            'classifier': 'fc', 'origin_url': config['pretrained_cfg']['origin_url'], 'paper_name':
            'Exploring Randomly Wired Neural Networks for Image Recognition', 'paper_ids': 'arXiv:1904.01569'}}
    assert from_config(json.loads(json.dumps(config))) == network
    bare = Description('randwire', {**TINY, 'num_classes': 0}, *list(network.data_config().values())[:1], (0.5,) * 3,
                       (0.5,) * 3, 'bilinear', 1.0)
    config = to_config(bare, bare.create_model(), 'x', 'mit', 'one line')
    assert config['pretrained_cfg']['classifier'] == 'fc' and not {'label_names', 'label_descriptions'} & set(config)
    assert from_config(config) == bare
    for missing in ('num_classes', 'architecture', 'pretrained_cfg'):
        with pytest.raises(ValueError, match=f'^config.json lacks {missing}$'):
            from_config({key: value for key, value in config.items() if key != missing})
    assert from_config({key: value for key, value in config.items() if key != 'model_args'}).arguments == {
        'num_classes': 0}


def test_what_a_folder_lacks_and_what_names_and_figures_may_be() -> None:
    required = ['model.safetensors', 'config.json', 'graphs.json', 'probe.safetensors', 'README.md', 'wiring.png']
    for there, lacks in (
            ([], required), (required, []), ([*required, 'args.yaml'], []),
            ([*required, 'args.yaml', 'summary.csv'], ['curves.png']),
            ([*required, 'args.yaml', 'curves.png'], ['summary.csv']),
            ([*required, 'summary.csv', 'curves.png'], ['args.yaml']),
            ([*required, 'curves.png'], ['args.yaml', 'summary.csv']),
            ([*required, 'metrics.json', 'curves.png'], ['config.yaml']),
            ([*required, 'config.yaml', 'metrics.json', 'curves.png'], []), (required[1:], required[:1])):
        assert missing_files(there) == lacks, there
    for tag, license in (('a', 'mit'), ('A_1', 'apache-2.0')):
        check_names(tag, license)
    for tag, license, message in (
            ('1a', 'mit', "--tag must be letters, digits and _, such as in1k, got '1a'"),
            (None, 'mit', 'such as in1k, got None'),
            ('a', None, '--license must be an identifier such as apache-2.0, got None'),
            ('a', 'my own', "such as apache-2.0, got 'my own'")):
        with pytest.raises(ValueError, match=f'{message}$'):
            check_names(tag, license)
    assert figures({'top1': 295 / 3, 'loss': 1 / 3}) == 'top1 98.33, loss 0.3333' and figures({}) == 'not measured'
    for measured, published, images, said in (
            ({'top1': 50.0}, {'top1': 50.1}, 10**6, ''), ({'top1': 50.0}, {'top1': 50.101}, 10**6,
             'top1 50.101 is recorded, 50 was measured'), ({'top1': 40.0}, {'top1': 50.0}, 10, ''),
            ({'top1': 39.9}, {'top1': 50.0}, 10, 'top1 50 is recorded, 39.9 was measured'),
            ({'loss': 1.011}, {'loss': 1.0}, 1, ''), ({'loss': 1.0111}, {'loss': 1.0}, 1,
             'loss 1 is recorded, 1.0111 was measured'), ({'top1': 1.0}, {'top1': 1.0, 'top5': 2.0}, 1,
             'top5 2 was not measured')):
        assert disagreement(measured, published, images) == said


def test_a_transfer_gives_its_result_or_its_error_or_is_left_behind() -> None:
    assert bounded(lambda: 7, 60, 'x') == 7 and not left_behind()
    with pytest.raises(KeyError, match='why'):
        bounded(lambda: {}['why'], 60, 'x')
    for seconds in (0, -1, float('inf'), float('nan')):
        with pytest.raises(ValueError, match=f'^--timeout must be a number of seconds above 0, got {seconds:g}$'):
            bounded(lambda: 7, seconds, 'x')
    go_on = threading.Event()
    with pytest.raises(HubError, match=r'^x: gave up after 0\.01 s \(--timeout\); run it again'):
        bounded(go_on.wait, 0.01, 'x')
    assert left_behind()
    go_on.set()
    wait_for(lambda: not left_behind())


def _edit(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    """A change of the tensors by someone who also corrects the hash of the tensors in the metadata."""
    def edit(folder: Path) -> None:
        from randwire_zoo.weights.files import _tensors_sha256

        path = folder / 'model.safetensors'
        metadata, state = read_metadata(path), read_tensors(path)
        change(state)
        save_file(state, path, {**metadata, 'tensors_sha256': _tensors_sha256(state)})
    return edit


def _set_config(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / 'config.json').read_text())
        for key, value in values.items():
            if isinstance(value, dict):
                config[key].update(value)
            else:
                config[key] = value
        (folder / 'config.json').write_text(json.dumps(config))
    return edit


def _flip(folder: Path) -> None:
    data = bytearray((folder / 'model.safetensors').read_bytes())
    data[-1] ^= 1
    (folder / 'model.safetensors').write_bytes(data)


def _other_graphs(folder: Path) -> None:
    from randwire_zoo.frozen import load_graphs

    (folder / 'graphs.json').write_text(json.dumps([g.to_dict() for g in load_graphs('randwire_ws_small_s1')]))


def _replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
    return edit


@pytest.mark.parametrize(('damage', 'message'), [
    (_set_config(architecture='randwire_ws_small_s1'), 'other wiring'),
    (_set_config(architecture='resnet18'), "'resnet18' is no name of the zoo"),
    (_set_config(num_classes=7, label_names=[]), 'size mismatch for fc.weight'),
    (_set_config(model_args={'global_pool': 'max'}), 'computes other logits than when it was staged'),
    (_set_config(pretrained_cfg={'mean': [0.4, 0.4, 0.4]}), 'computes other logits than when it was staged'),
    (_set_config(model_args={'stem_stride': 2}), 'cannot be loaded'),
    (_set_config(pretrained_cfg={'license': 'MIT\nevil: 1'}), "got 'MIT\\nevil: 1'"),
    (_edit(lambda state: state.pop('conv4.nodes.2.bn.bias')), 'Missing key(s) in state_dict: "conv4.nodes.2.bn.bias"'),
    (_edit(lambda state: state.update({'conv9.weight': torch.zeros(1)})), 'Unexpected key(s)'),
    (_edit(lambda state: state['fc.bias'].fill_(float('nan'))), 'not all values are finite: fc.bias'),
    (_edit(lambda state: state['fc.bias'].add_(1)), 'computes other logits than when it was staged'),
    (_edit(lambda state: state['conv3._extra_state'].mul_(-1).add_(1)), 'wiring'),
    (_flip, 'has been altered: its tensors have sha256'),
    (_other_graphs, 'have different wirings'),
    (_replace('summary.csv', '\n1,', '\n7,'), 'has no epoch 1, which'),
    (_replace('config.json', '"tag": "noise"', '"tag": "in1k"'), "has the tag 'in1k'"),
    (_replace('README.md', '| 2 of 2 |', '| 2 of 2 | 99.9 |'), "instead of '| noise, measured on"),
    (_replace('README.md', 'license: mit', 'license: apache-2.0'), 'README.md is not what is rendered of the folder'),
    (lambda folder: (folder / 'pytorch_model.bin').write_bytes(b'x'), 'only safetensors are published'),
    (lambda folder: (folder / 'notes.txt').write_bytes(b'x'), 'holds notes.txt, which is not published'),
    (lambda folder: (folder / 'args.yaml').unlink(), 'lacks args.yaml'),
    (lambda folder: (folder / 'summary.csv').unlink(), 'lacks summary.csv'),
    (lambda folder: (folder / 'probe.safetensors').unlink(), 'lacks probe.safetensors'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_a_folder_that_is_not_what_it_says_is_refused_before_anything_is_sent(
        damage: Callable[[Path], None], message: str, staged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(staged)
    assert main(['hub', 'push', str(staged), REPO, '--dry-run']) == 1
    said = capsys.readouterr().err
    assert message in said and said.count('\n') == 1


def test_metrics_must_be_those_of_the_summary(staged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = (staged / 'summary.csv').read_text().splitlines()
    header, last = rows[0].split(','), rows[-1].split(',')
    last[header.index('eval_top1')] = '99.99'
    (staged / 'summary.csv').write_text('\n'.join([*rows[:-1], ','.join(last)]) + '\n')
    assert main(['hub', 'push', str(staged), REPO, '--dry-run']) == 1
    assert "the weights record {'top1': " in capsys.readouterr().err


def test_own_words_stay_where_they_belong_and_are_refused_elsewhere(
        trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'text.md').write_text('## Intended use\n\nFor {{ tests }}.\n')
    assert stage(trained / 'last.pth.tar', '--no-eval', '--text', tmp_path / 'text.md', '-o', tmp_path / 'out') == 0
    card = tmp_path / 'out' / 'README.md'
    assert f'{START}\n## Intended use\n\nFor {{{{ tests }}}}.\n{END}' in card.read_text()
    card.write_text(card.read_text().replace('For {{ tests }}.', 'For *all* tests.'))
    assert main(['hub', 'push', str(tmp_path / 'out'), REPO, '--dry-run']) == 0
    card.write_text(card.read_text().replace('## Use\n', '## Use\n\nNot in cars.\n'))
    capsys.readouterr()
    assert main(['hub', 'push', str(tmp_path / 'out'), REPO, '--dry-run']) == 1
    said = capsys.readouterr().err
    assert "'Not in cars.' instead of" in said and END in said
    (tmp_path / 'text.md').write_text(END)
    assert stage(trained / 'last.pth.tar', '--no-eval', '--text', tmp_path / 'text.md', '-o', tmp_path / 'no') == 2


def test_a_dry_run_writes_nothing_and_refuses_names_that_cannot_be(
        staged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in staged.iterdir()}
    assert main(['hub', 'push', str(staged), REPO, '--dry-run']) == 0
    for repo in ('http://x/y', 'a/..', 'pico', 'a/b/c', 'a/b c', '-a/b', 'someone/'):
        capsys.readouterr()
        assert main(['hub', 'push', str(staged), '--dry-run', '--', repo]) == 2
        assert capsys.readouterr().err == (
            'randwire-zoo: error: a repository is named OWNER/NAME, of letters, digits, ., - and _, got '
            f'{repo!r}\n')
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in staged.iterdir()} == before


# Pushing


def test_push_then_every_way_of_loading_gives_the_same_bits(
        server: HubServer, client: HubClient, staged: Path, tmp_path: Path) -> None:
    home = tmp_path / 'home'
    dry, first, again = client.hub(home, ['push', staged, REPO, '--dry-run'], ['push', staged, REPO],
                                   ['push', staged, REPO])
    assert dry['code'] == first['code'] == again['code'] == 0 and dry['out'] == '', first
    row, = json.loads(first['out']).values()
    assert first['out'] == again['out'] and server.commits(REPO)[1:] == [row['revision']]
    assert list(server.tags(REPO).values()) == [row['revision']]
    served = server.files(REPO)
    assert {name: data for name, data in served.items() if name not in ('.gitattributes', 'README.md')} == {
        path.name: path.read_bytes() for path in staged.iterdir() if path.name != 'README.md'}
    assert served['README.md'].decode() == render_card(staged, REPO)
    assert not any(TOKEN.encode() in data for data in served.values())

    (tmp_path / 'row.json').write_text(first['out'])
    overlay = tmp_path / 'weights.json'
    added, = client.hub(home, ['manifest', 'add', tmp_path / 'row.json', '--manifest', overlay])
    assert added['code'] == 0
    sources = [NAME, f'{NAME}.noise', f'hf-hub:{REPO}@{row["revision"]}', f'local-dir:{staged}']
    code = '\n'.join(f'results.append([logits({source!r}, **kwargs) for kwargs in ({{}}, dict(num_classes=3), '
                     f'dict(in_chans=1))])' for source in sources) + f'''
results.append(logits({NAME + ".digits"!r}))
results.append(command("hub", "pull", {NAME!r}))
results.append(logits({NAME!r}, cache_dir={str(tmp_path / "own")!r}))
results.extend(command("hub", *arguments) for arguments in (
    ["verify", {NAME!r}], ["verify", "{REPO}@{row["revision"]}"], ["manifest", "check", "--online"],
    ["pull", {REPO!r}, "-o", {str(tmp_path / "copy.safetensors")!r}], ["manifest", "list"]))
'''
    # Cached: no request at all, and offline what a branch was at is known as well.
    offline = f'''
constants.HF_HUB_OFFLINE = True
results.append(logits({NAME!r}))
results.extend(command("hub", "pull", target) for target in ({NAME!r}, {REPO!r}))
'''
    server.log.clear()
    *loaded, digits, pulled, own, verify, verify_repo, check, pull, listed, again, offline1, offline2 = overlaid(
        server, tmp_path / 'fresh', overlay, code, offline)
    assert all(len(digest) == 64 for digest in loaded[0]) and all(result == loaded[0] for result in loaded)
    assert digits != loaded[0][0] == own and pulled['code'] == 0
    for result in (verify, verify_repo, check, pull, listed):
        assert result['code'] == 0, result
    assert (tmp_path / 'own').is_dir(), 'cache_dir was not used'
    assert (tmp_path / 'copy.safetensors').read_bytes() == (staged / 'model.safetensors').read_bytes()
    assert f'{REPO}@{row["revision"]}' in listed['out']
    assert again == loaded[0][0] and offline1['code'] == offline2['code'] == 0, offline2
    weights = f'GET /{REPO}/resolve/{row["revision"]}/model.safetensors'
    assert server.log.count(weights) == 4, 'to be loaded, into a cache of its own, and twice to be verified'
    assert server.log[-1] != weights


def test_half_of_the_bytes_ship_beside_a_manifest_and_the_name_alone_stays_the_papers(
        server: HubServer, client: HubClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = 'randwire_ba_small_s5'
    model = timm.create_model(name, num_classes=3)
    randomise_(model)
    save_weights(model, tmp_path / 'small.safetensors')
    whole = (tmp_path / 'small.safetensors').stat().st_size
    assert stage(tmp_path / 'small.safetensors', '-o', tmp_path / 'staged', '--half', '--no-eval', '--dataset', 'noise',
                 '--img-size', 64, '--tag', 'few') == 0
    assert 'stored in float16' in (tmp_path / 'staged' / 'README.md').read_text()
    pushed, = client.hub(tmp_path / 'home', ['push', tmp_path / 'staged', 'someone/half'])
    row = json.loads(pushed['out'])[f'{name}.few']
    verified, = client.hub(tmp_path / 'home', ['verify', f'someone/half@{row["revision"]}'])
    assert pushed['code'] == verified['code'] == 0, verified
    manifest = tmp_path / 'weights.json'
    assert main(['hub', 'manifest', 'add', str(tmp_path / 'staged'), '--manifest', str(manifest)]) == 0
    capsys.readouterr()
    shipped = json.loads(manifest.read_text())[f'{name}.few']
    assert shipped['sha256'] == row['sha256'] and not shipped['is_default']
    file = tmp_path / 'weights' / f'{name}.few.safetensors'
    assert 0.5 * whole < file.stat().st_size < 0.53 * whole
    stored, mine = load_file(file), model.state_dict()
    for key, tensor in stored.items():
        is_kernel = mine[key].ndim > 1 and mine[key].numel() >= 1024
        assert tensor.dtype == (torch.float16 if is_kernel else mine[key].dtype)
        assert torch.allclose(tensor.float(), mine[key].float(), rtol=2**-11, atol=2**-25)
    rounded = timm.create_model(name, num_classes=3).eval()
    rounded.load_state_dict(stored)
    assert all(tensor.dtype == mine[key].dtype for key, tensor in rounded.state_dict().items())
    with torch.no_grad():
        expected = rounded(torch.ones(1, 3, 64, 64)).tolist()
    alone, tagged, trained, listed, described, pretrained = overlaid(server, tmp_path / 'fresh', manifest, f'''
import torch
from randwire_zoo.weights.description import Description
plain = timm.create_model({name!r}, device='meta')
results.append([plain.num_classes, *plain.pretrained_cfg['input_size']])
plain = timm.create_model('{name}.few', device='meta')
results.append([plain.num_classes, *plain.pretrained_cfg['input_size']])
model = timm.create_model({name!r}, pretrained=True).eval()
with torch.no_grad():
    results.append([model.num_classes, model.pretrained_cfg['tag'], model(torch.ones(1, 3, 64, 64)).tolist()])
results.append(timm.list_pretrained('{name}*'))
for pretrained in (False, True):
    found = Description.from_settings({{'model': {name!r}, 'pretrained': pretrained}})
    results.append([found.arguments['num_classes'], *found.input_size])
''')
    assert alone == [1000, 3, 224, 224] and tagged == [3, 3, 64, 64]
    assert trained == [3, 'few', expected] and listed == [f'{name}.few']
    assert described == [1000, 3, 224, 224] and pretrained == [3, 3, 64, 64]


def test_a_published_row_builds_the_network_that_was_trained(
        server: HubServer, client: HubClient, unusual: Path, tmp_path: Path) -> None:
    data = yaml.safe_load((unusual / 'args.yaml').read_text())['data_dir']
    run = train_on(Path(data), experiment='generated', in_chans=1, model='randwire', img_size=32,
                   model_kwargs={'graph': 'ba(2)', 'num_nodes': 6, 'channels': 8, 'seed': 3, 'node_op': 'max_pool'})
    rows = {}
    for folder, repo in ((unusual, 'someone/unusual'), (run, 'someone/generated')):
        out = tmp_path / folder.name
        assert stage(folder / 'last.pth.tar', '--no-eval', '-o', out) == 0
        pushed, = client.hub(tmp_path / 'home', ['push', out, repo])
        assert pushed['code'] == 0, pushed
        (tmp_path / 'row.json').write_text(pushed['out'])
        assert main(['hub', 'manifest', 'add', str(tmp_path / 'row.json'), '--manifest',
                     str(tmp_path / 'weights.json')]) == 0
        rows.update(json.loads(pushed['out']))
    assert list(rows) == ['randwire_ws_pico.noise', 'randwire.noise']
    assert rows['randwire.noise']['model_args']['graph'] == 'ba(2)'
    assert len(rows['randwire_ws_pico.noise']['label_names']) == 10
    assert 'label_names' not in rows['randwire.noise'], 'ten names are none of a thousand classes'
    *digests, default, plain, checked, trained_on = overlaid(server, tmp_path / 'fresh', tmp_path / 'weights.json', f'''
for name in ('randwire_ws_pico', 'randwire_ws_pico.noise', 'local-dir:{tmp_path / "run"}', 'randwire.noise',
             'local-dir:{tmp_path / "generated"}'):
    results.append(logits(name))
results.append(logits('randwire'))
plain = timm.create_model('randwire', num_nodes=8), timm.create_model('randwire_ws_pico')
results.append([[model.num_classes, model.conv1.conv.stride[0]] for model in plain])
results.append(command('hub', 'manifest', 'check'))
from randwire_zoo.weights.description import Description
for name in ('randwire.noise', 'randwire_ws_pico'):
    results.append(Description.from_settings({{'model': name, 'pretrained': True}}).arguments)
'''.replace('results.append(Description', 'described = results.append(Description'))[:9]
    assert digests[0] == digests[1] == digests[2] and digests[3] == digests[4] != digests[0]
    assert default[0] == 'RuntimeError' and 'No pretrained weights exist for randwire' in default[1]
    assert plain == [[1000, 2], [10, 2]], 'the names themselves stay what they were'
    assert checked['code'] == 0 and checked['out'] == f'{len(WEIGHTS) + 2} rows are right\n', checked
    assert trained_on['graph'] == 'ba(2)'


def test_what_a_repository_holds_is_what_was_staged_last_and_content_that_comes_back_is_a_state_as_well(
        server: HubServer, client: HubClient, staged: Path, tmp_path: Path) -> None:
    home = tmp_path / 'home'
    assert client.hub(home, ['push', staged, REPO])[0]['code'] == 0
    other = restage(staged, 'b', 'noise')
    for name in ('args.yaml', 'summary.csv', 'curves.png'):
        (other / name).unlink()
    (other / 'README.md').write_text(render_card(other))
    second, third, fourth, fifth = client.hub(
        home, ['push', other, REPO], ['push', staged, REPO], ['push', staged, REPO], ['push', other, REPO])
    assert second['code'] == third['code'] == fourth['code'] == fifth['code'] == 0, [second, third, fourth, fifth]
    commits = server.commits(REPO)
    assert len(commits) == 5 and third['out'] == fourth['out'] and 'nothing to send' in fourth['err']
    states = [set(server.files(REPO, commit)) - {'.gitattributes'} for commit in commits[1:]]
    assert states == [{path.name for path in folder.iterdir()} for folder in (staged, other, staged, other)]
    assert server.files(REPO, commits[1]) == server.files(REPO, commits[3])
    tags = {commit: name for name, commit in server.tags(REPO).items()}
    assert len(tags) == 4 and [tags[commits[3]], tags[commits[4]]] == [f'{tags[old]}.2' for old in commits[1:3]]
    verified, = client.hub(home, ['verify', REPO])
    assert verified['code'] == 0, verified


@pytest.mark.parametrize(('there', 'options', 'message'), [
    ('public', ['--private'], 'someone/pico is public, and --private was asked for: nothing was sent'),
    ('foreign', [], 'someone/pico holds what no push of randwire-zoo made (README.md, a, b, c, d …)'),
    ('edited', [], 'someone/pico has been changed since the last push, by commit '),
    ('other', [], 'someone/pico holds another network, randwire_ws_pico.other, not randwire_ws_pico.noise'),
    ('nothing', [], 'someone/pico holds another network, no network, not randwire_ws_pico.noise'),
])
def test_what_is_not_this_networks_own_is_left_alone_until_it_is_to_be_replaced(
        there: str, options: list[str], message: str, server: HubServer, client: HubClient, staged: Path,
        tmp_path: Path) -> None:
    home = tmp_path / 'home'
    if there == 'foreign':
        server.create(REPO, {'README.md': b'mine', **dict.fromkeys('abcde', b'x')})
    else:
        first = restage(staged, 'first', 'other') if there == 'other' else staged
        assert client.hub(home, ['push', first, REPO])[0]['code'] == 0
    if there == 'edited':
        server.move_head(REPO, {'README.md': server.files(REPO)['README.md'] + b'\nEdited by hand.\n'})
        assert 'README.md is not what is rendered' in one_line(client.hub(home, ['verify', REPO])[0], 1)
    if there == 'nothing':
        server.move_head(REPO, {'config.json': b'{}'})
        server.tag(REPO, f'noise-{"0" * 12}')
    before = server.commits(REPO), server.files(REPO), server.tags(REPO)
    pushed = restage(staged, 'pushed', 'noise') if there == 'public' else staged
    refused, = client.hub(home, ['push', pushed, REPO, *options])
    assert message in one_line(refused, 1) and '--overwrite' in refused['err']
    assert (server.commits(REPO), server.files(REPO), server.tags(REPO)) == before
    start = len(server.log)
    if there != 'public':
        proposed, = client.hub(home, ['push', pushed, REPO, '--pull-request'])
        assert proposed['code'] == 0 and proposed['out'] == '' and '/discussions/1' in proposed['err']
        assert set(server.proposals(REPO)[0]) - {'.gitattributes'} == {path.name for path in pushed.iterdir()}
        assert (server.commits(REPO), server.files(REPO)) == before[:2] and not any(
            '/repos/create' in request for request in server.log[start:])
    done, = client.hub(home, ['push', pushed, REPO, *options, '--overwrite'])
    assert done['code'] == 0
    assert set(server.files(REPO)) - {'.gitattributes'} == {path.name for path in pushed.iterdir()}
    assert client.hub(home, ['verify', REPO])[0]['code'] == 0


def test_another_generator_of_the_open_name_or_another_operation_is_another_network(
        server: HubServer, client: HubClient, tmp_path: Path) -> None:
    def staged(**changes: Any) -> Path:
        arguments = {**TINY, 'seed': 1, **changes}
        model = timm.create_model('randwire', **arguments)
        folder = tmp_path / str(changes)
        folder.mkdir()
        save_weights(model, folder / 'weights.safetensors')
        kwargs = [f'{key}={value}' for key, value in arguments.items() if key != 'num_classes']
        assert stage(folder / 'weights.safetensors', '--model-kwargs', *kwargs, '--dataset', 'noise', '--img-size', 64,
                     '--no-eval', '-o', folder / 'staged') == 0
        return folder / 'staged'

    first, other, pooled = staged(), staged(seed=2, graph='ws(2,0.5)'), staged(node_op='max_pool')
    done, again, refused, too = client.hub(tmp_path / 'home', *(
        ['push', folder, REPO] for folder in (first, first, other, pooled)))
    assert done['code'] == again['code'] == 0
    assert ("holds another network, randwire.noise with graph='ws(2,0)' instead of 'ws(2,0.5)', seed=1 instead of 2, "
            'other graphs. Nothing was sent') in one_line(refused, 1)
    assert "holds another network, randwire.noise with node_op='sep_conv' instead of 'max_pool'. Nothing" in one_line(
        too, 1)
    # The graphs alone tell, where the same arguments gave others.
    files = server.files(REPO)
    graphs = [{**graph, 'edges': graph['edges'][1:]} for graph in json.loads(files['graphs.json'])]
    server.move_head(REPO, {'graphs.json': json.dumps(graphs).encode()})
    server.tag(REPO, f'noise-{"0" * 12}')
    refused, = client.hub(tmp_path / 'home', ['push', first, REPO])
    assert 'holds another network, randwire.noise with other graphs. Nothing' in one_line(refused, 1)


def test_rows_of_the_manifest_are_pulled_and_verified_as_they_were_when_the_row_was_made(
        server: HubServer, client: HubClient, staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, weights = tmp_path / 'home', (staged / 'model.safetensors').read_bytes()
    pushed, later = client.hub(home, ['push', staged, REPO], ['push', restage(staged, 'b', 'noise'), REPO])
    assert later['code'] == 0
    first, second = server.commits(REPO)[1:]
    name, row = f'{NAME}.noise', read_rows_of(pushed['out'])[f'{NAME}.noise']
    assert row.revision == first
    # The tag is named after the hashes of all files.
    hashes = [f'{name} {hashlib.sha256(data).hexdigest()}' for name, data in sorted(server.files(REPO, first).items())
              if name != '.gitattributes']
    assert server.tags(REPO)['noise-' + hashlib.sha256('\n'.join(hashes).encode()).hexdigest()[:12]] == first
    monkeypatch.setitem(WEIGHTS, name, row)
    whole = 'is whole, loads strictly, computes the logits of its probe and has the recorded metrics\n'
    of_row, of_tag, of_head, pulled, checked = client.hub(
        tmp_path / 'fresh', ['verify', name], ['verify', f'{REPO}@{first}'], ['verify', REPO], ['pull', name],
        ['manifest', 'check', '--online'])
    assert of_row['out'] == of_tag['out'] == f'{name}: {REPO}@{first} {whole}', of_row
    assert of_head['out'] == f'{name}: {REPO}@{second} {whole}'
    assert pulled['code'] == 0 and Path(pulled['out'].strip()).read_bytes() == weights
    assert checked['code'] == 0, checked
    monkeypatch.setitem(WEIGHTS, name, replace(row, metrics={'top1': 1.0}, license='mpl-2.0'))
    odd, = client.hub(tmp_path / 'fresh', ['verify', name])
    said = one_line(odd, 1)
    assert f'{name}: {REPO}@{first} and the manifest differ in license (mit, not mpl-2.0), metrics ({{' in said
    monkeypatch.setitem(WEIGHTS, name, replace(row, revision=second))
    wrong, = client.hub(tmp_path / 'fresh', ['manifest', 'check', '--online'])
    assert f'{name}: the Hub records sha256 ' in one_line(wrong, 1)
    # Offline, the cache knows which hash a file has, for a branch as well.
    offline = '\n'.join(['constants.HF_HUB_OFFLINE = True', *(
        f'results.append(command("hub", "pull", {target!r}))' for target in (f'{REPO}@{first}', REPO))])
    client.hub(home, ['pull', f'{REPO}@{first}'], ['pull', REPO])
    requests = len(server.log)
    there, branch = client.run(home, offline)
    assert there['code'] == branch['code'] == 0 and len(server.log) == requests
    assert Path(there['out'].strip()).read_bytes() == weights != Path(branch['out'].strip()).read_bytes()
    Path(there['out'].strip()).resolve().write_bytes(b'X' + weights[1:])
    altered, branch = client.run(home, offline)
    assert 'it is not in the cache, and HF_HUB_OFFLINE is set' in one_line(altered, 3)
    assert 'the cache knows it as' in altered['err'] and branch['code'] == 0


@pytest.mark.parametrize('name', sorted(path.name for path in (ROOT / 'docs' / 'weights').glob('*.*')))
def test_the_weights_in_the_package_and_their_cards_are_what_a_repository_can_hold(
        name: str, server: HubServer, client: HubClient, tmp_path: Path) -> None:
    """Cards lie in docs/weights, without the weights themselves."""
    row = WEIGHTS[name]
    folder = Path(shutil.copytree(ROOT / 'docs' / 'weights' / name, tmp_path / 'staged'))
    shutil.copy(fetch(row), folder / 'model.safetensors')
    pushed, = client.hub(tmp_path / 'home', ['push', folder, f'someone/{name}'])
    assert pushed['code'] == 0, pushed
    found = read_rows_of(pushed['out'])[name]
    place = {'repo_id': None, 'revision': None, 'is_default': row.is_default}
    assert replace(found, file=row.file, **place) == row
    verified, = client.hub(tmp_path / 'fresh', ['verify', f'someone/{name}@{found.revision}'])
    assert verified['code'] == 0 and 'computes the logits of its probe' in verified['out'], verified


def read_rows_of(text: str) -> dict[str, PublishedWeights]:
    """The rows that a push has printed."""
    with NamedTemporaryFile('w', suffix='.json') as file:
        file.write(text)
        file.flush()
        rows, problems = read_rows(file.name)
    assert not problems
    return rows


def test_a_private_repository_is_made_private_and_stays_it(
        server: HubServer, client: HubClient, staged: Path, tmp_path: Path) -> None:
    for options in (['--private'], []):
        pushed, = client.hub(tmp_path / 'home', ['push', staged, REPO, *options])
        assert pushed['code'] == 0 and server.is_private(REPO)


def test_a_proposal_goes_to_a_repository_of_others_and_never_makes_one(
        server: HubServer, client: HubClient, staged: Path, tmp_path: Path) -> None:
    server.create('else/pico', {'README.md': b'theirs'})
    proposed, none = client.hub(tmp_path / 'home', ['push', staged, 'else/pico', '--pull-request'],
                                ['push', staged, REPO, '--pull-request'])
    assert proposed['code'] == 0 and len(server.proposals('else/pico')) == 1
    assert 'there is no such repository' in one_line(none, 1) and server.repositories() == ['else/pico']


def test_altered_bytes_are_refused_by_every_way_of_loading_and_a_bad_file_is_set_aside_and_fetched_once_more(
        server: HubServer, client: HubClient, staged: Path, tmp_path: Path) -> None:
    pushed, = client.hub(tmp_path / 'home', ['push', staged, REPO])
    overlay, own = tmp_path / 'weights.json', str(tmp_path / 'own')
    overlay.write_text(pushed['out'])
    row, = json.loads(pushed['out']).values()
    fresh = tmp_path / 'fresh'
    fresh.mkdir()
    with HubProcess(server, fresh, RANDWIRE_ZOO_WEIGHTS=str(overlay)) as overlaid_client:
        right, altered, left, mended = overlaid_client.run(fresh, f'''
import pathlib
results.append(logits({NAME!r}, cache_dir={own!r}))
blob, = (path.resolve() for path in pathlib.Path({own!r}).rglob('snapshots/*/model.safetensors'))
data, before = bytearray(blob.read_bytes()), blob.stat()
data[-1] ^= 1
blob.write_bytes(data)
os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
results.append(logits({NAME!r}, cache_dir={own!r}))
results.append([path.name for path in blob.parent.iterdir()])
constants.HF_HUB_CACHE = {own!r}
blob.write_bytes(data)
results.append(command("hub", "pull", {REPO!r}))
''')
        assert right == altered, 'a byte that changed without its time was not noticed'
        assert sorted(left) == sorted([row['sha256'], f'{row["sha256"]}.altered'])
        assert (fresh / 'client.log').read_text().count('it was set aside as') == 1
        assert mended['code'] == 0 and 'it was set aside as' in mended['err']
        assert Path(mended['out'].strip()).read_bytes() == (staged / 'model.safetensors').read_bytes()
        server.flip_byte(REPO, 'model.safetensors')
        server.log.clear()
        created, pulled, by_repo, verified, gone = overlaid_client.run(fresh, f'''
results.append(logits({NAME!r}))
results.extend(command("hub", *arguments) for arguments in (
    ["pull", {NAME!r}], ["pull", {REPO!r}], ["verify", {NAME!r}]))
constants.HF_HUB_OFFLINE = True
blob.write_bytes(data)
results.append(logits({NAME!r}, cache_dir={own!r}))
''')
    what = f'{NAME}.noise ({REPO}@{row["revision"]}) has been altered'
    assert created[0] == 'ValueError' and what in created[1]
    assert f'and must have {row["sha256"]}' in created[1] and 'no better' in created[1]
    weights = f'GET /{REPO}/resolve/{row["revision"]}/model.safetensors'
    assert server.log[:4].count(weights) == 2, 'it was not fetched once more'
    for result in (pulled, by_repo, verified):
        assert 'altered' in one_line(result, 1)
    assert gone[0] == 'HubError' and 'has been altered' in gone[1] and 'cannot be fetched anew' in gone[1]
    again, = client.hub(tmp_path / 'home', ['push', staged, REPO])
    assert 'has been altered' in one_line(again, 1)


def test_a_bad_file_in_the_cache_is_set_aside_and_fetched_once_more_and_what_is_no_better_is_refused(
        server: HubServer, client: HubClient, tmp_path: Path, caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch) -> None:
    data, own = b'the weights', tmp_path / 'own'
    commit = server.create(REPO, {'model.safetensors': data})
    digest = hashlib.sha256(data).hexdigest()
    row = PublishedWeights(f'{NAME}.x', digest, len(data), 3, 'a' * 64, 'mit', repo_id=REPO, revision=commit)
    with client.asking(tmp_path / 'home'):
        path = fetch(row, own)
        file = path.resolve()
        aside = file.with_name(f'{file.name}.altered')
        what = f'{NAME}.x ({REPO}@{commit}) has been altered: {path} has sha256 '
        assert path.read_bytes() == data and own in path.parents and not (tmp_path / 'home').exists()
        server.log.clear()
        assert fetch(row, own) == path and not server.log

        file.write_bytes(b'Xhe weights')
        assert fetch(row, own) == path and path.read_bytes() == data and aside.read_bytes() == b'Xhe weights'
        record, = caplog.records
        assert record.getMessage() == (f"{what}{hashlib.sha256(b'Xhe weights').hexdigest()} and must have {digest}; it "
                                       f'was set aside as {aside} and fetched anew')
        file.write_bytes(b'short')
        server.forbidden.add(REPO)
        with pytest.raises(HubError) as error:
            fetch(row, own)
        assert (f'{path} has 5 bytes and must have 11; it was set aside as {aside}, but cannot be fetched anew: '
                f'{row.name} ({REPO}@{commit}): the token may not do this') in str(error.value)
        server.forbidden.clear()
        fetch(row, own)
        server.flip_byte(REPO, 'model.safetensors')
        file.write_bytes(b'Yhe weights')
        with pytest.raises(ValueError, match=f'^{re.escape(what)}.*; fetched anew it is no better, and lies as'):
            fetch(row, own)
        assert not path.exists() and not file.exists() and aside.read_bytes() not in (data, b'Yhe weights')
        file.write_bytes(b'short')
        monkeypatch.setattr(Path, 'replace', refuse)
        with pytest.raises(ValueError, match=f'^a, and cannot be set aside \\(no way\\): remove {file}$'):
            set_aside(file, 'a')


def test_what_a_repository_lacks_is_named_with_the_row_that_asks_for_it(
        server: HubServer, client: HubClient, tmp_path: Path) -> None:
    commit = server.create(REPO, {'config.json': b'{}'})
    row = PublishedWeights(f'{NAME}.x', 'b' * 64, 1, 3, 'a' * 64, 'mit', repo_id=REPO, revision=commit)
    message = f'{NAME}.x ({REPO}@{commit}): the repository has no model.safetensors'
    with client.asking(tmp_path / 'home'), pytest.raises(HubError, match=f'^{re.escape(message)}'):
        fetch(row)
    row = replace(row, repo_id=None, revision=None, file='weights/none.safetensors')
    with pytest.raises(FileNotFoundError, match=rf'^{NAME}\.x \(weights/none\.safetensors\): there is no such file$'):
        fetch(row)


def refuse(*args: Any) -> None:
    raise OSError(1, 'no way')


@pytest.mark.parametrize('kwargs', [{}, {'num_classes': 3}, {'features_only': True}])
def test_a_missing_tensor_is_noticed_by_timm_for_any_number_of_classes(kwargs: dict[str, Any], staged: Path) -> None:
    _edit(lambda state: state.pop('conv4.nodes.2.bn.bias'))(staged)
    with pytest.raises(ValueError, match=r'these weights lack conv4\.nodes\.2\.bn\.bias$'):
        timm.create_model(f'local-dir:{staged}', pretrained=True, **kwargs)


def test_push_and_the_hubs_refusals(server: HubServer, client: HubClient, staged: Path, tmp_path: Path) -> None:
    home = tmp_path / 'home'
    other, = client.hub(home, ['push', staged, 'else/pico'])
    assert 'else/pico: the token may not do this' in one_line(other, 3)
    bad, = client.hub(home, ['push', staged, REPO], token='hf_wrong')
    assert 'the Hub does not accept the token' in one_line(bad, 3)
    none, = client.hub(home, ['push', staged, REPO], token=None)
    assert 'there is no token; set HF_TOKEN' in one_line(none, 3)
    assert server.repositories() == []
    server.moves_before_commit = 1
    stale, dry = client.hub(home, ['push', staged, REPO], ['push', staged, REPO, '--dry-run'])
    assert 'its head has moved since this began' in one_line(stale, 3)
    assert 'model.safetensors' not in server.files(REPO)
    # A tag of that name that is elsewhere stays where it is, and stops nothing.
    tag = dry['err'].split('tag the commit ')[1].split()[0]
    server.tag(REPO, tag)
    taken, = client.hub(home, ['push', staged, REPO, '--overwrite'])
    assert taken['code'] == 0 and server.tags(REPO)[f'{tag}.2'] == server.commits(REPO)[-1] != server.tags(REPO)[tag]


def test_a_dry_run_and_a_server_that_dies_before_the_commit_leave_the_repository_as_it_was(
        server: HubServer, client: HubClient, staged: Path, tmp_path: Path) -> None:
    dry, first = client.hub(tmp_path / 'home', ['push', staged, REPO, '--dry-run'], ['verify', REPO])
    assert dry['code'] == 0 and first['code'] == 3 and len(server.log) == 1
    assert client.hub(tmp_path / 'home', ['push', staged, REPO])[0]['code'] == 0
    before, other = server.files(REPO), restage(staged, 'other', 'noise')
    server.die_before_commit = True
    died, = client.hub(tmp_path / 'home', ['push', other, REPO])
    assert died['code'] == 3 and died['err'].count('randwire-zoo: error: ') == 1
    server.start()
    assert server.files(REPO) == before and client.hub(tmp_path / 'home', ['verify', REPO])[0]['code'] == 0
    pushed, = client.hub(tmp_path / 'home', ['push', other, REPO])
    assert pushed['code'] == 0 and len(server.commits(REPO)) == 3


def test_a_push_that_was_stopped_before_its_tag_is_finished_without_a_commit(
        server: HubServer, client: HubClient, staged: Path, tmp_path: Path) -> None:
    assert client.hub(tmp_path / 'home', ['push', staged, REPO])[0]['code'] == 0
    tag, = server.tags(REPO)
    server.delete(REPO, tag)
    again, = client.hub(tmp_path / 'home', ['push', staged, REPO])
    assert again['code'] == 0 and server.tags(REPO) == {tag: server.commits(REPO)[-1]}
    assert len(server.commits(REPO)) == 2


@pytest.mark.parametrize('before', [False, True])
def test_what_a_stopped_push_left_without_its_tag_is_still_of_a_push(
        before: bool, server: HubServer, client: HubClient, staged: Path, tmp_path: Path) -> None:
    """The folder has been staged anew since, so that the next push brings other content."""
    home = tmp_path / 'home'
    if before:
        assert client.hub(home, ['push', restage(staged, 'before', 'noise'), REPO])[0]['code'] == 0
    other = Path(shutil.copytree(staged, tmp_path / 'stopped'))
    for name in ('args.yaml', 'summary.csv', 'curves.png'):
        (other / name).unlink()
    (other / 'README.md').write_text(render_card(other))
    assert client.hub(home, ['push', other, REPO])[0]['code'] == 0
    stopped = server.commits(REPO)[-1]
    tag, = (name for name, commit in server.tags(REPO).items() if commit == stopped)
    server.delete(REPO, tag)
    pushed, = client.hub(home, ['push', staged, REPO])
    assert pushed['code'] == 0, pushed
    assert server.tags(REPO)[tag] == stopped and f'tagged {tag}' in pushed['err']
    assert len(server.tags(REPO)) == len(server.commits(REPO)) - 1, 'every state but the first, empty one has a tag'


def test_neither_a_title_nor_another_networks_state_is_taken_for_what_a_stopped_push_left(
        server: HubServer, client: HubClient, staged: Path, tmp_path: Path) -> None:
    home = tmp_path / 'home'
    assert client.hub(home, ['push', restage(staged, 'foreign', 'other'), REPO])[0]['code'] == 0
    tag, = server.tags(REPO)
    server.delete(REPO, tag)
    refused, = client.hub(home, ['push', staged, REPO])
    assert 'holds another network, randwire_ws_pico.other' in one_line(refused, 1) and server.tags(REPO) == {}
    server.move_head(REPO, {'README.md': b'Mine.'}, title='randwire_ws_pico.other by randwire-zoo')
    refused, = client.hub(home, ['push', staged, REPO])
    assert 'holds what no push of randwire-zoo made' in one_line(refused, 1) and server.tags(REPO) == {}


def test_a_falsified_repository_and_one_of_stock_timm_are_told_apart_and_precisely(
        server: HubServer, client: HubClient, staged: Path, tmp_path: Path) -> None:
    home, files = tmp_path / 'home', {path.name: path.read_bytes() for path in staged.iterdir()}
    card = render_card(staged, REPO).encode()
    metric = f'value: {json.loads(read_metadata(staged / "model.safetensors")["metrics"])["top1"]}'.encode()
    assert metric in card
    server.create(REPO, {**files, 'README.md': card.replace(metric, b'value: 99.9', 1)})
    server.create('someone/more', {**files, 'README.md': card, 'pytorch_model.bin': b'x'})
    model: Any = timm.create_model(NAME, num_classes=3)
    timm.models.save_for_hf(model, str(tmp_path / 'stock'), safe_serialization='both')
    server.create('someone/stock', {path.name: path.read_bytes() for path in (tmp_path / 'stock').iterdir()})
    falsified, more, stock, pulled = client.hub(home, ['verify', REPO], ['verify', 'someone/more'],
                                                ['verify', 'someone/stock'], ['pull', 'someone/stock'])
    assert "README.md is not what is rendered of the folder" in one_line(falsified, 1) and "99.9'" in falsified['err']
    assert 'holds pytorch_model.bin, which no push made' in one_line(more, 1)
    said = one_line(stock, 1)
    assert 'such as timm itself pushes: it lacks graphs.json, probe.safetensors, README.md, wiring.png' in said
    assert pulled['code'] == 0


def test_what_cannot_be_had_is_named_with_its_cause(
        server: HubServer, client: HubClient, staged: Path, tmp_path: Path) -> None:
    home, weights = tmp_path / 'home', (staged / 'model.safetensors').read_bytes()
    server.create('someone/empty', {'README.md': b'x'})
    server.create('someone/gated', {'model.safetensors': weights}, gated=True)
    server.create('someone/private', {'model.safetensors': weights}, private=True)
    server.create('someone/forbidden', {'model.safetensors': weights})
    server.forbidden.add('someone/forbidden')
    targets = ['someone/nowhere@main', 'someone/empty@main', f'someone/empty@{"0" * 40}', 'someone/gated@main',
               'someone/private@main', 'someone/forbidden@main']
    results = client.hub(home, *(['pull', target] for target in targets), token=None)
    causes = ['not published', 'the repository has no model.safetensors', 'no such revision', 'the repository is gated',
              'not published', 'the token may not do this']
    for target, result, cause in zip(targets, results, causes, strict=True):
        assert cause in one_line(result, 3) and f'{target}: ' in result['err'], result
    usage = client.hub(home, ['pull', 'randwire_ws_c154'], ['verify', 'nothing'], ['pull', 'a/b/c@d'],
                       ['manifest', 'add'])
    assert [result['code'] for result in usage] == [2, 2, 2, 2]


def test_broken_downloads_end_in_one_line_or_in_the_whole_file(
        server: HubServer, client: HubClient, staged: Path, tmp_path: Path) -> None:
    commit = server.create(REPO, {'model.safetensors': (staged / 'model.safetensors').read_bytes()})
    home, target = tmp_path / 'home', f'{REPO}@{commit}'
    server.cut_downloads = 100
    cut, = client.hub(home, ['pull', target])
    assert target in one_line(cut, 3)
    server.cut_downloads = 0
    server.short_bodies = 100
    short, = client.hub(home, ['pull', target])
    assert target in one_line(short, 3)
    server.short_bodies = 0
    server.cut_downloads = 1
    whole, = client.hub(home, ['pull', target])
    assert whole['code'] == 0 and Path(whole['out'].strip()).read_bytes() == (staged / 'model.safetensors').read_bytes()


def test_a_silent_hub_ends_a_command_after_its_timeout_and_at_the_first_interrupt(
        server: HubServer, staged: Path, tmp_path: Path) -> None:
    def start(*arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, '-m', 'randwire_zoo', 'hub', *map(str, arguments)], stderr=subprocess.PIPE, text=True,
            env=server.environment(tmp_path / 'home', OMP_NUM_THREADS='1'), cwd=tmp_path)

    server.create(REPO, {'model.safetensors': b'x'})
    server.silent = True
    waiting = start('pull', REPO, '--timeout', 2), start('pull', f'{REPO}@{"1" * 40}', '--timeout', 600)
    wait_for(lambda: f'HEAD /{REPO}/resolve/{"1" * 40}/model.safetensors' in server.log, waiting[1])
    waiting[1].send_signal(signal.SIGINT)
    # The exit status says what ended each; the limits only end a test that hangs.
    assert waiting[1].wait(120) == 130 and 'interrupted' in waiting[1].communicate()[1]
    assert waiting[0].wait(120) == 3
    assert f'{REPO}: gave up after 2 s (--timeout)' in waiting[0].communicate()[1]

    server.silent = 'PUT'  # an upload, which the client leaves to threads of its own
    upload = start('push', staged, 'someone/new', '--timeout', 600)
    wait_for(lambda: any(request.startswith('PUT') for request in server.log), upload)
    upload.send_signal(signal.SIGINT)
    assert upload.wait(120) == 130 and 'interrupted' in upload.communicate()[1]
    assert list(server.files('someone/new')) == ['.gitattributes'], 'half a push'


def test_without_a_network_the_error_says_what_was_wanted_and_how_long_it_was_tried(
        server: HubServer, staged: Path, tmp_path: Path) -> None:
    row = {'sha256': '0' * 64, 'size': 1, 'num_classes': 10, 'license': 'mit', 'repo_id': REPO, 'revision': '1' * 40,
           'graphs_sha256': read_metadata(staged / 'model.safetensors')['graphs_sha256']}
    overlay = tmp_path / 'weights.json'
    overlay.write_text(json.dumps({f'{NAME}.noise': row}))
    server.stop()
    refused, offline = overlaid(server, tmp_path / 'home', overlay, f'''
results.append(logits({NAME!r}))
constants.HF_HUB_OFFLINE = True
results.append(logits({NAME!r}))
''')
    server.start()
    what = f'{NAME}.noise ({REPO}@{"1" * 40}): it is not in the cache, and '
    assert offline == ['HubError', what + 'HF_HUB_OFFLINE is set']
    assert refused[0] == 'HubError'
    assert refused[1].startswith(f'{what}{server.url} could not be reached (gave up after ')


def test_transformers_loads_what_is_published_with_its_labels(unusual: Path, staged: Path) -> None:
    transformers = pytest.importorskip('transformers')
    model = transformers.AutoModelForImageClassification.from_pretrained(staged)
    assert model.config.id2label[3] == 'kind 3'
    ours: Any = timm.create_model(f'local-dir:{staged}', pretrained=True).eval()
    batch = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(batch).logits, ours(batch), rtol=0, atol=0)
    classify = transformers.pipeline('image-classification', str(staged), device='cpu')
    found = classify(Image.new('RGB', (80, 60), (200, 30, 30)), top_k=10)
    assert {answer['label'] for answer in found} == {f'kind {i}' for i in range(10)}
    assert transformers.AutoModel.from_pretrained(staged)(batch).pooler_output.shape == (2, ours.num_features)
