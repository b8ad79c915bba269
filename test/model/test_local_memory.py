# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A network of single frames with memory: windows, streaming, checkpoints and runtimes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vtseg_ros.errors import CheckpointError, ConfigError
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model import VTSegConfig, load_checkpoint, save_checkpoint
from vtseg_ros.model.cache import ExactCache, FrameCache
from vtseg_ros.model.local_memory import LocalMemory, LocalMemoryConfig, gate_loss
from vtseg_ros.model.memory_attention import MemoryConfig
from vtseg_ros.model.normalization import Cast

CLASSES = 4
SIZE = (64, 96)
LABELS = LabelSet.from_names([f"class_{number}" for number in range(CLASSES)])
TINY_VTSEG = VTSegConfig.preset("tiny", num_classes=CLASSES, depths=(1, 1, 1, 1))


def network(prior: str = "efficientvit_b0", window: int = 3, stride: int = 8) -> LocalMemory:
    """Random weights with a half-open gate, so that older frames count."""
    torch.manual_seed(3)
    prior_config = TINY_VTSEG.to_dict() if prior == "vtseg" else {}
    config = LocalMemoryConfig(
        num_classes=CLASSES,
        window=window,
        static_prior=prior,
        static_prior_config=prior_config,
        memory=MemoryConfig(stride=stride, radius=2, width=8, caution=0),
    )
    model = LocalMemory(config).eval()
    with torch.no_grad():
        model.memory.gate.bias.zero_()
    return model


def clip(frames: int) -> torch.Tensor:
    torch.manual_seed(5)
    return torch.rand(1, frames, 3, *SIZE)


@pytest.mark.parametrize("prior", ["efficientvit_b0", "erfnet", "vtseg"])
@pytest.mark.parametrize("stride", [4, 8])
@torch.no_grad()
def test_streaming_equals_the_window(prior, stride):
    model, video = network(prior, stride=stride), clip(4)
    past: dict[str, torch.Tensor] = {}
    for t in range(4):
        cache = ExactCache(past)
        newest = model(video[:, t : t + 1], cache)[:, -1]
        whole = model(video[:, max(0, t - 2) : t + 1])[:, -1]
        torch.testing.assert_close(newest, whole, atol=1e-4, rtol=0)
        past = {
            name: (torch.cat([past[name], new], 1) if past else new)[:, -2:]
            for name, new in cache.new.items()
        }


@pytest.mark.parametrize("prior", ["efficientvit_b0", "vtseg"])
@torch.no_grad()
def test_one_frame_gives_the_static_logits_and_older_ones_change_them(prior):
    model, video = network(prior), clip(2)
    both, static = model(video, with_static=True)
    torch.testing.assert_close(both[:, 0], static[:, 0])
    torch.testing.assert_close(static[:, 1], model.static_logits(video[:, 1]))
    assert (both[:, 1] - static[:, 1]).abs().max() > 0.005 * static.abs().max()
    valid = torch.tensor([False, True])
    torch.testing.assert_close(model(video, FrameCache(valid=valid))[:, 1], static[:, 1])


def test_the_gate_loss_by_hand():
    """Three frames of two cells; the left one is corrupted in the newest frame, the right one in all."""
    gates = torch.tensor([[[[0.5, 1.0]], [[-2.0, 3.0]]]])  # of frames 1 and 2
    difference = torch.zeros(1, 3, 8, 16)
    difference[:, 2, :, :8] = 0.5
    difference[:, :, :, 8:] = 0.03
    difference[:, 1, 0, 0] = 0.9  # less than the threshold on the mean of its cell
    clean = np.log1p(np.exp(0.5))  # the cross-entropy of the gate 0.5 where it must be closed
    corrupted = np.log1p(np.exp(2.0))  # of the gate -2 where it must be open
    assert gate_loss(gates, difference).item() == pytest.approx((clean + corrupted) / 2, rel=1e-5)


