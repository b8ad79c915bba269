# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Run exported networks (.onnx) in ONNX Runtime, on the available execution providers."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vtseg_ros.errors import CheckpointError, ConfigError, DeviceError, first_line
from vtseg_ros.files import cache_folder
from vtseg_ros.inference.backends.base import BackendOptions
from vtseg_ros.inference.backends.exported import ExportedBackend, check_fixed, checked_path, parse_metadata
from vtseg_ros.inference.devices import parse_device
from vtseg_ros.model.checkpoint import Checkpoint
from vtseg_ros.model.state_dicts import METADATA_KEY

log = logging.getLogger("vtseg_ros.inference")

PROVIDERS = {
    "cuda": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    "cpu": ("CPUExecutionProvider",),
}
TENSORRT = "TensorrtExecutionProvider"


class OnnxBackend(ExportedBackend):
    """An exported network in ONNX Runtime.

    Args:
        path: the file.
        device: `auto`, `cpu`, `cuda` or `cuda:N`: auto uses a GPU if ONNX Runtime has a provider for it.
        fp16: let TensorRT compute in half precision.
        threads: number of CPU threads; None = PyTorch's default.

    Attributes:
        providers: execution providers in use.
    """

    def __init__(
        self, path: Path, device: str = "auto", *, fp16: bool = False, threads: int | None = None
    ) -> None:
        session = open_session(path, device, fp16=fp16, threads=threads)
        self.session = session
        self.providers = session.get_providers()
        self.metadata = parse_metadata(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), path)
        super().__init__(path, self.metadata, precision="fp16" if fp16 else "fp32")
        if self.kind == "stream":
            past = next(one for one in session.get_inputs() if one.name == "past")
            self._row = int(past.shape[2])

    @classmethod
    def open(cls, source: str | Path | Checkpoint, options: BackendOptions) -> OnnxBackend:
        """See `Backend.open`."""
        path = checked_path(source, options)
        if options.precision == "bf16":
            raise ConfigError(
                f"{path}: its precision was fixed when it was exported. Leave precision unset, or use backend openvino"
            )
        backend = cls(
            path, options.device, fp16=options.precision == "fp16", threads=options.thread_count(of_two=1)
        )
        check_fixed(path, backend.metadata, options)
        log.info("%s runs on %s", path, ", ".join(backend.providers))
        return backend

    @property
    def mode(self) -> str:
        """See `Backend.mode`."""
        return "onnxruntime"


def provider_options(
    available: Sequence[str], kind: str, index: int, *, fp16: bool, cache: Path
) -> list[tuple[str, dict[str, str]]]:
    """Return ONNX Runtime's execution providers, best first, each with its options.

    Args:
        available: providers of this build of ONNX Runtime.
        kind: `cpu` or `cuda`.
        index: of the GPU.
        fp16: let TensorRT compute in half precision.
        cache: folder of TensorRT's engines, which avoids building them again after a restart.
    """
    options = {
        TENSORRT: {
            "device_id": str(index),
            "trt_fp16_enable": str(fp16),
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(cache),
        },
        "CUDAExecutionProvider": {"device_id": str(index)},
    }
    return [(name, options.get(name, {})) for name in PROVIDERS[kind] if name in available]


def open_session(path: Path, device: str, *, fp16: bool = False, threads: int | None = None) -> Any:
    """Open an onnxruntime.InferenceSession.

    Args:
        path: the file.
        device: see `OnnxBackend`.
        fp16: see `OnnxBackend`.
        threads: see `OnnxBackend`.

    Raises:
        CheckpointError: if the file cannot be read.
        ConfigError: if ONNX Runtime is missing.
        DeviceError: if it has no provider for the device or the precision.
    """
    try:
        import onnxruntime
    except ImportError as err:
        raise ConfigError(f"{path} needs onnxruntime: pip install 'vtseg_ros[onnx]'") from err
    kind, index = parse_device(device)
    available = onnxruntime.get_available_providers()
    has_gpu = "CUDAExecutionProvider" in available
    if kind == "cuda" and not has_gpu:
        raise DeviceError(
            f"device {device}: this onnxruntime has no CUDA provider ({', '.join(available)}). "
            "Use cpu, or install onnxruntime-gpu"
        )
    kind = "cuda" if kind == "cuda" or (kind == "auto" and has_gpu) else "cpu"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    if fp16 and (kind == "cpu" or TENSORRT not in available):
        raise DeviceError(
            f"precision fp16: {path} needs TensorRT for it; expected an onnxruntime with {TENSORRT}, "
            f"got {', '.join(available)}. Use fp32"
        )
    cache = cache_folder("tensorrt")
    if kind == "cuda" and TENSORRT in available:
        cache /= _engine_key(path, onnxruntime.__version__)
    providers = provider_options(available, kind, index, fp16=fp16, cache=cache)
    if providers[0][0] == TENSORRT:
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            log.warning("TensorRT engines are not cached: %s", err)
            providers[0][1].update(trt_engine_cache_enable="False", trt_timing_cache_enable="False")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as err:  # onnxruntime raises its own exception classes
        raise CheckpointError(f"{path} cannot be read as ONNX: {first_line(err)}") from err


def _engine_key(path: Path, version: str) -> str:
    """Return a name for the engines of a file; ONNX Runtime itself may use those of another file or version."""
    about = [version]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        about.append(importlib.metadata.version("tensorrt"))
    if torch.cuda.is_available():
        about += [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    try:
        content = path.read_bytes()
    except OSError as err:
        raise CheckpointError(f"{path} cannot be read: {err.strerror}") from err
    return hashlib.sha256("\n".join(about).encode() + content).hexdigest()[:32]
