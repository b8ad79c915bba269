# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO runs exported and foreign .onnx files as ONNX Runtime does, and stores what it compiled."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import make_checkpoint, wait_until

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.cli import main
from vtseg_ros.errors import CheckpointError, ConfigError, DeviceError
from vtseg_ros.inference import CameraFrame, VideoPredictor
from vtseg_ros.inference.devices import has_native_bf16
from vtseg_ros.label_set import STREET
from vtseg_ros.model import ERFNet, save_checkpoint

SMALL = {"depths": (1, 1, 1, 1), "window": 3}
TICK = 100_000_000


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VTSEG_CACHE", str(folder))
        yield folder / "openvino"


@pytest.fixture(scope="module", params=["full", pytest.param("causal", marks=pytest.mark.long)])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    checkpoint = make_checkpoint(folder / "network.safetensors", attention=request.param, **SMALL)
    assert main(["export", str(checkpoint), "--out", str(folder / "network.onnx")]) == 0
    return folder / "network.onnx"


@pytest.fixture(scope="module")
def image_export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    source = folder / "network.safetensors"
    save_checkpoint(source, ERFNet(num_classes=14), labels=STREET, input_size=(64, 32))
    assert main(["export", str(source), "--out", str(folder / "network.onnx")]) == 0
    return folder / "network.onnx"


def pictures(count: int, seed: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 40, 72, 3), dtype=np.uint8)


def both(path, **options) -> list[VideoPredictor]:
    return [VideoPredictor(path, device="cpu", backend=name, **options) for name in ("openvino", "onnx")]


def assert_equal(found, expected) -> None:
    assert found.frames_in_window == expected.frames_in_window
    assert (found.mask == expected.mask).mean() > 0.999
    assert np.abs(found.confidence.astype(int) - expected.confidence).max() <= 2


def test_a_streaming_step_equals_onnx_runtime(exported):
    """Warm-up, a restart, a smaller window, two cameras."""
    predictors = both(exported)
    assert predictors[0].run_mode == "openvino" and predictors[0].streaming == predictors[1].streaming
    for index, image in enumerate(pictures(9)):
        stamp = (index + (100 if index > 4 else 1)) * TICK
        if index == 7:
            for predictor in predictors:
                predictor.window = 2
        batch = [CameraFrame("a", image, stamp), CameraFrame("b", image[::-1].copy(), stamp)]
        for found, expected in zip(*(predictor.step_many(batch) for predictor in predictors), strict=True):
            assert_equal(found, expected)


def test_image_networks(image_export):
    found, expected = both(image_export)
    for image in pictures(4):
        assert_equal(found.step(image), expected.step(image))


@pytest.mark.long  # an export and two runtimes, as for a streaming step
def test_the_full_window(tmp_path):
    checkpoint, path = make_checkpoint(tmp_path / "w.safetensors", **SMALL), tmp_path / "w.onnx"
    assert main(["export", str(checkpoint), "--out", str(path), "--full-window"]) == 0
    found, expected = both(path)
    for image in pictures(4):
        assert_equal(found.step(image), expected.step(image))


@pytest.mark.parametrize("kind", ["float", "float16"])
@pytest.mark.parametrize("output", ["logits", "ids"])
def test_a_network_of_others_that_takes_any_size(tmp_path, kind, output):
    """One convolution, from the class list and normalisation of `vtseg weights convert`."""
    weight = np.random.default_rng(1).normal(size=(3, 3, 3, 3)).astype(np.float16)
    values = ", ".join(str(float(value)) for value in weight.ravel())
    last = "ArgMax <axis = 1, keepdims = 0> (grid)" if output == "ids" else "Identity(grid)"
    shape = "int64[1, h, w]" if output == "ids" else f"{kind}[1, 3, h, w]"
    graph = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g ({kind}[1, 3, h, w] x) => ({shape} y) '
        f"<float[3, 3, 3, 3] v = {{{values}}}> {{ k = Cast <to = {10 if kind == 'float16' else 1}> (v) "
        f"grid = Conv <pads = [1, 1, 1, 1]> (x, k) y = {last} }}"
    )
    onnx.save(graph, str(tmp_path / "theirs.onnx"))
    (tmp_path / "labelmap.txt").write_text("road:1,2,3::\ncar:4,5,6::\nsky:7,8,9::\n")
    out = tmp_path / "ours.onnx"
    arguments = ["--as", "onnx", "--labels", str(tmp_path / "labelmap.txt"), "--size", "64x32"]
    normalisation = ["--mean", "0.5", "0.4", "0.3", "--std", "0.2", "0.3", "0.2"]
    source = str(tmp_path / "theirs.onnx")
    assert main(["weights", "convert", source, *arguments, *normalisation, "--out", str(out)]) == 0
    found, expected = both(out, output_size="network")
    for image in pictures(3):
        one, other = found.step(image), expected.step(image)
        assert (one.mask == other.mask).mean() > (0.99 if kind == "float16" else 0.999)
        assert len(np.unique(one.mask)) == 3


