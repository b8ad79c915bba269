# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Training of a network of single frames that reads its previous mask."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("lightning_fabric")

from vtseg_ros.dataset.augmentation import AugmentationConfig
from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import STREET, LabelSet
from vtseg_ros.model import ERFNet, load_checkpoint, save_checkpoint
from vtseg_ros.model.efficientvit import EfficientViTB0
from vtseg_ros.model.mask_feedback import MaskFeedback, MaskFeedbackConfig
from vtseg_ros.model.vtseg import VTSeg
from vtseg_ros.model.vtseg_config import VTSegConfig
from vtseg_ros.training.build import build_model
from vtseg_ros.training.config import DataConfig, ModelConfig, SourceConfig, StageConfig, TrainConfig
from vtseg_ros.training.processes import launch
from vtseg_ros.training.run import train
from vtseg_ros.training.update import backward


@pytest.fixture(scope="module")
def image_network(tmp_path_factory):
    path = tmp_path_factory.mktemp("prior") / "image.safetensors"
    torch.manual_seed(1)
    save_checkpoint(path, EfficientViTB0(num_classes=len(STREET)), labels=STREET, input_size=(64, 32))
    return path


def config(bag, prior, stage: str = "video", **options) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(
            train=(SourceConfig(str(bag)),), validation_share=0.4, size=(64, 32), labels="street", workers=0
        ),
        model=ModelConfig(architecture="mask_feedback", static_prior=str(prior), overrides={"window": 3}),
        augmentation=AugmentationConfig(corruption=1.0, corruption_newest=1.0),
        stages=(StageConfig(stage, steps=3, batch=2, max_lr=1e-2, **options),),
        window_sweep_frames=2,
        preview_frames=1,
    )


@pytest.mark.parametrize("stage", ["video", "end_to_end"])
def test_a_frozen_network_stays_and_a_free_one_learns(stage, street_bag, image_network, tmp_path):
    settings = config(street_bag, image_network, stage)
    before = build_model(settings, STREET).static_prior.state_dict()
    assert train(settings, tmp_path / "run")
    trained = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert trained.architecture == "mask_feedback" and trained.config["window"] == 2
    after = trained.network.static_prior.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    own = {"backbone.stem.0.conv.weight", "head.classify.weight", "backbone.stem.0.norm.running_mean"}
    assert own <= changed if stage == "end_to_end" else not changed
    for parameter in trained.network.encoder.out.parameters():
        assert parameter.abs().max() > 0  # the encoder starts without effect


def vtseg_checkpoint(path, labels=STREET, **overrides) -> VTSegConfig:
    """Save a small VTSeg that is not the default one of its preset."""
    sizes = {"depths": (1, 1, 1, 1), "head_channels": 32}
    inside = VTSegConfig.preset("tiny", num_classes=len(labels), **sizes, **overrides)
    torch.manual_seed(2)
    save_checkpoint(path, VTSeg(inside), labels=labels, input_size=(64, 32))
    return inside


@pytest.mark.parametrize("stage", ["static", "video", "end_to_end"])
def test_a_vtseg_segments_single_frames(stage, street_bag, tmp_path):
    """The configuration of the VTSeg is taken over; its own static network is part of what is frozen or trained."""
    path = tmp_path / "vtseg.safetensors"
    inside = vtseg_checkpoint(path)
    settings = config(street_bag, path, stage)
    before = build_model(settings, STREET).static_prior.state_dict()
    assert train(settings, tmp_path / "run")
    trained = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert trained.config["static_prior_config"] == inside.to_dict()
    after = trained.network.static_prior.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    parts = set() if stage == "video" else {"encoder", "decoder", "head", "static_prior"}
    assert {name.split(".")[0] for name in changed} == parts
    for parameter in trained.network.encoder.out.parameters():
        assert (parameter.abs().max() > 0) == (stage != "static")  # the encoder starts without effect


def started_from(path) -> ModelConfig:
    return ModelConfig(architecture="mask_feedback", warm_start=str(path))


def test_a_vtseg_with_other_classes_is_taken_over_by_name(street_bag, tmp_path):
    path = tmp_path / "vtseg.safetensors"
    labels = LabelSet.from_names(["unknown", *reversed(STREET.names[:5])])
    vtseg_checkpoint(path, labels)
    settings = dataclasses.replace(config(street_bag, ""), model=started_from(path))
    built = build_model(settings, STREET)
    donor = load_checkpoint(path).network
    assert built.config_values()["static_prior_config"] == {
        **donor.config_values(),
        "num_classes": len(STREET),
    }
    own, given = built.static_prior.head.classify.weight, donor.head.classify.weight
    for name in labels.names[1:]:
        assert torch.equal(own[STREET.names.index(name)], given[labels.names.index(name)])
    assert torch.equal(built.static_prior.encoder.blocks[0].norm.weight, donor.encoder.blocks[0].norm.weight)


