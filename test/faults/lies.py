# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Image messages that lie: a good message with some of its fields changed, and an independent judge of the result."""

from __future__ import annotations

import struct
import zlib
from types import SimpleNamespace

import numpy as np

BYTES = {
    "rgb8": 3,
    "bgr8": 3,
    "rgba8": 4,
    "bgra8": 4,
    "mono8": 1,
    "mono16": 2,
    "yuv422": 2,
    "uyvy": 2,
    "yuv422_yuy2": 2,
    "yuyv": 2,
    "nv12": 1,
    "nv21": 1,
    "nv24": 1,
    "rgb16": 6,
    "bgr16": 6,
    "rgba16": 8,
    "bgra16": 8,
    "8UC1": 1,
    "8UC3": 3,
    "8UC4": 4,
    "16UC1": 2,
    "16UC3": 6,
    "16UC4": 8,
    "RGB8": 3,
    "rgb8 ": 3,
    "bayer_rggb8": 1,
    "bayer_bggr8": 1,
    "bayer_gbrg8": 1,
    "bayer_grbg8": 1,
    "bayer_rggb16": 2,
    "bayer_bggr16": 2,
    "bayer_gbrg16": 2,
    "bayer_grbg16": 2,
}
"""Bytes of a pixel of each encoding; of the first plane of planar ones."""
ORDER = {
    "rgb8": (0, 1, 2),
    "bgr8": (2, 1, 0),
    "rgba8": (0, 1, 2),
    "bgra8": (2, 1, 0),
    "mono8": (0, 0, 0),
    "8UC1": (0, 0, 0),
    "8UC3": (2, 1, 0),
    "8UC4": (2, 1, 0),
    "RGB8": (0, 1, 2),
    "rgb8 ": (0, 1, 2),
    "mono16": (0, 0, 0),
    "rgb16": (0, 1, 2),
    "bgr16": (2, 1, 0),
    "rgba16": (0, 1, 2),
    "bgra16": (2, 1, 0),
    "16UC1": (0, 0, 0),
    "16UC3": (2, 1, 0),
    "16UC4": (2, 1, 0),
}
"""Where red, green and blue are in a pixel."""
FOREIGN = (
    "",
    "rgb",
    "32FC1",
    "32FC3",
    "8UC2",
    "rgb",
    "bayer_rgb8",
    "jpeg",
    "mono8\x00",
    "\ufffd" * 900,
)
MAX_PIXELS = 64 * 1024 * 1024
U32 = 2**32 - 1
EXTREMES = (0, 1, 2, 3, 7, 255, 4096, 65535, 2**31 - 1, 2**31, U32)


def planes(encoding: str) -> int:
    """Rows of an encoding's data by half the image's height."""
    return {"nv12": 3, "nv21": 3, "nv24": 6}.get(encoding, 2)


def good(rng: np.random.Generator) -> SimpleNamespace:
    """A true message of a random encoding, up to 12 x 12 px of noise, with or without padding."""
    encoding = str(rng.choice(list(BYTES)))
    height, width = 2 * int(rng.integers(2, 7)), 2 * int(rng.integers(2, 7))
    rows = height * planes(encoding) // 2
    step = width * BYTES[encoding] + int(rng.choice((0, 0, 1, 6)))
    return SimpleNamespace(
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(rng.integers(0, 2)),
        step=step,
        data=rng.integers(0, 256, step * rows, dtype=np.uint8),
    )


def lie(rng: np.random.Generator, message: SimpleNamespace) -> SimpleNamespace:
    """One to three of its fields changed: extremes, off by one, truncated, surplus, another encoding."""
    for _ in range(int(rng.integers(1, 4))):
        kind = int(rng.integers(0, 6))
        if kind < 3:
            field = ("height", "width", "step")[kind]
            near = getattr(message, field) + int(rng.integers(-2, 3))
            setattr(
                message, field, min(max(0, near), U32) if rng.random() < 0.6 else int(rng.choice(EXTREMES))
            )
        elif kind == 3:
            keep = (
                int(rng.integers(0, message.data.size + 1)) if rng.random() < 0.7 else message.data.size - 1
            )
            message.data = message.data[: max(keep, 0)]
        elif kind == 4:
            message.data = np.concatenate([message.data, np.zeros(int(rng.integers(1, 5000)), np.uint8)])
        else:
            names = list(BYTES) if rng.random() < 0.5 else FOREIGN
            message.encoding = str(rng.choice(names))
            message.is_bigendian = int(rng.choice((0, 1, 7, 255)))
    return message


