# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the segmenter subscribes to, and why nothing may arrive."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo

from vtseg_ros.bags.video_messages import FFMPEG_PACKET, FOXGLOVE_VIDEO, VIDEO_TYPES
from vtseg_ros.errors import ConfigError

IMAGE_TYPES = {
    "raw": ("sensor_msgs/msg/Image", ""),
    "compressed": ("sensor_msgs/msg/CompressedImage", "/compressed"),
    "zstd": ("sensor_msgs/msg/CompressedImage", "/zstd"),
    "ffmpeg": (FFMPEG_PACKET, "/ffmpeg"),
    "foxglove": (FOXGLOVE_VIDEO, "/foxglove"),
}
"""Message type and suffix of the topic by transport, as in image_transport and its plugins."""
# Nothing can be left out of encoded video: a burst of packets must fit.
VIDEO_DEPTH = 100
INPUT_QOS = {
    # Callbacks only store the newest image, so that nothing gets stale in a queue. Not depth 1: when two publishers share
    # the topic (a driver that was restarted, a bag beside a camera), Fast DDS 2.14 loses an image's memory now and then as
    # a history of one overflows, for good.
    "sensor_data": QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT),
    "reliable": QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE),
}


def image_topic(camera: str, transport: str) -> str:
    """Return the relative name of a camera's image topic."""
    base = f"{camera}/image" if camera else "image"
    return base + IMAGE_TYPES[transport][1]


def is_video(transport: str) -> bool:
    """Whether a transport sends encoded video, whose packets depend on each other."""
    return IMAGE_TYPES[transport][0] in VIDEO_TYPES


def image_class(transport: str) -> type:
    """Return the message class of a transport.

    Raises:
        ConfigError: If its package is not installed.
    """
    package, _, name = IMAGE_TYPES[transport][0].partition("/msg/")
    try:
        found: type = getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as err:
        raise ConfigError(
            f"image_transport: {transport} needs the message {package}/{name}; expected the package to be installed. "
            f"Run: sudo apt install ros-$ROS_DISTRO-{package.replace('_', '-')}"
        ) from err
    return found


def subscribe(
    node: Node,
    camera: str,
    *,
    transport: str,
    qos: str,
    on_image: Callable[[object], None],
    on_info: Callable[[CameraInfo], None],
) -> list:
    """Subscribe to the images and the camera_info of a camera."""
    info = f"{camera}/camera_info" if camera else "camera_info"
    profile = INPUT_QOS[qos]
    if is_video(transport):
        profile = QoSProfile(depth=VIDEO_DEPTH, reliability=profile.reliability)
    return [
        node.create_subscription(image_class(transport), image_topic(camera, transport), on_image, profile),
        node.create_subscription(CameraInfo, info, on_info, qos_profile_sensor_data),
    ]


def explain_silence(node: Node, camera: str, transport: str, qos: str) -> str:
    """Explain why no image arrives: who publishes the topic and how, and which image topics there are."""
    topic = node.resolve_topic_name(image_topic(camera, transport))
    wanted = IMAGE_TYPES[transport][0]
    publishers = node.get_publishers_info_by_topic(topic)
    reliable = INPUT_QOS[qos].reliability == ReliabilityPolicy.RELIABLE
    refused = [
        p for p in publishers if reliable and p.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
    ]
    others = [p.topic_type for p in publishers if p.topic_type != wanted]
    if refused and len(refused) == len(publishers):
        why = f"{refused[0].node_name} publishes it best effort, which input_qos reliable refuses: use sensor_data"
    elif others and len(others) == len(publishers):
        why = f"it is published as {others[0]}, not {wanted}: change image_transport"
    elif publishers:
        why = f"{publishers[0].node_name} publishes it, but sends nothing (or its start is delayed)"
    else:
        kinds = {name for name, _ in IMAGE_TYPES.values()}
        found = sorted(name for name, types in node.get_topic_names_and_types() if kinds & set(types))
        found = [name for name in found if "/segmentation/" not in name and node.count_publishers(name)]
        why = f"nobody publishes it. Image topics that exist: {', '.join(found) or 'none'}"
        base = topic.removesuffix(IMAGE_TYPES[transport][1])
        for other, (_, suffix) in IMAGE_TYPES.items():
            if other != transport and base + suffix in found:
                why += f". {base + suffix} is read with image_transport {other}"
                break
    return f"no image on {topic} yet: {why}"
