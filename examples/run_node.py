# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Run the segmenter in your own process, next to a node that uses its masks."""

import argparse

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image

from vtseg_ros.label_set import STREET
from vtseg_ros.nodes.segmenter import SegmenterNode

ROAD = STREET.names.index("road")  # street_tiny has the classes of the synthetic street


class RoadShare(Node):
    """Log how much of each mask is road."""

    def __init__(self):
        super().__init__("road_share")
        self.create_subscription(Image, "segmentation/mask", self.on_mask, 10)

    def on_mask(self, message):
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, -1)
        share = (rows[:, : message.width] == ROAD).mean()
        self.get_logger().info(f"road: {100 * share:.0f} % of the image")


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--image-topic", default="/camera/image")
parser.add_argument("--checkpoint", default="street_tiny")
args = parser.parse_args()

parameters = {"checkpoint": args.checkpoint, "autostart": "true"}
options = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
rclpy.init(args=["--ros-args", *options, "-r", f"image:={args.image_topic}"])
executor, segmenter = SingleThreadedExecutor(), SegmenterNode()
executor.add_node(segmenter)
executor.add_node(RoadShare())
try:
    executor.spin()
except (KeyboardInterrupt, ExternalShutdownException):
    pass
segmenter.close()  # ends the inference thread
