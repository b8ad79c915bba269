# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Exports: files that answer as the network does, state in and out, refused when they do not."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import make_checkpoint, wait_until

from vtseg_ros.cli import main
from vtseg_ros.errors import CheckpointError, ConfigError, DeviceError
from vtseg_ros.inference import CameraFrame, VideoPredictor
from vtseg_ros.inference import exporter as exporting
from vtseg_ros.label_set import STREET
from vtseg_ros.model import ERFNet, load_checkpoint, save_checkpoint

SMALL = {"depths": (1, 1, 1, 1), "window": 3}
TICK = 100_000_000


@pytest.fixture(scope="module", params=["exact", pytest.param("causal", marks=pytest.mark.long)])
def exported(request, tmp_path_factory):
    """A checkpoint and its streaming step as ONNX, with the output of the export."""
    folder = tmp_path_factory.mktemp("exports")
    attention = "causal" if request.param == "causal" else "full"
    checkpoint = make_checkpoint(folder / f"{request.param}.safetensors", attention=attention, **SMALL)
    path = folder / f"{request.param}.onnx"
    assert main(["export", str(checkpoint), "--out", str(path), "--json", str(folder / "said.json")]) == 0
    return checkpoint, path, json.loads((folder / "said.json").read_text())


def pictures(count):
    rng = np.random.default_rng(8)
    return rng.integers(0, 256, (count, 40, 72, 3), dtype=np.uint8)


def test_the_predictor_runs_an_onnx_file(exported):
    """Warm-up, a restart, a smaller window, two cameras: as the checkpoint itself."""
    checkpoint, path, said = exported
    assert said["agreement"] == 1.0 and said["frames"] == 7 and said["difference"] < 1e-3
    by_file, by_network = (VideoPredictor(source, device="cpu") for source in (path, checkpoint))
    assert by_file.streaming == by_network.streaming and by_file.labels == by_network.labels
    assert by_file.window == 3 and by_file.input_size == (64, 32)
    for index, image in enumerate(pictures(9)):
        stamp = (index + (100 if index > 4 else 1)) * TICK
        if index == 7:
            by_file.window = by_network.window = 2
        batch = [CameraFrame("a", image, stamp), CameraFrame("b", image[::-1].copy(), stamp)]
        for one, other in zip(by_file.step_many(batch), by_network.step_many(batch)):
            assert one.frames_in_window == other.frames_in_window
            assert (one.mask == other.mask).mean() > 0.999, index
            assert np.abs(one.confidence.astype(int) - other.confidence).max() <= 1


def test_info_tells_what_an_export_is(exported, tmp_path, capsys):
    checkpoint, path, _ = exported
    assert main(["info", str(path), "--json", str(tmp_path / "said.json")]) == 0
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["export"] == f"stream, {path.stem}" and said["architecture"] == "vtseg"
    assert said["classes"] == list(STREET.names) and said["input_size"] == [64, 32]
    assert f"stream, {path.stem}" in capsys.readouterr().out


def test_state_fed_back_by_hand(exported):
    """Another program needs only the file: zeros at the start, then each output into the next input."""
    checkpoint, path, _ = exported
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shapes = {one.name: one.shape for one in session.get_inputs()}
    past, valid = np.zeros(shapes["past"], np.float32), np.zeros(shapes["valid"], bool)
    assert shapes["images"] == [1, 3, 32, 64] and valid.shape == (2,)
    model = load_checkpoint(checkpoint).model
    video = torch.rand(1, 7, 3, 32, 64)
    with torch.no_grad():
        clip = model(video)
        for t in range(7):
            feed = {"images": video[:, t].numpy(), "past": past, "valid": valid}
            logits, past, valid = session.run(None, feed)
            window = model(video[:, max(0, t - 2) : t + 1])[:, -1]
            expected = clip[:, t] if model.config.attention == "causal" else window
            assert np.abs(logits - expected.numpy()).max() < 1e-3, t
    assert valid.all()


def test_metadata_and_one_file(exported):
    _, path, _ = exported
    model = onnx.load(str(path), load_external_data=False)
    onnx.checker.check_model(model)
    metadata = json.loads({entry.key: entry.value for entry in model.metadata_props}["vtseg_ros"])
    assert metadata["class_names"] == list(STREET.names) and metadata["input_size"] == [64, 32]
    assert len(list(path.parent.glob("*.onnx*"))) == 1


@pytest.mark.long  # test_an_export_that_is_off_is_refused writes and compares this format too
def test_full_window_as_torch_export(tmp_path, capsys):
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", attention="causal", **SMALL)
    code = main(
        ["export", str(checkpoint), "--out", str(tmp_path / "w.pt2"), "--full-window", "--window", "2"]
    )
    assert code == 0 and "the same class on 100.000 %" in capsys.readouterr().out
    module = torch.export.load(str(tmp_path / "w.pt2")).module()
    video = torch.rand(1, 2, 3, 32, 64)
    with torch.no_grad():
        expected = load_checkpoint(checkpoint).model(video)[:, -1]
        alone = load_checkpoint(checkpoint).model(video[:, 1:])[:, -1]
        assert (module(video, torch.ones(2, dtype=torch.bool)) - expected).abs().max() < 1e-3
        assert (module(video, torch.tensor([False, True])) - alone).abs().max() < 1e-3


def check_masks_of_the_export(source, *options):
    out = source.with_suffix(".onnx")
    assert main(["export", str(source), "--out", str(out), *options]) == 0
    by_file, by_network = VideoPredictor(out, device="cpu"), VideoPredictor(source, device="cpu")
    for image in pictures(5):
        one, other = by_file.step(image), by_network.step(image)
        assert one.frames_in_window == other.frames_in_window
        assert (one.mask == other.mask).mean() > 0.999


