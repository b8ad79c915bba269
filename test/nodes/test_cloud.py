# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The cloud node as a process over DDS: hand-computed points, the street's exact depth, bad and missing input."""

from __future__ import annotations

import array
import json
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from bags.test_zstd_transport import packed
from conftest import wait_until
from nodes.encoders import NS, compressed_message, image_message, picture, stamped
from nodes.harness import LATCHED, Harness
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from vtseg_ros.cli import main
from vtseg_ros.label_set import STREET
from vtseg_ros.nodes.cloud import PARAMETERS
from vtseg_ros.nodes.conversions import stamp_ns, to_image, to_label_map

BEST_EFFORT = QoSProfile(depth=20, reliability=ReliabilityPolicy.BEST_EFFORT)
MASK = np.array([[5, 6, 7, 255], [5, 5, 8, 8]], np.uint8)
CONFIDENCE = np.array([[255, 51, 0, 0], [0, 0, 102, 0]], np.uint8)
MILLIMETRES = np.array([[1000, 2000, 0, 4000], [0, 2000, 3000, 65000]], np.uint16)


def info() -> CameraInfo:
    """fx 2, fy 4, cx 1, cy 0.5 at 4x2 px, given at twice the size with binning."""
    message = CameraInfo(width=8, height=4, distortion_model="plumb_bob", d=[0.0] * 5)
    message.k = [4.0, 0.0, 2.5, 0.0, 8.0, 1.5, 0.0, 0.0, 1.0]
    message.p = [4.0, 0.0, 2.5, 0.0, 0.0, 8.0, 1.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    message.binning_x = message.binning_y = 2
    return message


def gray(values: np.ndarray, stamp: int) -> Image:
    return stamped(to_image(values, "mono8", Header()), stamp)


def depth(stamp: int, encoding: str = "16UC1", values: np.ndarray = MILLIMETRES) -> Image:
    message = Image(height=values.shape[0], width=values.shape[1], encoding=encoding)
    message.step = values.shape[1] * values.itemsize
    message.data = array.array("B", values.tobytes())
    return stamped(message, stamp)


def points(values: list, stamp: int, names: str = "xyz") -> PointCloud2:
    data = np.array(values, np.float32)
    message = PointCloud2(height=1, width=len(data), point_step=12, row_step=12 * len(data))
    message.fields = [
        PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
        for index, name in enumerate(names)
    ]
    message.data = array.array("B", data.tobytes())
    return stamped(message, stamp, "lidar")


def read(message: PointCloud2) -> list[tuple]:
    """Points as any consumer reads them, by the fields' names, offsets and types; floats with 5 decimals."""
    found, kinds = [], {PointField.FLOAT32: "f", PointField.UINT8: "B"}
    assert len(message.data) == message.row_step * message.height == message.point_step * message.width
    for start in range(0, len(message.data), message.point_step):
        values = {
            f.name: struct.unpack_from("<" + kinds[f.datatype], message.data, start + f.offset)[0]
            for f in message.fields
        }
        bits = struct.unpack("<I", struct.pack("<f", values["rgb"]))[0]
        rgb = (bits >> 16 & 255, bits >> 8 & 255, bits & 255)
        x, y, z, confidence = (round(values[name], 5) for name in ("x", "y", "z", "confidence"))
        found.append((x, y, z, rgb, values["label"], confidence))
    return found


class Rig:
    """A cloud node in a namespace, its inputs' publishers and its clouds."""

    def __init__(
        self, harness: Harness, start_node, name: str, *arguments: str, sensor: type = Image
    ) -> None:
        self.harness, self.base = harness, f"/{name}"
        self.node = start_node("cloud", "-r", f"__ns:=/{name}", *arguments)
        self.node.wait_for("waiting for subscribers")

        def publisher(kind, topic, qos=BEST_EFFORT):
            return harness.publisher(kind, f"{self.base}/{topic}", qos)

        reliable = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE)
        self.mask = publisher(Image, "segmentation/mask", reliable)
        self.confidence = publisher(Image, "segmentation/confidence", reliable)
        self.image, self.info = publisher(Image, "image"), publisher(CameraInfo, "camera_info")
        self.sensor = publisher(sensor, "points" if sensor is PointCloud2 else "depth")
        self.labels = harness.publisher(
            type(to_label_map(STREET, Header())), f"{self.base}/segmentation/label_map", LATCHED
        )
        self.labels.publish(to_label_map(STREET, Header()))
        self.clouds: list = []

    def listen(self) -> None:
        self.clouds = self.harness.collect(PointCloud2, f"{self.base}/segmentation/cloud")
        inputs = (self.mask, self.sensor, self.info)
        wait_until(lambda: all(p.get_subscription_count() for p in inputs), self.node.output)

    def start(self, make_sensor) -> None:
        """Publish frames before the stamps of the tests until a cloud comes: every topic is connected then."""
        self.listen()
        stamp = iter(range(NS, 1000 * NS, NS))

        def attempt() -> bool:
            self.frame(make_sensor, next(stamp))
            time.sleep(0.05)
            return bool(self.clouds)

        wait_until(attempt, self.node.output)

    def frame(self, make_sensor, stamp: int, *, mask: np.ndarray = MASK) -> None:
        self.info.publish(info())
        self.sensor.publish(make_sensor(stamp))
        if self.confidence.get_subscription_count():
            self.confidence.publish(gray(CONFIDENCE, stamp))
        self.mask.publish(gray(mask, stamp))

    def at(self, stamp: int) -> list[PointCloud2]:
        return [cloud for cloud in self.clouds if stamp_ns(cloud.header) == stamp]

    def wait(self, stamp: int) -> PointCloud2:
        wait_until(lambda: bool(self.at(stamp)), self.node.output)
        return self.at(stamp)[0]


