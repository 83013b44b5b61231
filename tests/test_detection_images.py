"""`randwire-zoo detect` on the pictures that people have: turned, 16-bit, grey, broken, huge; and what it writes."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from pretrained import NAME
from shapes import CLASSES, write_shapes

from randwire_zoo.cli import main
from randwire_zoo.detection import fasterrcnn_randwire_fpn, save_detector
from randwire_zoo.detection.torchvision import detect as detect_module
from randwire_zoo.detection.torchvision.detect import detect
from randwire_zoo.detection.torchvision.images import convert_to_rgb, read_image
from randwire_zoo.drawing import draw_detections

GREY = np.random.default_rng(0).integers(0, 256, (24, 32)).astype(np.uint8)
GREY[0, :2] = 0, 255


@pytest.fixture(scope='module')
def detector_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('detector') / 'detector.safetensors'
    detector = fasterrcnn_randwire_fpn(NAME, 3, min_size=64, max_size=96, box_score_thresh=0.0)
    save_detector(detector.eval(), path, CLASSES)
    return path


def detect_main(detector_file: Path, folder: Path, *images: Path) -> int:
    return main(['detect', *map(str, images), '--weights', str(detector_file), '-o', str(folder / 'drawn'), '--device',
                 'cpu', '--score-thresh', '0', '--json', str(folder / 'found.json')])


def save_turned(path: Path, orientation: int) -> None:
    """A picture of which EXIF says that it is turned so."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.dstack([GREY, GREY.T.reshape(24, 32), 255 - GREY])).save(path, exif=exif)


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'tif', 'webp'])
def test_images_are_turned_as_their_exif_says(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f'image.{suffix}'
    for orientation in range(9):
        save_turned(path, orientation)
        with Image.open(path) as image:
            expected = ImageOps.exif_transpose(image)
        assert expected.size == ((32, 24) if orientation < 5 else (24, 32))
        assert read_image(path).tobytes() == expected.tobytes(), orientation


def test_images_are_turned_as_detectron2_turns_them(tmp_path: Path) -> None:
    """But for TIFFs, which Pillow turns by itself: detectron2 turns them twice."""
    detection_utils = pytest.importorskip(
        'detectron2.data.detection_utils', reason='detectron2 is not installed (`make upstream` builds a wheel)')
    path = tmp_path / 'image.jpg'
    for orientation in range(9):
        save_turned(path, orientation)
        assert np.array_equal(np.asarray(read_image(path)), detection_utils.read_image(path, 'RGB')), orientation


@pytest.mark.parametrize(('suffix', 'values'), [
    ('png', GREY), ('tiff', GREY), ('png', GREY.astype(np.uint16) * 257), ('tif', GREY.astype(np.uint16) * 257),
    ('tif', GREY.astype('>u2') * 257), ('tif', GREY.astype(np.int32)), ('tif', GREY.astype(np.int32) * 257),
    ('tif', GREY.astype(np.float32)), ('tif', GREY.astype(np.float32) / 255), ('tif', GREY.astype(np.float32) * 257),
], ids=lambda value: value if isinstance(value, str) else f'{value.dtype}-{value.max():g}')
def test_grey_images_of_any_depth_are_the_8_bit_one(suffix: str, values: Any, tmp_path: Path) -> None:
    path = tmp_path / f'image.{suffix}'
    Image.fromarray(values).save(path)
    read = read_image(path)
    assert read.mode == 'RGB' and np.array_equal(np.asarray(read), np.dstack([GREY] * 3))


def test_of_16_bits_white_is_always_65535_and_values_without_a_white_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / 'dark.png')
    assert np.asarray(read_image(tmp_path / 'dark.png')).max() == 1
    for values, message in (([0, 1e6], 'from 0 to 1e+06'), ([-1, 1], 'from -1 to 1'), ([0, float('nan')], 'nan')):
        with pytest.raises(ValueError, match=r'its values go from .*, and not from 0 to 1 or 255 or 65535') as caught:
            convert_to_rgb(Image.fromarray(np.array([values], np.float32)))
        assert message in str(caught.value)


