# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What `vtseg evaluate` compares: systems that take the frames of a sequence and give masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vtseg_ros.inference import VideoPredictor
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model.checkpoint import Checkpoint


@dataclass(frozen=True)
class SystemInfo:
    """What a system is, for tables and reports.

    Attributes:
        name: unique among the systems compared.
        model: `vtseg`, `gru` or the image network's name.
        checkpoint: as the user named it.
        window: frames k it sees.
        family: name without the window: systems of one family differ in the window alone.
        parameters: of the network.
        input_size: (width, height) px of its input.
        flow: where a recurrent network's optical flow comes from; empty = it uses none.
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
    """Frames of a sequence in order, masks out; several streams of frames at once.

    Attributes:
        info, labels: what it is, and its class list.
        problems: (frame number, what was wrong) of what it could not use besides the image.
        confidence: (height, width) uint8 of the last mask, softmax maximum * 255.
    """

    info: SystemInfo
    labels: LabelSet
    problems: list[tuple[int, str]]

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
    """VTSeg or an image network, through the predictor that the node uses.

    Args:
        info, checkpoint: what it is.
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

    def reset(self, stream: int) -> None:
        """Start a new sequence in a stream; see `System.reset`."""
        self._segmenter.reset(str(stream))

    def step(self, number: int, image: np.ndarray, size: tuple[int, int], stream: int) -> np.ndarray:
        """Return the mask of the next frame, (height, width) uint8; see `System.step`."""
        self._segmenter.output_size = size
        # Without a stamp a frame always joins: where sequences end is the index's to say.
        result = self._segmenter.step(image, camera=str(stream))
        self.confidence = result.confidence
        return result.mask
