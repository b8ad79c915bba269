# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Backward optical flow of windows, estimated from the images or read from a topic of the bag.

Backward flow is (dx, dy) in px from a frame to the one before it in the window; NaN where it is unknown.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.image_messages import decode_float
from vtseg_ros.bags.messages import IMAGE, header_stamp
from vtseg_ros.bags.open_bags import OpenBags
from vtseg_ros.dataset.augmentation import Draw
from vtseg_ros.dataset.frame_store import FrameIndex
from vtseg_ros.errors import BagError, ConfigError

Provider = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Function of (present, past), both (H, W, 3) uint8 RGB, that returns (H, W, 2) float32 backward flow, px."""


class DisFlow:
    """Estimate flow with OpenCV's DIS (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", 2016)."""

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, present: np.ndarray, past: np.ndarray) -> np.ndarray:
        """Return the backward flow; see `Provider`."""
        gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (present, past)]
        # None = no initial flow, which the stub does not allow.
        flow: np.ndarray = self._dis.calc(gray[0], gray[1], None)  # type: ignore[call-overload]
        return flow


PROVIDERS: dict[str, Callable[[], Provider]] = {"dis": DisFlow}
"""Estimators by name; each is created without arguments, once in each process that needs flow."""


def is_topic(source: str) -> bool:
    """Return whether a flow source is a topic of the bags instead of an estimator."""
    return source.startswith("/")


def build_provider(source: str) -> Provider:
    """Build an estimator.

    A factory executes code: use names from the configuration of the user, never from a checkpoint.

    Args:
        source: Name in `PROVIDERS`, or `package.module:factory`.

    Raises:
        ConfigError: If there is no such estimator.
    """
    if source in PROVIDERS:
        return PROVIDERS[source]()
    module_name, colon, attribute = source.partition(":")
    if not colon:
        raise ConfigError(
            f"optical flow: unknown; expected {', '.join(PROVIDERS)}, a topic of the bags such as "
            f"/camera/flow_backward, or package.module:factory, got {source!r}"
        )
    try:
        provider: Provider = getattr(importlib.import_module(module_name), attribute)()
    except (ImportError, AttributeError) as err:
        raise ConfigError(
            f"optical flow {source}: cannot import it ({err}); expected package.module:factory"
        ) from err
    return provider


class FlowTopic:
    """Random access to the flow messages (32FC2) of indexed frames; each process opens the bags itself.

    Args:
        index: Frames, with stride 1.
        topic: Topic of backward flow with the header stamps of its images.

    Raises:
        BagError: If a bag lacks the topic, or flow for a frame with a predecessor.
        ConfigError: If the topic has another type.
    """

    def __init__(self, index: FrameIndex, topic: str) -> None:
        self.index, self.topic = index, topic
        self._bags = OpenBags([source.path for source in index.sources])
        self._times = [self._scan(number) for number in range(len(index.sources))]
        for start, stop in index.sequences:
            for frame in index.frames[start + 1 : stop]:
                if frame.stamp_ns not in self._times[frame.source]:
                    raise BagError(
                        f"bag {index.sources[frame.source].path}: no flow on {topic} has the header stamp "
                        f"{frame.stamp_ns} ns of an image; expected flow and images with equal stamps"
                    )

    def _scan(self, source: int) -> dict[int, int]:
        with BagReader(self.index.sources[source].path) as bag:
            bag.require(self.topic)
            if bag.topics[self.topic].msgtype != IMAGE:
                raise ConfigError(
                    f"flow topic {self.topic}: wrong type; expected {IMAGE} with encoding 32FC2, "
                    f"got {bag.topics[self.topic].msgtype}"
                )
            return {header_stamp(data): time_ns for _, _, time_ns, data in bag.raw([self.topic])}

    def read(self, number: int, size: tuple[int, int]) -> np.ndarray:
        """Return the backward flow of a frame.

        Args:
            number: Frame number in the index.
            size: (width, height) px of the result.

        Returns:
            (height, width, 2) float32, px.

        Raises:
            ImageError: If the message is corrupt.
            BagError: If the message cannot be read.
        """
        frame = self.index.frames[number]
        message = self._bags[frame.source].read(
            self.topic, self._times[frame.source][frame.stamp_ns], frame.stamp_ns
        )
        return resize_flow(decode_float(message, 2), size)


