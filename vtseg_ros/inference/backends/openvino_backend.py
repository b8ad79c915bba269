# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints run by OpenVINO on the CPU.

The network is converted when it is loaded and the compiled model is kept in the user's cache folder, so that the next
start takes no longer than PyTorch's.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtseg_ros.errors import ConfigError, DeviceError
from vtseg_ros.files import write_atomically
from vtseg_ros.inference.backends.base import Backend, BackendOptions
from vtseg_ros.inference.optimise import optimise
from vtseg_ros.inference.step import Step, build_step, choose_streaming
from vtseg_ros.model.checkpoint import Checkpoint, load_checkpoint
from vtseg_ros.model.efficientvit import CoarseLogits
from vtseg_ros.model.registry import traits_of
from vtseg_ros.model.vtseg import check_size

log = logging.getLogger("vtseg_ros.inference")

CPU = torch.device("cpu")
HINTS = {"fp32": "f32", "bf16": "bf16"}
DIGEST_BYTES = 32
CACHE_FORMAT = 1


class SplitStep(nn.Module):
    """A step whose older frames come as separate inputs, so that their rows reach the runtime without a copy.

    Args:
        step: of a network on the CPU, fp32.
    """

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, images: Tensor, valid: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        """Segment one frame.

        Args:
            images: (1, 3, H, W) float32 in [0, 1].
            valid: (k - 1,) bool, which of the older frames are there.
            rows: k - 1 tensors (1, S), what older frames left behind, oldest first.

        Returns:
            logits (1, C, h, w), and what this frame leaves behind, (1, S).
        """
        result: tuple[Tensor, Tensor] = self.step(images, torch.stack(rows, dim=1), valid)
        return result


