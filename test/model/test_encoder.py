# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""With one frame the encoder is SegFormer's MiT: feature maps of transformers' SegformerModel, random weights."""

from __future__ import annotations

import re

import pytest
import torch

transformers = pytest.importorskip("transformers")

from vtseg_ros.errors import CheckpointError
from vtseg_ros.model import VTSegConfig
from vtseg_ros.model.encoder import VTSegEncoder
from vtseg_ros.model.mit import translate_mit_state_dict

B0 = dict(hidden_sizes=[32, 64, 160, 256], depths=[2, 2, 2, 2])
NARROW = dict(hidden_sizes=[16, 32, 80, 128], depths=[2, 2, 2, 2])
B1_LIKE = dict(hidden_sizes=[64, 128, 320, 512], depths=[2, 1, 3, 1])
DEPTHS = {
    "b1": [2, 2, 2, 2],
    "b2": [3, 4, 6, 3],
    "b3": [3, 4, 18, 3],
    "b4": [3, 8, 27, 3],
    "b5": [3, 6, 40, 3],
}


def build(sizes):
    torch.manual_seed(0)
    config = transformers.SegformerConfig(**sizes, hidden_dropout_prob=0.0, drop_path_rate=0.0)
    reference = transformers.SegformerModel(config).eval()
    # Large enough that softmax is far from uniform and GELU from linear: else heads and activations hardly matter.
    for name, parameter in reference.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
        else:
            torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.3)
    ours = VTSegConfig(num_classes=3, embed_dims=sizes["hidden_sizes"], depths=sizes["depths"])
    return reference, VTSegEncoder(ours).eval()


def with_head(state: dict) -> dict:
    """As transformers 5 names a whole SegformerForSemanticSegmentation."""
    prefixed = {f"segformer.{key}": value for key, value in state.items()}
    return {**prefixed, "decode_head.classifier.weight": torch.zeros(1)}


def as_version_4(state: dict) -> dict:
    """The names that files on the hub have, from the names of the reference in memory."""
    rules = (
        (r"^(?:encoder\.)?stages\.(\d)\.patch_embeddings\.", r"encoder.patch_embeddings.\1."),
        (r"^(?:encoder\.)?stages\.(\d)\.layer_norm\.", r"encoder.layer_norm.\1."),
        (r"^(?:encoder\.)?stages\.(\d)\.blocks\.(\d+)\.", r"encoder.block.\1.\2."),
        (r"\.layernorm_before\.", ".layer_norm_1."),
        (r"\.layernorm_after\.", ".layer_norm_2."),
        (r"\.attention\.q_proj\.", ".attention.self.query."),
        (r"\.attention\.k_proj\.", ".attention.self.key."),
        (r"\.attention\.v_proj\.", ".attention.self.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.attention\.sequence_reduction\.sequence_reduction\.", ".attention.self.sr."),
        (r"\.attention\.sequence_reduction\.layer_norm\.", ".attention.self.layer_norm."),
        (r"\.mlp\.fc1\.", ".mlp.dense1."),
        (r"\.mlp\.fc2\.", ".mlp.dense2."),
    )
    named = {}
    for key, value in state.items():
        for pattern, name in rules:
            key = re.sub(pattern, name, key)
        named[key] = value
    return named


def as_version_4_with_head(state: dict) -> dict:
    return with_head(as_version_4(state))


NAMINGS = [dict, with_head, as_version_4, as_version_4_with_head]


@pytest.mark.parametrize("naming", NAMINGS, ids=["5", "5_prefix", "hub", "hub_prefix"])
def test_both_naming_schemes_load(naming):
    reference, encoder = build(NARROW)
    state = naming(reference.state_dict())
    encoder.load_mit_state_dict(state)
    ours = encoder.state_dict()
    assert len(ours) == len(reference.state_dict())
    # Every tensor of the reference arrived once: their sums agree, in some order.
    sums = [sorted(float(v.double().sum()) for v in d.values()) for d in (ours, reference.state_dict())]
    assert sums[0] == sums[1]


def test_the_names_on_the_hub_are_those_that_version_4_wrote():
    state = as_version_4_with_head(build(NARROW)[0].state_dict())
    assert "segformer.encoder.block.0.0.attention.self.query.weight" in state
    assert "segformer.encoder.block.3.1.mlp.dwconv.dwconv.bias" in state
    assert "segformer.encoder.patch_embeddings.2.layer_norm.weight" in state


@pytest.mark.parametrize("sizes", [B0, B1_LIKE], ids=["b0", "wider"])
@pytest.mark.parametrize("size", [(64, 96), (96, 64)])
def test_feature_maps_agree(sizes, size):
    reference, encoder = build(sizes)
    encoder.load_mit_state_dict(reference.state_dict())
    agree(reference, encoder, torch.rand(2, 3, *size))


@pytest.mark.parametrize("name", DEPTHS)
def test_larger_encoders_by_configuration(name):
    """Their depths, at a quarter of their width; the whole width is compared in shapes."""
    depths = DEPTHS[name]
    reference, encoder = build({**NARROW, "depths": depths})
    encoder.load_mit_state_dict(reference.state_dict())
    agree(reference, encoder, torch.rand(1, 3, 32, 64))
    wide = dict(hidden_sizes=[64, 128, 320, 512], depths=depths)
    with torch.device("meta"):
        theirs = transformers.SegformerModel(transformers.SegformerConfig(**wide)).state_dict()
        ours = VTSegEncoder(VTSegConfig(num_classes=3, embed_dims=wide["hidden_sizes"], depths=depths))
    translated = translate_mit_state_dict(theirs)
    assert {k: v.shape for k, v in translated.items()} == {k: v.shape for k, v in ours.state_dict().items()}


def agree(reference, encoder, image):
    with torch.no_grad():
        expected = reference(image, output_hidden_states=True).hidden_states
        got = encoder(image.unsqueeze(1))
    assert len(got) == 4
    for ours, theirs in zip(got, expected):
        assert torch.allclose(ours.squeeze(1), theirs, atol=1e-5, rtol=1e-5)


def test_other_state_dicts_are_refused_by_name():
    encoder = VTSegEncoder(VTSegConfig(num_classes=3))
    with pytest.raises(CheckpointError, match="SegformerModel"):
        encoder.load_mit_state_dict({"conv.weight": torch.zeros(1)})
    reference, _ = build(B1_LIKE)
    with pytest.raises(CheckpointError, match="missing|another shape|not of this network"):
        encoder.load_mit_state_dict(reference.state_dict())
