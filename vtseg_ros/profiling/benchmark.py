# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Measure the time per frame of the full window and of streaming in each backend, with the same weights and frames.

The modes alternate within one run, a few frames each, so background load affects all of them equally.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from vtseg_ros.errors import ConfigError
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.inference.devices import (
    has_native_bf16,
    precision_name,
    resolve_device,
    resolve_precision,
)
from vtseg_ros.inference.exporter import exportable, write_export
from vtseg_ros.inference.postprocess import MaskOptions, to_mask
from vtseg_ros.inference.preprocess import to_input
from vtseg_ros.model import VTSeg
from vtseg_ros.model.checkpoint import Checkpoint
from vtseg_ros.model.registry import traits_of
from vtseg_ros.model.segformer import name_of
from vtseg_ros.model.video_network import VideoNetwork
from vtseg_ros.profiling.flops import extra_formulas

MODES = ("plain", "plain_optimised", "exact", "causal")
STREAMED = ("exact", "causal")
"""Modes that run in every backend; the others are PyTorch's."""
SEGFORMER = name_of("b0")
AGAINST = (SEGFORMER,)
BURST = 4
"""Frames of a turn. The first one is not counted, because the processor caches contain the weights of another mode."""
MIN_TURNS = 2

Frame = Callable[[np.ndarray], object]


class System(Protocol):
    """A system to measure: a network with pre- and postprocessing."""

    def step(self, image: np.ndarray) -> object:
        """Segment the next frame, (H, W, 3) uint8."""

    def one_frame(self) -> Callable[[], object] | None:
        """Return a function that computes one frame of a full window, to count its operations; None = cannot be counted."""


@dataclass(frozen=True)
class Settings:
    """Settings of a benchmark.

    Attributes:
        size: (width, height) px of images and network.
        window: frames k.
        backends: backends of the streaming modes.
        precision: of every mode but `plain`, which is fp32. On a CPU, `auto` is fp32, and also bf16 if the
            processor has bf16 instructions.
        compile, cuda_graphs: of every mode in PyTorch but `plain`, which is eager.
        seconds: measuring time for all modes together.
    """

    size: tuple[int, int]
    window: int
    modes: tuple[str, ...] = MODES
    backends: tuple[str, ...] = ("torch",)
    against: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    cuda_graphs: bool = True
    seconds: float = 20.0

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions of the optimised modes."""
        if self.precision != "auto" or resolve_device(self.device).type != "cpu":
            return (self.precision,)
        return ("fp32", "bf16") if has_native_bf16() else ("fp32",)


@dataclass(frozen=True)
class Mode:
    """A row of the benchmark: `plain`, `plain_optimised`, `exact`, `causal` or the name of another network."""

    name: str
    backend: str = "torch"
    precision: str = "fp32"

    @property
    def label(self) -> str:
        """Return the name in tables and JSON, such as `exact/openvino`."""
        return f"{self.name}/{self.backend}" if self.name in STREAMED else self.name


@dataclass
class Measurement:
    """One mode; times are per frame, from the uint8 image to the mask on the host."""

    mode: str
    backend: str
    run: str
    precision: str
    times_ms: list[float] = field(default_factory=list)
    peak_memory_mb: float = 0.0
    gmacs: float | None = None

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values; memory is the growth since before the mode was built (on a GPU: allocated memory)."""
        times = sorted(self.times_ms)
        return {
            "mode": self.mode,
            "backend": self.backend,
            "run": self.run,
            "precision": self.precision,
            "frames": len(times),
            "p50_ms": round(statistics.median(times), 3),
            "p95_ms": round(times[min(len(times) - 1, int(0.95 * len(times)))], 3),
            "fps": round(1000 / statistics.fmean(times), 2),
            "peak_memory_mb": round(self.peak_memory_mb, 1),
            "gmacs": None if self.gmacs is None else round(self.gmacs, 3),
        }


