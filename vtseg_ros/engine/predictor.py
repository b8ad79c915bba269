"""The predictor: camera images in, masks and confidences out, one sliding window per camera."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vtseg_ros.engine import causal, exact
from vtseg_ros.engine.device import precision_name, resolve_device, resolve_precision
from vtseg_ros.engine.onnx_runner import OnnxRunner
from vtseg_ros.engine.pack import pack
from vtseg_ros.engine.pixels import to_input, to_mask
from vtseg_ros.engine.prepare import prepare
from vtseg_ros.engine.runner import Runner
from vtseg_ros.engine.steps import Step, build_step
from vtseg_ros.engine.window import Action, FrameWindow
from vtseg_ros.errors import CheckpointError, ConfigError, DeviceError, ImageError
from vtseg_ros.labels import IGNORE
from vtseg_ros.model import VTSeg
from vtseg_ros.model.checkpoint import Checkpoint, load_checkpoint
from vtseg_ros.model.efficientvit import CoarseLogits
from vtseg_ros.model.gru import STGRU
from vtseg_ros.model.priors import check_prior_size
from vtseg_ros.model.vtseg import check_size
from vtseg_ros.resize import Box, check_resize_mode, place, restoration

log = logging.getLogger("vtseg_ros.engine")

STREAMING = ("auto", "plain", "exact", "causal")
ONNX_SUFFIX = ".onnx"
UPSAMPLING = ("bilinear", "bicubic", "nearest")
EMPTY = np.empty((0, 0), np.uint8)


@dataclass(frozen=True)
class Result:
    """What `step` answers.

    Attributes:
        mask: (H, W) uint8 class ids; 255 = unlabelled.
        confidence: (H, W) uint8, softmax maximum * 255.
        frames_in_window: frames the network saw, 1..window; 0 for a dropped frame.
        dropped: why the frame was left out (its stamp repeats the newest one or is late): nothing was computed, mask
            and confidence are empty, the window is as it was. Empty for a processed frame.
        restarted: why a new window began with this frame; empty if none did.
        preprocess_s, inference_s: seconds, steady clock; inference until the mask is on the host.
        error: why there is no mask (it and the confidence are empty); the camera's window then starts anew.
    """

    mask: np.ndarray
    confidence: np.ndarray
    frames_in_window: int
    dropped: str = ""
    restarted: str = ""
    preprocess_s: float = 0.0
    inference_s: float = 0.0
    error: Exception | None = None


@dataclass(frozen=True)
class CameraFrame:
    """One camera's image for `step_many`: image (H, W, 3) uint8 RGB, stamp in ns (None or 0 = none)."""

    camera: str
    image: np.ndarray
    stamp_ns: int | None = None
    frame_id: str = ""


@dataclass
class _Camera:
    window: FrameWindow
    past: deque = field(default_factory=deque)
    """What each older frame left behind, (S,); at most k - 1."""


@dataclass(frozen=True)
class _Pending:
    """A frame that waits for its turn: pixels (1, 3, h, w) on the device."""

    index: int
    frame: CameraFrame
    camera: _Camera
    pixels: Tensor
    reason: str
    preprocess_s: float


_Answer = tuple[np.ndarray, np.ndarray, float]
"""Mask, confidence and seconds that it took."""


