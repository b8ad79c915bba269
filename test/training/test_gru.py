# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The recurrent flow baseline in training: flow of each kind, a prior from a checkpoint, stages."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

pytest.importorskip("lightning_fabric")

from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import STREET
from vtseg_ros.model import ERFNet, load_checkpoint, save_checkpoint
from vtseg_ros.training.config import DataConfig, ModelConfig, SourceConfig, StageConfig, TrainConfig
from vtseg_ros.training.run import train


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """A checkpoint of an ERFNet."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("prior") / "erfnet.safetensors"
    save_checkpoint(path, ERFNet(num_classes=len(STREET)), labels=STREET, input_size=(64, 32))
    return path


@pytest.fixture
def config(street_flow_bag, prior):
    source = (SourceConfig(str(street_flow_bag)),)
    return TrainConfig(
        data=DataConfig(
            train=source, validation=source, size=(64, 32), labels="street", workers=0, validation_every=6
        ),
        stages=(StageConfig("video", steps=3, batch=2, max_lr=1e-3),),
        model=ModelConfig(architecture="gru", overrides={"window": 3}, warm_start=str(prior)),
        device="cpu",
    )


@pytest.mark.parametrize(("flow", "precision"), [("dis", "bf16"), ("/camera/flow_backward", "fp32")])
def test_video_stage_on_a_prior_from_a_checkpoint(config, prior, tmp_path, flow, precision):
    model = dataclasses.replace(config.model, flow=flow)
    config = dataclasses.replace(config, model=model, precision=precision)
    seen = []
    assert train(config, tmp_path, on_progress=lambda p: seen.append(p.loss))
    assert len(seen) == 3
    trained = load_checkpoint(tmp_path / "best.safetensors")
    assert trained.architecture == "gru" and trained.training["config"]["model"]["flow"] == flow
    start = load_checkpoint(prior).model.state_dict()
    for key, value in trained.model.static_prior.state_dict().items():
        assert torch.equal(value, start[key]), f"{key} of the frozen prior changed"
    assert trained.model.scale.item() != 5.0
    line = json.loads((tmp_path / "validation.jsonl").read_text().splitlines()[-1])
    assert 0 <= line["agreement"] <= 100 and line["static_miou"] >= 0


def test_all_stages(config, tmp_path):
    stages = tuple(StageConfig(name, steps=1, batch=1) for name in ("static", "video", "end_to_end"))
    model = dataclasses.replace(config.model, warm_start="")
    assert train(dataclasses.replace(config, stages=stages, model=model), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["static", "video", "end_to_end"]


def test_mistakes(config):
    for overrides, words in (({"depths": [2]}, "got 'depths'"), ({"window": 1}, "at least 2 frames")):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(config, model=ModelConfig(architecture="gru", overrides=overrides))
