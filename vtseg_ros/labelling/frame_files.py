"""Frames of a bag as PNG files for labelling; their names contain the header stamps."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path

import cv2
import numpy as np

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.image_messages import ImageDecoder
from vtseg_ros.bags.messages import header_stamp, stamp_of
from vtseg_ros.errors import BagError, ImageError


def read_frames(bag: BagReader, topic: str, chosen: Container[int]) -> Iterator[tuple[int, np.ndarray | str]]:
    """Read some images of a topic.

    Args:
        bag: Bag to read.
        topic: Image topic.
        chosen: Numbers of the messages to read, from 0.

    Yields:
        Header stamp (ns) and (H, W, 3) uint8 RGB; or bag time (ns) and the reason why the message cannot be used.
    """
    seen: set[int] = set()
    decode = ImageDecoder(topic)
    for number, (_, _, time_ns, data) in enumerate(bag.raw([topic])):
        if number not in chosen:
            continue
        try:
            stamp = header_stamp(data)
            if stamp <= 0:
                raise ImageError(
                    f"header stamp is {'negative' if stamp else 'zero'}; labels are matched by stamp"
                )
            if stamp in seen:
                raise ImageError("another frame has the same stamp")
            message = bag.read(topic, time_ns, stamp)
            assert stamp_of(message) == stamp
            image = decode(message)
        except (ImageError, BagError) as err:
            yield time_ns, str(err)
            continue
        seen.add(stamp)
        yield stamp, image


def write_frame(path: Path, rgb: np.ndarray) -> None:
    """Write a new PNG file.

    Args:
        path: File to create.
        rgb: (H, W, 3) uint8 RGB.

    Raises:
        FileExistsError: If the file exists.
    """
    payload = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
    with path.open("xb") as file:
        file.write(payload)
