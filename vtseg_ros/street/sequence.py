# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A drive through a scene, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import STREET
from vtseg_ros.street.geometry import FOCAL_PER_WIDTH, FrameGeometry, pose_matrix
from vtseg_ros.street.lens import expose, sky_panorama
from vtseg_ros.street.renderer import Renderer
from vtseg_ros.street.scenes import SCENES, VARIATIONS, Variation
from vtseg_ros.street.textures import build_textures
from vtseg_ros.street.world import World

RATE_HZ = 10
CAMERA_HEIGHT_M = 1.65
START_M = 12.0


@dataclass(frozen=True)
class StreetFrame:
    """One frame with labels, depth and optical flow.

    Attributes:
        rgb: (H, W, 3) uint8.
        label: (H, W) uint8 class ids of `labels.STREET`; 255 = undefined.
        depth: (H, W) float32, m along the optical axis; inf for the sky, NaN for the few pixels of faces seen edge-on.
        flow_forward, flow_backward: (H, W, 2) float32 (dx, dy) px from this frame to the next / previous;
            NaN where the point is behind that frame's camera, and where the depth is NaN.
        focal: focal length in px; the principal point is the middle of the image.
        stamp_ns: time of the frame, ns.
        frame_id: scene and variation.
    """

    rgb: np.ndarray
    label: np.ndarray
    depth: np.ndarray
    flow_forward: np.ndarray
    flow_backward: np.ndarray
    focal: float
    stamp_ns: int
    frame_id: str


def _sun(variation: Variation) -> np.ndarray:
    azimuth, elevation = np.radians(variation.sun)
    flat = np.cos(elevation)
    return np.array([-np.sin(azimuth) * flat, np.cos(azimuth) * flat, np.sin(elevation)])


class _Drive:
    """Poses of the camera and of the vehicles over time."""

    def __init__(self, world: World, variation: Variation) -> None:
        self._world, self._yaw = world, np.radians(variation.yaw)

    def camera(self, time_s: float) -> np.ndarray:
        world = self._world
        s = START_M + world.scene.speed * time_s + 0.8 * np.sin(time_s / 2.1)
        bob = 0.018 * np.sin(time_s * 5.3) + 0.012 * np.sin(time_s * 8.9)
        position = world.path.at(s, world.ego_lane() + 0.15 * np.sin(time_s / 3.0), CAMERA_HEIGHT_M + bob)
        return pose_matrix(position, world.path.heading(s + 4.0) + self._yaw, 0.10 * bob - 0.01)

    def objects(self, time_s: float) -> np.ndarray:
        poses = [np.eye(4)]
        poses += [pose_matrix(*vehicle.pose(self._world.path, time_s)) for vehicle in self._world.vehicles]
        return np.stack(poses)


def render_sequence(
    *,
    scene: int = 1,
    variation: str = "clone",
    frames: int = 100,
    size: tuple[int, int] = (640, 192),
    seed: int = 0,
    start_ns: int = 1_000_000_000,
) -> Iterator[StreetFrame]:
    """Render a drive at 10 Hz.

    The same arguments give the same frames; variations of a scene and seed share layout and traffic.

    Args:
        scene: 1 to 5.
        variation: a key of `VARIATIONS`.
        frames: number of frames.
        size: (width, height) px.
        seed: seed of layout, traffic and noise.
        start_ns: stamp of the first frame, ns.

    Raises:
        ConfigError: for an unknown scene or variation, or a size below 16x16.
    """
    if scene not in SCENES:
        raise ConfigError(f"scene: unknown; expected one of {', '.join(map(str, SCENES))}, got {scene}")
    if variation not in VARIATIONS:
        raise ConfigError(f"variation: unknown; expected one of {', '.join(VARIATIONS)}, got {variation!r}")
    if frames < 1 or min(size) < 16:
        raise ConfigError(
            f"frames, size: out of range; expected at least 1 frame of 16x16 px, got {frames} of {size[0]}x{size[1]}"
        )
    if seed < 0:
        raise ConfigError(f"seed: out of range; expected at least 0, got {seed}")
    weather = VARIATIONS[variation]
    world = World(scene=SCENES[scene], seed=(seed, scene), seconds=frames / RATE_HZ, sun=_sun(weather))
    focal = FOCAL_PER_WIDTH * size[0]
    renderer = Renderer(
        size=size,
        focal=focal,
        textures=build_textures(seed * 16 + scene),
        sky=sky_panorama(weather, np.random.default_rng([seed, scene, 3])),
        sky_label=STREET.names.index("sky"),
        sun=_sun(weather),
        sun_color=weather.sun_color,
        ambient=weather.ambient,
        shadow=weather.shadow,
    )
    try:
        for chunk in world.chunks:
            if chunk.groups:
                renderer.load(chunk)
        movers = [renderer.load(vehicle.mesh, owner) for owner, vehicle in enumerate(world.vehicles, start=1)]
        planes = renderer.finish()
        noise = np.random.default_rng([seed, scene, 5])
        drive = _Drive(world, weather)
        for index in range(frames):
            time_s = index / RATE_HZ
            camera, objects = drive.camera(time_s), drive.objects(time_s)
            fine, ids = renderer.render(camera, dict(zip(movers, objects[1:])))
            geometry = FrameGeometry(ids=ids, planes=planes, camera=camera, objects=objects, focal=focal)
            after, before = time_s + 1 / RATE_HZ, time_s - 1 / RATE_HZ
            forward = geometry.flow_to(drive.camera(after), drive.objects(after))
            yield StreetFrame(
                rgb=expose(fine, geometry.depth, forward, weather, noise),
                label=planes.label[ids],
                depth=geometry.depth.astype(np.float32),
                flow_forward=forward,
                flow_backward=geometry.flow_to(drive.camera(before), drive.objects(before)),
                focal=focal,
                stamp_ns=start_ns + index * (1_000_000_000 // RATE_HZ),
                frame_id=f"scene{scene}_{variation}",
            )
    finally:
        renderer.close()
