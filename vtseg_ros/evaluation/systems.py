# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The systems that `vtseg evaluate` compares: they take the frames of a sequence and return masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vtseg_ros.inference import VideoPredictor
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class SystemInfo:
    """Information on a system, for tables and reports.

    Attributes:
        name: unique among the systems compared.
        model: `vtseg`, `gru` or the image network's name.
        checkpoint: as the user named it.
        window: window length k in frames.
        family: name without the window; systems of one family differ only in the window length.
        parameters: number of parameters of the network.
        input_size: (width, height) px of its input.
        flow: source of optical flow of a recurrent network; empty = none.
    """

    name: str
    model: str
    checkpoint: str
    window: int
    family: str
    parameters: int
    input_size: tuple[int, int]
    flow: str = ""


class System(Protocol):
    """Segments the frames of sequences in order; several streams at once.

    Attributes:
        info, labels: information for tables, and the class list.
        problems: (frame number, reason) of inputs other than the image that could not be used.
        confidence: (height, width) uint8 of the last mask, softmax maximum * 255.
    """

    info: SystemInfo
    labels: LabelSet
    problems: list[tuple[int, str]]

    @property
    def reach(self) -> int:
        """Number of frames that a mask depends on, with its own."""

    @property
    def confidence(self) -> np.ndarray:
        """Confidence of the last mask, (height, width) uint8."""

    def reset(self, stream: int) -> None:
        """Start a new sequence in a stream."""

    def step(self, number: int, image: np.ndarray, size: tuple[int, int], stream: int) -> np.ndarray:
        """Return the mask of the next frame of a stream.

        Args:
            number: of the frame in its index.
            image: (H, W, 3) uint8 RGB.
            size: (width, height) px of the mask.
            stream: number of the stream; streams do not share state.

        Returns:
            (height, width) uint8 class ids.
        """


class PredictorSystem:
    """VTSeg or an image network in the predictor that the node uses.

    Args:
        info, checkpoint: information for tables, and the network.
        device, backend, precision: as `VideoPredictor`.
    """

    def __init__(
        self, info: SystemInfo, checkpoint: Checkpoint, *, device: str, precision: str, backend: str = "auto"
    ) -> None:
        self.info, self.labels = info, checkpoint.labels
        self.problems: list[tuple[int, str]] = []
        self._segmenter = VideoPredictor(
            checkpoint,
            device=device,
            backend=backend,
            precision=precision,
            window=info.window,
            upsampling="bicubic",
        )

    @property
    def reach(self) -> int:
        """See `System.reach`; in causal streaming, more frames than the window has."""
        return self._segmenter.history + 1

    def reset(self, stream: int) -> None:
        """Start a new sequence in a stream; see `System.reset`."""
        self._segmenter.reset(str(stream))

    def step(self, number: int, image: np.ndarray, size: tuple[int, int], stream: int) -> np.ndarray:
        """Return the mask of the next frame, (height, width) uint8; see `System.step`."""
        self._segmenter.output_size = size
        # A frame without a stamp is always appended; the index determines where sequences end.
        result = self._segmenter.step(image, camera=str(stream))
        self.confidence = result.confidence
        return result.mask
