"""The digits as an image folder, the quick start, and the weights that came of it."""
from __future__ import annotations

import argparse
import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from randwire_zoo import cli, drawing
from randwire_zoo.training import quickstart as quickstart_module
from randwire_zoo.training.arguments import add_quickstart_arguments
from randwire_zoo.training.digits import write_digits
from randwire_zoo.training.evaluation import evaluate_folder
from randwire_zoo.training.quickstart import main
from randwire_zoo.training.trainer import TrainingResult
from randwire_zoo.weights.files import check_weights, read_graphs

datasets = pytest.importorskip('sklearn.datasets', reason='the digits come with scikit-learn')


@pytest.fixture(scope='module')
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp('data') / 'digits')


def test_the_folder_holds_every_digit_of_scikit_learn_once_with_its_pixels(digits: Path) -> None:
    source = datasets.load_digits()
    paths = sorted(digits.glob('*/*/*.png'), key=lambda path: path.stem)
    assert [int(path.stem) for path in paths] == list(range(1797))
    assert [int(path.parent.name) for path in paths] == source.target.tolist()
    for path, image in zip(paths[::50], source.images[::50], strict=True):
        pixels = np.asarray(Image.open(path))
        assert pixels.shape == (8, 8)
        np.testing.assert_allclose(pixels * (16 / 255), image, atol=0.04)


def test_a_fifth_of_each_digit_is_held_out_and_always_the_same(digits: Path) -> None:
    held_out = Counter(path.parent.name for path in digits.glob('validation/*/*.png'))
    train = Counter(path.parent.name for path in digits.glob('train/*/*.png'))
    assert sum(held_out.values()) == 360
    assert all(0.18 < held_out[label] / (held_out[label] + train[label]) < 0.22 for label in '0123456789')
    names = ' '.join(sorted(path.stem for path in digits.glob('validation/*/*.png')))
    digest = hashlib.sha256(names.encode()).hexdigest()
    assert digest == 'abcdf9424d8b6a3c1080acc2dcf6fd8f0f4984080348f8af3fb91e43bee9f216'


def test_a_complete_folder_is_kept_and_any_other_refused(digits: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in digits.rglob('*.png')}
    write_digits(digits)
    assert {path: path.stat().st_mtime_ns for path in digits.rglob('*.png')} == before
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'notes.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='does not hold the 1,797 digits'):
        write_digits(tmp_path / 'mine')
    assert [path.name for path in (tmp_path / 'mine').iterdir()] == ['notes.txt']


def test_writing_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, save = [], Image.Image.save

    def full_disk(image: Image.Image, path: Path) -> None:
        saved.append(path)
        if len(saved) > 100:
            raise OSError('no space left on device')
        save(image, path)

    monkeypatch.setattr(Image.Image, 'save', full_disk)
    with pytest.raises(OSError, match='no space left'):
        write_digits(tmp_path / 'digits')
    assert list(tmp_path.iterdir()) == []


def test_without_scikit_learn_there_is_one_line_that_says_what_to_install(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__('sys').modules, 'sklearn.datasets', None)
    with pytest.raises(ValueError, match='pip install scikit-learn'):
        write_digits(tmp_path / 'digits')


