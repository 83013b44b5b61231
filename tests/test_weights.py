"""Weight files: what they carry, and that timm's own ways of loading refuse the wrong ones."""
from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from safetensors import safe_open

import randwire_zoo
from randwire_zoo.errors import nearest, one_line
from randwire_zoo.frozen import load_graphs
from randwire_zoo.graphs import graphs_sha256
from randwire_zoo.training.evaluation import evaluate_checkpoint
from randwire_zoo.weights.errors import loading
from randwire_zoo.weights.files import (
    check_weights,
    is_large,
    read_graphs,
    read_metadata,
    round_to_half,
    save_weights,
)

NETWORK: dict[str, Any] = {'channels': 4, 'num_nodes': 6, 'num_classes': 3}


@pytest.fixture
def model() -> Any:
    return timm.create_model('randwire', seed=1, **NETWORK)


@pytest.fixture
def path(model: Any, tmp_path: Path) -> Path:
    save_weights(model, tmp_path / 'weights.safetensors', recipe='none', metrics={'top1': 12.5})
    return tmp_path / 'weights.safetensors'


def twin() -> Any:
    """Another network whose tensors all have the names and shapes of seed 1's, but one edge leads elsewhere."""
    from randwire_zoo.graphs import Graph
    from randwire_zoo.network import RandWire

    graphs = timm.create_model('randwire', seed=1, **NETWORK).graphs
    for source, target in graphs[0].edges:
        for other in range(target):
            edges = tuple((other, target) if edge == (source, target) else edge for edge in graphs[0].edges)
            if len(set(edges)) == len(edges) and (other, target) not in graphs[0].edges:
                changed = Graph(graphs[0].num_nodes, edges)
                return RandWire((changed, *graphs[1:]), channels=4, num_classes=3)
    raise AssertionError('no edge can be moved')


def test_a_file_carries_its_graphs_and_what_it_was_told(model: Any, path: Path) -> None:
    with safe_open(path, framework='pt') as file:
        metadata = file.metadata()
    assert (metadata['format'], metadata['architecture'], metadata['recipe']) == ('pt', 'randwire', 'none')
    assert json.loads(metadata['metrics']) == {'top1': 12.5}
    assert metadata['graphs_sha256'] == graphs_sha256(model.graphs)
    assert read_graphs(path) == model.graphs
    assert read_metadata(path) == metadata
    check_weights(path)


def test_a_file_says_the_name_and_the_classes_of_its_network(tmp_path: Path, path: Path) -> None:
    assert json.loads(read_metadata(path)['num_classes']) == 3
    named = timm.create_model('randwire_ws_pico', num_classes=4)
    save_weights(named, tmp_path / 'pico.safetensors', words='Альбрехт Дюрер')
    metadata = read_metadata(tmp_path / 'pico.safetensors')
    assert (metadata['architecture'], metadata['num_classes'], metadata['words']) == (
        'randwire_ws_pico', '4', 'Альбрехт Дюрер')
    data = (tmp_path / 'pico.safetensors').read_bytes()
    header = json.loads(data[8:8 + int.from_bytes(data[:8], 'little')])
    assert [*header['__metadata__']] == sorted(metadata)  # in one order, so that equal weights are equal bytes
    save_weights(twin(), tmp_path / 'twin.safetensors')  # a network that timm has not made
    assert read_metadata(tmp_path / 'twin.safetensors')['architecture'] == 'randwire'


@pytest.mark.parametrize('load', [
    lambda path: timm.create_model('randwire', checkpoint_path=str(path), seed=1, **NETWORK),
    lambda path: timm.create_model(
        'randwire', pretrained=True, pretrained_cfg_overlay={'file': str(path), 'num_classes': 3}, seed=1, **NETWORK),
], ids=['checkpoint_path', 'pretrained_cfg_overlay'])
def test_timm_loads_the_file_to_equal_logits(load: Callable[[Path], Any], model: Any, path: Path) -> None:
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(load(path).eval()(images), model.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize('load', [
    lambda path: timm.create_model('randwire', checkpoint_path=str(path), seed=1, **NETWORK),
    lambda path: timm.create_model(
        'randwire', pretrained=True, pretrained_cfg_overlay={'file': str(path), 'num_classes': 3}, seed=1, **NETWORK),
], ids=['checkpoint_path', 'pretrained_cfg_overlay'])
def test_timm_refuses_weights_of_another_wiring_with_identical_shapes(
        load: Callable[[Path], Any], model: Any, tmp_path: Path) -> None:
    other = twin()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in other.state_dict().items()}
    save_weights(other, tmp_path / 'twin.safetensors')
    with pytest.raises((ValueError, RuntimeError), match='trained on other wiring'):
        load(tmp_path / 'twin.safetensors')


