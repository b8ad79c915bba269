# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Rename SegFormer weights of Hugging Face transformers 4 and 5 and of the authors' code (NVlabs/SegFormer) to our names."""

from __future__ import annotations

import re
from collections.abc import Iterable

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

# The authors' (`block<stage>.<layer>...`, counted from 1); keys and values are one layer, split below.
_RULES_AUTHORS = (
    (r"^patch_embed(\d)\.", r"blocks.\1.embed."),
    (r"^norm(\d)\.", r"blocks.\1.norm."),
    (r"^block(\d)\.(\d+)\.", r"blocks.\1.layers.\2."),
    (r"\.attn\.q\.", ".attention.query."),
    (r"\.attn\.kv\.", ".attention.key_value."),
    (r"\.attn\.proj\.", ".attention.proj."),
    (r"\.attn\.sr\.", ".attention.reduce."),
    (r"\.attn\.norm\.", ".attention.reduce_norm."),
    (r"\.mlp\.dwconv\.dwconv\.", ".mlp.dwconv."),
)

_HEAD_RULES = (
    (r"^decode_head\.linear_(?:c|projections)\.(\d)\.proj\.", r"linear.\1."),
    (r"^decode_head\.linear_fuse\.weight$", "fuse.weight"),
    (r"^decode_head\.batch_norm\.", "norm."),
    (r"^decode_head\.classifier\.", "classify."),
)
_HEAD_RULES_AUTHORS = (
    (r"^decode_head\.linear_fuse\.conv\.", "fuse."),
    (r"^decode_head\.linear_fuse\.bn\.", "norm."),
    (r"^decode_head\.linear_pred\.", "classify."),
)

_NOT_ENCODER = ("decode_head.", "classifier.")


def translate_mit_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict under our encoder's key names (`blocks.<stage>.layers.<layer>...`).

    Args:
        state: of transformers' SegformerModel or of the authors' MixVisionTransformer; keys of a decode head or
            classifier are ignored.

    Raises:
        CheckpointError: if no key is of a known naming scheme.
    """
    bare = {re.sub(r"^(model\.)?(segformer\.|backbone\.)?", "", key): value for key, value in state.items()}
    bare = {key: value for key, value in bare.items() if not key.startswith(_NOT_ENCODER)}
    if any(key.startswith("encoder.block.") for key in bare):
        rules = _RULES_4
    elif any(re.match(r"^(encoder\.)?stages\.", key) for key in bare):
        rules = _RULES_5
    elif any(re.match(r"^block\d\.\d", key) for key in bare):
        return _from_authors(bare)
    else:
        raise CheckpointError(
            "MiT state dict: no key is of a SegformerModel; expected names like "
            "'encoder.block.0.0.attention.self.query.weight' or 'stages.0.blocks.0.attention.q_proj.weight' or "
            f"'block1.0.attn.q.weight', got {', '.join(sorted(state)[:2]) or 'nothing'}"
        )
    return {_renamed(key, rules): value for key, value in bare.items()}


def translate_segformer_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a SegFormer with its decode head under our key names.

    Args:
        state: of transformers' SegformerForSemanticSegmentation (4 or 5) or of the authors' code, whose unused
            `decode_head.conv_seg` is ignored.

    Raises:
        CheckpointError: if no key is of a known naming scheme, or there is no decode head.
    """
    heads = {key.removeprefix("model."): value for key, value in state.items()}
    heads = {
        key: value
        for key, value in heads.items()
        if key.startswith("decode_head.") and not key.startswith("decode_head.conv_seg.")
    }
    if not heads:
        raise CheckpointError(
            "SegFormer state dict: no decode head; expected keys that begin with 'decode_head.', "
            f"got {', '.join(sorted(state)[:2]) or 'nothing'}. To load only an encoder, use init_encoder in the training configuration"
        )
    translated = {f"encoder.{key}": value for key, value in translate_mit_state_dict(state).items()}
    for key, value in heads.items():
        # The authors count the levels from 1.
        key = re.sub(
            r"^decode_head\.linear_c([1-4])\.", lambda m: f"decode_head.linear_c.{int(m[1]) - 1}.", key
        )
        translated[_renamed(key, (*_HEAD_RULES, *_HEAD_RULES_AUTHORS))] = value
    return translated


def _renamed(key: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, name in rules:
        key = re.sub(pattern, name, key)
    return key


def _from_authors(bare: dict[str, Tensor]) -> dict[str, Tensor]:
    translated = {}
    for key, value in bare.items():
        key = _renamed(key, _RULES_AUTHORS)
        key = re.sub(r"^blocks\.(\d)\.", lambda m: f"blocks.{int(m[1]) - 1}.", key)
        if ".key_value." in key:
            for name, half in zip(("key", "value"), value.chunk(2)):
                translated[key.replace("key_value", name)] = half
        else:
            translated[key] = value
    return translated
