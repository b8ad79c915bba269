# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""EXIF orientations by Pillow, which turns photos as viewers do."""

from __future__ import annotations

import io

import numpy as np
import pytest
from bags.files import (
    jpeg_file,
    jpeg_segment,
    png_chunk,
    png_file,
    smooth_picture,
    tiff_block,
    with_orientation,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vtseg_ros.importers.exif import orientation_of, turned


def array(file: bytes) -> np.ndarray:
    return np.frombuffer(file, np.uint8)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations(orientation, order):
    rgb = smooth_picture(1)
    file = with_orientation(jpeg_file(rgb), orientation, order)
    assert orientation_of(array(file)) == orientation
    with Image.open(io.BytesIO(file)) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
        np.testing.assert_array_equal(turned(np.asarray(stored), orientation), expected)
        np.testing.assert_array_equal(turned(np.asarray(stored)[..., 0], orientation), expected[..., 0])
    png = png_file(rgb, 2, before=png_chunk(b"eXIf", tiff_block(orientation, order)))
    assert orientation_of(array(png)) == orientation
    with Image.open(io.BytesIO(png)) as stored:
        np.testing.assert_array_equal(turned(rgb, orientation), np.asarray(ImageOps.exif_transpose(stored)))


def test_without_one_and_behind_other_blocks():
    jpeg = jpeg_file(smooth_picture(1))
    assert orientation_of(array(jpeg)) == orientation_of(array(png_file(np.zeros((2, 2)), 0))) == 1
    other = (
        jpeg[:2] + jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>") + with_orientation(jpeg, 3)[2:]
    )
    assert orientation_of(array(other)) == 3
    assert (
        orientation_of(array(with_orientation(jpeg, 9)))
        == orientation_of(array(with_orientation(jpeg, 0)))
        == 1
    )


@given(st.binary(max_size=60))
def test_any_block_gives_an_orientation(block):
    jpeg = jpeg_file(np.zeros((8, 8), np.uint8))
    for body in (block, b"II*\0" + block, b"MM\0*" + block, b"II*\0\x08\0\0\0" + block):
        file = jpeg[:2] + jpeg_segment(0xE1, b"Exif\0\0" + body) + jpeg[2:]
        assert 1 <= orientation_of(array(file)) <= 8
