# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Index of the frames in bags, built in one pass without keeping images in memory."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.image_messages import ImageDecoder, size_of
from vtseg_ros.bags.messages import NS, Message, stamp_of
from vtseg_ros.bags.topics import find_image_topic, find_label_topic, require_images
from vtseg_ros.errors import BagError, ConfigError, ImageError

LONGEST_S = 1e9
"""Longest part of a bag, s: its times must fit into 64 bits of ns."""
PROBES = 5
"""Messages decoded before a topic is refused: a single one may be corrupt, but not all of them."""
Decode = Callable[[Message], np.ndarray]

log = logging.getLogger("vtseg_ros.dataset")


@dataclass(frozen=True)
class BagSource:
    """Source of frames: a bag, or a part of it.

    Leave a gap between parts for different splits, so no scene is in both (see `require_apart`).

    Args:
        path: Folder or storage file of the bag.
        image_topic: Topic of the images; empty = found by type and name (see `find_image_topic`).
        label_topic: Topic of the labels; empty = found by type and name (see `find_label_topic`).
        start_s: Start of the part, s after the first image of the bag.
        end_s: End of the part, s after the first image; 0 = the end of the bag.

    Raises:
        ConfigError: If start or end is negative or not a time.
    """

    path: Path
    image_topic: str = ""
    label_topic: str = ""
    start_s: float = 0.0
    end_s: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("start", self.start_s), ("end", self.end_s)):
            if not 0 <= value < LONGEST_S:
                raise ConfigError(
                    f"bag {self.path}: {name} out of range; expected 0 to {LONGEST_S:g} s after the first image, got {value:g}"
                )


@dataclass(frozen=True)
class Frame:
    """Place of a frame in its bag.

    Attributes:
        source: Number of the source.
        stamp_ns: Header stamp.
        image_ns: Bag time of the image message.
        label_ns: Bag time of the label message; None = no label.
        size: (width, height) px; None = unknown.
    """

    source: int
    stamp_ns: int
    image_ns: int
    label_ns: int | None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class CorruptMessage:
    """A message that cannot be used.

    Attributes:
        bag: Path of the bag.
        topic: Topic of the message.
        time_ns: Bag time.
        reason: Why it cannot be used.
    """

    bag: str
    topic: str
    time_ns: int
    reason: str

    def __str__(self) -> str:
        return f"{self.bag}, {self.topic}, bag time {self.time_ns} ns: {self.reason}"


