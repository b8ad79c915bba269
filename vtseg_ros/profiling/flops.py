# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-adds by module, counted from shapes, without computing anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vtseg_ros.errors import ConfigError
from vtseg_ros.model.registry import architecture_of, architectures
from vtseg_ros.model.vtseg import check_size


def networks() -> dict[str, Callable[[int], nn.Module]]:
    """Return the networks to count, by title: functions that build one from the number of classes."""
    return {title: build for one in architectures().values() for title, build in one.sizes.items()}


@dataclass(frozen=True)
class Cost:
    """Trained parameters of a module, and its multiply-adds of convolutions, linear layers and attention for one window."""

    name: str
    parameters: int
    macs: int


def build(name: str, num_classes: int) -> nn.Module:
    """Build one of `networks()` without memory for its weights (on PyTorch's meta device)."""
    known = networks()
    if name not in known:
        raise ConfigError(f"network: unknown; expected one of {', '.join(known)}, got {name!r}")
    with torch.device("meta"):
        return known[name](num_classes).eval()


def costs(model: nn.Module, *, size: tuple[int, int], frames: int) -> list[Cost]:
    """Count the parameters and multiply-adds of the modules of a network, the total last.

    Args:
        model: from `build`.
        size: (width, height) px, multiples of 32.
        frames: window length k; one forward pass computes all k masks. Image networks process one frame.
    """
    width, height = size
    check_size(height, width)
    architecture = architecture_of(model)
    shape = (1, frames, 3, height, width) if architecture.video else (1, 3, height, width)
    inputs = [torch.zeros(shape, device="meta")]
    if architecture.needs_flow:
        inputs.append(torch.zeros(1, frames - 1, 2, height, width, device="meta"))
    counter = FlopCounterMode(display=False, depth=cast(int, None))  # None = all levels; missing in its type
    with torch.no_grad(), counter:
        model(*inputs)
    counts, root = counter.get_flop_counts(), type(model).__name__
    found = [
        Cost(title, parameters_of(model.get_submodule(part)), _macs(counts, f"{root}.{part}"))
        for part, title in architecture.parts.items()
    ]
    return [*found, Cost("total", parameters_of(model), _macs(counts, "Global"))]


def parameters_of(module: nn.Module) -> int:
    """Return the number of trained parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def _macs(counts: dict[str, dict[Any, int]], name: str) -> int:
    # The counter counts a multiplication and an addition as two operations.
    result: int = sum(counts[name].values()) // 2
    return result


def extra_formulas() -> dict[Any, Callable[..., int]]:
    """Return the operator that torch's counter does not know, for `FlopCounterMode(custom_mapping=...)`.

    The CPU's fused attention, in builds that have it.
    """

    def attention(
        query: tuple[int, ...],
        key: tuple[int, ...],
        value: tuple[int, ...],
        *args: object,
        out_shape: object = None,
        **kwargs: object,
    ) -> int:
        batch, heads, queries, width = query
        return 4 * batch * heads * queries * key[2] * width

    name = "_scaled_dot_product_flash_attention_for_cpu"
    return {getattr(torch.ops.aten, name): attention} if hasattr(torch.ops.aten, name) else {}
