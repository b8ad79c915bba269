# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Streaming against forward passes over whole windows and whole clips."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import make_checkpoint, randomize_batch_norm

from vtseg_ros.errors import ConfigError
from vtseg_ros.image_ops import resize_rgb
from vtseg_ros.inference import CameraFrame, VideoPredictor
from vtseg_ros.inference.backends.torch_backend import StepRunner
from vtseg_ros.inference.optimise import optimise
from vtseg_ros.inference.step import build_step
from vtseg_ros.label_set import STREET
from vtseg_ros.model import VTSeg, VTSegConfig, load_checkpoint, save_checkpoint

TICK = 100_000_000
SIZE = (32, 64)
CPU = torch.device("cpu")
ONE_LAYER = (1, 1, 1, 1)


def network(seed=0, **overrides):
    """Two layers in one stage only: the others differ in their sizes, not in what is kept of a frame."""
    torch.manual_seed(seed)
    config = VTSegConfig.preset("tiny", num_classes=6, **{"depths": (1, 1, 1, 2), **overrides})
    model = VTSeg(config).eval()
    randomize_batch_norm(model)
    return model


def prepared_step(model, streaming):
    return build_step(optimise(copy.deepcopy(model), CPU, torch.float32), SIZE, streaming)


def record_logits(segmenter, monkeypatch):
    """The logits of every call, before they become masks."""
    seen, run = [], segmenter.backend.run

    def spy(images, past):
        logits, kept = run(images, past)
        seen.append(logits.clone())
        return logits, kept

    monkeypatch.setattr(segmenter.backend, "run", spy)
    return seen


@pytest.mark.parametrize("attention", ["full", "causal"])
def test_exact_streaming_equals_the_full_window(attention, tmp_path, monkeypatch):
    """30 frames with a reset, a pause, a jump back and another image size; the window kept by hand."""
    model = network(attention=attention)
    torch.nn.init.normal_(model.head.classify.weight, std=1.0)
    labels = type(STREET)(STREET.names[:6], STREET.colors[:6])
    save_checkpoint(tmp_path / "c.safetensors", model, labels=labels, input_size=(64, 32))
    segmenter = VideoPredictor(tmp_path / "c.safetensors", device="cpu", streaming="exact")
    seen = record_logits(segmenter, monkeypatch)
    reference = load_checkpoint(tmp_path / "c.safetensors").model
    rng, window, stamp = np.random.default_rng(1), [], 0
    with torch.inference_mode():
        for t in range(30):
            stamp += {12: 50, 17: -30}.get(t, 1) * TICK
            height, width = (40, 72) if t < 22 else (32, 64)
            if t == 5:
                segmenter.reset()
            if t in (5, 12, 17, 22):
                window = []
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            result = segmenter.step(image, stamp + 100 * TICK)
            pixels = torch.from_numpy(resize_rgb(image, (64, 32))).permute(2, 0, 1) / 255
            window = [*window, pixels][-4:]
            assert result.frames_in_window == len(window), t
            expected = reference(torch.stack(window)[None])[:, -1]
            assert (seen[-1] - expected).abs().max() < 1e-4, t
    assert len(seen) == 30 and seen[-1].std() > 0.1


@pytest.mark.parametrize("window", [1, 2, 4])
def test_causal_streaming_equals_one_banded_forward(window):
    """Two clips at once, 3 k + 2 frames: frames leave the rings several times over."""
    model = network(attention="causal", window=window)
    step = prepared_step(model, "causal")
    runner, count = StepRunner(step, window=window), 3 * window + 2
    clips = torch.rand(2, count, 3, *SIZE)
    past: list[list] = [[], []]
    with torch.inference_mode():
        expected = model(clips)  # (2, count, C, H, W)
        for t in range(count):
            logits, kept = runner(clips[:, t], past)
            for rows, row in zip(past, kept):
                rows.append(row)
                del rows[: max(0, len(rows) + 1 - window)]
            assert (logits - expected[:, t]).abs().max() < 1e-4, t
    assert all(row.shape == (step.state_size,) for row in kept)


