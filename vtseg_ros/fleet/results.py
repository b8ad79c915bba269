# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Results that are complete or absent, with the digests of what they were made from."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vtseg_ros import __version__
from vtseg_ros.errors import BagError, ConfigError, VTSegError
from vtseg_ros.files import add_content, files_below
from vtseg_ros.fleet import object_store
from vtseg_ros.fleet.bag_cache import BagCache
from vtseg_ros.fleet.jobs import Job, Outcome, Task
from vtseg_ros.fleet.urls import Place, Url

RECORD = "result.json"


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names, sizes and contents of the files in a folder.

    Args:
        path: local file or folder.

    Returns:
        64 hexadecimal digits.

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

    Args:
        job: the job.

    Returns:
        SHA-256 digests with the keys `checkpoint` (separated by spaces if there are several) and `settings`.

    Raises:
        CheckpointError: if there is no such checkpoint.
        BagError: if a checkpoint cannot be read.
    """
    digests: list[str] = []
    if job.checkpoints:
        from vtseg_ros.model.checkpoint import resolve_checkpoint  # imports torch

        digests = [digest_of(resolve_checkpoint(name)) for name in job.checkpoints]
    settings = json.dumps(job.settings(), sort_keys=True)
    return {
        "checkpoint": " ".join(digests),
        "settings": hashlib.sha256(settings.encode()).hexdigest(),
    }


def read_complete(task: Task, identity: dict[str, str]) -> dict[str, Any] | None:
    """Return the result of an earlier run. An interrupted upload is removed.

    Args:
        task: the task.
        identity: digests of the input, the checkpoints and the settings.

    Returns:
        What `Job.process` returned; None if there is no result.

    Raises:
        BagError: if the output is a URL that cannot be accessed.
        ConfigError: if the output exists and has other digests.
    """
    record_place = task.output / RECORD
    if isinstance(task.output, Url):
        files = object_store.list_files(task.output)
        if object_store.is_unfinished(files, RECORD):
            object_store.remove(task.output, files)
            files = []
        exists, recorded = bool(files), any(file.name == RECORD for file in files)
    else:
        exists = recorded = task.output.exists()
    if not exists:
        return None
    differing = [f"contents (no readable {RECORD})"]
    if recorded:
        try:
            record = json.loads(read_file(record_place))
            differing = [name for name in identity if record["sha256"][name] != identity[name]]
            if not differing:
                result: dict[str, Any] = record["result"]
                return result
        except (OSError, ValueError, KeyError, TypeError):
            pass
    raise ConfigError(
        f"{task.output}: exists; expected a result of the same input, checkpoint and settings, got other "
        f"{', '.join(differing)}. Remove it or choose another --out"
    )


def read_file(place: Place) -> bytes:
    """Return the content of a file.

    Args:
        place: path or URL of the file.

    Returns:
        All bytes of the file.

    Raises:
        BagError: if it is in an object store and cannot be accessed.
        OSError: if it is a local file that cannot be read.
    """
    return object_store.read_bytes(place) if isinstance(place, Url) else place.read_bytes()


@contextmanager
def written_whole(
    output: Place, last: str, cache: BagCache, mark: str = ".vtseg_unfinished_"
) -> Iterator[Path]:
    """Yield a new folder for a result. At the end it is renamed to the output path, or uploaded to the output URL.

    After an exception, nothing is renamed or uploaded, and the folder is removed.

    Args:
        output: path or URL of the result.
        last: name of the file that is uploaded last.
        cache: cache whose folder holds results until they are uploaded.
        mark: start of the name of the unfinished folder next to the output path.

    Yields:
        An empty local folder with the name of the output.

    Raises:
        BagError: if the result cannot be uploaded.
        ConfigError: if a package for the URL is missing.
        OSError: if the result cannot be written.
    """
    with ExitStack() as stack:
        if isinstance(output, Url):
            scratch = stack.enter_context(cache.scratch())
        else:
            output.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=mark, dir=output.parent))
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        made = scratch / output.name
        made.mkdir()
        yield made
        if isinstance(output, Url):
            object_store.upload(made, output, last)
        else:
            made.rename(output)


def complete_task(
    job: Job,
    load: Callable[[], Any],
    task: Task,
    identity: dict[str, str],
    mark: str,
    on_frame: Callable[[], None],
    cache: BagCache,
) -> Outcome:
    """Run a task unless its result is complete. The output appears as a whole, by a rename or an upload.

    Args:
        job: the job.
        load: returns the value of `Job.load`; called only if the task must run.
        task: the task.
        identity: digests of the job, see `identity_of`.
        mark: start of the names of unfinished folders, which are removed if the worker is killed.
        on_frame: called after each frame.
        cache: local copies of sources that are URLs.

    Returns:
        The outcome, `done` or `skipped`.

    Raises:
        VTSegError: if the input, the job or the output fails.
        OSError: if the result cannot be written.
    """
    files: list[object_store.StoredFile] = []
    if isinstance(task.source, Url):
        files = object_store.list_files(task.source)
        digest = object_store.digest_of_listing(files)
    elif task.span == (None, None):
        digest = digest_of(task.source)
    else:
        digest = _listing_of(task.source)
    identity = {"input": digest, **identity}
    known = read_complete(task, identity)
    if known is not None:
        return Outcome(task, "skipped", known)
    loaded = load()
    with ExitStack() as stack:
        local = task
        if isinstance(task.source, Url):
            local = replace(task, copy=stack.enter_context(cache.local(task.source, files)))
            stack.enter_context(_named_in_errors(task.source, local.path))
        made = stack.enter_context(written_whole(task.output, RECORD, cache, mark))
        result = job.process(loaded, local, made, on_frame)
        record = {
            "sha256": identity,
            "input": str(task),
            "settings": job.settings(),
            "vtseg_ros": __version__,
            "result": result,
        }
        (made / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return Outcome(task, "done", result)


@contextmanager
def _named_in_errors(url: Url, copy: Path) -> Iterator[None]:
    """Name the URL in errors in place of its copy."""
    try:
        yield
    except VTSegError as err:
        if str(copy) not in str(err):
            raise
        raise type(err)(str(err).replace(str(copy), str(url))) from err
