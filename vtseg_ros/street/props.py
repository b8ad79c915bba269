# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Objects next to the road: each function adds one object at the origin to a mesh. Metres, z up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from vtseg_ros.label_set import IGNORE, STREET
from vtseg_ros.street.mesh import Mesh, blob_corners, box_corners, box_uv, loft_corners, ring

ID = {name: index for index, name in enumerate(STREET.names)}

FACADES = {
    "city": ("facade_flat", "facade_glass", "facade_brick"),
    "suburb": ("facade_house", "facade_brick"),
    "hall": ("metal", "plank"),
}
WALL_COLORS = (
    (0.86, 0.80, 0.70),
    (0.78, 0.62, 0.52),
    (0.92, 0.90, 0.86),
    (0.66, 0.70, 0.74),
    (0.84, 0.72, 0.56),
)
ROOF_COLORS = ((0.62, 0.36, 0.28), (0.46, 0.42, 0.42), (0.52, 0.30, 0.26))


def box(
    mesh: Mesh,
    low: Sequence[float],
    high: Sequence[float],
    *,
    label: int,
    color: ArrayLike = (1, 1, 1),
    texture: str = "plain",
    scale: float = 2.0,
    lit: bool = True,
) -> None:
    """Add an axis-aligned box whose texture repeats every `scale` metres."""
    mesh.add(
        box_corners(low, high),
        uv=box_uv(low, high, scale),
        label=label,
        color=color,
        texture=texture,
        lit=lit,
    )


def post(
    mesh: Mesh, x: float, y: float, z0: float, z1: float, radius: float, *, label: int, color: ArrayLike
) -> None:
    """Add an upright pole with six sides."""
    sides = loft_corners(ring(radius, z0, 6, x=x, y=y), ring(radius * 0.85, z1, 6, x=x, y=y))
    mesh.add(sides, label=label, color=color, texture="metal")


def building(
    mesh: Mesh, rng: np.random.Generator, kind: str, width: float, depth: float, height: float
) -> None:
    """Add a building, `width` along y and `depth` along +x, its front at x = 0; with a gabled roof in the suburbs."""
    color = np.array(WALL_COLORS[rng.integers(len(WALL_COLORS))]) * rng.uniform(0.8, 1.05)
    texture = FACADES[kind][rng.integers(len(FACADES[kind]))]
    label = ID["building"]
    low, high = (0.0, -width / 2, 0.0), (depth, width / 2, height)
    box(mesh, low, high, label=label, color=np.minimum(color, 1), texture=texture, scale=12.0)
    roof = ROOF_COLORS[rng.integers(len(ROOF_COLORS))]
    if kind == "suburb":
        eave, ridge, over = height, height + depth * 0.32, 0.5
        y0, y1, middle = -width / 2 - over, width / 2 + over, depth / 2
        slopes = [
            [[-over, y1, eave], [-over, y0, eave], [middle, y0, ridge], [middle, y1, ridge]],
            [[depth + over, y0, eave], [depth + over, y1, eave], [middle, y1, ridge], [middle, y0, ridge]],
        ]
        mesh.add(slopes, label=label, color=roof, texture="roof", uv=[[[0, 0], [4, 0], [4, 3], [0, 3]]] * 2)
        gables = [
            [[-over, y0, eave], [depth + over, y0, eave], [middle, y0, ridge], [middle, y0, ridge]],
            [[depth + over, y1, eave], [-over, y1, eave], [middle, y1, ridge], [middle, y1, ridge]],
        ]
        mesh.add(gables, label=label, color=np.minimum(color, 1), texture="plain")
    else:
        rim = (-0.2, -width / 2 - 0.2, height - 0.5), (depth, width / 2 + 0.2, height + 0.3)
        box(mesh, *rim, label=label, color=np.minimum(color * 0.75, 1), texture="metal", scale=6.0)


