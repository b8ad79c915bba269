"""Names of Mix Transformer (MiT) weights: Hugging Face transformers 4 and 5 to ours."""

from __future__ import annotations

import re

from torch import Tensor

from vtseg_ros.errors import CheckpointError

# Files on the hub, written by transformers 4 (`encoder.block.<stage>.<layer>...`).
_RULES_4 = (
    (r"^encoder\.patch_embeddings\.(\d)\.proj\.", r"blocks.\1.embed.proj."),
    (r"^encoder\.patch_embeddings\.(\d)\.layer_norm\.", r"blocks.\1.embed.norm."),
    (r"^encoder\.layer_norm\.(\d)\.", r"blocks.\1.norm."),
    (r"^encoder\.block\.(\d)\.(\d+)\.", r"blocks.\1.layers.\2."),
    (r"\.layer_norm_1\.", ".norm1."),
    (r"\.layer_norm_2\.", ".norm2."),
    (r"\.attention\.self\.(query|key|value)\.", r".attention.\1."),
    (r"\.attention\.self\.sr\.", ".attention.reduce."),
    (r"\.attention\.self\.layer_norm\.", ".attention.reduce_norm."),
    (r"\.attention\.output\.dense\.", ".attention.proj."),
    (r"\.mlp\.dense1\.", ".mlp.fc1."),
    (r"\.mlp\.dense2\.", ".mlp.fc2."),
    (r"\.mlp\.dwconv\.dwconv\.", ".mlp.dwconv."),
)

# transformers 5 (`stages.<stage>.blocks.<layer>...`).
_RULES_5 = (
    (r"^(?:encoder\.)?stages\.(\d)\.patch_embeddings\.proj\.", r"blocks.\1.embed.proj."),
    (r"^(?:encoder\.)?stages\.(\d)\.patch_embeddings\.layer_norm\.", r"blocks.\1.embed.norm."),
    (r"^(?:encoder\.)?stages\.(\d)\.layer_norm\.", r"blocks.\1.norm."),
    (r"^(?:encoder\.)?stages\.(\d)\.blocks\.(\d+)\.", r"blocks.\1.layers.\2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.q_proj\.", ".attention.query."),
    (r"\.attention\.k_proj\.", ".attention.key."),
    (r"\.attention\.v_proj\.", ".attention.value."),
    (r"\.attention\.o_proj\.", ".attention.proj."),
    (r"\.attention\.sequence_reduction\.layer_norm\.", ".attention.reduce_norm."),
    (r"\.attention\.sequence_reduction\.sequence_reduction\.", ".attention.reduce."),
    (r"\.mlp\.dwconv\.dwconv\.", ".mlp.dwconv."),
)

_NOT_ENCODER = ("decode_head.", "classifier.")


def translate_mit_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under our encoder's key names (`blocks.<stage>.layers.<layer>...`).

    Raises:
        CheckpointError: if no key is of either naming scheme.
    """
    bare = {re.sub(r"^(model\.)?(segformer\.)?", "", key): value for key, value in state.items()}
    bare = {key: value for key, value in bare.items() if not key.startswith(_NOT_ENCODER)}
    if any(key.startswith("encoder.block.") for key in bare):
        rules = _RULES_4
    elif any(re.match(r"^(encoder\.)?stages\.", key) for key in bare):
        rules = _RULES_5
    else:
        raise CheckpointError(
            "MiT state dict: no key is of a SegformerModel. Expected names like "
            "'encoder.block.0.0.attention.self.query.weight' or 'stages.0.blocks.0.attention.q_proj.weight'. "
            f"Got: {', '.join(sorted(state)[:2]) or 'nothing'}"
        )
    translated = {}
    for key, value in bare.items():
        for pattern, name in rules:
            key = re.sub(pattern, name, key)
        translated[key] = value
    return translated
