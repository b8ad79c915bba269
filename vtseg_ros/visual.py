"""Masks as pictures: class colours and overlays."""

from __future__ import annotations

import cv2
import numpy as np

from vtseg_ros.labels import IGNORE, LabelSet


def colorize(mask: np.ndarray, labels: LabelSet) -> np.ndarray:
    """(H, W) uint8 class ids -> (H, W, 3) uint8 RGB; ids without a class are black."""
    return labels.palette()[mask]


def overlay(image: np.ndarray, mask: np.ndarray, labels: LabelSet, alpha: float = 0.5) -> np.ndarray:
    """The image with the classes' colours blended in; unlabelled pixels stay as they are.

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
