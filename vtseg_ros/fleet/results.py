# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Results that are complete or absent, with the digests of what they were made from."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtseg_ros import __version__
from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.files import add_content, files_below
from vtseg_ros.fleet.jobs import Job, Outcome, Task
from vtseg_ros.model.checkpoint import resolve_checkpoint

RECORD = "result.json"


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's file names, sizes and contents.

    Raises:
        BagError: if it cannot be read.
    """
    total = hashlib.sha256()
    try:
        for file in files_below(path):
            if path.is_dir():
                total.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
            add_content(total, file)
    except OSError as err:
        raise BagError(f"{path}: cannot be read ({err.strerror or err}); expected a bag or a video") from err
    return total.hexdigest()


def _listing_of(path: Path) -> str:
    """Digest of the names, sizes and times of change of a bag's files: parts do not read the whole bag."""
    try:
        listed = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files_below(path)]
    except OSError as err:
        raise BagError(f"{path}: cannot be read ({err.strerror or err}); expected a bag") from err
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def identity_of(job: Job) -> dict[str, str]:
    """Return the digests of a job's checkpoints and settings.

    Raises:
        CheckpointError: if there is no such checkpoint.
    """
    digests = [digest_of(resolve_checkpoint(name)) for name in job.checkpoints]
    settings = json.dumps(job.settings(), sort_keys=True)
    return {
        "checkpoint": " ".join(digests),
        "settings": hashlib.sha256(settings.encode()).hexdigest(),
    }


def read_complete(task: Task, identity: dict[str, str]) -> dict[str, Any] | None:
    """Return the result of an earlier run; None = there is none.

    Raises:
        ConfigError: if the output exists and was made from something else.
    """
    if not task.output.exists():
        return None
    try:
        record = json.loads((task.output / RECORD).read_text())
        differing = [name for name in identity if record["sha256"][name] != identity[name]]
        if not differing:
            result: dict[str, Any] = record["result"]
            return result
    except (OSError, ValueError, KeyError, TypeError):
        differing = [f"contents (no readable {RECORD})"]
    raise ConfigError(
        f"{task.output}: exists; expected a result of the same input, checkpoint and settings, got other "
        f"{', '.join(differing)}. Remove it or choose another --out"
    )


def complete_task(
    job: Job,
    load: Callable[[], Any],
    task: Task,
    identity: dict[str, str],
    mark: str,
    on_frame: Callable[[], None],
) -> Outcome:
    """Run a task unless its result is complete; the output appears whole by a rename.

    Args:
        job: the job.
        load: returns what `Job.load` returned; called only where it is needed.
        task: the task.
        identity: of the job, see `identity_of`.
        mark: start of the names of unfinished folders, for their removal after a worker was killed.
        on_frame: called after each frame.

    Raises:
        VTSegError, OSError: as the job does.
    """
    whole = task.span == (None, None)
    identity = {"input": digest_of(task.source) if whole else _listing_of(task.source), **identity}
    known = read_complete(task, identity)
    if known is not None:
        return Outcome(task, "skipped", known)
    loaded = load()
    task.output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=mark, dir=task.output.parent))
    try:
        made = scratch / task.output.name
        made.mkdir()
        result = job.process(loaded, task, made, on_frame)
        record = {
            "sha256": identity,
            "input": str(task),
            "settings": job.settings(),
            "vtseg_ros": __version__,
            "result": result,
        }
        (made / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        made.rename(task.output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Outcome(task, "done", result)
