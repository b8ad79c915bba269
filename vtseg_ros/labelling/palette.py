# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Class lists as text: the labelmap.txt of CVAT, `name:red,green,blue::` per line; class ids are the order of the lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from vtseg_ros.errors import ConfigError, ImageError
from vtseg_ros.label_set import IGNORE, LABEL_SETS, LabelSet
from vtseg_ros.text import read_text

BACKGROUND = "background"
"""Name that CVAT gives to unlabelled pixels; if its colour is black, it is not a class here."""

# A name may contain colons, as in `vehicle:car`.
_LINE = re.compile(r"\s*([^:\s].*?)\s*:\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(?::|$)")
_COUNTED = (
    "the class list has a background line, which ids may or may not count. Export colours, or delete that line when "
    "id 0 is the first class after it"
)


@dataclass(frozen=True)
class Palette:
    """Classes and their colours in label images.

    Args:
        labels: Class list.
        ids_unclear: Reason why ids in an image may differ from the index in `labels`; empty = they do not.
    """

    labels: LabelSet
    ids_unclear: str = ""

    def for_classes(self, labels: LabelSet) -> Palette:
        """Return the same colours for a class list that contains these classes, in any order.

        Args:
            labels: Class list.

        Raises:
            ConfigError: If the class list lacks classes; names them.
        """
        strange = [name for name in self.labels.names if name not in labels.names]
        if strange:
            raise ConfigError(
                f"classes that the bag's class list does not have: {', '.join(strange)}. It has: {', '.join(labels.names)}"
            )
        own = dict(zip(self.labels.names, self.labels.colors))
        colors = tuple(own.get(name, color) for name, color in zip(labels.names, labels.colors))
        unclear = self.ids_unclear
        if self.labels.names != labels.names[: len(self.labels)]:
            unclear = unclear or "the class list has another order than the bag's"
        return Palette(LabelSet(labels.names, colors), unclear)

    def lookup(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look colours up in the class list.

        Args:
            rgb: (H, W, 3) uint8 RGB.

        Returns:
            (H, W) uint8 class ids, 255 for black (unless a class is black) and for colours of no class; and (H, W)
            bool, False for colours of no class.

        Raises:
            ImageError: If two classes have the same colour.
        """
        key = rgb.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)  # (H, W)
        colors = np.array(self.labels.colors, np.uint32) @ np.array([65536, 256, 1], np.uint32)
        repeated = [n for n, c in zip(self.labels.names, colors) if (colors == c).sum() > 1]
        if repeated:
            raise ImageError(
                f"these classes have the same colour: {', '.join(repeated)}. Save the mask as class ids"
            )
        ids = np.full(key.shape, IGNORE, np.uint8)
        known = key == 0
        for number, color in enumerate(colors):
            here = key == color
            ids[here], known = number, known | here
        return ids, known

    def ids_of(self, rgb: np.ndarray) -> np.ndarray:
        """Return the class ids of colours; see `lookup`.

        Raises:
            ImageError: If a colour is not that of a class; names the colour and its place.
        """
        ids, known = self.lookup(rgb)
        if not known.all():
            self.refuse_color(rgb, known)
        return ids

    @staticmethod
    def refuse_color(rgb: np.ndarray, known: np.ndarray) -> NoReturn:
        """Refuse an image with an unknown colour.

        Args:
            rgb: (H, W, 3) uint8 RGB.
            known: (H, W) bool, False for at least one pixel.

        Raises:
            ImageError: Names the first unknown colour and its place.
        """
        row, column = np.argwhere(~known)[0]
        red, green, blue = (int(value) for value in rgb[row, column])
        raise ImageError(f"no class has the colour {red},{green},{blue} (row {row}, column {column})")

    def require_clear_ids(self) -> None:
        """Check that ids in images are indices of the class list.

        Raises:
            ImageError: If `ids_unclear` is set.
        """
        if self.ids_unclear:
            raise ImageError(f"it contains class ids, and their meaning is unclear: {self.ids_unclear}")

    def checked(self, ids: np.ndarray) -> np.ndarray:
        """Return class ids, (H, W) uint8, after a check.

        Raises:
            ImageError: If an id is neither in the class list nor 255; names the first one and its place.
        """
        self.require_clear_ids()
        wrong = (ids >= len(self.labels)) & (ids != IGNORE)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ImageError(
                f"class id {int(ids[row, column])} (row {row}, column {column}) is not in the list of "
                f"{len(self.labels)} classes (0..{len(self.labels) - 1}; {IGNORE} = unlabelled)"
            )
        return ids


def parse_palette(text: str, where: str) -> Palette:
    """Parse a labelmap.txt.

    Args:
        text: Content of the file.
        where: Name of the file in errors.

    Raises:
        ConfigError: If a line cannot be parsed; names `where` and the line.
    """
    names: list[str] = []
    colors: list[tuple[int, int, int]] = []
    background = False
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = _LINE.match(line)
        if not found:
            raise ConfigError(f"{where}, line {number}: expected name:red,green,blue::, got {line[:60]!r}")
        name = found[1].strip()
        color = (int(found[2]), int(found[3]), int(found[4]))
        if name.lower() == BACKGROUND and color == (0, 0, 0):
            background = True
            continue
        names.append(name)
        colors.append(color)
    try:
        return Palette(LabelSet(tuple(names), tuple(colors)), _COUNTED if background else "")
    except ConfigError as err:
        raise ConfigError(f"{where}: {err}") from err


def format_palette(labels: LabelSet) -> str:
    """Return the labelmap.txt of a class list."""
    lines = [
        f"{name}:{red},{green},{blue}::" for name, (red, green, blue) in zip(labels.names, labels.colors)
    ]
    return "\n".join(["# label:color_rgb:parts:actions", *lines, ""])


def open_palette(name: str) -> Palette:
    """Open a class list.

    Args:
        name: `street`, `camvid`, `cityscapes`, or the path of a labelmap.txt.

    Raises:
        ConfigError: If it is neither.
    """
    if name in LABEL_SETS:
        return Palette(LABEL_SETS[name])
    try:
        text = read_text(name)
    except (OSError, UnicodeDecodeError) as err:
        reason = (
            err.strerror if isinstance(err, OSError) else "it is neither UTF-8 nor UTF-16: save it as UTF-8"
        )
        raise ConfigError(
            f"class list {name!r} is neither a file that can be read ({reason}) nor one of {', '.join(LABEL_SETS)}"
        ) from err
    return parse_palette(text, name)
