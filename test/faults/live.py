# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A test camera for a segmenter process: the images it sent, and their status from the node."""

from __future__ import annotations

import array
import time
from types import SimpleNamespace

import numpy as np
from conftest import NodeProcess, wait_until
from nodes.encoders import NS, image_message, picture, stamp_ns_of, stamped
from nodes.harness import Harness
from sensor_msgs.msg import CompressedImage, Image
from vtseg_ros.msg import SegmentationStatus

TOLD = (SegmentationStatus.PROCESSED, SegmentationStatus.DROPPED, SegmentationStatus.REJECTED)


def ros_image(message: SimpleNamespace) -> Image:
    """Convert a message of `lies` to one of rclpy."""
    made = Image(height=message.height, width=message.width, encoding=message.encoding)
    made.is_bigendian, made.step = message.is_bigendian, message.step
    made.data = array.array("B", message.data.tobytes())
    return made


def ros_compressed(data: np.ndarray) -> CompressedImage:
    return CompressedImage(format="png", data=array.array("B", data.tobytes()))


class Camera:
    """Publishes images to the segmenter in a namespace, and keeps its statuses."""

    def __init__(
        self, harness: Harness, node: NodeProcess, namespace: str, *, compressed: bool = False
    ) -> None:
        self.harness, self.node, self.ns = harness, node, namespace
        kind, self.topic = (CompressedImage, "image/compressed") if compressed else (Image, "image")
        self.kind, self.stamp_ns, self.sent = kind, 10 * NS, 0
        self.status = harness.collect(SegmentationStatus, f"{namespace}/segmentation/status")
        self.masks = harness.collect(Image, f"{namespace}/segmentation/mask")
        self.connect()

    def connect(self) -> None:
        self.publisher = self.harness.publisher(self.kind, f"{self.ns}/{self.topic}")
        wait_until(lambda: self.publisher.get_subscription_count() > 0, 60, self.node.output)
        time.sleep(0.5)  # both sides must know each other, or the first messages are lost

    def disconnect(self) -> None:
        self.harness.node.destroy_publisher(self.publisher)

    def told(self) -> list[SegmentationStatus]:
        return [status for status in list(self.status) if status.event in TOLD]

    def told_of(self, stamp_ns: int) -> list[SegmentationStatus]:
        """What became of the frames of a stamp: an earlier message's status may come late."""
        return [status for status in self.told() if stamp_ns_of(status) == stamp_ns]

    def send(self, message, gap_s: float = 0.1) -> None:
        """Publish, stamped `gap_s` after the last one."""
        self.stamp_ns += round(gap_s * NS)
        self.sent += 1
        self.publisher.publish(stamped(message, self.stamp_ns))

    def ask(self, message, gap_s: float = 0.1) -> SegmentationStatus:
        """Publish and wait for what became of it."""
        before = len(self.told_of(self.stamp_ns + round(gap_s * NS)))
        self.send(message, gap_s)
        wait_until(lambda: len(self.told_of(self.stamp_ns)) > before, 60, self.node.output)
        return self.told_of(self.stamp_ns)[-1]

    def good(self, seed: int = 1, gap_s: float = 0.1, **size: int) -> SegmentationStatus:
        """`ask` for a good image."""
        return self.ask(image_message(picture(seed, **size), "rgb8", 0), gap_s)

    def idle(self, timeout_s: float = 60.0) -> SegmentationStatus:
        """Wait until the node is idle and has reported every received frame; return its last status."""

        def settled() -> bool:
            last = self.status[-1] if self.status else None
            return (
                last is not None
                and last.event == SegmentationStatus.IDLE
                and last.frames_received == len(self.told())
            )

        wait_until(settled, timeout_s, lambda: f"{self.status[-1:]} {len(self.told())} {self.node.output()}")
        last = self.status[-1]
        assert last.frames_received == last.frames_processed + last.frames_dropped + last.frames_rejected
        return last