def test_weights_without_values_are_not_taken_for_those_of_another_wiring(model: Any) -> None:
    with pytest.raises(ValueError, match='these weights are on the meta device, where tensors have no values'):
        model.load_state_dict({name: tensor.to('meta') for name, tensor in model.state_dict().items()})


def test_a_missing_tensor_is_refused_by_name(model: Any, path: Path) -> None:
    tensors = safetensors.torch.load_file(path)
    del tensors['conv4.nodes.0.conv_pw.weight']
    safetensors.torch.save_file(tensors, path, metadata=read_metadata(path))
    with pytest.raises(RuntimeError, match=r'conv4\.nodes\.0\.conv_pw\.weight'):
        timm.create_model('randwire', checkpoint_path=str(path), seed=1, **NETWORK)
    with pytest.raises(ValueError, match='has been altered: its tensors have sha256'):
        check_weights(path)


@pytest.mark.parametrize(('damage', 'message'), [
    (lambda data: b'', 'is empty'),
    (lambda data: data[:100], 'cannot be loaded'),
    (lambda data: data[:-1], 'cannot be loaded'),
    (lambda data: b'PK\x03\x04 not safetensors', 'cannot be loaded'),
    (lambda data: data[:-1] + bytes([data[-1] ^ 1]), 'has been altered'),
    (lambda data: data.replace(b'\\"edges\\":[[0,', b'\\"edges\\":[[9,', 1), 'carries no graphs'),
    (lambda data: data.replace(b'"graphs_sha256":"', b'"graphs_sha256":"0').replace(b'"format":"pt"', b'"format":"p"'),
     'has been altered'),
], ids=['empty', 'header cut', 'last byte cut', 'other format', 'one bit', 'graphs', 'recorded sha256'])
def test_a_damaged_file_is_one_line(damage: Callable[[bytes], bytes], message: str, path: Path) -> None:
    damaged = damage(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(ValueError) as error:
        check_weights(path)
    assert message in str(error.value) and path.name in str(error.value) and '\n' not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'no weights at .*nothing\.safetensors'):
        read_graphs(tmp_path / 'nothing.safetensors')


def test_the_same_weights_make_the_same_bytes(model: Any, path: Path) -> None:
    first = path.read_bytes()
    for _ in range(3):
        save_weights(model, path, metrics={'top1': 12.5}, recipe='none')
        assert path.read_bytes() == first
    check_weights(path)


