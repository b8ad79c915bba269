# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Arrays to messages."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy")

from sensor_msgs.msg import CameraInfo, RegionOfInterest
from std_msgs.msg import Header

from vtseg_ros.nodes.conversions import scale_camera_info, to_image


def project(k, point) -> np.ndarray:
    """Pixel of a point (x, y, z), by the pinhole model."""
    u = np.asarray(k).reshape(3, 3) @ point
    return u[:2] / u[2]


K = [500.0, 0.0, 319.5, 0.0, 480.0, 239.5, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("size", [(640, 480), (320, 240), (100, 300)])
def test_a_scaled_calibration_projects_to_the_scaled_pixel(size):
    info = CameraInfo(width=640, height=480, k=K, p=[*K[:3], -50.0, *K[3:6], 0.0, *K[6:], 0.0])
    scaled = scale_camera_info(info, size, Header(frame_id="cam"))
    assert (scaled.width, scaled.height, scaled.header.frame_id) == (*size, "cam")
    point = np.array([0.3, -0.2, 2.0])
    # A stretched image keeps its corners, which lie half a pixel outside the outer pixels' centres.
    expected = (project(K, point) + 0.5) * np.array(size) / (640, 480) - 0.5
    assert project(scaled.k, point) == pytest.approx(expected)
    assert scaled.p[3] == pytest.approx(-50.0 * size[0] / 640)


def test_a_region_of_interest_and_binning_are_applied():
    roi = RegionOfInterest(x_offset=100, y_offset=40, width=400, height=200)
    info = CameraInfo(width=640, height=480, k=K, binning_x=2, binning_y=2, roi=roi)
    scaled = scale_camera_info(info, (200, 100), Header())  # the camera's image is 200x100
    point = np.array([0.1, 0.1, 2.0])
    expected = (project(K, point) - [100, 40] + 0.5) / 2 - 0.5
    assert project(scaled.k, point) == pytest.approx(expected)
    assert scaled.binning_x in (0, 1) and scaled.roi.width == 0


def test_an_uncalibrated_camera_stays_uncalibrated():
    scaled = scale_camera_info(CameraInfo(), (8, 4), Header())
    assert (scaled.width, scaled.height) == (8, 4) and scaled.k[0] == 0.0


def test_images_have_no_row_padding():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    message = to_image(pixels[:, ::-1], "rgb8", Header())
    assert message.step == 12 and bytes(message.data) == pixels[:, ::-1].tobytes()
