"""What detectron2's own checkpointer makes of `MODEL.WEIGHTS` for a detector on a RandWire backbone."""
from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
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
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool

from randwire_zoo.cli import main
from randwire_zoo.detection import RandWireBackbone, fasterrcnn_randwire_fpn, save_detector
from randwire_zoo.detection.detectron2.checkpoints import extend_checkpointer
from randwire_zoo.models import WEIGHTS
from randwire_zoo.weights.files import save_weights

CONFIGS = Path(__file__).parent.parent / 'configs'
PICO = f'randwire://{NAME}.digits'


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
    for name in ('load', '_torch_load', '_load_model'):
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
    # And of one that lies where torchvision has it.
    checkpoint = torch.load(tmp_path / 'model_final.pth', weights_only=True)
    state = {name.replace('.bottom_up.', '.body.'): tensor for name, tensor in checkpoint['model'].items()}
    torch.save({**checkpoint, 'model': state}, tmp_path / 'torchvision.pth')
    backbone = RandWireBackbone(NAME, norm='BN')
    assert DetectionCheckpointer(backbone, optimizer=other).load(str(tmp_path / 'torchvision.pth')) == {}
    assert torch.equal(backbone.conv5.nodes[0].conv_pw.weight, detector.bottom_up.conv5.nodes[0].conv_pw.weight)


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


def test_a_detector_without_a_pyramid_takes_the_backbone_of_one_that_has_one_and_back(tmp_path: Path) -> None:
    """Their backbones lie in `backbone.`, `backbone.bottom_up.` and, of torchvision, `backbone.body.`."""
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = RandWireBackbone(NAME, norm='BN'), nn.Linear(2, 2)

    plain, pyramid, torchvisions = Plain(), Detector(), fasterrcnn_randwire_fpn(NAME, 4, min_size=64, max_size=64)
    for name, detector in (('plain', plain), ('pyramid', pyramid)):
        DetectionCheckpointer(detector, str(tmp_path)).save(name, iteration=9)
    torch.save(torchvisions.state_dict(), tmp_path / 'torchvision.pth')
    save_detector(torchvisions, tmp_path / 'torchvision.safetensors')
    body = torchvisions.backbone.body
    for file, trained in (('plain.pth', plain.backbone), ('pyramid.pth', pyramid.bottom_up), ('torchvision.pth', body),
                          ('torchvision.safetensors', body)):
        other, own = Plain(), load(tmp_path / file)
        rest = DetectionCheckpointer(other).load(str(tmp_path / file))
        assert rest.get('iteration') == (9 if file == 'plain.pth' else None)
        assert torch.equal(other.head.weight, plain.head.weight) == (file == 'plain.pth')
        for name, tensor in trained.state_dict().items():
            assert torch.equal(other.backbone.state_dict()[name], tensor), (file, name)
            assert torch.equal(own.bottom_up.state_dict()[name], tensor), (file, name)


def yaml_model(channels: str = 'RGB', mean: list[float] | None = None, freeze_at: int = 0, norm: str = 'BN',
               *options: Any) -> nn.Module:
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / 'bccd' / 'faster_rcnn_randwire_ws_pico.yaml'))
    cfg.merge_from_list(['MODEL.DEVICE', 'cpu', 'INPUT.FORMAT', channels, 'MODEL.PIXEL_MEAN', mean or [127.5] * 3,
                         'MODEL.BACKBONE.FREEZE_AT', freeze_at, 'MODEL.RESNETS.NORM', norm, *options])
    return build_model(cfg)


def lazy_model(channels: str = 'RGB', mean: list[float] | None = None, freeze_at: int = 0,
               norm: str = 'BN') -> nn.Module:
    cfg = LazyConfig.apply_overrides(LazyConfig.load(str(CONFIGS / 'faster_rcnn_randwire.py')), [
        f'dataloader.train.mapper.image_format={channels}', f'model.pixel_mean={mean or [127.5] * 3}',
        'model.pixel_std=[127.5,127.5,127.5]', f'model.backbone.bottom_up.name={NAME}',
        f'model.backbone.bottom_up.freeze_at={freeze_at}', f'model.backbone.bottom_up.norm={norm}'])
    return instantiate(cfg.model)


def said(
        model: nn.Module, source: str | Path, caplog: pytest.LogCaptureFixture, save_dir: str | Path = '') -> list[str]:
    """What is warned of when a training begins with some weights, or goes on if its folder has a checkpoint."""
    caplog.clear()
    DetectionCheckpointer(model, str(save_dir)).resume_or_load(str(source), resume=bool(save_dir))
    return [record.getMessage() for record in caplog.records if record.name == 'detectron2.randwire_zoo']


