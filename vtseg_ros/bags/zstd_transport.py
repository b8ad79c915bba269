# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Unpack images of the `zstd` transport (zstd_image_transport of image_transport_plugins).

A sensor_msgs/CompressedImage of the format `zstd` contains, little-endian: height and width (uint32), is_bigendian
(uint8), step and the length of the encoding (uint32), the encoding, and the compressed pixels. Older releases
compress the pixels with gzip, in spite of the name; newer ones with Zstandard.
"""

from __future__ import annotations

import struct
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np

from vtseg_ros.bags.containers import MAX_PIXELS
from vtseg_ros.content import ZSTD_MAGIC
from vtseg_ros.errors import ImageError, first_line

FORMAT = "zstd"
_HEAD = struct.Struct("<IIBII")
_MAX_NAME = 64
_MAX_PIXEL_BYTES = 16
_ANY_HEADER = 32
"""Added to the window size for zlib, which then accepts the headers of both gzip and zlib."""


def is_packed(message: Any) -> bool:
    """Return whether a message is an image of the `zstd` transport.

    Args:
        message: Any message.
    """
    return getattr(message, "format", "").strip().lower() == FORMAT


def size_of_packed(message: Any) -> tuple[int, int]:
    """Read the size of an image of the `zstd` transport without unpacking it.

    Args:
        message: A sensor_msgs/CompressedImage of the format `zstd`.

    Returns:
        (width, height) px.

    Raises:
        ImageError: If the header is truncated or damaged, or claims a too large image.
    """
    height, width, *_ = _header(memoryview(message.data).cast("B"))
    return width, height


def unpack(message: Any) -> Any:
    """Return the raw image in a message of the `zstd` transport.

    Args:
        message: A sensor_msgs/CompressedImage of the format `zstd`.

    Returns:
        An object with the fields height, width, encoding, is_bigendian, step and data ((n,) uint8) of sensor_msgs/Image.

    Raises:
        ImageError: If it is truncated or damaged, or claims a too large image.
    """
    data = memoryview(message.data).cast("B")
    height, width, is_bigendian, step, start = _header(data)
    # Three planes at most (nv24); a row has no more padding than pixels can have bytes.
    limit = 3 * height * min(step, _MAX_PIXEL_BYTES * width)
    return SimpleNamespace(
        height=height,
        width=width,
        encoding=bytes(data[_HEAD.size : start]).decode("ascii", "replace"),
        is_bigendian=is_bigendian,
        step=step,
        data=np.frombuffer(_pixels(bytes(data[start:]), limit), np.uint8),
    )


def _header(data: memoryview) -> tuple[int, int, int, int, int]:
    """Return height, width, is_bigendian, step and the number of bytes before the pixels."""
    if len(data) < _HEAD.size:
        raise ImageError(
            f"the zstd image is truncated; expected at least {_HEAD.size} bytes, got {len(data)}"
        )
    height, width, is_bigendian, step, length = _HEAD.unpack_from(data)
    if length > _MAX_NAME or _HEAD.size + length > len(data):
        raise ImageError(
            f"the zstd image is damaged: its encoding has {length} bytes; expected at most {_MAX_NAME}"
        )
    if height == 0 or width == 0:
        raise ImageError(f"the image is empty: {width}x{height} px")
    if height * width > MAX_PIXELS:
        raise ImageError(f"the image claims {width}x{height} px; expected at most {MAX_PIXELS} px")
    return height, width, is_bigendian, step, _HEAD.size + length


def _pixels(packed: bytes, limit: int) -> bytes:
    """Decompress at most a number of bytes.

    Raises:
        ImageError: If there are more, or the data is damaged.
    """
    try:
        if packed[:4] == ZSTD_MAGIC:
            from zstandard import ZstdDecompressor, frame_content_size

            size = frame_content_size(packed)
            if size > limit:
                raise ImageError(f"the zstd image has {size} bytes; expected at most {limit} by its header")
            return ZstdDecompressor().decompress(packed, max_output_size=max(limit, 1))
        unpacker = zlib.decompressobj(zlib.MAX_WBITS + _ANY_HEADER)
        found = unpacker.decompress(packed, max(limit, 1))
        if not unpacker.eof and len(found) >= limit and unpacker.decompress(unpacker.unconsumed_tail, 1):
            raise ImageError(f"the zstd image has more than {limit} bytes, which its header allows")
    except ImageError:
        raise
    except Exception as err:  # zlib.error and ZstdError, which is imported where it is needed
        raise ImageError(f"the zstd image cannot be decompressed: {first_line(err)}") from err
    if not unpacker.eof:
        raise ImageError("the zstd image is truncated: its compressed data has no end")
    return found
