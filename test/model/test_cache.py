# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Caches: what they let a layer compute and see, by hand and against the pass over the whole window."""

from __future__ import annotations

import pytest
import torch
from conftest import randomize_batch_norm

from vtseg_ros.errors import ConfigError
from vtseg_ros.model import VTSeg, VTSegConfig
from vtseg_ros.model.blocks import VTLayer
from vtseg_ros.model.cache import CausalCache, ExactCache, FrameCache, LayerInputs, LayerPlace, banded_mask

CPU = torch.device("cpu")
yes, no = True, False


def network(**overrides) -> VTSeg:
    torch.manual_seed(0)
    model = VTSeg(VTSegConfig.preset("tiny", num_classes=5, **overrides)).eval()
    randomize_batch_norm(model)
    return model


def inputs(asking: int, frames: int, queries: int = 1, keys: int = 2) -> LayerInputs:
    tokens = torch.zeros(1, asking, queries, 4)
    return LayerInputs(tokens, tokens, torch.zeros(1, frames, keys, 4), torch.zeros(1, frames, keys, 4))


def test_places_are_unique_and_mark_both_ends():
    places = [module.place for module in network().modules() if isinstance(module, VTLayer)]
    assert len({place.name for place in places}) == len(places) == 2 * 4 * 3
    assert [place.name for place in places if place.frame_local] == ["encoder_1.0", "decoder_self_1.0"]
    assert [place.name for place in places if place.newest_suffices] == [
        "decoder_self_4.1",
        "decoder_cross_4.0",
        "decoder_cross_4.1",
    ]


def test_mask_of_the_newest_frames_only():
    assert banded_mask(3, 2, 1, 2, CPU, asking=2).tolist() == [
        [yes, yes, yes, yes, no, no],
        [no, no, yes, yes, yes, yes],
    ]


def test_missing_frames_are_hidden_and_see_themselves():
    place = LayerPlace("layer", 0)
    valid = torch.tensor([no, yes, yes])
    _, mask = FrameCache(valid=valid).update(place, inputs(3, 3))
    assert mask.tolist() == [[[[no, no, yes, yes, yes, yes]]]]
    _, mask = FrameCache(band=3, valid=valid).update(place, inputs(3, 3))
    assert mask[0, 0].tolist() == [
        [yes, yes, no, no, no, no],
        [no, no, yes, yes, no, no],
        [no, no, yes, yes, yes, yes],
    ]


def test_the_newest_frame_of_a_window_needs_no_mask():
    place = LayerPlace("layer", 0)
    assert FrameCache(band=3).update(place, inputs(1, 3))[1] is None
    assert FrameCache(band=2).update(place, inputs(1, 3))[1].tolist() == [[no, no, yes, yes, yes, yes]]
    assert FrameCache().update(place, inputs(3, 3))[1] is None


@pytest.mark.parametrize("attention", ["full", "causal"])
def test_the_newest_frame_alone_has_the_same_logits(attention):
    model, video = network(attention=attention), torch.rand(2, 3, 3, 32, 64)
    cache = FrameCache(band=model.config.band, newest_only=True)
    with torch.no_grad():
        got, whole = model(video, cache), model(video)
    assert got.shape == (2, 1, 5, 32, 64)
    assert torch.allclose(got[:, 0], whole[:, -1], atol=1e-5)


def test_state_is_matched_by_name_not_by_order():
    model, video = network(attention="causal", window=3), torch.rand(1, 2, 3, 32, 64)
    with torch.no_grad():
        first = CausalCache()
        model(video[:, :1], first)
        reversed_state = dict(reversed(first.new.items()))
        got = model(video[:, 1:], CausalCache(reversed_state))
        assert torch.allclose(got[:, 0], model(video)[:, 1], atol=1e-5)
        incomplete = {name: tensor for name, tensor in first.new.items() if name != "encoder_2.0/keys"}
        with pytest.raises(KeyError, match="encoder_2.0/keys"):
            model(video[:, 1:], CausalCache(incomplete))


def test_exact_state_covers_the_two_first_layers_and_takes_several_new_frames():
    model, video = network(), torch.rand(1, 4, 3, 32, 64)
    with torch.no_grad():
        first = ExactCache()
        model(video[:, :2], first)
        assert set(first.new) == {
            f"{layer}/{field}"
            for layer in ("encoder_1.0", "decoder_self_1.0")
            for field in ("tokens", "queries", "keys", "values")
        }
        got = model(video[:, 2:], ExactCache(first.new))
        assert torch.allclose(got[:, -1], model(video)[:, -1], atol=1e-5)


def test_a_causal_cache_takes_one_frame_at_a_time():
    with pytest.raises(ConfigError, match="causal cache: more than one new frame; expected 1, got 2"):
        network(attention="causal")(torch.rand(1, 2, 3, 32, 64), CausalCache())
