# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Which frames of a camera are segmented when the user limits the rate."""

from __future__ import annotations

NS = 1_000_000_000


class RateLimit:
    """Admits frames at a limited mean rate, by their stamps.

    Frames are due on a grid, not one period after the last admitted frame: with jitter, a camera of 30 Hz limited to
    10 Hz would otherwise fall to 7.5 Hz whenever a frame comes a moment early.

    Args:
        rate_hz: highest mean rate, Hz; 0 = unlimited.
    """

    def __init__(self, rate_hz: float = 0.0) -> None:
        self._rate_hz = rate_hz
        self._due_ns: int | None = None

    @property
    def rate_hz(self) -> float:
        """Highest mean rate, Hz; 0 = unlimited."""
        return self._rate_hz

    @rate_hz.setter
    def rate_hz(self, value: float) -> None:
        if value != self._rate_hz:
            self._rate_hz, self._due_ns = value, None

    def admit(self, stamp_ns: int) -> bool:
        """Return whether a frame is to be segmented.

        Args:
            stamp_ns: of the frame, ns. Stamps that run back by more than a period begin a new grid.
        """
        if not self._rate_hz:
            return True
        period_ns = round(NS / self._rate_hz)
        if self._due_ns is not None and self._due_ns - 2 * period_ns <= stamp_ns < self._due_ns:
            return False
        missed = self._due_ns is None or not self._due_ns <= stamp_ns < self._due_ns + period_ns
        self._due_ns = (stamp_ns if missed else self._due_ns) + period_ns
        return True
