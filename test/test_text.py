# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Text files as editors on Windows, macOS and Linux save them."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vtseg_ros.text import decode_text, read_text, read_yaml

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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "data:\n\ttrain: x\n",
            "line 2, column 1: found character '\\t' that cannot start any token. Indent with spaces",
        ),
        ("a: b: c\n", "line 1, column 5: mapping values are not allowed here"),
        ("a: 1\na: 2\n", "the key a appears twice"),
        ("a: 2024-13-45\n", "month must be in 1..12"),
        ("a: !person x\n", "line 1, column 4: could not determine a constructor"),
        pytest.param("[" * 5000, "too many levels of brackets", id="brackets"),
        ("a: \x01\n", "special characters are not allowed"),
    ],
)
def test_faults_in_yaml_are_named_in_one_line(tmp_path, text, words):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(yaml.YAMLError) as err:
        read_yaml(tmp_path / "x.yaml")
    assert words in str(err.value) and "\n" not in str(err.value)


def test_yaml_of_other_encodings(tmp_path):
    (tmp_path / "x.yaml").write_bytes("a: straße\r\n".encode("utf-16"))
    assert read_yaml(tmp_path / "x.yaml") == {"a": "straße"}
    (tmp_path / "x.yaml").write_bytes("a: straße\n".encode("latin-1"))
    with pytest.raises(yaml.YAMLError, match="save it as UTF-8"):
        read_yaml(tmp_path / "x.yaml")


@given(st.binary(max_size=200))
def test_any_content_is_read_or_refused_in_one_line(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    try:
        read_yaml(path)
    except yaml.YAMLError as err:
        assert len(str(err).splitlines()) == 1
