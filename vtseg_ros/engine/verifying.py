"""An exported file against the network it came from, on the same frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vtseg_ros.engine.exporting import Exportable
from vtseg_ros.engine.onnx_runner import OnnxRunner
from vtseg_ros.engine.pixels import to_input
from vtseg_ros.errors import ConfigError
from vtseg_ros.model.cache import FrameCache
from vtseg_ros.model.checkpoint import Checkpoint
from vtseg_ros.model.registry import takes_cache

MIN_AGREEMENT = 0.999
MAX_DIFFERENCE = 1e-4
"""Largest difference of logits, as a share of the largest logit."""


@dataclass(frozen=True)
class Verification:
    """How an export compares.

    Attributes:
        frames: compared.
        agreement: share of pixels with the same class, 0..1.
        difference, largest: largest difference of logits, and largest logit.
    """

    frames: int
    agreement: float
    difference: float
    largest: float

    def check(self, path: Path) -> None:
        """Raise ConfigError if it is off."""
        if self.agreement < MIN_AGREEMENT or not self.difference <= MAX_DIFFERENCE * self.largest:
            raise ConfigError(
                f"the export differs from the network and was not written to {path}: the same class on "
                f"{100 * self.agreement:.2f} % of pixels (expected: {100 * MIN_AGREEMENT:.1f} %), logits differ by up "
                f"to {self.difference:.3g} (expected: {MAX_DIFFERENCE * self.largest:.3g})"
            )


@torch.no_grad()
def verify(
    path: Path, what: Exportable, checkpoint: Checkpoint, images: Sequence[np.ndarray]
) -> Verification:
    """Run the file and the untouched network over a sequence of frames.

    The network runs as trained: the whole window for each frame, or for causal streaming one banded forward over
    all frames.

    Args:
        path: the file.
        what: what was exported.
        checkpoint: the network's own.
        images: frames of one video, each (H, W, 3) uint8 RGB.
    """
    width, height = what.metadata["input_size"]
    window = what.metadata["config"]["window"]
    frames = [to_input(image, (width, height), torch.device("cpu")) for image in images]
    run = _onnx(path) if path.suffix == ".onnx" else _torch_export(path, what)
    same = total = 0
    difference = largest = 0.0
    as_clip = what.metadata["streaming"] == "causal"
    for expected, frame in zip(_reference(checkpoint.model, frames, window, as_clip), frames):
        got = run(frame)
        same += int((got.argmax(1) == expected.argmax(1)).sum())
        total += expected[:, 0].numel()
        difference = max(difference, float((got - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    return Verification(len(frames), same / total, difference, largest)


def _reference(
    model: torch.nn.Module, frames: Sequence[Tensor], window: int, as_clip: bool
) -> Iterator[Tensor]:
    if not takes_cache(model):
        yield from (model(frame) for frame in frames)
        return
    cache = FrameCache(band=model.window_band(window))
    if as_clip:
        yield from model(torch.stack(list(frames), dim=1), cache).unbind(1)  # (1, n, C, H, W)
        return
    for index in range(len(frames)):
        recent = list(frames[max(0, index + 1 - window) : index + 1])
        yield model(torch.stack(recent, dim=1), cache)[:, -1]


def _onnx(path: Path) -> Callable[[Tensor], Tensor]:
    runner = OnnxRunner(path, "cpu")
    past: deque = deque(maxlen=runner.window - 1)

    def run(frame: Tensor) -> Tensor:
        logits, rows = runner(frame, [past])
        past.append(rows[0])
        return logits

    return run


def _torch_export(path: Path, what: Exportable) -> Callable[[Tensor], Tensor]:
    module = torch.export.load(str(path)).module()
    if what.kind == "image":
        return module
    state = [torch.zeros_like(argument) for argument in what.arguments]  # nothing valid

    def stream(frame: Tensor) -> Tensor:
        logits, state[1], state[2] = module(frame, state[1], state[2])
        return logits

    def window(frame: Tensor) -> Tensor:
        state[0] = torch.cat([state[0][:, 1:], frame[:, None]], dim=1)
        state[1] = torch.cat([state[1][1:], torch.ones(1, dtype=torch.bool)])
        return module(state[0], state[1])

    return stream if what.kind == "stream" else window
