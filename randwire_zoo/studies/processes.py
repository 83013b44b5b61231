"""Processes that end with whoever started them; `files.lock` keeps two of them out of one folder.

A process that trains a network may be killed at any instant, and so may the study above it and the detector below it.
None of them may go on alone: the study that is started next would train the same network a second time.
"""
from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ['end_with_parent', 'keep_niceness', 'run_child']

PR_SET_PDEATHSIG = 1  # of Linux' prctl


def end_with_parent() -> None:
    """End this process, and its group if it leads one, when whoever holds the other end of its stdin is gone.

    A pipe closes however its holder died, and descendants inherit it.
    """
    def watch() -> None:
        while os.read(0, 1):  # not through sys.stdin, whose lock Python wants when it ends
            pass
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def keep_niceness() -> None:
    """Let the session that begins with this process be as nice as it is itself.

    Linux weighs whole sessions against each other (sched_autogroup), and a new one as if nobody had asked for less: a
    study under `nice` would take the cores from what it was to give way to.
    """
    if sys.platform.startswith('linux') and os.nice(0) > 0:
        with suppress(OSError):  # a kernel without it
            for _ in range(50):
                with suppress(BlockingIOError):  # users other than root may ask ten times a second, all together
                    Path('/proc/self/autogroup').write_text(str(os.nice(0)), encoding='ascii')
                    return
                time.sleep(0.1)


def run_child(command: Sequence[str], log: Any, environment: Mapping[str, str], held: int | None) -> int:
    """Run a program that ends with this process; returns its exit code.

    The kernel kills it when this process dies, where it can (Linux). On any system it shares this process's lock, so
    that nobody else gets in while it is still at work, and its stdin is a pipe that closes with this process.

    Args:
        command: Program and arguments.
        log: Where its output goes.
        environment: Its environment.
        held: What `files.lock` gave.
    """
    watched, ours = os.pipe()
    try:
        parent, prctl = os.getpid(), _prctl()

        def die_with_parent() -> None:
            if prctl is not None:
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != parent:  # it died before
                    os._exit(1)

        with subprocess.Popen(
                command, stdin=watched, stdout=log, stderr=subprocess.STDOUT, env=environment,
                pass_fds=() if held is None else (held,), preexec_fn=die_with_parent) as process:
            os.close(watched)
            watched = -1
            try:
                return process.wait()
            except BaseException:
                process.kill()
                raise
    finally:
        for end in (watched, ours):
            if end >= 0:
                os.close(end)


def _prctl() -> Any:
    """Linux' prctl, looked up before the fork: after it nothing may be loaded."""
    if not sys.platform.startswith('linux'):
        return None
    try:
        return ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
