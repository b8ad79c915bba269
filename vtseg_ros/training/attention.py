"""How a VTSeg looks at older frames: the share of its attention that leaves the query's own frame, and its evenness."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import torch

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
        self._sums = np.zeros((len(self.names), 3))  # share elsewhere, evenness, layers seen
        self._handles: list[Any] = []

    def __enter__(self) -> AttentionShares:
        for name, layer in self._layers:
            place = self.names.index(name)

            def note(module, args, kwargs, _, place=place) -> None:
                given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
                figures = attention_figures(
                    module, given["x"], given["memory"], given["size"], given["frames"]
                )
                self._sums[place] += (*figures, 1)

            self._handles.append(layer.register_forward_hook(note, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def totals(self) -> np.ndarray:
        """(names, 3) float64: sums of the shares and of the evenness, 0..1 each, and how many were added up."""
        return self._sums.copy()


@torch.no_grad()
def attention_figures(
    layer: VideoAttention, x, memory, size: tuple[int, int], frames: int
) -> tuple[float, float]:
    """Attention of the newest frame's queries; arguments as `VideoAttention`.

    Returns:
        the mean share on keys of other frames, 0..1 ((k - 1) / k when time is ignored), and the mean entropy over the
        largest possible one, 0..1 (1 = every key is looked at alike).
    """
    newest = x[frames - 1 :: frames]  # (B, N, D)
    newest = newest[:, :: max(1, newest.shape[1] // MAX_QUERIES)]
    queries = layer.split_heads(layer.project_queries(newest)).float()  # (B, heads, n, d)
    keys = layer.split_heads(serialize(layer.project_memory(memory, size)[0], frames)).float()
    weights = (queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5).softmax(
        dim=-1
    )  # (B, heads, n, k*M)
    own = weights.unflatten(-1, (frames, -1))[..., -1, :].sum(dim=-1)  # (B, heads, n)
    entropy = -torch.xlogy(weights, weights).sum(dim=-1) / math.log(weights.shape[-1])
    return float(1.0 - own.mean()), float(entropy.mean())
