# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Geometry of the resize to the network input, with and without keeping the aspect ratio."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vtseg_ros.errors import ConfigError

RESIZE_MODES = ("stretch", "letterbox", "crop")
FILL = (124, 116, 104)
"""RGB of the borders of a letterbox: ImageNet's mean."""


@dataclass(frozen=True)
class Box:
    """A rectangle in px: left, top, width and height."""

    x: int
    y: int
    width: int
    height: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return the view of (H, W, ...) that the rectangle covers."""
        return array[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True)
class Placement:
    """Position of an image in the network input.

    Attributes:
        source: part of the image that is in the input.
        target: part of the input that shows it.
        input_size: (width, height) px of the input.
    """

    source: Box
    target: Box
    input_size: tuple[int, int]

    @property
    def fills(self) -> bool:
        """Whether the image covers the whole input."""
        return (self.target.width, self.target.height) == self.input_size


def place(image_size: tuple[int, int], input_size: tuple[int, int], mode: str) -> Placement:
    """Return the position of an image in the input.

    Args:
        image_size: (width, height) px.
        input_size: (width, height) px.
        mode: `stretch` (the whole image with a changed aspect ratio), `letterbox` (the whole image with its aspect ratio,
            centred) or `crop` (the largest centred part with the aspect ratio of the input).

    Raises:
        ConfigError: for another mode.
    """
    check_resize_mode(mode)
    (width, height), (wide, high) = image_size, input_size
    source, target = Box(0, 0, width, height), Box(0, 0, wide, high)
    if mode == "letterbox":
        scale = min(wide / width, high / height)
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        target = Box((wide - inner[0]) // 2, (high - inner[1]) // 2, *inner)
    elif mode == "crop":
        scale = max(wide / width, high / height)
        part = min(width, max(1, round(wide / scale))), min(height, max(1, round(high / scale)))
        source = Box((width - part[0]) // 2, (height - part[1]) // 2, *part)
    return Placement(source, target, (wide, high))


def check_resize_mode(mode: str, where: str = "resize_mode") -> None:
    """Raise ConfigError if a mode does not exist."""
    if mode not in RESIZE_MODES:
        raise ConfigError(f"{where}: unknown mode; expected one of {', '.join(RESIZE_MODES)}, got {mode!r}")


@dataclass(frozen=True)
class Restoration:
    """Geometry of the conversion from a mask of the whole input to one of the image.

    Attributes:
        whole: (width, height) px that the whole input is scaled to, so that its `target` has the size of `paste`.
        cut: part of that which shows the image.
        paste: position of that part in the mask.
        size: (width, height) px of the mask.
    """

    whole: tuple[int, int]
    cut: Box
    paste: Box
    size: tuple[int, int]

    def __call__(self, scaled: np.ndarray, fill: int) -> np.ndarray:
        """Return the mask (H, W) of an input that was scaled to `whole`; pixels that are not in the input are `fill`."""
        part = self.cut.of(scaled)
        if (self.paste.width, self.paste.height) == self.size:
            return np.ascontiguousarray(part)
        mask = np.full((self.size[1], self.size[0]), fill, scaled.dtype)
        self.paste.of(mask)[:] = part
        return mask


def restoration(placement: Placement, image_size: tuple[int, int], size: tuple[int, int]) -> Restoration:
    """Return the geometry for the mask of an image.

    Args:
        placement: position of the image in the input.
        image_size: (width, height) px of the image.
        size: (width, height) px of the mask, which shows the whole image.
    """
    source, target = placement.source, placement.target
    left, right = (round(x * size[0] / image_size[0]) for x in (source.x, source.x + source.width))
    top, bottom = (round(y * size[1] / image_size[1]) for y in (source.y, source.y + source.height))
    paste = Box(left, top, max(1, right - left), max(1, bottom - top))
    whole = (
        max(paste.width, round(placement.input_size[0] * paste.width / target.width)),
        max(paste.height, round(placement.input_size[1] * paste.height / target.height)),
    )
    cut = Box(
        min(round(target.x * paste.width / target.width), whole[0] - paste.width),
        min(round(target.y * paste.height / target.height), whole[1] - paste.height),
        paste.width,
        paste.height,
    )
    return Restoration(whole, cut, paste, size)
