"""Image messages to arrays: every encoding of the ROS interface, each refused with a reason when it lies.

Messages are taken by their fields, so that rclpy's and a bag's both do.
"""

from __future__ import annotations

import cv2
import numpy as np

from vtseg_ros.data.containers import check_container
from vtseg_ros.errors import ImageError

MAX_PIXELS = 64 * 1024 * 1024
"""Images of more pixels are refused before anything is allocated for them."""

COLOR_AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
"""A camera's pixels like its raw images: labels and intrinsics know nothing of EXIF."""

_CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
# ROS names the pattern of the first two pixels of the first two rows; OpenCV that of the second row and column on.
_BAYER = {
    "bayer_rggb8": cv2.COLOR_BayerRGGB2RGB,
    "bayer_bggr8": cv2.COLOR_BayerBGGR2RGB,
    "bayer_gbrg8": cv2.COLOR_BayerGBRG2RGB,
    "bayer_grbg8": cv2.COLOR_BayerGRBG2RGB,
}
_PACKED_YUV = {
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUYV,
    "yuyv": cv2.COLOR_YUV2RGB_YUYV,
}
_PLANAR_YUV = {"nv21": cv2.COLOR_YUV2RGB_NV21, "nv12": cv2.COLOR_YUV2RGB_NV12}

ENCODINGS = (*_CHANNELS, "mono16", *_BAYER, *_PACKED_YUV, *_PLANAR_YUV)
"""Encodings of sensor_msgs/Image that are understood."""


def _bytes(data) -> np.ndarray:
    """(n,) uint8 view of a message's data, without a copy."""
    return data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)


def _rows(message, row_bytes: int, rows: int) -> np.ndarray:
    """(rows, row_bytes) uint8 view of the pixels; padding at the end of each row is left out."""
    height, step, data = int(message.height), int(message.step), _bytes(message.data)
    if step < row_bytes:
        raise ImageError(
            f"step is too small for {message.width} px of {message.encoding}. Expected: at least {row_bytes} bytes. "
            f"Got: {step}"
        )
    # The last row may end without its padding.
    needed = step * (rows - 1) + row_bytes
    if data.size < needed:
        raise ImageError(
            f"data is too short for {message.width}x{height} {message.encoding} with step {step}. "
            f"Expected: {step * rows} bytes. Got: {data.size}"
        )
    return np.lib.stride_tricks.as_strided(data, (rows, row_bytes), (step, 1), writeable=False)


def _check_size(message) -> tuple[int, int]:
    height, width = int(message.height), int(message.width)
    if height == 0 or width == 0:
        raise ImageError(f"the image is empty: {width}x{height} px")
    if height * width > MAX_PIXELS:
        raise ImageError(f"the image claims {width}x{height} px. Expected: at most {MAX_PIXELS} px")
    return height, width


def _mono16(message, height: int, width: int) -> np.ndarray:
    order = ">u2" if message.is_bigendian else "<u2"
    return np.ascontiguousarray(_rows(message, width * 2, height)).view(order)  # (H, W)