@pytest.fixture(scope="module")
def rig(harness, start_node) -> Rig:
    made = Rig(harness, start_node, "by_depth")
    made.start(depth)
    return made


def test_points_of_a_depth_image_by_hand(rig):
    rig.frame(depth, 2000 * NS + 5)
    message = rig.wait(2000 * NS + 5)
    assert message.header.frame_id == "camera"
    colors = STREET.colors
    # x = (column - 1) / 2 * z, y = (row - 0.5) / 4 * z
    assert read(message) == [
        (-0.5, -0.125, 1.0, colors[5], 5, 1.0),
        (0.0, -0.25, 2.0, colors[6], 6, 0.2),
        (0.0, 0.25, 2.0, colors[5], 5, 0.0),
        (1.5, 0.375, 3.0, colors[8], 8, 0.4),
        (65.0, 8.125, 65.0, colors[8], 8, 0.0),
    ]


def test_a_late_partner_and_another_stamp(rig):
    """Depth after the mask, 15 ms away: matched. 25 ms away: not."""
    stamp = 2100 * NS
    for offset_ms, base in ((25, stamp), (15, stamp + NS)):
        rig.confidence.publish(gray(CONFIDENCE, base))
        rig.mask.publish(gray(MASK, base))
        rig.sensor.publish(depth(base + offset_ms * 1_000_000))
    cloud = rig.wait(stamp + NS + 15_000_000)  # the depth image's stamp
    assert len(read(cloud)) == 5
    assert not rig.at(stamp + 25_000_000) and not rig.at(stamp)


def test_masks_without_depth_are_counted(rig):
    for number in range(70):  # more than wait for a partner
        rig.confidence.publish(gray(CONFIDENCE, 2200 * NS + number * NS))
        rig.mask.publish(gray(MASK, 2200 * NS + number * NS))
        time.sleep(0.005)
    rig.node.wait_for("without depth")
    rig.frame(depth, 2300 * NS)
    rig.wait(2300 * NS)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (lambda stamp: depth(stamp, "rgb8"), "depth: unknown encoding"),
        (lambda stamp: depth(stamp, "32FC1"), "depth: data too short"),
    ],
)
def test_bad_depth_is_dropped_and_named(rig, bad, problem):
    before = len(rig.clouds)
    rig.frame(bad, 2400 * NS)
    rig.frame(depth, 2401 * NS)
    rig.wait(2401 * NS)
    rig.node.wait_for(problem)
    assert not rig.at(2400 * NS) and len(rig.clouds) == before + 1
    rig.clouds.clear()


def test_a_bad_mask_is_dropped_and_named(rig):
    rig.sensor.publish(depth(2500 * NS))
    rig.confidence.publish(gray(CONFIDENCE, 2500 * NS))
    bad = gray(MASK, 2500 * NS)
    bad.data = bad.data[:3]
    rig.mask.publish(bad)
    rig.node.wait_for("data is too short")
    rig.frame(depth, 2501 * NS)
    rig.wait(2501 * NS)
    assert not rig.at(2500 * NS)


