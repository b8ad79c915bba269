# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""From logits to mask and confidence, and pixels that become unlabelled."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vtseg_ros.label_set import IGNORE

UPSAMPLING = ("bilinear", "bicubic", "nearest")
EMPTY = np.empty((0, 0), np.uint8)
"""A mask or confidence that does not exist."""


@dataclass(frozen=True)
class MaskOptions:
    """How a mask is computed from logits.

    Attributes:
        size: (width, height) px of the mask.
        upsampling: `bilinear`, `bicubic` (the logits) or `nearest` (the mask).
        min_confidence: below it, 0..1, a pixel becomes 255.
        with_confidence: compute the confidence; the softmax takes about half of the time.
    """

    size: tuple[int, int]
    upsampling: str = "bilinear"
    min_confidence: float = 0.0
    with_confidence: bool = True

    @property
    def needs_probability(self) -> bool:
        """Whether the probability of the best class must be computed."""
        return self.with_confidence or self.min_confidence > 0


def decide(logits: Tensor, options: MaskOptions) -> Tensor:
    """Return class ids and confidences of logits (n, C, h, w).

    Returns:
        (n, 2, H, W) uint8: class ids, and the softmax maximum * 255. Without confidence (n, 1, H, W).
    """
    size, upsampling = options.size, options.upsampling
    target = (size[1], size[0])
    same = logits.shape[2:] == target
    logits = logits.float()
    if upsampling != "nearest" and not same:
        if not logits.is_cuda:
            # A new tensor with the classes last, as needed below. Logits cut out of a window have strides with which the
            # interpolation copies its large result twice.
            logits = logits.clone(memory_format=torch.channels_last)
        logits = F.interpolate(logits, size=target, mode=upsampling, align_corners=False)
    # Classes last, where they are adjacent in channels-last logits: reducing across planes takes longer on a CPU.
    logits = logits.permute(0, 2, 3, 1)
    best, ids = logits.max(dim=3)  # of equals the first
    parts = [ids.to(torch.uint8)]
    if options.needs_probability:
        probability = (logits - best[..., None]).exp_().sum(dim=3).reciprocal_()
        if options.min_confidence > 0:
            parts[0] = torch.where(probability < options.min_confidence, IGNORE, parts[0])
        if options.with_confidence:
            parts.append((probability * 255).round().to(torch.uint8))
    result = torch.stack(parts, dim=1)
    if upsampling == "nearest" and not same:
        result = F.interpolate(result, size=target, mode="nearest-exact")
    return result


MAX_LOGITS = 64 * 1024 * 1024
"""Upsampled logits above this number (256 MB) are computed in bands: 14 classes at 64 MP would take 8 GB."""
BAND_LOGITS = 16 * 1024 * 1024


def to_mask(logits: Tensor, options: MaskOptions) -> tuple[np.ndarray, np.ndarray]:
    """Return mask and confidence of one frame from its logits (1, C, h, w).

    Returns:
        mask (H, W) uint8 class ids, and confidence (H, W) uint8, softmax maximum * 255, or `EMPTY`.
    """
    width, height = options.size
    too_large = logits.shape[1] * width * height > MAX_LOGITS and logits.shape[2:] != (height, width)
    if options.upsampling == "bilinear" and too_large:
        return _to_mask_in_bands(logits, options)
    found = decide(logits, options)[0]
    if found.is_cuda:  # one download, into page-locked memory
        host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
        host.copy_(found, non_blocking=True)
        torch.cuda.current_stream(found.device).synchronize()
        found = host
    arrays = found.numpy()
    return arrays[0], arrays[1] if options.with_confidence else EMPTY


def _to_mask_in_bands(logits: Tensor, options: MaskOptions) -> tuple[np.ndarray, np.ndarray]:
    """Compute `to_mask` with bilinear upsampling, a few rows at a time."""
    width, height = options.size
    low = logits.shape[2]
    wide = F.interpolate(logits.float(), size=(low, width), mode="bilinear", align_corners=False)
    # Where row r of the result lies in the logits: pixel centres at half coordinates, edges repeated.
    source = ((torch.arange(height, device=logits.device) + 0.5) * low / height - 0.5).clamp(min=0)
    above = source.long().clamp(max=low - 1)
    below = (above + 1).clamp(max=low - 1)
    share = (source - above)[:, None]
    rows = max(1, BAND_LOGITS // (logits.shape[1] * width))
    masks, confidences = [], []
    for start in range(0, height, rows):
        band = slice(start, start + rows)
        part = torch.lerp(wide[:, :, above[band]], wide[:, :, below[band]], share[band])  # (1, C, rows, W)
        mask, confidence = to_mask(part, replace(options, size=(width, part.shape[2])))
        masks.append(mask)
        confidences.append(confidence)
    return np.concatenate(masks), np.concatenate(confidences) if options.with_confidence else EMPTY


def apply_ego_mask(mask: np.ndarray, ego: np.ndarray) -> np.ndarray:
    """Return a mask with the pixels of the ego mask unlabelled.

    Args:
        mask: (H, W) uint8 class ids.
        ego: (h, w) bool, True where the robot sees itself; stretched to the mask's size.
    """
    if ego.shape != mask.shape:
        rows = np.arange(mask.shape[0]) * ego.shape[0] // mask.shape[0]
        columns = np.arange(mask.shape[1]) * ego.shape[1] // mask.shape[1]
        ego = ego[rows[:, None], columns[None, :]]
    return np.where(ego, np.uint8(IGNORE), mask)
