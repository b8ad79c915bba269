# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""From logits to mask and confidence, and pixels that become unlabelled."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vtseg_ros.label_set import IGNORE

UPSAMPLING = ("bilinear", "bicubic", "nearest")


def decide(logits: Tensor, size: tuple[int, int], upsampling: str, min_confidence: float) -> Tensor:
    """Return class ids and confidences.

    Args:
        logits: (n, C, h, w).
        size: (width, height) of the result.
        upsampling: `bilinear`, `bicubic` (the logits) or `nearest` (the mask).
        min_confidence: below it, 0..1, a pixel becomes 255.

    Returns:
        (n, 2, H, W) uint8: class ids, and the softmax maximum * 255.
    """
    target = (size[1], size[0])
    same = logits.shape[2:] == target
    logits = logits.float()
    if upsampling != "nearest" and not same:
        logits = F.interpolate(logits, size=target, mode=upsampling, align_corners=False)
    mask, probability = _best(logits)
    if min_confidence > 0:
        mask = torch.where(probability < min_confidence, IGNORE, mask)
    both = torch.stack([mask, (probability * 255).round().to(torch.uint8)], dim=1)
    if upsampling == "nearest" and not same:
        both = F.interpolate(both, size=target, mode="nearest-exact")
    return both


def _best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class of the highest logit, the first of equals, and its softmax, (n, H, W) each, of (n, C, H, W)."""
    # Classes last, where they are adjacent in channels-last logits: reducing across planes takes longer on a CPU.
    logits = logits.permute(0, 2, 3, 1)
    best, ids = logits.max(dim=3)
    return ids.to(torch.uint8), (logits - best[..., None]).exp_().sum(dim=3).reciprocal_()


MAX_LOGITS = 64 * 1024 * 1024
"""Upsampled logits above this number (256 MB) are computed in bands: 14 classes at 64 MP would take 8 GB."""
BAND_LOGITS = 16 * 1024 * 1024


def to_mask(
    logits: Tensor, size: tuple[int, int], upsampling: str, min_confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return mask and confidence of one frame: logits (1, C, h, w); other arguments as in `decide`.

    Returns:
        mask (H, W) uint8 class ids and confidence (H, W) uint8, softmax maximum * 255.
    """
    too_large = logits.shape[1] * size[0] * size[1] > MAX_LOGITS and logits.shape[2:] != (size[1], size[0])
    if upsampling == "bilinear" and too_large:
        return _to_mask_in_bands(logits, size, min_confidence)
    both = decide(logits, size, upsampling, min_confidence)[0]
    if both.is_cuda:  # one download, into page-locked memory
        host = torch.empty(both.shape, dtype=both.dtype, pin_memory=True)
        host.copy_(both, non_blocking=True)
        torch.cuda.current_stream(both.device).synchronize()
        both = host
    mask, confidence = both.numpy()
    return mask, confidence


def _to_mask_in_bands(
    logits: Tensor, size: tuple[int, int], min_confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Compute `to_mask` with bilinear upsampling, a few rows at a time."""
    width, height = size
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
        mask, confidence = to_mask(part, (width, part.shape[2]), "bilinear", min_confidence)
        masks.append(mask)
        confidences.append(confidence)
    return np.concatenate(masks), np.concatenate(confidences)


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