def with_attention(checkpoint: Checkpoint, attention: str) -> Checkpoint:
    """Return the same weights with the other attention mask, to measure its time; the masks are not valid."""
    if checkpoint.config.get("attention", attention) == attention:
        return checkpoint
    model = cast(VTSeg, checkpoint.model)
    other = VTSeg(dataclasses.replace(model.config, attention=attention), static_prior=model.static_prior)
    other.load_state_dict(model.state_dict())
    return dataclasses.replace(checkpoint, model=other.eval(), config=other.config.to_dict())


class _Plain:
    """The full-window forward of the network as trained: fp32, eager, logits of all k frames."""

    def __init__(self, model: VideoNetwork, settings: Settings) -> None:
        self.device = resolve_device(settings.device)
        self.model = model.eval().to(self.device)
        self.size = settings.size
        self.frames: deque[torch.Tensor] = deque(maxlen=settings.window)
        self.video = torch.zeros(
            1, settings.window, 3, settings.size[1], settings.size[0], device=self.device
        )

    @torch.inference_mode()
    def step(self, image: np.ndarray) -> object:
        self.frames.append(to_input(image, self.size, self.device))
        logits = self.model(torch.cat(list(self.frames))[None])
        return to_mask(logits[:, -1], MaskOptions(self.size))

    def one_frame(self) -> Callable[[], object]:
        return lambda: self.model(self.video)


class _HuggingFaceSegFormer:
    """SegFormer-B0 of Hugging Face transformers, random weights; logits upsampled as its authors do."""

    def __init__(self, classes: int, settings: Settings, dtype: torch.dtype) -> None:
        try:
            from transformers import SegformerConfig, SegformerForSemanticSegmentation
        except ImportError as err:
            raise ConfigError(
                f"--baseline {SEGFORMER}: the package transformers is missing. Run: pip install transformers"
            ) from err
        self.device, self.dtype, self.size = resolve_device(settings.device), dtype, settings.size
        config = SegformerConfig(num_labels=classes)  # type: ignore[call-arg] # accepted by its base class
        model = SegformerForSemanticSegmentation(config).eval()
        self.model = model.to(self.device, dtype)

    @torch.inference_mode()
    def step(self, image: np.ndarray) -> object:
        pixels = to_input(image, self.size, self.device).to(self.dtype)
        return to_mask(self.model(pixels).logits, MaskOptions(self.size))

    def one_frame(self) -> Callable[[], object]:
        image = torch.zeros(1, 3, self.size[1], self.size[0], device=self.device, dtype=self.dtype)
        return lambda: self.model(image)


class _Predictor:
    """The predictor that nodes use, with the optimised operations of its backend."""

    def __init__(self, predictor: VideoPredictor) -> None:
        self.predictor = predictor
        self.step = predictor.step

    def one_frame(self) -> Callable[[], object] | None:
        return self.predictor.backend.one_frame()


def measure(
    checkpoint: Checkpoint, settings: Settings, images: Sequence[np.ndarray]
) -> list[dict[str, object]]:
    """Measure the modes; see `Measurement.to_dict`.

    Args:
        checkpoint: of a video network that can be streamed.
        settings: modes, sizes and duration.
        images: (H, W, 3) uint8 of the settings' size, used in turn.
    """
    network = cast(VideoNetwork, checkpoint.model)
    if not traits_of(network).takes_cache or network.best_streaming == "plain":
        raise ConfigError(
            "checkpoint: cannot be measured; expected a vtseg with mix_ffn spatial or another network that can be "
            "streamed, got one that cannot"
        )
    with tempfile.TemporaryDirectory() as folder:
        rows = [_prepare(mode, checkpoint, settings, images, Path(folder)) for mode in modes_of(settings)]
        _take_turns(rows, settings.seconds, images)
    return [measurement.to_dict() for measurement, _ in rows]


def modes_for(network: VideoNetwork) -> tuple[str, ...]:
    """Return the modes that networks of this architecture have."""
    return tuple(mode for mode in MODES if mode not in STREAMED or mode in network.streaming_modes)


