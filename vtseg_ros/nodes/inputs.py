# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Subscriptions to images in any transport, and why nothing may arrive."""

from __future__ import annotations

import importlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from vtseg_ros.bags.video_decoder import require_av
from vtseg_ros.errors import ConfigError
from vtseg_ros.nodes.video_input import VideoInput
from vtseg_ros.transports import MSGTYPES, TRANSPORTS, is_video

# Nothing can be left out of encoded video: a burst of packets must fit.
VIDEO_DEPTH = 100
MAX_READY = 8
"""Decoded video images that may wait for a node; its packets wait meanwhile."""
POLL_S = 0.1
"""How often a waiting decoder looks whether its input was closed."""
INPUT_QOS = {
    # Callbacks only store the newest image, so that nothing gets stale in a queue. Not depth 1: when two publishers share
    # the topic (a driver that was restarted, a bag next to a camera), Fast DDS 2.14 loses an image's memory now and then as
    # a history of one overflows, for good.
    "sensor_data": QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT),
    "reliable": QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE),
}


def transport_topic(node: Node, base: str, transport: str) -> str:
    """Return the topic of a transport, for which a remapping of the base name counts too, as in image_transport.

    Args:
        node: Node with the remappings.
        base: Relative name of the topic without the suffix of the transport.
        transport: Name of the transport.
    """
    suffix = TRANSPORTS[transport].suffix
    name = base + suffix
    if not suffix or node.resolve_topic_name(name) != node.resolve_topic_name(name, only_expand=True):
        return name  # a remapping of the whole name has priority
    return str(node.resolve_topic_name(base)) + suffix


def image_topic(node: Node, camera: str, transport: str) -> str:
    """Return the name of a camera's image topic."""
    return transport_topic(node, f"{camera}/image" if camera else "image", transport)


def image_class(transport: str) -> type:
    """Return the message class of a transport.

    Raises:
        ConfigError: If its package, or the decoder of encoded video, is not installed.
    """
    package, _, name = TRANSPORTS[transport].msgtype.partition("/msg/")
    try:
        found: type = getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as err:
        raise ConfigError(
            f"image_transport: {transport} needs the message {package}/{name}; expected the package to be installed. "
            f"Run: sudo apt install ros-$ROS_DISTRO-{package.replace('_', '-')}"
        ) from err
    if is_video(transport):
        require_av("image_transport")
    return found


class ImageInput:
    """Subscribe to the images of one topic, in any transport, for a node that works in its callbacks.

    Encoded video is decoded in a thread of its own; its images are handed to the node's executor, so that all callbacks
    run there.

    Args:
        node: Node that subscribes.
        topic: Name of the topic, with the suffix of the transport.
        transport: Name of the transport.
        qos: Of the subscription; encoded video has a depth of at least `VIDEO_DEPTH`.
        on_image: Called with each sensor_msgs/Image or CompressedImage.
        on_lost: Called with the header of each video packet that gives no image, and the reason; None = not called.

    Raises:
        ConfigError: If the package of the messages, or the decoder of encoded video, is not installed.
    """

    def __init__(
        self,
        node: Node,
        topic: str,
        transport: str,
        qos: QoSProfile,
        on_image: Callable[[Any], None],
        on_lost: Callable[[Header, str], None] | None = None,
    ) -> None:
        self._node, self._on_image, self._on_lost = node, on_image, on_lost
        self._video: VideoInput | None = None
        kind, receive = image_class(transport), on_image
        if is_video(transport):
            self._ready: deque[tuple[Any, ...]] = deque()
            self._room = threading.Semaphore(MAX_READY)
            self._closed = threading.Event()
            self._guard = node.create_guard_condition(self._deliver)
            self._video = VideoInput(
                self._hand_over,
                self._hand_over_loss,
                lambda text: node.get_logger().warning(f"video on {topic}: {text}"),
            )
            receive = self._video.put
            qos = QoSProfile(depth=max(VIDEO_DEPTH, qos.depth), reliability=qos.reliability)
        self._subscription = node.create_subscription(kind, topic, receive, qos)

    def close(self) -> None:
        """Unsubscribe and end the decoder; images that wait are not delivered."""
        self._node.destroy_subscription(self._subscription)
        if self._video is not None:
            self._closed.set()
            self._video.stop()
            self._node.destroy_guard_condition(self._guard)

    def _hand_over(self, image: Any) -> None:
        """Hand an image to the executor; wait while too many wait there."""
        while not self._room.acquire(timeout=POLL_S):
            if self._closed.is_set():
                return
        self._ready.append((image,))
        self._guard.trigger()

    def _hand_over_loss(self, header: Header, reason: str) -> None:
        self._ready.append((header, reason))
        self._guard.trigger()

    def _deliver(self) -> None:
        while self._ready and not self._closed.is_set():
            result = self._ready.popleft()
            if len(result) == 1:
                self._room.release()
                self._on_image(*result)
            elif self._on_lost is not None:
                self._on_lost(*result)


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
        node.create_subscription(
            image_class(transport), image_topic(node, camera, transport), on_image, profile
        ),
        node.create_subscription(CameraInfo, info, on_info, qos_profile_sensor_data),
    ]


def explain_silence(node: Node, camera: str, transport: str, qos: str) -> str:
    """Explain why no image arrives: who publishes the topic and how, and which image topics there are."""
    topic = node.resolve_topic_name(image_topic(node, camera, transport))
    wanted = TRANSPORTS[transport].msgtype
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
        found = sorted(
            name for name, types in node.get_topic_names_and_types() if not set(types).isdisjoint(MSGTYPES)
        )
        found = [name for name in found if "/segmentation/" not in name and node.count_publishers(name)]
        why = f"nobody publishes it. Image topics that exist: {', '.join(found) or 'none'}"
        base = topic.removesuffix(TRANSPORTS[transport].suffix)
        for other, (_, suffix) in TRANSPORTS.items():
            if other != transport and base + suffix in found:
                why += f". {base + suffix} is read with image_transport {other}"
                break
    return f"no image on {topic} yet: {why}"
