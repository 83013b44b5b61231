"""A pytest plug-in that runs timm's own tests of models, unmodified, on ours: `pytest -p timm_suite_plugin`.

timm parametrises its tests over its own models, or names some in the test itself. Here the parametrisation of each
test in `PARAMETERS` is replaced, and the models that the tests in `STAND_INS` ask for by name are replaced by ours.
All other tests stand in `NOT_APPLICABLE` with the reason; a test that stands nowhere ends the run with an error.
"""
from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest

PICO, SMALL = 'randwire_ws_pico', 'randwire_ws_small_s1'
# One name of each kind; seeds 2 … 5 differ in their wiring only, and the golden files hold all of them.
KINDS = [
    'randwire', PICO, SMALL, 'randwire_er_small_s1', 'randwire_ba_small_s1', 'randwire_ws_c109', 'randwire_ws_c154']


def _pretrained_names() -> list[str]:
    import timm

    return timm.list_models('randwire*', pretrained=True)


# Test -> the values that replace timm's: models, or tuples where the test takes further arguments with the model.
PARAMETERS: dict[str, Any] = {
    # tests/test_models.py
    'test_model_forward': [PICO, SMALL],
    'test_model_backward': [PICO],
    'test_model_default_cfgs': KINDS,
    'test_model_load_pretrained': _pretrained_names,
    'test_model_features_pretrained': _pretrained_names,
    'test_reset_classifier_keeps_pool': [PICO],
    'test_features_only_grad_checkpointing_backward': [PICO],
    'test_model_forward_torchscript': [PICO],
    'test_model_forward_features': [PICO, SMALL],
    'test_model_features_space2depth_reduction': [PICO],
    'test_model_features_output_stride': [PICO],
    'test_model_forward_intermediates_features': [PICO],
    'test_model_forward_intermediates': [PICO, SMALL],
    'test_feature_getter_stage_ends_torchscript': [PICO],
    'test_prune_intermediate_layers_params_used': [PICO],
    'test_head_hidden_size': [(PICO, {})],
    'test_features_only_feature_cls_class': [PICO],
    'test_forward_after_prune_intermediate_layers': [PICO],
    'test_prune_intermediate_layers_last_feature': [(PICO, True)],
    'test_prune_intermediate_layers_contract': [PICO],
    'test_prune_to_stem_feature': [PICO],
    'test_forward_intermediates_stop_early_final_norm': [(PICO, {})],
    'test_model_forward_fx': [PICO],
    'test_model_backward_fx': [PICO],
    'test_model_forward_fx_torchscript': [PICO],
    'test_model_forward_torchscript_with_features_fx': [PICO],
    'test_model_init_weights_after_to_empty': [(PICO, {})],
    'test_headless_checkpoint_reload': [(PICO, {})],
    # tests/test_prune.py
    'test_pruned_feature_info_matches_forward': [PICO],
    # tests/test_model_input.py
    'test_export_tracks_reset_pool_in_head': [(PICO, 3, 'max'), (PICO, 0, '')],
    'test_export_tracks_reset_classifier_structure': [
        (PICO, {}, 'max', None), (PICO, {'global_pool': 'catavgmax'}, None, None)],
}

# Test -> the model that it creates by name, whose place ours takes.
STAND_INS: dict[str, str] = {
    'test_gcvit_batch_consistency': 'gcvit_xxtiny',
    'test_feature_hook_net_grad_checkpointing_order': 'xception41',
    'test_convit_dtype_change_after_forward': 'convit_tiny',
    'test_resnet_pruned_grad_checkpointing': 'test_resnet',
    'test_script_resolution_defaults_to_multispectral_source': 'resnet18',
    'test_conv_model_image_size_is_preprocessing_only': 'resnet18',
    'test_export_data_config_test_size_roundtrip': 'test_resnet',
    'test_export_tracks_reset_pool_and_omits_in_memory_weight_source': 'test_resnet',
}

