"""The static network of a VTSeg on its own, to compare the two."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vtseg_ros.model.priors import is_own
from vtseg_ros.model.vtseg import VTSeg


class StaticBranch(nn.Module):
    """What a VTSeg's decoder starts from: its static network, normalised and in VTSeg's classes.

    Args:
        model: whose static network; shared, not copied.
    """

    def __init__(self, model: VTSeg) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) in [0, 1] -> float32 logits (n, C, H, W)."""
        return self.model.static_logits(images).float()

    def own_parts(self) -> list[nn.Module]:
        """See `VTSeg.own_parts`."""
        prior = self.model.static_prior
        return [prior] if is_own(prior) else []

    def for_inference(self, convert: Callable[[nn.Module], nn.Module], dtype: torch.dtype) -> StaticBranch:
        """See `VTSeg.for_inference`."""
        return StaticBranch(self.model.for_inference(convert, dtype))
