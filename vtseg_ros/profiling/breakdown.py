# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Operations, bytes and time of each part of a frame, and the lower bounds of the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vtseg_ros.inference.devices import resolve_device, resolve_precision
from vtseg_ros.inference.optimise import optimise
from vtseg_ros.inference.step import build_step
from vtseg_ros.model import VTSeg
from vtseg_ros.profiling.flops import extra_formulas

ROUNDS = 15
MATRIX = 2048
COPY_MB = 256


@dataclass(frozen=True)
class Part:
    """A part of one frame: multiply-adds in 1e9, MB of weights, median ms, and the lower bounds of both in ms."""

    name: str
    gmacs: float
    weights_mb: float
    p50_ms: float
    arithmetic_ms: float
    bandwidth_ms: float


@torch.inference_mode()
def measure_parts(
    model: VTSeg, *, size: tuple[int, int], window: int, device: str, precision: str
) -> tuple[list[Part], float, float]:
    """Measure static network, encoder, decoder and head for one frame, and the whole causal and exact step.

    Args:
        model: VTSeg with `attention: causal`.
        size: (width, height) px.
        window: frames k.
        device: as `VideoPredictor`.
        precision: as `VideoPredictor`.

    Returns:
        The parts; the multiply-adds per second of a large matrix product on this machine, in 1e9; and the rate of a copy, GB/s.
    """
    where = resolve_device(device)
    dtype = resolve_precision(precision, where)
    ready = cast(VTSeg, optimise(model, where, dtype))
    width, height = size
    weights = {
        part: sum(p.numel() * p.element_size() for p in part.parameters()) / 1e6
        for part in (*ready.children(), ready)
    }
    image = torch.rand(1, 3, height, width, device=where)
    rate, bandwidth = _matrix_rate(where, dtype), _copy_rate(where)

    def part(name: str, module: nn.Module, gmacs: float, p50_ms: float) -> Part:
        megabytes = weights[module]
        return Part(name, gmacs, megabytes, p50_ms, gmacs / rate * 1e3, megabytes / bandwidth)

    parts = []
    modules: dict[str, nn.Module] = {
        "static network": ready.static_prior,
        "encoder": ready.encoder,
        "decoder": ready.decoder,
        "head": ready.head,
    }
    for (name, module), (gmacs, p50_ms) in zip(
        modules.items(), _of_modules(ready, modules.values(), image, where)
    ):
        parts.append(part(name, module, gmacs, p50_ms))
    for streaming in ("causal", "exact"):
        step = build_step(ready, (height, width), streaming)
        past = torch.zeros(1, window - 1, step.state_size, dtype=step.state_dtype, device=where)
        with FlopCounterMode(display=False, custom_mapping=extra_formulas()) as counter:
            step(image, past)
        p50_ms = _median_ms(partial(step, image, past), where)
        parts.append(part(f"{streaming} step, k = {window}", ready, counter.get_total_flops() / 2e9, p50_ms))
    return parts, rate, bandwidth


def _of_modules(
    model: VTSeg, modules: Iterable[nn.Module], image: torch.Tensor, device: torch.device
) -> list[tuple[float, float]]:
    """Return multiply-adds in 1e9 and median ms of some submodules in forward passes of one frame."""
    modules = list(modules)
    names = {module: name for name, module in model.named_modules()}
    began: dict[nn.Module, float] = {}
    times: dict[nn.Module, list[float]] = {module: [] for module in modules}

    def before(module: nn.Module, _: object) -> None:
        began[module] = _now(device)

    def after(module: nn.Module, *_: object) -> None:
        times[module].append((_now(device) - began[module]) * 1e3)

    every = cast(int, None)  # None = all levels; missing in its type
    with FlopCounterMode(display=False, depth=every, custom_mapping=extra_formulas()) as counter:
        model(image[:, None])
    counts = counter.get_flop_counts()
    handles = [module.register_forward_pre_hook(before) for module in modules]
    handles += [module.register_forward_hook(after) for module in modules]
    for _ in range(ROUNDS + 2):
        model(image[:, None])
    for handle in handles:
        handle.remove()
    return [
        (
            sum(counts[f"{type(model).__name__}.{names[module]}"].values()) / 2e9,
            statistics.median(times[module][2:]),
        )
        for module in modules
    ]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _median_ms(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(ROUNDS + 2):
        began = _now(device)
        call()
        times.append((_now(device) - began) * 1e3)
    return sorted(times[2:])[ROUNDS // 2]


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    a = torch.rand(MATRIX, MATRIX, device=device, dtype=dtype)
    return MATRIX**3 / 1e6 / _median_ms(lambda: a @ a, device)


def _copy_rate(device: torch.device) -> float:
    """Return the rate of a copy, GB/s read and written, of a tensor that does not fit into the processor's caches."""
    source = torch.rand(COPY_MB * 250_000, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / 1e6 / _median_ms(lambda: target.copy_(source), device)
