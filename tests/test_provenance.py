"""What a figure was made with is said as it is."""
from __future__ import annotations

import os
import platform
import runpy
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from importlib import import_module, metadata
from pathlib import Path

import pytest
import torch

import randwire_zoo
from randwire_zoo.kernels import library
from randwire_zoo.provenance import provenance

module = import_module('randwire_zoo.provenance')


def test_versions_kernels_threads_and_date_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        found = provenance()
    finally:
        torch.set_num_threads(threads)
    assert found['threads'] == threads + 1 and found['kernels'] == 'torch'
    assert found['randwire_zoo'] == randwire_zoo.__version__ and found['python'] == platform.python_version()
    assert found['torch'] == torch.__version__ and found['timm'] == metadata.version('timm')
    assert (found['device'] is None) == (not torch.cuda.is_available())
    date = datetime.fromisoformat(found['date'])
    assert date.utcoffset() == timedelta(0) and date.microsecond == 0
    assert timedelta(0) <= datetime.now(timezone.utc) - date < timedelta(minutes=5)
    monkeypatch.setattr(library, '_in_use', 'native')
    assert provenance()['kernels'] == 'native'


def test_the_device_is_that_of_the_run_whatever_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: f'GPU {torch.device(device).index}')
    assert provenance('cpu')['device'] is None and provenance(torch.device('cpu'))['device'] is None
    assert provenance('cuda:1')['device'] == 'GPU 1' and provenance()['device'] == 'GPU None'


def test_the_processor_is_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = tmp_path / 'cpuinfo'
    monkeypatch.setattr(module, 'Path', lambda name: read if name == '/proc/cpuinfo' else Path(name))
    processor = module._processor.__wrapped__
    read.write_text('processor\t: 0\nmodel name\t: A: B 9\n\nprocessor\t: 1\nmodel name\t: A: B 9\nflags: model name\n')
    assert processor() == '2 × A: B 9'
    read.write_text('model name\t: One\n')
    assert processor() == '1 × One'
    monkeypatch.setattr(platform, 'machine', lambda: 'riscv64')
    for name in ('a long name', ''):
        monkeypatch.setattr(platform, 'processor', lambda name=name: name)
        read.write_text('processor\t: 0\n')  # as on machines whose cores have no name there
        assert processor() == (name or 'riscv64')
        read.unlink()
        assert processor() == (name or 'riscv64')


