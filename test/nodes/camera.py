# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A test camera for a segmenter process: the images that it sends, the masks and statuses that come back."""

from __future__ import annotations

import functools

import numpy as np
from conftest import Process, wait_until
from nodes.encoders import NS, image_message, picture, stamp_ns_of, stamped
from nodes.harness import Harness
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from vtseg_ros.msg import SegmentationStatus

from vtseg_ros.inference import VideoPredictor

TYPES = {
    "string_value": ParameterType.PARAMETER_STRING,
    "double_value": ParameterType.PARAMETER_DOUBLE,
    "integer_value": ParameterType.PARAMETER_INTEGER,
    "string_array_value": ParameterType.PARAMETER_STRING_ARRAY,
}


class Camera:
    """Publishes images to the segmenter of a namespace, and keeps its masks and statuses.

    Args:
        harness: the node that publishes and subscribes.
        node: the segmenter's process.
        namespace: namespace of the segmenter and its topics.
        kind: message type of the images.
        topic: topic of the images, in the namespace.
    """

    def __init__(
        self, harness: Harness, node: Process, namespace: str, *, kind: type = Image, topic: str = "image"
    ) -> None:
        self.harness, self.node, self.ns = harness, node, namespace
        self.stamp_ns, self.sent = 10 * NS, 0
        self.masks = harness.collect(Image, f"{namespace}/segmentation/mask")
        self.status = harness.collect(SegmentationStatus, f"{namespace}/segmentation/status")
        self.publisher = harness.publisher(kind, f"{namespace}/{topic}")
        self.connect()

    def connect(self) -> None:
        """Wait until the segmenter receives the images: after the start, and after an activation."""
        self.harness.connect(self.publisher, self.node.output)

    def next_stamp(self, gap_s: float = 0.1) -> int:
        """The stamp `gap_s` after the last one, in ns; it becomes the last one."""
        self.stamp_ns += round(gap_s * NS)
        return self.stamp_ns

    def reported(self) -> list[SegmentationStatus]:
        """Statuses of frames: processed, dropped or rejected."""
        return [status for status in list(self.status) if status.event != SegmentationStatus.IDLE]

    def publish(self, message) -> None:
        self.sent += 1
        self.publisher.publish(message)

    def send(self, message, gap_s: float = 0.1) -> None:
        """Publish, stamped `gap_s` after the last one."""
        self.publish(stamped(message, self.next_stamp(gap_s)))

    def answer(self, message) -> SegmentationStatus:
        """Publish with the message's own stamp, and wait until it is processed, dropped or rejected."""
        stamp_ns = stamp_ns_of(message)

        def of_frame() -> list[SegmentationStatus]:  # the status of an earlier message may come late
            return [status for status in self.reported() if stamp_ns_of(status) == stamp_ns]

        before = len(of_frame())
        self.publish(message)
        wait_until(lambda: len(of_frame()) > before, self.node.output)
        return of_frame()[-1]

    def ask(self, message, gap_s: float = 0.1) -> SegmentationStatus:
        """`answer`, stamped `gap_s` after the last one."""
        return self.answer(stamped(message, self.next_stamp(gap_s)))

    def good(self, seed: int = 1, gap_s: float = 0.1, **size: int) -> SegmentationStatus:
        """`ask` for a good image."""
        return self.ask(image_message(picture(seed, **size), "rgb8", 0), gap_s)

    def mask_of(self, status: SegmentationStatus) -> np.ndarray:
        """Wait for the mask of a processed frame: (H, W) uint8."""
        assert status.event == SegmentationStatus.PROCESSED, status.reason
        wait_until(
            lambda: self.masks and self.masks[-1].header.stamp == status.header.stamp, self.node.output
        )
        return pixels(self.masks[-1])

    def idle(self) -> SegmentationStatus:
        """Wait until the node is idle and has reported every received frame; return its last status."""

        def settled() -> bool:
            last = self.status[-1] if self.status else None
            return (
                last is not None
                and last.event == SegmentationStatus.IDLE
                and last.frames_received == len(self.reported())
            )

        wait_until(settled, lambda: f"{self.status[-1:]} {len(self.reported())} {self.node.output()}")
        last = self.status[-1]
        assert last.frames_received == last.frames_processed + last.frames_dropped + last.frames_rejected
        return last

    def reset(self) -> None:
        assert self.harness.call(Trigger, f"{self.ns}/segmenter/reset", Trigger.Request()).success

    def set(self, name: str, **value: object):
        """Set a parameter of the segmenter, e.g. set("window", integer_value=2); return the node's result."""
        kind = TYPES[next(iter(value))]
        request = SetParameters.Request(
            parameters=[Parameter(name=name, value=ParameterValue(type=kind, **value))]
        )
        return self.harness.call(SetParameters, f"{self.ns}/segmenter/set_parameters", request).results[0]


def pixels(message: Image) -> np.ndarray:
    """(H, W) uint8 of a mask or confidence."""
    assert message.encoding == "mono8" and message.step == message.width
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width)


@functools.lru_cache(maxsize=8)
def _predictor(checkpoint, **options: object) -> VideoPredictor:
    return VideoPredictor(checkpoint, device="cpu", **options)


def expected_mask(checkpoint, images: list[np.ndarray], **options: object):
    """The predictor's result for the last of some images."""
    predictor = _predictor(checkpoint, **options)
    predictor.reset()
    for index, image in enumerate(images, start=1):
        result = predictor.step(image, index * NS // 10)
    return result
