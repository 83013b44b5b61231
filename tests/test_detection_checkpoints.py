"""What detectron2's own checkpointer makes of `MODEL.WEIGHTS` for a detector on a RandWire backbone."""
from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pretrained import NAME, random_model, timm_checkpoint
from safetensors.torch import save_file
from torch import nn

pytest.importorskip('detectron2', reason='detectron2 is not installed (`make upstream` builds a wheel)')

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool

from randwire_zoo.cli import main
from randwire_zoo.detection import RandWireBackbone
from randwire_zoo.models import WEIGHTS
from randwire_zoo.weights.files import save_weights


class Detector(nn.Module):
    """As much of a detector as a checkpointer cares for."""

    def __init__(self, name: str = NAME, **kwargs: Any) -> None:
        super().__init__()
        bottom_up = RandWireBackbone(name, **{'norm': 'BN', **kwargs})
        self.backbone = FPN(bottom_up, list(bottom_up.output_shape()), 8, top_block=LastLevelMaxPool())

    @property
    def bottom_up(self) -> RandWireBackbone:
        return self.backbone.bottom_up


def load(source: str | Path, **kwargs: Any) -> Detector:
    detector = Detector(**kwargs)
    DetectionCheckpointer(detector).load(str(source))
    return detector


def assert_backbone_is(detector: Detector, model: nn.Module) -> None:
    expected = model.state_dict()
    for name, tensor in detector.bottom_up.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


@pytest.mark.parametrize('options', [{}, {'norm': 'FrozenBN'}, {'norm': 'FrozenBN', 'freeze_at': 3}, {'freeze_at': 5}])
def test_every_source_loads_every_tensor_of_the_backbone(options: dict[str, Any], tmp_path: Path) -> None:
    model, average = random_model(), random_model()
    save_weights(model, tmp_path / 'zoo.safetensors')
    assert_backbone_is(load(tmp_path / 'zoo.safetensors', **options), model)
    assert_backbone_is(load(timm_checkpoint(tmp_path, model), **options), model)
    assert_backbone_is(load(timm_checkpoint(tmp_path / 'ema', model, average), **options), average)
    assert_backbone_is(load('randwire://randwire_ws_pico.digits', **options), timm.create_model(NAME, pretrained=True))
    assert main(['convert', str(tmp_path / 'zoo.safetensors'), str(tmp_path / 'converted.pth')]) == 0
    assert_backbone_is(load(tmp_path / 'converted.pth', **options), model)


def test_published_weights_that_are_altered_between_the_checkpointers_looking_and_reading_are_refused(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged, path = WEIGHTS[f'{NAME}.digits'], tmp_path / 'model.safetensors'
    altered = bytearray(Path(str(packaged.file)).read_bytes())
    path.write_bytes(altered)
    altered[-1] ^= 1
    monkeypatch.setitem(WEIGHTS, packaged.name, replace(packaged, file=str(path)))
    real = DetectionCheckpointer._load_file

    def load_file(self: DetectionCheckpointer, f: str) -> Any:
        path.write_bytes(altered)
        return real(self, f)

    monkeypatch.setattr(DetectionCheckpointer, '_load_file', load_file)
    with pytest.raises(ValueError, match=r'randwire_ws_pico\.digits .* has been altered'):
        load(f'randwire://{packaged.name}')


def test_a_hub_repository_goes_through_detectron2s_path_manager(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, revision = random_model(), '1' * 40
    save_weights(model, tmp_path / 'models--someone--pico' / 'snapshots' / revision / 'model.safetensors')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    assert_backbone_is(load(f'hf-hub:someone/pico@{revision}'), model)


def test_a_converted_file_needs_none_of_our_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    save_weights(model, tmp_path / 'zoo.safetensors')
    assert main(['convert', str(tmp_path / 'zoo.safetensors'), str(tmp_path / 'converted.pth')]) == 0
    for name in ('_torch_load', '_load_model'):
        monkeypatch.setattr(DetectionCheckpointer, name, getattr(DetectionCheckpointer, name).__wrapped__)
    assert_backbone_is(load(tmp_path / 'converted.pth'), model)


def test_a_whole_detectors_checkpoint_restores_all_of_it_and_what_else_it_holds(tmp_path: Path) -> None:
    detector = Detector()
    checkpointer = DetectionCheckpointer(detector, str(tmp_path))
    checkpointer.save('model_0000009', iteration=9)
    restored = Detector()
    rest = DetectionCheckpointer(restored, str(tmp_path)).resume_or_load('', resume=True)
    assert rest['iteration'] == 9
    state = restored.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in detector.state_dict().items())
    save_file(detector.state_dict(), tmp_path / 'detector.safetensors')
    state = load(tmp_path / 'detector.safetensors').state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in detector.state_dict().items())


