# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Base of the networks that segment windows of frames and contain a static network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vtseg_ros.errors import ConfigError
from vtseg_ros.model.registry import Network, traits_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from vtseg_ros.model.blocks import VTLayer


class VideoNetwork(Network):
    """A network (B, k, 3, H, W) -> (B, k, C, H, W) with the attribute `static_prior`, its static network.

    The defaults of its methods are those of a network without attention layers whose frames see all older ones, and whose
    static network has the same classes.
    """

    static_prior: nn.Module
    prior_frozen = False

    def freeze_prior(self, frozen: bool = True) -> None:
        """Freeze the static network, including its BatchNorm (stage `video`), or train it (stage `end_to_end`)."""
        self.prior_frozen = frozen
        for parameter in self.static_prior.parameters():  # a TorchScript module has no requires_grad_
            parameter.requires_grad_(not frozen)
        self.static_prior.train(self.training and not frozen)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts; a frozen static network stays in eval mode."""
        super().train(mode)
        if self.prior_frozen:
            self.static_prior.eval()
        return self

    def static_branch(self) -> nn.Module:
        """Return the static network alone, (n, 3, H, W) in [0, 1] -> (n, C, H, W); shared, not copied."""
        return single_frames(self.static_prior)

    def static_logits(self, images: Tensor) -> Tensor:
        """Return the static network's logits in this network's classes, (n, C, H, W), of images (n, 3, H, W) in [0, 1]."""
        result: Tensor = self.static_branch()(images)
        return result

    def encoder_features(self, video: Tensor) -> Tensor | None:
        """Return features of the newest frame, averaged over the image, (B, D); None = there is no encoder.

        Args:
            video: (B, k, 3, H, W), RGB in [0, 1], newest frame last.
        """
        return None

    @property
    def attention_layers(self) -> Sequence[VTLayer]:
        """All video attention layers, in the order of the forward pass."""
        return ()

    def window_band(self, frames: int) -> int:
        """Return the band of a window of `frames` frames; 0 = every frame sees the whole window."""
        return 0

    def check_streaming(self, mode: str) -> None:
        """Raise ConfigError if `mode`, `exact` or `causal`, does not give the masks that the network was trained for."""
        if mode not in self.streaming_modes:
            raise ConfigError(
                f"streaming: {mode} does not fit this network; expected {', '.join(self.streaming_modes)} or plain for "
                f"{self.architecture}, got {mode}"
            )

    @property
    def longest_window(self) -> int | None:
        """Frames of the longest window at inference; None = any."""
        return None

    @property
    def streaming_modes(self) -> tuple[str, ...]:
        """Modes of `exact` and `causal` that networks of this architecture have."""
        return ("exact",)

    @property
    def causal_depth(self) -> int:
        """Number of windows that a mask reaches back in causal streaming: one per attention layer."""
        return len(self.attention_layers)

    @property
    def best_streaming(self) -> str:
        """Cheapest mode of `causal`, `exact` and `plain` with the masks that the network was trained for."""
        return "exact"


class SingleFrames(nn.Module):
    """A video network that sees every frame alone: (n, 3, H, W) -> (n, C, h, w).

    Args:
        network: takes a cache; shared, not copied.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of images (n, 3, H, W), RGB in [0, 1]."""
        result: Tensor = self.network(images[:, None])[:, 0]
        return result


def prior_config(static_prior: nn.Module) -> dict[str, Any]:
    """Return the configuration of a static network that is a video network; {} for other networks."""
    return static_prior.config_values() if isinstance(static_prior, VideoNetwork) else {}


def single_frames(network: nn.Module) -> nn.Module:
    """Return a network (n, 3, H, W) -> (n, C, h, w): a video network sees every frame alone, others stay as they are."""
    return SingleFrames(network) if traits_of(network).takes_cache else network
