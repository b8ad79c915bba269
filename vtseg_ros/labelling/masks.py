# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Read class ids from mask files: grey values, palettes and colours, transparency and smoothed edges."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from vtseg_ros.bags.label_messages import as_ids, without_clear_pixels
from vtseg_ros.bags.png import StoredPng, read_png
from vtseg_ros.content import PNG_MAGIC
from vtseg_ros.errors import ImageError
from vtseg_ros.files import MAX_IMAGE_BYTES, read_limited
from vtseg_ros.label_set import IGNORE
from vtseg_ros.labelling.palette import Palette

COLORS, IDS = "colours", "ids"
UNKNOWN = ("refuse", "unlabelled")
"""Treatment of pixels of no class: smoothed edges, partly transparent pixels, unknown ids and colours."""


def meaning_of(png: StoredPng, palette: Palette | None) -> str | None:
    """Return whether a mask contains the colours or the ids of classes.

    Grey values are ids. For an indexed file the palette decides: with colours of the class list, the mask contains
    colours, otherwise its indices are ids. RGB values are colours, unless all are grey and none is the colour of a class:
    then they are ids.

    Args:
        png: Mask.
        palette: Class list; None = there is none.

    Returns:
        `colours` or `ids`; None for a black mask, which may be either.
    """
    if png.palette is None and not png.has_colors:
        return IDS
    visible = png.values if png.alpha is None else png.values[png.alpha > 0]
    if png.palette is None:
        shown = np.unique(
            png.rgb()[slice(None) if png.alpha is None else png.alpha > 0].reshape(-1, 3), axis=0
        )
    else:
        shown = png.palette[np.unique(visible)]
    known: set[tuple[int, ...]] = set() if palette is None else set(palette.labels.colors)

    def verdict(colors: np.ndarray) -> str | None:
        bright = [tuple(int(v) for v in color) for color in colors if color.any()]
        if any(color in known for color in bright):
            return COLORS
        if not bright:
            return None
        if png.palette is not None:
            return IDS
        count = IGNORE if palette is None else len(palette.labels)
        return IDS if all(r == g == b and (r < count or r == IGNORE) for r, g, b in bright) else COLORS

    found = verdict(shown)
    return found or (None if png.palette is None else verdict(png.palette))


