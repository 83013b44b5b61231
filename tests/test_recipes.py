"""Recipes: what is read from them, and that timm's train.py reads the same."""
from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import upstream
import yaml
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from randwire_zoo.training.recipes import (
    DEFAULTS,
    KEYS,
    OWN,
    STOCK,
    Key,
    add_recipe_arguments,
    learning_rate,
    load_recipe,
    public_settings,
    recipe_names,
    recorded_recipe,
    scheduled_epochs,
)

SCRIPTS = upstream.timm_scripts()
# The arguments of train.py at the pinned commit, so that they are compared where no checkout is, too.
TRAIN_PY = Path(__file__).parent / 'golden' / 'train_py.json'


def train_py_parser() -> argparse.ArgumentParser:
    if SCRIPTS is None:
        pytest.skip(f"timm's stock scripts are not there; {upstream.HOW}")
    spec = importlib.util.spec_from_file_location('stock_train', SCRIPTS / 'train.py')
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.parser


def arguments_of(parser: argparse.ArgumentParser) -> dict[str, dict[str, Any]]:
    """What a parser takes: flags, type, number of values and default of each argument."""
    return {action.dest: {'flags': action.option_strings, 'type': (action.type or str).__name__, 'nargs': action.nargs,
                          'default': action.default}
            for action in parser._actions if action.dest != 'help'}


def test_the_golden_table_of_train_pys_arguments_is_train_pys() -> None:
    """After a change of the pinned commit: `json.dumps(arguments_of(train_py_parser()))`, a line for each argument."""
    assert json.loads(TRAIN_PY.read_text('utf-8')) == arguments_of(train_py_parser())


def test_every_key_has_the_name_type_and_default_of_train_py_save_the_device() -> None:
    theirs = json.loads(TRAIN_PY.read_text('utf-8'))
    for name, key in KEYS.items():
        if name in OWN:
            assert name not in theirs
            continue
        assert name in theirs, f'train.py has no {name}'
        argument = theirs[name]
        if name != 'device':
            assert argument['default'] == key.default, name
        if key.kind is bool:
            assert argument['nargs'] == 0, name
        elif key.kind is not dict:
            assert (argument['type'], argument['nargs']) == (key.kind.__name__, key.many), name
        assert key.flags[-1] in argument['flags'] and set(key.flags) <= set(argument['flags']), name


def golden_parser() -> argparse.ArgumentParser:
    """train.py's arguments as far as defaults go through them: a text becomes what the argument's type makes of it."""
    parser, types = argparse.ArgumentParser(), {'int': int, 'float': float, 'str': str}
    for name, argument in json.loads(TRAIN_PY.read_text('utf-8')).items():
        if argument['nargs'] != 0:
            parser.add_argument(*(argument['flags'] or [name]), **({'dest': name} if argument['flags'] else {}),
                                type=types.get(argument['type'], str), nargs=argument['nargs'])
    parser.set_defaults(**{name: argument['default'] for name, argument in json.loads(
        TRAIN_PY.read_text('utf-8')).items()})
    return parser


@pytest.mark.parametrize('make', [train_py_parser, golden_parser], ids=['of train.py', 'of the golden table'])
@pytest.mark.parametrize('name', recipe_names())
def test_a_packaged_recipe_means_the_same_to_train_py_and_to_us(
        name: str, make: Callable[[], argparse.ArgumentParser]) -> None:
    recipe = load_recipe(name)
    parser = make()
    parser.set_defaults(**yaml.safe_load((Path(__file__).parents[1] / 'configs' / f'{name}.yaml').read_text()))
    theirs = vars(parser.parse_args([]))
    ours = {key: value for key, value in {**DEFAULTS, 'device': 'cuda', **recipe}.items() if key not in OWN}
    assert {key: theirs[key] for key in ours} == ours


def test_the_papers_recipes_are_packaged_with_its_settings() -> None:
    for name, decay, drop, edge_removal in (
            ('small', 5e-5, 0.0, None), ('c109', 1e-5, 0.2, 0.1), ('c154', 1e-5, 0.2, 0.1)):
        recipe = {**DEFAULTS, **load_recipe(f'imagenet/randwire_ws_{name}')}
        assert (recipe['weight_decay'], recipe['drop'], recipe['drop_path']) == (decay, drop, edge_removal)
        assert (recipe['opt'], recipe['momentum'], recipe['smoothing'], recipe['epochs']) == ('sgd', 0.9, 0.1, 100)
        assert (recipe['lr'], recipe['lr_base'], recipe['lr_base_size']) == (None, 0.1, 256)
        assert (recipe['sched'], recipe['min_lr'], recipe['sched_on_updates']) == ('cosine', 0.0, True)


