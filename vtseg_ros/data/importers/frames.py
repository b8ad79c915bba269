"""Frames of a data set on disk, and their way into a bag."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vtseg_ros.data.bags import BagWriter
from vtseg_ros.data.containers import JPEG_MAGIC, check_container
from vtseg_ros.data.images import COLOR_AS_STORED, MAX_PIXELS
from vtseg_ros.data.messages import COMPRESSED_IMAGE, compressed_message
from vtseg_ros.engine.pixels import resize_rgb
from vtseg_ros.errors import ConfigError, ImageError
from vtseg_ros.labels import LabelSet

IMAGE_TOPIC, LABEL_TOPIC = "/camera/image/compressed", "/camera/label/compressed"
LABEL_MAP_TOPIC = "/camera/label_map"
START_NS = 1_000_000_000_000
SEQUENCE_NS = 1_000_000_000_000
"""Sequences start this far apart, so that no window reaches from one into another."""


@dataclass(frozen=True)
class DataFrame:
    """A frame of a data set.

    Attributes:
        image: png or jpeg file.
        stamp_ns: when it was taken, ns.
        frame_id: the sequence it belongs to.
        label: file of its label; None = unlabelled.
        ids: label file -> (H, W) uint8 class ids; raises ImageError.
    """

    image: Path
    stamp_ns: int
    frame_id: str
    label: Path | None = None
    ids: Callable[[Path], np.ndarray] | None = None


def require_folder(path: Path, what: str) -> Path:
    """The path, when it is a folder; ConfigError saying what was expected otherwise."""
    if not path.is_dir():
        raise ConfigError(f"{path} is not a folder. Expected: {what}")
    return path


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sorts names by the numbers in them: frame2 before frame10."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def stamp_of_frame(sequence: int, number: int, rate_hz: float) -> int:
    """ns of the number-th frame of the sequence-th sequence."""
    return START_NS + sequence * SEQUENCE_NS + round(number * 1e9 / rate_hz)


def write_frames(
    out: Path, frames: Sequence[DataFrame], labels: LabelSet | None, *, size: tuple[int, int] | None = None,
    jpeg: bool = False, storage: str = "mcap", on_frame: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Write a bag of frames in the order of their stamps.

    Image files go in as they are, byte by byte, unless they are to be resized or turned into jpeg.

    Args:
        out: folder to make.
        frames: what to write.
        labels: class list of the ids; None = there is none, and no label.
        size: (width, height) px to resize images and labels to; None = as they are.
        jpeg: store images as jpeg of quality 95.
        storage: `mcap` or `sqlite3`.
        on_frame: called after each frame.

    Raises:
        ConfigError: if there is nothing to write, or a file cannot be used; names it. Nothing is left then.
        BagError: if the bag cannot be written.
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
                own_size = _write_image(bag, frame, size, jpeg)
                if frame.label is not None:
                    file = frame.label
                    _write_label(bag, frame, own_size, size, len(labels))
            except ImageError as err:
                raise ConfigError(f"{file}: {err}") from err
            on_frame()


def _write_image(
    bag: BagWriter, frame: DataFrame, size: tuple[int, int] | None, jpeg: bool
) -> tuple[int, int]:
    """Returns (width, height) px of the file."""
    data = np.frombuffer(read_bytes(frame.image), np.uint8)
    own_size = check_container(data, max_pixels=MAX_PIXELS)
    kind = "jpeg" if data[:2].tobytes() == JPEG_MAGIC else "png"
    if (size and size != own_size) or (jpeg and kind != "jpeg"):
        bgr = cv2.imdecode(data, COLOR_AS_STORED)
        if bgr is None:
            raise ImageError("the file cannot be decoded")
        rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        if size:
            rgb = resize_rgb(rgb, size)
        if jpeg:
            bag.write_image(IMAGE_TOPIC, rgb, frame.stamp_ns, frame.frame_id, compressed=True)
            return own_size
        data, kind = cv2.imencode(".png", rgb[..., ::-1])[1].reshape(-1), "png"
    message = compressed_message(data, f"rgb8; {kind} compressed bgr8", frame.stamp_ns, frame.frame_id)
    bag.write(IMAGE_TOPIC, COMPRESSED_IMAGE, message, frame.stamp_ns)
    return own_size


def _write_label(
    bag: BagWriter, frame: DataFrame, own_size: tuple[int, int], size: tuple[int, int] | None, classes: int
) -> None:
    ids = frame.ids(frame.label)
    if (ids.shape[1], ids.shape[0]) != own_size:
        raise ImageError(
            f"it has {ids.shape[1]}x{ids.shape[0]} px, its image {frame.image.name} {own_size[0]}x{own_size[1]}"
        )
    highest = int(ids[ids != 255].max(initial=0))
    if highest >= classes:
        raise ImageError(f"class id {highest} is not in the list of {classes} classes")
    if size and size != own_size:
        ids = cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST_EXACT)
    bag.write_label(LABEL_TOPIC, ids, frame.stamp_ns, frame.frame_id, compressed=True)


def read_bytes(path: Path) -> bytes:
    """A file's content; ImageError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as err:
        raise ImageError(f"the file cannot be read: {err.strerror}") from err
