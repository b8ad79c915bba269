# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Faults while the segmenter runs: in what comes, in what takes its masks, in time and in the network."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy")

from conftest import ROOT, wait_until
from diagnostic_msgs.msg import DiagnosticArray
from nodes.camera import Camera
from nodes.encoders import NS, image_message, picture
from rosgraph_msgs.msg import Clock
from vtseg_ros.msg import SegmentationStatus

PROCESSED, REJECTED = SegmentationStatus.PROCESSED, SegmentationStatus.REJECTED
STOPPED_SUBSCRIBER = """
import sys, rclpy
from sensor_msgs.msg import Image
from vtseg_ros.msg import SegmentationStatus
rclpy.init()
node = rclpy.create_node("slow")
node.create_subscription(Image, sys.argv[1] + "/segmentation/mask", lambda m: print("mask", flush=True), 1)
node.create_subscription(SegmentationStatus, sys.argv[1] + "/segmentation/status", lambda m: None, 1)
rclpy.spin(node)
"""


@pytest.fixture(scope="module")
def camera(harness, start_segmenter, tiny_checkpoint) -> Iterator[Camera]:
    path = os.pathsep.join([str(ROOT / "test"), os.environ.get("PYTHONPATH", "")])
    node = start_segmenter(
        "/run",
        tiny_checkpoint,
        "-p",
        "use_sim_time:=true",
        "-p",
        "static_prior:=faults.priors:fragile",
        environment={"PYTHONPATH": path},
    )
    made = Camera(harness, node, "/run")
    yield made
    made.idle()
    assert node.stop() == 0, node.output()
    assert "Traceback" not in node.output()


def plain(*color: int):
    return image_message(np.full((48, 80, 3), color, np.uint8), "rgb8", 0)


def test_out_of_memory_is_told_and_the_next_frame_processed(camera):
    assert camera.good().event == PROCESSED
    for _ in range(3):
        status = camera.ask(plain(255, 0, 0))
        assert status.event == REJECTED and "cpu is out of memory at 64x32 px" in status.reason
        after = camera.good()
        assert (after.event, after.frames_in_window) == (PROCESSED, 1)


def test_an_error_of_the_network_costs_one_frame(camera):
    arrays = camera.harness.collect(DiagnosticArray, "/diagnostics")
    for _ in range(3):
        status = camera.ask(plain(255, 255, 255))
        assert status.event == REJECTED and "illegal instruction" in status.reason
    told = "inference failed: RuntimeError: an illegal instruction was encountered"
    wait_until(lambda: any(told in s.message for a in list(arrays) for s in a.status))
    assert [camera.good().frames_in_window for _ in range(3)] == [1, 2, 3]


def test_another_size_and_back(camera):
    """A camera that changes its size in mid-stream starts a new window; masks have the new size."""
    for size, frames in (((50, 90), 5), ((96, 64), 2), ((30, 200), 1), ((48, 80), 3)):
        for index in range(frames):
            status = camera.good(height=size[0], width=size[1])
            assert status.event == PROCESSED and (index == 0) == (status.frames_in_window == 1)
        wait_until(lambda size=size: (camera.masks[-1].height, camera.masks[-1].width) == size)


def test_time_runs_back(camera):
    """A looped bag: a new window starts, nothing is rejected."""
    for _ in range(3):
        assert camera.good(gap_s=-5.0).frames_in_window == 1
        assert [camera.good().frames_in_window for _ in range(2)] == [2, 3]


def test_the_clock_stops_and_jumps(camera):
    """Latency and idle statuses come from the steady clock, whatever /clock does."""
    clock = camera.harness.publisher(Clock, "/clock")
    wait_until(lambda: clock.get_subscription_count() > 0)
    for seconds in (100, 101, 50, 50, 2**31 - 1, 0):
        message = Clock()
        message.clock.sec = seconds
        clock.publish(message)
        status = camera.good()
        assert status.event == PROCESSED and 0 < status.total_s < 20
    camera.idle()
    for _ in range(3):
        assert camera.good().event == PROCESSED
    assert camera.idle().frames_received == camera.sent


def test_a_flood(camera):
    """Ten times the rate of the network: newest frames are processed, the others dropped and reported, memory is bounded."""
    camera.good()
    camera.idle()
    rgb = picture(1, 480, 640)
    before, memory = camera.good(height=480, width=640), camera.node.peak_memory_mb()
    messages = [image_message(rgb, "rgb8", 0) for _ in range(400)]
    for message in messages:
        camera.send(message, gap_s=0.001)
    camera.good(height=480, width=640)  # reported after the flood; the node may be idle in its middle
    last = camera.idle()
    received = last.frames_received - before.frames_received
    processed = last.frames_processed - before.frames_processed
    assert 1 < processed < received <= 401
    # 400 images are 370 MB; those that wait are one, and what DDS holds.
    assert camera.node.peak_memory_mb() - memory < 200
    assert camera.good().total_s < 20


def test_a_publisher_that_dies_and_returns(camera, start_cli, street_bag):
    """Killed without a word, three times; each time the next one's frames are processed."""
    play = [
        "play",
        street_bag,
        "--loop",
        "--rate",
        "3",
        "--topics",
        "/camera/image",
        "--remap",
        f"/camera/image:={camera.ns}/image",
    ]
    for _ in range(3):
        before = camera.status[-1].frames_processed
        player = start_cli(*play)
        try:
            wait_until(
                lambda before=before: camera.status[-1].frames_processed >= before + 5, camera.node.output
            )
        finally:
            player.kill()
        last = camera.idle()
    camera.sent = last.frames_received
    assert camera.good().event == PROCESSED


def test_a_subscriber_that_does_not_read(camera, ros_environment, start_process):
    """A stopped process with a reliable subscription: the other subscribers get their masks without delay."""
    camera.idle()
    slow = start_process([sys.executable, "-c", STOPPED_SUBSCRIBER, camera.ns], ros_environment)
    try:

        def connected() -> bool:
            camera.good()
            return "mask" in slow.output()

        wait_until(connected, slow.output)

        def waited(frames: int) -> float:
            """Median of the time that frames took besides inference, s."""
            statuses = [camera.good(height=240, width=320) for _ in range(frames)]
            assert all(status.event == PROCESSED for status in statuses)
            return float(np.median([status.total_s - status.inference_s for status in statuses]))

        usual = waited(20)
        slow.process.send_signal(signal.SIGSTOP)
        assert waited(60) < max(0.05, 3 * usual)  # 0.05 s, and more on a busy machine
        assert camera.idle().frames_dropped + camera.idle().frames_rejected <= camera.sent
    finally:
        slow.kill()
    assert camera.good().event == PROCESSED


def test_stamps_of_a_good_frame_stay(camera):
    """After all of this the header still is the camera's."""
    status = camera.good()
    assert status.header.stamp.sec * NS + status.header.stamp.nanosec == camera.stamp_ns
