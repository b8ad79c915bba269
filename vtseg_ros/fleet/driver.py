# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Run tasks one after the other; one unreadable bag does not end the job."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from vtseg_ros.errors import ConfigError, VTSegError
from vtseg_ros.fleet.bag_cache import BagCache
from vtseg_ros.fleet.jobs import Job, Outcome, SplitJob, Task, Watch
from vtseg_ros.fleet.results import complete_task, identity_of

ATTEMPTS = 3
"""A task that fails so often is given up."""


class LoadError(Exception):
    """A worker cannot load what the job needs, which fails all of its tasks."""


class Worker:
    """Load what the job needs, once, and run one task at a time.

    Args:
        job: the job.
        identity: digests of the job in the process that started it, see `identity_of`.
        mark: start of the names of unfinished folders, see `complete_task`.
        threads: threads of PyTorch, at least 1; 0 = unchanged.
        cache: local copies of sources that are URLs; None = the default cache.
    """

    def __init__(
        self, job: Job, identity: dict[str, str], mark: str, threads: int = 0, cache: BagCache | None = None
    ) -> None:
        self._job, self._identity, self._mark, self._threads = job, identity, mark, threads
        self._cache = cache or BagCache()
        self._loaded: Any = None

    def run(self, task: Task, on_frame: Callable[[], None]) -> Outcome:
        """Run a task and return how it ended.

        Args:
            task: the task.
            on_frame: called after each frame.

        Returns:
            The outcome; errors of the bag are `failed` outcomes with one line as reason.

        Raises:
            LoadError: if the job cannot be loaded here.
        """
        try:
            return complete_task(
                self._job, self._load, task, self._identity, self._mark, on_frame, self._cache
            )
        except LoadError:
            raise
        except Exception as err:  # one bag must not stop the others
            return Outcome(task, "failed", reason=_line(err))

    def _load(self) -> Any:
        if self._loaded is None:
            try:
                if identity_of(self._job) != self._identity:
                    raise ConfigError(
                        f"checkpoint {', '.join(self._job.checkpoints)}: expected it and the files of other options to be "
                        "the same on all hosts, got others on this worker. Copy them again"
                    )
                if self._threads:
                    import torch  # jobs without a network start faster

                    torch.set_num_threads(self._threads)
                self._loaded = self._job.load()
            except Exception as err:
                raise LoadError(_line(err)) from err
        return self._loaded


def _line(err: Exception) -> str:
    text = str(err) if isinstance(err, VTSegError) else f"{type(err).__name__}: {err}"
    return " ".join(text.split())


def run_here(job: Job, tasks: Sequence[Task], watch: Watch, cache: BagCache | None = None) -> list[Outcome]:
    """Run the tasks one after the other in this process.

    A failed task is repeated up to `ATTEMPTS` times. The other tasks run in any case.

    Args:
        job: the job.
        tasks: its tasks.
        watch: callbacks for frames and outcomes.
        cache: local copies of sources that are URLs; None = the default cache.

    Returns:
        Outcomes in the order of the tasks.

    Raises:
        CheckpointError: if there is no such checkpoint.
        ConfigError: if the job cannot be loaded.
    """
    outcomes: list[Outcome] = []
    frames = 0

    def on_frame() -> None:
        nonlocal frames
        frames += 1
        watch.on_frames(frames)

    with unfinished_removed(tasks) as mark:
        worker = Worker(job, identity_of(job), mark, cache=cache)
        for task in tasks:
            before = frames
            for attempt in range(1, ATTEMPTS + 1):
                frames = before
                try:
                    outcome = replace(worker.run(task, on_frame), attempts=attempt)
                except LoadError as err:
                    raise ConfigError(str(err)) from err
                if outcome.state != "failed":
                    break
            frames = before + frames_of(outcome)
            watch.on_frames(frames)
            outcomes.append(outcome)
            watch.on_outcome(outcome)
    return outcomes


def frames_of(outcome: Outcome) -> int:
    """Return the number of frames of a task that ended.

    Args:
        outcome: end of the task. If the bag was not opened before the task ran, the number comes from its result.

    Returns:
        Number of frames; 0 if it is not known.
    """
    return outcome.task.frames or int(outcome.result.get("frames", 0))


def run_in_parts(
    job: Job, tasks: Sequence[Task], run: Callable[[Sequence[Task]], list[Outcome]]
) -> list[Outcome]:
    """Run the parts of split tasks and join their results; run the other tasks unchanged.

    Args:
        job: the job; a `SplitJob` if tasks have parts.
        tasks: its tasks.
        run: runs tasks without parts and returns their outcomes in the same order.

    Returns:
        Outcomes in the order of the tasks. If a part fails, its task fails with the same reason.
    """
    found: dict[Task, Outcome] = {}
    # Only local bags with local results have parts.
    started = [task for task in tasks if not (task.parts and cast(Path, task.output).exists())]
    planned = [part for task in started for part in task.parts or (task,)]
    of_parts = dict(zip(planned, run(planned), strict=True)) if planned else {}
    for task in tasks:
        if not task.parts:
            found[task] = of_parts[task]
            continue
        parts = [of_parts[part] for part in task.parts] if task in started else []
        failed = next((one for one in parts if one.state == "failed"), None)
        if failed is not None:
            found[task] = replace(failed, task=task, reason=f"{failed.task}: {failed.reason}")
            continue
        joining = _Joining(cast(SplitJob, job), [one.result for one in parts])
        outcome = run_here(joining, [task], Watch())[0]
        attempts = max((one.attempts for one in parts), default=1)
        found[task] = replace(outcome, attempts=max(outcome.attempts, attempts))
        if outcome.state != "failed":
            folder = cast(Path, task.parts[0].output).parent
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # other bags still have parts there
                folder.parent.rmdir()
    return [found[task] for task in tasks]


class _Joining:
    """The job that joins the results of one task's parts."""

    def __init__(self, job: SplitJob, results: Sequence[dict[str, Any]]) -> None:
        self._job, self._results = job, results
        self.checkpoints, self.settings = job.checkpoints, job.settings

    def load(self) -> bool:
        return True

    def process(self, loaded: bool, task: Task, folder: Path, on_frame: Callable[[], None]) -> dict[str, Any]:
        return self._job.join(task, self._results, folder)


@contextmanager
def unfinished_removed(tasks: Sequence[Task]) -> Iterator[str]:
    """Yield the start of the names of unfinished folders, and at the end remove the folders that killed workers left.

    A folder of results that did not exist and has none is removed too.

    Args:
        tasks: tasks whose local outputs are cleaned up.

    Yields:
        Start of a name, unique for this call; the `mark` of `complete_task`.
    """
    mark = f".vtseg_{uuid.uuid4().hex[:12]}_"
    folders = {task.output.parent for task in tasks if isinstance(task.output, Path)}
    absent = [folder for folder in folders if not folder.exists()]
    try:
        yield mark
    finally:
        for folder in folders:
            for orphan in folder.glob(f"{mark}*"):
                shutil.rmtree(orphan, ignore_errors=True)
        for folder in absent:
            with suppress(OSError):  # it has results
                folder.rmdir()
