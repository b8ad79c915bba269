# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""launch/vtseg.launch.py: the segmenter comes up under the names asked for and ends cleanly."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy")
launch_pytest = pytest.importorskip("launch_pytest")
pytest.importorskip("launch_ros")

from conftest import wait_until
from nodes.encoders import NS, compressed_message, picture
from nodes.harness import Harness
from rcl_interfaces.srv import GetParameters
from sensor_msgs.msg import CompressedImage, Image
from watching import Watch, launched


@pytest.fixture
def watch():
    return Watch()


@launch_pytest.fixture
def segmenter(watch, ros_environment, tiny_checkpoint, tmp_path):
    parameters = tmp_path / "parameters.yaml"
    # A string that YAML would take for a number, under the plain key, which ROS takes for the root namespace's node.
    parameters.write_text('segmenter: {ros__parameters: {window: 3, input_size: "0x0"}}')
    arguments = {
        "params_file": str(parameters),
        "checkpoint": str(tiny_checkpoint),
        "namespace": "robot",
        "image_topic": "/robot/front/image",
        "image_transport": "compressed",
        "device": "cpu",
        "fastdds_profile": "loopback",
        "log_level": "debug",
    }
    return launched("vtseg", watch, ros_environment, arguments)


@pytest.mark.launch(fixture=segmenter)
def test_masks_flow_and_sigint_ends_it(segmenter, watch, ros_environment):
    watch.wait_for_text("segmenter", "window 3")
    harness = Harness(ros_environment)
    try:
        masks = harness.collect(Image, "/robot/segmentation/mask")
        images = harness.publisher(CompressedImage, "/robot/front/image/compressed")
        wait_until(lambda: images.get_subscription_count() > 0)
        stamps = iter(range(10, 10_000))

        def processed() -> bool:
            images.publish(compressed_message(picture(1), "jpg", next(stamps) * NS // 10))
            return bool(masks)

        wait_until(processed, lambda: str(watch.text))
        assert (masks[0].width, masks[0].height) == (80, 48)
    finally:
        harness.close()
    yield
    assert watch.codes == {"segmenter": 0}
    assert "Traceback" not in watch.text["segmenter"]


@launch_pytest.fixture
def relative(watch, ros_environment, tiny_checkpoint, tmp_path):
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(
        "segmenter: {ros__parameters: {window: 4, use_sim_time: true}}\n"
        "/front/segmenter: {ros__parameters: {window: 2}}\n"
    )
    arguments = {
        "params_file": str(parameters),
        "checkpoint": str(tiny_checkpoint),
        "namespace": "front",
        "image_topic": "image_raw",
        "device": "cpu",
    }
    return launched("vtseg", watch, ros_environment, arguments)


@pytest.mark.launch(fixture=relative)
def test_relative_names_and_the_files_own_values(relative, watch, ros_environment):
    """The section of the namespaced node goes above the plain one; what is not given is the file's."""
    watch.wait_for_text("segmenter", "window 2")
    harness = Harness(ros_environment)
    try:
        for topic in ("/front/image_raw", "/front/camera_info"):
            wait_until(lambda topic=topic: harness.node.count_subscribers(topic) == 1)
        request = GetParameters.Request(names=["use_sim_time"])
        answer = harness.call(GetParameters, "/front/segmenter/get_parameters", request)
        assert answer.values[0].bool_value
    finally:
        harness.close()


@launch_pytest.fixture
def broken(watch, ros_environment, tmp_path):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"not a checkpoint")
    return launched("vtseg", watch, ros_environment, {"checkpoint": str(bad)})


@pytest.mark.launch(fixture=broken)
def test_a_bad_checkpoint_is_reported(broken, watch):
    watch.wait_for_exit("segmenter")
    assert watch.codes["segmenter"] == 2
    assert "bad.safetensors" in watch.text["segmenter"] and "Traceback" not in watch.text["segmenter"]


@launch_pytest.fixture
def pushed(watch, ros_environment, tiny_checkpoint, tmp_path):
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text("/**/segmenter: {ros__parameters: {window: 2}}")
    arguments = {
        "params_file": str(parameters),
        "checkpoint": str(tiny_checkpoint),
        "ros_namespace": "robot1",
        "cameras": "front,rear",
        "image_topics": "/a/image_raw,/b/image_raw",
        "autostart": "yes",
        "output_size": "0016x8",
        "min_confidence": "0",
        "resize_mode": "letterbox",
    }
    return launched("vtseg", watch, ros_environment, arguments, {"use_sim_time": True, "wheel_radius": 0.3})


@pytest.mark.launch(fixture=pushed)
def test_a_pushed_namespace_and_topics_of_cameras(pushed, watch, ros_environment):
    watch.wait_for_text("segmenter", "window 2")
    harness = Harness(ros_environment)
    try:
        for topic in ("/a/image_raw", "/b/image_raw", "/a/camera_info"):
            wait_until(lambda topic=topic: harness.node.count_subscribers(topic) == 1)
        names = ["output_size", "min_confidence", "resize_mode", "use_sim_time"]
        request = GetParameters.Request(names=names)
        answer = harness.call(GetParameters, "/robot1/segmenter/get_parameters", request)
        assert answer.values[0].string_value == "0016x8" and answer.values[1].double_value == 0.0
        assert answer.values[2].string_value == "letterbox" and answer.values[3].bool_value
        # Of other packages in the same bring-up.
        watch.wait_for_text("segmenter", "ignored parameters that segmenter does not have: wheel_radius")
    finally:
        harness.close()
