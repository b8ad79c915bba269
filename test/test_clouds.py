# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Labelled clouds against hand-computed geometry, an independent projection and the street's exact depth."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from bags.test_zstd_transport import packed

from vtseg_ros.cli import main
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
from vtseg_ros.errors import ConfigError, ImageError

SMALL = Camera(width=4, height=2, matrix=(2.0, 4.0, 1.0, 0.5))


def rows(cloud: np.ndarray) -> list[tuple]:
    """Points as a consumer of the message reads them: x, y, z, (r, g, b), label, confidence."""
    found = []
    for start in range(0, len(cloud.tobytes()), POINT_STEP):
        x, y, z, rgb, label, confidence = struct.unpack_from("<fffIBxxxf", cloud.tobytes(), start)
        found.append((x, y, z, (rgb >> 16 & 255, rgb >> 8 & 255, rgb & 255), label, confidence))
    return found


def test_points_of_a_depth_image_by_hand():
    depth = np.array([[1, 2, np.nan, 4], [0, 200, 3, np.inf]], np.float32)
    mask = np.array([[5, 6, 7, 255], [5, 5, 8, 8]], np.uint8)
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    confidence = np.array([[255, 51, 0, 0], [0, 0, 102, 0]], np.uint8)
    cloud = cloud_from_depth(depth, SMALL, mask, confidence=confidence, image=image, keep=CloudFilter())
    # x = (column - 1) / 2 * z, y = (row - 0.5) / 4 * z
    assert rows(cloud) == [
        (-0.5, -0.125, 1.0, (0, 1, 2), 5, 1.0),
        (0.0, -0.25, 2.0, (3, 4, 5), 6, pytest.approx(0.2)),
        (1.5, 0.375, 3.0, (18, 19, 20), 8, pytest.approx(0.4)),
    ]
    assert [(name, offset) for name, offset, _ in FIELDS] == [
        ("x", 0),
        ("y", 4),
        ("z", 8),
        ("rgb", 12),
        ("label", 16),
        ("confidence", 20),
    ]


def test_filters():
    depth = np.full((2, 4), 2.0, np.float32)
    mask = np.array([[0, 1, 2, 255], [0, 1, 2, 255]], np.uint8)

    def labels(**options):
        return (
            cloud_from_depth(depth, SMALL, mask, keep=CloudFilter(**options)).view(np.uint32)[:, 4].tolist()
        )

    assert labels() == [0, 1, 2, 0, 1, 2]
    assert labels(unlabelled=True) == [0, 1, 2, 255, 0, 1, 2, 255]
    assert labels(classes=frozenset({1})) == [1, 1]
    assert labels(classes=frozenset({1}), unlabelled=True) == [1, 255, 1, 255]
    assert labels(stride=2) == [0, 2]
    assert labels(min_range_m=2.5) == labels(max_range_m=1.5) == []


def test_a_mask_of_another_size_is_sampled_at_pixel_centres():
    depth = np.ones((4, 4), np.float32)
    camera = Camera(width=4, height=4, matrix=(1.0, 1.0, 0.0, 0.0))
    cloud = cloud_from_depth(depth, camera, np.array([[1, 2], [3, 4]], np.uint8), keep=CloudFilter())
    assert cloud.view(np.uint32)[:, 4].reshape(4, 4).tolist() == [
        [1, 1, 2, 2],
        [1, 1, 2, 2],
        [3, 3, 4, 4],
        [3, 3, 4, 4],
    ]
    large = np.repeat(np.repeat(np.arange(16, dtype=np.uint8).reshape(4, 4), 3, 0), 3, 1)
    cloud = cloud_from_depth(depth, camera, large, keep=CloudFilter())
    assert cloud.view(np.uint32)[:, 4].tolist() == list(range(16))


def test_intrinsics_of_another_size():
    """The left edge, -0.5 px, and the middle of the image stay where they are in the view."""
    half = Camera(width=8, height=4, matrix=(4.0, 4.0, 3.5, 1.5)).resized(4, 2)
    assert half.matrix == (2.0, 2.0, 1.5, 0.5)


@pytest.mark.parametrize(
    ("model", "distortion"),
    [
        ("plumb_bob", (-0.28, 0.07, 0.0002, 0.0001, 0.0)),
        ("rational_polynomial", (0.1, -0.02, 0.0, 0.0, 0.01, 0.05, 0.0, 0.0)),
        ("equidistant", (-0.01, 0.003, -0.001, 0.0002)),
    ],
)
def test_depth_of_a_distorted_camera_agrees_with_its_projection(model, distortion):
    camera = Camera(width=64, height=48, matrix=(50.0, 52.0, 31.0, 23.0), distortion=distortion, model=model)
    depth = np.linspace(1, 5, 64 * 48, dtype=np.float32).reshape(48, 64)
    cloud = cloud_from_depth(depth, camera, np.zeros((48, 64), np.uint8), keep=CloudFilter())
    columns, lines = np.meshgrid(np.arange(64), np.arange(48))
    expected = np.stack([columns.ravel(), lines.ravel()], axis=1)
    np.testing.assert_allclose(camera.project(cloud[:, :3]), expected, atol=1e-3)


