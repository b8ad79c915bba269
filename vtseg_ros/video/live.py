# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Read the newest frame of network streams (RTSP and others) and V4L2 cameras with PyAV."""

from __future__ import annotations

import re
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vtseg_ros.errors import ConfigError, first_line
from vtseg_ros.video.reader import NS

SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "tcp", "udp")
"""Without http, which may serve a file, whose frames must not be skipped."""
OPEN_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 10.0
_URL = re.compile(rf"({'|'.join(SCHEMES)})://\S", re.IGNORECASE)


def is_live(source: str) -> bool:
    """Return whether a source is a stream or a camera: a URL of `SCHEMES`, or a character device such as /dev/video0."""
    if _URL.match(source):
        return True
    try:
        return stat.S_ISCHR(Path(source).stat().st_mode)
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class LiveFrame:
    """A frame of a stream.

    Attributes:
        stamp_ns: system time, ns: the arrival time of the first frame, plus the time in the stream since then.
        image: (H, W, 3) uint8 RGB.
    """

    stamp_ns: int
    image: np.ndarray


class LiveReader:
    """A stream or camera opened for reading; use it as a context manager.

    A thread decodes all frames and keeps only the newest, so a slow consumer always gets a current frame.

    Args:
        source: a URL or a device; see `is_live`. This opens a connection to the host that the URL names.

    Raises:
        ConfigError: if the package `av` is missing, or the source cannot be opened or contains no video.

    Attributes:
        skipped: number of frames that were replaced by a newer one before they were read.
        damage: reason why the stream ended; empty for a regular end.
    """

    def __init__(self, source: str) -> None:
        try:
            import av
        except ImportError as err:
            raise ConfigError(
                f"{source}: reading a stream needs the package av; expected it to be installed. Run: pip install "
                "'vtseg_ros[video]'"
            ) from err
        self.source = source
        self.skipped, self.damage = 0, ""
        self._error = av.FFmpegError
        url = _URL.match(source)
        # TCP, because UDP loses parts of frames, which leaves grey patches in the images.
        options = {"rtsp_transport": "tcp"} if url and url[1].lower().startswith("rtsp") else {}
        try:
            self._container = av.open(
                source,
                format=None if url else "v4l2",
                options=options,
                timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S),
            )
        except (av.FFmpegError, OSError, ValueError) as err:
            raise ConfigError(
                f"{source}: not a stream that can be read; expected one that ffmpeg opens, got: {first_line(err)}"
            ) from err
        if not self._container.streams.video:
            self._container.close()
            raise ConfigError(f"{source}: not a stream that can be read; expected video, got: none")
        self._condition = threading.Condition()
        self._newest: Any = None
        self._ended = self._closing = False
        self._first: tuple[float, int] | None = None
        self._thread = threading.Thread(target=self._decode, name="stream", daemon=True)
        self._thread.start()

    def __enter__(self) -> LiveReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the stream; wait for the current frame, at most for the timeout."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join()
        self._container.close()

    def frames(self) -> Iterator[LiveFrame]:
        """Yield the newest frame whenever there is a new one, until the stream ends."""
        while True:
            with self._condition:
                while self._newest is None and not self._ended:
                    # In short waits, because signals are handled between them.
                    self._condition.wait(0.2)
                if self._newest is None:
                    return
                (frame, stamp_ns), self._newest = self._newest, None
            yield LiveFrame(stamp_ns, frame.to_ndarray(format="rgb24"))

    def _decode(self) -> None:
        try:
            for frame in self._container.decode(self._container.streams.video[0]):
                stamp_ns = self._stamp(frame)
                with self._condition:
                    if self._closing:
                        return
                    self.skipped += self._newest is not None
                    self._newest = frame, stamp_ns
                    self._condition.notify_all()
        except (self._error, OSError) as err:
            self.damage = first_line(err)
        finally:
            with self._condition:
                self._ended = True
                self._condition.notify_all()

    def _stamp(self, frame: Any) -> int:
        if frame.pts is None or frame.time_base is None:
            return time.time_ns()
        seconds = float(frame.pts * frame.time_base)
        if self._first is None or seconds < self._first[0]:
            self._first = seconds, time.time_ns()
        return self._first[1] + round((seconds - self._first[0]) * NS)