def test_every_key_can_be_given_as_a_flag_and_an_absent_flag_leaves_the_recipe_alone() -> None:
    parser = argparse.ArgumentParser()
    add_recipe_arguments(parser)
    assert vars(parser.parse_args([])) == {}
    given = vars(parser.parse_args(
        ['--model-kwargs', 'graph=ws(4,0.75)', 'seed=2', '--no-amp', '--scale', '0.5', '1', '--torchcompile', '-b', '8',
         '--channels-last']))
    assert given == {'model_kwargs': {'graph': 'ws(4,0.75)', 'seed': 2}, 'amp': False, 'scale': [0.5, 1.0],
                     'torchcompile': 'inductor', 'batch_size': 8, 'channels_last': True}
    assert '(default: 0.1)' in parser.format_help()


def test_a_setting_without_a_value_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_recipe_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(['--model-kwargs', 'seed=2', 'stem_stride'])
    assert parser.parse_args(['--model-kwargs', '', 'seed=2']).model_kwargs == {'seed': 2}  # as train.py takes it
    assert capsys.readouterr().err.endswith("argument --model-kwargs: expected KEY=VALUE, got 'stem_stride'\n")


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    (tmp_path / 'recipe.yaml').write_text('weight_decay: 1e-5\nlr: 1\n')
    assert load_recipe(tmp_path / 'recipe.yaml') == {'weight_decay': 1e-5, 'lr': 1.0}


@pytest.mark.parametrize(('text', 'message'), [
    ('modle: randwire', "unknown key 'modle'"),
    ('epochs: many', "epochs must be an integer, got 'many'"),
    ('epochs: 0', 'epochs must be at least 1, got 0'),
    ('epochs: true', 'epochs must be an integer, got True'),
    ('lr: .nan', 'lr must be'),
    ('lr: .inf', 'lr must be'),
    ('mean: [123, 116, 103]', 'mean must be within 0 … 1, got 123'),
    ('mean: [-0.5]', 'mean must be within 0 … 1, got -0.5'),
    ('std: [0.2, 57.4]', 'std must be within 0 … 1, got 57.4'),
    ('crop_pct: 87.5', 'crop_pct must be within 0 … 1, got 87.5'),
    ('amp: 1', 'amp must be true or false, got 1'),
    ('model: 3', 'model must be text, got 3'),
    ('model:', 'model must not be empty'),
    ('scale: 0.5', 'scale must be a list'),
    ('input_size: [3, 32]', 'input_size must be a list of 3 values'),
    ('model_kwargs: [seed=1]', 'model_kwargs must be a mapping'),
    ('amp_dtype: float64', "amp_dtype must be one of 'float16', 'bfloat16', got 'float64'"),
    ('sched: plateau', 'sched must be one of'),
    ('- model', 'must hold lines of `key: value`, got list'),
    ('', 'must hold lines of `key: value`, got NoneType'),
    ('model: [', 'is not a yaml file'),
])
def test_a_bad_recipe_is_one_line_that_names_the_file_and_what_is_wrong(
        text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / 'recipe.yaml'
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        load_recipe(path)
    assert message in str(error.value) and str(path) in str(error.value) and '\n' not in str(error.value)


def test_a_missing_recipe_names_the_packaged_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"no recipe 'digits/nothing'.*digits/randwire_ws_pico"):
        load_recipe('digits/nothing')


def test_the_other_arguments_of_train_py_stand_here_with_their_defaults() -> None:
    theirs = json.loads(TRAIN_PY.read_text('utf-8'))
    assert {name: argument['default'] for name, argument in theirs.items() if name not in KEYS} == STOCK


def test_a_whole_args_yaml_of_train_py_is_read(tmp_path: Path) -> None:
    theirs = {**DEFAULTS, **STOCK, 'device': 'cuda', 'data': '/data/imagenet', 'log_interval': 10, 'log_wandb': True,
              'wandb_tags': ['mine'], 'recovery_interval': 500, 'local_rank': 3, 'model': 'randwire_ws_c109'}
    path = tmp_path / 'args.yaml'
    path.write_text(yaml.safe_dump(theirs))
    assert load_recipe(path) == {**DEFAULTS, 'device': 'cuda', 'data_dir': '/data/imagenet',
                                 'model': 'randwire_ws_c109'}
    path.write_text(yaml.safe_dump({**theirs, 'aug_splits': 3, 'bn_eps': 1e-4}))
    with pytest.raises(ValueError) as error:
        load_recipe(path)
    assert str(error.value) == (f"{path}: this trainer does not have train.py's aug_splits: 3 (without it 0), "
                                'bn_eps: 0.0001 (without it None)')


@pytest.mark.parametrize(('recorded', 'lr'), [
    ({'lr': 0.1 * 64 * 4 / 256}, None), ({'lr': 0.1 * 64 / 256}, 0.025), ({'lr': 0.1, 'lr_base': 0.0}, 0.1),
    ({'lr': 0.1 * (64 * 4 * 2 / 256) ** 0.5, 'opt': 'adamw', 'grad_accum_steps': 2}, None)])