def test_points_of_a_lidar_by_hand():
    """Sensor x forward, y left, z up, 0.5 m above the camera; the camera looks along the sensor's x axis."""
    camera_from_lidar = np.array([[0, -1, 0, 0], [0, 0, -1, -0.5], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    camera = Camera(width=10, height=10, matrix=(10.0, 10.0, 4.5, 4.5))
    mask = np.zeros((10, 10), np.uint8)
    mask[:, 5:] = 3
    mask[0] = 255
    points = np.array(
        [
            [2, 0.4, -0.5],  # camera (-0.4, 0, 2): column 2.5, row 4.5
            [2, -0.4, -0.5],  # column 6.5
            [2, -0.4, 0.38],  # camera y -0.88: row 0.1, unlabelled
            [2, 3, 0],  # outside the image
            [-2, 0, 0],  # behind
            [np.nan, 0, 0],
            [200, 0, -0.5],  # too far
        ]
    )
    cloud = cloud_from_points(points, camera, mask, camera_from_points=camera_from_lidar, keep=CloudFilter())
    assert [(x, y, z, label) for x, y, z, _, label, _ in rows(cloud)] == [
        (2.0, pytest.approx(0.4), -0.5, 0),
        (2.0, pytest.approx(-0.4), -0.5, 3),
    ]
    empty = cloud_from_points(
        points[4:5], camera, mask, camera_from_points=camera_from_lidar, keep=CloudFilter()
    )
    assert empty.shape == (0, 6)


def test_points_of_a_depth_image_get_the_same_labels_as_by_projection(rng):
    camera = Camera(width=40, height=30, matrix=(30.0, 30.0, 19.5, 14.5))
    mask = rng.integers(0, 10, (30, 40), dtype=np.uint8)
    depth = rng.uniform(1, 20, (30, 40)).astype(np.float32)
    by_depth = cloud_from_depth(depth, camera, mask, keep=CloudFilter())
    by_points = cloud_from_points(
        by_depth[:, :3], camera, mask, camera_from_points=np.eye(4), keep=CloudFilter()
    )
    np.testing.assert_array_equal(by_points, by_depth)


def test_a_transform_of_a_quaternion():
    """A quarter turn about z, given at twice its length, takes x to y."""
    matrix = transform_matrix((1, 2, 3), (0, 0, 2 * np.sqrt(0.5), 2 * np.sqrt(0.5)))
    np.testing.assert_allclose(matrix @ [1, 0, 0, 1], [1, 3, 3, 1], atol=1e-12)
    rotation = cv2.Rodrigues(np.array([0.2, -0.4, 0.7]))[0]
    angle = np.linalg.norm([0.2, -0.4, 0.7])
    axis = np.array([0.2, -0.4, 0.7]) / angle
    quaternion = (*(axis * np.sin(angle / 2)), np.cos(angle / 2))
    np.testing.assert_allclose(transform_matrix((0, 0, 0), quaternion)[:3, :3], rotation, atol=1e-12)
    with pytest.raises(ConfigError, match="not a transform"):
        transform_matrix((0, 0, 0), (0, 0, 0, 0))
    with pytest.raises(ConfigError, match="not a transform"):
        transform_matrix((0, float("nan"), 0), (0, 0, 0, 1))


def depth_message(
    values: np.ndarray, encoding: str, *, padding: int = 0, big: bool = False
) -> SimpleNamespace:
    values = values.astype(values.dtype.newbyteorder(">" if big else "<"))
    line = values.shape[1] * values.itemsize
    data = np.zeros((values.shape[0], line + padding), np.uint8)
    data[:, :line] = values.view(np.uint8).reshape(values.shape[0], line)
    return SimpleNamespace(
        encoding=encoding,
        height=values.shape[0],
        width=values.shape[1],
        step=line + padding,
        is_bigendian=int(big),
        data=data.tobytes(),
    )


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("padding", [0, 4])
def test_depth_encodings(big, padding):
    millimetres = np.array([[0, 1500], [65535, 1]], np.uint16)
    metres = np.array([[0.5, np.nan], [np.inf, 2.0]], np.float32)
    np.testing.assert_allclose(
        decode_depth(depth_message(millimetres, "16UC1", padding=padding, big=big)),
        [[0, 1.5], [65.535, 0.001]],
    )
    np.testing.assert_array_equal(
        decode_depth(depth_message(metres, "32FC1", padding=padding, big=big)), metres
    )


def compressed_depth(fmt: str, values: np.ndarray, head: bytes = b"") -> SimpleNamespace:
    return SimpleNamespace(format=fmt, data=head + cv2.imencode(".png", values)[1].tobytes())


@pytest.mark.parametrize(
    ("fmt", "head"),
    [
        ("16UC1; png compressed ", b""),
        ("png", b""),
        ("16UC1; compressedDepth", bytes(12)),  # Humble and before
        ("16UC1; compressedDepth png", bytes(12)),
        ("mono16; compressedDepth png", bytes(12)),
    ],
)
def test_png_of_millimetres(fmt, head):
    values = np.array([[0, 1000], [2500, 65535]], np.uint16)
    found = decode_depth(compressed_depth(fmt, values, head))
    np.testing.assert_allclose(found, [[0, 1], [2.5, 65.535]], rtol=1e-6)


def test_compressed_metres():
    """The transport stores a / d + b in 16 bits, here with a = 1000 m and b = 100; 0 = unknown."""
    values = np.array([[600, 1100], [0, 350]], np.uint16)
    found = decode_depth(
        compressed_depth("32FC1; compressedDepth png", values, struct.pack("<iff", 0, 1000, 100))
    )
    np.testing.assert_allclose(found, [[2, 1], [np.nan, 4]], rtol=1e-6)


def test_packed_depth():
    values = np.array([[0, 1000], [2500, 65535]], np.uint16)
    message = SimpleNamespace(format="zstd", data=np.frombuffer(packed(values, "16UC1"), np.uint8))
    np.testing.assert_allclose(decode_depth(message), [[0, 1], [2.5, 65.535]], rtol=1e-6)


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (SimpleNamespace(format="16UC1; compressedDepth rvl", data=bytes(40)), "format to png"),
        (SimpleNamespace(format="16UC1; compressedDepth png", data=bytes(5)), "got .* of 5 bytes"),
        (SimpleNamespace(format="16UC1; png compressed ", data=bytes(40)), "not a png file"),
        (compressed_depth("mono8; png compressed ", np.zeros((2, 2), np.uint8)), "16 bits, got 8 bits"),
        (compressed_depth("rgb8; png compressed ", np.zeros((2, 2, 3), np.uint8)), "8 bits in colours"),
        (compressed_depth("32FC1; png compressed ", np.zeros((2, 2), np.uint16)), "metres cannot be read"),
    ],
)
def test_bad_compressed_depth_is_refused(message, problem):
    with pytest.raises(ImageError, match=problem):
        decode_depth(message)


