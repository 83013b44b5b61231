"""What goes to users: the distributions, their types, their version and how they are cited."""
from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import randwire_zoo

ROOT = Path(__file__).resolve().parents[1]
CI = (ROOT / '.ci' / 'run').read_text(encoding='utf-8')
FOLDERS = {'randwire_zoo/configs': 'configs', 'randwire_zoo/detection': 'detection', 'randwire_zoo/hub': 'hub'}


@pytest.fixture(scope='module')
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source distribution and the wheel that is built of it, by suffix."""
    pytest.importorskip('build', reason='build is not installed')
    folder = tmp_path_factory.mktemp('dist')
    done = subprocess.run(
        [sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(folder), str(ROOT)],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.suffix: path for path in folder.iterdir()}


def test_pypi_would_take_the_distributions(distributions: dict[str, Path]) -> None:
    done = subprocess.run([sys.executable, '-m', 'twine', 'check', '--strict', *map(str, distributions.values())],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_wheel_has_every_file_of_the_packages_and_no_other(distributions: dict[str, Path]) -> None:
    with zipfile.ZipFile(distributions['.whl']) as wheel:
        names = {name for name in wheel.namelist() if '.dist-info/' not in name}
        described = wheel.read(f'randwire_zoo-{randwire_zoo.__version__}.dist-info/METADATA').decode()
    if shutil.which('git') is None:
        pytest.skip('git is not on the PATH')
    tracked = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard', 'randwire_zoo', *FOLDERS.values(),
         '_randwire_zoo_autoload.py'], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip('no checkout of git: nothing says which files there are')
    mapped = {folder: package for package, folder in FOLDERS.items()}
    expected = {f'{mapped[top]}/{rest}' if (top := name.partition('/')[0]) in mapped else name
                for name in tracked.stdout.split() for rest in [name.partition('/')[2]]}
    assert names == expected
    assert 'Project-URL: Paper, https://arxiv.org/abs/1904.01569' in described


COMMAND = """import sys
from importlib.metadata import PathDistribution
from pathlib import Path
script, = PathDistribution(Path(sys.argv.pop(1))).entry_points.select(group='console_scripts')
sys.argv[0] = script.name
sys.exit(script.load()())
"""


def test_the_command_that_the_wheel_installs_runs(distributions: dict[str, Path], tmp_path: Path) -> None:
    """By its entry point, of which installers make the script."""
    with zipfile.ZipFile(distributions['.whl']) as wheel:
        wheel.extractall(tmp_path)
    described, = tmp_path.glob('*.dist-info')
    done = subprocess.run([sys.executable, '-c', COMMAND, str(described), '--version'], cwd=tmp_path,
                          env={**os.environ, 'PYTHONPATH': str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f'randwire-zoo {randwire_zoo.__version__} '), done.stderr


def test_the_source_distribution_builds_without_a_checkout(distributions: dict[str, Path]) -> None:
    """The wheel was built of it; what a user needs beside the code is there too."""
    with tarfile.open(distributions['.gz']) as source:
        names = {name.partition('/')[2] for name in source.getnames()}
    assert {'LICENSE', 'README.md', 'pyproject.toml', '_randwire_zoo_autoload.py'} <= names
    # setuptools would take test_*.py alone, which do not run without what lies beside them.
    assert not {name for name in names if name.startswith('tests')}


EDITABLE = """import sys
from setuptools import build_meta
build_meta.build_editable(sys.argv[1], {'editable_mode': 'strict'})
"""


@pytest.mark.timeout(900)
def test_a_users_script_passes_mypy_strict_against_the_package_as_installed(
        distributions: dict[str, Path], tmp_path: Path) -> None:
    """From the wheel, and in setuptools' strict editable mode, for which CONTRIBUTING.md has the command."""
    with tarfile.open(distributions['.gz']) as source:
        source.extractall(tmp_path, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
    unpacked, = tmp_path.glob('randwire_zoo-*')
    subprocess.run([sys.executable, '-c', EDITABLE, str(tmp_path)], cwd=unpacked, check=True, capture_output=True)
    editable, = tmp_path.glob('*editable*.whl')
    wrong = tmp_path / 'wrong.py'  # types that were not found would let this pass
    wrong.write_text('from randwire_zoo import parse_graph_model\nparse_graph_model(5)\n', encoding='utf-8')
    for number, wheel in enumerate([distributions['.whl'], editable]):
        environment = tmp_path / f'environment{number}'
        subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(environment)], check=True)
        packages, = environment.glob('lib/python*/site-packages')
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
        others = [path for path in sys.path if path.endswith('site-packages')]
        (packages / 'others.pth').write_text('\n'.join(others), encoding='utf-8')
        done = subprocess.run(
            [sys.executable, '-m', 'mypy', '--strict', '--config-file', '', '--cache-dir', str(tmp_path / 'cache'),
             '--python-executable', str(environment / 'bin' / 'python'), str(wrong),
             str(ROOT / 'tests' / 'typed_user.py')],
            capture_output=True, text=True, cwd=tmp_path)
        errors = [line for line in done.stdout.splitlines() if ': error: ' in line]
        assert len(errors) == 1 and errors[0].startswith('wrong.py:2: error: Argument 1 to "parse_graph_model"'), done


