# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The cloud node: masks with a registered depth image or a point cloud, to a labelled point cloud."""

from __future__ import annotations

import array
import time
from collections import Counter
from functools import partial
from typing import Any

import cv2
import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, PointCloud2, PointField
from std_msgs.msg import Header

from vtseg_ros.bags.image_messages import ImageDecoder
from vtseg_ros.bags.messages import label_set_of
from vtseg_ros.clouds import (
    FIELDS,
    POINT_STEP,
    Camera,
    CloudFilter,
    cloud_from_depth,
    cloud_from_points,
    decode_depth,
    decode_points,
    transform_matrix,
)
from vtseg_ros.errors import ConfigError, VTSegError
from vtseg_ros.label_set import LabelSet
from vtseg_ros.msg import LabelMap
from vtseg_ros.nodes.conversions import scale_camera_info, stamp_ns
from vtseg_ros.nodes.inputs import INPUT_QOS, ImageInput, image_class, transport_topic
from vtseg_ros.nodes.matching import StampMatcher
from vtseg_ros.nodes.outputs import IMAGES, LATCHED
from vtseg_ros.nodes.parameters import Param, Parameters, locked_while_running
from vtseg_ros.nodes.process import run_node
from vtseg_ros.transports import COMPRESSED_DEPTH, TRANSPORTS, is_video

try:
    from tf2_ros import Buffer, TransformException, TransformListener
except ImportError:  # not on PyPI; `extrinsics` replaces it
    Buffer = None

SILENCE_S = 5.0
POLL_S = 0.2
"""How often the number of subscribers is read."""
POINT_TYPES = {"float32": PointField.FLOAT32, "uint8": PointField.UINT8}


def _extrinsics(text: str) -> np.ndarray | None:
    """Read the parameter `extrinsics`; None if it is empty."""
    if not text.strip():
        return None
    try:
        values = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        values = []
    if len(values) != 7:
        raise ConfigError(f"extrinsics: not a transform; expected 7 numbers x y z qx qy qz qw, got {text!r}")
    return transform_matrix(values[:3], values[3:])


PARAMETERS = (
    Param(
        "source", "depth", "Geometry: a registered depth image or a point cloud.", allowed=("depth", "points")
    ),
    Param(
        "color",
        "class",
        "Field rgb: the colour of the class, the camera image's (topic image), or none (black).",
        allowed=("class", "image", "none"),
    ),
    Param("image_transport", "raw", "Transport of topic image, for color image.", allowed=tuple(TRANSPORTS)),
    Param(
        "depth_transport",
        "raw",
        "Transport of the depth images; compressed and compressedDepth contain png files.",
        allowed=(*(name for name in TRANSPORTS if not is_video(name)), "compressedDepth"),
    ),
    Param("use_confidence", True, "Field confidence from segmentation/confidence; false = 1 everywhere."),
    Param("classes", [], "Names of the classes to keep; empty = all.", live=True),
    Param("unlabelled", False, "Keep points without a label (255).", live=True),
    Param(
        "min_range", 0.1, "m along the camera's z axis; nearer points are removed.", 0.0, 1000.0, live=True
    ),
    Param(
        "max_range",
        100.0,
        "m along the camera's z axis; points further away are removed.",
        0.0,
        10000.0,
        live=True,
    ),
    Param("stride", 1, "Use every n-th px in both directions, or every n-th point.", 1, 1000, live=True),
    Param(
        "max_time_difference",
        0.02,
        "s; largest difference between the stamps of a mask and its depth image or points.",
        0.0,
        10.0,
        live=True,
    ),
    Param(
        "rectified", False, "The images are rectified: use camera_info's P without distortion, not K and D."
    ),
    Param(
        "extrinsics",
        "",
        "Pose of the points' frame in the camera's optical frame, x y z (m) qx qy qz qw; empty = tf2.",
        check=_extrinsics,
    ),
    Param("input_qos", "sensor_data", "QoS of depth, points and image.", allowed=tuple(INPUT_QOS)),
)


