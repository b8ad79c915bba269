# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The VTSeg encoder: four chained VTEncBlocks; with one frame it is SegFormer's MiT (paper, Section III-C)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from vtseg_ros.model.blocks import VTEncBlock
from vtseg_ros.model.cache import FrameCache, LayerPlace
from vtseg_ros.model.mit import translate_mit_state_dict
from vtseg_ros.model.state_dicts import load_exact
from vtseg_ros.model.vtseg_config import STAGES, VTSegConfig

PATCHES = ((7, 4), (3, 2), (3, 2), (3, 2))
"""Kernel and stride of the patch embeddings (paper: K = 7, S = 4, P = 3, then 3, 2, 1)."""


def layer_options(config: VTSegConfig, stage: int) -> dict[str, Any]:
    """Return the keyword arguments of the `VTLayer`s of a stage (0-based)."""
    return {
        "heads": config.num_heads[stage],
        "reduction": config.sr_ratios[stage],
        "mlp_ratio": config.mlp_ratio,
        "spatiotemporal": config.mix_ffn == "spatiotemporal",
    }


def build_encoder_blocks(
    config: VTSegConfig, in_channels: int, *, name: str, newest_suffices_at_end: bool = False
) -> nn.ModuleList:
    """Build VTEncBlock_1..4; the encoder and the decoder each have their own.

    Args:
        config: the network's hyperparameters.
        in_channels: channels of each frame's input.
        name: prefix of the names of the blocks, followed by the number of the stage (from 1).
        newest_suffices_at_end: only the newest frame of the last block's output is used.
    """
    channels = (in_channels, *config.embed_dims)

    def places(stage: int) -> list[LayerPlace]:
        depth = config.depths[stage]
        return [
            LayerPlace(
                f"{name}_{stage + 1}",
                index,
                frame_local=stage == index == 0,
                newest_suffices=newest_suffices_at_end and stage == STAGES - 1 and index == depth - 1,
            )
            for index in range(depth)
        ]

    return nn.ModuleList(
        VTEncBlock(
            in_channels=channels[stage],
            dim=config.embed_dims[stage],
            kernel=PATCHES[stage][0],
            stride=PATCHES[stage][1],
            places=places(stage),
            **layer_options(config, stage),
        )
        for stage in range(STAGES)
    )


class VTSegEncoder(nn.Module):
    """Encoder blocks E_1..E_4; the input must be normalised already.

    Args:
        config: the network's hyperparameters.
    """

    def __init__(self, config: VTSegConfig) -> None:
        super().__init__()
        self.band = config.band
        self.blocks = build_encoder_blocks(config, in_channels=3, name="encoder")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that its images must have."""
        return cast(VTEncBlock, self.blocks[0]).norm.weight.dtype

    def forward(self, video: Tensor, cache: FrameCache | None = None) -> list[Tensor]:
        """Return the feature maps of a window.

        Args:
            video: (B, k, 3, H, W).
            cache: see `VTSeg.forward`.

        Returns:
            Four maps (B, k, C_i, H / s_i, W / s_i), s = 4, 8, 16, 32.
        """
        cache = cache or FrameCache(band=self.band)
        maps = [video]
        for block in self.blocks:
            maps.append(block(maps[-1], cache))
        return maps[1:]

    def load_mit_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load a Mix Transformer of Hugging Face transformers (`SegformerModel`), either naming scheme.

        Keys may carry a `segformer.` prefix; keys of a decode head or classifier are ignored.

        Raises:
            CheckpointError: if keys or shapes are not those of this configuration.
        """
        load_exact(self, translate_mit_state_dict(state), source="MiT state dict")
