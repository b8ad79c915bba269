# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Faces of the street's objects as arrays, before they are converted to renderer geometry.

World coordinates in metres: x right, y ahead, z up. A face is a quad; a triangle repeats its last corner.
Corners run counter-clockwise seen from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike


@dataclass
class Faces:
    """n faces that share a texture.

    Attributes:
        corners: (n, 4, 3) float64, metres.
        uv: (n, 4, 2) texture coordinates.
        color: (n, 3) tint, 0..1.
        label: (n,) class ids.
        lit: whether sun and sky shade the faces (lamps are not shaded).
    """

    corners: np.ndarray
    uv: np.ndarray
    color: np.ndarray
    label: np.ndarray
    lit: bool = True


@dataclass
class Mesh:
    """Faces by texture name."""

    groups: dict[tuple[str, bool], list[Faces]] = field(default_factory=dict)

    def add(
        self,
        corners: ArrayLike,
        *,
        label: int,
        color: ArrayLike = (1.0, 1.0, 1.0),
        texture: str = "plain",
        uv: ArrayLike | None = None,
        lit: bool = True,
    ) -> None:
        """Add faces: corners (n, 4, 3) or (4, 3); colour (3,) or (n, 3); uv (n, 4, 2), default the unit square."""
        corners = np.asarray(corners, np.float64).reshape(-1, 4, 3)
        count = len(corners)
        if uv is None:
            uv = np.broadcast_to(np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64), (count, 4, 2))
        tint = np.broadcast_to(np.asarray(color, np.float64), (count, 3))
        faces = Faces(corners, np.asarray(uv, np.float64).reshape(-1, 4, 2), tint, np.full(count, label), lit)
        self.groups.setdefault((texture, lit), []).append(faces)

    def extend(self, other: Mesh, *, position: ArrayLike = (0.0, 0.0, 0.0), yaw: float = 0.0) -> None:
        """Add another mesh, turned by yaw (radians, counter-clockwise) and moved to `position`."""
        rotation = yaw_matrix(yaw)
        for key, parts in other.groups.items():
            for part in parts:
                moved = part.corners @ rotation.T + np.asarray(position, np.float64)
                self.groups.setdefault(key, []).append(
                    Faces(moved, part.uv, part.color, part.label, part.lit)
                )

    def merged(self) -> dict[tuple[str, bool], Faces]:
        """Return one `Faces` per texture."""
        return {
            key: Faces(
                np.concatenate([p.corners for p in parts]),
                np.concatenate([p.uv for p in parts]),
                np.concatenate([p.color for p in parts]),
                np.concatenate([p.label for p in parts]),
                key[1],
            )
            for key, parts in self.groups.items()
        }


def yaw_matrix(yaw: float) -> np.ndarray:
    """Return the (3, 3) rotation about z."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def face_normals(corners: np.ndarray) -> np.ndarray:
    """Return the outward unit normals (n, 3) of quads (n, 4, 3); zero for degenerate faces."""
    normal = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    triangle = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal = np.where(np.linalg.norm(normal, axis=1, keepdims=True) < 1e-9, triangle, normal)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    result: np.ndarray = normal / np.maximum(length, 1e-12)
    return result


def box_corners(low: Sequence[float], high: Sequence[float]) -> np.ndarray:
    """Return front (-y), right, back, left and top of an axis-aligned box, (5, 4, 3); the bottom is never visible."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    return np.array(
        [
            [[x0, y0, z0], [x1, y0, z0], [x1, y0, z1], [x0, y0, z1]],
            [[x1, y0, z0], [x1, y1, z0], [x1, y1, z1], [x1, y0, z1]],
            [[x1, y1, z0], [x0, y1, z0], [x0, y1, z1], [x1, y1, z1]],
            [[x0, y1, z0], [x0, y0, z0], [x0, y0, z1], [x0, y1, z1]],
            [[x0, y0, z1], [x1, y0, z1], [x1, y1, z1], [x0, y1, z1]],
        ]
    )


def box_uv(low: Sequence[float], high: Sequence[float], scale: float) -> np.ndarray:
    """Return texture coordinates (5, 4, 2) that repeat every `scale` metres."""
    width, depth, height = (np.asarray(high) - np.asarray(low)) / scale
    sides = [(width, height), (depth, height), (width, height), (depth, height), (width, depth)]
    return np.array([[[0, 0], [u, 0], [u, v], [0, v]] for u, v in sides])


def loft_corners(profile_low: np.ndarray, profile_high: np.ndarray, *, cap: bool = True) -> np.ndarray:
    """Return the sides between two polygons (m, 3) of equal corner counts, counter-clockwise from above, and a top.

    The top is a fan of triangles.
    """
    low_next, high_next = np.roll(profile_low, -1, axis=0), np.roll(profile_high, -1, axis=0)
    sides = np.stack([profile_low, low_next, high_next, profile_high], axis=1)  # (m, 4, 3)
    if not cap:
        return sides
    center = np.broadcast_to(profile_high.mean(axis=0), profile_high.shape)
    top = np.stack([profile_high, high_next, center, center], axis=1)
    return np.concatenate([sides, top])


def ring(radius: float, z: float, sides: int, *, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """Return the corners (sides, 3) of a regular polygon, counter-clockwise."""
    angle = np.arange(sides) * (2 * np.pi / sides)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle), np.full(sides, z)], axis=1)


def blob_corners(
    rng: np.random.Generator, center: ArrayLike, radii: ArrayLike, *, roughness: float = 0.2
) -> np.ndarray:
    """Return a bumpy ellipsoid of 8 x 5 patches, (n, 4, 3)."""
    around, up = 8, 5
    azimuth = np.arange(around) * (2 * np.pi / around)
    polar = np.linspace(0, np.pi, up + 1)
    bump = 1.0 + rng.uniform(-roughness, roughness, (up + 1, around))
    bump[0], bump[-1] = 1.0, 1.0
    points = np.stack(
        [
            np.sin(polar)[:, None] * np.cos(azimuth)[None],
            np.sin(polar)[:, None] * np.sin(azimuth)[None],
            -np.cos(polar)[:, None] * np.ones(around)[None],
        ],
        axis=2,
    )
    points = np.asarray(center) + points * bump[..., None] * np.asarray(radii)  # (up + 1, around, 3)
    right = np.roll(points, -1, axis=1)
    return np.stack([points[:-1], right[:-1], right[1:], points[1:]], axis=2).reshape(-1, 4, 3)
