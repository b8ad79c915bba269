# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The blocks of the encoder and decoder: VTEncBlock and VTDecBlock (paper, Figures 3 and 4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vtseg_ros.model.attention import VideoAttention, to_grid, to_tokens
from vtseg_ros.model.cache import FrameCache, LayerInputs, LayerPlace

NORM_EPS = 1e-5


def fold_normalization(weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Convert a first convolution of normalised RGB to one of RGB in [0, 1]; only padded borders differ.

    Args:
        weight: (out, 3, kh, kw).
        bias: (out,).
        mean: (3,), of RGB in [0, 1].
        std: (3,), of RGB in [0, 1].
    """
    weight = weight / std[:, None, None]
    return weight, bias - (weight * mean[:, None, None]).sum(dim=(1, 2, 3))


class OverlapPatchEmbed(nn.Module):
    """Overlapped patch embedding (SegFormer): a strided convolution and a LayerNorm.

    Args:
        in_channels, dim: channels in and out.
        kernel, stride: patch size K and stride S; padding P = K // 2.
    """

    def __init__(self, *, in_channels: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, video: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed (B, k, C, H, W) as tokens (B, k, H'*W', D), and return (H', W')."""
        grid = self.proj(video.flatten(0, 1))  # (B*k, D, H', W')
        tokens = self.norm(to_tokens(grid)).unflatten(0, video.shape[:2])
        return tokens, (grid.shape[2], grid.shape[3])


class MixFFN(nn.Module):
    """W2(GELU(DWConv(W1 x))) (SegFormer's Mix-FFN; paper, Equation 2 without the residual).

    Args:
        dim: width D.
        hidden: width between the two linear layers.
        spatiotemporal: 3x3x3 depthwise, zero-padded in time, instead of 3x3 per frame (an ablation).
    """

    def __init__(self, *, dim: int, hidden: int, spatiotemporal: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        conv = nn.Conv3d if spatiotemporal else nn.Conv2d
        self.dwconv = conv(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.spatiotemporal = spatiotemporal

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Map tokens (B, k, H*W, D) to (B, k, H*W, D)."""
        hidden = self.fc1(x)
        if self.spatiotemporal:
            grid = to_grid(hidden, size)  # (B, k, hidden, H, W)
            tokens = to_tokens(self.dwconv(grid.transpose(1, 2)).transpose(1, 2))
        else:
            grid = to_grid(hidden.flatten(0, 1), size)  # (B*k, hidden, H, W)
            tokens = to_tokens(self.dwconv(grid)).unflatten(0, x.shape[:2])
        result: Tensor = self.fc2(F.gelu(tokens))
        return result


class VTLayer(nn.Module):
    """x + VideoAttention(LN(x), LN(m)), then x + MixFFN(LN(x)); m = x when `cross` is off.

    Args:
        place: identifies the layer for caches.
        dim, heads, reduction: as `VideoAttention`.
        mlp_ratio: hidden width of the Mix-FFN over dim.
        cross: keys and values come from another feature map, with a separate LayerNorm.
        spatiotemporal: as `MixFFN`.
    """

    def __init__(
        self,
        *,
        place: LayerPlace,
        dim: int,
        heads: int,
        reduction: int,
        mlp_ratio: int,
        cross: bool = False,
        spatiotemporal: bool = False,
    ) -> None:
        super().__init__()
        self.place = place
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.norm_memory = nn.LayerNorm(dim, eps=NORM_EPS) if cross else None
        self.attention = VideoAttention(dim=dim, heads=heads, reduction=reduction)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MixFFN(dim=dim, hidden=dim * mlp_ratio, spatiotemporal=spatiotemporal)

    def forward(self, x: Tensor, memory: Tensor | None, size: tuple[int, int], cache: FrameCache) -> Tensor:
        """Apply the layer.

        Args:
            x: (B, k, H*W, D), of the current frames.
            memory: (B, k', H*W, D), of as many frames or more; None for self-attention.
            size: (H, W) of the token grid.
            cache: selects the frames to continue with and the values of older frames to reuse.

        Returns:
            (B, k'', H*W, D): the current frames, fewer if only the newest is needed, more if the cache adds older ones.
        """
        normed = self.norm1(x)
        source = normed if self.norm_memory is None else self.norm_memory(memory)
        keys, values = self.attention.project_memory(source, size)
        newest = cache.query_frames(self.place, x.shape[1])
        if newest < x.shape[1]:
            x, normed = x[:, -newest:], normed[:, -newest:]
        inputs = LayerInputs(x, self.attention.project_queries(normed), keys, values)
        (x, queries, keys, values), mask = cache.update(self.place, inputs)
        x = x + self.attention(queries, keys, values, mask)
        result: Tensor = x + self.mlp(self.norm2(x), size)
        return result


class VTEncBlock(nn.Module):
    """Overlapped patch embedding, then self-attention layers, then a LayerNorm.

    Args:
        in_channels, dim, kernel, stride: as `OverlapPatchEmbed`.
        places: of its layers.
        layer: further arguments of `VTLayer`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        dim: int,
        kernel: int,
        stride: int,
        places: Iterable[LayerPlace],
        **layer: Any,
    ) -> None:
        super().__init__()
        self.embed = OverlapPatchEmbed(in_channels=in_channels, dim=dim, kernel=kernel, stride=stride)
        self.layers = nn.ModuleList(VTLayer(place=place, dim=dim, **layer) for place in places)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, video: Tensor, cache: FrameCache) -> Tensor:
        """Map (B, k, C, H, W) to (B, k, D, H', W')."""
        x, size = self.embed(video)
        for layer in self.layers:
            x = layer(x, None, size, cache)
        return to_grid(self.norm(x), size)


class VTDecBlock(nn.Module):
    """Cross-attention layers from the decoder's map to the encoder's map of the same stage, then a LayerNorm.

    Args:
        dim: width D.
        places: of its layers.
        layer: further arguments of `VTLayer`.
    """

    def __init__(self, *, dim: int, places: Iterable[LayerPlace], **layer: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VTLayer(place=place, dim=dim, cross=True, **layer) for place in places)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, grid: Tensor, memory: Tensor, cache: FrameCache) -> Tensor:
        """Map grid (B, k, D, H, W), memory (B, k', D, H, W) -> (B, k, D, H, W)."""
        size = (grid.shape[3], grid.shape[4])
        x, source = to_tokens(grid), to_tokens(memory)
        for layer in self.layers:
            x = layer(x, source, size, cache)
        return to_grid(self.norm(x), size)
