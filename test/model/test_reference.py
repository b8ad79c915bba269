# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The whole of VTSeg against a second writing of it, from the paper's equations, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from model.test_erfnet import functional_erfnet
from torch import Tensor
from torch.nn import functional as F

from vtseg_ros.model import VTSeg, VTSegConfig

HEADS, REDUCTIONS, LAYERS = (1, 2, 4, 8), (8, 4, 2, 1), 2
PATCH = ((7, 4, 3), (3, 2, 1), (3, 2, 1), (3, 2, 1))  # kernel, stride, padding


class Reference:
    """VTSeg's forward of one window, read from a state dict; frames are a Python list."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def parameters(self, name: str) -> tuple[Tensor, Tensor | None]:
        return self.state[f"{name}.weight"], self.state.get(f"{name}.bias")

    def linear(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.parameters(name)
        return x @ weight.T + bias

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.parameters(name)
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias

    def conv(self, grid: Tensor, name: str, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
        """(D, H, W) -> (D', H', W')."""
        weight, bias = self.parameters(name)
        return F.conv2d(grid[None], weight, bias, stride, padding, groups=groups)[0]

    def attention(self, x: list, memory: list, size: tuple, name: str, stage: int) -> list:
        heads, ratio = HEADS[stage], REDUCTIONS[stage]
        rows = []
        for tokens in memory:
            if ratio > 1:
                grid = self.conv(grid_of(tokens, size), f"{name}.reduce", ratio)
                tokens = self.norm(tokens_of(grid), f"{name}.reduce_norm")
            rows.append(tokens)
        everything = torch.cat(rows)  # the tokens of all frames, oldest first
        keys, values = self.linear(everything, f"{name}.key"), self.linear(everything, f"{name}.value")
        width = keys.shape[1] // heads
        out = []
        for tokens in x:
            queries, parts = self.linear(tokens, f"{name}.query"), []
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                scores = torch.exp(queries[:, part] @ keys[:, part].T / math.sqrt(width))
                parts.append(scores / scores.sum(1, keepdim=True) @ values[:, part])
            out.append(self.linear(torch.cat(parts, 1), f"{name}.proj"))
        return out

    def mix_ffn(self, tokens: Tensor, size: tuple, name: str) -> Tensor:
        hidden = self.linear(tokens, f"{name}.fc1")
        grid = self.conv(grid_of(hidden, size), f"{name}.dwconv", padding=1, groups=hidden.shape[1])
        return self.linear(gelu(tokens_of(grid)), f"{name}.fc2")

    def layer(self, x: list, memory: list | None, size: tuple, name: str, stage: int) -> list:
        normed = [self.norm(tokens, f"{name}.norm1") for tokens in x]
        source = normed if memory is None else [self.norm(m, f"{name}.norm_memory") for m in memory]
        x = [a + b for a, b in zip(x, self.attention(normed, source, size, f"{name}.attention", stage))]
        return [a + self.mix_ffn(self.norm(a, f"{name}.norm2"), size, f"{name}.mlp") for a in x]

    def enc_block(self, grids: list, name: str, stage: int) -> list:
        _, stride, padding = PATCH[stage]
        embedded = [self.conv(grid, f"{name}.embed.proj", stride, padding) for grid in grids]
        size = tuple(embedded[0].shape[1:])
        x = [self.norm(tokens_of(grid), f"{name}.embed.norm") for grid in embedded]
        for n in range(LAYERS):
            x = self.layer(x, None, size, f"{name}.layers.{n}", stage)
        return [grid_of(self.norm(tokens, f"{name}.norm"), size) for tokens in x]

    def dec_block(self, grids: list, memory: list, name: str, stage: int) -> list:
        size = tuple(grids[0].shape[1:])
        x, source = [tokens_of(grid) for grid in grids], [tokens_of(grid) for grid in memory]
        for n in range(LAYERS):
            x = self.layer(x, source, size, f"{name}.layers.{n}", stage)
        return [grid_of(self.norm(tokens, f"{name}.norm"), size) for tokens in x]

    def head(self, maps: list) -> Tensor:
        levels = [shuffle(self.conv(m, f"head.levels.{i}.0"), 2**i) for i, m in enumerate(maps)]
        fused = self.conv(torch.cat(levels), "head.fuse.0")
        state, name = self.state, "head.fuse.1"
        scale = state[f"{name}.weight"] / torch.sqrt(state[f"{name}.running_var"] + 1e-5)
        shift = state[f"{name}.bias"] - state[f"{name}.running_mean"] * scale
        x = (fused * scale[:, None, None] + shift[:, None, None]).clamp(min=0)
        for name in ("head.up1.0.0", "head.up2.0.0"):
            x = shuffle(self.conv(x, name, padding=1), 2).clamp(min=0)
        return self.conv(x, "head.classify")

    def __call__(self, video: Tensor) -> Tensor:
        """(k, 3, H, W) -> logits (k, C, H, W)."""
        prior = {
            k.removeprefix("static_prior."): v for k, v in self.state.items() if k.startswith("static_prior.")
        }
        inputs = []
        for rgb in video:
            static = functional_erfnet(prior, rgb[None])[-1][0]  # (C, H, W)
            normed = self.norm(static.permute(1, 2, 0), "decoder.concat.norm").permute(2, 0, 1)
            inputs.append(torch.cat([gelu(normed), rgb]))
        features, x = [], list(video)
        for stage in range(4):
            x = self.enc_block(x, f"encoder.blocks.{stage}", stage)
            features.append(x)
        y, decoded = inputs, []
        for stage in range(4):
            y = self.enc_block(y, f"decoder.enc_blocks.{stage}", stage)
            y = self.dec_block(y, features[stage], f"decoder.dec_blocks.{stage}", stage)
            decoded.append(y)
        return torch.stack([self.head([maps[t] for maps in decoded]) for t in range(len(video))])


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def tokens_of(grid: Tensor) -> Tensor:
    """(D, H, W) -> (H*W, D), row by row."""
    return torch.stack(
        [grid[:, row, column] for row in range(grid.shape[1]) for column in range(grid.shape[2])]
    )


def grid_of(tokens: Tensor, size: tuple) -> Tensor:
    """(H*W, D) -> (D, H, W)."""
    height, width = size
    return torch.stack([torch.stack(list(tokens[r * width : (r + 1) * width]), 1) for r in range(height)], 1)


def shuffle(grid: Tensor, factor: int) -> Tensor:
    """(C f^2, H, W) -> (C, f H, f W): f^2 neighbouring channels become a square of pixels."""
    channels, height, width = grid.shape
    out = torch.empty(channels // factor**2, height * factor, width * factor, dtype=grid.dtype)
    for i in range(factor):
        for j in range(factor):
            out[:, i::factor, j::factor] = grid[i * factor + j :: factor**2]
    return out


@pytest.fixture(scope="module")
def model():
    """Random in every parameter and statistic, so that none can be left out unnoticed."""
    torch.manual_seed(0)
    network = VTSeg(VTSegConfig.preset("tiny", num_classes=5)).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.2, 1.0)
            elif name.endswith("running_mean"):
                buffer.normal_(std=0.2)
    return network


@pytest.mark.parametrize("frames", [1, 3])
def test_the_whole_network(model, frames):
    video = torch.rand(frames, 3, 32, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = Reference(model.state_dict())(video)
        assert torch.allclose(model(video[None])[0], expected, atol=1e-8, rtol=1e-8)


def test_one_frame_is_the_image_case(model):
    """Windows of one frame are images side by side, whatever else is in the batch."""
    images = torch.rand(3, 3, 32, 64, dtype=torch.float64)
    with torch.no_grad():
        together = model(images[:, None])[:, 0]
        for image, logits in zip(images, together):
            assert torch.allclose(model(image[None, None])[0, 0], logits, atol=1e-10)
        window = model(images[None])[0]
    assert not torch.allclose(window, together, atol=1e-3)