def test_the_recipe_of_a_checkpoint_scales_the_rate_again_where_the_training_did(
        recorded: dict[str, Any], lr: float | None, tmp_path: Path) -> None:
    """As train.py leaves them: its whole namespace, with the rate of the global batch, and what it notes beside."""
    settings = {**DEFAULTS, **STOCK, 'model': 'randwire', 'batch_size': 64, **recorded}
    noted = {'world_size': 4, 'rank': 0, 'distributed': True, 'prefetcher': True, 'device': 'cuda:0', 'local_rank': 0}
    assert recorded_recipe('a.pth.tar', {**settings, **noted}) == {
        **{name: settings[name] for name in DEFAULTS}, 'device': 'cuda', 'lr': lr}
    with pytest.raises(ValueError, match=r"^a\.pth\.tar: this trainer does not have train.py's aug_splits: 3"):
        recorded_recipe('a.pth.tar', {**settings, 'aug_splits': 3})


@pytest.mark.parametrize('name', recipe_names())
def test_all_of_a_packaged_recipe_may_be_published(name: str) -> None:
    recipe = load_recipe(name)
    assert public_settings(recipe) == recipe
    assert public_settings({**DEFAULTS, **STOCK, **recipe}).items() >= recipe.items()


SECRETS: dict[str, Any] = {
    'data_dir': '/home/me/data', 'data': '/home/me/data', 'dataset': 'wds//home/me/shards', 'class_map': '/home/me/map',
    'kd_outputs': '/home/me/outputs',
    'train_split': '../home', 'model': 'local-dir:/home/me/model', 'pretrained_path': '/home/me/w',
    'initial_checkpoint': 'home/me/w', 'output': '/home/me', 'experiment': 'home', 'resume': '/home/me/last',
    'device_modules': ['home.me'], 'input_key': 'home', 'target_key': 'home', 'wandb_project': 'home',
    'wandb_tags': ['home'], 'wandb_resume_id': 'home', 'kd_model_name': 'local-dir:/home/me/teacher',
    'torchcompile': 'home/me', 'secret_of_mine': 'home', 'description': {'a': 'home'}, 'epochs': '/home/me',
    'amp_dtype': 'home', 'mean': ['home'], 'opt_kwargs': {'path': '/home/me', '/home/me': 1, 'foreach': True},
    'model_kwargs': {'graph': 'ws(4,0.75)', 'seed': 2, 'pretrained_cfg_overlay': {'file': '/home/me/w', 'crop_pct': 1}},
}


def test_what_names_a_place_or_a_person_is_not_published() -> None:
    public = public_settings(SECRETS)
    assert 'home' not in yaml.safe_dump(public)
    assert public == {'opt_kwargs': {'foreach': True}, 'model_kwargs': {
        'graph': 'ws(4,0.75)', 'seed': 2, 'pretrained_cfg_overlay': {'crop_pct': 1}}}


def test_a_new_key_is_private_unless_it_says_otherwise() -> None:
    texts = {name for name, key in KEYS.items() if key.kind in (str, dict) and not key.choices and not key.public}
    assert texts == {'data_dir', 'class_map', 'pretrained_path', 'initial_checkpoint', 'device_modules', 'output',
                     'experiment', 'resume', 'kd_outputs'}
    assert Key('new', str, '', '').public == ''


@pytest.mark.parametrize('name', recipe_names())
def test_the_rate_rises_through_the_warm_up_on_any_number_of_processes(name: str) -> None:
    """By timm's own scheduler, as train.py and `trainer` step it: from warmup_lr to the rate of the global batch."""
    recipe = {**DEFAULTS, **load_recipe(name)}
    sizes = {recipe['batch_size']} | ({1, 32} if name.startswith('imagenet/') else set())
    updates, warmup = 7, recipe['warmup_epochs']
    for processes in (1, 2, 3, 8, 32, 256):
        for batch_size in sizes:
            rate = learning_rate({**recipe, 'batch_size': batch_size}, processes)
            if recipe['lr'] is None:  # independently: Goyal et al.'s linear rule
                assert rate == pytest.approx(recipe['lr_base'] * batch_size * processes / recipe['lr_base_size'])
            optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
            scheduler, epochs = create_scheduler_v2(
                optimizer, **scheduler_kwargs(argparse.Namespace(**recipe)), updates_per_epoch=updates)
            rates = [optimizer.param_groups[0]['lr']]
            for update in range(1, warmup * updates):
                scheduler.step_update(update)
                rates.append(optimizer.param_groups[0]['lr'])
            assert epochs == recipe['epochs'] == scheduled_epochs(recipe)
            if warmup:
                assert rates == pytest.approx([recipe['warmup_lr'] + i * (rate - recipe['warmup_lr']) / len(rates)
                                               for i in range(len(rates))])
                assert all(later > earlier for earlier, later in itertools.pairwise(rates)), (processes, batch_size)
                assert 0 < rates[0] < 0.2 * rate or batch_size < 32
