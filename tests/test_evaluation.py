"""Evaluation against counting by hand."""
from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import upstream
from PIL import Image
from timm.data import create_dataset
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from randwire_zoo.models import find_weights
from randwire_zoo.network import RandWire
from randwire_zoo.training.arguments import add_eval_arguments
from randwire_zoo.training.evaluation import (
    Conditions,
    evaluate_checkpoint,
    evaluate_folder,
    find_description,
    has_split,
    main,
    open_images,
)
from randwire_zoo.training.recipes import DEFAULTS, OWN, load_recipe, recipe_names
from randwire_zoo.training.trainer import read_summary, train
from randwire_zoo.weights.description import Description, build_model
from randwire_zoo.weights.files import save_weights

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
    add_eval_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def command(images: Path, weights: Path, *arguments: str | Path) -> argparse.Namespace:
    return parse('--model', 'randwire', '--data-dir', images, '--split', 'test', '--checkpoint', weights,
                 '--workers', '0', '--device', 'cpu', '--model-kwargs',
                 *(f'{name}={value}' for name, value in NETWORK.items()), *arguments)


def test_the_command_prints_where_it_runs_and_the_figures_of_the_size_it_is_asked_for(
        images: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(images, weights, '--img-size', '48', '--amp', '--channels-last')) == 0
    assert re.fullmatch(r'device cpu, .*, kernels .*\n'
                        r'randwire at 48 px on 21 images: top-1 [\d.]+ %, top-5 [\d.]+ %, loss [\d.]+\n',
                        capsys.readouterr().out)


def table(path: Path) -> tuple[list[str], dict[str, dict[str, int]]]:
    """The columns of a table of confusion, and its rows."""
    with path.open(newline='', encoding='utf-8') as file:
        header, *lines = csv.reader(file)
    return header, {name: dict(zip(header[1:], map(int, counts), strict=True)) for name, *counts in lines}


@pytest.mark.parametrize('batch_size', [4, 21])
def test_confusion_is_that_counted_image_by_image_and_agrees_with_top1(
        batch_size: int, images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / 'new' / 'confusion.csv'
    assert main(command(images, weights, '--img-size', '32', '--crop-pct', '1', '--batch-size', str(batch_size),
                        '--confusion', path)) == 0
    header, rows = table(path)
    assert header == ['true', *'0123456789'] and list(rows) == list('0123456789')
    model = build_model('randwire', checkpoint_path=str(weights), **NETWORK).eval()
    naive = {row: dict.fromkeys('0123456789', 0) for row in '0123456789'}
    for image in images.glob('test/*/*.png'):
        pixels = (np.asarray(Image.open(image), np.float32) / 255 - model.pretrained_cfg['mean']
                  ) / model.pretrained_cfg['std']
        with torch.inference_mode():
            logits = model(torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None])[0]
        naive[image.parent.name][str(int(np.argmax(logits.numpy())))] += 1
    assert rows == naive and len({max(row, key=lambda name: row[name]) for row in rows.values()}) > 1
    *_, said, last = capsys.readouterr().out.splitlines()
    assert last == str(path) and [one.name for one in path.parent.iterdir()] == ['confusion.csv']
    right = sum(rows[name][name] for name in rows)
    assert f'on 21 images: top-1 {100 * right / 21:.4f} %' in said


