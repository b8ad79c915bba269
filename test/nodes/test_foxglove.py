# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""config/foxglove.json: every panel is placed once, and its topics and fields are the segmenter's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from vtseg_ros.bags.messages import typestore

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = json.loads((ROOT / "config" / "foxglove.json").read_text())
PANELS = LAYOUT["configById"]
MESSAGES = {
    "/segmentation/status": "vtseg_ros/msg/SegmentationStatus",
    "/segmentation/label_map": "vtseg_ros/msg/LabelMap",
}


def placed(node: str | dict) -> Iterator[str]:
    """Yield the panels of a part of the layout."""
    if isinstance(node, str):
        yield node
        return
    assert node["direction"] in ("row", "column") and 0 < node["splitPercentage"] < 100
    for part in ("first", "second"):
        yield from placed(node[part])


def test_every_panel_is_placed_once():
    assert sorted(placed(LAYOUT["layout"])) == sorted(PANELS)
    kinds = {name.partition("!")[0] for name in PANELS}
    assert kinds == {"Image", "Plot", "DiagnosticSummary", "RawMessages"}


def test_topics_and_fields_exist():
    page = (ROOT / "docs" / "guide" / "ros_interface.md").read_text()
    paths = [path for panel in PANELS.values() for path in panel.get("paths", ())]
    assert all(path["enabled"] for path in paths)  # Foxglove draws no path without it
    fields = [path["value"] for path in paths] + [
        panel["topicPath"] for panel in PANELS.values() if "topicPath" in panel
    ]
    topics = [panel["imageMode"]["imageTopic"] for panel in PANELS.values() if "imageMode" in panel]
    topics += [panel["topicToRender"] for panel in PANELS.values() if "topicToRender" in panel]
    for text in fields:
        topic, _, field = text.partition(".")
        topics.append(topic)
        assert field.removesuffix("[:]") in dict(typestore().fielddefs[MESSAGES[topic]][1]), text
    for topic in topics:
        assert re.search(rf"^\|.*`/?{topic.lstrip('/')}`", page, re.M), topic
