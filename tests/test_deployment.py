"""The deployed form computes what the trained network computes: against a float64 reference, and after every export."""
from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from layers import randomise_
from safetensors.torch import load_file, save_file
from timm.layers import BatchNormAct2d, StdConv2d, freeze_batch_norm_2d
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.nn.utils.parametrizations import weight_norm

from randwire_zoo import deploy, use_kernels
from randwire_zoo.network import ConvBN, Node

COMPILER = os.environ.get('CXX', 'c++').split()[0]
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


class AnotherNode(Node):
    def transform(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().transform(x)


class AnotherStem(ConvBN):
    def forward(self, x: torch.Tensor, kept_edges: torch.Tensor | None = None) -> torch.Tensor:
        return 2 * super().forward(x)


class RenamedNorm(nn.BatchNorm2d):
    pass


def with_standardised_stem(model: Any) -> None:
    model.conv1.conv = StdConv2d(3, 5, 3, stride=2, padding=1).eval()


def with_an_activation(model: Any) -> None:
    model.conv2.bn = BatchNormAct2d(10).eval()


def with_instance_norm(model: Any) -> None:
    model.conv3.nodes[2].bn = nn.InstanceNorm2d(10, track_running_stats=True).eval()


def with_a_transform(model: Any) -> None:
    model.conv3.nodes[2].transform = torch.zeros_like


def with_a_forward(model: Any) -> None:
    model.conv1.forward = lambda x, kept_edges=None: x


@pytest.mark.parametrize(('change', 'named'), [
    (lambda model: setattr(model.conv3.nodes[2], '__class__', AnotherNode), r'conv3\.nodes\.2: AnotherNode cannot'),
    (with_a_transform, r'conv3\.nodes\.2: Node cannot be deployed: its operation is none of those of Node'),
    (lambda model: setattr(model.conv1, '__class__', AnotherStem), 'conv1: AnotherStem with a forward of its own'),
    (with_a_forward, 'conv1: ConvBN with a forward of its own'),
    (lambda model: model.conv3.nodes[2].conv_pw.register_forward_hook(lambda module, args, out: 2 * out),
     r'conv3\.nodes\.2\.conv_pw: Conv2d with hooks'),
    (lambda model: model.conv4.nodes[0].register_forward_pre_hook(lambda module, args: None),
     r'conv4\.nodes\.0: Node with hooks'),
    (lambda model: model.bn_head.register_forward_hook(lambda module, args, out: 2 * out), 'bn_head: BatchNorm2d with'),
    (with_standardised_stem, r'conv1\.conv: StdConv2d cannot be deployed: it is another class than Conv2d'),
    (with_an_activation, r'conv2\.bn: BatchNormAct2d cannot be deployed: it is another class than BatchNorm2d'),
    (with_instance_norm, r'conv3\.nodes\.2\.bn: InstanceNorm2d cannot be deployed'),
], ids=['node', 'transform', 'stem', 'forward', 'hook', 'pre-hook', 'hook in the head', 'standardised weights',
        'activation', 'instance norm'])
def test_what_would_be_lost_is_refused_in_one_line_that_names_the_module(
        change: Callable[[Any], object], named: str) -> None:
    model = trained()
    change(model)
    with pytest.raises(ValueError, match=f'^{named}') as error:
        deploy(model)
    assert '\n' not in str(error.value)


def test_biases_paddings_and_norms_that_evaluate_alike_are_folded_as_they_are() -> None:
    model: Any = trained()
    model.conv1.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1, padding_mode='circular')
    model.conv3 = nn.SyncBatchNorm.convert_sync_batchnorm(model.conv3)
    model.conv4 = freeze_batch_norm_2d(model.conv4)
    weight_norm(model.conv5.nodes[1].conv_pw)
    model.conv5.nodes[1].bn.__class__ = RenamedNorm
    model.conv5.nodes[2].conv_pw.register_full_backward_hook(lambda module, inputs, outputs: None)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        deployed = deploy(model)
        assert relative_error(deployed(images).double(), model.double()(images.double())) < 1e-5
    assert not [name for name, _ in deployed.named_buffers() if 'running' in name]


def test_a_backbone_that_lacks_the_head_altogether_is_taken() -> None:
    model: Any = trained()
    model.prune_intermediate_layers([3])
    del model.conv_head, model.bn_head, model.global_pool, model.fc  # as detectron2's backbone does
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        found = deploy(model).forward_features(images).double()
        assert relative_error(found, model.double().forward_features(images.double())) < 1e-5


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f'the kernels are built with {COMPILER}')
def test_native_kernels_that_are_told_of_a_change_past_torch_follow_it() -> None:
    fast, images = deploy(trained()), torch.randn(2, 3, 64, 64)
    weight = fast.conv4.nodes[1].last.weight
    use_kernels('native')
    with torch.no_grad():
        before = fast(images)
        weight.data[4] = 9.0  # which no sample of the numbers sees
        torch.autograd.graph.increment_version(weight)
        after = fast(images)
        use_kernels('torch')
        assert relative_error(after, fast(images)) < 1e-4 < relative_error(before, after)


def test_hooks_on_what_stays_as_it_is_are_kept() -> None:
    model, seen = trained(), []
    for name in ('conv1', 'conv3', 'conv3.nodes.2.conv_dw'):
        model.get_submodule(name).register_forward_hook(lambda module, args, out, name=name: seen.append(name))
    deploy(model)(torch.randn(1, 3, 64, 64))
    assert seen == ['conv1', 'conv3.nodes.2.conv_dw', 'conv3']


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
