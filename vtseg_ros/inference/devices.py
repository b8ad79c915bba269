# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Devices and precisions by name."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from vtseg_ros.errors import DeviceError

log = logging.getLogger("vtseg_ros.inference")

MIN_AGREEMENT = 0.995
"""Share of pixels that must have the same class in a reduced precision as in fp32 before `auto` uses it."""
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""Flags of processors with bf16 instructions: x86 and, last, ARM."""


def parse_device(name: str) -> tuple[str, int]:
    """Return the kind, `auto`, `cpu` or `cuda`, and the index of a device's name.

    Raises:
        DeviceError: for another name.
    """
    kind, _, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        raise DeviceError(f"device: unknown; expected auto, cpu, cuda or cuda:N, got {name!r}")
    return kind, int(index or 0)


def resolve_device(name: str) -> torch.device:
    """Return the device for `auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        DeviceError: for another name, or a GPU that is not there.
    """
    kind, index = parse_device(name)
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if index >= count:
            raise DeviceError(
                f"device: no such GPU; expected one of this machine's {count} CUDA devices, got {name}. Use auto or cpu"
            )
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the type for `auto` (bf16 on a GPU that has it, else fp16; fp32 on the CPU), `fp32`, `fp16` or `bf16`.

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
        raise DeviceError(f"precision: unknown; expected auto, {', '.join(PRECISIONS)}, got {name!r}")
    if name == "fp16" and device.type == "cpu":
        raise DeviceError("precision: fp16 needs a GPU; expected fp32 or bf16 on the CPU, got fp16")
    return PRECISIONS[name]


def choose_precision(
    name: str, device: torch.device, agreement: Mapping[str, float], *, native_bf16: bool | None = None
) -> torch.dtype:
    """Return the precision of a network: `resolve_precision`, but `auto` on a CPU is bf16 if that is accurate and fast.

    Args:
        name: `auto`, `fp32`, `fp16` or `bf16`.
        device: where it runs.
        agreement: agreement of reduced precisions with fp32 (see `Checkpoint`).
        native_bf16: whether the processor has bf16 instructions; None = detect it.

    Raises:
        DeviceError: see `resolve_precision`.
    """
    dtype = resolve_precision(name, device)
    if name != "auto" or device.type != "cpu":
        return dtype
    if not (has_native_bf16() if native_bf16 is None else native_bf16):
        return dtype
    share = agreement.get("bf16")
    if share is None:
        log.info("precision fp32: the checkpoint does not contain the agreement of bf16 with fp32")
        return dtype
    if share < MIN_AGREEMENT:
        log.info(
            "precision fp32: bf16 has the same class on %.2f %% of pixels, less than %.1f %%",
            100 * share,
            100 * MIN_AGREEMENT,
        )
        return dtype
    log.info("precision bf16: it has the same class as fp32 on %.2f %% of pixels", 100 * share)
    return torch.bfloat16


def precision_name(dtype: torch.dtype) -> str:
    """Return `fp32`, `fp16` or `bf16`."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def has_native_bf16() -> bool:
    """Return whether the processor has bf16 instructions; elsewhere bf16 is emulated and slower than fp32."""
    # Not psutil, nor below: it reports neither the flags nor the name of a processor.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return not set(BF16_FLAGS).isdisjoint(flags.split())


def processor_name() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
