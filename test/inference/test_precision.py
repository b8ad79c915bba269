# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Reduced precision and what falls back: masks agree with fp32 on real frames, failures leave the eager path."""

from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest
import torch
from conftest import make_checkpoint
from safetensors.torch import load_file

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.bags.topics import find_image_topic
from vtseg_ros.cli import main
from vtseg_ros.errors import CheckpointError
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.inference.devices import choose_precision
from vtseg_ros.inference.optimise import optimise
from vtseg_ros.inference.precision import with_agreement
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model import EfficientViTB0, ERFNet, SegFormer, VTSeg, VTSegConfig
from vtseg_ros.model.checkpoint import (
    WEIGHTS_DIR,
    Checkpoint,
    load_checkpoint,
    load_external_prior,
    read_agreement,
    read_metadata,
    save_again,
)
from vtseg_ros.model.normalization import Cast
from vtseg_ros.model.registry import without_upsampling
from vtseg_ros.model.vtseg import StaticBranch

TICK = 66_000_000


def frames_of(path, count):
    with BagReader(path) as bag:
        messages = bag.messages([find_image_topic(bag)])
        return [decode_any(message) for (_, _, message), _ in zip(messages, range(count))]


def agreement(weights, images, streaming="auto", device="cpu", precision="bf16"):
    """Share of pixels with the same class in reduced precision as in fp32 on the CPU."""
    reduced = VideoPredictor(
        weights, device=device, precision=precision, streaming=streaming, output_size="network"
    )
    full = VideoPredictor(weights, device="cpu", precision="fp32", streaming=streaming, output_size="network")
    shares = [
        (reduced.step(image, (i + 1) * TICK).mask == full.step(image, (i + 1) * TICK).mask).mean()
        for i, image in enumerate(images)
    ]
    return float(np.mean(shares))


@pytest.mark.parametrize(
    ("name", "agreement", "native", "expected", "words"),
    [
        ("auto", {"bf16": 0.995}, True, torch.bfloat16, "precision bf16: it has the same class"),
        ("auto", {"bf16": 0.9949}, True, torch.float32, "99.49 % of pixels, less than 99.5 %"),
        ("auto", {}, True, torch.float32, "does not contain"),
        ("auto", {"bf16": 1.0}, False, torch.float32, ""),
        ("fp32", {"bf16": 1.0}, True, torch.float32, ""),
        ("bf16", {"bf16": 0.5}, False, torch.bfloat16, ""),
    ],
)
def test_auto_is_bf16_only_where_it_is_native_and_agrees(name, agreement, native, expected, words, caplog):
    with caplog.at_level("INFO", logger="vtseg_ros.inference"):
        found = choose_precision(name, torch.device("cpu"), agreement, native_bf16=native)
    assert found == expected
    assert words in caplog.text and bool(caplog.text) == bool(words)


def test_the_agreement_is_measured_and_stored(tiny_checkpoint, tmp_path, rng):
    images = list(rng.integers(0, 256, (3, 32, 64, 3), dtype=np.uint8))
    checkpoint = load_checkpoint(tiny_checkpoint)
    assert checkpoint.agreement == {}
    measured = with_agreement(checkpoint, images)
    share = measured.agreement["bf16"]
    assert share == pytest.approx(agreement(checkpoint, images), abs=1e-6) and 0.5 < share <= 1
    save_again(tmp_path / "again.safetensors", measured)
    again = load_checkpoint(tmp_path / "again.safetensors")
    assert again.agreement == {"bf16": share} and again.labels == checkpoint.labels
    assert (again.input_size, again.config) == (checkpoint.input_size, checkpoint.config)
    for key, value in checkpoint.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key