def test_bad_depth_is_refused():
    with pytest.raises(ImageError, match="expected 16UC1, mono16, 32FC1, got 'rgb8'"):
        decode_depth(depth_message(np.zeros((2, 2), np.uint16), "rgb8"))
    short = depth_message(np.zeros((2, 2), np.float32), "32FC1")
    short.data = short.data[:-1]
    with pytest.raises(ImageError, match="got 15 bytes with step 8"):
        decode_depth(short)


def points_message(points: np.ndarray, *, big: bool = False, padding: int = 0) -> SimpleNamespace:
    """Organised points (H, W, 3) with an intensity before x and padding after each row."""
    order, (height, width, _) = (">" if big else "<"), points.shape
    kind = f"{order}{points.dtype.str[1:]}"
    record = np.dtype([("intensity", "u1"), ("x", kind), ("y", kind), ("z", kind)])
    data = np.zeros((height, width * record.itemsize + padding), np.uint8)
    for line, row in zip(data, points):
        values = np.zeros(width, record)
        for axis, name in enumerate("xyz"):
            values[name] = row[:, axis]
        line[: width * record.itemsize] = values.view(np.uint8)
    fields = [
        SimpleNamespace(
            name=name, offset=record.fields[name][1], datatype={1: 2, 4: 7, 8: 8}[record[name].itemsize]
        )
        for name in record.names
    ]
    return SimpleNamespace(
        height=height,
        width=width,
        fields=fields,
        is_bigendian=big,
        point_step=record.itemsize,
        row_step=data.shape[1],
        data=data.tobytes(),
    )


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(("big", "padding"), [(False, 0), (True, 5)])
def test_point_cloud_layouts(rng, kind, big, padding):
    points = rng.normal(size=(2, 3, 3)).astype(kind)
    found = decode_points(points_message(points, big=big, padding=padding))
    assert found.dtype == kind
    np.testing.assert_array_equal(found, points.reshape(6, 3))
    empty = decode_points(points_message(points[:, :0]))
    assert empty.shape == (0, 3)


