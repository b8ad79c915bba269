# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Import Virtual KITTI 2 (Cabon et al., 2020): five scenes at 10 Hz in six variations each, every frame labelled."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vtseg_ros.bags.png import read_png
from vtseg_ros.errors import ConfigError
from vtseg_ros.importers.dataset_frames import DataFrame, read_bytes, require_folder, stamp_of_frame
from vtseg_ros.label_set import STREET, LabelSet
from vtseg_ros.labelling.palette import Palette
from vtseg_ros.street.scenes import VARIATIONS
from vtseg_ros.text import read_text

RATE_HZ = 10.0
SPLITS = ("train", "validation", "test")
SCENES = {"train": ("Scene06", "Scene18", "Scene20"), "validation": ("Scene01",), "test": ("Scene02",)}
"""Whole scenes: 68, 21 and 11 % of the frames, as close to the 70/20/10 of the paper as possible (our choice)."""
SHARES = {"train": (0.0, 0.7), "validation": (0.7, 0.9), "test": (0.9, 1.0)}
GUARD = 20
"""Frames left out around a cut in time: they show the same objects as the frames on the other side."""


def find_frames(root: Path, split: str, *, by: str = "scene", camera: int = 0) -> list[DataFrame]:
    """Find the frames of a split, in all six variations.

    Variations of a scene show the same street and traffic, so they are always in the same split.

    Args:
        root: Folder with `SceneNN/VARIATION/frames/{rgb,classSegmentation}/Camera_N` and `colors.txt`.
        split: `train`, `validation` or `test`.
        by: `scene` (whole scenes) or `time` (70, 20 and 10 % of each scene, `GUARD` frames apart).
        camera: 0 = left (as in the paper), 1 = right.

    Raises:
        ConfigError: If a folder or a label is missing.
    """
    if split not in SPLITS or by not in ("scene", "time"):
        raise ConfigError(
            f"split: unknown; expected one of {', '.join(SPLITS)}, by scene or time, got {split!r}, {by!r}"
        )
    scenes = sorted(path for path in require_folder(root, "SceneNN folders").glob("Scene*") if path.is_dir())
    if by == "scene":
        missing = [name for name in SCENES[split] if not (root / name).is_dir()]
        if missing:
            raise ConfigError(f"{root} lacks {', '.join(missing)}, which split {split} consists of")
        scenes = [root / name for name in SCENES[split]]
    found = []
    for place, scene in enumerate(scenes):
        for number, variation in enumerate(VARIATIONS):
            files = _files(scene / variation, camera)
            start, stop = _part(len(files), SHARES[split]) if by == "time" else (0, len(files))
            ids = _reader(scene / variation / "colors.txt")
            for at, (image, label) in enumerate(files[start:stop], start=start):
                stamp = stamp_of_frame(place * len(VARIATIONS) + number, at, RATE_HZ)
                found.append(DataFrame(image, stamp, f"{scene.name}_{variation}", label, ids))
    if not found:
        raise ConfigError(f"{root} contains no frame of the split {split}")
    return found


def _part(count: int, share: tuple[float, float]) -> tuple[int, int]:
    """Return start and stop frame of a share of a scene; the gap is taken from both sides of an inner cut."""
    start, stop = round(share[0] * count), round(share[1] * count)
    start = start + GUARD // 2 if share[0] > 0 else start
    stop = stop - (GUARD - GUARD // 2) if share[1] < 1 else stop
    return start, max(start, stop)


def _files(variation: Path, camera: int) -> list[tuple[Path, Path]]:
    folder = variation / "frames"
    images = require_folder(folder / "rgb" / f"Camera_{camera}", "frames/rgb/Camera_N/rgb_NNNNN.jpg")
    labels = require_folder(
        folder / "classSegmentation" / f"Camera_{camera}",
        "frames/classSegmentation/Camera_N/classgt_NNNNN.png",
    )
    files = []
    for path in sorted(images.glob("rgb_*")):
        number = re.fullmatch(r"rgb_(\d{5})", path.stem)
        if not number:
            raise ConfigError(f"{path}: expected rgb_NNNNN.jpg")
        label = labels / f"classgt_{number[1]}.png"
        if not label.is_file():
            raise ConfigError(f"{path} has no label: {label} is missing")
        files.append((path, label))
    return files


def _reader(colors: Path) -> Callable[[Path], np.ndarray]:
    """Return a function from a label file to class ids, with the colour table of the scene if it has one."""
    palette = Palette(_read_colors(colors) if colors.is_file() else STREET)

    def ids(path: Path) -> np.ndarray:
        return palette.ids_of(read_png(read_bytes(path)).rgb())

    return ids


def _read_colors(path: Path) -> LabelSet:
    """Read the table `Category R G B`, in the order of `label_set.STREET`."""
    colors: dict[str, tuple[int, int, int]] = {}
    try:
        lines = read_text(path).splitlines()
    except UnicodeDecodeError as err:
        raise ConfigError(f"{path} is not a text file in UTF-8: {err.reason}") from err
    for number, line in enumerate(lines, start=1):
        parts = line.split()
        if number == 1 or not parts:
            continue
        if len(parts) != 4 or not all(part.isdecimal() and int(part) < 256 for part in parts[1:]):
            raise ConfigError(f"{path}, line {number}: expected NAME R G B, got {line[:60]!r}")
        red, green, blue = map(int, parts[1:])
        colors[parts[0].lower().replace("-", "")] = (red, green, blue)
    missing = [name for name in STREET.names if name.replace("-", "") not in colors]
    if missing:
        raise ConfigError(f"{path} has no colour for {', '.join(missing)}")
    return LabelSet(STREET.names, tuple(colors[name.replace("-", "")] for name in STREET.names))
