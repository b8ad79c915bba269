# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Training of a memory for a network of single frames."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightning_fabric")

from vtseg_ros.dataset.augmentation import AugmentationConfig
from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import STREET, LabelSet
from vtseg_ros.model import ERFNet, load_checkpoint, save_checkpoint
from vtseg_ros.training.build import build_model
from vtseg_ros.training.config import DataConfig, ModelConfig, SourceConfig, StageConfig, TrainConfig
from vtseg_ros.training.run import train


@pytest.fixture(scope="module")
def image_network(tmp_path_factory):
    path = tmp_path_factory.mktemp("prior") / "erfnet.safetensors"
    torch.manual_seed(1)
    save_checkpoint(path, ERFNet(num_classes=len(STREET)), labels=STREET, input_size=(64, 32))
    return path


def config(bag, prior, **stage) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(
            train=(SourceConfig(str(bag)),), validation_share=0.4, size=(64, 32), labels="street", workers=0
        ),
        model=ModelConfig(
            architecture="local_memory",
            static_prior=str(prior),
            overrides={"window": 2, "stride": 4, "radius": 1, "width": 8},
        ),
        augmentation=AugmentationConfig(corruption=1.0, corruption_newest=1.0),
        stages=(StageConfig("video", steps=2, batch=2, max_lr=1e-2, **stage),),
        window_sweep_frames=2,
        preview_frames=0,
    )


@pytest.mark.parametrize("prior", ["image", "vtseg"])
def test_only_the_memory_is_trained(prior, street_bag, image_network, tiny_checkpoint, tmp_path):
    source = image_network if prior == "image" else tiny_checkpoint
    before = load_checkpoint(source).network.state_dict()
    fresh = build_model(config(street_bag, source), STREET).memory.state_dict()
    assert train(config(street_bag, source, teacher=str(source), gate_loss=0.5), tmp_path / "run")
    trained = load_checkpoint(tmp_path / "run" / "last.safetensors").network
    for name, value in trained.static_prior.state_dict().items():
        assert torch.equal(value, before[name]), name
    changed = [
        name for name, value in trained.memory.state_dict().items() if not torch.equal(value, fresh[name])
    ]
    assert {"query.weight", "key.weight", "quality.bias", "position", "same_class"} <= set(changed)


def test_training_continues_from_a_memory(street_bag, tiny_checkpoint, tmp_path):
    """The static network's kind comes from the checkpoint, and other classes keep the whole memory."""
    run = tmp_path / "run"
    assert train(config(street_bag, tiny_checkpoint), run)
    other = LabelSet.from_names([*STREET.names[:5], "new"])
    settings = config(street_bag, "")
    model = ModelConfig(
        architecture="local_memory",
        warm_start=str(run / "last.safetensors"),
        overrides=settings.model.overrides,
    )
    built = build_model(
        TrainConfig(data=settings.data, model=model, stages=(StageConfig("end_to_end", steps=1),)), other
    )
    trained = load_checkpoint(run / "last.safetensors").network
    assert built.static_prior.num_classes == 6
    for name, value in built.memory.state_dict().items():
        assert torch.equal(value, trained.memory.state_dict()[name]), name


def test_one_frame_trains_nothing(street_bag, image_network, tmp_path):
    with pytest.raises(ConfigError, match="stage video: window out of range; expected 2 to 2"):
        train(config(street_bag, image_network, window=1), tmp_path / "run")
