# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Frames that commands read: of a bag or a part of one, a video file, images, a stream or a camera."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.image_messages import ImageDecoder
from vtseg_ros.bags.messages import Message, header_stamp, stamp_of, to_ns
from vtseg_ros.bags.storage_files import holds_bag, is_bag
from vtseg_ros.bags.topics import require_image_topic
from vtseg_ros.errors import BagError, ImageError
from vtseg_ros.fleet.parts import Span, warm_up_start
from vtseg_ros.importers.image_folder import OTHER_SUFFIXES, SUFFIXES
from vtseg_ros.inference.sources import FIRST_STAMP_NS, image_files, is_glob, read_image
from vtseg_ros.video.live import LiveReader, is_live
from vtseg_ros.video.reader import VideoReader

if TYPE_CHECKING:
    from vtseg_ros.inference import VideoPredictor

IMAGE_RATE_HZ = 10.0
Frame: TypeAlias = tuple[int, str, np.ndarray | ImageError]
"""Header stamp in ns, frame_id, and the image (H, W, 3) uint8 RGB or why there is none."""


@dataclass(frozen=True)
class Source:
    """Frames to segment.

    Attributes:
        total: Number of frames; 0 for a live source.
        frames: Iterator of (stamp in ns, frame_id, (H, W, 3) uint8 RGB or the error).
        rate_hz: Returns the frames per second, None = unknown; a bag must be read for it.
        missing: Returns the number of announced messages that the bag does not have, after all frames were read.
        live: Whether the source has no end of its own.
    """

    total: int
    frames: Iterator[Frame]
    rate_hz: Callable[[], float | None]
    missing: Callable[[], int] = lambda: 0
    live: bool = False


def source_argument(text: str) -> Path | str:
    """Return a command's source: the URL of a stream, a device or a glob as it is, anything else as a path."""
    return text if is_live(text) or is_glob(text) else Path(text)


def require_source(source: Path | str) -> None:
    """Raise BagError if a path does not exist."""
    if isinstance(source, Path) and not source.exists():
        what = "camera" if source.is_relative_to("/dev") else "bag or video"
        raise BagError(f"{source}: no such {what}; expected an existing one. Correct the path")


def open_source(
    source: Path | str,
    image_topic: str,
    stack: ExitStack,
    bad: list[str],
    image_rate_hz: float = IMAGE_RATE_HZ,
) -> Source:
    """Open a bag, a video, images or a stream.

    Args:
        source: see `source_argument`.
        image_topic: of a bag; empty = the only one.
        stack: closes the bag or the video.
        bad: gets a line when a video is damaged or a stream breaks.
        image_rate_hz: frames per second of image files, which have no times.

    Raises:
        BagError: If the bag cannot be read.
        ConfigError: If the video cannot be read.
    """
    if isinstance(source, str) and is_live(source):
        return _from_stream(stack.enter_context(LiveReader(source)), bad)
    if isinstance(source, str) or (source.is_dir() and not holds_bag(source) and _has_images(source)):
        return _from_images(image_files(source), image_rate_hz)
    if is_bag(source):
        return _from_bag(stack.enter_context(BagReader(source)), image_topic)
    return _from_video(stack.enter_context(VideoReader(source)), bad)


def _has_images(folder: Path) -> bool:
    # Those that cannot be read lead to an error that names them.
    return any(path.suffix.lower() in (*SUFFIXES, *OTHER_SUFFIXES) for path in folder.iterdir())


def open_part(path: Path, topic: str, stack: ExitStack, segmenter: VideoPredictor, span: Span) -> Source:
    """Open a part of a bag, whose masks become those of an unsplit run.

    Args:
        path: bag.
        topic: image topic; empty = the only one.
        stack: closes the bag.
        segmenter: gets the frames before the part that its first masks depend on.
        span: bag times (ns), the first included, the second not; None = the bag's begin or end.

    Raises:
        BagError: If the bag cannot be read.
    """
    bag = stack.enter_context(BagReader(path))
    topic = require_image_topic(bag, topic)
    begin_ns = None
    if span[0] is not None:
        # One more window: with short windows the network may run another way than with full ones.
        frames = segmenter.history + segmenter.window - 1
        max_gap_ns = to_ns(segmenter.max_gap_s)
        begin_ns = warm_up_start(bag, topic, span[0], frames=frames, max_gap_ns=max_gap_ns)

    def warm_up(stamp_ns: int, frame_id: str, image: np.ndarray) -> None:
        segmenter.step(image, stamp_ns, frame_id, with_confidence=False)

    return _from_bag(bag, topic, _Part(*span, begin_ns, warm_up))


