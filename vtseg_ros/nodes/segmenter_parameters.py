# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The segmenter's parameters."""

from __future__ import annotations

import os
from pathlib import Path

from vtseg_ros import DEFAULT_CHECKPOINT
from vtseg_ros.errors import ConfigError, VTSegError
from vtseg_ros.inference.backends import BACKEND_NAMES
from vtseg_ros.inference.devices import PRECISIONS, resolve_device, resolve_precision
from vtseg_ros.inference.postprocess import UPSAMPLING
from vtseg_ros.model.checkpoint import read_metadata, resolve_checkpoint
from vtseg_ros.model.vtseg import check_size
from vtseg_ros.nodes.parameters import Param, check_name
from vtseg_ros.resize import RESIZE_MODES
from vtseg_ros.sizes import parse_output_size, size_from_text
from vtseg_ros.transports import TRANSPORTS


def _check_checkpoint(name: str) -> None:
    try:
        path = resolve_checkpoint(name)
        if path.suffix == ".safetensors":
            read_metadata(path)
    except VTSegError as err:
        raise ConfigError(str(err)) from err


def _check_device(name: str) -> None:
    try:
        resolve_device(name)
    except VTSegError as err:
        raise ConfigError(str(err)) from err


def _check_precision(name: str) -> None:
    if name != "auto" and name not in PRECISIONS:
        raise ConfigError(f"unknown; expected one of auto, {', '.join(PRECISIONS)}, got {name!r}")


def check_precision_on_device(precision: str, device: str) -> str:
    """Return why the device cannot compute in the precision; empty if it can."""
    try:
        resolve_precision(precision, resolve_device(device))
    except VTSegError as err:
        return str(err)
    return ""


def _check_input_size(text: str) -> None:
    width, height = size_from_text(text)
    if width or height:
        check_size(height, width)


def _check_resize_mode(mode: str) -> None:
    if mode and mode not in RESIZE_MODES:
        raise ConfigError(f"unknown mode; expected one of {', '.join(RESIZE_MODES)}, or empty, got {mode!r}")


def _zero_size(text: str) -> str:
    """YAML reads 0x0 as the number 0, and so does `ros2 param set` or `load`."""
    return "0x0" if text == "0" else text


def _check_ego_mask(path: str) -> None:
    if path and not Path(path).is_file():
        raise ConfigError(f"no such file; expected an existing file, got {path}")


def _check_folder(path: str) -> None:
    if not path:
        return
    nearest = Path(path).absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise ConfigError(f"not a folder; expected one, got {nearest}. Choose another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(
            f"cannot be written; expected a writable folder, got {nearest}. Choose another folder"
        )


def _check_cameras(names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise ConfigError(f"a name is repeated; expected different names, got {', '.join(names)}")
    for name in names:
        check_name(name)


PARAMETERS = (
    Param(
        "checkpoint",
        DEFAULT_CHECKPOINT,
        "Shipped weights by name, a .safetensors file, or an .onnx file of `vtseg export`.",
        check=_check_checkpoint,
        live=True,
        path=True,
    ),
    Param("device", "auto", "auto (CUDA if there is one), cpu, cuda or cuda:N.", check=_check_device),
    Param(
        "backend",
        "auto",
        "Backend that executes the network: auto (OpenVINO on a CPU, PyTorch on a GPU, ONNX Runtime for an .onnx file), "
        "torch, openvino or onnx.",
        allowed=BACKEND_NAMES,
    ),
    Param(
        "precision",
        "auto",
        "auto (bf16 or fp16 on a GPU; fp32 on a CPU, bf16 where the checkpoint allows it), fp32, fp16 or bf16.",
        check=_check_precision,
    ),
    Param(
        "threads",
        0,
        "CPU threads of the network; 0 = all cores but one; of two cores, OpenVINO uses both.",
        0,
        1024,
    ),
    Param("pin_threads", False, "Keep each thread on one core (OpenVINO)."),
    Param(
        "input_size",
        "0x0",
        "Network input, WIDTHxHEIGHT px, multiples of 32; 0x0 = the checkpoint's.",
        check=_check_input_size,
        convert=_zero_size,
    ),
    Param(
        "resize_mode",
        "",
        "How images are resized to the input size: stretch, letterbox, or crop, where masks are 255 on the sides that "
        "are cut off; empty = the checkpoint's.",
        check=_check_resize_mode,
    ),
    Param("window", 0, "Window length in frames; 0 = as in the checkpoint.", 0, 32, live=True),
    Param(
        "max_rate",
        0.0,
        "Images above this mean rate, by their stamps, are dropped, Hz; 0 = unlimited.",
        0.0,
        1000.0,
        live=True,
    ),
    Param("max_gap", 1.0, "A longer pause between frames starts a new window, s.", 0.001, 3600.0, live=True),
    Param(
        "image_transport",
        "raw",
        "Transport of the images; zstd, ffmpeg and foxglove are those of the image_transport plugins of these names.",
        allowed=tuple(TRANSPORTS),
    ),
    Param(
        "input_qos",
        "sensor_data",
        "QoS of the images; sensor_data is best effort with depth 5.",
        allowed=("sensor_data", "reliable"),
    ),
    Param(
        "output_size",
        "input",
        "Size of mask, confidence and colour: input, network or WIDTHxHEIGHT px.",
        check=parse_output_size,
        live=True,
    ),
    Param(
        "upsampling",
        "bilinear",
        "bilinear and bicubic upsample the logits; nearest upsamples the mask and is cheaper.",
        allowed=UPSAMPLING,
    ),
    Param("overlay_alpha", 0.5, "Share of the class colour in the overlay.", 0.0, 1.0, live=True),
    Param(
        "jpeg_quality",
        80,
        "JPEG quality of the compressed overlay and colours, 100 = best.",
        1,
        100,
        live=True,
    ),
    Param("min_confidence", 0.0, "Pixels below this softmax maximum become 255 (unlabelled).", 0.0, 1.0),
    Param(
        "classes",
        [],
        "Names of the classes to publish; pixels of the others become 255. Empty = all.",
        live=True,
    ),
    Param(
        "ego_mask",
        "",
        "PNG whose non-zero pixels stay unlabelled (the robot itself); empty = none.",
        check=_check_ego_mask,
        path=True,
    ),
    Param(
        "cameras",
        [],
        "Camera names; topics become <camera>/image and <camera>/segmentation/*. Empty = one unnamed camera.",
        check=_check_cameras,
    ),
    Param(
        "static_prior",
        "",
        "Static network instead of the checkpoint's: a TorchScript, torch.export or ONNX file or "
        "package.module:factory. Executes code when loaded; use trusted files only. Empty = the checkpoint's.",
        path=True,
    ),
    Param(
        "record_uncertain",
        "",
        "Folder for bags of the images with the lowest mean confidence, each with its window; empty = none are recorded.",
        check=_check_folder,
        path=True,
    ),
    Param("record_max_mb", 1000, "Most MB of all bags in that folder; recording ends there.", 1, 100_000),
    Param(
        "record_quantile",
        0.95,
        "Images more uncertain than this share of the camera's last 1000 are recorded.",
        0.0,
        1.0,
    ),
    Param("autostart", False, "Configure and activate without a lifecycle manager."),
)
