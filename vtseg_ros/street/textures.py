# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Procedural textures: repeating tiles (H, W, 3) uint8 RGB, generated from a seed."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike

SIZE = 128


def tiling_noise(rng: np.random.Generator, size: int, octaves: tuple[int, ...]) -> np.ndarray:
    """Return noise that repeats without a seam, (size, size) float32 in [0, 1]; octaves are cells per side."""
    total = np.zeros((size, size), np.float32)
    for index, cells in enumerate(octaves):
        grid = rng.random((cells, cells), dtype=np.float32)
        padded = np.pad(grid, ((0, 1), (0, 1)), mode="wrap")
        axis = np.linspace(0, cells, size, endpoint=False, dtype=np.float32)
        mapx, mapy = np.meshgrid(axis, axis)
        total += np.asarray(cv2.remap(padded, mapx, mapy, cv2.INTER_LINEAR), np.float32) / 1.6**index
    total -= total.min()
    return total / max(float(total.max()), 1e-6)


def _blend(noise: np.ndarray, dark: ArrayLike, light: ArrayLike) -> np.ndarray:
    low, high = np.asarray(dark, np.float32), np.asarray(light, np.float32)
    result: np.ndarray = low + noise[..., None] * (high - low)
    return result


def _grain(rng: np.random.Generator, image: np.ndarray, amount: float) -> np.ndarray:
    return image + rng.normal(0, amount, image.shape[:2])[..., None]


def _asphalt(rng: np.random.Generator) -> np.ndarray:
    image = _blend(tiling_noise(rng, SIZE, (4, 16)), (84, 84, 88), (112, 112, 114))
    return _grain(rng, image, 6)


