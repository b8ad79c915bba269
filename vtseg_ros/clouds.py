# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Labelled point clouds: a mask combined with a registered depth image or with the points of a laser or depth sensor.

Coordinates are metres. Camera frames are optical frames (REP 103): x to the right, y down, z forward.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import cv2
import numpy as np

from vtseg_ros.bags.png import read_png
from vtseg_ros.bags.zstd_transport import is_packed, unpack
from vtseg_ros.errors import ConfigError, ImageError
from vtseg_ros.label_set import IGNORE

FISHEYE_MODELS = ("equidistant",)
PINHOLE_MODELS = ("plumb_bob", "rational_polynomial", "")
FISHEYE_COEFFICIENTS = (0, 4)
PINHOLE_COEFFICIENTS = (0, 4, 5, 8, 12, 14)
POINT_STEP = 24
FIELDS = (
    ("x", 0, "float32"),
    ("y", 4, "float32"),
    ("z", 8, "float32"),
    ("rgb", 12, "float32"),
    ("label", 16, "uint8"),
    ("confidence", 20, "float32"),
)
"""(name, offset in bytes, type) of a point's fields; `rgb` contains 0x00RRGGBB in the bits of a float32, as PCL and RViz expect."""
MILLIMETRES = ("16UC1", "mono16")
METRES = ("32FC1",)
POINT_TYPES = {7: "f4", 8: "f8"}
"""Allowed values of sensor_msgs/PointField's datatype for coordinates."""
BLOCK_ROWS = 32
_DEPTH_HEADER = struct.Struct("<iff")
_POINT = np.dtype((np.void, POINT_STEP))


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Intrinsics of a camera.

    Args:
        width, height: image size in px.
        matrix: (fx, fy, cx, cy) in px.
        distortion: coefficients of the model; empty for an ideal or rectified image.
        model: `plumb_bob`, `rational_polynomial` or `equidistant`, as in sensor_msgs/CameraInfo.

    Raises:
        ConfigError: if a focal length is not positive, the distortion model is unknown, or it does not have that number
            of coefficients.
    """

    width: int
    height: int
    matrix: tuple[float, float, float, float]
    distortion: tuple[float, ...] = ()
    model: str = "plumb_bob"

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ConfigError(
                f"camera_info: empty image; expected a size above 0, got {self.width}x{self.height}"
            )
        if not (self.matrix[0] > 0 and self.matrix[1] > 0):
            raise ConfigError(
                f"camera_info: not calibrated; expected focal lengths above 0, got {self.matrix[0]}, {self.matrix[1]}"
            )
        if self.model not in (*PINHOLE_MODELS, *FISHEYE_MODELS):
            known = ", ".join([*PINHOLE_MODELS[:-1], *FISHEYE_MODELS])
            raise ConfigError(
                f"camera_info: unknown distortion model; expected one of {known}, got {self.model!r}"
            )
        allowed = FISHEYE_COEFFICIENTS if self.model in FISHEYE_MODELS else PINHOLE_COEFFICIENTS
        if len(self.distortion) not in allowed or not np.isfinite([*self.matrix, *self.distortion]).all():
            raise ConfigError(
                f"camera_info: unusable calibration; expected finite numbers and {', '.join(map(str, allowed))} "
                f"coefficients for {self.model!r}, got {len(self.distortion)} coefficients"
            )

    @classmethod
    def from_camera_info(cls, info: Any, *, rectified: bool = False) -> Camera:
        """Read a sensor_msgs/CameraInfo.

        Args:
            info: the message; binning and region of interest must already be applied to its matrices.
            rectified: the images are rectified: use `p` without distortion instead of `k` and `d`.
        """
        if rectified:
            p = info.p
            return cls(width=info.width, height=info.height, matrix=(p[0], p[5], p[2], p[6]))
        k = info.k
        distortion = tuple(float(value) for value in info.d)
        return cls(
            width=info.width,
            height=info.height,
            matrix=(k[0], k[4], k[2], k[5]),
            distortion=distortion if any(distortion) else (),
            model=info.distortion_model,
        )

    def resized(self, width: int, height: int) -> Camera:
        """Return the intrinsics of the same image at another size; pixel centres are at integers."""
        if (width, height) == (self.width, self.height):
            return self
        sx, sy = width / self.width, height / self.height
        fx, fy, cx, cy = self.matrix
        matrix = (fx * sx, fy * sy, (cx + 0.5) * sx - 0.5, (cy + 0.5) * sy - 0.5)
        return Camera(width=width, height=height, matrix=matrix, distortion=self.distortion, model=self.model)

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        fx, fy, cx, cy = self.matrix
        k = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        return k, np.array(self.distortion)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Project points in the camera's frame into the image.

        Args:
            points: (N, 3) float, z above 0.

        Returns:
            (N, 2) float64 px: column, row.
        """
        k, d = self._arrays()
        points = np.ascontiguousarray(points, np.float64)
        if not len(d):
            fx, fy, cx, cy = self.matrix
            result: np.ndarray = points[:, :2] / points[:, 2:] * (fx, fy) + (cx, cy)
            return result
        if self.model in FISHEYE_MODELS:
            return cv2.fisheye.projectPoints(points[:, None], np.zeros(3), np.zeros(3), k, d)[0][:, 0]
        return cv2.projectPoints(points, np.zeros(3), np.zeros(3), k, d)[0][:, 0]

    def rays(self, stride: int = 1) -> np.ndarray:
        """Return the directions of the pixels, (2, H', W') float32: x / z and y / z of every `stride`-th px."""
        return _rays(self, stride)