def decode_image(message) -> np.ndarray:
    """A sensor_msgs/Image as RGB.

    Bytes after the image's end are ignored, as RViz and cv_bridge do.

    Args:
        message: fields height, width, encoding, is_bigendian, step, data.

    Returns:
        (H, W, 3) uint8 RGB; mono16 is divided by 257.

    Raises:
        ImageError: for an unknown encoding, an empty or too large image, a step or data too small.
    """
    encoding = message.encoding
    if encoding not in ENCODINGS:
        raise ImageError(f"unknown encoding {encoding[:40]!r}. Known: {', '.join(ENCODINGS)}")
    height, width = _check_size(message)
    if encoding in _CHANNELS:
        channels = _CHANNELS[encoding]
        pixels = np.ascontiguousarray(_rows(message, width * channels, height)).reshape(
            height, width, channels
        )
        if encoding == "mono8":
            return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
        if encoding == "bgr8":
            return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        return np.ascontiguousarray(pixels[..., (2, 1, 0)] if encoding == "bgra8" else pixels[..., :3])
    if encoding == "mono16":
        gray = np.round(_mono16(message, height, width) / 257.0).astype(np.uint8)
        return cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB)
    if encoding in _BAYER:
        if height % 2 or width % 2 or min(height, width) < 4:
            raise ImageError(f"a Bayer image has even sides of at least 4 px. Got: {width}x{height}")
        return cv2.cvtColor(np.ascontiguousarray(_rows(message, width, height)), _BAYER[encoding])
    if width % 2 or (encoding in _PLANAR_YUV and height % 2):
        raise ImageError(
            f"{encoding} shares its colours between neighbours: sides must be even. Got: {width}x{height}"
        )
    if encoding in _PACKED_YUV:
        pairs = np.ascontiguousarray(_rows(message, width * 2, height)).reshape(height, width, 2)
        return cv2.cvtColor(pairs, _PACKED_YUV[encoding])
    planes = np.ascontiguousarray(_rows(message, width, height * 3 // 2))
    return cv2.cvtColor(planes, _PLANAR_YUV[encoding])


def _decode_file(message, flags: int) -> np.ndarray:
    data = _bytes(message.data)
    check_container(data, max_pixels=MAX_PIXELS)
    try:
        image = cv2.imdecode(data, flags)
    except cv2.error as err:
        raise ImageError(f"the compressed image cannot be decoded: {err.err}") from err
    if image is None:
        raise ImageError(
            f"the compressed image ({data.size} bytes, format {message.format[:40]!r}) cannot be decoded"
        )
    return image


def decode_compressed(message) -> np.ndarray:
    """A sensor_msgs/CompressedImage (jpeg or png) as RGB.

    The size is read from the file's header first, so that a small file cannot claim a giant picture.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: if it is neither jpeg nor png, truncated, too large or undecodable.
    """
    return cv2.cvtColor(_decode_file(message, COLOR_AS_STORED), cv2.COLOR_BGR2RGB)


def decode_any(message) -> np.ndarray:
    """`decode_image` or `decode_compressed`, by the message's fields."""
    return decode_compressed(message) if hasattr(message, "format") else decode_image(message)


def decode_label(message) -> np.ndarray:
    """A label or mask message (Image mono8/mono16 or CompressedImage png) as class ids.

    Returns:
        (H, W) uint8 class ids.

    Raises:
        ImageError: if it is of another kind, or an id is above 255.
    """
    if hasattr(message, "format"):
        ids = _decode_file(message, cv2.IMREAD_UNCHANGED)
        if ids.ndim != 2:
            raise ImageError(f"a label image has one channel of class ids. Got: {ids.shape[2]} channels")
    else:
        height, width = _check_size(message)
        if message.encoding in ("mono8", "8UC1"):
            return np.ascontiguousarray(_rows(message, width, height))
        if message.encoding not in ("mono16", "16UC1"):
            raise ImageError(f"a label image is mono8 or mono16. Got: {message.encoding[:40]!r}")
        ids = _mono16(message, height, width)
    if ids.dtype != np.uint8:
        if ids.max() > 255:
            raise ImageError(f"class ids are 0..255. Got: {int(ids.max())}")
        ids = ids.astype(np.uint8)
    return ids


def decode_float(message, channels: int) -> np.ndarray:
    """A 32FC1 or 32FC2 image (depth, flow): (H, W) or (H, W, channels) float32.

    Raises:
        ImageError: for another encoding, a step or data too small.
    """
    expected = f"32FC{channels}"
    if message.encoding != expected:
        raise ImageError(f"we expect encoding {expected}. Got: {message.encoding[:40]!r}")
    height, width = _check_size(message)
    rows = np.ascontiguousarray(_rows(message, width * 4 * channels, height))
    values = rows.view(">f4" if message.is_bigendian else "<f4").astype(np.float32, copy=False)
    return values if channels == 1 else values.reshape(height, width, channels)
