# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Export networks to files for other runtimes, and compare them with the original network.

A file contains the streaming step or the full window, with fixed k and size, and the metadata of the checkpoint, so a
predictor needs no other file.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vtseg_ros.errors import ConfigError, first_line
from vtseg_ros.inference.backends import BackendOptions, open_backend
from vtseg_ros.inference.optimise import optimise
from vtseg_ros.inference.preprocess import to_input
from vtseg_ros.inference.step import Step, build_step, with_newest
from vtseg_ros.model.cache import FrameCache
from vtseg_ros.model.checkpoint import Checkpoint
from vtseg_ros.model.registry import traits_of
from vtseg_ros.model.state_dicts import METADATA_KEY
from vtseg_ros.model.video_network import VideoNetwork
from vtseg_ros.model.vtseg_config import check_window

EXPORT_FORMAT = 1
OPSET = 18
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
CPU = torch.device("cpu")
MIN_AGREEMENT = 0.999
MAX_DIFFERENCE = 1e-4
"""Largest difference of logits, as a share of the largest logit."""


class ExportedStream(nn.Module):
    """A streaming step with its state as input and output.

    Args:
        step: step of a network on the CPU, fp32.
    """

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, images: Tensor, past: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Process one frame.

        Args:
            images: (1, 3, H, W) float32 in [0, 1].
            past: (1, k - 1, S) float32, cached values of older frames, oldest first; zeros at the start.
            valid: (k - 1,) bool, True for older frames that exist; all False at the start.

        Returns:
            logits (1, C, H, W), and `past` and `valid` for the next frame.
        """
        logits, kept = self.step(images, past, valid)
        following = torch.cat([past[:, 1:], kept[:, None]], dim=1)
        return logits, following, with_newest(valid[1:])


class ExportedWindow(nn.Module):
    """The full window; computes only what the logits of the newest frame depend on.

    Args:
        model: a network on the CPU, fp32.
    """

    def __init__(self, model: VideoNetwork) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor, valid: Tensor) -> Tensor:
        """Return the logits of the newest frame, (1, C, H, W).

        Args:
            video: (1, k, 3, H, W) float32 in [0, 1], oldest frame first.
            valid: (k,) bool, True for frames that exist; always True for the newest.
        """
        band = self.model.window_band(video.shape[1])
        result: Tensor = self.model(video, FrameCache(band=band, valid=valid, newest_only=True))[:, -1]
        return result


@dataclass(frozen=True)
class Exportable:
    """A module, inputs to trace it with, and the names of inputs and outputs.

    Attributes:
        kind: `stream`, `window` or `image`.
        metadata: content of the metadata entry of the file.
    """

    module: nn.Module
    arguments: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kind: str
    metadata: dict[str, Any]


def exportable(
    checkpoint: Checkpoint,
    *,
    window: int | None = None,
    size: tuple[int, int] | None = None,
    full_window: bool = False,
) -> Exportable:
    """Prepare a checkpoint for export: its streaming step (causal or exact), its full window, or an image network.

    Args:
        checkpoint: of any registered network.
        window: frames k; None = the checkpoint's.
        size: (width, height) px; None = the checkpoint's.
        full_window: the full window instead of the streaming step.
    """
    width, height = size or checkpoint.input_size
    model = optimise(checkpoint.network, CPU, torch.float32)
    network = cast(VideoNetwork, model)  # of networks with a cache
    module: nn.Module
    arguments: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    window = window or int(checkpoint.config.get("window", 1))
    images = torch.rand(1, 3, height, width)
    if traits_of(model).takes_cache:
        check_window(window, longest=network.longest_window)
    if not traits_of(model).takes_cache:
        module, arguments, kind, window = model, (images,), "image", 1
        inputs, outputs, streaming = ("images",), ("logits",), "plain"
    elif network.best_streaming == "plain":
        raise ConfigError(
            f"mix_ffn: cannot be exported; expected spatial, got {checkpoint.config['mix_ffn']}"
        )
    elif full_window or window == 1:
        module = ExportedWindow(network)
        arguments, kind = (
            (torch.rand(1, window, 3, height, width), torch.ones(window, dtype=torch.bool)),
            "window",
        )
        inputs, outputs, streaming = ("video", "valid"), ("logits",), "plain"
    else:
        streaming = network.best_streaming
        step = build_step(model, (height, width), streaming)
        module, kind = ExportedStream(step), "stream"
        past = torch.rand(1, window - 1, step.state_size)
        arguments = (images, past, torch.ones(window - 1, dtype=torch.bool))
        inputs, outputs = ("images", "past", "valid"), ("logits", "past_next", "valid_next")
    metadata = {
        "format": EXPORT_FORMAT,
        "kind": kind,
        "streaming": streaming,
        "depth": network.causal_depth if traits_of(model).takes_cache else 1,
        "architecture": checkpoint.architecture,
        "config": {**checkpoint.config, "window": window},
        "class_names": list(checkpoint.labels.names),
        "class_colors": [list(color) for color in checkpoint.labels.colors],
        "input_size": [width, height],
        "resize_mode": checkpoint.resize_mode,
        "temperature": checkpoint.temperature,
        "agreement": checkpoint.agreement,
        "training": checkpoint.training,
        "licence": checkpoint.licence.to_dict(),
    }
    return Exportable(module.eval(), arguments, inputs, outputs, kind, metadata)


def write_export(what: Exportable, path: Path, file_format: str) -> None:
    """Write a file: `onnx` (opset 18, one file) or `torch-export`.

    Raises:
        ConfigError: if a package is missing or the network cannot be traced.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            if file_format == "torch-export":
                program = torch.export.export(what.module, what.arguments)
                torch.export.save(
                    program, str(path), extra_files={f"{METADATA_KEY}.json": json.dumps(what.metadata)}
                )
                return
            written = torch.onnx.export(
                what.module,
                what.arguments,
                dynamo=True,
                input_names=list(what.inputs),
                output_names=list(what.outputs),
                opset_version=OPSET,
                verbose=False,
            )
            onnx_program = cast("torch.onnx.ONNXProgram", written)  # of the dynamo exporter, never None
            onnx_program.model.metadata_props[METADATA_KEY] = json.dumps(what.metadata)
            onnx_program.save(str(path))
        except ImportError as err:
            raise ConfigError(
                f"onnx export needs onnx and onnxscript: pip install 'vtseg_ros[onnx]' ({err})"
            ) from err
        except (RuntimeError, TypeError) as err:  # torch's exporters raise subclasses of RuntimeError
            raise ConfigError(f"this network cannot be exported: {first_line(err)}") from err


