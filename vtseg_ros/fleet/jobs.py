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
    """A bag, or a part of one, to process.

    Attributes:
        source: bag or video; a local path or a URL.
        output: folder or URL of the result, which exists only when the result is complete.
        frames: number of images in the source or the span; 0 = unknown.
        span: bag times (ns) of a part of the source, the first included, the second excluded; None = its begin or end.
        parts: tasks whose results are joined to the result of this task; empty = the source is not split.
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
        result: JSON values from `Job.process`; those of the earlier run if `skipped`.
        reason: why the task failed, one line; empty otherwise.
        attempts: number of times the task was started, at least 1.
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
        on_outcome: called with the outcome of each task when it ends.
        on_frames: called with the number of frames processed so far, including those of complete tasks.
    """

    on_outcome: Callable[[Outcome], None] = lambda _: None
    on_frames: Callable[[int], None] = lambda _: None


class Job(Protocol):
    """Interface of a command that processes single bags; pickled and sent to the workers."""

    @property
    def checkpoints(self) -> Sequence[str]:
        """Shipped weights by name, or files; part of a result's identity."""

    def settings(self) -> dict[str, Any]:
        """Return the settings that decide the result, without the checkpoints.

        Returns:
            JSON values by name.
        """

    def load(self) -> Any:
        """Load what a worker uses for all its tasks, such as a model.

        Returns:
            Any object; passed to `process`.

        Raises:
            VTSegError: if it cannot be loaded, for example because the checkpoint is missing on the host.
        """

    def process(self, loaded: Any, task: Task, folder: Path, on_frame: Callable[[], None]) -> dict[str, Any]:
        """Process a bag, or a part of it.

        Args:
            loaded: value of `load`.
            task: task with path and span; only a `SplitJob` gets parts.
            folder: empty folder for the result.
            on_frame: must be called after each frame.

        Returns:
            JSON values by name, among them `frames`, the number of processed frames.

        Raises:
            VTSegError: if the bag cannot be processed.
        """


class SplitJob(Job, Protocol):
    """A job that can process parts of bags."""

    def join(self, task: Task, results: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
        """Join the results of `task.parts` in a folder. The outputs of the parts are local paths.

        Args:
            task: task with its parts.
            results: values that `process` returned for the parts, in their order.
            folder: empty folder for the joined result.

        Returns:
            See `Job.process`.
        """
