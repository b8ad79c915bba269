# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""On a CPU the node runs a checkpoint in OpenVINO without being told to."""

from __future__ import annotations

import signal

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("openvino")

from conftest import wait_until
from nodes.camera import Camera, expected_mask, pixels
from nodes.encoders import image_message, picture
from vtseg_ros.msg import SegmentationStatus

SAME = 0.999  # share of pixels with the class that PyTorch gives
SIZE = (64, 96)


def test_masks_of_the_default_backend(harness, start_node, tiny_checkpoint, tmp_path):
    """Also after the window is changed, which another compiled network is needed for."""
    environment = {"VTSEG_BACKEND": "auto", "VTSEG_CACHE": str(tmp_path)}
    parameters = (
        f"checkpoint:={tiny_checkpoint}",
        "max_gap:=100.0",
        "input_qos:=reliable",
        "autostart:=true",
    )
    arguments = [text for value in parameters for text in ("-p", value)]
    node = start_node("segmenter", "-r", "__ns:=/default", *arguments, environment=environment)
    node.wait_for("converting the network for OpenVINO")
    node.wait_for("window 4, streaming exact, openvino")
    camera = Camera(harness, node, "/default")
    images = [picture(seed, *SIZE) for seed in range(7)]

    def check(first: int, last: int, window: int) -> None:
        for index in range(first, last):
            status = camera.ask(image_message(images[index], "rgb8", 0))
            assert status.event == SegmentationStatus.PROCESSED, status.reason
            assert status.frames_in_window == min(index + 1, window)
        wait_until(lambda: len(camera.masks) == last)
        expected = expected_mask(tiny_checkpoint, images[max(0, last - window) : last], backend="torch").mask
        assert np.mean(pixels(camera.masks[-1]) == expected) >= SAME

    check(0, 5, 4)
    assert camera.set("window", integer_value=2).successful
    node.wait_for("the window stays at 4 until the network is compiled for the new one")
    node.wait_for("the network is compiled, window 2")
    camera.ask(image_message(images[5], "rgb8", 0))
    check(6, 7, 2)
    assert node.stop(signal.SIGTERM) == 0
