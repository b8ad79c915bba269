# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vtseg_ros.errors import ConfigError
from vtseg_ros.evaluation.metrics import ConfusionMatrix
from vtseg_ros.evaluation.temporal import FlowImage, VideoConsistency, WarpedConsistency


def u8(*rows):
    return np.array(rows, np.uint8)


def test_confusion_by_hand():
    matrix = ConfusionMatrix(4)
    # label:   0 0 0 1 1 2 void; mask: 0 0 1 1 255 2 3
    matrix.update(u8([0, 0, 1, 1, 255, 2, 3]), u8([0, 0, 0, 1, 1, 2, 255]))
    iou = matrix.iou()
    # class 0: TP 2, FN 1; class 1: TP 1, FP 1, FN 1 (the 255); class 2: TP 1; class 3 only on void.
    assert iou[:3].tolist() == pytest.approx([100 * 2 / 3, 100 / 3, 100.0])
    assert math.isnan(iou[3])
    assert matrix.miou() == pytest.approx((200 / 3 + 100 / 3 + 100) / 3)
    assert matrix.recall()[:3].tolist() == pytest.approx([100 * 2 / 3, 50.0, 100.0])
    assert math.isnan(matrix.recall()[3])
    assert matrix.pixel_accuracy() == pytest.approx(100 * 4 / 6)


def test_nothing_labelled():
    matrix = ConfusionMatrix(2)
    matrix.update(u8([0, 1]), u8([255, 255]))
    assert math.isnan(matrix.miou()) and math.isnan(matrix.pixel_accuracy())


def test_merge_is_the_sum():
    one, two, both = (ConfusionMatrix(3) for _ in range(3))
    rng = np.random.default_rng(0)
    for part in (one, two):
        mask, label = rng.integers(0, 3, (2, 4, 4), dtype=np.uint8)
        part.update(mask, label)
        both.update(mask, label)
    one.merge(two)
    assert np.array_equal(one.matrix, both.matrix)


def test_wrong_input():
    with pytest.raises(ConfigError, match="not of the label's size"):
        ConfusionMatrix(2).update(u8([0]), u8([0, 1]))
    with pytest.raises(ConfigError, match="got 5"):
        ConfusionMatrix(2).update(u8([0]), u8([5]))


def test_video_consistency_by_hand():
    consistency = VideoConsistency(2)
    labels = [u8([0, 0, 1, 255]), u8([0, 0, 0, 255]), u8([0, 0, 0, 0])]
    masks = [u8([0, 1, 1, 0]), u8([0, 0, 0, 0]), u8([0, 0, 0, 0])]
    for mask, label in zip(masks, labels):
        consistency.update(mask, label)
    # First pair: pixels 0, 1 keep their label, pixel 0 is right in both. Second: 0, 1, 2 keep it, all right.
    assert consistency.score() == pytest.approx((50.0 + 100.0) / 2)


def test_video_consistency_needs_enough_frames():
    consistency = VideoConsistency(8)
    for _ in range(7):
        consistency.update(u8([0]), u8([0]))
    assert math.isnan(consistency.score())


def test_warped_consistency_follows_the_motion():
    rng = np.random.default_rng(1)
    import cv2

    texture = cv2.resize(
        rng.integers(0, 256, (24, 48, 3), dtype=np.uint8), (384, 192), interpolation=cv2.INTER_CUBIC
    )
    mask = (np.arange(384) // 64 % 2).astype(np.uint8)[None].repeat(192, 0)
    moving, still = WarpedConsistency(2), WarpedConsistency(2)
    for shift in (0, 6, 12):
        image = FlowImage(texture[:, 30 + shift : 350 + shift])
        moving.update(image, mask[:, 30 + shift : 350 + shift])  # the mask moves with the picture
        still.update(image, mask[:, 30:350])  # the mask does not
    assert moving.score() > 93 and moving.score() > still.score() + 5


def test_flow_is_estimated_once_for_all_systems(monkeypatch):
    """Three systems over four images have three pairs; images that no system needs any more are released."""
    import weakref

    import cv2

    rng = np.random.default_rng(2)
    frames = rng.integers(0, 256, (4, 32, 64, 3), dtype=np.uint8)
    estimators = []
    create = cv2.DISOpticalFlow.create
    monkeypatch.setattr(
        "vtseg_ros.evaluation.temporal.cv2.DISOpticalFlow.create",
        lambda preset: estimators.append(preset) or create(preset),
    )
    systems = [WarpedConsistency(2) for _ in range(3)]
    seen = []
    for frame in frames:
        image = FlowImage(frame, width=64)
        for system in systems:
            system.update(image, np.zeros((32, 64), np.uint8))
        seen.append(weakref.ref(image))
    del image
    assert len(estimators) == 3
    assert [kept() is not None for kept in seen] == [False, False, False, True]
