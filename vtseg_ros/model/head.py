# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The segmentation head: feature maps of one frame to its logits by pixel shuffle (paper, Section III-E).

The widths are our choice (the paper specifies only C_head = 256); see docs/explanation/network.md.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vtseg_ros.model.attention import to_tokens
from vtseg_ros.model.vtseg_config import STAGES, VTSegConfig


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
    """Return a convolution and PixelShuffle: (n, in, H, W) -> (n, out, factor * H, factor * W)."""
    conv = nn.Conv2d(in_channels, out_channels * factor**2, kernel, padding=kernel // 2)
    icnr_(conv.weight, factor)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.PixelShuffle(factor))


class VTSegHead(nn.Module):
    """Fuse all levels at H/4, then apply a convolution and PixelShuffle(2) twice, separately for each frame.

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

    def fuse_levels(self, maps: list[Tensor]) -> Tensor:
        """Fuse D_1..D_4, each (n, C_i, H / s_i, W / s_i), into (n, C_head, H / 4, W / 4)."""
        result: Tensor = self.fuse(torch.cat([level(grid) for level, grid in zip(self.levels, maps)], dim=1))
        return result

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map D_1..D_4, each (n, C_i, H / s_i, W / s_i) with s = 4, 8, 16, 32, to logits (n, C, H, W)."""
        result: Tensor = self.classify(self.up2(self.up1(self.fuse_levels(maps))))
        return result

    def fused(self) -> FusedHead:
        """Return an equivalent head with fewer layers, for inference."""
        return FusedHead(self)


class FusedHead(VTSegHead):
    """A VTSegHead whose fusion convolution and BatchNorm are merged into the levels.

    Both are linear and 1x1, and PixelShuffle only moves values: instead of concatenating 4 * C_head channels and
    fusing them, the levels' maps of C_head channels are added up. See `_FusedLevel`.

    Args:
        head: in eval mode.
    """

    def __init__(self, head: VTSegHead) -> None:
        nn.Module.__init__(self)
        fuse = fuse_conv_bn_eval(cast(nn.Conv2d, head.fuse[0]), cast(nn.BatchNorm2d, head.fuse[1]))
        blocks = fuse.weight[:, :, 0, 0].chunk(len(head.levels), dim=1)
        self.levels = nn.ModuleList(
            _FusedLevel(cast(nn.Conv2d, level[0]), block, cast(nn.PixelShuffle, level[1]).upscale_factor)
            for level, block in zip(cast("list[nn.Sequential]", head.levels), blocks)
        )
        with torch.no_grad():
            cast(_FusedLevel, self.levels[0]).bias.add_(cast(Tensor, fuse.bias))  # added once to every pixel
        self.up1, self.up2, self.classify = head.up1, head.up2, head.classify

    def fuse_levels(self, maps: list[Tensor]) -> Tensor:
        """See `VTSegHead.fuse_levels`."""
        fused = self.levels[0](maps[0])
        for level, grid in zip(self.levels[1:], maps[1:]):
            fused = fused + level(grid)
        return torch.relu(fused)

    def fused(self) -> FusedHead:
        """Return itself."""
        return self


class _FusedLevel(nn.Module):
    """A 1x1 convolution, PixelShuffle and a matrix, as one matrix product for each of the factor^2 places of a pixel.

    PyTorch computes these products in about half the time of a 1x1 convolution with many more channels than pixels.

    Args:
        conv: (n, C, H, W) -> (n, mid * factor^2, H, W).
        matrix: (out, mid), applied to the shuffled channels.
        factor: upscale factor of the PixelShuffle.
    """

    def __init__(self, conv: nn.Conv2d, matrix: Tensor, factor: int) -> None:
        super().__init__()
        self.factor = factor
        matrix = matrix.detach().double()
        weight = conv.weight.detach().double().reshape(matrix.shape[1], factor**2, conv.in_channels)
        bias = cast(Tensor, conv.bias).detach().double().reshape(matrix.shape[1], factor**2)
        fused_weight = torch.einsum("om,mpi->pio", matrix, weight)  # (places, C, out)
        fused_bias = torch.einsum("om,mp->po", matrix, bias)[:, None]  # (places, 1, out)
        self.weight = nn.Parameter(fused_weight.to(conv.weight.dtype).contiguous())
        self.bias = nn.Parameter(fused_bias.to(conv.weight.dtype))

    def forward(self, grid: Tensor) -> Tensor:
        """Map (n, C, H, W) to (n, out, factor * H, factor * W)."""
        count, _, height, width = grid.shape
        tokens = to_tokens(grid).flatten(0, 1)  # (n*H*W, C)
        places = torch.baddbmm(self.bias, tokens.expand(self.factor**2, -1, -1), self.weight)
        pixels = places.reshape(self.factor, self.factor, count, height, width, -1).permute(2, 3, 0, 4, 1, 5)
        result: Tensor = pixels.flatten(1, 2).flatten(2, 3).movedim(-1, -3)
        return result
