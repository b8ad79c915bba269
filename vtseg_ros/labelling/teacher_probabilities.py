# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Class probabilities of a teacher network: averaged over scales, mirrored images and neighbouring frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vtseg_ros.dataset.flow import DisFlow
from vtseg_ros.errors import ConfigError
from vtseg_ros.image_ops import resize_rgb
from vtseg_ros.inference.devices import resolve_device, resolve_precision
from vtseg_ros.inference.optimise import optimise
from vtseg_ros.inference.preprocess import to_input
from vtseg_ros.model.checkpoint import Checkpoint
from vtseg_ros.model.registry import traits_of
from vtseg_ros.model.stgru import warp
from vtseg_ros.model.vtseg import check_size
from vtseg_ros.resize import Placement, place

MULTIPLE = 32
"""The sides of the input of a network are multiples of this, px."""


@dataclass(frozen=True)
class Averaging:
    """Which predictions of the teacher are averaged.

    Args:
        size: (width, height) of the input of the network at scale 1, px, multiples of 32.
        scales: Factors of `size`, 0.25..4; each scaled side is rounded to a multiple of 32 px.
        flip: Add the mirrored image at each scale.
        neighbours: Number of frames before and after each frame, 0..10, warped to it along optical flow.

    Raises:
        ConfigError: If a value is out of range.
    """

    size: tuple[int, int]
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    neighbours: int = 0

    def __post_init__(self) -> None:
        check_size(self.size[1], self.size[0])
        if not self.scales or not all(0.25 <= scale <= 4.0 for scale in self.scales):
            raise ConfigError(f"scales: expected factors of 0.25 to 4, got {' '.join(map(str, self.scales))}")
        if not 0 <= self.neighbours <= 10:
            raise ConfigError(f"neighbours: expected 0 to 10 frames, got {self.neighbours}")

    def sizes(self) -> list[tuple[int, int]]:
        """Return the (width, height) px of every scale."""
        sides = [
            [max(1, round(side * scale / MULTIPLE)) * MULTIPLE for side in self.size] for scale in self.scales
        ]
        return [(width, height) for width, height in sides]


class Teacher:
    """A checkpoint that labels frames.

    Args:
        checkpoint: VTSeg or an image network; copied.
        averaging: Which predictions are averaged.
        device: See `VideoPredictor`.
        precision: See `VideoPredictor`.

    Raises:
        ConfigError: For a recurrent network, which needs optical flow.
        DeviceError: If the device is not available.

    Attributes:
        window: Number of frames that the network sees.
    """

    def __init__(
        self, checkpoint: Checkpoint, averaging: Averaging, *, device: str = "auto", precision: str = "auto"
    ) -> None:
        network = checkpoint.model
        assert network is not None  # only exported files have none
        known = traits_of(network)
        if known.needs_flow:
            raise ConfigError(
                f"checkpoint: {known.name} needs optical flow; expected vtseg or an image network, got "
                f"{known.name}. Choose another teacher"
            )
        self.averaging, self.labels = averaging, checkpoint.labels
        self._device = resolve_device(device)
        self._model = optimise(network, self._device, resolve_precision(precision, self._device))
        self._mode, self._temperature = checkpoint.resize_mode, checkpoint.temperature
        self._video = traits_of(self._model).takes_cache
        self.window = int(checkpoint.config["window"]) if self._video else 1
        self._flow = DisFlow()

    def placement(self, image: np.ndarray) -> Placement:
        """Return the placement of an image (H, W, 3) in the input of the network at scale 1."""
        return place((image.shape[1], image.shape[0]), self.averaging.size, self._mode)

    @torch.inference_mode()
    def probabilities(self, images: Sequence[np.ndarray]) -> Tensor:
        """Average the softmax over scales and mirrored images.

        Args:
            images: Frames up to the one to label, each (H, W, 3) uint8 RGB; at most `window`, of one size.

        Returns:
            (C, h, w) float32 on the CPU, for the part of the last image that the network sees, at scale 1.
        """
        target = self.placement(images[-1]).target
        total = torch.zeros(len(self.labels), target.height, target.width)
        sizes = self.averaging.sizes()
        for size in sizes:
            video = torch.cat([to_input(image, size, self._device, self._mode) for image in images])
            for mirrored in (False, True)[: 1 + self.averaging.flip]:
                logits = self._logits(video.flip(3) if mirrored else video)
                logits = logits.flip(3) if mirrored else logits
                seen = place((images[-1].shape[1], images[-1].shape[0]), size, self._mode).target
                logits = logits[:, :, seen.y : seen.y + seen.height, seen.x : seen.x + seen.width]
                if logits.shape[2:] != total.shape[1:]:
                    logits = F.interpolate(logits, size=total.shape[1:], mode="bilinear", align_corners=False)
                total += (logits / self._temperature).softmax(1)[0].cpu()
        return total / (len(sizes) * (1 + self.averaging.flip))

    def _logits(self, video: Tensor) -> Tensor:
        """Return the logits (1, C, H, W) float32 of the last frame of (k, 3, H, W) in [0, 1]."""
        logits: Tensor = self._model(video[None])[:, -1] if self._video else self._model(video[-1:])
        logits = logits.float()
        if logits.shape[2:] != video.shape[2:]:
            logits = F.interpolate(logits, size=video.shape[2:], mode="bilinear", align_corners=False)
        return logits

    def small(self, image: np.ndarray) -> np.ndarray:
        """Return the part of an image that the network sees at scale 1, (h, w, 3) uint8 RGB, for `average`."""
        placement = self.placement(image)
        seen = np.ascontiguousarray(placement.source.of(image))
        return resize_rgb(seen, (placement.target.width, placement.target.height))

    @torch.inference_mode()
    def average(
        self, image: np.ndarray, own: Tensor, neighbours: Sequence[tuple[np.ndarray, Tensor]]
    ) -> Tensor:
        """Average a frame's probabilities with those of its neighbours, warped along DIS optical flow.

        A neighbour counts where the flows there and back agree (Sundaram et al., "Dense Point Trajectories by
        GPU-Accelerated Large Displacement Optical Flow", ECCV 2010).

        Args:
            image: (h, w, 3) uint8 RGB of the frame.
            own: (C, h, w) probabilities of the frame.
            neighbours: Image and probabilities of other frames, of the same shapes.

        Returns:
            (C, h, w) float32.
        """
        total, count = own.clone(), torch.ones(own.shape[1:])
        for other, probabilities in neighbours:
            there = self._flow(image, other)
            valid = torch.from_numpy(consistent(there, self._flow(other, image)))
            flow = torch.from_numpy(there).permute(2, 0, 1)[None]
            total += warp(probabilities[None], flow)[0] * valid
            count += valid
        return total / count


def consistent(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Check where two opposite flows agree.

    Args:
        there: (h, w, 2) float32 px, from a frame to another one.
        back: (h, w, 2) float32 px, from that one to the frame.

    Returns:
        (h, w) bool, True where they agree; False where `there` leaves the image.
    """
    height, width = there.shape[:2]
    xs, ys = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x, y = xs + there[..., 0], ys + there[..., 1]
    found = cv2.remap(back, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    bound = 0.01 * ((there**2).sum(2) + (found**2).sum(2)) + 0.5
    agree: np.ndarray = inside & (((there + found) ** 2).sum(2) < bound)
    return agree
