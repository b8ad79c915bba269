# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Training runs on a tiny bag: stages, resuming, stopping, faults."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("lightning_fabric")

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.cli import main
from vtseg_ros.errors import BagError, CheckpointError, ConfigError
from vtseg_ros.model import load_checkpoint
from vtseg_ros.training.config import DataConfig, ModelConfig, SourceConfig, StageConfig, TrainConfig
from vtseg_ros.training.run import train
from vtseg_ros.training.state import check_plan, load_state, plan_of
from vtseg_ros.training.update import TrainingError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config(street_bag):
    source = (SourceConfig(str(street_bag)),)
    return TrainConfig(
        data=DataConfig(
            train=source, validation=source, size=(64, 32), labels="street", workers=0, validation_every=15
        ),
        stages=(
            StageConfig("static", steps=3, batch=2, max_lr=1e-3),
            StageConfig("video", steps=3, batch=1, max_lr=1e-3),
        ),
        model=ModelConfig(preset="tiny", overrides={"window": 2, "depths": (1, 1, 1, 1)}),
        device="cpu",
        save_every=1,
    )


def losses(config, folder, **options):
    seen = []
    done = train(config, folder, on_progress=lambda p: seen.append((p.step, p.stage, p.loss)), **options)
    return seen, done


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The folder, steps and outcome of a run that nothing interrupts; tests only read it."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *losses(config, folder)


def test_stages_and_what_they_leave(whole):
    folder, seen, done = whole
    assert done and [(step, stage) for step, stage, _ in seen] == [
        (1, "static"),
        (2, "static"),
        (3, "static"),
        (4, "video"),
        (5, "video"),
        (6, "video"),
    ]
    best = load_checkpoint(folder / "best.safetensors")
    assert 0.5 < best.agreement["bf16"] <= 1
    assert load_checkpoint(folder / "last.safetensors").agreement.keys() == {"bf16"}
    assert best.input_size == (64, 32) and best.config["window"] == 2
    assert best.training["config"]["data"]["train"][0]["path"] == "street"  # no folder of this machine
    lines = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["static", "video"]
    assert best.temperature == lines[1]["temperature"] and 0 <= lines[1]["calibration_error"] <= 100
    assert 0 <= lines[1]["agreement"] <= 100


def test_convolutions_over_time_are_trained(config, tmp_path):
    """Their weights have five axes, which channels last does not support."""
    model = dataclasses.replace(config.model, overrides={"window": 2, "mix_ffn": "spatiotemporal"})
    stages = (StageConfig("video", steps=2, batch=1, max_lr=1e-3),)
    seen, done = losses(dataclasses.replace(config, model=model, stages=stages), tmp_path)
    assert done and np.isfinite([loss for _, _, loss in seen]).all()
    assert load_checkpoint(tmp_path / "best.safetensors").config["mix_ffn"] == "spatiotemporal"


def test_an_interrupted_run_resumes_to_the_same_losses(config, whole, tmp_path):
    _, expected, _ = whole
    for stop_after in (2, 4):  # within a stage of each kind
        folder, count = tmp_path / f"cut{stop_after}", [0]

        def stop(count=count, stop_after=stop_after):
            return count[0] >= stop_after

        first = []

        def note(progress, first=first, count=count):
            first.append(progress.loss)
            count[0] += 1

        assert not train(config, folder, on_progress=note, should_stop=stop)
        rest, done = losses(config, folder, resume=True)
        assert done
        together = first + [loss for _, _, loss in rest]
        assert together == pytest.approx([loss for _, _, loss in expected], abs=1e-6)


def test_a_stop_during_validation_is_made_up_for(config, whole, tmp_path):
    """It does not wait for the validation's end; the resumed run validates first."""
    folder, expected, _ = whole
    asked = []

    def stop():  # after two updates, and one of two windows of the first validation
        asked.append(1)
        return len(asked) > 3

    rest, done = losses(config, tmp_path / "cut", should_stop=stop)
    assert not done and len(rest) == 3
    assert not (tmp_path / "cut" / "validation.jsonl").read_text()
    again, done = losses(config, tmp_path / "cut", resume=True)
    assert done and [loss for _, _, loss in rest + again] == pytest.approx(
        [loss for _, _, loss in expected], abs=1e-6
    )
    scores = [
        [json.loads(line)["miou"] for line in (run / "validation.jsonl").read_text().splitlines()]
        for run in (folder, tmp_path / "cut")
    ]
    assert len(scores[0]) == 2 and scores[1] == pytest.approx(scores[0])


def test_a_loss_that_is_not_finite_stops(config, tmp_path):
    stage = StageConfig("static", steps=30, batch=1, max_lr=1e30)
    with pytest.raises(TrainingError, match="not finite.*step.*learning rate"):
        train(dataclasses.replace(config, stages=(stage,), clip_norm=0.0), tmp_path)


