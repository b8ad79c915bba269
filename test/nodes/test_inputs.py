# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Why no image arrives: by real publishers on the same domain."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy")

from conftest import wait_until
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from vtseg_ros.nodes.inputs import explain_silence, image_topic

BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)


@pytest.mark.parametrize(
    ("camera", "transport", "qos", "published", "words"),
    [
        (
            "a",
            "raw",
            "sensor_data",
            [(Image, "x/other", RELIABLE)],
            "nobody publishes it. Image topics that exist: /x/other",
        ),
        (
            "b",
            "raw",
            "reliable",
            [(Image, "b/image", BEST_EFFORT)],
            "publishes it best effort, which input_qos reliable",
        ),
        (
            "c",
            "raw",
            "sensor_data",
            [(CompressedImage, "c/image", RELIABLE)],
            "CompressedImage, not sensor_msgs/msg/Image",
        ),
        (
            "d",
            "raw",
            "sensor_data",
            [(CompressedImage, "d/image/compressed", RELIABLE)],
            "with image_transport compressed",
        ),
        ("e", "compressed", "sensor_data", [(Image, "e/image", RELIABLE)], "with image_transport raw"),
        (
            "f",
            "raw",
            "sensor_data",
            [(Image, "f/image", BEST_EFFORT)],
            "harness publishes it, but sends nothing",
        ),
        (
            "g",
            "raw",
            "reliable",
            [(Image, "g/image", BEST_EFFORT), (Image, "g/image", RELIABLE)],
            "sends nothing",
        ),
    ],
)
def test_reasons(harness, camera, transport, qos, published, words):
    publishers = [harness.publisher(kind, topic, profile) for kind, topic, profile in published]
    subscription = harness.node.create_subscription(Image, "only/subscribed", lambda _: None, 1)
    try:
        wait_until(
            lambda: words in explain_silence(harness.node, camera, transport, qos),
            lambda: explain_silence(harness.node, camera, transport, qos),
        )
        told = explain_silence(harness.node, camera, transport, qos)
        assert told.startswith(f"no image on /{camera}/image") and "only/subscribed" not in told
    finally:
        for publisher in publishers:
            harness.node.destroy_publisher(publisher)
        harness.node.destroy_subscription(subscription)


@pytest.mark.parametrize(
    ("remaps", "camera", "transport", "topic"),
    [
        ([], "", "compressed", "/robot/image/compressed"),
        (["image:=/camera/image"], "", "raw", "/camera/image"),
        (["image:=/camera/image"], "", "compressed", "/camera/image/compressed"),
        (["image:=camera/image"], "", "zstd", "/robot/camera/image/zstd"),
        (["front/image:=/camera/image"], "front", "compressed", "/camera/image/compressed"),
        (["image:=/camera/image"], "front", "compressed", "/robot/front/image/compressed"),
        (["image:=/one", "image/compressed:=/two/jpeg"], "", "compressed", "/two/jpeg"),
    ],
)
def test_a_remapped_image_topic_keeps_the_suffix_of_the_transport(harness, remaps, camera, transport, topic):
    arguments = [word for remap in remaps for word in ("-r", remap)]
    node = Node(
        "remapped",
        namespace="/robot",
        context=harness.node.context,
        cli_args=["--ros-args", *arguments],
        use_global_arguments=False,
    )
    try:
        assert node.resolve_topic_name(image_topic(node, camera, transport)) == topic
    finally:
        node.destroy_node()