def masks_of(path) -> np.ndarray:
    with BagReader(path) as bag:
        topic = next(name for name in bag.topics if name.endswith("/mask/compressed"))
        return np.stack([decode_label(message) for _, _, message in bag.messages([topic])])


def test_a_command_runs_it(image_export, street_bag, tmp_path):
    for name in ("openvino", "onnx"):
        arguments = ["--out", str(tmp_path / name), "--backend", name, "--frames", "3"]
        assert main(["segment", str(street_bag), "--checkpoint", str(image_export), *arguments]) == 0
    found, expected = (masks_of(tmp_path / name) for name in ("openvino", "onnx"))
    assert found.shape[0] == 3 and (found == expected).mean() > 0.999


def test_what_was_compiled_is_used_again_and_checked(image_export, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("VTSEG_CACHE", str(tmp_path))
    image = pictures(1)[0]

    def mask():
        return VideoPredictor(image_export, device="cpu", backend="openvino").step(image).mask

    first = mask()
    (file,) = (tmp_path / "openvino").glob("*.blob")
    before = file.stat().st_mtime_ns
    np.testing.assert_array_equal(mask(), first)
    assert file.stat().st_mtime_ns == before
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    np.testing.assert_array_equal(mask(), first)
    assert "checksum" in caplog.text and file.read_bytes() != bytes(content)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (dict(input_size=(96, 32)), ConfigError, "input_size: fixed when"),
        (dict(streaming="exact"), ConfigError, "streaming: fixed when"),
        (dict(window=2), ConfigError, "at most 1 frames"),
        (dict(static_prior="erfnet"), ConfigError, "static network was fixed"),
        (dict(device="cuda"), DeviceError, "expected device cpu, got cuda"),
        (dict(precision="fp16"), DeviceError, "expected auto, fp32, bf16, got fp16"),
        (dict(precision="int8"), DeviceError, "precision: unknown"),
    ],
)
def test_what_an_export_fixed_cannot_be_changed(image_export, options, error, words):
    with pytest.raises(error, match=words):
        VideoPredictor(image_export, **{"device": "cpu", "backend": "openvino", **options})


def test_files_that_cannot_be_used_are_refused(tmp_path):
    (tmp_path / "junk.onnx").write_bytes(b"\x08\x07 not a model")
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[1] x) => (float[1] y) {y = Relu(x)}'
    )
    onnx.save(graph, str(tmp_path / "relu.onnx"))
    for name, words in (("junk", "cannot be read as ONNX"), ("none", "no such file"), ("relu", "export")):
        with pytest.raises(CheckpointError, match=words):
            VideoPredictor(tmp_path / f"{name}.onnx", device="cpu", backend="openvino")


def with_agreement(path, out, share):
    """Store a measured agreement in an exported file, as `vtseg export --bag` does."""
    network = onnx.load(str(path))
    (entry,) = [one for one in network.metadata_props if one.key == "vtseg_ros"]
    entry.value = json.dumps({**json.loads(entry.value), "agreement": {"bf16": share}})
    onnx.save(network, str(out))
    assert onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    return out


@pytest.mark.parametrize(("share", "reduced"), [(0.9951, True), (0.9949, False)])
def test_auto_is_bf16_where_it_is_native_and_agrees(image_export, tmp_path, share, reduced):
    path = with_agreement(image_export, tmp_path / "n.onnx", share)
    found = VideoPredictor(path, device="cpu", backend="openvino").precision
    assert found == ("bf16" if reduced and has_native_bf16() else "fp32")


def test_the_node_runs_it(image_export, cache, start_node, ros_environment):
    pytest.importorskip("rclpy")
    from nodes.encoders import NS, image_message
    from nodes.harness import Harness
    from sensor_msgs.msg import Image

    parameters = {"checkpoint": image_export, "device": "cpu", "backend": "openvino", "autostart": "true"}
    arguments = [part for name, value in parameters.items() for part in ("-p", f"{name}:={value}")]
    node = start_node("segmenter", "-r", "__ns:=/exported_openvino", *arguments)
    node.wait_for("openvino")
    harness = Harness(ros_environment)
    try:
        images = harness.publisher(Image, "/exported_openvino/image")
        masks = harness.collect(Image, "/exported_openvino/segmentation/mask")
        wait_until(lambda: images.get_subscription_count() > 0, node.output)
        picture, sent = pictures(1)[0], 0

        def processed():
            nonlocal sent
            sent += 10 * NS
            images.publish(image_message(picture, "rgb8", sent))
            return masks

        wait_until(processed, node.output)
        expected = VideoPredictor(image_export, device="cpu", backend="openvino").step(picture).mask
        found = np.frombuffer(masks[0].data, np.uint8).reshape(40, 72)
        assert (found == expected).mean() > 0.999
    finally:
        harness.close()
