"""Where a frame's time goes: operations, bytes and time of each part, beside what the machine can do at best."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vtseg_ros.engine.counting import uncounted
from vtseg_ros.engine.device import resolve_device, resolve_precision
from vtseg_ros.engine.pack import pack
from vtseg_ros.engine.prepare import prepare
from vtseg_ros.engine.steps import build_step
from vtseg_ros.model import VTSeg

ROUNDS = 15
MATRIX = 2048
COPY_MB = 256


@dataclass(frozen=True)
class Part:
    """A part for one frame: multiply-adds in 1e9, MB of weights, median ms, and the ms that each of them takes at best."""

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
    """Static network, encoder, decoder and head for one frame alone, and the whole causal and exact step.

    Args:
        model: of `attention: causal`.
        size: (width, height) px.

    Returns:
        the parts, the machine's multiply-adds per second of a large matrix product in 1e9, and its GB/s of a copy.
    """
    where = resolve_device(device)
    dtype = resolve_precision(precision, where)
    ready = prepare(model, where, dtype)
    width, height = size
    weights = {
        part: sum(p.numel() * p.element_size() for p in part.parameters()) / 1e6
        for part in (*ready.children(), ready)
    }
    if where.type == "cpu":
        pack(ready, (height, width))
    image = torch.rand(1, 3, height, width, device=where)
    video = image[:, None]
    static = ready.static_logits(image)[:, None]
    features = ready.encoder(ready.normalize("encoder", video))
    maps = [grid[:, 0] for grid in ready.decoder(static, video, features)]
    causal, exact = (build_step(ready, (height, width), name) for name in ("causal", "exact"))

    def past(step: nn.Module) -> torch.Tensor:
        return torch.zeros(1, window - 1, step.kept_size, dtype=step.kept_dtype, device=where)

    calls: dict[str, tuple[Callable[[], object], nn.Module]] = {
        "static network": (lambda: ready.static_logits(image), ready.static_prior),
        "encoder": (lambda: ready.encoder(ready.normalize("encoder", video)), ready.encoder),
        "decoder": (lambda: ready.decoder(static, video, features), ready.decoder),
        "head": (lambda: ready.head(maps), ready.head),
        f"causal step, k = {window}": (lambda: causal(image, past(causal)), ready),
        f"exact step, k = {window}": (lambda: exact(image, past(exact)), ready),
    }
    rate, bandwidth = _matrix_rate(where, dtype), _copy_rate(where)
    parts = []
    for name, (call, module) in calls.items():
        counter = FlopCounterMode(display=False, custom_mapping=uncounted())
        with counter:
            call()
        gmacs = counter.get_total_flops() / 2e9
        megabytes = weights[module]
        parts.append(
            Part(name, gmacs, megabytes, _median_ms(call, where), gmacs / rate * 1e3, megabytes / bandwidth)
        )
    return parts, rate, bandwidth


def _median_ms(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(ROUNDS + 2):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - began) * 1e3)
    return sorted(times[2:])[ROUNDS // 2]


def _matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    a = torch.rand(MATRIX, MATRIX, device=device, dtype=dtype)
    return MATRIX**3 / 1e6 / _median_ms(lambda: a @ a, device)


def _copy_rate(device: torch.device) -> float:
    """GB/s read and written, of a tensor that no cache near the processor holds."""
    source = torch.rand(COPY_MB * 250_000, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / 1e6 / _median_ms(lambda: target.copy_(source), device)
