# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Progress bar of long commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Tracker = Callable[[int | None, str], AbstractContextManager[Callable[[], None]]]
"""`track`, or what takes its place."""


def progress_bars(console: Console, *, disable: bool = False) -> Progress:
    """Return a display of bars with description, count and time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=disable)


@contextmanager
def track(total: int | None, what: str) -> Iterator[Callable[[], None]]:
    """Show a progress bar on standard error.

    Args:
        total: Number of units of work; None = unknown.
        what: Text in front of the bar.

    Yields:
        Function to call after each unit of work.
    """
    with progress_bars(Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def reporting_to(on_frame: Callable[[], None]) -> Tracker:
    """Return a tracker without a bar, which calls a function for each unit of work."""

    @contextmanager
    def tracker(_: int | None, __: str) -> Iterator[Callable[[], None]]:
        yield on_frame

    return tracker
