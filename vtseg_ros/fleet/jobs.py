# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What a command declares to run over many bags, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vtseg_ros.fleet.urls import Place


@dataclass(frozen=True)
class Task:
    """A bag to process.

    Attributes:
        source: the bag or video; a local path or a URL.
        output: folder that the result is renamed to, or URL that it is uploaded to, when it is complete.
        frames: images in the source or the span; 0 = unknown.
        span: bag times (ns) of a part of the source, the first included, the second not; None = begin or end.
        parts: tasks whose results are joined to this one's; empty = the source is processed at once.
        copy: local copy of a source that is a URL, while the task runs.
    """

    source: Place
    output: Place
    frames: int = 0
    span: tuple[int | None, int | None] = (None, None)
    parts: tuple[Task, ...] = ()
    copy: Path | None = None

    @property
    def path(self) -> Path:
        """Where a job reads the source."""
        place = self.copy or self.source
        assert isinstance(place, Path), f"{place} has no local copy"
        return place

    def __str__(self) -> str:
        start, stop = self.span
        if self.span == (None, None):
            return str(self.source)
        return f"{self.source} from {start or 'its begin'} to {stop or 'its end'} ns"


@dataclass(frozen=True)
class Outcome:
    """The end of a task.

    Attributes:
        task: the task.
        state: `done`, `skipped` (was complete before) or `failed`.
        result: plain values from `Job.process`; of the earlier run for `skipped`.
        reason: of a failure, one line.
        attempts: how often the task was started.
    """

    task: Task
    state: str
    result: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    attempts: int = 1


@dataclass(frozen=True)
class Watch:
    """Callbacks of a running job.

    Args:
        on_outcome: called with each final outcome.
        on_frames: called with the number of frames processed so far, those of complete tasks included.
    """

    on_outcome: Callable[[Outcome], None] = lambda _: None
    on_frames: Callable[[int], None] = lambda _: None


class Job(Protocol):
    """Work on single bags; sent to the workers by pickle."""

    @property
    def checkpoints(self) -> Sequence[str]:
        """Shipped weights by name, or files; part of a result's identity."""

    def settings(self) -> dict[str, Any]:
        """Return plain JSON values that decide the result, the checkpoints aside."""

    def load(self) -> Any:
        """Return what a worker keeps for all its tasks, such as a model."""

    def process(self, loaded: Any, task: Task, folder: Path, on_frame: Callable[[], None]) -> dict[str, Any]:
        """Process a bag, or a part of it.

        Args:
            loaded: from `load`.
            task: its path and span; parts are given only to jobs that can be split.
            folder: exists and is empty; the result is written into it.
            on_frame: to be called after each frame.

        Returns:
            Plain JSON values, among them `frames`.
        """


class SplitJob(Job, Protocol):
    """A job that can process parts of bags."""

    def join(self, task: Task, results: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
        """Join the results of `task.parts`, in their outputs, which are local paths, into a folder.

        Args:
            task: with its parts.
            results: of the parts, from `process`.
            folder: exists and is empty.

        Returns:
            As `process`.
        """
