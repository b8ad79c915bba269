# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Nodes in a user's own program, where rclpy's signal handler ends the context before the node is closed."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("rclpy")

from conftest import Process, wait_until, write_endless_training
from nodes.encoders import image_message, picture
from nodes.harness import RELIABLE
from sensor_msgs.msg import Image
from vtseg_ros.msg import TrainingProgress

PROGRAM = """
import sys, time
from importlib import import_module
import rclpy
from rclpy.executors import ExternalShutdownException

module, name, *parameters = sys.argv[1:]
options = [word for parameter in parameters for word in ("-p", parameter)]
rclpy.init(args=["--ros-args", "-r", "__ns:=/embedded", *options])
node = getattr(import_module(f"vtseg_ros.nodes.{module}"), name)()
try:
    rclpy.spin(node)
except (KeyboardInterrupt, ExternalShutdownException):
    pass
while rclpy.ok():  # a KeyboardInterrupt may come before the handler has ended the context
    time.sleep(0.01)
node.close()
print("closed", flush=True)
"""


@pytest.fixture
def embed(ros_environment, start_process):
    """Start the program with a node."""
    return lambda *arguments: start_process([sys.executable, "-c", PROGRAM, *arguments], ros_environment)


def check_ends_in_order(node: Process) -> None:
    assert node.stop() == 0, node.output()
    assert "closed" in node.output() and "Traceback" not in node.output(), node.output()
    assert "rejected" not in node.output(), node.output()


def test_segmenter(embed, harness, tiny_checkpoint):
    """Images come until the end, so that the signal arrives while the worker publishes."""
    node = embed("segmenter", "SegmenterNode", f"checkpoint:={tiny_checkpoint}", "autostart:=true")
    images, sent = harness.publisher(Image, "/embedded/image"), 0
    masks = harness.collect(Image, "/embedded/segmentation/mask", RELIABLE)

    def processed() -> bool:
        nonlocal sent
        sent += 1
        images.publish(image_message(picture(sent), "rgb8", sent * 100_000_000))
        return len(masks) > 5 or not node.running()

    wait_until(processed, node.output)
    check_ends_in_order(node)


def test_trainer(embed, harness, street_bag, tmp_path):
    write_endless_training(tmp_path / "train.yaml", street_bag)
    seen = harness.collect(TrainingProgress, "/embedded/training/progress")
    node = embed(
        "trainer", "TrainerNode", f"config:={tmp_path / 'train.yaml'}", f"output_dir:={tmp_path / 'run'}"
    )
    wait_until(lambda: bool(seen) or not node.running(), node.output)
    check_ends_in_order(node)
    assert (tmp_path / "run" / "last.safetensors").is_file()