def tree(mesh: Mesh, rng: np.random.Generator, height: float, *, conifer: bool = False) -> None:
    """Add a trunk with a crown of bumpy blobs, or a conifer of cones; class `tree`."""
    tint = np.array([rng.uniform(0.6, 1.0), rng.uniform(0.75, 1.05), rng.uniform(0.5, 0.85)])
    radius = height * 0.022 + 0.06
    trunk = loft_corners(ring(radius, 0.0, 6), ring(radius * 0.6, height * 0.6, 6))
    mesh.add(trunk, label=ID["tree"], color=(0.9, 0.85, 0.8), texture="bark")
    if conifer:
        for level in range(3):
            base = height * (0.18 + 0.25 * level)
            wide = height * (0.24 - 0.06 * level)
            cone = loft_corners(ring(wide, base, 8), ring(0.05, base + height * 0.36, 8), cap=False)
            mesh.add(cone, label=ID["tree"], color=tint * (0.62, 0.78, 0.72), texture="leaves")
        return
    for _ in range(int(rng.integers(2, 5))):
        center = (rng.normal(0, height * 0.1), rng.normal(0, height * 0.1), height * rng.uniform(0.58, 0.84))
        radii = height * rng.uniform(0.16, 0.26) * np.array([1.0, 1.0, rng.uniform(0.7, 1.0)])
        shade = np.clip(tint * rng.uniform(0.85, 1.1), 0, 1)
        mesh.add(
            blob_corners(rng, center, radii), label=ID["tree"], color=shade, texture="leaves", uv=_crown_uv()
        )


def _crown_uv() -> np.ndarray:
    uv = [[[a, p], [a + 1, p], [a + 1, p + 1], [a, p + 1]] for p in range(5) for a in range(8)]
    return np.array(uv, np.float64) * 0.5


def bush(mesh: Mesh, rng: np.random.Generator, size: float) -> None:
    """Add a low shrub; class `vegetation`."""
    tint = (rng.uniform(0.7, 1.0), rng.uniform(0.85, 1.0), rng.uniform(0.5, 0.8))
    corners = blob_corners(rng, (0, 0, size * 0.42), (size * 0.7, size * 0.7, size * 0.55), roughness=0.3)
    mesh.add(corners, label=ID["vegetation"], color=tint, texture="hedge", uv=_crown_uv())


def hedge(mesh: Mesh, rng: np.random.Generator, length: float, height: float) -> None:
    """Add a clipped hedge along y; class `vegetation`."""
    tint = (rng.uniform(0.75, 1.0), rng.uniform(0.85, 1.0), rng.uniform(0.55, 0.8))
    low, high = (0.0, -length / 2, 0.0), (0.8, length / 2, height)
    box(mesh, low, high, label=ID["vegetation"], color=tint, texture="hedge", scale=1.5)


def guardrail(mesh: Mesh, length: float, side: float) -> None:
    """Add a rail with posts along y; `side` is +1 if the road is at -x."""
    color = (0.80, 0.82, 0.84)
    box(
        mesh,
        (-0.06, -length / 2, 0.42),
        (0.06, length / 2, 0.76),
        label=ID["guardrail"],
        color=color,
        texture="metal",
    )
    for y in np.arange(-length / 2 + 1.0, length / 2, 2.0):
        low, high = (0.06 * side - 0.05, y - 0.06, 0.0), (0.06 * side + 0.05, y + 0.06, 0.7)
        box(mesh, low, high, label=ID["guardrail"], color=(0.55, 0.56, 0.58), texture="metal")


def lamp(mesh: Mesh, rng: np.random.Generator, side: float) -> None:
    """Add a street lamp whose arm reaches over the road; class `pole`."""
    height, color = (
        rng.uniform(5.5, 8.0),
        rng.choice(((0.42, 0.45, 0.46), (0.62, 0.62, 0.60), (0.25, 0.30, 0.27))),
    )
    post(mesh, 0, 0, 0, height, 0.11, label=ID["pole"], color=color)
    reach = -side * 1.6
    low, high = (min(0.0, reach), -0.06, height - 0.12), (max(0.0, reach), 0.06, height)
    box(mesh, low, high, label=ID["pole"], color=color)
    low, high = (reach - 0.3, -0.12, height - 0.2), (reach + 0.3, 0.12, height - 0.08)
    box(mesh, low, high, label=ID["pole"], color=(0.9, 0.9, 0.84))


