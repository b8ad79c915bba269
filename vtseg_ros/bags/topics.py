# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Find the topics of a bag by their role: camera images, labels and the class list."""

from __future__ import annotations

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.messages import LABEL_MAP, label_set_of
from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.label_set import LabelSet
from vtseg_ros.topic_names import is_of_segmenter
from vtseg_ros.transports import (
    BEST_FIRST,
    MSGTYPES,
    UNREADABLE,
    VIDEO_TYPES,
    base_topic,
    transport_of,
)

_CHOOSE_IMAGES = "--image-topic of the command, image_topic of the bag in a training configuration"
_CHOOSE_LABELS = "--label-topic of the command, label_topic of the bag in a training configuration"


def find_image_topic(bag: BagReader) -> str:
    """Find the topic of the camera images.

    Topics of labels, masks, confidences, depth, flow, overlays and of a segmenter, and topics without a message, are
    ignored. If a camera has several transports, the one with the most messages is used. If the numbers are equal, the
    order is: raw images (not lossy), zstd, jpeg or png, and encoded video, whose images depend on each other.

    Args:
        bag: An open bag.

    Returns:
        Name of the topic.

    Raises:
        BagError: If there is no camera or more than one; lists them.
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
        raise BagError(
            f"bag {bag.path} has several image topics: {', '.join(filled)}. Choose one: {_CHOOSE_IMAGES}"
        )
    if cameras:
        return min(
            filled,
            key=lambda name: (
                name.endswith(UNREADABLE),
                -bag.topics[name].count,
                bag.topics[name].msgtype in VIDEO_TYPES,
                BEST_FIRST.index(transport_of(name)),
                len(name),
            ),
        )
    if images:
        raise BagError(f"bag {bag.path} has no message on {', '.join(images)}")
    all_images = image_topics(bag)
    if all_images:
        masks = all(is_of_segmenter(name) or "label" in name or "mask" in name for name in all_images)
        raise BagError(
            f"bag {bag.path}: no camera images; expected a topic of images, got only "
            f"{'masks or labels' if masks else 'other image topics'}: {', '.join(all_images)}. Give the bag of the images, or "
            f"choose one if it has camera images: {_CHOOSE_IMAGES}"
        )
    raise BagError(
        f"bag {bag.path}: no image topic; expected a topic of {', '.join(MSGTYPES)}, got "
        f"{', '.join(f'{name} ({info.msgtype})' for name, info in bag.topics.items()) or 'no topics'}. Record the "
        "camera's images too"
    )


def find_label_topic(bag: BagReader) -> str | None:
    """Find the image topic with `label` in its name.

    Topics without a message are ignored. Two transports of one topic with equally many messages count as one; with
    different numbers they may contain different labels.

    Args:
        bag: An open bag.

    Returns:
        Name of the topic; None if there is none.

    Raises:
        BagError: If there are several; lists them.
    """
    labels = [
        name
        for name in image_topics(bag)
        if "label" in name
        and not is_of_segmenter(name)
        and bag.topics[name].count
        and bag.topics[name].msgtype not in VIDEO_TYPES
    ]
    if len({(base_topic(name), bag.topics[name].count) for name in labels}) > 1:
        raise BagError(
            f"bag {bag.path} has several label topics: {', '.join(labels)}. Choose one: {_CHOOSE_LABELS}"
        )
    return min(labels, key=len) if labels else None


def require_image_topic(bag: BagReader, topic: str = "") -> str:
    """Return the topic to read camera images from.

    Args:
        bag: An open bag.
        topic: Name of the topic; empty = see `find_image_topic`.

    Raises:
        BagError: If the bag has no such topic or no message on it, or there is no camera or more than one.
        ConfigError: If the topic has another type.
    """
    topic = topic or find_image_topic(bag)
    require_images(bag, topic)
    if not bag.topics[topic].count:
        raise BagError(f"bag {bag.path} has no message on {topic}")
    return topic


def require_images(bag: BagReader, *topics: str) -> None:
    """Check that topics are in the bag and have messages of images.

    Raises:
        BagError: For a topic that is not in the bag.
        ConfigError: For a topic of another type.
    """
    bag.require(*topics)
    for topic in topics:
        if topic not in image_topics(bag):
            raise ConfigError(
                f"{topic} is not an image topic; expected {', '.join(MSGTYPES)}, got {bag.topics[topic].msgtype}. "
                f"Choose one of: {', '.join(image_topics(bag)) or 'none in this bag'}"
            )


def image_topics(bag: BagReader) -> list[str]:
    """Return the topics of raw or compressed images and of encoded video, of any content.

    Args:
        bag: An open bag.
    """
    return [name for name, info in bag.topics.items() if info.msgtype in MSGTYPES]


def read_label_set(bag: BagReader, *, of_masks: bool = False) -> LabelSet | None:
    """Read the class list of a bag from its LabelMap topic.

    Args:
        bag: An open bag.
        of_masks: Read the class list of the masks that a segmenter published, which may differ from the labels' list.

    Returns:
        The class list; None if the bag has none.

    Raises:
        BagError: If the message is not a valid class list.
    """
    for name, info in bag.topics.items():
        if info.msgtype == LABEL_MAP and info.count and is_of_segmenter(name) == of_masks:
            for _, _, message in bag.messages([name]):
                try:
                    return label_set_of(message)
                except ConfigError as err:
                    raise BagError(f"bag {bag.path}, topic {name}: {err}") from err
    return None
