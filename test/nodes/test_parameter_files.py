# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Parameter files as editors save them, with mistakes of users: what the segmenter takes, and what it answers."""

from __future__ import annotations

import sys

import pytest

rclpy = pytest.importorskip("rclpy")

from vtseg_ros.nodes.parameter_files import file_problem, sections_of_others  # noqa: E402
from vtseg_ros.nodes.process import run_node  # noqa: E402
from vtseg_ros.nodes.segmenter import SegmenterNode  # noqa: E402

FILE = (
    "{}:\n  ros__parameters:\n    autostart: 'no'\n    window: {}\n    max_gap: {}\n    overlay_alpha: {}\n"
)


@pytest.fixture
def start(tmp_path, monkeypatch, capfd):
    """Return a function that starts a segmenter with the bytes of a file, and returns exit code, values and output."""

    def run(content: bytes, *arguments: str):
        path = tmp_path / "robot.yaml"
        path.write_bytes(content)
        argv = ["segmenter", "--ros-args", "--params-file", str(path), *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        values = {}

        def make() -> SegmenterNode:
            node = SegmenterNode()
            values.update({name: node._params[name] for name in ("window", "max_gap", "overlay_alpha")})
            node.finished = True
            return node

        code = run_node(make, argv)
        return code, values, "".join(capfd.readouterr())

    return run


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_files_of_windows_editors(start, encoding, newline):
    text = FILE.format("segmenter", "'2'", 2, '"0.25"')
    code, values, output = start(text.replace("\n", newline).encode(encoding))
    assert (code, values) == (0, {"window": 2, "max_gap": 2.0, "overlay_alpha": 0.25}), output
    assert "no parameter is used" not in output


@pytest.mark.parametrize(
    ("window", "gap", "said"),
    [
        ("two", 2, "window: wrong type; expected an integer such as 2, got 'two'"),
        ("2.5", 2, "window: wrong type; expected an integer such as 2, got 2.5"),
        ("2", "2 s", "max_gap: wrong type; expected a number such as 0.5, got '2 s'"),
        ("2", "'2,5'", "max_gap: wrong type; expected a number such as 0.5, got '2,5'"),
    ],
)
def test_values_of_another_type(start, window, gap, said):
    code, _, output = start(FILE.format("segmenter", window, gap, 0.5).encode())
    assert code == 2 and said in output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"window: 2\nmax_gap: 1.0\n",
            "window, max_gap not below a node's name; expected NODE: {ros__parameters",
        ),
        (b"segmenter:\n\tros__parameters:\n", "not YAML: while scanning"),
        (b"- a\n", "no parameters; expected NODE: {ros__parameters: {NAME: VALUE}}, got list"),
    ],
)
def test_files_that_ros_cannot_parse(start, content, said):
    code, _, output = start(content)
    assert code == 2 and f"robot.yaml: {said}" in output


@pytest.mark.parametrize(
    ("argument", "advice"), [("window=2", "Write -p window:=2"), ("window", "Write -p window:=VALUE")]
)
def test_an_assignment_that_ros_cannot_parse(start, argument, advice):
    code, _, output = start(FILE.format("segmenter", 2, 2, 0.25).encode(), "-p", argument)
    assert code == 2 and f"-p {argument}: no assignment; expected NAME:=VALUE" in output and advice in output


def test_a_file_that_does_not_exist(tmp_path):
    assert "cannot be read; expected a YAML file, got: No such file" in file_problem(str(tmp_path / "a.yaml"))


def test_sections_of_other_nodes_are_reported(start):
    code, values, output = start(FILE.format("vtseg", 3, 2, 0.5).encode())
    assert code == 0 and values["window"] == 0
    assert "no parameter is used; expected a section for /segmenter, got vtseg. Name the section" in output
    code, values, output = start(FILE.format("segmenter", 3, 2, 0.5).encode(), "-r", "__ns:=/front")
    assert values["window"] == 0 and "expected a section for /front/segmenter, got segmenter" in output


@pytest.mark.parametrize(
    ("section", "node", "used"),
    [
        ("segmenter", "/segmenter", True),
        ("/segmenter", "/segmenter", True),
        ("/**", "/a/b/segmenter", True),
        ("/**/segmenter", "/segmenter", True),
        ("/**/segmenter", "/a/b/segmenter", True),
        ("/*/segmenter", "/a/segmenter", True),
        ("/*/segmenter", "/segmenter", False),
        ("/a/segmenter", "/segmenter", False),
        ("segmenter", "/a/segmenter", False),
        ("segment.r", "/segmenter", False),
    ],
)
def test_names_of_sections(tmp_path, section, node, used):
    """The pairs follow ROS's rule: `*` is one token of a name, `**` any number of them."""
    path = tmp_path / "a.yaml"
    path.write_text(f'"{section}": {{ros__parameters: {{window: 2}}}}\n')
    assert (sections_of_others(["x", "--params-file", str(path)], node) == []) is used


def test_sections_that_launch_passes_on(tmp_path):
    """vtseg.launch.py writes the values below `segmenter` into a second file for a node in a namespace."""
    (tmp_path / "a.yaml").write_text("segmenter: {ros__parameters: {window: 2}}\n")
    (tmp_path / "b.yaml").write_text("/front/segmenter: {ros__parameters: {window: 2}}\n")
    (tmp_path / "c.yaml").write_text("vtseg: {ros__parameters: {window: 2}}\n")
    files = [part for name in "abc" for part in ("--params-file", str(tmp_path / f"{name}.yaml"))]
    assert [str(tmp_path / "c.yaml") in line for line in sections_of_others(files, "/front/segmenter")] == [
        True
    ]
