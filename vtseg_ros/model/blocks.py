"""The blocks of the encoder and decoder: VTEncBlock and VTDecBlock (paper, Figures 3 and 4)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from vtseg_ros.model.attention import Memory, VideoAttention

NORM_EPS = 1e-5


def to_tokens(grid: Tensor) -> Tensor:
    """(n, D, H, W) -> (n, H*W, D)."""
    return grid.flatten(2).transpose(1, 2)


def to_grid(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, H*W, D) -> (n, D, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def fold_normalization(weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """A first convolution of normalised RGB as one of RGB in [0, 1]: the same but for the padding's rim.

    Args:
        weight, bias: (out, 3, kh, kw) and (out,).
        mean, std: (3,).
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

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(n, C, H, W) -> tokens (n, H'*W', D) and (H', W')."""
        grid = self.proj(images)
        return self.norm(to_tokens(grid)), (grid.shape[2], grid.shape[3])


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

    def forward(self, x: Tensor, size: tuple[int, int], frames: int) -> Tensor:
        """(B*k, H*W, D) -> (B*k, H*W, D)."""
        grid = to_grid(self.fc1(x), size)  # (B*k, hidden, H, W)
        if self.spatiotemporal:
            video = grid.unflatten(0, (-1, frames)).transpose(1, 2)  # (B, hidden, k, H, W)
            grid = self.dwconv(video).transpose(1, 2).flatten(0, 1)  # (B*k, hidden, H, W)
        else:
            grid = self.dwconv(grid)
        return self.fc2(F.gelu(to_tokens(grid)))


class VTLayer(nn.Module):
    """x + VideoAttention(LN(x), LN(m)), then x + MixFFN(LN(x)); m = x when `cross` is off.

    Args:
        dim, heads, reduction: as `VideoAttention`.
        mlp_ratio: hidden width of the Mix-FFN over dim.
        cross: keys and values come from another feature map, with a LayerNorm of its own.
        window: causal band in frames; 0 = none.
        spatiotemporal: as `MixFFN`.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        reduction: int,
        mlp_ratio: int,
        cross: bool = False,
        window: int = 0,
        spatiotemporal: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.norm_memory = nn.LayerNorm(dim, eps=NORM_EPS) if cross else None
        self.attention = VideoAttention(dim=dim, heads=heads, reduction=reduction, window=window)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MixFFN(dim=dim, hidden=dim * mlp_ratio, spatiotemporal=spatiotemporal)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None,
        size: tuple[int, int],
        frames: int,
        stream: Memory | None = None,
    ) -> Tensor:
        """x, memory (B*k, H*W, D) -> (B*k, H*W, D); memory is None for self-attention."""
        normed = self.norm1(x)
        source = normed if self.norm_memory is None else self.norm_memory(memory)
        x = x + self.attention(normed, source, size, frames, stream)
        return x + self.mlp(self.norm2(x), size, frames)


class VTEncBlock(nn.Module):
    """Overlapped patch embedding, then N self-attention layers, then a LayerNorm."""

    def __init__(
        self, *, in_channels: int, dim: int, kernel: int, stride: int, depth: int, **layer: int | bool
    ) -> None:
        super().__init__()
        self.embed = OverlapPatchEmbed(in_channels=in_channels, dim=dim, kernel=kernel, stride=stride)
        self.layers = nn.ModuleList(VTLayer(dim=dim, **layer) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, images: Tensor, frames: int, stream: Memory | None = None) -> Tensor:
        """(B*k, C, H, W) -> (B*k, D, H', W')."""
        x, size = self.embed(images)
        for layer in self.layers:
            x = layer(x, None, size, frames, stream)
        return to_grid(self.norm(x), size)


class VTDecBlock(nn.Module):
    """N cross-attention layers from the decoder's map to the encoder's map of the same stage, then a LayerNorm."""

    def __init__(self, *, dim: int, depth: int, **layer: int | bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VTLayer(dim=dim, cross=True, **layer) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, grid: Tensor, memory: Tensor, frames: int, stream: Memory | None = None) -> Tensor:
        """grid, memory (B*k, D, H, W) -> (B*k, D, H, W)."""
        size = (grid.shape[2], grid.shape[3])
        x, source = to_tokens(grid), to_tokens(memory)
        for layer in self.layers:
            x = layer(x, source, size, frames, stream)
        return to_grid(self.norm(x), size)