def test_a_backbone_alone_resumes_its_optimizer_and_iteration(tmp_path: Path) -> None:
    backbone = RandWireBackbone(NAME, norm='BN')
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.25, momentum=0.5)
    sum(output.sum() for output in backbone(torch.randn(2, 3, 32, 32)).values()).backward()
    optimizer.step()
    DetectionCheckpointer(backbone, str(tmp_path), optimizer=optimizer).save('model_0000009', iteration=9)
    restored = RandWireBackbone(NAME, norm='BN')
    other = torch.optim.SGD(restored.parameters(), lr=0.1, momentum=0.5)
    rest = DetectionCheckpointer(restored, str(tmp_path), optimizer=other).resume_or_load('', resume=True)
    assert rest == {'iteration': 9} and other.param_groups[0]['lr'] == 0.25
    momenta = [state['momentum_buffer'] for state in optimizer.state.values()]
    assert len(momenta) == len(other.state) > 0
    assert all(torch.equal(state['momentum_buffer'], momentum)
               for state, momentum in zip(other.state.values(), momenta, strict=True))
    assert all(torch.equal(tensor, restored.state_dict()[name]) for name, tensor in backbone.state_dict().items())
    # timm's checkpoints have an optimizer too, of another training.
    model = random_model()
    rest = DetectionCheckpointer(restored, optimizer=other).load(str(timm_checkpoint(tmp_path, model)))
    assert rest == {} and other.param_groups[0]['lr'] == 0.25
    assert torch.equal(restored.conv1.conv.weight, model.conv1.conv.weight)


def test_a_backbone_alone_takes_its_part_of_a_whole_detectors_checkpoint_and_no_more(tmp_path: Path) -> None:
    detector = Detector()
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.25)
    DetectionCheckpointer(detector, str(tmp_path), optimizer=optimizer).save('model_final', iteration=9)
    backbone = RandWireBackbone(NAME, norm='BN')
    other = torch.optim.SGD(backbone.parameters(), lr=0.1)
    assert DetectionCheckpointer(backbone, optimizer=other).load(str(tmp_path / 'model_final.pth')) == {}
    assert other.param_groups[0]['lr'] == 0.1
    state = backbone.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in detector.bottom_up.state_dict().items())


def test_a_detector_trained_with_bn_loads_into_frozen_bn_and_back(tmp_path: Path) -> None:
    first = Detector()
    DetectionCheckpointer(first, str(tmp_path)).save('bn')
    frozen = load(tmp_path / 'bn.pth', norm='FrozenBN', freeze_at=2)
    DetectionCheckpointer(frozen, str(tmp_path)).save('frozen')
    again = load(tmp_path / 'frozen.pth')
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = first.eval().bottom_up(images)
        for detector in (frozen, again):
            for name, output in detector.eval().bottom_up(images).items():
                torch.testing.assert_close(output, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', ['timm', 'detectron2'])
def test_weights_of_another_wiring_are_refused(kind: str, tmp_path: Path) -> None:
    other = {'graph': 'ws(4,0.75)', 'seed': 2, 'channels': 24, 'num_nodes': 8}
    if kind == 'timm':
        path = timm_checkpoint(tmp_path, random_model('randwire', **other))
    else:
        DetectionCheckpointer(Detector('randwire', **other), str(tmp_path)).save('model_final')
        path = tmp_path / 'model_final.pth'
    with pytest.raises(ValueError, match='these weights were trained on other wiring'):
        load(path)


def test_detectron2s_own_resnet_weights_are_refused_and_not_only_warned_of(tmp_path: Path) -> None:
    """Base-RCNN-FPN.yaml's relatives name R-50.pkl; a config that forgets to say otherwise must not train on noise."""
    with (tmp_path / 'R-50.pkl').open('wb') as file:
        pickle.dump({'stem.conv1.weight': torch.zeros(64, 3, 7, 7).numpy()}, file)
    with pytest.raises(ValueError, match=rf'do not fit the backbone {NAME}: it lacks backbone.bottom_up.conv1'):
        load(tmp_path / 'R-50.pkl')


def test_a_timm_resnet_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = timm_checkpoint(tmp_path, timm.create_model('resnet18'))
    with pytest.raises(ValueError, match=rf'does not fit {NAME}: it lacks conv1\.conv\.weight, '):
        load(path)
    (tmp_path / 'half.pth').write_bytes(path.read_bytes()[:9999])
    with pytest.raises(ValueError, match=r'half\.pth cannot be loaded: '):
        load(tmp_path / 'half.pth')
    with pytest.raises(AssertionError, match=r'Checkpoint .*nowhere\.pth not found'):
        load(tmp_path / 'nowhere.pth')


def test_a_model_without_our_backbone_is_loaded_as_ever(tmp_path: Path) -> None:
    linear, other = nn.Linear(2, 2), nn.Linear(2, 2)
    DetectionCheckpointer(linear, str(tmp_path)).save('linear')
    DetectionCheckpointer(other).load(str(tmp_path / 'linear.pth'))
    assert torch.equal(linear.weight, other.weight)
    torch.save({'model': {'nothing': torch.zeros(1)}}, tmp_path / 'nothing.pth')
    DetectionCheckpointer(other).load(str(tmp_path / 'nothing.pth'))  # warns, as detectron2 does
