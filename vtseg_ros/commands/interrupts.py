# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM in commands: both end a command in order, so that nothing half written stays behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _handler(handle, numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be handled
        yield
        return
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def raised() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM too, so that context managers clean up."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with _handler(interrupt, (signal.SIGTERM,)):
        yield


@contextmanager
def deferred() -> Iterator[list[int]]:
    """A list that the first signal adds itself to, to be looked at between frames; the second one raises."""
    caught: list[int] = []

    def note(number: int, _: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    with _handler(note, SIGNALS):
        yield caught


@contextmanager
def unwritten(what: object) -> Iterator[None]:
    """Add to an interrupt that something was not written."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or f"{what} was not written") from stop
