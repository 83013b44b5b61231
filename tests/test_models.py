"""The registered names as timm models, their golden files, and the paper's figures."""
from __future__ import annotations

import copy
import io
import itertools
import json
import pickle
import statistics
import warnings
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from make_golden import COMPLEXITY as COMPLEXITY_FILE
from make_golden import PARAMETERS as PARAMETERS_FILE
from make_golden import digest, measure, tensors_of
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf
from timm.optim import create_optimizer_v2
from timm.utils.model import freeze_batch_norm_2d
from torch import nn

from randwire_zoo import models
from randwire_zoo.complexity import count_complexity
from randwire_zoo.frozen import load_graphs
from randwire_zoo.graphs import Graph, graphs_sha256
from randwire_zoo.models import ARCHITECTURES, WEIGHTS, Architecture
from randwire_zoo.network import NODE_OPS, Stage
from randwire_zoo.training.recipes import load_recipe
from randwire_zoo.weights.manifest import PACKAGED, PublishedWeights, read_manifest

PICO = 'randwire_ws_pico'
SMALL = 'randwire_ws_small_s1'
PARAMETERS: dict[str, Any] = json.loads(PARAMETERS_FILE.read_text(encoding='utf-8'))
COMPLEXITY: dict[str, Any] = json.loads(COMPLEXITY_FILE.read_text(encoding='utf-8'))


def pico(**kwargs: Any) -> nn.Module:
    return timm.create_model(PICO, **kwargs).eval()


# Golden files


