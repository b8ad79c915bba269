# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Messages without ROS: the Jazzy types of rosbags, and the messages of this package."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.label_set import LabelSet

NS = 1_000_000_000
Message: TypeAlias = Any
"""A ROS message, of rosbags or of rclpy: both have the same fields."""
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
LABEL_MAP = "vtseg_ros/msg/LabelMap"
PNG_LABEL = "mono8; png compressed"
"""`format` of a CompressedImage of class ids."""
NO_HASH = "RIHS01_" + 64 * "0"
"""Type hash of a message type whose hash is not known."""


def to_ns(seconds: float) -> int:
    """Return a duration in ns; at most that which a stamp can have, also for infinity."""
    return round(min(seconds, 2**32) * NS)


def definitions_dir() -> Path:
    """Return the folder of the .msg files: in the installed package, or at the top of the source tree."""
    packaged = Path(__file__).resolve().parent / "msg"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "msg"


@lru_cache(maxsize=1)
def typestore() -> Typestore:
    """Return the message types that bags are read and written with."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for path in sorted(definitions_dir().glob("*.msg")):
        store.register(get_types_from_msg(path.read_text(), f"vtseg_ros/msg/{path.stem}"))
    return store


def make(msgtype: str, **fields: Any) -> Message:
    """Build a message of a type from its fields.

    Args:
        msgtype: Type, such as `std_msgs/msg/Header`.
        fields: All fields of the message.

    Returns:
        The message.
    """
    return typestore().types[msgtype](**fields)


def header(stamp_ns: int, frame_id: str) -> Message:
    """Build a std_msgs/Header.

    Args:
        stamp_ns: Header stamp, ns.
        frame_id: Frame of the camera.

    Returns:
        The header.
    """
    stamp = make("builtin_interfaces/msg/Time", sec=int(stamp_ns // NS), nanosec=int(stamp_ns % NS))
    return make("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)


def stamp_of(message: Message) -> int:
    """Return the header stamp of a message.

    Args:
        message: A message with a std_msgs/Header.

    Returns:
        Stamp, ns.
    """
    return int(message.header.stamp.sec * NS + message.header.stamp.nanosec)


def header_stamp(data: bytes) -> int:
    """Return the header stamp of a serialized message, ns.

    Args:
        data: CDR bytes of a message whose first field is a std_msgs/Header.

    Raises:
        BagError: If the message is too short.
    """
    if len(data) < 12:
        raise BagError(f"a message of {len(data)} bytes has no header")
    order: Literal["little", "big"] = "little" if data[1] & 1 else "big"
    sec = int.from_bytes(data[4:8], order, signed=True)
    return sec * NS + int.from_bytes(data[8:12], order)


def image_message(array: np.ndarray, encoding: str, stamp_ns: int, frame_id: str) -> Message:
    """Build a sensor_msgs/Image, little-endian, rows without padding.

    Args:
        array: (H, W) or (H, W, C), of the type that the encoding names.
        encoding: Encoding, such as `rgb8`.
        stamp_ns: Header stamp, ns.
        frame_id: Frame of the camera.

    Returns:
        The message.
    """
    array = np.ascontiguousarray(array)
    data = array.view(np.uint8).reshape(-1)
    return make(
        IMAGE,
        header=header(stamp_ns, frame_id),
        height=array.shape[0],
        width=array.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=data.size // array.shape[0],
        data=data,
    )


def compressed_message(payload: np.ndarray, fmt: str, stamp_ns: int, frame_id: str) -> Message:
    """Build a sensor_msgs/CompressedImage.

    Args:
        payload: (n,) uint8, the bytes of an image file.
        fmt: `format` of the message.
        stamp_ns: Header stamp, ns.
        frame_id: Frame of the camera.

    Returns:
        The message.
    """
    return make(COMPRESSED_IMAGE, header=header(stamp_ns, frame_id), format=fmt, data=payload.reshape(-1))


def camera_info_message(size: tuple[int, int], focal: float, stamp_ns: int, frame_id: str) -> Message:
    """Build the sensor_msgs/CameraInfo of a pinhole camera without distortion.

    Args:
        size: (width, height) px; the principal point is the centre.
        focal: Focal length, px.
        stamp_ns: Header stamp, ns.
        frame_id: Frame of the camera.

    Returns:
        The message.
    """
    width, height = size
    cx, cy = (width - 1) / 2, (height - 1) / 2
    return make(
        CAMERA_INFO,
        header=header(stamp_ns, frame_id),
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=np.array([focal, 0, cx, 0, focal, cy, 0, 0, 1.0]),
        r=np.eye(3).ravel(),
        p=np.array([focal, 0, cx, 0, 0, focal, cy, 0, 0, 0, 1.0, 0]),
        binning_x=0,
        binning_y=0,
        roi=make(
            "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        ),
    )


def label_map_message(labels: LabelSet, stamp_ns: int) -> Message:
    """Build a vtseg_ros/LabelMap.

    Args:
        labels: Class list.
        stamp_ns: Header stamp, ns.

    Returns:
        The message.
    """
    entries = [
        make("vtseg_ros/msg/LabelEntry", id=index, name=name, r=color[0], g=color[1], b=color[2])
        for index, (name, color) in enumerate(zip(labels.names, labels.colors))
    ]
    return make(LABEL_MAP, header=header(stamp_ns, ""), labels=entries)


def label_set_of(message: Message) -> LabelSet:
    """Return the class list of a LabelMap message.

    Args:
        message: A vtseg_ros/LabelMap.

    Returns:
        The class list, in the order of the ids.

    Raises:
        ConfigError: If the ids are not 0, 1, 2 ..., or names or colours are not allowed in a class list.
    """
    entries = sorted(message.labels, key=lambda entry: entry.id)
    ids = [int(entry.id) for entry in entries]
    if ids != list(range(len(ids))):
        raise ConfigError(f"label map: wrong ids; expected 0 to {max(len(ids) - 1, 0)}, each once, got {ids}")
    return LabelSet(
        tuple(entry.name for entry in entries), tuple((int(e.r), int(e.g), int(e.b)) for e in entries)
    )
