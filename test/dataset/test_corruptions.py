# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Corruptions: schedules by hand, definitions against their sources, determinism."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest
from bags.bagtools import write_bag
from hypothesis import given
from hypothesis import strategies as st

from vtseg_ros.dataset.corrupted_store import CorruptedStore
from vtseg_ros.dataset.corruptions import FROZEN, KINDS, SEVERITIES, TRANSFORMS, Corruption
from vtseg_ros.dataset.frame_store import BagSource, FrameIndex, FrameStore
from vtseg_ros.errors import ConfigError


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    rng = np.random.default_rng(4)
    coarse = rng.integers(30, 226, (14, 28, 3), dtype=np.uint8)
    return cv2.resize(coarse, (448, 224), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(
    ("share", "run", "corrupted"),
    [
        (Fraction(1, 3), 1, [2, 5, 8, 11]),
        (Fraction(1, 2), 1, [1, 3, 5, 7, 9, 11]),
        (Fraction(1, 3), 2, [4, 5, 10, 11]),
        (Fraction(1, 2), 3, [3, 4, 5, 9, 10, 11]),
        (Fraction(2, 3), 1, [1, 2, 4, 5, 7, 8, 10, 11]),
        (Fraction(1), 1, list(range(12))),
    ],
)
def test_which_frames_are_corrupted(share, run, corrupted):
    corruption = Corruption(kind="dirt", share=share, run=run)
    assert [position for position in range(12) if corruption.affects(position)] == corrupted


@given(share=st.fractions(Fraction(1, 50), 1), run=st.integers(1, 3))
def test_the_share_holds_over_many_frames(share, run):
    corruption = Corruption(kind="dirt", share=share, run=run)
    count = sum(corruption.affects(position) for position in range(3000))
    assert abs(count - 3000 * share) <= run


def test_frozen_frames_show_the_last_clean_one():
    corruption = Corruption(kind=FROZEN, share=Fraction(1, 2), run=3)
    assert [corruption.source(position) for position in range(9)] == [0, 1, 2, 2, 2, 2, 6, 7, 8]
    assert Corruption(kind="dirt", share=Fraction(1, 2), run=3).source(4) == 4


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_results_are_deterministic_images_and_leave_the_input_unchanged(kind, image):
    before = image.copy()
    for severity in SEVERITIES:
        corruption = Corruption(kind=kind, severity=severity)
        once, again = corruption.apply(image, 7), corruption.apply(image, 7)
        assert once.shape == image.shape and once.dtype == np.uint8 and once.flags.c_contiguous
        np.testing.assert_array_equal(once, again)
        np.testing.assert_array_equal(image, before)
        assert (once != image).any()


@pytest.mark.parametrize("kind", [kind for kind in TRANSFORMS if kind != "black"])
def test_a_higher_severity_changes_more(kind, image):
    changes = [
        np.mean(
            [cv2.absdiff(Corruption(kind=kind, severity=s).apply(image, d), image).mean() for d in range(12)]
        )
        for s in SEVERITIES
    ]
    assert changes == sorted(changes), changes


def test_shot_noise_has_the_variance_of_imagenet_c():
    """Poisson counts of x * c photons, divided by c: variance x / c, here for x = 0.5."""
    gray = np.full((300, 300, 3), 128, np.uint8)
    for severity, photons in zip((1, 2, 3), (60, 25, 12)):
        noisy = Corruption(kind="shot_noise", severity=severity).apply(gray, 1) / 255.0
        assert noisy.mean() == pytest.approx(128 / 255, abs=0.004)
        assert noisy.var() == pytest.approx(128 / 255 / photons, rel=0.05)


def test_brightness_adds_to_the_value_channel():
    pixel = np.full((4, 4, 3), (100, 50, 20), np.uint8)
    bright = Corruption(kind="brightness", severity=2).apply(pixel, 0)
    assert bright[0, 0].max() == 151  # 100 + 0.2 * 255
    assert bright[0, 0, 1] == pytest.approx(151 * 50 / 100, abs=2)  # hue and saturation stay


def test_blur_keeps_the_mean_and_scales_with_the_height(image):
    spread = {}
    for scale in (1, 2):
        large = np.zeros((224 * scale, 224 * scale, 3), np.uint8)
        large[112 * scale, 112 * scale] = 255
        for kind in ("defocus", "motion_blur"):
            out = Corruption(kind=kind, severity=3).apply(large, 0)
            spread[kind, scale] = max(np.ptp(axis) for axis in np.nonzero(out.any(axis=2)))
    # The disc's diameter of 12 and 24 px; its smoothed rim may fall below half a grey value.
    assert spread["defocus", 1] == pytest.approx(12, abs=2)
    assert spread["defocus", 2] == pytest.approx(24, abs=2)
    assert spread["motion_blur", 2] == pytest.approx(2 * spread["motion_blur", 1], rel=0.2)
    blurred = Corruption(kind="defocus", severity=5).apply(image, 0)
    assert blurred.mean() == pytest.approx(image.mean(), abs=1.0)


def test_dirt_and_lost_rows_cover_the_stated_share():
    gray = np.full((180, 320, 3), 200, np.uint8)
    dirty = Corruption(kind="dirt", severity=4).apply(gray, 3)
    assert (dirty < 155).all(axis=2).mean() == pytest.approx(
        0.3, abs=0.03
    )  # darker than half-way to the patch
    lost = Corruption(kind="lost_rows", severity=4).apply(gray, 3)
    rows = (lost == 128).all(axis=(1, 2))
    assert rows.mean() == pytest.approx(0.5, abs=0.01)
    assert ((lost == 128).all(axis=(1, 2)) | (lost == 200).all(axis=(1, 2))).all()


def test_exposure_jumps_both_ways():
    gray = np.full((8, 8, 3), 60, np.uint8)
    values = {
        int(Corruption(kind="exposure_jump", severity=2).apply(gray, draw)[0, 0, 0]) for draw in range(20)
    }
    assert values == {30, 120}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dirt:3", Corruption(kind="dirt", severity=3)),
        ("glare:5:1/4", Corruption(kind="glare", severity=5, share=Fraction(1, 4))),
        ("black:1:0.5", Corruption(kind="black", severity=1, share=Fraction(1, 2))),
    ],
)
def test_parsing(text, expected):
    assert Corruption.parse(text) == expected
    assert Corruption.parse(text.split(",")[0], run=2).run == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dirt", "expected KIND:SEVERITY"),
        ("dirt:3:0.5:1", "expected KIND:SEVERITY"),
        ("dirt:x", "expected KIND:SEVERITY or KIND:SEVERITY:SHARE with numbers"),
        ("dirt:3:1/0", "with numbers"),
        ("dirt:0", "expected 1 to 5, got 0"),
        ("dirt:3:0", "above 0 and at most 1, got 0"),
        ("dirt:3:1.5", "above 0 and at most 1, got 1.5"),
        ("mud:3", "expected one of shot_noise, .*, got 'mud'"),
    ],
)
def test_bad_text_is_refused(text, problem):
    with pytest.raises(ConfigError, match=problem):
        Corruption.parse(text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_corrupts_its_schedule_in_every_sequence(tmp_path, kind):
    """Two sequences, 2.5 s apart: each is counted from its own start."""
    stamps = [i / 10 for i in range(7)] + [3 + i / 10 for i in range(7)]
    index = FrameIndex([BagSource(write_bag(tmp_path / "bag", stamps))])
    plain, store = FrameStore(index), CorruptedStore(index, Corruption(kind=kind, severity=3))
    parts = [store.part(number) for number in range(14)]
    corrupted = [number for number in range(14) if parts[number] == "corrupted"]
    assert corrupted == [2, 5, 9, 12]
    assert [number for number in range(14) if parts[number] == "recovering"] == [3, 6, 10, 13]
    for number in range(14):
        image, clean = store.image(number), plain.image(number)
        if number not in corrupted:
            np.testing.assert_array_equal(image, clean)
        elif kind == FROZEN:
            np.testing.assert_array_equal(image, plain.image(number - 1))
        else:
            assert (image != clean).any()
        np.testing.assert_array_equal(store.image(number), image)
        np.testing.assert_array_equal(store.label(number), plain.label(number))
