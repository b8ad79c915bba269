# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The protocol of the backends that execute a network: PyTorch, ONNX Runtime and others."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtseg_ros.errors import ConfigError
from vtseg_ros.inference.postprocess import MaskOptions, to_mask
from vtseg_ros.model.checkpoint import Checkpoint
from vtseg_ros.model.registry import traits_of
from vtseg_ros.model.vtseg import check_size
from vtseg_ros.model.vtseg_config import check_window


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """Options of a backend.

    Args:
        backend: `auto`, `torch`, `openvino` or `onnx`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; a backend may accept others.
        precision: `auto`, `fp32`, `fp16`, `bf16`.
        input_size: (width, height) px of the network's input; None = the network's own.
        window: frames k; None = the network's own. A backend that compiles for a fixed length uses this one.
        streaming: `auto`, `plain`, `exact` or `causal`.
        static_prior: an external static network (see `model.checkpoint.load_external_prior`).
        compile: use torch.compile.
        cuda_graphs: capture CUDA graphs on a GPU.
        threads: number of CPU threads; None = PyTorch's default. PyTorch uses it for the whole process.
        leave_core: without `threads`, leave a core to other programs; see `thread_count`.
        pin_threads: keep each thread on one core (OpenVINO).
        coarse_logits: logits may be smaller than the input; the caller upsamples them.
    """

    backend: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    input_size: tuple[int, int] | None = None
    window: int | None = None
    streaming: str = "auto"
    static_prior: str | None = None
    compile: bool = False
    cuda_graphs: bool = True
    threads: int | None = None
    leave_core: bool = False
    pin_threads: bool = False
    coarse_logits: bool = False

    def thread_count(self, *, of_two: int) -> int | None:
        """Return the number of CPU threads; None = PyTorch's default.

        Args:
            of_two: threads of a machine with two cores if one is to be left. Threads that often wait for each other are
                slower than a single one if another program takes one of their cores.
        """
        if self.threads is not None or not self.leave_core:
            return self.threads
        cores = _first_thread_count()
        return cores - 1 if cores > 2 else min(cores, of_two)


@functools.cache  # loading a network in PyTorch changes the number
def _first_thread_count() -> int:
    return torch.get_num_threads()


