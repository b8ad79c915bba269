# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO runs checkpoints as PyTorch does; its cache of compiled models is never trusted blindly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_checkpoint

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.image_messages import decode_any
from vtseg_ros.bags.topics import find_image_topic
from vtseg_ros.cli import main
from vtseg_ros.errors import ConfigError, DeviceError
from vtseg_ros.inference import CameraFrame, VideoPredictor
from vtseg_ros.inference.backends.openvino_runtime import MaskModel, import_openvino
from vtseg_ros.inference.devices import has_native_bf16
from vtseg_ros.inference.postprocess import MaskOptions, to_mask
from vtseg_ros.label_set import STREET
from vtseg_ros.model import save_checkpoint
from vtseg_ros.model.registry import architectures

openvino = import_openvino()
TICK = 100_000_000


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """One cache for the file, so that a network is converted once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VTSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VTSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


@pytest.fixture(scope="module")
def shallow_checkpoint(tmp_path_factory):
    """One block per stage: converting a network takes most of the time here."""
    path = tmp_path_factory.mktemp("weights") / "shallow.safetensors"
    return make_checkpoint(path, depths=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def causal_checkpoint(tmp_path_factory):
    return make_checkpoint(
        tmp_path_factory.mktemp("weights") / "causal.safetensors", attention="causal", depths=(1, 1, 1, 1)
    )


def image_network(path, name, seed=2):
    torch.manual_seed(seed)
    model = architectures()[name].build(num_classes=len(STREET)).eval()
    save_checkpoint(path, model, labels=STREET, input_size=(64, 32))
    return path


def images(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (32, 64, 3), dtype=np.uint8) for _ in range(count)]


def agree(checkpoint, count: int = 7, **options) -> VideoPredictor:
    """Both backends over a sequence longer than the window: the same masks, confidences within rounding."""
    both = [
        VideoPredictor(checkpoint, device="cpu", backend=name, **options) for name in ("openvino", "torch")
    ]
    for number, image in enumerate(images(count)):
        found, expected = (predictor.step(image, (number + 1) * TICK) for predictor in both)
        assert found.frames_in_window == expected.frames_in_window
        assert (found.mask == expected.mask).mean() > 0.999
        assert np.abs(found.confidence.astype(int) - expected.confidence).max() <= 2
    assert both[0].run_mode == "openvino"
    return both[0]


def test_exact_streaming_equals_pytorch(shallow_checkpoint):
    predictor = agree(shallow_checkpoint)
    assert predictor.streaming == "exact" and predictor.window == 4


def test_causal_streaming_equals_pytorch(causal_checkpoint):
    assert agree(causal_checkpoint).streaming == "causal"


@pytest.mark.parametrize("window", [pytest.param(1, marks=pytest.mark.long), 2])
def test_other_windows(shallow_checkpoint, window):
    assert agree(shallow_checkpoint, window=window).window == window


@pytest.mark.long  # two more conversions
def test_plain_streaming_and_another_size(shallow_checkpoint):
    agree(shallow_checkpoint, streaming="plain", count=5)
    agree(shallow_checkpoint, input_size=(96, 64), count=5)


@pytest.mark.parametrize("name", ["erfnet", "efficientvit_b0"])
def test_networks_of_single_images(tmp_path, name):
    agree(image_network(tmp_path / "image.safetensors", name), count=2)


def test_several_cameras_and_a_window_changed_at_run_time(shallow_checkpoint):
    together = VideoPredictor(shallow_checkpoint, device="cpu", backend="openvino")
    alone = [VideoPredictor(shallow_checkpoint, device="cpu", backend="openvino") for _ in range(2)]
    for number in range(6):
        if number == 4:
            for predictor in (together, *alone):
                predictor.window = 2
        pair = [images(6, seed)[number] for seed in (1, 2)]
        batch = [CameraFrame(name, image, (number + 1) * TICK) for name, image in zip("ab", pair)]
        for result, predictor, image in zip(together.step_many(batch), alone, pair):
            expected = predictor.step(image, (number + 1) * TICK)
            np.testing.assert_array_equal(result.mask, expected.mask)
            assert result.frames_in_window == expected.frames_in_window


def test_compiled_models_are_kept_and_damaged_ones_made_again(tmp_path, own_cache, caplog):
    network = image_network(tmp_path / "image.safetensors", "erfnet")

    def mask():
        return VideoPredictor(network, device="cpu", backend="openvino").step(images(1)[0]).mask

    first = mask()
    (file,) = own_cache.glob("*.blob")
    before = file.stat().st_mtime_ns
    np.testing.assert_array_equal(mask(), first)
    assert file.stat().st_mtime_ns == before
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), b"", content[:100]):
        file.write_bytes(damaged)
        np.testing.assert_array_equal(mask(), first)
        assert "checksum" in caplog.text and file.read_bytes() != damaged
        caplog.clear()


def test_auto_is_openvino_on_the_cpu_where_it_converts(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("VTSEG_BACKEND")
    network = image_network(tmp_path / "image.safetensors", "erfnet")
    assert VideoPredictor(network, device="cpu").run_mode == "openvino"
    monkeypatch.setenv("VTSEG_BACKEND", "torch")
    assert VideoPredictor(network, device="cpu").run_mode == "eager"
    monkeypatch.setenv("VTSEG_BACKEND", "tensorflow")
    with pytest.raises(ConfigError, match="expected one of auto, torch"):
        VideoPredictor(network, device="cpu")


def test_auto_falls_back_to_pytorch_and_gives_the_reason_once(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("VTSEG_BACKEND")
    network = image_network(tmp_path / "image.safetensors", "erfnet")

    def refuse(*_, **__):
        raise RuntimeError("no conversion rule for aten::unheard_of")

    monkeypatch.setenv("VTSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(openvino, "convert_model", refuse)
    with caplog.at_level("INFO", logger="vtseg_ros.inference"):
        for _ in range(2):
            assert VideoPredictor(network, device="cpu").run_mode == "eager"
        assert VideoPredictor(network, device="cpu", precision="bf16").precision == "bf16"
    assert caplog.text.count("no conversion rule for aten::unheard_of") == 1


def bag_frames(path, count: int) -> list[np.ndarray]:
    with BagReader(path) as bag:
        messages = bag.messages([find_image_topic(bag)])
        return [decode_any(message) for (_, _, message), _ in zip(messages, range(count))]


def agreement(weights: str, frames: list[np.ndarray], precision: str) -> float:
    """Share of pixels with the class that PyTorch finds in fp32."""
    found = VideoPredictor(weights, device="cpu", backend="openvino", precision=precision)
    full = VideoPredictor(weights, device="cpu", backend="torch", precision="fp32")
    return float(np.mean([(found.step(frame).mask == full.step(frame).mask).mean() for frame in frames]))


PRECISIONS = {"fp32": 0.999, "bf16": 0.995} if has_native_bf16() else {"fp32": 0.999}


@pytest.mark.long
@pytest.mark.parametrize("precision", PRECISIONS)
def test_agreement_on_the_street(tmp_path, precision):
    size = ["--scene", "5", "--frames", "100", "--size", "320x96", "--no-depth", "--no-flow"]
    assert main(["synth", "--out", str(tmp_path / "street"), *size]) == 0
    frames = bag_frames(tmp_path / "street", 100)
    assert agreement("street_tiny", frames, precision) >= PRECISIONS[precision]


@pytest.mark.long
@pytest.mark.parametrize("precision", PRECISIONS)
def test_agreement_on_camvid(camvid, precision):
    frames = bag_frames(camvid / "camvid_val", 100)
    assert agreement("drive_static", frames, precision) >= PRECISIONS[precision]


def test_a_file_of_another_network_is_not_taken(tmp_path, own_cache, caplog):
    first, second = (image_network(tmp_path / f"{seed}.safetensors", "erfnet", seed) for seed in (1, 2))
    blobs, masks = [], []
    for network in (first, second):
        masks.append(VideoPredictor(network, device="cpu", backend="openvino").step(images(1)[0]).mask)
        (new,) = set(own_cache.glob("*.blob")) - set(blobs)
        blobs.append(new)
    blobs[1].write_bytes(blobs[0].read_bytes())
    again = VideoPredictor(second, device="cpu", backend="openvino").step(images(1)[0]).mask
    np.testing.assert_array_equal(again, masks[1])
    assert (masks[0] != masks[1]).any() and "checksum" in caplog.text
    assert blobs[1].read_bytes() != blobs[0].read_bytes()


def test_processes_that_start_at_once_convert_once(start_process, tmp_path, own_cache):
    network = image_network(tmp_path / "image.safetensors", "erfnet")
    code = (
        "import logging, sys, zlib\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stderr)\n"
        "import numpy as np\n"
        "from vtseg_ros.inference import VideoPredictor\n"
        "image = np.arange(32 * 64 * 3, dtype=np.uint32).reshape(32, 64, 3).astype(np.uint8)\n"
        "predictor = VideoPredictor(sys.argv[1], device='cpu', backend='openvino')\n"
        "print(zlib.crc32(predictor.step(image).mask))\n"
    )
    command = [sys.executable, "-c", code, str(network)]
    running = [start_process(command) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0], [process.output() for process in running]
    outputs = [process.output() for process in running]
    masks = [line for output in outputs for line in output.splitlines() if line.isdigit()]
    assert len(masks) == 3 and len(set(masks)) == 1, outputs
    assert sum(output.count("converting the network for OpenVINO") for output in outputs) == 1
    assert len(list(own_cache.glob("*.blob"))) == 1


@pytest.mark.parametrize("size", [(64, 32), (150, 90), (40, 20)])
@pytest.mark.parametrize("min_confidence", [0.0, 0.6])
def test_masks_of_logits_equal_pytorch(size, min_confidence):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(1, 7, 32, 64, generator=generator) * 2
    expected, sure = to_mask(logits, MaskOptions(size, min_confidence=min_confidence))
    model = MaskModel(tuple(logits.shape), size, {"INFERENCE_PRECISION_HINT": "f32"})
    mask, confidence = model(logits.numpy(), min_confidence)
    assert mask.shape == (size[1], size[0]) and mask.dtype == confidence.dtype == np.uint8
    assert (mask == expected).mean() > 0.9995  # the threshold and the interpolation meet rounding
    assert np.abs(confidence.astype(int) - sure).max() <= 1


@pytest.mark.parametrize("backend", ["openvino", "torch"])
@pytest.mark.parametrize("options", [{}, {"min_confidence": 0.6}, {"resize_mode": "letterbox"}])
def test_masks_without_confidence_are_the_same(tmp_path, backend, options):
    network = image_network(tmp_path / "image.safetensors", "erfnet")
    predictor = VideoPredictor(network, device="cpu", backend=backend, **options)
    image = images(1)[0][:, :50]
    with_it, without = (predictor.step(image, with_confidence=wanted) for wanted in (True, False))
    assert with_it.confidence.shape == with_it.mask.shape == image.shape[:2] and without.confidence.size == 0
    np.testing.assert_array_equal(with_it.mask, without.mask)


def test_of_equal_logits_the_first_class_wins():
    """Few different values, so that most pixels have several best classes."""
    logits = torch.randint(0, 3, (1, 9, 32, 64), generator=torch.Generator().manual_seed(1)).float()
    mask, _ = MaskModel(tuple(logits.shape), (64, 32), {"INFERENCE_PRECISION_HINT": "f32"})(
        logits.numpy(), 0.0
    )
    np.testing.assert_array_equal(mask, logits[0].numpy().argmax(axis=0))


@pytest.mark.parametrize("upsampling", ["bilinear", "bicubic", "nearest"])
def test_every_upsampling(tmp_path, upsampling):
    network = image_network(tmp_path / "image.safetensors", "erfnet")
    agree(network, count=1, upsampling=upsampling, output_size=(100, 70))


def test_threads_are_checked_and_used(tmp_path):
    network = image_network(tmp_path / "image.safetensors", "erfnet")
    with pytest.raises(ConfigError, match="threads: expected at least 1, got 0"):
        VideoPredictor(network, device="cpu", backend="openvino", threads=0)
    VideoPredictor(network, device="cpu", backend="openvino", threads=1, pin_threads=True).step(images(1)[0])


def test_other_weights_and_sizes_have_files_of_their_own(tmp_path, own_cache):
    for seed, size in ((1, None), (2, None), (2, (96, 32))):
        network = image_network(tmp_path / f"{seed}.safetensors", "erfnet", seed)
        VideoPredictor(network, device="cpu", backend="openvino", input_size=size)
    assert len(list(own_cache.glob("*.blob"))) == 3 and not list(own_cache.glob(".*"))


def test_networks_that_were_not_used_for_long_leave_the_cache(tmp_path, own_cache, monkeypatch):
    monkeypatch.setattr("vtseg_ros.inference.backends.openvino_runtime.MAX_FILES", 2)
    network = image_network(tmp_path / "image.safetensors", "erfnet")

    def used(size) -> Path:
        before = set(own_cache.glob("*.blob"))
        VideoPredictor(network, device="cpu", backend="openvino", input_size=size)
        return next(iter(set(own_cache.glob("*.blob")) - before), None)

    first, second = used((64, 32)), used((96, 32))
    assert used((64, 32)) is None  # found, and now used later than the second
    third = used((32, 32))
    assert set(own_cache.glob("*.blob")) == {first, third} and second not in (first, third)


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VTSEG_CACHE", str(tmp_path / "file"))
    network = image_network(tmp_path / "image.safetensors", "erfnet")
    VideoPredictor(network, device="cpu", backend="openvino").step(images(1)[0])
    assert "was not stored" in caplog.text


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"backend": "openvino", "device": "cuda"}, DeviceError, "expected device cpu, got cuda"),
        ({"backend": "openvino", "precision": "fp16"}, DeviceError, "expected auto, fp32, bf16, got fp16"),
        ({"backend": "onnx"}, ConfigError, "backend onnx: expected an .onnx file"),
        ({"backend": "tensorflow"}, ConfigError, "expected one of auto, torch, openvino, onnx"),
    ],
)
def test_what_it_does_not_run_is_refused(tiny_checkpoint, options, error, words):
    with pytest.raises(error, match=words):
        VideoPredictor(tiny_checkpoint, **options)


def test_nothing_is_forked_to_send_usage_data():
    code = (
        "import multiprocessing, sys, torch\n"
        "multiprocessing.Process.start = lambda self: print('forked')\n"
        "from vtseg_ros.inference.backends.openvino_runtime import import_openvino\n"
        "import_openvino().convert_model(torch.nn.ReLU(), example_input=torch.zeros(1))\n"
        "print('openvino_telemetry' in sys.modules)\n"
    )
    variables = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables)
    assert done.returncode == 0 and done.stdout == "False\n", done.stdout + done.stderr


def test_a_missing_package_is_named():
    code = (
        "import sys; sys.modules['openvino'] = None\n"
        "from vtseg_ros.cli import main\n"
        "sys.exit(main(['segment', sys.argv[1], '--out', sys.argv[2], '--backend', 'openvino']))"
    )
    done = subprocess.run([sys.executable, "-c", code, __file__, "out"], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'vtseg_ros[openvino]'" in done.stderr
