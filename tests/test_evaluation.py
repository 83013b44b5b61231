"""Evaluation against counting by hand."""
from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from randwire_zoo.description import build_model
from randwire_zoo.evaluation import add_arguments, evaluate_folder, main
from randwire_zoo.weights_io import save_weights

NETWORK: dict[str, Any] = {'channels': 4, 'num_nodes': 6, 'num_classes': 10}


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 noise images of 32×32 in ten classes, 0 … 9."""
    folder, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for index in range(21):
        path = folder / 'test' / str(index % 10) / f'{index}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = build_model('randwire', **NETWORK)
    torch.nn.init.normal_(model.fc.weight)  # the initial 0.01 would make all logits much alike
    path = tmp_path_factory.mktemp('weights') / 'weights.safetensors'
    save_weights(model, path)
    return path


def count_by_hand(model: Any, folder: Path, size: int) -> tuple[float, float, float]:
    """Top-1, top-5 and loss, one image at a time, with nothing of timm's data loading."""
    cfg, ranks, losses = model.pretrained_cfg, [], []
    model.eval()
    for path in sorted(folder.glob('test/*/*.png')):
        image = Image.open(path).resize((size, size), Image.Resampling.BILINEAR)
        pixels = (np.asarray(image, dtype=np.float32) / 255 - cfg['mean']) / cfg['std']
        with torch.inference_mode():
            logits = model(torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None])[0].double().numpy()
        target = int(path.parent.name)
        ranks.append(int((logits > logits[target]).sum()))
        losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[target])
    return 100 * np.mean(np.array(ranks) < 1), 100 * np.mean(np.array(ranks) < 5), float(np.mean(losses))


@pytest.mark.parametrize('size', [32, 64])
def test_top1_top5_and_loss_are_those_counted_by_hand_at_any_size(size: int, images: Path, weights: Path) -> None:
    model = build_model('randwire', checkpoint_path=str(weights), **NETWORK)
    metrics = evaluate_folder(
        model, images, 'test', img_size=size, crop_pct=1.0, batch_size=8, workers=0, progress=False)
    top1, top5, loss = count_by_hand(model, images, size)
    assert metrics['top1'] == pytest.approx(top1) and metrics['top5'] == pytest.approx(top5)
    assert metrics['loss'] == pytest.approx(loss, rel=1e-3)
    assert 0 < top5 < 100 and (metrics['images'], metrics['img_size']) == (21, size)


def parse(*arguments: str | Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def command(images: Path, weights: Path, *arguments: str | Path) -> argparse.Namespace:
    return parse('--model', 'randwire', '--data-dir', images, '--split', 'test', '--checkpoint', weights,
                 '--workers', '0', '--device', 'cpu', '--model-kwargs',
                 *(f'{name}={value}' for name, value in NETWORK.items()), *arguments)


def test_the_command_prints_one_line_for_the_size_it_is_asked_for(
        images: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(images, weights, '--img-size', '48', '--amp', '--channels-last')) == 0
    assert re.fullmatch(r'randwire at 48 px on 21 images: top-1 [\d.]+ %, top-5 [\d.]+ %, loss [\d.]+\n',
                        capsys.readouterr().out)


@pytest.mark.parametrize(('arguments', 'error', 'message'), [
    (('--split', 'validation'), FileNotFoundError, "no folder 'validation'"),
    (('--data-dir', 'nowhere'), FileNotFoundError, 'no data folder nowhere'),
    (('--checkpoint', 'nothing.safetensors'), FileNotFoundError, 'no weights at nothing.safetensors'),
    (('--img-size', '0'), ValueError, 'img_size must be at least 1, got 0'),
    (('--model', 'randwire_ws_huge'), ValueError, "cannot create the model 'randwire_ws_huge'"),
    (('--device', 'abacus'), ValueError, "device 'abacus' is not available"),
    (('--model-kwargs', 'channels=4', 'num_nodes=6', 'num_classes=3'), ValueError, 'size mismatch'),
    (('--model-kwargs', 'channels=4', 'num_nodes=6', 'num_classes=10', 'seed=2'), ValueError, 'cannot be loaded'),
])
def test_bad_input_is_one_line(
        arguments: tuple[str, ...], error: type[Exception], message: str, images: Path, weights: Path) -> None:
    with pytest.raises(error) as caught:
        main(command(images, weights, *arguments))
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_more_classes_than_outputs_are_refused(images: Path) -> None:
    model = build_model('randwire', **{**NETWORK, 'num_classes': 9})
    with pytest.raises(ValueError, match='has 10 classes, but the model has 9 outputs'):
        evaluate_folder(model, images, 'test', img_size=32, workers=0, progress=False)
