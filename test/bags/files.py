# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Image files that OpenCV and Pillow do not write: every png colour type and bit depth, EXIF, interlacing."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np

GREY, RGB, INDEXED, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, row and column distance of the passes of an interlaced png (PNG specification, 8.2)."""


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _scan_lines(pixels: np.ndarray, depth: int) -> bytes:
    lines = b""
    for line in pixels.reshape(len(pixels), -1):
        if depth == 16:
            content = line.astype(">u2").tobytes()
        elif depth == 8:
            content = line.astype(np.uint8).tobytes()
        else:
            bits = np.unpackbits(line.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
            content = np.packbits(bits.ravel()).tobytes()
        lines += b"\0" + content  # no filter
    return lines


def png_file(
    pixels: np.ndarray,
    color_type: int,
    depth: int = 8,
    *,
    palette=(),
    transparency: bytes = b"",
    interlaced: bool = False,
    before: bytes = b"",
) -> bytes:
    """A png file of (H, W) or (H, W, C) values below 2 ** depth; `before` are chunks before the pixels."""
    height, width = pixels.shape[:2]
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [pixels[row::down, column::right] for row, column, down, right in passes]
    lines = b"".join(_scan_lines(part, depth) for part in parts if part.size)
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, int(interlaced))
    file = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + before
    if len(palette):
        file += png_chunk(b"PLTE", np.asarray(palette, np.uint8).tobytes())
    if transparency:
        file += png_chunk(b"tRNS", transparency)
    return file + png_chunk(b"IDAT", zlib.compress(lines)) + png_chunk(b"IEND", b"")


def jpeg_file(rgb: np.ndarray, *options: int) -> bytes:
    """A jpeg of (H, W, 3) RGB or (H, W) grey."""
    pixels = rgb if rgb.ndim == 2 else rgb[..., ::-1]
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92, *options])[1].tobytes()


def tiff_block(orientation: int, order: str = "<") -> bytes:
    """The smallest TIFF block that holds an orientation."""
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return magic + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def with_orientation(jpeg: bytes, orientation: int, order: str = "<") -> bytes:
    """A jpeg file with an EXIF block after its start."""
    return jpeg[:2] + jpeg_segment(0xE1, b"Exif\0\0" + tiff_block(orientation, order)) + jpeg[2:]


def smooth_picture(seed: int = 0, size: tuple[int, int] = (48, 32)) -> np.ndarray:
    """(H, W, 3) uint8 RGB without sharp edges, which jpeg keeps well."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.ascontiguousarray(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC))
