"""Layers without a non-linearity between them made one: fewer operations and passes over memory, the same output."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vtseg_ros.model import SegFormer, VTSeg
from vtseg_ros.model.attention import VideoAttention
from vtseg_ros.model.blocks import VTLayer
from vtseg_ros.model.efficientvit import ConvNorm
from vtseg_ros.model.erfnet import NonBottleneck1D, UpsamplerBlock
from vtseg_ros.model.head import VTSegHead


def fold(network: nn.Module) -> nn.Module:
    """A copy of a network in eval mode with fewer layers: BatchNorms in the convolutions right before them, keys and
    values from one projection, the head's fusion in its levels."""
    folded = copy.deepcopy(network).eval()
    if isinstance(folded, VTSegHead):
        return FoldedHead(folded)
    if isinstance(folded, VTSeg):
        folded.head = FoldedHead(folded.head)
    for module in list(folded.modules()):
        if isinstance(module, VTLayer):
            module.attention = MergedAttention(module.attention)
        elif isinstance(module, NonBottleneck1D):
            module.conv1x3_1 = fuse_conv_bn_eval(module.conv1x3_1, module.bn1)
            module.conv1x3_2 = fuse_conv_bn_eval(module.conv1x3_2, module.bn2)
            module.bn1, module.bn2 = nn.Identity(), nn.Identity()
        elif isinstance(module, UpsamplerBlock):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn, transpose=True)
            module.bn = nn.Identity()
        elif isinstance(module, ConvNorm) and isinstance(module.norm, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()
        elif isinstance(module, SegFormer):
            module.fuse = fuse_conv_bn_eval(module.fuse, module.norm)
            module.norm = nn.Identity()
    return folded


class MergedAttention(VideoAttention):
    """A VideoAttention whose keys and values come from one linear layer.

    Args:
        attention: whose weights it takes.
    """

    def __init__(self, attention: VideoAttention) -> None:
        nn.Module.__init__(self)
        self.heads, self.window = attention.heads, attention.window
        self.query, self.proj = attention.query, attention.proj
        self.reduce, self.reduce_norm = attention.reduce, attention.reduce_norm
        key, value = attention.key, attention.value
        self.key_value = nn.Linear(key.in_features, 2 * key.out_features, device=key.weight.device)
        with torch.no_grad():
            self.key_value.weight.copy_(torch.cat([key.weight, value.weight]))
            self.key_value.bias.copy_(torch.cat([key.bias, value.bias]))

    def project_memory(self, memory: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """As `VideoAttention.project_memory`."""
        return self.key_value(self.reduced(memory, size)).chunk(2, dim=2)


class FoldedHead(nn.Module):
    """A VTSegHead whose fusing convolution and BatchNorm went into the levels' own convolutions.

    Both are linear and 1x1, and PixelShuffle only moves values: instead of concatenating 4 * C_head channels and
    fusing them, the levels' maps of C_head channels are added up.

    Args:
        head: in eval mode.
    """

    def __init__(self, head: VTSegHead) -> None:
        super().__init__()
        fuse = fuse_conv_bn_eval(head.fuse[0], head.fuse[1])
        blocks = fuse.weight[:, :, 0, 0].chunk(len(head.levels), dim=1)
        self.levels = nn.ModuleList(
            nn.Sequential(_after(level[0], block, level[1].upscale_factor), level[1])
            for level, block in zip(head.levels, blocks)
        )
        with torch.no_grad():
            self.levels[0][0].bias += fuse.bias  # the first level is at the fused resolution
        self.up1, self.up2, self.classify = head.up1, head.up2, head.classify
        self.logits_dtype: torch.dtype | None = None
        """Of the classifier, where it is not that of the rest: rounded logits tie where classes meet."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        """As `VTSegHead.forward`."""
        fused = self.levels[0](maps[0])
        for level, grid in zip(self.levels[1:], maps[1:]):
            fused = fused + level(grid)
        pixels = self.up2(self.up1(torch.relu(fused)))
        return self.classify(pixels.to(self.logits_dtype or pixels.dtype))


@torch.no_grad()
def _after(conv: nn.Conv2d, matrix: Tensor, factor: int) -> nn.Conv2d:
    """The 1x1 convolution before a PixelShuffle(factor) that has `matrix` (out, mid) behind it, folded into it."""
    out, middle, places = matrix.shape[0], matrix.shape[1], factor**2
    folded = nn.Conv2d(conv.in_channels, out * places, 1, device=conv.weight.device)
    weight = conv.weight.double().reshape(middle, places, conv.in_channels)
    bias = conv.bias.double().reshape(middle, places)
    folded.weight.copy_(torch.einsum("om,mpi->opi", matrix.double(), weight).reshape(folded.weight.shape))
    folded.bias.copy_((matrix.double() @ bias).reshape(-1))
    return folded
