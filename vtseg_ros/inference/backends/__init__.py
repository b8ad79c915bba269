# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Backends that execute a network: one class per runtime, with one protocol.

To add a runtime, add a `Backend` and an entry in `BACKENDS`, and one in `BY_SUFFIX` if it has its own files.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from vtseg_ros.errors import ConfigError
from vtseg_ros.inference.backends.base import Backend, BackendOptions
from vtseg_ros.inference.backends.onnx_backend import OnnxBackend
from vtseg_ros.inference.backends.openvino_backend import OpenVinoBackend
from vtseg_ros.inference.backends.torch_backend import TorchBackend
from vtseg_ros.model.checkpoint import Checkpoint

BACKENDS: dict[str, type[Backend]] = {"torch": TorchBackend, "openvino": OpenVinoBackend, "onnx": OnnxBackend}
BACKEND_NAMES = ("auto", *BACKENDS)
BY_SUFFIX: dict[str, type[Backend]] = {".onnx": OnnxBackend}
"""Backends of exported files; everything else is a checkpoint."""
PACKAGES = {"torch": "torch", "openvino": "openvino", "onnx": "onnxruntime"}
"""Module that each backend imports."""

__all__ = [
    "BACKENDS",
    "BACKEND_NAMES",
    "BY_SUFFIX",
    "Backend",
    "BackendOptions",
    "backend_of",
    "installed_backends",
    "is_exported",
    "open_backend",
]


def is_exported(path: str | Path) -> bool:
    """Return whether a file name is that of an exported network instead of a checkpoint."""
    return Path(path).suffix.lower() in BY_SUFFIX


def installed_backends(device: str = "cpu") -> tuple[str, ...]:
    """Return the names of the backends whose package is installed and that run on a device.

    Args:
        device: `cpu` or `cuda`.
    """
    return tuple(
        name
        for name, package in PACKAGES.items()
        if importlib.util.find_spec(package) is not None and (device == "cpu" or name != "openvino")
    )


def backend_of(source: str | Path | Checkpoint, name: str = "auto") -> type[Backend]:
    """Return the backend that runs a file, shipped weights or a checkpoint.

    Args:
        source: file, name of shipped weights, or checkpoint.
        name: `auto` (exported files in ONNX Runtime, checkpoints in PyTorch), `torch`, `openvino` or `onnx`.

    Raises:
        ConfigError: for another name, or a backend that does not run this kind of file.
    """
    if name not in BACKEND_NAMES:
        raise ConfigError(f"backend: expected one of {', '.join(BACKEND_NAMES)}, got {name!r}")
    own = None if isinstance(source, Checkpoint) else BY_SUFFIX.get(Path(source).suffix.lower())
    if name == "auto":
        return own or TorchBackend
    backend = BACKENDS[name]
    if own is not None and backend is not own:
        raise ConfigError(f"backend {name}: expected a checkpoint, got the exported file {source}")
    if own is None and backend in BY_SUFFIX.values():
        raise ConfigError(f"backend {name}: expected an .onnx file, got a checkpoint")
    return backend


def open_backend(source: str | Path | Checkpoint, options: BackendOptions) -> Backend:
    """Open a network in the backend that the options name.

    Raises:
        CheckpointError, ConfigError, DeviceError: naming what is wrong.
    """
    return backend_of(source, options.backend).open(source, options)