def test_detect_skips_names_and_counts_what_it_cannot_read_and_goes_on(
        detector_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / 'images'
    folder.mkdir()
    noise = Image.effect_noise((200, 160), 60).convert('RGB')
    for name in ('a.jpg', 'b.tif', 'c.tiff', 'd.webp', 'z.png'):
        noise.save(folder / name)
    (folder / 'broken.jpg').write_bytes((folder / 'a.jpg').read_bytes()[:2000])
    (folder / 'text.png').write_text('a picture, honestly')
    Image.new('1', (20_000, 10_000)).save(folder / 'huge.png')  # 200 megapixels
    noise.resize((1, 300)).save(folder / 'thin.png')
    assert detect_main(detector_file, tmp_path, folder) == 1
    said = capsys.readouterr()
    skipped = [line for line in said.err.splitlines() if line.startswith('skipped: ')]
    assert [name for name in ('broken.jpg', 'huge.png', 'text.png') if any(name in line for line in skipped)] == [
        'broken.jpg', 'huge.png', 'text.png'] and len(skipped) == 3
    assert 'truncated' in skipped[0] and '200000000 pixels' in skipped[1]
    assert said.err.splitlines()[-1] == '3 of 9 images could not be read and were skipped'
    found = json.loads((tmp_path / 'found.json').read_text())
    assert [Path(row['image']).name for row in found] == ['a.jpg', 'b.tif', 'c.tiff', 'd.webp', 'thin.png', 'z.png']
    assert len(list((tmp_path / 'drawn').iterdir())) == 6
    assert detect_main(detector_file, tmp_path, folder / 'a.jpg') == 0


def test_json_is_whole_after_every_image_and_after_an_interruption(
        detector_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shapes(tmp_path, 'images', 3)
    before: list[list[str]] = []

    def spy(detector: Any, image: Image.Image) -> Any:
        before.append([Path(row['image']).name for row in json.loads((tmp_path / 'found.json').read_text())])
        if len(before) == 3:
            raise KeyboardInterrupt
        return detect(detector, image)

    monkeypatch.setattr(detect_module, 'detect', spy)
    (tmp_path / 'found.json').write_text('of an earlier run')
    assert detect_main(detector_file, tmp_path, tmp_path / 'images') == 130
    assert before[0] == [] and len(before[2]) >= 1
    rows = json.loads((tmp_path / 'found.json').read_text())
    assert [Path(row['image']).name for row in rows] == ['1.png', '2.png'] and set(rows[0]) == {
        'image', 'boxes', 'classes', 'scores'}


def test_images_of_one_name_do_not_overwrite_each_others_pictures(detector_file: Path, tmp_path: Path) -> None:
    for name in ('x/a.png', 'x/a_2.png', 'y/a.png', 'z/a.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new('RGB', (64, 48)).save(tmp_path / name)
    assert detect_main(detector_file, tmp_path, *(tmp_path / folder for folder in 'xyz')) == 0
    assert sorted(path.name for path in (tmp_path / 'drawn').iterdir()) == ['a.png', 'a_2.png', 'a_3.png', 'a_4.png']


def test_no_picture_takes_the_place_of_an_image(detector_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'own').mkdir()
    for name in ('a.jpg', 'b.png'):
        Image.new('RGB', (64, 48)).save(tmp_path / 'own' / name)
    before = {path.name: path.read_bytes() for path in (tmp_path / 'own').iterdir()}
    monkeypatch.chdir(tmp_path / 'own')
    for images, output in (('b.png', '.'), ('.', tmp_path / 'own')):
        assert main(['detect', images, '--weights', str(detector_file), '-o', str(output)]) == 2
        error = capsys.readouterr().err
        assert 'b.png is one of the images, and its picture would take its place; name another folder with' in error
        assert {path.name: path.read_bytes() for path in (tmp_path / 'own').iterdir()} == before


def test_among_images_no_other_picture_is_replaced_and_elsewhere_those_of_an_earlier_run_are(
        detector_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / 'drawn'
    folder.mkdir()
    for name in ('a.jpg', 'a.png', 'b.jpg'):
        Image.new('RGB', (64, 48)).save(folder / name)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert detect_main(detector_file, tmp_path, folder / 'a.jpg') == 2
    assert f'{folder / "a.png"} is there already, among the images; name another folder' in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not (tmp_path / 'found.json').exists()
    assert detect_main(detector_file, tmp_path, folder / 'b.jpg') == 0 and (folder / 'b.png').exists()
    (tmp_path / 'c.jpg').write_bytes(before['a.jpg'])
    (folder / 'c.png').write_bytes(b'of an earlier run')
    assert detect_main(detector_file, tmp_path, tmp_path / 'c.jpg') == 0
    assert (folder / 'c.png').read_bytes() != b'of an earlier run'


def test_a_hundred_boxes_do_not_hide_the_picture_and_the_best_ones_have_labels() -> None:
    picture = Image.new('RGB', (640, 480), (128, 128, 128))
    corners = torch.cartesian_prod(torch.arange(10) * 60 + 10, torch.arange(10) * 44 + 16).float()
    found = {'boxes': torch.cat([corners, corners + 24], dim=1), 'labels': torch.arange(100) % 3 + 1,
             'scores': torch.linspace(0.99, 0.5, 100)}
    drawn = np.asarray(draw_detections(picture, found, ['background', 'RBC', 'WBC', 'Platelets']))
    changed = (drawn != 128).any(axis=2)
    assert 0.05 < changed.mean() < 0.2  # it was 0.27
    labelled = [changed[int(y) - 6, int(x) + 4:int(x) + 20].all() for x, y in corners]
    assert all(labelled[:10]) and not any(labelled[-25:])
    few = {name: rows[:2] for name, rows in found.items()}
    thick = np.asarray(draw_detections(picture, few, ['background', 'RBC', 'WBC', 'Platelets']))
    assert (thick[30, 10:12] != 128).any(axis=1).all() and not (drawn[30, 11] != 128).any()
