# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Image messages of every encoding, made by OpenCV's inverse conversions and plain NumPy."""

from __future__ import annotations

import array

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image

NS = 1_000_000_000


def picture(seed: int, height: int = 48, width: int = 80) -> np.ndarray:
    """(H, W, 3) uint8 RGB with structure and noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    return np.clip(smooth + rng.integers(-12, 12, smooth.shape), 0, 255).astype(np.uint8)


def _mosaic(rgb: np.ndarray, pattern: str) -> np.ndarray:
    """(H, W) uint8: the pixel at row r, column c keeps channel pattern[2 * (r % 2) + c % 2]."""
    out = np.empty(rgb.shape[:2], np.uint8)
    for index, letter in enumerate(pattern):
        r, c = divmod(index, 2)
        out[r::2, c::2] = rgb[r::2, c::2, "rgb".index(letter)]
    return out


def _yuv422(rgb: np.ndarray, order: str) -> np.ndarray:
    yuv = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV)
    u, v = yuv[:, 0::2, 1], yuv[:, 0::2, 2]
    out = np.empty((rgb.shape[0], rgb.shape[1] * 2), np.uint8)
    luma, first = (1, 0) if order == "uyvy" else (0, 1)
    out[:, luma::2] = yuv[..., 0]
    out[:, first::4], out[:, first + 2 :: 4] = u, v
    return out


def _nv(rgb: np.ndarray, order: str) -> np.ndarray:
    planar = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)
    height, width = rgb.shape[:2]
    chroma = planar[height:].reshape(2, height // 2, width // 2)
    first, second = (0, 1) if order == "nv12" else (1, 0)
    interleaved = np.stack([chroma[first], chroma[second]], axis=2).reshape(height // 2, width)
    return np.vstack([planar[:height], interleaved])


def encode(rgb: np.ndarray, encoding: str) -> np.ndarray:
    """(rows, bytes per row) uint8 of an encoding."""
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    rows = {
        "rgb8": lambda: rgb,
        "bgr8": lambda: rgb[..., ::-1],
        "rgba8": lambda: np.dstack([rgb, np.full(rgb.shape[:2], 9, np.uint8)]),
        "bgra8": lambda: np.dstack([rgb[..., ::-1], np.full(rgb.shape[:2], 9, np.uint8)]),
        "mono8": lambda: gray,
        "mono16": lambda: (gray.astype("<u2") * 257).view(np.uint8),
        "yuv422": lambda: _yuv422(rgb, "uyvy"),
        "uyvy": lambda: _yuv422(rgb, "uyvy"),
        "yuv422_yuy2": lambda: _yuv422(rgb, "yuyv"),
        "yuyv": lambda: _yuv422(rgb, "yuyv"),
        "nv12": lambda: _nv(rgb, "nv12"),
        "nv21": lambda: _nv(rgb, "nv21"),
        "nv24": lambda: _nv24(rgb),
    }
    if encoding.startswith("bayer_"):
        made = _mosaic(rgb, encoding[6:10])
    else:
        made = rows[encoding if encoding in rows else encoding.replace("16", "8")]()
    made = np.ascontiguousarray(made).reshape(len(made), -1)
    if encoding.endswith("16") and encoding != "mono16":
        made = (made.astype("<u2") * 257).view(np.uint8)
    return made


def _nv24(rgb: np.ndarray) -> np.ndarray:
    """Luma rows, then U and V of every pixel, two rows for each of the image's."""
    yuv = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV)
    return np.vstack(
        [yuv[..., 0], np.ascontiguousarray(yuv[..., 1:]).reshape(2 * rgb.shape[0], rgb.shape[1])]
    )


def _padded(rows: np.ndarray, padding: int, encoding: str) -> np.ndarray:
    if encoding == "nv24":  # a row of colours is twice as long, and its padding behind it
        height = len(rows) // 3
        chroma = np.pad(rows[height:].reshape(height, -1), ((0, 0), (0, 2 * padding)), constant_values=0xAB)
        return np.vstack([_padded(rows[:height], padding, ""), chroma.reshape(2 * height, -1)])
    return np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAB)


def stamped(message, stamp_ns: int, frame_id: str = "camera"):
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, NS)
    message.header.frame_id = frame_id
    return message


def stamp_ns_of(message) -> int:
    return message.header.stamp.sec * NS + message.header.stamp.nanosec


def image_message(
    rgb: np.ndarray, encoding: str, stamp_ns: int, *, padding: int = 0, big_endian: bool = False
) -> Image:
    """An Image; `padding` bytes of rubbish end each row."""
    rows = encode(rgb, encoding)
    if big_endian:
        rows = rows.reshape(len(rows), -1, 2)[..., ::-1].reshape(len(rows), -1)
    if padding:
        rows = _padded(rows, padding, encoding)
    message = Image(height=rgb.shape[0], width=rgb.shape[1], encoding=encoding, is_bigendian=int(big_endian))
    message.step = rows.shape[1]
    message.data = array.array("B", rows.tobytes())
    return stamped(message, stamp_ns)


def compressed_message(rgb: np.ndarray, kind: str, stamp_ns: int) -> CompressedImage:
    payload = cv2.imencode(f".{kind}", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1]
    return stamped(CompressedImage(format=kind, data=array.array("B", payload.tobytes())), stamp_ns)
