"""Logits of a static network with a class list of its own, in VTSeg's classes."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn


class ClassMapping(nn.Module):
    """Each target class takes the largest logit of the source classes that map to it.

    A target without a source takes the smallest logit of its pixel, so that it is never favoured.

    Args:
        mapping: for each source class its target class, or -1 for none.
        num_classes: number C of target classes.
    """

    def __init__(self, mapping: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.sources = tuple(
            tuple(source for source, target in enumerate(mapping) if target == wanted)
            for wanted in range(num_classes)
        )

    def forward(self, logits: Tensor) -> Tensor:
        """(n, C_prior, H, W) -> (n, C, H, W)."""
        lowest = logits.amin(dim=1)  # (n, H, W)
        # Slices, not lists of indices: those are uploaded anew each time, which a CUDA graph cannot capture.
        columns = [
            reduce(torch.maximum, [logits[:, source] for source in sources]) if sources else lowest
            for sources in self.sources
        ]
        return torch.stack(columns, dim=1)
