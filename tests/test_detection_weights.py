"""Backbone weights from every kind of source: all of a backbone's tensors, or one line that says what does not fit."""
from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from pretrained import NAME, random_model, timm_checkpoint
from safetensors.torch import save_file
from torch import nn

from randwire_zoo.cli import main
from randwire_zoo.detection import fasterrcnn_randwire_fpn
from randwire_zoo.detection.weights import compare_statistics, fit_weights, locate_weights, read_state, read_statistics
from randwire_zoo.models import WEIGHTS, network_arguments
from randwire_zoo.network import RandWire
from randwire_zoo.weights.files import save_weights
from randwire_zoo.weights.manifest import HubError


def backbone(name: str = NAME, indices: int = 5) -> RandWire:
    """A network without a head, as detectors have it."""
    network = RandWire(**network_arguments(name, num_classes=0))
    network.prune_intermediate_layers(list(range(indices)))
    return network


def assert_holds(loaded: nn.Module, source: nn.Module) -> None:
    """Every tensor of a backbone is the source's."""
    expected = source.state_dict()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def fitted(source: str | Path, network: RandWire | None = None, use_ema: bool = True) -> RandWire:
    network = network or backbone()
    network.load_state_dict(fit_weights(read_state(source, use_ema), network, NAME, source))
    return network


def test_a_timm_checkpoint_gives_its_moving_average_unless_told_otherwise(tmp_path: Path) -> None:
    model, average = random_model(), random_model()
    path = timm_checkpoint(tmp_path, model, average)
    assert_holds(fitted(path), average)
    assert_holds(fitted(path, use_ema=False), model)


def test_a_timm_checkpoint_without_a_moving_average(tmp_path: Path) -> None:
    model = random_model(num_classes=7)
    assert_holds(fitted(timm_checkpoint(tmp_path, model)), model)


def test_safetensors_a_bare_state_dict_and_a_wrapped_one(tmp_path: Path) -> None:
    model = random_model()
    save_weights(model, tmp_path / 'zoo.safetensors')
    torch.save(model.state_dict(), tmp_path / 'bare.pth')
    torch.save({f'module._orig_mod.{k}': v for k, v in model.state_dict().items()}, tmp_path / 'wrapped.pth')
    for name in ('zoo.safetensors', 'bare.pth', 'wrapped.pth'):
        assert_holds(fitted(tmp_path / name), model)


def test_published_weights_by_name() -> None:
    assert_holds(fitted('randwire://randwire_ws_pico.digits'), timm.create_model(NAME, pretrained=True))
    assert locate_weights('randwire://randwire_ws_pico') == locate_weights('randwire://randwire_ws_pico.digits')


def test_a_hub_repository_at_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's own client finds the file in its cache, laid out as the client does it."""
    model, revision = random_model(), '0' * 40
    repository = tmp_path / 'models--someone--pico'
    (repository / 'refs').mkdir(parents=True)
    (repository / 'refs' / 'main').write_text(revision)
    save_weights(model, repository / 'snapshots' / revision / 'model.safetensors')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    for source in ('hf-hub:someone/pico', f'hf-hub:someone/pico@{revision}'):
        assert_holds(fitted(source), model)
    with pytest.raises(HubError, match='someone/other@main: it is not in the cache, and HF_HUB_OFFLINE is set'):
        locate_weights('hf-hub:someone/other')