def test_bad_points_are_refused():
    good = points_message(np.zeros((2, 3, 3), np.float32))
    short = SimpleNamespace(**{**vars(good), "data": good.data[:-1]})
    with pytest.raises(ImageError, match="2 rows of 3 points of 13 bytes .* got 77 bytes with row_step 39"):
        decode_points(short)
    without = SimpleNamespace(**{**vars(good), "fields": good.fields[:2]})
    with pytest.raises(ImageError, match="no field y, z; expected x, y and z, got intensity, x"):
        decode_points(without)
    integers = SimpleNamespace(
        **{**vars(good), "fields": [*good.fields[:3], SimpleNamespace(name="z", offset=9, datatype=5)]}
    )
    with pytest.raises(ImageError, match="got 7, 7, 5"):
        decode_points(integers)
    outside = SimpleNamespace(**{**vars(good), "point_step": 12})
    with pytest.raises(ImageError, match="data too short"):
        decode_points(outside)


def test_colours_of_the_classes():
    palette = np.zeros((256, 3), np.uint8)
    palette[7] = 1, 2, 3
    cloud = cloud_from_depth(
        np.ones((2, 4), np.float32), SMALL, np.full((2, 4), 7, np.uint8), palette=palette, keep=CloudFilter()
    )
    assert [row[3] for row in rows(cloud)] == [(1, 2, 3)] * 8


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"distortion": (0.1, 0.2, 0.3)}, "got 3 coefficients"),
        ({"distortion": (0.1,) * 5, "model": "equidistant"}, "got 5 coefficients"),
        ({"distortion": (float("nan"),) * 5}, "finite"),
        ({"matrix": (0.0, 1.0, 0.0, 0.0)}, "not calibrated"),
        ({"model": "mystery"}, "unknown distortion model"),
        ({"width": 0}, "empty image"),
    ],
)
def test_bad_intrinsics_are_refused(values, problem):
    with pytest.raises(ConfigError, match=problem):
        Camera(**{"width": 4, "height": 4, "matrix": (1.0, 1.0, 0.0, 0.0), **values})
    for bad in ({"min_range_m": 3, "max_range_m": 2}, {"stride": 0}):
        with pytest.raises(ConfigError):
            CloudFilter(**bad)


def test_camera_info():
    info = SimpleNamespace(
        width=4,
        height=2,
        distortion_model="plumb_bob",
        d=[0.1, 0, 0, 0, 0],
        k=[2.0, 0, 1, 0, 3, 0.5, 0, 0, 1],
        p=[5.0, 0, 1.5, 0, 0, 6, 0.75, 0, 0, 0, 1, 0],
    )
    assert Camera.from_camera_info(info).matrix == (2.0, 3.0, 1.0, 0.5)
    assert Camera.from_camera_info(info).distortion == (0.1, 0, 0, 0, 0)
    rectified = Camera.from_camera_info(info, rectified=True)
    assert rectified.matrix == (5.0, 6.0, 1.5, 0.75) and rectified.distortion == ()
    info.d = [0.0] * 5
    assert Camera.from_camera_info(info).distortion == ()


def test_the_street_s_road_is_flat(tmp_path):
    """The synthetic street's depth is exact: road points lie in one plane at one height below the camera."""
    from vtseg_ros.bags.bag_reader import BagReader
    from vtseg_ros.bags.label_messages import decode_label
    from vtseg_ros.label_set import STREET

    bag = tmp_path / "street"
    assert (
        main(["synth", "--out", str(bag), "--scene", "5", "--frames", "2", "--size", "320x96", "--no-flow"])
        == 0
    )
    with BagReader(bag) as reader:
        found = {topic: message for topic, _, message in reader.messages()}
    info = found["/camera/camera_info"]
    info = SimpleNamespace(
        width=info.width,
        height=info.height,
        k=info.K if hasattr(info, "K") else info.k,
        d=info.d,
        p=info.p,
        distortion_model=info.distortion_model,
    )
    mask = decode_label(found["/camera/label"])
    road = frozenset({STREET.names.index("road")})
    cloud = cloud_from_depth(
        decode_depth(found["/camera/depth"]),
        Camera.from_camera_info(info),
        mask,
        keep=CloudFilter(classes=road, max_range_m=25.0),
    )
    assert len(cloud) > 500
    # The camera may look down a little: height below it is a linear function of x and z.
    plane = np.column_stack([cloud[:, 0], cloud[:, 2], np.ones(len(cloud))]).astype(np.float64)
    solution, *_ = np.linalg.lstsq(plane, cloud[:, 1].astype(np.float64), rcond=None)
    assert 1.0 < solution[2] < 3.0  # a camera on a car
    assert np.abs(plane @ solution - cloud[:, 1]).max() < 0.02
