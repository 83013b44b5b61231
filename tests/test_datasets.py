"""The archives of data sets become image folders, or one line says why not and nothing is written."""
from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import re
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from timm.data import create_dataset
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10, MNIST
from voc import annotation, lay, picture

from randwire_zoo import cli
from randwire_zoo.training.datasets import (
    read_label_texts,
    write_caltech101,
    write_class_folders,
    write_downloaded,
    write_tiny_imagenet,
)
from randwire_zoo.training.evaluation import class_indices, open_images
from randwire_zoo.training.images import open_folder
from randwire_zoo.training.trainer import read_summary
from randwire_zoo.weights.description import build_model

ROOT = 'tiny-imagenet-200'
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # as the recipes have them
PIXEL = bytes.fromhex('47494638376101000100800000ffffff0000002c00000000010001000002024401003b')  # a GIF of one pixel
#: Of timm, and what else Pillow reads.
ENDINGS = '.png, .jpg, .jpeg, .bmp, .gif, .jfif, .ppm, .tif, .tiff, .webp'


def members() -> dict[str, bytes]:
    """Two classes of three training images and four validation images, laid out as in the archive."""
    files = {'wnids.txt': b'n02\nn01\n', 'words.txt': b'n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tbus\n',
             'test/images/test_0.JPEG': PIXEL}
    for wnid in ('n01', 'n02'):
        names = [f'{wnid}_{index}.JPEG' for index in range(3)]
        files.update({f'train/{wnid}/images/{name}': PIXEL for name in names})
        files[f'train/{wnid}/{wnid}_boxes.txt'] = ''.join(f'{name}\t0\t1\t62\t63\n' for name in names).encode()
    labels = {'val_0.JPEG': 'n02', 'val_1.JPEG': 'n01', 'val_2.JPEG': 'n01', 'val_3.JPEG': 'n02'}
    files.update({f'val/images/{name}': name.encode() for name in labels})
    files['val/val_annotations.txt'] = ''.join(f'{name}\t{wnid}\t0\t32\t44\t62\n' for name, wnid in labels.items()
                                               ).encode()
    return files


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in files.items():
            archive.writestr(f'{ROOT}/{name}', data)
    return path


@pytest.mark.parametrize('kind', ['archive', 'folder', 'its parent'])
def test_an_archive_or_a_folder_becomes_an_image_folder_with_the_labels_of_its_table(
        kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = (pack(tmp_path / 'tiny.zip', members()) if kind == 'archive'
              else lay(tmp_path / ROOT, members()).parent if kind == 'its parent'
              else lay(tmp_path / 'there', members()))
    folder = tmp_path / 'here'
    assert cli.main(['data', 'tiny-imagenet', str(source), str(folder)]) == 0
    assert capsys.readouterr().out == f'{folder}: 2 classes, 6 training and 4 validation images\n'
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()) == [
        'train/n01/n01_0.JPEG', 'train/n01/n01_1.JPEG', 'train/n01/n01_2.JPEG', 'train/n02/n02_0.JPEG',
        'train/n02/n02_1.JPEG', 'train/n02/n02_2.JPEG', 'val/n01/val_1.JPEG', 'val/n01/val_2.JPEG',
        'val/n02/val_0.JPEG', 'val/n02/val_3.JPEG', 'words.txt']
    assert (folder / 'val/n02/val_3.JPEG').read_bytes() == b'val_3.JPEG'
    assert read_label_texts(folder) == {'n01': 'goldfish, Carassius auratus', 'n02': 'bus'}
    assert class_indices(open_images(folder, 'validation')) == {'n01': 0, 'n02': 1}  # as timm finds it


@pytest.mark.parametrize('change, message', [
    ({'wnids.txt': None}, 'it has no wnids.txt'),
    ({'wnids.txt': b'n01\nn01\n'}, 'names no classes, or one twice'),
    ({'train/n01/images/n01_2.JPEG': None, 'val/images/val_0.JPEG': None},
     'lacks 2 of 10 images, such as train/n01/images/n01_2.JPEG'),
    ({'train/n02/n02_boxes.txt': None}, 'it has no train/n02/n02_boxes.txt'),
    ({'val/images/val_1.JPEG': b''}, 'val/images/val_1.JPEG is empty'),
    ({'val/val_annotations.txt': b'val_0.JPEG\tn03\t0\t1\t2\t3\n'}, "the class 'n03', which wnids.txt has not"),
    ({'val/val_annotations.txt': b'val_0.JPEG\tn01\nval_0.JPEG\tn02\n'}, 'names an image twice'),
    ({'words.txt': b'\xff'}, 'words.txt cannot be read'),
])
def test_an_archive_that_is_not_whole_is_one_line_and_nothing_is_written(
        change: dict[str, bytes | None], message: str, tmp_path: Path) -> None:
    files = {name: data for name, data in {**members(), **change}.items() if data is not None}
    source = pack(tmp_path / 'tiny.zip', files)
    with pytest.raises(ValueError) as error:
        write_tiny_imagenet(source, tmp_path / 'here')
    assert message in str(error.value) and '\n' not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ['tiny.zip']


