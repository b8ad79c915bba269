# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Where jpeg and png files end: anything may follow, and nothing that follows makes a cut file whole."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from bags.files import jpeg_file, jpeg_segment, png_file, smooth_picture
from hypothesis import given, settings
from hypothesis import strategies as st

from vtseg_ros.bags.containers import MAX_PIXELS, read_container
from vtseg_ros.errors import ImageError

JPEG = jpeg_file(smooth_picture(1))
PROGRESSIVE = jpeg_file(smooth_picture(1), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
RESTARTS = jpeg_file(smooth_picture(1), cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
GREY_JPEG = jpeg_file(smooth_picture(1)[..., 0])
PNG = png_file(smooth_picture(1), 2)
WHOLE = {"jpeg": JPEG, "progressive": PROGRESSIVE, "restarts": RESTARTS, "grey": GREY_JPEG, "png": PNG}
TAILS = {
    "zeros": bytes(5000),
    "ff": b"\xff" * 500,
    "end": b"\xff\xd9",
    "ends": b"\0\xff\xd9" * 9 + b"\0",
    "jpeg": jpeg_file(smooth_picture(2)),
    "png": PNG,
    "video": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(range(250)) * 8,
    "scan": b"\xff\xda\0\x0c\x03\x01\0\x02\x11\x03\x11\0\x3f\0",
}


def read(data: bytes):
    return read_container(np.frombuffer(data, np.uint8), max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("name", WHOLE)
def test_what_follows_the_end_is_ignored(name, tail):
    found = read(WHOLE[name] + TAILS[tail])
    assert found.end == len(WHOLE[name]) and found.size == (48, 32)
    assert found.channels == (1 if name == "grey" else 3) and found.depth == 8
    assert found.kind == ("png" if name == "png" else "jpeg")


@given(tail=st.binary(max_size=300), name=st.sampled_from(list(WHOLE)))
@settings(max_examples=200)
def test_any_bytes_may_follow(name, tail):
    assert read(WHOLE[name] + tail).end == len(WHOLE[name])


@pytest.mark.parametrize("tail", ["zeros", "ff", "jpeg", "png", "video"])
@pytest.mark.parametrize("name", WHOLE)
def test_a_cut_file_is_refused_whatever_follows(name, tail):
    whole = WHOLE[name]
    for length in range(2 if name != "png" else 8, len(whole) - 2, 5):
        with pytest.raises(ImageError, match="truncated|no frame header|damaged"):
            read(whole[:length] + TAILS[tail])


def test_a_thumbnail_in_the_header_is_not_the_end():
    thumbnail = jpeg_file(smooth_picture(3, (16, 8)))
    whole = JPEG[:2] + jpeg_segment(0xE1, b"Exif\0\0" + thumbnail) + JPEG[2:]
    assert read(whole + bytes(64)).end == len(whole) and read(whole).size == (48, 32)
    for length in (len(thumbnail) + 20, len(whole) // 2, len(whole) - 3):
        with pytest.raises(ImageError, match="truncated|no frame header"):
            read(whole[:length] + bytes(64))


@given(data=st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_are_a_file_or_an_image_error(data):
    for start in (b"\xff\xd8", JPEG[:200], JPEG[:-20]):
        try:
            found = read(start + data)
            assert found.width > 0 and found.end <= len(start + data)
        except ImageError:
            pass
