# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Late frames and repeated stamps at a real segmenter: named, and without a trace in window and masks."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy")

from conftest import wait_until
from diagnostic_msgs.msg import DiagnosticArray
from nodes.camera import Camera, pixels
from nodes.encoders import NS, image_message, picture
from vtseg_ros.msg import SegmentationStatus

from vtseg_ros.inference import VideoPredictor

MS = NS // 1000
BASE = 1_700_000_000 * NS
PROCESSED, DROPPED = SegmentationStatus.PROCESSED, SegmentationStatus.DROPPED


@pytest.fixture(scope="module")
def camera(harness, start_segmenter, tiny_checkpoint):
    node = start_segmenter("/stamps", tiny_checkpoint, "--log-level", "stamps.segmenter:=debug")
    return Camera(harness, node, "/stamps")


def send(camera, stamps_ns: list[int]) -> list[SegmentationStatus]:
    return [
        camera.answer(image_message(picture(index), "rgb8", stamp)) for index, stamp in enumerate(stamps_ns)
    ]


def test_late_frames(camera, tiny_checkpoint):
    camera.reset()
    masks = len(camera.masks)
    stamps = [BASE + ms * MS for ms in (33, 66, 133, 100, 166, 233, 200, 266)]
    seen = send(camera, stamps)
    late = [3, 6]
    assert [s.event for s in seen] == [DROPPED if i in late else PROCESSED for i in range(8)]
    assert [s.frames_in_window for i, s in enumerate(seen) if i not in late] == [1, 2, 3, 4, 4, 4]
    assert "late stamp 1700000000.100000000 s" in seen[3].reason
    assert "late stamp 1700000000.200000000 s" in seen[6].reason
    wait_until(lambda: len(camera.masks) == masks + 6)
    alone = VideoPredictor(tiny_checkpoint, device="cpu")
    for index, message in zip((i for i in range(8) if i not in late), camera.masks[masks:]):
        assert np.array_equal(pixels(message), alone.step(picture(index), stamps[index]).mask), index
    # A bag that loops: further back than max_gap.
    (looped,) = send(camera, [BASE - 2 * NS])
    assert looped.event == PROCESSED and looped.frames_in_window == 1
    assert "late stamp 1700000000.100000000 s" in camera.node.output()
    assert "stamps ran back by 2.266 s" in camera.node.output()


def test_repeated_stamps_are_no_slow_model(camera):
    camera.reset()
    beats = camera.harness.collect(DiagnosticArray, "/diagnostics")
    seen = send(camera, [BASE + (index // 3) * 100 * MS for index in range(12)])
    assert [s.event for s in seen] == [PROCESSED, DROPPED, DROPPED] * 4
    assert [s.frames_in_window for s in seen[::3]] == [1, 2, 3, 4]
    assert all("repeated stamp 1700000000.1" in s.reason for s in seen[4:6])

    def told() -> list[str]:
        own = [a.status[0] for a in beats if "stamps/segmenter" in a.status[0].name]
        return [status.message for status in own if "for their stamps" in status.message]

    # The first message can still be about the drops of the test before.
    wait_until(
        lambda: any("repeated stamp 1700000000." in text for text in told()),
        lambda: str([a.status[0].message for a in beats]),
    )
    assert not any("faster" in text for text in told())
