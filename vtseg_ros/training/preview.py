# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Preview images of a validation: image, truth, and masks of the static network and of the network."""

from __future__ import annotations

import numpy as np

from vtseg_ros.image_ops import colorize
from vtseg_ros.label_set import IGNORE, LabelSet

GAP = 4
BETTER, WORSE = (40, 200, 90), (230, 50, 60)


def difference(image: np.ndarray, truth: np.ndarray, prior: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draw where the network differs from its static network.

    Pixels are green where the network is right, red where the static network is, and grey where neither is.

    Args:
        image: (H, W, 3) uint8 RGB, drawn dark in the background.
        truth: (H, W) uint8 class ids, 255 = unlabelled.
        prior: (H, W) uint8 class ids of the static network.
        mask: (H, W) uint8 class ids of the network.

    Returns:
        (H, W, 3) uint8 RGB.
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
    """Draw one frame side by side: image, truth, [static network,] network[, difference]."""
    parts = [image, colorize(truth, labels)]
    if prior is not None:
        parts.append(colorize(prior, labels))
    parts.append(colorize(mask, labels))
    if prior is not None:
        parts.append(difference(image, truth, prior, mask))
    return joined(parts, axis=1)


def sheet(rows: list[np.ndarray]) -> np.ndarray:
    """Stack rows below each other, (H, W, 3) uint8 RGB."""
    return joined(rows, axis=0)


def joined(parts: list[np.ndarray], axis: int) -> np.ndarray:
    """Join images of one height (axis 1) or width (axis 0) next to or below each other, with white gaps."""
    shape = list(parts[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, np.uint8)
    spaced = [parts[0]]
    for part in parts[1:]:
        spaced += [gap, part]
    return np.concatenate(spaced, axis=axis)
