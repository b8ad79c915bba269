# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Calibration of confidences (Guo et al., "On Calibration of Modern Neural Networks", 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vtseg_ros.label_set import IGNORE

if TYPE_CHECKING:
    from torch import Tensor

BINS = 15
TEMPERATURES = np.exp(np.linspace(np.log(0.4), np.log(4.0), 33))
"""Candidates, 7 % apart; 1 is added when scores are computed."""


def expected_calibration_error(count: np.ndarray, confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the mean difference of confidence and accuracy over bins, weighted by their pixels, 0..100; NaN without pixels.

    Args:
        count: (bins,) pixels in each bin of confidence.
        confidence: (bins,) sum of their confidences, 0..1 each.
        correct: (bins,) number of correct pixels.
    """
    total = count.sum()
    return float(100.0 * np.abs(confidence - correct).sum() / total) if total else float("nan")


class ConfidenceCounts:
    """Counts of correct and wrong labelled pixels by the confidence of a mask."""

    def __init__(self) -> None:
        self.counts = np.zeros((256, 2), np.int64)
        """Row c: number of wrong and of correct pixels with confidence c / 255."""

    def update(self, mask: np.ndarray, confidence: np.ndarray, label: np.ndarray) -> None:
        """Count a frame: mask, confidence (0..255) and label, (H, W) uint8 each; 255 in mask or label is ignored."""
        known = (label != IGNORE) & (mask != IGNORE)
        places = confidence[known].astype(np.int64) * 2 + (mask == label)[known]
        self.counts += np.bincount(places, minlength=512).reshape(256, 2)

    def error(self) -> float:
        """Return the expected calibration error, 0..100; NaN without pixels."""
        levels = np.arange(256) / 255
        count, right = self.counts.sum(axis=1), self.counts[:, 1]
        bins = np.minimum((levels * BINS).astype(int), BINS - 1)
        parts = [
            np.bincount(bins, weights=values, minlength=BINS) for values in (count, count * levels, right)
        ]
        return expected_calibration_error(*parts)


class TemperatureFit:
    """Find the temperature with the lowest negative log-likelihood of the labels, in one pass over the frames.

    Attributes:
        sums: (temperatures, 1 + 3 * bins) float64: the negative log-likelihood, then per bin of confidence the pixels,
            the sum of their confidences and the number of correct ones. Sums of several processes can be added.
    """

    def __init__(self) -> None:
        self.temperatures = np.concatenate([[1.0], TEMPERATURES])
        self.sums = np.zeros((len(self.temperatures), 1 + 3 * BINS))

    def update(self, logits: Tensor, truth: Tensor, members: Tensor) -> None:
        """Add pixels.

        Args:
            logits: (P, C).
            truth: (P,) int64 ids of groups.
            members: (G, C) bool, the classes of each group; the identity if each class is its own group.
        """
        if not len(logits):
            return
        import torch  # counts of confidences are used where no network is, as in the evaluator node

        mask = logits.argmax(1)
        inside = members[truth]  # (P, C)
        right = inside.gather(1, mask[:, None])[:, 0].double()
        for row, temperature in zip(self.sums, self.temperatures):
            scaled = (logits.float() / temperature).log_softmax(1)
            row[0] -= float(scaled.masked_fill(~inside, -torch.inf).logsumexp(1).double().sum())
            confidence = scaled.amax(1).exp().double()
            bins = (confidence * BINS).long().clamp(max=BINS - 1)
            parts = [
                torch.bincount(bins, weights=weights, minlength=BINS)
                for weights in (torch.ones_like(right), confidence, right)
            ]
            row[1:] += torch.cat(parts).cpu().numpy()

    def best(self) -> int:
        """Return the row of the best temperature; without pixels, that of temperature 1."""
        return int(self.sums[:, 0].argmin())

    def temperature(self) -> float:
        """Return the best temperature."""
        return float(self.temperatures[self.best()])

    def error(self, row: int = 0) -> float:
        """Return the expected calibration error, 0..100, at the temperature of a row (0: at 1)."""
        return expected_calibration_error(*self.sums[row, 1:].reshape(3, BINS))
