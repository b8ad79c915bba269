# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Read and write bags without ROS: storage, messages, topics and images. Imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtseg_ros.bags.bag_reader import BagReader, TopicInfo
    from vtseg_ros.bags.bag_writer import BagWriter
    from vtseg_ros.bags.image_messages import ImageDecoder, decode_any, decode_float
    from vtseg_ros.bags.label_messages import decode_label
    from vtseg_ros.bags.open_bags import OpenBags
    from vtseg_ros.bags.topics import find_image_topic, find_label_topic, image_topics, read_label_set

PLACES = {
    "bag_reader": ("BagReader", "TopicInfo"),
    "bag_writer": ("BagWriter",),
    "image_messages": ("ImageDecoder", "decode_any", "decode_float"),
    "label_messages": ("decode_label",),
    "open_bags": ("OpenBags",),
    "topics": ("find_image_topic", "find_label_topic", "image_topics", "read_label_set"),
}
"""Public names by their module."""
__all__ = [
    "BagReader",
    "BagWriter",
    "ImageDecoder",
    "OpenBags",
    "TopicInfo",
    "decode_any",
    "decode_float",
    "decode_label",
    "find_image_topic",
    "find_label_topic",
    "image_topics",
    "read_label_set",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first access: nodes decode images without the storage libraries."""
    for module, names in PLACES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
