"""timm's own tests of models, from its source distribution, pass on ours."""
from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
import timm_suite_plugin as plugin

FILES = ('test_models.py', 'test_prune.py', 'test_model_input.py')


@pytest.fixture(scope='module')
def timm_tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the `tests` of the installed timm, which are in its source distribution only."""
    import timm

    cache = Path(os.environ.get('RANDWIRE_ZOO_CACHE', '~/.cache/randwire_zoo')).expanduser() / 'sdist'
    archive = cache / f'timm-{timm.__version__}.tar.gz'
    if not archive.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check', '--no-deps',
                   '--no-binary', ':all:', '--dest', str(cache), f'timm=={timm.__version__}']
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if not archive.is_file():
            reason = (done.stderr.strip().splitlines() or ['no reason given'])[-1]
            pytest.skip(f"timm's source distribution is not in {cache} and pip cannot fetch it: {reason}")
    folder = tmp_path_factory.mktemp('timm')
    with tarfile.open(archive) as tar:
        root = f'timm-{timm.__version__}/'
        members = [
            member for member in tar.getmembers()
            if member.name.startswith(f'{root}tests/') or member.name == f'{root}pyproject.toml']
        tar.extractall(folder, members=members, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
    return folder / root


@pytest.mark.timeout(900)
def test_timms_own_tests_pass_on_our_models(timm_tests: Path, tmp_path: Path) -> None:
    report = tmp_path / 'report.xml'
    environment = {
        **os.environ, 'HF_HUB_OFFLINE': '1', 'TIMEOUT': '600', 'OMP_NUM_THREADS': '1',
        'PYTHONPATH': str(Path(__file__).parent)}
    environment.pop('GITHUB_ACTIONS', None)  # timm defines fewer tests there
    command = [sys.executable, '-m', 'pytest', *(f'tests/{file}' for file in FILES), '-p', 'timm_suite_plugin', '-q',
               '-p', 'no:cacheprovider', '-W', 'ignore', '--tb=short', f'--junitxml={report}', '--durations=15']
    done = subprocess.run(command, cwd=timm_tests, env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert report.is_file(), done.stdout + done.stderr
    outcomes: Counter[tuple[str, str]] = Counter()
    for case in ElementTree.parse(report).iter('testcase'):
        outcome = next((child.tag for child in case if child.tag in ('failure', 'error', 'skipped')), 'passed')
        outcomes[case.attrib['name'].split('[')[0], outcome] += 1
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert not {test for test, outcome in outcomes if outcome != 'passed'}
    assert {test for test, _ in outcomes} == plugin.applicable(), 'every applicable test has run'


def test_no_test_is_both_run_and_excused_and_every_excuse_has_words() -> None:
    excused = [test for tests in plugin.NOT_APPLICABLE.values() for test in tests]
    assert len(excused) == len(set(excused))
    assert not set(excused) & plugin.applicable()
    assert not set(plugin.PARAMETERS) & set(plugin.STAND_INS)
    assert all(len(reason.split()) >= 3 for reason in plugin.NOT_APPLICABLE)
