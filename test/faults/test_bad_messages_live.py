# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Invalid messages over DDS to segmenter processes: each is processed or rejected and counted, and the node continues."""

from __future__ import annotations

import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from conftest import wait_until
from faults import lies
from nodes.camera import Camera
from nodes.encoders import compressed_message, image_message, picture, stamped
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from vtseg_ros.msg import SegmentationStatus

MALFORMED, DAMAGED, CUT = 300, 150, 60


@pytest.fixture(scope="module")
def start(harness, start_segmenter, tiny_checkpoint):
    def started(namespace: str, *arguments: str, compressed: bool = False) -> Camera:
        node = start_segmenter(
            namespace,
            tiny_checkpoint,
            "-p",
            f"image_transport:={'compressed' if compressed else 'raw'}",
            *arguments,
        )
        images = {"kind": CompressedImage, "topic": "image/compressed"} if compressed else {}
        return Camera(harness, node, namespace, **images)

    return started


@pytest.fixture(scope="module")
def camera(start):
    return start("/bad")


def ros_image(message: SimpleNamespace) -> Image:
    """Convert a message of `lies` to one of rclpy."""
    made = Image(height=message.height, width=message.width, encoding=message.encoding)
    made.is_bigendian, made.step = message.is_bigendian, message.step
    made.data = array.array("B", message.data.tobytes())
    return made


def ros_compressed(data: np.ndarray) -> CompressedImage:
    return CompressedImage(format="png", data=array.array("B", data.tobytes()))


def test_malformed_images(camera, rng):
    processed = rejected = 0
    for _ in range(MALFORMED):
        message = lies.lie(rng, lies.good(rng))
        # A C string ends at its first zero.
        message.encoding = message.encoding.split("\0")[0]
        status = camera.ask(ros_image(message))
        if lies.is_true(message):
            processed += 1
            assert status.event == SegmentationStatus.PROCESSED, status
        else:
            rejected += 1
            assert status.event == SegmentationStatus.REJECTED and status.reason, vars(message)
    last = camera.idle()
    assert (last.frames_received, last.frames_processed, last.frames_rejected) == (
        MALFORMED,
        processed,
        rejected,
    )
    assert processed > 20 and rejected > 150
    assert camera.good().event == SegmentationStatus.PROCESSED


def test_damaged_files(start, rng):
    camera = start("/damaged", compressed=True)
    rgb = picture(3)
    whole = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
    bombs = [np.frombuffer(lies.png_file(60000, 60000, b""), np.uint8)] * 20
    for data in [lies.damage(rng, whole) for _ in range(DAMAGED)] + bombs:
        assert camera.ask(ros_compressed(data)).event in (
            SegmentationStatus.PROCESSED,
            SegmentationStatus.REJECTED,
        )
    last = camera.idle()
    assert last.frames_received == DAMAGED + len(bombs) and last.frames_rejected >= len(bombs) + DAMAGED // 2
    assert camera.ask(compressed_message(rgb, "png", 0)).event == SegmentationStatus.PROCESSED


def test_serialized_messages_cut_anywhere(camera, rng):
    """What is not even a message must not end the process; it never becomes a frame."""
    received = camera.good().frames_received
    whole = serialize_message(stamped(image_message(picture(1, 8, 8), "rgb8", 0), camera.stamp_ns))
    for _ in range(CUT):
        cut = bytearray(whole[: int(rng.integers(0, len(whole)))])
        for place in rng.integers(0, max(len(cut), 1), 3):
            if len(cut) > 4:
                cut[4 + place % (len(cut) - 4)] = int(rng.integers(0, 256))
        camera.publisher.publish(bytes(cut))
    after = camera.good()
    assert after.event == SegmentationStatus.PROCESSED and camera.node.running()
    assert received < after.frames_received <= received + CUT + 1


def test_lying_camera_info(camera):
    """No calibration stops the masks."""
    publisher = camera.harness.publisher(CameraInfo, f"{camera.ns}/camera_info")
    wait_until(lambda: publisher.get_subscription_count() > 0)
    nan = float("nan")
    for info in (
        CameraInfo(),
        CameraInfo(width=2**32 - 1, height=2**32 - 1, k=[nan] * 9, p=[float("inf")] * 12),
        CameraInfo(width=1, height=1, d=[nan] * 5000, distortion_model="x" * 70_000),
    ):
        publisher.publish(info)
        for _ in range(3):
            assert camera.good().event == SegmentationStatus.PROCESSED


def test_stamps_at_the_ends_of_their_range(camera):
    """The header is the sender's: seconds may be negative, nanoseconds above a second."""
    message = image_message(picture(2), "rgb8", 0)
    for sec, nanosec in ((-(2**31), 0), (2**31 - 1, 2**32 - 1), (0, 0), (-1, 2**32 - 1)):
        message.header.stamp.sec, message.header.stamp.nanosec = sec, nanosec
        message.header.frame_id = "x" * 5000
        before = len(camera.reported())
        camera.publish(message)
        wait_until(lambda before=before: len(camera.reported()) > before, camera.node.output)
        assert camera.reported()[-1].event == SegmentationStatus.PROCESSED
        assert camera.reported()[-1].header.stamp == message.header.stamp
    assert camera.good().event == SegmentationStatus.PROCESSED


def test_a_giant_image_takes_bounded_memory(camera):
    """12 MP in 14 classes are 670 MB of upsampled logits, several times over if made at once."""
    before = camera.node.peak_memory_mb()
    message = image_message(np.zeros((8, 8, 3), np.uint8), "mono8", 0)
    message.height, message.width, message.step = 3000, 4000, 4000
    message.data = array.array("B", bytes(12_000_000))
    camera.send(message)
    wait_until(lambda: camera.reported()[-1].header.stamp == message.header.stamp, camera.node.output)
    assert camera.reported()[-1].event == SegmentationStatus.PROCESSED
    assert camera.node.peak_memory_mb() - before < 600
    assert camera.good().event == SegmentationStatus.PROCESSED
