# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The video predictor: from camera images to masks and confidences, with one sliding window per camera."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from vtseg_ros import DEFAULT_CHECKPOINT
from vtseg_ros.errors import ConfigError, DeviceError, ImageError
from vtseg_ros.image_ops import overlay
from vtseg_ros.inference.backends import BackendOptions, open_backend
from vtseg_ros.inference.postprocess import EMPTY, UPSAMPLING, MaskOptions
from vtseg_ros.inference.preprocess import to_input
from vtseg_ros.inference.step import STREAMING as STREAMING_MODES
from vtseg_ros.inference.window import Action, FrameWindow
from vtseg_ros.label_set import IGNORE, LabelSet
from vtseg_ros.model.checkpoint import Checkpoint
from vtseg_ros.resize import Box, check_resize_mode, place, restoration

log = logging.getLogger("vtseg_ros.inference")

STREAMING = ("auto", *STREAMING_MODES)


@dataclass(frozen=True)
class Result:
    """Mask and confidence of a frame, or the reason why there are none.

    Attributes:
        mask: (H, W) uint8 class ids; 255 = unlabelled.
        confidence: (H, W) uint8, softmax maximum * 255; empty if it was not asked for.
        frames_in_window: number of frames that the network processed, 1..window; 0 for a dropped frame.
        dropped: reason why the frame was dropped (its stamp repeats the newest one or is late). Mask and confidence are
            empty then, and the window is unchanged. Empty for a processed frame.
        restarted: reason why a new window starts with this frame; empty if none does.
        preprocess_s: time of the preprocessing, s, steady clock.
        inference_s: time from the preprocessed image until the mask is on the host, s, steady clock.
        error: why there is no mask (mask and confidence are empty); the camera then starts a new window.
        labels: class list: names and colours by id.
        image: the frame itself, (H, W, 3) uint8 RGB, not copied.
    """

    mask: np.ndarray
    confidence: np.ndarray
    frames_in_window: int
    dropped: str = ""
    restarted: str = ""
    preprocess_s: float = 0.0
    inference_s: float = 0.0
    error: Exception | None = None
    labels: LabelSet | None = None
    image: np.ndarray | None = None

    def overlay(self, alpha: float = 0.5) -> np.ndarray:
        """Blend the classes' colours into the frame.

        Args:
            alpha: share of the colour, 0..1.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            ConfigError: if the frame has no mask.
        """
        if self.image is None or self.labels is None or not self.mask.size:
            raise ConfigError(
                f"overlay: expected a processed frame, got one without a mask: {self.dropped or self.error}"
            )
        return overlay(self.image, self.mask, self.labels, alpha)


@dataclass(frozen=True)
class CameraFrame:
    """An image of one of several cameras, for `VideoPredictor.step_many`.

    Attributes:
        camera: name of the camera.
        image: (H, W, 3) uint8 RGB.
        stamp_ns: header stamp, ns; None or 0 = unknown.
        frame_id: of the header; a new one starts a new window.
        with_confidence: compute the confidence of the mask; without it, the mask takes about half of the time.
    """

    camera: str
    image: np.ndarray
    stamp_ns: int | None = None
    frame_id: str = ""
    with_confidence: bool = True


@dataclass(frozen=True)
class _Pending:
    """A frame to be processed: pixels (1, 3, h, w) on the device."""

    index: int
    frame: CameraFrame
    pixels: Tensor
    reason: str
    preprocess_s: float


