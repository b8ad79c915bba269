# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Copy a bag and add labels with the stamps, bag times and frame_ids of their images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, PNG_LABEL, compressed_message, stamp_of, typestore
from vtseg_ros.errors import ImageError
from vtseg_ros.label_set import LabelSet
from vtseg_ros.labelling.label_files import LabelFile

LABEL_MAP_TOPIC = "/camera/label_map"


@dataclass(frozen=True)
class ImagePlace:
    """An image of a bag.

    Attributes:
        time_ns: Bag time.
        frame_id: Frame of the camera.
        size: (width, height) px, or the reason why it cannot be decoded.
    """

    time_ns: int
    frame_id: str
    size: tuple[int, int] | str


def place_images(bag: BagReader, topic: str, stamps: set[int]) -> dict[int, ImagePlace]:
    """Return the images with the given header stamps (ns), by stamp."""
    places: dict[int, ImagePlace] = {}
    for _, time_ns, message in bag.messages([topic], on_corrupt=lambda *_: None):
        stamp = stamp_of(message)
        if stamp not in stamps or stamp in places:
            continue
        try:
            image = decode_any(message)
            size: tuple[int, int] | str = (image.shape[1], image.shape[0])
        except ImageError as err:
            size = str(err)
        places[stamp] = ImagePlace(time_ns, message.header.frame_id, size)
    return places


def check_labels(
    files: list[LabelFile], places: dict[int, ImagePlace], taken: set[int]
) -> tuple[list[LabelFile], list[tuple[str, str]]]:
    """Check which label images can be merged.

    Args:
        files: Label images.
        places: Images with their stamps.
        taken: Stamps that already have a label in the bag.

    Returns:
        Label images that can be merged, and (name, reason) of the others.
    """
    good, refused = [], []
    for file in files:
        try:
            _check(file, places.get(file.stamp_ns), file.stamp_ns in taken)
            good.append(file)
        except ImageError as err:
            refused.append((file.name, str(err)))
    return good, refused


def _check(file: LabelFile, place: ImagePlace | None, taken: bool) -> None:
    if place is None:
        raise ImageError(f"the bag has no image with the stamp {file.stamp_ns} ns")
    if taken:
        raise ImageError(f"the bag has a label with the stamp {file.stamp_ns} ns already")
    if isinstance(place.size, str):
        raise ImageError(f"its image in the bag is corrupt: {place.size}")
    ids = file.ids()
    if (ids.shape[1], ids.shape[0]) != place.size:
        raise ImageError(
            f"it has {ids.shape[1]}x{ids.shape[0]} px, its image {place.size[0]}x{place.size[1]}; expected equal sizes"
        )


def merge(
    bag: BagReader,
    out: Path,
    files: list[LabelFile],
    places: dict[int, ImagePlace],
    *,
    topic: str,
    labels: LabelSet | None,
    storage: str,
    on_message: Callable[[], None] = lambda: None,
) -> list[str]:
    """Write a bag with all messages of another one, and a label after each labelled image.

    Args:
        bag: Bag to copy.
        out: Folder to create.
        files: Label images that `check_labels` accepted.
        places: Images with their stamps.
        topic: Topic of the labels, png (sensor_msgs/CompressedImage).
        labels: Class list to write; None = none.
        storage: `mcap` or `sqlite3`.
        on_message: Called for each copied message.

    Returns:
        Topics that are not copied, since neither the bag nor this package has the definition of their type.

    Raises:
        BagError: If the bag cannot be read or written; `out` is removed then.
    """
    lost = [
        name
        for name, info in bag.topics.items()
        if info.msgtype not in typestore().types and info.msgtype not in bag.definitions
    ]
    pending = sorted(files, key=lambda file: (places[file.stamp_ns].time_ns, file.stamp_ns))
    with BagWriter(out, storage) as writer:

        def write_until(time_ns: float) -> None:
            while pending and places[pending[0].stamp_ns].time_ns < time_ns:
                file = pending.pop(0)
                place = places[file.stamp_ns]
                payload = cv2.imencode(".png", file.ids())[1]
                message = compressed_message(payload, PNG_LABEL, file.stamp_ns, place.frame_id)
                writer.write(topic, COMPRESSED_IMAGE, message, place.time_ns)

        if labels is not None:
            writer.write_label_map(LABEL_MAP_TOPIC, labels, bag.start_ns)
        for name, msgtype, time_ns, data in bag.raw([t for t in bag.topics if t not in lost]):
            write_until(time_ns)
            writer.write_raw(
                name,
                msgtype,
                data,
                time_ns,
                definition=bag.definitions.get(msgtype),
                qos=bag.qos[name],
            )
            on_message()
        write_until(math.inf)
    return lost
