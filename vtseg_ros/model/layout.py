"""The memory layout that convolutions like best, on the CPU and on tensor cores."""

from __future__ import annotations

import torch
from torch import nn


def use_channels_last(network: nn.Module) -> None:
    """Lay out the weights of all 2-D convolutions as (out, H, W, in), in place.

    `Module.to(memory_format=...)` on the whole fails at the five axes of a 3-D convolution (`mix_ffn: spatiotemporal`).
    """
    for part in network.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
            part.to(memory_format=torch.channels_last)
