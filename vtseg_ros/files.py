# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all, and the folder of files that can be made again."""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


def write_atomically(path: Path, payload: bytes) -> None:
    """Write a file so that `path` holds either what it held or all of `payload`, whenever the process ends."""
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
    """Temporary files that killed processes left beside `path`: nobody holds their lock any more."""
    if fcntl is None:
        return
    for orphan in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError), orphan.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            orphan.unlink()


def cache_folder(kind: str) -> Path:
    """Return the user's folder for files that can be made again: below VTSEG_CACHE, XDG_CACHE_HOME or ~/.cache.

    Args:
        kind: name of a folder in it.
    """
    chosen = os.environ.get("VTSEG_CACHE")
    if chosen:
        return Path(chosen).expanduser() / kind
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "vtseg_ros" / kind
