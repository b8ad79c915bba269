"""The loss: cross-entropy over labelled pixels (paper, Section IV-B)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vtseg_ros.labels import IGNORE


def labelled_pixels(labels: Tensor) -> Tensor:
    """Number of pixels that have a label, as a scalar int64 tensor."""
    return (labels != IGNORE).sum()


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross-entropy over labelled pixels, nats; divide by the count of all batches and ranks.

    Args:
        logits: (..., C, H, W).
        labels: (..., H, W) class ids; 255 is left out.
    """
    flat = logits.flatten(0, -4) if logits.dim() > 4 else logits
    return F.cross_entropy(flat.float(), labels.flatten(0, -3).long(), ignore_index=IGNORE, reduction="sum")
