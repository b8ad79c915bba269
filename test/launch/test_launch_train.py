# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""launch/train.launch.py: the trainer publishes its progress, and SIGINT saves."""

from __future__ import annotations

import pytest
import yaml

pytest.importorskip("rclpy")
pytest.importorskip("lightning_fabric")
launch_pytest = pytest.importorskip("launch_pytest")
pytest.importorskip("launch_ros")

from conftest import wait_until
from nodes.harness import Harness
from vtseg_ros.msg import TrainingProgress
from watching import Watch, launched


@pytest.fixture
def watch():
    return Watch()


@launch_pytest.fixture
def training(watch, ros_environment, street_bag, tmp_path):
    source = [{"path": str(street_bag)}]
    config = {
        "data": {
            "train": source,
            "validation": source,
            "size": [64, 32],
            "labels": "street",
            "workers": 0,
            "validation_every": 15,
        },
        "model": {"preset": "tiny", "overrides": {"window": 2, "depths": [1, 1, 1, 1]}},
        "stages": [{"name": "static", "steps": 100_000, "batch": 1, "max_lr": 1e-4}],
        "device": "cpu",
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(config))
    arguments = {"params_file": str(path), "output_dir": str(tmp_path / "run")}
    return launched("train", watch, ros_environment, arguments)


@pytest.mark.launch(fixture=training)
def test_progress_is_told_and_sigint_saves(training, watch, ros_environment, tmp_path):
    harness = Harness(ros_environment)
    try:
        told = harness.collect(TrainingProgress, "/training/progress")
        wait_until(lambda: bool(told) or "trainer" in watch.codes, lambda: str(watch.text))
    finally:
        harness.close()
    assert told and told[0].stage == "static" and 0 < told[0].step <= told[0].steps == 100_000, watch.text
    yield
    assert watch.codes == {"trainer": 0}, watch.text
    assert "Traceback" not in watch.text["trainer"]
    saved = [path.name for path in (tmp_path / "run").iterdir()]
    assert any(name.startswith(("state", "last")) for name in saved), saved