def test_a_damaged_or_missing_source_and_a_folder_in_use_are_one_line(tmp_path: Path) -> None:
    source = pack(tmp_path / 'tiny.zip', members())
    data = bytearray(source.read_bytes())
    data[data.rindex(PIXEL) + 10] ^= 255  # of a training image
    (tmp_path / 'bad.zip').write_bytes(data)
    with pytest.raises(ValueError, match=r'bad.zip is damaged: .*CRC'):
        write_tiny_imagenet(tmp_path / 'bad.zip', tmp_path / 'here')
    (tmp_path / 'cut.zip').write_bytes(source.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r'cut.zip is no whole archive'):
        write_tiny_imagenet(tmp_path / 'cut.zip', tmp_path / 'here')
    with pytest.raises(FileNotFoundError, match='no archive or folder at'):
        write_tiny_imagenet(tmp_path / 'nothing', tmp_path / 'here')
    with pytest.raises(FileExistsError, match='is not empty; name another folder'):
        write_tiny_imagenet(source, tmp_path)
    assert not (tmp_path / 'here').exists()


CALTECH = '101_ObjectCategories'
LISTS = {
    'train.txt': b'ant/image_0001.jpg\nBACKGROUND_Google/image_0001.jpg\nbass/image_0002.jpg\nbass/image_0003.jpg\n',
    'test.txt': b'ant/image_0002.jpg\nbass/image_0001.jpg\nBACKGROUND_Google/tmp\n'}
LISTED = ['train/ant/image_0001.jpg', 'train/bass/image_0002.jpg', 'train/bass/image_0003.jpg',
          'val/ant/image_0002.jpg', 'val/bass/image_0001.jpg']


def caltech(**more: bytes | None) -> dict[str, bytes]:
    """Two categories, the background and what else lies in the archive; each image holds its name."""
    names = ['ant/image_0001.jpg', 'ant/image_0002.jpg', 'bass/image_0001.jpg', 'bass/image_0002.jpg',
             'bass/image_0003.jpg', 'BACKGROUND_Google/image_0001.jpg', 'BACKGROUND_Google/tmp', 'ant/._image_0001.jpg']
    files: dict[str, bytes | None] = {f'{CALTECH}/{name}': name.encode() for name in names}
    return {name: data for name, data in {**files, **more}.items() if data is not None}


