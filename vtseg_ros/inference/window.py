# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The rules of the sliding window: a frame is appended, starts a new window, or is dropped."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

NS_PER_S = 1_000_000_000


class Action(Enum):
    """What to do with a frame."""

    APPEND = "append"
    RESTART = "restart"
    DROP = "drop"


@dataclass(frozen=True)
class Decision:
    """An action and, for a restart or a dropped frame, its reason."""

    action: Action
    reason: str = ""


class FrameWindow:
    """Decide what to do with each frame of one camera.

    A pause longer than `max_gap_s`, a stamp that is older by more than that, another image size or another frame_id
    starts a new window. A frame that repeats the newest stamp, or is late by at most `max_gap_s`, is dropped and does not
    change the window. A frame without a stamp (None) is always appended.

    Args:
        max_gap_s: longest pause within a window, s.
    """

    def __init__(self, max_gap_s: float = 1.0) -> None:
        self.max_gap_s = max_gap_s
        self._stamp_ns: int | None = None
        self._source: tuple[tuple[int, ...], str] | None = None

    def push(self, stamp_ns: int | None, shape: tuple[int, ...], frame_id: str = "") -> Decision:
        """Decide about a frame and remember it, unless it is dropped.

        Args:
            stamp_ns: header stamp in ns; None or 0 = no stamp.
            shape: (H, W) of the image.
            frame_id: of its header.
        """
        stamp_ns = stamp_ns or None
        source, previous = (tuple(shape), frame_id), self._stamp_ns
        reason = ""
        if self._source is None:
            reason = "first frame"
        elif source[0] != self._source[0]:
            reason = f"image size changed from {_size(self._source[0])} to {_size(source[0])}"
        elif source[1] != self._source[1]:
            reason = f"frame_id changed from {self._source[1]!r} to {source[1]!r}"
        elif stamp_ns is not None and previous is not None:
            gap = stamp_ns - previous
            if gap == 0:
                return Decision(Action.DROP, f"repeated stamp {_seconds(stamp_ns)}")
            if -self.max_gap_s * NS_PER_S <= gap < 0:
                late = f"late stamp {_seconds(stamp_ns)}: {-gap / NS_PER_S:.3f} s older than the newest frame"
                return Decision(Action.DROP, f"{late}, {_seconds(previous)}")
            if gap < 0:
                reason = f"stamps ran back by {-gap / NS_PER_S:.3f} s"
            elif gap > self.max_gap_s * NS_PER_S:
                reason = f"pause of {gap / NS_PER_S:.3f} s"
        self._stamp_ns, self._source = stamp_ns, source
        return Decision(Action.RESTART, reason) if reason else Decision(Action.APPEND)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _seconds(stamp_ns: int) -> str:
    return f"{stamp_ns // NS_PER_S}.{stamp_ns % NS_PER_S:09d} s"
