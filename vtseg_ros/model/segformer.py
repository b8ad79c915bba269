# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""SegFormer: the image network that VTSeg's encoder extends, as a static network and as a baseline.

Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vtseg_ros.model.encoder import VTSegEncoder
from vtseg_ros.model.mit import translate_segformer_state_dict
from vtseg_ros.model.normalization import IMAGENET_MEAN, IMAGENET_STD, Normalization
from vtseg_ros.model.registry import Network, register
from vtseg_ros.model.state_dicts import load_exact
from vtseg_ros.model.vtseg_config import VTSegConfig


@dataclass(frozen=True)
class Variant:
    """Sizes of a SegFormer (paper, Tables 6 and 1).

    Args:
        embed_dims: widths of the four stages.
        depths: layers of the four stages.
        decoder_channels: width of the decode head.
    """

    embed_dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    decoder_channels: int


_WIDE = (64, 128, 320, 512)
VARIANTS = {
    "b0": Variant((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": Variant(_WIDE, (2, 2, 2, 2), 256),
    "b2": Variant(_WIDE, (3, 4, 6, 3), 768),
    "b3": Variant(_WIDE, (3, 4, 18, 3), 768),
    "b4": Variant(_WIDE, (3, 8, 27, 3), 768),
    "b5": Variant(_WIDE, (3, 6, 40, 3), 768),
}


def name_of(variant: str) -> str:
    """Return the name of the architecture in checkpoints and configurations."""
    return f"segformer_{variant}"


class SegFormer(Network):
    """Mix Transformer and all-MLP decode head: (n, 3, H, W) RGB in [0, 1] -> logits (n, C, H, W).

    The head's logits at H/4 are upsampled bilinearly. `normalization` contains the mean and standard deviation of the
    RGB that the weights were trained on (0 and 1 by default).

    Args:
        num_classes: C.
        variant: `b0` to `b5`.
        dropout: of the decode head, on its fused features.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        variant: str = "b0",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        sizes = VARIANTS[variant]
        dims, width = sizes.embed_dims, sizes.decoder_channels
        self.num_classes, self.variant = num_classes, variant
        self.normalization = Normalization()
        self.encoder = VTSegEncoder(
            VTSegConfig(num_classes=num_classes, embed_dims=dims, depths=sizes.depths)
        )
        self.linear = nn.ModuleList(nn.Linear(dim, width) for dim in dims)
        self.fuse = nn.Conv2d(width * len(dims), width, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Conv2d(width, num_classes, 1)

    @property
    def architecture(self) -> str:
        """See `Network.architecture`."""
        return name_of(self.variant)

    @property
    def transformers(self) -> tuple[nn.Module, ...]:
        """The parts that `model.init` of a training configuration initialises."""
        return (self.encoder,)

    @property
    def encoder_normalization(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each (3,), of the encoder's RGB."""
        return self.normalization.mean, self.normalization.std

    def load_reference_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load published weights, decode head included.

        Args:
            state: of transformers' SegformerForSemanticSegmentation, or of the authors' code (NVlabs/SegFormer).

        Raises:
            CheckpointError: if keys or shapes are not those of this variant.
        """
        load_exact(self, translate_segformer_state_dict(state), source="SegFormer state dict")

    def load_published(self, state: dict[str, Tensor]) -> None:
        """See `Network.load_published`."""
        self.load_reference_state_dict(state)

    def set_input_normalization(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """See `Network.set_input_normalization`."""
        self.normalization.set(mean, std)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, C, H, W) of images (n, 3, H, W), RGB in [0, 1]."""
        video = self.normalization(images).unsqueeze(1)  # (n, 1, 3, H, W)
        maps = [grid.squeeze(1) for grid in self.encoder(video)]  # (n, C_i, H / s_i, W / s_i)
        size = maps[0].shape[2:]
        levels = []
        for linear, grid in zip(self.linear, maps):
            level = linear(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (n, D, H_i, W_i)
            levels.append(F.interpolate(level, size=size, mode="bilinear", align_corners=False))
        fused = F.relu(self.norm(self.fuse(torch.cat(levels[::-1], dim=1))))
        logits = self.classify(self.dropout(fused))
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)

    def fused(self) -> SegFormer:
        """Move the decode head's BatchNorm into the convolution before it, in place."""
        norm = cast(nn.BatchNorm2d, self.norm)
        self.fuse, self.norm = fuse_conv_bn_eval(self.fuse, norm), nn.Identity()
        return self


for _variant in VARIANTS:
    register(
        name_of(_variant),
        title=f"SegFormer-{_variant.upper()}",
        build=partial(SegFormer, variant=_variant),
        options=("init", "init_encoder", "normalize_encoder"),
        class_dimensions={r"classify\.(weight|bias)": (0,)},
        normalization=(IMAGENET_MEAN, IMAGENET_STD),
        sizes=None if _variant == "b0" else {},  # the cost tables list the smallest one only
    )(SegFormer)
