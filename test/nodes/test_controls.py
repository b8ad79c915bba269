# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What a user asks of a running segmenter besides the mask: jpeg topics, rate, classes, single images."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from conftest import make_checkpoint, wait_until
from nodes.camera import Camera, expected_mask, pixels
from nodes.encoders import image_message, picture, stamped
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import SetBool
from vtseg_ros.msg import SegmentationStatus
from vtseg_ros.srv import Segment

from vtseg_ros.image_ops import colorize, overlay
from vtseg_ros.label_set import STREET, LabelSet


@pytest.fixture(scope="module")
def camera(harness, start_segmenter, tiny_checkpoint):
    node = start_segmenter("/asked", tiny_checkpoint, "-p", "max_gap:=5.0", "-p", "resize_mode:=crop")
    return Camera(harness, node, "/asked")


def mask_of(camera: Camera, rgb: np.ndarray, gap_s: float = 0.1) -> np.ndarray:
    """Publish one image and return its mask."""
    return camera.mask_of(camera.ask(image_message(rgb, "rgb8", 0), gap_s))


def decoded(message: CompressedImage) -> np.ndarray:
    return cv2.cvtColor(
        cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
    )


def test_a_crop_leaves_the_sides_unlabelled(camera, tiny_checkpoint):
    """Of 80x48 px the input of 64x32 shows the middle 40 rows."""
    camera.reset()
    mask = mask_of(camera, picture(3))
    assert np.array_equal(mask, expected_mask(tiny_checkpoint, [picture(3)], resize_mode="crop").mask)
    assert (mask[[0, 1, 2, 3, 44, 45, 46, 47]] == 255).all() and (mask[4:44] != 255).all()


def test_jpegs_of_overlay_and_colours(camera):
    """Only the compressed topics are subscribed to here: they are made without the raw ones."""
    names = ("overlay", "color")
    jpegs = {
        name: camera.harness.collect(CompressedImage, f"/asked/segmentation/{name}/compressed")
        for name in names
    }
    talk = camera.harness.node
    wait_until(lambda: all(talk.count_publishers(f"/asked/segmentation/{name}/compressed") for name in names))
    assert camera.set("jpeg_quality", integer_value=100).successful
    rgb = picture(4)
    wait_until(lambda: mask_of(camera, rgb) is not None and all(jpegs.values()))
    for made in jpegs.values():
        made.clear()
    message = stamped(image_message(rgb, "rgb8", 0), camera.next_stamp(), "front_optical")
    mask = camera.mask_of(camera.answer(message))
    wait_until(lambda: all(jpegs.values()))
    expected = {"overlay": overlay(rgb, mask, STREET, 0.5), "color": colorize(mask, STREET)}
    for name, made in jpegs.items():
        assert made[0].header == message.header, name
        assert made[0].format == "rgb8; jpeg compressed bgr8"
        difference = np.abs(decoded(made[0]).astype(int) - expected[name])
        # Chroma subsampling moves colours at the edges of classes; the planes agree.
        assert np.median(difference) <= 3 and difference.mean() < 12, name
    assert camera.set("jpeg_quality", integer_value=10).successful
    camera.ask(image_message(rgb, "rgb8", 0))
    wait_until(lambda: all(len(made) == 2 for made in jpegs.values()))
    assert all(len(small.data) < len(large.data) / 2 for large, small in jpegs.values())
    assert not camera.set("jpeg_quality", integer_value=0).successful


def test_a_limited_rate_counts_what_it_leaves_out(camera):
    assert not camera.set("max_rate", double_value=-1.0).successful
    assert camera.set("max_rate", double_value=5.0).successful
    statuses = [camera.ask(image_message(picture(5), "rgb8", 0), 0.05) for _ in range(9)]
    assert [status.event == SegmentationStatus.PROCESSED for status in statuses] == (
        [True] + 3 * [False]
    ) * 2 + [True]
    dropped = [status for status in statuses if status.event == SegmentationStatus.DROPPED]
    assert {status.reason for status in dropped} == {"above max_rate 5 Hz"} and len(dropped) == 6
    first, last = statuses[0], statuses[-1]
    assert last.frames_received - first.frames_received == 8
    assert last.frames_dropped - first.frames_dropped == 6
    assert camera.set("max_rate", double_value=0.0).successful
    mask_of(camera, picture(5), 0.05)


