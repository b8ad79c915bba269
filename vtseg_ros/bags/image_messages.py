# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Decode image messages into arrays, in all encodings that drivers publish; invalid messages are refused with a reason.

Messages are read by their fields, so both those of rclpy and those of a bag work.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from vtseg_ros.bags.containers import MAX_PIXELS, Container, read_container
from vtseg_ros.bags.jpeg import require_complete
from vtseg_ros.bags.png import read_png
from vtseg_ros.bags.zstd_transport import is_packed, size_of_packed, unpack
from vtseg_ros.errors import ImageError
from vtseg_ros.label_set import IGNORE

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
    "decode_label",
    "size_of",
]

log = logging.getLogger("vtseg_ros.bags")

Note = Callable[[str, str], None]
"""Called with a kind of note and its text, for an assumption about a message or for lost information."""

COLOR_AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
"""Pixels as the camera stores them, without EXIF rotation: labels and intrinsics refer to them."""

# Channels, bits, and OpenCV's conversion to RGB (None = it is RGB).
_PLAIN = {
    "rgb8": (3, 8, None),
    "bgr8": (3, 8, cv2.COLOR_BGR2RGB),
    "rgba8": (4, 8, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, 8, cv2.COLOR_BGRA2RGB),
    "mono8": (1, 8, cv2.COLOR_GRAY2RGB),
    "mono16": (1, 16, cv2.COLOR_GRAY2RGB),
    "rgb16": (3, 16, None),
    "bgr16": (3, 16, cv2.COLOR_BGR2RGB),
    "rgba16": (4, 16, cv2.COLOR_RGBA2RGB),
    "bgra16": (4, 16, cv2.COLOR_BGRA2RGB),
}
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
# Names of OpenCV types do not contain the colours; these are what cv_bridge and OpenCV programs mean.
_MEANT = {
    "8uc1": "mono8",
    "8uc3": "bgr8",
    "8uc4": "bgra8",
    "16uc1": "mono16",
    "16uc3": "bgr16",
    "16uc4": "bgra16",
}

ENCODINGS = (*_PLAIN, *_BAYER, *_PACKED_YUV, *_PLANAR_YUV, "nv24")
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


def _quiet(kind: str, text: str) -> None:
    """Ignore a note."""


def _bytes(data: Any) -> np.ndarray:
    """Return an (n,) uint8 view of a message's data, without a copy."""
    return data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)


def _rows(message: Message, row_bytes: int, rows: int) -> np.ndarray:
    """Return a (rows, row_bytes) uint8 view of the pixels, without the padding at the end of each row."""
    height, step, data = int(message.height), int(message.step), _bytes(message.data)
    # The last row may end without its padding.
    if step < row_bytes or data.size < step * (rows - 1) + row_bytes:
        step = _meant_step(message, row_bytes, rows, data.size)
    if step < row_bytes:
        raise ImageError(
            f"step is too small for {message.width} px of {message.encoding}; expected at least {row_bytes} bytes, "
            f"got {step}"
        )
    if data.size < step * (rows - 1) + row_bytes:
        expected = f"{step * rows} bytes"
        if data.size >= row_bytes * rows:
            expected += f", or a step of {row_bytes}"
        raise ImageError(
            f"data is too short for {message.width}x{height} {message.encoding} with step {step}; "
            f"expected {expected}, got {data.size} bytes"
        )
    return np.lib.stride_tricks.as_strided(data, (rows, row_bytes), (step, 1), writeable=False)


def _meant_step(message: Message, row_bytes: int, rows: int, size: int) -> int:
    """Correct the step of drivers that leave it unset, give it in pixels, or divide all bytes by the height.

    It is only changed if the data has exactly the number of bytes that the corrected step needs.
    """
    step = int(message.step)
    if rows != message.height and step * message.height == size and size % rows == 0:
        return size // rows  # colour planes of half the height count as rows too
    return row_bytes if step in (0, message.width) and size == row_bytes * rows else step


