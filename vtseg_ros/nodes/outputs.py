# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the segmenter publishes for one camera."""

from __future__ import annotations

import numpy as np
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from vtseg_ros.image_ops import colorize, overlay
from vtseg_ros.label_set import LabelSet
from vtseg_ros.msg import LabelMap, SegmentationStatus
from vtseg_ros.nodes.conversions import scale_camera_info, to_image, to_jpeg, to_label_map, to_png

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # not part of every installation; LabelMap is published always
    LabelInfo = None

IMAGES = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
STATUS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


class Outputs:
    """Publishers of one camera; pictures are made only for topics that somebody subscribes to.

    Args:
        node: the segmenter.
        camera: name; empty for the only one.
    """

    def __init__(self, node: LifecycleNode, camera: str) -> None:
        self._node, self.camera = node, camera
        prefix = f"{camera}/segmentation" if camera else "segmentation"

        def publisher(kind: type, name: str, qos: QoSProfile = IMAGES):
            return node.create_lifecycle_publisher(kind, f"{prefix}/{name}", qos)

        self.mask = publisher(Image, "mask")
        self.png = publisher(CompressedImage, "mask/compressed")
        self.confidence = publisher(Image, "confidence")
        self.color = publisher(Image, "color")
        self.color_jpeg = publisher(CompressedImage, "color/compressed")
        self.overlay = publisher(Image, "overlay")
        self.overlay_jpeg = publisher(CompressedImage, "overlay/compressed")
        self.camera_info = publisher(CameraInfo, "camera_info")
        self.status = publisher(SegmentationStatus, "status", STATUS)
        self.label_map = publisher(LabelMap, "label_map", LATCHED)
        self.label_info = publisher(LabelInfo, "label_info", LATCHED) if LabelInfo else None
        self.latest_info: CameraInfo | None = None

    def publish_labels(self, labels: LabelSet) -> None:
        """Publish the class list, latched."""
        header = Header(stamp=self._node.get_clock().now().to_msg())
        self.label_map.publish(to_label_map(labels, header))
        if self.label_info:
            classes = [
                VisionClass(class_id=index, class_name=name) for index, name in enumerate(labels.names)
            ]
            self.label_info.publish(LabelInfo(header=header, class_map=classes, threshold=0.0))

    def publish_result(
        self,
        header: Header,
        image: np.ndarray,
        mask: np.ndarray,
        confidence: np.ndarray,
        labels: LabelSet,
        *,
        alpha: float,
        jpeg_quality: int,
    ) -> None:
        """Publish the outputs of one frame, all with its header.

        Args:
            header: Stamp and frame_id of the newest window frame.
            image: (H, W, 3) uint8 RGB, from the camera.
            mask: (h, w) uint8 class ids; 255 = no class.
            confidence: (h, w) uint8, 255 = certain; empty if nobody subscribed to it when the frame was processed.
            labels: Class list of the mask.
            alpha: Share of the colour in the overlay, 0..1.
            jpeg_quality: Quality of the compressed overlay and colours, 1..100.
        """
        # First what every consumer waits for.
        self.mask.publish(to_image(mask, "mono8", header))
        if self.latest_info is not None:
            size = (mask.shape[1], mask.shape[0])
            self.camera_info.publish(scale_camera_info(self.latest_info, size, header))
        if confidence.size and self.confidence_wanted:
            self.confidence.publish(to_image(confidence, "mono8", header))
        for raw, jpeg, paint in (
            (self.color, self.color_jpeg, lambda: colorize(mask, labels)),
            (self.overlay, self.overlay_jpeg, lambda: overlay(image, mask, labels, alpha)),
        ):
            wanted = _wanted(raw), _wanted(jpeg)
            rgb = paint() if any(wanted) else None
            if wanted[0]:
                raw.publish(to_image(rgb, "rgb8", header))
            if wanted[1]:
                jpeg.publish(to_jpeg(rgb, jpeg_quality, header))
        if _wanted(self.png):
            self.png.publish(to_png(mask, header))

    @property
    def confidence_wanted(self) -> bool:
        """Whether somebody subscribes to the confidence."""
        return _wanted(self.confidence)

    def destroy(self) -> None:
        """Destroy all publishers."""
        for publisher in vars(self).values():
            if hasattr(publisher, "get_subscription_count"):
                self._node.destroy_lifecycle_publisher(publisher)


def _wanted(publisher) -> bool:
    return publisher.get_subscription_count() > 0
