"""With one frame the encoder is SegFormer's MiT: feature maps of transformers' SegformerModel, random weights."""

from __future__ import annotations

import re

import pytest
import torch

transformers = pytest.importorskip("transformers")

from vtseg_ros.errors import CheckpointError
from vtseg_ros.model import VTSegConfig
from vtseg_ros.model.encoder import VTSegEncoder

B0 = dict(hidden_sizes=[32, 64, 160, 256], depths=[2, 2, 2, 2])
B1_LIKE = dict(hidden_sizes=[64, 128, 320, 512], depths=[2, 1, 3, 1])


def build(sizes):
    torch.manual_seed(0)
    config = transformers.SegformerConfig(**sizes, hidden_dropout_prob=0.0, drop_path_rate=0.0)
    reference = transformers.SegformerModel(config).eval()
    for parameter in reference.parameters():  # norms and biases other than one and zero
        torch.nn.init.normal_(parameter, std=0.05)
    ours = VTSegConfig(num_classes=3, embed_dims=sizes["hidden_sizes"], depths=sizes["depths"])
    return reference, VTSegEncoder(ours).eval()


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
        named[f"segformer.{key}"] = value
    return {**named, "decode_head.classifier.weight": torch.zeros(1)}


@pytest.mark.parametrize("sizes", [B0, B1_LIKE], ids=["b0", "wider"])
@pytest.mark.parametrize("size", [(64, 96), (96, 64)])
@pytest.mark.parametrize("naming", [lambda state: state, as_version_4], ids=["transformers5", "hub"])
def test_feature_maps_agree(sizes, size, naming):
    reference, encoder = build(sizes)
    encoder.load_mit_state_dict(naming(reference.state_dict()))
    image = torch.rand(2, 3, *size)
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
