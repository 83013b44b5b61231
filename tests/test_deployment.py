"""The deployed form computes what the trained network computes: against a float64 reference, and after every export."""
from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from layers import randomise_
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from randwire_zoo import deploy

SMALL: dict[str, Any] = {'num_nodes': 8, 'channels': 10, 'num_classes': 7}


def trained(name: str = 'randwire', **kwargs: Any) -> nn.Module:
    """A network whose BN has seen data and whose edges have weights of their own."""
    model = timm.create_model(name, **(SMALL if name == 'randwire' else {}), **kwargs).train()
    randomise_(model)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, 96, 64))
    return model.eval()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize('kwargs', [
    {'graph': 'ws(4,0.75)'}, {'graph': 'er(0.3)', 'seed': 3}, {'graph': 'ba(3)', 'regime': 'regular'},
    {'node_op': 'conv'}, {'node_op': 'max_pool'}, {'node_op': 'avg_pool'}, {'output_stride': 8},
    {'drop_path_rate': 1.0, 'drop_rate': 0.5}, {'head': False, 'stem_stride': 2}], ids=str)
def test_it_is_the_float64_network_within_rounding(kwargs: dict[str, Any]) -> None:
    model = trained(**kwargs)
    deployed = deploy(model)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = model.double()(images.double())
        assert relative_error(deployed(images).double(), expected) < 1e-5
        assert relative_error(deployed.train()(images).double(), expected) < 1e-5
    assert not [m for m in deployed.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not [p for p in deployed.parameters() if p.requires_grad]
    assert deployed.graphs == model.graphs


@pytest.mark.parametrize('name', ['randwire_ws_pico', 'randwire_ws_small_s1', 'randwire_ws_c109'])
def test_the_frozen_networks_and_their_features(name: str) -> None:
    model = trained(name)
    deployed = deploy(model)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(deployed(images), model.double()(images.double())) < 1e-5
        for found, expected in zip(deployed.forward_intermediates(images, intermediates_only=True),
                                   model.forward_intermediates(images.double(), intermediates_only=True), strict=True):
            assert relative_error(found, expected) < 1e-5


def test_the_network_itself_stays_as_it_was() -> None:
    model = trained()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deploy(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_torchscript_export_and_onnx_compute_the_same(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip('onnxruntime', reason='onnxruntime runs the ONNX file')
    deployed = deploy(trained())
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = deployed(images)
        exported = torch.export.export(deployed, (images,)).module()
        for form in (torch.jit.script(deployed), torch.jit.trace(deployed, images), exported):
            assert relative_error(form(images), expected) < 1e-5
        torch.onnx.export(deployed, (images,), str(tmp_path / 'model.onnx'), dynamo=False, input_names=['images'])
    session = onnxruntime.InferenceSession(str(tmp_path / 'model.onnx'), providers=['CPUExecutionProvider'])
    assert relative_error(torch.from_numpy(session.run(None, {'images': images.numpy()})[0]), expected) < 1e-5


def test_a_state_dict_holds_all_that_a_deployed_network_computes_with(tmp_path: Path) -> None:
    first, second = deploy(trained()), deploy(trained())
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = first(images)
        assert relative_error(second(images), expected) > 0.1
        second(images)  # what the kernels keep of a stage must not outlive its weights
        save_file({name: tensor.contiguous() for name, tensor in first.state_dict().items()},
                  tmp_path / 'model.safetensors')
        second.load_state_dict(load_file(tmp_path / 'model.safetensors'))
        assert torch.equal(second(images), expected)
        assert torch.equal(torch.jit.script(second)(images), torch.jit.script(first)(images))
    assert get_model_state_dict(second).keys() == second.state_dict().keys()  # each name is an attribute's
    without = {name: tensor for name, tensor in first.state_dict().items() if not name.endswith('.input_weights')}
    with pytest.raises(RuntimeError, match=r'Missing key.*input_weights'):
        second.load_state_dict(without)
    wrong = {name: tensor[:1] if name == 'conv3.nodes.7.input_weights' else tensor
             for name, tensor in first.state_dict().items()}
    with pytest.raises(RuntimeError, match=r'conv3\.nodes\.7\.input_weights must have shape \(\d,\), got \(1,\)'):
        second.load_state_dict(wrong)


def test_a_normalisation_without_parameters_is_folded_and_one_without_statistics_refused() -> None:
    model = trained()

    def replaced(**kwargs: Any) -> nn.Module:
        found = deepcopy(model)
        for module in list(found.modules()):
            if isinstance(getattr(module, 'bn', None), nn.BatchNorm2d):
                norm = nn.BatchNorm2d(module.bn.num_features, **kwargs)
                norm.load_state_dict(module.bn.state_dict(), strict=False)
                module.bn = norm
        return found.eval()

    plain, images = replaced(affine=False), torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        assert relative_error(deploy(plain)(images).double(), plain.double()(images.double())) < 1e-5
    with pytest.raises(ValueError, match='BatchNorm2d without running statistics cannot be deployed'):
        deploy(replaced(track_running_stats=False))


def test_only_a_network_that_was_not_deployed_yet_is_taken() -> None:
    with pytest.raises(ValueError, match='only RandWire networks can be deployed, got Linear'):
        deploy(nn.Linear(1, 1))  # type: ignore[arg-type]
    features = timm.create_model('randwire', features_only=True, **SMALL)
    with pytest.raises(ValueError, match=r'got RandWireFeatures; of features_only, deploy its \.model'):
        deploy(features)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = features.eval()(images)
        features.model = deploy(features.model)
        assert all(relative_error(*pair) < 1e-4 for pair in zip(features(images), expected, strict=True))
    with pytest.raises(ValueError, match='was deployed already'):
        deploy(deploy(trained()))
