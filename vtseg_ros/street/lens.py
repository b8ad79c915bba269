# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Camera effects for rendered images: fog, motion blur, gain, vignetting and noise."""

from __future__ import annotations

import cv2
import numpy as np

from vtseg_ros.street.scenes import Variation
from vtseg_ros.street.textures import tiling_noise

SHUTTER = 0.35
"""Share of the frame interval that the shutter is open."""
NOISE = 3.2
"""Standard deviation of the sensor's noise, grey levels."""


def sky_panorama(variation: Variation, rng: np.random.Generator) -> np.ndarray:
    """Draw the sky, (256, 512, 3) uint8 RGB: horizon (row 0) to zenith, half a turn wide, with clouds by cover."""
    height, width = 256, 512
    rise = np.linspace(0, 1, height)[:, None, None] ** 0.6
    sky = np.asarray(variation.horizon) * (1 - rise) + np.asarray(variation.zenith) * rise
    sky = np.broadcast_to(sky, (height, width, 3)).copy()
    noise = tiling_noise(rng, width, (4, 8, 16, 32))[:height]
    cover = np.clip((noise - (1 - variation.clouds) * 0.85) * 4, 0, 1)[..., None] * 0.85
    lit = np.clip(np.asarray(variation.horizon) * (0.86 + 0.2 * noise[..., None]), 0, 1)
    result: np.ndarray = np.round(np.clip(sky * (1 - cover) + lit * cover, 0, 1) * 255).astype(np.uint8)
    return result


def expose(
    fine: np.ndarray, depth: np.ndarray, motion: np.ndarray, variation: Variation, rng: np.random.Generator
) -> np.ndarray:
    """Return the camera's image.

    Args:
        fine: (s*H, s*W, 3) uint8, the supersampled image.
        depth: (H, W) m, inf for the sky, NaN unknown.
        motion: (H, W, 2) px to the next frame.
        variation: weather and gain.
        rng: source of the noise.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    height, width = depth.shape
    image = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    clear = np.exp(-variation.fog * np.fmin(depth, 400.0)).astype(np.float32)
    clear = np.where(np.isfinite(depth), clear, 1.0 - min(variation.fog * 20, 0.9) * 0.6)[..., None].astype(
        np.float32
    )
    haze = np.asarray(variation.horizon, np.float32) * 255
    image = image * clear + haze * (1 - clear)
    image = _blur(image, np.nan_to_num(motion))
    image *= np.asarray(variation.gain, np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    image *= (1.0 - 0.10 * (x * x + y * y))[..., None]
    image = image + rng.normal(0, NOISE, image.shape).astype(np.float32)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def _blur(image: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Average the image along the motion while the shutter is open."""
    height, width = image.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=2).astype(np.float32)
    step = np.clip(motion, -40, 40) * SHUTTER
    taps = (-0.5, -0.17, 0.17, 0.5)
    total = np.zeros_like(image)
    for tap in taps:
        where = (grid + tap * step).astype(np.float32)
        total += cv2.remap(
            image, where[..., 0], where[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
    return total / len(taps)