# Why a test says nothing about a convolutional network of fixed structure -> those tests.
NOT_APPLICABLE: dict[str, tuple[str, ...]] = {
    "compares with reference tensors that timm keeps on the Hub for its own test models' weights": (
        'test_model_inference',),
    'for models without the spatial and feature interfaces of convolutional networks; ours pass the stricter '
    'test_model_default_cfgs': ('test_model_default_cfgs_non_std',),
    'reads `conv_stem`, a layer of EfficientNet, pruned by its own tables': ('test_pruned_efficientnet_in_chans',),
    'passes `extra_blocks`, an argument of EfficientNet and MobileNetV3 only': ('test_prune_extra_blocks_stem_width',),
    'is about the auxiliary classifier of Inception v3': ('test_inception_v3_aux_logits_reset_prune',),
    'asserts that concatenated pooling is refused, for models that cannot take it; ours can, and '
    'test_head_hidden_size runs it': ('test_catavgmax_unsupported',),
    "passes arguments of ResNetV2's, NFNet's or MobileNetV5's own stem and fusion": (
        'test_resnetv2_stem_feature_odd_size', 'test_nfnet_stem_feature_consistency',
        'test_mobilenetv5_intermediate_final_features'),
    'passes `drop_block_rate`, an argument of ResNet; test_models.py asks the same of drop_rate and drop_path_rate': (
        'test_export_does_not_inherit_training_regularization',),
    "asserts the name of ResNet's first layer; test_models.py asks the same of conv1.conv": (
        'test_feature_wrapper_retains_input_contract',),
    'asserts that reparameterize_model() leaves no BN, which needs the re-parameterisable blocks of mobile networks': (
        'test_mobile_model_fusion_features',),
    'is about the branches of EfficientViM': ('test_efficientvim_branch_features',),
    'is about class tokens, or attention pooling instead of a pooled feature map': (
        'test_prune_class_token_avg_pool', 'test_eva_reset_classifier_removes_attention_pool',
        'test_samvit_feature_getter_channels', 'test_vit_classifier_encoder_hooks', 'test_vit_classifier_checkpoint',
        'test_vit_classifier_pruned_features', 'test_gemma4_forward_intermediates_dict_output',
        'test_radio_checkpoint_filter'),
    'is about `img_size`, position embeddings or patches, which transformers alone have': (
        'test_pruned_features_torchscript', 'test_hybrid_vit_set_input_size_dtype',
        'test_relpos_non_square_checkpoint_reload', 'test_relpos_non_square_set_input_size',
        'test_relpos_family_set_input_size', 'test_script_resolution_preserves_source_config_and_legacy_resolver',
        'test_script_construction_rejects_conflicting_inputs',
        'test_flexible_model_uses_test_size_and_explicit_data_overrides',
        'test_runtime_resolution_rejects_incompatible_explicit_requests', 'test_adapted_resized_model_hub_roundtrip',
        'test_export_requires_serializable_architecture_options', 'test_export_rejects_conflicting_model_metadata',
        'test_flexible_model_export_keeps_nominal_grid_and_preprocessing_separate',
        'test_default_resize_hub_roundtrip', 'test_model_traits_are_independent_and_follow_resize_and_head_reset',
        'test_efficientvit_msra_rectangular_resize_roundtrip'),
    'is about NaFlexViT': (
        'test_naflexvit_direct_grid_sample_parity', 'test_naflexvit_direct_grid_sample_fullgraph',
        'test_naflexvit_direct_grid_sample_export', 'test_naflexvit_forward_intermediates_dict_input',
        'test_naflexvit_mixed_rope_dict_input', 'test_naflexvit_patch_interpolation_capability',
        'test_naflexvit_key_only_attn_mask_is_opt_in_and_post_patch_dropout',
        'test_naflexvit_key_only_attn_mask_output_parity', 'test_naflexvit_sapiens2_conversion'),
    'is about the windows of Swin transformers': (
        'test_swin_family_reinit_after_to_empty', 'test_swin_family_set_input_size',
        'test_swin_family_set_input_size_stage_windows', 'test_swin_family_set_input_size_window_ratios',
        'test_swin_family_set_input_size_invalid_and_min_windows', 'test_swin_family_resize_metadata',
        'test_swin_family_resize_odd_stage_sizes', 'test_swin_family_set_input_size_after_pruning',
        'test_swin_family_script_after_resize', 'test_swin_family_compile_resize_guards',
        'test_swin_family_window_padding', 'test_swin_family_dynamic_mask_trace',
        'test_windowed_model_resize_roundtrip'),
    'is about attention biases': (
        'test_eval_refreshes_attention_bias_cache', 'test_eval_attention_bias_cache_after_dtype_change',
        'test_eval_attention_forward_after_dtype_change',
        'test_attention_bias_cache_apply_preserves_recurse_argument'),
    "tests timm's loader on a bare convolution, with no model": (
        'test_matching_stem_shape_loads_despite_stale_channel_metadata',
        'test_channel_disagreement_is_not_inferred_from_weight_ratios'),
}


