# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Sequences of frames that the video predictor reads: bags, folders of images, video files, arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtseg_ros.bags.bag import BagReader
from vtseg_ros.bags.containers import read_container
from vtseg_ros.bags.image_messages import MAX_PIXELS, ImageDecoder, decode_file
from vtseg_ros.bags.messages import stamp_of
from vtseg_ros.bags.storage_files import kind_of
from vtseg_ros.bags.topics import find_image_topic
from vtseg_ros.errors import ConfigError, ImageError
from vtseg_ros.importers.dataset_frames import read_bytes
from vtseg_ros.importers.exif import orientation_of, turned
from vtseg_ros.importers.image_folder import find_frames
from vtseg_ros.video.reader import VideoReader

FIRST_STAMP_NS = 1_000_000_000


@dataclass(frozen=True)
class SourceFrame:
    """A frame of a sequence.

    Attributes:
        image: (H, W, 3) uint8 RGB; None where it cannot be decoded.
        stamp_ns: header stamp; None = there is none, frames follow each other without a gap.
        frame_id: of its header.
        error: why there is no image.
    """

    image: np.ndarray | None
    stamp_ns: int | None = None
    frame_id: str = ""
    error: ImageError | None = None


def frames_of(source: str | os.PathLike[str] | Iterable[np.ndarray]) -> Iterator[SourceFrame]:
    """Read a sequence.

    Args:
        source: a bag's folder or file (its only image topic), a folder of png and jpeg files (in the order of their
            names), a video file, or images (H, W, 3) uint8 RGB.

    Raises:
        BagError, ConfigError: if it cannot be read.
    """
    if not isinstance(source, (str, os.PathLike)):
        return (SourceFrame(image) for image in source)
    path = Path(source)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder; expected a video, a folder of images or a bag")
    if not path.is_dir():
        return _bag_frames(path) if kind_of(path.name) else _video_frames(path)
    names = [entry.name for entry in path.iterdir()]
    is_bag = "metadata.yaml" in names or any(kind_of(name) for name in names)
    return _bag_frames(path) if is_bag else _folder_frames(path)


def _bag_frames(path: Path) -> Iterator[SourceFrame]:
    with BagReader(path) as bag:
        topic = find_image_topic(bag)
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


def _folder_frames(path: Path) -> Iterator[SourceFrame]:
    for frame in find_frames(path, rate_hz=1.0, frame_id=""):
        try:
            data = np.frombuffer(read_bytes(frame.image), np.uint8)
            rgb = decode_file(data, read_container(data, max_pixels=MAX_PIXELS))
            yield SourceFrame(np.ascontiguousarray(turned(rgb, orientation_of(data))))
        except ImageError as err:
            yield SourceFrame(None, error=ImageError(f"{frame.image}: {err}"))


def _video_frames(path: Path) -> Iterator[SourceFrame]:
    with VideoReader(path) as video:
        for frame in video.frames():
            # A stamp of zero would mean that there is none.
            yield SourceFrame(frame.image, FIRST_STAMP_NS + frame.time_ns)
        if video.damage:
            yield SourceFrame(None, error=ImageError(f"{path}: {video.damage}"))
