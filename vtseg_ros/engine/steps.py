"""The streaming step as a pure function of tensors: what is run, compiled, captured and exported alike.

What a frame leaves behind for later ones travels as one row of S values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vtseg_ros.engine import causal, exact
from vtseg_ros.model import VTSeg

FIRST_STRIDE = 4
"""Input pixels per token of the first stage."""


class Step(nn.Module):
    """One frame of each of B cameras.

    Args:
        model: the network, in eval mode.
        size: (H, W) of its input.

    Attributes:
        layout: (rows, width) of each tensor that a frame leaves behind.
        kept_size: S, their total length.
        kept_dtype: their dtype.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int], layout: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.model = model
        self.size = size
        self.layout = tuple(layout)
        self.kept_size = sum(math.prod(shape) for shape in self.layout)
        self.kept_dtype = torch.float32
        if isinstance(model, VTSeg):
            self.kept_dtype = model.input_dtype["encoder"] or torch.float32

    def forward(self, images: Tensor, past: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of the newest frames.

        Args:
            images: (B, 3, H, W) float32 in [0, 1].
            past: (B, m, S), what the m older frames left behind, oldest first.
            valid: (m,) bool, the older frames that are there; None = all. Not for a full window.

        Returns:
            logits (B, C, H, W) and what these frames leave behind, (B, S).
        """
        raise NotImplementedError

    def _pack(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)  # (B, S)

    def _unpack(self, past: Tensor) -> list[Tensor]:
        """(B, m, S) -> tensors (B, m, rows, width)."""
        parts = past.split([math.prod(shape) for shape in self.layout], dim=2)
        return [part.unflatten(2, shape) for part, shape in zip(parts, self.layout)]


class ImageStep(Step):
    """A network of single images: nothing is kept."""

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__(model, size, [])

    def forward(self, images: Tensor, past: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.model(images), images.new_empty(images.shape[0], 0)


class PlainStep(Step):
    """The whole window computed anew: images are kept."""

    def __init__(self, model: VTSeg, size: tuple[int, int]) -> None:
        super().__init__(model, size, [(3 * size[0], size[1])])
        self.kept_dtype = torch.float32

    def forward(self, images: Tensor, past: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        older = past.unflatten(2, (3, *self.size))  # (B, m, 3, H, W)
        video = torch.cat([older, images[:, None]], dim=1)
        return self.model(video)[:, -1], self._pack([images])


class ExactStep(Step):
    """Exact streaming, see `vtseg_ros.engine.exact`."""

    def __init__(self, model: VTSeg, size: tuple[int, int]) -> None:
        grid = (size[0] // FIRST_STRIDE, size[1] // FIRST_STRIDE)
        tokens, width = math.prod(grid), model.config.embed_dims[0]
        reduction = model.config.sr_ratios[0]
        reduced = (grid[0] // reduction) * (grid[1] // reduction)
        super().__init__(
            model, size, [(tokens, width), (tokens, width), (reduced, width), (reduced, width)] * 2
        )
        self.grid = grid

    def forward(self, images: Tensor, past: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        encoder, decoder = exact.prepare_frame(self.model, images)
        newest = [*encoder, *decoder]
        frames = [
            torch.cat([older, new[:, None]], dim=1) for older, new in zip(self._unpack(past), newest)
        ]  # (B, m + 1, rows, width)
        stream = None
        if valid is not None:
            stream = exact.ValidFrames(torch.cat([valid, valid.new_ones(1)]))
        logits = exact.newest_logits(
            self.model, exact.FirstLayer(*frames[:4]), exact.FirstLayer(*frames[4:]), self.grid, stream
        )
        return logits, self._pack(newest)


class CausalStep(Step):
    """Causal streaming, see `vtseg_ros.engine.causal`."""

    def __init__(self, model: VTSeg, size: tuple[int, int]) -> None:
        causal.check(model)
        config, per_stage = model.config, []
        for stage, (width, reduction) in enumerate(zip(config.embed_dims, config.sr_ratios)):
            stride = FIRST_STRIDE * 2**stage * reduction
            per_stage.append([((size[0] // stride) * (size[1] // stride), width)] * 2 * config.depths[stage])
        encoder = [shape for stage in per_stage for shape in stage]
        decoder = [shape for stage in per_stage for shape in stage * 2]  # VTEncBlock, then VTDecBlock
        super().__init__(model, size, encoder + decoder)

    def forward(self, images: Tensor, past: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rings = causal.Rings(self._unpack(past), valid)
        logits = causal.frame_logits(self.model, images, rings)
        return logits, self._pack(rings.kept)


STEPS = {"plain": PlainStep, "exact": ExactStep, "causal": CausalStep}


def build_step(model: nn.Module, size: tuple[int, int], streaming: str) -> Step:
    """The step of a prepared network.

    Args:
        size: (H, W).
        streaming: a key of `STEPS`; ignored for networks of single images.

    Raises:
        ConfigError: if the network cannot be streamed so.
    """
    return STEPS[streaming](model, size) if isinstance(model, VTSeg) else ImageStep(model, size)
