"""SegFormer: the image network that VTSeg's encoder extends, as a static prior and as a baseline.

Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtseg_ros.model.config import VTSegConfig
from vtseg_ros.model.encoder import VTSegEncoder


class SegFormer(nn.Module):
    """Mix Transformer and all-MLP decode head: (n, 3, H, W) -> (n, C, H, W).

    The head's logits at H/4 are upsampled bilinearly.

    Args:
        num_classes: C.
        config: widths, heads, depths and reductions of the encoder; None = MiT-B0.
        decoder_channels: width of the decode head (B0 and B1: 256).
        dropout: of the decode head, on its fused features.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        config: VTSegConfig | None = None,
        decoder_channels: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        config = config or VTSegConfig(num_classes=num_classes)
        self.num_classes = num_classes
        self.encoder = VTSegEncoder(config)
        self.linear = nn.ModuleList(nn.Linear(dim, decoder_channels) for dim in config.embed_dims)
        self.fuse = nn.Conv2d(decoder_channels * len(config.embed_dims), decoder_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(decoder_channels)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Conv2d(decoder_channels, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = [grid.squeeze(1) for grid in self.encoder(images.unsqueeze(1))]
        size = maps[0].shape[2:]
        levels = []
        for linear, grid in zip(self.linear, maps):
            level = linear(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (n, D, H_i, W_i)
            levels.append(F.interpolate(level, size=size, mode="bilinear", align_corners=False))
        fused = F.relu(self.norm(self.fuse(torch.cat(levels[::-1], dim=1))))
        logits = self.classify(self.dropout(fused))
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)