def test_a_command_stores_the_agreement_and_keeps_the_weights(tiny_checkpoint, tmp_path, rng, capsys):
    frames, path = tmp_path / "frames", tmp_path / "network.safetensors"
    frames.mkdir()
    images = list(rng.integers(0, 256, (4, 32, 64, 3), dtype=np.uint8))
    for number, image in enumerate(images):
        cv2.imwrite(str(frames / f"{number}.png"), image[..., ::-1])
    save_again(path, load_checkpoint(tiny_checkpoint), half=True)
    before, header = load_file(path), read_metadata(path)
    assert main(["weights", "agreement", str(path), str(frames), "--frames", "3"]) == 0
    after, share = load_file(path), load_checkpoint(path).agreement["bf16"]
    assert share == pytest.approx(agreement(load_checkpoint(path), images[:3]), abs=1e-6)
    assert f"{100 * share:.2f} % of the pixels of 3 frames" in capsys.readouterr().out
    assert before.keys() == after.keys()
    assert all(value.dtype == after[key].dtype and value.equal(after[key]) for key, value in before.items())
    changed = {key for key, value in read_metadata(path).items() if header[key] != value}
    assert changed == {"agreement", "sha256"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["network.onnx", "."], "vtseg export --bag"),
        (["street_tiny", ".", "--frames", "0"], "--frames: out of range; expected at least 1, got 0"),
        (["street_tiny", "nowhere"], "no such file or folder"),
    ],
)
def test_an_agreement_that_cannot_be_measured(arguments, words, capsys):
    assert main(["weights", "agreement", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("claimed", ["0.9", [1], {"bf16": "1"}, {"bf16": 1.01}, {"bf16": -1}])
def test_a_claimed_agreement_that_is_none_is_refused(claimed):
    with pytest.raises(CheckpointError, match="agreement: expected shares of pixels"):
        read_agreement({"agreement": claimed})


def shipped(name):
    if not (WEIGHTS_DIR / f"{name}.safetensors").is_file():
        pytest.skip(f"no weights {name}")
    return name


@pytest.mark.parametrize(
    ("streaming", "count"),
    [
        (
            "exact",
            5,
        ),  # a full window and one more frame; bf16 is emulated, and slow, on processors without it
        pytest.param("exact", 12, marks=pytest.mark.long),
        pytest.param("plain", 12, marks=pytest.mark.long),
    ],
)
def test_bf16_masks_of_the_street(tmp_path, streaming, count):
    """Frames of the size that the weights were trained on: stretched ones lie outside what they know."""
    arguments = [
        "--scene",
        "5",
        "--frames",
        str(count),
        "--size",
        "320x96",
        "--seed",
        "3",
        "--no-depth",
        "--no-flow",
    ]
    assert main(["synth", "--out", str(tmp_path / "street"), *arguments]) == 0
    assert agreement(shipped("street_tiny"), frames_of(tmp_path / "street", count), streaming) >= 0.995


@pytest.mark.long
def test_bf16_masks_of_camvid(camvid):
    assert agreement(shipped("drive_static"), frames_of(camvid / "camvid_val", 12)) >= 0.995


@pytest.mark.parametrize("streaming", ["exact", "causal", "plain"])
def test_every_mode_runs_in_bf16(tmp_path, streaming):
    """Random weights: their logits are nearly flat, so the confidences are compared, not the classes."""
    attention = "causal" if streaming == "causal" else "full"
    path = make_checkpoint(tmp_path / "c.safetensors", attention=attention)
    reduced, full = (
        VideoPredictor(path, device="cpu", precision=p, streaming=streaming, output_size="network")
        for p in ("bf16", "fp32")
    )
    assert reduced.precision == "bf16"
    for image in np.random.default_rng(0).integers(0, 256, (6, 32, 64, 3), dtype=np.uint8):
        one, other = reduced.step(image), full.step(image)
        assert np.abs(one.confidence.astype(int) - other.confidence).mean() < 8


def image_networks(folder):
    """Checkpoints of networks that see single images, the static branches of VTSegs among them."""
    torch.manual_seed(5)
    labels = LabelSet.from_names(list("abcdef"))
    flat = torch.jit.trace(torch.nn.Conv2d(3, 6, 3, padding=1).eval(), torch.zeros(1, 3, 32, 64))
    flat.save(str(folder / "flat.pt"))
    external = VTSegConfig.preset("tiny", num_classes=6, static_prior="external")
    prior = load_external_prior(str(folder / "flat.pt"), num_classes=6, size=(32, 64))
    networks = {
        "erfnet": ERFNet(num_classes=6),
        "segformer": SegFormer(num_classes=6),
        "efficientvit": EfficientViTB0(num_classes=6),
        "branch": StaticBranch(VTSeg(VTSegConfig.preset("tiny", num_classes=6))),
        "external branch": StaticBranch(VTSeg(external, static_prior=prior)),
    }
    return {
        name: Checkpoint(network.eval(), name, {"num_classes": 6}, labels, (64, 32))
        for name, network in networks.items()
    }


@pytest.mark.parametrize("name", ["erfnet", "segformer", "efficientvit", "branch", "external branch"])
def test_networks_of_single_images_run_in_bf16(name, tmp_path):
    checkpoint = image_networks(tmp_path)[name]
    reduced, full = (
        VideoPredictor(checkpoint, device="cpu", precision=precision, output_size="network")
        for precision in ("bf16", "fp32")
    )
    image = torch.rand(1, 3, 32, 64)
    with torch.inference_mode():
        expected = without_upsampling(checkpoint.network)(image)
        torch.testing.assert_close(full.backend.model(image), expected, rtol=1e-3, atol=1e-3)
        logits = reduced.backend.model(image)
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    for image in np.random.default_rng(0).integers(0, 256, (3, 32, 64, 3), dtype=np.uint8):
        one, other = reduced.step(image), full.step(image)
        assert np.abs(one.confidence.astype(int) - other.confidence).mean() < 8


def test_normalisation_and_foreign_priors_stay_fp32():
    class Flat(torch.nn.Module):
        def forward(self, image):
            assert image.dtype == torch.float32
            return image.repeat(1, 2, 1, 1)

    model = VTSeg(VTSegConfig.preset("tiny", num_classes=6, static_prior="external"), static_prior=Flat())
    model.set_normalization("encoder", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    ready = optimise(model, torch.device("cpu"), torch.bfloat16)
    assert isinstance(ready.static_prior, Cast) and ready.encoder_mean.dtype == torch.float32
    image = torch.rand(1, 3, 32, 64)
    with torch.inference_mode():
        assert ready.static_logits(image).dtype == ready.normalize("encoder", image).dtype == torch.bfloat16
        assert torch.equal(ready.normalize("encoder", image), model.normalize("encoder", image).bfloat16())
        assert ready(image[None]).dtype == torch.float32  # logits are not rounded
    assert model.head.classify.weight.dtype == torch.float32  # the network given is untouched


def test_without_a_compiler_the_step_runs_eagerly(tiny_checkpoint, monkeypatch, caplog):
    def no_compiler(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda step, **options: no_compiler)
    segmenter = VideoPredictor(tiny_checkpoint, device="cpu", compile=True)
    assert segmenter.run_mode == "compile"
    with caplog.at_level(logging.WARNING, logger="vtseg_ros.inference"):
        seen = [segmenter.step(np.zeros((32, 64, 3), np.uint8)).frames_in_window for _ in range(6)]
    assert seen == [1, 2, 3, 4, 4, 4] and segmenter.run_mode == "eager"
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile is not used: RuntimeError: no C++ compiler"
    ]
