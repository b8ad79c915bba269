# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The recorder of the demo: masks that arrive faster than it compresses them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytest.importorskip("rclpy")

from conftest import PATIENCE_S
from nodes.encoders import NS
from nodes.harness import LATCHED
from rclpy.duration import Duration
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from vtseg_ros.msg import LabelEntry, LabelMap

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.messages import stamp_of

COUNT = 40


def test_a_burst_of_large_masks_is_recorded_to_the_last_one(
    harness, start_process, ros_environment, tmp_path
):
    maps = harness.publisher(LabelMap, "/segmentation/label_map", LATCHED)
    maps.publish(LabelMap(labels=[LabelEntry(id=0, name="a")]))
    burst = QoSProfile(depth=COUNT, reliability=ReliabilityPolicy.RELIABLE)
    masks = harness.publisher(Image, "/segmentation/mask", burst)
    command = [sys.executable, "-m", "vtseg_ros.nodes.recorder", str(tmp_path / "masks")]
    recorder = start_process(command, ros_environment)
    recorder.wait_for("recording")
    harness.connect(masks, recorder.output)
    noise = np.random.default_rng(1).integers(0, 19, (720, 1280), dtype=np.uint8)
    message = Image(height=720, width=1280, encoding="mono8", step=1280, data=noise.tobytes())
    for number in range(COUNT):
        message.header.stamp.sec = 100 + number
        masks.publish(message)
    assert masks.wait_for_all_acked(Duration(seconds=PATIENCE_S))
    assert recorder.stop() == 0, recorder.output()
    with BagReader(tmp_path / "masks") as bag:
        stamps = [stamp_of(m) for _, _, m in bag.messages(["/segmentation/mask/compressed"])]
    assert stamps == [(100 + number) * NS for number in range(COUNT)]