class VideoPredictor:
    """Segment the latest frames of one or several cameras.

    Not thread-safe.

    Args:
        checkpoint: a path, the name of shipped weights, or a loaded `Checkpoint` (its network is copied). An `.onnx`
            file of `vtseg export` runs in ONNX Runtime, with its exported size and windows up to its k.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        backend: `auto` (see `backends.open_backend`), `torch`, `openvino` or `onnx`.
        precision: `auto`, `fp32`, `fp16`, `bf16`.
        window: frames k; None = the checkpoint's.
        input_size: (width, height) px of the network's input, multiples of 32; None = the checkpoint's.
        max_gap_s: a longer pause starts a new window, s.
        output_size: `input` (the image's), `network`, or (width, height) px.
        upsampling: `bilinear`, `bicubic` (logits, then argmax) or `nearest` (the mask).
        streaming: `exact` caches features that depend on one frame only, `causal` caches keys and values (for networks
            trained with causal attention) or the previous mask (`mask_feedback`), `plain` recomputes the window; `auto` =
            causal for these networks, else exact. Networks of single images or with a Mix-FFN over time run `plain`.
        static_prior: an external static network (see `model.checkpoint.load_external_prior`).
        min_confidence: below it, 0..1, a pixel becomes 255.
        classes: names of the classes to keep; pixels of the others become 255. None or empty = all.
        compile: use torch.compile; the first full window takes about a minute then.
        cuda_graphs: capture CUDA graphs on a GPU, which saves the launches of its kernels.
        threads: number of CPU threads; None = PyTorch's default. PyTorch uses it for the whole process.
        leave_core: without `threads`, leave a core to other programs; of two cores, OpenVINO still uses both.
        pin_threads: keep each thread on one core (OpenVINO); only if no other program needs these cores.
        resize_mode: how images are resized to the input size: `stretch`, `letterbox` or `crop` (the mask is 255 on the
            sides that are cut off); None = as in the checkpoint.

    Raises:
        CheckpointError, ConfigError, DeviceError: naming what is wrong.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | Checkpoint = DEFAULT_CHECKPOINT,
        *,
        device: str = "auto",
        backend: str = "auto",
        precision: str = "auto",
        window: int | None = None,
        input_size: tuple[int, int] | None = None,
        max_gap_s: float = 1.0,
        output_size: str | tuple[int, int] = "input",
        upsampling: str = "bilinear",
        streaming: str = "auto",
        static_prior: str | None = None,
        min_confidence: float = 0.0,
        classes: Sequence[str] | None = None,
        compile: bool = False,
        cuda_graphs: bool = True,
        threads: int | None = None,
        leave_core: bool = False,
        pin_threads: bool = False,
        resize_mode: str | None = None,
    ) -> None:
        if streaming not in STREAMING:
            raise ConfigError(
                f"streaming: unknown; expected one of {', '.join(STREAMING)}, got {streaming!r}"
            )
        if upsampling not in UPSAMPLING:
            raise ConfigError(
                f"upsampling: unknown; expected one of {', '.join(UPSAMPLING)}, got {upsampling!r}"
            )
        if threads is not None and threads < 1:
            raise ConfigError(f"threads: expected at least 1, got {threads}")
        self.upsampling = upsampling
        options = BackendOptions(
            backend=backend,
            device=device,
            precision=precision,
            input_size=input_size,
            window=window,
            streaming=streaming,
            static_prior=static_prior,
            compile=compile,
            cuda_graphs=cuda_graphs,
            threads=threads,
            leave_core=leave_core,
            pin_threads=pin_threads,
            coarse_logits=upsampling != "nearest",  # upsamples a mask of the network's size
        )
        self.backend = open_backend(
            checkpoint if isinstance(checkpoint, Checkpoint) else Path(checkpoint), options
        )
        self.checkpoint = self.backend.checkpoint
        self.labels = self.checkpoint.labels
        self.resize_mode = resize_mode or self.checkpoint.resize_mode
        check_resize_mode(self.resize_mode)
        self._windows: dict[str, FrameWindow] = {}
        self.window, self.max_gap_s = window, max_gap_s
        self.output_size, self.min_confidence = output_size, min_confidence
        self.classes = classes or ()

    @property
    def device(self) -> torch.device:
        """Device that images are moved to and the network runs on."""
        return self.backend.device

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `bf16`."""
        return self.backend.precision

    @property
    def input_size(self) -> tuple[int, int]:
        """(width, height) px of the network's input."""
        return self.backend.input_size

    @property
    def streaming(self) -> str:
        """`plain`, `exact` or `causal`."""
        return self.backend.streaming

    @property
    def run_mode(self) -> str:
        """How full windows run: `eager`, `compile`, `graph`, `compile+graph`, `openvino` or `onnxruntime`."""
        return self.backend.mode

    @property
    def history(self) -> int:
        """Number of older frames that a mask depends on: k - 1; in causal streaming, more (`VideoNetwork.causal_depth`)."""
        return (self.window - 1) * (self.backend.depth if self.streaming == "causal" else 1)

    def check_window(self, frames: int | None) -> None:
        """Raise ConfigError if the network does not support a window length; None = that of the checkpoint."""
        self.backend.check_window(frames)

    def is_ready(self, window: int | None) -> bool:
        """Return whether the network can have this window at once; None = the checkpoint's."""
        return self.backend.is_ready(window)

    def prepare_window(self, window: int | None) -> None:
        """Compile what a window needs, which may take a minute; another thread may call `step` meanwhile.

        Raises:
            ConfigError: If this network cannot have this window, or the backend cannot convert it.
        """
        self.backend.prepare_window(window)

    @property
    def window(self) -> int:
        """Window length k in frames; set to None for that of the checkpoint."""
        return self.backend.window

    @window.setter
    def window(self, frames: int | None) -> None:
        self.backend.set_window(frames)

    @property
    def max_gap_s(self) -> float:
        """Longest pause within a window, seconds."""
        return self._max_gap_s

    @max_gap_s.setter
    def max_gap_s(self, seconds: float) -> None:
        if not seconds > 0:
            raise ConfigError(f"max_gap: out of range; expected above 0 s, got {seconds}")
        self._max_gap_s = seconds
        for window in self._windows.values():
            window.max_gap_s = seconds

    @property
    def min_confidence(self) -> float:
        """Confidence below which a pixel becomes 255, 0..1."""
        return self._min_confidence

    @min_confidence.setter
    def min_confidence(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise ConfigError(f"min_confidence: out of range; expected 0 to 1, got {value}")
        self._min_confidence = value

    @property
    def output_size(self) -> str | tuple[int, int]:
        """`input`, `network` or (width, height) px."""
        return self._output_size

    @output_size.setter
    def output_size(self, value: str | tuple[int, int]) -> None:
        if isinstance(value, str):
            if value not in ("input", "network"):
                raise ConfigError(
                    f"output_size: unknown; expected input, network or (width, height), got {value!r}"
                )
        elif len(value) != 2 or not all(1 <= side <= 16384 for side in value):
            raise ConfigError(f"output_size: out of range; expected sides of 1 to 16384 px, got {value}")
        self._output_size = value

    def check_classes(self, names: Iterable[str]) -> None:
        """Raise ConfigError for a class that the network does not have."""
        self.labels.ids_of(names)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes to keep; empty = all."""
        return self._classes

    @classes.setter
    def classes(self, names: Iterable[str]) -> None:
        names = tuple(names)
        kept = sorted(self.labels.ids_of(names))
        table = np.full(256, IGNORE, np.uint8)
        table[kept] = kept
        self._classes, self._kept = names, table if names else None

    def reset(self, camera: str | None = None) -> None:
        """Clear the window of a camera, or of all cameras."""
        if camera is None:
            self._windows.clear()
        else:
            self._windows.pop(camera, None)
        self.backend.reset(camera)

    def stream(self, source: str | os.PathLike[str] | Iterable[np.ndarray]) -> Iterator[Result]:
        """Segment every frame of a sequence, in a separate window.

        Args:
            source: a video file, a folder or glob of images, a bag's folder or file, the URL of a stream (`rtsp://...`),
                a camera (`/dev/video0`), or images (H, W, 3) uint8 RGB. From streams and cameras, the newest frame is read
                whenever the predictor is free.

        Yields:
            One result per frame; a frame that cannot be decoded has an `error`.

        Raises:
            BagError, ConfigError: if the source cannot be read.
        """
        from vtseg_ros.inference.sources import frames_of

        camera = f"stream {id(source)}"
        try:
            for frame in frames_of(source):
                if frame.error is not None:
                    yield Result(EMPTY, EMPTY, 0, error=frame.error)
                    continue
                yield self.step(cast(np.ndarray, frame.image), frame.stamp_ns, frame.frame_id, camera=camera)
        finally:
            self.reset(camera)

    def step(
        self,
        image: np.ndarray,
        stamp_ns: int | None = None,
        frame_id: str = "",
        *,
        camera: str = "",
        with_confidence: bool = True,
    ) -> Result:
        """Segment the newest frame of a single camera; see `step_many`.

        Args:
            image: (H, W, 3) uint8 RGB.
            stamp_ns: ns; None or 0 = none.
            frame_id: of the image's header.
            camera: name of the camera, which has its own window.
            with_confidence: see `CameraFrame`.

        Raises:
            ImageError: if the image is not (H, W, 3) uint8.
            DeviceError: if the GPU memory is not sufficient.
            Exception: any exception of the network.
        """
        result = self.step_many([CameraFrame(camera, image, stamp_ns, frame_id, with_confidence)])[0]
        if result.error is not None:
            raise result.error
        return result

    @torch.inference_mode()
    def step_many(self, batch: Sequence[CameraFrame]) -> list[Result]:
        """Segment the newest frame of several cameras, windows of one length in one batch.

        Args:
            batch: at most one frame per camera.

        Returns:
            Results in the same order, each equal to that of a separate call for the camera. If the frame of a camera
            fails, its result has an `error` (a DeviceError if the GPU memory is not sufficient, or any exception of the
            network), and the other cameras are not affected.

        Raises:
            ImageError: if an image is not (H, W, 3) uint8, or a camera appears twice.
        """
        _check_batch(batch)
        results: list[Result | None] = [None] * len(batch)
        pending: dict[int, list[_Pending]] = {}
        for index, frame in enumerate(batch):
            started = time.monotonic()
            window = self._windows.setdefault(frame.camera, FrameWindow(self._max_gap_s))
            decision = window.push(frame.stamp_ns, frame.image.shape[:2], frame.frame_id)
            if decision.action is Action.DROP:
                results[index] = Result(EMPTY, EMPTY, 0, dropped=decision.reason)
                continue
            if decision.action is Action.RESTART:
                self.backend.reset(frame.camera)
            try:
                pixels = to_input(frame.image, self.input_size, self.device, self.resize_mode)
            except torch.OutOfMemoryError:
                size = f"an image of {frame.image.shape[1]}x{frame.image.shape[0]} px"
                results[index] = self._failed(
                    frame.camera, DeviceError(f"{self.device} is out of memory for {size}")
                )
                continue
            except Exception as err:  # such as OpenCV's for an image that does not fit into memory twice
                results[index] = self._failed(frame.camera, err)
                continue
            spent = time.monotonic() - started
            pending.setdefault(self.backend.older_frames(frame.camera), []).append(
                _Pending(index, frame, pixels, decision.reason, spent)
            )
        for group in pending.values():
            for one, result in zip(group, self._infer(group)):
                results[one.index] = result
        return cast("list[Result]", results)  # none is left out

    def _failed(self, camera: str, error: Exception) -> Result:
        self.reset(camera)  # its window contains a frame without cached values
        return Result(EMPTY, EMPTY, 0, error=error)

    def _infer(self, group: list[_Pending]) -> list[Result]:
        """Return the results of frames whose windows have the same length; after a failure, try them one by one."""
        try:
            return self._segment(group)
        except Exception as err:
            # Not handled here: as long as the error and its traceback exist, so do the tensors of the failed pass.
            failure = err.with_traceback(None)
        if isinstance(failure, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            failure = self._out_of_memory(group)
        if len(group) == 1:
            return [self._failed(group[0].frame.camera, failure)]
        return [self._infer([one])[0] for one in group]

    def _out_of_memory(self, group: list[_Pending]) -> DeviceError:
        width, height = self.input_size
        frames = self.backend.older_frames(group[0].frame.camera) + 1
        failure = DeviceError(f"{self.device} is out of memory at {width}x{height} px, {frames} frames")
        if len(group) > 1:
            log.warning("%s with %d cameras in a batch; retrying them one by one", failure, len(group))
        return failure

    def _segment(self, group: list[_Pending]) -> list[Result]:
        started = time.monotonic()
        frames = self.backend.older_frames(group[0].frame.camera) + 1
        logits = self._logits(group)
        results = []
        for row, one in enumerate(group):
            mask, confidence = self._mask(logits[row : row + 1], one.frame)
            results.append(
                Result(
                    mask if self._kept is None else self._kept[mask],
                    confidence,
                    frames,
                    restarted=one.reason,
                    preprocess_s=one.preprocess_s,
                    inference_s=time.monotonic() - started,
                    labels=self.labels,
                    image=one.frame.image,
                )
            )
        # Only after success: a batch that is tried again needs its windows unchanged.
        self.backend.commit([one.frame.camera for one in group])
        return results

    def _logits(self, group: list[_Pending]) -> Tensor:
        """Return the logits of the newest frames, (B, C, h, w)."""
        images = torch.cat([one.pixels for one in group])
        return self.backend.infer(images, [one.frame.camera for one in group])

    def _mask(self, logits: Tensor, frame: CameraFrame) -> tuple[np.ndarray, np.ndarray]:
        """Return mask and confidence of a frame, (H, W) uint8 each, from its logits (1, C, h, w)."""
        image = frame.image
        options = MaskOptions(
            self._target(image), self.upsampling, self._min_confidence, frame.with_confidence
        )
        image_size = image.shape[1], image.shape[0]
        logits = logits if self.checkpoint.temperature == 1.0 else logits / self.checkpoint.temperature
        placement = place(image_size, self.input_size, self.resize_mode)
        if placement.fills and placement.source == Box(0, 0, *image_size):
            return self.backend.to_mask(logits, options)
        restore = restoration(placement, image_size, options.size)
        mask, confidence = self.backend.to_mask(logits, replace(options, size=restore.whole))
        return restore(mask, IGNORE), restore(confidence, 0) if options.with_confidence else confidence

    def _target(self, image: np.ndarray) -> tuple[int, int]:
        if self._output_size == "input":
            return image.shape[1], image.shape[0]
        own = self._output_size == "network"
        return self.input_size if own else cast("tuple[int, int]", self._output_size)


def _check_batch(batch: Sequence[CameraFrame]) -> None:
    names = [frame.camera for frame in batch]
    if len(set(names)) != len(names):
        raise ImageError(
            f"batch: a camera is repeated; expected one frame per camera, got {', '.join(names)}"
        )
    for frame in batch:
        image = frame.image
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ImageError(
                f"image: wrong array; expected (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}"
            )