@lru_cache(maxsize=8)
def _rays(camera: Camera, stride: int) -> np.ndarray:
    columns, rows = np.meshgrid(
        np.arange(0, camera.width, stride, dtype=np.float64),
        np.arange(0, camera.height, stride, dtype=np.float64),
    )
    fx, fy, cx, cy = camera.matrix
    rays: np.ndarray
    if not camera.distortion:
        rays = np.stack([(columns - cx) / fx, (rows - cy) / fy], axis=-1)
    else:
        k, d = camera._arrays()
        grid = np.stack([columns, rows], axis=-1).reshape(-1, 1, 2)
        # OpenCV's default of five iterations leaves an error of some hundredths of a px at the corners.
        until = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-6)
        if camera.model in FISHEYE_MODELS:
            rays = cv2.fisheye.undistortPoints(grid, k, d, criteria=until)
        else:
            rays = cv2.undistortPoints(grid, k, d, criteria=until)
        rays = rays.reshape(*columns.shape, 2)
    rays = np.ascontiguousarray(rays.transpose(2, 0, 1), np.float32)
    rays.flags.writeable = False
    return rays


def transform_matrix(translation: Sequence[float], quaternion: Sequence[float]) -> np.ndarray:
    """Return the (4, 4) float64 matrix of a translation in m and a quaternion (x, y, z, w), which is normalised.

    Raises:
        ConfigError: if the quaternion's length is 0 or a value is not finite.
    """
    x, y, z, w = np.asarray(quaternion, np.float64)
    norm = float(np.sqrt(x * x + y * y + z * z + w * w))
    if not norm > 0 or not np.isfinite([norm, *translation]).all():
        raise ConfigError(
            f"extrinsics: not a transform; expected finite numbers and a quaternion above 0, got {[*translation, *quaternion]}"
        )
    x, y, z, w = x / norm, y / norm, z / norm, w / norm
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = translation
    return matrix


def decode_depth(message: Any) -> np.ndarray:
    """Read a depth image.

    Args:
        message: sensor_msgs/Image, 16UC1 or mono16 in millimetres (0 = unknown) or 32FC1 in metres (NaN, inf = unknown).
            Or a CompressedImage of the transport compressed (png), compressedDepth (png) or zstd.

    Returns:
        (H, W) float32 in m; unknown depth is not finite or 0. May share memory with the message.

    Raises:
        ImageError: if the encoding is another, or the data is too short or damaged.
    """
    if is_packed(message):
        message = unpack(message)
    elif hasattr(message, "format"):
        return _decode_compressed_depth(message)
    if message.encoding not in (*MILLIMETRES, *METRES):
        raise ImageError(
            f"depth: unknown encoding; expected {', '.join((*MILLIMETRES, *METRES))}, got {message.encoding!r}"
        )
    kind = np.dtype(np.uint16 if message.encoding in MILLIMETRES else np.float32)
    kind = kind.newbyteorder(">" if message.is_bigendian else "<")
    height, width, step = message.height, message.width, message.step
    data = np.frombuffer(message.data, np.uint8)
    if height < 1 or width < 1 or step < width * kind.itemsize or data.size < step * height:
        raise ImageError(
            f"depth: data too short; expected {height} rows of at least {width * kind.itemsize} bytes, got "
            f"{data.size} bytes with step {step}"
        )
    rows = np.ndarray((height, width), kind, data, strides=(step, kind.itemsize))
    if message.encoding in MILLIMETRES:
        metres: np.ndarray = rows.astype(np.float32) * np.float32(0.001)
        return metres
    result: np.ndarray = rows.astype(np.float32, copy=False)
    return result