def test_statistics_are_read_from_where_the_weights_say_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = WEIGHTS[f'{NAME}.digits']
    other = replace(row, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert read_statistics(f'randwire://{NAME}.digits') == (row.mean, row.std) == ((0.5,) * 3, (0.5,) * 3)
    monkeypatch.setitem(WEIGHTS, row.name, other)
    assert read_statistics(f'randwire://{NAME}') == (other.mean, other.std)
    # Of a repository of the Hub, and of a folder as it is staged.
    folder = tmp_path / 'models--someone--pico' / 'snapshots' / ('0' * 40)
    folder.mkdir(parents=True)
    save_weights(random_model(), folder / 'model.safetensors')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    source = f'hf-hub:someone/pico@{"0" * 40}'
    with pytest.raises(HubError, match=rf'^config\.json of {source}: it is not in the cache'):
        read_statistics(source)
    assert read_statistics(str(folder / 'model.safetensors')) is None
    for cfg, expected in (({'mean': [0.1, 0.2, 0.3], 'std': [0.4, 0.5, 0.6]}, (other.mean, other.std)),
                          ({'mean': [0.1], 'std': [0.4]}, None), ({'mean': 'grey', 'std': 1}, None), ({}, None)):
        (folder / 'config.json').write_text(json.dumps({'pretrained_cfg': cfg}))
        assert read_statistics(source) == read_statistics(str(folder / 'model.safetensors')) == expected
    (folder / 'config.json').unlink()
    for cause, outcome in ((EntryNotFoundError('none'), nullcontext()), (OSError('no net'), pytest.raises(HubError))):
        monkeypatch.setattr('huggingface_hub.hf_hub_download', Mock(side_effect=cause))
        with outcome:
            assert read_statistics(source) is None


def test_statistics_of_a_config_that_are_not_those_of_the_weights_are_one_line(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, half = f'randwire://{NAME}.digits', [127.5] * 3
    assert compare_statistics(source, half, half, 'RGB') == compare_statistics(source, [127.1] * 3, half, 'RGB') == ''
    line = compare_statistics(source, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], 'RGB')
    assert line == (f'{source} was trained with MODEL.PIXEL_MEAN {half} and PIXEL_STD {half} (of RGB), and this model '
                    'has [123.675, 116.28, 103.53] and [58.395, 57.12, 57.375]')
    row = WEIGHTS[f'{NAME}.digits']
    monkeypatch.setitem(WEIGHTS, row.name, replace(row, mean=(0.1, 0.2, 0.3)))
    rising, falling = [25.5, 51, 76.5], [76.5, 51, 25.5]
    for channels in ('RGB', ''):
        assert compare_statistics(source, rising, half, channels) == ''
        assert f'MODEL.PIXEL_MEAN {list(map(float, rising))} ' in compare_statistics(source, falling, half, channels)
    # Whatever order they are in, other channels are not what conv1 was trained on.
    for channels, mean in (('BGR', falling), ('BGR', rising), ('YUV-BT.601', rising), ('L', rising)):
        line = compare_statistics(source, mean, half, channels)
        assert line.startswith(f'{source} was trained on RGB images, and this model gets {channels}: set ')
        assert line.endswith(f', MODEL.PIXEL_MEAN {list(map(float, rising))} and MODEL.PIXEL_STD {half}')
    # Of a folder as it is staged, and of a repository of the Hub that is in the cache; one that is not is passed over.
    folder = tmp_path / 'models--someone--pico' / 'snapshots' / ('0' * 40)
    folder.mkdir(parents=True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    hub, file = f'hf-hub:someone/pico@{"0" * 40}', str(folder / 'model.safetensors')
    save_weights(random_model(), folder / 'model.safetensors')
    for there in (hub, file):
        assert compare_statistics(there, [0] * 3, half, 'RGB') == ''
    (folder / 'config.json').write_text(json.dumps({'pretrained_cfg': {'mean': [0.1, 0.2, 0.3], 'std': [0.5] * 3}}))
    for there in (hub, file):
        assert compare_statistics(there, rising, half, 'RGB') == ''
        line = compare_statistics(there, [123.675, 116.28, 103.53], half, 'RGB')
        assert line.startswith(f'{there} was trained with MODEL.PIXEL_MEAN {list(map(float, rising))} ')
    # What says nothing of its images.
    torch.save(random_model().state_dict(), bare := str(tmp_path / 'bare.pth'))
    for other, mean in ((bare, [0] * 3), (f'randwire://{NAME}.nobodys', [0] * 3), (source, [0]), (source, [])):
        assert compare_statistics(other, mean, mean, 'BGR') == ''


@pytest.mark.parametrize('norm', ['BN', 'FrozenBN'])
def test_a_whole_detector_of_detectron2_gives_its_backbone(norm: str, tmp_path: Path) -> None:
    model = random_model()
    state = {f'backbone.bottom_up.{key}': tensor for key, tensor in backbone().state_dict().items()}
    state.update({f'backbone.bottom_up.{key}': tensor for key, tensor in model.state_dict().items()
                  if f'backbone.bottom_up.{key}' in state})
    if norm == 'FrozenBN':
        state = {key: tensor for key, tensor in state.items() if not key.endswith('num_batches_tracked')}
    rest = {'backbone.fpn_lateral2.weight': torch.zeros(1), 'roi_heads.box_predictor.cls_score.weight': torch.zeros(1)}
    path = tmp_path / 'model_final.pth'
    torch.save({'model': {**state, **rest}, 'optimizer': {'state': {}, 'param_groups': []}, 'iteration': 9}, path)
    assert_holds(fitted(path), model)
    assert main(['convert', str(path), str(tmp_path / 'backbone.pth'), '--model', NAME]) == 0
    assert_holds(fitted(tmp_path / 'backbone.pth'), model)
    detector = fasterrcnn_randwire_fpn(NAME, 2, weights_backbone=path)
    assert torch.equal(detector.backbone.body['conv1'].conv.weight, model.conv1.conv.weight)
    del state['backbone.bottom_up.conv4.nodes.3.bn.weight']
    torch.save({'model': {**state, **rest}}, path)
    with pytest.raises(ValueError, match=r'does not fit .*: it lacks conv4\.nodes\.3\.bn\.weight$'):
        fitted(path)


def test_a_shorter_backbone_takes_what_it_needs() -> None:
    model = random_model()
    short = backbone(indices=3)
    assert_holds(fitted_from(model, short), model)
    assert not any(name.startswith(('conv4', 'conv5')) for name in short.state_dict())


def fitted_from(model: nn.Module, network: RandWire) -> RandWire:
    network.load_state_dict(fit_weights(model.state_dict(), network, NAME, 'model'))
    return network


@pytest.mark.parametrize(('name', 'kwargs', 'expected'), [
    ('resnet18', {}, r'it lacks conv1\.conv\.weight, .* and \d+ more.*the network has no conv1\.weight, bn1\.weight'),
    ('randwire_ws_small_s1', {}, r'trained on other wiring: graph sha256 '),
    ('randwire', {'channels': 32, 'num_nodes': 8}, r'another architecture: .*channels=32, but .*channels=24'),
    ('randwire', {'channels': 24, 'num_nodes': 8, 'in_chans': 1},
     r'of another shape are conv1\.conv\.weight \(12×1×3×3, not 12×3×3×3\)'),
    ('randwire', {'channels': 24, 'num_nodes': 8, 'seed': 2}, r'trained on other wiring: graph sha256 '),
    ('randwire', {'channels': 24, 'num_nodes': 8, 'node_op': 'conv'},
     r'another architecture: node_op=conv .* has node_op=sep_conv'),
])
def test_weights_of_another_network_are_named(name: str, kwargs: dict[str, Any], expected: str) -> None:
    model = timm.create_model(name, **kwargs)
    with pytest.raises(ValueError, match=r'^file\.pth does not fit .*' + expected) as caught:
        fit_weights(model.state_dict(), backbone(), NAME, 'file.pth')
    assert '\n' not in str(caught.value)


def test_weights_that_do_not_say_their_wiring_are_loaded_with_one_warning() -> None:
    model, network = random_model(), backbone()
    state = {name: tensor for name, tensor in model.state_dict().items() if '_extra_state' not in name}
    with pytest.warns(UserWarning, match='no wiring mark') as caught:
        network.load_state_dict(fit_weights(state, network, NAME, 'file.pth'))
    assert len(caught) == 1
    assert_holds(network, model)


def test_one_missing_and_one_surplus_tensor_are_named() -> None:
    state = random_model().state_dict()
    state['conv4.nodes.99.bn.weight'] = state.pop('conv4.nodes.3.bn.weight')
    with pytest.raises(ValueError, match=r'it lacks conv4\.nodes\.3\.bn\.weight; '
                                         r'the network has no conv4\.nodes\.99\.bn\.weight$'):
        fit_weights(state, backbone(), NAME, 'file.pth')


@pytest.mark.parametrize(('source', 'message'), [
    ('randwire://randwire_ws_c108', 'unknown name'),
    ('randwire://resnet18.a1_in1k', 'unknown name'),
    ('randwire://randwire_ws_c154', 'no such weights are published; there are randwire_ws_pico.digits'),
    ('randwire://randwire_ws_pico.imagenet', 'no such weights are published'),
])
def test_weights_that_nobody_published(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=f'^{source}: {message}'):
        locate_weights(source)


def test_missing_empty_truncated_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'no weights at .*nowhere\.pth'):
        locate_weights(str(tmp_path / 'nowhere.pth'))
    (tmp_path / 'empty.pth').touch()
    model = random_model()
    save_weights(model, tmp_path / 'whole.safetensors')
    torch.save(model.state_dict(), tmp_path / 'whole.pth')
    for name in ('whole.safetensors', 'whole.pth'):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name.replace('whole', 'half')).write_bytes(data[:len(data) // 2])
    (tmp_path / 'text.pth').write_text('weights, honestly')
    torch.save({'epoch': 3, 'steps': 5}, tmp_path / 'other.pth')
    for name in ('empty.pth', 'half.safetensors', 'half.pth', 'text.pth', 'other.pth'):
        with pytest.raises(ValueError, match=rf'{name} (cannot be loaded: |is empty)') as caught:
            read_state(tmp_path / name)
        assert '\n' not in str(caught.value)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / 'ran',))

    torch.save({'state_dict': Code()}, tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match='cannot be loaded'):
        read_state(tmp_path / 'bad.pth')
    assert not (tmp_path / 'ran').exists()


