# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The node's decoder: the package's conversions, cv_bridge's arrays, a camera's warnings once."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy")

from nodes.encoders import compressed_message, image_message, picture

from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.errors import ImageError
from vtseg_ros.nodes.bridge import MAX_CAMERAS, image_decoder


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8"])
def test_the_same_arrays_as_cv_bridge(encoding):
    cv_bridge = pytest.importorskip("cv_bridge")
    message = image_message(picture(1), encoding, 1)
    found = cv_bridge.CvBridge().imgmsg_to_cv2(message, "rgb8")
    assert np.array_equal(found, image_decoder(pytest.fail)(message))


@pytest.mark.parametrize("padding", [0, 1, 12])
def test_images_and_files(padding):
    decode = image_decoder(pytest.fail)
    message = image_message(picture(1), "bgra8", 1, padding=padding)
    assert np.array_equal(decode(message), decode_any(message))
    message.data = message.data[:100]
    with pytest.raises(ImageError, match="too short"):
        decode(message)
    assert decode(compressed_message(picture(2), "png", 1)).shape == picture(2).shape


def test_each_camera_is_warned_of_once():
    warnings: list[str] = []
    decode = image_decoder(warnings.append)
    message = image_message(picture(1), "bgr8", 1)
    message.encoding = "8UC3"
    for camera in ("front", "rear", "front", "rear"):
        message.header.frame_id = camera
        decode(message)
    assert [text.split(":")[0] for text in warnings] == ["images of 'front'", "images of 'rear'"]
    for number in range(2 * MAX_CAMERAS):
        message.header.frame_id = f"{number}"
        decode(message)
    assert len(warnings) <= MAX_CAMERAS + 1
