# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights for another class list: rows by name, and networks that answer the same in another order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtseg_ros.errors import CheckpointError
from vtseg_ros.model import EfficientViTB0, ERFNet, SegFormer, VTSeg, VTSegConfig
from vtseg_ros.model.registry import class_dimensions
from vtseg_ros.model.state_dicts import load_exact, translate_classes
from vtseg_ros.model.stgru import STGRU

DEPTHS = (1, 1, 1, 1)
BUILD = {
    "erfnet": lambda classes: ERFNet(num_classes=classes),
    "segformer": lambda classes: SegFormer(num_classes=classes),
    "efficientvit": lambda classes: EfficientViTB0(num_classes=classes),
    "vtseg": lambda classes: VTSeg(VTSegConfig.preset("tiny", num_classes=classes, window=2, depths=DEPTHS)),
    "vtseg on segformer": lambda classes: VTSeg(
        VTSegConfig.preset("tiny", num_classes=classes, static_prior="segformer_b0", depths=DEPTHS)
    ),
    "vtseg on efficientvit": lambda classes: VTSeg(
        VTSegConfig.preset("tiny", num_classes=classes, static_prior="efficientvit_b0", depths=DEPTHS)
    ),
    "gru": lambda classes: STGRU(num_classes=classes),
}


@pytest.mark.parametrize("name", BUILD)
def test_every_dimension_that_counts_classes_is_known(name):
    """Two more classes make exactly these dimensions larger by two."""
    five, seven = (BUILD[name](classes).state_dict() for classes in (5, 7))
    for key, value in five.items():
        grown = [b - a for a, b in zip(value.shape, seven[key].shape, strict=True)]
        assert grown == [2 * (dim in class_dimensions(key)) for dim in range(value.ndim)], key


def answer(model, images, flow):
    """(n, C, H, W), (n, 3, H, W) -> logits (..., C, H, W)."""
    with torch.no_grad():
        if isinstance(model, STGRU):
            return model(images[None], flow)
        return model(images[None]) if isinstance(model, VTSeg) else model(images)


@pytest.mark.parametrize("name", BUILD)
@settings(max_examples=3)
@given(order=st.permutations(range(5)))
def test_the_same_classes_in_another_order_have_the_same_logits(name, order):
    torch.manual_seed(1)
    old, new = "abcde", tuple("abcde"[i] for i in order)
    donor, model = BUILD[name](5).eval(), BUILD[name](5).eval()
    with torch.no_grad():
        for parameter in donor.parameters():  # no row like another, biases and LayerNorms too
            parameter.add_(torch.randn_like(parameter) * 0.05)
    state = translate_classes(donor.state_dict(), model.state_dict(), old=tuple(old), new=new)
    load_exact(model, state, source="donor")
    images, flow = torch.rand(2, 3, 32, 64), torch.rand(1, 2, 2, 32, 64)
    expected = answer(donor, images, flow)
    assert expected.std() > 1e-3
    torch.testing.assert_close(
        answer(model, images, flow), expected[..., list(order), :, :], rtol=1e-4, atol=1e-4
    )


def test_rows_by_name_and_new_ones_from_the_new_network():
    old, new = ("road", "car", "sky"), ("sky", "tree", "road", "bird")
    state = {
        "head.classify.bias": torch.tensor([1.0, 2.0, 3.0]),
        # Three classes, then RGB.
        "decoder.enc_blocks.0.embed.proj.weight": torch.arange(1.0, 7.0).reshape(1, 6, 1, 1),
        "past_to_candidate.weight": torch.tensor([[11.0, 12, 13], [21, 22, 23], [31, 32, 33]])[
            ..., None, None
        ],
        "encoder.weight": torch.ones(2),
    }
    own = {
        "head.classify.bias": torch.full((4,), -1.0),
        "decoder.enc_blocks.0.embed.proj.weight": torch.full((1, 7, 1, 1), -1.0),
        "past_to_candidate.weight": torch.full((4, 4, 1, 1), -1.0),
        "encoder.weight": torch.zeros(2),
    }
    got = translate_classes(state, own, old=old, new=new)
    assert got["head.classify.bias"].tolist() == [3, -1, 1, -1]
    assert got["decoder.enc_blocks.0.embed.proj.weight"].flatten().tolist() == [3, -1, 1, -1, 4, 5, 6]
    assert got["past_to_candidate.weight"][..., 0, 0].tolist() == [
        [33, -1, 31, -1],
        [-1, -1, -1, -1],
        [13, -1, 11, -1],
        [-1, -1, -1, -1],
    ]
    assert torch.equal(got["encoder.weight"], torch.ones(2))
    assert own["head.classify.bias"].tolist() == [-1] * 4 and state["head.classify.bias"].tolist() == [
        1,
        2,
        3,
    ]


def test_what_differs_in_more_than_classes_is_still_refused():
    donor = VTSeg(VTSegConfig.preset("tiny", num_classes=3))
    model = VTSeg(VTSegConfig.preset("small", num_classes=4))
    state = translate_classes(donor.state_dict(), model.state_dict(), old=tuple("abc"), new=tuple("abcd"))
    with pytest.raises(CheckpointError, match="donor: .*(another shape|not of this network|missing)"):
        load_exact(model, state, source="donor")
