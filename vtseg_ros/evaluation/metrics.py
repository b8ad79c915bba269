# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores of masks against labels, from one confusion matrix. Scores are 0 to 100."""

from __future__ import annotations

import numpy as np

from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import IGNORE


class ConfusionMatrix:
    """Counts of labelled pixels by true and predicted class.

    A predicted 255 (unlabelled) on a labelled pixel counts as wrong; pixels labelled 255 do not count.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.matrix = np.zeros((num_classes, num_classes + 1), np.int64)
        """(C, C + 1): rows are true classes, columns predicted ones; the last column is "no class"."""

    def update(self, mask: np.ndarray, label: np.ndarray) -> None:
        """Count a frame: mask and label (H, W) uint8.

        Raises:
            ConfigError: if the shapes differ, or a label is outside the class list.
        """
        if mask.shape != label.shape:
            raise ConfigError(f"mask: not of the label's size; expected {label.shape}, got {mask.shape}")
        labelled = label != IGNORE
        truth = label[labelled].astype(np.int64)
        if truth.size and truth.max() >= self.num_classes:
            raise ConfigError(
                f"label: class id out of range; expected 0 to {self.num_classes - 1}, got {int(truth.max())}"
            )
        predicted = np.minimum(mask[labelled], self.num_classes).astype(np.int64)
        columns = self.num_classes + 1
        counts = np.bincount(truth * columns + predicted, minlength=self.num_classes * columns)
        self.matrix += counts.reshape(self.num_classes, columns)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix."""
        self.matrix += other.matrix

    def iou(self) -> np.ndarray:
        """Return the intersection over union per class, (C,) float64, 0..100; NaN where TP + FP + FN = 0."""
        hit = np.diag(self.matrix).astype(np.float64)
        union = self.matrix.sum(axis=1) + self.matrix[:, : self.num_classes].sum(axis=0) - hit
        result: np.ndarray = np.divide(
            100.0 * hit, union, out=np.full(self.num_classes, np.nan), where=union > 0
        )
        return result

    def recall(self) -> np.ndarray:
        """Return the share of each class's labelled pixels that are correct, (C,) float64, 0..100; NaN without such pixels."""
        total = self.matrix.sum(axis=1)
        hit = 100.0 * np.diag(self.matrix)
        result: np.ndarray = np.divide(hit, total, out=np.full(self.num_classes, np.nan), where=total > 0)
        return result

    def miou(self) -> float:
        """Return the mean IoU of the classes that have one, 0..100; NaN if none does."""
        iou = self.iou()
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    def pixel_accuracy(self) -> float:
        """Return the share of labelled pixels that are correct, 0..100; NaN without labelled pixels."""
        total = self.matrix.sum()
        return float(100.0 * np.trace(self.matrix[:, : self.num_classes]) / total) if total else float("nan")
