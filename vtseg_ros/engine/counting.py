"""Operators that torch's counter of operations leaves out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from vtseg_ros.engine.pack import CONVOLUTION, LINEAR


def uncounted() -> dict[Any, Callable[..., int]]:
    """For `FlopCounterMode(custom_mapping=...)`: the CPU's fused attention and packed layers."""

    def attention(query: tuple, key: tuple, value: tuple, *args: object, out_shape=None, **kwargs: object):
        batch, heads, queries, width = query
        return 4 * batch * heads * queries * key[2] * width

    def layer(x: tuple, weight: tuple, *args: object, out_shape=None, **kwargs: object):
        return 2 * math.prod(out_shape) * math.prod(weight[1:])

    operators = {CONVOLUTION: layer, LINEAR: layer}
    operator = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    return operators if operator is None else {**operators, operator: attention}
