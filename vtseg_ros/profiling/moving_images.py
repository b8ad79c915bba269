# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Generated images for benchmarks and checks that have no recording."""

from __future__ import annotations

import cv2
import numpy as np

CELL = 16
SHIFT = 3


def moving_picture(size: tuple[int, int], count: int) -> list[np.ndarray]:
    """Return smooth random colours that drift by 3 px a frame.

    Args:
        size: (width, height) px.
        count: number of images.

    Returns:
        `count` images (H, W, 3) uint8, always the same.
    """
    width, height = size
    coarse = np.random.default_rng(0).integers(0, 256, (height // CELL + 2, width // CELL + 2, 3), np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return [np.roll(picture, SHIFT * index, axis=1) for index in range(count)]
