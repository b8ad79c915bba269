# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Deterministic image corruptions as they occur on robots, in five severities.

`shot_noise`, `motion_blur`, `defocus`, `jpeg` and `brightness` follow ImageNet-C (Hendrycks and Dietterich, "Benchmarking
Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019); Cityscapes-C (Kamann and Rother,
"Benchmarking the Robustness of Semantic Segmentation Models", CVPR 2020) applies the same parameters to driving
images. Lengths that ImageNet-C gives for images of 224 px are scaled with the image's height. The other kinds have no
definition there; they are defined in their docstrings.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np

from vtseg_ros.errors import ConfigError

SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE_HEIGHT = 224
"""Height in px of the images that ImageNet-C's kernel sizes refer to."""
DEFAULT_SHARE = Fraction(1, 3)
MAX_RUN = 3


def _scale(image: np.ndarray) -> float:
    return float(image.shape[0] / REFERENCE_HEIGHT)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Clip values to 0..255 and cut off their fractions."""
    clipped: np.ndarray = np.clip(values, 0, 255)
    return clipped.astype(np.uint8)


def shot_noise(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Add Poisson noise as of a dark scene (ImageNet-C)."""
    photons = (60.0, 25.0, 12.0, 5.0, 3.0)[severity - 1]
    return _to_uint8(rng.poisson(image / 255.0 * photons) / photons * 255.0)


def motion_blur(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Blur along a random direction with a Gaussian line kernel (ImageNet-C's radii and deviations)."""
    length, deviation = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    radius, sigma = max(1, round(length * _scale(image))), deviation * _scale(image)
    angle = rng.uniform(-np.pi / 4, np.pi / 4)
    steps = np.arange(-radius, radius + 1)
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1), np.float32)
    rows = np.rint(radius + steps * np.sin(angle)).astype(int)
    columns = np.rint(radius + steps * np.cos(angle)).astype(int)
    np.add.at(kernel, (rows, columns), np.exp(-(steps**2) / (2 * sigma**2)).astype(np.float32))
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


