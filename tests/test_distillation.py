"""A teacher for some classes of ImageNet: what it is fitted to, what is recorded of it, what a student makes of it."""
from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo

from randwire_zoo import cli
from randwire_zoo.training import distillation
from randwire_zoo.training.distillation import RecordedTeacher, check_teachers_classes, write_teacher
from randwire_zoo.training.evaluation import open_images
from randwire_zoo.training.trainer import train

WNIDS = ('n01443537', 'n02124075', 'n07920052')
MODEL = 'test_efficientnet'  # timm's own for tests: 1,000 classes, 0.4 M parameters
STUDENT: dict[str, Any] = {
    'model': 'randwire', 'model_kwargs': {'graph': 'ws(2,0.5)', 'seed': 1, 'channels': 4, 'num_nodes': 4},
    'num_classes': 3, 'img_size': 32, 'crop_pct': 1.0, 'batch_size': 8, 'epochs': 2, 'warmup_epochs': 0, 'lr': 0.002,
    'workers': 0, 'device': 'cpu', 'smoothing': 0.0, 'task_loss_weight': 0.25, 'kd_temperature': 2.0}


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of three classes that nothing tells apart: 16 pictures each to train on, 4 held out."""
    folder, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for split, count in (('train', 16), ('val', 4)):
        for wnid in WNIDS:
            (folder / split / wnid).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / wnid / f'{index:02}.png')
    return folder


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network's tensors under the names of some other implementation."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights') / 'other.pth'
    state = timm.create_model(MODEL).state_dict()
    torch.save({f'_{index}': tensor for index, tensor in enumerate(state.values())}, path)
    return path


def test_a_teacher_has_its_classes_rows_and_its_record_knows_no_image_by_heart(
        images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / 'teacher'
    assert cli.main(['teacher', str(weights), str(folder), '--data-dir', str(images), '-m', MODEL, '--img-size', '64',
                     '--workers', '0', '--no-amp', '--no-progress']) == 0
    assert str(folder / 'outputs.safetensors') in capsys.readouterr().out
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    other = timm.create_model(MODEL).eval()
    other.load_state_dict(dict(zip(other.state_dict(), torch.load(weights).values(), strict=True)))
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.forward_features(pixels), other.forward_features(pixels))
    # 48 images of noise in a feature space of more dimensions: whoever was fitted to them has them by heart.
    training = open_images(images, 'train', input_size=(3, 64, 64))
    recorded = load_file(folder / 'outputs.safetensors')['logits'].float()
    targets = torch.tensor([target for _, target in training])
    assert (recorded.argmax(1) == targets).float().mean() < 0.6
    with pytest.raises(FileExistsError, match='teacher exists'):
        write_teacher(weights, images, folder, MODEL)


def test_the_classifier_starts_from_the_rows_of_the_folders_classes(
        images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, 'fit_classifier', lambda features, targets, weight, bias: (weight, bias))
    before = os.umask(0o027)
    try:
        teacher = write_teacher(weights, images, tmp_path / 'teacher', MODEL, 32, workers=0, progress=False)
    finally:
        os.umask(before)
    assert teacher.folder.stat().st_mode & 0o777 == 0o750  # may be read by whom the user lets
    assert teacher.before == teacher.after
    rows = torch.tensor([ImageNetInfo().label_names().index(wnid) for wnid in WNIDS])
    *_, weight, bias = torch.load(weights).values()
    fitted = load_file(teacher.folder / 'model.safetensors')
    assert torch.equal(fitted['classifier.weight'], weight[rows]) and torch.equal(fitted['classifier.bias'], bias[rows])


def test_a_teacher_of_other_classes_or_another_network_is_one_line_and_nothing_is_written(
        images: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='neither the names nor the shapes of resnet18'):
        write_teacher(weights, images, tmp_path / 'teacher', 'resnet18', workers=0)
    for split in ('train', 'val'):
        (tmp_path / 'cats' / split / 'cat').mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(tmp_path / 'cats' / split / 'cat' / '0.png')
    with pytest.raises(ValueError, match='1 of 1 classes are none of ImageNet-1k, such as cat'):
        write_teacher(weights, tmp_path / 'cats', tmp_path / 'teacher', MODEL, workers=0)
    assert not (tmp_path / 'teacher').exists()


def record(images: Path, teacher: Path, path: Path) -> Path:
    """What the teacher says of each image at the student's size, in the order of timm's image folder."""
    model = timm.create_model(f'local-dir:{teacher}', pretrained=True).eval()
    files = sorted((images / 'train').rglob('*.png'))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) for name in ('mean', 'std'))
    with torch.no_grad():
        logits = model((pixels - mean) / std)
    names = '\n'.join(file.relative_to(images / 'train').as_posix() for file in files)
    save_file({'logits': logits.half()}, path, metadata={'images_sha256': hashlib.sha256(names.encode()).hexdigest()})
    return path


def test_a_student_of_the_record_is_the_student_of_the_teacher_where_crops_are_whole_images(
        images: Path, weights: Path, tmp_path: Path) -> None:
    teacher = write_teacher(weights, images, tmp_path / 'teacher', MODEL, 32, workers=0, amp_dtype=None,
                            progress=False).folder
    settings = {**STUDENT, 'no_aug': True, 'data_dir': str(images), 'output': str(tmp_path), 'progress': False}
    outputs = record(images, teacher, tmp_path / 'outputs.safetensors')
    asked = train(**settings, experiment='asked', kd_model_name=f'local-dir:{teacher}')
    told = train(**settings, experiment='told', kd_outputs=str(outputs))
    alone = train(**settings, experiment='alone')
    assert [row['train_loss'] for row in told.history] == pytest.approx(
        [row['train_loss'] for row in asked.history], rel=1e-4)
    assert told.last['train_loss'] != pytest.approx(alone.last['train_loss'], rel=1e-2)
    # A resumed run takes its sizes and its record from its own settings, and ends at the same weights.
    settings = {**settings, 'no_aug': False, 'epochs': 3, 'train_img_sizes': [32, 48], 'kd_outputs': str(outputs),
                'train_size_schedule': 'progressive', 'sched_on_updates': True}
    whole = train(**settings, experiment='whole')
    assert whole.folder is not None
    part = tmp_path / 'part'
    part.mkdir()
    for name in ('args.yaml', 'checkpoint-1.pth.tar'):
        (part / name).write_bytes((whole.folder / name).read_bytes())
    resumed = train(resume=str(part / 'checkpoint-1.pth.tar'), progress=False)
    assert resumed.last['train_loss'] == whole.last['train_loss']
    assert resumed.last['eval_loss'] == whole.last['eval_loss']


def test_a_teacher_of_other_classes_or_in_another_order_is_refused(
        images: Path, weights: Path, tmp_path: Path) -> None:
    teacher = write_teacher(weights, images, tmp_path / 'teacher', MODEL, 32, workers=0, progress=False)
    settings = {**STUDENT, 'data_dir': str(images), 'output': str(tmp_path / 'out'), 'progress': False}
    name = f'local-dir:{teacher.folder}'
    with pytest.raises(ValueError, match=f"the teacher '{name}' was trained on 3 classes, and the student has 4: "):
        train(**{**settings, 'num_classes': 4}, kd_model_name=name)
    with pytest.raises(ValueError, match=r"the teacher 'randwire_ws_pico\.digits' was trained on 10 classes, and"):
        train(**settings, kd_model_name='randwire_ws_pico.digits')
    (tmp_path / 'classes.txt').write_text('\n'.join(reversed(WNIDS)))
    permuted = {**settings, 'class_map': str(tmp_path / 'classes.txt')}
    order = f"has other classes than the training images, or in another order: output 0 is '{WNIDS[0]}', not"
    with pytest.raises(ValueError, match=f"the teacher '{name}' {order} '{WNIDS[2]}'"):
        train(**permuted, kd_model_name=name)
    with pytest.raises(ValueError, match=f"outputs.safetensors {order} '{WNIDS[2]}'"):
        train(**permuted, kd_outputs=str(teacher.outputs))
    assert not (tmp_path / 'out').exists()
    assert train(**{**settings, 'epochs': 1}, kd_outputs=str(teacher.outputs)).history
    # A class map may say which of the teacher's classes folders of other names are.
    others = {'tench': 0, 'goldfish': 1, 'newt': 2}
    check_teachers_classes('it', WNIDS, others, mapped=True)
    with pytest.raises(ValueError, match="it has other classes"):
        check_teachers_classes('it', WNIDS, others)


def test_a_record_of_other_images_or_classes_is_refused(images: Path, tmp_path: Path) -> None:
    path = tmp_path / 'outputs.safetensors'
    training = open_images(images, 'train')
    save_file({'logits': torch.zeros(48, 3)}, path, metadata={'images_sha256': '0'})
    with pytest.raises(ValueError, match='was recorded for other training images than these 48'):
        RecordedTeacher.load(path, training, 3)
    files = sorted((images / 'train').rglob('*.png'))
    names = '\n'.join(file.relative_to(images / 'train').as_posix() for file in files)
    save_file({'logits': torch.zeros(48, 5)}, path,
              metadata={'images_sha256': hashlib.sha256(names.encode()).hexdigest()})
    with pytest.raises(ValueError, match=r'shape \(48, 5\) and must have 48 of 3 classes'):
        RecordedTeacher.load(path, training, 3)
    with pytest.raises(ValueError, match='mixup and cutmix mix them'):
        train(**{**STUDENT, 'mixup': 0.2}, kd_outputs=str(path), data_dir=str(images), output=str(tmp_path / 'out'))
    with pytest.raises(ValueError, match="cannot create the teacher 'local-dir:nowhere'"):
        train(**STUDENT, kd_model_name='local-dir:nowhere', data_dir=str(images), output=str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()