def test_the_oldest_versions_that_are_tested_are_the_oldest_that_are_allowed() -> None:
    tested = dict(re.findall(r'^([\w-]+)==(\S+)$', (ROOT / 'constraints-oldest.txt').read_text('utf-8'), re.MULTILINE))
    wanted: dict[str, Requirement] = {}
    for text in metadata.requires('randwire-zoo') or []:
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({'extra': extra})
                                             for extra in ('cluster', 'digits', 'search')):
            wanted[canonicalize_name(requirement.name)] = requirement
    assert set(tested) == set(wanted)
    for name, requirement in wanted.items():
        floor, = (one.version for one in requirement.specifier if one.operator == '>=')
        assert Version(tested[name]) == Version(floor), name


SKIPPED = """import pytest
@pytest.mark.skip(reason="timm's stock scripts are not there; `make upstream` brings it")
@pytest.mark.parametrize('case', [1, 2])
def test_some(case): pass
@pytest.mark.skip(reason='the kernels are built with c++')
def test_other(): pass
@pytest.mark.skip(reason='no SLURM cluster')
def test_quiet(): pass
def test_library(): pytest.importorskip('nothing_of_this_name')
"""
WHOLE = """import pytest
pytest.importorskip('nothing_of_that_name', reason='detectron2 is not installed (`make upstream` builds a wheel)')
"""


def test_ci_says_which_promises_were_not_tested(tmp_path: Path) -> None:
    """From the report of a real run of pytest, in which skipped files stand otherwise than skipped tests."""
    (tmp_path / 'test_some.py').write_text(SKIPPED, encoding='utf-8')
    (tmp_path / 'test_whole.py').write_text(WHOLE, encoding='utf-8')
    subprocess.run([sys.executable, '-m', 'pytest', '-q', '-c', '/dev/null', '--rootdir', str(tmp_path), '-p',
                    'no:cacheprovider', '--junitxml', 'report.xml', '.'], cwd=tmp_path, capture_output=True)
    script, = re.findall(r"<<'PYTHON'\n(.*?)^PYTHON$", CI, re.DOTALL | re.MULTILINE)
    done = subprocess.run([sys.executable, '-', 'report.xml', 'untested'], input=script, cwd=tmp_path,
                          capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line[0] != ' '] == [
        "1 skipped: could not import 'nothing_of_this_name': No module named 'nothing_of_this_name'",
        '1 skipped: detectron2 is not installed (`make upstream` builds a wheel)', '1 skipped: no SLURM cluster',
        '1 skipped: the kernels are built with c++',
        "2 skipped: timm's stock scripts are not there; `make upstream` brings it"]
    assert '    test_whole' in done.stdout.splitlines() and '    test_some::test_some[1]' in done.stdout.splitlines()
    assert (tmp_path / 'untested').read_text('utf-8').splitlines() == [
        "    could not import 'nothing_of_this_name': No module named 'nothing_of_this_name' (1 tests or whole files)",
        '    detectron2 is not installed (`make upstream` builds a wheel) (1 tests or whole files)',
        '    the kernels are built with c++ (1 tests or whole files)',
        "    timm's stock scripts are not there; `make upstream` brings it (2 tests or whole files)"]


def test_ci_is_quiet_about_reasons_that_tests_do_give() -> None:
    """One that is worded otherwise now would be reported where nothing is amiss, or hide what is."""
    quiet = ast.literal_eval(re.findall(r'^quiet = (\{.*?^\})$', CI, re.DOTALL | re.MULTILINE)[0])
    others = [path for path in (ROOT / 'tests').glob('*.py') if path.name != 'test_packaging.py']
    given = '\n'.join(path.read_text('utf-8') for path in others)
    assert 'no SLURM cluster' in quiet
    assert [reason for reason in quiet if not re.search(rf"(skip\(|reason=)'{re.escape(reason)}'", given)] == []


def test_ci_says_in_its_last_lines_what_was_not_tested(tmp_path: Path) -> None:
    """Its end as it stands there, with a list of what was skipped that somebody else wrote, or with an empty one."""
    end = CI[CI.index('untested=\n'):]
    for text, said in (('', '== passed\n'), ('    why\n', (
            '== NOT tested\n    why\n== passed, but see above what was NOT tested\n'))):
        (tmp_path / 'untested').write_text(text)
        for failed, code, last in (('()', 0, said), ("('make check')", 1, said[:said.index('== passed')] + (
                '== FAILED: make check;\n'))):
            done = subprocess.run(['bash', '-euc', f'report={tmp_path} failed={failed}\n{end}'], capture_output=True,
                                  text=True)
            assert (done.returncode, done.stdout) == (code, last), done.stderr


def test_version_changelog_and_citation_agree() -> None:
    version = randwire_zoo.__version__
    changes = (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')
    assert re.findall(r'^## (\S+)', changes, re.MULTILINE)[0] == version
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    assert citation['type'] == 'software' and citation['version'] == version
    assert 'preferred-citation' not in citation, 'readers of the file would cite the paper alone'
    paper, = citation['references']
    assert paper['type'] == 'conference-paper' and paper['identifiers'][0]['value'] == 'arXiv:1904.01569'
    bibtex = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert f'version = {{{version}}}' in bibtex and f'title   = {{{citation["title"]}}}' in bibtex
    assert paper['title'] in bibtex and all(author['family-names'] in bibtex for author in paper['authors'])
