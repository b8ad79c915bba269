"""Efficient video attention (paper, Section III-C and III-D; reduction as in SegFormer).

Tokens of a window travel as (B*k, N, D): one row per frame, frames of a window adjacent, oldest first.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def serialize(tokens: Tensor, frames: int) -> Tensor:
    """(B*k, N, D) -> (B, k*N, D): the tokens of a window in one row, frame-major, oldest first."""
    rows, count, dim = tokens.shape
    return tokens.reshape(rows // frames, frames * count, dim)  # (B, k*N, D)


def deserialize(tokens: Tensor, frames: int) -> Tensor:
    """(B, k*N, D) -> (B*k, N, D): the inverse of `serialize`."""
    batch, count, dim = tokens.shape
    return tokens.reshape(batch * frames, count // frames, dim)  # (B*k, N, D)


def causal_frame_mask(frames: int, window: int, queries: int, keys: int, device: torch.device) -> Tensor:
    """(frames*queries, frames*keys) bool, True where attention is allowed.

    A frame's queries see the keys of that frame and of at most `window - 1` older ones.
    """
    index = torch.arange(frames, device=device)
    age = index[:, None] - index[None, :]  # (k, k): how much older the key's frame is
    allowed = (age >= 0) & (age < window)
    return allowed.repeat_interleave(queries, dim=0).repeat_interleave(keys, dim=1)


class Memory(Protocol):
    """What a streaming engine puts between the keys and values of the frames at hand and the attention."""

    def extend(self, keys: Tensor, values: Tensor, queries: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values to attend to, and a mask (True = allowed) or None.

        Args:
            keys, values: (B, k*M, D), serialized. Called once per attention, in the order of the forward pass.
            queries: number T of serialized queries.
        """


class VideoAttention(nn.Module):
    """Attention over the tokens of all frames of a window at once, self or cross.

    Args:
        dim: width D of the tokens.
        heads: attention heads; D must be a multiple.
        reduction: spatial reduction R of keys and values, by a stride-R, kernel-R convolution and LayerNorm.
        window: band of the causal mask in frames; 0 = every frame sees all frames (the paper).
    """

    def __init__(self, *, dim: int, heads: int, reduction: int, window: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.reduce = nn.Conv2d(dim, dim, reduction, stride=reduction) if reduction > 1 else None
        self.reduce_norm = nn.LayerNorm(dim, eps=1e-5) if reduction > 1 else None

    def split_heads(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, heads, T, D / heads)."""
        batch, count, dim = tokens.shape
        return tokens.reshape(batch, count, self.heads, dim // self.heads).transpose(1, 2)

    def project_queries(self, x: Tensor) -> Tensor:
        """Queries of each frame, (n, N, D) -> (n, N, D)."""
        return self.query(x)

    def project_memory(self, memory: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Keys and values of each frame: (n, H*W, D) -> twice (n, M, D), M = H*W / R^2 (rounded down per side).

        They depend on the frame alone, so that a streaming engine can keep them.
        """
        memory = self.reduced(memory, size)
        return self.key(memory), self.value(memory)

    def reduced(self, memory: Tensor, size: tuple[int, int]) -> Tensor:
        """Spatial reduction, (n, H*W, D) -> (n, M, D)."""
        if self.reduce is None:
            return memory
        grid = memory.transpose(1, 2).unflatten(2, size)  # (n, D, H, W)
        return self.reduce_norm(self.reduce(grid).flatten(2).transpose(1, 2))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Serialized attention: (B, T, D), (B, S, D), (B, S, D) -> (B, T, D), output projection included."""
        attended = F.scaled_dot_product_attention(
            self.split_heads(queries), self.split_heads(keys), self.split_heads(values), attn_mask=mask
        )
        return self.proj(attended.transpose(1, 2).flatten(2))

    def forward(
        self, x: Tensor, memory: Tensor, size: tuple[int, int], frames: int, stream: Memory | None = None
    ) -> Tensor:
        """Attend from x to memory.

        Args:
            x: (B*k, N, D), where the queries come from.
            memory: (B*k, H*W, D), where keys and values come from; x itself for self-attention.
            size: (H, W) of the memory's token grid.
            frames: k.
            stream: adds older frames' keys and values; it then decides what may be seen.

        Returns:
            (B*k, N, D).
        """
        keys, values = (serialize(each, frames) for each in self.project_memory(memory, size))
        mask = None
        if stream is not None:
            keys, values, mask = stream.extend(keys, values, frames * x.shape[1])
        elif self.window:
            mask = causal_frame_mask(frames, self.window, x.shape[1], keys.shape[1] // frames, x.device)
        attended = self.attend(serialize(self.project_queries(x), frames), keys, values, mask)
        return deserialize(attended, frames)
