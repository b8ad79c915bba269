# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Augmentation of training windows (paper, Section IV-B): the same random geometry for all frames of a window.

A *pseudo-clip* is a window generated from one labelled frame, scaled and cropped along a smooth random camera path, so
all of its frames have labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from vtseg_ros.dataset.corrupted_frames import CorruptedFrame, check_kinds, draw_corrupted_frames
from vtseg_ros.dataset.occlusion import Cover, check_share, draw_covers
from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import IGNORE


@dataclass(frozen=True)
class AugmentationConfig:
    """Ranges of the random augmentation.

    Args:
        pseudo_clips: Share of windows generated from their labelled frame, 0..1 (paper: 0.8).
        flip: Probability of a horizontal flip, 0..1.
        scale: (lowest, highest) zoom about the centre of the crop, above 0; 1 = the whole image.
        rotation_deg: Largest rotation in either direction, degrees.
        blur: Probability of a Gaussian blur, 0..1.
        brightness: Largest relative change in either direction, 0..1.
        saturation: Largest relative change in either direction, 0..1.
        hue_deg: Largest shift in either direction, degrees of 360.
        path_zoom: Largest relative zoom along the path of a pseudo-clip, 0..0.5.
        path_shift: Largest translation along that path, share of the side of the image, 0..0.5.
        path_rotation_deg: Largest rotation along that path, degrees.
        occlusion: Share of the frames that are partly covered, 0..1, each at its own places (not in the paper).
        corruption: Share of the windows that have a run of 1 to 3 corrupted frames, 0..1 (not in the paper).
        corruption_newest: Share of those windows whose run ends with the newest frame, 0..1; in the others the newest
            frame is clean.
        corruption_kinds: Kinds of `dataset.corruptions.KINDS`; empty = all.
        corruption_severity: (lowest, highest), 1 to 5.

    Raises:
        ConfigError: If a value is out of range.
    """

    pseudo_clips: float = 0.8
    flip: float = 0.5
    scale: tuple[float, float] = (1.0, 1.8)
    rotation_deg: float = 4.0
    blur: float = 0.15
    brightness: float = 0.3
    saturation: float = 0.3
    hue_deg: float = 12.0
    path_zoom: float = 0.12
    path_shift: float = 0.06
    path_rotation_deg: float = 1.5
    occlusion: float = 0.0
    corruption: float = 0.0
    corruption_newest: float = 0.7
    corruption_kinds: tuple[str, ...] = ()
    corruption_severity: tuple[int, int] = (1, 5)

    def __post_init__(self) -> None:
        check_share(self.occlusion, "augmentation.occlusion")
        problem = check_kinds(self.corruption_kinds, self.corruption_severity)
        if problem:
            raise ConfigError(f"augmentation.{problem}")
        for name in ("corruption_newest", "corruption_kinds", "corruption_severity"):
            if not self.corruption and getattr(self, name) != getattr(type(self), name):
                raise ConfigError(f"augmentation.{name} has no effect without corruption: leave it out")
        for name in (
            "pseudo_clips",
            "flip",
            "blur",
            "brightness",
            "saturation",
            "corruption",
            "corruption_newest",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"augmentation.{name}: out of range; expected 0..1, got {getattr(self, name)}"
                )
        if not 0 < self.scale[0] <= self.scale[1] < float("inf"):
            raise ConfigError(
                f"augmentation.scale: out of range; expected lowest <= highest, above 0, got {list(self.scale)}"
            )
        for name in ("path_zoom", "path_shift"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise ConfigError(
                    f"augmentation.{name}: out of range; expected 0..0.5, got {getattr(self, name)}"
                )
        for name in ("rotation_deg", "hue_deg", "path_rotation_deg"):
            if not getattr(self, name) >= 0:
                raise ConfigError(
                    f"augmentation.{name}: out of range; expected at least 0, got {getattr(self, name)}"
                )


@dataclass(frozen=True)
class Draw:
    """One random augmentation of a window.

    Attributes:
        transforms: (k, 3, 3) float64, affine transforms of the frames, source to output px.
        pseudo_clip: Whether all frames are generated from the newest one.
        photometric: Colour change of every frame, (H, W, 3) uint8 RGB to the same.
        covers: Rectangles drawn on the frames.
        corrupted: Frames that are corrupted last.
    """

    transforms: np.ndarray
    pseudo_clip: bool
    photometric: Callable[[np.ndarray], np.ndarray]
    covers: tuple[Cover, ...] = ()
    corrupted: tuple[CorruptedFrame, ...] = ()

    def apply(
        self, video: np.ndarray, labels: np.ndarray, *, outside: int = IGNORE
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment a window.

        Args:
            video: (k, H, W, 3) uint8 RGB.
            labels: (k, H, W) uint8 class ids.
            outside: Label id of pixels outside the source image.

        Returns:
            Arrays of the same shapes.
        """
        clean, labels = self.apply_clean(video, labels, outside=outside)
        return self.degrade(clean), labels

    def apply_clean(
        self, video: np.ndarray, labels: np.ndarray, *, outside: int = IGNORE
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment a window without covering or corrupting frames; see `apply`."""
        frames, height, width = labels.shape
        out_video, out_labels = np.empty_like(video), np.empty_like(labels)
        for t in range(frames):
            affine = self.transforms[t, :2]
            source = frames - 1 if self.pseudo_clip else t
            image = cv2.warpAffine(
                video[source],
                affine,
                (width, height),
                flags=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REFLECT_101,
            )
            out_video[t] = self.photometric(image)
            out_labels[t] = cv2.warpAffine(
                labels[source], affine, (width, height), flags=cv2.INTER_NEAREST, borderValue=outside
            )
        return out_video, out_labels

    def degrade(self, video: np.ndarray) -> np.ndarray:
        """Return an augmented window with its covered and corrupted frames, (k, H, W, 3) uint8 RGB."""
        video = video.copy()
        for cover in self.covers:
            cover.apply(video)
        for corrupted in self.corrupted:
            corrupted.apply(video)
        return video


class Augmentation:
    """Draw and apply random augmentations.

    Args:
        config: Ranges.
    """

    def __init__(self, config: AugmentationConfig) -> None:
        self.config = config

    def draw(self, frames: int, size: tuple[int, int], rng: np.random.Generator) -> Draw:
        """Draw the augmentation of a window of k frames of (width, height) px."""
        transforms = np.repeat(self._crop(*size, rng)[None], frames, axis=0)
        pseudo_clip = frames > 1 and bool(rng.random() < self.config.pseudo_clips)
        if pseudo_clip:
            transforms = self._path(frames, *size, rng) @ transforms
        photometric = self._photometric(rng)
        covers = draw_covers(frames, size, self.config.occlusion, rng)
        corrupted = draw_corrupted_frames(
            frames,
            share=self.config.corruption,
            newest=self.config.corruption_newest,
            kinds=self.config.corruption_kinds,
            severity=self.config.corruption_severity,
            rng=rng,
        )
        return Draw(transforms, pseudo_clip, photometric, covers, corrupted)

    def __call__(
        self, video: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augment a window.

        Args:
            video: (k, H, W, 3) uint8 RGB.
            labels: (k, H, W) uint8; pseudo-clips use the newest one.
            rng: Source of the random numbers.

        Returns:
            Arrays of the same shapes.
        """
        frames, height, width = labels.shape
        return self.draw(frames, (width, height), rng).apply(video, labels)

    def _crop(self, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
        """Return a (3, 3) transform, source to output: zoom into a random crop, rotation, flip."""
        config = self.config
        scale = np.exp(rng.uniform(*np.log(config.scale)))
        slack = (
            abs(1 - 1 / scale) / 2
        )  # below 1 the image is smaller than the frame, and is shifted within it
        slack_x, slack_y = slack * width, slack * height
        center = (width / 2 + rng.uniform(-slack_x, slack_x), height / 2 + rng.uniform(-slack_y, slack_y))
        angle = rng.uniform(-config.rotation_deg, config.rotation_deg)
        matrix = _about(center, scale, angle, (width / 2, height / 2))
        if rng.random() < config.flip:
            matrix = np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]]) @ matrix
        return matrix

    def _path(self, frames: int, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
        """Return (k, 3, 3) transforms along a smooth path that ends at the identity (the newest frame)."""
        config = self.config
        limits = np.array([config.path_zoom, config.path_shift, config.path_shift, config.path_rotation_deg])
        velocity, bend = rng.uniform(-1, 1, 4) * limits, rng.uniform(-1, 1, 4) * limits * 0.4
        age = np.linspace(1.0, 0.0, frames)[:, None]
        # The camera drives forward, so objects grow: zoom increases towards the newest frame.
        velocity[0] = -abs(velocity[0])
        zoom, dx, dy, turn = (velocity * age + bend * age * (1 - age)).T
        middle = (width / 2, height / 2)
        return np.stack(
            [
                _about(middle, 1 + z, a, (middle[0] + x * width, middle[1] + y * height))
                for z, x, y, a in zip(zoom, dx, dy, turn)
            ]
        )

    def _photometric(self, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
        config = self.config
        gain = 1 + rng.uniform(-config.brightness, config.brightness)
        saturation = 1 + rng.uniform(-config.saturation, config.saturation)
        hue = rng.uniform(-config.hue_deg, config.hue_deg) * 256 / 360
        sigma = rng.uniform(0.3, 1.2) if rng.random() < config.blur else 0.0

        def apply(image: np.ndarray) -> np.ndarray:
            if (hue, saturation, gain) != (0.0, 1.0, 1.0):  # 8-bit HSV is lossy
                hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
                hsv = cv2.LUT(hsv, _tables(hue, saturation, gain))
                image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
            return cv2.GaussianBlur(image, (0, 0), sigma) if sigma else image

        return apply


def _about(
    source: tuple[float, float], scale: float, angle_deg: float, target: tuple[float, float]
) -> np.ndarray:
    """Return the (3, 3) transform that rotates and zooms about `source`, and moves it to `target`."""
    c, s = scale * np.cos(np.radians(angle_deg)), scale * np.sin(np.radians(angle_deg))
    linear = np.array([[c, s], [-s, c]])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = np.asarray(target) - linear @ np.asarray(source)
    return matrix


def _tables(hue: float, saturation: float, gain: float) -> np.ndarray:
    """Return (1, 256, 3) uint8 look-up tables of hue, saturation and value."""
    index = np.arange(256, dtype=np.float64)
    table = np.stack([(index + hue) % 256, index * saturation, index * gain], axis=1)
    return np.clip(np.floor(table), 0, 255).astype(np.uint8)[None]
