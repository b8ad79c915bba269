# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the segmenter subscribes to, and why nothing may arrive."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

IMAGE_TYPES = {
    "raw": ("sensor_msgs/msg/Image", Image),
    "compressed": ("sensor_msgs/msg/CompressedImage", CompressedImage),
}
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
    return f"{base}/compressed" if transport == "compressed" else base


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
    return [
        node.create_subscription(
            IMAGE_TYPES[transport][1], image_topic(camera, transport), on_image, INPUT_QOS[qos]
        ),
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
        sibling = topic.removesuffix("/compressed") if transport == "compressed" else f"{topic}/compressed"
        if sibling in found:
            other = "raw" if transport == "compressed" else "compressed"
            why += f". {sibling} is read with image_transport {other}"
    return f"no image on {topic} yet: {why}"
