"""What all tests share: a fixed seed, no network, and none of the user's settings."""
from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# What a user has set would change what the tests test, but for where they find what they need: of this package; of the
# Hub's client (another Hub, a token, a cache that has what shall be missing); of detectron2 (data sets, the script that
# studies start, modules to import); of matplotlib (a backend that has no display). And git tells its hooks which
# repository, index and work tree it is at work on: every git that a test starts would take these for its own.
SETTINGS = ('RANDWIRE_ZOO_', 'HF_', 'HUGGINGFACE_', 'HUGGING_FACE_', 'DETECTRON2_', 'MPLBACKEND', 'GIT_')
NEEDED = ('RANDWIRE_ZOO_CACHE', 'RANDWIRE_ZOO_DATA', 'RANDWIRE_ZOO_SCREENSHOT', 'GIT_EXEC_PATH', 'GIT_CONFIG_')
for name in [name for name in os.environ if name.startswith(SETTINGS) and not name.startswith(NEEDED)]:
    del os.environ[name]
# Before huggingface_hub is imported, so that nothing here, nor a process started here, asks the Hub.
os.environ['HF_HUB_OFFLINE'] = '1'
# In the place of the user's own, which may ask for LaTeX. MPLCONFIGDIR stays: fonts are cached there, which takes long.
os.environ['MATPLOTLIBRC'] = os.devnull
# What a test sets for tests that it runs itself.
if 'TESTED_KERNELS' in os.environ:
    os.environ['RANDWIRE_ZOO_KERNELS'] = os.environ['TESTED_KERNELS']
# The tests' tensors are tiny: more threads only wait for each other, above all on a busy machine.
os.environ.setdefault('OMP_NUM_THREADS', '1')


# What a script starts in the background ignores Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Draw the same weights and images in every run, whichever tests run before."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def kernels_are_nobodys_choice() -> Iterator[None]:
    """Forget after every test which kernels it asked for, so that the next one's commands choose by themselves."""
    yield
    kernels = sys.modules.get('randwire_zoo.kernels.library')
    if kernels is not None:
        kernels._in_use = None  # type: ignore[attr-defined]


@pytest.fixture(autouse=True, scope='session')
def builtins_are_held() -> None:
    """Keep alive what TorchScript knows by its address alone.

    It takes an attribute of a module for the builtin that once lay where the attribute lies now: an operator that
    gains an overload is replaced, and its old address stays in the table. Among hundreds of tests this happens.
    """
    from torch.jit import _builtins

    register, held = _builtins._register_builtin, []

    def register_and_hold(function: Callable, name: str) -> None:
        held.append(function)
        register(function, name)
    _builtins._register_builtin = register_and_hold


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """git in tmp_path, which is part of no other checkout, whatever repository a test names in the environment."""
    from randwire_zoo.provenance import git_environment

    if shutil.which('git') is None:
        pytest.skip('git is not on the PATH')
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))

    def run(*arguments: str) -> str:
        # Nor do the user's own settings count, such as signatures and hooks.
        environment = {**git_environment(), 'GIT_CONFIG_GLOBAL': os.devnull, 'GIT_CONFIG_SYSTEM': os.devnull}
        return subprocess.run(['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=b', *arguments],
                              check=True, capture_output=True, text=True, env=environment).stdout.strip()
    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if 'TESTED_KERNELS' in os.environ:
        from randwire_zoo.kernels.library import kernels_in_use
        terminalreporter.write_line(f'kernels {kernels_in_use()}')
