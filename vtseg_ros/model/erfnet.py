# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""ERFNet, the paper's static network.

Source: Romera et al., "ERFNet: Efficient Residual Factorized ConvNet for Real-time Semantic Segmentation", 2018.
Submodules are named like the keys of the published weights.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vtseg_ros.model.registry import Network, register
from vtseg_ros.model.state_dicts import load_exact

BN_EPS = 1e-3

_Conv = TypeVar("_Conv", nn.Conv2d, nn.ConvTranspose2d)


class DownsamplerBlock(nn.Module):
    """A strided convolution and a max pooling side by side: (n, in, H, W) -> (n, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2, stride=2)
        self.bn: nn.Module = nn.BatchNorm2d(out_channels, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block; shapes as in the class."""
        return F.relu(self.bn(torch.cat([self.conv(x), self.pool(x)], dim=1)))


class NonBottleneck1D(nn.Module):
    """Residual block of factorized 3x1 and 1x3 convolutions; the second pair is dilated."""

    def __init__(self, channels: int, dropout: float, dilation: int) -> None:
        super().__init__()
        self.conv3x1_1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv1x3_1 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.bn1: nn.Module = nn.BatchNorm2d(channels, eps=BN_EPS)
        self.conv3x1_2 = nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1))
        self.conv1x3_2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation))
        self.bn2: nn.Module = nn.BatchNorm2d(channels, eps=BN_EPS)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block; shapes as in the class."""
        out = F.relu(self.conv3x1_1(x))
        out = F.relu(self.bn1(self.conv1x3_1(out)))
        out = F.relu(self.conv3x1_2(out))
        out = self.dropout(self.bn2(self.conv1x3_2(out)))
        return F.relu(out + x)

    def fused(self) -> NonBottleneck1D:
        """Move the BatchNorms into the convolutions before them, in place."""
        self.conv1x3_1, self.bn1 = _without_norm(self.conv1x3_1, self.bn1)
        self.conv1x3_2, self.bn2 = _without_norm(self.conv1x3_2, self.bn2)
        return self


class UpsamplerBlock(nn.Module):
    """Transposed convolution: (n, in, H, W) -> (n, out, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
        self.bn: nn.Module = nn.BatchNorm2d(out_channels, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block; shapes as in the class."""
        return F.relu(self.bn(self.conv(x)))

    def fused(self) -> UpsamplerBlock:
        """Move the BatchNorm into the convolution, in place."""
        self.conv, self.bn = _without_norm(self.conv, self.bn, transpose=True)
        return self


def _without_norm(conv: _Conv, norm: nn.Module, transpose: bool = False) -> tuple[_Conv, nn.Module]:
    assert isinstance(norm, nn.BatchNorm2d)
    return fuse_conv_bn_eval(conv, norm, transpose=transpose), nn.Identity()


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.initial_block = DownsamplerBlock(3, 16)
        self.layers = nn.ModuleList(
            [
                DownsamplerBlock(16, 64),
                *(NonBottleneck1D(64, 0.03, 1) for _ in range(5)),
                DownsamplerBlock(64, 128),
                *(NonBottleneck1D(128, 0.3, dilation) for _ in range(2) for dilation in (2, 4, 8, 16)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run the block; shapes as in the class."""
        x = self.initial_block(x)
        for layer in self.layers:
            x = layer(x)
        return x


class _Decoder(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                UpsamplerBlock(128, 64),
                *(NonBottleneck1D(64, 0.0, 1) for _ in range(2)),
                UpsamplerBlock(64, 16),
                *(NonBottleneck1D(16, 0.0, 1) for _ in range(2)),
            ]
        )
        self.output_conv = nn.ConvTranspose2d(16, num_classes, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block; shapes as in the class."""
        for layer in self.layers:
            x = layer(x)
        result: Tensor = self.output_conv(x)
        return result


@register(
    "erfnet",
    title="ERFNet",
    class_dimensions={
        r"decoder\.output_conv\.weight": (1,),  # a transposed convolution
        r"decoder\.output_conv\.bias": (0,),
    },
)
class ERFNet(Network):
    """ERFNet: (n, 3, H, W) RGB in [0, 1] -> logits (n, C, H, W); H and W multiples of 8.

    Args:
        num_classes: C; 2,064,256 parameters at C = 20.
    """

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.encoder = _Encoder()
        self.decoder = _Decoder(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, C, H, W) of images (n, 3, H, W), RGB in [0, 1]."""
        result: Tensor = self.decoder(self.encoder(images))
        return result

    def load_reference_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load weights under the published key names, with or without the `module.` prefix.

        The unused `encoder.output_conv` of the reference is ignored.

        Raises:
            CheckpointError: if keys or shapes differ.
        """
        bare = {key.removeprefix("module."): value for key, value in state.items()}
        bare = {key: value for key, value in bare.items() if not key.startswith("encoder.output_conv.")}
        load_exact(self, bare, source="ERFNet state dict")

    def load_published(self, state: dict[str, Tensor]) -> None:
        """See `Network.load_published`."""
        self.load_reference_state_dict(state)
