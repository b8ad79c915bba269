# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""static_residual: VTSeg starts as its static network, and every way to run it adds the static logits once."""

from __future__ import annotations

import pytest
import torch
from conftest import randomize_batch_norm

from vtseg_ros.errors import ConfigError
from vtseg_ros.inference.optimise import optimise
from vtseg_ros.inference.step import build_step
from vtseg_ros.model import VTSeg, VTSegConfig

CPU = torch.device("cpu")


def network(**overrides) -> VTSeg:
    torch.manual_seed(1)
    config = VTSegConfig.preset("tiny", num_classes=5, static_residual=True, **overrides)
    model = VTSeg(config).eval()
    randomize_batch_norm(model)
    return model


@pytest.fixture(scope="module")
def clip():
    return torch.rand(1, 5, 3, 32, 64, generator=torch.Generator().manual_seed(2))


def test_it_starts_as_its_static_network(clip):
    model = network()
    with torch.inference_mode():
        logits, static = model(clip, with_static=True)
    assert static.std() > 0.01
    assert torch.equal(logits, static)


def test_the_head_learns_from_the_first_update(clip):
    model = network().train()
    model(clip[:, :2])[:, :, 0].sum().backward()
    assert model.head.classify.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("attention", "streaming"), [("full", "exact"), ("causal", "causal"), ("full", "plain")]
)
def test_streaming_adds_the_newest_frame_s_static_logits(attention, streaming, clip):
    model = network(attention=attention)
    torch.nn.init.normal_(model.head.classify.weight, std=1.0)
    window = model.config.window
    step = build_step(optimise(model, CPU, torch.float32), (32, 64), streaming)
    past = torch.zeros(1, 0, step.state_size)
    with torch.inference_mode():
        expected = model(clip) if attention == "causal" else None
        for index in range(clip.shape[1]):
            logits, left = step(clip[:, index], past)
            first = max(0, index + 1 - window)
            whole = model(clip[:, first : index + 1]) if expected is None else expected[:, : index + 1]
            assert torch.allclose(logits, whole[:, -1], atol=1e-4)
            past = torch.cat([past, left[:, None]], dim=1)[:, -(window - 1) :]


def test_its_value_is_a_bool():
    with pytest.raises(ConfigError, match="static_residual: wrong type; expected bool, got 1"):
        VTSegConfig.preset("tiny", num_classes=5, static_residual=1)
