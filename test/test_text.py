# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Text files as editors on Windows, macOS and Linux save them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtseg_ros.text import decode_text, read_text

LINES = "road:128,64,128::\nsky:70,130,180::\n"


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_and_ends_of_lines(tmp_path, codec, end):
    (tmp_path / "list.txt").write_bytes(LINES.replace("\n", end).encode(codec))
    assert read_text(tmp_path / "list.txt") == LINES


def test_utf_16_of_either_order():
    for mark, codec in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        assert decode_text(mark + "straße\r\n".encode(codec)) == "straße\n"


@given(st.text(st.characters(exclude_characters="\r\ufeff", exclude_categories=["Cs"])))
def test_what_was_written_is_read(text):
    for codec in ("utf-8", "utf-8-sig"):
        assert decode_text(text.encode(codec)) == text


def test_other_encodings_are_refused():
    with pytest.raises(UnicodeDecodeError):
        decode_text("straße".encode("latin-1"))
