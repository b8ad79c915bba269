# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Records the segmenter's masks into a bag, as they come."""

from __future__ import annotations

import argparse
from pathlib import Path

from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.messages import label_set_of
from vtseg_ros.errors import ConfigError, ImageError
from vtseg_ros.label_set import LabelSet
from vtseg_ros.msg import LabelMap
from vtseg_ros.nodes.conversions import stamp_ns
from vtseg_ros.nodes.outputs import LATCHED
from vtseg_ros.nodes.process import run_node

# Compressing a large mask may take longer than computing the next ones: they wait here and are not lost.
WAITING = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)


class RecorderNode(Node):
    """Writes `segmentation/mask` (as png) and `segmentation/label_map` into a bag.

    Args:
        bag: folder to make.
    """

    def __init__(self, bag: Path) -> None:
        super().__init__("recorder")
        self._bag = BagWriter(bag)
        self._labels: LabelSet | None = None
        self._begun = False
        self._masks = self.create_subscription(Image, "segmentation/mask", self._on_mask, WAITING)
        self.create_subscription(LabelMap, "segmentation/label_map", self._on_label_map, LATCHED)

    def _on_mask(self, message: Image) -> None:
        try:
            ids = decode_label(message)
        except ImageError as err:
            self.get_logger().error(f"a mask cannot be recorded: {err}", throttle_duration_sec=1.0)
            return
        stamp = stamp_ns(message.header)
        if not self._begun and self._labels is not None:
            # At the first mask's time: the node's clock may be years from the bag's that is played.
            self._begun = True
            self._bag.write_label_map("/segmentation/label_map", self._labels, stamp)
        self._bag.write_label(
            "/segmentation/mask/compressed", ids, stamp, message.header.frame_id, compressed=True
        )

    def _on_label_map(self, message: LabelMap) -> None:
        if self._labels is not None:
            return
        try:
            self._labels = label_set_of(message)
        except ConfigError as err:
            self.get_logger().error(f"the label map cannot be recorded: {err}", throttle_duration_sec=1.0)
            return
        # The segmenter knows of this subscription, and of the masks' before it: nothing is missed from here on.
        self.get_logger().info("recording")

    def close(self) -> None:
        """Record the masks that are waiting, and complete the bag."""
        with self._masks.handle:
            while (taken := self._masks.handle.take_message(Image, False)) is not None:
                self._on_mask(taken[0])
        self._bag.close()


def main() -> int:
    """Entry point of `python -m vtseg_ros.nodes.recorder BAG`."""
    parser = argparse.ArgumentParser(description=RecorderNode.__doc__)
    parser.add_argument("bag", type=Path)
    args = parser.parse_args()
    return run_node(lambda: RecorderNode(args.bag), [])


if __name__ == "__main__":
    raise SystemExit(main())
