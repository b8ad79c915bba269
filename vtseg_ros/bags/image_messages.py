# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Decode image messages into arrays, in all encodings that drivers publish; invalid messages are refused with a reason.

Messages are read by their fields, so both those of rclpy and those of a bag work.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import cv2
import numpy as np

from vtseg_ros.bags.containers import MAX_PIXELS, Container, read_container
from vtseg_ros.bags.jpeg import require_complete
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.stored_pixels import (
    MEANT,
    PLAIN,
    Note,
    bytes_of,
    checked_size,
    pixels_of,
    quiet,
    rows_of,
)
from vtseg_ros.bags.zstd_transport import is_packed, size_of_packed, unpack
from vtseg_ros.errors import ImageError

if TYPE_CHECKING:
    from vtseg_ros.bags.messages import Message

__all__ = [
    "ENCODINGS",
    "MAX_PIXELS",
    "ImageDecoder",
    "decode_any",
    "decode_compressed",
    "decode_float",
    "decode_image",
    "size_of",
]

log = logging.getLogger("vtseg_ros.bags")


COLOR_AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
"""Pixels as the camera stores them, without EXIF rotation: labels and intrinsics refer to them."""

# ROS names the pattern of the first two pixels of the first two rows; OpenCV that of the second row and column on.
_BAYER_PATTERNS = {
    "rggb": cv2.COLOR_BayerRGGB2RGB,
    "bggr": cv2.COLOR_BayerBGGR2RGB,
    "gbrg": cv2.COLOR_BayerGBRG2RGB,
    "grbg": cv2.COLOR_BayerGRBG2RGB,
}
_BAYER = {f"bayer_{name}{bits}": (bits, code) for name, code in _BAYER_PATTERNS.items() for bits in (8, 16)}
_PACKED_YUV = {
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUYV,
    "yuyv": cv2.COLOR_YUV2RGB_YUYV,
}
_PLANAR_YUV = {"nv21": cv2.COLOR_YUV2RGB_NV21, "nv12": cv2.COLOR_YUV2RGB_NV12}

ENCODINGS = (*PLAIN, *_BAYER, *_PACKED_YUV, *_PLANAR_YUV, "nv24")
"""Supported encodings of sensor_msgs/Image; OpenCV types (`8UC1`, ...) are accepted with a warning."""
_KNOWN = (
    "rgb8, bgr8, rgba8, bgra8, mono8 (also with 16), bayer_rggb8, bggr8, gbrg8, grbg8 (also with 16), yuv422 (uyvy), "
    "yuv422_yuy2 (yuyv), nv12, nv21, nv24"
)
_BAYER_FORMAT = re.compile(r"\s*(bayer_(?:rggb|bggr|gbrg|grbg)(?:8|16))\s*;")

LOW_RANGE = 0.125
"""A 16-bit image whose values span less than this share of the range has little contrast in 8 bits."""
IDS_BELOW = 32
"""A grey image of 8 bits with all values below this may contain class ids; a camera's is rarely so dark."""
DARK = 16384
"""A 16-bit image with all values below this is dark in 8 bits: cameras of 10 to 14 bits use the lower bits."""


class ImageDecoder:
    """Decode the messages of one topic, and warn once of each kind of assumption or loss.

    Args:
        topic: Name of the topic in warnings; empty = not named.
        warn: Called with each warning; None = the log.
    """

    def __init__(self, topic: str = "", warn: Callable[[str], None] | None = None) -> None:
        self._topic, self._warn = topic, warn or log.warning
        self._noted: set[str] = set()

    def __call__(self, message: Message) -> np.ndarray:
        """Decode an image; see `decode_any`.

        Args:
            message: Image or CompressedImage.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            ImageError: If it cannot be decoded.
        """
        return decode_any(message, self._note)

    def label(self, message: Message) -> np.ndarray:
        """Decode a label; see `decode_label`.

        Args:
            message: Image or CompressedImage with class ids.

        Returns:
            (H, W) uint8 class ids; 255 = unlabelled.

        Raises:
            ImageError: If it cannot be decoded, or is not an image of class ids.
        """
        return decode_label(message, self._note)

    def _note(self, kind: str, text: str) -> None:
        if kind not in self._noted:
            self._noted.add(kind)
            self._warn(f"{self._topic}: {text}" if self._topic else text)


