# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Video attention against a slow reference written out with loops, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from vtseg_ros.model.attention import VideoAttention, deserialize, serialize
from vtseg_ros.model.cache import FrameCache, LayerInputs, LayerPlace, banded_mask


def attend(module: VideoAttention, x, memory, size, frames, band=0):
    """The attention of a complete window, (B*k, N, D), as a layer of the network composes it."""
    queries = module.project_queries(x.unflatten(0, (-1, frames)))
    keys, values = module.project_memory(memory.unflatten(0, (-1, frames)), size)
    inputs, mask = FrameCache(band=band).update(LayerPlace("layer", 0), LayerInputs(x, queries, keys, values))
    return module(inputs.queries, inputs.keys, inputs.values, mask).flatten(0, 1)


def reference(module: VideoAttention, x, memory, size, frames, heads, window=0):
    """Attention token by token: reduce, project, softmax over all allowed tokens of all frames, project."""
    reduced = []
    for row in memory:
        tokens = row
        if module.reduce is not None:
            step, (height, width) = module.reduce.stride[0], size
            tokens = []
            for top in range(0, height - step + 1, step):
                for left in range(0, width - step + 1, step):
                    total = module.reduce.bias.clone()
                    for dy in range(step):
                        for dx in range(step):
                            total += module.reduce.weight[:, :, dy, dx] @ row[(top + dy) * width + left + dx]
                    mean = total.mean()
                    variance = ((total - mean) ** 2).mean()
                    normed = (total - mean) / torch.sqrt(variance + 1e-5)
                    tokens.append(normed * module.reduce_norm.weight + module.reduce_norm.bias)
        reduced.append(list(tokens))
    batch = x.shape[0] // frames
    width = x.shape[2] // heads
    out = torch.empty_like(x)
    for b in range(batch):
        for t in range(frames):
            for n in range(x.shape[1]):
                query = module.query.weight @ x[b * frames + t, n] + module.query.bias
                joined = []
                for h in range(heads):
                    part = slice(h * width, (h + 1) * width)
                    scores, values = [], []
                    for s in range(frames):
                        if window and not 0 <= t - s < window:
                            continue
                        for token in reduced[b * frames + s]:
                            key = module.key.weight @ token + module.key.bias
                            values.append((module.value.weight @ token + module.value.bias)[part])
                            scores.append(query[part] @ key[part] / math.sqrt(width))
                    weights = torch.stack(scores).softmax(0)
                    joined.append(sum(w * v for w, v in zip(weights, values)))
                out[b * frames + t, n] = module.proj.weight @ torch.cat(joined) + module.proj.bias
    return out


@pytest.mark.parametrize("reduction", [8, 4, 2, 1])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("cross", [False, True])
def test_against_loops(reduction, frames, cross):
    torch.manual_seed(reduction + frames)
    module = VideoAttention(dim=8, heads=2, reduction=reduction).double()
    size = (reduction, 2 * reduction) if reduction > 1 else (2, 2)
    x = torch.randn(2 * frames, size[0] * size[1], 8, dtype=torch.float64)
    few = x[:, :2]  # queries need not cover the grid; fewer of them keep the loops short
    memory = torch.randn_like(x) if cross else x
    with torch.no_grad():
        got = attend(module, few, memory, size, frames)
        assert torch.allclose(got, reference(module, few, memory, size, frames, 2), atol=1e-10)


def test_causal_band_against_loops():
    torch.manual_seed(0)
    module = VideoAttention(dim=4, heads=1, reduction=1).double()
    x = torch.randn(4, 2, 4, dtype=torch.float64)
    with torch.no_grad():
        got = attend(module, x, x, (1, 2), 4, band=2)
        assert torch.allclose(got, reference(module, x, x, (1, 2), 4, 1, window=2), atol=1e-10)


def test_causal_mask_by_hand():
    mask = banded_mask(3, 2, 1, 2, torch.device("cpu"))
    yes, no = True, False
    assert mask.tolist() == [
        [yes, yes, no, no, no, no],
        [yes, yes, yes, yes, no, no],
        [no, no, yes, yes, yes, yes],
    ]


def test_serialization_is_frame_major_oldest_first():
    tokens = torch.arange(12.0).reshape(6, 2, 1)  # 2 windows of 3 frames of 2 tokens
    assert serialize(tokens.unflatten(0, (2, 3)))[:, :, 0].tolist() == [
        [0, 1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10, 11],
    ]
    assert torch.equal(deserialize(serialize(tokens.unflatten(0, (2, 3))), 3), tokens.unflatten(0, (2, 3)))


def test_permuting_frames_permutes_outputs():
    torch.manual_seed(1)
    module = VideoAttention(dim=8, heads=2, reduction=2)
    x, order = torch.randn(4, 16, 8), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        assert torch.allclose(
            attend(module, x, x, (4, 4), 4)[order], attend(module, x[order], x[order], (4, 4), 4), atol=1e-6
        )
