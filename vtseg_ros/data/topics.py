"""Which topics of a bag are what: the camera's images, their labels, and the classes of the labels."""

from __future__ import annotations

from vtseg_ros.data.bags import BagReader
from vtseg_ros.data.messages import COMPRESSED_IMAGE, IMAGE, LABEL_MAP, label_set_of
from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.labels import LabelSet
from vtseg_ros.names import is_of_segmenter


def find_image_topic(bag: BagReader) -> str:
    """The topic of the camera's images: none of labels, masks, confidences, depth, flow, overlays and a segmenter's.

    Raises:
        BagError: if there is no or more than one candidate; names them.
    """
    others = ("label", "mask", "confidence", "depth", "flow", "overlay")
    all_images = image_topics(bag)
    images = [n for n in all_images if not is_of_segmenter(n) and not any(word in n for word in others)]
    if len(images) > 1:
        raise BagError(f"bag {bag.path} has several image topics: {', '.join(images)}. Name one")
    if not images:
        if all_images:
            raise BagError(
                f"bag {bag.path} has no topic that looks like a camera's images. Images are on "
                f"{', '.join(all_images)}: name one"
            )
        raise BagError(f"bag {bag.path} has no image topic. It has: {', '.join(bag.topics) or 'no topics'}")
    return images[0]


def find_label_topic(bag: BagReader) -> str | None:
    """The bag's image topic with `label` in its name, or None; BagError if there are several."""
    labels = [name for name in image_topics(bag) if "label" in name and not is_of_segmenter(name)]
    if len(labels) > 1:
        raise BagError(f"bag {bag.path} has several label topics: {', '.join(labels)}. Name one")
    return labels[0] if labels else None


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
