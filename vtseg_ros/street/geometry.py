# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Exact depth and optical flow of a frame from its face ids, the planes and the poses."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from vtseg_ros.street.mesh import yaw_matrix
from vtseg_ros.street.renderer import FAR_M, NEAR_M, Planes

FOCAL_PER_WIDTH = 0.5837
"""Focal length over image width: Virtual KITTI 2's 725 px at 1242 px."""


def pose_matrix(position: ArrayLike, yaw: float, pitch: float = 0.0) -> np.ndarray:
    """Return the (4, 4) local-to-world matrix: pitch about x, then yaw about z (radians, nose up positive)."""
    c, s = np.cos(pitch), np.sin(pitch)
    matrix = np.eye(4)
    matrix[:3, :3] = yaw_matrix(yaw) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    matrix[:3, 3] = position
    return matrix


class FrameGeometry:
    """Depth and flow of one frame.

    Args:
        ids: (H, W) face ids.
        planes: planes of the faces by id.
        camera: (4, 4) camera-to-world.
        objects: (m, 4, 4) object-to-world; row 0 is the identity, for the static world.
        focal: px.
    """

    def __init__(
        self, *, ids: np.ndarray, planes: Planes, camera: np.ndarray, objects: np.ndarray, focal: float
    ) -> None:
        height, width = ids.shape
        self._focal, self._center = focal, ((width - 1) / 2, (height - 1) / 2)
        u, v = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
        self._pixels = np.stack([u, v], axis=2)
        # A ray per pixel with depth component 1 (y of the camera): its parameter is the depth.
        rays = np.stack(
            [(u - self._center[0]) / focal, np.ones_like(u), -(v - self._center[1]) / focal], axis=2
        )
        self._world_rays = rays @ camera[:3, :3].T  # (H, W, 3)
        self._owner = planes.owner[ids]
        inverse = np.linalg.inv(objects)
        to_local = inverse[self._owner]  # (H, W, 4, 4)
        origin = np.einsum("hwij,j->hwi", to_local[..., :3, :3], camera[:3, 3]) + to_local[..., :3, 3]
        local_rays = np.einsum("hwij,hwj->hwi", to_local[..., :3, :3], self._world_rays)
        normal = planes.normal[ids]
        facing = (normal * local_rays).sum(axis=2)
        distance = planes.offset[ids] - (normal * origin).sum(axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = distance / facing
        # A face seen edge-on covers pixels whose centre is outside it; their rays meet its plane at arbitrary points.
        depth[~((depth > NEAR_M / 2) & (depth < FAR_M * 1.1))] = np.nan
        depth[ids == 0] = np.inf
        self.depth = depth
        """(H, W) float64, m along the optical axis; inf for the sky, NaN where a face is seen edge-on."""
        near = np.where(np.isfinite(depth), depth, 0.0)
        self._points = origin + near[..., None] * local_rays  # (H, W, 3), coordinates of each pixel's object

    def flow_to(self, camera: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """Return the optical flow to another frame, (H, W, 2) float32 (dx, dy) px.

        NaN behind that camera, and where the depth is NaN.
        """
        moved = objects[self._owner]
        world = np.einsum("hwij,hwj->hwi", moved[..., :3, :3], self._points) + moved[..., :3, 3]
        relative = np.where(np.isfinite(self.depth)[..., None], world - camera[:3, 3], self._world_rays)
        local = relative @ camera[:3, :3]  # rotation's transpose, applied to row vectors
        with np.errstate(divide="ignore", invalid="ignore"):
            u = self._center[0] + self._focal * local[..., 0] / local[..., 1]
            v = self._center[1] - self._focal * local[..., 2] / local[..., 1]
        flow = np.stack([u, v], axis=2) - self._pixels
        flow[(local[..., 1] <= 1e-6) | np.isnan(self.depth)] = np.nan
        return flow.astype(np.float32)