def test_convert_writes_plain_tensors_that_torch_alone_reads(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, average = random_model(), random_model()
    path = timm_checkpoint(tmp_path, model, average)
    for options, source in ((), average), (('--no-ema',), model):
        assert main(['convert', str(path), str(tmp_path / 'out.pth'), *options]) == 0
        file = torch.load(tmp_path / 'out.pth', weights_only=True)
        assert file['matching_heuristics'] is True
        network = backbone()
        network.load_state_dict(file['model'])
        assert_holds(network, source)
    assert f'{NAME} for detectron2' in capsys.readouterr().out


@pytest.mark.parametrize(('arguments', 'message'), [
    (('nowhere.pth', 'out.pth'), 'no weights at nowhere.pth'),
    (('bare.pth', 'out.pth'), 'bare.pth does not say which network it is for; name it with --model'),
    (('bare.pth', 'out.pth', '--model', 'randwire_ws_c7'), "unknown name 'randwire_ws_c7'"),
    (('bare.pth', 'out.pth', '--model', 'randwire_ws_small_s1'), 'does not fit'),
    (('bare.pth', 'out.pkl', '--model', NAME), 'out.pkl: what this writes ends in .pth'),
    (('bare.pth', 'out.safetensors'), 'a detector needs --config'),
    (('bare.pth', 'out.pth', '--config', 'config.yaml'), '--config and --classes are for detectors'),
])
def test_convert_says_in_one_line_what_is_wrong_and_writes_nothing(
        arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(random_model().state_dict(), 'bare.pth')
    assert main(['convert', *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count('\n') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['bare.pth']


def test_tensors_alone_without_a_wiring_never_reach_a_backbone(tmp_path: Path) -> None:
    save_file({'conv1.conv.weight': torch.zeros(12, 3, 3, 3)}, tmp_path / 'part.safetensors')
    with pytest.raises(ValueError, match=r'it lacks conv1\.bn\.weight, '):
        fitted(tmp_path / 'part.safetensors')


def test_of_published_weights_what_is_hashed_is_what_is_loaded(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes the file after it was hashed changes nothing."""
    packaged = WEIGHTS[f'{NAME}.digits']
    right, path, real = Path(str(packaged.file)).read_bytes(), tmp_path / 'model.safetensors', Path.read_bytes
    altered = bytearray(right)
    altered[-1] ^= 1

    def swap(self: Path) -> bytes:
        data = real(self)
        if self == path:
            self.write_bytes(altered)
        return data

    expected = timm.create_model(NAME, pretrained=True)
    monkeypatch.setitem(WEIGHTS, packaged.name, replace(packaged, file=str(path)))
    monkeypatch.setattr(Path, 'read_bytes', swap)
    path.write_bytes(right)
    assert_holds(fitted(f'randwire://{packaged.name}'), expected)
    assert real(path) == altered
