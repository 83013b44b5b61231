"""Pinned upstream code that is not on PyPI: timm's stock scripts and detectron2.

As a script (`make upstream`) it brings them into the cache folder; as a module it tells tests where they are. Nothing
of theirs is committed. `make test` installs the detectron2 wheel into its environment, if there is one.

    $RANDWIRE_ZOO_CACHE/upstream/        ~/.cache/randwire_zoo/upstream by default
        timm/                            checkout
        timm-scripts/                    its train.py, validate.py, … alone: run from a folder that also holds the
                                         checkout's package `timm`, they would import that one and not the installed
        detectron2/                      checkout
        wheels/cp311-torch2.14.1-02b5c4e295e9/
                                         a detectron2 wheel for this Python and this torch, of this commit
"""
from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from randwire_zoo.provenance import git_environment


@dataclass(frozen=True)
class Source:
    """A git repository and the commit that the tests are written against."""

    name: str
    url: str
    commit: str
    variable: str


# timm: the first version of the scripts that this project was tested with. They run with every timm that
# pyproject.toml allows; a commit, and no release tag, so that mirrors without tags serve as well.
TIMM = Source(
    'timm', 'https://github.com/huggingface/pytorch-image-models', 'aa4b5850c1543fa488abf260f18390eda46cf85d',
    'TIMM_REPO')
DETECTRON2 = Source(
    'detectron2', 'https://github.com/facebookresearch/detectron2', '02b5c4e295e990042a714712c21dc79b731e8833',
    'DETECTRON2_REPO')
# detectron2's model zoo imports pkg_resources, which setuptools 81 dropped; its setup.py imports torch.
BUILD_TOOLS = ('setuptools<81', 'wheel', 'ninja')

HOW = '`make upstream` brings it'
#: The file in a checkout that names its commit.
STAMP = '.randwire_zoo_commit'


class UpstreamError(Exception):
    """Something could not be fetched or built; the message is one line."""


def cache_folder() -> Path:
    """The folder that everything upstream lies in, which need not exist."""
    root = os.environ.get('RANDWIRE_ZOO_CACHE') or Path.home() / '.cache' / 'randwire_zoo'
    return Path(root).expanduser().resolve() / 'upstream'


def checkout(source: Source) -> Path | None:
    """The checkout of a source, or None where it is not there at the pinned commit."""
    folder = cache_folder() / source.name
    return folder if _stamp(folder) == source.commit else None


def timm_scripts() -> Path | None:
    """The folder of timm's stock scripts, or None."""
    folder = cache_folder() / 'timm-scripts'
    return folder if _stamp(folder) == TIMM.commit else None


def detectron2_wheel() -> Path | None:
    """The wheel of the pinned detectron2, built for this Python and the installed torch, or None."""
    if found := next(iter(sorted(_wheel_folder().glob('detectron2-*.whl'))), None):
        return found
    # Folders did not name the commit once. A wheel that is newer than the checkout of the pinned commit was built of
    # it: when the pin moves the checkout is fetched anew.
    stamp = cache_folder() / DETECTRON2.name / STAMP
    wheels = sorted(_former_folder().glob('detectron2-*.whl')) if checkout(DETECTRON2) is not None else []
    return next((wheel for wheel in wheels if wheel.stat().st_mtime > stamp.stat().st_mtime), None)


def _stamp(folder: Path) -> str | None:
    try:
        return (folder / STAMP).read_text(encoding='utf-8').strip()
    except OSError:
        return None


def _wheel_folder() -> Path:
    try:
        torch = version('torch')
    except PackageNotFoundError:
        raise UpstreamError('torch is not installed; run `make install` first') from None
    name = f'cp{sys.version_info[0]}{sys.version_info[1]}-torch{torch}-{DETECTRON2.commit[:12]}'
    return cache_folder() / 'wheels' / name


def _former_folder() -> Path:
    return _wheel_folder().with_name(_wheel_folder().name.rpartition('-')[0])


def _run(command: list[str | Path], what: str, cwd: Path | None = None, log: Path | None = None,
         env: dict[str, str] | None = None) -> None:
    """Run a command; a failure becomes one line with what it said last."""
    try:
        done = subprocess.run(
            command, cwd=cwd, env=env or git_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors='replace')
    except OSError as error:
        raise UpstreamError(f'{what}: {command[0]} does not run: {error.strerror}') from None
    if log is not None:
        log.write_text(done.stdout, encoding='utf-8')
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.strip()] or [f'exit code {done.returncode}']
        raise UpstreamError(f'{what}: {said[-1].strip()}' + (f' (all of it in {log})' if log else ''))


def fetch(source: Source) -> Path:
    """Bring a source's pinned commit into the cache folder, without its history.

    Raises:
        UpstreamError: where the repository or the commit cannot be had.
    """
    folder = cache_folder() / source.name
    if checkout(source) is not None:
        print(f'{source.name}: {source.commit[:12]} is in {folder}')
        return folder
    given = os.environ.get(source.variable)
    origin = str(Path(given).expanduser().resolve()) if given and Path(given).expanduser().exists() else given
    origin = origin or source.url
    print(f'{source.name}: fetching {source.commit[:12]} from {origin}', flush=True)
    part = folder.with_name(f'{source.name}.part')
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    what = f'{source.name}: no commit {source.commit} from {origin} (another place: {source.variable})'
    try:
        _run(['git', 'init', '--quiet', part], what)
        _run(['git', '-c', 'protocol.version=2', 'fetch', '--quiet', '--depth=1', origin, source.commit], what, part)
        _run(['git', '-c', 'advice.detachedHead=false', 'checkout', '--quiet', source.commit], what, part)
        _finish(part, folder, source)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _finish(part: Path, folder: Path, source: Source) -> None:
    (part / STAMP).write_text(source.commit + '\n', encoding='utf-8')
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def fetch_timm_scripts() -> Path:
    """Put timm's stock scripts into a folder that holds nothing but them."""
    origin, folder = fetch(TIMM), cache_folder() / 'timm-scripts'
    if timm_scripts() is None:
        part = folder.with_name('timm-scripts.part')
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for script in origin.glob('*.py'):
            shutil.copyfile(script, part / script.name)
        _finish(part, folder, TIMM)
    print(f'timm: {len(list(folder.glob("*.py")))} stock scripts in {folder}')
    return folder