class CloudNode(Node):
    """Publish `segmentation/cloud`; docs/guide/labelled_point_clouds.md describes its topics and parameters.

    Inputs are subscribed to only while somebody subscribes to the cloud.
    """

    def __init__(self) -> None:
        super().__init__("cloud")
        self._params = Parameters(self, PARAMETERS, locked=locked_while_running, vet=self._vet)
        self._params.check_all()
        self._filter(self._params["min_range"], self._params["max_range"])
        self._source = self._params["source"]
        self._extrinsics = _extrinsics(self._params["extrinsics"])
        self._transforms: Any = None
        if self._source == "points" and self._extrinsics is None:
            if Buffer is None:
                raise ConfigError(
                    "extrinsics: missing; expected x y z qx qy qz qw, since tf2_ros is not installed, got ''. "
                    "Set it, for example extrinsics:='0 0 0 0 0 0 1', or install ros-$ROS_DISTRO-tf2-ros"
                )
            self._transforms = Buffer()
        if self._params["color"] == "image":
            image_class(self._params["image_transport"])
        self._listener: Any = None
        self._labels: LabelSet | None = None
        self._camera_info: CameraInfo | None = None
        self._camera: tuple[tuple, Camera] | None = None
        warn = self.get_logger().warning
        self._decoders = {what: ImageDecoder(what, warn) for what in ("mask", "confidence", "image")}
        self._inputs: list = []
        self._images: list[ImageInput] = []
        self._received: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        self._published, self._since, self._last_error = 0, 0.0, ""
        self._explained = False
        self._matcher = self._new_matcher()
        self._publisher = self.create_publisher(PointCloud2, "segmentation/cloud", IMAGES)
        self.create_subscription(LabelMap, "segmentation/label_map", self._on_label_map, LATCHED)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(POLL_S, self._on_poll, clock=steady)
        self.create_timer(1.0, self._on_second, clock=steady)
        self.get_logger().info(
            f"waiting for subscribers of {self._publisher.topic_name}, source {self._source}"
        )

    def _topics(self) -> dict[str, tuple[str, str, Any]]:
        """Inputs that are matched: name to topic, transport (empty for points) and QoS."""
        sensor = INPUT_QOS[self._params["input_qos"]]
        found = {"mask": ("segmentation/mask", "raw", IMAGES)}
        if self._params["use_confidence"]:
            found["confidence"] = ("segmentation/confidence", "raw", IMAGES)
        if self._params["color"] == "image":
            transport = self._params["image_transport"]
            found["image"] = (transport_topic(self, "image", transport), transport, sensor)
        if self._source == "points":
            found["points"] = ("points", "", sensor)
            return found
        transport = self._params["depth_transport"]
        if transport == "compressedDepth":  # published like jpeg and png
            found["depth"] = (f"depth{COMPRESSED_DEPTH}", "compressed", sensor)
        else:
            found["depth"] = (transport_topic(self, "depth", transport), transport, sensor)
        return found

    def _new_matcher(self) -> StampMatcher:
        return StampMatcher(
            group=[name for name in self._topics() if name != self._source], sensor=self._source
        )

    def _vet(self, values: dict[str, Any]) -> str:
        try:
            self._filter(
                *(
                    values[name] if name in values else self._params[name]
                    for name in ("min_range", "max_range")
                )
            )
        except ConfigError as err:
            return str(err)
        return ""

    def _filter(
        self, min_range: float, max_range: float, classes: frozenset[int] | None = None
    ) -> CloudFilter:
        return CloudFilter(
            classes=classes,
            unlabelled=self._params["unlabelled"],
            min_range_m=min_range,
            max_range_m=max_range,
            stride=self._params["stride"],
        )

    # Inputs

    def _on_poll(self) -> None:
        wanted = self._publisher.get_subscription_count() > 0
        if wanted and not self._inputs:
            self._subscribe()
        elif not wanted and self._inputs:
            self._unsubscribe()

    def _subscribe(self) -> None:
        for name, (topic, transport, qos) in self._topics().items():
            receive = partial(self._on_input, name)
            if transport:
                self._images.append(ImageInput(self, topic, transport, qos, receive))
            else:
                self._inputs.append(self.create_subscription(PointCloud2, topic, receive, qos))
        self._inputs.append(
            self.create_subscription(CameraInfo, "camera_info", self._on_camera_info, qos_profile_sensor_data)
        )
        if self._transforms is not None:
            self._listener = TransformListener(self._transforms, self)
        self._since, self._explained = time.monotonic(), False

    def _unsubscribe(self) -> None:
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs.clear()
        for images in self._images:
            images.close()
        self._images.clear()
        if self._listener is not None:
            self._listener.unregister()
            self._listener = None
        self._matcher = self._new_matcher()
        self._received.clear()

    def _on_label_map(self, message: LabelMap) -> None:
        try:
            self._labels = label_set_of(message)
        except ConfigError as err:
            self.get_logger().error(f"the label map cannot be used: {err}", throttle_duration_sec=1.0)

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._received["camera_info"] += 1
        self._camera_info = message

    def _on_input(self, name: str, message: Any) -> None:
        self._received[name] += 1
        tolerance = round(self._params["max_time_difference"] * 1e9)
        match = self._matcher.put(name, stamp_ns(message.header), message, len(message.data), tolerance)
        if match is None:
            return
        try:
            cloud, header = self._cloud(match)
        except (VTSegError, cv2.error) as err:
            self._dropped["unusable"] += 1
            self._last_error = f"frame at {stamp_ns(match['mask'].header) / 1e9:.3f} s: {err}"
            return
        self._publisher.publish(to_cloud(cloud, header))
        self._published += 1

    # Clouds

    def _cloud(self, match: dict[str, Any]) -> tuple[np.ndarray, Header]:
        """Return the points (N, 6) float32 and the header of a match."""
        mask, sensor = self._decoders["mask"].label(match["mask"]), match[self._source]
        keep = self._filter(self._params["min_range"], self._params["max_range"], self._kept_classes())
        camera = self._calibration(mask.shape[1], mask.shape[0])
        options: dict[str, Any] = {"keep": keep}
        if "confidence" in match:
            options["confidence"] = self._decoders["confidence"].label(match["confidence"])
        if "image" in match:
            options["image"] = self._decoders["image"](match["image"])
        elif self._params["color"] == "class" and self._labels is not None:
            options["palette"] = self._labels.palette()
        frames = sensor.header.frame_id, match["mask"].header.frame_id
        if self._source == "depth":
            if frames[0] != frames[1]:
                self.get_logger().warning(
                    f"depth is in frame {frames[0]!r} and the mask in {frames[1]!r}: the depth image must be registered "
                    "to the camera of the mask",
                    once=True,
                )
            return cloud_from_depth(decode_depth(sensor), camera, mask, **options), sensor.header
        points = decode_points(sensor)
        transform = self._camera_from(frames[1], sensor.header)
        cloud = cloud_from_points(points, camera, mask, camera_from_points=transform, **options)
        return cloud, sensor.header

    def _kept_classes(self) -> frozenset[int] | None:
        names = list(self._params["classes"])
        if not names:
            return None
        if self._labels is None:
            raise ConfigError("classes: no label map yet; expected one on segmentation/label_map, got none")
        return self._labels.ids_of(names)

    def _calibration(self, width: int, height: int) -> Camera:
        """Return the camera at a size in px; binning and region of interest are applied."""
        info = self._camera_info
        if info is None:
            raise ConfigError("camera_info: missing; expected one before the first mask, got none")
        scaled = scale_camera_info(info, (width, height), info.header)
        key = (width, height, *scaled.k, *scaled.p, *scaled.d, scaled.distortion_model)
        if self._camera is None or self._camera[0] != key:
            self._camera = key, Camera.from_camera_info(scaled, rectified=self._params["rectified"])
        return self._camera[1]

    def _camera_from(self, camera_frame: str, points: Header) -> np.ndarray:
        """Return the (4, 4) transform from the points' frame to the camera's."""
        if self._extrinsics is not None:
            return self._extrinsics
        try:
            found = self._transforms.lookup_transform(
                camera_frame, points.frame_id, Time.from_msg(points.stamp)
            ).transform
        except TransformException as err:
            raise ConfigError(
                f"tf: no transform from {points.frame_id!r} to {camera_frame!r}; expected one at the points' stamp, "
                f"got: {err}"
            ) from err
        translation, rotation = found.translation, found.rotation
        return transform_matrix(
            (translation.x, translation.y, translation.z), (rotation.x, rotation.y, rotation.z, rotation.w)
        )

    # Reports

    def _on_second(self) -> None:
        current = self._dropped + Counter(
            {f"without {topic}": n for topic, n in self._matcher.dropped.items()}
        )
        if current != self._reported:
            self._reported = Counter(current)
            counts = ", ".join(f"{number} {reason}" for reason, number in sorted(current.items()))
            error = f". Last error: {self._last_error}" if self._last_error else ""
            self.get_logger().warning(f"{self._published} clouds published; masks dropped: {counts}{error}")
            self._last_error = ""
        if self._inputs and not self._published and not self._explained:
            if time.monotonic() - self._since > SILENCE_S:
                self._explained = True
                self.get_logger().warning(self._explain_silence())

    def _explain_silence(self) -> str:
        names = {name: topic for name, (topic, _, _) in self._topics().items()}
        parts = []
        for name, topic in {**names, "camera_info": "camera_info"}.items():
            resolved = self.resolve_topic_name(topic)
            parts.append(
                f"{self._received[name]} on {resolved} ({self.count_publishers(resolved)} publishers)"
            )
        return (
            f"no cloud yet. Messages received: {', '.join(parts)}. Masks and {self._source} match within "
            f"{self._params['max_time_difference']} s (max_time_difference)"
        )

    def close(self) -> None:
        """Free the subscriptions."""
        self._unsubscribe()


def to_cloud(points: np.ndarray, header: Header) -> PointCloud2:
    """Return points (N, 6) float32, laid out as `clouds.FIELDS`, as a message of one row."""
    octets = array.array("B")
    octets.frombytes(points.reshape(-1).view(np.uint8))
    message = PointCloud2(header=header, height=1, width=len(points), is_bigendian=False, is_dense=True)
    message.fields = [
        PointField(name=name, offset=offset, datatype=POINT_TYPES[kind], count=1)
        for name, offset, kind in FIELDS
    ]
    message.point_step, message.row_step = POINT_STEP, POINT_STEP * len(points)
    message.data = octets
    return message


def main(args: list[str] | None = None) -> int:
    """Entry point of `ros2 run vtseg_ros cloud`."""
    return run_node(CloudNode, args)


if __name__ == "__main__":
    raise SystemExit(main())
