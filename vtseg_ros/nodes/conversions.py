# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Arrays to ROS messages; `bags.image_messages` and `bags.label_messages` have the other direction, which needs no ROS."""

from __future__ import annotations

import array

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from vtseg_ros.label_set import LabelSet
from vtseg_ros.msg import LabelEntry, LabelMap

NS = 1_000_000_000


def stamp_ns(header: Header) -> int:
    """Return a header's stamp, ns."""
    return header.stamp.sec * NS + header.stamp.nanosec


def to_image(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """Convert (H, W) or (H, W, C) uint8 to an Image without row padding."""
    message = Image(
        header=header, height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, is_bigendian=0
    )
    message.step = pixels.shape[1] * (pixels.shape[2] if pixels.ndim == 3 else 1)
    message.data = _octets(pixels)
    return message


def _octets(pixels: np.ndarray) -> array.array:
    """uint8 values as the one sequence that rclpy takes without looking at each element."""
    octets = array.array("B")
    octets.frombytes(np.ascontiguousarray(pixels).data.cast("B"))
    return octets


def to_png(pixels: np.ndarray, header: Header) -> CompressedImage:
    """Encode (H, W) uint8 class ids as a png."""
    payload = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
    message = CompressedImage(header=header, format="mono8; png compressed")
    message.data = _octets(payload)
    return message


def to_jpeg(rgb: np.ndarray, quality: int, header: Header) -> CompressedImage:
    """Encode (H, W, 3) uint8 RGB as a jpeg, in the form that image_transport's compressed publisher gives it.

    Args:
        rgb: the image.
        quality: 1 (smallest) to 100.
        header: of the message.
    """
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    payload = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    message = CompressedImage(header=header, format="rgb8; jpeg compressed bgr8")
    message.data = _octets(payload)
    return message


def to_label_map(labels: LabelSet, header: Header) -> LabelMap:
    """Convert a class list to a message."""
    entries = [
        LabelEntry(id=index, name=name, r=color[0], g=color[1], b=color[2])
        for index, (name, color) in enumerate(zip(labels.names, labels.colors))
    ]
    return LabelMap(header=header, labels=entries)


def scale_camera_info(info: CameraInfo, size: tuple[int, int], header: Header) -> CameraInfo:
    """Return a camera's calibration for its image stretched to `size` (width, height).

    Pixel centres lie at whole coordinates, so that the principal point moves by half a pixel too. Binning and the
    region of interest, which the camera's message leaves to be applied, are applied in the result.
    """
    scaled = CameraInfo(
        header=header,
        width=size[0],
        height=size[1],
        distortion_model=info.distortion_model,
        d=info.d,
        r=info.r,
    )
    # What the image shows of the full resolution, in its pixels; an uncalibrated camera may say nothing.
    roi = info.roi
    width, height = roi.width or info.width or size[0], roi.height or info.height or size[1]
    sx, sy = size[0] / width, size[1] / height
    k, p = np.array(info.k, np.float64).reshape(3, 3), np.array(info.p, np.float64).reshape(3, 4)
    for matrix in (k, p):
        matrix[0, 0] *= sx
        matrix[0, 1] *= sx
        matrix[1, 1] *= sy
        matrix[0, 2] = (matrix[0, 2] - roi.x_offset + 0.5) * sx - 0.5
        matrix[1, 2] = (matrix[1, 2] - roi.y_offset + 0.5) * sy - 0.5
    p[0, 3] *= sx
    p[1, 3] *= sy
    scaled.k, scaled.p = k.ravel(), p.ravel()
    return scaled
