"""Exact streaming: the newest frame's logits of a sliding window, without recomputing what a frame alone decides.

Kept per frame: both first patch embeddings with the norms, projections and reductions of the first layer, of the
encoder and of the decoder (whose input, static logits and RGB, it thereby covers). The head runs for the newest
frame only, and so do the queries of the decoder's last stage. Equal to the full-window forward but for
floating-point reordering.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from vtseg_ros.model import VTSeg
from vtseg_ros.model.attention import Memory, causal_frame_mask, deserialize, serialize
from vtseg_ros.model.blocks import VTDecBlock, VTEncBlock, VTLayer, to_grid, to_tokens

Size = tuple[int, int]


class FirstLayer(NamedTuple):
    """What the first stage's first layer makes of frames alone, each (B, k, tokens, D) or (B, tokens, D)."""

    tokens: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor


class ValidFrames:
    """Hides the keys of frames that are not there, where a window of fixed length is not full yet.

    Args:
        valid: (k,) bool, oldest frame first.
        band: of a causal network, in frames; 0 = every frame sees all frames.
    """

    def __init__(self, valid: Tensor, band: int = 0) -> None:
        self.valid, self.band = valid, band

    def extend(self, keys: Tensor, values: Tensor, queries: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `vtseg_ros.model.attention.Memory`; the mask is (1, 1, 1 or T, k*M)."""
        frames = self.valid.shape[0]
        mask = frame_mask(self.valid, keys.shape[1])
        if self.band:
            sizes = (queries // frames, keys.shape[1] // frames)
            mask = mask & causal_frame_mask(frames, self.band, *sizes, keys.device)
            # A missing frame sees itself: a row without any key has no softmax.
            mask = mask | causal_frame_mask(frames, 1, *sizes, keys.device)
        return keys, values, mask


def frame_mask(valid: Tensor, keys: int) -> Tensor:
    """(k,) bool -> (1, 1, 1, keys) bool, each frame's value for all of its keys."""
    return valid.repeat_interleave(keys // valid.shape[0])[None, None, None]


def prepare_frame(model: VTSeg, images: Tensor) -> tuple[FirstLayer, FirstLayer]:
    """What depends on one frame alone, for the encoder and for the decoder: images (B, 3, H, W) in [0, 1]."""
    static = model.static_logits(images)
    decoder_input = model.decoder.concat(static, images)
    return (
        _first(model.encoder.blocks[0], model.normalize("encoder", images)),
        _first(model.decoder.enc_blocks[0], decoder_input),
    )


def newest_logits(
    model: VTSeg, encoder: FirstLayer, decoder: FirstLayer, size: Size, stream: Memory | None = None
) -> Tensor:
    """Logits of the newest frame of each window.

    Args:
        model: in eval mode.
        encoder, decoder: of B windows, each (B, k, tokens, D), oldest frame first.
        size: (H, W) of the first stage's token grid.
        stream: see `VideoAttention.forward`.

    Returns:
        (B, C, H, W).
    """
    frames = encoder.tokens.shape[1]
    features = _encode(model, encoder, size, frames, stream)
    return model.head(_decode(model, decoder, features, size, frames, stream))


def supports(model: VTSeg) -> bool:
    """Whether this network can be streamed: a Mix-FFN over time mixes frames everywhere."""
    return model.config.mix_ffn == "spatial"


def _first(block: VTEncBlock, images: Tensor) -> FirstLayer:
    tokens, size = block.embed(images)
    layer = block.layers[0]
    normed = layer.norm1(tokens)
    keys, values = layer.attention.project_memory(normed, size)
    return FirstLayer(tokens, layer.attention.project_queries(normed), keys, values)


def _first_block(
    block: VTEncBlock, kept: FirstLayer, size: Size, frames: int, stream: Memory | None
) -> Tensor:
    """A first-stage VTEncBlock from what was kept: (B*k, D, H', W')."""
    layer = block.layers[0]
    x, queries, keys, values = (each.flatten(0, 1) for each in kept)  # (B*k, tokens, D)
    keys, values, mask = serialize(keys, frames), serialize(values, frames), None
    if stream is not None:
        keys, values, mask = stream.extend(keys, values, frames * queries.shape[1])
    elif layer.attention.window:
        mask = causal_frame_mask(
            frames, layer.attention.window, queries.shape[1], keys.shape[1] // frames, x.device
        )
    x = x + deserialize(layer.attention.attend(serialize(queries, frames), keys, values, mask), frames)
    x = x + layer.mlp(layer.norm2(x), size, frames)
    for later in block.layers[1:]:
        x = later(x, None, size, frames, stream)
    return to_grid(block.norm(x), size)


def _encode(model: VTSeg, kept: FirstLayer, size: Size, frames: int, stream: Memory | None) -> list[Tensor]:
    x = _first_block(model.encoder.blocks[0], kept, size, frames, stream)
    maps = [x]
    for block in model.encoder.blocks[1:]:
        x = block(x, frames, stream)
        maps.append(x)
    return maps


def _decode(
    model: VTSeg, kept: FirstLayer, features: list[Tensor], size: Size, frames: int, stream: Memory | None
) -> list[Tensor]:
    """D_1..D_4 of the newest frames, each (B, C_i, H_i, W_i)."""
    decoder = model.decoder
    maps, last = [], len(decoder.dec_blocks) - 1
    y = _first_block(decoder.enc_blocks[0], kept, size, frames, stream)
    for stage, dec_block in enumerate(decoder.dec_blocks):
        enc_block = decoder.enc_blocks[stage]
        if stage == last:
            maps.append(_newest_of_last_stage(enc_block, dec_block, y, features[stage], frames, stream))
            break
        if stage:
            y = enc_block(y, frames, stream)
        y = dec_block(y, features[stage], frames, stream)
        maps.append(y[frames - 1 :: frames])
    return maps


def _newest_layer(
    layer: VTLayer,
    x: Tensor,
    queries_from: Tensor,
    memory: Tensor | None,
    size: Size,
    frames: int,
    stream: Memory | None,
) -> Tensor:
    """A layer for the newest frame's queries; keys and values from all frames.

    Args:
        x: (B*k, N, D), for self-attention.
        queries_from: (B, N, D), the newest frame's rows.
        memory: (B*k, N, D) for cross-attention, else None.
    """
    source = layer.norm1(x) if memory is None else layer.norm_memory(memory)
    keys, values = (serialize(each, frames) for each in layer.attention.project_memory(source, size))
    # The newest frame may look at every frame of its window, in causal networks too.
    queries, mask = layer.attention.project_queries(layer.norm1(queries_from)), None
    if stream is not None:
        keys, values, mask = stream.extend(keys, values, queries.shape[1])
    y = queries_from + layer.attention.attend(queries, keys, values, mask)
    return y + layer.mlp(layer.norm2(y), size, 1)


def _newest_of_last_stage(
    enc_block: VTEncBlock,
    dec_block: VTDecBlock,
    y: Tensor,
    memory: Tensor,
    frames: int,
    stream: Memory | None,
) -> Tensor:
    x, size = enc_block.embed(y)
    for layer in enc_block.layers[:-1]:
        x = layer(x, None, size, frames, stream)
    newest = _newest_layer(enc_block.layers[-1], x, x[frames - 1 :: frames], None, size, frames, stream)
    newest = enc_block.norm(newest)
    tokens = to_tokens(memory)
    for layer in dec_block.layers:
        newest = _newest_layer(layer, newest, newest, tokens, size, frames, stream)
    return to_grid(dec_block.norm(newest), size)
