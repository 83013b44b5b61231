"""Transfers end when they shall, whatever the other side does, and say how they ended."""
from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import wait_for

from randwire_zoo.hub import transfer
from randwire_zoo.hub.transfer import TIMEOUT, bounded, left_behind
from randwire_zoo.weights.manifest import HubError


@pytest.fixture(autouse=True)
def none_before() -> None:
    transfer._going_on.clear()


@pytest.fixture
def silent() -> Iterator[threading.Event]:
    """What a server that says nothing is waited for with, until the test lets go."""
    event = threading.Event()
    yield event
    event.set()


def wait_for_the_end() -> None:
    wait_for(lambda: not left_behind())


def test_what_a_transfer_gives_is_given() -> None:
    assert TIMEOUT == 600
    assert bounded(lambda: 'received', 60, 'it') == 'received' and not left_behind()
    assert bounded(lambda: None, 60, 'it') is None
    assert bounded(lambda: (time.sleep(0.3), 'late')[1], 60, 'it') == 'late' and not left_behind()


@pytest.mark.parametrize('kind', [ValueError, KeyboardInterrupt, SystemExit])
def test_what_a_transfer_raises_is_raised(kind: type[BaseException]) -> None:
    error = kind('why')

    def fail() -> None:
        raise error
    with pytest.raises(kind) as raised:
        bounded(fail, 60, 'it')
    assert raised.value is error and not left_behind()


@pytest.mark.parametrize('seconds', [0.01, 0.25])
def test_who_hears_nothing_gives_up_and_is_told_that_something_goes_on(seconds: float, silent: threading.Event) -> None:
    began = time.monotonic()
    with pytest.raises(HubError) as error:
        bounded(silent.wait, seconds, 'owner/name')
    assert time.monotonic() - began >= seconds, 'it gave up too soon'
    assert str(error.value) == (
        f'owner/name: gave up after {seconds:g} s (--timeout); run it again, with a larger one if the connection is '
        'slow: what has arrived is not sent again')
    assert left_behind() and bounded(lambda: 1, 60, 'another') == 1 and left_behind()
    silent.set()
    wait_for_the_end()


@pytest.mark.parametrize('seconds', [0, -1, float('inf'), float('nan')])
def test_a_time_that_is_none_is_refused_before_anything_begins(seconds: float) -> None:
    begun: list[int] = []
    with pytest.raises(ValueError) as error:
        bounded(lambda: begun.append(1), seconds, 'it')
    assert str(error.value) == f'--timeout must be a number of seconds above 0, got {seconds:g}'
    assert not begun and not left_behind()


def test_an_interrupt_leaves_at_once(silent: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread waits in pieces, each of which an interrupt ends; nobody waits for the transfer's own thread."""
    waits: list[float] = []

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or float('inf'))
            raise KeyboardInterrupt

    threads: list[threading.Thread] = []

    def thread(**kwargs: Any) -> threading.Thread:
        threads.append(threading.Thread(**kwargs))
        return threads[-1]
    monkeypatch.setattr(transfer, 'threading', SimpleNamespace(Event=Interrupted, Thread=thread))
    with pytest.raises(KeyboardInterrupt):
        bounded(silent.wait, 60, 'it')
    assert waits == [0.1] and left_behind() and [one.daemon for one in threads] == [True]
    silent.set()
    threads[0].join(60)
    assert not left_behind()
