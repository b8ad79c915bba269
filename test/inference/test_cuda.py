# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The GPU path; skipped where there is none."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from conftest import make_checkpoint

from vtseg_ros.inference import CameraFrame, VideoPredictor
from vtseg_ros.inference.preprocess import to_input
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model import EfficientViTB0, ERFNet, SegFormer
from vtseg_ros.model.checkpoint import Checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
TICK = 66_000_000


def pictures(count, height=32, width=64):
    return np.random.default_rng(4).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("streaming", ["exact", "causal", "plain"])
def test_fp32_equals_the_cpu(tmp_path, streaming):
    """Graphs included: they serve from the fourth frame on; a restart goes back to the shorter windows."""
    path = make_checkpoint(
        tmp_path / "c.safetensors", attention="causal" if streaming == "causal" else "full"
    )
    options = dict(precision="fp32", streaming=streaming, output_size="network")
    gpu, cpu = (VideoPredictor(path, device=device, **options) for device in ("cuda", "cpu"))
    assert "graph" in gpu.run_mode
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        for index, image in enumerate(pictures(14)):
            stamp = (index + (100 if index > 7 else 1)) * TICK
            one, other = gpu.step(image, stamp), cpu.step(image, stamp)
            assert one.frames_in_window == other.frames_in_window
            assert (one.mask == other.mask).mean() > 0.995, index
            assert np.abs(one.confidence.astype(int) - other.confidence).mean() < 1
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
    assert "graph" in gpu.run_mode, "capturing failed: see the log"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("streaming", ["exact", "causal"])
def test_reduced_precision(tmp_path, streaming, precision):
    path = make_checkpoint(
        tmp_path / "c.safetensors", attention="causal" if streaming == "causal" else "full"
    )
    gpu = VideoPredictor(path, device="cuda", precision=precision, output_size="network")
    cpu = VideoPredictor(path, device="cpu", output_size="network")
    for image in pictures(8):
        one, other = gpu.step(image), cpu.step(image)
        assert np.abs(one.confidence.astype(int) - other.confidence).mean() < 8


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("network", [ERFNet, SegFormer, EfficientViTB0])
def test_networks_of_single_images(network, precision):
    torch.manual_seed(2)
    labels = LabelSet.from_names(list("abcde"))
    checkpoint = Checkpoint(network(num_classes=5).eval(), "image", {"num_classes": 5}, labels, (64, 32))
    gpu = VideoPredictor(checkpoint, device="cuda", precision=precision, output_size="network")
    cpu = VideoPredictor(checkpoint, device="cpu", output_size="network")
    for image in pictures(3):
        one, other = gpu.step(image), cpu.step(image)
        assert np.abs(one.confidence.astype(int) - other.confidence).mean() < 8
    assert "graph" in gpu.run_mode, "capturing failed: see the log"


def test_class_mappings_are_captured(tmp_path):
    path = make_checkpoint(
        tmp_path / "c.safetensors", static_prior="erfnet", prior_classes=3, class_mapping=(0, 0, 1)
    )
    gpu = VideoPredictor(path, device="cuda")
    for image in pictures(6):
        gpu.step(image)
    assert "graph" in gpu.run_mode, "capturing failed: see the log"


def test_a_second_network_is_loaded_while_the_first_runs(tmp_path):
    """As when a node's checkpoint changes: captures here, allocations and replays there."""
    path = make_checkpoint(tmp_path / "c.safetensors")
    options = dict(device="cuda", precision="fp32", output_size="network")
    running, alone = VideoPredictor(path, **options), VideoPredictor(path, **options)
    stop, failures = threading.Event(), []

    def load():
        while not stop.is_set():
            try:
                other = VideoPredictor(path, **options)
                for image in pictures(5):
                    other.step(image)
                assert "graph" in other.run_mode, "capturing failed: see the log"
            except Exception as err:
                failures.append(err)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for index, image in enumerate(pictures(200)):
            if index % 20 == 0:
                running.reset(), alone.reset()
                torch.cuda.empty_cache()  # so that it has to ask the driver for memory again
            assert (running.step(image).mask == alone.step(image).mask).mean() > 0.995
    finally:
        stop.set()
        thread.join()
    assert not failures and "graph" in running.run_mode


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_another_gpu_than_the_current_one(tmp_path):
    path = make_checkpoint(tmp_path / "c.safetensors")
    gpu, cpu = (VideoPredictor(path, device=device, precision="fp32") for device in ("cuda:1", "cpu"))
    for image in pictures(8):
        assert (gpu.step(image).mask == cpu.step(image).mask).mean() > 0.99
    assert "graph" in gpu.run_mode and torch.cuda.current_device() == 0


def test_cameras_in_one_graph_equal_their_single_runs(tmp_path):
    path = make_checkpoint(tmp_path / "c.safetensors", attention="causal")
    options = dict(device="cuda", precision="fp32", output_size="network")
    both, alone = VideoPredictor(path, **options), {name: VideoPredictor(path, **options) for name in "ab"}
    for index, image in enumerate(pictures(8)):
        frames = [
            CameraFrame("a", image, (index + 1) * TICK),
            CameraFrame("b", image[::-1], (index + 1) * TICK),
        ]
        for frame, result in zip(frames, both.step_many(frames)):
            expected = alone[frame.camera].step(frame.image, frame.stamp_ns)
            assert (result.mask == expected.mask).mean() > 0.995


def test_memory_is_flat(tmp_path):
    path = make_checkpoint(tmp_path / "c.safetensors", attention="causal")
    segmenter, images = VideoPredictor(path, device="cuda"), pictures(8, 48, 96)
    used = []
    for index in range(10_000):
        segmenter.step(images[index % 8], (index + 1) * TICK)
        if index % 1000 == 99:
            used.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert len(set(used)) == 1


def test_the_gpu_resizes_as_the_cpu_does():
    image = pictures(1, 90, 150)[0]
    gpu, cpu = (to_input(image, (64, 32), torch.device(device)).cpu() for device in ("cuda", "cpu"))
    assert (gpu - cpu).abs().max() <= 1.01 / 255