def resize_flow(flow: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize flow and scale its vectors.

    Each pixel gets the nearest vector, since the mean of two motions is neither of them.

    Args:
        flow: (H, W, 2) float32, px.
        size: (width, height) of the result, px.

    Returns:
        (height, width, 2) float32, px of the resized image.
    """
    height, width = flow.shape[:2]
    if (width, height) == size:
        return flow
    scale = np.array([size[0] / width, size[1] / height], np.float32)
    resized: np.ndarray = cv2.resize(flow, size, interpolation=cv2.INTER_NEAREST_EXACT) * scale
    return resized


def transform_flow(
    flow: np.ndarray | None, present: np.ndarray, past: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """Return the flow between two warped frames.

    Args:
        flow: (H, W, 2) before the warp; None = both frames were generated from one image (a pseudo-clip).
        present: (3, 3) affine transform of the newer frame, source to output px.
        past: (3, 3) affine transform of the older frame, source to output px.
        size: (width, height) px.

    Returns:
        (height, width, 2) float32; with `flow`, NaN where the source is outside the image.
    """
    width, height = size
    xs, ys = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    output = np.stack([xs, ys], axis=-1)  # (H, W, 2)
    back = np.linalg.inv(present)
    source = output @ back[:2, :2].T + back[:2, 2]
    if flow is not None:
        where = source.astype(np.float32)
        nan = (float("nan"), float("nan"))
        source = source + cv2.remap(
            flow,
            where[..., 0],
            where[..., 1],
            cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=nan,
        )
    moved: np.ndarray = source @ past[:2, :2].T + past[:2, 2] - output
    return moved.astype(np.float32)


class WindowFlow:
    """Backward flow of windows.

    An estimator gets the same augmented frames as the network, so training includes its errors. Flow from a topic is
    transformed exactly as the augmentation transforms the frames.

    Args:
        source: Name in `PROVIDERS`, topic, or `package.module:factory`.
        index: Frames of the windows.
        stride: Stride of the index; must be 1 for a topic.

    Raises:
        ConfigError: If there is no such estimator, or the topic has another type.
        BagError: If a bag lacks flow.
    """

    def __init__(self, source: str, index: FrameIndex, *, stride: int = 1) -> None:
        self.source = source
        self._topic: FlowTopic | None = None
        self._provider: Provider | None = None
        if not is_topic(source):
            build_provider(source)  # an unknown name is an error now, instead of later in a worker process
        elif stride != 1:
            raise ConfigError(
                f"data.stride: topic {source} has flow to the previous recorded frame only; expected 1, without "
                "random_strides, "
                f"got {stride}"
            )
        else:
            self._topic = FlowTopic(index, source)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_provider": None}

    def window(self, numbers: list[int], video: np.ndarray, draw: Draw | None = None) -> np.ndarray:
        """Return the flow between the frames of a window.

        Args:
            numbers: Frame numbers in the index; fewer than k if the oldest frame is repeated.
            video: (k, H, W, 3) uint8 RGB, the input of the network.
            draw: Augmentation that `video` was made with; None = not augmented.

        Returns:
            (k - 1, H, W, 2) float32, px; entry t is the flow from frame t + 1 to frame t.

        Raises:
            ImageError: If a flow message is corrupt.
            BagError: If a flow message cannot be read.
        """
        frames, height, width = video.shape[:3]
        size = (width, height)
        if self._topic is None:
            if self._provider is None:
                self._provider = build_provider(self.source)
            estimated = [self._provider(video[t], video[t - 1]) for t in range(1, frames)]
            return np.stack(estimated).astype(np.float32, copy=False)
        numbers = [numbers[0]] * (frames - len(numbers)) + list(numbers)
        flows = []
        for t in range(1, frames):
            flow: np.ndarray | None = None
            if draw is None or not draw.pseudo_clip:
                still = numbers[t] == numbers[t - 1]
                flow = (
                    np.zeros((height, width, 2), np.float32) if still else self._topic.read(numbers[t], size)
                )
            if draw is not None:
                flow = transform_flow(flow, draw.transforms[t], draw.transforms[t - 1], size)
            assert flow is not None  # only an augmentation makes pseudo-clips
            flows.append(flow)
        return np.stack(flows)
