"""Waiting for what other processes do, however long they take on a busy machine."""
from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any


def wait_for(what: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> Any:
    """Poll until there is something, and give it; a process that ends before is a failure.

    There is no limit here: how long it takes says how busy the machine is. The time limit of every test ends one that
    hangs.
    """
    while True:
        ended = process is not None and process.poll() is not None  # before it is asked what it has done
        if found := what():
            return found
        assert not ended, 'the process ended before there was what was waited for'
        time.sleep(0.02)
