# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Import Cityscapes (Cordts et al., 2016): clips of 30 frames with a label on the 20th; 19 classes are trained."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from vtseg_ros.bags.png import read_png
from vtseg_ros.errors import ConfigError, ImageError
from vtseg_ros.importers.dataset_frames import DataFrame, read_bytes, require_folder, stamp_of_frame
from vtseg_ros.label_set import IGNORE

RATE_HZ = 17.0
# Train ids (the order of `label_set.CITYSCAPES`) by label id; other label ids are not trained.
TRAIN_IDS = {
    7: 0,
    8: 1,
    11: 2,
    12: 3,
    13: 4,
    17: 5,
    19: 6,
    20: 7,
    21: 8,
    22: 9,
    23: 10,
    24: 11,
    25: 12,
    26: 13,
    27: 14,
    28: 15,
    31: 16,
    32: 17,
    33: 18,
}
SPLITS = ("train", "val", "test")
_NAME = re.compile(r"([a-z-]+)_(\d{6})_(\d{6})_leftImg8bit\.png")


def train_ids(path: Path) -> np.ndarray:
    """Read the train ids of a label.

    Args:
        path: A `_gtFine_labelIds.png`.

    Returns:
        (H, W) uint8 train ids, 255 where the class is not trained.

    Raises:
        ImageError: If it is not a png of label ids.
    """
    table = np.full(65536, IGNORE, np.uint8)
    for label_id, train_id in TRAIN_IDS.items():
        table[label_id] = train_id
    png = read_png(read_bytes(path))
    if png.has_colors:
        raise ImageError("wrong label; expected one channel of label ids (_gtFine_labelIds.png), got colours")
    return np.take(table, png.values)


def find_frames(root: Path, split: str, *, before: int = 3, after: int = 0) -> list[DataFrame]:
    """Find the labelled frames of a split and their neighbours in time.

    Args:
        root: Folder with `leftImg8bit_sequence` (or `leftImg8bit`, which has only the labelled frames) and `gtFine`.
        split: `train`, `val` or `test` (whose labels are not public).
        before: Number of frames to keep before each labelled frame.
        after: Number of frames to keep after each labelled frame.

    Raises:
        ConfigError: If a folder is missing or contains no frames.
    """
    if split not in SPLITS:
        raise ConfigError(f"split: unknown; expected one of {', '.join(SPLITS)}, got {split!r}")
    videos = root / "leftImg8bit_sequence"
    folder = videos if videos.is_dir() else root / "leftImg8bit"
    require_folder(folder / split, "leftImg8bit_sequence/SPLIT/CITY/*_leftImg8bit.png")
    truth = require_folder(root / "gtFine" / split, "gtFine/SPLIT/CITY/*_gtFine_labelIds.png")
    images: dict[tuple[str, int], dict[int, Path]] = {}
    for path in sorted((folder / split).glob("[!.]*/[!.]*_leftImg8bit.png")):
        name = _NAME.fullmatch(path.name)
        if not name:
            raise ConfigError(f"{path}: expected CITY_SEQUENCE_FRAME_leftImg8bit.png")
        images.setdefault((name[1], int(name[2])), {})[int(name[3])] = path
    found: list[DataFrame] = []
    used: set[Path | None] = set()
    for sequence, ((city, number), files) in enumerate(sorted(images.items())):
        labels = {frame: _label(truth, city, number, frame) for frame in files}
        for labelled in [frame for frame, label in labels.items() if label is not None]:
            used.add(labels[labelled])
            for frame in range(labelled - before, labelled + after + 1):
                if frame in files:
                    stamp = stamp_of_frame(sequence, frame, RATE_HZ)
                    found.append(
                        DataFrame(files[frame], stamp, f"{city}_{number:06d}", labels[frame], train_ids)
                    )
    lost = sorted(set(truth.glob("[!.]*/[!.]*_gtFine_labelIds.png")) - used)
    if lost:
        raise ConfigError(f"{lost[0]} and {len(lost) - 1} more labels have no image in {folder / split}")
    if not found:
        raise ConfigError(f"{folder / split} contains no frame with a label in {truth}")
    return list(dict.fromkeys(found))


def _label(truth: Path, city: str, number: int, frame: int) -> Path | None:
    path = truth / city / f"{city}_{number:06d}_{frame:06d}_gtFine_labelIds.png"
    return path if path.is_file() else None
