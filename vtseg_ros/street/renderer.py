# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Panda3D's software renderer with two calls: `load` the faces of a world, `render` an image and its face ids.

A second pass draws the id of every face as a flat colour. The id of a pixel gives its class, its object and the exact plane
of its face, and from these follow exact depth and flow, without reading a depth buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from panda3d.core import (
    Camera,
    CullBinManager,
    FrameBufferProperties,
    Geom,
    GeomNode,
    GeomTriangles,
    GeomVertexData,
    GeomVertexFormat,
    GraphicsEngine,
    GraphicsOutput,
    GraphicsPipe,
    GraphicsPipeSelection,
    LColor,
    LMatrix4f,
    NodePath,
    PerspectiveLens,
    SamplerState,
    Texture,
    TransparencyAttrib,
    WindowProperties,
    loadPrcFileData,
)

from vtseg_ros.street.mesh import Faces, Mesh, face_normals
from vtseg_ros.street.world import SHADOW

NEAR_M, FAR_M = 0.3, 320.0
SUPERSAMPLE = 2
ID_BITS = 6  # per channel, 4 steps of 255 apart: the colours that are read back are exact to 1
IN_ORDER = "in_order"
MAX_IDS = 1 << (3 * ID_BITS)

_VERTEX = np.dtype([("position", np.float32, 3), ("color", np.uint8, 4), ("uv", np.float32, 2)])
_CORNERS = np.array([[0, 1, 2], [0, 2, 3]])
_engine: GraphicsEngine | None = None
_pipe: GraphicsPipe | None = None


def _graphics() -> tuple[GraphicsEngine, GraphicsPipe]:
    """Return the engine and software pipe, of which a process has one."""
    global _engine, _pipe
    if _engine is None:
        loadPrcFileData(
            "", "audio-library-name null\nnotify-level-display fatal\nnotify-level-warning error\n"
        )
        _pipe = GraphicsPipeSelection.get_global_ptr().make_module_pipe("p3tinydisplay")
        _engine = GraphicsEngine(_pipe)
        # Panda3D's own order depends on memory addresses, and where faces meet, the one drawn first is visible.
        CullBinManager.get_global_ptr().add_bin(IN_ORDER, CullBinManager.BT_unsorted, 20)
    return _engine, _pipe


@dataclass(frozen=True)
class Planes:
    """Faces by id. Row 0 is the sky.

    Attributes:
        normal: (n, 3) unit normals in the coordinates of the face's object.
        offset: (n,) distance of the plane from the origin of the object along the normal, m.
        label: (n,) uint8 class ids.
        owner: (n,) index of the object; 0 = the static world.
    """

    normal: np.ndarray
    offset: np.ndarray
    label: np.ndarray
    owner: np.ndarray


