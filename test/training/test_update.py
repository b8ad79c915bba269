# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Gradients of one update, against the same loss written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("lightning_fabric")

from vtseg_ros.model import VTSeg, VTSegConfig
from vtseg_ros.training.processes import launch
from vtseg_ros.training.update import backward


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_static_networks_own_loss_joins_by_its_weight(weight):
    """Two batches of one window: the mean is over the labelled pixels of both, for either loss."""
    torch.manual_seed(0)
    model = VTSeg(VTSegConfig.preset("tiny", num_classes=3, window=2)).eval()
    fabric = launch("cpu", "fp32")
    module = fabric.setup(model)
    video = torch.randint(0, 256, (2, 2, 3, 32, 64), dtype=torch.uint8)
    labels = torch.randint(0, 3, (2, 2, 32, 64), dtype=torch.uint8)
    labels[0, :, :20] = 255  # the first window has fewer labelled pixels
    chunk = [[video[i : i + 1], labels[i : i + 1]] for i in range(2)]
    loss = backward(fabric, module, chunk, image_network=False, static_loss=weight)
    names, parameters = zip(*model.named_parameters())
    got = [p.grad.clone() for p in parameters]

    images, truth = video.float() / 255, labels.flatten(0, 1).long()
    logits = model(images).flatten(0, 1)
    static = model.static_prior(images.flatten(0, 1))
    expected = F.cross_entropy(logits, truth, ignore_index=255)
    expected = expected + weight * F.cross_entropy(static, truth, ignore_index=255)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, value, reference in zip(names, got, torch.autograd.grad(expected, parameters)):
        scale = float(reference.abs().max())
        assert torch.allclose(value, reference, rtol=1e-3, atol=1e-4 * scale + 1e-9), name
