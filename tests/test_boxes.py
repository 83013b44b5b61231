"""Boxes in Pascal VOC's XML files become a data set in COCO's layout, or one line says why not and nothing is written.
"""
from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from voc import annotation, lay, picture

from randwire_zoo import cli
from randwire_zoo.training.boxes import write_voc

CAT, DOG = ('cat', 1, 1, 10, 20), ('dog', 11, 6, 40, 30)


def flat(count: int = 5, **more: bytes | None) -> dict[str, bytes]:
    """Images and XML files side by side, as labelImg leaves them; the third has no object."""
    files: dict[str, bytes | None] = {}
    for number in range(1, count + 1):
        files[f'{number}.jpg'] = picture(shade=number)
        files[f'{number}.xml'] = annotation(*([] if number == 3 else [CAT, DOG]))
    return {name: data for name, data in {**files, **more}.items() if data is not None}


def deep() -> bytes:
    """As microscopes write them."""
    data = io.BytesIO()
    Image.new('I;16', (40, 30), 4000).save(data, 'PNG')
    return data.getvalue()


def listing(folder: Path, split: str) -> Any:
    return json.loads((folder / 'annotations' / f'instances_{split}.json').read_text('utf-8'))


def names(folder: Path, split: str) -> list[str]:
    listed = [image['file_name'] for image in listing(folder, split)['images']]
    assert sorted(listed) == sorted(path.name for path in (folder / split).iterdir())
    return listed


def boxes(folder: Path, split: str) -> list[list[float]]:
    return [box['bbox'] for box in listing(folder, split)['annotations']]


def test_every_fifth_is_held_out_and_pixels_count_from_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = lay(tmp_path / 'there', flat()), tmp_path / 'here'
    assert cli.main(['data', 'voc', str(source), str(folder)]) == 0
    assert capsys.readouterr().out == (
        f'{folder}: 2 classes (cat, dog), 4 images with 6 boxes to train on, 1 with 2 to measure on\n')
    assert names(folder, 'train') == ['1.jpg', '2.jpg', '3.jpg', '4.jpg'] and names(folder, 'val') == ['5.jpg']
    assert (folder / 'train/2.jpg').read_bytes() == picture(shade=2)
    assert listing(folder, 'val') == {
        'info': {}, 'licenses': [], 'images': [{'id': 1, 'file_name': '5.jpg', 'width': 40, 'height': 30}],
        'categories': [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}],
        'annotations': [  # of 10 × 20 and of 30 × 25 pixels
            {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 10, 20], 'area': 200, 'iscrowd': 0},
            {'id': 2, 'image_id': 1, 'category_id': 2, 'bbox': [10, 5, 30, 25], 'area': 750, 'iscrowd': 0}]}
    assert [box['image_id'] for box in listing(folder, 'train')['annotations']] == [1, 1, 2, 2, 4, 4]


def test_lists_come_before_folders_and_a_number_before_both(tmp_path: Path) -> None:
    marks = {'1': 'train', '2': 'train', '3': 'train', '4': 'valid', '5': 'test'}
    files = {f'{marks[Path(name).stem]}/{name}': data for name, data in flat().items()}
    lists = {'ImageSets/Main/train.txt': b'5\n4\n', 'ImageSets/Main/val.txt': b'\n1\n', 'ImageSets/Main/test.txt': b'2'}
    for number, (more, every, train, val, out) in enumerate([
            ({}, None, ['1', '2', '3'], ['4'], 1), (lists, None, ['5', '4'], ['1'], 2),
            (lists, 2, ['5', '2', '4'], ['1', '3'], 0)]):
        source, folder = lay(tmp_path / f'there{number}', {**files, **more}), tmp_path / f'here{number}'
        found = write_voc(source, folder, every)
        assert [sorted(names(folder, split)) for split in ('train', 'val')] == [
            sorted(f'{name}.jpg' for name in split) for split in (train, val)]
        assert found.images == {'train': len(train), 'val': len(val)}
        assert found.left_out == ([f'{out} XML files that are in neither split', f'{out} images without an XML file']
                                  if out else [])


