# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The VTSeg decoder: from static logits and RGB to feature maps of the semantic space (paper, Section III-D)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtseg_ros.model.blocks import NORM_EPS, VTDecBlock, VTEncBlock, VTLayer, fold_normalization
from vtseg_ros.model.cache import FrameCache, LayerPlace
from vtseg_ros.model.encoder import VTSegEncoder, build_encoder_blocks, layer_options
from vtseg_ros.model.vtseg_config import STAGES, VTSegConfig


class VTDecConcat(nn.Module):
    """GELU(LayerNorm over the classes) of the static logits, then the RGB channels (VTDec Concat)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_classes, eps=NORM_EPS)

    def forward(self, static_logits: Tensor, rgb: Tensor) -> Tensor:
        """Join logits (n, C, H, W) and images (n, 3, H, W) in [0, 1] to (n, C + 3, H, W)."""
        normed = self.norm(static_logits.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return torch.cat([F.gelu(normed), rgb.to(normed.dtype)], dim=1)


class VTSegDecoder(nn.Module):
    """A VTEncBlock and a VTDecBlock, which attends to the encoder's map, for each stage.

    Args:
        config: the network's hyperparameters.
    """

    def __init__(self, config: VTSegConfig) -> None:
        super().__init__()
        self.band = config.band
        self.concat = VTDecConcat(config.num_classes)
        self.enc_blocks = build_encoder_blocks(
            config, in_channels=config.num_classes + 3, name="decoder_self", newest_suffices_at_end=True
        )
        self.dec_blocks = nn.ModuleList(
            VTDecBlock(
                dim=config.embed_dims[stage],
                places=[
                    LayerPlace(f"decoder_cross_{stage + 1}", index, newest_suffices=stage == STAGES - 1)
                    for index in range(config.depths[stage])
                ],
                **layer_options(config, stage),
            )
            for stage in range(STAGES)
        )

    def forward(
        self,
        static_logits: Tensor,
        video: Tensor,
        features: list[Tensor],
        cache: FrameCache | None = None,
        additions: Sequence[Tensor] = (),
    ) -> list[Tensor]:
        """Decode a window.

        Args:
            static_logits: (B, k, C, H, W).
            video: (B, k, 3, H, W) in [0, 1].
            features: the encoder's four maps, each (B, k', C_i, H_i, W_i), of as many frames or, with a cache, more.
            cache: see `VTSeg.forward`.
            additions: maps (B, k, C_i, H_i, W_i) to add to the outputs of the first VTEncBlocks.

        Returns:
            D_1..D_4, each (B, k_i, C_i, H_i, W_i), of the frames that the cache selects, newest last.
        """
        cache = cache or FrameCache(band=self.band)
        y = self.concat(static_logits.flatten(0, 1), video.flatten(0, 1))  # (B*k, C + 3, H, W)
        y = y.unflatten(0, video.shape[:2])
        maps = []
        for stage, (enc_block, dec_block, memory) in enumerate(
            zip(self.enc_blocks, self.dec_blocks, features)
        ):
            y = enc_block(y, cache)
            if stage < len(additions):
                y = y + additions[stage]
            y = dec_block(y, memory, cache)
            maps.append(y)
        return maps

    @torch.no_grad()
    def start_from(self, encoder: VTSegEncoder, mean: Tensor, std: Tensor) -> None:
        """Copy the encoder's weights to the decoder's VTEncBlocks, and initialise the other layers so that they add nothing.

        The decoder then starts from the encoder's features of the RGB image. Training increases the influence of the static
        logits and the VTDecBlocks (our choice; the paper does not specify the initialisation of the decoder).

        Args:
            encoder: of the same configuration.
            mean: (3,), of the encoder's normalisation of RGB; the decoder's own RGB is in [0, 1].
            std: (3,), of the encoder's normalisation of RGB.
        """
        for own, given in zip(self.enc_blocks, encoder.blocks):
            state = given.state_dict()
            if own is self.enc_blocks[0]:
                weight, state["embed.proj.bias"] = fold_normalization(
                    state["embed.proj.weight"], state["embed.proj.bias"], mean, std
                )
                channels = cast(VTEncBlock, own).embed.proj.in_channels - 3
                logits = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
                state["embed.proj.weight"] = torch.cat([logits, weight], dim=1)
            own.load_state_dict(state)
        for block in self.dec_blocks:
            for layer in cast("list[VTLayer]", cast(VTDecBlock, block).layers):
                for last in (layer.attention.proj, layer.mlp.fc2):
                    last.weight.zero_()
                    last.bias.zero_()
