# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Convert an image to the network input."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vtseg_ros.image_ops import resize_rgb


def to_input(image: np.ndarray, size: tuple[int, int], device: torch.device, mode: str = "stretch") -> Tensor:
    """Convert (H, W, 3) uint8 RGB to (1, 3, height, width) float32 in [0, 1] on the device; the upload is uint8.

    On a GPU, the GPU resizes; the result may differ from `resize_rgb` by 1/255.
    """
    if device.type != "cuda" or mode != "stretch":
        image = resize_rgb(image, size, mode)
    # Messages contain read-only views, which torch does not accept.
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"]))
    if device.type == "cuda":
        pixels = pixels.pin_memory().to(device, non_blocking=True)
    planes = pixels.permute(2, 0, 1)[None].float()  # (1, 3, H, W), channels last in memory
    if planes.shape[2:] != (size[1], size[0]):
        planes = F.interpolate(
            planes, size=(size[1], size[0]), mode="bilinear", antialias=True, align_corners=False
        ).round_()
    return planes.div_(255)
