# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The objects of a scene: static meshes in chunks along the road, and moving vehicles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vtseg_ros.street import props
from vtseg_ros.street.mesh import Mesh, yaw_matrix
from vtseg_ros.street.path import Path
from vtseg_ros.street.scenes import Scene
from vtseg_ros.street.vehicles import KINDS, LENGTH_M, vehicle

CHUNK_M = 24.0
STEP_M = 4.0
LEAD_GAP_M = 34.0
"""Start of the first vehicle in the camera's lane, m; the camera starts at 12 m."""
SHADOW = "shadow"
"""Texture name of cast shadows: visible in the image, but not in labels and depth."""


@dataclass
class Vehicle:
    """A vehicle that keeps its lane.

    Attributes:
        mesh: vehicle at the origin, heading +y.
        start, speed: distance along the road (m) at time 0 and its rate (m/s; negative: oncoming).
        lateral: metres to the right of the centre line.
        sway: amplitude (m) and period (s) of a slow change of distance.
        turned: whether it faces against the direction of the road.
    """

    mesh: Mesh
    start: float
    speed: float
    lateral: float
    sway: tuple[float, float] = (0.0, 1.0)
    turned: bool = False

    def distance(self, time_s: float) -> float:
        """Return the distance along the road at a time, m."""
        result: float = (
            self.start + self.speed * time_s + self.sway[0] * np.sin(2 * np.pi * time_s / self.sway[1])
        )
        return result

    def pose(self, path: Path, time_s: float) -> tuple[np.ndarray, float]:
        """Return world position (3,) and yaw (radians)."""
        s = self.distance(time_s)
        return path.at(s, self.lateral), path.heading(s) + (np.pi if self.turned else 0.0)