def _decode_compressed_depth(message: Any) -> np.ndarray:
    """Read a png file of depth values; see `decode_depth`.

    The transport compressedDepth (compressed_depth_image_transport) puts 12 bytes before it: a format (int32) and the
    quantisation a, b (float32) of metres d, which are stored as a / d + b.
    """
    encoding, _, rest = (part.strip() for part in message.format.partition(";"))
    data = np.frombuffer(message.data, np.uint8)
    quantisation: list[float] | None = None
    if "compressedDepth" in rest:
        if "rvl" in rest.lower() or data.size < _DEPTH_HEADER.size:
            raise ImageError(
                f"depth: not a png of {_DEPTH_HEADER.size} bytes and more; expected compressedDepth with the format png, "
                f"got {message.format!r} of {data.size} bytes. Set the publisher's compressedDepth.format to png"
            )
        _, *quantisation = _DEPTH_HEADER.unpack(data[: _DEPTH_HEADER.size].tobytes())
        data = data[_DEPTH_HEADER.size :]
    png = read_png(data)
    if png.has_colors or png.depth != 16:
        raise ImageError(
            f"depth: not a depth image; expected a png of one channel of 16 bits, got {png.depth} bits"
            f"{' in colours' if png.has_colors else ''}"
        )
    values = png.values.astype(np.float32)
    if encoding not in METRES:
        millimetres: np.ndarray = values * np.float32(0.001)
        return millimetres
    if quantisation is None:
        raise ImageError(
            f"depth: metres cannot be read from a png; expected 16UC1, or 32FC1 with compressedDepth, got {message.format!r}"
        )
    scale, offset = quantisation
    with np.errstate(divide="ignore"):
        metres: np.ndarray = np.float32(scale) / (values - np.float32(offset))
    metres[png.values == 0] = np.nan
    return metres


def decode_points(message: Any) -> np.ndarray:
    """Read the coordinates of a point cloud.

    Args:
        message: sensor_msgs/PointCloud2 with fields x, y and z, float32 or float64, organised or not.

    Returns:
        (N, 3) float32 or float64 in m, row by row; unknown points are not finite.

    Raises:
        ImageError: if a field is missing or has another type, or the data is too short.
    """
    fields = {field.name: field for field in message.fields}
    missing = [name for name in "xyz" if name not in fields]
    if missing:
        raise ImageError(
            f"points: no field {', '.join(missing)}; expected x, y and z, got {', '.join(fields) or 'no fields'}"
        )
    order, step = (">" if message.is_bigendian else "<"), message.point_step
    kinds = [POINT_TYPES.get(fields[name].datatype) for name in "xyz"]
    if None in kinds or len(set(kinds)) > 1:
        raise ImageError(
            f"points: unknown type of x, y, z; expected float32 (7) or float64 (8), got "
            f"{', '.join(str(fields[name].datatype) for name in 'xyz')}"
        )
    kind = np.dtype(order + cast(str, kinds[0]))
    offsets = [fields[name].offset for name in "xyz"]
    height, width, row = message.height, message.width, message.row_step
    data = np.frombuffer(message.data, np.uint8)
    if max(offsets) + kind.itemsize > step or row < width * step or data.size < row * height:
        raise ImageError(
            f"points: data too short; expected {height} rows of {width} points of {step} bytes that hold x, y and z, got "
            f"{data.size} bytes with row_step {row} and offsets {', '.join(map(str, offsets))}"
        )
    points = np.empty((height * width, 3), kind.newbyteorder("="))
    for axis, offset in enumerate(offsets if len(points) else []):
        values = np.ndarray((height, width), kind, data, offset, (row, step))
        points[:, axis] = values.reshape(-1)
    return points