def defocus(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Blur with a disc, slightly smoothed (ImageNet-C)."""
    size, alias = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    radius = size * _scale(image)
    reach = max(1, int(np.ceil(radius)))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = (x**2 + y**2 <= max(radius, 1.0) ** 2).astype(np.float32)
    disc = cv2.GaussianBlur(disc, (3, 3), alias)
    return cv2.filter2D(image, -1, disc / disc.sum(), borderType=cv2.BORDER_REFLECT_101)


def jpeg(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Compress as jpeg of low quality (ImageNet-C)."""
    quality = (25, 18, 15, 10, 7)[severity - 1]
    data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert bgr is not None  # just encoded
    return np.ascontiguousarray(bgr[..., ::-1])


def brightness(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Raise the value channel by a constant (ImageNet-C)."""
    shift = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.clip(hsv[..., 2].astype(np.float32) + 255 * shift, 0, 255).astype(np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def exposure_jump(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Multiply all values by a gain or by its inverse, as when the exposure control jumps at a tunnel's end."""
    gain = (1.5, 2.0, 2.5, 3.0, 4.0)[severity - 1]
    gain = gain if rng.random() < 0.5 else 1 / gain
    return _to_uint8(image.astype(np.float32) * gain)


def glare(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Add a light source near the horizon with a wide halo that saturates the image around it."""
    strength = (0.4, 0.6, 0.8, 1.0, 1.3)[severity - 1]
    height, width = image.shape[:2]
    x, y = rng.uniform(0.2, 0.8) * width, rng.uniform(0.25, 0.55) * height
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    distance = np.hypot((columns - x), (rows - y)) / height
    light = strength * (np.exp(-((distance / 0.12) ** 2)) + 0.6 * np.exp(-distance / 0.45))
    color = np.array([255, 248, 225], np.float32)
    return _to_uint8(image + light[..., None] * color)


def dirt(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Cover part of the image with opaque, soft-edged patches as of mud on the lens."""
    share = (0.05, 0.1, 0.2, 0.3, 0.4)[severity - 1]
    height, width = image.shape[:2]
    # Patches are where smooth noise is highest: exactly the wanted share of the pixels, in natural shapes.
    noise = rng.standard_normal((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), max(1.0, 0.06 * height))
    threshold = np.quantile(smooth, 1 - share)
    alpha = cv2.GaussianBlur((smooth > threshold).astype(np.float32), (0, 0), max(0.5, 0.008 * height))
    color = np.array([80, 66, 50], np.float32) * rng.uniform(0.5, 1.4)
    return _to_uint8(image * (1 - alpha[..., None]) + alpha[..., None] * color)


def wiper(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Cover a slanted dark band from the lower edge upwards, as a wiper blade does."""
    share = (0.03, 0.05, 0.08, 0.12, 0.16)[severity - 1]
    height, width = image.shape[:2]
    foot, angle = rng.uniform(0.2, 0.8) * width, rng.uniform(-1.0, 1.0)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    across = np.abs((columns - foot) * np.cos(angle) - (height - rows) * np.sin(angle))
    out: np.ndarray = image.copy()
    out[across < share * width / 2] = (18, 18, 20)
    return out


def lost_rows(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Replace bands of rows by grey, as decoders do when packets are lost."""
    share = (0.1, 0.2, 0.35, 0.5, 0.65)[severity - 1]
    height = image.shape[0]
    band = max(1, height // 18)
    starts = np.arange(0, height, band)
    lost = rng.choice(starts, size=max(1, round(share * len(starts))), replace=False)
    out: np.ndarray = image.copy()
    for start in lost:
        out[start : start + band] = 128
    return out


def black(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return a black image: the sensor delivered nothing."""
    return np.zeros_like(image)


TRANSFORMS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    transform.__name__: transform
    for transform in (
        shot_noise,
        motion_blur,
        defocus,
        jpeg,
        brightness,
        exposure_jump,
        glare,
        dirt,
        wiper,
        lost_rows,
        black,
    )
}
FROZEN = "frozen"
"""The camera repeats its last good image; needs the frame before, see `Corruption.source`."""
KINDS = (*TRANSFORMS, FROZEN)


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One kind of corruption on a share of a sequence's frames.

    Frames are counted from the start of their sequence. Runs of `run` corrupted frames are spread evenly, each at the
    end of its period, so that the frames before it are clean: with the defaults frames 2, 5, 8, ... are corrupted.

    Args:
        kind: one of KINDS.
        severity: 1 (mild) to 5.
        share: share of the frames that are corrupted, above 0 and at most 1.
        run: consecutive frames corrupted at a time, 1 to 3.
        seed: of the random draws.

    Raises:
        ConfigError: if a value is not allowed.
    """

    kind: str
    severity: int = 3
    share: Fraction = DEFAULT_SHARE
    run: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(
                f"corruption: unknown kind; expected one of {', '.join(KINDS)}, got {self.kind!r}"
            )
        if self.severity not in SEVERITIES:
            raise ConfigError(f"corruption severity: out of range; expected 1 to 5, got {self.severity}")
        if not 0 < self.share <= 1:
            raise ConfigError(
                f"corruption share: out of range; expected above 0 and at most 1, got {float(self.share):g}"
            )
        if not 1 <= self.run <= MAX_RUN:
            raise ConfigError(f"corruption run: out of range; expected 1 to {MAX_RUN} frames, got {self.run}")

    @classmethod
    def parse(cls, text: str, *, run: int = 1) -> Corruption:
        """Read `KIND:SEVERITY` or `KIND:SEVERITY:SHARE`, such as `dirt:3` or `dirt:3:0.5` or `dirt:3:1/4`.

        Raises:
            ConfigError: if the text has another form.
        """
        kind, *numbers = text.split(":")
        if len(numbers) not in (1, 2):
            raise ConfigError(f"corruption: expected KIND:SEVERITY or KIND:SEVERITY:SHARE, got {text!r}")
        try:
            severity = int(numbers[0])
            share = Fraction(numbers[1]) if len(numbers) > 1 else DEFAULT_SHARE
        except (ValueError, ZeroDivisionError) as err:
            raise ConfigError(
                f"corruption: expected KIND:SEVERITY or KIND:SEVERITY:SHARE with numbers, got {text!r}"
            ) from err
        return cls(kind=kind, severity=severity, share=share, run=run)

    def __str__(self) -> str:
        return f"{self.kind}:{self.severity}:{self.share}" + (f", runs of {self.run}" if self.run > 1 else "")

    def affects(self, position: int) -> bool:
        """Return whether the frame at this position (0 = the sequence's first) is corrupted."""
        unit = position // self.run
        return (unit + 1) * self.share // 1 > unit * self.share // 1

    def run_start(self, position: int) -> int:
        """Return the position of the first frame of the run that a corrupted frame belongs to."""
        return position - position % self.run

    def source(self, position: int) -> int:
        """Return the position of the frame whose image is shown: itself, or for `frozen` the last good one."""
        if self.kind != FROZEN:
            return position
        while position > 0 and self.affects(position):
            position -= 1
        return position

    def apply(self, image: np.ndarray, draw: int) -> np.ndarray:
        """Corrupt an image.

        Args:
            image: (H, W, 3) uint8 RGB, left unchanged.
            draw: chooses the random numbers; equal draws give equal results, on every machine.

        Returns:
            (H, W, 3) uint8.
        """
        if self.kind == FROZEN:
            return image
        rng = np.random.default_rng([self.seed, zlib.crc32(self.kind.encode()), draw])
        return TRANSFORMS[self.kind](image, self.severity, rng)
