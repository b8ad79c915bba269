# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Pixels of raw image messages as they are stored: rows, steps, byte order, and the encodings of one value per channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from vtseg_ros.bags.containers import MAX_PIXELS
from vtseg_ros.errors import ImageError

if TYPE_CHECKING:
    from vtseg_ros.bags.messages import Message

Note = Callable[[str, str], None]
"""Called with a kind of note and its text, for an assumption about a message or for lost information."""

# Channels, bits, and OpenCV's conversion to RGB (None = it is RGB).
PLAIN = {
    "rgb8": (3, 8, None),
    "bgr8": (3, 8, cv2.COLOR_BGR2RGB),
    "rgba8": (4, 8, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, 8, cv2.COLOR_BGRA2RGB),
    "mono8": (1, 8, cv2.COLOR_GRAY2RGB),
    "mono16": (1, 16, cv2.COLOR_GRAY2RGB),
    "rgb16": (3, 16, None),
    "bgr16": (3, 16, cv2.COLOR_BGR2RGB),
    "rgba16": (4, 16, cv2.COLOR_RGBA2RGB),
    "bgra16": (4, 16, cv2.COLOR_BGRA2RGB),
}
# Names of OpenCV types do not contain the colours; these are what cv_bridge and OpenCV programs mean.
MEANT = {
    "8uc1": "mono8",
    "8uc3": "bgr8",
    "8uc4": "bgra8",
    "16uc1": "mono16",
    "16uc3": "bgr16",
    "16uc4": "bgra16",
}


def quiet(kind: str, text: str) -> None:
    """Ignore a note."""


def bytes_of(data: Any) -> np.ndarray:
    """Return an (n,) uint8 view of a message's data, without a copy."""
    return data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)


def rows_of(message: Message, row_bytes: int, rows: int) -> np.ndarray:
    """Return the rows of a raw image without the padding at their ends.

    Args:
        message: sensor_msgs/Image.
        row_bytes: Bytes of a row without padding.
        rows: Number of rows; more than the height for planes of colours.

    Returns:
        View (rows, row_bytes) uint8 of the data.

    Raises:
        ImageError: For a step or data that is too small.
    """
    height, step, data = int(message.height), int(message.step), bytes_of(message.data)
    # The last row may end without its padding.
    if step < row_bytes or data.size < step * (rows - 1) + row_bytes:
        step = _meant_step(message, row_bytes, rows, data.size)
    if step < row_bytes:
        raise ImageError(
            f"step is too small for {message.width} px of {message.encoding}; expected at least {row_bytes} bytes, "
            f"got {step}"
        )
    if data.size < step * (rows - 1) + row_bytes:
        expected = f"{step * rows} bytes"
        if data.size >= row_bytes * rows:
            expected += f", or a step of {row_bytes}"
        raise ImageError(
            f"data is too short for {message.width}x{height} {message.encoding} with step {step}; "
            f"expected {expected}, got {data.size} bytes"
        )
    return np.lib.stride_tricks.as_strided(data, (rows, row_bytes), (step, 1), writeable=False)


def _meant_step(message: Message, row_bytes: int, rows: int, size: int) -> int:
    """Correct the step of drivers that leave it unset, give it in pixels, or divide all bytes by the height.

    It is only changed if the data has exactly the number of bytes that the corrected step needs.
    """
    step = int(message.step)
    if rows != message.height and step * message.height == size and size % rows == 0:
        return size // rows  # colour planes of half the height count as rows too
    return row_bytes if step in (0, message.width) and size == row_bytes * rows else step


def checked_size(message: Message) -> tuple[int, int]:
    """Return (height, width) of a raw image, px.

    Raises:
        ImageError: If it is empty or too large.
    """
    height, width = int(message.height), int(message.width)
    if height == 0 or width == 0:
        raise ImageError(f"the image is empty: {width}x{height} px")
    if height * width > MAX_PIXELS:
        raise ImageError(f"the image claims {width}x{height} px; expected at most {MAX_PIXELS} px")
    return height, width


def pixels_of(message: Message, height: int, width: int, channels: int, kind: str) -> np.ndarray:
    """Return the values of a raw image, in the machine's byte order.

    Args:
        message: sensor_msgs/Image.
        height: H, px.
        width: W, px.
        channels: Values per pixel.
        kind: NumPy type of a value, such as `u2`.

    Returns:
        (H, W) for one channel, otherwise (H, W, channels).

    Raises:
        ImageError: For a step or data that is too small.
    """
    size = np.dtype(kind).itemsize
    rows = np.ascontiguousarray(rows_of(message, width * channels * size, height))
    values = rows.view(np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<"))
    native: np.ndarray = values.astype(kind, copy=False)
    return native if channels == 1 else native.reshape(height, width, channels)