def test_the_clip_reference_depends_on_the_band():
    """The comparison above could not fail if older frames had no effect."""
    clip = torch.rand(1, 6, 3, *SIZE)
    with torch.inference_mode():
        narrow, wide = (network(attention="causal", window=w)(clip) for w in (2, 4))
        changed = clip.clone()
        changed[:, 0] = 1 - changed[:, 0]
        one = network(attention="causal", window=4)
        difference = (one(changed) - one(clip)).abs().amax(dim=(0, 2, 3, 4))
    assert (narrow - wide)[:, -1].abs().max() > 1e-3
    assert difference[1] > 1e-3  # frame 1 sees frame 0


@pytest.mark.parametrize("streaming", ["exact", "causal"])
def test_a_frame_that_is_missing_leaves_no_trace(streaming):
    """The fixed window of an export, not full yet, gives what the shorter window gives."""
    step = prepared_step(network(attention="causal" if streaming == "causal" else "full"), streaming)
    images = torch.rand(4, 1, 3, *SIZE)
    with torch.inference_mode():
        past = torch.zeros(1, 0, step.state_size)
        for image in images[:2]:
            past = torch.cat([past, step(image, past)[1][:, None]], dim=1)
        expected, _ = step(images[2], past)
        padded = torch.cat([torch.full((1, 1, step.state_size), 7.0), past], dim=1)
        logits, _ = step(images[2], padded, torch.tensor([False, True, True]))
        seen, _ = step(images[2], padded)
    assert (logits - expected).abs().max() < 1e-4
    assert (seen - expected).abs().max() > 1e-3


def test_causal_is_chosen_and_refused_by_the_checkpoint(tmp_path, tiny_checkpoint):
    causal = make_checkpoint(tmp_path / "causal.safetensors", attention="causal", depths=ONE_LAYER)
    assert VideoPredictor(causal, device="cpu").streaming == "causal"
    assert VideoPredictor(causal, device="cpu", streaming="exact").streaming == "exact"
    assert VideoPredictor(tiny_checkpoint, device="cpu").streaming == "exact"
    with pytest.raises(ConfigError, match="trained with attention causal"):
        VideoPredictor(tiny_checkpoint, device="cpu", streaming="causal")
    over_time = make_checkpoint(
        tmp_path / "st.safetensors", attention="causal", mix_ffn="spatiotemporal", depths=ONE_LAYER
    )
    assert VideoPredictor(over_time, device="cpu").streaming == "plain"
    with pytest.raises(ConfigError, match="mix_ffn"):
        VideoPredictor(over_time, device="cpu", streaming="causal")


def test_causal_cameras_and_the_window_at_run_time(tmp_path, monkeypatch):
    """Cameras of one batch equal their clips' banded forwards; a smaller window is a narrower band."""
    path = make_checkpoint(tmp_path / "causal.safetensors", attention="causal", depths=ONE_LAYER)
    segmenter = VideoPredictor(path, device="cpu", window=3)
    seen = record_logits(segmenter, monkeypatch)
    rng = np.random.default_rng(2)
    clips = rng.integers(0, 256, (2, 9, 32, 64, 3), dtype=np.uint8)
    video = torch.from_numpy(clips).permute(0, 1, 4, 2, 3) / 255
    config = load_checkpoint(path).model.config
    reference = VTSeg(VTSegConfig(**{**config.to_dict(), "window": 3})).eval()
    reference.load_state_dict(load_checkpoint(path).model.state_dict())
    with torch.inference_mode():
        expected = reference(video)
    for t in range(9):
        segmenter.step_many(
            [CameraFrame(name, clips[camera, t], (t + 1) * TICK) for camera, name in enumerate("ab")]
        )
        assert (seen[-1] - expected[:, t]).abs().max() < 2e-4, t


def test_growing_and_shrinking_the_window(tmp_path):
    path = make_checkpoint(tmp_path / "c.safetensors", attention="causal", depths=ONE_LAYER)
    segmenter = VideoPredictor(path, device="cpu")
    image = np.zeros((32, 64, 3), np.uint8)

    def frames(count):
        return [segmenter.step(image).frames_in_window for _ in range(count)]

    assert frames(5) == [1, 2, 3, 4, 4]
    segmenter.window = 2
    assert frames(2) == [2, 2]
    segmenter.window = 6
    assert frames(5) == [2, 3, 4, 5, 6]  # one older frame was left
