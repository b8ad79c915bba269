# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's runtime, of which a process has one, the cache of compiled networks, and the model from logits to a mask."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vtseg_ros.errors import ConfigError, DeviceError, first_line
from vtseg_ros.files import locked, write_atomically
from vtseg_ros.inference.backends.base import BackendOptions
from vtseg_ros.inference.devices import choose_precision, precision_name
from vtseg_ros.inference.postprocess import EMPTY, MAX_LOGITS, MaskOptions, to_mask
from vtseg_ros.label_set import IGNORE

log = logging.getLogger("vtseg_ros.inference")

TELEMETRY = "openvino_telemetry"
HINTS = {"fp32": "f32", "bf16": "bf16"}
DIGEST_BYTES = 32
CACHE_FORMAT = 2


class ConversionError(ConfigError):
    """A network that OpenVINO cannot run."""


@functools.cache
def import_openvino() -> ModuleType:
    """Import openvino without its telemetry.

    At its import and at each conversion, the telemetry sends usage data from a fork of the whole process, which only a file
    in the user's home folder switches off. OpenVINO works without it if openvino_telemetry cannot be imported.

    Raises:
        ConfigError: if the package is missing.
    """
    hide = TELEMETRY not in sys.modules
    if hide:
        cast("dict[str, ModuleType | None]", sys.modules)[TELEMETRY] = None
    try:
        import openvino
        import openvino.tools.ovc.convert_impl  # the modules that import the telemetry
    except ImportError as err:
        raise ConfigError(
            "backend openvino: the package openvino is missing. Run: pip install 'vtseg_ros[openvino]'"
        ) from err
    finally:
        if hide:
            del sys.modules[TELEMETRY]
    result: ModuleType = openvino
    return result


@functools.cache
def core() -> Any:
    """Return the openvino.Core of the process; its documentation recommends one per process.

    Raises:
        ConfigError: if the package is missing.
    """
    return import_openvino().Core()


MAX_FILES = 64
"""Compiled networks that the cache keeps; the one that was not used for the longest time is removed first."""


class CompiledCache:
    """Compiled networks in a folder, each under the digest of everything that it depends on.

    A file contains the SHA-256 of that description and of the compiled network. A damaged file, or one for another
    description, is therefore detected and compiled again. Processes that need the same network at once wait for the one that
    compiles it.

    Args:
        folder: created if needed; None = no cache.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def compiled(self, about: Mapping[str, Any], convert: Callable[[], Any], config: dict[str, Any]) -> Any:
        """Return an openvino.CompiledModel from the cache, or convert, compile and store it.

        Args:
            about: everything that the compiled network depends on, as JSON values.
            convert: returns the openvino.Model.
            config: of the compilation.
        """
        if self.folder is None:
            return core().compile_model(convert(), "CPU", config)
        description = json.dumps(
            {"format": CACHE_FORMAT, **_runtime(), **about, "config": config}, sort_keys=True
        ).encode()
        path = self.folder / f"{hashlib.sha256(description).hexdigest()[:32]}.blob"
        found = self._read(path, description, config)
        if found is not None:
            return found
        with locked(path.with_suffix(".lock"), required=False, on_wait=_say_that_another_converts) as waited:
            if waited:
                found = self._read(path, description, config)
                if found is not None:
                    return found
            log.info(
                "converting the network for OpenVINO; it is stored in %s for the next start", self.folder
            )
            compiled = core().compile_model(convert(), "CPU", config)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                blob = compiled.export_model().getvalue()
                write_atomically(path, _digest(description, blob) + blob)
                self._remove_old(path.parent)
            except (OSError, RuntimeError) as err:
                log.warning("the compiled network was not stored in %s: %s", path.parent, err)
            return compiled

    def _read(self, path: Path, description: bytes, config: dict[str, Any]) -> Any | None:
        """Return the compiled model of a file; None if it does not exist or is not valid."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        blob = content[DIGEST_BYTES:]
        try:
            if _digest(description, blob) != content[:DIGEST_BYTES]:
                raise RuntimeError("its checksum does not match")
            found = core().import_model(io.BytesIO(blob), "CPU", config)
        except Exception as err:  # OpenVINO raises RuntimeError and others for files of another build
            log.warning("%s is not used and is compiled again: %s", path, first_line(err))
            return None
        with suppress(OSError):  # a cache that cannot be written
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        return found

    @staticmethod
    def _remove_old(folder: Path) -> None:
        """Remove the files that were not used for the longest time, as far as there are more than `MAX_FILES`."""
        used = {}
        for path in folder.glob("*.blob"):
            with suppress(FileNotFoundError):  # another process removes too
                used[path] = path.stat().st_atime_ns
        for path in sorted(used, key=used.__getitem__, reverse=True)[MAX_FILES:]:
            path.unlink(missing_ok=True)