def _check_size(message: Message) -> tuple[int, int]:
    height, width = int(message.height), int(message.width)
    if height == 0 or width == 0:
        raise ImageError(f"the image is empty: {width}x{height} px")
    if height * width > MAX_PIXELS:
        raise ImageError(f"the image claims {width}x{height} px; expected at most {MAX_PIXELS} px")
    return height, width


def _pixels(message: Message, height: int, width: int, channels: int, kind: str) -> np.ndarray:
    """Return (H, W) or (H, W, channels) of a NumPy type such as `u2`, in the machine's byte order."""
    size = np.dtype(kind).itemsize
    rows = np.ascontiguousarray(_rows(message, width * channels * size, height))
    values = rows.view(np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<"))
    native: np.ndarray = values.astype(kind, copy=False)
    return native if channels == 1 else native.reshape(height, width, channels)


def _to_8_bits(values: np.ndarray, note: Note) -> np.ndarray:
    """Return uint16 values as uint8, divided by 257 and rounded; note a range that is hardly used."""
    if note is not _quiet:
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
    if note is not _quiet and 0 < (high := int(values.max())) < IDS_BELOW:
        note(
            "ids",
            f"the grey image has only values up to {high} of 255, like an image of class ids. If it is one, choose the "
            "topic of the camera's images",
        )


def _encoding(name: str, note: Note) -> str:
    """Return the encoding that a name stands for."""
    known = name.strip().lower()
    if known in _MEANT:
        meant = _MEANT[known]
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


def decode_image(message: Message, note: Note = _quiet) -> np.ndarray:
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
    height, width = _check_size(message)
    if encoding in _PLAIN:
        channels, bits, code = _PLAIN[encoding]
        pixels = _pixels(message, height, width, channels, f"u{bits // 8}")
        if bits == 16:
            pixels = _to_8_bits(pixels, note)
        elif channels == 1:
            _note_ids(pixels, note)
        return pixels if code is None else cv2.cvtColor(pixels, code)
    if encoding in _BAYER:
        bits, _ = _BAYER[encoding]
        return _demosaic(_pixels(message, height, width, 1, f"u{bits // 8}"), encoding, note)
    if encoding == "nv24":
        return _from_nv24(_rows(message, width, height * 3), height, width)
    if width % 2 or (encoding in _PLANAR_YUV and height % 2):
        raise ImageError(
            f"the {encoding} image has odd sides; expected even sides, since two pixels share a colour, "
            f"got {width}x{height}"
        )
    if encoding in _PACKED_YUV:
        pairs = np.ascontiguousarray(_rows(message, width * 2, height)).reshape(height, width, 2)
        return cv2.cvtColor(pairs, _PACKED_YUV[encoding])
    planes = np.ascontiguousarray(_rows(message, width, height * 3 // 2))
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


def decode_compressed(message: Message, note: Note = _quiet) -> np.ndarray:
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
    data = _bytes(message.data)
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


def decode_any(message: Message, note: Note = _quiet) -> np.ndarray:
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
        return read_container(_bytes(message.data), max_pixels=MAX_PIXELS).size
    return int(message.width), int(message.height)


# Encodings of one channel that hold class ids, and NumPy's types of them.
_ID_KINDS = {"mono8": "u1", "8uc1": "u1", "mono16": "u2", "16uc1": "u2", "16sc1": "i2", "32sc1": "i4"}


def decode_label(message: Message, note: Note = _quiet) -> np.ndarray:
    """Decode a label or mask message.

    Class ids are the values of a grey image or png, the indices of an indexed png, or one channel of a colour image in
    which all other channels are zero or equal to it, as simulators publish them.

    Args:
        message: A sensor_msgs/Image, or a CompressedImage that contains a png or comes by the `zstd` transport.
        note: Called with assumptions.

    Returns:
        (H, W) uint8 class ids.

    Raises:
        ImageError: If it is of another kind, or an id is outside 0..255.
    """
    if is_packed(message):
        message = unpack(message)
    if hasattr(message, "format"):
        png = read_png(_label_file(message))
        if png.palette is not None:
            note("label", "the indices of indexed png files are taken as class ids")
        if png.has_colors:
            return _ids_of_one_channel(png.values, png.alpha, note, "png")
        return without_clear_pixels(as_ids(png.values), png.alpha)
    encoding = message.encoding.strip().lower()
    height, width = _check_size(message)
    if encoding in _ID_KINDS:
        return as_ids(_pixels(message, height, width, 1, _ID_KINDS[encoding]))
    encoding = _MEANT.get(encoding, encoding)
    channels, bits, _ = _PLAIN.get(encoding, (0, 0, None))
    if channels < 3 or bits != 8:
        raise ImageError(
            f"encoding: not one of a label image; expected mono8 or mono16, got {message.encoding[:40]!r}. Publish the "
            "class ids in one channel"
        )
    pixels = _pixels(message, height, width, channels, "u1")
    rgb = pixels[..., :3] if encoding.startswith("rgb") else pixels[..., 2::-1]
    alpha = pixels[..., 3] if channels == 4 else None
    if alpha is not None and (alpha == alpha[0, 0]).all():
        alpha = None  # set, or left at zero, for the whole image
    return _ids_of_one_channel(rgb, alpha, note, encoding)


def _label_file(message: Message) -> np.ndarray:
    data = _bytes(message.data)
    if data[:2].tobytes() == b"\xff\xd8":
        raise ImageError(
            "the label is a jpeg, which changes class ids; expected png, got jpeg. Publish it as png"
        )
    return data


def as_ids(values: np.ndarray) -> np.ndarray:
    """Convert the values of one channel to class ids.

    Args:
        values: Array of an integer type, of any shape.

    Returns:
        uint8 of the same shape.

    Raises:
        ImageError: If a value is outside 0..255.
    """
    if values.dtype == np.uint8:
        return values
    if values.size and (int(values.max()) > 255 or int(values.min()) < 0):
        wrong = int(values.max()) if values.max() > 255 else int(values.min())
        raise ImageError(f"class id out of range; expected 0..255, got {wrong}")
    return values.astype(np.uint8)


def without_clear_pixels(ids: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """Return class ids with 255 (unlabelled) where the image is transparent.

    Args:
        ids: (H, W) uint8 class ids.
        alpha: (H, W) uint8, 0 = transparent, 255 = opaque; None = all opaque.

    Raises:
        ImageError: If a pixel is partly transparent; names it.
    """
    if alpha is None or alpha.min() == 255:
        return ids
    partly = (alpha > 0) & (alpha < 255)
    if partly.any():
        row, column = np.argwhere(partly)[0]
        raise ImageError(
            f"a pixel is transparent in part (row {row}, column {column}); expected opaque or transparent pixels"
        )
    return np.where(alpha == 0, IGNORE, ids).astype(np.uint8)


def _ids_of_one_channel(rgb: np.ndarray, alpha: np.ndarray | None, note: Note, what: str) -> np.ndarray:
    """Return the class ids, (H, W) uint8, of (H, W, 3) in which one channel contains them, or all are equal."""
    planes = [np.ascontiguousarray(rgb[..., number]) for number in range(3)]
    if not all(np.array_equal(planes[0], plane) for plane in planes[1:]):
        used = [number for number, plane in enumerate(planes) if plane.any()]
        if len(used) != 1:
            raise ImageError(
                f"the channels of the label differ; expected one channel of class ids, got 3 channels of {what}. Publish "
                "the class ids as mono8"
            )
        name = ("red", "green", "blue")[used[0]]
        note("label", f"the class ids of the {what} labels are taken from the {name} channel")
        planes = [planes[used[0]]]
    return without_clear_pixels(as_ids(planes[0]), alpha)


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
    height, width = _check_size(message)
    rows = np.ascontiguousarray(_rows(message, width * 4 * channels, height))
    values = rows.view(">f4" if message.is_bigendian else "<f4").astype(np.float32, copy=False)
    return values if channels == 1 else values.reshape(height, width, channels)
