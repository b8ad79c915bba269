"""Before and after the network: uint8 RGB to its input, logits to mask and confidence."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vtseg_ros.labels import IGNORE
from vtseg_ros.resize import FILL, place


def resize_rgb(image: np.ndarray, size: tuple[int, int], mode: str = "stretch") -> np.ndarray:
    """One antialiased bilinear resize.

    Args:
        image: (H, W, 3) uint8.
        size: (width, height) px.
        mode: see `place`; what a letterbox leaves free is `FILL`.

    Returns:
        (height, width, 3) uint8; the image itself when it has this size.
    """
    if mode != "stretch":
        placement = place((image.shape[1], image.shape[0]), size, mode)
        target = placement.target
        image = resize_rgb(placement.source.of(image), (target.width, target.height))
        if placement.fills:
            return image
        canvas = np.full((size[1], size[0], 3), FILL, np.uint8)
        target.of(canvas)[:] = image
        return canvas
    if (image.shape[1], image.shape[0]) == size:
        return image
    pixels = torch.from_numpy(np.require(image, requirements="CW")).permute(2, 0, 1)[
        None
    ]  # channels_last in memory
    resized = F.interpolate(
        pixels, size=(size[1], size[0]), mode="bilinear", antialias=True, align_corners=False
    )
    return resized[0].permute(1, 2, 0).contiguous().numpy()


def to_input(image: np.ndarray, size: tuple[int, int], device: torch.device, mode: str = "stretch") -> Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, height, width) float32 in [0, 1] on the device; uint8 is what is uploaded.

    A GPU stretches by itself; the result may differ from `resize_rgb` by 1/255.
    """
    if device.type != "cuda" or mode != "stretch":
        image = resize_rgb(image, size, mode)
    # Messages give read-only views, which torch does not take.
    pixels = torch.from_numpy(np.require(image, requirements="CW"))
    if device.type == "cuda":
        pixels = pixels.pin_memory().to(device, non_blocking=True)
    planes = pixels.permute(2, 0, 1)[None].float()  # (1, 3, H, W), channels last in memory
    if planes.shape[2:] != (size[1], size[0]):
        planes = F.interpolate(
            planes, size=(size[1], size[0]), mode="bilinear", antialias=True, align_corners=False
        ).round_()
    return planes.div_(255)


def decide(logits: Tensor, size: tuple[int, int], upsampling: str, min_confidence: float) -> Tensor:
    """Class ids and confidences.

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
    """The class of the highest logit, the first of equals, and its softmax: (n, C, H, W) -> twice (n, H, W)."""
    # The classes last, where channels-last logits have them adjacent: reducing across planes takes the CPU longer.
    logits = logits.permute(0, 2, 3, 1)
    best, ids = logits.max(dim=3)
    return ids.to(torch.uint8), (logits - best[..., None]).exp_().sum(dim=3).reciprocal_()


MAX_LOGITS = 64 * 1024 * 1024
"""Upsampled logits above this number (256 MB) are made band by band: 14 classes of 64 MP would take 8 GB."""
BAND_LOGITS = 16 * 1024 * 1024


def to_mask(
    logits: Tensor, size: tuple[int, int], upsampling: str, min_confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mask and confidence of one frame: logits (1, C, h, w); the rest as `decide`.

    Returns:
        mask (H, W) uint8 class ids and confidence (H, W) uint8, softmax maximum * 255.
    """
    too_large = logits.shape[1] * size[0] * size[1] > MAX_LOGITS and logits.shape[2:] != (size[1], size[0])
    if upsampling == "bilinear" and too_large:
        return _to_mask_in_bands(logits, size, min_confidence)
    both = decide(logits, size, upsampling, min_confidence)[0]
    if both.is_cuda:  # one download, into memory that the GPU writes directly
        host = torch.empty(both.shape, dtype=both.dtype, pin_memory=True)
        host.copy_(both, non_blocking=True)
        torch.cuda.current_stream(both.device).synchronize()
        both = host
    mask, confidence = both.numpy()
    return mask, confidence


def _to_mask_in_bands(
    logits: Tensor, size: tuple[int, int], min_confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """`to_mask` with bilinear upsampling, a few rows at a time."""
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
