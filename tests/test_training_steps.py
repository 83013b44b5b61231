"""What a training does with its settings: the images of its batches, the arithmetic of a step, the best checkpoint."""
from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from timm.models import load_state_dict
from timm.task import ClassificationTask
from timm.utils.checkpoint_saver import load_checkpoint_metadata
from torch import Tensor, nn

from randwire_zoo.training import trainer as training
from randwire_zoo.training.trainer import train
from randwire_zoo.weights.description import build_model

CLASSES = 20
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NETWORK = {'graph': 'ws(2,0.5)', 'seed': 1, 'channels': 4, 'num_nodes': 4}
SETTINGS: dict[str, Any] = {
    'model': 'randwire', 'model_kwargs': NETWORK, 'num_classes': CLASSES, 'img_size': 32, 'mean': list(MEAN),
    'std': list(STD), 'crop_pct': 1.0, 'batch_size': 4, 'epochs': 1, 'warmup_epochs': 0, 'sched': 'none', 'lr': 0.1,
    'opt': 'momentum', 'weight_decay': 0.0, 'device': 'cpu', 'workers': 0, 'val_split': '', 'progress': False,
    'lines': False}
#: Random crops of which there is only one, and colours as they are.
WHOLE: dict[str, Any] = {'scale': [1.0, 1.0], 'ratio': [1.0, 1.0], 'color_jitter': 0.0}


