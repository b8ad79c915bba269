# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Read label images that labelling tools export: plain PNG files, exports of CVAT and of Label Studio.

Files are read directly from a folder or a zip archive; no file is written under a name from the archive.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from vtseg_ros.bags.png import read_png
from vtseg_ros.errors import ConfigError, ImageError
from vtseg_ros.label_set import IGNORE, LabelSet
from vtseg_ros.labelling.masks import MaskReader
from vtseg_ros.labelling.palette import Palette, parse_palette
from vtseg_ros.text import decode_text
from vtseg_ros.topic_names import is_hidden

STAMP_DIGITS = 19
MAX_FILE_BYTES = 256 * 1024 * 1024
_STAMP = re.compile(rf"(?<!\d)\d{{{STAMP_DIGITS}}}(?!\d)")
_LABEL_STUDIO = re.compile(r"task-(\d+)-annotation-(\d+)-by-(.+)-(\d+)\.png")
CVAT_FOLDER, CLASS_LIST = "SegmentationClass", "labelmap.txt"


def frame_name(stamp_ns: int) -> str:
    """Return the file name of an extracted frame: `frame_` and its header stamp in ns."""
    return f"frame_{stamp_ns:0{STAMP_DIGITS}d}.png"


def stamp_in(name: str) -> int:
    """Return the stamp (ns) in a file name made by `frame_name`, to which tools may have added text.

    Raises:
        ImageError: If the name contains no stamp, or more than one.
    """
    found = _STAMP.findall(PurePosixPath(name).name)
    if len(found) != 1:
        raise ImageError(
            f"its name contains {'no' if not found else 'more than one'} stamp of {STAMP_DIGITS} digits. "
            "Keep the names given by `vtseg labels extract`"
        )
    return int(found[0])


@dataclass(frozen=True)
class LabelFile:
    """A label image, which may consist of several files.

    Attributes:
        name: Name shown to the user.
        stamp_ns: Header stamp of its frame.
        ids: Function that reads it and returns (H, W) uint8 class ids; raises ImageError.
    """

    name: str
    stamp_ns: int
    ids: Callable[[], np.ndarray]


@dataclass
class LabelFiles:
    """Content of an export.

    Attributes:
        files: Label images, sorted by stamp.
        refused: (file name, reason) of files that cannot be used.
        palette: Class list that ids refer to; None = there is none.
        kind: `png`, `CVAT` or `Label Studio`.
        reader: Reads the masks and counts their content; not used for Label Studio.
    """

    files: list[LabelFile]
    refused: list[tuple[str, str]]
    palette: Palette | None
    kind: str
    reader: MaskReader