def wooden_pole(mesh: Mesh, rng: np.random.Generator) -> None:
    """Add a telephone pole with a cross-arm; class `pole`."""
    height = rng.uniform(6.5, 8.5)
    post(mesh, 0, 0, 0, height, 0.13, label=ID["pole"], color=(0.42, 0.33, 0.26))
    box(
        mesh,
        (-0.8, -0.06, height - 0.8),
        (0.8, 0.06, height - 0.66),
        label=ID["pole"],
        color=(0.40, 0.32, 0.25),
    )


def bollard(mesh: Mesh, rng: np.random.Generator) -> None:
    """Add a knee-high post; class `pole`."""
    color = rng.choice(((0.9, 0.9, 0.88), (0.32, 0.32, 0.34), (0.75, 0.30, 0.22)))
    post(mesh, 0, 0, 0, rng.uniform(0.9, 1.2), 0.08, label=ID["pole"], color=color)


def sign(mesh: Mesh, rng: np.random.Generator) -> None:
    """Add a traffic sign on a thin pole that faces the traffic (-y); its back is grey."""
    shape = ("limit", "warning", "info", "stop")[rng.integers(4)]
    height, radius = rng.uniform(2.2, 2.8), rng.uniform(0.38, 0.52)
    post(mesh, 0, 0, 0, height, 0.045, label=ID["pole"], color=(0.66, 0.67, 0.68))
    sides, turn = {
        "limit": (10, 0.0),
        "warning": (3, np.pi / 2),
        "info": (4, np.pi / 4),
        "stop": (8, np.pi / 8),
    }[shape]
    angle = np.arange(sides) * (2 * np.pi / sides) + turn
    flat = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    _plate(mesh, flat * radius * (1.25 if sides <= 4 else 1.0), height, f"sign_{shape}")


def board(mesh: Mesh, rng: np.random.Generator) -> None:
    """Add a direction board on two poles that faces the traffic."""
    width, z = rng.uniform(1.6, 2.6), rng.uniform(2.4, 3.2)
    for x in (-width * 0.4, width * 0.4):
        post(mesh, x, 0.08, 0, z + 0.5, 0.07, label=ID["pole"], color=(0.66, 0.67, 0.68))
    flat = np.array([[-width / 2, -0.7], [width / 2, -0.7], [width / 2, 0.7], [-width / 2, 0.7]])
    _plate(mesh, flat, z, "sign_board")


