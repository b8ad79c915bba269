# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Corrupted frames in training windows: which ones, how often, with the functions of the robustness scores."""

from __future__ import annotations

import numpy as np
import pytest

from vtseg_ros.dataset.augmentation import Augmentation, AugmentationConfig
from vtseg_ros.dataset.corrupted_frames import CorruptedFrame, draw_corrupted_frames
from vtseg_ros.dataset.corruptions import FROZEN, KINDS, Corruption
from vtseg_ros.errors import ConfigError


def draw(frames, rng, *, share=1.0, newest=0.5, kinds=(), severity=(1, 5)):
    return draw_corrupted_frames(frames, share=share, newest=newest, kinds=kinds, severity=severity, rng=rng)


def test_a_run_ends_with_the_newest_frame_or_before_it():
    rng = np.random.default_rng(0)
    windows = [tuple(one.frame for one in draw(4, rng, newest=0.7)) for _ in range(1000)]
    runs = {
        (first, *range(first + 1, last + 1))
        for last in range(4)
        for first in range(max(0, last - 2), last + 1)
    }
    assert set(windows) == runs and len(runs) == 9  # 1 to 3 adjacent frames
    assert (
        642 < sum(3 in window for window in windows) < 758
    )  # of 1000: 700, four standard deviations of 14.5
    assert {tuple(one.frame for one in draw(2, rng)) for _ in range(50)} == {(0,), (1,)}
    assert {tuple(one.frame for one in draw(1, rng)) for _ in range(50)} == {(0,), ()}


def test_the_share_of_the_windows_and_one_kind_per_window():
    rng = np.random.default_rng(1)
    windows = [draw(3, rng, share=0.25, newest=0.0, severity=(2, 3)) for _ in range(2000)]
    corrupted = [window for window in windows if window]
    assert 422 < len(corrupted) < 578  # of 2000: 500, four standard deviations of 19.4
    assert all(len({one.corruption for one in window}) == 1 for window in corrupted)
    assert all(len({one.draw for one in window}) == len(window) for window in corrupted)
    assert {len(window) for window in corrupted} == {1, 2}
    assert {window[0].corruption.kind for window in corrupted} == set(KINDS)
    assert {window[0].corruption.severity for window in corrupted} == {2, 3}
    assert {draw(2, rng, kinds=("dirt",))[0].corruption.kind for _ in range(9)} == {"dirt"}


def test_without_corruption_nothing_is_drawn():
    """Without corruption, the windows are the same as before the option was added."""
    rng = np.random.default_rng(2)
    assert draw(4, rng, share=0.0) == ()
    assert rng.random() == np.random.default_rng(2).random()


def test_a_frame_is_corrupted_as_in_the_scores():
    video = np.random.default_rng(3).integers(0, 256, (2, 32, 64, 3), dtype=np.uint8)
    before = video.copy()
    corruption = Corruption(kind="lost_rows", severity=3)
    CorruptedFrame(1, corruption, 17).apply(video)
    np.testing.assert_array_equal(video[0], before[0])
    np.testing.assert_array_equal(video[1], corruption.apply(before[1], 17))
    assert (video[1] != before[1]).any()


def test_a_frozen_frame_shows_the_one_before():
    video = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(64, 2).repeat(3, 3)
    frozen = Corruption(kind=FROZEN)
    CorruptedFrame(2, frozen, 0).apply(video)
    assert video[:, 0, 0, 0].tolist() == [0, 1, 1]
    CorruptedFrame(0, frozen, 0).apply(video)  # there is none before: it stays
    assert video[:, 0, 0, 0].tolist() == [0, 1, 1]


def test_windows_are_corrupted_after_all_else_and_labels_are_not():
    rng = np.random.default_rng(4)
    video = rng.integers(0, 256, (4, 32, 64, 3), dtype=np.uint8)
    labels = rng.integers(0, 14, (4, 32, 64), dtype=np.uint8)
    options = dict(corruption_newest=1.0, corruption_kinds=("black",))
    plain, corrupted = (
        Augmentation(AugmentationConfig(**values)).draw(4, (64, 32), np.random.default_rng(5))
        for values in ({}, {"corruption": 1.0, **options})
    )
    (one, one_labels), (other, other_labels) = plain.apply(video, labels), corrupted.apply(video, labels)
    np.testing.assert_array_equal(one_labels, other_labels)
    shown = [frame for frame in range(4) if other[frame].any()]
    assert one.any((1, 2, 3)).all() and 3 not in shown and len(shown) >= 1
    np.testing.assert_array_equal(one[shown], other[shown])


@pytest.mark.parametrize("name", ["corruption", "corruption_newest"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"augmentation.{name}: out of range; expected 0..1"):
        AugmentationConfig(**{"corruption": 1.0, name: value})
