# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Temporal consistency of masks. Scores are 0 to 100."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np

from vtseg_ros.evaluation.metrics import ConfusionMatrix
from vtseg_ros.label_set import IGNORE


class VideoConsistency:
    """mVC over n frames (Miao et al., "VSPW: A Large-scale Dataset for Video Scene Parsing in the Wild", 2021).

    The share of the pixels with the same label in n consecutive frames whose mask equals this label in all n frames;
    averaged over all runs of n frames.

    Args:
        frames: number n of frames.
    """

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self._labels: deque[np.ndarray] = deque(maxlen=frames)
        self._right: deque[np.ndarray] = deque(maxlen=frames)
        self.shares: list[float] = []
        """Score of each run of n frames, 0 to 100."""

    def reset(self) -> None:
        """Start a new sequence."""
        self._labels.clear()
        self._right.clear()

    def update(self, mask: np.ndarray, label: np.ndarray) -> None:
        """Add the mask and label of the next frame, (H, W) uint8."""
        if self._labels and self._labels[-1].shape != label.shape:
            self.reset()
        self._labels.append(label.copy())
        self._right.append(mask == label)
        if len(self._labels) == self.frames:
            same = self._labels[0] != IGNORE
            for later in list(self._labels)[1:]:
                same &= later == self._labels[0]
            steady = same & np.logical_and.reduce(list(self._right))
            if same.any():
                self.shares.append(float(100.0 * steady.sum() / same.sum()))

    def score(self) -> float:
        """Return the mean over the runs, 0 to 100; NaN if there was none."""
        return float(np.mean(self.shares)) if self.shares else float("nan")


class WarpedConsistency:
    """mIoU between a mask and the previous one warped by optical flow (OpenCV's DIS on the images).

    Args:
        num_classes: C.
        width: images and masks are scaled to this width, px, before flow is estimated.
        skip_unlabelled: leave out pixels that are 255 in the newer mask, for labels in place of masks; otherwise they
            count as wrong.
    """

    def __init__(self, num_classes: int, width: int = 320, *, skip_unlabelled: bool = False) -> None:
        self.confusion = ConfusionMatrix(num_classes)
        """Warped previous masks as labels, masks as predictions."""
        self._width, self._skip_unlabelled = width, skip_unlabelled
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._previous: tuple[np.ndarray, np.ndarray] | None = None

    def reset(self) -> None:
        """Start a new sequence."""
        self._previous = None

    def update(self, image: np.ndarray, mask: np.ndarray) -> None:
        """Add the next frame: image (H, W, 3) uint8 RGB and mask (h, w) uint8."""
        size = (self._width, max(8, round(image.shape[0] * self._width / image.shape[1])))
        gray = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        small = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        if self._previous is not None and self._previous[0].shape == gray.shape:
            # From this frame to the previous one; the type stub of OpenCV does not allow None.
            flow = self._flow.calc(gray, self._previous[0], None)  # type: ignore[call-overload]
            xs, ys = np.meshgrid(np.arange(size[0], dtype=np.float32), np.arange(size[1], dtype=np.float32))
            warped = cv2.remap(
                self._previous[1],
                xs + flow[..., 0],
                ys + flow[..., 1],
                cv2.INTER_NEAREST,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=IGNORE,
            )
            if self._skip_unlabelled:
                warped[small == IGNORE] = IGNORE
            self.confusion.update(small, warped)
        self._previous = (gray, small)

    def score(self) -> float:
        """Return the mIoU, 0 to 100; NaN before the second frame."""
        return self.confusion.miou()
