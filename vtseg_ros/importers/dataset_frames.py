# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Frames of a data set on disk, and writing them to a bag."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.containers import read_container
from vtseg_ros.bags.image_messages import MAX_PIXELS, decode_file
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, compressed_message
from vtseg_ros.errors import ConfigError, ImageError
from vtseg_ros.files import MAX_IMAGE_BYTES, read_limited
from vtseg_ros.image_ops import resize_rgb
from vtseg_ros.importers.exif import UPRIGHT, orientation_of, turned
from vtseg_ros.label_set import LabelSet

IMAGE_TOPIC, LABEL_TOPIC = "/camera/image/compressed", "/camera/label/compressed"
LABEL_MAP_TOPIC = "/camera/label_map"
START_NS = 1_000_000_000_000
SEQUENCE_NS = 1_000_000_000_000
"""Distance between the starts of sequences, ns; no window extends over two of them."""


@dataclass(frozen=True)
class DataFrame:
    """A frame of a data set.

    Attributes:
        image: A png or jpeg file.
        stamp_ns: Time of the frame, ns.
        frame_id: Name of its sequence.
        label: File of its label; None = unlabelled.
        ids: Function from the label file to (H, W) uint8 class ids; raises ImageError. None = unlabelled.
        upright: Rotate the image according to its EXIF orientation, which robot cameras do not set.
    """

    image: Path
    stamp_ns: int
    frame_id: str
    label: Path | None = None
    ids: Callable[[Path], np.ndarray] | None = None
    upright: bool = False


def require_folder(path: Path, what: str) -> Path:
    """Check that a path is a folder and return it.

    Args:
        path: Path to check.
        what: Expected content, for the error.

    Raises:
        ConfigError: If it is not a folder.
    """
    if not path.is_dir():
        raise ConfigError(f"{path} is not a folder; expected {what}")
    return path


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Return a key that sorts names by the numbers in them: frame2 before frame10."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def stamp_of_frame(sequence: int, number: int, rate_hz: float) -> int:
    """Return the stamp (ns) of a frame by the number of its sequence, its number in the sequence and the rate (Hz)."""
    return START_NS + sequence * SEQUENCE_NS + round(number * 1e9 / rate_hz)


def write_frames(
    out: Path,
    frames: Sequence[DataFrame],
    labels: LabelSet | None,
    *,
    size: tuple[int, int] | None = None,
    jpeg: bool = False,
    storage: str = "mcap",
    on_frame: Callable[[], None] = lambda: None,
) -> None:
    """Write a bag of frames in the order of their stamps.

    Image files are copied byte by byte, without what follows their end, unless they are resized, rotated or stored as
    jpeg.

    Args:
        out: Folder to create.
        frames: Frames to write.
        labels: Class list of the ids; None = no class list and no labels.
        size: (width, height) px to resize images and labels to; None = not resized.
        jpeg: Store images as jpeg of quality 95.
        storage: `mcap` or `sqlite3`.
        on_frame: Called after each frame.

    Raises:
        ConfigError: If there is nothing to write, or a file cannot be used; names it. `out` is removed then.
        BagError: If the bag cannot be written.
    """
    if not frames:
        raise ConfigError(f"there is no frame to write to {out}")
    frames = sorted(frames, key=lambda frame: frame.stamp_ns)
    for before, after in zip(frames, frames[1:]):
        if before.stamp_ns == after.stamp_ns:
            raise ConfigError(f"{before.image} and {after.image} are the same frame")
    with BagWriter(out, storage) as bag:
        if labels is not None:
            bag.write_label_map(LABEL_MAP_TOPIC, labels, frames[0].stamp_ns)
        for frame in frames:
            file = frame.image
            try:
                written = _write_image(bag, frame, size, jpeg)
                if frame.label is not None and frame.ids is not None and labels is not None:
                    file = frame.label
                    _write_label(bag, frame, frame.ids(file), written, size, len(labels))
            except ImageError as err:
                raise ConfigError(f"{file}: {err}") from err
            on_frame()


@dataclass(frozen=True)
class _Written:
    """An image file in the bag: (width, height) px as stored and as displayed, before it was resized."""

    stored: tuple[int, int]
    shown: tuple[int, int]


def _write_image(bag: BagWriter, frame: DataFrame, size: tuple[int, int] | None, jpeg: bool) -> _Written:
    data = np.frombuffer(read_bytes(frame.image), np.uint8)
    header = read_container(data, max_pixels=MAX_PIXELS)
    rgb, data, kind = decode_file(data, header), data[: header.end], header.kind
    orientation = orientation_of(data) if frame.upright else UPRIGHT
    shown = header.size if orientation < 5 else header.size[::-1]
    if (size and size != shown) or (jpeg and kind != "jpeg") or orientation != UPRIGHT:
        rgb = turned(rgb, orientation)
        if size:
            rgb = resize_rgb(rgb, size)
        if jpeg:
            bag.write_image(IMAGE_TOPIC, rgb, frame.stamp_ns, frame.frame_id, compressed=True)
            return _Written(header.size, shown)
        data, kind = cv2.imencode(".png", rgb[..., ::-1])[1].reshape(-1), "png"
    message = compressed_message(data, f"rgb8; {kind} compressed bgr8", frame.stamp_ns, frame.frame_id)
    bag.write(IMAGE_TOPIC, COMPRESSED_IMAGE, message, frame.stamp_ns)
    return _Written(header.size, shown)


def _write_label(
    bag: BagWriter,
    frame: DataFrame,
    ids: np.ndarray,
    image: _Written,
    size: tuple[int, int] | None,
    classes: int,
) -> None:
    own = (ids.shape[1], ids.shape[0])
    if own != image.shown:
        text = f"it has {own[0]}x{own[1]} px, its image {frame.image.name} {image.shown[0]}x{image.shown[1]}"
        if own == image.stored:
            text += ", rotated by its EXIF orientation. Label photos as viewers display them, or remove the orientation"
        raise ImageError(text)
    highest = int(ids[ids != 255].max(initial=0))
    if highest >= classes:
        raise ImageError(f"class id {highest} is not in the list of {classes} classes")
    if size and size != own:
        ids = cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST_EXACT)
    bag.write_label(LABEL_TOPIC, ids, frame.stamp_ns, frame.frame_id, compressed=True)


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        ImageError: If it cannot be read.
    """
    try:
        if path.is_fifo():
            raise ImageError("it is a pipe, and reading it might wait forever; expected a file")
        return read_limited(path, MAX_IMAGE_BYTES)
    except OSError as err:
        raise ImageError(f"the file cannot be read: {err.strerror}") from err
