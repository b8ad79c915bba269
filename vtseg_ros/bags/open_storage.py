# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Open storage files by their content: mcap, sqlite3 and ROS 1, compressed as a whole or not. metadata.yaml is not needed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from os import SEEK_CUR
from pathlib import Path
from typing import Any, BinaryIO

import lz4.frame
import zstandard

from vtseg_ros.bags.mcap_storage import McapStorage
from vtseg_ros.bags.ros1 import Ros1Storage
from vtseg_ros.bags.sqlite_storage import SqliteStorage
from vtseg_ros.bags.storage import COPY_BYTES, Storage
from vtseg_ros.content import MCAP_MAGIC, ROS1_MAGIC, SQLITE_MAGIC, ZSTD_MAGIC, advice_on, content_of
from vtseg_ros.errors import BagError, first_line

LZ4_MAGIC = b"\x04\x22\x4d\x18"
SKIPPABLE_MAGIC = b"\x2a\x4d\x18"
"""Bytes 1 to 3 of a frame that decoders skip, in zstd and lz4 files; byte 0 is 0x50 to 0x5f. pzstd writes them."""
SKIPPABLE_HEADER = 8
"""Bytes before the content of such a frame: its magic and its size."""
_CONVERT = {
    "image": "Convert a folder of images with `vtseg import images`",
    "video": "Convert it with `vtseg import video`",
    "media file": "Convert it with `vtseg import video`",
}
"""What to do with other recordings, by the end of the words for them."""


def open_storage(path: Path, scratch: Path) -> Storage:
    """Open a storage file by its content; the suffix of its name is ignored.

    Args:
        path: mcap or sqlite3 file or ROS 1 bag, compressed as a whole or not.
        scratch: Existing folder for files that must be copied before they can be read.

    Returns:
        The open storage; call `close` at the end.

    Raises:
        BagError: If it is not a storage file, or contains nothing that can be read; does not name the file.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(16)
        if _decompressor(magic) or _is_skippable(magic):
            return _open_compressed(path, scratch)
        if magic == SQLITE_MAGIC:
            return SqliteStorage(path, scratch)
        if magic.startswith(MCAP_MAGIC):
            return McapStorage(path)
        if magic.startswith(ROS1_MAGIC):
            return Ros1Storage(path)
    except OSError as err:
        raise BagError(f"it cannot be read: {err.strerror or err}") from err
    content = content_of(path)
    advice = next((text for kind, text in _CONVERT.items() if content.endswith(kind)), advice_on(content))
    raise BagError(f"not a bag; expected an mcap, sqlite3 or ROS 1 file, got {content}. {advice}")


def _open_compressed(path: Path, scratch: Path) -> Storage:
    damage = ""
    with path.open("rb") as packed, tempfile.NamedTemporaryFile(dir=scratch, delete=False) as out:
        whole = Path(out.name)
        try:
            for block in _unpacked(packed):
                out.write(block)
        except (zstandard.ZstdError, RuntimeError, EOFError) as err:
            damage = f"its compressed data is damaged: {first_line(err)}"
        except _Cut:
            damage = "its compressed data is cut"
    if whole.stat().st_size == 0:
        raise BagError(damage or "it is empty")
    try:
        storage = open_storage(whole, scratch)
    except BagError as err:
        raise BagError(f"{damage}; {err}" if damage else str(err)) from err
    if damage and isinstance(storage, SqliteStorage):  # its pages are in no order: the rest cannot be read
        storage.close()
        raise BagError(damage)
    if damage:
        storage.notes.insert(0, damage)
    return storage


class _Cut(Exception):
    """A compressed file ends within a frame."""


def _unpacked(packed: BinaryIO) -> Iterator[bytes]:
    """Yield the content of a zstd or lz4 file, which may have several frames; other bytes at the end are ignored.

    zstandard's copy_stream is not used, because it accepts truncated files.

    Raises:
        _Cut: if the last frame has no end.
    """
    data = packed.read(COPY_BYTES)
    while True:
        if len(data) < SKIPPABLE_HEADER:  # the next frame may begin in the next block
            data += packed.read(COPY_BYTES)
        if _is_skippable(data):
            end = SKIPPABLE_HEADER + int.from_bytes(data[4:SKIPPABLE_HEADER], "little")
            packed.seek(max(0, end - len(data)), SEEK_CUR)
            data = data[end:]
            continue
        unpack = _decompressor(data)
        if unpack is None:
            return
        while not unpack.eof:
            if not data:
                raise _Cut
            yield unpack.decompress(data)
            data = b"" if unpack.eof else packed.read(COPY_BYTES)
        data = unpack.unused_data or b""


def _decompressor(data: bytes) -> Any:
    """Return a decompressor of the frame that begins with these bytes; None if there is none."""
    if data[:4] == ZSTD_MAGIC:
        return zstandard.ZstdDecompressor().decompressobj()
    return lz4.frame.LZ4FrameDecompressor() if data[:4] == LZ4_MAGIC else None


def _is_skippable(data: bytes) -> bool:
    return data[1:4] == SKIPPABLE_MAGIC and data[0] >> 4 == 5
