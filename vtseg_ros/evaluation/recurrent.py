# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The recurrent flow baseline (STGRU) over a sequence, for `vtseg evaluate`."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vtseg_ros.dataset.flow import PROVIDERS, WindowFlow, is_topic
from vtseg_ros.errors import BagError, ConfigError, ImageError
from vtseg_ros.evaluation.systems import SystemInfo
from vtseg_ros.image_ops import resize_rgb
from vtseg_ros.inference.devices import resolve_device, resolve_precision
from vtseg_ros.inference.postprocess import MaskOptions, to_mask
from vtseg_ros.inference.preprocess import to_input
from vtseg_ros.model.checkpoint import Checkpoint
from vtseg_ros.model.stgru import DEFAULT_WINDOW, STGRU


@dataclass(frozen=True)
class _Past:
    """Cached values of a frame: its number, pixels, input (1, 3, h, w), static logits and backward flow (1, 2, h, w)."""

    number: int
    pixels: np.ndarray
    image: Tensor
    static: Tensor
    flow: Tensor | None


class RecurrentSystem:
    """STGRU on a sliding window: as in training, the recurrence for each frame starts k - 1 frames before it.

    Args:
        info: information for tables.
        checkpoint: checkpoint of an STGRU.
        flow: source of optical flow for the index of the frame numbers.
        device, precision: as `VideoPredictor`.
    """

    def __init__(
        self, info: SystemInfo, checkpoint: Checkpoint, *, flow: WindowFlow, device: str, precision: str
    ) -> None:
        self.info, self.labels = info, checkpoint.labels
        self.problems: list[tuple[int, str]] = []
        self._flow = flow
        self._device = resolve_device(device)
        self._dtype = resolve_precision(precision, self._device)
        network = cast(STGRU, checkpoint.network)  # the only architecture with optical flow
        self._model = network.eval().requires_grad_(False).to(self._device)
        self._streams: dict[int, deque[_Past]] = {}

    @property
    def reach(self) -> int:
        """See `System.reach`."""
        return self.info.window

    def reset(self, stream: int) -> None:
        """Start a new sequence in a stream; see `System.reset`."""
        self._streams.pop(stream, None)

    @torch.inference_mode()
    def step(self, number: int, image: np.ndarray, size: tuple[int, int], stream: int) -> np.ndarray:
        """Return the mask of the next frame, (height, width) uint8; see `System.step`."""
        past = self._streams.setdefault(stream, deque(maxlen=self.info.window))
        pixels = resize_rgb(image, self.info.input_size)
        tensor = to_input(pixels, self.info.input_size, self._device)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            static = self._model.static_prior(tensor)
            flow = self._backward_flow(past[-1] if past else None, number, pixels)
            if flow is None:
                past.clear()
            past.append(_Past(number, pixels, tensor, static, flow))
            window = list(past)
            logits = self._model.propagate(
                torch.stack([frame.static for frame in window], dim=1),  # (1, k, C, h, w)
                torch.stack([frame.image for frame in window], dim=1),
                torch.stack([cast(Tensor, frame.flow) for frame in window[1:]], dim=1)
                if len(window) > 1
                else None,
            )
        mask, self.confidence = to_mask(logits[:, -1], MaskOptions(size, "bicubic"))
        return mask

    def _backward_flow(self, past: _Past | None, number: int, pixels: np.ndarray) -> Tensor | None:
        """Return the flow to the previous frame, (1, 2, h, w) px; None if a new window must start."""
        if past is None:
            return None
        if is_topic(self._flow.source) and past.number != number - 1:
            return None  # a corrupt frame is between them: the flow of the topic refers to it
        try:
            flow = self._flow.window([past.number, number], np.stack([past.pixels, pixels]))[0]
        except (ImageError, BagError) as err:
            self.problems.append((number, f"flow on {self._flow.source}: {err}"))
            return None
        return torch.from_numpy(flow).to(self._device).permute(2, 0, 1)[None]


def trained_flow(checkpoint: Checkpoint, name: str) -> str:
    """Return the flow source that a checkpoint was trained with, if it is a topic or built in.

    Raises:
        ConfigError: if it is a Python factory, which a checkpoint cannot start.
    """
    source = _of_training(checkpoint, "flow", str) or "dis"
    if not is_topic(source) and source not in PROVIDERS:
        raise ConfigError(
            f"checkpoint {name}: its optical flow {source!r} is code, which a checkpoint cannot start; expected it as "
            "an option, got none. Pass it with --flow"
        )
    return source


def trained_window(checkpoint: Checkpoint) -> int:
    """Return the window length k that an STGRU was trained with; 4 if its checkpoint does not contain it."""
    overrides = _of_training(checkpoint, "overrides", dict) or {}
    window = overrides.get("window")
    return window if isinstance(window, int) and window > 0 else DEFAULT_WINDOW


def _of_training(checkpoint: Checkpoint, key: str, kind: type) -> Any:
    """Return a value of the model configuration used in training; None if there is none of this type."""
    value: Any = checkpoint.training
    for part in ("config", "model", key):
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, kind) else None
