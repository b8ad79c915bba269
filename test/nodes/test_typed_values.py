# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Values as they are typed, by hand and by hypothesis, and as files spell them."""

from __future__ import annotations

import array

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vtseg_ros.nodes.typed_values import converted, names_for_all_nodes, sections, typed_texts


@pytest.mark.parametrize(
    ("value", "kind", "texts", "expected"),
    [
        (2, float, [], 2.0),
        (4.0, int, [], 4),
        (4.5, int, [], 4.5),
        ("2", float, [], 2.0),
        ("four", int, [], "four"),
        (True, float, [], True),
        (True, int, [], True),
        (0, str, ["0x0"], "0x0"),
        (2026, str, ["1", "2026"], "2026"),
        (1.5, str, ["1.50"], "1.50"),
        (8, str, ["010"], "010"),
        (16, str, ["0x10", "unlike"], "0x10"),
        (True, str, ["on"], "on"),
        (False, str, [], "false"),
        (1, bool, [], True),
        (0, bool, [], False),
        ("yes", bool, [], True),
        ("Off", bool, [], False),
        (2, bool, [], 2),
        ([], list, [], []),
        (array.array("q", [1, 2]), list, [], ["1", "2"]),
        ("front, rear", list, [], ["front", "rear"]),
        ([b"\x00"], list, [], [b"\x00"]),
        (None, str, [], None),
    ],
)
def test_converted(value, kind, texts, expected):
    got = converted(value, kind, texts)
    assert got == expected and type(got) is type(expected)


@given(
    st.integers(-(2**63), 2**63 - 1) | st.floats() | st.booleans() | st.text() | st.lists(st.text()),
    st.sampled_from([bool, int, float, str, list]),
    st.lists(st.text(), max_size=3),
)
def test_any_value_becomes_its_type_or_stays(value, kind, texts):
    got = converted(value, kind, texts)
    assert isinstance(got, kind) or got is value


def test_texts_of_a_command_line_and_its_files(tmp_path):
    file = tmp_path / "parameters.yaml"
    file.write_text(
        "/**: {segmenter: {ros__parameters: {input_size: 0x0, a: {b: 1.50}}}, ros__parameters: {c: 1}}"
    )
    argv = ["x", "--params-file", str(file), "-p", "evaluator:title:='2026'", "-p", "title:=3"]
    assert typed_texts("input_size", argv) == ["0x0"]
    assert typed_texts("a.b", argv) == ["1.50"]
    assert typed_texts("title", argv) == ["2026", "3"]
    assert [name for name, _ in sections(file, yaml.SafeLoader)] == ["/**/segmenter", "/**"]
    assert names_for_all_nodes(argv) == {"input_size", "a.b", "c"}


def test_a_file_that_is_no_yaml_has_no_sections(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [b")
    assert list(sections(tmp_path / "bad.yaml", yaml.SafeLoader)) == []
    assert list(sections(tmp_path / "none.yaml", yaml.SafeLoader)) == []
