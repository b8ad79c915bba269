# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Packed layers: the same logits from layers whose weights lie in oneDNN's order."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vtseg_ros.errors import ConfigError
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.inference.optimise import PackedConv2d, PackedLinear, PackedPointwise, optimise, prepack
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model import EfficientViTB0, ERFNet, SegFormer, VTSeg, VTSegConfig
from vtseg_ros.model.checkpoint import Checkpoint
from vtseg_ros.model.static_prior import EXTERNAL, StaticBranch
from vtseg_ros.profiling.flops import extra_formulas

CPU = torch.device("cpu")
SIZE = (64, 96)
IMAGE = torch.zeros(1, 3, *SIZE)
VIDEO = IMAGE[:, None]


def vtseg(**overrides) -> VTSeg:
    torch.manual_seed(3)
    return VTSeg(VTSegConfig.preset("tiny", num_classes=5, **overrides)).eval()


def layers(network: nn.Module, *kinds: type) -> int:
    return sum(type(layer) in kinds for layer in network.modules())


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(1, 4, 3, *SIZE), (3, 1, 3, *SIZE), (1, 2, 3, 96, 32)])
def test_same_logits_for_any_number_of_frames_and_size(dtype, tolerance, shape):
    ready = optimise(vtseg(), CPU, dtype)
    packed = copy.deepcopy(ready)
    prepack(packed, VIDEO)
    video = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    expected, logits = ready(video), packed(video)
    assert expected.std() > 0.01
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("kind", [ERFNet, SegFormer, EfficientViTB0])
def test_networks_of_single_images(kind):
    torch.manual_seed(0)
    ready = optimise(kind(num_classes=5).eval(), CPU, torch.float32)
    packed = copy.deepcopy(ready)
    prepack(packed, IMAGE)
    assert layers(packed, PackedConv2d) > 5 and layers(packed, nn.Conv2d, nn.Linear) == 0
    images = torch.rand(2, 3, *SIZE)
    assert torch.allclose(packed(images), ready(images), atol=1e-5)


def test_all_layers_are_packed_by_their_kind():
    ready = optimise(vtseg(), CPU, torch.float32)
    pointwise = sum(type(m) is nn.Conv2d and m.kernel_size == (1, 1) for m in ready.modules())
    convolutions, linear = layers(ready, nn.Conv2d), layers(ready, nn.Linear)
    prepack(ready, VIDEO)
    assert layers(ready, nn.Conv2d, nn.Linear) == 0
    assert layers(ready, PackedPointwise) == pointwise > 0
    assert layers(ready, PackedConv2d) == convolutions - pointwise > 0
    assert layers(ready, PackedLinear) == linear > 0


def test_counted_as_many_operations_as_before():
    ready, video = optimise(vtseg(), CPU, torch.float32), torch.rand(1, 2, 3, *SIZE)
    counts = []
    for _ in range(2):
        with FlopCounterMode(display=False, custom_mapping=extra_formulas()) as counter:
            ready(video)
        counts.append(counter.get_total_flops())
        prepack(ready, VIDEO)
    assert counts[0] == counts[1] > 0


class TheirPrior(nn.Module):
    """A user's network, which accepts images of one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, images):
        if images.shape[2:] != SIZE:
            raise RuntimeError("this network was exported for 96x64")
        return self.conv(images)


def with_their_prior() -> VTSeg:
    return VTSeg(
        VTSegConfig.preset("tiny", num_classes=5, static_prior=EXTERNAL), static_prior=TheirPrior()
    ).eval()


def test_an_external_static_network_is_left_alone():
    model = with_their_prior()
    ready = optimise(model, CPU, torch.float32)
    prepack(ready, VIDEO)
    assert ready.static_prior is model.static_prior and type(model.static_prior.conv) is nn.Conv2d
    assert torch.allclose(ready(torch.ones(1, 1, 3, *SIZE)), model(torch.ones(1, 1, 3, *SIZE)), atol=1e-5)


def test_an_input_size_that_the_static_network_refuses_is_an_error_at_load():
    model = with_their_prior()
    labels = LabelSet.from_names(["a", "b", "c", "d", "e"])
    checkpoint = Checkpoint(model, "vtseg", model.config.to_dict(), labels, (96, 64))
    VideoPredictor(checkpoint)
    with pytest.raises(ConfigError, match="fails on images of 64x64 px: this network was exported for 96x64"):
        VideoPredictor(checkpoint, input_size=(64, 64))


def test_what_cannot_be_packed_stays_as_it_is(monkeypatch, caplog):
    def refuse(*_):
        raise RuntimeError("mkldnn_bf16: this processor has no AVX-512")

    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", refuse)
    ready, video = optimise(vtseg(), CPU, torch.float32), torch.rand(1, 2, 3, *SIZE)
    expected = ready(video)
    with caplog.at_level("INFO", logger="vtseg_ros.inference"):
        prepack(ready, VIDEO)
    assert "no AVX-512" in caplog.text
    assert layers(ready, PackedConv2d, PackedLinear, PackedPointwise) == 0
    assert torch.equal(ready(video), expected)


def test_without_onednn_nothing_is_packed_or_counted(monkeypatch, caplog):
    """As in a PyTorch built without it, whose operators are not registered."""
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    ready = optimise(vtseg(), CPU, torch.float32)
    with caplog.at_level("INFO", logger="vtseg_ros.inference"):
        prepack(ready, VIDEO)
    assert "weights are not packed" in caplog.text
    assert layers(ready, PackedConv2d, PackedLinear, PackedPointwise) == 0
    assert all("mkldnn" not in str(operator) for operator in extra_formulas())


def test_of_a_static_branch_the_static_network_is_packed():
    model, theirs = vtseg(), with_their_prior()
    branch = optimise(StaticBranch(model), CPU, torch.float32)
    images = torch.rand(1, 3, *SIZE)
    expected = model.static_logits(images)
    prepack(branch, IMAGE)
    assert layers(branch.model.static_prior, PackedConv2d) and not layers(branch.model.encoder, PackedConv2d)
    torch.testing.assert_close(branch(images), expected, rtol=1e-3, atol=1e-3)
    prepack(optimise(StaticBranch(theirs), CPU, torch.float32), IMAGE)
    assert type(theirs.static_prior.conv) is nn.Conv2d
