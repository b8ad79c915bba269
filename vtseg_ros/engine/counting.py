"""Operators that torch's counter of operations leaves out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


def uncounted() -> dict[Any, Callable[..., int]]:
    """For `FlopCounterMode(custom_mapping=...)`: the CPU's fused attention and its packed convolutions."""

    def attention(query: tuple, key: tuple, value: tuple, *args: object, out_shape=None, **kwargs: object):
        batch, heads, queries, width = query
        return 4 * batch * heads * queries * key[2] * width

    def convolution(x: tuple, second: tuple, third: object, *args: object, out_shape=None, **kwargs: object):
        # With a residual sum it is (x, residual, weight, ...), else (x, weight, bias, ...).
        weight = third if isinstance(third, (tuple, torch.Size)) and len(third) == 4 else second
        return 2 * math.prod(out_shape) * math.prod(weight[1:])

    found = {
        getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None): attention,
        getattr(torch.ops.mkldnn, "_convolution_pointwise", None): convolution,
    }
    return {operator: count for operator, count in found.items() if operator is not None}
