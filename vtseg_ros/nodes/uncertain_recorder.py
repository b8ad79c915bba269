# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Record the images that the network is least certain about, with their windows, into a bag of limited size."""

from __future__ import annotations

import bisect
import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.serialization import serialize_message

from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.errors import BagError, VTSegError
from vtseg_ros.nodes.conversions import stamp_ns

PREFIX = "uncertain_"
GROUPS = 8
"""Uncertain images, each with its window, that may wait for the disk."""
RESERVE_BYTES = 32 << 20
"""Disk space that is left free: other programs of the robot need some, and so does the end of the bag."""
STRIDE = 4
"""Every n-th row and column of the confidence is read: 19 200 pixels of a VGA image."""


def uncertainty(confidence: np.ndarray) -> float:
    """Return 1 - mean confidence, 0 (certain) to 1.

    The entropy that `vtseg select` uses needs the probabilities of all classes, which the node does not copy from the
    device. The confidence is there already.

    Args:
        confidence: (H, W) uint8, softmax maximum * 255.
    """
    return 1.0 - float(confidence[::STRIDE, ::STRIDE].mean()) / 255


class RunningQuantile:
    """Compare scores with a quantile of the scores before them.

    Args:
        quantile: 0 to 1.
        kept: number of latest scores that count.
        least: number of scores before the first one can pass.
    """

    def __init__(self, quantile: float, *, kept: int = 1000, least: int = 50) -> None:
        self._quantile, self._kept, self._least = quantile, kept, least
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def passes(self, score: float) -> bool:
        """Return whether a score is above the quantile of those before it, and keep it."""
        above = False
        if len(self._sorted) >= self._least:
            above = score > self._sorted[int(self._quantile * (len(self._sorted) - 1))]
        bisect.insort(self._sorted, score)
        self._latest.append(score)
        if len(self._latest) > self._kept:
            del self._sorted[bisect.bisect_left(self._sorted, self._latest.popleft())]
        return above


@dataclass
class _Frame:
    """An image message; `queued` = it is in the bag, or waits for it."""

    message: Any
    queued: bool = False


@dataclass(frozen=True)
class _Group:
    """An uncertain image and the frames of its window that are not in the bag yet, oldest first."""

    camera: str
    messages: list[Any]


class UncertainRecorder:
    """Write uncertain images on a thread of its own; the caller never waits for the disk.

    Args:
        folder: of the bags, one per activation; made if it is absent.
        limit_mb: most 10^6 bytes of all bags in the folder; recording ends there.
        quantile: of a camera's latest scores; images above it are recorded.
        topics: (topic, type) of each camera's images, such as `("/image", "sensor_msgs/msg/Image")`.
        error, info: log a line.
    """

    def __init__(
        self,
        *,
        folder: Path,
        limit_mb: int,
        quantile: float,
        topics: Mapping[str, tuple[str, str]],
        error: Callable[[str], None],
        info: Callable[[str], None],
    ) -> None:
        self._folder, self._limit, self._topics = folder, limit_mb * 1_000_000, topics
        self._error, self._info = error, info
        self._quantiles = {camera: RunningQuantile(quantile) for camera in topics}
        self._windows: dict[str, deque[_Frame]] = {camera: deque(maxlen=1) for camera in topics}
        self._queue: queue.Queue[_Group | None] = queue.Queue(GROUPS)
        self.recorded = 0
        """Uncertain images in the bag."""
        self.dropped = 0
        """Uncertain images that are not, since the disk was too slow."""
        self.stopped = ""
        """Why recording ended; empty while it goes on."""
        self._bag: BagWriter | None = None
        self._bytes = 0
        self._thread = threading.Thread(target=self._run, name="uncertain", daemon=True)
        self._thread.start()

    def add(self, camera: str, message: Any, confidence: np.ndarray, *, window: int, restarted: bool) -> None:
        """Take a processed image; returns at once.

        Args:
            camera: its name.
            message: its Image or CompressedImage, which nobody changes any more.
            confidence: (H, W) uint8.
            window: frames of the network's window, k.
            restarted: whether the image is the first of a new window.
        """
        frames = self._windows[camera]
        if self.stopped:
            frames.clear()
            return
        if frames.maxlen != window:
            frames = self._windows[camera] = deque(frames, maxlen=window)
        if restarted:
            frames.clear()
        frames.append(_Frame(message))
        if not self._quantiles[camera].passes(uncertainty(confidence)):
            return
        fresh = [frame for frame in frames if not frame.queued]
        try:
            self._queue.put_nowait(_Group(camera, [frame.message for frame in fresh]))
        except queue.Full:
            self.dropped += 1
            return
        for frame in fresh:
            frame.queued = True

    def close(self) -> None:
        """Write what waits and complete the bag."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def facts(self) -> dict[str, str]:
        """Return values for diagnostics."""
        return {
            "uncertain images recorded": str(self.recorded),
            "uncertain images dropped": str(self.dropped),
            "uncertain recording (MB)": f"{self._bytes / 1e6:.1f}",
            "uncertain recording": self.stopped or "on",
        }

    def _run(self) -> None:
        while (group := self._queue.get()) is not None:
            if self.stopped:
                continue
            try:
                self._write(group)
            except Exception as err:  # whatever it is, the node goes on
                self._stop(
                    self._error, str(err) if isinstance(err, VTSegError) else f"{type(err).__name__}: {err}"
                )
        self._finish()

    def _write(self, group: _Group) -> None:
        topic, kind = self._topics[group.camera]
        data = [(stamp_ns(one.header) or time.time_ns(), serialize_message(one)) for one in group.messages]
        size = sum(len(one) for _, one in data)
        if self._bag is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._bytes = sum(
                file.stat().st_size for file in self._folder.glob(f"{PREFIX}*/*") if file.is_file()
            )
        if self._bytes + size > self._limit:
            self._stop(self._info, f"{self._limit / 1e6:g} MB are recorded, the limit record_max_mb")
            return
        if shutil.disk_usage(self._folder).free < size + RESERVE_BYTES:
            self._stop(self._error, f"the disk of {self._folder} is full")
            return
        if self._bag is None:
            self._bag = BagWriter(self._new_path())
            self._info(f"uncertain images are recorded into {self._bag.path}")
        for time_ns, one in data:
            self._bag.write_raw(topic, kind, one, time_ns)
        self._bytes += size
        self.recorded += 1

    def _new_path(self) -> Path:
        name = f"{PREFIX}{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}"
        taken = 0
        while (path := self._folder / (f"{name}_{taken}" if taken else name)).exists():
            taken += 1
        return path

    def _stop(self, log: Callable[[str], None], reason: str) -> None:
        self.stopped = reason
        log(f"uncertain images are no longer recorded: {reason}")
        self._finish()

    def _finish(self) -> None:
        bag, self._bag = self._bag, None
        if bag is None:
            return
        try:
            bag.close()
        except BagError as err:
            bag.abandon()
            if not self.stopped:
                self._error(f"uncertain images: {err}")
            self.stopped = self.stopped or str(err)
