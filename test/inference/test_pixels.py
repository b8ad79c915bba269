# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Logits to masks at the edges of their sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vtseg_ros.inference import postprocess as pixels


@pytest.mark.parametrize("size", [(640, 500), (33, 17), (64, 7)])
def test_bands_give_the_whole_pictures_mask(monkeypatch, size):
    logits = torch.randn(1, 14, 32, 64, generator=torch.Generator().manual_seed(2)) * 3
    mask, confidence = pixels.to_mask(logits, size, "bilinear", 0.3)
    monkeypatch.setattr(pixels, "MAX_LOGITS", 1000)
    monkeypatch.setattr(pixels, "BAND_LOGITS", 50_000)
    in_bands, its_confidence = pixels.to_mask(logits, size, "bilinear", 0.3)
    assert in_bands.shape == (size[1], size[0]) and (mask == in_bands).mean() > 0.9999
    assert np.abs(confidence.astype(int) - its_confidence).max() <= 1
    masks = [
        pixels.to_mask(logits, size, "bilinear", 0.3, with_confidence=wanted) for wanted in (True, False)
    ]
    np.testing.assert_array_equal(masks[0][0], masks[1][0])
    assert masks[1][1].size == 0
