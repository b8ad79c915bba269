# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Run checkpoints in OpenVINO on the CPU.

The network is converted when it is loaded. The compiled model is stored in the user's cache folder, so the next start takes
no longer than with PyTorch.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

import vtseg_ros.model as model_package
from vtseg_ros.errors import first_line
from vtseg_ros.files import cache_folder
from vtseg_ros.inference.backends.base import (
    Backend,
    BackendOptions,
    checked_input_size,
    run_one_by_one,
)
from vtseg_ros.inference.backends.openvino_runtime import (
    CompiledCache,
    CompiledMasks,
    ConversionError,
    check_options,
    import_openvino,
    precision_of,
    runtime_config,
)
from vtseg_ros.inference.optimise import optimise
from vtseg_ros.inference.postprocess import MaskOptions
from vtseg_ros.inference.step import Step, build_step, choose_streaming
from vtseg_ros.model.checkpoint import Checkpoint, load_checkpoint
from vtseg_ros.model.registry import traits_of, without_upsampling
from vtseg_ros.model.static_prior import is_own
from vtseg_ros.model.video_network import VideoNetwork

CPU = torch.device("cpu")


def convert(module: nn.Module, arguments: tuple[Tensor, ...]) -> Any:
    """Return the openvino.Model of a module for inputs of the shapes of `arguments`.

    Raises:
        ConversionError: if OpenVINO cannot convert it.
    """
    openvino = import_openvino()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # Traced here, because the converter's own call runs the network again to check the trace, which doubles the time.
            traced = torch.jit.trace(module.eval(), arguments, check_trace=False)
            shapes = [tuple(argument.shape) for argument in arguments]
            return openvino.convert_model(traced, example_input=arguments, input=shapes)
        except Exception as err:  # the converter raises its own exception classes
            line = first_line(err)
            raise ConversionError(
                f"backend openvino: this network cannot be converted: {line}. Use backend torch"
            ) from err


class SplitStep(nn.Module):
    """A step with the older frames as separate inputs, so their rows are passed to the runtime without a copy.

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
            valid: (k - 1,) bool, True for older frames that exist.
            rows: k - 1 tensors (1, S), cached values of older frames, oldest first.

        Returns:
            logits (1, C, h, w), and the cached values of this frame, (1, S).
        """
        result: tuple[Tensor, Tensor] = self.step(images, torch.stack(rows, dim=1), valid)
        return result