class Backend(ABC):
    """Execute a network, and store the cached values of older frames of each camera.

    A backend implements `open`, `mode` and `run`. This class stores the state: `infer` processes the newest frames of some
    cameras, and `commit` appends them to their windows. A batch that fails can therefore be tried again. Not thread-safe.

    Args:
        checkpoint: metadata of the network; its `model` is None if only the runtime has the network.
        device: device of images and logits.
        precision: `fp32`, `fp16`, `bf16` or another name.
        input_size: (width, height) px of the network's input.
        streaming: `plain`, `exact` or `causal`.
        video: whether the network takes windows; otherwise every window has one frame.
        depth: windows that a mask reaches back in causal streaming (see `VideoNetwork.causal_depth`).
        longest_window: frames of the longest window; None = any.
    """

    def __init__(
        self,
        *,
        checkpoint: Checkpoint,
        device: torch.device,
        precision: str,
        input_size: tuple[int, int],
        streaming: str,
        video: bool,
        depth: int = 1,
        longest_window: int | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.precision = precision
        self.input_size = input_size
        self.streaming = streaming
        self.video = video
        self.depth = depth
        self.longest_window = longest_window
        self._past: dict[str, deque[Any]] = {}
        self._new: dict[str, Any] = {}
        self._window = self.own_window

    @classmethod
    @abstractmethod
    def open(cls, source: str | Path | Checkpoint, options: BackendOptions) -> Backend:
        """Load a network.

        Args:
            source: a file, the name of shipped weights, or a loaded checkpoint (its network is copied).
            options: options of the user.

        Raises:
            CheckpointError, ConfigError, DeviceError: naming what is wrong.
        """

    @property
    @abstractmethod
    def mode(self) -> str:
        """How full windows are executed, such as `eager` or `onnxruntime`."""

    @abstractmethod
    def run(self, images: Tensor, past: Sequence[Sequence[Any]]) -> tuple[Tensor, list[Any]]:
        """Segment the newest frames of several windows of one length.

        Args:
            images: (B, 3, H, W) float32 in [0, 1], on `device`.
            past: for each window the cached values of its older frames, oldest first; the same number for all.

        Returns:
            logits (B, C, h, w), valid until the next call, and the cached values of each newest frame.
        """

    def to_mask(self, logits: Tensor, options: MaskOptions) -> tuple[np.ndarray, np.ndarray]:
        """Return mask and confidence of one frame; see `postprocess.to_mask`."""
        return to_mask(logits, options)

    def one_frame(self) -> Callable[[], object] | None:
        """Return a function that computes one frame of a full window, for profilers; None = not available."""
        return None

    @property
    def description(self) -> str:
        """Kind of the network and its streaming mode, in words."""
        return f"{'window' if self.video else 'image'}, {self.streaming}"

    @property
    def own_window(self) -> int:
        """Frames k of the window that the network was trained or exported for; 1 for networks of single images."""
        return int(self.checkpoint.config.get("window", 1)) if self.video else 1

    @property
    def window(self) -> int:
        """Window length k in frames."""
        return self._window

    def check_window(self, frames: int | None) -> None:
        """Raise ConfigError if the network does not support a window length; None = its own."""
        if frames is not None:
            check_window(frames, longest=self.longest_window)

    def set_window(self, frames: int | None) -> None:
        """Change the window length at run time; cached frames that fit into the new window stay.

        Raises:
            ConfigError: see `check_window`.
        """
        self.prepare_window(frames)
        self._window = self._frames(frames)
        self._past = {name: self._cut(past) for name, past in self._past.items()}

    def _frames(self, window: int | None) -> int:
        """Return the number of frames of a window; None = the checkpoint's."""
        return (window or self.own_window) if self.video else 1

    def is_ready(self, frames: int | None) -> bool:
        """Return whether `set_window` would take no time; None = the checkpoint's window."""
        return True

    def prepare_window(self, frames: int | None) -> None:
        """Do the work of `set_window` in advance; another thread may segment meanwhile.

        Raises:
            ConfigError: see `check_window`.
        """
        self.check_window(frames)

    def older_frames(self, camera: str) -> int:
        """Return the number of older frames in the window of a camera's next frame."""
        return len(self._past.get(camera, ()))

    def infer(self, images: Tensor, cameras: Sequence[str]) -> Tensor:
        """Segment the newest frames of cameras whose windows have the same length.

        Args:
            images: (B, 3, H, W) float32 in [0, 1], on `device`.
            cameras: their B names.

        Returns:
            logits (B, C, h, w), valid until the next call.
        """
        logits, new = self.run(images, [self._past.get(camera, ()) for camera in cameras])
        self._new = dict(zip(cameras, new, strict=True))
        return logits

    def commit(self, cameras: Sequence[str]) -> None:
        """Append the frames that `infer` segmented to the windows of their cameras."""
        for camera in cameras:
            self._past.setdefault(camera, self._cut(())).append(self._new.pop(camera))

    def reset(self, camera: str | None = None) -> None:
        """Clear the window of a camera, or of all cameras."""
        if camera is None:
            self._past.clear()
        else:
            self._past.pop(camera, None)

    def _cut(self, past: Sequence[Any]) -> deque[Any]:
        return deque(past, maxlen=self._window - 1)


def checked_input_size(checkpoint: Checkpoint, options: BackendOptions) -> tuple[int, int]:
    """Return (width, height) px of the input of a checkpoint's network.

    Raises:
        ConfigError: if the network needs optical flow, or a side is not a multiple of 32 px.
    """
    known = traits_of(checkpoint.network)
    if known.needs_flow:
        raise ConfigError(f"a {known.name} checkpoint needs optical flow: score it with `vtseg evaluate`")
    width, height = options.input_size or checkpoint.input_size
    check_size(height, width)
    return width, height


def run_one_by_one(
    run: Callable[[np.ndarray, Sequence[np.ndarray]], tuple[np.ndarray, np.ndarray]],
    images: Tensor,
    past: Sequence[Sequence[np.ndarray]],
) -> tuple[Tensor, list[np.ndarray]]:
    """Segment the frames of several cameras one after the other, in a runtime that takes one frame at a time.

    Args:
        run: function from an image (3, H, W) float32, contiguous, and the cached values of its older frames to logits
            (1, C, h, w), which the next call may overwrite, and the cached values of the frame.
        images: see `Backend.run`; on the CPU.
        past: see `Backend.run`.

    Returns:
        See `Backend.run`.
    """
    logits, new = [], []
    for image, rows in zip(images.contiguous(), past):
        output, row = run(image.numpy(), rows)
        logits.append(output if len(images) == 1 else output.copy())
        new.append(row)
    return torch.from_numpy(logits[0] if len(logits) == 1 else np.concatenate(logits)), new
