# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Frames that are partly covered, each at its own places, as by spray, a wiper or lost packets (not in the paper).

Other frames of the window show what is covered in one frame, so training and tests on them measure the use of the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vtseg_ros.errors import ConfigError

MOST = 3  # rectangles per frame
WIDTH, HEIGHT = (0.08, 0.3), (0.25, 0.7)  # of a rectangle, as shares of the sides of the image


@dataclass(frozen=True)
class Cover:
    """A rectangle of one colour on one frame.

    Attributes:
        frame: Position of the frame in the window, 0 = the oldest.
        x: Left column, px.
        y: Top row, px.
        width: Width, px.
        height: Height, px.
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
    """Check a share of frames.

    Raises:
        ConfigError: If it is outside 0..1.
    """
    if not 0 <= share <= 1:
        raise ConfigError(
            f"{name} is the share of frames that are partly covered; expected 0..1, got {share}"
        )


def draw_covers(
    frames: int, size: tuple[int, int], share: float, rng: np.random.Generator
) -> tuple[Cover, ...]:
    """Draw 1 to 3 rectangles on some frames of a window.

    Args:
        frames: Number of frames.
        size: (width, height) of the frames, px.
        share: Probability that a frame is covered, 0..1.
        rng: Source of the random numbers.
    """
    covers = []
    for frame in range(frames):
        if rng.random() >= share:
            continue
        for _ in range(rng.integers(1, MOST + 1)):
            width, height = (int(side * rng.uniform(*span)) for side, span in zip(size, (WIDTH, HEIGHT)))
            x, y = (int(rng.integers(0, side - own + 1)) for side, own in zip(size, (width, height)))
            red, green, blue = rng.integers(0, 256, 3).tolist()
            covers.append(Cover(frame, x, y, width, height, (red, green, blue)))
    return tuple(covers)
