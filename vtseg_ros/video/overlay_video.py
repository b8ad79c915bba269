# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Overlay videos: H.264 in mp4, which all browsers and players support."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np

from vtseg_ros.errors import ConfigError
from vtseg_ros.files import folder_problem
from vtseg_ros.image_ops import colorize, overlay
from vtseg_ros.label_set import LabelSet

MIN_WIDTH = 640
CONTAINERS = (".mp4", ".m4v", ".mov", ".mkv", ".avi")
MAX_NAME_BYTES = 255
DEFAULT_RATE_HZ = 10.0
"""Frame rate of videos of unknown rate, Hz."""


def check_new_video(path: Path) -> None:
    """Check that an overlay can be written.

    Raises:
        ConfigError: if it exists, its folder cannot be written to, or its suffix is not that of a container for H.264.
    """
    if path.suffix.lower() not in CONTAINERS:
        raise ConfigError(
            f"overlay {path}: unknown container; expected a suffix of {', '.join(CONTAINERS)}, got {path.suffix!r}"
        )
    if len(os.fsencode(path.name)) > MAX_NAME_BYTES:
        raise ConfigError(f"overlay {path}: the name is too long; expected at most {MAX_NAME_BYTES} bytes")
    if os.path.lexists(path):
        raise ConfigError(f"{path} exists: nothing is overwritten. Remove it or choose another name")
    problem = folder_problem(path)
    if problem:
        raise ConfigError(f"overlay {path}: cannot be written; {problem}. Choose another place")


class OverlayVideo:
    """Frames with the overlay above and the class colours below."""

    def __init__(self, path: Path, labels: LabelSet, rate_hz: float) -> None:
        self._path, self._labels, self._rate = path, labels, rate_hz
        self._writer: Generator[None, np.ndarray | None, None] | None = None
        self._size = (0, 0)

    def add(self, image: np.ndarray, mask: np.ndarray) -> None:
        """Add the next frame.

        Args:
            image: (H, W, 3) uint8 RGB.
            mask: (h, w) uint8.

        Raises:
            ConfigError: if ffmpeg cannot write it; the message has one line.
        """
        if self._writer is None:
            # H.264 with 4:2:0 colours needs even sides; small videos are enlarged for viewing.
            scale = max(1.0, MIN_WIDTH / image.shape[1])
            width, height = (max(round(side * scale / 2) * 2, 2) for side in (image.shape[1], image.shape[0]))
            self._size = (width, height)
            self._writer = imageio_ffmpeg.write_frames(
                f"file:{self._path.resolve()}",
                (self._size[0], self._size[1] * 2),
                fps=self._rate,
                codec="libx264",
                macro_block_size=2,
                quality=7,
                ffmpeg_log_level="error",
            )
            self._writer.send(None)
        large = cv2.resize(image, self._size, interpolation=cv2.INTER_CUBIC)
        ids = cv2.resize(mask, self._size, interpolation=cv2.INTER_NEAREST)
        frame = np.vstack([overlay(large, ids, self._labels), colorize(ids, self._labels)])
        try:
            self._writer.send(np.ascontiguousarray(frame))
        except OSError as err:  # a text of many lines without the reason, which ffmpeg prints itself
            raise ConfigError(
                "overlay: ffmpeg ended early; expected a writable folder with free space, got the error above. Choose "
                "another place"
            ) from err

    def close(self) -> None:
        """Finish the video."""
        if self._writer is not None:
            self._writer.close()


@contextmanager
def overlay_video(path: Path, labels: LabelSet, rate_hz: float | None) -> Iterator[OverlayVideo]:
    """Write an overlay video at `rate_hz` frames per second; None = unknown, DEFAULT_RATE_HZ.

    The file gets its name when it is complete. Without a frame, or after an exception, no file remains.
    """
    # A short name, because that of the video may have the maximum length; ffmpeg uses the suffix.
    part = path.with_name(f".vtseg_{secrets.token_hex(4)}.part{path.suffix}")
    video = OverlayVideo(part, labels, rate_hz or DEFAULT_RATE_HZ)
    try:
        try:
            yield video
        finally:
            video.close()
        if part.exists():
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)