def test_the_commit_is_that_of_the_checkout_and_says_where_it_was_changed(
        tmp_path: Path, git: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / 'package'
    package.mkdir()
    (package / '__init__.py').write_text('1')
    (tmp_path / 'other.py').write_text('1')
    monkeypatch.setattr(module, '__file__', str(package / 'provenance.py'))
    commit = module._commit.__wrapped__
    assert commit() is None, 'no checkout'
    git('init', '-q')
    git('add', 'other.py')
    git('commit', '-q', '-m', 'a')
    assert commit() is None, "another project's checkout"
    git('add', '.')
    git('commit', '-q', '-m', 'b')
    assert commit() == git('rev-parse', 'HEAD')
    (package / 'new.py').write_text('1')
    (tmp_path / 'other.py').write_text('2')
    assert commit() == git('rev-parse', 'HEAD'), 'what belongs to the package is as it was'
    (package / '__init__.py').write_text('2')
    assert commit() == git('rev-parse', 'HEAD') + '+'
    monkeypatch.setenv('PATH', os.devnull)
    assert commit() is None, 'no git'


def test_the_commit_says_so_where_another_package_of_this_project_was_changed(
        tmp_path: Path, git: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    tomllib = pytest.importorskip('tomllib', reason='Python 3.10 has none')
    settings = tomllib.loads((Path(__file__).parents[1] / 'pyproject.toml').read_text())['tool']['setuptools']
    parts = [f'{folder}/a.yaml' for folder in settings['package-dir'].values()]
    parts += [f'{name}.py' for name in settings['py-modules']]
    assert 'configs/a.yaml' in parts
    for part in ('randwire_zoo/__init__.py', *parts):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        (tmp_path / part).write_text('1')
    monkeypatch.setattr(module, '__file__', str(tmp_path / 'randwire_zoo' / 'provenance.py'))
    git('init', '-q')
    git('add', '.')
    git('commit', '-q', '-m', 'a')
    commit = module._commit.__wrapped__
    for part in parts:
        assert commit() == git('rev-parse', 'HEAD')
        (tmp_path / part).write_text('2')
        assert commit() == git('rev-parse', 'HEAD') + '+', part
        git('checkout', '-q', '.')


def test_a_package_that_is_a_checkout_of_its_own_is_asked_alone(
        tmp_path: Path, git: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / '__init__.py').write_text('1')
    monkeypatch.setattr(module, '__file__', str(tmp_path / 'provenance.py'))
    git('init', '-q')
    git('add', '.')
    git('commit', '-q', '-m', 'a')
    commit = module._commit.__wrapped__
    assert commit() == git('rev-parse', 'HEAD')
    (tmp_path / '__init__.py').write_text('2')
    assert commit() == git('rev-parse', 'HEAD') + '+'


OTHER = {'GIT_DIR': '.git',  # for hooks of a linked work tree, and `git rebase --exec`
         'GIT_INDEX_FILE': '.git/index',  # for hooks of a commit
         'GIT_COMMON_DIR': '.git', 'GIT_OBJECT_DIRECTORY': '.git/objects', 'GIT_WORK_TREE': '.'}


@pytest.mark.parametrize('variables', [*([name] for name in OTHER), list(OTHER)], ids='+'.join)
def test_the_commit_is_that_of_the_checkout_in_a_hook_of_another_repository_too(
        variables: list[str], tmp_path: Path, git: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('ours', 'other'):
        (tmp_path / name).mkdir()
        (tmp_path / name / '__init__.py').write_text(name)
        git('-C', name, 'init', '-q')
        git('-C', name, 'add', '.')
        git('-C', name, 'commit', '-q', '-m', name)
    ours, other = (git('-C', name, 'rev-parse', 'HEAD') for name in ('ours', 'other'))
    monkeypatch.setattr(module, '__file__', str(tmp_path / 'ours' / 'provenance.py'))
    for name in variables:
        monkeypatch.setenv(name, str(tmp_path / 'other' / OTHER[name]))
    assert module._commit.__wrapped__() == ours != other
    git('-C', 'ours', 'commit', '-q', '--allow-empty', '-m', 'by a test')
    assert git('-C', 'other', 'rev-parse', 'HEAD') == other, 'a test has committed into the repository of the hook'
    assert git('-C', 'ours', 'rev-parse', 'HEAD^') == ours


def test_what_a_user_or_a_hook_has_set_reaches_no_test(
        git: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of git, all that git itself says is about one repository; but for settings, without which git may refuse all."""
    names = [name for name in git('rev-parse', '--local-env-vars').split() if not name.startswith('GIT_CONFIG')]
    assert {'GIT_DIR', 'GIT_INDEX_FILE', 'GIT_WORK_TREE'} <= set(names)
    names += ['RANDWIRE_ZOO_WEIGHTS', 'HF_ENDPOINT', 'HF_TOKEN', 'DETECTRON2_DATASETS', 'DETECTRON2_TRAIN_NET',
              'MPLBACKEND']
    for name in (*names, 'HF_HUB_OFFLINE', 'RANDWIRE_ZOO_CACHE', 'GIT_CONFIG_COUNT'):
        monkeypatch.setenv(name, '0')
    runpy.run_path(str(Path(__file__).with_name('conftest.py')))
    assert [name for name in names if name in os.environ] == [] and os.environ['HF_HUB_OFFLINE'] == '1'
    assert os.environ['RANDWIRE_ZOO_CACHE'] == os.environ['GIT_CONFIG_COUNT'] == '0'
