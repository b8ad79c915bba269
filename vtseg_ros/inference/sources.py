# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Sequences of frames that the video predictor reads: bags, images, video files, streams and cameras, arrays."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.containers import read_container
from vtseg_ros.bags.image_messages import MAX_PIXELS, ImageDecoder, decode_file
from vtseg_ros.bags.messages import stamp_of
from vtseg_ros.bags.storage_files import holds_bag
from vtseg_ros.bags.topics import require_image_topic
from vtseg_ros.errors import ConfigError, ImageError
from vtseg_ros.importers.dataset_frames import read_bytes
from vtseg_ros.importers.exif import orientation_of, turned
from vtseg_ros.importers.image_folder import choose_images, find_frames
from vtseg_ros.video.live import LiveReader, is_live
from vtseg_ros.video.reader import VideoReader

FIRST_STAMP_NS = 1_000_000_000
"""Stamp of the first frame of a video, ns: a stamp of zero means no stamp."""


@dataclass(frozen=True)
class SourceFrame:
    """A frame of a sequence.

    Attributes:
        image: (H, W, 3) uint8 RGB; None if it cannot be decoded.
        stamp_ns: header stamp; None = no stamp, and no gap to the previous frame.
        frame_id: of its header.
        error: reason why there is no image.
    """

    image: np.ndarray | None
    stamp_ns: int | None = None
    frame_id: str = ""
    error: ImageError | None = None


def frames_of(source: str | os.PathLike[str] | Iterable[np.ndarray]) -> Iterator[SourceFrame]:
    """Read a sequence.

    Args:
        source: a bag's folder or file (its only image topic), a folder or a glob (`run1/*.png`) of png and jpeg files
            in the order of their names, a video file, a stream's URL or a camera's device (see `video.live`, which skips
            frames that arrive too fast), or images (H, W, 3) uint8 RGB.

    Raises:
        BagError, ConfigError: if it cannot be read.
    """
    if not isinstance(source, (str, os.PathLike)):
        return (SourceFrame(image) for image in source)
    if is_live(os.fspath(source)):
        return _live_frames(os.fspath(source))
    if is_glob(source):
        return _image_frames(image_files(source))
    path = Path(source)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder; expected a video, a folder of images or a bag")
    if holds_bag(path):
        return _bag_frames(path)
    return _image_frames(image_files(path)) if path.is_dir() else _video_frames(path)


def is_glob(source: str | os.PathLike[str]) -> bool:
    """Return whether a source is a pattern for files, and not a path that exists."""
    return glob.has_magic(os.fspath(source)) and not Path(source).exists()


def image_files(source: str | os.PathLike[str]) -> list[Path]:
    """Return the png and jpeg files of a folder or a glob, sorted by the numbers in their names.

    Raises:
        ConfigError: if there is none.
    """
    if not is_glob(source):
        return [frame.image for frame in find_frames(Path(source), rate_hz=1.0, frame_id="")]
    found = (Path(name) for name in glob.glob(os.fspath(source), recursive=True))
    return choose_images(source, found)


def read_image(path: Path) -> np.ndarray:
    """Return the pixels of a png or jpeg file, (H, W, 3) uint8 RGB, rotated by its EXIF orientation.

    Raises:
        ImageError: if it cannot be decoded.
    """
    try:
        data = np.frombuffer(read_bytes(path), np.uint8)
        rgb = decode_file(data, read_container(data, max_pixels=MAX_PIXELS))
        return np.ascontiguousarray(turned(rgb, orientation_of(data)))
    except ImageError as err:
        raise ImageError(f"{path}: {err}") from err


def _bag_frames(path: Path) -> Iterator[SourceFrame]:
    with BagReader(path) as bag:
        topic = require_image_topic(bag)
        decode = ImageDecoder(topic)
        corrupt: list[ImageError] = []
        messages = bag.messages([topic], on_corrupt=lambda *found: corrupt.append(ImageError(found[2])))
        for _, _, message in messages:
            yield from (SourceFrame(None, error=error) for error in corrupt)
            corrupt.clear()
            header = stamp_of(message), message.header.frame_id
            try:
                frame = SourceFrame(decode(message), *header)
            except ImageError as err:
                frame = SourceFrame(None, *header, error=err)
            yield frame
        yield from (SourceFrame(None, error=error) for error in corrupt)


def _image_frames(paths: list[Path]) -> Iterator[SourceFrame]:
    for path in paths:
        try:
            frame = SourceFrame(read_image(path))
        except ImageError as err:
            frame = SourceFrame(None, error=err)
        yield frame


def _live_frames(source: str) -> Iterator[SourceFrame]:
    with LiveReader(source) as stream:
        for frame in stream.frames():
            yield SourceFrame(frame.image, frame.stamp_ns)
        if stream.damage:
            yield SourceFrame(None, error=ImageError(f"{source}: {stream.damage}"))


def _video_frames(path: Path) -> Iterator[SourceFrame]:
    with VideoReader(path) as video:
        for frame in video.frames():
            yield SourceFrame(frame.image, FIRST_STAMP_NS + frame.time_ns)
        if video.damage:
            yield SourceFrame(None, error=ImageError(f"{path}: {video.damage}"))