@pytest.fixture(scope='module')
def pixels() -> np.ndarray:
    """A picture of noise for each class, [CLASSES, 32, 32, 3]; none is its own mirror image."""
    return np.random.default_rng(0).integers(0, 256, (CLASSES, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def folder(pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of those pictures."""
    root = tmp_path_factory.mktemp('pictures')
    for label, picture in enumerate(pixels):
        path = root / 'train' / f'{label:02}' / 'picture.png'
        path.parent.mkdir(parents=True)
        Image.fromarray(picture).save(path)
    return root


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {**SETTINGS, 'data_dir': str(folder), 'output': str(tmp_path)}


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a run of settings as `train` does, up to the first step."""
    def run_of(**settings: Any) -> Any:
        runs: list[Any] = []

        def keep(run: Any) -> training.TrainingResult:
            runs.append(run)
            return training.TrainingResult(None, None, None, ())

        with monkeypatch.context() as patch:
            patch.setattr(training._Run, 'run', keep)
            train(**settings)
        return runs[0]
    return run_of


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """The images and the targets of every step that is trained, as they come."""
    steps: list[tuple[Tensor, Tensor]] = []
    forward = ClassificationTask.forward

    def record(task: ClassificationTask, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        steps.append((images, targets))
        return forward(task, images, targets)
    monkeypatch.setattr(ClassificationTask, 'forward', record)
    return steps


def normalised(pixels: np.ndarray) -> np.ndarray:
    return ((pixels / 255 - MEAN) / STD).astype(np.float32)


def pictures_of(run: Any) -> list[tuple[int, np.ndarray]]:
    """The class and the pixels [32, 32, 3] of each image in one epoch of a run."""
    images = [(int(target), image.permute(1, 2, 0).numpy())
              for images, targets in run.loader_train for image, target in zip(images, targets, strict=True)]
    assert sorted(target for target, _ in images) == list(range(CLASSES))
    return images


@pytest.mark.parametrize(('changes', 'flipped'), [
    ({'hflip': 1.0}, (2,)), ({'hflip': 0.0, 'vflip': 1.0}, (1,)), ({'hflip': 1.0, 'vflip': 1.0}, (1, 2)),
    ({'hflip': 0.0}, ()),  # on which recipes for digits rely
    ({'no_aug': True, 'hflip': 1.0, 'vflip': 1.0, 'reprob': 1.0, 'scale': [0.25, 0.25], 'color_jitter': 0.4}, ()),
], ids=str)
def test_pictures_are_normalised_and_flipped_as_the_settings_say(
        changes: dict[str, Any], flipped: tuple[int, ...], settings: dict[str, Any], pixels: np.ndarray,
        prepare: Callable[..., Any]) -> None:
    run, expected = prepare(**{**settings, **WHOLE, **changes}), normalised(np.flip(pixels, flipped))
    for _ in range(2):
        for label, picture in pictures_of(run):
            np.testing.assert_allclose(picture, expected[label], atol=1e-5)


def test_crops_have_the_area_the_shape_and_the_interpolation_of_the_settings(
        settings: dict[str, Any], pixels: np.ndarray, prepare: Callable[..., Any]) -> None:
    # A quarter of the area, four times as wide as high: 8 rows of the whole width, each of them four times.
    run = prepare(**{**settings, **WHOLE, 'scale': [0.25, 0.25], 'ratio': [4.0, 4.0], 'hflip': 0.0,
                     'train_interpolation': 'nearest'})
    found = set()
    for label, picture in pictures_of(run):
        crops = [normalised(pixels[label, top:top + 8]).repeat(4, axis=0) for top in range(25)]
        tops = [top for top, crop in enumerate(crops) if np.allclose(picture, crop, atol=1e-5)]
        assert len(tops) == 1
        found.update(tops)
    assert len(found) > 1


def test_each_picture_has_a_rectangle_erased(
        settings: dict[str, Any], pixels: np.ndarray, prepare: Callable[..., Any]) -> None:
    run = prepare(**{**settings, **WHOLE, 'hflip': 0.0, 'reprob': 1.0, 'remode': 'const'})
    for label, picture in pictures_of(run):
        expected = normalised(pixels[label])
        rows, columns = np.nonzero((abs(picture - expected) > 1e-4).any(axis=2))
        assert len(rows), f'nothing is erased in picture {label}'
        expected[rows.min():rows.max() + 1, columns.min():columns.max() + 1] = 0
        np.testing.assert_allclose(picture, expected, atol=1e-5)


@pytest.mark.parametrize(('mode', 'limit'), [('norm', 0.1), ('value', 0.01)])
def test_the_steps_are_those_of_a_plain_loop(
        mode: str, limit: float, settings: dict[str, Any], prepare: Callable[..., Any],
        batches: list[tuple[Tensor, Tensor]]) -> None:
    # The last stages have four pixels: BN over one, of four images, would make much of a rounding.
    settings.update(no_aug=True, epochs=2, smoothing=0.1, grad_accum_steps=2, clip_grad=limit, clip_mode=mode,
                    model_ema=True, model_ema_decay=0.5, img_size=64, kernels='torch')
    network: nn.Module = prepare(**settings).task.get_trainable_module().train()
    result = train(**settings)
    assert result.folder is not None and len(batches) == 2 * 5

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    average: dict[str, Tensor] = {}
    losses: list[float] = []
    # Five steps an epoch: the last update of each has one step alone.
    for steps in (batches[0:2], batches[2:4], batches[4:5], batches[5:7], batches[7:9], batches[9:10]):
        optimizer.zero_grad()
        for images, targets in steps:
            loss = F.cross_entropy(network(images), targets, label_smoothing=0.1)
            (loss / len(steps)).backward()
            losses.append(loss.item())
        gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        assert (gradients.norm() if mode == 'norm' else gradients.abs().max()) > limit, 'nothing is clipped'
        if mode == 'norm':  # which hides the length of the gradients, and so how many steps they were divided by
            nn.utils.clip_grad_norm_(network.parameters(), limit)
        else:
            nn.utils.clip_grad_value_(network.parameters(), limit)
        optimizer.step()
        for name, tensor in network.state_dict().items():  # the average begins with the first update's weights
            halves = average.get(name, tensor) * 0.5 + tensor * 0.5
            average[name] = halves if tensor.is_floating_point() else tensor.clone()

    assert [row['train_loss'] for row in result.history] == pytest.approx(
        [np.mean(losses[:5]), np.mean(losses[5:])], rel=1e-5)
    for use_ema, expected in ((False, network.state_dict()), (True, average)):
        found = load_state_dict(result.folder / 'last.pth.tar', use_ema=use_ema)
        torch.testing.assert_close(dict(found), dict(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('off', 'epochs_mixed'), [(2, [True, True, False]), (0, [True, True, True])])
def test_batches_are_mixed_up_to_the_epoch_of_the_settings(
        off: int, epochs_mixed: list[bool], settings: dict[str, Any], pixels: np.ndarray,
        batches: list[tuple[Tensor, Tensor]]) -> None:
    train(**{**settings, 'no_aug': True, 'epochs': 3, 'mixup': 0.8, 'mixup_off_epoch': off, 'smoothing': 0.1})
    assert len(batches) == 3 * 5
    expected = torch.from_numpy(normalised(pixels)).permute(0, 3, 1, 2)
    for epoch, mixed in enumerate(epochs_mixed):
        images, targets = (torch.cat(parts) for parts in zip(*batches[5 * epoch:5 * epoch + 5], strict=True))
        labels = targets.argmax(1)
        smoothed = F.one_hot(labels, CLASSES) * 0.9 + 0.1 / CLASSES
        # A weight may be 0 or 1 by chance, but not those of all batches.
        assert torch.allclose(targets, smoothed, atol=1e-4) is not mixed
        assert torch.allclose(images, expected[labels], atol=1e-4) is not mixed


@pytest.mark.parametrize(('weights', 'of_labels', 'of_teacher'), [
    ({}, 1.0, 1.0), ({'task_loss_weight': 0.25}, 0.25, 0.75),
    ({'task_loss_weight': 0.25, 'distill_loss_weight': 2.0}, 0.25, 2.0)], ids=str)
def test_the_loss_of_a_student_is_what_its_temperature_and_weights_make_of_it(
        weights: dict[str, float], of_labels: float, of_teacher: float, settings: dict[str, Any], folder: Path,
        pixels: np.ndarray, tmp_path: Path, prepare: Callable[..., Any]) -> None:
    names = '\n'.join(f'{label:02}/picture.png' for label in range(CLASSES))
    logits = (3 * torch.randn(CLASSES, CLASSES)).half()
    save_file({'logits': logits}, tmp_path / 'outputs.safetensors',
              metadata={'images_sha256': hashlib.sha256(names.encode()).hexdigest()})
    # One step with all images, whose loss does not depend on their order.
    settings.update(no_aug=True, batch_size=CLASSES, smoothing=0.1, kd_outputs=str(tmp_path / 'outputs.safetensors'),
                    kd_temperature=3.0, **weights)
    student: nn.Module = prepare(**settings).task.get_trainable_module().train()
    outputs = student(torch.from_numpy(normalised(pixels)).permute(0, 3, 1, 2))
    distance = F.kl_div((outputs / 3).log_softmax(1), (logits.float() / 3).softmax(1), reduction='batchmean')
    labels = F.cross_entropy(outputs, torch.arange(CLASSES), label_smoothing=0.1)
    expected = of_labels * labels + of_teacher * 3 ** 2 * distance
    assert train(**settings).last['train_loss'] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize('classes', [CLASSES, 7])
def test_a_pretrained_path_leaves_the_classifier_new_and_an_initial_checkpoint_takes_it(
        classes: int, settings: dict[str, Any], tmp_path: Path, prepare: Callable[..., Any]) -> None:
    model = build_model('randwire', num_classes=classes, **NETWORK)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'file.pth')
    file = model.state_dict()

    def differing(**origin: str) -> list[str]:
        started = prepare(**settings, **origin).task.get_trainable_module().state_dict()
        assert started.keys() == file.keys()
        return [name for name in file if not torch.equal(started[name], file[name])]
    assert differing(pretrained_path=str(tmp_path / 'file.pth')) == ['fc.weight', 'fc.bias']
    if classes == CLASSES:
        assert differing(initial_checkpoint=str(tmp_path / 'file.pth')) == []


#: Made up so that the best epoch is another one by each; the last epoch is the worst by all.
MEASURED = {'loss': [3.0, 1.0, 2.0, 2.5, 9.0], 'top1': [10.0, 20.0, 40.0, 30.0, 0.0],
            'top5': [50.0, 60.0, 70.0, 80.0, 0.0]}


@pytest.mark.parametrize(('metric', 'best'), [('loss', 1), ('top1', 2), ('top5', 3)])
def test_the_best_checkpoint_is_the_best_by_the_metric_of_the_settings(
        metric: str, best: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = iter([{name: values[epoch] for name, values in MEASURED.items()} for epoch in range(5)])
    monkeypatch.setattr(training, 'evaluate', lambda *_, **__: next(rows))
    settings.update(batch_size=CLASSES, val_split='train', eval_metric=metric, checkpoint_hist=1)
    result = train(**{**settings, 'epochs': 4})
    assert result.folder is not None
    assert (result.best_epoch, result.best_metric) == (best, MEASURED[metric][best])
    names = ['model_best.pth.tar', f'checkpoint-{best}.pth.tar']
    assert [load_checkpoint_metadata(result.folder / name)['epoch'] for name in names] == [best, best]
    # A kill may come between a checkpoint and its copy; the resumed run finds which one was the best so far.
    (result.folder / names[0]).unlink()
    longer = train(resume=str(result.folder / 'last.pth.tar'), epochs=5, progress=False, lines=False)
    assert (len(longer.history), longer.best_epoch) == (5, best)
    assert load_checkpoint_metadata(result.folder / names[0])['epoch'] == best


@pytest.mark.parametrize(('summary', 'best'), [(True, 3), (False, 4)])
def test_the_best_epoch_is_sought_anew_where_a_resumed_run_has_another_metric(
        summary: bool, best: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    rows = iter([{name: values[epoch] for name, values in MEASURED.items()} for epoch in range(5)])
    monkeypatch.setattr(training, 'evaluate', lambda *_, **__: next(rows))
    settings.update(batch_size=CLASSES, val_split='train', eval_metric='loss', checkpoint_hist=2)
    folder = train(**{**settings, 'epochs': 4}).folder  # the epochs 1 and 2 are kept, the best two by the loss
    assert folder is not None
    if not summary:
        (folder / 'summary.csv').unlink()
    resumed = train(resume=str(folder / 'last.pth.tar'), epochs=5, eval_metric='top5')
    assert (resumed.best_epoch, resumed.best_metric) == (best, MEASURED['top5'][best])
    assert load_checkpoint_metadata(folder / 'model_best.pth.tar')['epoch'] == best
    assert ('the best epoch before epoch 4 is not known' in capsys.readouterr().out) == (not summary)


@pytest.mark.parametrize(('scores', 'kept', 'best', 'said'), [
    ([10.0, 20.0, 5.0], ('saver',), 1, ''),  # the epoch of last.pth.tar itself
    ([20.0, 10.0, 5.0], ('saver',), 0, 'the weights of the best epoch so far, 1, are gone'),
    ([20.0, 10.0, 15.0], ('summary.csv',), 0, 'the weights of the best epoch so far, 1, are gone'),
    ([20.0, 10.0, 15.0], (), 2, 'the best epoch before epoch 2 is not known: neither'),  # as timm once wrote them
], ids=str)
def test_the_best_epoch_is_known_from_the_last_checkpoint_alone(
        scores: list[float], kept: tuple[str, ...], best: int, said: str, settings: dict[str, Any], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = iter([{'loss': 1.0, 'top1': score, 'top5': 100.0} for score in scores])
    monkeypatch.setattr(training, 'evaluate', lambda *_, **__: next(rows))
    first = train(**{**settings, 'batch_size': CLASSES, 'val_split': 'train', 'epochs': 2}).folder
    assert first is not None
    alone = tmp_path / 'alone'
    alone.mkdir()
    for name in ('args.yaml', *(name for name in kept if name != 'saver')):
        shutil.copy(first / name, alone / name)
    state = load_checkpoint_metadata(first / 'last.pth.tar')
    torch.save({name: value for name, value in state.items() if name != 'saver' or 'saver' in kept},
               alone / 'last.pth.tar')
    result = train(resume=str(alone / 'last.pth.tar'), epochs=3, progress=False)
    assert (result.best_epoch, result.best_metric) == (best, scores[best])
    assert ('the best epoch' in (out := capsys.readouterr().out)) == bool(said) and said in out
    if best:
        assert load_checkpoint_metadata(alone / 'model_best.pth.tar')['epoch'] == best
    else:
        assert not (alone / 'model_best.pth.tar').exists()


def test_the_sizes_of_a_progressive_schedule_follow_the_epochs(
        settings: dict[str, Any], batches: list[tuple[Tensor, Tensor]]) -> None:
    # Without spread and mix every epoch has the one size that is as far along the list as the epoch in the training.
    train(**{**settings, 'epochs': 3, 'train_img_sizes': [32, 48, 64], 'train_size_schedule': 'progressive',
             'train_size_schedule_spread': 0.0, 'train_size_random_mix': 0.0})
    assert [tuple(images.shape) for images, _ in batches] == [
        (4, 3, side, side) for side in (32, 48, 64) for _ in range(5)]
