# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Read frames of video files with their times in the file (PyAV).

OpenCV's reader is not used: it returns evenly spaced times for videos with a variable rate, and interprets a colon in a
file name as a protocol.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vtseg_ros.content import advice_on, content_of
from vtseg_ros.errors import ConfigError, first_line

NS = 1_000_000_000
DEFAULT_RATE_HZ = 10.0
"""Rate of videos without one in the header, Hz."""
_ATTACHED_PICTURE = 0x400
"""AV_DISPOSITION_ATTACHED_PIC of FFmpeg."""
_NO_TIMES = 0x80
"""AVFMT_NOTIMESTAMPS of FFmpeg: bare streams of H.264 and the like."""
log = logging.getLogger("vtseg_ros.video")
VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".gif",
    ".mpg",
    ".mpeg",
    ".ts",
    ".wmv",
    ".flv",
    ".3gp",
)


@dataclass(frozen=True)
class VideoFrame:
    """A decoded frame.

    Attributes:
        index: number of the frame in the file, 0 = the first.
        time_ns: time after the first frame, ns; strictly increasing.
        image: (H, W, 3) uint8 RGB, upright.
    """

    index: int
    time_ns: int
    image: np.ndarray


class VideoReader:
    """A video file opened for reading; use it as a context manager.

    Args:
        path: the file. The name may contain any characters.

    Raises:
        ConfigError: if the package `av` is missing, or the file cannot be read or contains no video.

    Attributes:
        frame_count: number of frames in the header, which may be wrong; 0 = unknown.
        rate_hz: mean frame rate in the header; DEFAULT_RATE_HZ if unknown.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            import av
        except ImportError as err:
            raise ConfigError(
                f"{path}: reading a video needs the package av; expected it to be installed. Run: pip install 'vtseg_ros[video]'"
            ) from err
        self.path = Path(path)
        if self.path.is_fifo():  # opening it may wait forever, and it cannot be read twice
            raise ConfigError(
                f"{path}: not a video file; expected a file, got a pipe. Save the video to a file"
            )
        self._error = av.FFmpegError
        self._file: Any = None
        try:
            self._file = self.path.open("rb")
            self._container = av.open(self._file)
            self._stream = next(one for one in self._container.streams.video if not _is_picture(one))
        except (av.FFmpegError, OSError, StopIteration, ValueError) as err:
            reason = content_of(self.path)
            advice = advice_on(reason)
            if isinstance(err, StopIteration) and self._container.streams.audio:
                reason = "no video stream"
            elif reason.endswith(("media file", "video", "recording")):
                reason, advice = f"{reason} that is damaged or incomplete", "Copy the file again"
            if self._file is not None:
                self._file.close()
            elif not self.path.is_dir():
                reason = f"none: {getattr(err, 'strerror', None) or first_line(err)}"
            raise ConfigError(
                f"{path}: not a video that can be read; expected a file that ffmpeg decodes, got {reason}. "
                f"{advice}"
            ) from err
        self._stream.thread_type = "AUTO"
        self.frame_count = int(self._stream.frames or 0)
        form = self._container.format
        self._has_times = not (form.flags & _NO_TIMES or form.name.endswith("_pipe"))
        rates = self._stream.average_rate, self._stream.guessed_rate
        # Without times FFmpeg sets its default as the average; only the guess is from the codec's header.
        rate = rates[0] or rates[1] if self._has_times else rates[1] or rates[0]
        self.rate_hz = float(rate) if rate else DEFAULT_RATE_HZ
        self.damage = ""
        """Reason why reading ended before the end of the file; empty if it did not."""

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()
        self._file.close()

    def frames(self, every: int = 1) -> Iterator[VideoFrame]:
        """Decode the file from its start.

        A damaged file ends early; `damage` then contains the reason.

        Args:
            every: yield every n-th frame.
        """
        first: Fraction | None = None
        last_ns = -1
        step_ns = round(NS / self.rate_hz)
        index = 0
        try:
            for frame in self._container.decode(self._stream):
                if index == 1 and not self._has_times:
                    log.warning(
                        "%s: the file contains no times; %g Hz is assumed. Store it with its rate: "
                        "ffmpeg -r RATE -i %s out.mp4",
                        self.path,
                        self.rate_hz,
                        self.path.name,
                    )
                if frame.pts is None or frame.time_base is None or not self._has_times:
                    time_ns = last_ns + step_ns if index else 0
                else:
                    seconds = frame.pts * frame.time_base
                    first = seconds if first is None else first
                    time_ns = round((seconds - first) * NS)
                if time_ns <= last_ns:  # frames with broken times must not be skipped
                    time_ns = last_ns + step_ns
                last_ns = time_ns
                if index % every == 0:
                    image = upright(frame.to_ndarray(format="rgb24"), _display_matrix(frame))
                    yield VideoFrame(index, time_ns, image)
                index += 1
        except self._error as err:
            self.damage = first_line(err)


def _display_matrix(frame: Any) -> tuple[int, ...]:
    """Return the display matrix of a frame, 9 integers; empty if it has none."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return tuple(np.frombuffer(bytes(data), np.int32, 9).tolist())
    return ()


def upright(image: np.ndarray, matrix: tuple[int, ...]) -> np.ndarray:
    """Rotate and mirror an image as its display matrix says, in steps of 90 degrees.

    Args:
        image: (H, W, 3).
        matrix: a, b, u, c, d, v, x, y, w of FFmpeg: a pixel in column p and row q is shown in column a p + c q and row
            b p + d q. Empty = as it is.

    Returns:
        (H, W, 3) or (W, H, 3), contiguous.
    """
    if not matrix:
        return np.ascontiguousarray(image)
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _is_picture(stream: Any) -> bool:
    """Return whether a stream is the cover of a recording or the preview of a video."""
    return bool(getattr(getattr(stream, "disposition", None), "value", 0) & _ATTACHED_PICTURE)


def is_video(path: Path) -> bool:
    """Return whether a file's name has the suffix of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES
