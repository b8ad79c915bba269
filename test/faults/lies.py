"""Image messages that lie: a good message with some of its fields changed, and an independent judge of the result."""

from __future__ import annotations

import struct
import zlib
from types import SimpleNamespace

import numpy as np

BYTES = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "mono16": 2, "yuv422": 2, "uyvy": 2,
         "yuv422_yuy2": 2, "yuyv": 2, "nv12": 1, "nv21": 1,
         "bayer_rggb8": 1, "bayer_bggr8": 1, "bayer_gbrg8": 1, "bayer_grbg8": 1}  # fmt: skip
FOREIGN = (
    "",
    "rgb",
    "RGB8",
    "rgb8 ",
    "rgb16",
    "32FC1",
    "32FC3",
    "8UC3",
    "jpeg",
    "mono8\x00",
    "bayer_rggb16",
    "\ufffd" * 900,
)
MAX_PIXELS = 64 * 1024 * 1024
U32 = 2**32 - 1
EXTREMES = (0, 1, 2, 3, 7, 255, 4096, 65535, 2**31 - 1, 2**31, U32)


def good(rng: np.random.Generator) -> SimpleNamespace:
    """A true message of a random encoding, up to 12 x 12 px of noise, with or without padding."""
    encoding = str(rng.choice(list(BYTES)))
    height, width = 2 * int(rng.integers(2, 7)), 2 * int(rng.integers(2, 7))
    rows = height * 3 // 2 if encoding.startswith("nv") else height
    step = width * BYTES[encoding] + int(rng.choice((0, 0, 1, 6)))
    return SimpleNamespace(
        height=height, width=width, encoding=encoding, is_bigendian=int(rng.integers(0, 2)), step=step,
        data=rng.integers(0, 256, step * rows, dtype=np.uint8),
    )  # fmt: skip


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
    """Whether a message says enough to be one picture; written from the interface's text, not from the decoder."""
    encoding, height, width, step = message.encoding, message.height, message.width, message.step
    if encoding not in BYTES or not 0 < height * width <= MAX_PIXELS:
        return False
    even_rows = encoding.startswith(("bayer", "nv"))
    even_columns = even_rows or encoding in ("yuv422", "uyvy", "yuv422_yuy2", "yuyv")
    if (even_rows and height % 2) or (even_columns and width % 2):
        return False
    if encoding.startswith("bayer") and min(height, width) < 4:
        return False
    rows = height * 3 // 2 if encoding.startswith("nv") else height
    row = width * BYTES[encoding]
    return step >= row and len(message.data) >= step * (rows - 1) + row


def unpadded(message: SimpleNamespace) -> SimpleNamespace:
    """The same picture gathered byte by byte: no padding, nothing after its end, little-endian."""
    rows = message.height * 3 // 2 if message.encoding.startswith("nv") else message.height
    row = message.width * BYTES[message.encoding]
    data = np.concatenate([message.data[r * message.step : r * message.step + row] for r in range(rows)])
    if message.encoding == "mono16" and message.is_bigendian:
        data = np.ascontiguousarray(data.reshape(-1, 2)[:, ::-1]).reshape(-1)
    return SimpleNamespace(**{**vars(message), "data": data, "step": row, "is_bigendian": 0})


def picture_of(message: SimpleNamespace) -> np.ndarray | None:
    """(H, W, 3) RGB by plain indexing, or None for mosaics and YUV, whose arithmetic is not repeated here."""
    plain = unpadded(message)
    if plain.encoding.startswith("nv"):
        return None
    pixels = plain.data.reshape(plain.height, plain.width, BYTES[plain.encoding])
    order = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0), "mono8": (0, 0, 0)}
    if plain.encoding in order:
        return pixels[..., list(order[plain.encoding])]
    if plain.encoding == "mono16":
        values = pixels[..., 0].astype(int) + 256 * pixels[..., 1].astype(int)
        return np.repeat(((values + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    return None


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