def pack_caltech(path: Path) -> Path:
    """As it is published: a zip archive, with a tar archive of the images and what a Mac left in it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode='w:gz') as archive:
        for name, data in caltech().items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(f'__MACOSX/caltech-101/._{CALTECH}.tar.gz', b'junk')
        archive.writestr(f'caltech-101/{CALTECH}.tar.gz', packed.getvalue())
        archive.writestr('caltech-101/Annotations.tar', b'boxes')
    path.with_name(f'{CALTECH}.tar.gz').write_bytes(packed.getvalue())
    return path


def written(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


def test_caltech101_is_split_by_its_lists_without_the_background(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = lay(tmp_path / 'there', caltech(**LISTS)), tmp_path / 'here'
    assert cli.main(['data', 'caltech-101', str(source), str(folder)]) == 0
    assert capsys.readouterr().out == f'{folder}: 2 classes, 3 training and 2 validation images\n'
    assert written(folder) == LISTED
    assert (folder / 'val/bass/image_0001.jpg').read_bytes() == b'bass/image_0001.jpg'
    assert class_indices(open_images(folder, 'validation')) == {'ant': 0, 'bass': 1}


def test_caltech101_is_split_by_a_draw_from_either_archive_and_from_what_is_in_it(tmp_path: Path) -> None:
    pack_caltech(tmp_path / 'caltech-101.zip')
    lay(tmp_path / 'unpacked' / 'caltech-101', caltech(**LISTS))
    splits = []
    for number, source in enumerate(['caltech-101.zip', f'{CALTECH}.tar.gz', 'unpacked']):
        found = write_caltech101(tmp_path / source, tmp_path / str(number), per_class=1)
        assert (found.classes, found.training, found.validation) == (2, 2, 3)
        splits.append(written(found.folder))
    assert splits[0] == splits[1] == splits[2]
    for kind, count in (('ant', 2), ('bass', 3)):
        mine = [name for name in splits[0] if f'/{kind}/' in name]
        assert sum(name.startswith('train/') for name in mine) == 1
        assert len({name.rpartition('/')[2] for name in mine}) == len(mine) == count
    drawn = {tuple(written(write_caltech101(tmp_path / 'unpacked', tmp_path / f's{seed}', 1, seed).folder))
             for seed in range(8)}
    assert len(drawn) > 1


def test_caltech101_is_drawn_with_the_number_and_the_seed_of_the_command(tmp_path: Path) -> None:
    source, splits = lay(tmp_path / 'there', caltech(**LISTS)), []
    for number, (flags, seed) in enumerate([([], 1), (['--seed', '1'], 1), (['--seed', '2'], 2), (['--seed', '3'], 3),
                                            (['--seed', '4'], 4)]):
        folder = tmp_path / f'command{number}'
        assert cli.main(['data', 'caltech-101', str(source), str(folder), '--per-class', '1', *flags]) == 0
        splits.append(written(folder))
        assert sum(name.startswith('train/') for name in splits[-1]) == 2  # and not the three of the lists
        assert splits[-1] == written(write_caltech101(source, tmp_path / f'function{number}', 1, seed).folder)
    assert len(set(map(tuple, splits))) > 1


def test_boxes_are_split_and_what_is_broken_is_left_out_as_the_command_says(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {}
    for number in range(1, 6):
        files.update({f'{number}.jpg': picture(shade=number), f'{number}.xml': annotation(('cat', 1, 1, 10, 20))})
    source = lay(tmp_path / 'whole', files)
    broken = lay(tmp_path / 'broken', {**files, '2.jpg': b'no image'})
    for images, flags, training, validation in (
            (source, [], '1234', '5'), (source, ['--every', '2'], '135', '24'), (source, ['--every', '3'], '1245', '3'),
            (broken, ['--every', '2', '--skip-broken'], '135', '4'), (broken, ['--skip-broken'], '134', '5')):
        folder = tmp_path / ' '.join(['here', *flags, images.name])
        assert cli.main(['data', 'voc', str(images), str(folder), *flags]) == 0
        assert written(folder) == [
            'annotations/instances_train.json', 'annotations/instances_val.json',
            *(f'train/{number}.jpg' for number in training), *(f'val/{number}.jpg' for number in validation)]
    assert 'left out: 2.jpg is no image' in capsys.readouterr().out
    assert cli.main(['data', 'voc', str(broken), str(tmp_path / 'none')]) == 2
    assert '--skip-broken leaves out what is so' in capsys.readouterr().err and not (tmp_path / 'none').exists()


def photographs() -> dict[str, bytes]:
    """Three classes of 11, 5 and 2 images, among what else lies in such folders; each image has a shade of its own."""
    names = [f'{label}/{index:02}.{ending}' for label, count, ending in (('cat', 11, 'jpg'), ('dog', 5, 'JPEG'),
                                                                       ('train', 2, 'png')) for index in range(count)]
    return {**{name: picture(shade=number) for number, name in enumerate(names)}, 'cover.jpg': picture(),
            'cat/notes.txt': b'notes', 'dog/IMG_1.HEIC': b'photograph', 'cat/cut.jpg': picture()[:-200],
            'dog/empty.png': b'', '.DS_Store': b'junk', 'cat/._00.jpg': b'junk', '.trash/old.jpg': picture()}


@pytest.mark.parametrize(('kind', 'every'), [
    ('folder', 5), ('folder', 2), ('folder', 3), ('folder', 100), ('packed', 5), ('packed folder', 5)])
def test_class_folders_are_split_class_by_class(
        kind: str, every: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, folder = photographs(), tmp_path / 'here'
    if kind == 'folder':
        source = lay(tmp_path / 'there', files)
    else:
        source = tmp_path / 'there.zip'
        with zipfile.ZipFile(source, 'w') as archive:
            for name, data in files.items():
                if kind == 'packed' or name != 'cover.jpg':
                    archive.writestr(name if kind == 'packed' else f'photographs/{name}', data)
    flags = [] if every == 5 else ['--every', str(every)]
    assert cli.main(['data', 'folder', str(source), str(folder), *flags]) == 0
    training = held = 0
    for label, count in (('cat', 11), ('dog', 5), ('train', 2)):
        names = sorted(name for name in files if re.fullmatch(rf'{label}/\d\d\.\w+', name))
        out = {name for number, name in enumerate(names, 1) if number % every == 0} or {names[-1]}
        assert written(folder / 'validation' / label) == sorted(name.partition('/')[2] for name in out)
        assert written(folder / 'train' / label) == sorted(name.partition('/')[2] for name in set(names) - out)
        training, held = training + count - len(out), held + len(out)
    assert len(written(folder)) == training + held == 18 and min(training, held) >= 3
    for path in folder.rglob('*.*'):
        assert path.read_bytes() == files[path.relative_to(folder).as_posix().partition('/')[2]]
    outside = ['left out: 1 images in no class folder, such as cover.jpg'] if kind != 'packed folder' else []
    said, *lines = capsys.readouterr().out.splitlines()
    assert said == f'{folder}: 3 classes, {training} training and {held} validation images'
    assert lines[:-1] == [f'left out: 2 files that are not {ENDINGS}: 1 .heic, 1 .txt', *outside]
    assert lines[-1].startswith('left out: 2 that cannot be read, such as cat/cut.jpg is broken')
    for split, count in (('train', training), ('validation', held)):  # as timm reads it
        images = open_images(folder, split, num_classes=3)
        assert class_indices(images) == {'cat': 0, 'dog': 1, 'train': 2} and len(images) == count


@pytest.mark.parametrize(('change', 'arguments', 'message'), [
    ({'one/1.jpg': picture()}, {}, f'the class one has 1 image that can be read ({ENDINGS}); it needs one to'),
    ({'one/1.jpg': picture(), 'one/2.jpg': b'?'}, {}, 'the class one has 1 image that can be read'),
    ({'notes/all.txt': b'?'}, {}, 'the class notes has no image that can be read'),
    ({'cat/white/1.jpg': picture()}, {}, 'cat/white/1.jpg lies deeper than in a folder per class; name the folder'),
    ({'train/cat/1.jpg': picture()}, {}, 'is split already: it has train/; name it as the --data-dir of a training'),
    ({'Valid/cat/1.jpg': picture(), 'train': None}, {}, 'is split already: it has Valid/'),
    ({'val/1.jpg': picture()}, {}, 'is split already: it has train/'),
    ({'dog': None, 'train': None}, {}, f'has one class, cat; it must have a folder of images ({ENDINGS}) for'),
    ({'dog': None, 'train': None, 'cat': None}, {}, 'has no folder of images; it must have a folder of images'),
    ({}, {'every': 1}, 'every must be at least 2, got 1'),
])
def test_class_folders_that_cannot_be_split_are_one_line_and_nothing_is_written(
        change: dict[str, Any], arguments: dict[str, int], message: str, tmp_path: Path) -> None:
    gone = [name for name, data in change.items() if data is None]
    files = {name: data for name, data in {**photographs(), **change}.items() if name.partition('/')[0] not in gone}
    source = lay(tmp_path / 'there', files)
    with pytest.raises(ValueError) as error:
        write_class_folders(source, tmp_path / 'here', **arguments)
    assert message in str(error.value) and '\n' not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ['there'] and written(source) == sorted(files)


def test_class_folders_are_not_split_into_a_folder_in_use_or_into_themselves(tmp_path: Path) -> None:
    source = lay(tmp_path / 'there', photographs())
    lay(tmp_path / 'here', {'mine.txt': b'mine'})
    (source / 'fish').mkdir()
    with pytest.raises(ValueError, match='the class fish has no image'):
        write_class_folders(source, tmp_path / 'new')
    with pytest.raises(FileExistsError, match='here exists and is not empty; name another folder'):
        write_class_folders(source, tmp_path / 'here')
    with pytest.raises(ValueError, match=r'lies in .*there, of which it is to be made'):
        write_class_folders(source, source / 'split')
    with pytest.raises(FileNotFoundError, match='no archive or folder at'):
        write_class_folders(tmp_path / 'nowhere', tmp_path / 'new')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['here', 'there'] and not (source / 'split').exists()


@pytest.mark.parametrize('change, arguments, message', [
    ({f'{CALTECH}/{name}': None for name in ('ant/image_0002.jpg', 'bass/image_0001.jpg')}, {},
     'the lists and the images differ in 2, such as ant/image_0002.jpg'),
    ({'test.txt': LISTS['test.txt'] + b'ant/image_0001.jpg\n'}, {}, 'train.txt and test.txt name an image twice'),
    ({'train.txt': None}, {}, 'ant has 2 images, too few to train on 30 and measure on others'),
    ({}, {'per_class': 2}, 'ant has 2 images, too few to train on 2'),
    ({}, {'per_class': 0}, 'per_class must be at least 1, got 0'),
    ({f'{CALTECH}/bass/image_0001.jpg': b''}, {}, 'bass/image_0001.jpg is empty'),
    ({name: None for name in caltech()}, {}, f'is no Caltech-101: it has no images in {CALTECH}'),
])
def test_a_caltech101_that_is_not_whole_is_one_line_and_nothing_is_written(
        change: dict[str, bytes | None], arguments: dict[str, int], message: str, tmp_path: Path) -> None:
    source = lay(tmp_path / 'there', caltech(**{**LISTS, **change}))
    with pytest.raises(ValueError) as error:
        write_caltech101(source, tmp_path / 'here', **arguments)
    assert message in str(error.value) and '\n' not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ['there']


def test_a_cut_archive_of_caltech101_is_one_line(tmp_path: Path) -> None:
    whole = pack_caltech(tmp_path / 'caltech-101.zip').with_name(f'{CALTECH}.tar.gz')
    cut = tmp_path / 'cut.tar.gz'
    for data in (whole.read_bytes()[:-40], b'no archive'):
        cut.write_bytes(data)
        with pytest.raises(ValueError, match=r'cut.tar.gz is no whole archive'):
            write_caltech101(cut, tmp_path / 'here', 1)


def cifar10_batches(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10 as its authors pack it, of two images a file: rows of 1024 values of red, of green and of blue."""
    batches = root / 'cifar-10-batches-py'
    batches.mkdir(parents=True)
    names = [f'data_batch_{number}' for number in range(1, 6)] + ['test_batch']
    for number, name in enumerate(names):
        data = np.zeros((2, 3, 32, 32), np.uint8)
        data[0, 0], data[1, 2, 0] = number + 1, 255  # one image red, one black with a first row of blue
        (batches / name).write_bytes(pickle.dumps({'data': data.reshape(2, -1), 'labels': [number, 9]}))
    (batches / 'batches.meta').write_bytes(pickle.dumps({'label_names': [f'name{number}' for number in range(10)]}))
    hashes = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in batches.iterdir()}
    monkeypatch.setattr(CIFAR10, 'train_list', [[name, hashes[name]] for name in names[:-1]])
    monkeypatch.setattr(CIFAR10, 'test_list', [[name, hashes[name]] for name in names[-1:]])
    monkeypatch.setattr(CIFAR10, 'meta', {**CIFAR10.meta, 'md5': hashes['batches.meta']})


