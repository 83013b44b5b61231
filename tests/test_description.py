"""The description of a trained network, against what timm itself makes of the same settings."""
from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import yaml
from timm.data import resolve_data_config
from timm.utils import CheckpointSaver

import randwire_zoo  # noqa: F401  (registers the names)
from randwire_zoo.models import PublishedCfg
from randwire_zoo.training.recipes import DEFAULTS, load_recipe, recipe_names
from randwire_zoo.weights.description import Description, build_model, read_settings

NETWORK: dict[str, Any] = {'graph': 'ws(2,0.5)', 'channels': 4, 'num_nodes': 4}
SETTINGS: dict[str, Any] = {'model': 'randwire', 'model_kwargs': NETWORK, 'num_classes': 3, 'img_size': 32}


def as_train_py(settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model and the data configuration that train.py makes of its arguments, in its own words."""
    args = argparse.Namespace(**{**DEFAULTS, **settings})
    in_chans = 3
    if args.in_chans is not None:
        in_chans = args.in_chans
    elif args.input_size is not None:
        in_chans = args.input_size[0]
    model = timm.create_model(
        args.model, in_chans=in_chans, num_classes=args.num_classes, drop_rate=args.drop, drop_path_rate=args.drop_path,
        global_pool=args.gp, **args.model_kwargs)
    return model, resolve_data_config(vars(args), model=model)


@pytest.mark.parametrize('change', [
    {},
    {'gp': 'max', 'img_size': 96},
    {'gp': 'avgmax', 'drop': 0.2, 'drop_path': 0.1, 'img_size': 96},
    {'in_chans': 1, 'mean': [0.5], 'std': [0.25]},
    {'img_size': None, 'input_size': [1, 34, 30], 'mean': [0.1307], 'std': [0.3081]},
    {'mean': [0.4], 'std': [0.2], 'interpolation': 'bicubic', 'crop_pct': 0.9},
    {'model_kwargs': {**NETWORK, 'stem_stride': 2, 'node_op': 'max_pool', 'seed': 2}},
    {'num_classes': None},
    {'model': 'randwire_ws_pico', 'model_kwargs': {}, 'num_classes': None, 'img_size': None},
    {'model': 'randwire_ws_pico.digits', 'model_kwargs': {}, 'num_classes': 4},
    {'model': 'resnet18', 'model_kwargs': {}, 'in_chans': 2},
], ids=str)
def test_settings_give_the_network_and_the_data_configuration_of_train_py(change: dict[str, Any]) -> None:
    settings = {**SETTINGS, **change}
    theirs, config = as_train_py(settings)
    description = Description.from_settings({**DEFAULTS, **settings})
    ours = description.create_model()
    assert ours.load_state_dict(theirs.state_dict()).missing_keys == []
    channels = description.input_size[0]
    for key in ('mean', 'std'):
        if len(config[key]) != channels:  # timm's loader averages them, here the description has done it
            config[key] = pytest.approx((sum(config[key]) / len(config[key]),) * channels)
    assert description.data_config() == config
    images = torch.randn(2, *description.input_size)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=0, atol=0)
    assert resolve_data_config(model=ours) == description.data_config(), 'the model itself says how it is fed'


def test_every_argument_that_decides_the_network_is_described_and_none_of_where_weights_lie() -> None:
    given = {'num_classes': 3, 'in_chans': 2, 'gp': 'max', 'drop': 0.1, 'drop_path': 0.2, 'drop_block': 0.3,
             'bn_momentum': 0.4, 'bn_eps': 0.5}
    settings = {'model': 'resnet18', **given, 'mean': [0.5, 0.25], 'std': [1.0], 'crop_mode': 'squash',
                'model_kwargs': {'zero_init_last': True, 'act_layer': None, 'pretrained_cfg': {'url': 'x'},
                                 'pretrained_cfg_overlay': {'file': 'y'}}}
    description = Description.from_settings(settings)
    assert description.architecture == 'resnet18' and description.arguments == {
        'num_classes': 3, 'in_chans': 2, 'global_pool': 'max', 'drop_rate': 0.1, 'drop_path_rate': 0.2,
        'drop_block_rate': 0.3, 'bn_momentum': 0.4, 'bn_eps': 0.5, 'zero_init_last': True}
    assert (description.mean, description.std, description.crop_mode) == ((0.5, 0.25), (1.0, 1.0), 'center')
    assert Description.from_settings(settings, for_training=False).crop_mode == 'squash'
    assert Description.from_settings({'model': 'resnet18.a1_in1k'}, for_training=False).input_size == (3, 288, 288)
    assert Description.from_settings({'model': 'resnet18.a1_in1k'}).input_size == (3, 224, 224)
    assert Description.from_settings({'model': 'resnet18', 'model_kwargs': {'in_chans': 2}}).input_size[0] == 2
    overlay = {'pretrained_cfg_overlay': {'crop_pct': 0.5}}
    assert Description.from_settings({'model': 'resnet18', 'model_kwargs': overlay}).crop_pct == 0.5
    assert Description.from_settings({'model': 'resnet18', 'model_kwargs': None}).arguments == {
        'num_classes': 1000, 'in_chans': 3}


def test_settings_change_what_they_name_and_nothing_else() -> None:
    network = Description('resnet18', {'num_classes': 3, 'in_chans': 3, 'drop_rate': 0.1}, (3, 32, 48), (0.1, 0.2, 0.3),
                          (0.4, 0.5, 0.6), 'bicubic', 0.9, 'squash', ('a', 'b', 'c'))
    assert network.with_settings({}) == network == network.with_settings({'mean': None, 'model': 'x', 'crop_pct': None})
    for settings, changed in (
            ({'img_size': 64}, {'input_size': (3, 64, 64)}), ({'input_size': (3, 8, 16)}, {'input_size': (3, 8, 16)}),
            ({'mean': [0.5], 'std': [0.25]}, {'mean': (0.5,) * 3, 'std': (0.25,) * 3}),
            ({'mean': [0.3, 0.2, 0.1]}, {'mean': (0.3, 0.2, 0.1)}),
            ({'interpolation': 'nearest'}, {'interpolation': 'nearest'}),
            ({'crop_pct': 1.0, 'crop_mode': 'border'}, {'crop_pct': 1.0, 'crop_mode': 'border'}),
            ({'drop': 0.3, 'gp': 'max', 'model_kwargs': {'width': 2}}, {'arguments': {
                **network.arguments, 'drop_rate': 0.3, 'global_pool': 'max', 'width': 2}}),
            ({'in_chans': 1, 'mean': [0.5], 'std': [0.25]}, {
                'arguments': {**network.arguments, 'in_chans': 1}, 'input_size': (1, 32, 48), 'mean': (0.5,),
                'std': (0.25,)}),
            ({'input_size': (1, 8, 8), 'mean': [0.5], 'std': [0.25]}, {
                'arguments': {**network.arguments, 'in_chans': 1}, 'input_size': (1, 8, 8), 'mean': (0.5,),
                'std': (0.25,)})):
        assert network.with_settings(settings) == replace(network, **changed), settings
    with pytest.raises(ValueError, match='mean must be a number for each of the 1 channels'):
        network.with_settings({'in_chans': 1})
    with pytest.raises(ValueError, match=r'mean must be a list, got 0\.5'):
        network.with_settings({'mean': 0.5})


def test_a_network_is_fed_as_described_and_an_argument_that_is_none_is_named_with_the_nearest() -> None:
    network = Description('randwire', NETWORK, (3, 32, 40), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 'bicubic', 0.9, 'border')
    model = network.create_model(num_classes=4, in_chans=3)
    assert model.num_classes == 4 and {**model.pretrained_cfg, **network.data_config()} == model.pretrained_cfg
    assert model.pretrained_cfg['first_conv'] == 'conv1.conv'
    assert network.create_model('resnet10t', **dict.fromkeys(NETWORK)).pretrained_cfg['architecture'] == 'resnet10t'
    hint = r"(; did you mean channels\?|\. Did you mean 'channels'\?)"  # ours, or Python's from 3.13 on
    with pytest.raises(ValueError, match=rf"^cannot create the model 'randwire': .* argument 'chanels'{hint}$"):
        build_model('randwire', chanels=3)
    with pytest.raises(ValueError, match=rf"^cannot create the model 'resnet10t': .* argument 'chanels'{hint}?$"):
        build_model('resnet10t', chanels=3)
    with pytest.raises(ValueError, match=r"^cannot create the model 'no': Unknown model \(no\)"):
        build_model('no')


@pytest.mark.parametrize('name', recipe_names())
def test_every_shipped_recipe_has_a_description_that_json_keeps(name: str) -> None:
    description = Description.from_settings({**DEFAULTS, **load_recipe(name)})
    assert Description.from_dict(json.loads(json.dumps(description.to_dict()))) == description
    assert description.arguments['num_classes'] and None not in description.arguments.values()


def test_a_folder_of_timms_hub_format_is_described_by_what_lies_in_it(tmp_path: Path) -> None:
    model = build_model('randwire', num_classes=3, in_chans=1, stem_stride=2, **NETWORK)
    timm.models.save_for_hf(model, str(tmp_path), model_args={**NETWORK, 'stem_stride': 2, 'in_chans': 1},
                            model_config={'pretrained_cfg': {'tag': 'x', 'mean': [0.1], 'std': [0.2],
                                                             'input_size': [1, 32, 32], 'crop_pct': 1.0}})
    description = Description.from_settings({'model': f'local-dir:{tmp_path}', 'in_chans': 1})
    assert description.architecture == 'randwire' and description.arguments['stem_stride'] == 2
    assert (description.input_size, description.mean, description.crop_pct) == ((1, 32, 32), (0.1,), 1.0)
    # train.py makes a network of three channels of it, unless it is told; an evaluation takes it as it is.
    assert Description.from_settings({'model': f'local-dir:{tmp_path}'}).input_size[0] == 3
    assert Description.from_settings({'model': f'local-dir:{tmp_path}'}, for_training=False) == description
    again = description.create_model(f'local-dir:{tmp_path}', pretrained=True)
    torch.testing.assert_close(again.state_dict()['fc.weight'], model.state_dict()['fc.weight'], rtol=0, atol=0)


@pytest.mark.parametrize(('settings', 'stride', 'tag'), [
    ({'model': 'randwire_ws_pico.mine'}, 2, 'mine'), ({'model': 'randwire_ws_pico', 'pretrained': True}, 2, 'digits'),
    ({'model': 'randwire_ws_pico'}, None, None),
    ({'model': 'randwire_ws_pico.mine', 'model_kwargs': {'stem_stride': 1}}, 1, 'mine'),
], ids=str)
def test_published_weights_bring_the_arguments_of_their_network(
        settings: dict[str, Any], stride: int | None, tag: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = PublishedCfg(architecture='randwire_ws_pico', num_classes=7, model_args={'stem_stride': 2})
    asked: list[Any] = []

    def resolve(name: str, pretrained_cfg: str | None = None, **kwargs: Any) -> PublishedCfg:
        asked.append(pretrained_cfg)
        return cfg

    monkeypatch.setattr('timm.models.resolve_pretrained_cfg', resolve)
    arguments = Description.from_settings(settings).arguments
    assert asked == [tag]
    assert arguments.get('stem_stride') == stride and arguments['num_classes'] == 7


@pytest.mark.parametrize('elsewhere', [
    {'pretrained_path': 'mine.pth'}, {'model_kwargs': {'pretrained_cfg_overlay': {'file': 'mine.pth'}}}], ids=str)
def test_weights_from_elsewhere_bring_nothing_of_the_published_ones(elsewhere: dict[str, Any]) -> None:
    name = {'model': 'randwire_ws_small_s1', 'pretrained': True}
    description = Description.from_settings({**name, **elsewhere})
    assert description == Description.from_settings({**name, 'pretrained': False})
    assert description != Description.from_settings(name)


def test_a_checkpoint_of_train_py_is_described_by_the_arguments_in_it_or_beside_it(tmp_path: Path) -> None:
    settings = {**SETTINGS, 'gp': 'max', 'mean': [0.1, 0.2, 0.3]}
    args = argparse.Namespace(**{**DEFAULTS, **settings})
    model = Description.from_settings(settings).create_model()
    saver = CheckpointSaver(model, torch.optim.SGD(model.parameters(), 0.1), args, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0, 1.0)
    inside = Description.from_checkpoint(tmp_path / 'last.pth.tar')
    assert inside == Description.from_settings({**DEFAULTS, **settings})

    recorded = replace(inside, label_names=('a', 'b', 'c'))
    args.description = recorded.to_dict()
    saver.save_checkpoint(1, 1.0)
    assert Description.from_checkpoint(tmp_path / 'last.pth.tar') == recorded
    del args.description
    saver.save_checkpoint(2, 1.0)

    safetensors.torch.save_file(model.state_dict(), tmp_path / 'weights.safetensors')
    with pytest.raises(ValueError, match=r'weights\.safetensors holds no settings .* no args\.yaml beside it'):
        read_settings(tmp_path / 'weights.safetensors')
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump({**settings, 'gp': 'avgmax'}))
    assert Description.from_checkpoint(tmp_path / 'weights.safetensors').arguments['global_pool'] == 'avgmax'
    assert Description.from_checkpoint(tmp_path / 'last.pth.tar') == inside, 'what ran counts, not what lies beside it'
    with pytest.raises(FileNotFoundError, match='nothing'):
        Description.from_checkpoint(tmp_path / 'nothing.pth.tar')
    (tmp_path / 'args.yaml').write_text('- model')
    with pytest.raises(ValueError, match=r'args\.yaml holds no settings of a training$'):
        read_settings(tmp_path / 'weights.safetensors')
    (tmp_path / 'args.yaml').write_text('num_classes: 3')
    with pytest.raises(ValueError, match=r'weights\.safetensors: the settings name no model$'):
        Description.from_checkpoint(tmp_path / 'weights.safetensors')


@pytest.mark.parametrize(('change', 'message'), [
    ({'model': None}, 'name no model'),
    ({'model': 'randwire_huge'}, 'Unknown model'),
    ({'model': 'resnet18.no_such_tag'}, 'no_such_tag'),
    ({'model_kwargs': ['seed=1']}, 'model_kwargs must be a mapping'),
    ({'model_kwargs': {**NETWORK, 'num_classes': 4}}, 'num_classes is given twice, as num_classes: 3'),
    ({'model_kwargs': {**NETWORK, 'global_pool': 'avg'}, 'gp': 'max'}, "as gp: 'max' and in model_kwargs: 'avg'"),
    ({'model_kwargs': {**NETWORK, 'graph': object()}}, 'the argument graph must be text'),
    ({'mean': [0.1, 0.2]}, 'mean must be one number or one for each of the 3 channels'),
    ({'std': [0.0]}, 'std must be above 0'),
    ({'in_chans': 1, 'input_size': [3, 32, 32]}, 'input_size has 3 channels, but in_chans is 1'),
])
def test_settings_that_contradict_themselves_are_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Description.from_settings({**SETTINGS, **change})
    assert message in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(('change', 'message'), [
    ({'architecture': 3}, 'architecture must be text, got 3'),
    ({'arguments': []}, 'arguments must be a mapping'),
    ({'arguments': {'drop_rate': float('nan')}}, 'the argument drop_rate must be'),
    ({'arguments': {'in_chans': 1}}, 'input_size has 3 channels, but in_chans is 1'),
    ({'input_size': [3, 32]}, 'input_size must be three positive integers'),
    ({'input_size': [3, 32, True]}, 'input_size must be three positive integers'),
    ({'input_size': None}, 'input_size must be a list, got None'),
    ({'mean': [0.5]}, 'mean must be a number for each of the 3 channels'),
    ({'mean': ['0.5'] * 3}, 'mean must be a number for each'),
    ({'std': [0.1, 0.1, -0.1]}, 'std must be above 0'),
    ({'interpolation': ''}, "interpolation must be text, got ''"),
    ({'crop_pct': '0.9'}, "crop_pct must be a number above 0, got '0.9'"),
    ({'crop_mode': 'middle'}, "crop_mode must be one of 'center', 'squash', 'border', got 'middle'"),
    ({'label_names': [1]}, 'label_names must be texts'),
    ({'label_names': 'abc'}, "label_names must be a list, got 'abc'"),
    ({'colour': 1}, 'a description has no colour'),
])
def test_a_description_is_checked_by_types(change: dict[str, Any], message: str) -> None:
    good = Description.from_settings(SETTINGS).to_dict()
    with pytest.raises(ValueError) as error:
        Description.from_dict({**good, **change})
    assert message in str(error.value) and '\n' not in str(error.value)
    least = {key: value for key, value in good.items() if key not in ('crop_mode', 'label_names')}
    assert Description.from_dict(least) == Description.from_settings(SETTINGS)
    del good['mean']
    with pytest.raises(ValueError, match='the description lacks mean'):
        Description.from_dict(good)
