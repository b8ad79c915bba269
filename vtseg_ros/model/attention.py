# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Efficient video attention (paper, Section III-C and III-D; reduction as in SegFormer).

Tokens of a window have the shape (B, k, N, D): N tokens of each of k frames, oldest frame first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def to_tokens(grid: Tensor) -> Tensor:
    """Convert a map (..., D, H, W) to tokens (..., H*W, D).

    The channels move as one axis of a map, as in `to_grid`: OpenVINO then removes the moves before and after a convolution,
    whose channels are the last axis in memory anyway.
    """
    return grid.movedim(-3, -1).flatten(-3, -2)


def to_grid(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Convert tokens (..., H*W, D) to a map (..., D, H, W)."""
    result: Tensor = tokens.unflatten(-2, size).movedim(-1, -3)
    return result


def serialize(tokens: Tensor) -> Tensor:
    """Concatenate the tokens of all frames, oldest frame first: (B, k, N, D) -> (B, k*N, D)."""
    return tokens.flatten(1, 2)


def deserialize(tokens: Tensor, frames: int) -> Tensor:
    """Undo `serialize`: (B, k*N, D) -> (B, k, N, D)."""
    result: Tensor = tokens.unflatten(1, (frames, -1))
    return result


class VideoAttention(nn.Module):
    """Attention over the tokens of all frames of a window at once, self or cross.

    Its three steps are separate, so that a cache can keep keys and values: `project_queries`, `project_memory` and the
    attention itself.

    Args:
        dim: width D of the tokens.
        heads: attention heads; D must be a multiple.
        reduction: spatial reduction R of keys and values, by a stride-R, kernel-R convolution and LayerNorm.
    """

    def __init__(self, *, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.reduce = nn.Conv2d(dim, dim, reduction, stride=reduction) if reduction > 1 else None
        self.reduce_norm = nn.LayerNorm(dim, eps=1e-5) if reduction > 1 else None

    def split_heads(self, tokens: Tensor) -> Tensor:
        """Split (B, T, D) into (B, heads, T, D / heads)."""
        batch, count, dim = tokens.shape
        return tokens.reshape(batch, count, self.heads, dim // self.heads).transpose(1, 2)

    def project_queries(self, x: Tensor) -> Tensor:
        """Return the queries of each frame, (B, k, N, D) -> (B, k, N, D)."""
        result: Tensor = self.query(x)
        return result

    def project_memory(self, memory: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the keys and values of each frame.

        Args:
            memory: (B, k, H*W, D), tokens that keys and values are computed from.
            size: (H, W) of its token grid.

        Returns:
            Twice (B, k, M, D), M = H*W / R^2 (rounded down per side).
        """
        memory = self.reduced(memory, size)
        return self.key(memory), self.value(memory)

    def reduced(self, memory: Tensor, size: tuple[int, int]) -> Tensor:
        """Reduce the token grid, (B, k, H*W, D) -> (B, k, M, D)."""
        if self.reduce is None or self.reduce_norm is None:
            return memory
        grid = to_grid(memory.flatten(0, 1), size)  # (B*k, D, H, W)
        reduced = self.reduce_norm(to_tokens(self.reduce(grid)))  # (B*k, M, D)
        result: Tensor = reduced.unflatten(0, memory.shape[:2])
        return result

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from the queries to the keys of all frames.

        Args:
            queries: (B, q, N, D), of the q newest frames.
            keys: (B, k, M, D).
            values: (B, k, M, D).
            mask: True = visible, broadcasts to (B, heads, q*N, k*M); None = all keys are visible.

        Returns:
            (B, q, N, D), output projection included.
        """
        attended = F.scaled_dot_product_attention(
            self.split_heads(serialize(queries)),
            self.split_heads(serialize(keys)),
            self.split_heads(serialize(values)),
            attn_mask=mask,
        )
        result: Tensor = self.proj(deserialize(attended.transpose(1, 2).flatten(2), queries.shape[1]))
        return result

    def fused(self) -> FusedAttention:
        """Return an equivalent attention with fewer layers."""
        return FusedAttention(self)


class FusedAttention(VideoAttention):
    """A VideoAttention whose keys and values come from one linear layer.

    Args:
        attention: module whose weights are used.
    """

    def __init__(self, attention: VideoAttention) -> None:
        nn.Module.__init__(self)
        self.heads = attention.heads
        self.query, self.proj = attention.query, attention.proj
        self.reduce, self.reduce_norm = attention.reduce, attention.reduce_norm
        key, value = attention.key, attention.value
        self.key_value = nn.Linear(key.in_features, 2 * key.out_features, device=key.weight.device)
        with torch.no_grad():
            self.key_value.weight.copy_(torch.cat([key.weight, value.weight]))
            self.key_value.bias.copy_(torch.cat([key.bias, value.bias]))

    def project_memory(self, memory: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """See `VideoAttention.project_memory`."""
        result: tuple[Tensor, Tensor] = self.key_value(self.reduced(memory, size)).chunk(2, dim=-1)
        return result

    def fused(self) -> FusedAttention:
        """Return itself."""
        return self
