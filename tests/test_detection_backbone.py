"""RandWire networks as native detectron2 backbones, against timm's own features and detectron2's own ResNet."""
from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from torch import nn

pytest.importorskip('detectron2', reason='detectron2 is not installed (`make upstream` builds a wheel)')

from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone, build_model
from detectron2.modeling.backbone.backbone import Backbone

from randwire_zoo.detection import RandWireBackbone
from randwire_zoo.detection.detectron2.backbone import FEATURES
from randwire_zoo.frozen import frozen_names

NAME = 'randwire_ws_pico'


def config(builder: str = f'build_{NAME}_fpn_backbone', *options: Any) -> Any:
    cfg = get_cfg()
    cfg.merge_from_list([
        'MODEL.DEVICE', 'cpu', 'MODEL.WEIGHTS', 'x', 'MODEL.BACKBONE.NAME', builder,
        'MODEL.RESNETS.OUT_FEATURES', ['res2', 'res3', 'res4', 'res5'],
        'MODEL.FPN.IN_FEATURES', ['res2', 'res3', 'res4', 'res5'], *options])
    return cfg


def trained_network(name: str = NAME, **kwargs: Any) -> nn.Module:
    """timm's model with BN that has seen data and is far from the identity."""
    model = timm.create_model(name, num_classes=0, **kwargs).train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
        for _ in range(3):
            model(torch.randn(4, 3, 96, 64))
    return model.eval()


def load(backbone: nn.Module, model: nn.Module) -> nn.Module:
    """Copy by name; everything that the backbone has must be there."""
    missing, _ = backbone.load_state_dict(model.state_dict(), strict=False)
    assert not [name for name in missing if not name.endswith('num_batches_tracked')]
    return backbone


@pytest.mark.parametrize('name', [*frozen_names(), 'randwire'])
def test_every_registered_name_has_its_three_builders(name: str) -> None:
    for builder in (f'build_{name}_backbone', f'build_{name}_fpn_backbone', f'build_{name}_retinanet_fpn_backbone'):
        assert builder in BACKBONE_REGISTRY
    assert timm.is_model(name)


def test_no_builder_is_for_a_name_that_timm_does_not_know() -> None:
    built = {name for name, _ in BACKBONE_REGISTRY if 'randwire' in name}
    assert len(built) == 3 * len(timm.list_models('randwire*'))


@pytest.mark.parametrize('norm', ['BN', 'FrozenBN'])
@pytest.mark.parametrize('name', [NAME, 'randwire_ws_small_s2', 'randwire_ws_c109'])
def test_outputs_are_timms_features_with_names_strides_and_channels(name: str, norm: str) -> None:
    model = trained_network(name)
    backbone = load(RandWireBackbone(name, FEATURES, norm), model).eval()
    assert isinstance(backbone, Backbone)
    images = torch.randn(2, 3, 95, 65)
    with torch.no_grad():
        expected = model.forward_intermediates(images, intermediates_only=True)
        outputs = backbone(images)
    assert list(outputs) == list(backbone.output_shape()) == list(FEATURES)
    for level, (feature, shape) in enumerate(backbone.output_shape().items()):
        torch.testing.assert_close(outputs[feature], expected[level], rtol=1e-4, atol=1e-4)
        assert shape == ShapeSpec(channels=expected[level].shape[1], stride=2 ** (level + 1))
    assert set(backbone.state_dict()) <= set(model.state_dict())


def test_stages_that_no_output_needs_are_not_there() -> None:
    backbone = RandWireBackbone(NAME, ['res3'])
    assert list(backbone(torch.randn(1, 3, 64, 64))) == ['res3']
    assert {name.partition('.')[0] for name in backbone.state_dict()} == {'conv1', 'conv2', 'conv3'}


@pytest.mark.parametrize('freeze_at', range(6))
@pytest.mark.parametrize('norm', ['BN', 'FrozenBN'])
def test_freeze_at_freezes_that_many_stages_exactly_and_no_more(freeze_at: int, norm: str) -> None:
    model = trained_network()
    backbone = load(RandWireBackbone(NAME, FEATURES, norm, freeze_at), model).train()
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    images = torch.randn(2, 3, 128, 128)
    outputs = backbone(images)
    if freeze_at < 5:
        sum(output.square().mean() for output in outputs.values()).backward()
    for index in range(5):
        stage = getattr(backbone, f'conv{index + 1}')
        frozen = index < freeze_at
        assert all(parameter.requires_grad != frozen for parameter in stage.parameters())
        assert all((parameter.grad is not None) != frozen for parameter in stage.parameters())
        assert any(isinstance(module, nn.BatchNorm2d) for module in stage.modules()) == (norm == 'BN' and not frozen)
    for name, tensor in backbone.state_dict().items():
        learns = norm == 'BN' and int(name[4]) > freeze_at
        moves = learns and name.endswith(('running_mean', 'running_var', 'num_batches_tracked'))
        assert torch.equal(tensor, state[name]) != moves, name
    # A frozen stage computes in training what the trained network computes in evaluation.
    with torch.no_grad():
        expected = model.forward_intermediates(images, intermediates_only=True)
    for level in range(5 if norm == 'FrozenBN' else freeze_at):
        torch.testing.assert_close(outputs[FEATURES[level]], expected[level], rtol=1e-4, atol=1e-4)


