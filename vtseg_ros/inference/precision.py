# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Agreement of the masks in reduced precision with those in fp32."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence

import numpy as np

from vtseg_ros.errors import ConfigError
from vtseg_ros.inference.predictor import VideoPredictor
from vtseg_ros.inference.sources import frames_of
from vtseg_ros.model.checkpoint import Checkpoint


def measure_agreement(checkpoint: Checkpoint, images: Sequence[np.ndarray], precision: str = "bf16") -> float:
    """Return the share of pixels, 0 to 1, that have the same class in a reduced precision as in fp32.

    Both run in PyTorch on the CPU. If the processor has no bf16 instructions, bf16 is emulated with the same rounding.

    Args:
        checkpoint: the network.
        images: consecutive real frames, each (H, W, 3) uint8 RGB. Random images have few confident pixels and give
            lower shares.
        precision: `bf16`.
    """
    reduced, full = (
        VideoPredictor(checkpoint, device="cpu", backend="torch", precision=name, output_size="network")
        for name in (precision, "fp32")
    )
    shares = [float((reduced.step(image).mask == full.step(image).mask).mean()) for image in images]
    return float(np.mean(shares))


def with_agreement(checkpoint: Checkpoint, images: Sequence[np.ndarray]) -> Checkpoint:
    """Return a checkpoint with the measured agreement of bf16 and fp32 on some frames; see `measure_agreement`."""
    agreement = {**checkpoint.agreement, "bf16": round(measure_agreement(checkpoint, images), 6)}
    return dataclasses.replace(checkpoint, agreement=agreement)


def first_images(source: str | os.PathLike[str], count: int) -> list[np.ndarray]:
    """Return the first images of a bag, video file or folder, each (H, W, 3) uint8 RGB; damaged ones are skipped.

    Raises:
        BagError, ConfigError: if the source cannot be read or has no image.
    """
    images = (frame.image for frame in frames_of(source) if frame.image is not None)
    found = list(itertools.islice(images, count))
    if not found:
        raise ConfigError(f"{source}: no image that can be decoded; expected real frames, got none")
    return found
