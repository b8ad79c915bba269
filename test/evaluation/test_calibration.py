# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Expected calibration error and temperature, by hand and against a search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vtseg_ros.evaluation.calibration import (
    TEMPERATURES,
    ConfidenceCounts,
    TemperatureFit,
    expected_calibration_error,
)


def test_error_by_hand():
    # 4 pixels of confidence 0.9 of which 3 are right, 6 of 0.5 of which 3 are: |3.6 - 3| + |3 - 3| over 10.
    error = expected_calibration_error(np.array([4.0, 6]), np.array([3.6, 3.0]), np.array([3.0, 3]))
    assert error == pytest.approx(6)
    assert np.isnan(expected_calibration_error(*np.zeros((3, 2))))


def test_error_of_logits_by_hand():
    """Two classes, logits log 4 and 0: confidence 0.8 of the first; 3 of 4 labels agree."""
    fit = TemperatureFit()
    logits = torch.tensor([[np.log(4.0), 0.0]]).float().expand(4, 2)
    fit.update(logits, torch.tensor([0, 0, 0, 1]), torch.eye(2, dtype=torch.bool))
    assert fit.error() == pytest.approx(5, abs=1e-3)
    assert fit.sums[0, 0] == pytest.approx(3 * np.log(1.25) + np.log(5), rel=1e-5)


def test_the_temperature_is_found():
    """Labels drawn from a softmax whose logits then are made 2.5 times larger: about that temperature undoes it."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(20000, 4, generator=generator) * 1.5
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    fit = TemperatureFit()
    for part in range(4):
        fit.update(2.5 * logits[part::4], labels[part::4], torch.eye(4, dtype=torch.bool))
    losses = [F.cross_entropy(2.5 * logits / t, labels).item() for t in (1.0, *TEMPERATURES)]
    assert fit.best() == int(np.argmin(losses)) and fit.temperature() == pytest.approx(2.5, rel=0.08)
    assert fit.error() > 10 and fit.error(fit.best()) < 2


def test_groups_count_by_their_summed_probability():
    """Classes 0 and 1 are one group: its probability is 0.8, and a mask of 0 is right."""
    fit = TemperatureFit()
    members = torch.tensor([[True, True, False], [False, False, True]])
    fit.update(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([0]), members)
    assert fit.sums[0, 0] == pytest.approx(-np.log(0.8), rel=1e-5)
    assert fit.error() == pytest.approx(50, abs=1e-3)  # confidence 0.5, right


def test_without_pixels_the_temperature_is_one():
    fit = TemperatureFit()
    fit.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), torch.eye(3, dtype=torch.bool))
    assert fit.temperature() == 1.0 and np.isnan(fit.error())


def test_error_of_masks_by_hand():
    """Confidence 204 / 255 = 0.8, three of four right: 5; unlabelled pixels of mask and label do not count."""
    counts = ConfidenceCounts()
    mask = np.array([[0, 0, 1, 1, 1, 255]], np.uint8)
    label = np.array([[0, 0, 1, 0, 255, 1]], np.uint8)
    counts.update(mask, np.full((1, 6), 204, np.uint8), label)
    assert counts.counts.sum() == 4 and counts.error() == pytest.approx(5)