def is_true(message: SimpleNamespace) -> bool:
    """Whether a message describes a complete image; written from the interface definition, not from the decoder."""
    encoding, height, width = message.encoding, message.height, message.width
    if encoding not in BYTES or not 0 < height * width <= MAX_PIXELS:
        return False
    even_rows = encoding.startswith("bayer") or encoding in ("nv12", "nv21")
    even_columns = even_rows or encoding in ("yuv422", "uyvy", "yuv422_yuy2", "yuyv")
    if (even_rows and height % 2) or (even_columns and width % 2):
        return False
    if encoding.startswith("bayer") and min(height, width) < 4:
        return False
    return step_of(message) > 0


def step_of(message: SimpleNamespace) -> int:
    """Bytes from one row to the next: the message's, or what drivers mean that set another; 0 = none fits."""
    rows, row, size = (
        message.height * planes(message.encoding) // 2,
        message.width * BYTES[message.encoding],
        len(message.data),
    )
    if message.step >= row and size >= message.step * (rows - 1) + row:
        return message.step
    if (
        planes(message.encoding) > 2
        and size == message.step * message.height
        and size % rows == 0
        and size // rows >= row
    ):
        return size // rows
    return row if message.step in (0, message.width) and size == rows * row else 0


def unpadded(message: SimpleNamespace) -> SimpleNamespace:
    """The same image copied byte by byte: no padding, nothing after its end, little-endian."""
    rows, step = message.height * planes(message.encoding) // 2, step_of(message)
    row = message.width * BYTES[message.encoding]
    if message.encoding == "nv24":  # a row of colours is two rows long, and so is its padding
        starts = [r * step for r in range(message.height)]
        for r in range(message.height):
            colors = message.height * step + 2 * r * step
            starts += [colors, colors + row]
    else:
        starts = [r * step for r in range(rows)]
    data = np.concatenate([message.data[start : start + row] for start in starts])
    if is_wide(message.encoding) and message.is_bigendian:
        data = np.ascontiguousarray(data.reshape(-1, 2)[:, ::-1]).reshape(-1)
    return SimpleNamespace(**{**vars(message), "data": data, "step": row, "is_bigendian": 0})


def is_wide(encoding: str) -> bool:
    """Whether a value has 16 bits."""
    return "16" in encoding


def picture_of(message: SimpleNamespace) -> np.ndarray | None:
    """(H, W, 3) RGB by plain indexing, or None for mosaics and YUV, whose arithmetic is not repeated here."""
    if message.encoding not in ORDER:
        return None
    plain = unpadded(message)
    values = plain.data.astype(int)
    if is_wide(plain.encoding):
        values = (values[0::2] + 256 * values[1::2] + 128) // 257
    pixels = values.astype(np.uint8).reshape(plain.height, plain.width, -1)
    return pixels[..., list(ORDER[plain.encoding])]


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png_file(width: int, height: int, rows: bytes, *extra: bytes) -> bytes:
    """A png of 8-bit RGB that claims a size, whatever `rows` holds; `extra` chunks come before the pixels."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [
        (b"IHDR", size),
        *((c[:4], c[4:]) for c in extra),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, payload) for kind, payload in chunks)


def damage(rng: np.random.Generator, data: bytes) -> np.ndarray:
    """A file with flipped bits, a piece missing, doubled or replaced."""
    out = np.frombuffer(data, np.uint8).copy()
    kind = int(rng.integers(0, 5))
    start = int(rng.integers(0, out.size))
    length = int(rng.integers(1, 64))
    if kind <= 1:
        places = rng.integers(0, out.size, int(rng.integers(1, 4)))
        out[places] ^= (1 << rng.integers(0, 8, places.size)).astype(np.uint8)
        return out
    if kind == 2:
        return out[:start]
    if kind == 3:
        return np.delete(out, np.s_[start : start + length])
    if rng.random() < 0.5:
        return np.concatenate([out[: start + length], out[start:]])
    out[start : start + length] = rng.integers(0, 256, out[start : start + length].size)
    return out