def _to_8_bits(values: np.ndarray, note: Note) -> np.ndarray:
    """Return uint16 values as uint8, divided by 257 and rounded; note a range that is hardly used."""
    if note is not quiet:
        low, high = int(values.min()), int(values.max())
        if high - low < LOW_RANGE * 65535 or high < DARK:
            note(
                "range",
                f"the 16-bit image uses {100 * (high - low) / 65535:.0f} % of its range (values {low} to {high}) and is "
                "nearly of one shade in 8 bits. Publish mono8, or scale the values to 0..65535, on the camera's side",
            )
    return cv2.convertScaleAbs(values, alpha=1 / 257)  # exact: k / 257 is never half-way between two integers


def _note_ids(values: np.ndarray, note: Note) -> None:
    """Note a grey image whose values are those of class ids: topics of labels have the types of images.

    A black image may be from a covered lens.
    """
    if note is not quiet and 0 < (high := int(values.max())) < IDS_BELOW:
        note(
            "ids",
            f"the grey image has only values up to {high} of 255, like an image of class ids. If it is one, choose the "
            "topic of the camera's images",
        )


def _encoding(name: str, note: Note) -> str:
    """Return the encoding that a name stands for."""
    known = name.strip().lower()
    if known in MEANT:
        meant = MEANT[known]
        note(
            "encoding",
            f"the encoding {name!r} does not say which colours it holds: it is taken for {meant}. Set "
            f"encoding='{meant}' (or the true one) where the image is published (cv2_to_imgmsg)",
        )
        return meant
    if known not in ENCODINGS:
        raise ImageError(
            f"unknown encoding {name[:40]!r}; expected {_KNOWN}. Set one of them where the image is published"
        )
    return known


