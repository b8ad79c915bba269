# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Small bags for the tests: known images, labels that identify their frame, and functions that damage them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.messages import NS
from vtseg_ros.label_set import LabelSet

START_NS = 100 * NS
CLASSES = LabelSet.from_names([f"class{i}" for i in range(20)])


def picture(number: int, size: tuple[int, int] = (64, 32)) -> np.ndarray:
    """(H, W, 3) uint8 RGB whose pixels all identify the frame."""
    image = np.zeros((size[1], size[0], 3), np.uint8)
    image[..., 0], image[..., 1] = number, 255 - number
    image[..., 2] = np.arange(size[0], dtype=np.uint8)[None]
    return image


def ids_of(number: int, size: tuple[int, int] = (64, 32)) -> np.ndarray:
    """(H, W) uint8: frame number modulo 20, with a stripe of unlabelled pixels."""
    ids = np.full((size[1], size[0]), number % 20, np.uint8)
    ids[:4] = 255
    return ids


def write_bag(
    path: Path,
    stamps_s,
    *,
    label_stride: int = 1,
    storage: str = "mcap",
    compressed: bool = False,
    size: tuple[int, int] = (64, 32),
    label_map: bool = True,
    label_topic: str = "/camera/label",
) -> Path:
    """A bag of `picture(i)` and, for every n-th frame from the first on, `ids_of(i)`."""
    suffix = "/compressed" if compressed else ""
    with BagWriter(path, storage) as bag:
        if label_map:
            bag.write_label_map("/camera/label_map", CLASSES, START_NS)
        for number, seconds in enumerate(stamps_s):
            stamp = START_NS + round(seconds * NS)
            bag.write_image(
                f"/camera/image{suffix}", picture(number, size), stamp, "cam", compressed=compressed
            )
            if label_stride and number % label_stride == 0:
                bag.write_label(
                    label_topic + suffix, ids_of(number, size), stamp, "cam", compressed=compressed
                )
    return path


def storage_file(bag: Path) -> Path:
    return next(file for file in bag.iterdir() if file.name != "metadata.yaml")


def undecodable_png(ids: np.ndarray) -> np.ndarray:
    """A whole-looking png whose pixels are rubbish."""
    payload = cv2.imencode(".png", ids)[1].reshape(-1).copy()
    place = payload.tobytes().index(b"IDAT") + 4
    payload[place : place + 12] = 0xEE
    return payload
