# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Import video files as a bag of jpeg images with the times of the frames."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, compressed_message
from vtseg_ros.errors import ConfigError
from vtseg_ros.image_ops import resize_rgb
from vtseg_ros.importers.dataset_frames import IMAGE_TOPIC, SEQUENCE_NS, START_NS
from vtseg_ros.video.reader import VideoReader


@dataclass(frozen=True)
class Crop:
    """A part of an image, written `width:height:x:y` as in ffmpeg.

    Attributes:
        width: Width, px.
        height: Height, px.
        x: Left column, px.
        y: Top row, px.
    """

    width: int
    height: int
    x: int
    y: int

    @classmethod
    def parse(cls, text: str) -> Crop:
        """Read `width:height:x:y`.

        Raises:
            ConfigError: If the text has another form or the crop is empty.
        """
        match = re.fullmatch(r"(\d{1,5}):(\d{1,5}):(\d{1,5}):(\d{1,5})", text.strip())
        if not match or 0 in (int(match[1]), int(match[2])):
            raise ConfigError(f"crop: expected WIDTH:HEIGHT:X:Y in px, such as 640:300:0:20, got {text!r}")
        return cls(*map(int, match.groups()))

    def apply(self, image: np.ndarray, path: Path) -> np.ndarray:
        """Crop an image.

        Args:
            image: (H, W, 3) uint8 RGB.
            path: File of the image, for errors.

        Returns:
            (height, width, 3) uint8 RGB, a view.

        Raises:
            ConfigError: If the crop extends beyond the image.
        """
        height, width = image.shape[:2]
        if self.x + self.width > width or self.y + self.height > height:
            raise ConfigError(
                f"{path}: the crop {self.width}:{self.height}:{self.x}:{self.y} extends beyond the image; expected one "
                f"within {width}x{height} px"
            )
        return image[self.y : self.y + self.height, self.x : self.x + self.width]


@dataclass(frozen=True)
class ImportedVideo:
    """Result of the import of a video.

    Attributes:
        path: The video file.
        read: Number of frames read.
        written: Number of frames written.
        damage: Why the video ended early; empty = it did not.
    """

    path: Path
    read: int
    written: int
    damage: str


def import_videos(
    out: Path,
    paths: Sequence[Path],
    *,
    every: int = 1,
    start_s: float = 0.0,
    end_s: float | None = None,
    crop: Crop | None = None,
    size: tuple[int, int] | None = None,
    quality: int = 95,
    storage: str = "mcap",
    on_frame: Callable[[], None] = lambda: None,
) -> list[ImportedVideo]:
    """Write a bag of the frames of videos.

    Each video is a separate sequence, 1000 s or more after the one before; `frame_id` is the stem of the file.

    Args:
        out: Folder to create.
        paths: Video files.
        every: Write every n-th frame.
        start_s: Start of the part of each video, s after its first frame.
        end_s: End of the part of each video, s after its first frame; None = the end of the video.
        crop: Part of the images; None = whole images.
        size: (width, height) px to resize to, after the crop; None = not resized.
        quality: Quality of the jpeg images, 1 to 100.
        storage: `mcap` or `sqlite3`.
        on_frame: Called after each frame that was read.

    Raises:
        ConfigError: If a file is not a video or has no frame, or the crop does not fit. `out` is removed then.
        BagError: If the bag cannot be written.
    """
    done = []
    begin_ns = START_NS
    with BagWriter(out, storage) as bag:
        for path in paths:
            read = written = 0
            last_ns = 0
            with VideoReader(path) as video:
                for frame in video.frames(every):
                    read += 1
                    on_frame()
                    if frame.time_ns < start_s * 1e9:
                        continue
                    if end_s is not None and frame.time_ns > end_s * 1e9:
                        break
                    image = crop.apply(frame.image, path) if crop else frame.image
                    image = resize_rgb(np.ascontiguousarray(image), size) if size else image
                    _write_jpeg(bag, image, begin_ns + frame.time_ns, path.stem, quality)
                    written, last_ns = written + 1, frame.time_ns
                done.append(ImportedVideo(path, read, written, video.damage))
            if not written:
                raise ConfigError(
                    f"{path}: no frame to import; expected at least one within the part asked for, got {read} frames"
                    + (f" ({video.damage})" if video.damage else "")
                )
            begin_ns += (last_ns // SEQUENCE_NS + 2) * SEQUENCE_NS
    return done


def _write_jpeg(bag: BagWriter, image: np.ndarray, stamp_ns: int, frame_id: str, quality: int) -> None:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    payload = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    message = compressed_message(payload, "rgb8; jpeg compressed bgr8", stamp_ns, frame_id)
    bag.write(IMAGE_TOPIC, COMPRESSED_IMAGE, message, stamp_ns)
