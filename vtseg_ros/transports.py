# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Transports of camera images: message types and topic suffixes, as in image_transport and its plugins."""

from __future__ import annotations

from typing import NamedTuple

FOXGLOVE_VIDEO = "foxglove_msgs/msg/CompressedVideo"
FFMPEG_PACKET = "ffmpeg_image_transport_msgs/msg/FFMPEGPacket"
VIDEO_TYPES = (FOXGLOVE_VIDEO, FFMPEG_PACKET)


class Transport(NamedTuple):
    """How a transport publishes images.

    Attributes:
        msgtype: Type of its messages.
        suffix: What it appends to the camera's topic.
    """

    msgtype: str
    suffix: str


TRANSPORTS = {
    "raw": Transport("sensor_msgs/msg/Image", ""),
    "compressed": Transport("sensor_msgs/msg/CompressedImage", "/compressed"),
    "zstd": Transport("sensor_msgs/msg/CompressedImage", "/zstd"),
    "ffmpeg": Transport(FFMPEG_PACKET, "/ffmpeg"),
    "foxglove": Transport(FOXGLOVE_VIDEO, "/foxglove"),
}
"""Transports that can be read, by name."""
BEST_FIRST = ("raw", "zstd", "compressed", "foxglove", "ffmpeg")
"""The same by quality: lossless ones, jpeg or png, and encoded video, whose images depend on each other."""
MSGTYPES = tuple(dict.fromkeys(transport.msgtype for transport in TRANSPORTS.values()))
"""Types of image messages that can be read."""
COMPRESSED_DEPTH = "/compressedDepth"
"""Suffix of the transport of depth images, which are no images of a camera."""
UNREADABLE = (COMPRESSED_DEPTH, "/theora")
"""Suffixes of transports whose images cannot be read."""


def is_video(transport: str) -> bool:
    """Return whether a transport sends encoded video, whose packets depend on each other."""
    return TRANSPORTS[transport].msgtype in VIDEO_TYPES


def transport_of(topic: str) -> str:
    """Return the name of the transport by the suffix of a topic."""
    return next(
        (name for name, (_, suffix) in TRANSPORTS.items() if suffix and topic.endswith(suffix)), "raw"
    )


def base_topic(topic: str) -> str:
    """Return the topic without the suffix of its transport."""
    suffixes = [*(transport.suffix for transport in TRANSPORTS.values()), *UNREADABLE]
    return next((topic.removesuffix(one) for one in suffixes if one and topic.endswith(one)), topic)