class FrameIndex:
    """All frames of some bags in order, split into sequences where time jumps.

    Args:
        sources: Bags, or parts of them.
        max_gap_s: A longer pause, or a stamp that does not increase, starts a new sequence, s.
        stride: Distance between the frames of a window, counted back from its newest frame; no label is lost.
        need_labels: Refuse bags without labels; labels without an image are counted and logged.

    Attributes:
        frames: All frames, including those whose image or label cannot be decoded.
        sequences: (start, stop) indices into `frames`.
        topics: (image topic, label topic or None) per source.
        corrupt: Messages without a readable stamp, which have no frame.
        unmatched_labels: Number of labels without an image of the same stamp.
        missing: Number of announced messages that are not in the bags, by topic.

    Raises:
        BagError: For a bag without frames, with images and labels of different sizes, or without labels where they
            are needed.
    """

    def __init__(
        self, sources: list[BagSource], *, max_gap_s: float = 1.0, stride: int = 1, need_labels: bool = True
    ) -> None:
        self.sources, self.stride, self.max_gap_s = sources, stride, max_gap_s
        self.unmatched_labels = 0
        self.missing: Counter[str] = Counter()
        self.topics: list[tuple[str, str | None]] = []
        self.frames: list[Frame] = []
        self.sequences: list[tuple[int, int]] = []
        self.corrupt: list[CorruptMessage] = []
        for number, source in enumerate(sources):
            self._cut(self._scan(number, source, need_labels), max_gap_s)

    def _scan(self, index: int, source: BagSource, need_labels: bool) -> list[Frame]:
        with BagReader(source.path) as bag:
            image, label = _topics(bag, source)
            if need_labels and not label:
                raise BagError(f"bag {source.path} has no label topic. Add one with `vtseg labels merge`")
            first = bag.span([image])[0]
            start = first + round(source.start_s * NS) if source.start_s else None
            stop = first + round(source.end_s * NS) if source.end_s else None
            images = self._places(bag, image, ImageDecoder(image), start, stop)
            # Not only of this part: a label may be recorded later than its image.
            labels = self._places(bag, label, ImageDecoder(label).label, None, None) if label else {}
            self.missing.update(bag.missing)
        self.topics.append((image, label))
        if not images:
            raise BagError(f"bag {source.path} has no image on {image} in the chosen part")
        frames = []
        for stamp, (time_ns, size) in images.items():
            label_ns, label_size = labels.get(stamp, (None, size))
            if size and label_size and label_size != size:
                raise BagError(
                    f"bag {source.path}: the label at stamp {stamp} ns has {label_size[0]}x{label_size[1]} px, its "
                    f"image {size[0]}x{size[1]}; expected equal sizes"
                )
            frames.append(Frame(index, stamp, time_ns, label_ns, size))
        if need_labels and not any(frame.label_ns is not None for frame in frames):
            raise BagError(
                f"bag {source.path}: no label on {label} has the header stamp of an image on {image}"
                + (" in the chosen part" if source.start_s or source.end_s else "")
                + ". Labels and images must have equal stamps"
            )
        self._log_unmatched(source, (image, label), images, labels)
        return frames

    def _log_unmatched(
        self,
        source: BagSource,
        topics: tuple[str, str | None],
        images: Collection[int],
        labels: Collection[int],
    ) -> None:
        first = min(images) if source.start_s else -math.inf
        last = max(images) if source.end_s else math.inf
        lost = [stamp for stamp in labels if stamp not in images and first <= stamp <= last]
        self.unmatched_labels += len(lost)
        if lost:
            log.warning(
                "bag %s: %d of the labels on %s have the header stamp of no image on %s and are not used; the first "
                "at stamp %d ns",
                source.path,
                len(lost),
                topics[1],
                topics[0],
                min(lost),
            )

    def _places(
        self, bag: BagReader, topic: str, decode: Decode, start: int | None, stop: int | None
    ) -> dict[int, tuple[int, tuple[int, int] | None]]:
        """Return (bag time in ns, (width, height) or None for a corrupt image) of a topic's messages by header stamp."""

        def note(topic: str, time_ns: int, reason: str) -> None:
            repeated = any((one.topic, one.reason) == (topic, reason) for one in self.corrupt[-1:])
            self.corrupt.append(CorruptMessage(str(bag.path), topic, time_ns, reason))
            if not repeated:  # the packets of a video after a lost one, say
                log.warning("corrupt message left out: %s", self.corrupt[-1])

        places: dict[int, tuple[int, tuple[int, int] | None]] = {}
        refused, unstamped = "", 0
        for _, time_ns, message in bag.messages([topic], start, stop, on_corrupt=note):
            stamp = stamp_of(message)
            if stamp <= 0:
                note(topic, time_ns, f"the header stamp is {'negative' if stamp else 'zero'}")
                unstamped += 1
                continue
            if len(places) < PROBES and (not places or refused):
                refused = _reason_against(message, decode)
            places.setdefault(stamp, (time_ns, _size_of(message)))  # two equal stamps are one frame
        if unstamped and not places:
            raise BagError(
                f"bag {bag.path}: all messages on {topic} have the header stamp zero, or a negative one. "
                "Images and labels are matched by their stamps: record with a driver that sets them"
            )
        if refused:
            raise BagError(
                f"bag {bag.path}: the first {min(PROBES, len(places))} messages on {topic}: {refused}"
            )
        return places

    def _cut(self, frames: list[Frame], max_gap_s: float) -> None:
        start = len(self.frames)
        for before, frame in zip([None, *frames], frames):
            if before and not 0 < frame.stamp_ns - before.stamp_ns <= max_gap_s * NS:
                self.sequences.append((start, len(self.frames)))
                start = len(self.frames)
            self.frames.append(frame)
        self.sequences.append((start, len(self.frames)))

    def labelled(self, every: int = 1) -> list[tuple[int, int]]:
        """Return (frame number, first frame of its sequence) of every n-th labelled frame, counted over all sequences."""
        found = [
            (number, first)
            for first, stop in self.sequences
            for number in range(first, stop)
            if self.frames[number].label_ns is not None
        ]
        return found[::every]

    def others(self, taken: Collection[int], strides: list[int]) -> list[tuple[int, int]]:
        """Return frames that are not taken.

        Args:
            taken: Frame numbers to leave out.
            strides: For each source, take every n-th frame; 0 = none.

        Returns:
            (frame number, first frame of its sequence) of each.
        """
        found: list[tuple[int, int]] = []
        count = [0] * len(self.sources)
        for first, stop in self.sequences:
            for number in range(first, stop):
                source = self.frames[number].source
                if number in taken or not strides[source]:
                    continue
                if count[source] % strides[source] == 0:
                    found.append((number, first))
                count[source] += 1
        return found

    def window(self, newest: int, first: int, length: int, stride: int | None = None) -> list[int]:
        """Return the frame numbers of a window, newest last.

        Args:
            newest: Newest frame.
            first: First frame of its sequence.
            length: Frames k of a window; fewer are returned near the start of the sequence.
            stride: Distance between its frames; None = the index's.
        """
        return list(range(newest, first - 1, -(stride or self.stride)))[:length][::-1]

    def sequence_start(self, number: int) -> int:
        """Return the number of the first frame of the sequence that a frame belongs to."""
        return self.sequences[bisect_right(self.sequences, number, key=lambda span: span[0]) - 1][0]

    def windows(self, length: int, *, label_stride: int = 1) -> list[list[int]]:
        """Return the windows whose newest frame has a label.

        Args:
            length: Frames k of a window.
            label_stride: Use only every n-th labelled frame.
        """
        return [self.window(newest, first, length) for newest, first in self.labelled(label_stride)]


def _topics(bag: BagReader, source: BagSource) -> tuple[str, str | None]:
    image = source.image_topic or find_image_topic(bag)
    label = source.label_topic or find_label_topic(bag)
    require_images(bag, *(topic for topic in (image, label) if topic))
    return image, label


def _reason_against(message: Message, decode: Decode) -> str:
    """Return why a message cannot be decoded; empty if it can."""
    try:
        decode(message)
    except ImageError as err:
        return str(err)
    return ""


def _size_of(message: Message) -> tuple[int, int] | None:
    """Return the (width, height) px in an image message; None if it is corrupt, which is reported when decoding."""
    try:
        return size_of(message)
    except ImageError:
        return None
