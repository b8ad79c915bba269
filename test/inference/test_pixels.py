# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Logits to masks at the edges of their sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vtseg_ros.inference import postprocess as pixels


@pytest.mark.parametrize("size", [(640, 500), (33, 17), (64, 7)])
def test_bands_give_the_whole_pictures_mask(monkeypatch, size):
    logits = torch.randn(1, 14, 32, 64, generator=torch.Generator().manual_seed(2)) * 3
    options = pixels.MaskOptions(size, min_confidence=0.3)
    mask, confidence = pixels.to_mask(logits, options)
    monkeypatch.setattr(pixels, "MAX_LOGITS", 1000)
    monkeypatch.setattr(pixels, "BAND_LOGITS", 50_000)
    in_bands, its_confidence = pixels.to_mask(logits, options)
    assert in_bands.shape == (size[1], size[0]) and (mask == in_bands).mean() > 0.9999
    assert np.abs(confidence.astype(int) - its_confidence).max() <= 1
    alone, nothing = pixels.to_mask(logits, replace(options, with_confidence=False))
    np.testing.assert_array_equal(alone, in_bands)
    assert nothing.size == 0
