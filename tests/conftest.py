"""What all tests share: a fixed seed, no network, and none of the user's settings."""
from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

# Before huggingface_hub is imported, so that nothing here, nor a process started here, asks the Hub.
os.environ['HF_HUB_OFFLINE'] = '1'
# What a user has set for this package would change what the tests test, but for where they find what they need.
for name in [name for name in os.environ if name.startswith('RANDWIRE_ZOO_')]:
    if name not in ('RANDWIRE_ZOO_CACHE', 'RANDWIRE_ZOO_DATA', 'RANDWIRE_ZOO_SCREENSHOT'):
        del os.environ[name]
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if 'TESTED_KERNELS' in os.environ:
        from randwire_zoo.kernels.library import kernels_in_use
        terminalreporter.write_line(f'kernels {kernels_in_use()}')
