"""The loss by hand."""

from __future__ import annotations

import math

import pytest
import torch

from vtseg_ros.training.loss import cross_entropy_sum, labelled_pixels


def test_sum_over_labelled_pixels_by_hand():
    logits = torch.tensor([[0.0, 0.0, 5.0], [math.log(3), 0.0, -5.0]]).reshape(1, 1, 2, 1, 3)
    labels = torch.tensor([1, 0, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    # -log(3 / 4), -log(1 / 2), and nothing for the void pixel.
    assert cross_entropy_sum(logits, labels).item() == pytest.approx(math.log(4 / 3) + math.log(2))
    assert labelled_pixels(labels).item() == 2


def test_image_and_video_shapes_agree():
    logits, labels = torch.randn(2, 3, 4, 5, 6), torch.randint(0, 4, (2, 3, 5, 6), dtype=torch.uint8)
    assert torch.allclose(
        cross_entropy_sum(logits, labels), cross_entropy_sum(logits.flatten(0, 1), labels.flatten(0, 1))
    )