def test_an_archive_in_folders_of_its_own_with_what_a_mac_left(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / 'mine.zip', 'w') as archive:
        for name, data in flat().items():
            archive.writestr(f'mine/{"annots" if name.endswith("xml") else "images"}/{name}', data)
            archive.writestr(f'__MACOSX/mine/._{name}', b'junk')
        archive.writestr('mine/notes.txt', b'.')
    found = write_voc(tmp_path / 'mine.zip', tmp_path / 'here', every=2)
    assert (found.images, found.boxes, found.left_out) == ({'train': 3, 'val': 2}, {'train': 4, 'val': 4}, [])


def test_an_image_is_found_by_the_name_of_its_file_or_else_by_what_the_file_says(tmp_path: Path) -> None:
    source = lay(tmp_path / 'there', flat(3, **{
        '1.jpg': None, 'a/front.PNG': picture(), '1.xml': annotation(CAT, filename=r'C:\photos\front.PNG'),
        '2.xml': annotation(CAT, filename='3.jpg'),   # renamed afterwards, together with its image
        'b/2.jpg': picture(), 'lost.jpg': picture()}))
    found = write_voc(source, tmp_path / 'here', every=2)
    assert sorted(names(tmp_path / 'here', 'train')) == ['3.jpg', 'front.PNG']
    assert names(tmp_path / 'here', 'val') == ['2.jpg'] and found.left_out == ['2 images without an XML file']


def test_masks_in_pascal_vocs_own_layout_are_no_images(tmp_path: Path) -> None:
    files = {f'JPEGImages/{name}' if name.endswith('.jpg') else f'Annotations/{name}': data
             for name, data in flat(4).items()}
    for folder in ('SegmentationClass', 'SegmentationObject'):
        files[f'{folder}/1.png'] = picture(shade=9)
    lists = {'ImageSets/Main/train.txt': b'1\n2\n', 'ImageSets/Main/val.txt': b'3\n4\n',
             'ImageSets/Main/cat_train.txt': b'1  1\n2 -1\n', 'ImageSets/Segmentation/train.txt': b'1\n'}
    found = write_voc(lay(tmp_path / 'VOC2012', {**files, **lists}), tmp_path / 'here')
    assert names(tmp_path / 'here', 'train') == ['1.jpg', '2.jpg']
    assert names(tmp_path / 'here', 'val') == ['3.jpg', '4.jpg']
    assert found.left_out == []


def test_of_two_images_of_a_name_the_file_says_which(tmp_path: Path) -> None:
    files = flat(2, **{'1.png': picture(shade=9), '1.xml': annotation(CAT, filename='1.png'),
                       '2.xml': annotation(CAT, filename='2.jpg')})
    found = write_voc(lay(tmp_path / 'there', files), tmp_path / 'here', 2)
    assert names(tmp_path / 'here', 'train') == ['1.png'] and found.left_out == ['1 images without an XML file']


def test_boxes_end_at_the_edge_and_those_without_area_are_left_out_and_counted(tmp_path: Path) -> None:
    source = lay(tmp_path / 'there', {
        '1.jpg': picture(), '2.jpg': picture(),
        '1.xml': annotation(('cat', -4, 0, 10.5, 20), ('cat', 41, 1, 60, 20), ('cat', 5, 5, 3, 9), size=None),
        '2.xml': annotation(('cat', 0, 0, 40, 31), ('cat', 12, 1, 50, 20), size=(0, 0))})
    found = write_voc(source, tmp_path / 'here', every=2)
    assert boxes(tmp_path / 'here', 'train') == [[0, 0, 10.5, 20]]
    assert boxes(tmp_path / 'here', 'val') == [[0, 0, 40, 30], [11, 0, 29, 20]]
    assert found.cut == 2 and found.left_out == ['2 boxes without area inside of their image']
    assert 'cut at the edge of their image: 2 boxes' in str(found)


def test_a_photograph_that_is_turned_has_the_size_that_it_is_shown_in(tmp_path: Path) -> None:
    turned = {'1.jpg': picture((30, 40), 6), '2.jpg': picture((40, 30), 3)}
    write_voc(lay(tmp_path / 'there', flat(2, **turned)), tmp_path / 'here', every=2)
    for split in ('train', 'val'):
        assert listing(tmp_path / 'here', split)['images'][0]['width'] == 40
    source = lay(tmp_path / 'raw', flat(2, **{'1.jpg': picture((40, 30), 8)}))
    with pytest.raises(ValueError, match=r'1.xml is of an image of 40×30 pixels, and 1.jpg has 30×40 as its EXIF data'):
        write_voc(source, tmp_path / 'nowhere', every=2)


