# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Read the stored values of PNG files: class ids of masks must not be scaled or colour-converted."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np

from vtseg_ros.bags.containers import MAX_PIXELS, png_chunks, read_container
from vtseg_ros.content import PNG_MAGIC
from vtseg_ros.errors import ImageError

GREY, RGB, INDEXED, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
"""Colour types of the PNG specification (ISO/IEC 15948)."""


@dataclass(frozen=True)
class StoredPng:
    """Pixels of a png file.

    Attributes:
        values: (H, W) grey values or indices, or (H, W, 3) RGB; uint8, or uint16 if `depth` is 16.
        depth: Bits of a stored value: 1, 2, 4, 8 or 16.
        alpha: (H, W) uint8, 0 = transparent, 255 = opaque, values between = partly; None = all opaque.
        palette: (n, 3) uint8 RGB of an indexed file; None = not indexed.
    """

    values: np.ndarray
    depth: int
    alpha: np.ndarray | None = None
    palette: np.ndarray | None = None

    @property
    def has_colors(self) -> bool:
        """Whether the values are RGB."""
        return self.values.ndim == 3

    def rgb(self) -> np.ndarray:
        """Return the colours, (H, W, 3) uint8: the RGB values, or those of the palette.

        Raises:
            ImageError: For grey values, and for 16-bit colours that have no equal 8-bit colour.
        """
        if self.palette is not None:
            return np.take(self.palette, self.values, axis=0)
        if not self.has_colors:
            raise ImageError("the png has no colours; expected the colours of the classes, got one channel")
        if self.depth < 16:
            return self.values
        narrow, rest = np.divmod(self.values, 257)
        if rest.any():
            raise ImageError(
                "the png has deep colours; expected 8 bits a channel, got 16. Save the mask with 8 bits"
            )
        return narrow.astype(np.uint8)


def read_png(data: bytes | np.ndarray) -> StoredPng:
    """Decode a png file of any colour type and bit depth without changing a value.

    Args:
        data: The file, bytes or (n,) uint8.

    Returns:
        Its pixels: grey values are not scaled, indices not looked up, and transparency is separate.

    Raises:
        ImageError: If it is not a png file, damaged or too large.
    """
    buffer = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    if buffer[:8].tobytes() != PNG_MAGIC:
        raise ImageError("it is not a png file")
    header = read_container(buffer, max_pixels=MAX_PIXELS)
    chunks = png_chunks(buffer)
    first = bytes(chunks[0][1])
    color_type, depth = first[9], first[8]
    found = {kind: bytes(content) for kind, content in chunks if kind in (b"PLTE", b"tRNS")}
    if color_type == INDEXED:
        # Indices are stored like grey values, which the decoder does not change.
        first = first[:9] + bytes([GREY]) + first[10:]
    values = _decode(first, [content for kind, content in chunks if kind == b"IDAT"])
    if values.shape[:2] != (header.height, header.width) or (values.dtype == np.uint16) != (depth == 16):
        raise ImageError("the png cannot be decoded")
    alpha = None
    if color_type in (GREY_ALPHA, RGBA):
        alpha, values = _narrow_alpha(values[..., 3]), values[..., 2::-1]
    elif color_type == RGB:
        values = values[..., ::-1]
    if color_type in (GREY, GREY_ALPHA, INDEXED):
        values = values if values.ndim == 2 else values[..., 0]
        if depth < 8:  # the decoder scales them to 0..255
            values = values // (255 // (2**depth - 1))
    values = np.ascontiguousarray(values)
    transparency = found.get(b"tRNS", b"")
    if color_type == INDEXED:
        palette = _palette(found.get(b"PLTE", b""), values)
        if transparency:
            table = np.full(256, 255, np.uint8)
            table[: min(len(transparency), 256)] = list(transparency[:256])
            alpha = table[values]
        return StoredPng(values, depth, alpha, palette)
    if transparency and color_type in (GREY, RGB):
        alpha = _keyed(values, transparency)
    return StoredPng(values, depth, alpha)


def _decode(header: bytes, content: list[memoryview]) -> np.ndarray:
    """Decode only the pixels: no gamma, no colour profile, no transparency, no rotation."""
    parts: list[tuple[bytes, bytes | memoryview]] = [
        (b"IHDR", header),
        *((b"IDAT", part) for part in content),
        (b"IEND", b""),
    ]
    file = PNG_MAGIC + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
        for kind, body in parts
    )
    try:
        image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as err:
        raise ImageError(f"the png cannot be decoded: {err.err}") from err
    if image is None:
        raise ImageError("the png cannot be decoded")
    return image


def _narrow_alpha(alpha: np.ndarray) -> np.ndarray:
    """Return an alpha channel in 8 bits: only transparent pixels are 0, and only opaque ones 255."""
    if alpha.dtype == np.uint8:
        return np.ascontiguousarray(alpha)
    narrow: np.ndarray = np.clip(alpha >> 8, 1, 254).astype(np.uint8)
    narrow[alpha == 0], narrow[alpha == 65535] = 0, 255
    return narrow


def _palette(content: bytes, indices: np.ndarray) -> np.ndarray:
    palette = np.frombuffer(content[: len(content) // 3 * 3], np.uint8).reshape(-1, 3)
    if not len(palette) or int(indices.max()) >= len(palette):
        raise ImageError(
            f"the png is damaged: it has index {int(indices.max())} of a palette of {len(palette)} colours"
        )
    return palette


def _keyed(values: np.ndarray, content: bytes) -> np.ndarray:
    """Return the alpha channel of a file that declares one value or colour as transparent."""
    channels = 3 if values.ndim == 3 else 1
    if len(content) < 2 * channels:
        raise ImageError("the png is damaged: its transparent colour is too short")
    key = np.array(struct.unpack(f">{channels}H", content[: 2 * channels]))
    clear = (values.reshape(*values.shape[:2], channels) == key).all(axis=2)
    return np.where(clear, 0, 255).astype(np.uint8)