@pytest.mark.parametrize("around", [False, True])  # the VTSeg alone, or a mask_feedback that contains it
def test_a_class_mapping_is_not_translated_to_other_classes(around, street_bag, tmp_path):
    path = tmp_path / "mapped.safetensors"
    inside = vtseg_checkpoint(path, prior_classes=3, class_mapping=(0, 1, 2))
    if around:
        values = MaskFeedbackConfig(
            num_classes=len(STREET), static_prior="vtseg", static_prior_config=inside.to_dict()
        )
        save_checkpoint(path, MaskFeedback(values), labels=STREET, input_size=(64, 32))
    settings = dataclasses.replace(config(street_bag, ""), model=started_from(path))
    assert build_model(settings, STREET).config_values()["static_prior_config"] == inside.to_dict()
    with pytest.raises(ConfigError, match="not matched by name with a class_mapping"):
        build_model(settings, LabelSet.from_names(["zz", *STREET.names]))


def test_a_vtseg_without_its_static_network_is_refused(street_bag, tmp_path):
    path = tmp_path / "external.safetensors"
    inside = VTSegConfig.preset("tiny", num_classes=len(STREET), static_prior="external")
    model = VTSeg(inside, static_prior=ERFNet(num_classes=len(STREET)))
    save_checkpoint(path, model, labels=STREET, input_size=(64, 32))
    with pytest.raises(ConfigError, match="external.safetensors: has an external static network"):
        build_model(config(street_bag, path), STREET)


def test_a_teacher_sees_the_newest_frames(street_bag, image_network, tmp_path):
    assert train(config(street_bag, image_network, teacher=str(image_network)), tmp_path / "run")


def test_a_run_can_be_resumed(street_bag, image_network, tmp_path):
    """The random choices of a step depend on the step alone."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(config(street_bag, image_network), whole)
    turns = iter([False, True])
    assert not train(config(street_bag, image_network), parts, should_stop=lambda: next(turns, True))
    assert train(config(street_bag, image_network), parts, resume=True)
    expected = load_checkpoint(whole / "last.safetensors").network.state_dict()
    for name, value in load_checkpoint(parts / "last.safetensors").network.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_another_kind_of_static_network_is_refused(street_bag, tmp_path):
    path = tmp_path / "erfnet.safetensors"
    save_checkpoint(path, ERFNet(num_classes=len(STREET)), labels=STREET, input_size=(64, 32))
    with pytest.raises(ConfigError, match="wrong network; expected a checkpoint of efficientvit_b0"):
        build_model(config(street_bag, path), STREET)


def test_an_external_static_network_is_refused(street_bag, tmp_path):
    path = tmp_path / "network.pt"
    path.write_bytes(b"anything")
    with pytest.raises(ConfigError, match="network.pt: does not fit mask_feedback; expected a checkpoint of"):
        build_model(config(street_bag, path), STREET)


def test_training_continues_from_a_larger_network(street_bag, tmp_path):
    path = tmp_path / "feedback.safetensors"
    larger = MaskFeedback(MaskFeedbackConfig(num_classes=len(STREET), static_prior="efficientvit_b1"))
    save_checkpoint(path, larger, labels=STREET, input_size=(64, 32))
    settings = config(street_bag, "")
    built = build_model(
        TrainConfig(
            data=settings.data,
            model=ModelConfig(architecture="mask_feedback", warm_start=str(path)),
            stages=settings.stages,
        ),
        STREET,
    )
    assert built.config.static_prior == "efficientvit_b1"
    for name, value in built.state_dict().items():
        assert torch.equal(value, larger.state_dict()[name]), name


def test_reduced_precision_trains_all_parameters():
    model = MaskFeedback(MaskFeedbackConfig(num_classes=3)).train()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.rand(2, 3, 3, 32, 64)).square().mean()
    loss.backward()
    # The rest of the encoder has no gradient while its last convolutions are zero.
    assert all(p.grad is not None for p in (*model.static_prior.parameters(), *model.encoder.parameters()))


def test_the_loss_is_that_of_the_newest_labels():
    """Labels of older frames count neither in the loss nor in its mean."""
    torch.manual_seed(0)
    model = MaskFeedback(MaskFeedbackConfig(num_classes=3))
    fabric = launch("cpu", "fp32")
    module = fabric.setup(model.train())
    video = torch.randint(0, 256, (2, 3, 3, 32, 64), dtype=torch.uint8)
    labels = torch.randint(0, 3, (2, 3, 32, 64), dtype=torch.uint8)
    labels[0, -1, :20] = 255
    torch.manual_seed(7)
    loss = backward(fabric, module, [[video, labels]], image_network=False, newest_only=True)
    torch.manual_seed(7)
    with torch.no_grad():
        logits = model(video.float() / 255)[:, 0]
    assert loss == pytest.approx(
        F.cross_entropy(logits, labels[:, -1].long(), ignore_index=255).item(), rel=1e-4
    )
