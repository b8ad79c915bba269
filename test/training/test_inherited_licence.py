# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A trained checkpoint has the stricter of its licence and those of the weights that it started from."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("lightning_fabric")

from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import CAMVID, STREET
from vtseg_ros.model import ERFNet, VTSeg, VTSegConfig, load_checkpoint, save_checkpoint
from vtseg_ros.model.licence import Licence
from vtseg_ros.training.build import build_model
from vtseg_ros.training.config import DataConfig, ModelConfig, SourceConfig, StageConfig, TrainConfig
from vtseg_ros.training.run import train

RESEARCH = Licence("non-commercial research", "data X")


@pytest.fixture
def erfnet(tmp_path):
    torch.manual_seed(4)
    path = tmp_path / "erfnet.safetensors"
    save_checkpoint(path, ERFNet(num_classes=14), labels=STREET, input_size=(64, 32), licence=RESEARCH)
    return path


@pytest.fixture
def config(street_bag):
    source = (SourceConfig(str(street_bag)),)
    return TrainConfig(
        data=DataConfig(
            train=source, validation=source, size=(64, 32), labels="street", workers=0, validation_every=15
        ),
        stages=(StageConfig("video", steps=2, batch=1, max_lr=1e-3),),
        model=ModelConfig(preset="tiny", overrides={"window": 2, "depths": (1, 1, 1, 1)}),
        device="cpu",
        save_every=1,
        window_sweep_frames=0,
        licence="Apache-2.0",
    )


def test_a_warm_start_passes_its_licence_on_and_a_resumed_run_keeps_it(config, erfnet, tmp_path):
    model = dataclasses.replace(config.model, warm_start=str(erfnet))
    warm, stop = dataclasses.replace(config, model=model), iter([True, False, False])
    assert not train(warm, tmp_path / "run", should_stop=lambda: next(stop))
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").licence == RESEARCH
    assert train(config, tmp_path / "run", resume=True)  # names no warm start
    loaded = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert loaded.licence == RESEARCH
    # And once more from the derived weights.
    again = dataclasses.replace(model, warm_start=str(tmp_path / "run" / "last.safetensors"))
    assert train(dataclasses.replace(config, model=again), tmp_path / "next")
    assert load_checkpoint(tmp_path / "next" / "best.safetensors").licence == RESEARCH


def test_weights_from_nothing_have_the_stated_licence(config, tmp_path):
    assert train(config, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").licence == Licence("Apache-2.0")


def test_a_checkpoint_as_static_prior_becomes_a_part_of_the_network(config, erfnet, tmp_path):
    model = dataclasses.replace(config.model, static_prior=str(erfnet))
    assert train(dataclasses.replace(config, model=model), tmp_path / "run")
    loaded = load_checkpoint(tmp_path / "run" / "best.safetensors")  # names no external network
    assert loaded.config["static_prior"] == "erfnet" and loaded.licence == RESEARCH
    own, donor = loaded.model.static_prior.state_dict(), load_checkpoint(erfnet).model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in donor.items())
    assert (
        loaded.training["config"]["model"]["static_prior"] == "erfnet.safetensors"
    )  # no folder of this machine


def test_a_checkpoint_that_does_not_fit_as_static_prior(config, erfnet, tmp_path):
    with pytest.raises(
        ConfigError, match="static_prior .*: expected the classes sky, building.* got terrain"
    ):
        build_model(_with(config, static_prior=str(erfnet)), CAMVID)
    video = tmp_path / "v.safetensors"
    network = VTSeg(VTSegConfig.preset("tiny", num_classes=14))
    save_checkpoint(video, network, labels=STREET, input_size=(64, 32))
    with pytest.raises(ConfigError, match="wrong network; expected a checkpoint of erfnet, .* got vtseg"):
        build_model(_with(config, static_prior=str(video)), STREET)


def _with(config, **model):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
