# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, digests, locks, and the cache folder."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import select
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO

MAX_IMAGE_BYTES = 1 << 30
"""Largest image file, far above what MAX_PIXELS need."""
PIPE_WAIT_S = 20

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


def write_atomically(path: Path, payload: bytes) -> None:
    """Write a file atomically: `path` contains its old content or all of `payload`, even if the process is killed.

    A link stays, and its target is replaced. A device or a pipe, such as /dev/stdout, is written to, never replaced.
    """
    if is_special(path):
        with path.open("wb") as file:
            file.write(payload)
        return
    path = path.resolve() if path.is_symlink() else path
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


def is_special(path: Path) -> bool:
    """Return whether a path is a device, a pipe or a socket, or below /dev, as the link /dev/stdout to a file."""
    if path.is_file():
        return path.is_symlink() and Path(os.path.abspath(path)).parent in (Path("/dev"), Path("/dev/fd"))
    return path.exists() and not path.is_dir()


def _remove_orphans(path: Path) -> None:
    """Remove temporary files of killed processes next to `path`: no process holds their lock any more."""
    if fcntl is None:
        return
    for orphan in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError), orphan.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            orphan.unlink()


def read_limited(path: Path, most: int) -> bytes:
    """Read a file that has at most `most` bytes; a device such as /dev/zero would fill the memory otherwise.

    Raises:
        OSError: if it cannot be read or is larger.
    """
    with open(path, "rb", opener=_open_with_writer) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"more than {most >> 20} MiB, which no file of this kind has", str(path))
    return data


def _open_with_writer(path: str, flags: int) -> int:
    """Open a file; a pipe must have a writer in time, since opening one that has none waits forever."""
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        return os.open(path, flags)
    handle = os.open(path, flags | os.O_NONBLOCK)
    if not select.select([handle], [], [], PIPE_WAIT_S)[0]:
        os.close(handle)
        raise OSError(errno.ETIMEDOUT, f"a pipe without data for {PIPE_WAIT_S} s", path)
    os.set_blocking(handle, True)
    return handle


def folder_problem(path: Path) -> str:
    """Return why no file can be made at a path, whose folders may be missing; empty if nothing speaks against it."""
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        return f"expected a folder, got {folder}, which is none"
    if os.access(folder, os.W_OK):
        return ""
    read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY  # not on Windows
    reason = errno.EROFS if read_only else errno.EACCES
    return f"expected a folder that can be written to, got {folder} ({os.strerror(reason)})"


def with_home(path: Path) -> Path:
    """Return a path with the home folder in place of `~`, unless there is a file of that very name."""
    try:
        return path if os.path.lexists(path) else path.expanduser()
    except (RuntimeError, ValueError):  # the home folder of an unknown user, or a NUL character
        return path


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
def locked(
    path: Path,
    *,
    exclusive: bool = True,
    wait: bool = True,
    required: bool = True,
    on_wait: Callable[[], None] = lambda: None,
) -> Iterator[bool]:
    """Hold a lock file, which its exclusive holder may remove; yield whether another process held it.

    Without effect on Windows.

    Args:
        path: lock file; its folder is made.
        exclusive: whether nobody else may hold it; several processes can hold it together otherwise.
        wait: whether to wait for another process.
        required: whether a file that cannot be made or locked is an error; there is no lock then otherwise.
        on_wait: called before waiting for another process.

    Raises:
        BlockingIOError: if another process holds it and `wait` is off.
        OSError: if it cannot be made or locked and `required` is on.
    """
    held: IO[bytes] | None = None
    waited = False
    try:
        held, waited = _hold(path, exclusive, wait, on_wait)
    except BlockingIOError:
        raise
    except OSError:  # no right to write here, or a file system without locks
        if required:
            raise
    try:
        yield waited
    finally:
        if held is not None:
            held.close()


def _hold(
    path: Path, exclusive: bool, wait: bool, on_wait: Callable[[], None]
) -> tuple[IO[bytes] | None, bool]:
    """Return the open lock file and whether another process held it."""
    waited = False
    while fcntl is not None:
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as unless_held:
            file = unless_held.enter_context(path.open("ab"))
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                if not waited:
                    on_wait()
                waited = True
                fcntl.flock(file, kind)
            if _is_at(file, path):  # not removed while this process waited
                unless_held.pop_all()
                return file, waited
    return None, waited


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


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
