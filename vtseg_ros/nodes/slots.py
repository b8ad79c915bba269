# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Newest-only slots: callbacks store and return, one worker takes what is newest of every camera."""

from __future__ import annotations

import array
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counters:
    """What became of a camera's frames. Once idle: received = processed + dropped + rejected.

    Read freely; changed only by `Slots`, under its lock: callbacks and the worker both count.
    """

    received: int = 0
    processed: int = 0
    dropped: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class Pending:
    """A message that waits, and when it came (steady clock, s); of a dropped one, why if not for a newer one."""

    camera: str
    message: Any
    received_s: float
    reason: str = ""


@dataclass
class Taken:
    """What the worker got: at most one frame per camera, and the frames that were dropped, in their order."""

    frames: list[Pending] = field(default_factory=list)
    dropped: list[Pending] = field(default_factory=list)
    asked: Any = None
    """A request that is not of a camera's stream; None = none waits."""


class Slots:
    """One slot per camera.

    A slower camera is never starved: every take empties all slots, so that each camera waits one inference at most.

    Args:
        cameras: their names.
    """

    MAX_ASKED = 8
    """Requests that may wait, each with an image."""
    MAX_DROPPED = 10_000  # of those kept for the worker to report one by one; all are counted

    def __init__(self, cameras: list[str]) -> None:
        self.counters = {camera: Counters() for camera in cameras}
        self._newest: dict[str, Pending] = {}
        self._dropped: list[Pending] = []
        self._asked: deque[Any] = deque()
        self._condition = threading.Condition()
        self._closed = False

    def put(self, camera: str, message: Any) -> None:
        """Store a camera's newest message; one that still waits is dropped."""
        with self._condition:
            counters = self.counters[camera]
            counters.received += 1
            old = self._newest.get(camera)
            if old is not None:
                self._drop(old)
            self._newest[camera] = Pending(camera, message, time.monotonic())
            self._condition.notify()

    def skip(self, camera: str, message: Any, reason: str) -> None:
        """Count a camera's message that is not to be segmented as dropped; what waits stays."""
        with self._condition:
            self.counters[camera].received += 1
            self._drop(Pending(camera, message, time.monotonic(), reason))
            self._condition.notify()

    def ask(self, request: Any) -> bool:
        """Store a request of its own, and return False when too many wait or all is closed."""
        with self._condition:
            if self._closed or len(self._asked) >= self.MAX_ASKED:
                return False
            self._asked.append(request)
            self._condition.notify()
            return True

    def _drop(self, pending: Pending) -> None:
        self.counters[pending.camera].dropped += 1
        if len(self._dropped) < self.MAX_DROPPED:
            self._dropped.append(pending)
            _free_pixels(pending.message)

    def take(self, timeout_s: float) -> Taken | None:
        """Return what waits, oldest first; an empty `Taken` after the timeout, None when closed and all is reported."""
        with self._condition:
            if not self._newest and not self._dropped and not self._asked and not self._closed:
                self._condition.wait(timeout_s)
            if not self._newest and not self._dropped and not self._asked:
                return None if self._closed else Taken()
            frames = sorted(self._newest.values(), key=lambda p: p.received_s)
            # One at a time: requests must not keep the cameras waiting.
            taken = Taken(frames, self._dropped, self._asked.popleft() if self._asked else None)
            self._newest, self._dropped = {}, []
            return taken

    def count(self, camera: str, what: str) -> None:
        """Add one to `processed`, `dropped` or `rejected` of a camera."""
        with self._condition:
            counters = self.counters[camera]
            setattr(counters, what, getattr(counters, what) + 1)

    def close(self) -> list[Any]:
        """Count what still waits as dropped; the next take has it, the one after that is None.

        Returns:
            the requests that wait and will not be taken.
        """
        with self._condition:
            for camera, pending in self._newest.items():
                self.counters[camera].dropped += 1
                self._dropped.append(pending)
            self._newest.clear()
            self._closed = True
            unserved = list(self._asked)
            self._asked.clear()
            self._condition.notify_all()
            return unserved


def _free_pixels(message: Any) -> None:
    """Only the header of a dropped image is still needed; a flood of whole images would fill the memory."""
    if hasattr(message, "data"):
        message.data = array.array("B")
