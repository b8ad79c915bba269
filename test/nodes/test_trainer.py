# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The trainer as a process: progress over DDS, a checkpoint at shutdown, resuming."""

from __future__ import annotations

import math
import signal

import pytest
import yaml

pytest.importorskip("rclpy")
pytest.importorskip("lightning_fabric")

from conftest import wait_until
from vtseg_ros.msg import TrainingProgress

from vtseg_ros.model import load_checkpoint


@pytest.fixture
def config(street_bag, tmp_path):
    """200 updates of a tiny network; a signal comes long before their end."""
    values = {
        "data": {
            "train": [str(street_bag)],
            "validation": [str(street_bag)],
            "size": [64, 32],
            "labels": "street",
            "validation_every": 15,
        },
        "model": {"preset": "tiny", "overrides": {"window": 2, "depths": [1, 1, 1, 1]}},
        "stages": [{"name": "static", "steps": 2, "batch": 1}, {"name": "video", "steps": 198, "batch": 1}],
        "device": "cpu",
        "preview_frames": 0,
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_progress_stop_and_resume(harness, start_node, config, tmp_path):
    progress = harness.collect(TrainingProgress, "/stopped/training/progress")
    arguments = ("-r", "__ns:=/stopped", "-p", f"config:={config}", "-p", f"output_dir:={tmp_path / 'run'}")
    trainer = start_node("trainer", *arguments)
    wait_until(
        lambda: not trainer.running() or any(m.stage == "video" for m in progress),
        trainer.output,
    )
    assert trainer.stop(signal.SIGTERM) == 0, trainer.output()
    stopped = progress[-1]
    assert stopped.stage == "video" and stopped.steps == 200 and 2 < stopped.step < 200, stopped
    assert stopped.loss > 0 and stopped.learning_rate > 0 and stopped.seconds_left > 0 and stopped.epoch >= 1
    assert 0 <= stopped.validation_miou <= 100  # of the stage before
    assert math.isnan(progress[0].validation_miou) or progress[0].step >= 2
    assert [m.step for m in progress] == sorted({m.step for m in progress})
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").architecture == "vtseg"
    trainer = start_node("trainer", *arguments, "-p", "resume:=true")
    wait_until(lambda: not trainer.running() or progress[-1].step > stopped.step, trainer.output)
    assert trainer.stop(signal.SIGINT) == 0, trainer.output()
    assert progress[-1].step > stopped.step and progress[-1].steps == 200


def test_it_ends_by_itself(harness, start_node, config, tmp_path):
    values = yaml.safe_load(config.read_text())
    values["stages"] = [{"name": "video", "steps": 2, "batch": 1}]
    config.write_text(yaml.safe_dump(values))
    progress = harness.collect(TrainingProgress, "/ended/training/progress")
    trainer = start_node(
        "trainer", "-r", "__ns:=/ended", "-p", f"config:={config}", "-p", f"output_dir:={tmp_path / 'run'}"
    )
    assert trainer.wait() == 0, trainer.output()
    # The last update's progress arrives although the node leaves right after it.
    wait_until(lambda: progress and progress[-1].step == 2, lambda: str(progress))
    assert progress[-1].steps == 2 and math.isfinite(progress[-1].validation_miou)
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").architecture == "vtseg"


def test_a_mistake_in_the_training_is_one_line(start_node, config, tmp_path):
    values = yaml.safe_load(config.read_text())
    values["data"]["train"] = [str(tmp_path / "no_bag")]
    config.write_text(yaml.safe_dump(values))
    lost = start_node("trainer", "-p", f"config:={config}", "-p", f"output_dir:={tmp_path / 'run'}")
    assert lost.wait() == 2
    assert "training failed: no bag at" in lost.output() and "Traceback" not in lost.output()
    assert not (tmp_path / "run" / "state.pt").exists()
