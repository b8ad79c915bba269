# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Read the headers of JPEG and PNG files before they are decoded: size, channels and end of the image.

A file of a few kB can claim an image of many GB or hours of work. Decoders also fill missing parts with grey, and print
warnings on standard error.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from vtseg_ros.content import PNG_MAGIC, START_BYTES, words_for
from vtseg_ros.errors import ImageError

JPEG_MAGIC = b"\xff\xd8"
MAX_PIXELS = 64 * 1024 * 1024
"""Images with more pixels are refused before memory is allocated for them."""
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Channels by png colour type; 3 is indexed."""
MAX_SCANS = 100
"""Progressive files have about 10 scans; each costs a pass over the whole image, however short it is in the file."""
# Start-of-frame markers carry the size; C4, C8 and CC are tables that share their range.
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START = b"\xff\xd8\xff"
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_SEGMENTS = frozenset(range(0xC0, 0xFF)) - {_SOI, _EOI}
# What may follow a scan: tables, comments, application data, the number of lines, the next scan, the end.
_AFTER_SCAN = frozenset((0xC4, 0xCC, _EOI, _SOS, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE))
# Within the pixels FF is followed by 00 (a value), by another FF (filling) or by a restart marker.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


@dataclass(frozen=True)
class Container:
    """Header of an encoded image.

    Attributes:
        kind: `jpeg` or `png`.
        width: Width, px, above 0.
        height: Height, px, above 0.
        channels: Channels of the stored pixels, 1..4; 1 for an indexed png.
        depth: Bits of a value.
        end: Number of bytes of the image; what follows is not part of it.
    """

    kind: str
    width: int
    height: int
    channels: int
    depth: int
    end: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) px."""
        return self.width, self.height


def read_container(data: np.ndarray, *, max_pixels: int) -> Container:
    """Read the header of an encoded image and find its end.

    Anything may follow the end: cameras pad to the size of their buffers, phones append videos.

    Args:
        data: (n,) uint8, the file.
        max_pixels: Largest image allowed, px.

    Returns:
        The header.

    Raises:
        ImageError: If it is neither JPEG nor PNG, truncated, damaged, empty or above a limit.
    """
    start = data[:8].tobytes()
    if start == PNG_MAGIC:
        found = _read_png(data)
    elif start[:2] == JPEG_MAGIC:
        found = _read_jpeg(data)
    else:
        words = words_for(data[:START_BYTES].tobytes())
        got = f"{data.size} bytes" + (f" that start with {start[:4].hex()}" if start else "")
        got = words if words.endswith("image") else got
        raise ImageError(f"the compressed image has another format; expected jpeg or png, got {got}")
    if found.width == 0 or found.height == 0:
        raise ImageError(f"the compressed image is empty: {found.width}x{found.height} px")
    if found.width * found.height > max_pixels:
        raise ImageError(
            f"the compressed image claims {found.width}x{found.height} px; expected at most {max_pixels} px"
        )
    return found


def png_chunks(data: np.ndarray) -> list[tuple[bytes, memoryview]]:
    """Split a png file into its chunks.

    Args:
        data: (n,) uint8, the file.

    Returns:
        Kind (4 bytes) and content of each chunk; the last one is IEND.

    Raises:
        ImageError: If it has no end, or a checksum is wrong.
    """
    view, offset, kind = memoryview(np.ascontiguousarray(data).data), 8, b""
    chunks: list[tuple[bytes, memoryview]] = []
    while kind != b"IEND":
        if offset + 12 > data.size:
            raise ImageError(f"the png is truncated: no end after {data.size} bytes")
        (length,) = struct.unpack(">I", view[offset : offset + 4])
        kind, end = view[offset + 4 : offset + 8].tobytes(), offset + 8 + length
        if end + 4 > data.size:
            raise ImageError(f"the png is truncated: no end after {data.size} bytes")
        if zlib.crc32(view[offset + 4 : end]) != struct.unpack(">I", view[end : end + 4])[0]:
            raise ImageError(f"the png is damaged: the checksum of its chunk {kind!r} is wrong")
        chunks.append((kind, view[offset + 8 : end]))
        offset = end + 4
    return chunks


def _read_png(data: np.ndarray) -> Container:
    if data.size < 33 or data[8:16].tobytes() != b"\0\0\0\rIHDR":
        raise ImageError("the png is truncated: it has no header")
    end = 8 + sum(12 + len(content) for _, content in png_chunks(data))
    width, height, depth, color_type = struct.unpack(">IIBB", data[16:26].tobytes())
    if color_type not in PNG_CHANNELS:
        raise ImageError(f"the png is damaged: it has no colour type {color_type}")
    return Container("png", width, height, PNG_CHANNELS[color_type], depth, end)


def _read_jpeg(data: np.ndarray) -> Container:
    """Walk the segments and scans up to the end marker: a thumbnail in the header has an end of its own."""
    file = memoryview(np.ascontiguousarray(data).data)
    frame, scans, offset = None, 0, 2
    while found := _MARKER.search(file, offset):
        offset, marker = found.start(), file[found.start() + 1]
        if marker == _EOI and frame and scans:
            depth, height, width, channels = frame
            return Container("jpeg", width, height, channels, depth, offset + 2)
        if marker == _TEM and not scans:
            offset += 2
            continue
        if marker not in (_AFTER_SCAN if scans else _SEGMENTS):
            break  # the file was cut here, and another file or anything else follows
        length = int.from_bytes(file[offset + 2 : offset + 4], "big")
        content, segment = file[offset + 4 : offset + 2 + length], file[offset + 2 : offset + 4 + length]
        offset += 2 + length
        if length < 2 or offset > len(file) or (_is_plain(marker, content) and _START in bytes(segment)):
            break  # the segment was cut, and another file begins in it
        if marker in _SOF:
            if len(content) < 6:
                break
            frame = struct.unpack(">BHHB", content[:6])
        elif marker == _SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise ImageError(f"the jpeg has too many scans; expected at most {MAX_SCANS}")
    if frame is None:
        raise ImageError("the jpeg has no frame header")
    raise ImageError(f"the jpeg is truncated: no end after {data.size} bytes")


def _is_plain(marker: int, content: memoryview) -> bool:
    """Return whether a segment cannot contain a thumbnail (a file in the file), as application data and comments may."""
    return not (
        0xE1 <= marker <= 0xEF or marker == 0xFE or (marker == 0xE0 and bytes(content[:4]) == b"JFXX")
    )
