# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Local attention from the newest frame to older frames, which improves logits that were computed frame by frame.

Each cell of the newest frame attends to the cells around the same place in older frames. The attention uses the blocks
with a halo of Vaswani et al., "Scaling Local Self-Attention for Parameter Efficient Visual Backbones" (HaloNet), CVPR
2021: all cells of a block attend to the block and its surroundings, so no neighbourhood is gathered per cell. A gate
decides for each cell how far the attended logits replace its own, as in Nilsson and Sminchisescu, "Semantic Video
Segmentation by Gated Recurrent Flow Propagation", CVPR 2018, and KD-SSP's blending of adjacent outputs.

No weight depends on the number of classes: a memory that was trained for one class list works for another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtseg_ros.errors import ConfigError
from vtseg_ros.model.efficientvit import ConvNorm

BLOCK = 8
"""Cells of a side of a block of queries."""
HIDDEN = -1e4
"""Score of a key that must not be seen."""
STRIDES = (4, 8)
RGB_MEAN, RGB_STD = 0.45, 0.25
"""Of usual images, in [0, 1]; close enough for the first convolution."""
APPEARANCES = 6
"""Measures of how a cell looks, see `appearance`."""
CERTAINTIES = 3
"""Measures of how certain logits are, see `certainty`."""


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Sizes of the attention to older frames.

    Args:
        stride: px of a cell's side, 4 or 8.
        radius: cells around a block that its queries see in older frames, 1 to 8.
        width: channels of queries and keys, at least 8.
        caution: subtracted from the gate, before its sigmoid, except in training, at least 0. Higher values change clean
            frames less and improve corrupted ones less.

    Raises:
        ConfigError: if a value is out of range.
    """

    stride: int = 8
    radius: int = 3
    width: int = 32
    caution: float = 1.0

    def __post_init__(self) -> None:
        if self.stride not in STRIDES:
            raise ConfigError(f"stride: unknown; expected one of {STRIDES}, got {self.stride}")
        if not 1 <= self.radius <= BLOCK:
            raise ConfigError(f"radius: out of range; expected 1 to {BLOCK} cells, got {self.radius}")
        if not 8 <= self.width <= 1024:
            raise ConfigError(f"width: out of range; expected 8 to 1024 channels, got {self.width}")
        if not 0 <= self.caution < math.inf:
            raise ConfigError(f"caution: out of range; expected at least 0, got {self.caution}")


class MemoryAttention(nn.Module):
    """Attend from the cells of a frame to those of older frames, and blend the logits.

    Args:
        config: sizes.
    """

    offsets: Tensor

    def __init__(self, config: MemoryConfig) -> None:
        super().__init__()
        self.config = config
        width, half = config.width, config.width // 2
        # Without BatchNorm, whose statistics of a batch would tell whether the other frames are corrupted.
        layers = [ConvNorm(3, half, 3, stride=2, norm=False), ConvNorm(half, width, 3, stride=2, norm=False)]
        if config.stride == 8:
            layers.append(ConvNorm(width, width, 3, stride=2, norm=False))
        self.stem = nn.Sequential(*layers)
        self.join = ConvNorm(width + CERTAINTIES + APPEARANCES, width, 1, norm=False)
        self.query = nn.Conv2d(width, width, 1)
        self.key = nn.Conv2d(width, width, 1)
        self.quality = nn.Conv2d(width, 1, 1)
        self.same_class = nn.Parameter(torch.tensor(2.0))
        self.age = nn.Parameter(torch.tensor(0.0))
        reach = BLOCK + config.radius
        self.position = nn.Parameter(_distance_penalty(2 * reach - 1))
        self.register_buffer("offsets", _offsets(config.radius), persistent=False)
        compared = 2 * (width + CERTAINTIES) + 3 * APPEARANCES + 1
        self.compare = nn.Conv2d(compared, width, 3, padding=1)
        self.compare_frames = nn.Conv2d(compared, width, 1)
        self.gate = nn.Conv2d(width, 1, 1)
        for part in (*self.stem.modules(), *self.join.modules(), self.compare, self.compare_frames):
            if isinstance(part, nn.Conv2d):
                # Without a norm, the default initialisation would weaken the signal in every layer.
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        assert self.gate.bias is not None
        nn.init.constant_(self.gate.bias, -2.0)  # starts close to the frame's own logits

    def describe(self, images: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return what this module reads of frames, each of which is described by itself.

        Args:
            images: (n, 3, H, W), RGB in [0, 1].
            logits: (n, C, h, w) of the cells.

        Returns:
            Features of each cell (n, width, h, w), and what later frames need: keys, qualities, appearances and logits,
            (n, width + 1 + 6 + C, h, w).
        """
        look = appearance(images, self.config.stride)
        described = self.stem((images - RGB_MEAN) / RGB_STD)
        features = self.join(torch.cat([described, certainty(logits), look], dim=1))
        return features, torch.cat([self.key(features), self.quality(features), look, logits], dim=1)

    def forward(
        self, features: Tensor, own: Tensor, past: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return how much the logits of a frame change, and why.

        Args:
            features: (B, width, h, w) of the frame, from `describe`.
            own: (B, D, h, w) of the frame, the second result of `describe`.
            past: (B, m, h, w, D), the same of the m >= 1 older frames, oldest first; with the channels last, a
                neighbourhood is copied in long pieces.
            valid: (m,) bool, which of them exist; None = all.

        Returns:
            The change (B, C, h, w), zero if no older frame exists, and the gate before the sigmoid (B, 1, h, w).
        """
        key, _, look, logits = self._split(own, dim=1)
        past_key, past_look, attended = self.attend(features, logits, past, valid)
        agreement = (logits.softmax(1) * attended.softmax(1)).sum(1, keepdim=True)
        certain = [certainty(logits), certainty(attended), agreement]
        looks = [look, past_look, (look - past_look).abs()]
        compared = torch.cat([key, past_key, *looks, *certain], dim=1)
        # A frame that differs from the older ones as a whole is probably noisy or blurred.
        whole = self.compare_frames(compared.mean((2, 3), keepdim=True))
        gate = self.gate(F.hardswish(self.compare(compared) + whole))
        opened = torch.sigmoid(gate if self.training else gate - self.config.caution)
        change = opened * (attended - logits)
        return (change if valid is None else change * valid.any().to(change.dtype)), gate

    def attend(
        self, features: Tensor, logits: Tensor, past: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the attended keys, appearances and logits, each (B, ., h, w).

        Args:
            features: as `forward`.
            logits: (B, C, h, w) of the frame.
            past: as `forward`.
            valid: as `forward`.
        """
        width, (height, columns) = self.config.width, features.shape[2:]
        keys, quality, look, values = self._split(past, dim=4)
        # The scores are one product: similar features, equal classes, and how useful the key is by itself.
        asked = torch.cat(
            [
                self.query(features) / math.sqrt(width),
                self.same_class * logits.softmax(1),
                torch.ones_like(features[:, :1]),
            ],
            dim=1,
        )
        answers = torch.cat([keys, values.softmax(4), quality], dim=4)
        # A cell outside the image is hidden by its quality, the last channel.
        outside = answers.new_zeros(answers.shape[-1])
        outside[-1] = HIDDEN
        places = self._halos(past.shape[1], height, columns)
        seen = _gathered(answers, places, outside)  # (B, blocks, m * n, D)
        scores = _blocks(asked) @ seen.transpose(2, 3) + self._bias(past.shape[1], valid)
        contents = torch.cat([keys, look, values], dim=4)
        found = _gathered(contents, places, torch.zeros_like(contents[0, 0, 0, 0]))
        result = _unblocked(scores.softmax(-1) @ found, (height, columns))
        return result[:, :width], result[:, width : width + APPEARANCES], result[:, width + APPEARANCES :]

    def _split(self, rows: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Return keys, qualities, appearances and logits, the channels of dimension `dim`."""
        classes = rows.shape[dim] - 1 - self.config.width - APPEARANCES
        parts: tuple[Tensor, ...] = rows.split([self.config.width, 1, APPEARANCES, classes], dim=dim)
        return parts

    def _halos(self, frames: int, height: int, width: int) -> Tensor:
        """Return the cells of each block and its surroundings, (blocks, frames * n), n = (BLOCK + 2 radius)^2.

        Cells are counted through all frames, row by row; those outside the image have the number after the last cell.
        """
        device = self.offsets.device
        reach = torch.arange(-self.config.radius, BLOCK + self.config.radius, device=device)
        y = torch.arange(0, height, BLOCK, device=device)[:, None] + reach  # (block rows, side)
        x = torch.arange(0, width, BLOCK, device=device)[:, None] + reach
        inside = ((y >= 0) & (y < height))[:, None, :, None] & ((x >= 0) & (x < width))[None, :, None, :]
        cells = (y[:, None, :, None] * width + x[None, :, None, :]).flatten(2).flatten(0, 1)  # (blocks, n)
        first = torch.arange(frames, device=device) * height * width
        numbers = first[None, :, None] + cells[:, None]  # (blocks, frames, n)
        known = inside.flatten(2).flatten(0, 1)[:, None]
        return torch.where(known, numbers, frames * height * width).flatten(1)

    def _bias(self, frames: int, valid: Tensor | None) -> Tensor:
        """Return what is added to the scores, (BLOCK^2, m * n), from offsets in space and time."""
        place = self.position[self.offsets]  # (BLOCK^2, n)
        ages = torch.arange(frames - 1, -1, -1, device=place.device, dtype=place.dtype)
        frame = -F.softplus(self.age) * ages  # (m,)
        if valid is not None:
            frame = frame + (~valid).to(place.dtype) * HIDDEN
        return (place[:, None] + frame[None, :, None]).flatten(1)


def appearance(images: Tensor, stride: int) -> Tensor:
    """Return how cells look: mean RGB, and how strong edges and noise are.

    Args:
        images: (n, 3, H, W), RGB in [0, 1].
        stride: px of a cell's side.

    Returns:
        (n, 6, H / stride, W / stride): mean RGB - 0.5; logarithms of the mean absolute differences of neighbours in x and
        y, and of the mean absolute Laplacian, which noise raises and blur lowers.
    """
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    middle, right, below = grey[..., 1:-1, 1:-1], grey[..., 1:-1, 2:], grey[..., 2:, 1:-1]
    laplacian = 4 * middle - right - below - grey[..., 1:-1, :-2] - grey[..., :-2, 1:-1]
    strengths = torch.cat([(right - middle).abs(), (below - middle).abs(), laplacian.abs()], dim=1)
    return torch.cat(
        [_cell_means(images, stride) - 0.5, (_cell_means(strengths, stride) + 0.01).log() / 2], dim=1
    )


def _cell_means(grid: Tensor, stride: int) -> Tensor:
    """Return the mean of each cell, (n, C, H, W) -> (n, C, H / stride, W / stride).

    Equals `avg_pool2d`, for which OpenVINO first copies the few channels into blocks of 16.
    """
    rows = grid.unflatten(2, (-1, stride)).mean(3)
    result: Tensor = rows.unflatten(3, (-1, stride)).mean(4)
    return result


def certainty(logits: Tensor) -> Tensor:
    """Return measures of how certain logits are, (n, C, h, w) -> (n, 3, h, w).

    The largest probability and 1 - normalised entropy, both in [0, 1], and a tenth of the free energy, which detects images
    unlike those of the training (Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020).
    """
    energy = logits.logsumexp(1, keepdim=True)
    scaled = logits - energy
    shares = scaled.exp()
    entropy = -(shares * scaled).sum(1, keepdim=True) / math.log(max(2, logits.shape[1]))
    return torch.cat([shares.amax(1, keepdim=True), 1 - entropy, energy / 10], dim=1)


def _distance_penalty(side: int) -> Tensor:
    """Return the initial position table, (side^2,): near places first."""
    steps = torch.arange(side, dtype=torch.float32) - side // 2
    return (-0.05 * (steps[:, None] ** 2 + steps[None] ** 2)).flatten()


def _offsets(radius: int) -> Tensor:
    """Return for each query and key of a block the index of their offset in the position table, (BLOCK^2, n)."""
    side, reach = BLOCK + 2 * radius, BLOCK + radius - 1
    steps = torch.arange(side)[None] - radius - torch.arange(BLOCK)[:, None] + reach  # (BLOCK, side)
    table = steps[:, None, :, None] * (2 * reach + 1) + steps[None, :, None, :]
    return table.reshape(BLOCK * BLOCK, side * side)


def _gathered(grids: Tensor, places: Tensor, outside: Tensor) -> Tensor:
    """Return cells by their numbers, (B, m, h, w, D) -> (B, *places.shape, D).

    Args:
        grids: of m frames.
        places: numbers of cells as `MemoryAttention._halos` counts them.
        outside: (D,), the values of a cell outside the image.
    """
    cells = grids.flatten(1, 3)
    cells = torch.cat([cells, outside.expand(cells.shape[0], 1, -1)], dim=1)
    result: Tensor = cells.index_select(1, places.flatten()).unflatten(1, places.shape)
    return result


def _blocks(grid: Tensor) -> Tensor:
    """Divide a grid into blocks, (B, D, h, w) -> (B, blocks, BLOCK^2, D); zeros are added below and on the right."""
    height, width = grid.shape[2:]
    padded = F.pad(grid, (0, -width % BLOCK, 0, -height % BLOCK))
    split = padded.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))  # (B, D, rows, BLOCK, columns, BLOCK)
    result: Tensor = split.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
    return result


def _unblocked(blocks: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo `_blocks`, (B, blocks, BLOCK^2, D) -> (B, D, h, w)."""
    height, width = size
    rows = -(-height // BLOCK)
    # (B, rows, columns, BLOCK, BLOCK, D)
    split = blocks.unflatten(2, (BLOCK, BLOCK)).unflatten(1, (rows, -1))
    grid: Tensor = split.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    return grid[..., :height, :width]
