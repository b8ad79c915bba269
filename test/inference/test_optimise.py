# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks optimised for inference: fewer layers, the same logits."""

from __future__ import annotations

import pytest
import torch
from conftest import randomize_batch_norm
from torch import nn

from vtseg_ros.errors import ConfigError
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.inference.optimise import optimise
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model import EfficientViTB0, ERFNet, SegFormer, VTSeg, VTSegConfig
from vtseg_ros.model.checkpoint import Checkpoint
from vtseg_ros.model.static_prior import EXTERNAL
from vtseg_ros.model.vtseg import StaticBranch

CPU = torch.device("cpu")
SIZE = (64, 96)
NOT_FUSED = 3
"""BatchNorms of ERFNet that follow a concatenation and not a convolution."""


def vtseg(**overrides) -> VTSeg:
    torch.manual_seed(3)
    network = VTSeg(VTSegConfig.preset("tiny", num_classes=5, **overrides))
    randomize_batch_norm(network)
    return network.eval()


def layers(network: nn.Module, *kinds: type) -> int:
    return sum(type(layer) in kinds for layer in network.modules())


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("shape", [(1, 4, 3, *SIZE), (3, 1, 3, *SIZE), (1, 2, 3, 96, 32)])
def test_same_logits_for_any_number_of_frames_and_size(dtype, tolerance, shape):
    network = vtseg()
    ready = optimise(network, CPU, dtype)
    video = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    expected, logits = network(video), ready(video)
    assert expected.std() > 0.01
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("kind", [ERFNet, SegFormer, EfficientViTB0])
def test_networks_of_single_images(kind):
    torch.manual_seed(0)
    network = kind(num_classes=5)
    randomize_batch_norm(network)
    ready = optimise(network.eval(), CPU, torch.float32)
    images = torch.rand(2, 3, *SIZE)
    expected = network(images)
    assert (ready(images) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_batch_norms_are_fused_and_weights_are_channels_last():
    network = vtseg()
    assert layers(network, nn.BatchNorm2d) > 5
    ready = optimise(network, CPU, torch.float32)
    assert layers(ready, nn.BatchNorm2d) == NOT_FUSED
    kernels = [m.weight for m in ready.modules() if type(m) is nn.Conv2d and m.kernel_size != (1, 1)]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert not any(parameter.requires_grad for parameter in ready.parameters())


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
    config = VTSegConfig.preset("tiny", num_classes=5, static_prior=EXTERNAL)
    return VTSeg(config, static_prior=TheirPrior()).eval()


def test_an_external_static_network_is_left_alone():
    model = with_their_prior()
    ready = optimise(model, CPU, torch.float32)
    assert ready.static_prior is model.static_prior
    assert torch.allclose(ready(torch.ones(1, 1, 3, *SIZE)), model(torch.ones(1, 1, 3, *SIZE)), atol=1e-5)


def test_an_input_size_that_the_static_network_refuses_is_an_error_at_load():
    model = with_their_prior()
    labels = LabelSet.from_names(["a", "b", "c", "d", "e"])
    checkpoint = Checkpoint(model, "vtseg", model.config.to_dict(), labels, (96, 64))
    VideoPredictor(checkpoint)
    with pytest.raises(ConfigError, match="fails on images of 64x64 px: this network was exported for 96x64"):
        VideoPredictor(checkpoint, input_size=(64, 64))


def test_the_static_branch_is_optimised():
    model = vtseg()
    branch, images = optimise(StaticBranch(model), CPU, torch.float32), torch.rand(1, 3, *SIZE)
    assert layers(branch.model.static_prior, nn.BatchNorm2d) == NOT_FUSED
    torch.testing.assert_close(branch(images), model.static_logits(images), rtol=1e-3, atol=1e-3)