def test_a_quick_start_of_one_epoch_leaves_everything_and_fails_for_its_accuracy(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_quickstart_arguments(parser)
    args = parser.parse_args(['--output', str(tmp_path / 'start'), '--epochs', '1', '--no-progress'])
    assert main(args) == 1
    output = capsys.readouterr().out
    assert 'less than 96 %' in output and 'equal logits' in output
    folder = tmp_path / 'start'
    for name in ('wiring', 'curves', 'predictions'):
        assert str(folder / f'{name}.png') in output
        with Image.open(folder / f'{name}.png') as picture:
            assert min(picture.size) > 200 and len(picture.convert('L').getcolors() or range(99)) > 10
    weights = folder / 'randwire_ws_pico.safetensors'
    check_weights(weights)
    model = timm.create_model('randwire_ws_pico', pretrained=True, pretrained_cfg_overlay={'file': str(weights)})
    assert model.graphs == read_graphs(weights)
    metrics = evaluate_folder(model, folder / 'digits', workers=0, progress=False)
    assert f'{metrics["top1"]:.2f} % of 360 held-out digits' in output

    with pytest.raises(FileExistsError, match='holds an earlier quick start'):
        main(args)


def test_a_quick_start_succeeds_unless_another_network_comes_back(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, digits: Path) -> None:
    """With the shipped weights in place of a training, a few of the held-out digits, and no pictures."""
    def few(folder: Path) -> Path:
        for place in sorted(digits.glob('validation/*')):
            (folder / 'validation' / place.name).mkdir(parents=True)
            for path in sorted(place.iterdir())[:4]:
                shutil.copy(path, folder / 'validation' / place.name)
        return folder

    def trained(config: str, *, output: str, experiment: str, **settings: object) -> TrainingResult:
        folder = Path(output) / experiment
        folder.mkdir()
        model = timm.create_model('randwire_ws_pico', pretrained=True)
        torch.save({'state_dict': model.state_dict()}, folder / 'last.pth.tar')
        return TrainingResult(folder, None, None, ())

    def build_another(name: str, **kwargs: Any) -> torch.nn.Module:
        model = build(name, **kwargs)
        if kwargs.get('pretrained'):
            with torch.no_grad():
                model.fc.bias[0] += 1e-3
        return model

    build = quickstart_module.build_model
    for name in ('draw_graphs', 'draw_curves', 'draw_predictions'):
        monkeypatch.setattr(drawing, name, lambda *args, **kwargs: None)
    monkeypatch.setattr(quickstart_module, 'write_digits', few)
    monkeypatch.setattr(quickstart_module, 'train', trained)
    for builder, code, said in ((build, 0, 'equal logits'), (build_another, 1, 'LOGITS DIFFER')):
        monkeypatch.setattr(quickstart_module, 'build_model', builder)
        assert cli.main(['quickstart', '--output', str(tmp_path / str(code)), '--no-progress']) == code
        output = capsys.readouterr().out
        assert output.count('reloaded    through timm.create_model(…, pretrained=True): ' + said) == 1
        assert '% of 40 held-out digits\n' in output  # and not: less than …


def test_an_interrupted_quick_start_says_so_and_goes_on(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, digits: Path) -> None:
    """Interrupted in its second epoch, then where it would measure; with other settings it is refused meanwhile."""
    from randwire_zoo.training import trainer as training

    folder = tmp_path / 'start'
    shutil.copytree(digits, folder / 'digits')
    train_one_epoch, finish = training._Run._train_one_epoch, quickstart_module._finish

    def interrupted(run: training._Run, epoch: int) -> dict[str, float]:
        if epoch == 1:
            raise KeyboardInterrupt
        return train_one_epoch(run, epoch)

    def interrupted_at_the_end(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Run, '_train_one_epoch', interrupted)
    with pytest.raises(KeyboardInterrupt, match='the same command goes on'):
        quickstart_module.quickstart(folder, seed=3, epochs=2)
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match='an interrupted quick start with seed 3, not 4'):
        quickstart_module.quickstart(folder, seed=4, epochs=2)
    assert 'epoch 1/2: ' in capsys.readouterr().out
    monkeypatch.setattr(quickstart_module, '_finish', interrupted_at_the_end)
    with pytest.raises(KeyboardInterrupt, match='the same command goes on'):
        quickstart_module.quickstart(folder, seed=3, epochs=2)
    said = capsys.readouterr().out
    assert said.startswith('device cpu, ') and '\ngoing on at epoch 2 of 2' in said
    assert 'epoch 2/2: ' in said and 'epoch 1/2: ' not in said
    monkeypatch.setattr(quickstart_module, '_finish', finish)
    assert quickstart_module.quickstart(folder, seed=3, epochs=2).equal_logits
    assert 'all 2 epochs are done' in capsys.readouterr().out


def test_the_shipped_weights_read_98_per_cent_of_the_held_out_digits(digits: Path) -> None:
    model = timm.create_model('randwire_ws_pico', pretrained=True).eval()
    paths = sorted(digits.glob('validation/*/*.png'))
    # By hand: 8×8 to 64×64 bilinearly, pixels to −1 … 1.
    pixels = np.stack([np.asarray(Image.open(path).convert('RGB').resize((64, 64), Image.Resampling.BILINEAR))
                       for path in paths])
    images = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        predictions = torch.cat([model(batch) for batch in images.split(60)]).argmax(1).tolist()
    right = sum(prediction == int(path.parent.name) for prediction, path in zip(predictions, paths, strict=True))
    assert right / len(paths) >= 0.98
