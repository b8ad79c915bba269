"""The segmentation head: feature maps of one frame to its logits by pixel shuffle (paper, Section III-E).

The widths are our choice (the paper gives C_head = 256 alone); see docs/network.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtseg_ros.model.config import STAGES, VTSegConfig


@torch.no_grad()
def icnr_(weight: Tensor, factor: int) -> None:
    """Initialise a convolution before PixelShuffle so that it starts as nearest-neighbour upsampling.

    Source: Aitken et al., "Checkerboard artifact free sub-pixel convolution", 2017.

    Args:
        weight: (out * factor^2, in, kh, kw), changed in place.
        factor: upscale factor of the PixelShuffle.
    """
    kernel = torch.empty(weight.shape[0] // factor**2, *weight.shape[1:])
    nn.init.kaiming_normal_(kernel, nonlinearity="relu")
    weight.copy_(kernel.repeat_interleave(factor**2, dim=0))


def shuffle_conv(in_channels: int, out_channels: int, kernel: int, factor: int) -> nn.Sequential:
    """Convolution and PixelShuffle: (n, in, H, W) -> (n, out, factor * H, factor * W)."""
    conv = nn.Conv2d(in_channels, out_channels * factor**2, kernel, padding=kernel // 2)
    icnr_(conv.weight, factor)
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.PixelShuffle(factor))


class VTSegHead(nn.Module):
    """All levels to H/4, fused, then twice a convolution and PixelShuffle(2); frame by frame.

    Args:
        config: the network's hyperparameters.
    """

    def __init__(self, config: VTSegConfig) -> None:
        super().__init__()
        width = config.head_channels
        self.levels = nn.ModuleList(
            shuffle_conv(config.embed_dims[stage], width, kernel=1, factor=2**stage)
            for stage in range(STAGES)
        )
        self.fuse = nn.Sequential(
            nn.Conv2d(STAGES * width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        last = config.pixel_channels or width // 8
        middle = max(width // 4, last)
        self.up1 = nn.Sequential(shuffle_conv(width, middle, kernel=3, factor=2), nn.ReLU())
        self.up2 = nn.Sequential(shuffle_conv(middle, last, kernel=3, factor=2), nn.ReLU())
        self.classify = nn.Conv2d(last, config.num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """D_1..D_4, each (n, C_i, H / s_i, W / s_i) with s = 4, 8, 16, 32 -> logits (n, C, H, W)."""
        fused = self.fuse(torch.cat([level(grid) for level, grid in zip(self.levels, maps)], dim=1))
        return self.classify(self.up2(self.up1(fused)))
