# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What nav2's semantic segmentation layer relies on, by a node that plays the layer's part.

The layer reads masks by `data[row * width + column]` and takes the confidence at the same index unchecked; it drops
masks that come before the class list, knows classes by name, takes 255 for unlabelled and pairs mask, confidence
and point cloud by equal stamps.
"""

from __future__ import annotations

import array
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy")

from conftest import make_checkpoint, wait_until
from nodes.camera import Camera
from nodes.encoders import NS, image_message, picture, stamped
from nodes.harness import LATCHED, Harness
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, PointCloud2, PointField
from vtseg_ros.msg import LabelMap

from vtseg_ros.inference import VideoPredictor
from vtseg_ros.label_set import CITYSCAPES

try:
    from vision_msgs.msg import LabelInfo
except ImportError:
    LabelInfo = None

BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
CONFIG = Path(__file__).resolve().parents[2] / "config" / "nav2_costmap.yaml"
LAYER = yaml.safe_load(CONFIG.read_text())["local_costmap"]["local_costmap"]["ros__parameters"][
    "semantic_layer"
]["front"]
COSTS = {name: LAYER[kind]["base_cost"] for kind in LAYER["class_types"] for name in LAYER[kind]["classes"]}
MIN_CONFIDENCE = 0.15


class Layer:
    """Marks a cell for each point of an organised cloud whose pixel has a class with a cost."""

    def __init__(self, harness: Harness, namespace: str) -> None:
        self._costs_by_id: dict[int, int] = {}
        self.marked: dict[int, np.ndarray] = {}
        self.problems: list[AssertionError] = []
        self._waiting: dict[int, dict[str, object]] = {}
        node = harness.node
        if LabelInfo:
            node.create_subscription(
                LabelInfo, namespace + LAYER["labels_topic"], self._on_label_info, LATCHED
            )
        else:
            node.create_subscription(
                LabelMap, f"{namespace}/segmentation/label_map", self._on_label_map, LATCHED
            )
        for kind, topic, name in (
            (Image, namespace + LAYER["segmentation_topic"], "mask"),
            (Image, namespace + LAYER["confidence_topic"], "confidence"),
            (PointCloud2, "/nav2/points", "points"),
        ):
            node.create_subscription(
                kind, topic, lambda message, name=name: self._on(name, message), BEST_EFFORT
            )

    def _set_classes(self, ids: dict[str, int]) -> None:
        missing = COSTS.keys() - ids.keys()
        assert not missing, (
            f"classes of the layer's configuration that the segmenter does not have: {missing}"
        )
        self._costs_by_id = {ids[name]: cost for name, cost in COSTS.items()}

    def _on_label_info(self, message) -> None:
        self._set_classes({entry.class_name: entry.class_id for entry in message.class_map})

    def _on_label_map(self, message: LabelMap) -> None:
        self._set_classes({entry.name: entry.id for entry in message.labels})

    @property
    def ready(self) -> bool:
        return bool(self._costs_by_id)

    def _on(self, name: str, message) -> None:
        if not self.ready:
            return
        stamp = message.header.stamp.sec * NS + message.header.stamp.nanosec
        matched = self._waiting.setdefault(stamp, {})
        matched[name] = message
        if len(matched) == 3:
            try:
                self.marked[stamp] = self._mark(**self._waiting.pop(stamp))
            except AssertionError as problem:  # in the thread that spins
                self.problems.append(problem)

    def _mark(self, mask: Image, confidence: Image, points: PointCloud2) -> np.ndarray:
        assert mask.encoding == confidence.encoding == "mono8"
        assert len(confidence.data) == len(mask.data) == mask.width * mask.height
        assert mask.header == confidence.header == points.header
        costs = np.zeros(mask.width * mask.height, np.uint8)
        for index in range(mask.width * mask.height):  # as the layer does: one index for both images
            if mask.data[index] != 255 and confidence.data[index] >= MIN_CONFIDENCE * 254:
                costs[index] = self._costs_by_id.get(mask.data[index], 0)
        return costs.reshape(mask.height, mask.width)


def cloud(width: int, height: int, stamp_ns: int) -> PointCloud2:
    fields = [
        PointField(name=n, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, n in enumerate("xyz")
    ]
    data = array.array("B", struct.pack("<3f", 1.0, 2.0, 0.0) * (width * height))
    made = PointCloud2(
        height=height, width=width, fields=fields, point_step=12, row_step=12 * width, data=data
    )
    return stamped(made, stamp_ns)


def test_the_layer_marks_what_the_predictor_says(harness, start_segmenter, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "cityscapes.safetensors", labels=CITYSCAPES)
    node = start_segmenter(
        "/nav2", checkpoint, "-p", "output_size:=40x24", "-p", f"min_confidence:={MIN_CONFIDENCE}"
    )
    camera = Camera(harness, node, "/nav2")
    camera.good(30)
    # A costmap that starts late gets the class list, and none of the masks before.
    layer = Layer(harness, "/nav2")
    wait_until(lambda: layer.ready, node.output)
    points = harness.publisher(PointCloud2, "/nav2/points")
    wait_until(lambda: points.get_subscription_count() > 0)
    expected = VideoPredictor(checkpoint, device="cpu", output_size=(40, 24), min_confidence=MIN_CONFIDENCE)
    expected.step(picture(30), camera.stamp_ns)
    for seed in range(31, 35):
        image, stamp = picture(seed), camera.next_stamp()
        points.publish(cloud(40, 24, stamp))
        camera.answer(image_message(image, "rgb8", stamp))
        result = expected.step(image, stamp)
        wait_until(lambda stamp=stamp: stamp in layer.marked or layer.problems, node.output)
        assert not layer.problems, layer.problems
        by_id = np.zeros(256, np.uint8)
        by_id[[CITYSCAPES.names.index(name) for name in COSTS]] = list(COSTS.values())
        sure = result.confidence >= MIN_CONFIDENCE * 254
        assert np.array_equal(layer.marked[stamp], by_id[result.mask] * sure), seed
    assert any(marked.any() for marked in layer.marked.values())
    assert node.stop() == 0
