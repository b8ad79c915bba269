# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Local copies of bags from object stores, shared by the workers of a host, least recently used removed first."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.files import cache_folder, locked
from vtseg_ros.fleet import object_store
from vtseg_ros.fleet.object_store import StoredFile
from vtseg_ros.fleet.urls import Url

GB = 1_000_000_000
LIMIT_GB = 20.0
WAIT_S = 0.2
"""Between looks at whether other workers still use the bags that are in the way."""
_COMPLETE, _SIZE, _LOCK, _RESULT = "complete", "bytes", ".lock", ".result_"


@dataclass(frozen=True, kw_only=True)
class BagCache:
    """A folder of local copies of bags, with a size limit.

    A copy is read under a shared lock, and made or removed under an exclusive lock. A separate lock protects the
    reservation of space. The incomplete copy of a killed worker is not locked and is removed like any other.

    Args:
        folder: folder of the copies; None = `bags` in the user's cache folder.
        limit_gb: largest size of all copies, 10^9 bytes, above 0.

    Raises:
        ConfigError: if the limit is out of range.
    """

    folder: Path | None = None
    limit_gb: float = LIMIT_GB

    def __post_init__(self) -> None:
        if not 0 < self.limit_gb < float("inf"):
            raise ConfigError(
                f"--cache-size: out of range; expected GB above 0, got {self.limit_gb:g}. Correct it"
            )

    @property
    def _root(self) -> Path:
        return self.folder or cache_folder("bags")

    @contextmanager
    def local(self, url: Url, files: list[StoredFile]) -> Iterator[Path]:
        """Yield the path of a local copy, which stays until the context ends. It is copied if necessary.

        Waits if the copies that others read leave too little space.

        Args:
            url: URL of a bag or video.
            files: its files, from `object_store.list_files`.

        Yields:
            Path of the copy, with the name of the URL.

        Raises:
            BagError: if there is no file, the bag is larger than the cache, it cannot be copied, or the folder cannot
                be used.
            ConfigError: if a package for the URL is missing.
        """
        size, limit = sum(file.size for file in files), int(self.limit_gb * GB)
        if not files:
            raise BagError(f"{url}: no such bag; expected files below it, got none. Correct the URL")
        if size > limit:
            raise BagError(
                f"{url}: larger than the cache; expected at most {limit / GB:g} GB, got {size / GB:g} GB. Raise --cache-size"
            )
        key = hashlib.sha256(f"{url} {object_store.digest_of_listing(files)}".encode()).hexdigest()[:32]
        entry = self._root / key
        with ExitStack() as stack:
            with self._one_line_errors(url):
                self._root.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self._ready(url, files, size, limit, entry))
            yield entry / url.name

    @contextmanager
    def _ready(self, url: Url, files: list[StoredFile], size: int, limit: int, entry: Path) -> Iterator[None]:
        """Hold the shared lock of a complete copy, which is made where there is none."""
        lock = _lock_of(entry)
        while True:
            with locked(lock, exclusive=False):
                if (entry / _COMPLETE).exists():
                    with suppress(OSError):
                        os.utime(entry / _COMPLETE)
                    yield
                    return
            with locked(lock):
                if not (entry / _COMPLETE).exists():
                    self._make(url, files, size, limit, entry)

    def _make(self, url: Url, files: list[StoredFile], size: int, limit: int, entry: Path) -> None:
        shutil.rmtree(entry, ignore_errors=True)
        self._reserve(size, limit, entry)
        try:
            object_store.fetch(url, files, entry / url.name)
            (entry / _COMPLETE).touch()
        except BaseException:
            shutil.rmtree(entry, ignore_errors=True)
            raise

    def _reserve(self, size: int, limit: int, entry: Path) -> None:
        """Remove the copies used longest ago until there is room, and take it; wait for those that are in use.

        Who waits keeps the lock: others that need room queue behind it and cannot take what becomes free.
        """
        with locked(self._root / f".room{_LOCK}"):
            while True:
                used = {other: _size_of(other) for other in self._root.iterdir() if (other / _SIZE).exists()}
                total = sum(used.values())
                for other in sorted(used, key=_used_at):
                    if total + size <= limit:
                        break
                    if _remove_unused(other):
                        total -= used[other]
                if total + size <= limit:
                    entry.mkdir(parents=True, exist_ok=True)
                    (entry / _SIZE).write_text(str(size))
                    return
                time.sleep(WAIT_S)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a new folder for a result that is to be uploaded. Folders of killed workers are removed.

        Yields:
            An empty folder, which is removed at the end of the context.

        Raises:
            BagError: if it cannot be created.
        """
        with ExitStack() as stack:
            with self._one_line_errors("the result"):
                self._root.mkdir(parents=True, exist_ok=True)
                with locked(self._root / f".results{_LOCK}"):
                    for old in self._root.glob(f"{_RESULT}*"):
                        if old.is_dir():
                            _remove_unused(old)
                    made = Path(tempfile.mkdtemp(prefix=_RESULT, dir=self._root))
                    stack.enter_context(locked(_lock_of(made)))
            stack.callback(_lock_of(made).unlink, missing_ok=True)
            stack.callback(shutil.rmtree, made, ignore_errors=True)
            yield made

    @contextmanager
    def _one_line_errors(self, what: object) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise BagError(
                f"{what}: cannot be kept in {self._root} ({err.strerror or err}). Choose another --cache-dir"
            ) from err


def _lock_of(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}{_LOCK}")


def _size_of(entry: Path) -> int:
    try:
        return int((entry / _SIZE).read_text())
    except (OSError, ValueError):
        return 0


def _used_at(entry: Path) -> float:
    """When a copy was used, s; incomplete ones first."""
    try:
        return (entry / _COMPLETE).stat().st_mtime
    except OSError:
        return 0.0


def _remove_unused(entry: Path) -> bool:
    """Remove a folder and its lock unless somebody holds it."""
    with suppress(BlockingIOError), locked(_lock_of(entry), wait=False):
        shutil.rmtree(entry, ignore_errors=True)
        _lock_of(entry).unlink(missing_ok=True)
        return True
    return False