def _say_that_another_converts() -> None:
    log.info("waiting for another process that converts the same network")


def _digest(description: bytes, blob: bytes) -> bytes:
    total = hashlib.sha256(description)
    total.update(blob)
    return total.digest()


def _runtime() -> dict[str, str]:
    openvino = import_openvino()
    return {
        "openvino": openvino.__version__,
        "processor": core().get_property("CPU", "FULL_DEVICE_NAME"),
        "capabilities": " ".join(sorted(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))),
    }


def _best(logits: Any, size: tuple[int, int]) -> tuple[Any, Any]:
    """Return the upsampled logits and the node of their largest values and its classes.

    Args:
        logits: openvino.Output, (1, C, h, w).
        size: (width, height) px of the result.
    """
    ops = import_openvino().opset13
    height, width = size[1], size[0]
    grid = logits
    if tuple(logits.get_shape())[2:] != (height, width):
        grid = ops.interpolate(
            logits,
            np.array([height, width], np.int32),
            "linear_onnx",
            "sizes",
            coordinate_transformation_mode="half_pixel",
            axes=np.array([2, 3], np.int32),
        )
    return grid, ops.topk(grid, np.array(1, np.int64), 1, "max", "none")  # of equals the first


def mask_model(shape: tuple[int, ...], size: tuple[int, int], with_confidence: bool) -> Any:
    """Return an openvino.Model from logits to the mask, (1, 1, H, W) uint8.

    Args:
        shape: (1, C, h, w) of the logits.
        size: (width, height) px of the result.
        with_confidence: return the confidence too, (1, 1, H, W) uint8; the second input, (1,) float32, is the threshold
            below which a pixel becomes 255.
    """
    openvino = import_openvino()
    ops = openvino.opset13
    logits = ops.parameter(list(shape), np.float32)
    grid, best = _best(logits.output(0), size)
    if not with_confidence:
        return openvino.Model([ops.convert(best.output(1), "u8")], [logits], "mask")
    threshold = ops.parameter([1], np.float32)
    classes = np.array([1], np.int32)
    spread = ops.reduce_sum(ops.exp(ops.subtract(grid, best.output(0))), classes, keep_dims=True)
    probability = ops.divide(np.array(1, np.float32), spread)
    confidence = ops.round(ops.multiply(probability, np.array(255, np.float32)), "half_to_even")
    ids = ops.select(
        ops.less(probability, threshold),
        ops.constant(np.array(IGNORE, np.float32)),
        ops.convert(best.output(1), "f32"),
    )
    results = [ops.convert(ids, "u8"), ops.convert(confidence, "u8")]
    return openvino.Model(results, [logits, threshold], "mask")


