# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Losses: cross-entropy over labelled pixels (paper, Section IV-B), labels of class groups, and soft targets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vtseg_ros.label_set import IGNORE


def labelled_pixels(labels: Tensor) -> Tensor:
    """Return the number of pixels that have a label, as a scalar int64 tensor."""
    return (labels != IGNORE).sum()


def cross_entropy_sum(logits: Tensor, labels: Tensor, members: Tensor | None = None) -> Tensor:
    """Return the sum of the cross-entropy over labelled pixels, nats.

    The sum is meant to be divided by the number of labelled pixels of all batches and processes.

    Args:
        logits: (..., C, h, w); smaller ones are upsampled bilinearly to H x W.
        labels: (..., H, W) integer ids: classes, from C on groups of classes; 255 is ignored.
        members: (G, C) bool, the classes of each group. The loss of a group is -log of the summed probability of its
            classes. None = no groups.
    """
    flat = logits.flatten(0, -4) if logits.dim() > 4 else logits
    labels = labels.flatten(0, -3).long()
    seen = (labels != IGNORE).flatten(1).any(1)
    if not bool(seen.all()):  # the softmax of images without a label is not worth its time
        flat, labels = flat[seen], labels[seen]
    flat = flat.float()
    if flat.shape[2:] != labels.shape[1:]:
        flat = F.interpolate(flat, size=labels.shape[1:], mode="bilinear", align_corners=False)
    if members is None or not len(members):
        return F.cross_entropy(flat, labels, ignore_index=IGNORE, reduction="sum")
    grouped = (labels >= flat.shape[1]) & (labels != IGNORE)
    single = F.cross_entropy(flat, labels.masked_fill(grouped, IGNORE), ignore_index=IGNORE, reduction="sum")
    rows = flat.permute(0, 2, 3, 1)[grouped]  # (P, C)
    inside = members[labels[grouped] - flat.shape[1]]
    # logsumexp factors out the largest term, so no probability underflows to log(0).
    return single + (rows.logsumexp(1) - rows.masked_fill(~inside, -torch.inf).logsumexp(1)).sum()


def divergence_sum(logits: Tensor, target: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Return the weighted sum over pixels of KL(target || softmax(logits / T)) * T^2, nats.

    T^2 keeps the scale of the gradients when T changes (Hinton et al., "Distilling the Knowledge in a Neural Network",
    2015).

    Args:
        logits: (n, C, H, W).
        target: (n, C, H, W) probabilities at the same temperature; they get no gradient.
        weight: (n, H, W) weight of each pixel.
        temperature: Temperature T.
    """
    target = target * weight[:, None]
    # Sum of w q log q - w q log p; the first part is constant, and only needed for the reported loss.
    constant = torch.xlogy(target, target).sum() - torch.xlogy(weight, weight).sum()
    crossed = F.cross_entropy(logits.float() / temperature, target, reduction="sum")
    return (crossed + constant) * temperature**2