@dataclass(frozen=True)
class _Part:
    """A part of a bag; the whole bag by default.

    Attributes:
        start_ns: bag time of its first frame; None = the bag's begin.
        stop_ns: bag time after its last frame; None = the bag's end.
        begin_ns: bag time where reading begins, not after the start; None = the bag's begin.
        warm_up: called with (stamp in ns, frame_id, RGB) of the frames before the start that can be decoded.
    """

    start_ns: int | None = None
    stop_ns: int | None = None
    begin_ns: int | None = None
    warm_up: Callable[[int, str, np.ndarray], None] = lambda *_: None

    def is_before(self, time_ns: int) -> bool:
        """Return whether a bag time is before the start."""
        return self.start_ns is not None and time_ns < self.start_ns

    def count(self, times: np.ndarray) -> int:
        """Return how many of the sorted bag times (n,) int64 are in the part."""
        first = 0 if self.start_ns is None else int(np.searchsorted(times, self.start_ns))
        last = len(times) if self.stop_ns is None else int(np.searchsorted(times, self.stop_ns))
        return last - first


class _Stamps:
    """Header stamps of the images on a topic. An image without one gets its bag time, less the delay of the others."""

    def __init__(self, bag: BagReader, topic: str) -> None:
        self._bag, self._topic = bag, topic
        self._delay_ns, self._warned = 0, False

    def of(self, message: Message, time_ns: int) -> int:
        """Return the stamp of the message with this bag time, ns; not above 0 if it has neither."""
        stamp_ns = stamp_of(message)
        if stamp_ns > 0:
            self._delay_ns = time_ns - stamp_ns
            return stamp_ns
        if not self._warned:
            self._warned = True
            self._delay_ns = self._delay_ns or self._first_delay_ns()
            print(
                f"vtseg segment: images on {self._topic} have the header stamp zero or a negative one; their masks get "
                "the images' bag times",
                file=sys.stderr,
            )
        return time_ns - self._delay_ns

    def _first_delay_ns(self) -> int:
        """Return the time from header stamp to bag time of the first image that has both, ns; 0 if none has."""
        for _, _, time_ns, data in self._bag.raw([self._topic]):
            try:
                stamp_ns = header_stamp(data)
            except BagError:
                continue
            if stamp_ns > 0 and time_ns:
                return time_ns - stamp_ns
        return 0


def _from_bag(bag: BagReader, topic: str, part: _Part = _Part()) -> Source:
    topic = require_image_topic(bag, topic)
    decode, stamps = ImageDecoder(topic), _Stamps(bag, topic)
    corrupt: list[Frame] = []

    def on_corrupt(_: str, time_ns: int, reason: str) -> None:
        if not part.is_before(time_ns):
            corrupt.append((time_ns, "", ImageError(reason)))

    def frames() -> Iterator[Frame]:
        for _, time_ns, message in bag.messages([topic], part.begin_ns, part.stop_ns, on_corrupt=on_corrupt):
            yield from corrupt
            corrupt.clear()
            stamp_ns = stamps.of(message, time_ns)
            try:
                if stamp_ns <= 0:
                    raise ImageError("it has neither a header stamp nor a bag time")
                pixels: np.ndarray | ImageError = decode(message)
            except ImageError as err:
                pixels = err
            if not part.is_before(time_ns):
                yield stamp_ns, message.header.frame_id, pixels
            elif not isinstance(pixels, ImageError):
                part.warm_up(stamp_ns, message.header.frame_id, pixels)
        yield from corrupt

    total = bag.topics[topic].count if part == _Part() else part.count(bag.times([topic]))
    return Source(total, frames(), lambda: bag.rate_hz(topic), lambda: sum(bag.missing.values()))


def _from_video(video: VideoReader, bad: list[str]) -> Source:
    def frames() -> Iterator[Frame]:
        for frame in video.frames():
            yield FIRST_STAMP_NS + frame.time_ns, video.path.stem, frame.image
        if video.damage:
            bad.append(f"{video.path} is damaged: {video.damage}")

    return Source(video.frame_count, frames(), lambda: video.rate_hz)


def _from_images(paths: list[Path], rate_hz: float) -> Source:
    def frames() -> Iterator[Frame]:
        for number, path in enumerate(paths):
            try:
                pixels: np.ndarray | ImageError = read_image(path)
            except ImageError as err:
                pixels = err
            yield FIRST_STAMP_NS + round(number * 1e9 / rate_hz), path.parent.name, pixels

    return Source(len(paths), frames(), lambda: rate_hz)


def _from_stream(stream: LiveReader, bad: list[str]) -> Source:
    def frames() -> Iterator[Frame]:
        for frame in stream.frames():
            yield frame.stamp_ns, "camera", frame.image
        if stream.damage:
            bad.append(f"{stream.source} broke off: {stream.damage}")

    return Source(0, frames(), lambda: None, live=True)
