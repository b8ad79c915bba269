# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Backends that execute a network: one class per runtime, with one protocol.

To add a runtime, add a `Backend` and an entry in `BACKENDS`, and one in `BY_SUFFIX` if it runs exported files.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from pathlib import Path

from vtseg_ros.errors import ConfigError
from vtseg_ros.inference.backends.base import Backend, BackendOptions
from vtseg_ros.inference.backends.onnx_backend import OnnxBackend
from vtseg_ros.inference.backends.openvino_backend import OpenVinoBackend
from vtseg_ros.inference.backends.openvino_export import OpenVinoExport
from vtseg_ros.inference.backends.openvino_runtime import ConversionError
from vtseg_ros.inference.backends.torch_backend import TorchBackend
from vtseg_ros.inference.devices import has_native_bf16, resolve_device, resolve_precision
from vtseg_ros.model.checkpoint import Checkpoint

log = logging.getLogger("vtseg_ros.inference")

PREFERENCE = "VTSEG_BACKEND"
"""Environment variable that replaces `auto` for checkpoints."""
BACKENDS: dict[str, type[Backend]] = {"torch": TorchBackend, "openvino": OpenVinoBackend}
"""Backends of checkpoints by name."""
BY_SUFFIX: dict[str, dict[str, type[Backend]]] = {".onnx": {"onnx": OnnxBackend, "openvino": OpenVinoExport}}
"""Backends of exported files by name, the first one is that of `auto`; everything else is a checkpoint."""
PACKAGES = {"torch": "torch", "openvino": "openvino", "onnx": "onnxruntime"}
"""Module that each backend imports."""
BACKEND_NAMES = ("auto", *PACKAGES)

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
        name: `torch`, `openvino`, `onnx` or `auto`, which is ONNX Runtime for exported files and PyTorch for
            checkpoints; `open_backend` may run these in OpenVINO.

    Raises:
        ConfigError: for another name, or a backend that does not run this kind of file.
    """
    if name not in BACKEND_NAMES:
        raise ConfigError(f"backend: expected one of {', '.join(BACKEND_NAMES)}, got {name!r}")
    exported = {} if isinstance(source, Checkpoint) else BY_SUFFIX.get(Path(source).suffix.lower(), {})
    if name == "auto":
        return next(iter(exported.values()), TorchBackend)
    backends = exported or BACKENDS
    if name not in backends:
        if exported:
            raise ConfigError(f"backend {name}: expected a checkpoint, got the exported file {source}")
        raise ConfigError(f"backend {name}: expected an .onnx file, got a checkpoint")
    return backends[name]


def open_backend(source: str | Path | Checkpoint, options: BackendOptions) -> Backend:
    """Open a network in the backend that the options name.

    With `auto`, a checkpoint on a CPU runs in OpenVINO if it is installed and converts the network. Otherwise it runs
    in PyTorch, and the reason is logged once. The environment variable VTSEG_BACKEND replaces `auto` for checkpoints.

    Args:
        source: What is to be run.
        options: How it is to be run.

    Raises:
        CheckpointError, ConfigError, DeviceError: naming what is wrong.
    """
    backend = backend_of(source, options.backend)
    if options.backend != "auto" or backend is not TorchBackend:
        return backend.open(source, options)
    chosen = os.environ.get(PREFERENCE, "auto")
    if chosen != "auto":
        return backend_of(source, chosen).open(source, options)
    resolve_precision(options.precision, resolve_device(options.device))
    reason = _why_pytorch(options)
    if not reason:
        try:
            return OpenVinoBackend.open(source, options)
        except ConversionError as err:
            reason = str(err)
    _log_once(f"backend torch: {reason}")
    return backend.open(source, options)


def _why_pytorch(options: BackendOptions) -> str:
    """Return why `auto` runs a checkpoint in PyTorch; empty if it may run in OpenVINO."""
    device = resolve_device(options.device)
    if device.type != "cpu":
        return f"the device is {device}"
    if "openvino" not in installed_backends():
        return "openvino is not installed. Run: pip install 'vtseg_ros[openvino]'"
    if options.compile:
        return "compile is on, which is an option of PyTorch"
    if options.static_prior:
        return "a converted network with an external static network cannot be cached"
    if options.precision == "bf16" and not has_native_bf16():
        return "this processor has no bf16 instructions, and only PyTorch emulates bf16"
    return ""


@functools.cache
def _log_once(text: str) -> None:
    log.info("%s", text)
