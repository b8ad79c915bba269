"""The headers of JPEG and PNG files: how large a picture they claim, and whether they are whole.

Read before decoding, since a file of a few kB can claim a picture of many GB or hours of work, and since the
decoders paint what is missing grey and print what they dislike on standard error.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from vtseg_ros.errors import ImageError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8"
# Start-of-frame markers carry the size; C4, C8 and CC are tables that share their range.
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
MAX_SCANS = 100
"""Progressive files have about 10; every scan walks the whole picture, however short it is in the file."""
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD8)))


def check_container(data: np.ndarray, *, max_pixels: int) -> tuple[int, int]:
    """The size that an encoded image claims.

    Args:
        data: (n,) uint8, the file.
        max_pixels: largest picture allowed.

    Returns:
        (width, height) px.

    Raises:
        ImageError: if it is neither JPEG nor PNG, truncated, damaged, empty or above a limit.
    """
    start = data[:8].tobytes()
    if start == PNG_MAGIC:
        width, height = _png_size(data)
    elif start[:2] == JPEG_MAGIC:
        width, height = _jpeg_size(data)
    else:
        raise ImageError(
            f"a compressed image is jpeg or png. Got: {data.size} bytes that start {start[:4].hex() or '-'}"
        )
    if width == 0 or height == 0:
        raise ImageError(f"the compressed image is empty: {width}x{height} px")
    if width * height > max_pixels:
        raise ImageError(
            f"the compressed image claims {width}x{height} px. Expected: at most {max_pixels} px"
        )
    return width, height


def _png_size(data: np.ndarray) -> tuple[int, int]:
    if data.size < 33 or data[12:16].tobytes() != b"IHDR":
        raise ImageError("the png is truncated: it has no header")
    view, offset, kind = memoryview(data), 8, b""
    while kind != b"IEND":
        if offset + 12 > data.size:
            raise ImageError(f"the png is truncated: no end after {data.size} bytes")
        (length,) = struct.unpack(">I", view[offset : offset + 4])
        kind, end = view[offset + 4 : offset + 8].tobytes(), offset + 8 + length
        if end + 4 > data.size:
            raise ImageError(f"the png is truncated: no end after {data.size} bytes")
        if zlib.crc32(view[offset + 4 : end]) != struct.unpack(">I", view[end : end + 4])[0]:
            raise ImageError(f"the png is damaged: the check sum of its chunk {kind!r} is wrong")
        offset = end + 4
    return struct.unpack(">II", view[16:24])


def _jpeg_size(data: np.ndarray) -> tuple[int, int]:
    end = data[-64:].tobytes().rstrip(b"\x00")
    if not end.endswith(b"\xff\xd9"):
        raise ImageError(f"the jpeg is truncated: no end after {data.size} bytes")
    offset = 2
    while offset + 9 < data.size:
        if data[offset] != 0xFF:
            break
        marker = int(data[offset + 1])
        if marker == 0xFF:  # fill byte
            offset += 1
        elif marker in _STANDALONE:
            offset += 2
        elif marker in _SOF:
            # Within the pixels FF is followed by 00, so that these two bytes are a scan's start (or a thumbnail's).
            scans = data.tobytes().count(b"\xff\xda")
            if scans > MAX_SCANS:
                raise ImageError(f"the jpeg has {scans} scans. Expected: at most {MAX_SCANS}")
            height, width = struct.unpack(">HH", data[offset + 5 : offset + 9].tobytes())
            return width, height
        else:
            offset += 2 + int(data[offset + 2]) * 256 + int(data[offset + 3])
    raise ImageError("the jpeg has no frame header")
