# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Cars, vans and trucks: meshes at the origin, heading +y, wheels on z = 0. Metres."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from vtseg_ros.street.mesh import Mesh, box_corners, loft_corners
from vtseg_ros.street.props import ID, box

PAINTS = (
    (0.86, 0.86, 0.86),
    (0.12, 0.12, 0.14),
    (0.55, 0.57, 0.60),
    (0.62, 0.10, 0.10),
    (0.12, 0.22, 0.50),
    (0.20, 0.36, 0.26),
    (0.80, 0.68, 0.24),
    (0.42, 0.30, 0.22),
    (0.34, 0.50, 0.62),
)
GLASS = (0.10, 0.13, 0.16)
KINDS = ("car", "van", "truck")
LENGTH_M = {"car": 4.3, "van": 5.4, "truck": 10.5}


def _rectangle(x: float, y0: float, y1: float, z: float) -> np.ndarray:
    return np.array([[-x, y0, z], [x, y0, z], [x, y1, z], [-x, y1, z]])


def _cabin(mesh: Mesh, label: int, color: ArrayLike, low: np.ndarray, high: np.ndarray) -> None:
    """Add a cabin: glass sides between pillars, and a painted roof."""
    faces = loft_corners(low, high)
    mesh.add(faces[4:], label=label, color=color)
    for side in faces[:4]:
        mesh.add(side, label=label, color=color)
        middle = side.mean(axis=0)
        outward = np.cross(side[1] - side[0], side[3] - side[0])
        outward = outward / np.linalg.norm(outward)
        mesh.add(middle + (side - middle) * 0.84 + outward * 0.02, label=label, color=GLASS)


def _wheels(mesh: Mesh, label: int, half_width: float, axles: Sequence[float], radius: float) -> None:
    for y in axles:
        for side in (-1, 1):
            x0, x1 = sorted((side * (half_width - 0.22), side * (half_width + 0.02)))
            box(
                mesh,
                (x0, y - radius, 0.0),
                (x1, y + radius, radius * 1.8),
                label=label,
                color=(0.06, 0.06, 0.06),
            )


def _lights(mesh: Mesh, label: int, half_width: float, y_front: float, y_rear: float, z: float) -> None:
    for side in (-1, 1):
        x0, x1 = sorted((side * (half_width - 0.4), side * (half_width - 0.05)))
        front, rear = box_corners((x0, y_rear - 0.02, z), (x1, y_front + 0.02, z + 0.16))[[2, 0]]
        mesh.add(front, label=label, color=(0.98, 0.96, 0.86), lit=False)
        mesh.add(rear, label=label, color=(0.75, 0.06, 0.05), lit=False)


def _car(mesh: Mesh, rng: np.random.Generator, color: ArrayLike) -> None:
    label, half = ID["car"], rng.uniform(0.84, 0.93)
    length, roof = rng.uniform(1.9, 2.3), rng.uniform(1.38, 1.62)
    mesh.add(
        loft_corners(_rectangle(half, -length, length, 0.28), _rectangle(half, -length, length, 0.62)),
        label=label,
        color=color,
    )
    mesh.add(
        loft_corners(
            _rectangle(half, -length, length, 0.62), _rectangle(half * 0.94, -length + 0.1, length - 0.2, 0.9)
        ),
        label=label,
        color=color,
    )
    rear = -length + rng.uniform(0.15, 0.9)
    _cabin(
        mesh,
        label,
        color,
        _rectangle(half * 0.92, rear, length - 1.1, 0.9),
        _rectangle(half * 0.72, rear + rng.uniform(0.2, 0.6), length - 1.9, roof),
    )
    _wheels(mesh, label, half, (-length + 0.8, length - 0.85), 0.33)
    _lights(mesh, label, half, length, -length, 0.66)


def _van(mesh: Mesh, rng: np.random.Generator, color: ArrayLike) -> None:
    label, half, roof = ID["van"], rng.uniform(0.96, 1.04), rng.uniform(1.95, 2.5)
    length = rng.uniform(2.4, 2.8)
    mesh.add(
        loft_corners(_rectangle(half, -length, length, 0.32), _rectangle(half, -length, length, 1.1)),
        label=label,
        color=color,
    )
    cargo = rng.random() < 0.6
    split = length - (1.9 if cargo else 1.2)
    mesh.add(
        loft_corners(
            _rectangle(half, -length, split, 1.1), _rectangle(half * 0.95, -length + 0.05, split, roof)
        ),
        label=label,
        color=color,
    )
    _cabin(
        mesh,
        label,
        color,
        _rectangle(half * 0.97, split, length - 0.35, 1.1),
        _rectangle(half * 0.9, split, length - 1.0, roof - 0.05),
    )
    if not cargo:
        side = box_corners((-half - 0.02, -length + 0.3, 1.2), (half + 0.02, split - 0.2, roof - 0.35))[
            [1, 3]
        ]
        mesh.add(side, label=label, color=GLASS)
    back = [
        [-half * 0.7, -length - 0.02, 1.25],
        [half * 0.7, -length - 0.02, 1.25],
        [half * 0.7, -length + 0.02, roof - 0.3],
        [-half * 0.7, -length + 0.02, roof - 0.3],
    ]
    mesh.add(back, label=label, color=GLASS)
    _wheels(mesh, label, half, (-length + 0.9, length - 0.9), 0.36)
    _lights(mesh, label, half, length, -length, 0.75)


def _truck(mesh: Mesh, rng: np.random.Generator, color: ArrayLike) -> None:
    label, half, length = ID["truck"], 1.22, rng.uniform(4.6, 6.0)
    cargo = np.array(PAINTS[rng.integers(len(PAINTS))]) * 0.9 + 0.1
    box(
        mesh,
        (-half, -length, 0.95),
        (half, length - 2.4, rng.uniform(3.0, 3.7)),
        label=label,
        color=np.clip(cargo, 0, 1),
        texture="metal",
        scale=3.0,
    )
    box(
        mesh,
        (-half * 0.8, -length, 0.55),
        (half * 0.8, length - 0.3, 0.95),
        label=label,
        color=(0.15, 0.15, 0.16),
    )
    mesh.add(
        loft_corners(
            _rectangle(half, length - 2.2, length, 0.5), _rectangle(half, length - 2.2, length, 1.6)
        ),
        label=label,
        color=color,
    )
    _cabin(
        mesh,
        label,
        color,
        _rectangle(half, length - 2.2, length, 1.6),
        _rectangle(half * 0.95, length - 2.15, length - 0.25, 2.8),
    )
    _wheels(mesh, label, half, (-length + 1.0, -length + 2.2, length - 1.2), 0.48)
    _lights(mesh, label, half, length, -length, 1.0)


def vehicle(kind: str, rng: np.random.Generator) -> Mesh:
    """Build a vehicle of a kind (`car`, `van`, `truck`) with random proportions and paint."""
    mesh = Mesh()
    color = np.clip(np.array(PAINTS[rng.integers(len(PAINTS))]) * rng.uniform(0.85, 1.1), 0, 1)
    {"car": _car, "van": _van, "truck": _truck}[kind](mesh, rng, color)
    return mesh