def test_syncbn_is_torchs_and_gn_has_detectron2s_groups() -> None:
    sync = RandWireBackbone(NAME, norm='SyncBN')
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in sync.modules()) == 8 * 3 + 2
    group = RandWireBackbone('randwire', norm='GN', channels=64, num_nodes=6)
    norms = [module for module in group.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == 6 * 3 + 2 and all(norm.num_groups == 32 for norm in norms)
    assert group(torch.randn(1, 3, 64, 64))['res5'].shape == (1, 256, 2, 2)


@pytest.mark.parametrize(('name', 'width'), [('randwire_ws_c109', 54), ('randwire_ws_c154', 77), (NAME, 12)])
def test_gn_that_does_not_divide_is_one_clear_line(name: str, width: int) -> None:
    with pytest.raises(ValueError, match=f'^norm GN has 32 groups, which do not divide the {width} channels of {name}'):
        RandWireBackbone(name, norm='GN')


@pytest.mark.parametrize(('arguments', 'message'), [
    ({'name': 'randwire_ws_c110'}, "unknown name 'randwire_ws_c110'"),
    ({'out_features': ['res6']}, "out_features must be some of stem, res2, res3, res4, res5, got ['res6']"),
    ({'out_features': []}, 'out_features must be some of'),
    ({'norm': 'LN'}, "norm must be one of FrozenBN, BN, SyncBN, GN, got 'LN'"),
    ({'norm': ''}, "norm must be one of FrozenBN, BN, SyncBN, GN, got ''"),
    ({'freeze_at': 6}, 'freeze_at must be an integer from 0 to 5, got 6'),
    ({'freeze_at': -1}, 'freeze_at must be an integer from 0 to 5, got -1'),
])
def test_arguments_out_of_range_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        RandWireBackbone(**{'name': NAME, **arguments})
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_an_unknown_builder_is_detectron2s_own_error() -> None:
    with pytest.raises(KeyError, match=r'No object named .build_randwire_ws_c110_fpn_backbone. found in .BACKBONE.'):
        build_backbone(config('build_randwire_ws_c110_fpn_backbone'))


def test_the_builders_read_detectron2s_own_keys() -> None:
    cfg = config(f'build_{NAME}_backbone', 'MODEL.BACKBONE.FREEZE_AT', 3, 'MODEL.RESNETS.NORM', 'BN',
                 'MODEL.RESNETS.OUT_FEATURES', ['res4', 'res5'], 'MODEL.RESNETS.RES5_DILATION', 2,
                 'INPUT.FORMAT', 'YUV-BT.601')
    backbone = build_backbone(cfg)
    assert backbone.input_format == 'YUV-BT.601'
    assert {name: shape.stride for name, shape in backbone.output_shape().items()} == {'res4': 16, 'res5': 16}
    assert [next(getattr(backbone, f'conv{i}').parameters()).requires_grad for i in range(1, 6)] == [
        False, False, False, True, True]
    assert backbone(torch.randn(1, 3, 64, 96))['res5'].shape[2:] == (4, 6)
    grey = build_backbone(config(f'build_{NAME}_backbone', 'MODEL.PIXEL_MEAN', [127.0], 'MODEL.PIXEL_STD', [60.0]))
    assert grey(torch.randn(1, 1, 64, 64))['res2'].shape[:2] == (1, 24)
    with pytest.raises(ValueError, match='RES5_DILATION must be 1 or 2, got 4'):
        build_backbone(config(f'build_{NAME}_backbone', 'MODEL.RESNETS.RES5_DILATION', 4))


@pytest.mark.parametrize(('kind', 'levels'), [('fpn', 'p2 p3 p4 p5 p6'), ('retinanet_fpn', 'p3 p4 p5 p6 p7')])
def test_the_pyramids_have_the_levels_of_detectron2s_resnet(kind: str, levels: str) -> None:
    features = ['res2', 'res3', 'res4', 'res5'][kind != 'fpn':]
    options = ('MODEL.RESNETS.OUT_FEATURES', features, 'MODEL.FPN.IN_FEATURES', features)
    resnet = 'build_resnet_fpn_backbone' if kind == 'fpn' else 'build_retinanet_resnet_fpn_backbone'
    ours, theirs = (build_backbone(config(builder, *options)) for builder in (f'build_{NAME}_{kind}_backbone', resnet))
    images = torch.randn(1, 3, 128, 128)
    assert ours.output_shape() == theirs.output_shape() and ours.size_divisibility == theirs.size_divisibility == 32
    outputs = ours(images)
    assert ' '.join(outputs) == levels
    assert {n: t.shape for n, t in outputs.items()} == {n: t.shape for n, t in theirs(images).items()}


def test_retinanet_without_res5_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match='computes P6 and P7 from res5'):
        build_backbone(config(f'build_{NAME}_retinanet_fpn_backbone', 'MODEL.RESNETS.OUT_FEATURES', ['res3', 'res4']))


