# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The step of a stream as a pure function of tensors, which is run, compiled, captured and exported.

What a frame leaves behind for later ones travels as one row of S values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from vtseg_ros.model.cache import CausalCache, ExactCache, FrameCache, StreamingCache
from vtseg_ros.model.registry import traits_of

if TYPE_CHECKING:
    from vtseg_ros.model.vtseg import VTSeg

STREAMING = ("plain", "exact", "causal")


class Step(nn.Module):
    """One frame of each of B cameras.

    Args:
        model: the network, in eval mode.
        layout: (rows, width) of each tensor that a frame leaves behind, by name.
        dtype: of these tensors.

    Attributes:
        state_size: S, their total length.
        state_dtype: their dtype.
    """

    def __init__(
        self, model: nn.Module, layout: Mapping[str, tuple[int, int]], dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.model = model
        self.layout = dict(layout)
        self.state_size = sum(math.prod(shape) for shape in self.layout.values())
        self.state_dtype = dtype

    def forward(self, images: Tensor, past: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Segment the newest frames.

        Args:
            images: (B, 3, H, W) float32 in [0, 1].
            past: (B, m, S), what the m older frames left behind, oldest first.
            valid: (m,) bool, the older frames that are there; None = all. Not for a full window.

        Returns:
            logits (B, C, H, W) and what these frames leave behind, (B, S).
        """
        raise NotImplementedError

    def _pack(self, state: Mapping[str, Tensor]) -> Tensor:
        """Tensors (B, 1, rows, width) -> (B, S)."""
        return torch.cat([state[name].flatten(1) for name in self.layout], dim=1)

    def _unpack(self, past: Tensor) -> dict[str, Tensor]:
        """(B, m, S) -> tensors (B, m, rows, width); none where there are no older frames."""
        if past.shape[1] == 0:
            return {}
        parts = past.split([math.prod(shape) for shape in self.layout.values()], dim=2)
        return {name: part.unflatten(2, shape) for part, (name, shape) in zip(parts, self.layout.items())}


class ImageStep(Step):
    """A network of single images: nothing is kept."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, {})

    def forward(self, images: Tensor, past: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Step.forward`."""
        return self.model(images), images.new_empty(images.shape[0], 0)


class PlainStep(Step):
    """The whole window is computed again for every frame: images are kept."""

    model: VTSeg

    def __init__(self, model: VTSeg, size: tuple[int, int]) -> None:
        super().__init__(model, {"image": (3 * size[0], size[1])})
        self.size = size

    def forward(self, images: Tensor, past: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Step.forward`."""
        older = past.unflatten(2, (3, *self.size))  # (B, m, 3, H, W)
        video = torch.cat([older, images[:, None]], dim=1)
        there = None if valid is None else with_newest(valid)
        logits = self.model(video, FrameCache(band=self.model.window_band(video.shape[1]), valid=there))
        return logits[:, -1], images.flatten(1)


class StreamStep(Step):
    """Exact or causal streaming: what the cache keeps of a frame is not computed again.

    Args:
        model: the network, in eval mode; one frame is run through it to learn what its layers keep.
        size: (H, W) of its input.
        streaming: `exact` or `causal`.
    """

    model: VTSeg

    def __init__(self, model: VTSeg, size: tuple[int, int], streaming: str) -> None:
        model.check_streaming(streaming)
        probe = CausalCache() if streaming == "causal" else ExactCache()
        with torch.inference_mode():
            model(torch.zeros(1, 1, 3, *size, device=next(model.buffers()).device), probe)
        layout = {name: (tensor.shape[2], tensor.shape[3]) for name, tensor in probe.new.items()}
        super().__init__(model, layout, next(iter(probe.new.values())).dtype)
        self.causal = streaming == "causal"

    def forward(self, images: Tensor, past: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Step.forward`."""
        cache = self._cache(self._unpack(past), None if valid is None else with_newest(valid))
        logits = self.model(images[:, None], cache)
        return logits[:, -1], self._pack(cache.new)

    def _cache(self, past: Mapping[str, Tensor], valid: Tensor | None) -> StreamingCache:
        if self.causal:
            return CausalCache(past, valid=valid)
        frames = next((tensor.shape[1] for tensor in past.values()), 0) + 1
        return ExactCache(past, band=self.model.window_band(frames), valid=valid)


def with_newest(valid: Tensor) -> Tensor:
    """Append the newest frame, which is always there: (m,) -> (m + 1,) bool."""
    return torch.cat([valid, valid.new_ones(1)])


def build_step(model: nn.Module, size: tuple[int, int], streaming: str) -> Step:
    """Build the step of a network that is ready for inference.

    Args:
        model: the network.
        size: (H, W).
        streaming: one of `STREAMING`; ignored for networks of single images.

    Raises:
        ConfigError: if the network cannot be streamed so.
    """
    if not traits_of(model).takes_cache:
        return ImageStep(model)
    video = cast("VTSeg", model)  # what takes a cache has its methods
    return PlainStep(video, size) if streaming == "plain" else StreamStep(video, size, streaming)


def choose_streaming(model: nn.Module, wanted: str) -> str:
    """Return how a network is streamed: `plain`, `exact` or `causal`.

    Args:
        model: the network.
        wanted: one of `STREAMING`, or `auto` for the network's best.

    Raises:
        ConfigError: if causal streaming is wanted of a network that was not trained for it.
    """
    if not traits_of(model).takes_cache or wanted == "plain":
        return "plain"
    video = cast("VTSeg", model)
    if wanted == "causal":
        video.check_streaming("causal")
    if wanted == "auto" or video.best_streaming == "plain":
        return video.best_streaming
    return wanted
