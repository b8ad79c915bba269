# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A running segmenter and what a test asks of it."""

from __future__ import annotations

import time

import numpy as np
from conftest import wait_until
from nodes.encoders import NS, stamp_ns_of
from nodes.harness import Harness
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from vtseg_ros.msg import SegmentationStatus

from vtseg_ros.inference import VideoPredictor


class Setting:
    """A running segmenter with a harness around it; frames go out one at a time."""

    def __init__(self, harness: Harness, node, checkpoint, namespace: str) -> None:
        self.harness, self.node, self.checkpoint, self.ns = harness, node, checkpoint, namespace
        self.images = harness.publisher(Image, f"{namespace}/image")
        self.masks = harness.collect(Image, f"{namespace}/segmentation/mask")
        self.status = harness.collect(SegmentationStatus, f"{namespace}/segmentation/status")
        self._stamp = 10 * NS

    def next_stamp(self, gap_s: float = 0.1) -> int:
        self._stamp += round(gap_s * NS)
        return self._stamp

    @property
    def last_stamp(self) -> int:
        return self._stamp

    def matched(self, publisher) -> None:
        wait_until(lambda: publisher.get_subscription_count() > 0, 30, self.node.output)
        time.sleep(0.3)

    def answer(self, publisher, message) -> SegmentationStatus:
        """Publish one image and wait until it is processed, dropped or rejected."""

        def told() -> list[SegmentationStatus]:
            of_frame = [s for s in self.status if s.event != SegmentationStatus.IDLE]
            return [s for s in of_frame if stamp_ns_of(s) == stamp_ns_of(message)]

        count = len(told())
        publisher.publish(message)
        wait_until(lambda: len(told()) > count, 60, self.node.output)
        return told()[-1]

    def reset(self) -> None:
        assert self.harness.call(Trigger, f"{self.ns}/segmenter/reset", Trigger.Request()).success

    def set(self, name: str, **value: object):
        kind = {
            "string_value": ParameterType.PARAMETER_STRING,
            "double_value": ParameterType.PARAMETER_DOUBLE,
            "integer_value": ParameterType.PARAMETER_INTEGER,
            "string_array_value": ParameterType.PARAMETER_STRING_ARRAY,
        }[next(iter(value))]
        request = SetParameters.Request(
            parameters=[Parameter(name=name, value=ParameterValue(type=kind, **value))]
        )
        return self.harness.call(SetParameters, f"{self.ns}/segmenter/set_parameters", request).results[0]


def pixels(message) -> np.ndarray:
    assert message.encoding == "mono8" and message.step == message.width
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width)


def expected_mask(checkpoint, images: list[np.ndarray], **options: object):
    segmenter = VideoPredictor(checkpoint, device="cpu", **options)
    for index, image in enumerate(images, start=1):
        result = segmenter.step(image, index * NS // 10)
    return result
