# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Position of an image in the network input, by hand, and the way back for masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtseg_ros.errors import ConfigError
from vtseg_ros.image_ops import resize_rgb
from vtseg_ros.label_set import IGNORE
from vtseg_ros.resize import FILL, Box, check_resize_mode, place, restoration

SIDES = st.integers(1, 3000)


@pytest.mark.parametrize(
    ("image", "mode", "source", "target"),
    [
        ((640, 480), "stretch", (0, 0, 640, 480), (0, 0, 512, 288)),
        # 288 / 480 = 0.6: 384 px wide, 64 free on either side.
        ((640, 480), "letterbox", (0, 0, 640, 480), (64, 0, 384, 288)),
        # 512 / 640 = 0.8: 360 of 480 rows are seen, 60 lost above and below.
        ((640, 480), "crop", (0, 60, 640, 360), (0, 0, 512, 288)),
        ((1280, 720), "letterbox", (0, 0, 1280, 720), (0, 0, 512, 288)),
        ((1280, 720), "crop", (0, 0, 1280, 720), (0, 0, 512, 288)),
        # 512 / 2048 = 0.25: 256 rows, 16 free above and below; 288 / 1024: 1820 columns.
        ((2048, 1024), "letterbox", (0, 0, 2048, 1024), (0, 16, 512, 256)),
        ((2048, 1024), "crop", (114, 0, 1820, 1024), (0, 0, 512, 288)),
    ],
)
def test_places_by_hand(image, mode, source, target):
    placed = place(image, (512, 288), mode)
    assert (placed.source, placed.target) == (Box(*source), Box(*target))
    assert placed.fills == (target == (0, 0, 512, 288))


def test_an_unknown_mode():
    with pytest.raises(
        ConfigError, match="resize_mode: unknown mode; expected one of stretch, letterbox, crop, got 'pad'"
    ):
        check_resize_mode("pad")


@given(
    SIDES, SIDES, st.sampled_from([(64, 32), (512, 288), (96, 320)]), st.sampled_from(["letterbox", "crop"])
)
def test_boxes_stay_inside(width, height, size, mode):
    placed = place((width, height), size, mode)
    for box, outer in ((placed.source, (width, height)), (placed.target, size)):
        assert box.x >= 0 and box.y >= 0 and box.width >= 1 and box.height >= 1
        assert box.x + box.width <= outer[0] and box.y + box.height <= outer[1]
    restore = restoration(placed, (width, height), (width, height))
    assert restore.cut.x + restore.cut.width <= restore.whole[0]
    assert restore.cut.y + restore.cut.height <= restore.whole[1]
    assert restore.paste.x + restore.paste.width <= width and restore.paste.y + restore.paste.height <= height


def test_a_mask_of_a_letterbox_by_hand():
    """An image of 40x30 covers columns 11 to 52 of 64x32, at 43 / 40 of its size."""
    placed = place((40, 30), (64, 32), "letterbox")
    assert placed.target == Box(10, 0, 43, 32)
    restore = restoration(placed, (40, 30), (40, 30))
    assert restore.whole == (60, 30) and restore.cut == Box(9, 0, 40, 30)
    scaled = np.tile(np.arange(60, dtype=np.uint8), (30, 1))
    assert restore(scaled, IGNORE)[0].tolist() == list(range(9, 49))


def test_a_mask_of_a_crop_by_hand():
    """Of 64x64, the input contains rows 16 to 47; the others are unlabelled. At half the size they are 8 to 23."""
    placed = place((64, 64), (64, 32), "crop")
    mask = restoration(placed, (64, 64), (64, 64))(np.full((32, 64), 3, np.uint8), IGNORE)
    assert (mask[16:48] == 3).all() and (mask[:16] == IGNORE).all() and (mask[48:] == IGNORE).all()
    restore = restoration(placed, (64, 64), (32, 32))
    assert restore.whole == (32, 16) and restore.paste == Box(0, 8, 32, 16)


def test_images_of_the_modes():
    image = np.full((64, 64, 3), 200, np.uint8)
    image[:16], image[48:] = 10, 10
    boxed = resize_rgb(image, (64, 32), "letterbox")
    assert (boxed[:, :16] == FILL).all() and (boxed[:, 48:] == FILL).all() and boxed[16, 32, 0] == 200
    assert boxed[0, 32, 0] == 10
    assert (resize_rgb(image, (64, 32), "crop") == 200).all()
