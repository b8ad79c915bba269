"""The static network of a VTSeg on its own, to compare the two."""

from __future__ import annotations

from torch import Tensor, nn

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