def test_an_image_network_in_the_predictor(tmp_path):
    source = tmp_path / "e.safetensors"
    save_checkpoint(source, ERFNet(num_classes=14), labels=STREET, input_size=(64, 32))
    check_masks_of_the_export(source)


@pytest.mark.long  # streaming steps are exported above
def test_the_full_window_in_the_predictor(tmp_path):
    check_masks_of_the_export(make_checkpoint(tmp_path / "w.safetensors", **SMALL), "--full-window")


def test_an_export_that_is_off_is_refused(tmp_path, monkeypatch, capsys):
    """The file holds other weights than the network: nothing is left at the path."""
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", **SMALL)
    real = exporting.torch.export.export

    def damaged(module, arguments):
        torch.nn.init.zeros_(module.step.model.head.up2[0][0].weight)
        return real(module, arguments)

    monkeypatch.setattr(exporting.torch.export, "export", damaged)
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "x.pt2")]) == 2
    assert "the export differs from the network" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (dict(window=4), ConfigError, "at most 3 frames"),
        (dict(input_size=(96, 32)), ConfigError, "64x32"),
        (dict(precision="bf16"), ConfigError, "precision"),
        (dict(streaming="plain"), ConfigError, "streaming: fixed when .* was exported; expected"),
        (dict(device="cuda"), DeviceError, "CUDA"),
        (dict(precision="fp16"), DeviceError, "TensorRT"),
        (dict(precision="bf16"), ConfigError, "fixed when it was exported"),
        (dict(precision="int8"), DeviceError, "precision: unknown; expected auto"),
    ],
)
def test_what_an_export_fixed_cannot_be_changed(exported, options, error, words):
    with pytest.raises(error, match=words):
        VideoPredictor(exported[1], **{"device": "cpu", **options})


def test_other_onnx_files_are_refused(tmp_path):
    (tmp_path / "junk.onnx").write_bytes(b"\x08\x07 not a model")
    with pytest.raises(CheckpointError, match="cannot be read as ONNX"):
        VideoPredictor(tmp_path / "junk.onnx", device="cpu")
    with pytest.raises(CheckpointError, match="no such file"):
        VideoPredictor(tmp_path / "none.onnx", device="cpu")
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[1] x) => (float[1] y) {y = Relu(x)}'
    )
    onnx.save(graph, str(tmp_path / "relu.onnx"))
    with pytest.raises(CheckpointError, match="vtseg export"):
        VideoPredictor(tmp_path / "relu.onnx", device="cpu")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "x.pt"], "--out: wrong suffix"),
        (["--out", "x.onnx", "--format", "torch-export"], "expected .pt2"),
        (["--out", "x.onnx", "--size", "65x32"], "multiples of 32"),
        (["--out", "nowhere/x.onnx"], "no such folder"),
    ],
)
def test_wrong_arguments(tiny_checkpoint, arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(tiny_checkpoint), *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.fixture(scope="module")
def exported_node(exported, start_segmenter, harness):
    """A segmenter that runs the export, and a camera."""
    from nodes.camera import Camera

    _, path, said = exported
    namespace = f"/{path.stem}"
    node = start_segmenter(namespace, path, "-p", "device:=cpu", window=3)
    yield Camera(harness, node, namespace)
    assert node.stop() == 0, node.output()


def test_the_node_runs_an_onnx_file(exported, exported_node):
    from nodes.encoders import image_message

    _, path, _ = exported
    picture = pictures(1)[0]
    mask = exported_node.mask_of(exported_node.ask(image_message(picture, "rgb8", 0)))
    assert np.array_equal(mask, VideoPredictor(path, device="cpu").step(picture).mask)


def test_a_window_is_judged_by_the_network_that_gets_it(exported, exported_node, tmp_path):
    """An export has windows up to its own; a request that is not taken leaves all as it was, and the node runs on."""
    from rcl_interfaces.srv import GetParameters, SetParametersAtomically
    from rclpy.parameter import Parameter

    _, export, _ = exported
    camera, service = exported_node, f"{exported_node.ns}/segmenter"
    wide = make_checkpoint(tmp_path / "wide.safetensors", depths=(1, 1, 1, 1), window=8)

    def ask(**values) -> object:
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        request = SetParametersAtomically.Request(parameters=parameters)
        return camera.harness.call(
            SetParametersAtomically, f"{service}/set_parameters_atomically", request, repeat=False
        ).result

    def told() -> list:
        request = GetParameters.Request(names=["checkpoint", "window", "overlay_alpha"])
        values = camera.harness.call(GetParameters, f"{service}/get_parameters", request).values
        return [value.string_value or value.integer_value or value.double_value for value in values]

    def frames(count: int) -> int:
        return [camera.good(3).frames_in_window for _ in range(count)][-1]

    refused = ask(overlay_alpha=0.1, window=8)
    assert not refused.successful and "expected at most 3 frames, got 8" in refused.reason
    assert told() == [str(export), 0, 0.5] and frames(4) == 3
    # For the checkpoint of the same request it is right.
    assert ask(overlay_alpha=0.1, checkpoint=str(wide), window=8).successful
    camera.node.wait_for("now running")
    assert told() == [str(wide), 8, 0.1] and frames(9) == 8
    # And here for the one that runs, while the one that is loaded cannot have it.
    assert ask(checkpoint=str(export), window=7).successful
    camera.node.wait_for(
        "the checkpoint was not changed: window: longer than the network supports; expected at most 3"
    )
    wait_until(lambda: told() == [str(wide), 7, 0.1], lambda: str(told()))
    assert frames(8) == 7 and camera.node.running()
