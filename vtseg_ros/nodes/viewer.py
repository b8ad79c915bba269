# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A node that logs a running segmenter's topics for the Rerun viewer, for `vtseg view --topics`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import Image

from vtseg_ros.bags.image_messages import ImageDecoder
from vtseg_ros.bags.messages import label_set_of
from vtseg_ros.errors import ConfigError, ImageError
from vtseg_ros.msg import LabelMap, SegmentationStatus
from vtseg_ros.nodes.conversions import stamp_ns
from vtseg_ros.nodes.inputs import INPUT_QOS, ImageInput
from vtseg_ros.nodes.outputs import IMAGES, LATCHED, STATUS
from vtseg_ros.transports import transport_of
from vtseg_ros.viewing import Recording


class ViewerNode(Node):
    """Logs every message at its stamp.

    Args:
        recording: where to.
        image_topic: of the camera's images; its suffix names the transport (`/compressed`, `/zstd`, `/ffmpeg`, `/foxglove`).
        namespace: of the segmenter, or `NAMESPACE/CAMERA` of one with several cameras.
        seconds: sets `finished` after this; None = never.
    """

    def __init__(
        self, recording: Recording, *, image_topic: str, namespace: str = "", seconds: float | None = None
    ) -> None:
        super().__init__("vtseg_view", start_parameter_services=False)
        self.finished = False
        self._recording, self._camera = recording, namespace.strip("/") or "camera"
        warn = self.get_logger().warning
        decoders = {what: ImageDecoder(what, warn) for what in ("image", "mask", "confidence")}
        base = f"/{namespace.strip('/')}/segmentation".replace("//", "/")

        def log(what: str, decode: Callable[[Any], Any], add: Callable[..., None]) -> Callable[[Any], None]:
            def on_message(message: Any) -> None:
                try:
                    add(decode(message), stamp_ns(message.header), self._camera)
                except ImageError as err:
                    self.get_logger().error(f"{what} is left out: {err}", throttle_duration_sec=1.0)

            return on_message

        on_image = log("image", decoders["image"], recording.log_image)
        self._images = ImageInput(
            self, image_topic, transport_of(image_topic), INPUT_QOS["sensor_data"], on_image
        )
        on_mask = log("mask", decoders["mask"].label, recording.log_mask)
        self.create_subscription(Image, f"{base}/mask", on_mask, IMAGES)
        on_confidence = log("confidence", decoders["confidence"].label, recording.log_confidence)
        self.create_subscription(Image, f"{base}/confidence", on_confidence, IMAGES)
        self.create_subscription(SegmentationStatus, f"{base}/status", self._on_status, STATUS)
        self.create_subscription(LabelMap, f"{base}/label_map", self._on_label_map, LATCHED)
        if seconds is not None:
            self.create_timer(seconds, self._finish, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.get_logger().info(f"logging {self.resolve_topic_name(image_topic)} and {base}/*")

    def _finish(self) -> None:
        self.finished = True

    def _on_label_map(self, message: LabelMap) -> None:
        try:
            self._recording.log_labels(label_set_of(message), self._camera)
        except ConfigError as err:
            self.get_logger().error(f"the label map is left out: {err}", throttle_duration_sec=1.0)

    def _on_status(self, message: SegmentationStatus) -> None:
        if message.event == SegmentationStatus.PROCESSED:
            parts = {
                "queue": message.queue_s,
                "preprocess": message.preprocess_s,
                "inference": message.inference_s,
                "total": message.total_s,
            }
            self._recording.log_latency(parts, stamp_ns(message.header), self._camera)

    def close(self) -> None:
        """Unsubscribe from the images; the caller closes the recording."""
        self._images.close()
