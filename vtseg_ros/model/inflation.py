"""A network whose convolutions run over time (`mix_ffn: spatiotemporal`), from one whose convolutions do not.

Inflation as in "Quo Vadis, Action Recognition?" (Carreira and Zisserman), but with all weights in the present frame: the new
network computes what the old one did, and learns from there what other frames add.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inflate(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the weights of 2-D convolutions in the middle of 3-D ones, where `own` has such.

    Args:
        state: (out, in, H, W) convolutions, and tensors of any other shape.
        own: the state of the network to be filled, (out, in, T, H, W) in some places.
    """
    result = dict(state)
    for key, value in state.items():
        target = own.get(key)
        if target is not None and value.dim() == 4 and target.dim() == 5:
            result[key] = torch.zeros(*value.shape[:2], target.shape[2], *value.shape[2:], dtype=value.dtype)
            result[key][:, :, target.shape[2] // 2] = value
    return result
