# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Soft targets of a teacher: classes, input, gradients, and training runs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("lightning_fabric")

from bags.bagtools import START_NS, picture

from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.messages import NS
from vtseg_ros.dataset.augmentation import AugmentationConfig
from vtseg_ros.errors import BagError, CheckpointError, ConfigError
from vtseg_ros.label_set import OUTSIDE, STREET, LabelSet
from vtseg_ros.model import ERFNet, VTSeg, VTSegConfig, load_checkpoint, save_checkpoint
from vtseg_ros.model.stgru import STGRU
from vtseg_ros.training.config import DataConfig, ModelConfig, SourceConfig, StageConfig, TrainConfig
from vtseg_ros.training.processes import launch
from vtseg_ros.training.run import Training, train
from vtseg_ros.training.teacher import Teacher, build_teacher, class_balance_weights
from vtseg_ros.training.update import backward

THREE = LabelSet.from_names(["a", "b", "c"])


def save_erfnet(path, labels):
    torch.manual_seed(5)
    save_checkpoint(path, ERFNet(num_classes=len(labels)), labels=labels, input_size=(64, 32))
    return str(path)


def identity(classes):
    return tuple(((number,), (number,)) for number in range(classes))


def test_a_video_network_as_teacher_sees_every_frame_alone(tiny_checkpoint):
    teacher = build_teacher(StageConfig("video", steps=1, teacher=str(tiny_checkpoint)), STREET)
    frames = torch.rand(3, 3, 32, 64)
    network = load_checkpoint(tiny_checkpoint).network
    with torch.no_grad():
        expected = torch.cat([network(frame[None, None])[0] for frame in frames]).softmax(1)
    torch.testing.assert_close(teacher.targets(frames)[0], expected)


def test_the_teacher_sees_the_clean_frames():
    """The student gets noise; the targets are those of the clean frames, which the batch has third."""
    torch.manual_seed(0)
    network, student, fabric = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), launch("cpu", "fp32")
    with torch.no_grad():
        network.weight.mul_(10)  # different pixels, different classes
    module = fabric.setup(student)
    noise, clean = (torch.randint(0, 256, (1, 1, 3, 32, 64), dtype=torch.uint8) for _ in range(2))
    labels = torch.full((1, 1, 32, 64), 255, dtype=torch.uint8)
    options = {"image_network": True, "teacher": Teacher(network, identity(3))}
    loss = backward(fabric, module, [[noise, labels, clean]], with_clean=True, **options)
    with torch.no_grad():
        target, logits = network(clean[0] / 255).softmax(1), module(noise[0] / 255)
    expected = F.kl_div(logits.log_softmax(1), target, reduction="none").sum(1).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    same = backward(fabric, module, [[noise, labels]], **options)
    assert same != pytest.approx(loss, rel=1e-2)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_gradients_against_the_loss_written_out(weight):
    """Labels on one window of two, and a teacher on both with frames of twice the size."""
    torch.manual_seed(0)
    model = VTSeg(VTSegConfig.preset("tiny", num_classes=3, window=2)).eval()
    network = ERFNet(num_classes=3)
    teacher = Teacher(network, identity(3), temperature=2.0, weight=0.7, scale=2.0)
    fabric = launch("cpu", "fp32")
    module = fabric.setup(model)
    video = torch.randint(0, 256, (2, 2, 3, 32, 64), dtype=torch.uint8)
    labels = torch.randint(0, 3, (2, 2, 32, 64), dtype=torch.uint8)
    labels[0] = 255
    labels[:, :, :5] = OUTSIDE
    chunk = [[video[i : i + 1], labels[i : i + 1]] for i in range(2)]
    loss = backward(fabric, module, chunk, image_network=False, static_loss=weight, teacher=teacher)
    names, parameters = zip(*model.named_parameters())
    got = [p.grad.clone() for p in parameters]
    assert all(p.grad is None for p in network.parameters()) and not network.training

    images = video.float() / 255
    larger = F.interpolate(images.flatten(0, 1), size=(64, 128), mode="bilinear")
    target = F.interpolate(network(larger), size=(32, 64), mode="bilinear") / 2
    inside = labels.flatten(0, 1) != OUTSIDE
    truth = labels.flatten(0, 1).long().masked_fill(~inside, 255)

    def written_out(logits):
        hard = F.cross_entropy(logits, truth, ignore_index=255, reduction="sum")
        soft = F.kl_div((logits / 2).log_softmax(1), target.softmax(1), reduction="none").sum(1) * 4
        return (hard + 0.7 * soft[inside].sum()) / inside.sum()

    expected = written_out(model(images).flatten(0, 1))
    expected = expected + weight * written_out(model.static_prior(images.flatten(0, 1)))
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    for name, value, reference in zip(names, got, torch.autograd.grad(expected, parameters)):
        scale = float(reference.abs().max())
        assert torch.allclose(value, reference, rtol=1e-3, atol=1e-4 * scale + 1e-8), name


