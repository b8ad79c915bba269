# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Caches for the attention layers in VTSeg's forward pass.

A cache selects the frames whose queries a layer computes, the tensors of older frames to reuse, and the keys that a query
sees. Each layer passes its name, so a cache does not depend on the order of the layers.
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
    """Position of an attention layer in the network, set at construction.

    Args:
        block: name of its block, such as `encoder_1`, `decoder_self_1` or `decoder_cross_1`.
        index: its place within the block, from 0.
        frame_local: its input depends on one frame only, so everything before its attention can be cached.
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

    `tokens` and `queries` have the frames that continue after this layer, `keys` and `values` all visible frames.
    """

    tokens: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor


State = dict[str, Tensor]
"""Tensors (B, frames, rows, D) by `layer name/field`."""


class FrameCache:
    """Cache nothing: the input contains every frame of the window. Base class of the other caches.

    Args:
        band: frames that a frame sees: itself and `band - 1` older ones; 0 = all frames of the window.
        valid: (k,) bool, oldest frame first: which frames of a window of fixed length exist. The keys of the others are
            masked. None = all.
        newest_only: compute only what the logits of the newest frame depend on.
    """

    def __init__(self, *, band: int = 0, valid: Tensor | None = None, newest_only: bool = False) -> None:
        self.band = band
        self.valid = valid
        self.newest_only = newest_only

    def query_frames(self, place: LayerPlace, frames: int) -> int:
        """Return how many of the newest frames continue after a layer with `frames` input frames."""
        return 1 if self.newest_only and place.newest_suffices else frames

    def join(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor of all visible frames: the cached values of older frames, then those of the current ones.

        Args:
            name: of the tensor, unique in the network.
            tensor: (B, frames, rows, D) of the current frames, each of which depends on that frame only.
        """
        return tensor

    def older(self, name: str) -> Tensor | None:
        """Return the cached values of older frames, (B, m, rows, D); None = there are no older frames."""
        return None

    def keep(self, name: str, tensor: Tensor) -> None:
        """Cache values of the current frames which only later frames read.

        Args:
            name: as in `older`, unique in the network.
            tensor: (B, frames, rows, D) of the current frames.
        """

    def update(self, place: LayerPlace, inputs: LayerInputs) -> tuple[LayerInputs, Tensor | None]:
        """Complete the inputs of a layer's attention with the cached values of older frames.

        Args:
            place: the layer.
            inputs: of the current frames.

        Returns:
            Inputs of all frames, and a mask (True = visible) that broadcasts to (B, heads, queries, keys), or None.
        """
        return inputs, self._mask(inputs)

    def _mask(self, inputs: LayerInputs) -> Tensor | None:
        asking, queries = inputs.queries.shape[1:3]
        frames, keys = inputs.keys.shape[1:3]
        device = inputs.keys.device
        # The newest frame sees the whole window; no band is narrower than that.
        banded = bool(self.band) and not (asking == 1 and self.band >= frames)
        if self.valid is None:
            return banded_mask(frames, self.band, queries, keys, device, asking) if banded else None
        mask = self.valid.repeat_interleave(keys)[None, None, None]  # (1, 1, 1, frames * keys)
        if banded:
            mask = mask & banded_mask(frames, self.band, queries, keys, device, asking)
            # A missing frame sees itself, because the softmax of a row without keys is not defined.
            mask = mask | banded_mask(frames, 1, queries, keys, device, asking)
        return mask


class StreamingCache(FrameCache):
    """Cache some inputs of the layers for later frames. Base class of the streaming caches.

    Args:
        past: cached values of older frames, each (B, m, rows, D); empty = there are no older frames.
        band, valid, newest_only: as `FrameCache`; `valid` contains the older and the current frames.

    Attributes:
        new: values of the current frames to cache, each (B, frames, rows, D).
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
        """Return the names of the `LayerInputs` that are cached at a layer."""
        raise NotImplementedError

    def join(self, name: str, tensor: Tensor) -> Tensor:
        """See `FrameCache.join`."""
        self.keep(name, tensor)
        return torch.cat([self.past[name], tensor], dim=1) if self.past else tensor

    def older(self, name: str) -> Tensor | None:
        """See `FrameCache.older`."""
        return self.past.get(name)

    def keep(self, name: str, tensor: Tensor) -> None:
        """See `FrameCache.keep`."""
        self.new[name] = tensor

    def update(self, place: LayerPlace, inputs: LayerInputs) -> tuple[LayerInputs, Tensor | None]:
        """See `FrameCache.update`."""
        joined = {
            field: self.join(f"{place.name}/{field}", getattr(inputs, field)) for field in self.fields(place)
        }
        return super().update(place, inputs._replace(**joined))


class ExactCache(StreamingCache):
    """Cache values that depend on one frame only; compute everything else for the whole window.

    The cache contains the inputs of the first attention layers of encoder and decoder. This avoids computing the patch
    embeddings and the static logits again. The newest frame's logits equal those of a forward pass over the whole window.
    """

    def __init__(
        self, past: Mapping[str, Tensor] | None = None, *, band: int = 0, valid: Tensor | None = None
    ):
        super().__init__(past, band=band, valid=valid, newest_only=True)

    def fields(self, place: LayerPlace) -> Iterable[str]:
        """See `StreamingCache.fields`."""
        return LayerInputs._fields if place.frame_local else ()


class CausalCache(StreamingCache):
    """Cache the keys and values of every layer, so only the queries of the new frame are computed.

    For networks with causal attention. The result equals one forward pass over the whole clip with a band of the number
    of cached frames plus one. Takes one new frame at a time.
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
    """Return the causal mask of serialized tokens, (asking * queries, frames * keys) bool, True = visible.

    Args:
        frames: number of frames with keys, oldest first.
        band: a frame's queries see the keys of that frame and of at most `band - 1` older ones.
        queries: tokens of queries per frame.
        keys: tokens of keys per frame.
        device: of the mask.
        asking: number of newest frames with queries; None = all.
    """
    index = torch.arange(frames, device=device)
    age = index[frames - (asking or frames) :, None] - index[None, :]  # how much older the key's frame is
    allowed = (age >= 0) & (age < band)
    return allowed.repeat_interleave(queries, dim=0).repeat_interleave(keys, dim=1)
