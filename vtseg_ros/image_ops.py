# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Images as arrays: the resize to the network input, class colours and overlays."""

from __future__ import annotations

import cv2
import numpy as np

from vtseg_ros.label_set import IGNORE, LabelSet
from vtseg_ros.resize import FILL, place


def colorize(mask: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Return the class colours, (H, W, 3) uint8 RGB, of (H, W) uint8 class ids; ids without a class are black."""
    result: np.ndarray = labels.palette()[mask]
    return result


def overlay(image: np.ndarray, mask: np.ndarray, labels: LabelSet, alpha: float = 0.5) -> np.ndarray:
    """Return the image blended with the class colours; unlabelled pixels stay unchanged.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (h, w) uint8 class ids; stretched to the image's size.
        labels: class list.
        alpha: share of the colour, 0..1.
    """
    if mask.shape != image.shape[:2]:
        mask = cv2.resize(mask, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_NEAREST)
    blended = cv2.addWeighted(image, 1.0 - alpha, colorize(mask, labels), alpha, 0.0)
    blended[mask == IGNORE] = image[mask == IGNORE]
    return blended


def resize_rgb(image: np.ndarray, size: tuple[int, int], mode: str = "stretch") -> np.ndarray:
    """Resize with antialiased bilinear interpolation.

    Args:
        image: (H, W, 3) uint8.
        size: (width, height) px.
        mode: see `place`; the borders of a letterbox have the colour `FILL`.

    Returns:
        (height, width, 3) uint8; the image itself if it has this size.
    """
    if mode != "stretch":
        placement = place((image.shape[1], image.shape[0]), size, mode)
        target = placement.target
        image = resize_rgb(placement.source.of(image), (target.width, target.height))
        if placement.fills:
            return image
        canvas = np.full((size[1], size[0], 3), FILL, np.uint8)
        target.of(canvas)[:] = image
        return canvas
    if (image.shape[1], image.shape[0]) == size:
        return image
    # Imported here, because reading bags must not need torch. Networks are trained with this resize.
    import torch
    from torch.nn import functional as F

    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)[
        None
    ]  # channels_last in memory
    resized = F.interpolate(
        pixels, size=(size[1], size[0]), mode="bilinear", antialias=True, align_corners=False
    )
    return resized[0].permute(1, 2, 0).contiguous().numpy()
