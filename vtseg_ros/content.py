# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Recognise what a file contains from its first bytes, for errors about a file of another kind."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

START_BYTES = 512
"""Number of bytes that are read of a file."""
MCAP_MAGIC = b"\x89MCAP0\r\n"
SQLITE_MAGIC = b"SQLite format 3\0"
ROS1_MAGIC = b"#ROSBAG V"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
BAG_MAGICS = (MCAP_MAGIC, SQLITE_MAGIC, ROS1_MAGIC)

_POINTER = "a Git LFS pointer instead of the file itself"
_PAGE = "a web page (HTML), as a failed download leaves it"
EMPTY = "an empty file"
_READABLE = (
    (ROS1_MAGIC, "a ROS 1 bag"),
    (b"%PDF", "a pdf document"),
    (b"version https://git-lfs", _POINTER),
)
"""Starts that may be followed by text only."""
_SIGNATURES = (
    (0, MCAP_MAGIC, "an mcap bag"),
    (0, SQLITE_MAGIC, "a sqlite3 database"),
    (0, PNG_MAGIC, "a png image"),
    (0, b"\xff\xd8\xff", "a jpeg image"),
    (0, b"GIF8", "a gif image"),
    (0, b"BM", "a bmp image"),
    (0, b"II*\0", "a tiff image"),
    (0, b"MM\0*", "a tiff image"),
    (8, b"WEBP", "a webp image"),
    (8, b"AVI ", "an avi video"),
    (8, b"WAVE", "a wav recording"),
    (4, b"ftyp", "an mp4 or similar media file"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM media file"),
    (0, b"PK", "a zip archive or PyTorch file"),
    (0, b"\x80\x02", "a pickle (PyTorch) file"),
    (0, b"\x80\x04", "a pickle file"),
    (0, b"\x80\x05", "a pickle file"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, ZSTD_MAGIC, "a zstd archive"),
    (8, b'{"', "a safetensors file"),
)
_PAGES = ("<!doctype html", "<html")
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def content_of(path: str | os.PathLike[str]) -> str:
    """Return what a file contains, in words that follow "got".

    Args:
        path: a file; at most START_BYTES of it are read. Pipes and devices are not read.

    Returns:
        Words such as `a text file`; `a file of unknown content` if nothing fits.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return "a folder"
        if not path.is_file():
            return "no file"
        with path.open("rb") as file:
            start = file.read(START_BYTES)
    except OSError as err:
        return f"a file that cannot be read ({err.strerror or err})"
    return words_for(start)


def advice_on(content: str) -> str:
    """Return what to do about a file with a content of `content_of` where another one is expected."""
    advice = {
        _POINTER: "Run: git lfs pull",
        _PAGE: "Download the file again",
        EMPTY: "Copy the file again",
    }
    return advice.get(content, "Correct the path")


def are_weights(content: str) -> bool:
    """Return whether words of `content_of` are those of a file that may contain weights."""
    return any(kind in content for kind in ("safetensors", "pickle", "PyTorch"))


def is_bag_file(path: Path) -> bool:
    """Return whether a file begins like a storage file of a bag, whatever its name is."""
    try:
        if not path.is_file():  # a pipe would block
            return False
        with path.open("rb") as file:
            return file.read(len(SQLITE_MAGIC)).startswith(BAG_MAGICS)
    except OSError:
        return False


def words_for(start: bytes) -> str:
    """Return the words of `content_of` for the first bytes of a file."""
    if not start:
        return EMPTY
    found = next((words for magic, words in _READABLE if start.startswith(magic)), "")
    if found:
        return found
    text = _text(start)
    if text is None:
        known = (words for place, magic, words in _SIGNATURES if start.startswith(magic, place))
        return next(known, "a file of unknown content")
    if text.lstrip().lower().startswith(_PAGES):
        return _PAGE
    return "a text file"


def _text(start: bytes) -> str | None:
    """Return the text that a file begins with; None if it is not text."""
    marked = start.startswith(_MARKS)
    # The last character may be cut.
    decoder = codecs.getincrementaldecoder("utf-16" if marked else "utf-8-sig")()
    try:
        text = decoder.decode(start)
    except UnicodeDecodeError:
        try:
            text = start.decode("cp1252")  # the encoding of older Windows programs
        except UnicodeDecodeError:
            return None
    control = sum(char < " " and char not in "\t\n\r\f\x1b" for char in text)
    return text if not control else None