def test_classes_to_publish(camera, tmp_path):
    rgb = picture(6)
    camera.reset()
    every = mask_of(camera, rgb)
    ids = np.unique(every[every != 255])
    kept = [STREET.names[index] for index in ids[:2]]
    assert len(ids) > 2
    refused = camera.set("classes", string_array_value=["rod"])
    assert not refused.successful
    assert refused.reason.startswith("classes: unknown class; expected some of terrain, sky")
    assert refused.reason.endswith("got rod")
    assert camera.set("classes", string_array_value=kept).successful
    camera.reset()
    some = mask_of(camera, rgb)
    assert np.array_equal(some, np.where(np.isin(every, ids[:2]), every, 255))
    other = make_checkpoint(tmp_path / "other.safetensors", labels=LabelSet.from_names(["here", "there"]))
    assert camera.set("checkpoint", string_value=str(other)).successful
    camera.node.wait_for(
        "the checkpoint was not changed: classes: unknown class; expected some of here, there"
    )
    camera.reset()
    assert np.array_equal(mask_of(camera, rgb), some)
    assert camera.set("classes", string_value="").successful
    camera.reset()
    assert np.array_equal(mask_of(camera, rgb), every)


def ask(camera: Camera, image: Image) -> Segment.Response:
    return camera.harness.call(Segment, "/asked/segmenter/segment", Segment.Request(image=image))


def test_a_single_image_between_those_of_the_stream(camera, tiny_checkpoint):
    frames, other = [picture(seed) for seed in range(5)], picture(9, height=32, width=48)
    alone = expected_mask(tiny_checkpoint, [other], resize_mode="crop")
    message = stamped(image_message(other, "bgr8", 0), 7_000_000_001, "gripper")
    camera.reset()
    for frame in frames[:3]:
        mask_of(camera, frame)
    counted = camera.status[-1].frames_received
    answer = ask(camera, message)
    assert answer.success and not answer.message
    assert np.array_equal(pixels(answer.mask), alone.mask)
    assert np.array_equal(pixels(answer.confidence), alone.confidence)
    assert answer.mask.header == answer.confidence.header == message.header
    assert [entry.name for entry in answer.label_map.labels] == list(STREET.names)
    for frame in frames[3:]:
        last = mask_of(camera, frame)
    assert np.array_equal(last, expected_mask(tiny_checkpoint, frames, resize_mode="crop").mask)
    processed = [status for status in camera.status if status.event == SegmentationStatus.PROCESSED]
    assert processed[-1].frames_in_window == 4
    assert processed[-1].frames_received == counted + 2  # a single image is no frame of a camera
    # Paused, it still answers.
    enable = "/asked/segmenter/enable"
    assert camera.harness.call(SetBool, enable, SetBool.Request(data=False)).success
    assert np.array_equal(pixels(ask(camera, message).mask), alone.mask)
    assert camera.harness.call(SetBool, enable, SetBool.Request(data=True)).success


def test_bad_single_images_are_answered_with_the_reason(camera):
    good = image_message(picture(9), "rgb8", 1)
    for change, words in (
        (dict(encoding="rgb12"), "image: unknown encoding"),
        (dict(height=0), "empty"),
        (dict(height=4800), "data is too short"),
    ):
        message = image_message(picture(9), "rgb8", 1)
        for field, value in change.items():
            setattr(message, field, value)
        answer = ask(camera, message)
        assert not answer.success and words in answer.message and not answer.mask.data, answer.message
    assert ask(camera, good).success
