# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Count what happened to each frame that the evaluator received, by its stamp."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from typing import Any

UNDER_WAY_S = 0.25  # how long an image may take to the segmenter after it was seen here


class Ledger:
    """Stamps of images seen and of the segmenter's statuses.

    A looped bag repeats stamps: they are counted as often as they came.
    """

    PROCESSED, REJECTED, DROPPED = "processed", "rejected", "dropped"

    def __init__(self) -> None:
        self._seen: Counter[int] = Counter()
        self._labels: Counter[int] = Counter()
        self._events = {name: Counter() for name in (self.PROCESSED, self.REJECTED, self.DROPPED)}
        # Images that a status may still come for, as they came, and when.
        self._open: deque[tuple[int, float]] = deque()

    def saw_image(self, stamp_ns: int) -> None:
        """Count an image of the camera."""
        self._seen[stamp_ns] += 1
        if self._seen[stamp_ns] > sum(counted[stamp_ns] for counted in self._events.values()):
            self._open.append((stamp_ns, time.monotonic()))

    def saw_label(self, stamp_ns: int) -> None:
        """Count a label."""
        self._labels[stamp_ns] += 1

    def saw_status(self, event: str, stamp_ns: int) -> None:
        """Count a status of the segmenter.

        Args:
            event: `PROCESSED`, `REJECTED` or `DROPPED`.
            stamp_ns: Stamp of the frame, ns.
        """
        self._events[event][stamp_ns] += 1
        # The segmenter reports frames in the order of their arrival: earlier ones will not be reported any more.
        if any(stamp == stamp_ns for stamp, _ in self._open):
            while self._open.popleft()[0] != stamp_ns:
                pass

    def saw_idle(self) -> None:
        """Count as lost what the idle segmenter has not reported."""
        while self._open and time.monotonic() - self._open[0][1] > UNDER_WAY_S:
            self._open.popleft()

    def counts(self) -> dict[str, int]:
        """Return the number of frames by what happened to them, with the names of EvaluationReport.

        `frames_lost` are images seen here that no status reports although later ones were reported, or the segmenter
        is idle: they were lost on the way to it. `frames_pending` are those that it may be processing.
        """
        reported: Counter[int] = sum(self._events.values(), Counter())
        unreported = sum((self._seen - reported).values())
        processed = {name: sum(counter.values()) for name, counter in self._events.items()}
        return {
            "frames_seen": sum(self._seen.values()),
            "labelled_frames": sum(self._labels.values()),
            "frames_received": sum(reported.values()),
            "frames_processed": processed[self.PROCESSED],
            "frames_dropped": processed[self.DROPPED],
            "frames_rejected": processed[self.REJECTED],
            "frames_lost": unreported - len(self._open),
            "frames_pending": len(self._open),
        }

    def labelled_processed(self) -> int:
        """Return the number of labels whose image was processed."""
        return sum((self._labels & self._events[self.PROCESSED]).values())


class Waiting:
    """What waits for its counterpart of the same stamp; the oldest go when it becomes too much.

    Args:
        items, size: most things, and most bytes, that wait. Frames that never meet a label must not fill the memory.
    """

    def __init__(self, items: int = 600, size: int = 256 * 1024 * 1024) -> None:
        self._items, self._size, self._held = items, size, 0
        self._waiting: OrderedDict[int, tuple[Any, int]] = OrderedDict()

    def __contains__(self, stamp_ns: int) -> bool:
        return stamp_ns in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def stamps(self) -> list[int]:
        """Return the stamps of what waits, ns, in the order of arrival."""
        return list(self._waiting)

    def put(self, stamp_ns: int, thing: Any, size: int) -> None:
        """Keep a thing of `size` bytes; one of the same stamp is replaced. The newest always stays."""
        self.pop(stamp_ns)
        self._waiting[stamp_ns] = (thing, size)
        self._held += size
        while len(self._waiting) > 1 and (len(self._waiting) > self._items or self._held > self._size):
            self._held -= self._waiting.popitem(last=False)[1][1]

    def get(self, stamp_ns: int) -> Any:
        """Return the thing of a stamp and keep it; None if there is none."""
        return self._waiting.get(stamp_ns, (None, 0))[0]

    def pop(self, stamp_ns: int) -> Any:
        """Return the thing of a stamp and remove it; None if there is none."""
        thing, size = self._waiting.pop(stamp_ns, (None, 0))
        self._held -= size
        return thing
