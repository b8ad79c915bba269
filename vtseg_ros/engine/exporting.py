"""Networks as files for other runtimes: the streaming step or the full window, with static k and size.

The file carries what a checkpoint carries beside the weights, so that a predictor needs nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtseg_ros.engine import causal
from vtseg_ros.engine.exact import ValidFrames
from vtseg_ros.engine.prepare import prepare
from vtseg_ros.engine.steps import Step, build_step
from vtseg_ros.errors import ConfigError
from vtseg_ros.model import VTSeg
from vtseg_ros.model.checkpoint import METADATA_KEY, Checkpoint

EXPORT_FORMAT = 1
OPSET = 18
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
CPU = torch.device("cpu")


class StreamStep(nn.Module):
    """A streaming step whose state comes in and goes out, to be fed back as it is.

    Args:
        step: of a network on the CPU, fp32.
    """

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, images: Tensor, past: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One frame.

        Args:
            images: (1, 3, H, W) float32 in [0, 1].
            past: (1, k - 1, S) float32, what older frames left behind, oldest first; zeros at the start.
            valid: (k - 1,) bool, which of them are there; all False at the start.

        Returns:
            logits (1, C, H, W), and `past` and `valid` for the next frame.
        """
        logits, kept = self.step(images, past, valid)
        following = torch.cat([past[:, 1:], kept[:, None]], dim=1)
        return logits, following, torch.cat([valid[1:], valid.new_ones(1)])


class WindowStep(nn.Module):
    """The full window; the head runs for the newest frame only.

    Args:
        model: a network on the CPU, fp32.
    """

    def __init__(self, model: VTSeg) -> None:
        super().__init__()
        self.model = model
        self.band = model.config.window if model.config.attention == "causal" else 0

    def forward(self, video: Tensor, valid: Tensor) -> Tensor:
        """Logits of the newest frame, (1, C, H, W).

        Args:
            video: (1, k, 3, H, W) float32 in [0, 1], oldest frame first.
            valid: (k,) bool, which frames are there; the newest must be.
        """
        model, stream = self.model, ValidFrames(valid, self.band)
        static = model.static_logits(video.flatten(0, 1))[None]
        features = model.encoder(model.normalize("encoder", video), stream)
        maps = model.decoder(static, video, features, stream)
        return model.head([grid[:, -1] for grid in maps])


@dataclass(frozen=True)
class Exportable:
    """A module, inputs to trace it with, and the names of inputs and outputs.

    Attributes:
        kind: `stream`, `window` or `image`.
        metadata: what the file carries.
    """

    module: nn.Module
    arguments: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kind: str
    metadata: dict[str, Any]


def exportable(
    checkpoint: Checkpoint, *, window: int = 0, size: tuple[int, int] = (0, 0), full_window: bool = False
) -> Exportable:
    """What of a checkpoint is exported: its streaming step (causal or exact), its full window, or an image network.

    Args:
        window: frames k; 0 = the checkpoint's.
        size: (width, height) px; (0, 0) = the checkpoint's.
        full_window: the full window instead of the streaming step.
    """
    width, height = size if any(size) else checkpoint.input_size
    model = prepare(checkpoint.model, CPU, torch.float32)
    window = window or int(checkpoint.config.get("window", 1))
    images = torch.rand(1, 3, height, width)
    if not isinstance(model, VTSeg):
        module, arguments, kind, window = model, (images,), "image", 1
        inputs, outputs, streaming = ("images",), ("logits",), "plain"
    elif full_window or window == 1 or model.config.mix_ffn != "spatial":
        if model.config.mix_ffn != "spatial":
            raise ConfigError(
                f"a network with mix_ffn {model.config.mix_ffn} cannot be exported: it needs spatial"
            )
        causal.set_band(model, window)
        module = WindowStep(model)
        module.band = window if module.band else 0
        arguments, kind = (
            (torch.rand(1, window, 3, height, width), torch.ones(window, dtype=torch.bool)),
            "window",
        )
        inputs, outputs, streaming = ("video", "valid"), ("logits",), "plain"
    else:
        streaming = "causal" if model.config.attention == "causal" else "exact"
        step = build_step(model, (height, width), streaming)
        module, kind = StreamStep(step), "stream"
        past = torch.rand(1, window - 1, step.kept_size)
        arguments = (images, past, torch.ones(window - 1, dtype=torch.bool))
        inputs, outputs = ("images", "past", "valid"), ("logits", "past_next", "valid_next")
    metadata = {
        "format": EXPORT_FORMAT,
        "kind": kind,
        "streaming": streaming,
        "architecture": checkpoint.architecture,
        "config": {**checkpoint.config, "window": window},
        "class_names": list(checkpoint.labels.names),
        "class_colors": [list(color) for color in checkpoint.labels.colors],
        "input_size": [width, height],
        "resize_mode": checkpoint.resize_mode,
        "temperature": checkpoint.temperature,
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
            program = torch.onnx.export(
                what.module,
                what.arguments,
                dynamo=True,
                input_names=list(what.inputs),
                output_names=list(what.outputs),
                opset_version=OPSET,
                verbose=False,
            )
            program.model.metadata_props[METADATA_KEY] = json.dumps(what.metadata)
            program.save(str(path))
        except ImportError as err:
            raise ConfigError(
                f"onnx export needs onnx and onnxscript: pip install vtseg_ros[onnx] ({err})"
            ) from err
        except (RuntimeError, TypeError) as err:  # torch's exporters raise subclasses of RuntimeError
            raise ConfigError(f"this network cannot be exported: {str(err).splitlines()[0]}") from err


def temporary_beside(path: Path) -> Path:
    """A new empty file in the same folder and of the same suffix, to be renamed."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    return Path(name)
