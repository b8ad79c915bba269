# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A publisher that exists before it sends, such as a player with a delay, is not reported immediately."""

from __future__ import annotations

import re
import time

import pytest

pytest.importorskip("rclpy")

from conftest import wait_until
from sensor_msgs.msg import CompressedImage, Image

from vtseg_ros.nodes.segmenter import SILENCE_S


def test_silence_counts_from_the_publisher_on(harness, start_node, tiny_checkpoint):
    node = start_node(
        "segmenter", "-r", "__ns:=/silence", "-p", f"checkpoint:={tiny_checkpoint}", "-p", "autostart:=true"
    )
    node.wait_for("active, images from /silence/image")
    began = time.time()
    wait_until(lambda: time.time() > began + SILENCE_S - 2)  # most of the silence passes without a publisher
    published = time.time()
    publisher = harness.publisher(Image, "/silence/image")
    wait_until(lambda: publisher.get_subscription_count() > 0, node.output)
    node.wait_for("publishes it, but sends nothing")
    logged = float(re.search(r"\[WARN\] \[(\d+\.\d+)\].*no image on", node.output())[1])
    assert logged > published + SILENCE_S


def test_a_publisher_of_another_transport_that_starts_later_is_reported(harness, start_node, tiny_checkpoint):
    node = start_node(
        "segmenter", "-r", "__ns:=/later", "-p", f"checkpoint:={tiny_checkpoint}", "-p", "autostart:=true"
    )
    node.wait_for("no image on /later/image yet: nobody publishes it")
    harness.publisher(CompressedImage, "/later/image/compressed")
    node.wait_for("/later/image/compressed is read with image_transport compressed")
    warnings = re.findall(r"no image on /later/image yet: .*", node.output())
    assert len(warnings) == len(set(warnings)), node.output()  # each reason once