def test_confusion_has_a_column_for_outputs_without_images_and_the_names_of_the_training(tmp_path: Path) -> None:
    """Five outputs of which three have images, whose names need quotes; and equal logits are as top-1 takes them."""
    names = ['ash, common', 'beech', 'cedar "blue"']
    for split in ('train', 'validation'):
        for index in range(8):
            path = tmp_path / 'data' / split / names[index % 3] / f'{index}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (32, 32), (30 * index, 0, 90)).save(path)
    result = train(model='randwire', model_kwargs=SMALL, num_classes=5, img_size=32, data_dir=str(tmp_path / 'data'),
                   output=str(tmp_path), epochs=1, warmup_epochs=0, batch_size=4, workers=0, device='cpu',
                   progress=False)
    assert result.folder is not None
    checkpoint = result.folder / 'last.pth.tar'
    path = tmp_path / 'confusion.csv'
    evaluate_checkpoint(checkpoint, progress=False, confusion=path)
    header, rows = table(path)
    assert header == ['true', *names, 'output 3', 'output 4']
    assert {name: sum(row.values()) for name, row in rows.items()} == dict(zip(names, (3, 3, 2), strict=True))

    state = torch.load(checkpoint, weights_only=False)
    for name in ('fc.weight', 'fc.bias'):
        state['state_dict'][name].zero_()
    torch.save(state, checkpoint)
    metrics = evaluate_checkpoint(checkpoint, progress=False, confusion=path)
    _, rows = table(path)
    assert 100 * sum(rows[name][name] for name in rows) / 8 == metrics['top1']

    # By a class map, the images' own names; two may be one class.
    with open(tmp_path / 'map.pkl', 'wb') as file:
        pickle.dump(dict(zip(names, (4, 1, 1), strict=True)), file)
    evaluate_checkpoint(checkpoint, {'class_map': str(tmp_path / 'map.pkl')}, progress=False, confusion=path)
    header, rows = table(path)
    assert header == ['true', names[0], f'beech or {names[2]}', names[2], 'output 3', names[0]]
    assert [line.split(',')[0] for line in path.read_text().splitlines()[1:]] == ['"beech or cedar ""blue"""', '"ash']


@pytest.mark.parametrize(('path', 'error', 'message'), [
    ('confusion.txt', ValueError, 'ends in .csv'), ('folder.csv', ValueError, 'ends in .csv'),
    ('file/confusion.csv', OSError, 'file'),
])
def test_a_table_that_cannot_be_written_is_refused_before_anything_is_measured(
        path: str, error: type[Exception], message: str, images: Path, weights: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'folder.csv').mkdir()
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr('randwire_zoo.training.evaluation.evaluate', lambda *_, **__: pytest.fail('it was measured'))
    with pytest.raises(error, match=re.escape(message)):
        main(command(images, weights, '--img-size', '32', '--confusion', tmp_path / path))
    assert sorted(one.name for one in tmp_path.iterdir()) == ['file', 'folder.csv']


