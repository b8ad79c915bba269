"""Causal streaming: each layer's reduced keys and values of older frames are kept, a frame costs one frame's queries.

Equal to one forward over the whole clip with a banded mask: a frame sees itself and at most k - 1 older ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtseg_ros.engine.exact import frame_mask
from vtseg_ros.errors import ConfigError
from vtseg_ros.model import VTSeg
from vtseg_ros.model.attention import VideoAttention


class Rings:
    """Keys and values of older frames, handed to the attentions in the order of the forward pass.

    Args:
        past: for each attention keys and values of the older frames, each (B, m, M, D).
        valid: (m,) bool, the older frames that are there; None = all.

    Attributes:
        kept: for each attention keys and values of this frame, each (B, M, D).
    """

    def __init__(self, past: Sequence[Tensor], valid: Tensor | None = None) -> None:
        self._past = iter(past)
        self._valid = None if valid is None else torch.cat([valid, valid.new_ones(1)])
        self.kept: list[Tensor] = []

    def extend(self, keys: Tensor, values: Tensor, queries: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `vtseg_ros.model.attention.Memory`. No position tells frames apart: any order would do."""
        self.kept += [keys, values]
        keys = torch.cat([next(self._past).flatten(1, 2), keys], dim=1)  # (B, (m + 1) * M, D)
        values = torch.cat([next(self._past).flatten(1, 2), values], dim=1)
        return keys, values, None if self._valid is None else frame_mask(self._valid, keys.shape[1])


def frame_logits(model: VTSeg, images: Tensor, rings: Rings) -> Tensor:
    """Logits of one frame of each of B clips: images (B, 3, H, W) in [0, 1] -> (B, C, H, W); fills `rings.kept`."""
    video = images[:, None]
    static = model.static_logits(images)[:, None]
    features = model.encoder(model.normalize("encoder", video), rings)
    maps = model.decoder(static, video, features, rings)
    return model.head([grid.squeeze(1) for grid in maps])


def check(model: VTSeg) -> None:
    """Raise ConfigError unless the network was trained for causal streaming."""
    if model.config.attention != "causal":
        raise ConfigError(
            "streaming causal needs a network trained with attention: causal. This one has full attention: "
            "its frames were trained to see newer ones. Use exact"
        )
    if model.config.mix_ffn != "spatial":
        raise ConfigError(
            f"streaming causal needs mix_ffn: spatial. This network has {model.config.mix_ffn}, whose frames "
            "see newer ones. Use plain"
        )


def set_band(model: VTSeg, frames: int) -> None:
    """Let a causal network's frames see themselves and `frames - 1` older ones; others see whole windows."""
    if model.config.attention == "causal":
        for module in model.modules():
            if isinstance(module, VideoAttention):
                module.window = frames
