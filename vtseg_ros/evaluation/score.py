# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores of one system over a stream of frames, and its worst frames as images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from vtseg_ros.bags.messages import to_ns
from vtseg_ros.evaluation.calibration import ConfidenceCounts
from vtseg_ros.evaluation.metrics import ConfusionMatrix
from vtseg_ros.evaluation.temporal import FlowImage, VideoConsistency, WarpedConsistency
from vtseg_ros.label_set import IGNORE, LabelSet

PICTURE_WIDTH = 480


@dataclass(frozen=True)
class Sample:
    """A frame for the report: images of at most PICTURE_WIDTH px width, accuracy 0..100."""

    stamp_ns: int
    accuracy: float
    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray


class Scores:
    """Accumulate the scores of one system.

    Args:
        labels: class list.
        keep: number of worst frames to keep as images; 0 = none.
        max_gap_s: a longer pause starts a new sequence for the temporal scores.
        baseline: (h, w) uint8 class ids that are scored as if they were the mask of every frame (the position baseline:
            the most frequent class of each pixel in training); None = no baseline.
    """

    def __init__(
        self,
        labels: LabelSet,
        *,
        keep: int = 6,
        max_gap_s: float = 1.0,
        baseline: np.ndarray | None = None,
    ) -> None:
        self.labels, self._keep, self._max_gap_ns = labels, keep, to_ns(max_gap_s)
        self.confusion = ConfusionMatrix(len(labels))
        self.confidences = ConfidenceCounts()
        self.baseline = ConfusionMatrix(len(labels)) if baseline is not None else None
        self._baseline_mask = baseline
        self._consistency = {n: VideoConsistency(n) for n in (8, 16)}
        self._warped = WarpedConsistency(len(labels))
        self._scored_ns: int | None = None
        self._watched_ns: int | None = None
        self.worst: list[Sample] = []
        self.frames = 0

    def update(
        self,
        stamp_ns: int,
        mask: np.ndarray,
        label: np.ndarray,
        image: np.ndarray | None,
        *,
        confidence: np.ndarray | None = None,
    ) -> None:
        """Score a frame against its label.

        Args:
            stamp_ns: stamp of the frame; a jump starts a new run for mVC.
            mask: (h, w) uint8; stretched to the label's size if it has another.
            label: (H, W) uint8.
            image: (H, W, 3) uint8 RGB for the images of the report, or None.
            confidence: (H, W) uint8 of the mask, softmax maximum * 255, for the calibration error, or None.
        """
        if mask.shape != label.shape:
            mask = cv2.resize(mask, (label.shape[1], label.shape[0]), interpolation=cv2.INTER_NEAREST)
        frame = ConfusionMatrix(len(self.labels))
        frame.update(mask, label)
        self.confusion.merge(frame)
        if confidence is not None:
            self.confidences.update(mask, confidence, label)
        if self.baseline is not None and self._baseline_mask is not None:
            size = (label.shape[1], label.shape[0])
            self.baseline.update(
                cv2.resize(self._baseline_mask, size, interpolation=cv2.INTER_NEAREST), label
            )
        if not self._follows(stamp_ns, self._scored_ns):
            self.new_labels()
        for consistency in self._consistency.values():
            consistency.update(mask, label)
        self._scored_ns = stamp_ns
        self.frames += 1
        if image is not None:
            self._remember(stamp_ns, frame.pixel_accuracy(), image, label, mask)

    def watch(self, stamp_ns: int, mask: np.ndarray, image: FlowImage) -> None:
        """Update the temporal consistency, which needs no label, with a mask (h, w) uint8 and its image."""
        if not self._follows(stamp_ns, self._watched_ns):
            self._warped.reset()
        self._watched_ns = stamp_ns
        self._warped.update(image, mask)

    def _follows(self, stamp_ns: int, previous_ns: int | None) -> bool:
        return previous_ns is not None and 0 < stamp_ns - previous_ns <= self._max_gap_ns

    def new_labels(self) -> None:
        """Start a new run of labels for mVC, because the next label is not that of the next frame."""
        for consistency in self._consistency.values():
            consistency.reset()

    def new_sequence(self) -> None:
        """Start a new sequence for all temporal scores."""
        self._warped.reset()
        self.new_labels()

    def _remember(
        self, stamp_ns: int, accuracy: float, image: np.ndarray, label: np.ndarray, mask: np.ndarray
    ) -> None:
        if (
            not self._keep
            or np.isnan(accuracy)
            or (len(self.worst) == self._keep and accuracy >= self.worst[-1].accuracy)
        ):
            return
        size = (PICTURE_WIDTH, max(1, round(label.shape[0] * PICTURE_WIDTH / label.shape[1])))
        pictures = [cv2.resize(image, size, interpolation=cv2.INTER_AREA)]
        pictures += [cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST) for ids in (label, mask)]
        self.worst = sorted([*self.worst, Sample(stamp_ns, accuracy, *pictures)], key=lambda s: s.accuracy)[
            : self._keep
        ]

    def mvc(self, frames: int) -> float:
        """Return mVC over 8 or 16 frames; NaN if not all frames have labels."""
        return self._consistency[frames].score()

    def temporal_consistency(self) -> float:
        """Return the mIoU between masks and flow-warped previous masks."""
        return self._warped.score()

    def counts(self) -> dict[str, Any]:
        """Return plain JSON values from which the scores are computed; `add` takes them."""
        return {
            "frames": self.frames,
            "confusion": self.confusion.matrix.tolist(),
            "confidences": self.confidences.counts.tolist(),
            "warped": self._warped.confusion.matrix.tolist(),
            "consistency": {str(n): one.shares for n, one in self._consistency.items()},
        }

    def add(self, counts: dict[str, Any]) -> None:
        """Add what `counts` returned for other frames, which belong to other sequences."""
        self.frames += counts["frames"]
        self.confusion.matrix += np.array(counts["confusion"], np.int64)
        self.confidences.counts += np.array(counts["confidences"], np.int64)
        self._warped.confusion.matrix += np.array(counts["warped"], np.int64)
        for n, one in self._consistency.items():
            one.shares += counts["consistency"][str(n)]

    def as_system(
        self, *, name: str, model: str | None, checkpoint: str | None, window: int | None
    ) -> dict[str, Any]:
        """Return the entry of a JSON report; absent scores are None."""
        return {
            "name": name,
            "model": model,
            "checkpoint": checkpoint,
            "window": window,
            "miou": or_none(self.confusion.miou()),
            "iou": {n: or_none(v) for n, v in zip(self.labels.names, self.confusion.iou())},
            "recall": {n: or_none(v) for n, v in zip(self.labels.names, self.confusion.recall())},
            "pixel_accuracy": or_none(self.confusion.pixel_accuracy()),
            "frames": self.frames,
            "mvc8": or_none(self.mvc(8)),
            "mvc16": or_none(self.mvc(16)),
            "temporal_consistency": or_none(self.temporal_consistency()),
            "calibration_error": or_none(self.confidences.error()),
        }


def or_none(value: float) -> float | None:
    """Return a score for JSON: None for NaN."""
    return None if np.isnan(value) else round(float(value), 4)


def score_text(value: float | None) -> str:
    """Return a score for a table; absent is a dash."""
    return "–" if value is None else f"{value:.2f}"


def error_picture(sample: Sample) -> np.ndarray:
    """Draw the image in grey with wrong pixels in red, (H, W, 3) uint8 RGB."""
    gray = cv2.cvtColor(cv2.cvtColor(sample.image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    wrong = (sample.label != IGNORE) & (sample.mask != sample.label)
    gray[wrong] = (gray[wrong] * 0.35 + np.array([220, 40, 40]) * 0.65).astype(np.uint8)
    return gray
