# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Devices, precision and processes of a training run with Lightning Fabric: one process, or those of torchrun."""

from __future__ import annotations

import logging
import os
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.plugins.precision.precision import Precision
from torch import Tensor

from vtseg_ros.inference.devices import resolve_device, resolve_precision


class _Autocast(MixedPrecision):
    """Mixed precision whose inputs stay fp32: optical flow of 100 px would be off by half a pixel in bf16."""

    def convert_input(self, data: Any) -> Any:
        """Return the inputs unchanged."""
        return data


def launch(device: str, precision: str) -> Fabric:
    """Set up this process for a training run.

    Under torchrun the processes of all hosts train together, one device each (gloo on CPUs, nccl on GPUs).

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N` (the last without torchrun).
        precision: `fp32`, `fp16` or `bf16`.

    Raises:
        DeviceError: For a device or precision that this machine does not have.
    """
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    chosen = resolve_device(device)
    resolve_precision(precision, chosen)
    mixed: dict[str, Literal["16-mixed", "bf16-mixed"]] = {"fp16": "16-mixed", "bf16": "bf16-mixed"}
    plugin = mixed.get(precision)
    options: dict[str, Any] = {
        "accelerator": chosen.type,
        "plugins": [_Autocast(plugin, chosen.type) if plugin else Precision()],
    }
    if torch.distributed.is_torchelastic_launched():
        world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        fabric = Fabric(strategy="ddp", devices=local, num_nodes=world // local, **options)
    else:
        fabric = Fabric(devices=1 if chosen.index is None else [chosen.index], **options)
    fabric.launch()
    return fabric


def is_main_process() -> bool:
    """Return whether this is the only process or the first of torchrun; works before `launch`."""
    return os.environ.get("RANK", "0") == "0"


def any_rank(fabric: Fabric, flag: bool) -> bool:
    """Return whether the flag is set in any process; all processes must call it."""
    if fabric.world_size == 1:
        return flag
    return bool(reduce_tensor(fabric, torch.tensor(float(flag), device=fabric.device), "sum") > 0)


def sum_over_ranks(fabric: Fabric, values: np.ndarray) -> np.ndarray:
    """Return the element-wise sum of the arrays of all processes; all processes must call it."""
    if fabric.world_size == 1:
        return values
    total: np.ndarray = reduce_tensor(fabric, torch.from_numpy(values).to(fabric.device), "sum").cpu().numpy()
    return total


def reduce_tensor(fabric: Fabric, values: Tensor, how: Literal["sum", "mean"]) -> Tensor:
    """Return the element-wise sum or mean of a tensor over all processes; all processes must call it."""
    if fabric.world_size == 1:
        return values
    reduced = fabric.all_reduce(values, reduce_op=how)
    assert isinstance(reduced, Tensor)  # the type of its argument
    return reduced
