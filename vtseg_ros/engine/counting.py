"""Operators that torch's counter of operations leaves out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


def uncounted() -> dict[Any, Callable[..., int]]:
    """For `FlopCounterMode(custom_mapping=...)`: the CPU's fused attention and packed layers."""

    def attention(query: tuple, key: tuple, value: tuple, *args: object, out_shape=None, **kwargs: object):
        batch, heads, queries, width = query
        return 4 * batch * heads * queries * key[2] * width

    def layer(x: tuple, weight: tuple, *args: object, out_shape=None, **kwargs: object):
        return 2 * math.prod(out_shape) * math.prod(weight[1:])

    known = [
        (torch.ops.mkldnn, "_convolution_pointwise", layer),
        (torch.ops.mkldnn, "_linear_pointwise", layer),
        (torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", attention),
    ]
    return {getattr(space, name): count for space, name, count in known if hasattr(space, name)}
