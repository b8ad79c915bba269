# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Normalisation of RGB as a module, whose constants are stored with the weights, and casts of inputs and outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalization(nn.Module):
    """Subtract a mean and divide by a standard deviation per channel; 0 and 1 by default.

    Args:
        mean: of RGB in [0, 1].
        std: of RGB in [0, 1], above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: tuple[float, ...] = (0.0, 0.0, 0.0), std: tuple[float, ...] = (1.0, 1.0, 1.0)
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def set(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Replace both constants."""
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise (n, 3, H, W) in [0, 1]; computed in float32, returned in the images' dtype."""
        normalized = (images.float() - self.mean.float()[:, None, None]) / self.std.float()[:, None, None]
        return normalized.to(images.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Weights saved before these buffers existed were used without normalisation, or have it in a convolution.
        state_dict.setdefault(f"{prefix}mean", torch.zeros_like(self.mean))
        state_dict.setdefault(f"{prefix}std", torch.ones_like(self.std))
        super()._load_from_state_dict(state_dict, prefix, *args)


class Cast(nn.Module):
    """A network that computes in another precision than its inputs and outputs.

    Args:
        network: takes and returns one tensor.
        input: type to cast the input to; None = unchanged.
        output: type to cast the output to; None = unchanged.
    """

    def __init__(
        self, network: nn.Module, *, input: torch.dtype | None = None, output: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.input, self.output = input, output

    def forward(self, x: Tensor) -> Tensor:
        """Cast the input, run the module and cast its output."""
        y = self.network(x if self.input is None else x.to(self.input))
        result: Tensor = y if self.output is None else y.to(self.output)
        return result
