# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""EXIF orientation of photos, by which viewers and labelling tools rotate an image (CIPA DC-008, 4.6.5)."""

from __future__ import annotations

import struct

import numpy as np

from vtseg_ros.bags.containers import JPEG_MAGIC, png_chunks
from vtseg_ros.content import PNG_MAGIC

UPRIGHT = 1
_ORIENTATION, _SHORT = 0x0112, 3
_APP1, _SOS = 0xE1, 0xDA
_EXIF = b"Exif\0\0"


def orientation_of(data: np.ndarray) -> int:
    """Read the orientation of a jpeg or png file.

    Args:
        data: (n,) uint8, a file that `containers.read_container` accepted.

    Returns:
        1 to 8; 1 = as stored, also if there is no orientation or it cannot be read.
    """
    block = b""
    if data[:8].tobytes() == PNG_MAGIC:
        block = next((bytes(content) for kind, content in png_chunks(data) if kind == b"eXIf"), b"")
    elif data[:2].tobytes() == JPEG_MAGIC:
        block = _jpeg_block(data)
    return _orientation(block.removeprefix(_EXIF))


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and mirror an image or mask, (H, W) or (H, W, C), by an EXIF orientation."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    # Mirrored from left to right, and upside down; both together are a rotation by 180 degrees.
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _jpeg_block(data: np.ndarray) -> bytes:
    offset = 2
    while offset + 4 <= data.size and data[offset] == 0xFF:
        marker = int(data[offset + 1])
        if marker == 0xFF:  # fill byte
            offset += 1
            continue
        if marker == _SOS:
            break
        end = offset + 2 + int(data[offset + 2]) * 256 + int(data[offset + 3])
        content = data[offset + 4 : end].tobytes()
        if marker == _APP1 and content.startswith(_EXIF):
            return content
        offset = end
    return b""


def _orientation(block: bytes) -> int:
    """Return the value of tag 0112 in the first directory of a TIFF block."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, entry)
            if tag == _ORIENTATION and kind == _SHORT:
                return int(value) if UPRIGHT <= value <= 8 else UPRIGHT
    except struct.error:
        pass
    return UPRIGHT
