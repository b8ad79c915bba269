# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Temporal consistency of masks. Scores are 0 to 100."""

from __future__ import annotations

import weakref
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


class FlowImage:
    """An image that optical flow is estimated from (OpenCV's DIS), once for all systems that are compared.

    Args:
        image: (H, W, 3) uint8 RGB; it is scaled.
        width: of the scaled image, px.
    """

    def __init__(self, image: np.ndarray, width: int = 320) -> None:
        self.size = (width, max(8, round(image.shape[0] * width / image.shape[1])))
        """Width and height, px."""
        small = cv2.resize(image, self.size, interpolation=cv2.INTER_AREA)
        self._gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        # A strong reference would keep all images of the sequence.
        self._earlier: weakref.ref[FlowImage] | None = None
        self._flow: np.ndarray | None = None

    def flow_to(self, earlier: FlowImage) -> np.ndarray:
        """Return the flow to an image of the same size, (h, w, 2) float32 px; that to the last one asked for is kept."""
        if self._flow is None or self._earlier is None or self._earlier() is not earlier:
            estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
            # The type stub of OpenCV does not allow None.
            self._flow = estimator.calc(self._gray, earlier._gray, None)  # type: ignore[call-overload]
            self._earlier = weakref.ref(earlier)
        return self._flow


class WarpedConsistency:
    """mIoU between a mask and the previous one warped by the optical flow of the images.

    Args:
        num_classes: C.
        skip_unlabelled: leave out pixels that are 255 in the newer mask, for labels in place of masks; otherwise they
            count as wrong.
    """

    def __init__(self, num_classes: int, *, skip_unlabelled: bool = False) -> None:
        self.confusion = ConfusionMatrix(num_classes)
        """Warped previous masks as labels, masks as predictions."""
        self._skip_unlabelled = skip_unlabelled
        self._previous: tuple[FlowImage, np.ndarray] | None = None

    def reset(self) -> None:
        """Start a new sequence."""
        self._previous = None

    def update(self, image: FlowImage, mask: np.ndarray) -> None:
        """Add the next frame: its image, and the mask (h, w) uint8, which is scaled to the size of the flow."""
        width, height = image.size
        small = cv2.resize(mask, image.size, interpolation=cv2.INTER_NEAREST)
        if self._previous is not None and self._previous[0].size == image.size:
            flow = image.flow_to(self._previous[0])
            xs, ys = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
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
        self._previous = (image, small)

    def score(self) -> float:
        """Return the mIoU, 0 to 100; NaN before the second frame."""
        return self.confusion.miou()
