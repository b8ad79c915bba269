# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Reference for the overhead: a bare rclpy node that returns a prepared image of the size of a mask for each image."""

from __future__ import annotations

import array

import rclpy
from graph import RELIABLE
from rclpy.node import Node
from sensor_msgs.msg import Image


class Relay(Node):
    """Publish on relay/mask for each image on relay/image, with its header."""

    def __init__(self) -> None:
        super().__init__("relay")
        self._publisher = self.create_publisher(Image, "relay/mask", RELIABLE)
        self.create_subscription(Image, "relay/image", self._on_image, RELIABLE)
        self._mask = Image(encoding="mono8")

    def _on_image(self, message: Image) -> None:
        if self._mask.width != message.width:
            self._mask.width = self._mask.step = message.width
            self._mask.height = message.height
            self._mask.data = array.array("B", bytes(message.width * message.height))
        self._mask.header = message.header
        self._publisher.publish(self._mask)


def main() -> None:
    rclpy.init()
    try:
        rclpy.spin(Relay())
    except (KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
        pass


if __name__ == "__main__":
    main()