def test_random_weights_with_frozen_norm_stay_within_bounds() -> None:
    """The COCO configs run without weights, though nothing much comes of it: 32 nodes deep, nothing overflows."""
    outputs = RandWireBackbone('randwire_ws_c109', freeze_at=2).train()(torch.randn(1, 3, 128, 128))
    assert all(0.1 < output.std() < 100 for output in outputs.values())


def test_torchscript_computes_the_same() -> None:
    backbone = load(RandWireBackbone(NAME, FEATURES, 'FrozenBN', 2), trained_network()).eval()
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        scripted, expected = torch.jit.script(backbone)(images), backbone(images)
    assert list(scripted) == list(expected)
    for name in expected:
        torch.testing.assert_close(scripted[name], expected[name])


def test_edge_removal_is_off_unless_it_is_asked_for() -> None:
    images = torch.randn(1, 3, 64, 64)
    still = RandWireBackbone(NAME, norm='FrozenBN').train()
    assert torch.equal(still(images)['res5'], still(images)['res5'])
    removing = RandWireBackbone(NAME, norm='FrozenBN', drop_path_rate=1.0).train()
    with torch.no_grad():
        assert len({round(removing(images)['res5'].sum().item(), 3) for _ in range(20)}) > 1


def test_no_edge_is_removed_in_a_frozen_stage_whatever_becomes_of_its_mode() -> None:
    images = torch.randn(1, 3, 64, 64)
    still = RandWireBackbone(NAME, FEATURES, freeze_at=4)
    removing = RandWireBackbone(NAME, FEATURES, freeze_at=4, drop_path_rate=1.0)
    removing.load_state_dict(still.state_dict())
    removing.freeze(2)
    modes = [False] * 4 + [True]
    assert [getattr(removing, f'conv{i}').training for i in range(1, 6)] == modes  # before any train()
    detector = nn.Sequential(removing)
    copies = [removing, copy.deepcopy(detector.eval())[0].train(), pickle.loads(pickle.dumps(removing)).train(),
              detector.train()[0]]
    with torch.no_grad():
        expected = still.train()(images)
        for backbone in copies:
            assert [getattr(backbone, f'conv{i}').training for i in range(1, 6)] == modes
            outputs = [backbone(images) for _ in range(10)]
            for name in FEATURES[:4]:
                assert all(torch.equal(output[name], expected[name]) for output in outputs), name
            assert len({round(output['res5'].sum().item(), 3) for output in outputs}) > 1
    assert not any(module.training for module in removing.eval().modules())
    sum(output.sum() for output in removing.train()(images).values()).backward()
    assert all((parameter.grad is None) == (int(name[4]) <= 4) for name, parameter in removing.named_parameters())


def test_a_whole_detector_trains_and_detects() -> None:
    cfg = config(f'build_{NAME}_fpn_backbone', 'MODEL.RESNETS.NORM', 'BN', 'MODEL.BACKBONE.FREEZE_AT', 0)
    cfg.merge_from_list([
        'MODEL.META_ARCHITECTURE', 'GeneralizedRCNN', 'MODEL.RPN.IN_FEATURES', ['p2', 'p3', 'p4', 'p5', 'p6'],
        'MODEL.ANCHOR_GENERATOR.SIZES', [[16], [32], [64], [128], [256]], 'MODEL.ROI_HEADS.NAME', 'StandardROIHeads',
        'MODEL.ROI_HEADS.IN_FEATURES', ['p2', 'p3', 'p4', 'p5'], 'MODEL.ROI_BOX_HEAD.NAME', 'FastRCNNConvFCHead',
        'MODEL.ROI_BOX_HEAD.NUM_FC', 1, 'MODEL.ROI_BOX_HEAD.FC_DIM', 32])
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    detector = build_model(cfg).train()
    truth = Instances((64, 64))
    truth.gt_boxes, truth.gt_classes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]])), torch.tensor([3])
    with EventStorage():
        losses = detector([{'image': torch.rand(3, 64, 64) * 255, 'instances': truth}])
    sum(losses.values()).backward()
    body = [p for n, p in detector.named_parameters() if 'bottom_up' in n]
    assert body and all(parameter.grad is not None for parameter in body)
    assert 'instances' in detector.eval()([{'image': torch.rand(3, 64, 64) * 255}])[0]
    assert not [m for m in detector.modules() if isinstance(m, FrozenBatchNorm2d)]