class Segmenter:
    """Runs a checkpoint over the latest frames of one or several cameras.

    Not thread-safe: one caller at a time.

    Args:
        checkpoint: a path, the name of shipped weights, or a loaded `Checkpoint` (its network is copied). An `.onnx`
            file of `vtseg export` runs in onnxruntime, at the size it was exported for and windows up to its k.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        precision: `auto`, `fp32`, `fp16`, `bf16`.
        window: frames k; 0 = the checkpoint's.
        input_size: (width, height) px of the network's input, multiples of 32; (0, 0) = the checkpoint's.
        max_gap_s: a longer pause starts a new window.
        output_size: `input` (the image's), `network`, or (width, height) px.
        upsampling: `bilinear`, `bicubic` (logits, then argmax) or `nearest` (the mask).
        streaming: `exact` keeps what a frame alone decides, `causal` keeps keys and values (for networks trained
            with causal attention), `plain` recomputes the window; `auto` = causal for causal networks, else exact.
            A network with nothing to keep (of single images, or with spatiotemporal reduction) runs `plain`.
        static_prior: an external static network (see `model.priors.load_external_prior`).
        min_confidence: below it, 0..1, a pixel becomes 255.
        compile: use torch.compile; the first full window then takes about a minute.
        resize_mode: how images are brought to the input size: `stretch`, `letterbox` or `crop`, whose mask is 255 at
            the sides that the network does not see; None = the checkpoint's.

    Raises:
        CheckpointError, ConfigError, DeviceError: naming what is wrong.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | Checkpoint = "street_tiny",
        *,
        device: str = "auto",
        precision: str = "auto",
        window: int = 0,
        input_size: tuple[int, int] = (0, 0),
        max_gap_s: float = 1.0,
        output_size: str | tuple[int, int] = "input",
        upsampling: str = "bilinear",
        streaming: str = "auto",
        static_prior: str | None = None,
        min_confidence: float = 0.0,
        compile: bool = False,
        resize_mode: str | None = None,
    ) -> None:
        if streaming not in STREAMING:
            raise ConfigError(f"streaming must be one of {', '.join(STREAMING)}. Got: {streaming!r}")
        if upsampling not in UPSAMPLING:
            raise ConfigError(f"upsampling must be one of {', '.join(UPSAMPLING)}. Got: {upsampling!r}")
        self.upsampling = upsampling
        self.device = resolve_device(device)
        self._dtype = resolve_precision(precision, self.device)
        self._runner: Runner | OnnxRunner
        if not isinstance(checkpoint, Checkpoint) and Path(checkpoint).suffix.lower() == ONNX_SUFFIX:
            self._open_exported(Path(checkpoint), device, precision, input_size, streaming, static_prior)
        else:
            if not isinstance(checkpoint, Checkpoint):
                checkpoint = load_checkpoint(checkpoint, static_prior=static_prior)
            self._open(checkpoint, input_size, streaming, compile)
        self.labels = self.checkpoint.labels
        self.resize_mode = resize_mode or self.checkpoint.resize_mode
        check_resize_mode(self.resize_mode)
        self._cameras: dict[str, _Camera] = {}
        self._window = self._max_gap_s = self._min_confidence = 0
        self.window, self.max_gap_s = window, max_gap_s
        self.output_size, self.min_confidence = output_size, min_confidence

    def _open(
        self, checkpoint: Checkpoint, input_size: tuple[int, int], streaming: str, compile: bool
    ) -> None:
        if isinstance(checkpoint.model, STGRU):
            raise ConfigError("a gru checkpoint needs optical flow: score it with `vtseg evaluate`")
        self.checkpoint = checkpoint
        width, height = input_size if any(input_size) else checkpoint.input_size
        check_size(height, width)
        self.input_size = (width, height)
        if isinstance(checkpoint.model, VTSeg):
            check_prior_size(checkpoint.model.static_prior, (height, width))
        network = checkpoint.model
        if hasattr(network, "coarse_logits") and self.upsampling != "nearest":
            network = CoarseLogits(network)  # `nearest` upsamples a mask of the network's size
        self.model = prepare(network, self.device, self._dtype)
        if self.device.type == "cpu" and not compile:  # the compiler packs by itself
            pack(self.model, (height, width))
        self.video = isinstance(self.model, VTSeg)
        self.streaming = _streaming_of(self.model, streaming)
        self._runner = Runner(
            build_step(self.model, (height, width), self.streaming),
            window=1,
            compile=compile,
            graph=self.device.type == "cuda",
        )

    def _open_exported(
        self,
        path: Path,
        device: str,
        precision: str,
        input_size: tuple[int, int],
        streaming: str,
        static_prior: str | None,
    ) -> None:
        if not path.is_file():
            raise CheckpointError(f"no exported network {path}: there is no such file")
        if precision not in ("auto", "fp32") or static_prior:
            raise ConfigError(
                f"precision and static prior of {path} were fixed at its export: leave them unset"
            )
        self._runner = runner = OnnxRunner(path, device)
        self.checkpoint, self.device, self._dtype = runner.checkpoint, runner.device, torch.float32
        self.input_size = self.checkpoint.input_size
        if any(input_size) and tuple(input_size) != self.input_size:
            raise ConfigError(
                f"{path} takes images of {self.input_size[0]}x{self.input_size[1]} px alone. "
                f"Got: {input_size[0]}x{input_size[1]}"
            )
        self.video, self.streaming = runner.kind != "image", runner.streaming
        if streaming not in ("auto", self.streaming):
            raise ConfigError(f"{path} was exported for streaming {self.streaming}. Got: {streaming}")
        log.info("%s runs on %s", path, ", ".join(runner.providers))

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `bf16`."""
        return precision_name(self._dtype)

    @property
    def network_step(self) -> Step:
        """The step that runs, for those who count or export it; not for exported networks."""
        return self._runner.step

    @property
    def run_mode(self) -> str:
        """How full windows run: `eager`, `compile`, `graph`, `compile+graph` or `onnxruntime`."""
        return self._runner.mode

    def check_window(self, frames: int) -> None:
        """Raise ConfigError for a window that this network cannot have."""
        if frames < 0:
            raise ConfigError(f"window must be 0 (the checkpoint's) or a number of frames. Got: {frames}")
        if isinstance(self._runner, OnnxRunner) and frames > self._trained_window:
            raise ConfigError(
                f"this network was exported for windows of at most {self._trained_window} frames. Got: {frames}"
            )

    @property
    def _trained_window(self) -> int:
        return int(self.checkpoint.config.get("window", 1))

    @property
    def window(self) -> int:
        """Frames k the network sees at most."""
        return self._window

    @window.setter
    def window(self, frames: int) -> None:
        self.check_window(frames)
        self._window = self._runner.window = (frames or self._trained_window) if self.video else 1
        if self.video and not isinstance(self._runner, OnnxRunner):
            causal.set_band(self.model, self._window)
        for camera in self._cameras.values():
            camera.past = deque(camera.past, maxlen=self._window - 1)

    @property
    def max_gap_s(self) -> float:
        """Longest pause within a window, seconds."""
        return self._max_gap_s

    @max_gap_s.setter
    def max_gap_s(self, seconds: float) -> None:
        if not seconds > 0:
            raise ConfigError(f"max_gap must be above 0 s. Got: {seconds}")
        self._max_gap_s = seconds
        for camera in self._cameras.values():
            camera.window.max_gap_s = seconds

    @property
    def min_confidence(self) -> float:
        """Below it a pixel becomes 255."""
        return self._min_confidence

    @min_confidence.setter
    def min_confidence(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise ConfigError(f"min_confidence must be in 0..1. Got: {value}")
        self._min_confidence = value

    @property
    def output_size(self) -> str | tuple[int, int]:
        """`input`, `network` or (width, height) px."""
        return self._output_size

    @output_size.setter
    def output_size(self, value: str | tuple[int, int]) -> None:
        if isinstance(value, str):
            if value not in ("input", "network"):
                raise ConfigError(f"output_size must be input, network or (width, height). Got: {value!r}")
        elif len(value) != 2 or not all(1 <= side <= 16384 for side in value):
            raise ConfigError(f"output_size must have sides of 1..16384 px. Got: {value}")
        self._output_size = value

    def reset(self, camera: str | None = None) -> None:
        """Forget the window of a camera, or of all."""
        for name in [camera] if camera is not None else list(self._cameras):
            self._cameras.pop(name, None)

    def step(
        self, image: np.ndarray, stamp_ns: int | None = None, frame_id: str = "", *, camera: str = ""
    ) -> Result:
        """Segment the newest frame of a single camera; see `step_many`.

        Args:
            image: (H, W, 3) uint8 RGB.
            stamp_ns: ns; None or 0 = none.
            frame_id: of the image's header.
            camera: whose window it joins.

        Raises:
            ImageError: if the image is not (H, W, 3) uint8.
            DeviceError: if the GPU has not enough memory.
            Exception: whatever the network raised.
        """
        result = self.step_many([CameraFrame(camera, image, stamp_ns, frame_id)])[0]
        if result.error is not None:
            raise result.error
        return result

    @torch.inference_mode()
    def step_many(self, batch: Sequence[CameraFrame]) -> list[Result]:
        """Segment the newest frame of several cameras, windows of one length in one batch.

        Args:
            batch: at most one frame per camera.

        Returns:
            results in the same order, each equal to the camera's own single run. What goes wrong with one camera is
            its result's `error` and leaves the others alone: a DeviceError if the GPU has not enough memory, or
            whatever the network raised.

        Raises:
            ImageError: if an image is not (H, W, 3) uint8, or a camera appears twice.
        """
        _check_batch(batch)
        results: list[Result | None] = [None] * len(batch)
        pending: dict[int, list[_Pending]] = {}
        for index, frame in enumerate(batch):
            started = time.monotonic()
            camera = self._cameras.setdefault(
                frame.camera, _Camera(FrameWindow(self._max_gap_s), deque(maxlen=self._window - 1))
            )
            decision = camera.window.push(frame.stamp_ns, frame.image.shape[:2], frame.frame_id)
            if decision.action is Action.DROP:
                results[index] = Result(EMPTY, EMPTY, 0, dropped=decision.reason)
                continue
            if decision.action is Action.RESTART:
                camera.past.clear()
            try:
                pixels = to_input(frame.image, self.input_size, self.device, self.resize_mode)
            except torch.OutOfMemoryError:
                size = f"an image of {frame.image.shape[1]}x{frame.image.shape[0]} px"
                results[index] = self._failed(
                    frame.camera, DeviceError(f"{self.device} is out of memory for {size}")
                )
                continue
            spent = time.monotonic() - started
            pending.setdefault(len(camera.past), []).append(
                _Pending(index, frame, camera, pixels, decision.reason, spent)
            )
        for older, group in pending.items():
            for one, answer in zip(group, self._infer(group)):
                if isinstance(answer, Exception):
                    results[one.index] = self._failed(one.frame.camera, answer)
                    continue
                mask, confidence, inference = answer
                results[one.index] = Result(
                    mask, confidence, older + 1, "", one.reason, one.preprocess_s, inference
                )
        return results

    def _failed(self, camera: str, error: Exception) -> Result:
        self.reset(camera)  # its window has taken a frame that left nothing behind
        return Result(EMPTY, EMPTY, 0, error=error)

    def _infer(self, group: list[_Pending]) -> list[_Answer | Exception]:
        try:
            return self._answers(group)
        except Exception as err:
            # Not handled in here: while the error lives with its traceback, the failed pass's tensors do too.
            failure = err.with_traceback(None)
        if isinstance(failure, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            failure = self._out_of_memory(group)
        if len(group) == 1:
            return [failure]
        return [self._infer([one])[0] for one in group]

    def _out_of_memory(self, group: list[_Pending]) -> DeviceError:
        width, height = self.input_size
        frames = len(group[0].camera.past) + 1
        failure = DeviceError(f"{self.device} is out of memory at {width}x{height} px, {frames} frames")
        if len(group) > 1:
            log.warning("%s and %d cameras at once: one at a time", failure, len(group))
        return failure

    def _answers(self, group: list[_Pending]) -> list[_Answer]:
        started = time.monotonic()
        logits, kept = self._logits(group)
        answers = []
        for row, one in enumerate(group):
            mask, confidence = self._mask(logits[row : row + 1], one.frame.image)
            answers.append((mask, confidence, time.monotonic() - started))
        # Only when all went well: a group that is tried again must find its windows as they were.
        for row, one in enumerate(group):
            one.camera.past.append(kept[row])
        return answers

    def _logits(self, group: list[_Pending]) -> tuple[Tensor, list[Tensor]]:
        """(B, C, h, w) of the newest frames, and what each leaves behind."""
        images = torch.cat([one.pixels for one in group])
        return self._runner(images, [one.camera.past for one in group])

    def _mask(self, logits: Tensor, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mask and confidence of an image, (H, W) uint8 each, from its logits (1, C, h, w)."""
        target, image_size = self._target(image), (image.shape[1], image.shape[0])
        logits = logits if self.checkpoint.temperature == 1.0 else logits / self.checkpoint.temperature
        placement = place(image_size, self.input_size, self.resize_mode)
        if placement.fills and placement.source == Box(0, 0, *image_size):
            return to_mask(logits, target, self.upsampling, self._min_confidence)
        restore = restoration(placement, image_size, target)
        mask, confidence = to_mask(logits, restore.whole, self.upsampling, self._min_confidence)
        return restore(mask, IGNORE), restore(confidence, 0)

    def _target(self, image: np.ndarray) -> tuple[int, int]:
        if self._output_size == "input":
            return image.shape[1], image.shape[0]
        return self.input_size if self._output_size == "network" else self._output_size


def _streaming_of(model: torch.nn.Module, wanted: str) -> str:
    if not isinstance(model, VTSeg):
        return "plain"
    if wanted == "causal":
        causal.check(model)
    if wanted in ("causal", "plain") or not exact.supports(model):
        return wanted if wanted == "causal" else "plain"
    return "causal" if wanted == "auto" and model.config.attention == "causal" else "exact"


def apply_ego_mask(mask: np.ndarray, ego: np.ndarray) -> np.ndarray:
    """A mask with the pixels of the ego mask unlabelled.

    Args:
        mask: (H, W) uint8 class ids.
        ego: (h, w) bool, True where the robot sees itself; stretched to the mask's size.
    """
    if ego.shape != mask.shape:
        rows = np.arange(mask.shape[0]) * ego.shape[0] // mask.shape[0]
        columns = np.arange(mask.shape[1]) * ego.shape[1] // mask.shape[1]
        ego = ego[rows[:, None], columns[None, :]]
    return np.where(ego, np.uint8(IGNORE), mask)


def _check_batch(batch: Sequence[CameraFrame]) -> None:
    names = [frame.camera for frame in batch]
    if len(set(names)) != len(names):
        raise ImageError(f"a batch has one frame per camera. Got: {', '.join(names)}")
    for frame in batch:
        image = frame.image
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ImageError(f"we expect an image (H, W, 3) uint8 RGB. Got: {image.shape} {image.dtype}")
