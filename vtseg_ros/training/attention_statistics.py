# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Measure how VTSeg uses older frames: share of the attention on other frames, and entropy of the attention."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vtseg_ros.model.cache import FrameCache, LayerInputs, LayerPlace
from vtseg_ros.model.video_network import VideoNetwork

MAX_QUERIES = 512
"""Number of queries per layer, evenly spaced over the newest frame: enough for a mean."""


class AttentionShares:
    """Record the attention of the queries of the newest frame in every layer.

    Args:
        model: Its forward passes with `cache()` are recorded.
        window: Frames that it was trained with.

    Attributes:
        names: `encoder_1` .. `encoder_4` (self-attention), `decoder_self_1` .., `decoder_cross_1` ..
    """

    def __init__(self, model: VideoNetwork, window: int) -> None:
        self._band = model.window_band(window)
        layers = model.attention_layers
        self._heads = {layer.place: layer.attention.heads for layer in layers}
        # Encoder first, then the decoder's self- and cross-attention: the order of the modules.
        self.names = list(dict.fromkeys(layer.place.block for layer in layers))
        self._sums: np.ndarray = np.zeros((len(self.names), 3))  # share elsewhere, evenness, layers seen

    def cache(self) -> FrameCache:
        """Return a cache that reuses nothing and records the attention of each layer."""
        return _Recorder(self, self._band)

    def record(self, place: LayerPlace, inputs: LayerInputs) -> None:
        """Add the attention of one layer."""
        figures = attention_figures(inputs.queries, inputs.keys, self._heads[place])
        self._sums[self.names.index(place.block)] += (*figures, 1)

    def totals(self) -> np.ndarray:
        """Return (names, 3) float64: sums of the shares (0..1 each) and of the entropies (0..1 each), and their number."""
        return np.array(self._sums)


class _Recorder(FrameCache):
    def __init__(self, shares: AttentionShares, band: int) -> None:
        super().__init__(band=band)
        self._shares = shares

    def update(self, place: LayerPlace, inputs: LayerInputs) -> tuple[LayerInputs, Tensor | None]:
        """See `FrameCache.update`."""
        self._shares.record(place, inputs)
        return super().update(place, inputs)


@torch.no_grad()
def attention_figures(queries: Tensor, keys: Tensor, heads: int) -> tuple[float, float]:
    """Measure the attention of the queries of the newest frame.

    Args:
        queries: (B, k, N, D), newest frame last.
        keys: (B, k, M, D).
        heads: Number of heads that D is split into.

    Returns:
        Mean share on keys of other frames, 0..1 ((k - 1) / k when time is ignored), and the mean entropy over the
        largest possible one, 0..1 (1 = uniform attention).
    """
    newest = queries[:, -1]  # (B, N, D)
    newest = newest[:, :: max(1, newest.shape[1] // MAX_QUERIES)]
    frames = keys.shape[1]
    asked = newest.reshape(*newest.shape[:2], heads, -1).transpose(1, 2).float()  # (B, heads, n, d)
    flat = keys.flatten(1, 2)  # (B, k*M, D)
    seen = flat.reshape(*flat.shape[:2], heads, -1).transpose(1, 2).float()  # (B, heads, k*M, d)
    weights = (asked @ seen.transpose(2, 3) / asked.shape[-1] ** 0.5).softmax(dim=-1)  # (B, heads, n, k*M)
    own = weights.reshape(*weights.shape[:-1], frames, -1)[..., -1, :].sum(dim=-1)  # (B, heads, n)
    entropy = -torch.xlogy(weights, weights).sum(dim=-1) / math.log(weights.shape[-1])
    return float(1.0 - own.mean()), float(entropy.mean())
