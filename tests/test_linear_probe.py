"""A linear probe is multinomial logistic regression on the features that the network's own classifier gets."""
from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from randwire_zoo import cli
from randwire_zoo.training.evaluation import Conditions
from randwire_zoo.training.linear_probe import (
    DECAYS,
    _sample,
    choose_decay,
    fit_classifier,
    linear_probe,
    probe_weights,
)
from randwire_zoo.weights.description import Description
from randwire_zoo.weights.files import save_weights

NETWORK: dict[str, Any] = {
    'model': 'randwire', 'model_kwargs': {'graph': 'ws(2,0.5)', 'seed': 1, 'channels': 8, 'num_nodes': 4},
    'img_size': 32, 'crop_pct': 1.0, 'device': 'cpu', 'workers': 0, 'batch_size': 16}
CLASSES = ('blue', 'green', 'red')


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise with a tinge of its class: 20 pictures each to fit to, 8, 10 and 12 held out."""
    folder, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        for split, count in (('train', 20), ('val', 8 + 2 * number)):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.normal(128, 10, (32, 32, 3))
                pixels[..., 2 - number] += rng.normal(24, 16)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / split / name / f'{index:02}.png')
    return folder


def test_the_classifier_is_the_one_of_ridge_penalised_logistic_regression() -> None:
    linear_model = pytest.importorskip('sklearn.linear_model')
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 200)
    features = rng.normal(size=(200, 5)) + 0.7 * rng.normal(size=(3, 5))[targets]
    decay = 0.05
    theirs = linear_model.LogisticRegression(C=1 / (200 * decay), tol=1e-9, max_iter=2000).fit(features, targets)
    weight, bias = fit_classifier(
        torch.from_numpy(features), torch.from_numpy(targets), torch.zeros(3, 5, dtype=torch.double),
        torch.zeros(3, dtype=torch.double), decay, iterations=200)
    assert np.allclose(weight.numpy(), theirs.coef_, atol=1e-3)
    assert np.allclose((bias - bias.mean()).numpy(), theirs.intercept_ - theirs.intercept_.mean(), atol=1e-3)


def features_of(model: Any, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What goes into `fc`, and the classes, without any loader of timm's."""
    seen: list[torch.Tensor] = []
    model.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    targets = []
    for number, name in enumerate(CLASSES):
        for path in sorted((folder / name).iterdir()):
            pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255
            mean, std = (torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ('mean', 'std'))
            with torch.no_grad():
                model((pixels - mean) / std)
            targets.append(number)
    return torch.cat(seen).numpy().astype(float), np.array(targets)


def test_the_accuracy_is_that_of_logistic_regression_on_the_features(
        images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linear_model = pytest.importorskip('sklearn.linear_model')
    torch.manual_seed(3)
    model = timm.create_model('randwire', num_classes=7, **NETWORK['model_kwargs'])
    with torch.no_grad():
        model.train()(torch.randn(64, 3, 32, 32))  # statistics of something
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'weights.pth')
    found = probe_weights(tmp_path / 'weights.pth', {**NETWORK, 'num_classes': 7, 'data_dir': str(images)},
                          progress=False)
    assert (found.num_features, found.num_classes, found.training, found.held_out) == (1280, 3, 60, 30)

    features, targets = features_of(model.eval(), images / 'train')
    others, answers = features_of(model, images / 'val')
    mean, std = features.mean(0), features.std(0, ddof=1)
    varies = std > 1e-6 * std.max()
    features, others = ((x - mean)[:, varies] / std[varies] for x in (features, others[-30:]))
    theirs = linear_model.LogisticRegression(C=1 / (60 * found.decay), tol=1e-8, max_iter=5000)
    hits = theirs.fit(features[:60], targets).predict(others) == answers
    assert found.top1 == pytest.approx(100 * hits.mean())
    assert 50 < found.top1 < 100
    assert found.mean_per_class == pytest.approx(100 * np.mean([hits[answers == one].mean() for one in range(3)]))
    assert found.mean_per_class != found.top1  # there are more of some classes than of others

    assert cli.main(['probe', '--checkpoint', str(tmp_path / 'weights.pth'), '--data-dir', str(images),
                     '--model', 'randwire', '--model-kwargs', 'graph=ws(2,0.5)', 'seed=1', 'channels=8', 'num_nodes=4',
                     'num_classes=7', '--img-size', '32', '--crop-pct', '1', '--device', 'cpu', '--workers', '0',
                     '--no-progress']) == 0
    assert f'on 30 others top-1 {found.top1:.2f} %' in capsys.readouterr().out