class OpenVinoBackend(Backend):
    """A checkpoint in OpenVINO on the CPU.

    Args:
        checkpoint: with the network as trained.
        step: the step of the same network, optimised, fp32.
        input_size: (width, height) px.
        precision: `fp32` or `bf16`.
        streaming: `plain`, `exact` or `causal`.
        threads: of the inference; None = PyTorch's number.
        cache_dir: folder of compiled models; None = no cache.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        step: Step,
        *,
        input_size: tuple[int, int],
        precision: str,
        streaming: str,
        threads: int | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        video = traits_of(step.model).takes_cache
        super().__init__(
            checkpoint=checkpoint,
            device=CPU,
            precision=precision,
            input_size=input_size,
            streaming=streaming,
            video=video,
            depth=len(step.model.attention_layers) if video else 1,
        )
        self._step, self._cache_dir = step, cache_dir
        self._weights = _digest_of(step)
        self._core = _core()
        self._config = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the rest of the robot's programs runs on the same cores
        }
        self._requests: dict[int, Any] = {}
        self._request(self.window)

    @classmethod
    def open(cls, source: str | Path | Checkpoint, options: BackendOptions) -> OpenVinoBackend:
        """See `Backend.open`."""
        if options.device not in ("auto", "cpu"):
            raise DeviceError(f"backend openvino: runs on the CPU; expected device cpu, got {options.device}")
        if options.precision not in ("auto", *HINTS):
            raise DeviceError(
                f"backend openvino: unknown precision; expected auto, {', '.join(HINTS)}, got {options.precision}"
            )
        precision = "fp32" if options.precision == "auto" else options.precision
        if precision == "bf16" and "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise DeviceError(
                "backend openvino: this processor has no bf16; expected precision fp32, got bf16"
            )
        if not isinstance(source, Checkpoint):
            source = load_checkpoint(source, static_prior=options.static_prior)
        known = traits_of(source.model)
        if known.needs_flow:
            raise ConfigError(f"a {known.name} checkpoint needs optical flow: score it with `vtseg evaluate`")
        width, height = options.input_size or source.input_size
        check_size(height, width)
        network = source.model
        if options.coarse_logits and hasattr(network, "coarse_logits"):
            network = CoarseLogits(network)
        model = optimise(network, CPU, torch.float32)
        streaming = choose_streaming(model, options.streaming)
        return cls(
            source,
            build_step(model, (height, width), streaming),
            input_size=(width, height),
            precision=precision,
            streaming=streaming,
            cache_dir=cache_folder(),
        )

    @property
    def mode(self) -> str:
        """See `Backend.mode`."""
        return "openvino"

    def set_window(self, frames: int | None) -> None:
        """See `Backend.set_window`; another length is compiled when it is set."""
        super().set_window(frames)
        self._request(self.window)

    def run(self, images: Tensor, past: Sequence[Sequence[np.ndarray]]) -> tuple[Tensor, list[np.ndarray]]:
        """See `Backend.run`; cameras run one after the other, a frame leaves a row (1, S) behind."""
        answers = [self._run(image[None].numpy(), rows) for image, rows in zip(images.contiguous(), past)]
        if len(answers) == 1:
            return torch.from_numpy(answers[0][0]), [answers[0][1]]
        logits = torch.from_numpy(np.concatenate([logits for logits, _ in answers]))
        return logits, [row for _, row in answers]

    def _run(self, image: np.ndarray, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        import openvino

        request = self._request(self.window)
        older = self.window - 1
        request.set_input_tensor(0, openvino.Tensor(np.ascontiguousarray(image), shared_memory=True))
        if not older or not self.video:
            request.infer()
            return request.get_output_tensor(0).data.copy(), np.empty((1, 0), np.float32)
        valid = np.zeros(older, bool)
        valid[older - len(rows) :] = True
        request.set_input_tensor(1, openvino.Tensor(valid, shared_memory=True))
        empty = np.zeros((1, self._step.state_size), np.float32) if len(rows) < older else None
        for place, row in enumerate([empty] * (older - len(rows)) + list(rows), start=2):
            request.set_input_tensor(place, openvino.Tensor(row, shared_memory=True))
        # A buffer of its own: the row stays with the camera while the next frames are computed.
        left = np.empty((1, self._step.state_size), np.float32)
        request.set_output_tensor(1, openvino.Tensor(left, shared_memory=True))
        request.infer()
        return request.get_output_tensor(0).data.copy(), left

    def _request(self, window: int) -> Any:
        if window not in self._requests:
            self._requests[window] = self._compile(window).create_infer_request()
        return self._requests[window]

    def _compile(self, window: int) -> Any:
        """Take the compiled model from the cache, or convert, compile and keep it."""
        import openvino

        path = None
        if self._cache_dir is not None:
            about = {
                "format": CACHE_FORMAT,
                "openvino": openvino.__version__,
                "processor": self._core.get_property("CPU", "FULL_DEVICE_NAME"),
                "weights": self._weights,
                "size": self.input_size,
                "window": window,
                "streaming": self.streaming,
                "config": self._config,
            }
            path = self._cache_dir / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]}.blob"
            compiled = self._cached(path)
            if compiled is not None:
                return compiled
        compiled = self._core.compile_model(self._convert(window), "CPU", self._config)
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                blob = compiled.export_model().getvalue()
                write_atomically(path, hashlib.sha256(blob).digest() + blob)
            except (OSError, RuntimeError) as err:
                log.warning("the compiled network was not kept in %s: %s", path.parent, err)
        return compiled

    def _cached(self, path: Path) -> Any | None:
        """Return the compiled model of a cache file; None where there is none or the file is damaged."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, blob = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        try:
            if hashlib.sha256(blob).digest() != digest:
                raise RuntimeError("its checksum does not match")
            return self._core.import_model(io.BytesIO(blob), "CPU", self._config)
        except Exception as err:  # OpenVINO raises RuntimeError and others for files of another build
            log.warning("%s is not used and is made again: %s", path, str(err).splitlines()[0])
            return None

    def _convert(self, window: int) -> Any:
        import openvino

        width, height = self.input_size
        images = torch.rand(1, 3, height, width)
        module: nn.Module = self._step.model
        arguments: tuple[Tensor, ...] = (images,)
        if self.video:
            row = torch.zeros(1, self._step.state_size)
            if window == 1:
                module = _FirstFrame(self._step)
            else:
                module = SplitStep(self._step)
                arguments = (images, torch.ones(window - 1, dtype=torch.bool), *[row] * (window - 1))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                # Traced here: the converter's own call runs the network again to check the trace, which takes as long.
                traced = torch.jit.trace(module.eval(), arguments, check_trace=False)
                shapes = [tuple(argument.shape) for argument in arguments]
                return openvino.convert_model(traced, example_input=arguments, input=shapes)
            except Exception as err:  # the converter raises classes of its own
                line = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
                raise ConfigError(
                    f"backend openvino: this network cannot be converted: {line}. Use backend torch"
                ) from err


class _FirstFrame(nn.Module):
    """A step without older frames."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (1, C, h, w) of images (1, 3, H, W)."""
        result: Tensor = self.step(images, images.new_zeros(1, 0, self.step.state_size))[0]
        return result


def cache_folder() -> Path:
    """Return the user's cache folder for compiled networks: VTSEG_CACHE, or below XDG_CACHE_HOME or ~/.cache."""
    chosen = os.environ.get("VTSEG_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "openvino"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "vtseg_ros" / "openvino"


def _core() -> Any:
    os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
    try:
        import openvino
    except ImportError as err:
        raise ConfigError(
            "backend openvino: the package openvino is missing. Run: pip install 'vtseg_ros[openvino]'"
        ) from err
    return openvino.Core()


def _digest_of(module: nn.Module) -> str:
    """Return the SHA-256 of a module's parameters and buffers."""
    total = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().contiguous().numpy().tobytes())
    return total.hexdigest()