def test_cifar10_becomes_an_image_folder(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cifar10_batches(tmp_path / 'root', monkeypatch)
    folder = tmp_path / 'cifar10'
    assert cli.main(['data', 'cifar10', str(folder), '--root', str(tmp_path / 'root')]) == 0
    assert f'{folder}: 10 classes, 10 training and 2 validation images' in capsys.readouterr().out
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*.png')) == sorted([
        *(f'train/name{number}/{2 * number:05}.png' for number in range(5)),
        *(f'train/name9/{2 * number + 1:05}.png' for number in range(5)),
        'test/name5/00000.png', 'test/name9/00001.png'])
    assert (np.array(Image.open(folder / 'test/name5/00000.png')) == (6, 0, 0)).all()
    blue = np.array(Image.open(folder / 'train/name9/00003.png'))
    assert blue.shape == (32, 32, 3) and (blue[0] == (0, 0, 255)).all() and not blue[1:].any()


def test_cifar10_is_trained_on_and_measured_without_an_image_folder(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cifar10_batches(tmp_path / 'root', monkeypatch)
    network: dict[str, Any] = {'graph': 'ws(2,0.5)', 'channels': 4, 'num_nodes': 4, 'stem_stride': 2}
    assert cli.main([
        'train', '-c', 'cifar10/randwire_ws_small', '--data-dir', str(tmp_path / 'root'), '--dataset', 'torch/cifar10',
        '--dataset-download', '--model-kwargs', *(f'{name}={value}' for name, value in network.items()), '--epochs',
        '1', '--warmup-epochs', '0', '-b', '5', '--workers', '0', '--device', 'cpu', '--no-amp', '--no-pin-mem',
        '--output', str(tmp_path), '--experiment', 'run', '--no-progress']) == 0
    assert '(10 images of 10 classes, 2 held out)' in capsys.readouterr().out
    last = tmp_path / 'run' / 'last.pth.tar'
    model = build_model('randwire', num_classes=10, checkpoint_path=str(last), **network).eval()
    pixels = torch.zeros(2, 3, 32, 32)
    pixels[0, 0], pixels[1, 2, 0] = 6 / 255, 1  # the two of test_batch, a 5 and a 9
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CIFAR10_MEAN, CIFAR10_STD))
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(model((pixels - mean) / std), torch.tensor([5, 9])).item()
    row, = read_summary(tmp_path / 'run' / 'summary.csv')
    assert row['eval_loss'] == pytest.approx(loss, rel=1e-4)
    assert cli.main(['eval', '--checkpoint', str(last)]) == 0
    assert f'at 32 px on 2 images: top-1 {row["eval_top1"]:.4f} %' in capsys.readouterr().out


