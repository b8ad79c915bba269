"""Windows of consecutive frames from bags, for training and evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from vtseg_ros.data.bags import BagReader, find_topics
from vtseg_ros.data.images import decode_any, decode_label
from vtseg_ros.data.messages import NS
from vtseg_ros.engine.pixels import resize_rgb
from vtseg_ros.errors import BagError, ImageError
from vtseg_ros.labels import IGNORE


@dataclass(frozen=True)
class BagSource:
    """Where frames come from.

    Args:
        path: a bag.
        image_topic, label_topic: empty = found by type and name (see `find_topics`).
        start_s, end_s: part of the bag, seconds after its first message; end 0 = its end. Leave a guard interval
            between parts that go into different splits, so that no scene is in both.
    """

    path: Path
    image_topic: str = ""
    label_topic: str = ""
    start_s: float = 0.0
    end_s: float = 0.0


@dataclass(frozen=True)
class Frame:
    """A frame's place: header stamp, and bag times of its image and (if any) label message."""

    source: int
    stamp_ns: int
    image_ns: int
    label_ns: int | None


@dataclass
class CorruptLog:
    """Messages that could not be used: (bag, topic, time in ns, reason)."""

    entries: list[tuple[str, str, int, str]] = field(default_factory=list)

    def add(self, bag: str, topic: str, time_ns: int, reason: str) -> None:
        self.entries.append((bag, topic, time_ns, reason))


def header_stamp(data: bytes) -> int:
    """Nanoseconds of the header stamp of a serialized message whose first field is a std_msgs/Header."""
    order = "little" if data[1] & 1 else "big"
    sec = int.from_bytes(data[4:8], order, signed=True)
    return sec * NS + int.from_bytes(data[8:12], order)


class FrameIndex:
    """All frames of some bags in order, cut into sequences where time jumps.

    Args:
        sources: bags.
        max_gap_s: a longer pause, or a stamp that does not grow, starts a new sequence.
        stride: keep every n-th frame of a sequence (labels of the others are lost).
        need_labels: refuse bags without labels.

    Attributes:
        frames: all frames.
        sequences: (start, stop) indices into `frames`.
        topics: (image topic, label topic or None) per source.

    Raises:
        BagError: for a bag without frames, or without labels where they are needed.
    """

    def __init__(
        self, sources: list[BagSource], *, max_gap_s: float = 1.0, stride: int = 1, need_labels: bool = True
    ) -> None:
        self.sources = sources
        self.topics: list[tuple[str, str | None]] = []
        self.frames: list[Frame] = []
        self.sequences: list[tuple[int, int]] = []
        for index, source in enumerate(sources):
            self._cut(self._scan(index, source, need_labels), max_gap_s, stride)

    def _scan(self, index: int, source: BagSource, need_labels: bool) -> list[Frame]:
        with BagReader(source.path) as bag:
            if source.image_topic:
                image, label = source.image_topic, source.label_topic or None
                if not label and need_labels:
                    label = find_topics(bag)[1]
            else:
                image, label = find_topics(bag)
                label = source.label_topic or label
            bag.require(*(topic for topic in (image, label) if topic))
            if need_labels and not label:
                raise BagError(f"bag {source.path} has no label topic. Add one with `vtseg labels merge`")
            start = bag.start_ns + round(source.start_s * NS)
            stop = bag.start_ns + round(source.end_s * NS) if source.end_s else None
            images: dict[int, int] = {}
            labels: dict[int, int] = {}
            for topic, _, time_ns, data in bag.raw([t for t in (image, label) if t], start, stop):
                (images if topic == image else labels).setdefault(header_stamp(data), time_ns)
        self.topics.append((image, label))
        frames = [Frame(index, stamp, time_ns, labels.get(stamp)) for stamp, time_ns in images.items()]
        if not frames:
            raise BagError(f"bag {source.path} has no image on {image} in the chosen part")
        if need_labels and not any(frame.label_ns is not None for frame in frames):
            raise BagError(
                f"bag {source.path}: no label on {label} has the header stamp of an image on {image}. "
                "Labels and images must have equal stamps"
            )
        return frames

    def _cut(self, frames: list[Frame], max_gap_s: float, stride: int) -> None:
        run: list[Frame] = []
        for frame in [*frames, None]:
            gap = frame is None or (run and not 0 < frame.stamp_ns - run[-1].stamp_ns <= max_gap_s * NS)
            if gap and run:
                kept = run[::stride]
                self.sequences.append((len(self.frames), len(self.frames) + len(kept)))
                self.frames.extend(kept)
                run = []
            if frame is not None:
                run.append(frame)

    def windows(self, length: int, *, label_every: int = 1) -> list[list[int]]:
        """Frame indices of windows whose newest frame has a label; shorter at the start of a sequence.

        Args:
            length: frames k of a window.
            label_every: use only every n-th labelled frame of a sequence, to see how few labels do.
        """
        found = []
        for start, stop in self.sequences:
            labelled = [i for i in range(start, stop) if self.frames[i].label_ns is not None]
            for newest in labelled[::label_every]:
                found.append(list(range(max(start, newest - length + 1), newest + 1)))
        return found


