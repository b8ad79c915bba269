# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""config/vtseg.rviz: a large overlay next to two more images, on topics that exist and that the launch file maps."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
SHOWN = {"Overlay": "/segmentation/overlay", "Colour mask": "/segmentation/color", "Camera": "/camera/image"}


def test_the_configuration_shows_what_the_segmenter_publishes():
    config = yaml.safe_load((ROOT / "config" / "vtseg.rviz").read_text())
    displays = {display["Name"]: display for display in config["Visualization Manager"]["Displays"]}
    assert {name: display["Topic"]["Value"] for name, display in displays.items()} == SHOWN
    for display in displays.values():
        assert display["Class"] == "rviz_default_plugins/Image" and display["Enabled"]
        # Best effort and volatile take the camera's images whatever their QoS.
        assert display["Topic"]["Reliability Policy"] == "Best Effort"
        assert display["Topic"]["Durability Policy"] == "Volatile"
    state = bytes.fromhex(config["Window Geometry"]["QMainWindow State"])
    for name in (*SHOWN, "Displays"):  # Qt finds a dock by the name of its display
        assert name.encode("utf-16-be") in state, name
    frame = config["Visualization Manager"]["Global Options"]["Fixed Frame"]
    mapped = (ROOT / "launch" / "vtseg.launch.py").read_text()
    assert '"/camera/image"' in mapped and '("overlay", "color")' in mapped
    assert f'frame = "{frame}"' in mapped  # the frame that is published with RViz


def size_of(state: bytes, name: str) -> int:
    """Size along its splitter of a dock: name, flags, position, size (QDockAreaLayoutInfo::saveState)."""
    text = name.encode("utf-16-be")
    after = state.index(len(text).to_bytes(4, "big") + text) + 4 + len(text) + 1 + 4
    return int.from_bytes(state[after : after + 4], "big")


def test_the_overlay_takes_most_of_the_window():
    geometry = yaml.safe_load((ROOT / "config" / "vtseg.rviz").read_text())["Window Geometry"]
    state = bytes.fromhex(geometry["QMainWindow State"])
    assert size_of(state, "Overlay") > geometry["Width"] / 2
    assert size_of(state, "Colour mask") + size_of(state, "Camera") > 0.8 * geometry["Height"]
