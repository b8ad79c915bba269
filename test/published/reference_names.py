# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Names of SegFormer weights in the authors' code (NVlabs/SegFormer), written by hand from its modules.

One entry per tensor of a stage (s, counted from 1), of a layer (l, from 0) and of the head; on the other side the names
that transformers' SegformerForSemanticSegmentation saves. Independent of the package's own rules.
"""

from __future__ import annotations

import torch
from torch import Tensor

STAGE = {
    "backbone.patch_embed{s}.proj.weight": "segformer.encoder.patch_embeddings.{i}.proj.weight",
    "backbone.patch_embed{s}.proj.bias": "segformer.encoder.patch_embeddings.{i}.proj.bias",
    "backbone.patch_embed{s}.norm.weight": "segformer.encoder.patch_embeddings.{i}.layer_norm.weight",
    "backbone.patch_embed{s}.norm.bias": "segformer.encoder.patch_embeddings.{i}.layer_norm.bias",
    "backbone.norm{s}.weight": "segformer.encoder.layer_norm.{i}.weight",
    "backbone.norm{s}.bias": "segformer.encoder.layer_norm.{i}.bias",
    "decode_head.linear_c{s}.proj.weight": "decode_head.linear_c.{i}.proj.weight",
    "decode_head.linear_c{s}.proj.bias": "decode_head.linear_c.{i}.proj.bias",
}
LAYER = {
    "norm1.weight": "layer_norm_1.weight",
    "norm1.bias": "layer_norm_1.bias",
    "attn.q.weight": "attention.self.query.weight",
    "attn.q.bias": "attention.self.query.bias",
    "attn.proj.weight": "attention.output.dense.weight",
    "attn.proj.bias": "attention.output.dense.bias",
    "attn.sr.weight": "attention.self.sr.weight",
    "attn.sr.bias": "attention.self.sr.bias",
    "attn.norm.weight": "attention.self.layer_norm.weight",
    "attn.norm.bias": "attention.self.layer_norm.bias",
    "norm2.weight": "layer_norm_2.weight",
    "norm2.bias": "layer_norm_2.bias",
    "mlp.fc1.weight": "mlp.dense1.weight",
    "mlp.fc1.bias": "mlp.dense1.bias",
    "mlp.dwconv.dwconv.weight": "mlp.dwconv.dwconv.weight",
    "mlp.dwconv.dwconv.bias": "mlp.dwconv.dwconv.bias",
    "mlp.fc2.weight": "mlp.dense2.weight",
    "mlp.fc2.bias": "mlp.dense2.bias",
}
HEAD = {
    "decode_head.linear_fuse.conv.weight": "decode_head.linear_fuse.weight",
    "decode_head.linear_fuse.bn.weight": "decode_head.batch_norm.weight",
    "decode_head.linear_fuse.bn.bias": "decode_head.batch_norm.bias",
    "decode_head.linear_fuse.bn.running_mean": "decode_head.batch_norm.running_mean",
    "decode_head.linear_fuse.bn.running_var": "decode_head.batch_norm.running_var",
    "decode_head.linear_pred.weight": "decode_head.classifier.weight",
    "decode_head.linear_pred.bias": "decode_head.classifier.bias",
}


def as_authors_save(saved: dict[str, Tensor], depths: tuple[int, ...]) -> dict[str, Tensor]:
    """The authors' state dict of what transformers saved (`model.safetensors`)."""
    state = {}
    for i, depth in enumerate(depths):
        for theirs, hub in STAGE.items():
            state[theirs.format(s=i + 1)] = saved[hub.format(i=i)]
        for layer in range(depth):
            mine, prefix = f"backbone.block{i + 1}.{layer}.", f"segformer.encoder.block.{i}.{layer}."
            for theirs, hub in LAYER.items():
                if prefix + hub in saved:  # the last stage reduces nothing
                    state[mine + theirs] = saved[prefix + hub]
            for kind in ("weight", "bias"):
                key, value = (saved[f"{prefix}attention.self.{name}.{kind}"] for name in ("key", "value"))
                state[f"{mine}attn.kv.{kind}"] = torch.cat([key, value])
    state |= {theirs: saved[hub] for theirs, hub in HEAD.items()}
    classes, width = saved["decode_head.classifier.weight"].shape[:2]
    # mmsegmentation's base class makes a classifier that the head does not use.
    state["decode_head.conv_seg.weight"] = torch.zeros(classes, width, 1, 1)
    state["decode_head.conv_seg.bias"] = torch.zeros(classes)
    return state
