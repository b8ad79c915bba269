# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A static network that fails for certain images, to simulate a broken GPU in a real process."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Fragile(nn.Module):
    """Logits of a 1x1 convolution; out of memory on a red image, an error on a white one."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.classify = nn.Conv2d(3, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        red, green, blue = images.mean(dim=(0, 2, 3)).tolist()
        if red > 0.95 and green < 0.05:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if min(red, green, blue) > 0.95:
            raise RuntimeError("an illegal instruction was encountered")
        return self.classify(images)


def fragile(num_classes: int) -> nn.Module:
    torch.manual_seed(1)
    return Fragile(num_classes)
