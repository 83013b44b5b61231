"""`make upstream`'s script: one line where it fails, nothing fetched twice. No network: repositories are folders."""
from __future__ import annotations

import os
import subprocess
import sys
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