class World:
    """All objects of a scene for a drive of `seconds`.

    Args:
        scene: appearance of the road.
        seed: seed of layout and traffic; the same seed gives the same world.
        seconds: length of the drive.
        sun: unit vector (3,) to the sun, world coordinates.
    """

    def __init__(self, *, scene: Scene, seed: tuple[int, ...], seconds: float, sun: np.ndarray) -> None:
        self.scene = scene
        self.sun = sun
        self._rng = np.random.default_rng([*seed, 1])
        self.path = Path(length=scene.speed * seconds + 260.0, bend=scene.bend, rng=self._rng)
        self.half = scene.lanes * scene.lane_width / 2
        self.chunks = [Mesh() for _ in range(int(self.path.length // CHUNK_M) + 1)]
        self._ground()
        for side in (-1.0, 1.0):
            self._roadside(side)
        self.vehicles: list[Vehicle] = []
        self._parked()
        self._traffic(seconds)

    def _chunk(self, s: float) -> Mesh:
        return self.chunks[int(np.clip(s // CHUNK_M, 0, len(self.chunks) - 1))]

    def _put(self, mesh: Mesh, s: float, lateral: float, *, turned: bool = False, z: float = 0.0) -> None:
        yaw = self.path.heading(s) + (np.pi if turned else 0.0)
        self._chunk(s).extend(mesh, position=self.path.at(s, lateral, z), yaw=yaw)

    def _hill(self, s: float, side: float, reach: float) -> float:
        wave = np.sin(s / 37.0 + 2.0 * side) + 0.6 * np.sin(s / 17.0 - side)
        result: float = self.scene.hills * reach * (0.9 + 0.5 * wave)
        return result

    def _ground(self) -> None:
        scene, path = self.scene, self.path
        verge_end = self.half + scene.verge_width
        road = f"road{scene.lanes}"
        tint = np.array(scene.ground_tint)
        for s in np.arange(0.0, path.length, STEP_M):
            mesh, s1, v = self._chunk(s), s + STEP_M, s / 8.0
            uv = [[0, v], [1, v], [1, v + STEP_M / 8], [0, v + STEP_M / 8]]
            mesh.add(path.ribbon(s, s1, -self.half, self.half), label=props.ID["road"], texture=road, uv=[uv])
            for side in (-1.0, 1.0):
                edges = [
                    (self.half, verge_end, scene.verge, 0.12, 0.12),
                    (verge_end, 14.0, scene.ground, 0.12, 0.0),
                    (14.0, 40.0, scene.ground, 0.0, 0.4),
                    (40.0, 110.0, scene.ground, 0.4, 1.5),
                ]
                curb = path.ribbon(s, s1, side * self.half, side * self.half, 0.0, 0.12)
                mesh.add(curb, label=props.ID["terrain"], color=(0.72, 0.71, 0.69), texture="metal")
                for inner, outer, texture, low, high in edges:
                    z = [
                        self._hill(s, side, low) if low > 0.2 else low,
                        self._hill(s, side, high) if high > 0.2 else high,
                    ]
                    z1 = [
                        self._hill(s1, side, low) if low > 0.2 else low,
                        self._hill(s1, side, high) if high > 0.2 else high,
                    ]
                    quad = path.ribbon(s, s1, side * inner, side * outer)
                    quad[:, 2] = [z[0], z[1], z1[1], z1[0]]
                    span = (outer - inner) / 5.0
                    tiles = [[0, s / 5], [span, s / 5], [span, s1 / 5], [0, s1 / 5]]
                    if side < 0:  # keep the corners counter-clockwise seen from above
                        quad, tiles = quad[[1, 0, 3, 2]], [tiles[i] for i in (1, 0, 3, 2)]
                    mesh.add(quad, label=props.ID["terrain"], texture=texture, uv=[tiles], color=tint)

    def _spots(self, spacing: float, start: float = 4.0) -> list[float]:
        """Return distances along the road, about `spacing` apart."""
        spots, s = [], start + self._rng.uniform(0, max(spacing, 1.0))
        while spacing > 0 and s < self.path.length - 2.0:
            spots.append(s)
            s += spacing * self._rng.uniform(0.6, 1.5)
        return spots

    def _roadside(self, side: float) -> None:
        scene, rng = self.scene, self._rng
        turned = side < 0
        verge_end = self.half + scene.verge_width
        rails = self._rails(side)

        def free(s: float) -> bool:
            return not any(low - 1 < s < high + 1 for low, high in rails)

        for s in self._spots(scene.building_spacing):
            width = min(rng.uniform(0.55, 1.1) * scene.building_spacing, rng.uniform(12, 22))
            depth, height = rng.uniform(8, 13), rng.uniform(*scene.building_height)
            mesh, lateral = Mesh(), verge_end + scene.building_offset + rng.uniform(0, 2.5)
            props.building(mesh, rng, scene.building, width, depth, height)
            self._put(mesh, s, side * lateral, turned=turned)
            self._shadow_of_block(s, side * (lateral + depth / 2), depth, width, height)
        for s in self._spots(scene.tree_spacing):
            mesh, height = Mesh(), rng.uniform(4.0, 9.5)
            near = verge_end + rng.uniform(0.4, 2.2)
            far = verge_end + rng.uniform(8.0, 34.0)
            lateral = far if rng.random() < 0.4 and scene.building != "city" else near
            props.tree(mesh, rng, height, conifer=rng.random() < scene.conifers)
            self._put(mesh, s, side * lateral)
            self._shadow_disc(s, side * lateral, height * 0.26, height * 0.7)
        for s in self._spots(scene.bush_spacing):
            mesh = Mesh()
            props.bush(mesh, rng, rng.uniform(0.9, 2.0))
            self._put(mesh, s, side * (verge_end + rng.uniform(0.3, 6.0)))
        for s in self._spots(scene.hedge_spacing):
            mesh = Mesh()
            props.hedge(mesh, rng, rng.uniform(5.0, 10.0), rng.uniform(0.9, 1.7))
            self._put(mesh, s, side * (verge_end + rng.uniform(0.3, 1.0)), turned=turned)
        edge = self.half + 0.55
        for s in self._spots(scene.lamp_spacing):
            self._with(props.lamp, s, side * edge, rng, side)
            self._shadow_disc(s, side * edge, 0.2, 1.2)
        for s in self._spots(scene.wooden_spacing):
            self._with(props.wooden_pole, s, side * (verge_end + 0.5), rng)
        for s in self._spots(scene.bollard_spacing):
            if free(s):
                self._with(props.bollard, s, side * (self.half + 0.35), rng)
        for s in self._spots(scene.sign_spacing):
            self._with(
                props.sign,
                s,
                side * (self.half + rng.uniform(0.7, 1.4)),
                rng,
                turned=turned and rng.random() < 0.5,
            )
        for s in self._spots(scene.board_spacing):
            self._with(props.board, s, side * (verge_end + 0.8), rng)
        for s in self._spots(scene.light_spacing):
            mesh = Mesh()
            props.traffic_light(mesh, rng, side, overhead=rng.random() < 0.6)
            self._put(mesh, s, side * edge)
        for s in self._spots(scene.misc_spacing):
            self._with(
                props.misc, s, side * (self.half + rng.uniform(1.2, scene.verge_width + 1.0)), rng, z=0.1
            )
        for s in self._spots(scene.person_spacing):
            self._with(
                props.unknown, s, side * (self.half + rng.uniform(1.0, scene.verge_width + 0.5)), rng, z=0.1
            )

    def _with(
        self,
        make: Callable[..., None],
        s: float,
        lateral: float,
        *args: object,
        turned: bool = False,
        z: float = 0.0,
    ) -> None:
        mesh = Mesh()
        make(mesh, *args)
        self._put(mesh, s, lateral, turned=turned, z=z)

    def _rails(self, side: float) -> list[tuple[float, float]]:
        """Add guardrails and return the (start, end) distances that they cover."""
        spans, share = [], self.scene.rail_share
        s = self._rng.uniform(0, 40)
        while s < self.path.length - STEP_M:
            length = self._rng.uniform(24, 70)
            for part in np.arange(s, min(s + length, self.path.length - STEP_M), STEP_M):
                mesh = Mesh()
                props.guardrail(mesh, STEP_M, side)
                self._put(mesh, part + STEP_M / 2, side * (self.half + 0.4))
            spans.append((s, s + length))
            s += length / max(share, 0.02) * self._rng.uniform(0.8, 1.2)
        return spans

    def _parked(self) -> None:
        if self.scene.parked_spacing <= 0:
            return
        for side in (-1.0, 1.0):
            for s in self._spots(self.scene.parked_spacing):
                lateral = side * (self.half + 1.2)
                if self.scene.rail_share > 0.5:
                    lateral = side * (self.half + self.scene.verge_width + 3.0)
                self.vehicles.append(Vehicle(self._vehicle(), s, 0.0, lateral, turned=side < 0))

    def _vehicle(self) -> Mesh:
        kind = KINDS[int(self._rng.choice(3, p=self.scene.kinds))]
        mesh = vehicle(kind, self._rng)
        half_length = LENGTH_M[kind] / 2 + 0.2
        shadow = [
            [-1.25, -half_length, 0.04],
            [1.25, -half_length, 0.04],
            [1.25, half_length, 0.04],
            [-1.25, half_length, 0.04],
        ]
        mesh.add(shadow, label=0, texture=SHADOW, lit=False)
        return mesh

    def _traffic(self, seconds: float) -> None:
        scene, rng, width = self.scene, self._rng, self.scene.lane_width
        lane = [-self.half + width * (index + 0.5) for index in range(scene.lanes)]
        ego = self.ego_lane()
        reach = scene.speed * seconds + 240.0
        oncoming = lane[: max(1, scene.lanes // 2)]
        for lateral in oncoming:
            speed, s = -scene.speed * rng.uniform(0.9, 1.15), rng.uniform(20, 50)
            while s < reach + abs(speed) * seconds:
                self.vehicles.append(Vehicle(self._vehicle(), s, speed, lateral, turned=True))
                s += scene.traffic_gap * rng.uniform(0.6, 1.8) + 9.0
        s = LEAD_GAP_M + rng.uniform(0, 16)
        while s < 170:
            sway = (rng.uniform(1.0, 4.0), rng.uniform(9.0, 17.0))
            self.vehicles.append(Vehicle(self._vehicle(), s, scene.speed, ego, sway))
            s += rng.uniform(24, 48)
        for lateral in lane[len(oncoming) :]:
            if abs(lateral - ego) > 0.1:
                s = -20.0
                while s < 180:
                    speed = scene.speed * rng.uniform(0.85, 1.12)
                    self.vehicles.append(Vehicle(self._vehicle(), s, speed, lateral))
                    s += rng.uniform(22, 55)

    def ego_lane(self) -> float:
        """Return the lateral position of the camera's lane, m."""
        return self.half - self.scene.lane_width / 2

    def _shadow_vector(self, height: float) -> np.ndarray:
        flat = -self.sun[:2] / max(self.sun[2], 0.15)
        result: np.ndarray = np.clip(flat * height, -16.0, 16.0)
        return result

    def _shadow_of_block(self, s: float, lateral: float, depth: float, width: float, height: float) -> None:
        base, heading = self.path.at(s, lateral), self.path.heading(s)
        local = np.array(
            [
                [-depth / 2, -width / 2, 0],
                [depth / 2, -width / 2, 0],
                [depth / 2, width / 2, 0],
                [-depth / 2, width / 2, 0],
            ]
        )
        foot = local @ yaw_matrix(heading).T + base
        shift = np.array([*self._shadow_vector(height), 0.0])
        outline = _convex_hull(np.concatenate([foot, foot + shift])[:, :2])
        middle = outline.mean(axis=0)
        after = np.roll(outline, -1, axis=0)
        quads = np.stack([np.tile(middle, (len(outline), 1)), outline, after, after], axis=1)
        quads = np.concatenate([quads, np.full((*quads.shape[:2], 1), 0.15)], axis=2)
        solid = np.full((len(outline), 4, 2), 0.5)
        self._chunk(s).add(quads, label=0, texture=SHADOW, uv=solid, lit=False)

    def _shadow_disc(self, s: float, lateral: float, radius: float, height: float) -> None:
        x, y = self.path.at(s, lateral)[:2] + self._shadow_vector(height)
        disc = [
            [x - radius, y - radius, 0.16],
            [x + radius, y - radius, 0.16],
            [x + radius, y + radius, 0.16],
            [x - radius, y + radius, 0.16],
        ]
        self._chunk(s).add(disc, label=0, texture=SHADOW, lit=False)


def _convex_hull(points: np.ndarray) -> np.ndarray:
    """Return the corners (m, 2) of the convex hull, counter-clockwise seen from above."""
    import cv2

    return cv2.convexHull(points.astype(np.float32), clockwise=False)[:, 0].astype(np.float64)
