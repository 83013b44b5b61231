"""What a measured figure was made with: versions, kernels, threads, processor, commit."""
from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from . import __version__

__all__ = ['git_environment', 'provenance']

# What pyproject.toml makes of this project beside this folder: packages of ours, and the module that registers us.
BESIDE = ('configs', 'detection', 'hub', '_randwire_zoo_autoload.py')
# By these git tells hooks and `git rebase --exec` on which repository it is at work, and would not look for ours here.
OF_A_HOOK = ('GIT_COMMON_DIR', 'GIT_DIR', 'GIT_INDEX_FILE', 'GIT_OBJECT_DIRECTORY', 'GIT_WORK_TREE')


def provenance(device: Any = None) -> dict[str, Any]:
    """Versions of python, torch and timm, what runs where with how many threads, this package's commit, and the date.

    'commit' is None for a package that was not installed from a checkout, and ends in '+' where its files were changed
    since. 'device' is the GPU's name, or None for what runs on the processor.

    Args:
        device: The device of the run, as torch takes it; if None, what commands take where none is named: a GPU if
            there is one.
    """
    import timm
    import torch

    from .kernels.library import kernels_in_use
    if device is None:
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    on_gpu = torch.device(device).type == 'cuda'
    return {'date': datetime.now(timezone.utc).isoformat(timespec='seconds'), 'randwire_zoo': __version__,
            'commit': _commit(), 'python': platform.python_version(), 'torch': torch.__version__,
            'timm': timm.__version__, 'processor': _processor(),
            'device': torch.cuda.get_device_name(torch.device(device)) if on_gpu else None,
            'kernels': kernels_in_use(), 'threads': torch.get_num_threads()}


def git_environment() -> dict[str, str]:
    """The environment for a git that is to look at the folder that it is given, and not at the repository of a hook."""
    return {name: value for name, value in os.environ.items() if name not in OF_A_HOOK}


@cache
def _commit() -> str | None:
    """The commit of the checkout that this package is imported from."""
    here = Path(__file__).resolve().with_name('__init__.py')

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(['git', '-C', str(here.parent), *arguments], env=git_environment(),
                                  capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    def changed(*paths: str) -> bool:
        return bool(git('status', '--porcelain', '--untracked-files=no', '--', *paths))

    if git('ls-files', '--error-unmatch', here.name) is None:  # no git, or another project's work tree around us
        return None
    commit = git('rev-parse', 'HEAD')
    return commit and commit + ('+' if changed('.') or changed(*(f'../{name}' for name in BESIDE)) else '')


@cache
def _processor() -> str:
    """The processor's name, and how many of its cores are here."""
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file():
        names = [line.split(':', 1)[1].strip() for line in cpuinfo.read_text(encoding='utf-8').splitlines()
                 if line.startswith('model name')]
        if names:
            return f'{len(names)} × {names[0]}'
    return platform.processor() or platform.machine()