def test_nothing_but_randwire_models_and_safetensors_is_saved(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weight files end in \.safetensors, got 'weights\.pth'"):
        save_weights(model, tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match='only RandWire models carry graphs, got Linear'):
        save_weights(torch.nn.Linear(1, 1), tmp_path / 'weights.safetensors')
    with pytest.raises(ValueError, match='metadata graphs are written by save_weights itself'):
        save_weights(model, tmp_path / 'weights.safetensors', graphs='mine')
    assert list(tmp_path.iterdir()) == []


class Hostile:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


def test_a_hostile_pickle_is_not_executed(tmp_path: Path) -> None:
    torch.save({'state_dict': Hostile(tmp_path / 'victim')}, tmp_path / 'weights.pth')
    message = 'it is no checkpoint, or one with more in it than tensors'
    with pytest.raises(ValueError, match=message), loading(tmp_path / 'weights.pth'):
        timm.create_model('randwire', checkpoint_path=str(tmp_path / 'weights.pth'), seed=1, **NETWORK)
    assert not (tmp_path / 'victim').exists()


def test_the_shipped_weights_are_whole_and_of_the_frozen_wiring() -> None:
    model = timm.create_model('randwire_ws_pico', pretrained=True)
    path = Path(model.pretrained_cfg['file'])
    check_weights(path)
    assert read_graphs(path) == load_graphs('randwire_ws_pico') == model.graphs
    metadata = read_metadata(path)
    assert metadata['architecture'] == 'randwire_ws_pico' and metadata['recipe'] == 'digits/randwire_ws_pico'
    assert path.stat().st_size < 1.3e6


@pytest.mark.parametrize('name, every, within', [
    ('randwire_ws_small_s1.tin200_kd', 1, 0.1), ('randwire_ws_c109.tin200_kd', 20, 7)])  # 500 images' three deviations
def test_the_shipped_weights_have_the_accuracy_that_their_card_says(
        name: str, every: int, within: float, tmp_path: Path) -> None:
    data = Path(os.environ.get('RANDWIRE_ZOO_DATA', ''), 'tiny-imagenet', 'val')
    if not data.is_dir():
        pytest.skip('no Tiny ImageNet below RANDWIRE_ZOO_DATA')
    images = sorted(path.relative_to(data) for path in data.glob('*/*.JPEG'))
    assert len(images) == 10_000
    for folder in data.iterdir():
        (tmp_path / 'val' / folder.name).mkdir(parents=True)
    for image in images[::every]:
        (tmp_path / 'val' / image).symlink_to((data / image).absolute())
    measured = evaluate_checkpoint(settings={'model': name, 'data_dir': str(tmp_path)}, progress=False)
    said = json.loads((Path(randwire_zoo.__file__).parent / 'weights.json').read_text())[name]['metrics']['top1']
    assert measured['images'] == 10_000 // every and measured['top1'] == pytest.approx(said, abs=within)


def test_an_error_is_one_line_of_bounded_length_with_the_nearest_words(tmp_path: Path) -> None:
    assert one_line(ValueError('a\n  b\tc')) == 'a b c' and one_line(KeyError()) == 'KeyError'
    for length, shown in ((400, 'x' * 400), (401, f'{"x" * 400} …')):
        assert one_line(ValueError('x' * length)) == shown
    assert one_line(ValueError('abcd'), 3) == 'abc …'
    words = ['chanels_x', 'channels', 'channel', 'chanel', 'nodes']
    assert nearest('channels', words) == '; did you mean channels, channel, chanel?'
    assert nearest('edges', words) == '' and nearest('edges', words, '; see list') == '; see list'
    path = tmp_path / 'x.pth'
    path.write_bytes(b'x')
    junk = 'it is no checkpoint, or one with more in it than tensors and settings'
    for error, reason in (
            (KeyError(71), junk), (EOFError(''), 'EOFError'), (pickle.UnpicklingError('7'), junk),
            (RuntimeError('use weights_only=False'), junk), (ValueError('mmap can only be used'), junk),
            (pickle.UnpicklingError('invalid load key, x'), junk), (RuntimeError('7'), '7'),
            (KeyError('fc.weight'), "'fc.weight'"), (OSError('gone'), 'gone')):
        said = re.escape(f'{path} cannot be loaded: {reason}')
        with pytest.raises(ValueError, match=f'^{said}$'), loading(path):
            raise error
    for error in (IndexError('x'), KeyboardInterrupt()):
        with pytest.raises(type(error)), loading(path):
            raise error


def test_large_kernels_are_rounded_and_everything_else_is_kept(tmp_path: Path) -> None:
    for tensor, large in ((torch.zeros(32, 32), True), (torch.zeros(31, 33), False), (torch.zeros(2048), False),
                          (torch.zeros(64, 64, dtype=torch.int64), False), (torch.zeros(1, 1024, dtype=torch.bfloat16),
                                                                           True)):
        assert is_large(tensor) == large, (tensor.shape, tensor.dtype)
    model: Any = timm.create_model('randwire', **{**NETWORK, 'channels': 32})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    large = {name for name, tensor in before.items() if tensor.ndim > 1 and tensor.numel() > 1023}
    assert 0 < len(large) < len(before)
    round_to_half(model)
    save_weights(model, tmp_path / 'half.safetensors', half=True)
    save_weights(model, tmp_path / 'whole.safetensors')
    half, whole = (safetensors.torch.load_file(tmp_path / f'{name}.safetensors') for name in ('half', 'whole'))
    for name, tensor in before.items():
        expected = torch.from_numpy(tensor.numpy().astype('float16')) if name in large else tensor
        assert half[name].dtype == expected.dtype and torch.equal(half[name], expected), name
        assert whole[name].dtype == tensor.dtype and torch.equal(whole[name], expected.to(tensor.dtype)), name
        assert torch.equal(model.state_dict()[name], whole[name])
