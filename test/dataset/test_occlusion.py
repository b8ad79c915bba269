# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Partly covered frames: number, places and repeatability; other pixels are not changed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtseg_ros.dataset.augmentation import Augmentation, AugmentationConfig
from vtseg_ros.dataset.occlusion import Cover, draw_covers
from vtseg_ros.errors import ConfigError


def test_a_cover_fills_its_rectangle_and_nothing_else():
    video = np.zeros((2, 4, 6, 3), np.uint8)
    Cover(1, x=2, y=1, width=3, height=2, colour=(7, 8, 9)).apply(video)
    expected = np.zeros_like(video)
    expected[1, 1:3, 2:5] = (7, 8, 9)
    np.testing.assert_array_equal(video, expected)


@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(32, 2000),
    height=st.integers(32, 2000),
    share=st.floats(0, 1),
)
@settings(max_examples=100)
def test_covers_lie_within_the_picture(seed, width, height, share):
    for cover in draw_covers(4, (width, height), share, np.random.default_rng(seed)):
        assert 0 <= cover.frame < 4
        assert 0 <= cover.x and 1 <= cover.width <= 0.3 * width and cover.x + cover.width <= width
        assert 0 <= cover.y and 1 <= cover.height <= 0.7 * height and cover.y + cover.height <= height
        assert all(0 <= value <= 255 for value in cover.colour)


def test_the_share_of_the_frames():
    rng = np.random.default_rng(0)
    windows = [draw_covers(4, (64, 32), 0.25, rng) for _ in range(1000)]
    covered = sum(len({cover.frame for cover in covers}) for covers in windows)
    assert 890 < covered < 1110  # of 4000: 1000, four standard deviations of 27.4
    counts = [sum(c.frame == 0 for c in covers) for covers in windows]
    assert set(counts) == {0, 1, 2, 3}
    assert not draw_covers(4, (64, 32), 0.0, rng)
    assert {cover.frame for cover in draw_covers(4, (64, 32), 1.0, rng)} == {0, 1, 2, 3}


def test_training_windows_are_covered_and_their_labels_are_not():
    rng = np.random.default_rng(1)
    video = rng.integers(0, 256, (4, 32, 64, 3), dtype=np.uint8)
    labels = rng.integers(0, 14, (4, 32, 64), dtype=np.uint8)
    plain, covered = (
        Augmentation(AugmentationConfig(occlusion=share)).draw(4, (64, 32), np.random.default_rng(2))
        for share in (0.0, 1.0)
    )
    one, one_labels = plain.apply(video, labels)
    other, other_labels = covered.apply(video, labels)
    np.testing.assert_array_equal(one_labels, other_labels)
    for frame in range(4):
        under = np.zeros((32, 64), bool)
        for cover in covered.covers:
            if cover.frame == frame:
                under[cover.y : cover.y + cover.height, cover.x : cover.x + cover.width] = True
        assert under.any()
        np.testing.assert_array_equal(one[frame][~under], other[frame][~under])
        assert (one[frame][under] != other[frame][under]).any()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match="augmentation.occlusion is the share of frames"):
        AugmentationConfig(occlusion=share)
