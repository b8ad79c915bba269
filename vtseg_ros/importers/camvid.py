# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Import CamVid (Brostow et al., 2009): driving video at 30 Hz with one label a second, here with the usual 11 classes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from vtseg_ros.bags.png import read_png
from vtseg_ros.errors import ConfigError, ImageError
from vtseg_ros.importers.dataset_frames import DataFrame, read_bytes, require_folder, stamp_of_frame
from vtseg_ros.label_set import CAMVID, IGNORE, LabelSet
from vtseg_ros.labelling.masks import COLORS, meaning_of
from vtseg_ros.labelling.palette import Palette
from vtseg_ros.text import read_text
from vtseg_ros.topic_names import is_hidden

RATE_HZ = 30.0
# The 32 classes of the labels, by the 11 classes that are usually trained.
GROUPS = {
    "sky": {"Sky": (128, 128, 128)},
    "building": {
        "Building": (128, 0, 0),
        "Archway": (192, 0, 128),
        "Bridge": (0, 128, 64),
        "Tunnel": (64, 0, 64),
        "Wall": (64, 192, 0),
    },
    "pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    "pavement": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    "tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "sign": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    "fence": {"Fence": (64, 64, 128)},
    "car": {
        "Car": (64, 0, 128),
        "SUVPickupTruck": (64, 128, 192),
        "Truck_Bus": (192, 128, 192),
        "Train": (192, 64, 128),
        "OtherMoving": (128, 64, 64),
    },
    "pedestrian": {
        "Pedestrian": (64, 64, 0),
        "Child": (192, 128, 64),
        "CartLuggagePram": (64, 0, 192),
        "Animal": (64, 128, 64),
    },
    "bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
}
_PAINTED = LabelSet(
    tuple(name for group in GROUPS.values() for name in group),
    tuple(color for group in GROUPS.values() for color in group.values()),
)
_GROUP_OF = np.full(256, IGNORE, np.uint8)
_GROUP_OF[: len(_PAINTED)] = [CAMVID.names.index(name) for name, group in GROUPS.items() for _ in group]
_NAME = re.compile(r"(\w+?)_f?(\d+)")
_VOID = len(CAMVID)  # in the commonly shared labels of class ids


def class_ids(path: Path) -> np.ndarray:
    """Read a label of colours, or of ids in which 11 is void.

    Args:
        path: A png file.

    Returns:
        (H, W) uint8 ids of `label_set.CAMVID`.

    Raises:
        ImageError: For a colour or an id of no class.
    """
    png = read_png(read_bytes(path))
    if meaning_of(png, Palette(_PAINTED)) == COLORS or png.has_colors:
        return np.take(_GROUP_OF, Palette(_PAINTED).ids_of(png.rgb()))
    ids = png.values
    if ids.max() > _VOID and not ((ids <= _VOID) | (ids == IGNORE)).all():
        raise ImageError(f"class id out of range; expected 0..{_VOID} or {IGNORE}, got {int(ids.max())}")
    return np.where(ids >= _VOID, IGNORE, ids).astype(np.uint8)


def find_frames(root: Path, *, names: Path | None = None) -> list[DataFrame]:
    """Find images below a folder and their labels.

    A label is `NAME_L.png` anywhere below, or `NAME.png` in a folder whose name ends in `annot`.

    Args:
        root: Folder, such as one with `701_StillsRaw_full` and `LabeledApproved_full`.
        names: Text file that lists the image names of a split, one per line; None = all.

    Raises:
        ConfigError: If there are no images, a name is not one of CamVid, or a listed image is missing.
    """
    files = sorted(require_folder(root, "CamVid's images and labels below it").rglob("*.png"))
    files = [path for path in files if not is_hidden(path.relative_to(root).as_posix())]
    labels: dict[str, Path] = {}
    images: dict[str, Path] = {}
    for path in files:
        if path.stem.endswith("_L"):
            labels[path.stem[:-2]] = path
        elif path.parent.name.endswith("annot"):
            labels[path.stem] = path
        else:
            images[path.stem] = path
    chosen = _listed(names, images) if names else sorted(images)
    found: list[DataFrame] = []
    sequences: dict[str, int] = {}
    for stem in chosen:
        name = _NAME.fullmatch(stem)
        if not name:
            raise ConfigError(f"{images[stem]}: expected SEQUENCE_FRAME.png, such as 0001TP_006690.png")
        sequence = sequences.setdefault(name[1], len(sequences))
        stamp = stamp_of_frame(sequence, int(name[2]), RATE_HZ)
        found.append(DataFrame(images[stem], stamp, f"camvid_{name[1]}", labels.get(stem), class_ids))
    if not any(frame.label for frame in found):
        raise ConfigError(f"{root} contains no image with a label; expected NAME.png and NAME_L.png")
    return found


def _listed(names: Path, images: dict[str, Path]) -> list[str]:
    try:
        lines = read_text(names).split()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"the list {names} cannot be read: {err}") from err
    # Some shared lists have paths of an image and of its label on each line.
    stems = sorted({Path(line).stem.removesuffix("_L") for line in lines})
    for stem in stems:
        if stem not in images:
            raise ConfigError(f"{names} lists {stem}, of which there is no image")
    return stems