def test_mistakes(config, tmp_path, street_bag):
    with pytest.raises(CheckpointError, match="no training run to resume"):
        train(config, tmp_path / "empty", resume=True)
    lost = dataclasses.replace(config.data, train=(SourceConfig(str(tmp_path / "no_bag")),))
    with pytest.raises(BagError, match="no bag"):
        train(dataclasses.replace(config, data=lost), tmp_path / "a")
    unlabelled = dataclasses.replace(
        config.data, train=(SourceConfig(str(street_bag), "/camera/image", "/camera/image"),)
    )
    with pytest.raises((BagError, ConfigError)):
        train(dataclasses.replace(config, data=unlabelled), tmp_path / "b")
    wrong = dataclasses.replace(config, data=dataclasses.replace(config.data, labels="camvid"))
    with pytest.raises(ConfigError, match="label map of other classes"):
        train(wrong, tmp_path / "c")


def test_a_refused_command_leaves_the_folder_as_it_was(tmp_path, capsys):
    (tmp_path / "state.pt").write_bytes(b"hours of work")
    assert main(["train", str(ROOT / "config" / "train" / "street.yaml"), "--out", str(tmp_path)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [item.name for item in tmp_path.iterdir()] == ["state.pt"]


@pytest.mark.parametrize("name", ["state.pt", "best.safetensors", "last.safetensors"])
def test_a_run_is_not_overwritten(config, tmp_path, name):
    (tmp_path / name).write_bytes(b"hours of work")
    with pytest.raises(ConfigError, match="contains a training run: nothing is overwritten"):
        train(config, tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"hours of work"


def test_a_bad_label_in_validation_is_named_and_costs_no_training(config, street_bag, tmp_path):
    with BagReader(street_bag) as bag, BagWriter(tmp_path / "bag") as out:
        for number, (topic, kind, time_ns, data) in enumerate(bag.raw(["/camera/image", "/camera/label"])):
            ids = decode_label(bag.read(topic, time_ns)) if topic == "/camera/label" else None
            if ids is None:
                out.write_raw(topic, kind, data, time_ns)
                continue
            if number < 4:
                ids = np.where(ids == ids[0, 0], np.uint8(77), ids)
            out.write_label(topic, ids, time_ns, "cam")
    data = dataclasses.replace(config.data, validation=(SourceConfig(str(tmp_path / "bag")),))
    config = dataclasses.replace(config, data=data, save_every=100)
    with pytest.raises(
        ConfigError, match=f"bag {tmp_path / 'bag'}, stamp .* ns: label: class id out of range; .* got 77"
    ):
        train(config, tmp_path / "run")
    state = load_state(tmp_path / "run")
    assert (state["stage"], state["step"], state["validation_due"]) == (0, 3, True)
    assert (tmp_path / "run" / "last.safetensors").is_file()


def test_weights_for_the_encoder_by_option(tmp_path, street_bag, capsys):
    values = {
        "data": {
            "train": [str(street_bag)],
            "validation": [str(street_bag)],
            "size": [64, 32],
            "labels": "street",
        },
        "stages": [{"name": "video", "steps": 1}],
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    arguments = [
        "train",
        str(tmp_path / "train.yaml"),
        "--out",
        str(tmp_path / "run"),
        "--init-encoder",
        "lost.bin",
    ]
    assert main(arguments) == 2
    assert "init_encoder lost.bin: no such file" in capsys.readouterr().err


def test_what_a_resumed_run_must_share(config):
    plan = plan_of(config, [3, 3], world_size=1)
    check_plan({"stage": 0, "plan": plan}, plan)
    check_plan(
        {"stage": 0, "plan": plan}, plan_of(config, [3, 9], world_size=1)
    )  # a stage that has not begun
    check_plan({"stage": 0}, plan)  # saved before there were plans
    changed = dataclasses.replace(config, model=ModelConfig(preset="b0"))
    for stage, other, words in (
        (1, plan_of(config, [3, 9], 1), "stages is not that"),
        (0, plan_of(config, [3, 3], 2), "processes is not .*; expected 1, got 2"),
        (0, plan_of(dataclasses.replace(config, seed=4), [3, 3], 1), "seed is not"),
        (0, plan_of(changed, [3, 3], 1), "model is not"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_plan({"stage": stage, "plan": plan}, other)


def test_a_damaged_state_is_refused(config, tmp_path):
    train(dataclasses.replace(config, stages=config.stages[:1]), tmp_path)
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(config, tmp_path, resume=True)
    torch.save({"x": object}, state)
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(config, tmp_path, resume=True)
