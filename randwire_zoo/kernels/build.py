"""Builds kernels.cpp for the processor at hand, and keeps what it built where nobody else can put something.

The library is one C++ file and what it includes, without dependencies. It is compiled with $CXX (c++) in about ten
seconds and kept under $RANDWIRE_ZOO_CACHE (~/.cache/randwire_zoo), under a name that holds the hash of its source, of
the compiler's command and of the processor, and the hash of its own bytes. What is loaded is run:
so only files that this user (or root) owns,
in a folder that nobody else may write to, are; and a file whose bytes are not those of its name is built again.

That is how instructions are chosen at run time: a machine compiles for the processor it has (-march=native), where a
library made elsewhere would have to carry every variant of every loop, and a cache that several machines share holds
one library for each kind of processor.
"""
from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import platform
import shlex
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..files import cache_folder

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ['KernelError', 'load_library']

# GCC and LLVM's clang take the first; Apple's clang needs its preprocessor told; whoever has no OpenMP gets one thread.
_OPENMP = (('-fopenmp',), ('-Xclang', '-fopenmp', '-lomp'), ())
_PROCESSOR = ('-march=native', '-mcpu=native')  # some compilers for ARM know the second only
_FLAGS = ('-O3', '-std=c++17', '-shared', '-fPIC')


class KernelError(RuntimeError):
    """The native kernels were asked for and cannot be had, or were given what they do not take."""


def load_library() -> ctypes.CDLL:
    """The compiled kernels, built unless the same source was built here before.

    Raises:
        KernelError: in one line, if they cannot be built, kept, trusted or loaded.
    """
    source = Path(__file__).parent / 'cpp' / 'kernels.cpp'
    try:
        compiler = shlex.split(os.environ.get('CXX', '')) or ['c++']
    except ValueError as e:
        raise KernelError(f'CXX is no command, got {os.environ["CXX"]!r}: {e}') from None
    built_for = f'{compiler} {_FLAGS} {_PROCESSOR} {_OPENMP} {platform.machine()} {_processor()}'.encode()
    try:
        text = b''.join(path.read_bytes() for path in (source, *sorted(source.parent.glob('*.h'))))
        folder = cache_folder() / 'kernels'
    except OSError as e:
        raise KernelError(f'the native kernels cannot be built: {e}') from None
    key = hashlib.sha256(text + built_for).hexdigest()[:16]
    try:
        path = _kept(folder, key) or _build(folder, key, compiler, source)
    except OSError as e:
        raise KernelError(f'the native kernels cannot be kept in {folder} ({e.strerror}): set RANDWIRE_ZOO_CACHE to a '
                          'folder that you may write to') from None
    try:
        return ctypes.CDLL(str(path))
    except OSError as e:
        raise KernelError(f'the native kernels were built and cannot be loaded: {e}') from None


def _kept(folder: Path, key: str) -> Path | None:
    """The library that was built for this key, if it is whole; broken ones are removed."""
    if not folder.is_dir():
        return None
    _check_private(folder)
    for path in sorted(folder.glob(f'{key}-*.so')):
        try:
            _check_private(path)
            if path.stem == f'{key}-{_digest(path)}':
                return path
        except FileNotFoundError:
            continue  # a process that was here first has just removed it
        try:
            path.unlink()
        except OSError:
            continue  # it is not loaded, and that is what counts
    return None


def _check_private(path: Path) -> None:
    """Refuse what somebody else could have written."""
    found = path.lstat()
    kind = 'folder' if stat.S_ISDIR(found.st_mode) else 'file' if stat.S_ISREG(found.st_mode) else None
    if kind is None:
        raise KernelError(f'native kernels are not loaded through {path}: it is neither a folder nor a file of its own')
    me = os.geteuid() if hasattr(os, 'geteuid') else found.st_uid  # elsewhere than on POSIX systems there are no owners
    if found.st_uid not in (me, 0):
        raise KernelError(f'native kernels are not loaded from the {kind} {path}: it belongs to user {found.st_uid}, '
                          'not to you; remove it or set RANDWIRE_ZOO_CACHE')
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KernelError(f'native kernels are not loaded from the {kind} {path}: others may write to it '
                          f'(mode {stat.S_IMODE(found.st_mode):o}); run chmod go-w or set RANDWIRE_ZOO_CACHE')


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _build(folder: Path, key: str, compiler: list[str], source: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o755, exist_ok=True)
    _check_private(folder)
    with _alone(folder):
        if (path := _kept(folder, key)) is not None:  # by a process that was here first
            return path
        if sys.stderr.isatty():
            print('building the native kernels for this processor, once', file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix='.building-', dir=folder) as temporary:
            built = Path(temporary) / 'kernels.so'
            _compile(compiler, source, built)
            built.chmod(0o755)  # whatever the umask
            return built.replace(folder / f'{key}-{_digest(built)}.so')


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process build and the others wait for it: it saves their time.

    Nothing but time depends on it, as each builds in a folder of its own and moves what is whole into its place: so a
    file system without locks is no trouble.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _compile(compiler: list[str], source: Path, to: Path) -> None:
    """With the first flags that the compiler takes; what it says to the very first is what is told if it takes none."""
    message = None
    for openmp, processor in itertools.product(_OPENMP, _PROCESSOR):
        command = [*compiler, *_FLAGS, processor, '-o', str(to), str(source), *openmp]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors='replace')
        except OSError:
            raise KernelError(f'the native kernels need a C++ compiler, and there is no {compiler[0]!r}: install g++ '
                              'or set CXX') from None
        if done.returncode == 0:
            return
        message = message or next(
            (line for line in done.stderr.splitlines() if 'error' in line), done.stderr or 'no message')
    raise KernelError(f'{shlex.join(compiler)} could not build the native kernels: {str(message).strip()}')


def _processor() -> str:
    """What `-march=native` depends on: a cache folder may be shared by several machines."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(('flags', 'Features'))), '')
