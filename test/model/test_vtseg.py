# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The whole network: sizes worked out by hand, shapes, gradients, causality."""

from __future__ import annotations

import pytest
import torch

from vtseg_ros.errors import ConfigError
from vtseg_ros.model import VTSeg, VTSegConfig
from vtseg_ros.model.cache import FrameCache
from vtseg_ros.model.decoder import VTDecConcat
from vtseg_ros.model.head import VTSegHead, icnr_
from vtseg_ros.model.vtseg_config import PRESETS


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def tiny(**overrides) -> VTSeg:
    torch.manual_seed(0)
    return VTSeg(VTSegConfig.preset("tiny", num_classes=5, **overrides))


def test_head_parameters_by_hand():
    # Per level 1x1 to 256 r^2 with bias; fusion without bias; BatchNorm; two 3x3; the classifier.
    levels = sum((c + 1) * 256 * 4**i for i, c in enumerate((32, 64, 160, 256)))
    rest = 1024 * 256 + 2 * 256 + (256 * 9 + 1) * 256 + (64 * 9 + 1) * 128 + (32 + 1) * 19
    assert count(VTSegHead(VTSegConfig(num_classes=19))) == levels + rest
    assert 5.8e6 < levels + rest < 6.0e6


def test_head_multiply_adds_by_hand():
    macs = []

    def hook(module, _, output):
        macs.append(module.weight[0].numel() * output.numel())

    head = VTSegHead(VTSegConfig(num_classes=19)).eval()
    for module in head.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(hook)
    with torch.no_grad():
        head([torch.zeros(1, c, 16 // 2**i, 16 // 2**i) for i, c in enumerate((32, 64, 160, 256))])
    scale = (1024 * 512) / (64 * 64)
    assert sum(macs) * scale == pytest.approx(42e9, rel=0.05)


def test_encoder_parameters_are_mit_b0s():
    # transformers' MiT-B0 without its decode head has 3,319,392 parameters.
    assert count(VTSeg(VTSegConfig(num_classes=19)).encoder) == 3_319_392


@pytest.mark.parametrize("frames", [1, 3])
def test_shapes(frames):
    model = tiny().eval()
    with torch.no_grad():
        assert model(torch.rand(2, frames, 3, 32, 64)).shape == (2, frames, 5, 32, 64)
        assert [tuple(m.shape) for m in model.encoder(torch.rand(1, frames, 3, 32, 64))] == [
            (1, frames, 16, 8, 16),
            (1, frames, 32, 4, 8),
            (1, frames, 64, 2, 4),
            (1, frames, 128, 1, 2),
        ]


def test_wrong_inputs_are_refused():
    with pytest.raises(ConfigError, match="multiples of 32"):
        tiny()(torch.rand(1, 1, 3, 33, 64))
    with pytest.raises(ConfigError, match="shape"):
        tiny()(torch.rand(1, 3, 32, 64))


def test_frames_are_exchangeable():
    model, video = tiny().eval(), torch.rand(1, 3, 3, 32, 32)
    order = torch.tensor([1, 2, 0])
    with torch.no_grad():
        assert torch.allclose(model(video)[:, order], model(video[:, order]), atol=1e-5)


def test_older_frames_matter_and_causal_ones_do_not_see_newer():
    video = torch.rand(1, 4, 3, 32, 32)
    changed = video.clone()
    changed[:, 3] = 0
    with torch.no_grad():
        full, causal = tiny().eval(), tiny(attention="causal").eval()
        assert not torch.allclose(full(video)[:, 0], full(changed)[:, 0])
        assert torch.allclose(causal(video)[:, :3], causal(changed)[:, :3], atol=1e-5)


def test_causal_clip_equals_windows_of_its_newest_frames_in_one_layer():
    layer = tiny(attention="causal", window=2).eval().encoder.blocks[0].layers[0]
    x = torch.randn(5, 16 * 16, 16)
    with torch.no_grad():
        clip = layer(x[None], None, (16, 16), FrameCache(band=2))[0]
        for t in range(1, 5):
            assert torch.allclose(
                clip[t], layer(x[None, t - 1 : t + 1], None, (16, 16), FrameCache(band=2))[0, 1], atol=1e-5
            )


@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_reach_every_trained_parameter(frozen):
    model = tiny()
    model.freeze_prior(frozen)
    model.train()
    model(torch.rand(1, 2, 3, 64, 64)).square().mean().backward()
    for name, parameter in model.named_parameters():
        if name.startswith("static_prior") and frozen:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_frozen_prior_stays_in_eval_mode():
    model = tiny()
    model.freeze_prior(True)
    model.train()
    assert not model.static_prior.training and model.head.training
    model.freeze_prior(False)
    model.train()
    assert model.static_prior.training


def test_concat_by_hand():
    concat = VTDecConcat(2)
    rgb = torch.tensor([0.1, 0.2, 0.3]).reshape(1, 3, 1, 1)
    with torch.no_grad():
        out = concat(torch.tensor([3.0, 1.0]).reshape(1, 2, 1, 1), rgb).flatten()
    # LayerNorm of (3, 1) is (1, -1); GELU(1) = 0.8413, GELU(-1) = -0.1587.
    assert out.tolist() == pytest.approx([0.8413, -0.1587, 0.1, 0.2, 0.3], abs=1e-4)


def test_normalisation_is_per_branch_and_leaves_the_rgb_alone():
    model, video = tiny().eval(), torch.rand(1, 1, 3, 32, 32)
    model.set_normalization("encoder", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert torch.allclose(model.normalize("encoder", video), (video - 0.5) / 0.25)
    assert torch.equal(model.normalize("prior", video), video)


def test_icnr_starts_as_nearest_neighbour():
    weight = torch.empty(8, 3, 1, 1)
    icnr_(weight, 2)
    out = torch.nn.functional.pixel_shuffle(torch.nn.functional.conv2d(torch.rand(1, 3, 4, 4), weight), 2)
    assert torch.equal(out[..., ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3), out)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(num_classes=0), "num_classes"),
        (dict(attention="sparse"), "attention"),
        (dict(num_heads=(3, 2, 4, 8)), "multiple"),
        (dict(prior_classes=7), "class_mapping"),
        (dict(prior_classes=2, class_mapping=(0, 9)), "class_mapping"),
        (dict(windw=3), "did you mean 'window'"),
    ],
)
def test_wrong_configurations_are_refused_by_name(change, words):
    with pytest.raises(ConfigError, match=words):
        VTSegConfig.from_dict(
            {"num_classes": 5, "embed_dims": (16, 32, 64, 128), "num_heads": (1, 2, 4, 8), **change}
        )


def test_spatiotemporal_mix_ffn_equals_the_spatial_one_for_one_frame():
    model = tiny(mix_ffn="spatiotemporal").eval()
    flat = tiny().eval()
    state = {k: (v[:, :, 1] if v.dim() == 5 else v) for k, v in model.state_dict().items()}
    flat.load_state_dict(state)
    video = torch.rand(1, 1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(video), flat(video), atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_last_map_has_more_channels_than_there_are_classes(preset):
    """As many non-negative channels as Cityscapes' 19 classes and more: with 8 the rare ones were never learned."""
    config = VTSegConfig.preset(preset, num_classes=19)
    head = VTSegHead(config)
    assert head.classify.in_channels == 32
    maps = [torch.rand(1, dim, 16 // 2**i, 24 // 2**i) for i, dim in enumerate(config.embed_dims)]
    assert head.eval()(maps).shape == (1, 19, 64, 96)


def test_checkpoints_from_before_pixel_channels_keep_their_head():
    config = VTSegConfig.from_dict({"num_classes": 5, "head_channels": 64})
    assert VTSegHead(config).classify.in_channels == 8
    with pytest.raises(ConfigError, match="pixel_channels: out of range; expected at least 0"):
        VTSegConfig.preset("b0", num_classes=5, pixel_channels=-1)
