# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, digests, locks, and the cache folder."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


def write_atomically(path: Path, payload: bytes) -> None:
    """Write a file atomically: `path` contains its old content or all of `payload`, even if the process is killed."""
    _remove_orphans(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _remove_orphans(path: Path) -> None:
    """Remove temporary files of killed processes next to `path`: no process holds their lock any more."""
    if fcntl is None:
        return
    for orphan in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError), orphan.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            orphan.unlink()


def files_below(path: Path) -> list[Path]:
    """Return a file itself, or all files below a folder, sorted by path."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    total = hashlib.sha256()
    add_content(total, path)
    return total.hexdigest()


def add_content(total: hashlib._Hash, path: Path) -> None:
    """Add the content of a file to a digest."""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Lock a file, and yield whether another process held the lock. Without effect if the folder cannot be written.

    Args:
        path: lock file.
        on_wait: called before waiting for another process.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb") if fcntl is not None else None
    except OSError:
        file = None
    if file is None or fcntl is None:
        yield False
        return
    with file:
        waited = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
            waited = True
        except OSError:  # a file system without locks
            pass
        yield waited


def cache_folder(kind: str) -> Path:
    """Return the user's cache folder: below VTSEG_CACHE, XDG_CACHE_HOME or ~/.cache.

    Args:
        kind: name of a subfolder.
    """
    chosen = os.environ.get("VTSEG_CACHE")
    if chosen:
        return Path(chosen).expanduser() / kind
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "vtseg_ros" / kind
