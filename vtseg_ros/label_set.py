# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Class lists: ids, names and colours of the classes in a mask."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vtseg_ros.errors import ConfigError

IGNORE = 255
"""Label id of pixels without a class (void, undefined, unlabelled)."""

OUTSIDE = 254
"""Label id, in training data, of pixels outside the image, which augmentation or resizing adds."""


@dataclass(frozen=True)
class LabelSet:
    """An ordered class list; the id of a class is its index.

    Args:
        names: class names, unique, at most 255 of them.
        colors: one (r, g, b) per class, each 0..255.

    Raises:
        ConfigError: if names repeat, are too many, or colours do not match them.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= IGNORE:
            raise ConfigError(
                f"class list: wrong length; expected 1 to {IGNORE} names, got {len(self.names)}"
            )
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise ConfigError(
                f"class list: repeated names; expected each once, got {', '.join(repeated)} more than once"
            )
        if len(self.colors) != len(self.names):
            raise ConfigError(
                f"class list: expected one colour per name ({len(self.names)}), got {len(self.colors)} colours"
            )
        for name, color in zip(self.names, self.colors):
            if len(color) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in color):
                raise ConfigError(
                    f"class list: wrong colour of {name!r}; expected three integers of 0 to 255, got {color}"
                )

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_names(cls, names: tuple[str, ...] | list[str]) -> LabelSet:
        """Return a class list for these names with distinct colours (golden-ratio hues)."""
        import colorsys

        colors: list[tuple[int, int, int]] = []
        for index in range(len(names)):
            rgb = colorsys.hsv_to_rgb((0.07 + index * 0.618034) % 1.0, 0.65, 0.95 - 0.25 * (index % 3) / 2)
            red, green, blue = (round(255 * channel) for channel in rgb)
            colors.append((red, green, blue))
        return cls(tuple(names), tuple(colors))

    def ids_of(self, names: Iterable[str], where: str = "classes") -> frozenset[int]:
        """Return the ids of some classes.

        Args:
            names: of the classes.
            where: field for the error.

        Raises:
            ConfigError: if a name is not in the list.
        """
        wanted = list(names)
        unknown = [name for name in wanted if name not in self.names]
        if unknown:
            raise ConfigError(
                f"{where}: unknown class; expected some of {', '.join(self.names)}, got {', '.join(unknown)}"
            )
        return frozenset(self.names.index(name) for name in wanted)

    def palette(self) -> np.ndarray:
        """Return (256, 3) uint8 RGB: row i is the colour of id i; ids without a class are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = np.asarray(self.colors, np.uint8)
        return table


# Classes of Virtual KITTI 2 in the order of the paper's Table II, with the colours of the data set.
STREET = LabelSet(
    (
        "terrain",
        "sky",
        "tree",
        "vegetation",
        "building",
        "road",
        "guardrail",
        "traffic-sign",
        "traffic-light",
        "pole",
        "misc",
        "truck",
        "car",
        "van",
    ),
    (
        (210, 0, 200),
        (90, 200, 255),
        (0, 199, 0),
        (90, 240, 0),
        (140, 140, 140),
        (100, 60, 100),
        (250, 100, 255),
        (255, 255, 0),
        (200, 200, 0),
        (255, 130, 0),
        (80, 80, 80),
        (160, 60, 60),
        (255, 127, 80),
        (0, 139, 139),
    ),
)

CAMVID = LabelSet(
    (
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    (
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (0, 0, 192),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)

CITYSCAPES = LabelSet(
    (
        "road",
        "sidewalk",
        "building",
        "wall",
        "fence",
        "pole",
        "traffic-light",
        "traffic-sign",
        "vegetation",
        "terrain",
        "sky",
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "motorcycle",
        "bicycle",
    ),
    (
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (102, 102, 156),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (0, 0, 70),
        (0, 60, 100),
        (0, 80, 100),
        (0, 0, 230),
        (119, 11, 32),
    ),
)

LABEL_SETS = {"street": STREET, "camvid": CAMVID, "cityscapes": CITYSCAPES}
