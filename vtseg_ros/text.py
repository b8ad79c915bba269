# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Text files as people save them: UTF-8, with or without the byte order mark that Windows writes, and UTF-16 with it."""

from __future__ import annotations

import codecs
from pathlib import Path


def read_text(path: str | Path) -> str:
    """Read a text file; see `decode_text`. Raises OSError if it cannot be read."""
    return decode_text(Path(path).read_bytes())


def decode_text(data: bytes) -> str:
    """Decode the content of a text file, without its byte order mark and with `\\n` at the ends of lines.

    Args:
        data: the file's bytes.

    Raises:
        UnicodeDecodeError: if it is neither UTF-8 nor marked as UTF-16.
    """
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if marked else "utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")