def _plate(mesh: Mesh, flat: np.ndarray, z: float, texture: str) -> None:
    """Add a flat polygon (m, 2) of (x, z) around height z as a fan of triangles, with textured front and grey back."""
    after = np.roll(flat, -1, axis=0)
    reach = np.abs(flat).max(axis=0) * 2

    def fan(y: float, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        middle = np.tile([0.0, y, z], (len(flat), 1))
        put = [np.stack([p[:, 0], np.full(len(p), y), z + p[:, 1]], axis=1) for p in (first, second)]
        return np.stack([middle, put[0], put[1], put[1]], axis=1)

    uv = np.stack([np.zeros_like(flat), flat / reach, after / reach, after / reach], axis=1) + 0.5
    mesh.add(fan(-0.06, flat, after), label=ID["traffic-sign"], texture=texture, uv=uv)
    mesh.add(fan(-0.05, after, flat), label=ID["traffic-sign"], texture="metal", color=(0.6, 0.6, 0.6))


def traffic_light(mesh: Mesh, rng: np.random.Generator, side: float, *, overhead: bool) -> None:
    """Add a traffic light on a pole, and one on an arm over the road if `overhead`."""
    color, height = (0.30, 0.32, 0.33), 5.2 if overhead else 2.6
    post(mesh, 0, 0, 0, height, 0.08, label=ID["pole"], color=color)
    lit = int(rng.integers(3))
    _signal(mesh, 0.0, 2.9, lit)
    if overhead:
        reach = -side * rng.uniform(3.0, 4.5)
        low, high = (min(0.0, reach), -0.05, height - 0.1), (max(0.0, reach), 0.05, height)
        box(mesh, low, high, label=ID["pole"], color=color)
        _signal(mesh, reach, height - 0.1, lit)


def _signal(mesh: Mesh, x: float, z: float, lit: int) -> None:
    label = ID["traffic-light"]
    box(mesh, (x - 0.22, -0.34, z - 0.55), (x + 0.22, -0.1, z + 0.55), label=label, color=(0.10, 0.11, 0.10))
    for index, color in enumerate(((1.0, 0.12, 0.08), (1.0, 0.72, 0.10), (0.20, 0.95, 0.45))):
        lamp_z = z + 0.36 - 0.36 * index
        shade = np.array(color) * (1.0 if index == lit else 0.22)
        corners = [
            [x - 0.14, -0.36, lamp_z - 0.14],
            [x + 0.14, -0.36, lamp_z - 0.14],
            [x + 0.14, -0.36, lamp_z + 0.14],
            [x - 0.14, -0.36, lamp_z + 0.14],
        ]
        mesh.add(corners, label=label, color=shade, lit=False)


def misc(mesh: Mesh, rng: np.random.Generator) -> None:
    """Add an object on the pavement: a bin, bench, letter box, skip or stack of crates; class `misc`."""
    label, kind = ID["misc"], rng.integers(5)
    if kind == 0:
        color = rng.choice(((0.16, 0.34, 0.20), (0.20, 0.22, 0.26), (0.55, 0.42, 0.12)))
        box(mesh, (-0.35, -0.35, 0), (0.35, 0.35, 1.1), label=label, color=color)
        box(mesh, (-0.4, -0.4, 1.1), (0.4, 0.4, 1.2), label=label, color=np.array(color) * 0.7)
    elif kind == 1:
        for low, high in (
            ((-0.3, -0.9, 0.4), (0.3, 0.9, 0.5)),
            ((0.22, -0.9, 0.5), (0.3, 0.9, 0.95)),
            ((-0.25, -0.8, 0), (0.25, -0.7, 0.4)),
            ((-0.25, 0.7, 0), (0.25, 0.8, 0.4)),
        ):
            box(mesh, low, high, label=label, color=(0.55, 0.38, 0.24), texture="plank")
    elif kind == 2:
        color = rng.choice(((0.85, 0.72, 0.10), (0.72, 0.10, 0.10), (0.16, 0.30, 0.62)))
        box(mesh, (-0.3, -0.3, 0), (0.3, 0.3, 1.5), label=label, color=color)
    elif kind == 3:
        base = np.array([[-0.8, -1.5, 0], [0.8, -1.5, 0], [0.8, 1.5, 0], [-0.8, 1.5, 0]])
        color = rng.choice(((0.70, 0.52, 0.12), (0.30, 0.42, 0.50)))
        mesh.add(
            loft_corners(base, base * (1.15, 1.15, 1) + (0, 0, 1.3)),
            label=label,
            color=color,
            texture="metal",
        )
    else:
        for level in range(int(rng.integers(1, 4))):
            size, shift = 0.5 - 0.06 * level, rng.uniform(-0.1, 0.1)
            low, high = (-size + shift, -size, 0.7 * level), (size + shift, size, 0.7 * level + 0.7)
            box(mesh, low, high, label=label, color=(0.62, 0.50, 0.34), texture="plank")


def unknown(mesh: Mesh, rng: np.random.Generator) -> None:
    """Add an object outside the class list (the shape of a person), which stays unlabelled."""
    color = (rng.uniform(0.1, 0.7), rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.8))
    box(mesh, (-0.2, -0.15, 0), (0.2, 0.15, 0.85), label=IGNORE, color=(0.2, 0.2, 0.28))
    box(mesh, (-0.26, -0.17, 0.85), (0.26, 0.17, 1.5), label=IGNORE, color=color)
    box(mesh, (-0.12, -0.12, 1.5), (0.12, 0.12, 1.78), label=IGNORE, color=(0.82, 0.64, 0.52))
