# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of a validation: what the camera saw, what is true, what the static network and the network say."""

from __future__ import annotations

import numpy as np

from vtseg_ros.image_ops import colorize
from vtseg_ros.label_set import IGNORE, LabelSet

GAP = 4
BETTER, WORSE = (40, 200, 90), (230, 50, 60)


def difference(image: np.ndarray, truth: np.ndarray, prior: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Where the network leaves its static network: green where that is right, red where the static network was.

    Args:
        image: (H, W, 3) uint8 RGB, shown dark below.
        truth, prior, mask: (H, W) uint8 class ids.
    """
    picture = image // 3
    left = (mask != prior) & (truth != IGNORE)
    picture[left & (mask == truth)] = BETTER
    picture[left & (prior == truth)] = WORSE
    picture[left & (mask != truth) & (prior != truth)] = 160
    return picture


def row(
    image: np.ndarray, truth: np.ndarray, prior: np.ndarray | None, mask: np.ndarray, labels: LabelSet
) -> np.ndarray:
    """One frame side by side: image, truth, [static network,] network[, difference]."""
    parts = [image, colorize(truth, labels)]
    if prior is not None:
        parts.append(colorize(prior, labels))
    parts.append(colorize(mask, labels))
    if prior is not None:
        parts.append(difference(image, truth, prior, mask))
    return joined(parts, axis=1)


def sheet(rows: list[np.ndarray]) -> np.ndarray:
    """Rows below each other, (H, W, 3) uint8."""
    return joined(rows, axis=0)


def joined(parts: list[np.ndarray], axis: int) -> np.ndarray:
    """Pictures of one height (axis 1) or width (axis 0) beside or below each other, white between them."""
    shape = list(parts[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, np.uint8)
    spaced = [parts[0]]
    for part in parts[1:]:
        spaced += [gap, part]
    return np.concatenate(spaced, axis=axis)
