# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Where the time of a training goes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Clock:
    """Where the time of a stage went, s: waiting for data and working; since the stage began and the last log line."""

    waited: float = 0.0
    worked: float = 0.0
    updates: int = 0
    marked: tuple[float, float] = field(default=(0.0, 0.0))

    def add(self, waited: float, worked: float) -> None:
        self.waited, self.worked, self.updates = self.waited + waited, self.worked + worked, self.updates + 1

    def share(self) -> float:
        return self.waited / max(self.waited + self.worked, 1e-9)

    def recent_share(self) -> float:
        waited, worked = self.waited - self.marked[0], self.worked - self.marked[1]
        return waited / max(waited + worked, 1e-9)

    def mark(self) -> None:
        self.marked = (self.waited, self.worked)

    def left(self, updates: int) -> float:
        return (self.waited + self.worked) / max(self.updates, 1) * updates
