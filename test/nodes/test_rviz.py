"""config/vtseg.rviz: three pictures side by side, on topics that exist and that the launch file maps."""

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
    mapped = (ROOT / "launch" / "vtseg.launch.py").read_text()
    assert '"/camera/image"' in mapped and '("overlay", "color")' in mapped
