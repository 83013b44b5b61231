"""`make upstream`'s script: one line where it fails, nothing fetched twice. No network: repositories are folders."""
from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import upstream


def run(cache: Path, *names: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, upstream.__file__, *names], env={**os.environ, 'RANDWIRE_ZOO_CACHE': str(cache), **variables},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)


def test_a_repository_that_is_not_there_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    done = run(tmp_path / 'cache', 'timm', TIMM_REPO=str(tmp_path / 'nowhere'))
    assert done.returncode == 1
    line, = done.stderr.splitlines()
    assert upstream.TIMM.commit in line and str(tmp_path / 'nowhere') in line and 'TIMM_REPO' in line
    assert not list((tmp_path / 'cache/upstream').iterdir())


def test_an_unknown_name_is_refused_with_those_there_are(tmp_path: Path) -> None:
    done = run(tmp_path, 'resnet')
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("'resnet' is not one of timm, detectron2")


@pytest.mark.skipif(upstream.checkout(upstream.TIMM) is None, reason=f"timm's checkout is not there; {upstream.HOW}")
def test_the_scripts_come_from_a_given_repository_once_and_stand_alone(tmp_path: Path) -> None:
    given = str(upstream.checkout(upstream.TIMM))
    first = run(tmp_path, 'timm', TIMM_REPO=given)
    assert first.returncode == 0 and f'from {given}' in first.stdout, first.stderr
    scripts = tmp_path / 'upstream/timm-scripts'
    assert (scripts / 'train.py').read_bytes() == (tmp_path / 'upstream/timm/train.py').read_bytes()
    assert {path.suffix for path in scripts.iterdir() if path.name[0] != '.'} == {'.py'}  # no package called timm
    second = run(tmp_path, 'timm', TIMM_REPO=str(tmp_path / 'nowhere'))
    assert second.returncode == 0 and 'fetching' not in second.stdout


def test_a_hook_of_another_repository_is_left_as_it_is_and_the_pinned_commit_is_fetched(
        git: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of `git rebase --exec`, or before a commit."""
    for name in ('given', 'hook'):
        git('init', '-q', name)
        (tmp_path / name / 'file').write_text(name)
        git('-C', name, 'add', 'file')
        git('-C', name, 'commit', '-q', '-m', name)
    commits = {name: git('-C', name, 'rev-parse', 'HEAD') for name in ('given', 'hook')}
    before = {path: path.read_bytes() for path in sorted((tmp_path / 'hook').rglob('*')) if path.is_file()}
    monkeypatch.setenv('RANDWIRE_ZOO_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('GIT_DIR', str(tmp_path / 'hook' / '.git'))
    monkeypatch.setenv('GIT_WORK_TREE', str(tmp_path / 'hook'))
    monkeypatch.setenv('GIT_INDEX_FILE', str(tmp_path / 'hook' / '.git' / 'index'))
    folder = upstream.fetch(upstream.Source('own', str(tmp_path / 'given'), commits['given'], 'OWN_REPO'))
    assert (folder / 'file').read_text() == 'given' and git('-C', str(folder), 'rev-parse', 'HEAD') == commits['given']
    assert {path: path.read_bytes() for path in sorted((tmp_path / 'hook').rglob('*')) if path.is_file()} == before


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with a checkout of detectron2 at the pinned commit."""
    monkeypatch.setenv('RANDWIRE_ZOO_CACHE', str(tmp_path / 'cache'))
    folder = tmp_path / 'cache' / 'upstream'
    (folder / 'detectron2').mkdir(parents=True)
    (folder / 'detectron2' / '.randwire_zoo_commit').write_text(upstream.DETECTRON2.commit + '\n')
    return folder


def write_wheel(folder: Path, content: bytes = b'built') -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / 'detectron2-0.6-cp311-cp311-linux_x86_64.whl'
    wheel.write_bytes(content)
    return wheel


def test_a_wheel_is_of_the_pinned_commit_and_not_of_another_one(
        cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of its folder; where that has no commit, as once, by being newer than the pinned checkout."""
    pinned, stamp = upstream.DETECTRON2, cache / 'detectron2' / '.randwire_zoo_commit'
    python = f'cp{sys.version_info[0]}{sys.version_info[1]}-torch{version("torch")}'
    assert upstream.detectron2_wheel() is None
    old = write_wheel(cache / 'wheels' / python)
    os.utime(stamp, (1000, 1000))
    os.utime(old, (2000, 2000))
    assert upstream.detectron2_wheel() == old
    monkeypatch.setattr(upstream, 'DETECTRON2', replace(pinned, commit='f' * 40))
    assert upstream.detectron2_wheel() is None, 'the checkout is of another commit'
    stamp.write_text('f' * 40)
    os.utime(stamp, (3000, 3000))
    assert upstream.detectron2_wheel() is None, 'built before the checkout came'
    new = write_wheel(cache / 'wheels' / f'{python}-{"f" * 12}')
    assert upstream.detectron2_wheel() == new
    monkeypatch.setattr(upstream, 'DETECTRON2', pinned)
    assert upstream.detectron2_wheel() is None


@pytest.mark.parametrize(('installed', 'built', 'done'), [
    ('', True, ['install']),
    ('of the wheel', True, []),
    ('of another wheel', True, ['uninstall', 'install']),
    ('in another folder', False, ['uninstall']),
    ('in the folder', False, []),
    ('in the folder', True, []),
    ('in another folder', True, ['uninstall', 'install']),
    ('in the folder of former times', False, []),
    ('by somebody', True, []),
    ('', False, []),
])
def test_what_was_installed_of_another_commit_goes_and_what_somebody_installed_stays(
        installed: str, built: bool, done: list[str], cache: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, 'version', lambda name: '2.14.1+cpu')  # whose URL has no plus sign
    wheel = upstream._wheel_folder() / 'detectron2-0.6-cp311-cp311-linux_x86_64.whl'
    if built:
        write_wheel(wheel.parent)
    if installed:
        found, url = tmp_path / 'site', wheel.as_uri()
        info = found / 'detectron2-0.6.dist-info'
        info.mkdir(parents=True)
        (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: detectron2\nVersion: 0.6\n')
        content = {'of the wheel': b'built', 'of another wheel': b'other'}.get(installed)
        hashes = {'hashes': {'sha256': hashlib.sha256(content).hexdigest()}} if content else {}
        if installed == 'in another folder':
            url = (cache / 'wheels' / 'cp311-torch1' / 'detectron2.whl').as_uri()
        elif installed == 'in the folder of former times':
            url = (wheel.parent.with_name(wheel.parent.name.rpartition('-')[0]) / wheel.name).as_uri()
        (info / 'direct_url.json').write_text(json.dumps(
            {'url': 'file:///home/me/detectron2', 'dir_info': {'editable': True}} if installed == 'by somebody' else
            {'url': url, 'archive_info': hashes}))
    monkeypatch.syspath_prepend(tmp_path / 'site')
    monkeypatch.setattr(upstream, 'find_spec', lambda name: object() if installed else None)
    said: list[list[object]] = []
    monkeypatch.setattr(upstream, '_run', lambda command, what: said.append(command))
    upstream.install_detectron2()
    assert [command[3] for command in said] == done
    if 'install' in done:
        assert wheel in said[-1]
