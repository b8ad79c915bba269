# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Optimise networks for inference: fuse layers, use channels-last memory and reduced precision.

A module with a cheaper form in eval mode defines `fused()`, which returns it. A network whose parts have different precision
defines `for_inference()` (see `VTSeg`).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import nn

from vtseg_ros.model.normalization import Cast, Normalization
from vtseg_ros.model.state_dicts import use_channels_last

if TYPE_CHECKING:
    from vtseg_ros.model.vtseg import VTSeg


class _Fusible(Protocol):
    def fused(self) -> nn.Module:
        """Return the cheaper form in eval mode."""


def optimise(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a network for inference; an external static network is shared, and moved to the device.

    Args:
        network: a video network, the static branch of one, or a network of single images.
        device: where it runs.
        dtype: of weights and activations; images and logits stay float32.
    """

    def convert(module: nn.Module) -> nn.Module:
        return _converted(module, device, dtype)

    if hasattr(network, "for_inference"):
        result: nn.Module = cast("VTSeg", network).for_inference(convert, dtype).to(device)
        return result
    own = convert(network)
    return own if dtype == torch.float32 else Cast(own, input=dtype, output=torch.float32)


def fuse(network: nn.Module) -> nn.Module:
    """Return a copy of a network, in eval mode, with fewer layers and the same output.

    BatchNorm is fused into the convolution before it, keys and values use one projection, and the fusion convolution of
    VTSeg's head is merged into its levels.
    """
    network = copy.deepcopy(network).eval()
    for parent in list(network.modules()):
        for name, module in parent.named_children():
            if hasattr(module, "fused"):
                setattr(parent, name, cast(_Fusible, module).fused())
    return cast(_Fusible, network).fused() if hasattr(network, "fused") else network


def _converted(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    module = fuse(module).requires_grad_(False)
    constants = [(part, part.mean, part.std) for part in module.modules() if isinstance(part, Normalization)]
    module = module.to(device, dtype)
    for part, mean, std in constants:  # rounded constants would change every pixel
        part.mean, part.std = mean.to(device), std.to(device)
    use_channels_last(module)
    return module