def test_the_penalty_follows_from_a_fifth_of_the_training_images() -> None:
    rng = torch.Generator().manual_seed(0)
    targets = torch.arange(2).repeat_interleave(50)
    noise = torch.randn(100, 200, generator=rng)
    # What tells the classes apart is weak and in many features, of which each sample has its own noise.
    strong = choose_decay(noise + 0.15 * (2 * targets[:, None] - 1), targets, 2, progress=False)
    # One clean feature among few needs no penalty, and a strong one would do no harm but under the others.
    clean = torch.cat([0.05 * (2.0 * targets[:, None] - 1), torch.randn(100, 30, generator=rng)], 1)
    assert strong >= 1e-2
    assert choose_decay(clean, targets, 2, progress=False) < strong
    assert {strong} <= set(DECAYS)


def test_published_averages_are_probed_on_whatever_split_in_batches_as_asked(
        images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `hub stage` leaves them: the weights are the average, and the settings beside them say that one was kept."""
    (tmp_path / 'data').mkdir()
    for split, name in (('train', 'train'), ('val', 'test')):
        (tmp_path / 'data' / name).symlink_to(images / split)
    model = timm.create_model('randwire', num_classes=3, **NETWORK['model_kwargs'])
    save_weights(model, tmp_path / 'model.safetensors', weights='average')
    settings = {**NETWORK, 'num_classes': 3, 'model_ema': True, 'validation_batch_size': 7, 'val_split': 'held out'}
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump(settings))
    seen: list[Conditions] = []
    monkeypatch.setattr('randwire_zoo.training.linear_probe.linear_probe',
                        lambda network, description, conditions, **options: seen.append(conditions))
    for given in ({}, {'batch_size': 5}):
        probe_weights(tmp_path / 'model.safetensors', {'data_dir': str(tmp_path / 'data'), 'split': 'test', **given})
    assert [(one.split, one.batch_size, one.use_ema) for one in seen] == [('test', 7, True), ('test', 5, True)]
    save_weights(model, tmp_path / 'model.safetensors', weights='trained')
    with pytest.raises(ValueError, match='it holds no moving average of the weights; --no-ema takes'):
        probe_weights(tmp_path / 'model.safetensors', {'data_dir': str(tmp_path / 'data')})
    probe_weights(tmp_path / 'model.safetensors', {'data_dir': str(tmp_path / 'data'), 'use_ema': False})
    assert (seen[-1].split, seen[-1].use_ema) == ('validation', False)


def test_images_for_statistics_do_not_keep_all_others_in_memory() -> None:
    class Loader:
        dataset = range(64)

        def __iter__(self) -> Iterator[tuple[torch.Tensor, None]]:
            arrays = []
            for _ in range(4):
                array = np.zeros((16, 3, 8, 8), np.float32)
                arrays.append(weakref.ref(array))
                yield torch.from_numpy(array), None
                del array
                assert sum(one() is not None for one in arrays) <= 1

    kept = _sample(Loader(), 12, 8)
    assert [len(one) for one in kept] == [8, 3]  # every sixth of 64


def test_random_parameters_follow_their_seed(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**NETWORK, 'data_dir': str(images)}
    one, again, other = (probe_weights('', settings, seed, progress=False) for seed in (1, 1, 2))
    assert one == again and one != other
    with pytest.raises(ValueError, match='name one of them'):
        probe_weights('weights.pth', settings, 1)
    assert cli.main(['probe', '--model', 'randwire_ws_small_s1', '--random', '1', '--data-dir', 'nowhere']) == 2
    assert 'no data folder nowhere' in capsys.readouterr().err


def test_random_parameters_get_statistics_of_images_of_all_classes(images: Path) -> None:
    description = Description.from_settings(NETWORK)
    network = description.create_model()
    # 60 images of three classes in batches of 16: each has some of every class, or its own mean would hide the class.
    linear_probe(network, description, Conditions(images, batch_size=16), workers=0, calibrate=True, progress=False)
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
                          for path in sorted((images / 'train').rglob('*.png'))])
    mean, std = (torch.tensor(getattr(description, key)).view(1, 3, 1, 1) for key in ('mean', 'std'))
    with torch.no_grad():
        maps = network.conv1.conv((pixels - mean) / std).transpose(0, 1).flatten(1)
    # Batches of 16, 16, 16 and 12 count alike, and so the means agree about as well as samples of the images do.
    spread = maps.std(1)
    assert ((network.conv1.bn.running_mean - maps.mean(1)).abs() < 0.05 * spread).all()
    assert (network.conv1.bn.running_var.sqrt() / spread).sub(1).abs().max() < 0.03  # within a class: far less
    by_class = torch.stack([part.mean(1) for part in maps.unflatten(1, (3, -1)).unbind(1)])
    assert (by_class.std(0) / spread).max() > 0.1