def temporary_beside(path: Path) -> Path:
    """Create an empty file in the same folder and with the same suffix, to be renamed."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    return Path(name)


@dataclass(frozen=True)
class Verification:
    """Result of the comparison of an export with the original network.

    Attributes:
        frames: number of frames compared.
        agreement: share of pixels with the same class, 0..1.
        difference, largest: largest difference of logits, and largest logit.
    """

    frames: int
    agreement: float
    difference: float
    largest: float

    def check(self, path: Path) -> None:
        """Raise ConfigError if the difference is too large."""
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
    """Run the file and the original network on a sequence of frames.

    The original network processes the whole window for each frame, or, for causal streaming, all frames in one forward
    pass with the banded mask.

    Args:
        path: the file.
        what: the exported module.
        checkpoint: checkpoint of the original network.
        images: frames of one video, each (H, W, 3) uint8 RGB.
    """
    width, height = what.metadata["input_size"]
    window = what.metadata["config"]["window"]
    frames = [to_input(image, (width, height), torch.device("cpu")) for image in images]
    run = _torch_export(path, what) if path.suffix == SUFFIXES["torch-export"] else _in_backend(path)
    same = total = 0
    difference = largest = 0.0
    as_clip = what.metadata["streaming"] == "causal"
    for expected, frame in zip(_reference(checkpoint.network, frames, window, as_clip), frames):
        got = run(frame)
        same += int((got.argmax(1) == expected.argmax(1)).sum())
        total += expected[:, 0].numel()
        difference = max(difference, float((got - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    return Verification(len(frames), same / total, difference, largest)


def _reference(
    model: torch.nn.Module, frames: Sequence[Tensor], window: int, as_clip: bool
) -> Iterator[Tensor]:
    if not traits_of(model).takes_cache:
        yield from (model(frame) for frame in frames)
        return
    cache = FrameCache(band=cast(VideoNetwork, model).window_band(window))
    if as_clip:
        yield from model(torch.stack(list(frames), dim=1), cache).unbind(1)  # (1, n, C, H, W)
        return
    for index in range(len(frames)):
        recent = list(frames[max(0, index + 1 - window) : index + 1])
        yield model(torch.stack(recent, dim=1), cache)[:, -1]


def _in_backend(path: Path) -> Callable[[Tensor], Tensor]:
    backend = open_backend(path, BackendOptions(device="cpu"))

    def run(frame: Tensor) -> Tensor:
        logits = backend.infer(frame, [""])
        backend.commit([""])
        return logits

    return run


def _torch_export(path: Path, what: Exportable) -> Callable[[Tensor], Tensor]:
    module = torch.export.load(str(path)).module()
    if what.kind == "image":
        return module
    state = [torch.zeros_like(argument) for argument in what.arguments]  # nothing valid

    def stream(frame: Tensor) -> Tensor:
        logits, state[1], state[2] = module(frame, state[1], state[2])
        result: Tensor = logits
        return result

    def window(frame: Tensor) -> Tensor:
        state[0] = torch.cat([state[0][:, 1:], frame[:, None]], dim=1)
        state[1] = torch.cat([state[1][1:], torch.ones(1, dtype=torch.bool)])
        result: Tensor = module(state[0], state[1])
        return result

    return stream if what.kind == "stream" else window