def test_mnist_becomes_an_image_folder(tmp_path: Path) -> None:
    raw = tmp_path / 'root' / 'MNIST' / 'raw'
    raw.mkdir(parents=True)
    for name, digits in (('train', range(10)), ('t10k', (7, 7))):
        images = np.stack([np.full((28, 28), 20 * digit, np.uint8) for digit in digits])
        # The files of its authors: a magic number, the lengths, and the values.
        (raw / f'{name}-images-idx3-ubyte').write_bytes(struct.pack('>4i', 2051, *images.shape) + images.tobytes())
        (raw / f'{name}-labels-idx1-ubyte').write_bytes(struct.pack('>2i', 2049, len(images)) + bytes(digits))
    written = write_downloaded('mnist', tmp_path / 'mnist', tmp_path / 'root')
    assert (written.classes, written.training, written.validation) == (10, 10, 2)
    seven = np.array(Image.open(tmp_path / 'mnist/test/7/00001.png'))
    assert seven.shape == (28, 28) and (seven == 140).all()
    assert class_indices(open_images(tmp_path / 'mnist', 'train')) == {str(digit): digit for digit in range(10)}
    with pytest.raises(FileExistsError, match='is not empty'):
        write_downloaded('mnist', tmp_path / 'mnist', tmp_path / 'root')