class _Archive:
    """Files of a folder or zip by their names relative to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        if path.is_dir():
            names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
            self.names = sorted(name for name in names if not is_hidden(name))
            return
        if path.exists() and not path.is_file():
            raise ConfigError(
                f"{path} is neither a folder nor a zip archive of labels: it is a device or a pipe. Name a folder or a file"
            )
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as err:
            raise ConfigError(f"{path} is neither a folder nor a zip archive of labels: {err}") from err
        names = [name for name in self._zip.namelist() if not name.endswith("/")]
        self.names = sorted(name for name in names if not is_hidden(name))

    def read(self, name: str) -> bytes:
        try:
            if self._zip is None:
                if (self.path / name).stat().st_size > MAX_FILE_BYTES:
                    raise ImageError(f"the file is larger than {MAX_FILE_BYTES} bytes")
                return (self.path / name).read_bytes()
            if self._zip.getinfo(name).file_size > MAX_FILE_BYTES:
                raise ImageError(f"the file is larger than {MAX_FILE_BYTES} bytes")
            return self._zip.read(name)
        except (OSError, RuntimeError, zipfile.BadZipFile) as err:  # RuntimeError: an encrypted archive
            raise ImageError(f"the file cannot be read: {err}") from err

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()


@contextmanager
def open_label_files(
    path: Path, named: Palette | None, bag: LabelSet | None, unknown: str = "refuse"
) -> Iterator[LabelFiles]:
    """Open label images in a folder or zip archive; they can be read inside the `with` block.

    Args:
        path: PNG files named by `vtseg labels extract`; a CVAT export "Segmentation mask 1.1"; or a Label Studio export
            "Brush labels to PNG" together with its JSON export, which contains the image of each task.
        named: Class list given by the user; None = the labelmap.txt among the files, or else that of the bag.
        bag: Class list of the bag, which ids will refer to; None = it has none.
        unknown: Treatment of pixels of no class; see `MaskReader`.

    Raises:
        ConfigError: If there is nothing to read, or a required class list is missing or differs from that of the bag.
    """
    if not path.exists():
        raise ConfigError(f"no labels at {path}: no such file or folder")
    archive = _Archive(path)
    try:
        palette = named or _own_palette(archive)
        if bag is not None:
            palette = palette.for_classes(bag) if palette else Palette(bag)
        pngs = [name for name in archive.names if name.lower().endswith(".png")]
        cvat = [name for name in pngs if CVAT_FOLDER in PurePosixPath(name).parts[:-1]]
        studio = [name for name in pngs if _LABEL_STUDIO.fullmatch(PurePosixPath(name).name)]
        if not pngs:
            raise ConfigError(f"{path} contains no .png file")
        kind = "CVAT" if cvat else "Label Studio" if studio else "png"
        if palette is None and kind != "png":
            raise ConfigError(f"the {kind} export {path} has no {CLASS_LIST}. Name a class list (--labels)")
        names = cvat or pngs
        reader = MaskReader(palette, unknown, lambda: _contents(archive, names))
        if kind == "Label Studio" and palette is not None:
            found = _label_studio(archive, studio, palette)
        else:
            found = _plain(archive, names, reader)
        yield LabelFiles(*found, palette, kind, reader)
    finally:
        archive.close()


def _contents(archive: _Archive, names: list[str]) -> Iterator[bytes]:
    for name in names:
        try:
            yield archive.read(name)
        except ImageError:
            continue


def _own_palette(archive: _Archive) -> Palette | None:
    lists = [name for name in archive.names if PurePosixPath(name).name == CLASS_LIST]
    if not lists:
        return None
    try:
        text = decode_text(archive.read(min(lists, key=len)))
    except (ImageError, UnicodeDecodeError) as err:
        raise ConfigError(f"{archive.path}/{lists[0]}: {err}") from err
    return parse_palette(text, f"{archive.path}/{min(lists, key=len)}")


def _plain(
    archive: _Archive, names: list[str], reader: MaskReader
) -> tuple[list[LabelFile], list[tuple[str, str]]]:
    found: dict[int, LabelFile] = {}
    refused = []
    for name in names:
        try:
            stamp = stamp_in(name)
            if stamp in found:
                raise ImageError(f"it has the stamp of {found[stamp].name}")
        except ImageError as err:
            refused.append((name, str(err)))
            continue
        found[stamp] = LabelFile(name, stamp, partial(_read_mask, archive, reader, name))
    return [found[stamp] for stamp in sorted(found)], refused


def _read_mask(archive: _Archive, reader: MaskReader, name: str) -> np.ndarray:
    return reader.ids(name, archive.read(name))


def _label_studio(
    archive: _Archive, names: list[str], palette: Palette
) -> tuple[list[LabelFile], list[tuple[str, str]]]:
    stamps = _task_stamps(archive)
    layers: dict[int, list[tuple[str, int, int]]] = {}  # by stamp: file, annotation, class id
    refused = []
    for name in names:
        parts_of_name = _LABEL_STUDIO.fullmatch(PurePosixPath(name).name)
        assert parts_of_name is not None  # names were chosen by it
        task, annotation, middle, _ = parts_of_name.groups()
        classes = [
            n
            for n, known in enumerate(palette.labels.names)
            if middle.endswith("-" + known.replace("/", "-"))
        ]
        # Names such as `sign` and `traffic-sign` may both fit: the longest one is meant.
        classes.sort(key=lambda n: len(palette.labels.names[n]))
        if int(task) not in stamps:
            refused.append((name, f"no .json export next to it contains the frame of task {task}"))
        elif not classes:
            refused.append((name, "its name ends in none of the class names"))
        else:
            layers.setdefault(stamps[int(task)], []).append((name, int(annotation), classes[-1]))
    files = []
    for stamp, parts in sorted(layers.items()):
        annotations = sorted({annotation for _, annotation, _ in parts})
        if len(annotations) > 1:
            reason = (
                f"its task has {len(annotations)} annotations ({', '.join(map(str, annotations))}): keep one"
            )
            refused += [(name, reason) for name, _, _ in parts]
            continue
        names_of = [(name, number) for name, _, number in parts]
        files.append(LabelFile(names_of[0][0], stamp, partial(_stack, archive, names_of)))
    return files, refused


def _task_stamps(archive: _Archive) -> dict[int, int]:
    """Return the stamp in the image name of each Label Studio task by task id, from the JSON exports in the archive."""
    stamps = {}
    for name in archive.names:
        if not name.lower().endswith(".json"):
            continue
        try:
            tasks = json.loads(archive.read(name))
        except (ValueError, ImageError, RecursionError):
            continue
        for task in tasks if isinstance(tasks, list) else [tasks]:
            if not isinstance(task, dict) or not isinstance(task.get("id"), int):
                continue
            values = task["data"].values() if isinstance(task.get("data"), dict) else task.values()
            for value in values:
                found = _STAMP.findall(value.split("?")[0]) if isinstance(value, str) else []
                if len(found) == 1:
                    stamps[task["id"]] = int(found[0])
    return stamps


def _stack(archive: _Archive, parts: list[tuple[str, int]]) -> np.ndarray:
    """Combine the binary masks of regions into one label image; pixels of two classes stay unlabelled."""
    ids, claimed = np.zeros(0, np.uint8), np.zeros(0, bool)
    for name, number in parts:
        png = read_png(archive.read(name))
        mask = png.values
        if mask.ndim != 2:
            raise ImageError(f"{name}: wrong mask of a region; expected one channel, got {mask.shape[2]}")
        if not ids.size:
            ids, claimed = np.full(mask.shape, IGNORE, np.uint8), np.zeros(mask.shape, bool)
        if mask.shape != ids.shape:
            raise ImageError(f"{name}: regions of one task differ in size")
        here = mask > (2**png.depth - 1) // 2
        if png.alpha is not None:
            here &= png.alpha > 127
        ids[here & claimed & (ids != number)] = IGNORE
        ids[here & ~claimed] = number
        claimed |= here
    return ids
