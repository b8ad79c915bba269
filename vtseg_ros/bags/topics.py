# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Which topics of a bag are what: the camera's images, their labels, and the classes of the labels."""

from __future__ import annotations

from vtseg_ros.bags.bag import BagReader
from vtseg_ros.bags.messages import COMPRESSED_IMAGE, IMAGE, LABEL_MAP, label_set_of
from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.label_set import LabelSet
from vtseg_ros.topic_names import is_of_segmenter

_TRANSPORTS = ("/compressed", "/compressedDepth", "/zstd", "/theora", "/ffmpeg")
"""What image_transport puts behind a camera's topic."""
_UNREADABLE = _TRANSPORTS[1:]


def base_topic(topic: str) -> str:
    """The topic of a camera of which `topic` may be a transport."""
    return next((topic.removesuffix(one) for one in _TRANSPORTS if topic.endswith(one)), topic)


def find_image_topic(bag: BagReader) -> str:
    """The topic of the camera's images: none of labels, masks, confidences, depth, flow, overlays and a segmenter's.

    Topics without a message are left out. Of several transports of one camera the one with the most messages is taken,
    of equal ones the raw images, since they have lost nothing.

    Raises:
        BagError: if there is no camera or more than one; names them.
    """
    others = ("label", "mask", "confidence", "depth", "flow", "overlay")
    images = [
        name
        for name in image_topics(bag)
        if not is_of_segmenter(name) and not any(word in name for word in others)
    ]
    filled = [name for name in images if bag.topics[name].count]
    cameras = {base_topic(name) for name in filled}
    if len(cameras) > 1:
        raise BagError(f"bag {bag.path} has several image topics: {', '.join(filled)}. Name one")
    if cameras:
        return min(filled, key=lambda name: (name.endswith(_UNREADABLE), -bag.topics[name].count, len(name)))
    if images:
        raise BagError(f"bag {bag.path} has no message on {', '.join(images)}")
    all_images = image_topics(bag)
    if all_images:
        raise BagError(
            f"bag {bag.path} has no topic that looks like a camera's images. Images are on "
            f"{', '.join(all_images)}: name one"
        )
    raise BagError(f"bag {bag.path} has no image topic. It has: {', '.join(bag.topics) or 'no topics'}")


def find_label_topic(bag: BagReader) -> str | None:
    """The bag's image topic with `label` in its name, or None.

    Topics without a message are left out. Two transports with equally many messages are one topic; others may hold
    different labels.

    Raises:
        BagError: if there are several; names them.
    """
    labels = [
        name
        for name in image_topics(bag)
        if "label" in name and not is_of_segmenter(name) and bag.topics[name].count
    ]
    if len({(base_topic(name), bag.topics[name].count) for name in labels}) > 1:
        raise BagError(f"bag {bag.path} has several label topics: {', '.join(labels)}. Name one")
    return min(labels, key=len) if labels else None


def image_topics(bag: BagReader) -> list[str]:
    """Topics of images, raw or compressed, whatever they show."""
    return [name for name, info in bag.topics.items() if info.msgtype in (IMAGE, COMPRESSED_IMAGE)]


def read_label_set(bag: BagReader, *, of_masks: bool = False) -> LabelSet | None:
    """The class list of the labels in a bag, from its LabelMap topic; None when it has none.

    Args:
        bag: to read.
        of_masks: of the masks that a segmenter published, which may know other classes than the labels.

    Raises:
        BagError: if it is not a class list.
    """
    for name, info in bag.topics.items():
        if info.msgtype == LABEL_MAP and info.count and is_of_segmenter(name) == of_masks:
            for _, _, message in bag.messages([name]):
                try:
                    return label_set_of(message)
                except ConfigError as err:
                    raise BagError(f"bag {bag.path}, topic {name}: {err}") from err
    return None
