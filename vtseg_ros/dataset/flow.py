# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Backward optical flow for windows of frames: estimated from the images, or read from a topic of the bag.

Backward flow is (dx, dy) in px from a frame to the one before it in the window; NaN where it is not known.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import cv2
import numpy as np

from vtseg_ros.bags.bag import BagReader, OpenBags
from vtseg_ros.bags.image_messages import decode_float
from vtseg_ros.bags.messages import IMAGE, header_stamp
from vtseg_ros.dataset.augmentation import Draw
from vtseg_ros.dataset.frame_store import FrameIndex
from vtseg_ros.errors import BagError, ConfigError

Provider = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(present, past), both (H, W, 3) uint8 RGB -> (H, W, 2) float32 backward flow, px."""


class DisFlow:
    """OpenCV's DIS (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", 2016)."""

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, present: np.ndarray, past: np.ndarray) -> np.ndarray:
        gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (present, past)]
        return self._dis.calc(*gray, None)


PROVIDERS: dict[str, Callable[[], Provider]] = {"dis": DisFlow}
"""Estimators by name: called without arguments, once in each process that needs flow."""


def is_topic(source: str) -> bool:
    """Whether a flow source is a topic of the bags, and not an estimator."""
    return source.startswith("/")


def build_provider(source: str) -> Provider:
    """The estimator of a name in `PROVIDERS`, or of `package.module:factory`.

    A factory is a program: take the name from the user's own configuration, never from a checkpoint.

    Raises:
        ConfigError: if there is no such estimator.
    """
    if source in PROVIDERS:
        return PROVIDERS[source]()
    module_name, colon, attribute = source.partition(":")
    if not colon:
        raise ConfigError(
            f"there is no optical flow {source!r}. Known: {', '.join(PROVIDERS)}, a topic of the bags such as "
            "/camera/flow_backward, or package.module:factory"
        )
    try:
        return getattr(importlib.import_module(module_name), attribute)()
    except (ImportError, AttributeError) as err:
        raise ConfigError(
            f"optical flow {source}: cannot import it ({err}). Expected package.module:factory"
        ) from err


class FlowTopic:
    """Flow messages (32FC2) of indexed frames by random access; opens the bags anew in each process.

    Args:
        index: the frames; neighbours in the bag must be neighbours in it (stride 1).
        topic: backward flow with the header stamps of the images it belongs to.

    Raises:
        BagError: if a bag lacks the topic, or flow for a frame that has one before it.
        ConfigError: if the topic is of another type.
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
                        f"{frame.stamp_ns} ns of an image. Flow and images must have equal stamps"
                    )

    def _scan(self, source: int) -> dict[int, int]:
        with BagReader(self.index.sources[source].path) as bag:
            bag.require(self.topic)
            if bag.topics[self.topic].msgtype != IMAGE:
                raise ConfigError(
                    f"flow topic {self.topic} must be {IMAGE} with encoding 32FC2. "
                    f"Got: {bag.topics[self.topic].msgtype}"
                )
            return {header_stamp(data): time_ns for _, _, time_ns, data in bag.raw([self.topic])}

    def read(self, number: int, size: tuple[int, int]) -> np.ndarray:
        """Backward flow of a frame at (width, height) px: (height, width, 2) float32.

        Raises:
            ImageError, BagError: for a corrupt message.
        """
        frame = self.index.frames[number]
        message = self._bags[frame.source].read(
            self.topic, self._times[frame.source][frame.stamp_ns], frame.stamp_ns
        )
        return resize_flow(decode_float(message, 2), size)


def resize_flow(flow: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Flow for a resized image: (H, W, 2) -> (height, width, 2), vectors scaled along; size is (width, height).

    The nearest vector is taken: a mean of two motions is neither.
    """
    height, width = flow.shape[:2]
    if (width, height) == size:
        return flow
    scale = np.array([size[0] / width, size[1] / height], np.float32)
    return cv2.resize(flow, size, interpolation=cv2.INTER_NEAREST_EXACT) * scale


def transform_flow(flow: np.ndarray | None, present: np.ndarray, past: np.ndarray, size) -> np.ndarray:
    """Flow between two frames that were warped.

    Args:
        flow: (H, W, 2) before the warp; None = both frames were made of one image (a pseudo-clip).
        present, past: (3, 3) affine source-to-output transforms of the two frames.
        size: (width, height) px.

    Returns:
        (height, width, 2) float32; with `flow`, NaN where the source lies outside the image.
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
    return (source @ past[:2, :2].T + past[:2, 2] - output).astype(np.float32)


class WindowFlow:
    """Backward flow of windows, from a source that the user names.

    An estimator sees the frames that the network sees, augmented ones too, so that training knows its mistakes.
    Flow from a topic is carried through the augmentation exactly.

    Args:
        source: a name in `PROVIDERS`, a topic, or `package.module:factory`.
        index: the frames of the windows.
        stride: of the index; a topic's flow reaches to the previous recorded frame only.

    Raises:
        ConfigError, BagError: see `build_provider` and `FlowTopic`.
    """

    def __init__(self, source: str, index: FrameIndex, *, stride: int = 1) -> None:
        self.source = source
        self._topic: FlowTopic | None = None
        self._provider: Provider | None = None
        if not is_topic(source):
            build_provider(source)  # a wrong name is told now, and not by a worker process later
        elif stride != 1:
            raise ConfigError(
                f"flow of topic {source} reaches one recorded frame back: data.stride must be 1, without random_strides"
            )
        else:
            self._topic = FlowTopic(index, source)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_provider": None}

    def window(self, numbers: list[int], video: np.ndarray, draw: Draw | None = None) -> np.ndarray:
        """Flow between the frames of a window.

        Args:
            numbers: frame numbers in the index; fewer than frames where the oldest one is repeated.
            video: (k, H, W, 3) uint8, as the network gets it.
            draw: the augmentation that made `video`; None = none.

        Returns:
            (k - 1, H, W, 2) float32; entry t leads from frame t + 1 to frame t.
        """
        frames, height, width = video.shape[:3]
        size = (width, height)
        if self._topic is None:
            if self._provider is None:
                self._provider = build_provider(self.source)
            flow = [self._provider(video[t], video[t - 1]) for t in range(1, frames)]
            return np.stack(flow).astype(np.float32, copy=False)
        numbers = [numbers[0]] * (frames - len(numbers)) + list(numbers)
        flows = []
        for t in range(1, frames):
            flow = None
            if draw is None or not draw.pseudo_clip:
                still = numbers[t] == numbers[t - 1]
                flow = (
                    np.zeros((height, width, 2), np.float32) if still else self._topic.read(numbers[t], size)
                )
            if draw is not None:
                flow = transform_flow(flow, draw.transforms[t], draw.transforms[t - 1], size)
            flows.append(flow)
        return np.stack(flows)
