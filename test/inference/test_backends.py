# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The protocol of backends: state per camera, failing batches, changing windows, and a custom backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vtseg_ros.errors import ConfigError
from vtseg_ros.inference import CameraFrame, VideoPredictor
from vtseg_ros.inference import backends as registered
from vtseg_ros.inference.backends import Backend, BackendOptions, backend_of, open_backend
from vtseg_ros.inference.backends.onnx_backend import provider_options
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model.checkpoint import Checkpoint


class Brightness(Backend):
    """Segments by the mean of its window's brightness: class 1 above one half. A frame leaves a float behind."""

    @classmethod
    def open(cls, source, options):
        labels = LabelSet.from_names(["dark", "bright"])
        checkpoint = Checkpoint(
            None, "brightness", {"num_classes": 2, "window": 3}, labels, (64, 32), path=source
        )
        return cls(
            checkpoint=checkpoint,
            device=torch.device("cpu"),
            precision="fp32",
            input_size=(64, 32),
            streaming="exact",
            video=True,
            longest_window=4,
        )

    @property
    def mode(self):
        return "brightness"

    def run(self, images, past):
        new = [float(image.mean()) for image in images]
        means = [np.mean([*older, value]) for older, value in zip(past, new, strict=True)]
        bright = torch.tensor(means)[:, None, None, None].expand(-1, 1, 32, 64)
        return torch.cat([torch.full_like(bright, 0.5), bright], dim=1), new


@pytest.fixture
def predictor(monkeypatch, tmp_path):
    monkeypatch.setitem(registered.BY_SUFFIX, ".bright", {"bright": Brightness})
    return VideoPredictor(tmp_path / "network.bright")


def image(value):
    return np.full((32, 64, 3), value, np.uint8)


def test_the_suffix_chooses_the_backend(predictor, tiny_checkpoint):
    assert type(predictor.backend) is Brightness and predictor.run_mode == "brightness"
    assert predictor.window == 3 and predictor.labels.names == ("dark", "bright")
    assert backend_of(tiny_checkpoint).__name__ == "TorchBackend"
    assert backend_of("network.ONNX").__name__ == "OnnxBackend"
    assert backend_of("network.onnx", "openvino").__name__ == "OpenVinoExport"
    with pytest.raises(ConfigError, match="backend torch: expected a checkpoint, got the exported file"):
        backend_of("network.onnx", "torch")


def test_windows_of_cameras_by_hand(predictor):
    """Camera a: 0, 0, 1, 1, 1; its window of three is bright from the fourth frame on. Camera b is always bright."""
    masks = []
    for value in (0, 0, 255, 255, 255):
        frames = [CameraFrame("a", image(value)), CameraFrame("b", image(255))]
        masks.append([int(result.mask[0, 0]) for result in predictor.step_many(frames)])
    assert masks == [[0, 1], [0, 1], [0, 1], [1, 1], [1, 1]]


def test_a_smaller_window_keeps_the_newest_frames(predictor):
    for value in (0, 0, 255):
        predictor.step(image(value))
    predictor.window = 2
    assert predictor.backend.older_frames("") == 1
    assert predictor.step(image(255)).mask[0, 0] == 1  # 255, 255
    predictor.window = None
    assert predictor.window == 3 and predictor.step(image(0)).frames_in_window == 2
    for frames, words in ((0, "expected 1 to 64 frames"), (5, "at most 4 frames")):
        with pytest.raises(ConfigError, match=words):
            predictor.window = frames
    assert predictor.window == 3


def test_frames_join_the_window_when_they_are_committed(predictor):
    backend, images = predictor.backend, torch.ones(1, 3, 32, 64)
    for _ in range(2):
        backend.infer(images, ["a"])
        assert backend.older_frames("a") == 0
    backend.commit(["a"])
    assert backend.older_frames("a") == 1
    backend.reset("a")
    assert backend.older_frames("a") == 0


@pytest.mark.parametrize("streaming", ["plain", "exact"])
def test_torch_and_a_window_that_changes(tiny_checkpoint, streaming):
    """A window that was cut to two frames gives what a window of two frames gives."""
    options = BackendOptions(device="cpu", streaming=streaming)
    changed, short = (open_backend(tiny_checkpoint, options) for _ in range(2))
    short.set_window(2)
    clip = torch.rand(5, 1, 3, 32, 64)
    with torch.inference_mode():
        for index, frame in enumerate(clip):
            if index == 3:
                changed.set_window(2)
            logits = [backend.infer(frame, ["x"]).clone() for backend in (changed, short)]
            for backend in (changed, short):
                backend.commit(["x"])
    assert torch.allclose(*logits, atol=1e-5)
    assert changed.one_frame()()[0].shape == logits[0].shape


def test_options_of_tensorrt(tmp_path):
    """The options that ONNX Runtime documents for its TensorRT provider; it takes all values as text."""
    everything = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    found = provider_options(everything, "cuda", 1, fp16=True, cache=tmp_path)
    assert [name for name, _ in found] == everything
    assert found[0][1] == {
        "device_id": "1",
        "trt_fp16_enable": "True",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(tmp_path),
    }
    assert found[1:] == [("CUDAExecutionProvider", {"device_id": "1"}), ("CPUExecutionProvider", {})]
    full = provider_options(everything, "cuda", 0, fp16=False, cache=tmp_path)
    assert full[0][1]["trt_fp16_enable"] == "False"
    assert provider_options(everything, "cpu", 0, fp16=False, cache=tmp_path) == found[2:]
    assert provider_options(everything[1:], "cuda", 1, fp16=False, cache=tmp_path) == found[1:]