def test_the_forward_pass_returns_the_gate_loss():
    model, video = network(), clip(3)
    logits, loss = model(video, clean=video)
    torch.testing.assert_close(logits, model(video))
    loss.backward()
    assert model.memory.gate.bias.grad.item() > 0  # without corruption every gate must close


@torch.no_grad()
def test_a_static_network_without_upsampling_gives_the_same_logits():
    model, video = network(), clip(3)
    coarse = model.without_upsampling()(video)
    assert coarse.shape == (1, 3, CLASSES, SIZE[0] // 8, SIZE[1] // 8)
    upsampled = torch.nn.functional.interpolate(coarse[0], size=SIZE, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsampled, model(video)[0])


@pytest.mark.parametrize("prior", ["efficientvit_b0", "vtseg"])
def test_a_checkpoint_contains_everything(prior, tmp_path):
    model = network(prior)
    path = tmp_path / "memory.safetensors"
    save_checkpoint(path, model, labels=LABELS, input_size=(96, 64))
    loaded = load_checkpoint(path)
    assert loaded.architecture == "local_memory" and loaded.config["static_prior"] == prior
    with torch.no_grad():
        assert torch.equal(loaded.network(clip(3)), model(clip(3)))


def test_claims_about_the_static_network_are_checked(tmp_path):
    model = network("vtseg")
    values = model.config_values()
    values["static_prior_config"]["depths"] = [1000, 1, 1, 1]
    model.config_values = lambda: values
    path = tmp_path / "claims.safetensors"
    save_checkpoint(path, model, labels=LABELS, input_size=(96, 64))
    with pytest.raises(CheckpointError, match="depths"):
        load_checkpoint(path)


@pytest.mark.parametrize("prior", ["efficientvit_b0", "erfnet", "vtseg"])
@pytest.mark.parametrize("backend", ["torch", pytest.param("openvino", marks=pytest.mark.slow)])  # compiles
def test_predictors_give_the_masks_of_the_window(prior, backend, tmp_path):
    if backend == "openvino":
        pytest.importorskip("openvino")
    model = network(prior)
    path = tmp_path / "memory.safetensors"
    save_checkpoint(path, model, labels=LABELS, input_size=(96, 64))
    predictor = VideoPredictor(path, device="cpu", backend=backend, precision="fp32")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in range(5)]
    frames = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images])[None] / 255
    for newest, image in enumerate(images):
        with torch.no_grad():
            whole = model(frames[:, max(0, newest - 2) : newest + 1])[0, -1].argmax(0).numpy()
        assert (predictor.step(image).mask == whole).mean() > 0.99


@pytest.mark.slow  # exports
def test_an_onnx_file_gives_the_same_masks(tmp_path):
    pytest.importorskip("onnxruntime")
    from vtseg_ros.cli import main

    path = tmp_path / "memory.safetensors"
    save_checkpoint(path, network(), labels=LABELS, input_size=(96, 64))
    assert main(["export", str(path), "--out", str(tmp_path / "memory.onnx")]) == 0  # compares the two


def test_reduced_precision_keeps_fp32_logits():
    from vtseg_ros.inference.optimise import optimise

    model = network()
    reduced = optimise(model, torch.device("cpu"), torch.bfloat16)
    assert isinstance(reduced.static_prior, Cast) and reduced.memory.age.dtype == torch.bfloat16
    with torch.no_grad():
        logits = reduced(clip(3))
        assert logits.dtype == torch.float32
        assert (logits - model(clip(3))).abs().max() < 0.1 * model(clip(3)).abs().max()


def test_causal_streaming_is_refused():
    with pytest.raises(ConfigError, match="causal"):
        network().check_streaming("causal")


def test_the_static_network_cannot_be_a_memory_itself():
    with pytest.raises(ConfigError, match="static_prior"):
        LocalMemory(LocalMemoryConfig(num_classes=2, static_prior="local_memory"))


@pytest.mark.parametrize("overrides", [{"windw": 3}, {"window": 1}, {"radius": 2.5}])
def test_overrides_without_sense(overrides):
    with pytest.raises(ConfigError, match="overrides"):
        LocalMemory.check_overrides(overrides)
