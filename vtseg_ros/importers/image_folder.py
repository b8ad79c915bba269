# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Import a folder of images as frames of a camera, in the order of their names."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vtseg_ros.errors import ConfigError
from vtseg_ros.importers.dataset_frames import (
    DataFrame,
    natural_key,
    read_bytes,
    require_folder,
    stamp_of_frame,
)
from vtseg_ros.importers.exif import orientation_of, turned
from vtseg_ros.labelling.masks import MaskReader
from vtseg_ros.topic_names import is_hidden

SUFFIXES = (".png", ".jpg", ".jpeg")
OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".webp", ".bmp", ".tif", ".tiff", ".jp2", ".jxl", ".dng")
"""Of images that are not read: those of phones and of scientific cameras."""
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1e-3, 1e6
log = logging.getLogger("vtseg_ros.importers")


def choose_images(where: str | os.PathLike[str], paths: Iterable[Path]) -> list[Path]:
    """Return the png and jpeg files among paths; images of other formats are reported.

    Args:
        where: Folder or pattern that was searched, for messages.
        paths: What it contains; hidden files and files that are no images are ignored.

    Returns:
        The files, sorted by the numbers in their names.

    Raises:
        ConfigError: If there is none.
    """
    seen = [path for path in paths if not is_hidden(path.name)]
    images = [path for path in seen if path.suffix.lower() in SUFFIXES]
    others = [suffix for path in seen if (suffix := path.suffix.lower()) in OTHER_SUFFIXES]
    found = f"{len(others)} of {', '.join(sorted(set(others)))}" if others else "none"
    advice = ". Convert them to png or jpeg" if others else ""
    if not images:
        raise ConfigError(f"{where}: no image; expected files of {', '.join(SUFFIXES)}, got {found}{advice}")
    if others:
        log.warning(
            "%s: images left out; expected files of %s, got %s%s", where, ", ".join(SUFFIXES), found, advice
        )
    return sorted(images, key=natural_key)


def check_rate(name: str, rate_hz: float) -> None:
    """Check the rate of images without times, whose stamps must differ and fit into a message.

    Args:
        name: Option or parameter, for the error.
        rate_hz: Frames per second.

    Raises:
        ConfigError: If it is out of range.
    """
    if not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ:
        raise ConfigError(
            f"{name}: out of range; expected {LOWEST_RATE_HZ:g} to {HIGHEST_RATE_HZ:g} Hz, got {rate_hz:g}"
        )


def find_frames(
    folder: Path,
    *,
    rate_hz: float,
    frame_id: str,
    labels: Path | None = None,
    reader: MaskReader | None = None,
) -> list[DataFrame]:
    """Find the images of a folder and their labels.

    Args:
        folder: Folder of png and jpeg files; names are sorted by the numbers in them.
        rate_hz: Frames per second, above 0.
        frame_id: `frame_id` of all frames.
        labels: Folder of png files with the names of the images; None = no labels.
        reader: Reader of the labels, with their class list; needed with `labels`.

    Raises:
        ConfigError: If there are no images, or a label has no image.
    """
    check_rate("rate", rate_hz)
    images = choose_images(folder, require_folder(folder, "a folder of images").iterdir())
    given: dict[str, Path] = {}
    if labels is not None:
        if reader is None:
            raise ConfigError("labels need a class list")
        given = {
            path.stem: path
            for path in sorted(require_folder(labels, "a folder of labels").iterdir())
            if path.suffix.lower() == ".png" and not is_hidden(path.name)
        }
        lost = sorted(set(given) - {path.stem for path in images})
        if lost:
            raise ConfigError(f"{given[lost[0]]} and {len(lost) - 1} more labels have no image in {folder}")
        if not given:
            raise ConfigError(f"{labels} contains no .png file")

        reader.others = lambda: map(read_bytes, given.values())

    def ids(path: Path) -> np.ndarray:
        assert reader is not None  # there are no labels without it
        data = read_bytes(path)
        found = reader.ids(path.name, data)
        return turned(found, orientation_of(np.frombuffer(data, np.uint8)))

    return [
        DataFrame(path, stamp_of_frame(0, number, rate_hz), frame_id, given.get(path.stem), ids, upright=True)
        for number, path in enumerate(images)
    ]
