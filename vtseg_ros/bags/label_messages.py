# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Decode messages of labels and masks into class ids, in all forms that simulators and converters publish."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vtseg_ros.bags.png import read_png
from vtseg_ros.bags.stored_pixels import MEANT, PLAIN, Note, bytes_of, checked_size, pixels_of, quiet
from vtseg_ros.bags.zstd_transport import is_packed, unpack
from vtseg_ros.errors import ImageError
from vtseg_ros.label_set import IGNORE

if TYPE_CHECKING:
    from vtseg_ros.bags.messages import Message

# Encodings of one channel that hold class ids, and NumPy's types of them.
_ID_KINDS = {"mono8": "u1", "8uc1": "u1", "mono16": "u2", "16uc1": "u2", "16sc1": "i2", "32sc1": "i4"}


def decode_label(message: Message, note: Note = quiet) -> np.ndarray:
    """Decode a label or mask message.

    Class ids are the values of a grey image or png, the indices of an indexed png, or one channel of a colour image in
    which all other channels are zero or equal to it, as simulators publish them.

    Args:
        message: A sensor_msgs/Image, or a CompressedImage that contains a png or comes by the `zstd` transport.
        note: Called with assumptions.

    Returns:
        (H, W) uint8 class ids.

    Raises:
        ImageError: If it is of another kind, or an id is outside 0..255.
    """
    if is_packed(message):
        message = unpack(message)
    if hasattr(message, "format"):
        png = read_png(_label_file(message))
        if png.palette is not None:
            note("label", "the indices of indexed png files are taken as class ids")
        if png.has_colors:
            return _ids_of_one_channel(png.values, png.alpha, note, "png")
        return without_clear_pixels(as_ids(png.values), png.alpha)
    encoding = message.encoding.strip().lower()
    height, width = checked_size(message)
    if encoding in _ID_KINDS:
        return as_ids(pixels_of(message, height, width, 1, _ID_KINDS[encoding]))
    encoding = MEANT.get(encoding, encoding)
    channels, bits, _ = PLAIN.get(encoding, (0, 0, None))
    if channels < 3 or bits != 8:
        raise ImageError(
            f"encoding: not one of a label image; expected mono8 or mono16, got {message.encoding[:40]!r}. Publish the "
            "class ids in one channel"
        )
    pixels = pixels_of(message, height, width, channels, "u1")
    rgb = pixels[..., :3] if encoding.startswith("rgb") else pixels[..., 2::-1]
    alpha = pixels[..., 3] if channels == 4 else None
    if alpha is not None and (alpha == alpha[0, 0]).all():
        alpha = None  # set, or left at zero, for the whole image
    return _ids_of_one_channel(rgb, alpha, note, encoding)


def _label_file(message: Message) -> np.ndarray:
    data = bytes_of(message.data)
    if data[:2].tobytes() == b"\xff\xd8":
        raise ImageError(
            "the label is a jpeg, which changes class ids; expected png, got jpeg. Publish it as png"
        )
    return data


def as_ids(values: np.ndarray) -> np.ndarray:
    """Convert the values of one channel to class ids.

    Args:
        values: Array of an integer type, of any shape.

    Returns:
        uint8 of the same shape.

    Raises:
        ImageError: If a value is outside 0..255.
    """
    if values.dtype == np.uint8:
        return values
    if values.size and (int(values.max()) > 255 or int(values.min()) < 0):
        wrong = int(values.max()) if values.max() > 255 else int(values.min())
        raise ImageError(f"class id out of range; expected 0..255, got {wrong}")
    return values.astype(np.uint8)


def without_clear_pixels(ids: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """Return class ids with 255 (unlabelled) where the image is transparent.

    Args:
        ids: (H, W) uint8 class ids.
        alpha: (H, W) uint8, 0 = transparent, 255 = opaque; None = all opaque.

    Raises:
        ImageError: If a pixel is partly transparent; names it.
    """
    if alpha is None or alpha.min() == 255:
        return ids
    partly = (alpha > 0) & (alpha < 255)
    if partly.any():
        row, column = np.argwhere(partly)[0]
        raise ImageError(
            f"a pixel is transparent in part (row {row}, column {column}); expected opaque or transparent pixels"
        )
    return np.where(alpha == 0, IGNORE, ids).astype(np.uint8)


def _ids_of_one_channel(rgb: np.ndarray, alpha: np.ndarray | None, note: Note, what: str) -> np.ndarray:
    """Return the class ids, (H, W) uint8, of (H, W, 3) in which one channel contains them, or all are equal."""
    planes = [np.ascontiguousarray(rgb[..., number]) for number in range(3)]
    if not all(np.array_equal(planes[0], plane) for plane in planes[1:]):
        used = [number for number, plane in enumerate(planes) if plane.any()]
        if len(used) != 1:
            raise ImageError(
                f"the channels of the label differ; expected one channel of class ids, got 3 channels of {what}. Publish "
                "the class ids as mono8"
            )
        name = ("red", "green", "blue")[used[0]]
        note("label", f"the class ids of the {what} labels are taken from the {name} channel")
        planes = [planes[used[0]]]
    return without_clear_pixels(as_ids(planes[0]), alpha)