def road(rng: np.random.Generator, lanes: int, dashed: bool) -> np.ndarray:
    """Draw a road across its whole width (u) and 8 m of its length (v), with markings and tyre tracks."""
    width = 256
    image = cv2.resize(_asphalt(rng).astype(np.float32), (width, SIZE))
    across = np.arange(width) / width
    for lane in range(lanes):
        for track in (0.28, 0.72):
            distance = np.abs(across - (lane + track) / lanes) * lanes
            image -= (10 * np.exp(-((distance / 0.08) ** 2)))[None, :, None]
    line = 3
    for border in (0.03, 0.97):
        x = int(border * width)
        image[:, x - line // 2 : x + line // 2 + 1] = (214, 214, 208)
    for boundary in range(1, lanes):
        x = int(boundary / lanes * width)
        length = SIZE // 2 if dashed else SIZE
        image[:length, x - 1 : x + 2] = (222, 222, 214)
    return _grain(rng, image, 4)


def _grass(rng: np.random.Generator) -> np.ndarray:
    image = _blend(tiling_noise(rng, SIZE, (3, 9, 40)), (74, 92, 40), (142, 150, 84))
    return _grain(rng, image, 11)


def _dirt(rng: np.random.Generator) -> np.ndarray:
    image = _blend(tiling_noise(rng, SIZE, (3, 8, 32)), (120, 100, 72), (168, 150, 112))
    return _grain(rng, image, 9)


def _paving(rng: np.random.Generator) -> np.ndarray:
    image = _blend(tiling_noise(rng, SIZE, (8, 8)), (140, 136, 128), (172, 168, 160))
    image[::16] -= 34
    for row in range(8):
        image[row * 16 : row * 16 + 16, (row % 2) * 12 :: 24] -= 30
    return _grain(rng, image, 5)


def _leaves(rng: np.random.Generator) -> np.ndarray:
    image = _blend(tiling_noise(rng, SIZE, (6, 20, 64)), (34, 52, 20), (150, 172, 84))
    return _grain(rng, image, 16)


def _hedge(rng: np.random.Generator) -> np.ndarray:
    image = _blend(tiling_noise(rng, SIZE, (10, 40, 64)), (40, 66, 26), (128, 156, 74))
    return _grain(rng, image, 14)


def _bark(rng: np.random.Generator) -> np.ndarray:
    streaks = cv2.resize(rng.random((4, SIZE), dtype=np.float32), (SIZE, SIZE))
    return _grain(rng, _blend(streaks, (62, 48, 36), (112, 92, 72)), 8)


def _facade(rng: np.random.Generator, columns: int, rows: int, style: str) -> np.ndarray:
    """Draw a wall of 12 m x 12 m with windows, to be tinted by the building's colour."""
    image = np.full((SIZE, SIZE, 3), 214.0, np.float32)
    if style == "brick":
        image = _blend(tiling_noise(rng, SIZE, (16, 64)), (170, 160, 152), (214, 206, 198))
        image[::4] -= 22
    image += (tiling_noise(rng, SIZE, (3, 6))[..., None] - 0.5) * 22
    cell_w, cell_h = SIZE // columns, SIZE // rows
    for row in range(rows):
        for column in range(columns):
            x, y = column * cell_w, row * cell_h
            left, right = x + int(cell_w * 0.24), x + int(cell_w * 0.76)
            bottom, top = y + int(cell_h * 0.28), y + int(cell_h * 0.82)
            if style == "glass":
                left, right, bottom, top = x + 1, x + cell_w - 1, y + int(cell_h * 0.2), y + cell_h - 1
            image[bottom - 1 : top + 1, left - 1 : right + 1] = 232
            shade = rng.uniform(30, 92)
            pane = np.array([shade * 0.9, shade, shade * 1.18])
            image[bottom:top, left:right] = pane + np.linspace(0, 34, top - bottom)[:, None, None]
            if style == "brick" and rng.random() < 0.25:
                image[bottom : (bottom + top) // 2, left:right] = (196, 188, 170)
    return _grain(rng, image, 4)


def _roof(rng: np.random.Generator) -> np.ndarray:
    image = _blend(tiling_noise(rng, SIZE, (8, 32)), (150, 140, 134), (206, 198, 190))
    image[::8] -= 40
    return _grain(rng, image, 6)


def _metal(rng: np.random.Generator) -> np.ndarray:
    image = _blend(tiling_noise(rng, SIZE, (2, 6)), (176, 178, 180), (226, 228, 230))
    return _grain(rng, image, 5)


def _plank(rng: np.random.Generator) -> np.ndarray:
    image = _blend(tiling_noise(rng, SIZE, (4, 24)), (180, 170, 160), (230, 222, 212))
    image[:, ::16] -= 60
    return _grain(rng, image, 5)


def _sign_face(shape: str) -> np.ndarray:
    """Draw the face of a sign, which fills the tile, in its own colours."""
    image = np.full((SIZE, SIZE, 3), 238, np.uint8)
    middle = (SIZE // 2, SIZE // 2)
    if shape == "limit":
        cv2.circle(image, middle, 62, (200, 22, 28), -1)
        cv2.circle(image, middle, 46, (240, 240, 236), -1)
        cv2.putText(image, "50", (30, 80), cv2.FONT_HERSHEY_SIMPLEX, 1.8, (20, 20, 20), 6)
    elif shape == "warning":
        cv2.rectangle(image, (0, 0), (SIZE, SIZE), (206, 30, 30), -1)
        cv2.rectangle(image, (16, 16), (SIZE - 16, SIZE - 16), (240, 220, 60), -1)
        cv2.rectangle(image, (56, 34), (72, 94), (20, 20, 20), -1)
    elif shape == "info":
        image[:] = (30, 70, 160)
        cv2.rectangle(image, (12, 12), (SIZE - 12, SIZE - 12), (236, 236, 236), 5)
        cv2.arrowedLine(image, (64, 24), (64, 100), (236, 236, 236), 12)
    elif shape == "stop":
        image[:] = (190, 20, 26)
        cv2.rectangle(image, (10, 46), (SIZE - 10, 82), (240, 240, 240), -1)
    else:  # a direction board
        image[:] = (24, 104, 62)
        for row in (30, 62, 94):
            cv2.rectangle(image, (14, row - 6), (SIZE - 24, row + 6), (232, 236, 232), -1)
    return image[::-1]


def build_textures(seed: int) -> dict[str, np.ndarray]:
    """Draw all textures by name, (H, W, 3) uint8 RGB, bottom row first."""
    rng = np.random.default_rng([seed, 7])
    tiles = {
        "plain": np.full((8, 8, 3), 255.0),
        "grass": _grass(rng),
        "dirt": _dirt(rng),
        "paving": _paving(rng),
        "leaves": _leaves(rng),
        "hedge": _hedge(rng),
        "bark": _bark(rng),
        "roof": _roof(rng),
        "metal": _metal(rng),
        "plank": _plank(rng),
        "road2": road(rng, 2, True),
        "road3": road(rng, 3, True),
        "road4": road(rng, 4, True),
        "facade_flat": _facade(rng, 4, 4, "plain"),
        "facade_brick": _facade(rng, 3, 4, "brick"),
        "facade_glass": _facade(rng, 6, 5, "glass"),
        "facade_house": _facade(rng, 3, 3, "brick"),
    }
    for name in ("limit", "warning", "info", "stop", "board"):
        tiles[f"sign_{name}"] = _sign_face(name)
    return {name: np.clip(tile, 0, 255).astype(np.uint8) for name, tile in tiles.items()}
