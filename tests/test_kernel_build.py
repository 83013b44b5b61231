"""Building and keeping the kernels: nothing is loaded that somebody else could have put there, or that is not whole.

A stand-in for the compiler copies a library of one function, which takes no time.
"""
from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from randwire_zoo.kernels import build
from randwire_zoo.kernels import library as kernels
from randwire_zoo.kernels.build import KernelError, load_library

COMPILER = os.environ.get('CXX', 'c++').split()[0]
pytestmark = [
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f'the kernels are built with {COMPILER}'),
    pytest.mark.skipif(not hasattr(os, 'geteuid'), reason='owners and permissions are those of POSIX')]


@pytest.fixture(scope='module')
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stand-in copies."""
    folder = tmp_path_factory.mktemp('built')
    (folder / 'library.cpp').write_text('extern "C" int samples() { return 1; }\n')
    subprocess.run([COMPILER, '-shared', '-fPIC', '-o', folder / 'library.so', folder / 'library.cpp'], check=True)
    return folder / 'library.so'


@pytest.fixture
def folder(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a stand-in for the compiler puts the library, counting its runs in `runs`."""
    compiler = tmp_path / 'compiler'
    compiler.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/runs\n'
        'for flag in $REFUSED; do case " $* " in *" $flag "*) echo "error: $flag?" >&2; exit 1;; esac; done\n'
        f'while [ "$1" != -o ]; do shift; done\ncp {built} "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))
    monkeypatch.setenv('RANDWIRE_ZOO_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'kernels'


def runs(folder: Path) -> list[str]:
    file = folder.parent.parent / 'runs'
    return file.read_text().splitlines() if file.exists() else []


def library(folder: Path) -> Path:
    path, = folder.iterdir()
    return path


def test_a_library_is_built_once_and_private(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.umask(0o002)  # as on systems where every user has a group
    try:
        load_library()
    finally:
        os.umask(old)
    assert (folder.stat().st_mode & 0o777, library(folder).stat().st_mode & 0o777) == (0o755, 0o755)
    assert load_library()._name == str(library(folder))
    assert len(runs(folder)) == 1


def test_who_waits_for_another_process_takes_what_that_one_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library()
    path = library(folder)
    aside = path.rename(folder.parent / 'aside.so')

    def locked_when_the_other_is_done(descriptor: int, operation: int) -> None:
        assert os.path.samestat(os.fstat(descriptor), folder.stat()) and operation == build.fcntl.LOCK_EX
        aside.rename(path)
    monkeypatch.setattr(build.fcntl, 'flock', locked_when_the_other_is_done)
    assert load_library()._name == str(path)
    assert len(runs(folder)) == 1


def test_without_locks_it_is_built_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*args: Any) -> None:
        raise OSError(38, 'Function not implemented')
    monkeypatch.setattr(build.fcntl, 'flock', no_locks)
    load_library()
    library(folder).unlink()
    monkeypatch.setattr(build, 'fcntl', None)  # as on Windows
    load_library()
    assert len(runs(folder)) == 2 and library(folder)


def test_somebody_at_a_terminal_is_told_what_takes_so_long(
        folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    load_library()
    assert capsys.readouterr() == ('', '')
    library(folder).unlink()
    monkeypatch.setattr(build.sys.stderr, 'isatty', lambda: True, raising=False)
    load_library()
    assert capsys.readouterr() == ('', 'building the native kernels for this processor, once\n')


def test_another_source_compiler_or_processor_is_another_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library()
    monkeypatch.setattr(build, '_processor', lambda: 'flags: of another processor')
    load_library()
    monkeypatch.setenv('CXX', f'{os.environ["CXX"]} -DOTHER')
    load_library()
    assert len(runs(folder)) == len(list(folder.iterdir())) == 3


@pytest.mark.skipif(not Path('/proc/cpuinfo').exists(), reason='read from /proc/cpuinfo')
def test_the_processor_is_told_by_its_flags() -> None:
    found = build._processor()
    assert found.split()[0] in ('flags', 'Features') and found in Path('/proc/cpuinfo').read_text()


@pytest.mark.parametrize(('cpuinfo', 'found'), [
    ('processor : 0\nflags : fpu sse\nprocessor : 1\nflags : other\n', 'flags : fpu sse'),
    ('processor : 0\nFeatures : fp asimd\n', 'Features : fp asimd'), ('processor : 0\n', ''), (None, 'some processor'),
], ids=['x86', 'ARM', 'unknown', 'not on Linux'])
def test_what_tells_processors_apart(cpuinfo: str | None, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(path: Path, encoding: str) -> str:
        assert (str(path), encoding) == ('/proc/cpuinfo', 'utf-8')
        if cpuinfo is None:
            raise FileNotFoundError(2, 'No such file or directory')
        return cpuinfo
    monkeypatch.setattr(build.Path, 'read_text', read_text)
    monkeypatch.setattr(build.platform, 'processor', lambda: 'some processor')
    assert build._processor() == found


@pytest.mark.parametrize('damage', [
    lambda data: data[:len(data) // 2], lambda data: b'', lambda data: data[:-1] + bytes([data[-1] ^ 1]),
], ids=['truncated', 'empty', 'altered'])
def test_a_broken_library_is_built_again(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    load_library()
    path = library(folder)
    whole = path.read_bytes()
    path.unlink()  # what this process has loaded stays as it is
    path.write_bytes(damage(whole))
    path.chmod(0o755)
    assert load_library().samples() == 1
    assert library(folder).read_bytes() == whole
    assert len(runs(folder)) == 2


@pytest.mark.parametrize('of', ['folder', 'file'])
@pytest.mark.parametrize('mode', [0o775, 0o757, 0o777], ids=oct)
def test_what_others_may_write_to_is_not_loaded(folder: Path, of: str, mode: int) -> None:
    load_library()
    path = folder if of == 'folder' else library(folder)
    path.chmod(mode)
    with pytest.raises(KernelError, match=rf'^native kernels are not loaded from the {of} \S+: others may write to it '
                                          rf'\(mode {mode:o}\); run chmod go-w or set RANDWIRE_ZOO_CACHE$'):
        load_library()
    path.chmod(0o755)
    load_library()
    assert len(runs(folder)) == 1


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0, reason='only root can give a file away')
@pytest.mark.parametrize('of', ['folder', 'file'])
def test_what_belongs_to_somebody_else_is_not_loaded(folder: Path, of: str) -> None:
    load_library()
    os.chown(folder if of == 'folder' else library(folder), 12345, 12345)
    with pytest.raises(KernelError, match=rf'not loaded from the {of} \S+: it belongs to user 12345, not to you'):
        load_library()


def test_what_root_built_is_everybodys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library()
    monkeypatch.setattr(os, 'geteuid', lambda: library(folder).stat().st_uid or 1)
    load_library()
    assert len(runs(folder)) == 1


def test_a_link_is_not_followed(folder: Path) -> None:
    load_library()
    path = library(folder)
    path.rename(folder.parent / 'elsewhere.so')
    path.symlink_to(folder.parent / 'elsewhere.so')
    with pytest.raises(KernelError, match='neither a folder nor a file of its own'):
        load_library()


def test_a_folder_that_cannot_be_written_to_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.parent.mkdir()
    folder.write_text('a file where the folder should be')
    with pytest.raises(KernelError, match=rf'^the native kernels cannot be kept in {folder} \(File exists\): set '
                                          'RANDWIRE_ZOO_CACHE to a folder that you may write to$'):
        load_library()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, 'Permission denied')
    folder.unlink()
    monkeypatch.setattr(Path, 'mkdir', refuse)
    with pytest.raises(KernelError, match=r'cannot be kept in \S+ \(Permission denied\)'):
        load_library()


def test_a_folder_that_cannot_be_reached_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_dir = Path.is_dir

    def refuse(path: Path) -> bool:
        if path == folder:  # as in another user's home
            raise PermissionError(13, 'Permission denied', str(path))
        return is_dir(path)
    monkeypatch.setattr(Path, 'is_dir', refuse)
    with pytest.raises(KernelError, match=rf'^the native kernels cannot be kept in {folder} \(Permission denied\): '):
        load_library()


def test_a_user_without_a_home_folder_is_told_of_the_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError('Could not determine home directory.')
    monkeypatch.delenv('RANDWIRE_ZOO_CACHE')
    monkeypatch.setattr(Path, 'home', refuse)
    with pytest.raises(KernelError, match=r'^the native kernels cannot be built: there is no home folder to keep '
                                          r'things in: set RANDWIRE_ZOO_CACHE to a folder that you may write to$'):
        load_library()


@pytest.mark.parametrize('gone', ['lstat', 'read_bytes'])
def test_a_library_that_another_process_has_just_removed_is_built_again(
        folder: Path, gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library()
    path, real = library(folder), getattr(Path, gone)

    def missing(self: Path) -> Any:
        if self == path and os.path.exists(path) and len(runs(folder)) == 1:
            os.unlink(path)
        return real(self)
    monkeypatch.setattr(Path, gone, missing)
    load_library()
    assert len(runs(folder)) == 2 and library(folder) == path


def test_a_command_that_no_shell_would_take_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CXX', "g++ '-O3")
    with pytest.raises(KernelError, match=r'^CXX is no command, got "g\+\+ \'-O3": No closing quotation$'):
        load_library()


@pytest.mark.parametrize('asked', [None, ''])
def test_without_a_word_the_compiler_is_cpp(folder: Path, asked: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Path(os.environ['CXX'])
    compiler.rename(compiler.with_name('c++'))
    monkeypatch.setenv('PATH', f'{compiler.parent}:{os.environ["PATH"]}')
    monkeypatch.setenv('CXX', '') if asked == '' else monkeypatch.delenv('CXX')
    load_library()
    assert len(runs(folder)) == 1


@pytest.mark.parametrize(('refused', 'taken'), [
    ('', '-fopenmp'), ('-march=native', '-mcpu=native'), ('-mcpu=native', '-march=native'), ('-lomp', '-fopenmp')])
def test_flags_are_those_that_the_compiler_takes(
        folder: Path, refused: str, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('REFUSED', refused)
    load_library()
    last = f' {runs(folder)[-1]} '
    assert f' {taken} ' in last and (not refused or f' {refused} ' not in last)


def test_apples_clang_is_told_of_openmp_through_its_preprocessor_or_does_without(
        folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Path(os.environ['CXX'])
    script = compiler.read_text()
    # As Apple's: -fopenmp alone is an error, after -Xclang it is not.
    compiler.write_text(script.replace(
        '#!/bin/sh\n', '#!/bin/sh\ncase " $* " in *" -Xclang -fopenmp "*) ;; *" -fopenmp "*) '
        'echo "clang: error: unsupported option \'-fopenmp\'" >&2; exit 1;; esac\n'))
    load_library()
    assert '-Xclang -fopenmp -lomp' in runs(folder)[-1]
    monkeypatch.setenv('REFUSED', '-lomp')
    library(folder).unlink()
    load_library()
    assert 'openmp' not in runs(folder)[-1]


def test_what_no_flags_help_is_told_as_the_compiler_tells_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('REFUSED', '-O3')
    with pytest.raises(KernelError, match=r'^\S+ could not build the native kernels: error: -O3\?$'):
        load_library()
    assert not any(folder.iterdir()), 'something half built was left behind'


@pytest.mark.parametrize(('says', 'told'), [
    ('echo "a.h: warning: unused" >&2; echo "a.h:3: error: what is this?" >&2; echo "a.h:4: error: and this?" >&2',
     'a.h:3: error: what is this?'),
    ('echo "out of memory" >&2', 'out of memory'), ('true', 'no message')], ids=['errors', 'no error', 'nothing'])
def test_what_is_told_of_a_compiler_is_its_first_error(
        folder: Path, says: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(os.environ['CXX']).write_text(f'#!/bin/sh\n{says}\nexit 1\n')
    with pytest.raises(KernelError) as error:
        load_library()
    assert str(error.value) == f'{os.environ["CXX"]} could not build the native kernels: {told}'


def test_a_compiler_that_is_not_there_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CXX', 'no-such-compiler -m64')
    with pytest.raises(KernelError, match=r"^the native kernels need a C\+\+ compiler, and there is no "
                                          r"'no-such-compiler': install g\+\+ or set CXX$"):
        load_library()


def test_what_was_built_and_does_not_load_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Path(os.environ['CXX'])
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho no library > "$2"\n')
    with pytest.raises(KernelError, match=r'^the native kernels were built and cannot be loaded: \S+\.so: '):
        load_library()


def load_only(monkeypatch: pytest.MonkeyPatch, c_library: SimpleNamespace) -> None:
    """Let this be what the process finds as its C library, and let there be kernels."""
    monkeypatch.setattr(kernels, '_library', lambda: None)
    monkeypatch.setattr(ctypes, 'CDLL', lambda name: c_library)


@pytest.mark.parametrize('largest', [2 ** 40, 2 ** 25], ids=['a new glibc', 'an old glibc'])
def test_malloc_keeps_what_is_freed(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[int, int] = {}

    def mallopt(parameter: int, value: int) -> int:
        if value > largest:
            return 0
        kept[parameter] = value
        return 1
    load_only(monkeypatch, SimpleNamespace(mallopt=mallopt))
    kernels.use_kernels('native')
    kernels.use_kernels('torch')
    assert kept == {-1: min(largest, 2 ** 30), -3: min(largest, 2 ** 30)}  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD


def test_elsewhere_than_on_glibc_malloc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    load_only(monkeypatch, SimpleNamespace())
    kernels.use_kernels('native')
    kernels.use_kernels('torch')
