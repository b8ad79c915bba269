# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""docs/guide/launch_files.md lists what the launch files declare; each argument is explained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("launch_pytest")
pytest.importorskip("launch_ros")

from launch.actions import DeclareLaunchArgument
from launch.launch_description_sources import PythonLaunchDescriptionSource

from launch import LaunchContext

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["vtseg", "replay", "train", "cloud"])
def test_arguments(name):
    source = PythonLaunchDescriptionSource(str(ROOT / "launch" / f"{name}.launch.py"))
    description = source.get_launch_description(LaunchContext())
    declared = [entity for entity in description.entities if isinstance(entity, DeclareLaunchArgument)]
    assert all(argument.description for argument in declared)
    section = re.search(
        rf"^## {name}\.launch\.py\n(.*?)^## ",
        (ROOT / "docs" / "guide" / "launch_files.md").read_text(),
        re.M | re.S,
    )[1]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\| (.+) \|$", section, re.M)
    defaults = {}
    for argument in declared:
        parts = argument.default_value or []
        text = "".join(getattr(part, "text", "PATH") for part in parts)
        defaults[argument.name] = "config/segmenter.yaml" if text == "PATH" else text
    assert {argument: default.strip() for argument, default, _ in rows} == defaults
