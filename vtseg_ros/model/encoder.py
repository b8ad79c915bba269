"""The VTSeg encoder: four chained VTEncBlocks; with one frame it is SegFormer's MiT (paper, Section III-C)."""

from __future__ import annotations

from torch import Tensor, nn

from vtseg_ros.model.attention import Memory
from vtseg_ros.model.blocks import VTEncBlock
from vtseg_ros.model.config import STAGES, VTSegConfig
from vtseg_ros.model.mit import translate_mit_state_dict
from vtseg_ros.model.state import load_exact

PATCHES = ((7, 4), (3, 2), (3, 2), (3, 2))
"""Kernel and stride of the patch embeddings (paper: K = 7, S = 4, P = 3, then 3, 2, 1)."""


def layer_options(config: VTSegConfig, stage: int) -> dict[str, int | bool]:
    """Keyword arguments of the `VTLayer`s of a stage (0-based)."""
    return {
        "heads": config.num_heads[stage],
        "reduction": config.sr_ratios[stage],
        "mlp_ratio": config.mlp_ratio,
        "window": config.window if config.attention == "causal" else 0,
        "spatiotemporal": config.mix_ffn == "spatiotemporal",
    }


def build_encoder_blocks(config: VTSegConfig, in_channels: int) -> nn.ModuleList:
    """VTEncBlock_1..4; the encoder and the decoder each have their own."""
    channels = (in_channels, *config.embed_dims)
    return nn.ModuleList(
        VTEncBlock(
            in_channels=channels[stage],
            dim=config.embed_dims[stage],
            kernel=PATCHES[stage][0],
            stride=PATCHES[stage][1],
            depth=config.depths[stage],
            **layer_options(config, stage),
        )
        for stage in range(STAGES)
    )


class VTSegEncoder(nn.Module):
    """E_1..E_4 on the video as given: no normalisation inside.

    Args:
        config: the network's hyperparameters.
    """

    def __init__(self, config: VTSegConfig) -> None:
        super().__init__()
        self.blocks = build_encoder_blocks(config, in_channels=3)

    def forward(self, video: Tensor, stream: Memory | None = None) -> list[Tensor]:
        """(B, k, 3, H, W) -> four maps (B, k, C_i, H / s_i, W / s_i), s = 4, 8, 16, 32."""
        frames = video.shape[1]
        x = video.flatten(0, 1)  # (B*k, 3, H, W)
        maps = []
        for block in self.blocks:
            x = block(x, frames, stream)
            maps.append(x.unflatten(0, (-1, frames)))  # (B, k, C_i, H_i, W_i)
        return maps

    def load_mit_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load a Mix Transformer of Hugging Face transformers (`SegformerModel`), either naming scheme.

        Keys may carry a `segformer.` prefix; keys of a decode head or classifier are left aside.

        Raises:
            CheckpointError: if keys or shapes are not those of this configuration.
        """
        load_exact(self, translate_mit_state_dict(state), source="MiT state dict")
