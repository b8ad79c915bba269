# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Stored values of png files of every colour type and bit depth, compared with what was put in and with Pillow."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from bags.files import GREY, GREY_ALPHA, INDEXED, RGB, RGBA, png_chunk, png_file
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vtseg_ros.bags.png import read_png
from vtseg_ros.errors import ImageError

CHANNELS = {GREY: 1, RGB: 3, INDEXED: 1, GREY_ALPHA: 2, RGBA: 4}
KINDS = [(GREY, d) for d in (1, 2, 4, 8, 16)] + [(INDEXED, d) for d in (1, 2, 4, 8)]
KINDS += [(t, d) for t in (RGB, GREY_ALPHA, RGBA) for d in (8, 16)]


@given(
    kind=st.sampled_from(KINDS),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
    interlaced=st.booleans(),
)
@settings(max_examples=150)
def test_values_are_those_that_were_stored(kind, height, width, seed, interlaced):
    color_type, depth = kind
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 2**depth, (height, width, CHANNELS[color_type]))
    palette = rng.integers(0, 256, (2**depth, 3), dtype=np.uint8) if color_type == INDEXED else ()
    # Colour management and comments change no id.
    before = png_chunk(b"gAMA", (22222).to_bytes(4, "big")) + png_chunk(b"tEXt", b"a\0b")
    file = png_file(pixels, color_type, depth, palette=palette, interlaced=interlaced, before=before)
    found = read_png(file + b"behind")
    assert found.depth == depth and found.values.dtype == (np.uint16 if depth == 16 else np.uint8)
    colors = pixels[..., 0] if CHANNELS[color_type] < 3 else pixels[..., :3]
    np.testing.assert_array_equal(found.values, colors)
    if color_type in (GREY_ALPHA, RGBA):
        alpha = pixels[..., -1]
        np.testing.assert_array_equal(found.alpha == 0, alpha == 0)
        np.testing.assert_array_equal(found.alpha == 255, alpha == 2**depth - 1)
    else:
        assert found.alpha is None
    if color_type == INDEXED:
        np.testing.assert_array_equal(found.rgb(), np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))


def test_transparent_entries_values_and_colours(rng):
    indices = rng.integers(0, 4, (6, 7))
    found = read_png(png_file(indices, INDEXED, 2, palette=np.zeros((4, 3)), transparency=b"\x00\x80"))
    np.testing.assert_array_equal(found.alpha, np.array([0, 128, 255, 255])[indices])
    np.testing.assert_array_equal(found.values, indices)
    found = read_png(png_file(indices, GREY, 4, transparency=b"\x00\x02"))
    np.testing.assert_array_equal(found.alpha, np.where(indices == 2, 0, 255))
    np.testing.assert_array_equal(found.values, indices)
    colors = rng.integers(0, 2, (6, 7, 3))
    found = read_png(png_file(colors, RGB, transparency=b"\x00\x01\x00\x00\x00\x01"))
    np.testing.assert_array_equal(found.alpha, np.where((colors == (1, 0, 1)).all(axis=2), 0, 255))


def test_16_bit_colours_that_8_bits_stand_for(rng):
    colors = rng.integers(0, 256, (4, 5, 3))
    np.testing.assert_array_equal(read_png(png_file(colors * 257, RGB, 16)).rgb(), colors)
    colors[1, 1] = 3
    with pytest.raises(ImageError, match="Save the mask with 8 bits"):
        read_png(png_file(colors * 256, RGB, 16)).rgb()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (png_file(np.full((2, 2), 3), INDEXED, 8, palette=[(0, 0, 0)]), "index 3 of a palette of 1 colours"),
        (png_file(np.zeros((2, 2)), INDEXED, 8), "palette of 0 colours"),
        (png_file(np.zeros((2, 2, 3)), RGB, transparency=b"\0\0"), "transparent colour is too short"),
        (b"\xff\xd8 not a png", "not a png file"),
    ],
)
def test_broken_files(file, words):
    with pytest.raises(ImageError, match=words):
        read_png(file)


@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS), flips=st.integers(1, 4))
@settings(max_examples=150)
def test_flipped_bytes_with_true_check_sums_give_pixels_or_an_image_error(seed, kind, flips):
    rng = np.random.default_rng(seed)
    color_type, depth = kind
    pixels = rng.integers(0, 2**depth, (5, 6, CHANNELS[color_type]))
    palette = np.zeros((2**depth, 3)) if color_type == INDEXED else ()
    file = bytearray(png_file(pixels, color_type, depth, palette=palette))
    for place in rng.integers(16, 29, flips):
        file[place] ^= int(rng.integers(1, 256))
    file[29:33] = zlib.crc32(file[12:29]).to_bytes(4, "big")
    try:
        read_png(bytes(file))
    except ImageError:
        pass
