# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Mask files as class ids: grey values, palettes and colours, transparency and smoothed edges."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from vtseg_ros.bags.containers import PNG_MAGIC
from vtseg_ros.bags.image_messages import as_ids, without_clear_pixels
from vtseg_ros.bags.png import StoredPng, read_png
from vtseg_ros.errors import ImageError
from vtseg_ros.label_set import IGNORE
from vtseg_ros.labelling.palette import Palette

COLORS, IDS = "colours", "ids"
UNKNOWN = ("refuse", "unlabelled")
"""What becomes of pixels that show no class: smoothed edges, half transparent ones, ids and colours of no class."""


def meaning_of(png: StoredPng, palette: Palette | None) -> str | None:
    """Tell whether a mask shows classes by their colours or by their ids.

    Grey values are ids. Of an indexed file the palette decides: colours of the class list are colours, otherwise the
    indices are ids. RGB values are colours, except where all are grey and none is a class's: then they are ids.

    Args:
        png: the mask.
        palette: class list; None = there is none.

    Returns:
        `colours` or `ids`; None where only black is shown, which fits both.
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
    known = set() if palette is None else set(palette.labels.colors)

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
    """Read the masks of one set, all in the same way, and count what they show.

    Args:
        palette: class list; None = masks hold ids, which are not checked.
        unknown: `refuse` masks with pixels of no class, or take these as `unlabelled`.
        others: content of the set's masks, looked at only for a mask that does not tell by itself what it shows.

    Attributes:
        read: by name of a mask: what was seen in it.
    """

    palette: Palette | None
    unknown: str = "refuse"
    others: Callable[[], Iterable[bytes]] = tuple
    read: dict[str, MaskFacts] = field(default_factory=dict)
    _meanings: dict[bool, tuple[str, str]] = field(default_factory=dict)

    def ids(self, name: str, data: bytes) -> np.ndarray:
        """Read a mask.

        Args:
            name: of the file.
            data: its content, a png.

        Returns:
            (H, W) uint8 class ids.

        Raises:
            ImageError: if it is no png, shows what is no class, or means other values than the masks before it.
        """
        png = read_png(data)
        meaning = self._meaning(name, png)
        if meaning == COLORS:
            if self.palette is None:
                raise ImageError("it shows colours: a class list with colours is needed (--labels)")
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
                if not known.all() and meaning == COLORS:
                    self.palette.refuse_color(png.rgb(), known)
                if not known.all():
                    self.palette.checked(ids)
                ids = without_clear_pixels(ids, png.alpha)
            except ImageError as err:
                raise ImageError(f"{err}. Take such pixels as unlabelled with --unknown unlabelled") from None
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
        """Ids as stored, and where they are in the class list; a transparent pixel's value is not looked at."""
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
                    told = meaning_of(other, self.palette)
                except ImageError:
                    continue
                if told and (other.palette is not None, other.has_colors) == (indexed, png.has_colors):
                    return told
            if indexed in self._meanings:
                return self._meanings[indexed][0]
            black = self.palette is not None and (0, 0, 0) in self.palette.labels.colors
            return COLORS if black or not indexed else IDS
        before, first = self._meanings.setdefault(indexed, (found, name))
        if before != found:
            shown = {COLORS: "colours of the class list", IDS: "no colour of the class list, only values"}
            raise ImageError(
                f"it shows {shown[found]}, and {first} {shown[before]}: the masks of a set mean the same. Save all as "
                "grey class ids, or all in the colours of the class list"
            )
        return found

    def summary(self, names: Iterable[str]) -> list[str]:
        """Say in lines what was taken how, how much is unlabelled and which classes never occur.

        Args:
            names: of the masks that are used.
        """
        facts = [self.read[name] for name in names if name in self.read]
        if not facts:
            return []
        lines = []
        for kind, what in (("indexed", "the indices of {} indexed"), ("RGB", "the grey values of {} RGB")):
            count = sum(fact.ids_of == kind for fact in facts)
            if count:
                lines.append(
                    f"{what.format(count)} masks are taken as class ids: none of their colours is a class's"
                )
        present = sum(fact.present for fact in facts)
        total, strange = int(present.sum()), sum(fact.strange for fact in facts)
        if strange:
            lines.append(
                f"{strange} pixels ({_percent(strange, total)}) show no class or are transparent in part: unlabelled"
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
    """What was seen in a mask.

    Attributes:
        ids_of: `indexed` or `RGB` where ids were taken from such a file; empty = nothing worth a word.
        present: (256,) pixels by class id.
        strange: pixels of no class that were taken as unlabelled.
    """

    ids_of: str
    present: np.ndarray
    strange: int


def _percent(part: int, total: int) -> str:
    return f"{100 * part / total:.2g} %" if part < total / 100 else f"{100 * part / total:.1f} %"


def read_ego_mask(path: str | Path) -> np.ndarray:
    """Read where a robot sees itself in its camera's images.

    Where the file has transparency, what is not clear is the robot, whatever colour it has; otherwise every pixel that
    is not black (an id above 0 in a grey file).

    Args:
        path: a png file; other formats that OpenCV reads have no transparency here.

    Returns:
        (h, w) bool, True where the robot is.

    Raises:
        ImageError: if it cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as err:
        raise ImageError(f"the file cannot be read: {err.strerror}") from err
    if not data.startswith(PNG_MAGIC):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
        if pixels is None:
            raise ImageError("it is no image file")
        return pixels > 0
    png = read_png(data)
    if png.alpha is not None and png.alpha.min() < 255:
        return png.alpha > 0
    if png.palette is not None:
        return png.palette.any(axis=1)[png.values]
    return png.values.any(axis=2) if png.has_colors else png.values > 0