@cache
def measured(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return measure(name)


def test_the_golden_files_hold_every_registered_name() -> None:
    assert list(PARAMETERS) == list(COMPLEXITY) == list(ARCHITECTURES)


@pytest.mark.parametrize('name', [PICO, 'randwire_er_small_s2', 'randwire_ws_c109'])
def test_names_shapes_and_figures_are_those_of_the_golden_files(name: str) -> None:
    parameters, complexity = measured(name)
    assert parameters == PARAMETERS[name]
    assert complexity == COMPLEXITY[name]


@pytest.mark.parametrize('name', sorted(ARCHITECTURES))
def test_every_name_has_the_parameters_of_the_golden_file(name: str) -> None:
    tensors = tensors_of(timm.create_model(name, device='meta'))
    assert (len(tensors), digest(tensors)) == (PARAMETERS[name]['count'], PARAMETERS[name]['sha256'])


def closed_formula(architecture: Architecture, graphs: tuple[Graph, ...], size: int, classes: int) -> tuple[int, ...]:
    """Params, multiply-adds and activations by hand from Table 1: (9·in + in·out) per node and position, and so on."""
    c, params, macs, activations = architecture.channels, 0, 0, 0

    def convolution(weights: int, channels: int, positions: int, bn: bool = True) -> None:
        nonlocal params, macs, activations
        params += weights + 2 * channels * bn
        macs += weights * positions
        activations += channels * positions

    convolution(9 * 3 * (c // 2), c // 2, (size // 2) ** 2)
    width, side = c // 2, size // 2
    if architecture.regime == 'small':
        side //= 2
        convolution(9 * width * c, c, side ** 2)
        width = c
    for stage, graph in enumerate(graphs):
        out, side = c * 2 ** stage, side // 2
        for sources in graph.predecessors:
            in_chs = out if sources else width
            convolution(9 * in_chs, in_chs, side ** 2, bn=False)
            convolution(in_chs * out, out, side ** 2)
            params += len(sources) if len(sources) > 1 else 0
        width = out
    convolution(width * 1280, 1280, side ** 2)
    return params + 1280 * classes + classes, macs + 1280 * classes, activations


@pytest.mark.parametrize('name', sorted(ARCHITECTURES))
def test_the_golden_figures_follow_from_table_1_by_hand(name: str) -> None:
    golden = COMPLEXITY[name]
    assert golden['graphs_sha256'] == graphs_sha256(load_graphs(name))
    classes = 10 if name == PICO else 1000
    sizes = [size for size in golden if size.isdigit()]
    assert sizes == ['64'] if name == PICO else sizes == ['224', '320'] if 'c154' in name else sizes == ['224']
    for size in sizes:
        params, macs, activations = closed_formula(ARCHITECTURES[name], load_graphs(name), int(size), classes)
        assert (golden['params'], golden[size]) == (params, {'macs': macs, 'activations': activations})


@pytest.mark.parametrize(('prefix', 'size', 'figure', 'mean', 'deviation'), [
    ('randwire_ws_small', '224', 'params', 5.6e6, 0.1e6),
    ('randwire_ws_small', '224', 'macs', 583e6, 6.2e6),
    ('randwire_ws_c109', '224', 'params', 31.9e6, 0.66e6),
    ('randwire_ws_c109', '224', 'macs', 4.0e9, 0.09e9),
    ('randwire_ws_c154', '224', 'params', 61.5e6, 1.32e6),
    ('randwire_ws_c154', '224', 'macs', 7.9e9, 0.18e9),
    ('randwire_ws_c154', '320', 'macs', 16.0e9, 0.36e9),
])
def test_the_mean_of_seeds_1_to_5_lies_within_one_deviation_of_the_papers(
        prefix: str, size: str, figure: str, mean: float, deviation: float) -> None:
    golden = [COMPLEXITY[name] for name in ARCHITECTURES if name.startswith(prefix)]
    assert len(golden) == 5
    ours = statistics.mean(entry[figure] if figure == 'params' else entry[size][figure] for entry in golden)
    assert abs(ours - mean) < deviation


@pytest.mark.parametrize('node_op', NODE_OPS)
def test_counting_leaves_the_model_as_it_was(node_op: str) -> None:
    model = timm.create_model('randwire', num_nodes=5, channels=2, node_op=node_op, num_classes=3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    complexity = count_complexity(model, (3, 32, 32))
    assert complexity.params == sum(parameter.numel() for parameter in model.parameters())
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Registry


def test_timm_lists_every_name_with_its_tags_and_the_papers_network_is_the_default() -> None:
    assert set(timm.list_models('randwire*')) == {'randwire', *ARCHITECTURES}
    tags = {name if '.' in name else f'{name}.' for name in timm.list_models('randwire*', include_tags=True)}
    published = read_manifest(PACKAGED)
    assert tags == {*published, *(f'{name}.untrained' for name in ('randwire', *ARCHITECTURES) if name != PICO)}
    for name in ARCHITECTURES:
        cfg: Any = timm.get_pretrained_cfg(name)
        assert (cfg.tag, cfg.num_classes, cfg.input_size) == (
            ('digits', 10, (3, 64, 64)) if name == PICO else ('untrained', 1000, (3, 224, 224)))
    assert timm.list_models('randwire*', module='models') == timm.list_models('randwire*')


def test_a_name_reads_its_frozen_graphs_whatever_the_global_seed() -> None:
    import random

    for seed in (1, 2):
        random.seed(seed)
        torch.manual_seed(seed)
        assert timm.create_model(PICO, device='meta').graphs == load_graphs(PICO)
        [a, b] = (timm.create_model('randwire', device='meta', num_nodes=8, seed=s).graphs for s in (7, 8))
        assert a != b


def test_the_open_entry_point_makes_the_registered_networks_too() -> None:
    ours = timm.create_model('randwire', graph='ws(4,0.75)', seed=1, channels=24, num_nodes=8, device='meta')
    assert ours.graphs == load_graphs(PICO)
    assert tensors_of(ours.conv3) == tensors_of(timm.create_model(PICO, device='meta').conv3)


@pytest.mark.parametrize('name', ['randwire', *ARCHITECTURES])
def test_a_name_documents_itself_and_its_paper(name: str) -> None:
    cfg = timm.get_pretrained_cfg(name)
    assert cfg.paper_ids == 'arXiv:1904.01569' and cfg.license == 'apache-2.0'
    assert 'Randomly Wired' in cfg.paper_name and cfg.origin_url
    doc = timm.model_entrypoint(name).__doc__
    assert doc and (name == 'randwire' or f'C = {ARCHITECTURES[name].channels}' in doc)


@pytest.mark.parametrize('name, recipe', [
    ('randwire_ba_small_s5', 'tin200/randwire_ws_small_s1 --model randwire_ba_small_s5'),
    ('randwire_ws_c154', 'tin200/randwire_ws_c109 --model randwire_ws_c154')])
def test_a_name_without_weights_says_which_have_some_and_how_to_train_it(name: str, recipe: str) -> None:
    assert name not in timm.list_models(pretrained=True)
    with pytest.raises(RuntimeError, match=(
            rf'^No pretrained weights exist for {name}; there are .*randwire_ws_pico\.digits.*'
            rf'or train it: randwire-zoo train -c {recipe}$')):
        timm.create_model(name, pretrained=True, device='meta')
    assert load_recipe(recipe.split()[0])['epochs'] and name in ARCHITECTURES


def test_an_unknown_tag_is_no_weights() -> None:
    with pytest.raises(RuntimeError, match='Invalid pretrained tag'):
        timm.create_model('randwire_ws_small_s1.in1k', device='meta')


@pytest.mark.parametrize('name', ['randwire', PICO])
def test_an_unknown_argument_raises_a_type_error(name: str) -> None:
    with pytest.raises(TypeError, match='not_an_argument'):
        timm.create_model(name, not_an_argument=1, device='meta')


def test_arguments_survive_the_hubs_json(tmp_path: Path) -> None:
    arguments = {'graph': 'ba(2)', 'seed': 3, 'channels': 3, 'num_nodes': 5, 'node_op': 'max_pool', 'stem_stride': 2}
    model = timm.create_model('randwire', num_classes=4, drop_rate=0.3, drop_path_rate=0.2, **arguments).eval()
    save_for_hf(model, tmp_path)
    restored = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert restored.graphs == model.graphs
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(restored(x), model(x))
    # How a network was trained is no part of what it is.
    assert restored.drop_rate == restored.drop_path_rate == 0
    assert not any(stage.drop_path_rate for stage in restored.children() if isinstance(stage, Stage))


# Features


@pytest.mark.parametrize('feature_cls', ['getter', 'list', None])
@pytest.mark.parametrize('name', [PICO, 'randwire_ws_c109'])
def test_features_have_the_reductions_that_decoders_expect(name: str, feature_cls: str | None) -> None:
    kwargs = {'feature_cls': feature_cls} if feature_cls else {}
    features = timm.create_model(name, features_only=True, device='meta', **kwargs).eval()
    c = ARCHITECTURES[name].channels
    widths = [c // 2, c, c, 2 * c, 4 * c] if name == PICO else [c // 2, c, 2 * c, 4 * c, 8 * c]
    assert features.feature_info.channels() == widths
    assert features.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert features.feature_info.module_name() == ['conv1', 'conv2', 'conv3', 'conv4', 'conv5']
    outputs = features(torch.empty(1, 3, 64, 96, device='meta'))
    assert [tuple(out.shape) for out in outputs] == [
        (1, width, 64 // r, 96 // r) for width, r in zip(widths, (2, 4, 8, 16, 32), strict=True)]


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3, 4), (2, 4), (0,), (-2, -1)])
def test_both_wrappers_give_the_networks_own_intermediates(out_indices: tuple[int, ...]) -> None:
    model = pico()
    x = torch.randn(2, 3, 64, 64)
    expected = model.forward_intermediates(x, indices=list(out_indices), intermediates_only=True)
    for feature_cls in ('getter', 'list'):
        features = pico(features_only=True, out_indices=out_indices, feature_cls=feature_cls)
        names = features.state_dict().keys()
        own = {name: tensor for name, tensor in model.state_dict().items()}
        features.load_state_dict({name: own[name.removeprefix('model.')] for name in names})
        torch.testing.assert_close(features(x), expected)


def test_a_callers_feature_cfg_is_merged_with_ours() -> None:
    features = timm.create_model(PICO, features_only=True, feature_cfg={'out_indices': (1, 3)}, device='meta')
    assert features.feature_info.reduction() == [4, 16]
    features = timm.create_model(PICO, features_only=True, feature_cfg={'feature_cls': 'list'}, device='meta')
    assert features.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert type(features).__name__ == 'FeatureListNet'


def test_intermediates_are_counted_from_the_last_and_end_with_the_unpooled_features() -> None:
    model = pico()
    x = torch.randn(1, 3, 64, 64)
    final, last_two = model.forward_intermediates(x, indices=2)
    everything = model.forward_intermediates(x, intermediates_only=True)
    assert torch.equal(final, model.forward_features(x)) and final.shape == (1, 1280, 2, 2)
    assert [torch.equal(a, b) for a, b in zip(last_two, everything[3:], strict=True)] == [True, True]
    with pytest.raises(AssertionError):
        model.forward_intermediates(x, output_fmt='NLC')


def test_stopping_early_runs_no_stage_beyond_the_last_that_is_asked_for() -> None:
    model = pico()
    model.conv4.register_forward_hook(lambda *args: pytest.fail('conv4 has run'))
    model.forward_intermediates(torch.randn(1, 3, 64, 64), indices=[0, 2], stop_early=True)


@pytest.mark.parametrize('index', range(5))
def test_pruning_leaves_what_the_feature_needs_and_nothing_without_a_gradient(index: int) -> None:
    model = pico(drop_path_rate=1.0)
    x = torch.randn(2, 3, 64, 64)
    expected = model.forward_intermediates(x, indices=[index], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([index], prune_norm=True) == [index]
    assert torch.equal(model.forward_features(x), expected)
    assert model.num_features == model.head_hidden_size == expected.shape[1]
    model.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# Head and stem


@pytest.mark.parametrize('global_pool', ['avg', 'max', 'avgmax', 'catavgmax', 'fast', 'fastavg', 'fastmax'])
def test_every_pooling_of_timm_fits_the_classifier(global_pool: str) -> None:
    model = pico(global_pool=global_pool, num_classes=7)
    width = 2560 if global_pool == 'catavgmax' else 1280
    x = torch.randn(2, 3, 64, 64)
    features = model.forward_features(x)
    assert model.forward_head(features, pre_logits=True).shape == (2, width)
    assert model.head_hidden_size == width and model(x).shape == (2, 7)
    pooled = {'max': features.amax((2, 3)), 'fastmax': features.amax((2, 3)), 'avgmax': (
        features.amax((2, 3)) + features.mean((2, 3))) / 2}.get(global_pool, features.mean((2, 3)))
    torch.testing.assert_close(model.forward_head(features, pre_logits=True)[:, -1280:], (
        features.amax((2, 3)) if global_pool == 'catavgmax' else pooled))


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_pooling_hands_back_a_gradient_in_the_format_of_the_features(memory_format: torch.memory_format) -> None:
    model = pico(num_classes=0).train()
    features = torch.randn(2, 1280, 3, 2).contiguous(memory_format=memory_format)
    seen = []
    for pool in (model.global_pool, torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(1))):
        x = features.clone().requires_grad_()
        arrived: list[torch.Tensor] = []
        x.register_hook(arrived.append)
        pooled = pool(x)
        pooled.backward(torch.linspace(0, 1, pooled.numel()).view_as(pooled))
        seen.append((pooled.detach(), arrived[0]))
    (ours, gradient), (theirs, their_gradient) = seen
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient, their_gradient)
    assert gradient.is_contiguous(memory_format=memory_format)


def test_without_pooling_and_classifier_the_network_gives_its_feature_map() -> None:
    model = pico(num_classes=0, global_pool='')
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(x), model.forward_features(x)) and model(x).shape == (1, 1280, 2, 2)


def test_resetting_the_classifier_keeps_pooling_mode_and_place() -> None:
    model = pico(global_pool='max', dtype=torch.float64)
    model.reset_classifier(3)
    assert model.global_pool.pool_type == 'max' and model.num_classes == 3
    assert model.get_classifier() is model.fc and model.fc.weight.dtype == torch.float64
    assert not model.fc.training and model.fc.weight.shape == (3, 1280)
    assert 0.005 < model.fc.weight.std() < 0.02
    model.reset_classifier(0, 'catavgmax')
    assert isinstance(model.get_classifier(), nn.Identity) and model.head_hidden_size == 2560
    with pytest.raises(ValueError, match=r"global_pool must be one of .* got 'sum'"):
        model.reset_classifier(3, 'sum')


@pytest.mark.parametrize('in_chans', [1, 4])
def test_images_may_have_any_number_of_channels(in_chans: int) -> None:
    model = pico(in_chans=in_chans)
    assert model.in_chans == in_chans and model(torch.randn(1, in_chans, 32, 32)).shape == (1, 10)
    assert model.get_submodule(model.pretrained_cfg['first_conv']).weight.shape[1] == in_chans


# Devices, copies, training tools


@pytest.mark.parametrize('name', ['randwire', 'randwire_ws_c154_s5'])
def test_a_network_on_the_meta_device_has_no_real_tensor(name: str) -> None:
    model = timm.create_model(name, device='meta', dtype=torch.bfloat16)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(name in module._non_persistent_buffers_set
                   for module in model.modules() for name in module._buffers)


def test_a_network_made_on_meta_and_initialised_later_is_whole() -> None:
    model = timm.create_model(PICO, device='meta').to_empty(device='cpu')
    model.init_weights()
    assert all(tensor.isfinite().all() for tensor in (*model.parameters(), *model.buffers()))
    torch.manual_seed(0)
    model.init_weights()
    again = timm.create_model(PICO)
    torch.manual_seed(0)
    again.init_weights()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize('copying', ['deepcopy', 'pickle', 'torch.save'])
def test_copies_compute_the_same(copying: str) -> None:
    model = pico(drop_path_rate=0.1)
    if copying == 'deepcopy':
        other = copy.deepcopy(model)
    elif copying == 'pickle':
        other = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        buffer.seek(0)
        other = pico()
        other.load_state_dict(torch.load(buffer, weights_only=True))
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(other(x), model(x)) and other.graphs == model.graphs


def test_low_precision_and_channels_last_give_nearly_the_same() -> None:
    model = pico()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)
        with torch.autocast('cpu', torch.bfloat16):
            autocast = model(x)
        scale = expected.abs().max().item()
        torch.testing.assert_close(autocast.float(), expected, rtol=0, atol=0.05 * scale)
        torch.testing.assert_close(
            model.to(torch.bfloat16)(x.bfloat16()).float(), expected, rtol=0, atol=0.05 * scale)


def test_training_under_autocast_reaches_every_parameter() -> None:
    model = pico(drop_path_rate=1.0).train()
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(torch.randn(2, 3, 64, 64)).float().square().sum()
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_batch_norm_can_be_frozen_stage_by_stage() -> None:
    model = freeze_batch_norm_2d(pico())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    x = torch.randn(2, 3, 64, 64)
    reference = pico()
    reference.load_state_dict({**reference.state_dict(), **model.state_dict()})
    torch.testing.assert_close(model(x), reference(x), rtol=1e-3, atol=1e-4)
    partly = pico()
    partly.conv1 = freeze_batch_norm_2d(partly.conv1)
    assert not isinstance(partly.conv1.bn, nn.BatchNorm2d)
    assert isinstance(partly.conv3.nodes[0].bn, nn.BatchNorm2d)


def test_layer_decay_lowers_the_rate_from_the_head_to_the_stem_stage_by_stage() -> None:
    model = pico()
    optimizer = create_optimizer_v2(model, opt='sgd', lr=1.0, weight_decay=0.1, layer_decay=0.5)
    scale, decay = {}, {}
    for group in optimizer.param_groups:
        for parameter in group['params']:
            scale[parameter], decay[parameter] = group['lr_scale'], group['weight_decay']
    named = dict(model.named_parameters())
    assert set(scale) == set(named.values())
    order = ['conv1.conv.weight', 'conv2.conv.weight', 'conv3.nodes.0.conv_dw.weight', 'conv4.nodes.5.conv_pw.weight',
             'conv5.nodes.3.conv_pw.weight', 'fc.weight']
    rates = [scale[named[name]] for name in order]
    assert [after / before for before, after in itertools.pairwise(rates)] == [2.0] * 5 and rates[-1] == 1.0
    assert scale[named['conv_head.weight']] == scale[named['conv5.nodes.3.conv_pw.weight']]
    for name, parameter in named.items():
        assert (decay[parameter] == 0) == (parameter.ndim == 1), name


def test_a_training_step_moves_every_parameter_and_lowers_the_loss() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = timm.create_model(PICO, drop_path_rate=0.1).train()
    optimizer = create_optimizer_v2(model, opt='sgd', lr=0.05, momentum=0.9, weight_decay=0)
    x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    before = [parameter.clone() for parameter in model.parameters()]
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_published_configuration_as_a_dict_makes_the_network_it_describes() -> None:
    """timm takes such a dict, as its own tests give it, for fields of its own."""
    cfg = asdict(timm.get_pretrained_cfg(PICO))
    assert timm.create_model(PICO, pretrained_cfg=cfg, device='meta').feature_info[0]['reduction'] == 2
    strided = timm.create_model(PICO, pretrained_cfg={**cfg, 'model_args': {'stem_stride': 2}}, device='meta')
    assert strided.feature_info[0]['reduction'] == 1 and 'model_args' not in strided.pretrained_cfg


def maxed(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> PublishedWeights:
    """The digits' weights in a network of another pooling, `randwire_ws_pico.maxed`, as an overlay would add it."""
    row = replace(WEIGHTS[f'{PICO}.digits'], name=f'{PICO}.maxed', is_default=False, model_args={'global_pool': 'max'},
                  **changes)
    monkeypatch.setitem(WEIGHTS, row.name, row)
    cfg = replace(models._published_cfg(row), architecture=PICO, tag='maxed')  # as timm's registry makes it
    monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, row.name, cfg)
    return row


def spoilt(folder: Path) -> Path:
    """The digits' weights with a classifier of zeros."""
    state = load_file(str(WEIGHTS[f'{PICO}.digits'].file))
    path = folder / 'spoilt.safetensors'
    save_file({**state, 'fc.weight': torch.zeros_like(state['fc.weight'])}, path)
    return path


@pytest.mark.parametrize('tag', ['', '.digits', '.maxed'])
@pytest.mark.parametrize('source', ['file', 'url', 'hf_hub_id'])
def test_a_source_that_a_call_names_is_the_one_that_is_asked(
        tag: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maxed(monkeypatch)
    path = spoilt(tmp_path)
    place = {'file': str(path), 'url': path.as_uri(), 'hf_hub_id': 'someone/nowhere'}[source]

    def create() -> Any:
        return timm.create_model(PICO + tag, pretrained=True, pretrained_cfg_overlay={source: place},
                                 cache_dir=str(tmp_path / 'cache'))
    if source == 'hf_hub_id':
        asked: list[object] = []
        monkeypatch.setattr(timm.models._builder, 'load_state_dict_from_hf', lambda *args, **kwargs: asked.append(
            args[0]) or load_file(path))
    model = create()
    assert not model.fc.weight.any() and (source != 'hf_hub_id' or asked == ['someone/nowhere'])
    assert model.global_pool.pool_type == ('max' if tag == '.maxed' else 'avg')  # the network is the tag's still


@pytest.mark.parametrize('form', [lambda cfg: cfg, asdict, lambda cfg: cfg.to_dict(), 'resolved'])
def test_timms_configuration_of_a_tag_means_its_network_and_its_bytes(
        form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maxed(monkeypatch)
    resolve = getattr(timm.models, 'resolve_model_input_args', None)  # of newer releases
    if form == 'resolved' and resolve is None:
        pytest.skip('this timm resolves no arguments')

    def create(tag: str, **more: Any) -> Any:
        given = resolve(f'{PICO}.{tag}') if form == 'resolved' else {
            'model_name': PICO, 'pretrained_cfg': form(timm.get_pretrained_cfg(f'{PICO}.{tag}'))}
        return timm.create_model(**given, **more)
    for pretrained in (False, True):
        model = create('maxed', pretrained=pretrained)
        assert model.global_pool.pool_type == 'max' and model.num_classes == 10
        assert model._model_args['global_pool'] == 'max' and 'model_args' not in model.pretrained_cfg
    by_name = timm.create_model(f'{PICO}.digits', pretrained=True)
    assert torch.equal(by_name.fc.weight, model.fc.weight)
    maxed(monkeypatch, file=str(spoilt(tmp_path)))
    with pytest.raises(ValueError, match='has been altered'):
        create('maxed', pretrained=True)


def test_arguments_that_timm_resolves_of_a_name_find_its_weights() -> None:
    resolve = getattr(timm.models, 'resolve_model_input_args', None)
    if resolve is None:
        pytest.skip('this timm resolves no arguments')
    arguments = resolve(SMALL)
    assert arguments['pretrained_cfg']['num_classes'] == 1000
    assert timm.create_model(**arguments, device='meta').num_classes == 1000
    named, found = (timm.create_model(pretrained=True, **given) for given in ({'model_name': SMALL}, arguments))
    assert found.num_classes == 200 and found.pretrained_cfg['tag'] == named.pretrained_cfg['tag']
    assert torch.equal(found.fc.weight, named.fc.weight)
    with pytest.raises(RuntimeError, match='No pretrained weights exist'):  # a configuration of one's own has none
        timm.create_model(SMALL, pretrained=True, pretrained_cfg={**arguments['pretrained_cfg'], 'mean': (0.0,) * 3})


def test_what_is_counted_keeps_its_frozen_parts() -> None:
    model: Any = timm.create_model(PICO).train()
    model.conv3.nodes[0].bn.eval()
    before = {name: module.training for name, module in model.named_modules()}
    count_complexity(model, (3, 32, 32))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert set(before.values()) == {False, True}
