# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Run exported networks (.onnx) in ONNX Runtime, on the available execution providers."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vtseg_ros.errors import CheckpointError, ConfigError, DeviceError, first_line
from vtseg_ros.files import cache_folder
from vtseg_ros.inference.backends.base import Backend, BackendOptions
from vtseg_ros.inference.devices import PRECISIONS, parse_device
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model.checkpoint import Checkpoint, read_agreement, read_use
from vtseg_ros.model.licence import Licence
from vtseg_ros.model.onnx_adapter import adapter_of
from vtseg_ros.model.state_dicts import METADATA_KEY

log = logging.getLogger("vtseg_ros.inference")

CPU = torch.device("cpu")
MOST_LAYERS = 64
"""Attention layers assumed for files that do not state them."""
PROVIDERS = {
    "cuda": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    "cpu": ("CPUExecutionProvider",),
}
TENSORRT = "TensorrtExecutionProvider"


class OnnxBackend(Backend):
    """A file of `vtseg export --format onnx`, or of `vtseg weights convert --as onnx`.

    Args:
        path: the file.
        device: `auto`, `cpu`, `cuda` or `cuda:N`: auto uses a GPU if ONNX Runtime has a provider for it.
        fp16: let TensorRT compute in half precision.
        threads: number of CPU threads; None = PyTorch's default.

    Attributes:
        kind: `stream`, `window` or `image`.
        providers: execution providers in use.
    """

    longest_window: int

    def __init__(
        self, path: Path, device: str = "auto", *, fp16: bool = False, threads: int | None = None
    ) -> None:
        self.session = open_session(path, device, fp16=fp16, threads=threads)
        self.providers = self.session.get_providers()
        metadata = _metadata(self.session, path)
        self.kind = metadata["kind"]
        self._adapter = adapter_of(metadata)
        width, height = (int(side) for side in metadata["input_size"])
        resize_mode, temperature = read_use(metadata)
        colors = tuple(tuple(color) for color in metadata["class_colors"])
        checkpoint = Checkpoint(
            model=None,
            architecture=metadata["architecture"],
            config=metadata["config"],
            labels=LabelSet(tuple(metadata["class_names"]), colors),
            input_size=(width, height),
            training=metadata["training"],
            path=path,
            licence=Licence.from_metadata(metadata),
            resize_mode=resize_mode,
            temperature=temperature,
            agreement=read_agreement(metadata),
        )
        super().__init__(
            checkpoint=checkpoint,
            device=CPU,  # images and masks are processed on the CPU
            precision="fp16" if fp16 else "fp32",
            input_size=(width, height),
            streaming=metadata["streaming"],
            video=self.kind != "image",
            depth=int(metadata.get("depth", MOST_LAYERS)),
            longest_window=int(metadata["config"]["window"]),
        )
        if self.kind == "stream":
            past = next(one for one in self.session.get_inputs() if one.name == "past")
            self._row = int(past.shape[2])

    @classmethod
    def open(cls, source: str | Path | Checkpoint, options: BackendOptions) -> OnnxBackend:
        """See `Backend.open`."""
        path = Path(cast("str | Path", source))
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; expected an exported network")
        if options.precision not in ("auto", *PRECISIONS):
            raise DeviceError(
                f"precision: unknown; expected auto, {', '.join(PRECISIONS)}, got {options.precision!r}"
            )
        if options.precision == "bf16" or options.static_prior:
            raise ConfigError(
                f"{path}: its precision and static prior were fixed when it was exported. Leave them unset"
            )
        backend = cls(path, options.device, fp16=options.precision == "fp16", threads=options.threads)
        if options.input_size is not None and tuple(options.input_size) != backend.input_size:
            raise ConfigError(
                f"input_size: fixed when {path} was exported; expected {backend.input_size[0]}x"
                f"{backend.input_size[1]} px, got {options.input_size[0]}x{options.input_size[1]}"
            )
        if options.streaming not in ("auto", backend.streaming):
            raise ConfigError(
                f"streaming: fixed when {path} was exported; expected {backend.streaming}, got {options.streaming}"
            )
        log.info("%s runs on %s", path, ", ".join(backend.providers))
        return backend

    @property
    def description(self) -> str:
        """See `Backend.description`."""
        return f"{self.kind}, {self.streaming}"

    @property
    def mode(self) -> str:
        """See `Backend.mode`."""
        return "onnxruntime"

    def run(self, images: Tensor, past: Sequence[Sequence[np.ndarray]]) -> tuple[Tensor, list[np.ndarray]]:
        """See `Backend.run`; cameras run one after the other, everything is float32 on the CPU."""
        run = {"stream": self._stream, "window": self._whole_window, "image": self._image}[self.kind]
        answers = [run(image.numpy(), rows) for image, rows in zip(images.contiguous(), past)]
        logits = torch.from_numpy(np.concatenate([logits for logits, _ in answers]))
        return logits, [row for _, row in answers]

    def _image(self, image: np.ndarray, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        if self._adapter is not None:
            return self._adapter.run(self.session, image), np.empty(0, np.float32)
        (logits,) = self.session.run(["logits"], {"images": image[None]})
        return logits, np.empty(0, np.float32)

    def _stream(self, image: np.ndarray, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        older = self.longest_window - 1
        past, valid = _padded(rows, older, (self._row,))
        feed = {"images": image[None], "past": past[None], "valid": valid}
        logits, following = self.session.run(["logits", "past_next"], feed)
        return logits, following[0, -1].copy()  # only the new row, not the k - 1 older ones

    def _whole_window(self, image: np.ndarray, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        shape = (3, self.input_size[1], self.input_size[0])
        frames = [row.reshape(shape) for row in rows] + [image]
        video, valid = _padded(frames, self.longest_window, shape)
        (logits,) = self.session.run(["logits"], {"video": video[None], "valid": valid})
        return logits, image.reshape(-1)


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
        raise ConfigError(f"{path} needs onnxruntime: pip install vtseg_ros[onnx]") from err
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


def _metadata(session: Any, path: Path) -> dict[str, Any]:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise CheckpointError(
            f"{path} was not written by `vtseg export`: it has no {METADATA_KEY!r} metadata with classes and size. "
            f"For another segmentation network: vtseg weights convert {path.name} --as onnx --labels FILE"
        )
    metadata = json.loads(text)
    if metadata.get("format") != 1:
        raise CheckpointError(f"{path}: unknown export format; expected 1, got {metadata.get('format')!r}")
    result: dict[str, Any] = metadata
    return result


def _padded(
    entries: Sequence[np.ndarray], count: int, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (count, *shape) float32 with the entries last, and (count,) bool, True for entries."""
    stacked, valid = np.zeros((count, *shape), np.float32), np.zeros(count, bool)
    for index, entry in enumerate(entries, start=count - len(entries)):
        stacked[index], valid[index] = entry, True
    return stacked, valid
