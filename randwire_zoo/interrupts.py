"""Ctrl-C: one line, from the first instant on.

While modules are imported, an exception out of a signal handler can end up anywhere: swallowed, or as the cause of
another one in some library's half-made module. Until a command runs there is nothing to clean up, so that the process
may simply end.
"""
from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

__all__ = ['EXIT', 'exit_on_interrupt', 'ignore_interrupts', 'is_first_process', 'raise_on_interrupt']

EXIT = 130  # of a process that Ctrl-C has ended, as shells count it
PATIENCE = 3.0  # seconds
MESSAGE = b'\nrandwire-zoo: interrupted before anything was done\n'


def _exit(signum: int, frame: Any) -> None:
    if is_first_process():
        os.write(2, MESSAGE)
    os._exit(EXIT)


def is_first_process() -> bool:
    """Whether this process speaks for all of a distributed run."""
    return os.environ.get('RANK', '0') == '0'


def exit_on_interrupt() -> None:
    """From now on Ctrl-C ends this process with one line, unless it is ignored, as it is under nohup."""
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _exit)


def raise_on_interrupt() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt again: what runs may have something to put in order.

    In this process alone: a terminal interrupts those that load images as well, and they have nothing to say. And once
    within `PATIENCE`: who presses it twice would spoil the last line.
    """
    this, last = os.getpid(), -PATIENCE

    def handler(signum: int, frame: Any) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if os.getpid() == this and last - before >= PATIENCE:
            raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, handler)


def ignore_interrupts() -> None:
    """From now on Ctrl-C does nothing: the process is about to end, and a second one would only spoil its last line."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