def decode_image(message: Message, note: Note = quiet) -> np.ndarray:
    """Decode a sensor_msgs/Image.

    Bytes after the end of the image are ignored, as in RViz and cv_bridge. A step that drivers leave unset, give in
    pixels or compute from all planes is corrected if the number of bytes allows only one interpretation.

    Args:
        message: Message with the fields height, width, encoding, is_bigendian, step and data.
        note: Called with assumptions and losses.

    Returns:
        (H, W, 3) uint8 RGB; 16-bit values are divided by 257.

    Raises:
        ImageError: For an unknown encoding, an empty or too large image, a step or data that is too small.
    """
    encoding = _encoding(message.encoding, note)
    height, width = checked_size(message)
    if encoding in PLAIN:
        channels, bits, code = PLAIN[encoding]
        pixels = pixels_of(message, height, width, channels, f"u{bits // 8}")
        if bits == 16:
            pixels = _to_8_bits(pixels, note)
        elif channels == 1:
            _note_ids(pixels, note)
        return pixels if code is None else cv2.cvtColor(pixels, code)
    if encoding in _BAYER:
        bits, _ = _BAYER[encoding]
        return _demosaic(pixels_of(message, height, width, 1, f"u{bits // 8}"), encoding, note)
    if encoding == "nv24":
        return _from_nv24(rows_of(message, width, height * 3), height, width)
    if width % 2 or (encoding in _PLANAR_YUV and height % 2):
        raise ImageError(
            f"the {encoding} image has odd sides; expected even sides, since two pixels share a colour, "
            f"got {width}x{height}"
        )
    if encoding in _PACKED_YUV:
        pairs = np.ascontiguousarray(rows_of(message, width * 2, height)).reshape(height, width, 2)
        return cv2.cvtColor(pairs, _PACKED_YUV[encoding])
    planes = np.ascontiguousarray(rows_of(message, width, height * 3 // 2))
    return cv2.cvtColor(planes, _PLANAR_YUV[encoding])


def _demosaic(mosaic: np.ndarray, encoding: str, note: Note) -> np.ndarray:
    height, width = mosaic.shape
    if height % 2 or width % 2 or min(height, width) < 4:
        raise ImageError(
            f"the Bayer image has wrong sides; expected even sides of at least 4 px, got {width}x{height}"
        )
    rgb = cv2.cvtColor(mosaic, _BAYER[encoding][1])
    return _to_8_bits(rgb, note) if rgb.dtype == np.uint16 else rgb


def _from_nv24(rows: np.ndarray, height: int, width: int) -> np.ndarray:
    """Convert (3 H, W) uint8, luma rows and then rows of interleaved U and V twice as long, to (H, W, 3) uint8 RGB."""
    luma, step = rows[:height], rows.strides[0]
    chroma = np.lib.stride_tricks.as_strided(
        rows[height:], (height, 2 * width), (2 * step, 1), writeable=False
    )
    u, v = cv2.split(np.ascontiguousarray(chroma).reshape(height, width, 2))
    luma = np.ascontiguousarray(luma)
    # As YUYV with each pixel twice: its conversion has the same arithmetic as the other encodings.
    pairs = cv2.merge([luma, u, luma, v]).reshape(height, 2 * width, 2)
    twice = cv2.cvtColor(pairs, cv2.COLOR_YUV2RGB_YUYV)
    return cv2.resize(twice, (width, height), interpolation=cv2.INTER_NEAREST)  # every other pixel


def decode_file(data: np.ndarray, header: Container, fmt: str = "") -> np.ndarray:
    """Decode an image file without applying EXIF rotation.

    Args:
        data: (n,) uint8, the file; bytes after its end are ignored.
        header: Header that `read_container` returned for it.
        fmt: Name of the format in errors.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: If it cannot be decoded, or is truncated.
    """
    return cv2.cvtColor(_decode_file(data, header, COLOR_AS_STORED, fmt), cv2.COLOR_BGR2RGB)


def _decode_file(data: np.ndarray, header: Container, flags: int, fmt: str) -> np.ndarray:
    try:
        image = cv2.imdecode(data[: header.end], flags)
    except cv2.error as err:
        raise ImageError(f"the compressed image cannot be decoded: {err.err}") from err
    if image is None:
        raise ImageError(f"the compressed image ({data.size} bytes, format {fmt[:40]!r}) cannot be decoded")
    if header.kind == "jpeg":
        require_complete(data, header.end, image)
    return image


def decode_compressed(message: Message, note: Note = quiet) -> np.ndarray:
    """Decode a sensor_msgs/CompressedImage (jpeg or png); `decode_any` decodes the `zstd` transport too.

    The size is read from the header of the file first: a small file must not cause a huge allocation. A Bayer mosaic
    (named by `format`) and 16-bit grey values are treated as in raw images.

    Args:
        message: Message with the fields format and data.
        note: Called with assumptions and losses.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: If it is neither jpeg nor png, truncated, too large or damaged.
    """
    data = bytes_of(message.data)
    header = read_container(data, max_pixels=MAX_PIXELS)
    bayer = _BAYER_FORMAT.match(message.format.lower())
    if header.channels == 1 and (bayer or header.depth == 16):
        values = _decode_file(
            data, header, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION, message.format
        )
        if bayer and values.ndim == 2:
            if header.kind == "jpeg":
                note(
                    "mosaic",
                    "a Bayer mosaic that went through jpeg has lost part of its colours. Compress the "
                    "rectified colour image, or the mosaic as png",
                )
            return _demosaic(values, bayer[1], note)
        if values.dtype == np.uint16 and values.ndim == 2:
            return cv2.cvtColor(_to_8_bits(values, note), cv2.COLOR_GRAY2RGB)
    rgb = decode_file(data, header, message.format)
    if header.channels == 1 and header.kind == "png":
        _note_ids(rgb[..., 0], note)
    return rgb


def decode_any(message: Message, note: Note = quiet) -> np.ndarray:
    """Decode an Image or a CompressedImage; see `decode_image` and `decode_compressed`.

    Args:
        message: Image or CompressedImage, also of the `zstd` transport.
        note: Called with kind and text of each remark about the encoding.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: If it cannot be decoded.
    """
    if is_packed(message):
        message = unpack(message)
    return (decode_compressed if hasattr(message, "format") else decode_image)(message, note)


def size_of(message: Message) -> tuple[int, int]:
    """Read the size that an Image or a CompressedImage claims, without decoding it.

    Args:
        message: Image or CompressedImage, also of the `zstd` transport.

    Returns:
        (width, height) px.

    Raises:
        ImageError: If the header of the compressed image is damaged.
    """
    if is_packed(message):
        return size_of_packed(message)
    if hasattr(message, "format"):
        return read_container(bytes_of(message.data), max_pixels=MAX_PIXELS).size
    return int(message.width), int(message.height)


def decode_float(message: Message, channels: int) -> np.ndarray:
    """Decode a 32FC1 or 32FC2 image (depth, flow).

    Args:
        message: A sensor_msgs/Image.
        channels: Expected number of channels.

    Returns:
        (H, W) or (H, W, channels) float32.

    Raises:
        ImageError: For another encoding, a step or data that is too small.
    """
    expected = f"32FC{channels}"
    if message.encoding != expected:
        raise ImageError(f"encoding: wrong; expected {expected}, got {message.encoding[:40]!r}")
    height, width = checked_size(message)
    rows = np.ascontiguousarray(rows_of(message, width * 4 * channels, height))
    values = rows.view(">f4" if message.is_bigendian else "<f4").astype(np.float32, copy=False)
    return values if channels == 1 else values.reshape(height, width, channels)
