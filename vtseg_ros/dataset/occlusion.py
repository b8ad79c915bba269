# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Frames covered in part, each in places of its own, as by spray, a wiper or a lost packet (beyond the paper).

What is covered in one frame is to be seen in the others: trained and tested so, a network shows what its window is worth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vtseg_ros.errors import ConfigError

MOST = 3  # rectangles on a frame
WIDTH, HEIGHT = (0.08, 0.3), (0.25, 0.7)  # of a rectangle, as shares of the picture's sides


@dataclass(frozen=True)
class Cover:
    """A rectangle of one colour on one frame.

    Attributes:
        frame: its place in the window, 0 = the oldest.
        x, y, width, height: px.
        colour: RGB, 0..255.
    """

    frame: int
    x: int
    y: int
    width: int
    height: int
    colour: tuple[int, int, int]

    def apply(self, video: np.ndarray) -> None:
        """Cover a window (k, H, W, 3) uint8, in place."""
        video[self.frame, self.y : self.y + self.height, self.x : self.x + self.width] = self.colour


def check_share(share: float, name: str) -> None:
    """ConfigError if a share of frames lies outside 0..1."""
    if not 0 <= share <= 1:
        raise ConfigError(f"{name} is the share of frames that are covered in part, 0..1. Got: {share}")


def draw_covers(
    frames: int, size: tuple[int, int], share: float, rng: np.random.Generator
) -> tuple[Cover, ...]:
    """1 to 3 rectangles on each of k frames of (width, height) px, with the probability `share`."""
    covers = []
    for frame in range(frames):
        if rng.random() >= share:
            continue
        for _ in range(rng.integers(1, MOST + 1)):
            width, height = (int(side * rng.uniform(*span)) for side, span in zip(size, (WIDTH, HEIGHT)))
            x, y = (int(rng.integers(0, side - own + 1)) for side, own in zip(size, (width, height)))
            covers.append(Cover(frame, x, y, width, height, tuple(rng.integers(0, 256, 3).tolist())))
    return tuple(covers)