def test_an_earlier_table_stays_where_the_evaluation_fails(
        images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'confusion.csv').write_text('earlier')
    monkeypatch.setattr('randwire_zoo.training.confusion.Confusion.update', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(command(images, weights, '--img-size', '32', '--confusion', tmp_path / 'confusion.csv'))
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [('confusion.csv', 'earlier')]


@pytest.mark.parametrize('folder', ['train', 'training', 'val', 'valid', 'validation', 'eval', 'evaluation', 'test'])
def test_a_split_is_found_by_the_names_by_which_timm_finds_it(folder: str, tmp_path: Path) -> None:
    write_images(tmp_path, (folder,), 'RGB', 8)
    for split in ('train', 'training', 'val', 'valid', 'validation', 'validation[:10]', 'eval', 'evaluation', 'test'):
        found = Path(create_dataset('', root=str(tmp_path), split=split).reader.root) != tmp_path
        assert has_split(tmp_path, split) == found
        if not found:
            with pytest.raises(FileNotFoundError, match='no folder'):
                open_images(tmp_path, split)


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


SMALL = {'graph': 'ws(2,0.5)', 'channels': 4, 'num_nodes': 4}


def write_images(folder: Path, splits: tuple[str, ...], mode: str, size: int, count: int = 7) -> None:
    rng = np.random.default_rng(0)
    for split in splits:
        for index in range(count):
            path = folder / split / str(index % 3) / f'{index}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (size, size + 5) + ((3,) if mode == 'RGB' else ()), dtype=np.uint8)
            Image.fromarray(pixels).save(path)


def evaluated(*arguments: str | Path) -> dict[str, Any]:
    """What the command would print, unrounded."""
    args = parse(*arguments)
    return evaluate_checkpoint(args.checkpoint, {
        name: value for name, value in vars(args).items() if name != 'checkpoint'}, progress=False)


def same(metrics: dict[str, Any], row: dict[str, float]) -> bool:
    return all(metrics[name] == row[f'eval_{name}'] for name in ('loss', 'top1', 'top5'))


@pytest.mark.parametrize('name', recipe_names())
def test_evaluation_without_flags_gives_the_last_row_of_summary_csv_for_every_recipe(
        name: str, tmp_path: Path) -> None:
    """To the last bit, with all that the recipe says of the data; the network alone is made small."""
    recipe = load_recipe(name)
    channels = (recipe.get('input_size') or (3,))[0]
    write_images(tmp_path / 'data', (recipe.get('train_split', 'train'), recipe.get('val_split', 'validation')),
                 'L' if channels == 1 else 'RGB', 40)
    network = {**recipe.get('model_kwargs', {}), **SMALL}
    result = train(
        name, model='randwire', model_kwargs=network, data_dir=str(tmp_path / 'data'), output=str(tmp_path), epochs=2,
        warmup_epochs=0, batch_size=4, validation_batch_size=4, workers=0, device='cpu', pin_mem=False, lr=0.05,
        progress=False)
    assert result.folder is not None
    row = read_summary(result.folder / 'summary.csv')[-1]
    assert same(evaluated('--checkpoint', result.folder / 'last.pth.tar'), row)
    assert row['eval_loss'] != evaluated('--checkpoint', result.folder / 'last.pth.tar', '--mean', '0.9')['loss']


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training in which nothing is as the defaults have it."""
    folder = tmp_path_factory.mktemp('run')
    write_images(folder / 'data', ('train', 'held'), 'L', 36)
    (folder / 'classes.txt').write_text('2\n1\n0\n')
    train(model='randwire', model_kwargs={**SMALL, 'stem_stride': 1, 'node_op': 'avg_pool'}, num_classes=3, gp='max',
          in_chans=1, img_size=30, mean=[0.3], std=[0.6], interpolation='nearest', crop_pct=0.8, val_split='held',
          class_map=str(folder / 'classes.txt'), data_dir=str(folder / 'data'), output=str(folder), experiment='run',
          epochs=2, warmup_epochs=0, batch_size=3, validation_batch_size=2, workers=0, device='cpu', amp=True,
          amp_dtype='bfloat16', channels_last=True, model_ema=True, model_ema_decay=0.5, lr=0.01, progress=False)
    return folder / 'run'


# Each of these changes the figure: what is not one of them is not read from the training.
@pytest.mark.parametrize('flags', [
    ('--gp', 'avg'), ('--img-size', '34'), ('--input-size', '1', '26', '30'), ('--mean', '0.5'), ('--std', '0.3'),
    ('--interpolation', 'bicubic'), ('--crop-pct', '1.0'), ('--crop-mode', 'squash'), ('--no-ema',), ('--no-amp',),
    ('--split', 'train'), ('--model-kwargs', 'global_pool=avg'), ('--amp-dtype', 'float16'),
], ids=' '.join)
def test_evaluation_has_the_flags_of_validate_py_over_what_the_training_recorded(
        flags: tuple[str, ...], run: Path) -> None:
    row = read_summary(run / 'summary.csv')[-1]
    assert same(evaluated('--checkpoint', run / 'last.pth.tar'), row)
    assert evaluated('--checkpoint', run / 'last.pth.tar', *flags)['loss'] != row['eval_loss']


def test_minibatches_and_memory_format_are_as_trained_or_as_asked_for(
        run: Path, images: Path, weights: Path) -> None:
    """They change a loss by rounding alone, so that it is the network that tells what it was given."""
    seen: list[tuple[int, bool, bool]] = []  # images, and whether their channels and those of a weight come last

    def look(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, RandWire):
            seen.append((len(arguments[0]), not arguments[0].is_contiguous(),
                         not module.conv2.conv.weight.is_contiguous()))

    loss = read_summary(run / 'summary.csv')[-1]['eval_loss']
    hook = register_module_forward_pre_hook(look)
    try:
        for flags, sizes, last in (((), [2, 2, 2, 1], True), (('--batch-size', '7'), [7], True),
                                   (('--no-channels-last',), [2, 2, 2, 1], False)):
            seen.clear()
            found = evaluated('--checkpoint', run / 'last.pth.tar', *flags)['loss']
            assert found == pytest.approx(loss, rel=0.02)
            assert [(size, weight) for size, _, weight in seen] == [(size, last) for size in sizes], flags
        for flags, last in (((), False), (('--channels-last',), True)):  # grey images are alike in both formats
            seen.clear()
            assert main(command(images, weights, '--img-size', '32', '--batch-size', '8', *flags)) == 0
            assert seen == [(size, last, last) for size in (8, 8, 5)], flags
    finally:
        hook.remove()


def test_a_checkpoint_of_stock_timm_is_measured_by_the_arguments_in_it(run: Path, tmp_path: Path) -> None:
    """Without what this package's trainer records beside them."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = torch.load(run / 'last.pth.tar', weights_only=True)
    assert Description.from_dict(state['args'].description) == Description.from_checkpoint(run / 'last.pth.tar')
    del state['args'].description
    torch.save(state, tmp_path / 'stock.pth.tar')
    assert same(evaluated('--checkpoint', tmp_path / 'stock.pth.tar'), read_summary(run / 'summary.csv')[-1])
    del state['args'], state['state_dict_ema']
    torch.save(state, tmp_path / 'stock.pth.tar')
    (tmp_path / 'args.yaml').write_text((run / 'args.yaml').read_text())
    weights = evaluated('--checkpoint', tmp_path / 'stock.pth.tar', '--no-ema')['loss']
    assert weights == evaluated('--checkpoint', run / 'last.pth.tar', '--no-ema')['loss']
    with pytest.raises(ValueError, match='holds no moving average of the weights; --no-ema takes'):
        evaluated('--checkpoint', tmp_path / 'stock.pth.tar')


def test_a_training_is_measured_as_it_was_by_its_name_with_or_without_the_tag(tmp_path: Path) -> None:
    write_images(tmp_path / 'data', ('train', 'validation'), 'L', 36)
    result = train(model='randwire_ws_small_s1.tin200_kd', model_kwargs={'channels': 8}, num_classes=3, in_chans=1,
                   data_dir=str(tmp_path / 'data'), output=str(tmp_path), epochs=1, warmup_epochs=0, batch_size=3,
                   validation_batch_size=3, workers=0, device='cpu', progress=False)
    assert result.folder is not None
    row = read_summary(result.folder / 'summary.csv')[-1]
    for name in ('randwire_ws_small_s1.tin200_kd', 'randwire_ws_small_s1'):
        assert same(evaluated('--checkpoint', result.folder / 'last.pth.tar', '--model', name), row), name
    with pytest.raises(ValueError, match=r'last\.pth\.tar cannot be loaded'):
        evaluated('--checkpoint', result.folder / 'last.pth.tar', '--model', 'randwire_ws_small_s2', '--in-chans', '1')


def test_what_a_training_was_of_need_not_be_known_here_where_the_model_is_named(run: Path, tmp_path: Path) -> None:
    state = torch.load(run / 'last.pth.tar', weights_only=False)
    state['args'].model = 'local-dir:/gone/folder'
    del state['args'].description
    torch.save(state, tmp_path / 'last.pth.tar')
    with pytest.raises(ValueError, match='local-dir:/gone/folder'):
        find_description(tmp_path / 'last.pth.tar', {})
    found, _ = find_description(tmp_path / 'last.pth.tar', {'model': 'randwire_ws_pico'})
    assert found.architecture == 'randwire_ws_pico'


def test_images_of_other_classes_are_refused_unless_a_class_map_says_which(images: Path, tmp_path: Path) -> None:
    write_images(tmp_path / 'data', ('train', 'validation'), 'RGB', 32)
    result = train(model='randwire', model_kwargs=SMALL, num_classes=10, img_size=32, data_dir=str(tmp_path / 'data'),
                   output=str(tmp_path), epochs=1, warmup_epochs=0, batch_size=4, workers=0, device='cpu',
                   progress=False)
    assert result.folder is not None
    with pytest.raises(ValueError, match='than the network was trained on: 3, 4, 5, 6, 7 only there; a --class-map'):
        evaluated('--checkpoint', result.folder / 'last.pth.tar', '--data-dir', images, '--split', 'test')
    (tmp_path / 'map.txt').write_text('\n'.join('0123456789'))
    assert evaluated('--checkpoint', result.folder / 'last.pth.tar', '--data-dir', images, '--split', 'test',
                     '--class-map', tmp_path / 'map.txt')['images'] == 21


def test_evaluation_and_training_have_the_same_names_and_defaults_as_validate_py() -> None:
    scripts = upstream.timm_scripts()
    if scripts is None:
        pytest.skip(f"timm's stock scripts are not there; {upstream.HOW}")
    spec = importlib.util.spec_from_file_location('stock_validate', scripts / 'validate.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs = {action.dest: action for action in module.parser._actions}
    parser = argparse.ArgumentParser()
    add_eval_arguments(parser)
    for action in parser._actions:
        if action.dest not in ('help', 'confusion', 'device_modules', *OWN):
            stock = theirs[action.dest]
            assert action.option_strings[0] in (*stock.option_strings, '--no-ema')
            assert (action.type or str) == (stock.type or str) and action.nargs == stock.nargs
    assert theirs['amp_dtype'].default == DEFAULTS['amp_dtype'] == 'float16'
    assert Conditions.from_settings({'amp': True}).amp_dtype == 'float16'


def test_stock_validate_py_agrees_to_the_digit(run: Path, tmp_path: Path) -> None:
    scripts = upstream.timm_scripts()
    if scripts is None:
        pytest.skip(f"timm's stock scripts are not there; {upstream.HOW}")
    done = subprocess.run(
        [sys.executable, scripts / 'validate.py', '--data-dir', run.parent / 'data', '--model', 'randwire',
         '--checkpoint', run / 'last.pth.tar', '--use-ema', '--split', 'held', '--num-classes', '3', '--gp', 'max',
         '--in-chans', '1', '--img-size', '30', '--mean', '0.3', '--std', '0.6', '--interpolation', 'nearest',
         '--crop-pct', '0.8', '--class-map', run.parent / 'classes.txt', '-b', '2', '-j', '0', '--device', 'cpu',
         '--amp', '--amp-dtype', 'bfloat16', '--channels-last', '--log-freq', '1', '--model-kwargs',
         *(f'{name}={value}' for name, value in {**SMALL, 'stem_stride': 1, 'node_op': 'avg_pool'}.items())],
        cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.split('--result')[1])
    ours = evaluated('--checkpoint', run / 'last.pth.tar')
    assert (theirs['top1'], theirs['top5']) == (round(ours['top1'], 4), round(ours['top5'], 4))
    losses = re.findall(r'Loss: +[\d.]+ \( *([\d.]+)\)', done.stderr)  # the mean so far
    assert losses[-1] == f'{ours["loss"]:.4f}'


def test_other_indices_are_found_by_the_names_and_a_folder_that_has_moved_is_named(run: Path) -> None:
    row = read_summary(run / 'summary.csv')[-1]
    assert same(evaluated('--checkpoint', run / 'last.pth.tar', '--class-map', ''), row), 'the names tell the indices'
    with pytest.raises(FileNotFoundError, match='no data folder elsewhere; name one with --data-dir'):
        evaluated('--checkpoint', run / 'last.pth.tar', '--data-dir', 'elsewhere')


def test_more_classes_than_outputs_are_refused(images: Path) -> None:
    model = build_model('randwire', **{**NETWORK, 'num_classes': 9})
    with pytest.raises(ValueError, match='has 10 classes, but the model has 9 outputs, which --num-classes sets'):
        evaluate_folder(model, images, 'test', img_size=32, workers=0, progress=False)


def test_the_classes_that_published_weights_name_are_asked_of_the_images(tmp_path: Path) -> None:
    row = find_weights('randwire_ws_small_s1.tin200_kd')
    assert row is not None
    names = row.label_names
    for name in names[:3]:
        (tmp_path / 'some' / 'validation' / name).mkdir(parents=True)
        Image.new('RGB', (32, 32)).save(tmp_path / 'some' / 'validation' / name / '0.png')
    asked = ('--model', row.name, '--data-dir', tmp_path / 'some', '--img-size', '32')
    (tmp_path / 'classes.txt').write_text('\n'.join(names))
    mapped = evaluated(*asked, '--class-map', tmp_path / 'classes.txt')
    assert mapped['images'] == 3 and evaluated(*asked) == mapped, 'by their names, not by their places among three'
    (tmp_path / 'some' / 'validation' / names[0]).rename(tmp_path / 'some' / 'validation' / 'dog')
    with pytest.raises(ValueError, match='some has other classes than the network was trained on: dog only there; n'):
        evaluated(*asked)
    assert Description.from_settings({'model': row.name, 'pretrained': True}).label_names == ()


@pytest.fixture
def staged(images: Path, weights: Path, tmp_path: Path) -> Path:
    """A folder as timm's for the Hub, of a training whose classes have the names of the digits in another order."""
    folder = tmp_path / 'staged'
    folder.mkdir()
    (folder / 'model.safetensors').write_bytes(weights.read_bytes())
    kwargs = {name: value for name, value in NETWORK.items() if name != 'num_classes'}
    (folder / 'args.yaml').write_text(json.dumps({
        'model': 'randwire', 'num_classes': 10, 'model_kwargs': kwargs, 'img_size': 32, 'crop_pct': 1.0,
        'val_split': 'test', 'batch_size': 8, 'workers': 0}))
    (folder / 'config.json').write_text(json.dumps({
        'architecture': 'randwire', 'num_classes': 10, 'label_names': list('9876543210')}))
    return folder


def test_the_classes_of_a_staged_folder_are_asked_of_the_images_by_their_names(
        images: Path, staged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def measured(data: Path, *arguments: str | Path) -> list[str]:
        assert main(parse('--checkpoint', staged / 'model.safetensors', '--data-dir', data, '--device', 'cpu',
                          *arguments)) == 0
        return capsys.readouterr().out.splitlines()[1:]

    (staged.parent / 'classes.txt').write_text('\n'.join('9876543210'))
    by_map = ('--class-map', staged.parent / 'classes.txt')
    assert measured(images) == measured(images, *by_map) and len(measured(images)) == 1
    for name in '037':
        folder = staged.parent / 'some' / 'test' / name
        folder.mkdir(parents=True)
        for path in (images / 'test' / name).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    note, figures = measured(staged.parent / 'some')
    assert note == 'the images are of 3 of the 10 classes of the network' and ' px on 7 images: top-1 ' in figures
    assert measured(staged.parent / 'some', *by_map) == [note, figures]
    (staged / 'config.json').unlink()
    note, other = measured(staged.parent / 'some')
    assert note.startswith('the images are of 3 classes, and the network has 10 outputs, whose names are not known: ')
    assert other != figures
    (staged / 'config.json').write_text(json.dumps({
        'architecture': 'randwire', 'num_classes': 10, 'label_names': list('abcdefghij')}))
    with pytest.raises(ValueError, match='other classes than the network was trained on: 0, 3, 7 only there; a, b'):
        measured(staged.parent / 'some')


def test_weights_are_not_measured_before_what_is_to_be_imported_is_there(staged: Path) -> None:
    with pytest.raises(ValueError, match="device_modules: No module named 'no_such_module'"):
        evaluate_checkpoint(staged / 'model.safetensors', {'device_modules': ['no_such_module']})


@pytest.mark.parametrize('dataset', ['tourch/cifar10', 'foo/bar'])
def test_a_data_set_of_a_type_that_timm_does_not_know_is_no_folder(dataset: str, images: Path) -> None:
    with pytest.raises(ValueError, match=f"TYPE/NAME, of the types torch, .*, got '{dataset}'"):
        open_images(images, 'test', dataset)


def test_a_word_for_a_folder_of_images_is_one_whose_split_must_be_there(images: Path) -> None:
    assert len(open_images(images, 'test', 'ImageFolder')) == len(open_images(images, 'test'))
    with pytest.raises(FileNotFoundError, match="no folder 'nowhere' in"):
        open_images(images, 'nowhere', 'ImageFolder')