class Renderer:
    """Draws one world at one size.

    Args:
        size: (width, height) px.
        focal: focal length, px.
        textures: (H, W, 3) uint8 RGB by name, bottom row first.
        sky: (h, w, 3) uint8 panorama over 360 degrees (u) and from the horizon to the zenith (v).
        sky_label: class id of pixels without a face.
        sun, sun_color, ambient: direction to the sun and light, for baked shading.
        shadow: opacity of cast shadows, 0..1.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int],
        focal: float,
        textures: Mapping[str, np.ndarray],
        sky: np.ndarray,
        sky_label: int,
        sun: np.ndarray,
        sun_color: ArrayLike,
        ambient: ArrayLike,
        shadow: float,
    ) -> None:
        self.size = size
        self._sun, self._sun_color, self._ambient = sun, np.asarray(sun_color), np.asarray(ambient)
        self._textures = {name: _texture(name, image) for name, image in textures.items()}
        self._textures[SHADOW] = _shadow_texture(shadow)
        self._picture, self._ids = NodePath("picture"), NodePath("ids")
        _graphics()
        for root in (self._picture, self._ids):
            root.set_bin(IN_ORDER, 0)
        self._nodes: list[tuple[NodePath, NodePath]] = []
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = [
            (np.zeros((1, 3)), np.ones(1), np.array([sky_label]), np.zeros(1, int))
        ]
        self._count = 1
        width, height = size
        self._fine = _Target(
            "picture", (width * SUPERSAMPLE, height * SUPERSAMPLE), self._picture, size, focal
        )
        self._coarse = _Target("ids", size, self._ids, size, focal)
        self._dome = self._make_dome(sky)
        self.planes: Planes | None = None

    def load(self, mesh: Mesh, owner: int = 0) -> int:
        """Add a mesh (owner 0 = the static world), and return the index of its pose in `render`."""
        picture, ids = self._picture.attach_new_node("mesh"), self._ids.attach_new_node("mesh")
        for (texture, lit), faces in mesh.merged().items():
            self._attach_picture(picture, texture, lit, faces)
            if texture != SHADOW:
                self._attach_ids(ids, faces, owner)
        self._nodes.append((picture, ids))
        return len(self._nodes) - 1

    def finish(self) -> Planes:
        """Finish loading; to be called once after the last `load`."""
        normal, offset, label, owner = (np.concatenate(column) for column in zip(*self._rows))
        self.planes = Planes(normal, offset, label.astype(np.uint8), owner)
        return self.planes

    def render(self, camera: np.ndarray, poses: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Draw a frame.

        Args:
            camera: (4, 4) camera-to-world matrix; the camera looks along its y, z up.
            poses: (4, 4) object-to-world matrix per index that `load` returned; other objects do not move.

        Returns:
            the image at SUPERSAMPLE times the size, (h, w, 3) uint8 RGB, and face ids (H, W) int32.
        """
        for index, pose in poses.items():
            for node in self._nodes[index]:
                node.set_mat(_matrix(pose))
        self._dome.set_pos(*camera[:3, 3])
        for target in (self._fine, self._coarse):
            target.camera.set_mat(_matrix(camera))
        _graphics()[0].render_frame()
        levels = self._coarse.read().astype(np.int32) >> 2  # (H, W, 3)
        ids = levels[..., 0] | levels[..., 1] << ID_BITS | levels[..., 2] << (2 * ID_BITS)
        return self._fine.read(), ids

    def close(self) -> None:
        """Free the buffers and the geometry."""
        for target in (self._fine, self._coarse):
            target.close()
        for root in (self._picture, self._ids):
            root.remove_node()

    def _attach_picture(self, parent: NodePath, texture: str, lit: bool, faces: Faces) -> None:
        light = np.ones((len(faces.corners), 3))
        if lit:
            toward = np.clip(face_normals(faces.corners) @ self._sun, 0, 1)[:, None]
            light = self._ambient + toward * self._sun_color
        rgb = np.clip(faces.color * light, 0, 1)
        rgba = np.concatenate([rgb, np.ones((len(rgb), 1))], axis=1) * 255
        node = _geometry(faces.corners, rgba, faces.uv)
        path = parent.attach_new_node(node)
        path.set_texture(self._textures[texture])
        if texture == SHADOW:
            path.set_transparency(TransparencyAttrib.M_alpha)
            path.set_depth_write(False)
            path.set_bin("fixed", 10)
        path.set_two_sided(True)

    def _attach_ids(self, parent: NodePath, faces: Faces, owner: int) -> None:
        count = len(faces.corners) * 2  # a quad is two triangles, each with its own plane
        if self._count + count > MAX_IDS:
            raise ValueError(f"the world has more than {MAX_IDS} triangles")
        index = np.arange(self._count, self._count + count)
        triangles = faces.corners[:, _CORNERS].reshape(-1, 3, 3)
        normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
        offset = (normal * triangles[:, 0]).sum(axis=1)
        self._rows.append((normal, offset, np.repeat(faces.label, 2), np.full(count, owner)))
        self._count += count
        channels = [(index >> (ID_BITS * shift)) & ((1 << ID_BITS) - 1) for shift in range(3)]
        rgba = np.stack([*(channel * 4 + 2 for channel in channels), np.full(count, 255)], axis=1)
        path = parent.attach_new_node(_geometry(faces.corners, rgba.reshape(-1, 2, 4), None))
        path.set_two_sided(True)

    def _make_dome(self, sky: np.ndarray) -> NodePath:
        around, up, radius = 24, 6, FAR_M * 0.8
        azimuth = np.linspace(0, 2 * np.pi, around + 1)
        elevation = np.concatenate([[-0.12], np.linspace(0, np.pi / 2, up)])
        a, e = np.meshgrid(azimuth, elevation)
        points = radius * np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], axis=2)
        uv = np.stack([a / (2 * np.pi) * 2, np.clip(e / (np.pi / 2), 0.004, 0.996)], axis=2)
        quads = np.stack([points[:-1, :-1], points[:-1, 1:], points[1:, 1:], points[1:, :-1]], axis=2)
        corners_uv = np.stack([uv[:-1, :-1], uv[:-1, 1:], uv[1:, 1:], uv[1:, :-1]], axis=2)
        white = np.full((quads.shape[0] * quads.shape[1], 4), 255.0)
        dome = self._picture.attach_new_node(
            _geometry(quads.reshape(-1, 4, 3), white, corners_uv.reshape(-1, 4, 2))
        )
        texture = _texture("sky", sky)
        texture.set_wrap_v(SamplerState.WM_clamp)
        dome.set_texture(texture)
        dome.set_two_sided(True)
        dome.set_bin("background", 0)
        dome.set_depth_write(False)
        dome.set_depth_test(False)
        return dome


