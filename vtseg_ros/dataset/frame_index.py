# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Which frames bags hold: found in one pass, without keeping a picture in memory."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtseg_ros.bags.bag import BagReader
from vtseg_ros.bags.containers import read_container
from vtseg_ros.bags.image_messages import MAX_PIXELS, ImageDecoder
from vtseg_ros.bags.messages import NS, stamp_of
from vtseg_ros.bags.topics import find_image_topic, find_label_topic
from vtseg_ros.errors import BagError, ImageError

PROBES = 5
"""Messages of a topic that are decoded before it is given up: one may be corrupt, all of them are of a wrong kind."""
Decode = Callable[[object], np.ndarray]

log = logging.getLogger("vtseg_ros.dataset")


@dataclass(frozen=True)
class BagSource:
    """Where frames come from.

    Args:
        path: a bag.
        image_topic, label_topic: empty = found by type and name (see `data.topics.find_image_topic`).
        start_s, end_s: part of the bag, seconds after its first image; end 0 = its end. Leave a guard interval
            between parts that go into different splits, so that no scene is in both (see `require_apart`).
    """

    path: Path
    image_topic: str = ""
    label_topic: str = ""
    start_s: float = 0.0
    end_s: float = 0.0


@dataclass(frozen=True)
class Frame:
    """A frame's place: header stamp, bag times of its image and (if any) label message, and (width, height) px."""

    source: int
    stamp_ns: int
    image_ns: int
    label_ns: int | None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class CorruptMessage:
    """A message that could not be used: its bag, topic, bag time in ns, and why."""

    bag: str
    topic: str
    time_ns: int
    reason: str

    def __str__(self) -> str:
        return f"{self.bag}, {self.topic}, bag time {self.time_ns} ns: {self.reason}"


class FrameIndex:
    """All frames of some bags in order, cut into sequences where time jumps.

    Args:
        sources: bags.
        max_gap_s: a longer pause, or a stamp that does not grow, starts a new sequence.
        stride: frames of a window are this far apart, counted back from its newest one; no label is lost by it.
        need_labels: refuse bags without labels; labels that have no image are counted and told.

    Attributes:
        frames: all frames; one whose image or label turns out to be corrupt when it is decoded is among them.
        sequences: (start, stop) indices into `frames`.
        topics: (image topic, label topic or None) per source.
        corrupt: messages so broken that they have no stamp, and hence no frame.
        unmatched_labels: labels whose stamp is no image's, among or around the images.
        missing: messages by topic that the bags promise and do not have.

    Raises:
        BagError: for a bag without frames, with images and labels of different sizes, or without labels where they
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
            # Not only of this part: a label may have been recorded later than its image.
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
                    f"image {size[0]}x{size[1]}. They must be equal"
                )
            frames.append(Frame(index, stamp, time_ns, label_ns, size))
        if need_labels and not any(frame.label_ns is not None for frame in frames):
            raise BagError(
                f"bag {source.path}: no label on {label} has the header stamp of an image on {image}"
                + (" in the chosen part" if source.start_s or source.end_s else "")
                + ". Labels and images must have equal stamps"
            )
        self._tell_unmatched(source, (image, label), images, labels)
        return frames

    def _tell_unmatched(
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
        """Header stamp -> (bag time in ns, (width, height) or None for a corrupt image) of a topic's messages."""

        def note(topic: str, time_ns: int, reason: str) -> None:
            self.corrupt.append(CorruptMessage(str(bag.path), topic, time_ns, reason))
            log.warning("corrupt message left out: %s", self.corrupt[-1])

        places: dict[int, tuple[int, tuple[int, int] | None]] = {}
        refused, unstamped = "", 0
        for _, time_ns, message in bag.messages([topic], start, stop, on_corrupt=note):
            stamp = stamp_of(message)
            if stamp == 0:
                note(topic, time_ns, "the header stamp is zero")
                unstamped += 1
                continue
            if len(places) < PROBES and (not places or refused):
                refused = _reason_against(message, decode)
            places.setdefault(stamp, (time_ns, _size_of(message)))  # two equal stamps are one frame
        if unstamped and not places:
            raise BagError(
                f"bag {bag.path}: all messages on {topic} have the header stamp zero. "
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
        """(frame number, first frame of its sequence) of every n-th labelled frame, counted over all sequences."""
        found = [
            (number, first)
            for first, stop in self.sequences
            for number in range(first, stop)
            if self.frames[number].label_ns is not None
        ]
        return found[::every]

    def others(self, taken: Collection[int], strides: list[int]) -> list[tuple[int, int]]:
        """(frame number, first frame of its sequence) of every n-th frame of each source that is not taken; 0 = none."""
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
            newest: number of its newest frame.
            first: number of the first frame of its sequence.
            length: frames k; there are fewer where the sequence began late.
            stride: distance between its frames; None = the index's.
        """
        return list(range(newest, first - 1, -(stride or self.stride)))[:length][::-1]

    def sequence_start(self, number: int) -> int:
        """Return the number of the first frame of the sequence that a frame belongs to."""
        return self.sequences[bisect_right(self.sequences, number, key=lambda span: span[0]) - 1][0]

    def windows(self, length: int, *, label_stride: int = 1) -> list[list[int]]:
        """Windows whose newest frame has a label.

        Args:
            length: frames k of a window.
            label_stride: use only every n-th labelled frame, to see how few labels do.
        """
        return [self.window(newest, first, length) for newest, first in self.labelled(label_stride)]


def _topics(bag: BagReader, source: BagSource) -> tuple[str, str | None]:
    image = source.image_topic or find_image_topic(bag)
    label = source.label_topic or find_label_topic(bag)
    bag.require(*(topic for topic in (image, label) if topic))
    return image, label


def _reason_against(message, decode: Decode) -> str:
    """Why a message cannot be decoded; empty if it can."""
    try:
        decode(message)
    except ImageError as err:
        return str(err)
    return ""


def _size_of(message) -> tuple[int, int] | None:
    """(width, height) px that an image message claims; None if it is corrupt, which decoding will say."""
    if not hasattr(message, "format"):
        return int(message.width), int(message.height)
    try:
        return read_container(message.data, max_pixels=MAX_PIXELS).size
    except ImageError:
        return None
