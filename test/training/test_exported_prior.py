# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Training with a static network that checkpoints do not contain: it stays frozen, and stage 3 logs this."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from torch import nn

pytest.importorskip("lightning_fabric")

from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import STREET
from vtseg_ros.model import load_checkpoint
from vtseg_ros.training.config import DataConfig, ModelConfig, SourceConfig, StageConfig, TrainConfig
from vtseg_ros.training.run import Training, train

# Of five classes of its own: ground, sky, plants, walls, vehicles.
MAPPING = [5, 1, 2, 4, 12]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1)
    ).eval()
    example = torch.zeros(1, 3, 32, 64)
    torch.jit.trace(network, example).save(str(folder / "net.pt"))
    torch.onnx.export(network, (example,), str(folder / "net.onnx"), dynamo=False)
    torch.export.save(torch.export.export(network, (example,)), folder / "net.pt2")
    return folder, network


def configuration(bag, prior, *stages):
    source = (SourceConfig(str(bag)),)
    return TrainConfig(
        data=DataConfig(
            train=source, validation=source, size=(64, 32), labels="street", workers=0, validation_every=15
        ),
        stages=tuple(StageConfig(stage, steps=1, batch=2, max_lr=1e-3) for stage in stages),
        model=ModelConfig(
            preset="tiny",
            overrides={"window": 2, "prior_classes": 5, "class_mapping": MAPPING},
            static_prior=str(prior),
        ),
        device="cpu",
    )


def test_a_factory_s_network_stays_frozen_since_no_checkpoint_holds_it(
    street_bag, tmp_path, monkeypatch, caplog
):
    (tmp_path / "users_prior.py").write_text(
        "import torch\n"
        "def build(num_classes):\n"
        "    torch.manual_seed(5)\n"
        "    return torch.nn.Conv2d(3, num_classes, 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    training = Training(configuration(street_bag, "users_prior:build", "end_to_end"), tmp_path / "run")
    before = training.model.static_prior.weight.detach().clone()
    with caplog.at_level(logging.WARNING, "vtseg_ros.training"):
        assert training.run()
    training.close()
    assert [r.message for r in caplog.records if "stays frozen in stage end_to_end" in r.message]
    assert torch.equal(training.model.static_prior.weight, before)


@pytest.mark.parametrize("name", ["net.pt", "net.onnx", "net.pt2"])
def test_an_exported_prior_stays_frozen_and_stage_3_says_so(street_bag, files, tmp_path, name, caplog):
    folder, network = files
    with caplog.at_level(logging.WARNING, "vtseg_ros.training"):
        assert train(configuration(street_bag, folder / name, "video", "end_to_end"), tmp_path)
    assert [r.message for r in caplog.records if "stays frozen in stage end_to_end" in r.message]
    loaded = load_checkpoint(tmp_path / "last.safetensors", static_prior=str(folder / name))
    assert loaded.config["static_prior"] == "external" and loaded.labels == STREET
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        assert torch.allclose(loaded.model.static_prior(image), network(image), atol=1e-5)


def test_an_exported_prior_cannot_be_trained_and_classes_need_a_mapping(street_bag, files, tmp_path):
    config = configuration(street_bag, files[0] / "net.pt", "video", "static")
    with pytest.raises(
        ConfigError,
        match="external static network cannot be trained on the labels.*Leave the stage `static` out",
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # refused before the stage that could have run
    both = StageConfig("end_to_end", steps=1, batch=2, static_loss=1.0)
    with pytest.raises(ConfigError, match="static_loss: an external static network"):
        train(
            dataclasses.replace(config, stages=(StageConfig("video", steps=1, batch=2), both)),
            tmp_path / "both",
        )
    assert not (tmp_path / "both").exists()
    mapped = dataclasses.replace(
        config.model, static_prior="", overrides={**config.model.overrides, "static_prior": "erfnet"}
    )
    with pytest.raises(
        ConfigError, match="static network with a class_mapping cannot be trained on the labels"
    ):
        train(dataclasses.replace(config, model=mapped), tmp_path / "mapped")
    assert not (tmp_path / "mapped").exists()
    config = dataclasses.replace(config, stages=config.stages[:1])
    model = dataclasses.replace(config.model, overrides={"window": 2, "prior_classes": 5})
    with pytest.raises(ConfigError, match="class_mapping: missing"):
        train(dataclasses.replace(config, model=model), tmp_path)
    model = dataclasses.replace(config.model, overrides={"window": 2})
    with pytest.raises(ConfigError, match=r"expected \(1, 14, 32, 64\), got \(1, 5, 32, 64\)"):
        train(dataclasses.replace(config, model=model), tmp_path)