class _Target:
    """An offscreen buffer with its camera, read back as RGB."""

    def __init__(
        self, name: str, size: tuple[int, int], root: NodePath, image_size: tuple[int, int], focal: float
    ) -> None:
        engine, pipe = _graphics()
        properties = FrameBufferProperties()
        properties.set_rgb_color(True)
        properties.set_rgba_bits(8, 8, 8, 0)
        properties.set_depth_bits(24)
        self._buffer = engine.make_output(
            pipe, name, 0, properties, WindowProperties.size(*size), GraphicsPipe.BF_refuse_window
        )
        self._texture = Texture()
        self._buffer.add_render_texture(self._texture, GraphicsOutput.RTM_copy_ram, GraphicsOutput.RTP_color)
        self._buffer.set_clear_color(LColor(2 / 255, 2 / 255, 2 / 255, 1))
        self._buffer.set_clear_color_active(True)
        lens = PerspectiveLens()
        lens.set_film_size(*image_size)
        lens.set_focal_length(focal)
        lens.set_near_far(NEAR_M, FAR_M)
        self.camera = root.attach_new_node(Camera(name, lens))
        self._buffer.make_display_region().set_camera(self.camera)
        self._shape = (size[1], size[0], 3)

    def read(self) -> np.ndarray:
        raw = np.frombuffer(self._texture.get_ram_image_as("RGB"), np.uint8)
        return raw.reshape(self._shape)[::-1]

    def close(self) -> None:
        _graphics()[0].remove_window(self._buffer)


def _geometry(corners: np.ndarray, rgba: np.ndarray, uv: np.ndarray | None) -> GeomNode:
    """Build the triangles of quads (n, 4, 3) with colours 0..255 per face (n, 4) or per triangle (n, 2, 4)."""
    count = len(corners)
    vertices = np.zeros((count, 2, 3), _VERTEX)
    vertices["position"] = corners[:, _CORNERS]
    rgba = np.asarray(rgba)
    per_triangle = rgba if rgba.ndim == 3 else np.repeat(rgba[:, None], 2, axis=1)
    vertices["color"] = np.round(per_triangle).astype(np.uint8)[:, :, None]
    if uv is not None:
        vertices["uv"] = uv[:, _CORNERS]
    data = GeomVertexData("faces", GeomVertexFormat.get_v3c4t2(), Geom.UH_static)
    data.unclean_set_num_rows(count * 6)
    data.modify_array_handle(0).copy_data_from(vertices.tobytes())
    triangles = GeomTriangles(Geom.UH_static)
    triangles.add_consecutive_vertices(0, count * 6)
    triangles.close_primitive()
    geom = Geom(data)
    geom.add_primitive(triangles)
    node = GeomNode("faces")
    node.add_geom(geom)
    return node


def _texture(name: str, image: np.ndarray) -> Texture:
    texture = Texture(name)
    texture.setup_2d_texture(image.shape[1], image.shape[0], Texture.T_unsigned_byte, Texture.F_rgb)
    texture.set_ram_image_as(np.ascontiguousarray(image).tobytes(), "RGB")
    texture.set_minfilter(SamplerState.FT_linear_mipmap_nearest)
    texture.set_magfilter(SamplerState.FT_linear)
    texture.set_wrap_u(SamplerState.WM_repeat)
    texture.set_wrap_v(SamplerState.WM_repeat)
    return texture


def _shadow_texture(opacity: float) -> Texture:
    """Draw a black area with soft edges."""
    size = 64
    axis = np.abs(np.linspace(-1, 1, size))
    edge = np.maximum(axis[:, None], axis[None, :]) * 0.5 + np.hypot(axis[:, None], axis[None, :]) * 0.5
    alpha = np.clip((1.05 - edge) / 0.3, 0, 1) * opacity
    image = np.zeros((size, size, 4), np.uint8)
    image[..., 3] = np.round(alpha * 255)
    texture = Texture(SHADOW)
    texture.setup_2d_texture(size, size, Texture.T_unsigned_byte, Texture.F_rgba)
    texture.set_ram_image_as(image.tobytes(), "RGBA")
    texture.set_wrap_u(SamplerState.WM_clamp)
    texture.set_wrap_v(SamplerState.WM_clamp)
    return texture


def _matrix(matrix: np.ndarray) -> LMatrix4f:
    """Convert a column-vector matrix (4, 4) to Panda3D's row-vector matrix."""
    return LMatrix4f(*np.asarray(matrix, np.float64).T.ravel().tolist())
