# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The streaming step as a pure function of tensors that can be executed, compiled, captured and exported.

The cached values of a frame are passed as one row of S values.
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
    from vtseg_ros.model.video_network import VideoNetwork

STREAMING = ("plain", "exact", "causal")


class Step(nn.Module):
    """One frame of each of B cameras.

    Args:
        model: the network, in eval mode.
        layout: (rows, width) of each cached tensor of a frame, by name.
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
            past: (B, m, S), cached values of the m older frames, oldest first.
            valid: (m,) bool, True for older frames that exist; None = all. Not for a full window.

        Returns:
            logits (B, C, H, W) and the cached values of these frames, (B, S).
        """
        raise NotImplementedError

    def _pack(self, state: Mapping[str, Tensor]) -> Tensor:
        """Pack tensors (B, 1, rows, width) into (B, S)."""
        return torch.cat([state[name].flatten(1) for name in self.layout], dim=1)

    def _unpack(self, past: Tensor) -> dict[str, Tensor]:
        """Split (B, m, S) into tensors (B, m, rows, width); empty if there are no older frames."""
        if past.shape[1] == 0:
            return {}
        parts = past.split([math.prod(shape) for shape in self.layout.values()], dim=2)
        return {name: part.unflatten(2, shape) for part, (name, shape) in zip(parts, self.layout.items())}


class ImageStep(Step):
    """A network of single images: nothing is cached."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, {})

    def forward(self, images: Tensor, past: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Step.forward`."""
        return self.model(images), images.new_empty(images.shape[0], 0)


class PlainStep(Step):
    """The whole window is computed again for every frame: only images are cached."""

    model: VideoNetwork

    def __init__(self, model: VideoNetwork, size: tuple[int, int]) -> None:
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
    """Exact or causal streaming: cached values of older frames are not computed again.

    Args:
        model: the network, in eval mode; it processes one frame to determine the cached tensors of its layers.
        size: (H, W) of its input.
        streaming: `exact` or `causal`.
    """

    model: VideoNetwork

    def __init__(self, model: VideoNetwork, size: tuple[int, int], streaming: str) -> None:
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
    """Append True for the newest frame, which always exists: (m,) -> (m + 1,) bool."""
    return torch.cat([valid, valid.new_ones(1)])


def build_step(model: nn.Module, size: tuple[int, int], streaming: str) -> Step:
    """Build the step of a network that is ready for inference.

    Args:
        model: the network.
        size: (H, W).
        streaming: one of `STREAMING`; ignored for networks of single images.

    Raises:
        ConfigError: if the network does not support this streaming mode.
    """
    if not traits_of(model).takes_cache:
        return ImageStep(model)
    video = cast("VideoNetwork", model)  # networks with a cache have these methods
    return PlainStep(video, size) if streaming == "plain" else StreamStep(video, size, streaming)


def choose_streaming(model: nn.Module, wanted: str) -> str:
    """Return the streaming mode of a network: `plain`, `exact` or `causal`.

    Args:
        model: the network.
        wanted: one of `STREAMING`, or `auto` for the network's best.

    Raises:
        ConfigError: for a mode that does not give the masks that the network was trained for.
    """
    if not traits_of(model).takes_cache or wanted == "plain":
        return "plain"
    video = cast("VideoNetwork", model)
    best = video.best_streaming
    if wanted == "causal" or (wanted == "exact" and best != "plain"):
        video.check_streaming(wanted)
    return best if wanted == "auto" or best == "plain" else wanted