def build_detectron2() -> Path:
    """Build a detectron2 wheel against the torch of this interpreter, leaving the interpreter's packages alone.

    Raises:
        UpstreamError: naming the log of a build that failed.
    """
    source, wheels = fetch(DETECTRON2), _wheel_folder()
    if (wheel := detectron2_wheel()) is None:
        wheels.mkdir(parents=True, exist_ok=True)
        # Beside the environment, not in it: on PYTHONPATH these come before what the environment has.
        tools, part = wheels / 'build-tools', wheels / 'part'
        shutil.rmtree(part, ignore_errors=True)
        print(f'detectron2: building a wheel for torch {version("torch")} (a few minutes)', flush=True)
        _run([sys.executable, '-m', 'pip', 'install', '--quiet', '--upgrade', '--target', tools, *BUILD_TOOLS],
             'detectron2: build tools')
        env = {'FORCE_CUDA': '0', **git_environment(), 'PYTHONPATH': str(tools),
               'PATH': os.pathsep.join([str(tools / 'bin'), os.environ.get('PATH', os.defpath)])}
        _run([sys.executable, '-m', 'pip', 'wheel', '--no-build-isolation', '--no-deps', '--wheel-dir', part, source],
             'detectron2: the build failed', env=env, log=wheels / 'build.log')
        built = next(part.glob('detectron2-*.whl'))
        wheel = wheels / built.name
        built.replace(wheel)
        shutil.rmtree(part)
    print(f'detectron2: {wheel}')
    return wheel


def install_detectron2() -> None:
    """Install the wheel that lies in the cache folder into this interpreter's environment, unless it is there.

    What was installed of such a wheel before, of another commit or torch, goes: also where there is no wheel of the
    pinned commit yet, so that nothing else is tested in its name. What somebody else installed is left as it is.

    Raises:
        UpstreamError: with pip's last line, if it cannot.
    """
    wheel, origin = detectron2_wheel(), _origin()
    present = find_spec('detectron2') is not None
    if present and origin is None:
        if wheel is not None:
            print('detectron2: what is installed is not of `make upstream`, and is left as it is', flush=True)
        return
    if present and origin is not None and not _is_of(origin, wheel):
        print('detectron2: removing a build of another commit or torch', flush=True)
        _run([sys.executable, '-m', 'pip', 'uninstall', '--quiet', '--yes', 'detectron2'],
             'detectron2: cannot be removed')
        present = False
    if wheel is None or present:
        return
    print(f'detectron2: installing {wheel}', flush=True)
    # Its visualizer imports cv2 and its benchmark psutil, which it does not ask for; its model zoo pkg_resources.
    _run([sys.executable, '-m', 'pip', 'install', '--quiet', '-c', Path(__file__).parent.parent / 'constraints.txt',
          wheel, 'opencv-python-headless', 'psutil', BUILD_TOOLS[0]], 'detectron2: cannot be installed')


def _origin() -> dict[str, Any] | None:
    """What the installer of detectron2 noted of a wheel of the cache folder; None if it was not from there."""
    try:
        noted: dict[str, Any] = json.loads(distribution('detectron2').read_text('direct_url.json') or '{}')
    except PackageNotFoundError:
        return None
    return noted if '/upstream/wheels/' in noted.get('url', '') else None


def _is_of(origin: dict[str, Any], wheel: Path | None) -> bool:
    """Whether what was installed is this wheel: by its content, or where older installers do not note it, its place.

    Where there is no wheel (the cache folder has been emptied or moved), the folder's name says it.
    """
    if wheel is None:
        folder = unquote(origin['url']).split('/')[-2]
        # Folders did not name the commit once: there is nothing to say that this is another one.
        return folder in (_wheel_folder().name, _former_folder().name)
    noted = origin.get('archive_info', {}).get('hashes', {}).get('sha256')
    return bool(noted == hashlib.sha256(wheel.read_bytes()).hexdigest() if noted else origin['url'] == wheel.as_uri())


def main() -> int:
    """Fetch and build what is asked for; the first failure of each is one line on stderr."""
    parser = argparse.ArgumentParser(
        description='Bring pinned upstream code into the cache folder.',
        epilog='From GitHub, or from git repositories named by TIMM_REPO and DETECTRON2_REPO. '
               'RANDWIRE_ZOO_CACHE moves the cache folder.')
    steps: dict[str, Callable[[], object]] = {'timm': fetch_timm_scripts, 'detectron2': build_detectron2}
    parser.add_argument('name', nargs='*', metavar='NAME', help='timm or detectron2; both by default')
    parser.add_argument('--install', action='store_true',
                        help='bring nothing, but install the detectron2 wheel if one was built')
    args = parser.parse_args()
    if args.install:
        if args.name:
            parser.error('--install takes no NAME')
        steps = {'detectron2': install_detectron2}
    names = args.name or list(steps)
    if unknown := [name for name in names if name not in steps]:
        parser.error(f'{unknown[0]!r} is not one of {", ".join(steps)}')
    failed = False
    for name in names:
        try:
            steps[name]()
        except (UpstreamError, OSError) as error:
            failed = True
            print(f'upstream: {error}', file=sys.stderr)
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
