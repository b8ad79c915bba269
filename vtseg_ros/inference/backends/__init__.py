"""What executes a network: one class per runtime behind one protocol.

A runtime for another kind of file is added by a `Backend` and an entry in `BY_SUFFIX`.
"""

from __future__ import annotations

from pathlib import Path

from vtseg_ros.inference.backends.base import Backend, BackendOptions
from vtseg_ros.inference.backends.onnx_backend import OnnxBackend
from vtseg_ros.inference.backends.torch_backend import TorchBackend
from vtseg_ros.model.checkpoint import Checkpoint

BY_SUFFIX: dict[str, type[Backend]] = {".onnx": OnnxBackend}
"""Backends of exported files; everything else is a checkpoint, which PyTorch runs."""

__all__ = ["BY_SUFFIX", "Backend", "BackendOptions", "backend_of", "open_backend"]


def backend_of(source: str | Path | Checkpoint) -> type[Backend]:
    """Return the backend that runs a file, shipped weights or a checkpoint."""
    if isinstance(source, Checkpoint):
        return TorchBackend
    return BY_SUFFIX.get(Path(source).suffix.lower(), TorchBackend)


def open_backend(source: str | Path | Checkpoint, options: BackendOptions) -> Backend:
    """Open a network in the backend that runs it.

    Raises:
        CheckpointError, ConfigError, DeviceError: naming what is wrong.
    """
    return backend_of(source).open(source, options)