class Fixed(nn.Module):
    """The same logits for every input."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits).reshape(1, -1, 1, 1)

    def forward(self, images):
        return self.logits.expand(len(images), -1, *images.shape[2:])


def test_classes_of_a_mapping_by_hand(tmp_path):
    """Teacher x, y, z, w: x and y together are a, z is b or c, w is left out."""
    stage = StageConfig(
        "static",
        steps=1,
        teacher=save_erfnet(tmp_path / "t", LabelSet.from_names(["x", "y", "z", "w"])),
        teacher_classes={"x": "a", "y": "a", "z": ["b", "c"], "w": "ignore"},
    )
    cells = build_teacher(stage, THREE).cells
    assert cells == (((0, 1), (0,)), ((2,), (1, 2)))
    teacher = Teacher(Fixed(np.log([0.1, 0.2, 0.3, 0.4]).tolist()), cells)
    soft, weight = teacher.targets(torch.zeros(1, 3, 32, 32))
    assert soft[0, :, 0, 0].tolist() == pytest.approx([0.5, 0.5])  # 0.3 and 0.3 of 0.6
    assert weight.flatten().tolist() == pytest.approx([0.6] * 1024)
    logits = torch.tensor([0.2, 0.3, 0.5]).log().reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
    valid = torch.zeros(1, 32, 32, dtype=torch.bool)
    valid[0, 0, 0] = True
    # Student: 0.2 and 0.8; KL = 0.5 log(0.5 / 0.2) + 0.5 log(0.5 / 0.8) = 0.5 log 1.5625.
    got = teacher.loss_sum(logits, (soft, weight), valid)
    assert got.item() == pytest.approx(0.6 * 0.5 * np.log(1.5625), rel=1e-5)


def test_classes_that_the_teacher_lacks_are_not_penalised():
    teacher = Teacher(Fixed([0.0, 1.0]), (((0,), (0,)), ((1,), (1,))))
    targets = teacher.targets(torch.zeros(1, 3, 32, 32))
    logits = torch.tensor([0.0, 1.0, 7.0]).reshape(1, 3, 1, 1).repeat(1, 1, 32, 32).requires_grad_()
    loss = teacher.loss_sum(logits, targets, torch.ones(1, 32, 32, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-3)
    assert logits.grad.abs().max().item() < 1e-6


def test_means_of_pixels_are_compared_by_hand():
    """Student logits 0 and 2 in turn along a row: means of 1, as if each pixel had 1; one of 4 pixels is left out."""
    cells = (((0,), (0,)), ((1,), (1,)))
    teacher = Teacher(Fixed(np.log([0.25, 0.75]).tolist()), cells, pool=2)
    targets = teacher.targets(torch.zeros(1, 3, 32, 64))
    assert targets[0].shape == (1, 2, 16, 32) and targets[1].shape == (1, 16, 32)
    logits = torch.zeros(1, 2, 32, 64)
    logits[:, 0, :, ::2] = 2.0
    valid = torch.zeros(1, 32, 64, dtype=torch.bool)
    valid[0, :2, :2] = torch.tensor([[True, True], [True, False]])
    first = np.e / (1 + np.e)
    expected = 3 * (0.25 * np.log(0.25 / first) + 0.75 * np.log(0.75 / (1 - first)))
    assert teacher.loss_sum(logits, targets, valid).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("pool", [1, 4])
def test_coarse_logits_are_interpolated_to_the_compared_places(pool):
    torch.manual_seed(0)
    teacher = Teacher(Fixed([0.3, -1.0]), identity(2), pool=pool)
    targets = teacher.targets(torch.zeros(1, 3, 32, 64))
    logits = torch.randn(1, 2, 4, 8)
    valid = torch.ones(1, 32, 64, dtype=torch.bool)
    places = F.interpolate(logits, size=(32 // pool, 64 // pool), mode="bilinear", align_corners=False)
    target = torch.tensor([0.3, -1.0]).softmax(0).reshape(1, 2, 1, 1).expand_as(places)
    expected = F.kl_div(places.log_softmax(1), target, reduction="sum") * pool**2
    torch.testing.assert_close(teacher.loss_sum(logits, targets, valid), expected)


def test_the_same_names_in_another_order(tmp_path):
    path = save_erfnet(tmp_path / "t", LabelSet.from_names(["c", "a", "b"]))
    teacher = build_teacher(StageConfig("static", steps=1, teacher=path), THREE)
    assert teacher.cells == (((1,), (0,)), ((2,), (1,)), ((0,), (2,)))


def test_teachers_that_do_not_fit(tmp_path):
    other = save_erfnet(tmp_path / "t", LabelSet.from_names(["a", "b", "x"]))
    with pytest.raises(
        ConfigError, match="teacher .*t: has other classes; expected a, b, c, got a, b, x. .*mapping"
    ):
        build_teacher(StageConfig("static", steps=1, teacher=other), THREE)
    flow = tmp_path / "gru.safetensors"
    save_checkpoint(flow, STGRU(num_classes=3), labels=THREE, input_size=(64, 32))
    with pytest.raises(
        ConfigError, match="it needs optical flow; expected vtseg or an image network, got gru"
    ):
        build_teacher(StageConfig("video", steps=1, teacher=str(flow)), THREE)
    with pytest.raises(CheckpointError, match="nobody: no checkpoint"):
        build_teacher(StageConfig("static", steps=1, teacher="nobody"), THREE)
    for mapping, named in (
        ({"a": "a", "b": "b"}, "got none for x"),
        ({"a": "a", "b": "b", "x": "z"}, "'z'"),
        ({"a": "a", "b": ["a", "b"], "x": "c"}, "equal or disjoint"),
        ({"a": "a", "b": "a", "x": "a"}, "at least two"),
    ):
        with pytest.raises(ConfigError, match=named):
            build_teacher(StageConfig("static", steps=1, teacher=other, teacher_classes=mapping), THREE)


@pytest.fixture
def config(street_bag, tmp_path):
    """A street with labels, every fifth of its frames once more without, and a teacher."""
    source = (SourceConfig(str(street_bag)),)
    with BagWriter(tmp_path / "bare") as bag:
        for number in range(6):
            stamp = START_NS + number * NS // 10
            bag.write_image("/camera/image", picture(number), stamp, "cam")
    teacher = save_erfnet(tmp_path / "teacher.safetensors", STREET)
    stage = StageConfig("end_to_end", steps=4, batch=2, max_lr=1e-3, static_loss=1.0, teacher=teacher)
    return TrainConfig(
        data=DataConfig(
            train=(*source, SourceConfig(str(tmp_path / "bare"), unlabelled_stride=2, repeat=3)),
            validation=source,
            size=(64, 32),
            labels="street",
            label_stride=3,
            workers=0,
            validation_every=15,
        ),
        stages=(dataclasses.replace(stage, window=1), stage),
        model=ModelConfig(preset="tiny", overrides={"window": 2, "depths": (1, 1, 1, 1)}),
        device="cpu",
        save_every=1,
    )


def test_which_frames_a_stage_uses(config, tmp_path):
    plain = dataclasses.replace(config.stages[0], teacher="")
    config = dataclasses.replace(config, stages=(config.stages[0], plain))
    training = Training(config, tmp_path / "run")
    soft, hard = (training.data.windows(stage) for stage in config.stages)
    training.close()
    assert [window[-1] for window in hard] == list(range(0, 30, 3))  # every third label
    # All 30 frames of the street, and of the six others the first, third and fifth, three times each.
    assert [window[-1] for window in soft] == [*range(30), *np.repeat([30, 32, 34], 3)]
    assert training.data.labelled == set(range(0, 30, 3))


def test_labels_that_are_left_out_stay_out_of_windows_with_a_teacher(config, tmp_path):
    """One epoch of real windows: each of 10 labels on the newest frame once, and once on the one before it."""
    stages = tuple(dataclasses.replace(stage, batch=39) for stage in config.stages)
    augmentation = AugmentationConfig(pseudo_clips=0.0)
    training = Training(
        dataclasses.replace(config, stages=stages, augmentation=augmentation), tmp_path / "run"
    )
    for number, expected in enumerate(([10], [10, 10])):
        batches = training.data.batches(number, steps=1, start=0, fabric=training.fabric)
        labels = next(batches)[1]  # (39, k, H, W)
        assert (labels < OUTSIDE).any(dim=3).any(dim=2).sum(0).tolist() == expected
    training.close()


@pytest.mark.long  # test_run.py resumes without a teacher
def test_a_run_with_a_teacher_resumes_to_the_same_losses(config, tmp_path):
    def losses(folder, limit=99, **options):
        seen = []
        train(
            config,
            folder,
            on_progress=lambda p: seen.append(p.loss),
            should_stop=lambda: len(seen) >= limit,
            **options,
        )
        return seen

    whole = losses(tmp_path / "whole")
    cut = losses(tmp_path / "cut", 3)
    assert len(cut) == 3
    # The same teacher at another place is the same teacher.
    moved = (tmp_path / "teacher.safetensors").rename(tmp_path / "moved.safetensors")
    stages = tuple(dataclasses.replace(stage, teacher=str(moved)) for stage in config.stages)
    config = dataclasses.replace(config, stages=stages)
    assert cut + losses(tmp_path / "cut", resume=True) == pytest.approx(whole, abs=1e-6)
    save_erfnet(moved, LabelSet.from_names([*STREET.names[1:], STREET.names[0]]))
    with pytest.raises(ConfigError, match="cannot resume: stages"):
        train(config, tmp_path / "cut", resume=True)


def test_bags_without_labels_need_a_teacher(config, tmp_path):
    stages = tuple(dataclasses.replace(stage, teacher="") for stage in config.stages)
    with pytest.raises(BagError, match="bare has no label topic"):
        train(dataclasses.replace(config, stages=stages), tmp_path / "run")
    data = dataclasses.replace(config.data, train=config.data.train[1:])
    stages = (config.stages[0], dataclasses.replace(config.stages[1], teacher=""))
    with pytest.raises(ConfigError, match="no labelled frame"):
        train(dataclasses.replace(config, data=data, stages=stages), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["teacher_temperature", "teacher_weight", "teacher_scale"])
def test_values_of_a_teacher(config, name):
    for value in (0.0, -1.0, float("inf")):
        with pytest.raises(ConfigError, match=f"{name} must be above 0"):
            dataclasses.replace(config, stages=(dataclasses.replace(config.stages[0], **{name: value}),))
    with pytest.raises(ConfigError, match=f"{name} has no effect without teacher"):
        dataclasses.replace(config, stages=(StageConfig("video", steps=1, **{name: 2.0}),))


def test_rare_classes_have_more_weight_by_hand():
    """Three places of one class and one of another; a fifth place does not count."""
    soft = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.5], [0.0, 0.0, 0.0, 1.0, 0.5]]).reshape(1, 2, 1, 5)
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]).reshape(1, 1, 5)
    common, rare = 1 / math.log(1.77), 1 / math.log(1.27)
    mean = (3 * common + rare) / 4
    expected = [common / mean] * 3 + [rare / mean, (common + rare) / 2 / mean]
    assert class_balance_weights(soft, weight).flatten().tolist() == pytest.approx(expected)
    assert torch.isfinite(class_balance_weights(soft, torch.zeros(1, 1, 5))).all()

    teacher = Teacher(Fixed([0.0, 0.0]), identity(2), class_balance=True)
    logits = torch.zeros(1, 2, 1, 5)
    valid = torch.tensor([True, True, True, True, False]).reshape(1, 1, 5)
    loss = teacher.loss_sum(logits, (soft, torch.ones(1, 1, 5)), valid)
    assert loss.item() == pytest.approx(
        4 * math.log(2)
    )  # each place has the same loss, so the mean weight shows


def test_class_balance_needs_a_teacher(config):
    with pytest.raises(ConfigError, match="teacher_class_balance has no effect without teacher"):
        dataclasses.replace(config, stages=(StageConfig("video", steps=1, teacher_class_balance=True),))


@pytest.mark.parametrize("pool", [0, -4, 3, 64])
def test_pools_that_do_not_divide_every_input(config, pool):
    with pytest.raises(ConfigError, match="teacher_pool must be a divisor of 32"):
        dataclasses.replace(config, stages=(dataclasses.replace(config.stages[0], teacher_pool=pool),))


@pytest.mark.parametrize(("mode", "columns"), [("stretch", 64), ("letterbox", 32), ("crop", 64)])
@pytest.mark.parametrize("cached", [False, True])
def test_soft_targets_skip_what_a_letterbox_leaves_free(config, tmp_path, mode, columns, cached):
    """Square frames in an input of 64x32: a letterbox shows them in 32 of 64 columns."""
    with BagWriter(tmp_path / "square") as bag:
        bag.write_image("/camera/image", picture(7, (64, 64)), START_NS, "cam")
        bag.write_label("/camera/label", np.full((64, 64), 3, np.uint8), START_NS, "cam")
    augmentation = AugmentationConfig(scale=(1.0, 1.0), rotation_deg=0.0, flip=0.0)
    source = (SourceConfig(str(tmp_path / "square")),)
    data = dataclasses.replace(
        config.data, train=source, resize_mode=mode, label_stride=1, cache_dir=str(tmp_path) if cached else ""
    )
    stages = (dataclasses.replace(config.stages[0], batch=1),)
    training = Training(
        dataclasses.replace(config, data=data, augmentation=augmentation, stages=stages), tmp_path / "run"
    )
    labels = next(training.data.batches(0, steps=1, start=0, fabric=training.fabric))[1]
    training.close()
    assert (labels == 3).sum().item() == columns * 32
    assert (labels == OUTSIDE).sum().item() == (64 - columns) * 32