def applicable() -> set[str]:
    """The tests that run on our models."""
    return set(PARAMETERS) | set(STAND_INS)


def _excluded() -> set[str]:
    return {test for tests in NOT_APPLICABLE.values() for test in tests}


def _ours(test: str) -> list[Any]:
    values = PARAMETERS[test]
    return list(values() if callable(values) else values)


def pytest_configure() -> None:
    """Register our models, however the installation does it otherwise."""
    import randwire_zoo  # noqa: F401


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Put our models in the place of timm's before pytest reads the parametrisation."""
    test = metafunc.definition.originalname
    marks = metafunc.definition.own_markers
    if test in PARAMETERS:
        for index, mark in enumerate(marks):
            if mark.name == 'parametrize' and 'model_name' in mark.args[0]:
                marks[index] = pytest.mark.parametrize(mark.args[0], _ours(test)).mark
    elif test in _excluded():
        marks[:] = [mark for mark in marks if mark.name != 'parametrize']  # thousands of them are never run
        for argument in metafunc.fixturenames:
            if argument in metafunc.definition.obj.__code__.co_varnames and not _is_fixture(metafunc, argument):
                metafunc.parametrize(argument, [None])


def _is_fixture(metafunc: pytest.Metafunc, name: str) -> bool:
    return bool(metafunc._arg2fixturedefs.get(name))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what applies; refuse tests that nobody has decided about, and tests that would not meet our models."""
    names = {item.originalname for item in items}  # type: ignore[attr-defined]
    unknown = names - applicable() - _excluded()
    if unknown:
        raise pytest.UsageError(f'timm has tests that are neither run nor listed: {", ".join(sorted(unknown))}')
    kept, dropped = [], []
    for item in items:
        test = item.originalname  # type: ignore[attr-defined]
        (kept if test in applicable() else dropped).append(item)
        if test in PARAMETERS and not str(item.callspec.params['model_name']).startswith('randwire'):  # type: ignore[attr-defined]
            raise pytest.UsageError(f'{item.nodeid} would run on a model of timm')
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


@pytest.fixture(autouse=True)
def randwire_stands_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a test that asks for one of timm's models by name get ours, and make sure that it did ask."""
    test = request.node.originalname
    asked = []
    if test in STAND_INS:
        import timm

        def wrap(function: Any) -> Any:
            @functools.wraps(function)
            def replaced(model_name: str, *args: Any, **kwargs: Any) -> Any:
                asked.append(model_name)
                return function(PICO if model_name == STAND_INS[test] else model_name, *args, **kwargs)
            return replaced

        for holder in (timm, request.module):
            for name in ('create_model', 'resolve_model_input_args'):
                if hasattr(holder, name):
                    monkeypatch.setattr(holder, name, wrap(getattr(holder, name)))
    yield
    assert test not in STAND_INS or STAND_INS[test] in asked, f'{test} never asked for {STAND_INS[test]}'
