"""How much a VTSeg looks at older frames: the share of its attention that leaves the query's own frame."""

from __future__ import annotations

import inspect
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from vtseg_ros.model import VTSeg
from vtseg_ros.model.attention import VideoAttention, serialize

MAX_QUERIES = 512
"""Queries looked at per layer, evenly spaced over the newest frame: a mean needs no more."""


class AttentionShares:
    """Records, while it is entered, the attention of the newest frame's queries in every layer.

    Args:
        model: the network whose forward passes are recorded.

    Attributes:
        names: `encoder_1` .. `encoder_4` (self-attention), `decoder_self_1` .., `decoder_cross_1` ..
    """

    def __init__(self, model: VTSeg) -> None:
        self._layers: list[tuple[str, VideoAttention]] = []
        groups = {
            "encoder": model.encoder.blocks,
            "decoder_self": model.decoder.enc_blocks,
            "decoder_cross": model.decoder.dec_blocks,
        }
        for group, blocks in groups.items():
            for stage, block in enumerate(blocks, start=1):
                self._layers += [(f"{group}_{stage}", layer.attention) for layer in block.layers]
        self.names = list(dict.fromkeys(name for name, _ in self._layers))
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._handles: list[Any] = []

    def __enter__(self) -> AttentionShares:
        for name, layer in self._layers:

            def note(module, args, kwargs, _, name=name) -> None:
                given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
                self._sums[name] += elsewhere(
                    module, given["x"], given["memory"], given["size"], given["frames"]
                )
                self._counts[name] += 1

            self._handles.append(layer.register_forward_hook(note, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def totals(self) -> tuple[list[float], list[int]]:
        """Sum of the shares, 0..1 each, and number of them, per name."""
        return [self._sums[name] for name in self.names], [self._counts[name] for name in self.names]


@torch.no_grad()
def elsewhere(layer: nn.Module, x, memory, size: tuple[int, int], frames: int) -> float:
    """Mean share of the newest frame's attention on keys of other frames, 0..1; arguments as `VideoAttention`.

    Attention that ignores time altogether has (k - 1) / k.
    """
    newest = x[frames - 1 :: frames]  # (B, N, D)
    newest = newest[:, :: max(1, newest.shape[1] // MAX_QUERIES)]
    queries = layer.split_heads(layer.project_queries(newest)).float()  # (B, heads, n, d)
    keys = layer.split_heads(
        serialize(layer.project_memory(memory, size)[0], frames)
    ).float()  # (B, heads, k*M, d)
    weights = (queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5).softmax(dim=-1)
    own = weights.unflatten(-1, (frames, -1))[..., -1, :].sum(dim=-1)  # (B, heads, n)
    return float(1.0 - own.mean())
