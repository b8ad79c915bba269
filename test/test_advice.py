# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What messages advise exists: extras, commands, options, scripts, pages and launch files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest
from conftest import ROOT

from vtseg_ros.cli import COMMANDS

pytestmark = pytest.mark.unit
tomllib = pytest.importorskip("tomllib")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
FOREIGN_OPTIONS = {
    *("--force-reinstall", "--upgrade", "--index-url"),  # pip
    *("--ros-args", "--params-file", "--param", "--fixed-frame"),  # ROS and RViz
    *("--shm-size", "--head"),  # Docker, Ray
    *("--help", "--version"),
}
MADE_OPTIONS = {"--mean", "--std"}
"""Added to their parser in a loop."""


@cache
def texts() -> list[tuple[str, str]]:
    """Return what `_texts` finds."""
    return list(_texts())


def _texts() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of every string that is not a docstring; values in f-strings become X."""
    for path in sorted([*ROOT.glob("vtseg_ros/**/*.py"), *ROOT.glob("launch/*.py")]):
        tree = ast.parse(path.read_text())
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        inside = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in ast.walk(node)
            if part is not node
        }
        for node in ast.walk(tree):
            if id(node) in documentation or id(node) in inside:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
                yield f"{path.relative_to(ROOT)}:{node.lineno}", "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


def advised(pattern: str) -> list[tuple[str, str]]:
    """Return the place and what the group of a pattern matched, of all texts."""
    return [(place, match) for place, text in texts() for match in re.findall(pattern, text)]


def test_extras():
    found = advised(r"vtseg_ros\[(\w+)\]")
    assert len(found) > 8 and not [place for place, extra in found if extra not in (*EXTRAS, "X")]


def test_the_workspace_installs_the_same_extras():
    """CMake installs this file as the metadata of the workspace's package; else pip installs nothing for an extra."""
    expected = "\n".join(
        f"[{name}]\n" + "".join(f"{one}\n" for one in needs) for name, needs in EXTRAS.items()
    )
    assert (ROOT / "requirements" / "extras.txt").read_text() == expected


def test_commands():
    found = advised(r"(?:`|: |with |Try |Use |Run )vtseg ([a-z][a-z-]+)(?![\w:])")
    assert len(found) > 5
    assert not [(place, command) for place, command in found if command not in COMMANDS]


def test_options():
    """Only the texts of the commands advise options; those of other programs are in `FOREIGN_OPTIONS`."""
    added = [
        text
        for path in ROOT.glob("vtseg_ros/commands/*.py")
        for text in re.findall(r'"(--[a-z][a-z-]+)",', path.read_text())
    ]
    found = advised(r"(?<![\w-])(--[a-z][a-z-]+)")
    found = [(place, option) for place, option in found if place.startswith("vtseg_ros/")]
    assert len(found) > 100
    assert not [
        (place, option) for place, option in found if option not in FOREIGN_OPTIONS.union(added, MADE_OPTIONS)
    ]


def test_files():
    found = advised(
        r"\b((?:docs|scripts|config|launch|examples|requirements)/[\w/.-]+\.(?:md|sh|py|ya?ml|txt|xml|json))"
    )
    assert not [(place, name) for place, name in found if not (ROOT / name).exists()]
    launched = advised(r"([\w]+\.launch\.py)")
    assert not [(place, name) for place, name in launched if not (ROOT / "launch" / name).exists()]
