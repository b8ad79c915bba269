# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Open storage files by their content: mcap, sqlite3 and ROS 1, compressed as a whole or not. metadata.yaml is not needed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import lz4.frame
import zstandard

from vtseg_ros.bags.mcap_storage import McapStorage
from vtseg_ros.bags.ros1 import Ros1Storage
from vtseg_ros.bags.sqlite_storage import SqliteStorage
from vtseg_ros.bags.storage import COPY_BYTES, Storage
from vtseg_ros.content import MCAP_MAGIC, ROS1_MAGIC, SQLITE_MAGIC, ZSTD_MAGIC, advice_on, content_of
from vtseg_ros.errors import BagError, first_line

LZ4_MAGIC = b"\x04\x22\x4d\x18"
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
        if magic[:4] in (ZSTD_MAGIC, LZ4_MAGIC):
            return _open_compressed(path, magic[:4], scratch)
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


def _open_compressed(path: Path, magic: bytes, scratch: Path) -> Storage:
    damage = ""
    with path.open("rb") as packed, tempfile.NamedTemporaryFile(dir=scratch, delete=False) as out:
        whole = Path(out.name)
        # Not the copy_stream of zstandard, which accepts truncated files.
        unpack = (
            zstandard.ZstdDecompressor().decompressobj()
            if magic == ZSTD_MAGIC
            else lz4.frame.LZ4FrameDecompressor()
        )
        try:
            while block := packed.read(COPY_BYTES):
                if unpack.eof:
                    break
                out.write(unpack.decompress(block))
            if not unpack.eof:
                damage = "its compressed data is cut"
        except (zstandard.ZstdError, RuntimeError, EOFError) as err:
            damage = f"its compressed data is damaged: {first_line(err)}"
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