def test_a_download_that_fails_is_one_line(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(MNIST, 'mirrors', ['http://127.0.0.1:9/'])  # a port that nobody listens at
    assert cli.main(['data', 'mnist', str(tmp_path / 'mnist'), '--root', str(tmp_path / 'root')]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f'randwire-zoo: error: torchvision has no whole mnist in {tmp_path / "root"}: ')
    assert len([line for line in said if 'randwire-zoo' in line]) == 1 and not (tmp_path / 'mnist').exists()


def encoded(kind: str, shade: int = 0, mode: str = 'RGB') -> bytes:
    """An image of 8×8 pixels, a different one for each shade; as 'deep' a grey PNG of 16 bits."""
    file, pixels = io.BytesIO(), np.full((8, 8), shade, np.uint8)
    image = Image.fromarray(pixels).convert(mode) if kind != 'deep' else Image.fromarray(pixels.astype(np.uint16) * 257)
    image.save(file, 'PNG' if kind == 'deep' else kind)
    return file.getvalue()


@pytest.mark.parametrize(('names', 'said'), [
    (['cat/0.WEBP', 'cat/1.bmp', 'dog/2.tif', 'dog/3.png', 'dog/4.gif'], '1 .bmp, 1 .gif, 1 .tif, 1 .webp'),
    (['cat/0.png', 'cat/1.jpg', 'dog/2.png', 'dog/2.webp', 'dog/2.webp.png'], '1 .webp'),
])
def test_images_that_timm_passes_over_are_written_as_png(
        names: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {'.webp': 'WEBP', '.bmp': 'BMP', '.tif': 'TIFF', '.png': 'PNG', '.gif': 'GIF', '.jpg': 'JPEG'}
    files = {name: encoded(kinds[Path(name).suffix.lower()], 40 * number, 'CMYK' if name.endswith('tif') else 'L')
             for number, name in enumerate(names)}
    lay(tmp_path / 'there', files)
    assert cli.main(['data', 'folder', str(tmp_path / 'there'), str(tmp_path / 'here')]) == 0
    assert f'\nwritten as PNG: {said}\n' in capsys.readouterr().out
    found = {}
    for split in ('train', 'validation'):
        for path, _ in open_images(tmp_path / 'here', split).reader.samples:
            with Image.open(path) as image:
                assert image.format == {'.png': 'PNG', '.jpg': 'JPEG'}[Path(path).suffix]
                found[np.asarray(image.convert('RGB')).tobytes()] = path
    assert set(found) == {np.asarray(Image.open(io.BytesIO(data)).convert('RGB')).tobytes() for data in files.values()}
    assert len(found) == len(files)


@pytest.mark.parametrize(('local', 'central', 'value', 'message'), [
    (8, 10, 9, r'cat/\S+ cannot be unpacked: That compression method is not supported; unpack the archive with'),
    (6, 8, 1, r'cat/\S+ cannot be unpacked: .*password.*; unpack the archive with another program and name the'),
])
def test_a_zip_that_python_cannot_unpack_is_one_line(
        local: int, central: int, value: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Deflate64, in which Windows packs large folders, and a password; the test writes them into the headers."""
    source = pack(tmp_path / 'photographs.zip', {name: data for name, data in photographs().items() if '/' in name})
    data = bytearray(source.read_bytes())
    for mark, offset in ((b'PK\3\4', local), (b'PK\1\2', central)):
        for found in re.finditer(re.escape(mark), bytes(data)):
            struct.pack_into('<H', data, found.start() + offset, value)
    source.write_bytes(data)
    assert cli.main(['data', 'folder', str(source), str(tmp_path / 'here')]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said.strip()) and said.count('\n') == 1 and not (tmp_path / 'here').exists()


def test_a_zip_whose_compressed_data_are_damaged_is_one_line(tmp_path: Path) -> None:
    source = tmp_path / 'photographs.zip'
    with zipfile.ZipFile(source, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in photographs().items():
            archive.writestr(name, data)
    data = bytearray(source.read_bytes())
    start = 30 + len(next(iter(photographs())))  # after the header of the first file and its name
    data[start:start + 20] = b'\xff' * 20
    source.write_bytes(data)
    with pytest.raises(ValueError, match=r'photographs.zip is damaged: cat/00.jpg: Error -3 while decompressing data'):
        write_class_folders(source, tmp_path / 'here')


def test_a_tar_of_what_is_in_a_folder_is_the_folder(tmp_path: Path) -> None:
    """`tar -C photographs .` writes ./ before all names."""
    source = lay(tmp_path / 'there', photographs())
    with tarfile.open(tmp_path / 'there.tar.gz', 'w:gz') as archive:
        archive.add(source, '.')
    said = [str(write_class_folders(place, tmp_path / f'{place.name} here'))
            for place in (source, tmp_path / 'there.tar.gz')]
    assert said[0].partition(':')[2] == said[1].partition(':')[2]
    assert written(tmp_path / 'there here') == written(tmp_path / 'there.tar.gz here')


def lying(kind: str, orientation: int, mode: str = 'RGB') -> bytes:
    """A photograph of 48×32 pixels, dark with a bright corner at the top left, of which EXIF says how it was stored."""
    pixels = np.full((32, 48, 3), 40, np.uint8)
    pixels[:16, :16] = 200
    upright = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.fromarray(pixels).convert(mode)
    (image.transpose(upright[orientation]) if orientation in upright else image).save(file, kind, exif=exif)
    return file.getvalue()


def test_photographs_that_exif_says_are_turned_are_trained_on_upright(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {'cat/0.JPG': lying('JPEG', 6), 'cat/1.jpeg': lying('JPEG', 8, 'CMYK'), 'cat/2.jpg': lying('JPEG', 3, 'L'),
             'cat/3.png': lying('PNG', 6, 'RGBA'), 'dog/4.webp': lying('WEBP', 8), 'dog/5.tif': lying('TIFF', 6),
             'dog/6.jpg': lying('JPEG', 1), 'dog/7.jpg': lying('JPEG', 9)}
    source = lay(tmp_path / 'there', files)
    assert cli.main(['data', 'folder', str(source), str(tmp_path / 'here')]) == 0
    # Pillow turns TIFF itself; 1 says that an image lies as it is seen, and 9 nothing.
    assert 'written as PNG: 1 .tif, 1 .webp\nset upright, as EXIF says: 5\n' in capsys.readouterr().out
    seen = [image for split in ('train', 'validation') for image, _ in open_images(tmp_path / 'here', split)]
    assert len(seen) == len(files)
    for image in seen:
        assert image.size == (48, 32)
        pixels = np.asarray(image).astype(int)
        assert abs(pixels[:12, :12] - 200).max() <= 8 and abs(pixels[20:] - 40).max() <= 8
    for name in ('dog/6.jpg', 'dog/7.jpg'):  # what is not turned is not written anew
        assert next((tmp_path / 'here').rglob(Path(name).name)).read_bytes() == files[name]


def test_a_class_whose_name_is_no_utf_8_is_refused_before_anything_is_made_of_it(tmp_path: Path) -> None:
    label = os.fsdecode(b'caf\xe9')
    try:
        source = lay(tmp_path / 'there', {f'{name}/{number}.png': encoded('PNG', number) for name in (label, 'tea')
                                          for number in range(3)})
    except OSError:
        pytest.skip('this file system has no such names')
    with pytest.raises(ValueError, match=r"there: the name of the class folder 'caf\\udce9' is no UTF-8; rename"):
        write_class_folders(source, tmp_path / 'here')
    assert not (tmp_path / 'here').exists()
    source.rename(tmp_path / 'train')
    with pytest.raises(ValueError, match=r"the name of the class folder 'caf\\udce9' is no UTF-8; rename the folder"):
        open_images(tmp_path, 'train')


def test_images_of_16_bits_are_left_out_of_class_folders(tmp_path: Path) -> None:
    source = lay(tmp_path / 'there', {**photographs(), 'cat/a.png': encoded('deep'), 'cat/b.png': encoded('deep')})
    said = str(write_class_folders(source, tmp_path / 'here'))
    assert '\nleft out: 4 that cannot be read, such as cat/a.png has more than 8 bits a pixel' in said
    assert not list((tmp_path / 'here').rglob('[ab].png'))


def test_a_class_folder_that_is_a_link_has_the_images_behind_it(tmp_path: Path) -> None:
    plain = lay(tmp_path / 'plain', {name: data for name, data in photographs().items() if '/' in name})
    linked = tmp_path / 'linked'
    linked.mkdir()
    (linked / 'cat').symlink_to(plain / 'cat')
    (plain / 'dog' / 'up').symlink_to(plain)  # goes round in a circle
    for label in ('dog', 'train'):
        (linked / label).symlink_to(plain / label)
    said = [str(write_class_folders(source, tmp_path / f'{source.name} here')) for source in (plain, linked)]
    assert said[0].partition(':')[2] == said[1].partition(':')[2]
    assert written(tmp_path / 'plain here') == written(tmp_path / 'linked here')


def test_an_image_folder_has_the_images_and_the_classes_that_timm_finds(tmp_path: Path) -> None:
    lay(tmp_path / 'val', {f'{label}/{number}.png': encoded('PNG', number) for label in ('n10', 'n9') for number in
                           range(3)})
    lay(tmp_path, {'map.txt': b'n10\nother\nn9\n', 'deep/train/day1/cat/0.png': encoded('PNG'),
                   'deep.txt': b'cat\n', 'notes.txt': b''})
    for root, split, class_map in (
            (tmp_path, 'validation', ''), (tmp_path, 'validation', str(tmp_path / 'map.txt')),
            (tmp_path / 'val', '', ''), (tmp_path / 'deep', 'train', str(tmp_path / 'deep.txt'))):
        ours = open_folder(root, split, 'L', class_map)
        theirs = create_dataset('', root=str(root), split=split, class_map=class_map, input_img_mode='L')
        assert ours.reader.samples == theirs.reader.samples and len(ours) == len(theirs) > 0
        assert class_indices(ours) == class_indices(theirs)
        for (image, index), (other, target) in zip(ours, theirs, strict=True):
            assert index == target and image.mode == 'L' and image.tobytes() == other.tobytes()


@pytest.mark.parametrize(('change', 'class_map', 'message'), [
    ({'cat/2.webp': b'?', 'cow/0.TIF': b'?', 'cow/1.webp': b'?'}, None,
     'has 3 images of kinds that timm passes over (1 .tif, 2 .webp), such as cat/2.webp; write them as .png, .jpg'),
    ({'cat/day1/0.png': b'?', 'dog/day1/0.png': b'?'}, None,
     'has 2 images deeper than in a folder per class, such as in cat/day1, and timm takes day1 for their class'),
    ({'cover.png': b'?'}, None, 'has 1 images in no class folder, which timm takes for a class without a name'),
    ({'cover.png': b'?'}, 'cat\ndog\n', 'has 1 images in no class folder'),
    ({}, 'cta\ndog\n', 'map.txt does not have cat, of which there are images in '),
    ({}, 'horse\ndogs\n', 'map.txt does not have cat, dog, of which there are images'),
    ({f'{number}/0.png': b'?' for number in range(7)}, 'cat\n', 'does not have 0, 1, 2, 3, 4 and 3 more, of which'),
    ({'dog/0.png': encoded('deep')}, None, 'dog/0.png has more than 8 bits a pixel'),
])
@pytest.mark.parametrize('is_training', [True, False])
def test_an_image_folder_that_timm_takes_for_something_else_is_one_line(
        change: dict[str, bytes], class_map: str | None, message: str, is_training: bool, tmp_path: Path) -> None:
    lay(tmp_path, {f'train/{name}': data for name, data in {
        'cat/0.png': encoded('PNG'), 'dog/0.png': encoded('PNG'), **change}.items()})
    (tmp_path / 'map.txt').write_text(class_map or '')
    with pytest.raises(ValueError) as error:
        open_folder(tmp_path, 'train', class_map=str(tmp_path / 'map.txt') if class_map else '',
                    is_training=is_training)
    assert message in str(error.value) and '\n' not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_class_map_may_have_classes_without_images_where_these_are_measured_only(tmp_path: Path) -> None:
    lay(tmp_path, {'train/cat/0.png': encoded('PNG'), 'map.txt': b'cow\ncat\nhorse\n'})
    assert [index for _, index in open_folder(tmp_path, 'train', class_map=str(tmp_path / 'map.txt'))] == [1]
    with pytest.raises(ValueError, match=r'map.txt has cow, horse, of which there are no images in .*train$'):
        open_folder(tmp_path, 'train', class_map=str(tmp_path / 'map.txt'), is_training=True)


@pytest.mark.parametrize('is_training', [True, False])
@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_of_16_bits_is_an_error_wherever_it_lies(workers: int, is_training: bool, tmp_path: Path) -> None:
    files = {f'train/cat/{number:02}.png': encoded('PNG', number) for number in range(40)}
    lay(tmp_path, {**files, 'train/cat/01.png': encoded('deep', 200)})
    for mode in ('RGB', 'L'):
        images = DataLoader(open_folder(tmp_path, 'train', mode, is_training=is_training), num_workers=workers,
                            collate_fn=list)
        with pytest.raises(ValueError, match=f"^{tmp_path / 'train/cat/01.png'} has more than 8 bits a pixel.*first$"):
            list(images)
    images = open_folder(tmp_path, 'train', 'I', is_training=is_training)
    assert np.asarray(images[1][0]).max() == 200 * 257  # who asks for such a mode has all of them


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Ten images, of which the second is cut, and the third and last are none."""
    files = {f'train/cat/{number}.png': encoded('PNG', 20 * number) for number in range(10)}
    return lay(tmp_path, {**files, 'train/cat/1.png': picture()[:-200], 'train/cat/2.png': b'no image',
                          'train/cat/9.png': b''})


@pytest.mark.parametrize('workers', [0, 1])
def test_a_broken_image_ends_a_measurement_with_its_name(workers: int, broken: Path) -> None:
    with pytest.raises(ValueError, match=f"^{broken / 'train/cat/1.png'} is broken: [^\n]*$"):
        list(DataLoader(open_folder(broken, 'train'), num_workers=workers, collate_fn=list))


def test_images_are_opened_so_for_trainings_and_for_measurements(
        broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(open_images(broken, 'train', is_training=True))) == 10
    with pytest.raises(ValueError, match=r'1\.png is broken'):
        list(open_images(broken, 'train'))
    assert cli.main(['eval', '--model', 'randwire_ws_pico', '--model-kwargs', 'num_classes=2', '--img-size', '32',
                     '--data-dir', str(broken), '--split', 'train', '--device', 'cpu', '--workers', '1']) == 2
    said, = capsys.readouterr().err.splitlines()
    assert said.startswith(f'randwire-zoo: error: {broken / "train/cat/1.png"} is broken')


@pytest.mark.parametrize('workers', [0, 1])
def test_in_a_training_the_next_image_takes_the_place_of_a_broken_one_which_is_named_once(
        workers: int, broken: Path) -> None:
    handler = logging.FileHandler(broken / 'log')  # a loader's processes write into it, too
    logger = logging.getLogger('randwire_zoo.training.images')
    logger.addHandler(handler)
    try:
        images = open_folder(broken, 'train', is_training=True)
        for _ in range(2):  # epochs
            shades = [batch[0][0].getpixel((0, 0))[0] for batch in DataLoader(images, num_workers=workers,
                                                                               collate_fn=list)]
            assert shades == [0, 60, 60, 60, 80, 100, 120, 140, 160, 0]
    finally:
        logger.removeHandler(handler)
        handler.close()
    lines = (broken / 'log').read_text().splitlines()
    assert sorted(line.partition(' is ')[0] for line in lines) == [
        str(broken / f'train/cat/{number}.png') for number in (1, 2, 9)]
    for path in (broken / 'train/cat').iterdir():
        path.write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'^10 images in a row cannot be read, and the last is .*png is no image$'):
        open_folder(broken, 'train', is_training=True)[0]
