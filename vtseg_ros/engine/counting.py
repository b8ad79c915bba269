"""Operators that torch's counter of operations leaves out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def uncounted() -> dict[Any, Callable[..., int]]:
    """For `FlopCounterMode(custom_mapping=...)`: the CPU's fused attention."""

    def attention(query: tuple, key: tuple, value: tuple, *args: object, out_shape=None, **kwargs: object):
        batch, heads, queries, width = query
        return 4 * batch * heads * queries * key[2] * width

    operator = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    return {} if operator is None else {operator: attention}