@dataclass
class MaskReader:
    """Read the masks of one set in the same way, and count their content.

    Args:
        palette: Class list; None = masks contain ids, which are not checked.
        unknown: `refuse` masks with pixels of no class, or treat these pixels as `unlabelled`.
        others: Returns the content of all masks of the set, which is read if a mask by itself is ambiguous.

    Attributes:
        read: Content of each mask, by name.
    """

    palette: Palette | None
    unknown: str = "refuse"
    others: Callable[[], Iterable[bytes]] = tuple
    read: dict[str, MaskFacts] = field(default_factory=dict)
    _meanings: dict[bool, tuple[str, str]] = field(default_factory=dict)

    def ids(self, name: str, data: bytes) -> np.ndarray:
        """Read a mask.

        Args:
            name: Name of the file.
            data: Content of the file, a png.

        Returns:
            (H, W) uint8 class ids.

        Raises:
            ImageError: If it is not a png, contains pixels of no class, or is of another kind than the masks before it.
        """
        png = read_png(data)
        meaning = self._meaning(name, png)
        if meaning == COLORS:
            if self.palette is None:
                raise ImageError("it contains colours. Name a class list with colours (--labels)")
            ids, known = self.palette.lookup(png.rgb())
        else:
            ids, known = self._plain_ids(png)
        partly = np.zeros(ids.shape, bool)
        if png.alpha is not None:
            known, partly = known | (png.alpha == 0), (png.alpha > 0) & (png.alpha < 255)
        strange = ~known | partly
        if self.unknown == "unlabelled":
            ids = np.where(strange, IGNORE, ids).astype(np.uint8)
            ids = ids if png.alpha is None else np.where(png.alpha == 0, IGNORE, ids).astype(np.uint8)
        else:
            try:
                if self.palette is not None and not known.all():
                    if meaning == COLORS:
                        self.palette.refuse_color(png.rgb(), known)
                    self.palette.checked(ids)
                ids = without_clear_pixels(ids, png.alpha)
            except ImageError as err:
                raise ImageError(
                    f"{err}. Treat such pixels as unlabelled with --unknown unlabelled"
                ) from None
        kind = (
            ""
            if png.palette is None and not png.has_colors
            else "indexed"
            if png.palette is not None
            else "RGB"
        )
        present = np.bincount(ids.reshape(-1), minlength=256)
        self.read[name] = MaskFacts(kind if meaning == IDS else "", present, int(strange.sum()))
        return ids

    def _plain_ids(self, png: StoredPng) -> tuple[np.ndarray, np.ndarray]:
        """Return the stored ids, and where they are in the class list; values of transparent pixels are ignored."""
        values = png.values if not png.has_colors else png.rgb()[..., 0]
        if png.alpha is not None:
            values = np.where(png.alpha == 0, IGNORE, values)
        ids = as_ids(values)
        if self.palette is None:
            return ids, np.ones(ids.shape, bool)
        self.palette.require_clear_ids()
        return ids, (ids < len(self.palette.labels)) | (ids == IGNORE)

    def _meaning(self, name: str, png: StoredPng) -> str:
        indexed, found = png.palette is not None, meaning_of(png, self.palette)
        if not indexed and not png.has_colors:
            return IDS
        if found is None:
            for data in self.others() if indexed not in self._meanings else ():
                try:
                    other = read_png(data)
                    meaning = meaning_of(other, self.palette)
                except ImageError:
                    continue
                if meaning and (other.palette is not None, other.has_colors) == (indexed, png.has_colors):
                    return meaning
            if indexed in self._meanings:
                return self._meanings[indexed][0]
            black = self.palette is not None and (0, 0, 0) in self.palette.labels.colors
            return COLORS if black or not indexed else IDS
        before, first = self._meanings.setdefault(indexed, (found, name))
        if before != found:
            content = {COLORS: "colours of the class list", IDS: "no colour of the class list, only values"}
            raise ImageError(
                f"it contains {content[found]}, and {first} {content[before]}; expected one kind of mask. Save all as "
                "grey class ids, or all in the colours of the class list"
            )
        return found

    def summary(self, names: Iterable[str]) -> list[str]:
        """Describe in lines how masks were read, how much is unlabelled and which classes never occur.

        Args:
            names: Names of the masks that are used.
        """
        facts = [self.read[name] for name in names if name in self.read]
        if not facts:
            return []
        lines = []
        for kind, what in (("indexed", "the indices of {} indexed"), ("RGB", "the grey values of {} RGB")):
            count = sum(fact.ids_of == kind for fact in facts)
            if count:
                lines.append(
                    f"{what.format(count)} masks are taken as class ids: none of their colours is that of a class"
                )
        present = np.sum([fact.present for fact in facts], axis=0)
        total, strange = int(present.sum()), sum(fact.strange for fact in facts)
        if strange:
            lines.append(
                f"{strange} pixels ({_percent(strange, total)}) have no class or are transparent in part: unlabelled"
            )
        never = (
            []
            if self.palette is None
            else [
                f"{number} ({name})"
                for number, name in enumerate(self.palette.labels.names)
                if not present[number]
            ]
        )
        parts = []
        if present[IGNORE]:
            parts.append(f"{IGNORE} means unlabelled: {_percent(int(present[IGNORE]), total)} of the pixels")
        if never:
            parts.append(f"classes that never occur: {', '.join(never)}")
        return lines + (["; ".join(parts)] if parts else [])


@dataclass(frozen=True)
class MaskFacts:
    """Content of a mask.

    Attributes:
        ids_of: `indexed` or `RGB` if ids were read from such a file; empty otherwise.
        present: (256,) number of pixels by class id.
        strange: Number of pixels of no class that were treated as unlabelled.
    """

    ids_of: str
    present: np.ndarray
    strange: int


def _percent(part: int, total: int) -> str:
    return f"{100 * part / total:.2g} %" if part < total / 100 else f"{100 * part / total:.1f} %"


def read_ego_mask(path: str | Path) -> np.ndarray:
    """Read the mask of the robot's own body in the images of its camera.

    In a file with transparency every pixel that is not fully transparent belongs to the robot, otherwise every pixel that
    is not black (an id above 0 in a grey file).

    Args:
        path: A png file, or another format that OpenCV reads, without transparency.

    Returns:
        (H, W) bool, True on the robot.

    Raises:
        ImageError: If it cannot be read.
    """
    try:
        data = read_limited(Path(path), MAX_IMAGE_BYTES)
    except OSError as err:
        raise ImageError(f"the file cannot be read: {err.strerror}") from err
    if not data.startswith(PNG_MAGIC):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
        if pixels is None:
            raise ImageError("it is not an image file")
        return np.asarray(pixels > 0)
    png = read_png(data)
    if png.alpha is not None and png.alpha.min() < 255:
        return np.asarray(png.alpha > 0)
    if png.palette is not None:
        return np.take((png.palette > 0).any(axis=1), png.values)
    return np.asarray((png.values.max(axis=2) if png.has_colors else png.values) > 0)
