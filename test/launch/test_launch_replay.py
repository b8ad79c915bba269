# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""launch/replay.launch.py: a bag, a segmenter and an evaluator under sim time leave a report and end."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("rclpy")
launch_pytest = pytest.importorskip("launch_pytest")
pytest.importorskip("launch_ros")

from watching import Watch, launched


@pytest.fixture
def watch():
    return Watch()


@launch_pytest.fixture
def replay(watch, ros_environment, street_bag, tiny_checkpoint, tmp_path):
    arguments = {
        "bag": str(street_bag),
        "checkpoint": str(tiny_checkpoint),
        "output_dir": str(tmp_path),
        "rate": "2.0",
        "title": "Drive: 5",
    }
    return launched("replay", watch, ros_environment, arguments)


@pytest.mark.launch(fixture=replay)
def test_the_report_is_written_when_the_bag_ends(replay, watch, tmp_path):
    watch.wait_for_exit("vtseg", "segmenter", "evaluator")
    assert watch.codes == {"vtseg": 0, "segmenter": 0, "evaluator": 0}, watch.text
    report = json.loads((tmp_path / "report.json").read_text())
    told = [report[f"frames_{name}"] for name in ("processed", "dropped", "rejected", "lost")]
    assert report["frames_seen"] == report["labelled_frames"] == sum(told) == 30
    assert report["frames_processed"] > 0 and "Drive: 5" in (tmp_path / "report.html").read_text()