def set_parameters(rig: Rig, **values) -> list:
    from rcl_interfaces.srv import SetParameters
    from rclpy.parameter import Parameter

    request = SetParameters.Request(
        parameters=[Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
    )
    return rig.harness.call(SetParameters, f"{rig.base}/cloud/set_parameters", request).results


def test_parameters_change_at_run_time(rig):
    assert set_parameters(rig, classes=["road"], unlabelled=True, max_range=50.0, max_time_difference=0.0)[
        0
    ].successful
    rig.frame(depth, 2600 * NS)
    assert [row[4] for row in read(rig.wait(2600 * NS))] == [5, 255, 5]
    assert set_parameters(rig, classes=["raod"])[0].successful  # the label map may change
    rig.frame(depth, 2601 * NS)
    rig.node.wait_for("classes: unknown class; expected some of terrain")
    refused = set_parameters(rig, min_range=60.0)[0]
    assert not refused.successful and "expected 0 <= min_range < max_range" in refused.reason
    assert not set_parameters(rig, source="points")[0].successful
    results = set_parameters(rig, classes=["sky"], unlabelled=False, stride=2, max_time_difference=0.02)
    assert all(result.successful for result in results)
    rig.frame(depth, 2602 * NS, mask=np.ones((2, 4), np.uint8))
    assert [row[2] for row in read(rig.wait(2602 * NS))] == [1.0]


def test_no_subscriber_no_inputs(harness, start_node):
    rig = Rig(harness, start_node, "idle", "-p", "color:=image")
    time.sleep(1.0)  # five times the period at which subscribers are counted
    assert rig.mask.get_subscription_count() == rig.sensor.get_subscription_count() == 0
    rig.listen()
    assert rig.confidence.get_subscription_count() == 1 == rig.image.get_subscription_count()
    rig.node.wait_for("no cloud yet. Messages received: 0 on /idle/segmentation/mask (1 publishers)")
    stamp = iter(range(NS, 1000 * NS, NS))
    rgb = picture(3, 2, 4)

    def attempt() -> bool:
        now = next(stamp)
        rig.image.publish(image_message(rgb, "rgb8", now))
        rig.frame(depth, now)
        time.sleep(0.05)
        return bool(rig.clouds)

    wait_until(attempt, rig.node.output)
    expected = [tuple(int(v) for v in rgb[place]) for place in ((0, 0), (0, 1), (1, 1), (1, 2), (1, 3))]
    assert [row[3] for row in read(rig.clouds[0])] == expected
    for subscription in list(harness.node.subscriptions):
        if subscription.topic_name == "/idle/segmentation/cloud":
            harness.node.destroy_subscription(subscription)
    wait_until(lambda: rig.mask.get_subscription_count() == rig.image.get_subscription_count() == 0)


@pytest.mark.parametrize(
    ("image_transport", "depth_transport"), [("compressed", "compressedDepth"), ("zstd", "zstd")]
)
def test_other_transports(harness, start_node, image_transport, depth_transport):
    name = f"by_{depth_transport.lower()}"
    chosen = ("-p", f"image_transport:={image_transport}", "-p", f"depth_transport:={depth_transport}")
    rig = Rig(harness, start_node, name, "-p", "color:=image", *chosen)
    rig.image = harness.publisher(CompressedImage, f"/{name}/image/{image_transport}", BEST_EFFORT)
    rig.sensor = harness.publisher(CompressedImage, f"/{name}/depth/{depth_transport}", BEST_EFFORT)
    rgb = picture(3, 2, 4)

    def image(stamp: int) -> CompressedImage:
        if image_transport == "compressed":
            return compressed_message(rgb, "png", stamp)
        return stamped(CompressedImage(format="zstd", data=packed(rgb, "rgb8")), stamp)

    def sensor(stamp: int) -> CompressedImage:
        rig.image.publish(image(stamp))
        if depth_transport == "zstd":
            return stamped(CompressedImage(format="zstd", data=packed(MILLIMETRES, "16UC1")), stamp)
        png = bytes(12) + cv2.imencode(".png", MILLIMETRES)[1].tobytes()
        return stamped(CompressedImage(format="16UC1; compressedDepth png", data=png), stamp)

    rig.start(sensor)
    found = [(z, color, label) for _, _, z, color, label, _ in read(rig.clouds[-1])]
    places = {(0, 0): (1.0, 5), (0, 1): (2.0, 6), (1, 1): (2.0, 5), (1, 2): (3.0, 8), (1, 3): (65.0, 8)}
    assert found == [(z, tuple(int(v) for v in rgb[place]), label) for place, (z, label) in places.items()]


LIDAR = [
    [2, 0.4, -0.5],  # camera (-0.4, 0, 2): column 0.6, row 0.5
    [2, -1.0, -0.5],  # camera (1, 0, 2): column 2, row 0.5: rounds to row 1
    [2, 5, 0],  # outside the image
    [-2, 0, 0],  # behind
    [np.nan, 0, 0],
]
EXTRINSICS = "0 -0.5 0 -0.5 0.5 -0.5 -0.5"
"""x forward, y left, z up to x right, y down, z forward, and 0.5 m above the camera; the quaternion may be negated."""


def test_points_of_a_lidar_by_hand(harness, start_node):
    rig = Rig(
        harness,
        start_node,
        "by_points",
        "-p",
        "source:=points",
        "-p",
        f"extrinsics:='{EXTRINSICS}'",
        "-p",
        "use_confidence:=false",
        sensor=PointCloud2,
    )
    rig.start(lambda stamp: points(LIDAR, stamp))
    rig.frame(lambda stamp: points(LIDAR, stamp), 2000 * NS)
    message = rig.wait(2000 * NS)
    assert message.header.frame_id == "lidar"
    assert read(message) == [
        (2.0, 0.4, -0.5, STREET.colors[5], 5, 1.0),
        (2.0, -1.0, -0.5, STREET.colors[8], 8, 1.0),
    ]
    rig.frame(lambda stamp: points(LIDAR, stamp, "xyi"), 2001 * NS)
    rig.frame(lambda stamp: points(LIDAR, stamp), 2002 * NS)
    rig.wait(2002 * NS)
    rig.node.wait_for("points: no field z; expected x, y and z, got x, y, i")
    assert not rig.at(2001 * NS)


def test_the_page_lists_the_parameters():
    text = (Path(__file__).resolve().parents[2] / "docs" / "guide/labelled_point_clouds.md").read_text()
    rows = {
        name: (default.strip(), bool(star))
        for name, star, default in re.findall(
            r"^\| `(\w+)`( \*)? \|(.*?)\| ", text.split("| parameter |")[1], re.M
        )
    }
    assert rows == {
        param.name: (
            str(param.default).lower() if isinstance(param.default, bool) else str(param.default),
            param.live,
        )
        for param in PARAMETERS
    }


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["extrinsics:='1 2 3'"], "expected 7 numbers x y z qx qy qz qw, got '1 2 3'"),
        (["extrinsics:='0 0 0 0 0 0 0'"], "not a transform"),
        (["min_range:=5.0", "max_range:=2.0"], "expected 0 <= min_range < max_range"),
        (["source:=radar"], "source: unknown; expected one of depth, points"),
        pytest.param(["source:=points"], "Set it, for example extrinsics:='0 0 0 0 0 0 1'", id="no tf2"),
    ],
)
def test_bad_parameters_end_the_node(ros_environment, arguments, problem, request):
    if "no tf2" in request.node.callspec.id:
        try:
            import tf2_ros  # noqa: F401
        except ImportError:
            pass
        else:
            return  # with tf2 an empty value is allowed
    command = [sys.executable, "-m", "vtseg_ros.nodes.cloud", "--ros-args"]
    for argument in arguments:
        command += ["-p", argument]
    done = subprocess.run(command, env=ros_environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2, done.stderr
    assert problem in done.stderr and "Traceback" not in done.stderr


def test_the_street_s_exact_depth(harness, start_node, tmp_path, ros_environment):
    """A bag's depth and labels played to the node: the road's points lie in one plane at one height below the camera."""
    bag, frames = tmp_path / "street", 4
    code = main(
        ["synth", "--out", str(bag), "--scene", "5", "--frames", str(frames), "--size", "320x96", "--no-flow"]
    )
    assert code == 0
    names = {"segmentation/mask": "label", "depth": "depth", "camera_info": "camera_info", "image": "image"}
    remappings = [part for a, b in names.items() for part in ("-r", f"{a}:=/camera/{b}")]
    node = start_node(
        "cloud",
        "-r",
        "__node:=street_cloud",
        "-r",
        "segmentation/cloud:=/street/cloud",
        *remappings,
        "-p",
        "use_confidence:=false",
        "-p",
        "color:=image",
        "-p",
        "input_qos:=reliable",
        "-p",
        "max_range:=25.0",
    )
    clouds = harness.collect(PointCloud2, "/street/cloud")
    topics = [f"/camera/{name}" for name in names.values()]
    report = tmp_path / "sent.json"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "vtseg_ros.cli",
            "play",
            str(bag),
            "--rate",
            "0.2",
            "--topics",
            *topics,
            "--wait-for",
            *topics,
            "--json",
            str(report),
        ],
        env={**os.environ, **ros_environment},
        check=True,
        timeout=600,
    )
    assert json.loads(report.read_text())
    wait_until(lambda: len(clouds) >= frames - 1, node.output)
    road = STREET.names.index("road")
    for message in clouds:
        raw = np.frombuffer(message.data, np.uint8).reshape(-1, message.point_step)
        xyz = raw[:, :12].copy().view("<f4")
        labels = raw[:, 16]
        ground = xyz[labels == road].astype(np.float64)
        assert len(ground) > 500 and xyz[:, 2].max() <= 25
        plane = np.column_stack([ground[:, 0], ground[:, 2], np.ones(len(ground))])
        solution, *_ = np.linalg.lstsq(plane, ground[:, 1], rcond=None)
        assert 1.0 < solution[2] < 3.0  # a camera on a car
        assert np.abs(plane @ solution - ground[:, 1]).max() < 0.02
        sky = STREET.names.index("sky")
        assert not (labels == sky).any()  # further away than max_range
