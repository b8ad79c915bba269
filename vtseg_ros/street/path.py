# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The centre line of the road, and positions along it."""

from __future__ import annotations

import numpy as np


class Path:
    """A winding line with positions and headings every metre; ends are continued straight.

    Args:
        length: metres.
        bend: peak curvature, 1/m.
        rng: source of the positions of the bends.
    """

    def __init__(self, *, length: float, bend: float, rng: np.random.Generator) -> None:
        s = np.arange(0.0, length + 2.0)
        curvature = np.zeros_like(s)
        for wavelength, share in ((190.0, 0.6), (83.0, 0.4)):
            curvature += bend * share * np.sin(2 * np.pi * (s / wavelength + rng.random()))
        self.length = length
        self._s = s
        self._heading = np.concatenate([[0.0], np.cumsum(curvature[:-1])])
        self._x = np.concatenate([[0.0], np.cumsum(-np.sin(self._heading[:-1]))])
        self._y = np.concatenate([[0.0], np.cumsum(np.cos(self._heading[:-1]))])

    def heading(self, s: float) -> float:
        """Return the heading in radians, counter-clockwise from +y."""
        return float(np.interp(s, self._s, self._heading))

    def at(self, s: float, lateral: float = 0.0, z: float = 0.0) -> np.ndarray:
        """Return the world position (3,) `lateral` metres to the right of the line at distance `s`."""
        heading = self.heading(s)
        base = np.array([np.interp(s, self._s, self._x), np.interp(s, self._s, self._y)])
        if s > self._s[-1] or s < 0:
            over = s - np.clip(s, 0, self._s[-1])
            base = base + over * np.array([-np.sin(heading), np.cos(heading)])
        return np.array([*(base + lateral * np.array([np.cos(heading), np.sin(heading)])), z])

    def ribbon(
        self, s0: float, s1: float, left: float, right: float, z_left: float = 0.0, z_right: float = 0.0
    ) -> np.ndarray:
        """Return the ground quad (4, 3) between two distances and two lateral offsets."""
        return np.array(
            [
                self.at(s0, left, z_left),
                self.at(s0, right, z_right),
                self.at(s1, right, z_right),
                self.at(s1, left, z_left),
            ]
        )
