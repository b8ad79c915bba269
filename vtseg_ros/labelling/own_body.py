# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Mask of the robot's own body: the part of the image that does not change while the robot moves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from vtseg_ros.errors import ConfigError

MIN_FRAMES = 10
MAX_SIDE = 640
"""Larger images are reduced to this longer side, px, which averages the noise of single pixels."""
BLACK = 16
"""Brightest value of a black border, 0..255; video codecs use 16 as black."""
MIN_STEP = 3.0
"""Least mean absolute difference (0..255) of two frames to count as different: a standing robot gives no information."""


@dataclass(frozen=True)
class EgoMask:
    """A proposed mask.

    Attributes:
        mask: (H, W) bool, True on the robot's own body and black borders.
        deviation: (H, W) float32 standard deviation of the brightness over time, 0..255.
        mean: (H, W, 3) uint8 RGB mean image.
        frames: Number of frames used.
        still: Number of frames left out because they equal the one before.
    """

    mask: np.ndarray
    deviation: np.ndarray
    mean: np.ndarray
    frames: int
    still: int


def propose_ego_mask(
    images: Iterable[np.ndarray], *, threshold: float = 0.25, min_area: float = 0.002, top: bool = False
) -> EgoMask:
    """Find regions of low temporal variance that touch the border of the image, and black borders.

    A clear sky is as static as the roof of a robot, so regions that touch the border only in the upper half are ignored
    by default.

    Args:
        images: Frames of a moving camera, (H, W, 3) uint8 RGB of one size; a few hundred from a minute or more.
        threshold: Share of the median deviation of the image below which a pixel is static, 0..1.
        min_area: Least share of the image of a static region, 0..1.
        top: Include regions that touch the border only in the upper half.

    Raises:
        ConfigError: If the images differ in size, or fewer than 10 of them are different.
    """
    total = squares = brightest = color = np.zeros(0)
    last: np.ndarray | None = None
    used = still = 0
    full = (0, 0)
    for image in images:
        size = (image.shape[1], image.shape[0])
        if used and size != full:
            raise ConfigError(
                f"images: sizes differ; expected {full[0]}x{full[1]} px like the first one, got {size[0]}x{size[1]}. "
                "Use images of one camera"
            )
        small = _reduced(image)
        gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float64)
        if last is None:
            full = size
            total, squares, brightest = np.zeros_like(gray), np.zeros_like(gray), np.zeros_like(gray)
            color = np.zeros(small.shape)
        elif np.abs(gray - last).mean() < MIN_STEP:
            still += 1
            continue
        last = gray
        total += gray
        squares += gray**2
        color += small
        np.maximum(brightest, gray, out=brightest)
        used += 1
    if used < MIN_FRAMES:
        raise ConfigError(
            f"images: too few that differ; expected at least {MIN_FRAMES}, got {used} ({still} more equal the one "
            "before). Use more frames (a smaller --every), or record while the robot drives"
        )
    mean = total / used
    variance: np.ndarray = np.maximum(squares / used - mean**2, 0)
    deviation = np.sqrt(variance).astype(np.float32)
    black = _touching_border(np.less_equal(brightest, BLACK))
    smooth = cv2.GaussianBlur(deviation, (0, 0), 1.5)
    seen = smooth[~black]
    static = (smooth < threshold * np.median(seen)) & ~black if seen.size else np.zeros_like(black)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    static = cv2.morphologyEx(static.astype(np.uint8), cv2.MORPH_OPEN, kernel)
    # Moving highlights on the body leave holes and notches.
    static = cv2.morphologyEx(static, cv2.MORPH_CLOSE, kernel) > 0
    mask = black
    if seen.size:  # the image's border is where black borders end
        rows, columns = (np.flatnonzero((~black).any(axis)) for axis in (1, 0))
        inner = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        part = _filled(static[inner])
        mask[inner] |= _large(_touching_border(part, 0 if top else part.shape[0] // 2), min_area)
    mask = cv2.resize(mask.astype(np.uint8), full, interpolation=cv2.INTER_NEAREST) > 0
    return EgoMask(
        mask,
        cv2.resize(deviation, full, interpolation=cv2.INTER_LINEAR),
        cv2.resize(np.round(color / used).astype(np.uint8), full, interpolation=cv2.INTER_LINEAR),
        used,
        still,
    )


def preview(found: EgoMask) -> np.ndarray:
    """Return the mean image, the deviation and the mask in red over the mean: (H, 3 W, 3) uint8 RGB."""
    scale = 255 / max(float(np.percentile(found.deviation, 99)), 1e-6)
    deviation = np.clip(found.deviation * scale, 0, 255).astype(np.uint8)
    marked = found.mean.copy()
    marked[found.mask] = (marked[found.mask] // 2) + np.array([127, 0, 0], np.uint8)
    return np.hstack([found.mean, np.repeat(deviation[..., None], 3, axis=2), marked])


def _reduced(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    scale = MAX_SIDE / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _touching_border(region: np.ndarray, first_row: int = 0) -> np.ndarray:
    """Return the connected parts of (h, w) bool that touch the border of the image in or below a row."""
    _, parts = cv2.connectedComponents(region.astype(np.uint8))
    border = [parts[-1], parts[first_row:, 0], parts[first_row:, -1]]
    if not first_row:
        border.append(parts[0])
    touching = np.unique(np.concatenate(border))
    return np.isin(parts, touching[touching > 0])


def _large(region: np.ndarray, share: float) -> np.ndarray:
    """Return the connected parts of (h, w) bool that cover at least a share of the image."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8))
    keep = [part for part in range(1, count) if stats[part, cv2.CC_STAT_AREA] >= share * region.size]
    return np.isin(parts, keep)


def _filled(region: np.ndarray) -> np.ndarray:
    """Return (h, w) bool with its holes of at most 0.5 % of the image filled."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats((~region).astype(np.uint8), connectivity=4)
    holes = [part for part in range(1, count) if stats[part, cv2.CC_STAT_AREA] <= 0.005 * region.size]
    return region | np.isin(parts, holes)