def modes_of(settings: Settings) -> list[Mode]:
    """Return the rows of a benchmark in their order; ONNX Runtime runs fp32 files only."""
    rows = []
    for name in settings.modes:
        if name == "plain":
            rows.append(Mode(name))
            continue
        for backend in settings.backends if name in STREAMED else ("torch",):
            precisions = ("fp32",) if backend == "onnx" else settings.precisions
            rows += [Mode(name, backend, precision) for precision in precisions]
    return rows + [Mode(name, precision=settings.precisions[0]) for name in settings.against]


def _prepare(
    mode: Mode, checkpoint: Checkpoint, settings: Settings, images: Sequence[np.ndarray], folder: Path
) -> tuple[Measurement, Frame]:
    """Return a mode after warm-up, with its memory and operations measured."""
    own = with_attention(checkpoint, "causal" if mode.name == "causal" else "full")
    source: Checkpoint | Path = own
    if mode.backend == "onnx":
        what = exportable(own, window=settings.window, size=settings.size)
        source = folder / f"{mode.name}.onnx"
        write_export(what, source, "onnx")
    cuda = resolve_device(settings.device).type == "cuda"
    before = _memory_mb(cuda, reset=True)
    system, run, precision = _build(mode, source, settings)
    measurement = Measurement(mode.label, mode.backend, run, precision)
    for _, image in zip(range(settings.window + 2), _endless(images)):
        system.step(image)
    measurement.peak_memory_mb = max(0.0, _memory_mb(cuda, peak=True) - before)
    call = system.one_frame()
    if call is not None:
        measurement.gmacs = _gmacs(call)
    return measurement, system.step


def _build(mode: Mode, source: Checkpoint | Path, settings: Settings) -> tuple[System, str, str]:
    """Return the system of a mode, how it is executed, and its precision."""
    if mode.name == "plain":
        return _Plain(cast(VideoNetwork, cast(Checkpoint, source).model), settings), "eager", "fp32"
    if mode.name == SEGFORMER:
        dtype = resolve_precision(mode.precision, resolve_device(settings.device))
        system = _HuggingFaceSegFormer(len(cast(Checkpoint, source).labels), settings, dtype)
        return system, "eager", precision_name(dtype)
    options: dict[str, Any] = {}
    if mode.backend != "onnx":  # size, streaming and precision of a file are fixed
        options = {
            "precision": mode.precision,
            "input_size": settings.size,
            "streaming": mode.name if mode.name in STREAMED else "plain",
        }
    predictor = VideoPredictor(
        source,
        device=settings.device,
        backend=mode.backend,
        window=settings.window,
        output_size="network",
        compile=settings.compile and mode.backend == "torch",
        cuda_graphs=settings.cuda_graphs,
        **options,
    )
    return _Predictor(predictor), predictor.run_mode, predictor.precision


def _take_turns(rows: list[tuple[Measurement, Frame]], seconds: float, images: Sequence[np.ndarray]) -> None:
    shown = _endless(images)
    end, turns = time.perf_counter() + seconds, 0
    while turns < MIN_TURNS or time.perf_counter() < end:
        for measurement, step in rows:
            for index in range(BURST):
                image = next(shown)
                began = time.perf_counter()
                step(image)
                if index:
                    measurement.times_ms.append((time.perf_counter() - began) * 1000)
        turns += 1


def _endless(images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    while True:
        yield from images


@torch.inference_mode()
def _gmacs(call: Callable[[], object]) -> float:
    """Return the multiply-adds of matrix products, convolutions and attention of a call, in 1e9."""
    with FlopCounterMode(display=False, custom_mapping=extra_formulas()) as counter:
        call()
    result: float = counter.get_total_flops() / 2e9
    return result


def _memory_mb(cuda: bool, reset: bool = False, peak: bool = False) -> float:
    """Return the memory in use, or its peak since the last reset, in MB."""
    if cuda:
        if reset:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 1e6
    if reset:
        gc.collect()
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        except (OSError, AttributeError):
            pass  # another C library or system: the peak is that of the whole process then
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return int(values["VmHWM" if peak else "VmRSS"]) / 1e3
