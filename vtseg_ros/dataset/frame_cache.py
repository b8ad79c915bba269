# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Cache of decoded frames on disk, written once and shared by all processes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vtseg_ros.dataset.frame_index import FrameIndex
from vtseg_ros.errors import BagError, ConfigError, ImageError
from vtseg_ros.label_set import IGNORE

Decode = Callable[[int], tuple[np.ndarray, np.ndarray | None]]


def cache_key(index: FrameIndex, size: tuple[int, int], resize_mode: str = "stretch") -> str:
    """Return a key that changes with the frames, the size, the resize mode and the files of the bags."""
    digest = hashlib.sha256(repr((size, resize_mode, index.topics, index.frames)).encode())
    for source in index.sources:
        folder = source.path if source.path.is_dir() else source.path.parent
        for file in sorted(folder.iterdir()):
            stat = file.stat()
            digest.update(repr((str(file.resolve()), stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]


def open_cache(
    folder: Path, index: FrameIndex, size: tuple[int, int], decode: Decode, resize_mode: str = "stretch"
) -> tuple[np.memmap, dict[int, str]]:
    """Open the cache of the frames of an index; write it first if it does not exist.

    Args:
        folder: Folder of the cache; created if missing.
        index: Frames to cache.
        size: (width, height) px of all frames.
        decode: Function from a frame number to (H, W, 3) uint8 RGB and (H, W) uint8 class ids or None; it may raise
            ImageError or BagError for a corrupt frame.
        resize_mode: How `decode` resizes.

    Returns:
        (n, H, W, 4) uint8 on disk, RGB and class id (255 where there is none); and the reason by corrupt frame.

    Raises:
        ConfigError: If the disk is full or the folder cannot be written.
    """
    path = folder / f"frames_{cache_key(index, size, resize_mode)}.npy"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # One process writes it, the others wait; the system releases the lock when its holder ends or is killed.
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file():
                _make(path, len(index.frames), size, decode)
    except OSError as err:
        needed = len(index.frames) * size[0] * size[1] * 4 / 1e6
        raise ConfigError(
            f"the frame cache ({needed:.0f} MB) cannot be written to {folder}: {err.strerror}. "
            "Free space, choose another data.cache_dir, or leave it empty"
        ) from err
    corrupt = json.loads(path.with_suffix(".json").read_text())
    return np.load(path, mmap_mode="r"), {int(number): reason for number, reason in corrupt.items()}


def _make(path: Path, count: int, size: tuple[int, int], decode: Decode) -> None:
    partial = path.with_suffix(".partial")
    shape = (count, size[1], size[0], 4)
    corrupt: dict[int, str] = {}
    try:
        pixels = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        # A full disk is an error here, instead of a SIGBUS when a page is written.
        with partial.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
        for number in range(count):
            try:
                rgb, ids = decode(number)
                pixels[number, ..., :3] = rgb
                pixels[number, ..., 3] = IGNORE if ids is None else ids
            except (ImageError, BagError) as err:
                corrupt[number] = str(err)
                pixels[number, ..., :3], pixels[number, ..., 3] = 0, IGNORE
        pixels.flush()
        del pixels
        path.with_suffix(".json").write_text(json.dumps(corrupt))
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
