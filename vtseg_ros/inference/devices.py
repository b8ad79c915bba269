# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Devices and precisions by name."""

from __future__ import annotations

import torch

from vtseg_ros.errors import DeviceError

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def resolve_device(name: str) -> torch.device:
    """`auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        DeviceError: for another name, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdigit())):
        raise DeviceError(f"device must be auto, cpu, cuda or cuda:N. Got: {name!r}")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise DeviceError(f"device {name}: this machine has {count} CUDA devices. Use auto or cpu")
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` (bf16 on a GPU that has it, else fp16; fp32 on the CPU), `fp32`, `fp16` or `bf16`.

    Raises:
        DeviceError: for another name, or fp16 on the CPU.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        with torch.cuda.device(device):
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    if name not in PRECISIONS:
        raise DeviceError(f"precision must be auto, {', '.join(PRECISIONS)}. Got: {name!r}")
    if name == "fp16" and device.type == "cpu":
        raise DeviceError("precision fp16 needs a GPU. Use fp32 or bf16 on the CPU")
    return PRECISIONS[name]


def precision_name(dtype: torch.dtype) -> str:
    """`fp32`, `fp16` or `bf16`."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)
