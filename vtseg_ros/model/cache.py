# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Caches that VTSeg's one forward pass consults at every attention layer.

A cache decides which frames' queries a layer computes, which tensors of older frames it reuses, and which keys a query
may see. Layers name themselves, so that no cache depends on the order of the layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vtseg_ros.errors import ConfigError


@dataclass(frozen=True)
class LayerPlace:
    """Where an attention layer stands in the network; given to it at construction.

    Args:
        block: name of its block, such as `encoder_1`, `decoder_self_1` or `decoder_cross_1`.
        index: its place within the block, from 0.
        frame_local: its input depends on one frame only, so that everything before its attention can be kept.
        newest_suffices: no later layer reads its output for older frames.
    """

    block: str
    index: int
    frame_local: bool = False
    newest_suffices: bool = False

    @property
    def name(self) -> str:
        """Name of the layer, unique in the network."""
        return f"{self.block}.{self.index}"


class LayerInputs(NamedTuple):
    """Inputs of a layer's attention, each (B, frames, rows, D); the frames are adjacent, the newest last.

    `tokens` and `queries` have as many frames as go on from this layer, `keys` and `values` as many as may be seen.
    """

    tokens: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor


State = dict[str, Tensor]
"""Tensors (B, frames, rows, D) by `layer name/field`."""


class FrameCache:
    """Reuse nothing: every frame of the window is at hand. The base of the other caches.

    Args:
        band: frames that a frame sees: itself and `band - 1` older ones; 0 = all frames of the window.
        valid: (k,) bool, oldest frame first: which frames of a window of fixed length are there. The keys of the others
            are hidden. None = all.
        newest_only: compute only what the newest frame's logits need.
    """

    def __init__(self, *, band: int = 0, valid: Tensor | None = None, newest_only: bool = False) -> None:
        self.band = band
        self.valid = valid
        self.newest_only = newest_only

    def query_frames(self, place: LayerPlace, frames: int) -> int:
        """Return how many of the newest frames go on from a layer that got `frames` of them."""
        return 1 if self.newest_only and place.newest_suffices else frames

    def update(self, place: LayerPlace, inputs: LayerInputs) -> tuple[LayerInputs, Tensor | None]:
        """Complete the inputs of a layer's attention by what is kept of older frames.

        Args:
            place: the layer.
            inputs: of the frames at hand.

        Returns:
            Inputs of all frames, and a mask (True = may be seen) that broadcasts to (B, heads, queries, keys), or None.
        """
        return inputs, self._mask(inputs)

    def _mask(self, inputs: LayerInputs) -> Tensor | None:
        asking, queries = inputs.queries.shape[1:3]
        frames, keys = inputs.keys.shape[1:3]
        device = inputs.keys.device
        # The newest frame may see the whole window, which no band is narrower than.
        banded = bool(self.band) and not (asking == 1 and self.band >= frames)
        if self.valid is None:
            return banded_mask(frames, self.band, queries, keys, device, asking) if banded else None
        mask = self.valid.repeat_interleave(keys)[None, None, None]  # (1, 1, 1, frames * keys)
        if banded:
            mask = mask & banded_mask(frames, self.band, queries, keys, device, asking)
            # A frame that is not there sees itself: a row without any key has no softmax.
            mask = mask | banded_mask(frames, 1, queries, keys, device, asking)
        return mask


class StreamingCache(FrameCache):
    """Keep some of the layers' inputs for the frames to come. The base of the streaming caches.

    Args:
        past: what older frames left behind, each (B, m, rows, D); empty = there are no older frames.
        band, valid, newest_only: as `FrameCache`; `valid` has the older frames and those at hand.

    Attributes:
        new: what the frames at hand leave behind, each (B, frames, rows, D).
    """

    def __init__(
        self,
        past: Mapping[str, Tensor] | None = None,
        *,
        band: int = 0,
        valid: Tensor | None = None,
        newest_only: bool = False,
    ) -> None:
        super().__init__(band=band, valid=valid, newest_only=newest_only)
        self.past = past or {}
        self.new: State = {}

    def fields(self, place: LayerPlace) -> Iterable[str]:
        """Return the names of the `LayerInputs` that are kept at a layer."""
        raise NotImplementedError

    def update(self, place: LayerPlace, inputs: LayerInputs) -> tuple[LayerInputs, Tensor | None]:
        """See `FrameCache.update`."""
        joined = {}
        for field in self.fields(place):
            key, tensor = f"{place.name}/{field}", getattr(inputs, field)
            self.new[key] = tensor
            joined[field] = torch.cat([self.past[key], tensor], dim=1) if self.past else tensor
        return super().update(place, inputs._replace(**joined))


class ExactCache(StreamingCache):
    """Keep what depends on one frame only; the rest is computed for the whole window.

    Kept are the inputs of the first attention layers of the encoder and of the decoder, which cover the patch
    embeddings and the static logits. The newest frame's logits equal those of a forward pass over the whole window.
    """

    def __init__(
        self, past: Mapping[str, Tensor] | None = None, *, band: int = 0, valid: Tensor | None = None
    ):
        super().__init__(past, band=band, valid=valid, newest_only=True)

    def fields(self, place: LayerPlace) -> Iterable[str]:
        """See `StreamingCache.fields`."""
        return LayerInputs._fields if place.frame_local else ()


class CausalCache(StreamingCache):
    """Keep every layer's keys and values: a frame costs one frame's queries.

    For networks of causal attention; equal to one forward pass over the whole clip whose band is the number of frames
    kept plus one. It takes one new frame at a time.
    """

    def __init__(self, past: Mapping[str, Tensor] | None = None, *, valid: Tensor | None = None) -> None:
        super().__init__(past, valid=valid)

    def fields(self, place: LayerPlace) -> Iterable[str]:
        """See `StreamingCache.fields`."""
        return ("keys", "values")

    def update(self, place: LayerPlace, inputs: LayerInputs) -> tuple[LayerInputs, Tensor | None]:
        """See `FrameCache.update`."""
        if inputs.queries.shape[1] != 1:
            raise ConfigError(
                f"causal cache: more than one new frame; expected 1, got {inputs.queries.shape[1]}. Pass frames one by one"
            )
        return super().update(place, inputs)


def banded_mask(
    frames: int, band: int, queries: int, keys: int, device: torch.device, asking: int | None = None
) -> Tensor:
    """Return the causal mask of serialized tokens, (asking * queries, frames * keys) bool, True = may be seen.

    Args:
        frames: of the keys, oldest first.
        band: a frame's queries see the keys of that frame and of at most `band - 1` older ones.
        queries: tokens of queries per frame.
        keys: tokens of keys per frame.
        device: of the mask.
        asking: how many of the newest frames have queries; None = all.
    """
    index = torch.arange(frames, device=device)
    age = index[frames - (asking or frames) :, None] - index[None, :]  # how much older the key's frame is
    allowed = (age >= 0) & (age < band)
    return allowed.repeat_interleave(queries, dim=0).repeat_interleave(keys, dim=1)
