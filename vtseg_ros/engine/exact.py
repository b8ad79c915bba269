"""Exact streaming: the newest frame's logits of a sliding window, without recomputing what a frame alone decides.

Kept per frame: the decoder's input (static logits and RGB), both first patch embeddings with the norms,
projections and reductions of the first layer. The head runs for the newest frame only, and so do the queries of
the decoder's last stage. Equal to the full-window forward but for floating-point reordering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtseg_ros.model import VTSeg
from vtseg_ros.model.attention import causal_frame_mask, deserialize, serialize
from vtseg_ros.model.blocks import VTDecBlock, VTEncBlock, VTLayer, to_grid, to_tokens

Size = tuple[int, int]


@dataclass(frozen=True)
class FirstLayer:
    """What the first stage's first layer makes of one frame alone, rows of (1, tokens, D)."""

    tokens: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    size: Size


@dataclass(frozen=True)
class FrameState:
    """All that is kept of a frame."""

    encoder: FirstLayer
    decoder: FirstLayer


def prepare_frame(model: VTSeg, image: Tensor) -> FrameState:
    """What depends on one frame alone: image (1, 3, H, W) in [0, 1]."""
    static = model.static_logits(image)
    decoder_input = model.decoder.concat(static, image)
    return FrameState(
        encoder=_first(model.encoder.blocks[0], model.normalize("encoder", image)),
        decoder=_first(model.decoder.enc_blocks[0], decoder_input),
    )


def newest_logits(model: VTSeg, windows: Sequence[Sequence[FrameState]]) -> Tensor:
    """Logits of the newest frame of each window.

    Args:
        model: in eval mode.
        windows: B windows of the same length k and image size, oldest frame first.

    Returns:
        (B, C, H, W).
    """
    frames = len(windows[0])
    states = [state for window in windows for state in window]  # B*k rows, frame-major
    features = _encode(model, [state.encoder for state in states], frames)
    maps = _decode(model, [state.decoder for state in states], features, frames)
    return model.head(maps)


def supports(model: VTSeg) -> bool:
    """Whether this network can be streamed exactly: a Mix-FFN over time mixes frames everywhere."""
    return model.config.mix_ffn == "spatial"


def _first(block: VTEncBlock, image: Tensor) -> FirstLayer:
    tokens, size = block.embed(image)
    layer = block.layers[0]
    normed = layer.norm1(tokens)
    keys, values = layer.attention.project_memory(normed, size)
    return FirstLayer(tokens, layer.attention.project_queries(normed), keys, values, size)


def _mask(layer: VTLayer, frames: int, queries: Tensor, keys: Tensor) -> Tensor | None:
    window = layer.attention.window
    if not window:
        return None
    return causal_frame_mask(frames, window, queries.shape[1], keys.shape[1], queries.device)


def _first_block(block: VTEncBlock, kept: list[FirstLayer], frames: int) -> Tensor:
    """A first-stage VTEncBlock from what was kept: (B*k, D, H', W')."""
    layer, size = block.layers[0], kept[0].size
    x, queries, keys, values = (
        torch.cat([getattr(one, name) for one in kept]) for name in ("tokens", "queries", "keys", "values")
    )
    mask = _mask(layer, frames, queries, keys)
    attended = layer.attention.attend(
        serialize(queries, frames), serialize(keys, frames), serialize(values, frames), mask
    )
    x = x + deserialize(attended, frames)
    x = x + layer.mlp(layer.norm2(x), size, frames)
    for later in block.layers[1:]:
        x = later(x, None, size, frames)
    return to_grid(block.norm(x), size)


def _encode(model: VTSeg, kept: list[FirstLayer], frames: int) -> list[Tensor]:
    x = _first_block(model.encoder.blocks[0], kept, frames)
    maps = [x]
    for block in model.encoder.blocks[1:]:
        x = block(x, frames)
        maps.append(x)
    return maps


def _decode(model: VTSeg, kept: list[FirstLayer], features: list[Tensor], frames: int) -> list[Tensor]:
    """D_1..D_4 of the newest frames, each (B, C_i, H_i, W_i)."""
    decoder = model.decoder
    maps, last = [], len(decoder.dec_blocks) - 1
    y = _first_block(decoder.enc_blocks[0], kept, frames)
    for stage, dec_block in enumerate(decoder.dec_blocks):
        if 0 < stage < last:
            y = decoder.enc_blocks[stage](y, frames)
        if stage < last:
            y = dec_block(y, features[stage], frames)
            maps.append(y[frames - 1 :: frames])
        else:
            maps.append(
                _newest_of_last_stage(decoder.enc_blocks[stage], dec_block, y, features[stage], frames)
            )
    return maps


def _newest_layer(
    layer: VTLayer, x: Tensor, queries_from: Tensor, memory: Tensor | None, size: Size, frames: int
):
    """A layer for the newest frame's queries; keys and values from all frames.

    Args:
        x: (B*k, N, D), for self-attention.
        queries_from: (B, N, D), the newest frame's rows.
        memory: (B*k, N, D) for cross-attention, else None.
    """
    source = layer.norm1(x) if memory is None else layer.norm_memory(memory)
    keys, values = layer.attention.project_memory(source, size)
    queries = layer.attention.project_queries(layer.norm1(queries_from))
    # The newest frame may look at every frame of its window, in causal networks too.
    y = queries_from + layer.attention.attend(queries, serialize(keys, frames), serialize(values, frames))
    return y + layer.mlp(layer.norm2(y), size, 1)


def _newest_of_last_stage(
    enc_block: VTEncBlock, dec_block: VTDecBlock, y: Tensor, memory: Tensor, frames: int
) -> Tensor:
    x, size = enc_block.embed(y)
    for layer in enc_block.layers[:-1]:
        x = layer(x, None, size, frames)
    newest = _newest_layer(enc_block.layers[-1], x, x[frames - 1 :: frames], None, size, frames)
    newest = enc_block.norm(newest)
    tokens = to_tokens(memory)
    for layer in dec_block.layers:
        newest = _newest_layer(layer, newest, newest, tokens, size, frames)
    return to_grid(dec_block.norm(newest), size)