class FrameStore:
    """Pixels of indexed frames by random access; opens the bags anew in each process.

    Args:
        index: the frames.
        size: (width, height) that images and labels are resized to; None = as they are.
        cache_dir: folder for decoded frames, shared by all processes; needs `size`. None = decode each time.
    """

    def __init__(
        self, index: FrameIndex, *, size: tuple[int, int] | None = None, cache_dir: Path | None = None
    ) -> None:
        self.index, self.size = index, size
        self.corrupt = CorruptLog()
        self._bags: dict[int, BagReader] = {}
        self._cache = None
        if cache_dir is not None:
            if size is None:
                raise ValueError("a cache needs one size for all frames")
            self._cache = self._open_cache(Path(cache_dir))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_bags": {}}

    def __len__(self) -> int:
        return len(self.index.frames)

    def _bag(self, source: int) -> BagReader:
        if source not in self._bags:
            self._bags[source] = BagReader(self.index.sources[source].path)
        return self._bags[source]

    def image(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB. Raises ImageError or BagError for a corrupt message."""
        if self._cache is not None:
            return self._cache[number, ..., :3]
        return self._decode_image(number)

    def label(self, number: int) -> np.ndarray | None:
        """(H, W) uint8 class ids, or None for a frame without a label."""
        if self.index.frames[number].label_ns is None:
            return None
        if self._cache is not None:
            return self._cache[number, ..., 3]
        return self._decode_label(number)

    def _decode_image(self, number: int) -> np.ndarray:
        frame = self.index.frames[number]
        topic = self.index.topics[frame.source][0]
        rgb = decode_any(self._bag(frame.source).read(topic, frame.image_ns))
        return resize_rgb(rgb, self.size) if self.size else rgb

    def _decode_label(self, number: int) -> np.ndarray:
        frame = self.index.frames[number]
        topic = self.index.topics[frame.source][1]
        ids = decode_label(self._bag(frame.source).read(topic, frame.label_ns))
        if self.size and (ids.shape[1], ids.shape[0]) != self.size:
            ids = cv2.resize(ids, self.size, interpolation=cv2.INTER_NEAREST)
        return ids

    def _open_cache(self, folder: Path) -> np.ndarray:
        width, height = self.size
        key = hashlib.sha256(repr((self.size, self.index.sources, self.index.frames)).encode()).hexdigest()[
            :16
        ]
        path = folder / f"frames_{key}.npy"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            shape = (len(self), height, width, 4)
            pixels = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
            for number in range(len(self)):
                try:
                    label = (
                        self._decode_label(number)
                        if self.index.frames[number].label_ns is not None
                        else IGNORE
                    )
                    pixels[number, ..., :3] = self._decode_image(number)
                    pixels[number, ..., 3] = label
                except (ImageError, BagError) as err:
                    self.report(number, err)
                    pixels[number, ..., :3], pixels[number, ..., 3] = 0, IGNORE
            pixels.flush()
            del pixels
            partial.rename(path)
        return np.load(path, mmap_mode="r")

    def report(self, number: int, err: Exception) -> None:
        """Note a frame that could not be decoded."""
        frame = self.index.frames[number]
        image, label = self.index.topics[frame.source]
        self.corrupt.add(
            str(self.index.sources[frame.source].path), f"{image} or {label}", frame.stamp_ns, str(err)
        )

    def window(self, numbers: list[int], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames of a window; the oldest one is repeated where a sequence began too late, without its label.

        Returns:
            video (length, H, W, 3) uint8 and labels (length, H, W) uint8, 255 where there is none.
        """
        missing = length - len(numbers)
        images = [self.image(number) for number in numbers]
        labels = [self.label(number) for number in numbers]
        empty = np.full(images[0].shape[:2], IGNORE, np.uint8)
        video = [images[0]] * missing + images
        ids = [empty] * missing + [empty if label is None else label for label in labels]
        return np.stack(video), np.stack(ids)


def iterate_sequence(store: FrameStore) -> Iterator[tuple[int, bool]]:
    """(frame number, whether it starts a sequence) in order."""
    for start, stop in store.index.sequences:
        for number in range(start, stop):
            yield number, number == start
