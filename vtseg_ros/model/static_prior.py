# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Static networks within the networks: registered ones by name, and what fits their logits to the network around them.

`model.external_prior` has those of files and factories.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtseg_ros.errors import ConfigError
from vtseg_ros.model.normalization import Cast
from vtseg_ros.model.registry import (
    architecture,
    find_architecture,
    image_architectures,
    static_architectures,
)

EXTERNAL = "external"
"""Entry of a checkpoint whose static network is a file or a factory that the user must name."""


def is_own(prior: nn.Module) -> bool:
    """Return whether a static network is registered: it can be cast and fused."""
    return find_architecture(prior.network if isinstance(prior, Cast) else prior) is not None


def build_prior(name: str, *, num_classes: int) -> nn.Module:
    """Build a registered static network, freshly initialised.

    Raises:
        ConfigError: if the name is not that of a network of single images.
    """
    if name == EXTERNAL:
        raise ConfigError(
            "static_prior: not part of this checkpoint; expected a TorchScript, torch.export or ONNX file, or "
            "package.module:factory, got none. Name it by the parameter `static_prior`"
        )
    known = image_architectures()
    if name not in known:
        raise ConfigError(
            f"static_prior: unknown; expected one of {', '.join(known)}, a .pt, .pt2 or .onnx file, or "
            f"package.module:factory, got {name!r}"
        )
    return known[name].build(num_classes=num_classes)


def build_prior_of(around: str, name: str, config: Mapping[str, Any], *, num_classes: int) -> nn.Module:
    """Build the static network of an architecture whose static network may be a video network, freshly initialised.

    Args:
        around: name of the architecture that contains it.
        name: architecture of the static network.
        config: of the static network, where it is a video network.
        num_classes: C.

    Raises:
        ConfigError: if the static network does not fit.
    """
    if name not in static_architectures(around):
        # Raises the error that lists the names.
        return build_prior(name, num_classes=num_classes)
    return architecture(name).from_config({**config, "num_classes": num_classes})


class ClassMapping(nn.Module):
    """Each target class takes the largest logit of the source classes that map to it.

    A target without a source gets the smallest logit of the pixel, so it is never preferred.

    Args:
        mapping: for each source class its target class, or -1 for none.
        num_classes: number C of target classes.
    """

    def __init__(self, mapping: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.sources = tuple(
            tuple(source for source, target in enumerate(mapping) if target == wanted)
            for wanted in range(num_classes)
        )

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits (n, C_prior, H, W) to (n, C, H, W)."""
        lowest = logits.amin(dim=1)  # (n, H, W)
        # Slices instead of lists of indices, which are uploaded each time and cannot be captured in a CUDA graph.
        columns = [
            reduce(torch.maximum, [logits[:, source] for source in sources]) if sources else lowest
            for sources in self.sources
        ]
        return torch.stack(columns, dim=1)


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return logits (n, C, h, w) as means over pixels or interpolated bilinearly, (n, C, *size)."""
    if tuple(logits.shape[2:]) == size:
        return logits
    if logits.shape[2] > size[0]:
        return F.interpolate(logits, size=size, mode="area")
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