@pytest.mark.parametrize('change, message', [
    ({'2.jpg': picture((400, 300))[:-40]}, '2.jpg is broken: image file is truncated'),
    ({'2.jpg': b'GIF'}, '2.jpg is no image'),
    ({'2.xml': b'<annotation>'}, '2.xml is no XML: no element found'),
    ({'2.xml': b'<project/>'}, '2.xml is no annotation of Pascal VOC: it begins with <project>'),
    ({'2.jpg': None}, '2.xml has no image'),
    ({'2.jpg': None, '2.png': deep()}, '2.png has more than 8 bits a pixel'),
    ({'2.jpg': None, '2.xml': annotation(filename='x.jpg')}, '2.xml has no image, nor is there a x.jpg'),
    ({'2.jpg': None, 'a/2.jpg': picture(), 'b/2.jpg': picture()}, '2.xml may be of a/2.jpg or of b/2.jpg'),
    ({'2.xml': annotation(CAT, size=(41, 30))}, '2.xml is of an image of 41×30 pixels, and 2.jpg has 40×30'),
    ({'2.xml': annotation(('', 1, 1, 9, 9))}, '2.xml has an object without a name'),
    ({'2.xml': b'<annotation><object><name>cat</name></object></annotation>'}, '2.xml has an object without a bndbox'),
    ({'2.xml': annotation(('cat', float('nan'), 1, 9, 9))}, "2.xml has the xmin 'nan', which is no number"),
    ({'2.xml': annotation(CAT).replace(b'<ymax>20</ymax>', b'')}, '2.xml has the ymax None, which is no number'),
])
def test_what_is_broken_is_one_line_or_left_out_and_said(
        change: dict[str, bytes | None], message: str, tmp_path: Path) -> None:
    source = lay(tmp_path / 'there', flat(**change))
    with pytest.raises(ValueError) as error:
        write_voc(source, tmp_path / 'here')
    assert message in str(error.value) and '--skip-broken' in str(error.value) and '\n' not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ['there']
    found = write_voc(source, tmp_path / 'here', skip_broken=True)
    assert message in found.left_out[0] and names(tmp_path / 'here', 'val') == ['5.jpg']  # the others keep their places
    assert names(tmp_path / 'here', 'train') == ['1.jpg', '3.jpg', '4.jpg']


@pytest.mark.parametrize('files, every, message', [
    ({'1.jpg': picture()}, None, 'has no XML files'),
    (flat(4), None, 'there is not one box to measure on'),
    (flat(2, **{'1.xml': annotation()}), 2, 'there is not one box to train on'),
    (flat(2, **{'1.xml': annotation(DOG)}), 2, 'no image to train on has a box of cat; split them otherwise'),
    (flat(**{'a/1.jpg': picture(), 'a/1.xml': annotation(CAT)}), 4, 'two images of train are called 1.jpg'),
    (flat(5, **{'ImageSets/Main/train.txt': b'1\n6\n', 'ImageSets/Main/val.txt': b'2\n'}), None,
     'the lists name 1 without an XML file, such as 6'),
    (flat(5, **{'ImageSets/Main/train.txt': b'1\n2\n', 'ImageSets/Main/val.txt': b'2\n'}), None, 'both lists name 2'),
    (flat(5, **{'ImageSets/Main/train.txt': b'1\n', 'ImageSets/Main/val.txt': b'2\n', 'old/2.xml': annotation(CAT)}),
     None, 'the lists cannot tell 2.xml from old/2.xml'),
    (flat(5, **{'old/2.xml': annotation(CAT)}), 6, '2.xml and old/2.xml are of the same image, 2.jpg'),  # held out
    (flat(), 1, 'every must be at least 2, got 1'),
])
def test_what_cannot_be_split_is_one_line_and_nothing_is_written(
        files: dict[str, bytes], every: int | None, message: str, tmp_path: Path) -> None:
    source = lay(tmp_path / 'there', files)
    with pytest.raises(ValueError) as error:
        write_voc(source, tmp_path / 'here', every)
    assert message in str(error.value) and '\n' not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ['there']
    with pytest.raises(FileExistsError, match='is not empty'):
        write_voc(source, source, every)
