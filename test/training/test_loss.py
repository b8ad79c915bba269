# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The loss by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vtseg_ros.label_set import IGNORE
from vtseg_ros.training.loss import cross_entropy_sum, divergence_sum, labelled_pixels


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


def test_the_loss_of_a_group_is_minus_log_of_its_summed_probability():
    """Against probabilities written out: ids 3 and 4 are the groups {0, 2} and {1, 2} of three classes."""
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).float()
    labels = torch.tensor([0, 1, 2, 3, 4]).repeat(2, 4, 1)
    labels[0, 0] = 255
    members = torch.tensor([[True, False, True], [False, True, True]])
    probability = logits.double().softmax(1).permute(0, 2, 3, 1)  # (2, 4, 5, 3)
    sets = {0: [0], 1: [1], 2: [2], 3: [0, 2], 4: [1, 2]}
    expected = sum(
        -math.log(probability[place][sets[int(labels[place])]].sum())
        for place in np.ndindex(2, 4, 5)
        if labels[place] != 255
    )
    got = cross_entropy_sum(logits, labels.to(torch.uint8), members)
    assert got.item() == pytest.approx(expected, rel=1e-5)
    # A group of one class is that class, and one of all classes costs nothing.
    one = torch.tensor([[False, True, False], [True, True, True]])
    assert cross_entropy_sum(logits, torch.full((2, 4, 5), 3), one).item() == pytest.approx(
        cross_entropy_sum(logits, torch.full((2, 4, 5), 1)).item(), rel=1e-5
    )
    assert cross_entropy_sum(logits, torch.full((2, 4, 5), 4), one).item() == pytest.approx(0, abs=1e-4)


def test_a_group_of_hopeless_classes_has_finite_loss_and_gradient():
    """exp(-300) is 0 in fp32; the loss is 300 - log 2, and the gradient pulls both members up alike."""
    logits = torch.tensor([300.0, 0.0, 0.0]).reshape(1, 3, 1, 1).requires_grad_()
    members = torch.tensor([[False, True, True]])
    loss = cross_entropy_sum(logits, torch.tensor([[[3]]]), members)
    loss.backward()
    assert loss.item() == pytest.approx(300 - math.log(2))
    assert logits.grad.flatten().tolist() == pytest.approx([1, -0.5, -0.5])


def test_divergence_against_torchs():
    torch.manual_seed(0)
    logits, other = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    target = (other / 2).softmax(1)
    expected = F.kl_div((logits / 2).log_softmax(1), target, reduction="none").sum(1) * 4  # (2, 4, 5)
    weight = torch.rand(2, 4, 5)
    weight[0, 0] = 0
    got = divergence_sum(logits, target, weight, 2.0)
    assert got.item() == pytest.approx((expected * weight).sum().item(), rel=1e-4)
    assert divergence_sum(other, target, weight, 2.0).item() == pytest.approx(0, abs=1e-4)


def test_coarse_logits_are_upsampled_where_there_are_labels():
    logits = torch.randn(2, 3, 2, 4, requires_grad=True)
    labels = torch.randint(0, 3, (2, 16, 32))
    labels[1] = IGNORE
    upsampled = F.interpolate(logits, size=(16, 32), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(upsampled[:1], labels[:1], reduction="sum")
    torch.testing.assert_close(cross_entropy_sum(logits, labels), expected)
