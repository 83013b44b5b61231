"""Transfers that end: after a time that is given, and at the first Ctrl-C.

The Hub's client waits without a bound for a server that has accepted a connection and says nothing, tries again, and
waits for threads of its own that nobody can stop. So a transfer runs in a thread that can be left behind; whoever
leaves it must end the process without waiting for its threads (`left_behind` tells).
"""
from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from randwire_zoo.weights.manifest import HubError

__all__ = ['TIMEOUT', 'bounded', 'left_behind']

T = TypeVar('T')
#: Seconds for a whole transfer, where nothing else is asked for.
TIMEOUT = 600.0
_going_on: list[threading.Event] = []


def bounded(transfer: Callable[[], T], seconds: float, what: str) -> T:
    """Call something that talks to the Hub, and wait for it no longer than this.

    Args:
        transfer: What is called.
        seconds: For all of it.
        what: Named in the error.

    Raises:
        HubError: if it takes longer.
        ValueError: if the bound is none.
    """
    if not 0 < seconds < float('inf'):
        raise ValueError(f'--timeout must be a number of seconds above 0, got {seconds:g}')
    outcome: dict[str, Any] = {}
    done = threading.Event()  # and no Thread.join, which an interrupt makes believe that the thread has ended

    def run() -> None:
        try:
            outcome['result'] = transfer()
        except BaseException as error:
            outcome['error'] = error
        done.set()

    _going_on.append(done)
    threading.Thread(target=run, daemon=True).start()
    deadline = time.monotonic() + seconds
    while not done.is_set() and (left := deadline - time.monotonic()) > 0:
        done.wait(min(left, 0.1))  # in short pieces, between which Windows notices Ctrl-C
    if not done.is_set():
        raise HubError(f'{what}: gave up after {seconds:g} s (--timeout); run it again, with a larger one if the '
                       'connection is slow: what has arrived is not sent again')
    if 'error' in outcome:
        raise outcome['error']
    return outcome['result']


def left_behind() -> bool:
    """Whether a transfer goes on that nobody waits for any more."""
    return not all(done.is_set() for done in _going_on)