class OpenVinoBackend(Backend):
    """A checkpoint in OpenVINO on the CPU.

    Args:
        checkpoint: with the network as trained.
        input_size: (width, height) px.
        precision: `fp32` or `bf16`.
        streaming: `plain`, `exact` or `causal`.
        options: its `coarse_logits`, `threads` and `pin_threads` are used.
        cache_dir: folder of compiled networks; None = no cache.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        input_size: tuple[int, int],
        precision: str,
        streaming: str,
        options: BackendOptions,
        cache_dir: Path | None = None,
    ) -> None:
        network = checkpoint.network
        video = traits_of(network).takes_cache
        super().__init__(
            checkpoint=checkpoint,
            device=CPU,
            precision=precision,
            input_size=input_size,
            streaming=streaming,
            video=video,
            depth=cast(VideoNetwork, network).causal_depth if video else 1,
            longest_window=cast(VideoNetwork, network).longest_window if video else None,
        )
        self._coarse = options.coarse_logits
        self._config = runtime_config(precision, options)
        self._masks = CompiledMasks(self._config)
        # The state dict does not describe an external static network.
        own = not video or is_own(cast(VideoNetwork, network).static_prior)
        self._cache = CompiledCache(cache_dir if own else None)
        self._about = {
            "weights": _digest_of(network),
            "code": _digest_of_code(type(network)),
            "network": [checkpoint.architecture, checkpoint.config],
            "coarse": self._coarse,
            "size": list(input_size),
            "streaming": streaming,
        }
        self._requests: dict[int, Any] = {}

    @classmethod
    def open(cls, source: str | Path | Checkpoint, options: BackendOptions) -> OpenVinoBackend:
        """See `Backend.open`."""
        check_options(options)
        if not isinstance(source, Checkpoint):
            source = load_checkpoint(source, static_prior=options.static_prior)
        backend = cls(
            source,
            input_size=checked_input_size(source, options),
            precision=precision_of(options, source.agreement),
            streaming=choose_streaming(source.network, options.streaming),
            options=options,
            cache_dir=cache_folder("openvino"),
        )
        backend.set_window(options.window)
        return backend

    @property
    def mode(self) -> str:
        """See `Backend.mode`."""
        return "openvino"

    def is_ready(self, frames: int | None) -> bool:
        """See `Backend.is_ready`."""
        return self._frames(frames) in self._requests

    def prepare_window(self, frames: int | None) -> None:
        """See `Backend.prepare_window`; each length is converted and compiled once."""
        super().prepare_window(frames)
        self._request(self._frames(frames))

    def run(self, images: Tensor, past: Sequence[Sequence[np.ndarray]]) -> tuple[Tensor, list[np.ndarray]]:
        """See `Backend.run`; the cached values of a frame are a row (1, S)."""
        return run_one_by_one(self._run, images, past)

    def _run(self, image: np.ndarray, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        openvino = import_openvino()
        request = self._request(self.window)
        older = self.window - 1
        batch = image[None]  # the request does not own the memory
        request.set_input_tensor(0, openvino.Tensor(batch, shared_memory=True))
        if not older or not self.video:
            request.infer()
            return request.get_output_tensor(0).data, np.empty((1, 0), np.float32)
        valid = np.zeros(older, bool)
        valid[older - len(rows) :] = True
        request.set_input_tensor(1, openvino.Tensor(valid, shared_memory=True))
        row_shape = tuple(request.get_input_tensor(2).shape)
        empty = np.zeros(row_shape, np.float32) if len(rows) < older else None
        for place, row in enumerate([empty] * (older - len(rows)) + list(rows), start=2):
            request.set_input_tensor(place, openvino.Tensor(row, shared_memory=True))
        # A separate buffer, because the row is stored while the next frames are computed.
        left = np.empty(row_shape, np.float32)
        request.set_output_tensor(1, openvino.Tensor(left, shared_memory=True))
        request.infer()
        return request.get_output_tensor(0).data, left

    def to_mask(self, logits: Tensor, options: MaskOptions) -> tuple[np.ndarray, np.ndarray]:
        """See `Backend.to_mask`; in a compiled model if that gives the same result."""
        return self._masks(logits, options)

    @cached_property
    def _step(self) -> Step:
        """The optimised step of the network in fp32; built only for a conversion."""
        network = self.checkpoint.network
        model = optimise(without_upsampling(network) if self._coarse else network, CPU, torch.float32)
        return build_step(model, (self.input_size[1], self.input_size[0]), self.streaming)

    def _request(self, window: int) -> Any:
        if window not in self._requests:
            about = {**self._about, "window": window}
            compiled = self._cache.compiled(about, lambda: self._convert(window), self._config)
            self.__dict__.pop("_step", None)  # a second copy of the weights
            self._requests[window] = compiled.create_infer_request()
        return self._requests[window]

    def _convert(self, window: int) -> Any:
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
        return convert(module, arguments)


class _FirstFrame(nn.Module):
    """A step without older frames."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (1, C, h, w) of images (1, 3, H, W)."""
        result: Tensor = self.step(images, images.new_zeros(1, 0, self.step.state_size))[0]
        return result


def _digest_of(module: nn.Module) -> str:
    """Return the SHA-256 of a module's parameters and buffers."""
    total = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _digest_of_code(kind: type[nn.Module]) -> str:
    """Return the SHA-256 of the code that a converted network depends on."""
    own = inspect.getsourcefile(kind)
    files = [*Path(model_package.__file__).parent.glob("*.py"), *Path(__file__).parents[1].glob("*.py")]
    files += [Path(__file__), *([Path(own)] if own else [])]
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(file.read_bytes())
    return total.hexdigest()