@pytest.mark.parametrize('build', [yaml_model, lazy_model])
def test_images_that_are_not_those_of_the_weights_are_warned_of(
        build: Callable[..., nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    usual = [123.675, 116.28, 103.53]
    checkpoint = torch.load(path := timm_checkpoint(tmp_path, random_model()), weights_only=False)
    vars(checkpoint['args']).update(mean=[0.5] * 3, std=[0.5] * 3)
    torch.save(checkpoint, path)
    for source in (PICO, path):
        assert said(build(), source, caplog) == []
        line, = said(build('BGR'), source, caplog)
        assert line.startswith(f'{source} was trained on RGB images, and this model gets BGR: set INPUT.FORMAT RGB ')
        line, = said(build(mean=usual), source, caplog)
        assert line.startswith(f'{source} was trained with MODEL.PIXEL_MEAN [127.5, 127.5, 127.5] and ')
        assert line.endswith(f'this model has {usual} and [127.5, 127.5, 127.5]')
    # Trained from scratch, or with a checkpoint of its own, on whatever it is.
    model = build('BGR', usual)
    DetectionCheckpointer(model, str(tmp_path)).save('model_0000009', iteration=9)
    assert said(model, '', caplog) == said(model, tmp_path / 'model_0000009.pth', caplog) == []
    assert said(model, PICO, caplog, tmp_path) == []


def test_a_model_that_does_not_say_what_it_gets_has_it_from_its_config(caplog: pytest.LogCaptureFixture) -> None:
    architecture = ('MODEL.META_ARCHITECTURE', 'ProposalNetwork')
    assert not hasattr(yaml_model('RGB', None, 0, 'BN', *architecture), 'input_format')
    assert said(yaml_model('RGB', None, 0, 'BN', *architecture), PICO, caplog) == []
    line, = said(yaml_model('BGR', None, 0, 'BN', *architecture), PICO, caplog)
    assert ' and this model gets BGR: set ' in line
    assert said(Detector(), PICO, caplog) == []  # it normalises nothing


@pytest.mark.parametrize('build', [yaml_model, lazy_model])
@pytest.mark.parametrize(('freeze_at', 'norm', 'warns'), [(2, 'BN', True), (0, 'FrozenBN', True), (0, 'BN', False)])
def test_frozen_noise_is_warned_of(
        freeze_at: int, norm: str, warns: bool, build: Callable[..., nn.Module], tmp_path: Path,
        caplog: pytest.LogCaptureFixture) -> None:
    model = build(freeze_at=freeze_at, norm=norm)
    lines = said(model, '', caplog)
    assert [line.partition(' of ')[0] for line in lines] == ['MODEL.WEIGHTS is empty, but stages or norms'] * warns
    assert said(model, '', caplog, tmp_path / 'nothing to resume') == lines
    assert said(model, PICO, caplog) == []
    DetectionCheckpointer(model, str(tmp_path)).save('model_0000009', iteration=9)
    assert said(model, '', caplog, tmp_path) == []  # resumed


def write_pickle(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A file as those of detectron2's model zoo are, whose names it matches by their ends."""
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    path.write_bytes(pickle.dumps({'model': arrays, '__author__': 'somebody', 'matching_heuristics': True}))
    return path


@pytest.mark.parametrize('kind', ['pth', 'pkl', 'pkl of a backbone'])
def test_what_a_trained_backbone_has_and_this_one_does_not_is_named_but_for_stages_and_a_head(
        kind: str, tmp_path: Path) -> None:
    """BN's weights and biases have the names and shapes of GN's, which would normalise as nothing was trained to."""
    arguments: dict[str, Any] = {'name': 'randwire', 'channels': 64, 'num_nodes': 6}
    trained = Detector(**arguments)
    DetectionCheckpointer(trained, str(tmp_path)).save('model_final')
    path, prefix = tmp_path / 'model_final.pth', 'backbone.bottom_up.'
    if kind == 'pkl':
        path = write_pickle(tmp_path / 'model.pkl', trained.state_dict())
    elif kind == 'pkl of a backbone':
        prefix = ''
        path = write_pickle(tmp_path / 'model.pkl', {
            **trained.bottom_up.state_dict(), 'fc.weight': torch.zeros(2, 2), 'conv_head.weight': torch.zeros(1)})
    with pytest.raises(ValueError, match=rf'do not fit the backbone randwire: the network has no {prefix}conv1\.bn\.'
                                         r'running_mean, .* and \d+ more$'):
        load(path, norm='GN', **arguments)
    shorter = load(path, out_features=['res2', 'res3'], **arguments)
    assert not hasattr(shorter.bottom_up, 'fc') and not list(shorter.bottom_up.conv4.parameters())
    assert_backbone_is(shorter, trained.bottom_up)
    if not prefix:  # into a backbone that is all of the model
        alone = RandWireBackbone(norm='BN', **arguments)
        DetectionCheckpointer(alone).load(str(path))
        assert torch.equal(alone.conv5.nodes[0].conv_pw.weight, trained.bottom_up.conv5.nodes[0].conv_pw.weight)


def test_the_checkpointer_is_extended_once_and_around_other_peoples_wrappers(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = DetectionCheckpointer._load_model
    extend_checkpointer()
    assert DetectionCheckpointer._load_model is ours

    def foreign(method: Any) -> Any:
        return functools.wraps(method)(lambda self, checkpoint: method(self, checkpoint))

    state = RandWireBackbone(NAME, norm='BN').state_dict()
    del state['conv4.nodes.3.bn.weight']
    path = write_pickle(tmp_path / 'part.pkl', state)
    for method in (foreign(ours.__wrapped__), foreign(ours)):  # below ours, and on it
        monkeypatch.setattr(DetectionCheckpointer, '_load_model', method)
        extend_checkpointer()
        assert (DetectionCheckpointer._load_model is method) == (method.__wrapped__ is ours)
        with pytest.raises(ValueError, match=r'it lacks backbone\.bottom_up\.conv4\.nodes\.3\.bn\.weight$'):
            load(path)


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
