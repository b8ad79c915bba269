# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Measure the time that a training run spends on waiting for data and on updates."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Clock:
    """Times of a stage, s.

    Attributes:
        waited: Time spent waiting for data.
        worked: Time spent on updates.
        updates: Number of updates.
        marked: `waited` and `worked` at the last log line.
    """

    waited: float = 0.0
    worked: float = 0.0
    updates: int = 0
    marked: tuple[float, float] = field(default=(0.0, 0.0))

    def add(self, waited: float, worked: float) -> None:
        """Add the times of an update, s."""
        self.waited, self.worked, self.updates = self.waited + waited, self.worked + worked, self.updates + 1

    def share(self) -> float:
        """Return the share of the time spent waiting for data, 0..1."""
        return self.waited / max(self.waited + self.worked, 1e-9)

    def recent_share(self) -> float:
        """Return that share since the last log line, 0..1."""
        waited, worked = self.waited - self.marked[0], self.worked - self.marked[1]
        return waited / max(waited + worked, 1e-9)

    def mark(self) -> None:
        """Remember the time of a log line."""
        self.marked = (self.waited, self.worked)

    def left(self, updates: int) -> float:
        """Estimate the time of further updates, s."""
        return (self.waited + self.worked) / max(self.updates, 1) * updates