class MaskModel:
    """Mask and confidence from logits: upsampling, argmax and softmax maximum in one compiled model.

    The result equals that of `postprocess.decide` up to rounding of the confidence.

    Args:
        shape: (1, C, h, w) of the logits.
        size: (width, height) px of the result.
        config: of the compilation.
        with_confidence: compute the confidence, without which there is no threshold either.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        size: tuple[int, int],
        config: dict[str, Any],
        *,
        with_confidence: bool = True,
    ) -> None:
        self.with_confidence = with_confidence
        model = mask_model(shape, size, with_confidence)
        self._request = core().compile_model(model, "CPU", config).create_infer_request()

    def __call__(self, logits: np.ndarray, min_confidence: float) -> tuple[np.ndarray, np.ndarray]:
        """Return mask and confidence, each (H, W) uint8; the confidence is `EMPTY` if it is not computed.

        Args:
            logits: (1, C, h, w) float32, contiguous.
            min_confidence: below it, 0..1, a pixel becomes 255.
        """
        openvino = import_openvino()
        self._request.set_input_tensor(0, openvino.Tensor(logits, shared_memory=True))
        if self.with_confidence:
            threshold = np.array([min_confidence], np.float32)
            self._request.set_input_tensor(1, openvino.Tensor(threshold, shared_memory=True))
        self._request.infer()
        mask = self._request.get_output_tensor(0).data[0, 0].copy()
        return mask, self._request.get_output_tensor(1).data[0, 0].copy() if self.with_confidence else EMPTY


MASK_MODELS = 8
"""Number of compiled mask models that are stored."""


class CompiledMasks:
    """Masks from logits in compiled models, one for each pair of logit and mask size, with and without confidence.

    Args:
        config: of the compilation; the precision is always fp32.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = {**config, "INFERENCE_PRECISION_HINT": HINTS["fp32"]}
        self._models: dict[tuple[int, ...], MaskModel] = {}

    def __call__(self, logits: Tensor, options: MaskOptions) -> tuple[np.ndarray, np.ndarray]:
        """See `Backend.to_mask`; in PyTorch if the compiled model would give another result."""
        width, height = options.size
        resized = logits.shape[2:] != (height, width)
        if resized and (options.upsampling != "bilinear" or logits.shape[1] * width * height > MAX_LOGITS):
            return to_mask(logits, options)
        key = (*logits.shape, *options.size, options.needs_probability)
        if key not in self._models:
            if len(self._models) == MASK_MODELS:
                self._models.pop(next(iter(self._models)))
            self._models[key] = MaskModel(
                tuple(logits.shape), options.size, self._config, with_confidence=options.needs_probability
            )
        mask, confidence = self._models[key](logits.contiguous().numpy(), options.min_confidence)
        return mask, confidence if options.with_confidence else EMPTY


def runtime_config(precision: str, options: BackendOptions) -> dict[str, Any]:
    """Return the configuration of a compilation for low latency.

    Args:
        precision: `fp32` or `bf16`.
        options: its `threads`, `leave_core` and `pin_threads` are used.
    """
    return {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": options.thread_count(of_two=2) or torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": options.pin_threads,
    }


def check_options(options: BackendOptions) -> None:
    """Raise DeviceError for a device or precision that OpenVINO does not have on this machine."""
    if options.device not in ("auto", "cpu"):
        raise DeviceError(f"backend openvino: runs on the CPU; expected device cpu, got {options.device}")
    if options.precision not in ("auto", *HINTS):
        raise DeviceError(
            f"backend openvino: unknown precision; expected auto, {', '.join(HINTS)}, got {options.precision}"
        )
    if options.precision == "bf16" and not has_bf16():
        raise DeviceError("backend openvino: this processor has no bf16; expected precision fp32, got bf16")


def has_bf16() -> bool:
    """Return whether OpenVINO computes in bf16 on this processor."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def precision_of(options: BackendOptions, agreement: Mapping[str, float]) -> str:
    """Return the precision for a network with this agreement; see `devices.choose_precision`."""
    cpu = torch.device("cpu")
    return precision_name(choose_precision(options.precision, cpu, agreement, native_bf16=has_bf16()))