@dataclass(frozen=True, kw_only=True)
class CloudFilter:
    """Points to keep.

    Args:
        classes: class ids to keep; None = all classes.
        unlabelled: keep points without a label (255) as well.
        min_range_m, max_range_m: distance along the camera's z axis, m.
        stride: use every n-th px of a depth image in both directions, or every n-th point.

    Raises:
        ConfigError: if a value is not allowed.
    """

    classes: frozenset[int] | None = None
    unlabelled: bool = False
    min_range_m: float = 0.1
    max_range_m: float = 100.0
    stride: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.min_range_m < self.max_range_m:
            raise ConfigError(
                f"range: expected 0 <= min_range < max_range in m, got {self.min_range_m} and {self.max_range_m}"
            )
        if self.stride < 1:
            raise ConfigError(f"stride: expected at least 1, got {self.stride}")

    def keeps(self) -> np.ndarray:
        """Return a table, (256,) bool: whether points of a class id are kept."""
        table = np.full(256, self.classes is None)
        if self.classes is not None:
            table[sorted(self.classes)] = True
        table[IGNORE] = self.unlabelled
        return table


def cloud_from_depth(
    depth: np.ndarray,
    camera: Camera,
    mask: np.ndarray,
    *,
    confidence: np.ndarray | None = None,
    image: np.ndarray | None = None,
    palette: np.ndarray | None = None,
    keep: CloudFilter,
) -> np.ndarray:
    """Return the labelled points of a depth image that is registered to the camera of the mask.

    Args:
        depth: (H, W) float32, m along z; not finite or out of range = no point.
        camera: intrinsics of the camera, of any size; they are scaled to the depth image.
        mask: (h, w) uint8 class ids.
        confidence: (h', w') uint8, 255 = certain; None = 255 everywhere.
        image: (h'', w'', 3) uint8 RGB, colours of the points; None = those of `palette`.
        palette: (256, 3) uint8 RGB, a colour per class id; None = black points.
        keep: points to keep.

    Returns:
        (N, 6) float32 whose rows have the layout FIELDS, in the camera's frame.
    """
    rays = camera.resized(depth.shape[1], depth.shape[0]).rays(keep.stride)
    z = depth[:: keep.stride, :: keep.stride]
    columns = np.arange(0, depth.shape[1], keep.stride)
    rows = np.arange(0, depth.shape[0], keep.stride)

    def sampled(pixels: np.ndarray) -> np.ndarray:
        """Return the values of an image of the same view, of any size, at the pixels of the depth image."""
        if pixels.shape[:2] == depth.shape:
            return pixels[:: keep.stride, :: keep.stride]
        y = (2 * rows + 1) * pixels.shape[0] // (2 * depth.shape[0])
        x = (2 * columns + 1) * pixels.shape[1] // (2 * depth.shape[1])
        result: np.ndarray = pixels[y[:, None], x]
        return result

    labels = sampled(mask)
    certainties = None if confidence is None else sampled(confidence)
    colors = None if image is None else sampled(image)
    # NaN and inf compare as False.
    kept = (z >= keep.min_range_m) & (z <= keep.max_range_m)
    kept &= cv2.LUT(labels, keep.keeps().astype(np.uint8)).view(bool)
    cloud = np.empty((np.count_nonzero(kept), POINT_STEP // 4), np.float32)
    end = 0
    # In blocks of rows, whose arrays stay in the processor's cache.
    for start in range(0, z.shape[0], BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        x_rays, y_rays = rays[:, block]
        points = _pack(
            (x_rays * z[block], y_rays * z[block], z[block]),
            labels[block],
            None if certainties is None else certainties[block],
            None if colors is None else colors[block],
            palette,
        )
        begin, end = end, end + np.count_nonzero(kept[block])
        if end - begin == len(points):
            cloud[begin:end] = points
        else:
            np.compress(
                kept[block].reshape(-1), points.view(_POINT)[:, 0], out=cloud[begin:end].view(_POINT)[:, 0]
            )
    return cloud


def cloud_from_points(
    points: np.ndarray,
    camera: Camera,
    mask: np.ndarray,
    *,
    camera_from_points: np.ndarray,
    confidence: np.ndarray | None = None,
    image: np.ndarray | None = None,
    palette: np.ndarray | None = None,
    keep: CloudFilter,
) -> np.ndarray:
    """Return the points that the camera sees, with the label of the pixel that each falls on.

    A point that is hidden from the camera gets the label of the object that hides it. Sensors next to each other see nearly
    the same surfaces; `max_range_m` limits the effect.

    Args:
        points: (N, 3) float in the sensor's frame, m; not finite = no point.
        camera: intrinsics of the camera, of any size.
        mask: (h, w) uint8 class ids.
        camera_from_points: (4, 4), from the points' frame to the camera's optical frame.
        confidence: as in `cloud_from_depth`.
        image: as in `cloud_from_depth`.
        palette: as in `cloud_from_depth`.
        keep: as in `cloud_from_depth`.

    Returns:
        (M, 6) float32 whose rows have the layout FIELDS, in the points' own frame.
    """
    points = points[:: keep.stride]
    points = points[np.isfinite(points).all(axis=1)]
    seen = points.astype(np.float64) @ camera_from_points[:3, :3].T + camera_from_points[:3, 3]
    near = (seen[:, 2] >= max(keep.min_range_m, 1e-6)) & (seen[:, 2] <= keep.max_range_m)
    points, seen = points[near], seen[near]
    if not len(points):
        return np.empty((0, POINT_STEP // 4), np.float32)
    pixels = camera.project(seen)
    # pixel centres are at integers, so the image reaches from -0.5 to width - 0.5.
    x, y = (pixels[:, 0] + 0.5) / camera.width, (pixels[:, 1] + 0.5) / camera.height
    inside = (x >= 0) & (x < 1) & (y >= 0) & (y < 1)
    points, x, y = points[inside], x[inside], y[inside]

    def sampled(pixels: np.ndarray) -> np.ndarray:
        result: np.ndarray = pixels[
            (y * pixels.shape[0]).astype(np.intp), (x * pixels.shape[1]).astype(np.intp)
        ]
        return result

    labels = sampled(mask)
    kept = keep.keeps()[labels]
    return _pack(
        tuple(points[kept].T.astype(np.float32)),
        labels[kept],
        None if confidence is None else sampled(confidence)[kept],
        None if image is None else sampled(image)[kept],
        palette,
    )


def _pack(
    coordinates: tuple[np.ndarray, np.ndarray, np.ndarray],
    labels: np.ndarray,
    confidence: np.ndarray | None,
    colors: np.ndarray | None,
    palette: np.ndarray | None,
) -> np.ndarray:
    """Arrange points in the layout of FIELDS.

    Args:
        coordinates: x, y and z of the points, arrays of one shape S, float32.
        labels: S, uint8 class ids.
        confidence: S, uint8; None = 255 everywhere.
        colors: (*S, 3) uint8 RGB; None = those of `palette`.
        palette: (256, 3) uint8 RGB; None = black.

    Returns:
        (N, 6) float32 for the N points of S.
    """
    if not labels.size:
        return np.empty((0, POINT_STEP // 4), np.float32)
    shape = labels.shape if labels.ndim == 2 else (1, labels.size)
    words = np.zeros(shape, "<u4")
    if colors is not None:
        cv2.cvtColor(
            np.ascontiguousarray(colors).reshape(*shape, 3),
            cv2.COLOR_RGB2BGRA,
            words.view(np.uint8).reshape(*shape, 4),
        )
        words &= 0xFFFFFF
    elif palette is not None:
        words[:] = (palette.astype("<u4") @ np.array([1 << 16, 1 << 8, 1], "<u4"))[labels.reshape(shape)]
    if confidence is None:
        certainty = np.ones(shape, np.float32)
    else:
        certainty = confidence.reshape(shape) * np.float32(1 / 255)
    planes = [plane.reshape(shape) for plane in coordinates]
    planes += [words.view("<f4"), labels.reshape(shape).astype("<u4").view("<f4"), certainty]
    return cv2.merge(planes).reshape(-1, POINT_STEP // 4)
