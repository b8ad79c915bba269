# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM in commands: both end a command in order, without incomplete files."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_raised: list[int] = []


@contextmanager
def _handler(
    handle: Callable[[int, FrameType | None], object], numbers: tuple[signal.Signals, ...]
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals cannot be handled here
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
    """Raise KeyboardInterrupt on SIGTERM too, which makes context managers clean up."""
    _raised.clear()

    def interrupt(number: int, _: object) -> None:
        _raised.append(number)
        raise KeyboardInterrupt

    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as nohup and background jobs have it
    with _handler(interrupt, (signal.SIGTERM,) if ignored else SIGNALS):
        yield


def check() -> None:
    """Raise KeyboardInterrupt if there was a signal whose KeyboardInterrupt some library has swallowed."""
    if _raised:
        raise KeyboardInterrupt


@contextmanager
def deferred(*, second_raises: bool = True) -> Iterator[list[int]]:
    """Yield a list that signals are added to, to be checked between frames.

    Args:
        second_raises: Whether a second signal raises KeyboardInterrupt; otherwise it is only added.
    """
    caught: list[int] = []

    def note(number: int, _: object) -> None:
        if caught and second_raises:
            raise KeyboardInterrupt
        caught.append(number)

    with _handler(note, SIGNALS):
        yield caught


@contextmanager
def unwritten(what: object) -> Iterator[None]:
    """Add to a KeyboardInterrupt that something was not written; a path that exists then is complete."""
    try:
        yield
    except KeyboardInterrupt as stop:
        complete = isinstance(what, Path) and what.exists()
        raise KeyboardInterrupt(
            str(stop) or f"{what} {'is complete' if complete else 'was not written'}"
        ) from stop
