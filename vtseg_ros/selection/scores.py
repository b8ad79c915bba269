"""Scores of single frames that need no label; higher means more worth labelling."""

from __future__ import annotations

import math
from collections import deque
from typing import cast

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from vtseg_ros.dataset.flow import DisFlow, resize_flow
from vtseg_ros.errors import ConfigError
from vtseg_ros.image_ops import resize_rgb
from vtseg_ros.model.checkpoint import Checkpoint
from vtseg_ros.model.registry import traits_of
from vtseg_ros.model.video_network import VideoNetwork

SCORES = ("entropy", "margin", "static", "temporal")
VIDEO_SCORES = ("static",)
"""Scores that only a VTSeg network has."""
GRID = 4
"""An image network's features are its class probabilities averaged over each of GRID x GRID parts of the image."""


def frame_scores(
    logits: Tensor,
    static: Tensor | None = None,
    past: Tensor | None = None,
    flow: np.ndarray | None = None,
    *,
    temperature: float = 1.0,
) -> dict[str, float]:
    """Compute the scores of a frame, each from 0 (certain) to 1.

    Args:
        logits: (C, h, w) float, logits of the network.
        static: (C, h, w) float, logits of the static network of VTSeg; None for an image network, which has none.
        past: (C, h, w) float, logits of the network for the previous frame; None = there is none.
        flow: (h, w, 2) float32, backward flow to the previous frame, px, NaN where unknown; None = `temporal` is 0.
        temperature: divisor of `logits` before the softmax, above 0.

    Returns:
        Scores by name. `entropy`: mean entropy divided by log C. `margin`: mean of 1 - (largest - second largest
        probability). `static`: share of pixels whose class differs from the static network's, if there is one.
        `temporal`: share of pixels whose class differs from the previous frame's after warping, among the pixels that
        come from inside that frame; 0 if there are none.
    """
    scaled = (logits.float() / temperature).log_softmax(0)
    probabilities = scaled.exp()
    entropy = -(probabilities * scaled).sum(0).mean().item() / math.log(max(len(logits), 2))
    top = probabilities.topk(min(2, len(logits)), dim=0).values
    margin = 1.0 - (top[0] - top[1]).mean().item() if len(logits) > 1 else 0.0
    present = logits.argmax(0)
    found = {"entropy": entropy, "margin": margin, "temporal": 0.0}
    if static is not None:
        found["static"] = (present != static.argmax(0)).float().mean().item()
    if past is not None and flow is not None:
        found["temporal"] = _changed(present.cpu().numpy(), past.argmax(0).cpu().numpy(), flow)
    return found


def _changed(present: np.ndarray, past: np.ndarray, flow: np.ndarray) -> float:
    height, width = present.shape
    xs, ys = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    with np.errstate(invalid="ignore"):
        where_x, where_y = xs + flow[..., 0], ys + flow[..., 1]
    known = (where_x >= 0) & (where_x <= width - 1) & (where_y >= 0) & (where_y <= height - 1)  # NaN: False
    if not known.any():
        return 0.0
    warped = cv2.remap(past.astype(np.float32), where_x, where_y, cv2.INTER_NEAREST)
    return float((warped != present)[known].mean())


def run_image_network(model: nn.Module, video: Tensor) -> tuple[Tensor, Tensor]:
    """Run an image network on frames.

    Args:
        model: network, on the device of `video`.
        video: (1, k, 3, H, W) float32 RGB in [0, 1]; H and W are multiples of 32.

    Returns:
        logits (k, C, h, w), and the newest frame's class probabilities averaged over the parts of the image
        (C * GRID * GRID,).
    """
    logits = model(video[0])
    return logits, _pooled(logits[-1])


def run_network(model: VideoNetwork, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run a video network on a window.

    Args:
        model: network, on the device of `video`.
        video: (1, k, 3, H, W) float32 RGB in [0, 1]; H and W are multiples of 32.

    Returns:
        logits (k, C, h, w), the static network's logits of the newest frame (C, h, w), and features of the newest frame
        (D,), of its encoder or as `run_image_network`; all float.
    """
    logits = model(video)[0]
    static = model.static_logits(video[:, -1])[0]
    features = model.encoder_features(video)
    return logits, static, _pooled(logits[-1]) if features is None else features[0]


def _pooled(logits: Tensor) -> Tensor:
    return adaptive_avg_pool2d(logits.float().softmax(0), GRID).flatten()


class FrameScorer:
    """Score the frames of a video in the order of time.

    VTSeg sees each frame as the newest one of its window, and the mask of the previous frame comes from the same window.

    Args:
        checkpoint: a checkpoint of VTSeg or of an image network, on the device to use.
        max_gap_s: longest pause within a window, s; after a longer pause, or a step back in time, a new window starts.

    Raises:
        ConfigError: if the network needs optical flow.
    """

    def __init__(self, checkpoint: Checkpoint, *, max_gap_s: float = 1.0) -> None:
        traits = traits_of(checkpoint.model)
        if traits.video and not traits.takes_cache:
            raise ConfigError(
                f"checkpoint {checkpoint.path}: it cannot score frames; expected a vtseg or image network, got "
                f"{checkpoint.architecture}. Choose another --checkpoint"
            )
        self.checkpoint, self.model, self._video = checkpoint, checkpoint.network, traits.video
        self._gap_ns = round(max_gap_s * 1e9)
        self._flow = DisFlow()
        self._frames: deque[np.ndarray] = deque(maxlen=checkpoint.config["window"] if traits.video else 2)
        self._last_ns = 0

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores that the network has."""
        return tuple(name for name in SCORES if self._video or name not in VIDEO_SCORES)

    def reset(self) -> None:
        """Start a new window, for example before the first frame of another bag."""
        self._frames.clear()

    def add(self, image: np.ndarray, stamp_ns: int) -> None:
        """Append a frame to the window without scoring it.

        Args:
            image: (H, W, 3) uint8 RGB, of any size.
            stamp_ns: header stamp, ns.
        """
        if self._frames and not 0 <= stamp_ns - self._last_ns <= self._gap_ns:
            self._frames.clear()
        self._last_ns = stamp_ns
        self._frames.append(resize_rgb(image, self.checkpoint.input_size, self.checkpoint.resize_mode))

    @torch.inference_mode()
    def score(self) -> tuple[dict[str, float], np.ndarray]:
        """Score the newest frame of the window, which must have one.

        Returns:
            Scores by name (see `frame_scores`), and the pooled encoder features (D,) float32.
        """
        frames = np.stack(self._frames)
        device = next(self.model.parameters()).device
        video = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2)[None].float() / 255
        static = None
        if self._video:
            logits, static, features = run_network(cast(VideoNetwork, self.model), video)
        else:
            logits, features = run_image_network(self.model, video)
        past = flow = None
        if len(frames) > 1:
            past = logits[-2]
            flow = resize_flow(self._flow(frames[-1], frames[-2]), (logits.shape[-1], logits.shape[-2]))
        scores = frame_scores(logits[-1], static, past, flow, temperature=self.checkpoint.temperature)
        return scores, features.float().cpu().numpy()
