# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX networks of others in the predictor, the node and as static network; expected values by numpy."""

from __future__ import annotations

import json

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper

from vtseg_ros.cli import main
from vtseg_ros.errors import CheckpointError
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.model.checkpoint import load_external_prior
from vtseg_ros.model.onnx_adapter import as_logits

CLASSES = 3
# Class scores are linear in the normalised colour: class c is the channel that is brightest.
WEIGHT = np.eye(CLASSES, 3, dtype=np.float32)
MEAN, STD = (0.2, 0.4, 0.6), (0.5, 0.25, 0.125)


def network(
    path,
    *,
    output="logits",
    size=("h", "w"),
    input_name="pixels",
    channels=3,
    dtype="FLOAT",
    batch=1,
    needs=None,
):
    """A 1x1 convolution from RGB to class scores, as logits at half the size or as class ids."""
    kind = getattr(TensorProto, dtype)
    array = WEIGHT[:, :, None, None].astype(helper.tensor_dtype_to_np_dtype(kind))
    weight = numpy_helper.from_array(np.tile(array, (1, 2, 1, 1))[:, :channels], "weight")
    nodes = [helper.make_node("Conv", [input_name, "weight"], ["scores"], kernel_shape=[1, 1])]
    height, width = size
    outputs, constants = [], [weight]
    if needs:  # works on one size, whatever it declares
        constants.append(numpy_helper.from_array(np.zeros((1, CLASSES, *needs), np.float32), "zeros"))
        nodes[0].output[0] = "raw"
        nodes.append(helper.make_node("Add", ["raw", "zeros"], ["scores"]))
    if "logits" in output:
        nodes.append(
            helper.make_node("AveragePool", ["scores"], ["logits"], kernel_shape=[2, 2], strides=[2, 2])
        )
        outputs.append(helper.make_tensor_value_info("logits", kind, [batch, CLASSES, None, None]))
    if "nhw" in output or "n1hw" in output:
        keep = int("n1hw" in output)
        nodes.append(helper.make_node("ArgMax", ["scores"], ["ids"], axis=1, keepdims=keep))
        shape = [batch, 1, height, width] if keep else [batch, height, width]
        outputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, shape))
    if "probability" in output:
        nodes.append(helper.make_node("ReduceMax", ["scores"], ["best"], keepdims=0))
        outputs.append(helper.make_tensor_value_info("best", kind, []))
    image = helper.make_tensor_value_info(input_name, kind, [batch, channels, height, width])
    graph = helper.make_graph(nodes, "g", [image], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("red:255,0,0::\ngreen:0,255,0::\nblue:0,0,255::\n")
    return str(path)


def convert(source, labels, out, *options):
    return main(
        ["weights", "convert", str(source), "--as", "onnx", "--labels", labels, "--out", str(out), *options]
    )


def normalisation():
    return ["--mean", *map(str, MEAN), "--std", *map(str, STD)]


def picture(rng):
    """(32, 48, 3): 4x4 blocks of one colour."""
    return np.kron(rng.integers(0, 256, (8, 12, 3)), np.ones((4, 4, 1))).astype(np.uint8)


def by_hand(image):
    """Class ids of the network on an image that needs no resize, and the softmax of its scores."""
    scores = (image / np.float32(255) - np.float32(MEAN)) / np.float32(STD)  # (H, W, 3)
    exp = np.exp(scores - scores.max(2, keepdims=True))
    return scores.argmax(2), (exp / exp.sum(2, keepdims=True)).max(2)


@pytest.mark.parametrize("output", ["nhw", "n1hw"])
@pytest.mark.parametrize("size", [("h", "w"), (32, 48)])
def test_class_ids(output, size, labels, tmp_path, rng):
    source = network(tmp_path / "net.onnx", output=output, size=size)
    out = tmp_path / "out.onnx"
    given = ["--size", "48x32"] if size[0] == "h" else []
    assert convert(source, labels, out, *normalisation(), *given) == 0
    image = picture(rng)
    result = VideoPredictor(out, device="cpu").step(image)
    assert (result.mask == by_hand(image)[0]).all() and (result.confidence == 255).all()
    assert VideoPredictor(out, device="cpu").labels.names == ("red", "green", "blue")


@pytest.mark.parametrize("dtype", ["FLOAT", "FLOAT16"])
def test_logits_at_a_lower_resolution(dtype, labels, tmp_path, rng):
    source, out = network(tmp_path / "net.onnx", dtype=dtype), tmp_path / "out.onnx"
    assert convert(source, labels, out, *normalisation(), "--size", "48x32", "--licence", "MIT") == 0
    image = picture(rng)
    segmenter = VideoPredictor(out, device="cpu", upsampling="nearest")
    result, (ids, best) = segmenter.step(image), by_hand(image)
    tolerance = 2 if dtype == "FLOAT16" else 1
    assert (result.mask == ids).mean() > (0.99 if dtype == "FLOAT16" else 0.9999)
    assert np.abs(result.confidence.astype(int) - np.round(best * 255)).max() <= tolerance
    assert segmenter.checkpoint.licence.name == "MIT" and segmenter.input_size == (48, 32)


def test_as_static_prior(labels, tmp_path, rng):
    source, out = network(tmp_path / "net.onnx", output="nhw"), tmp_path / "out.onnx"
    assert convert(source, labels, out, *normalisation(), "--size", "48x32") == 0
    import torch

    image = picture(rng)
    prior = load_external_prior(str(out), num_classes=CLASSES, size=(32, 48))
    logits = prior(torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None])
    assert logits.shape == (1, CLASSES, 32, 48) and (logits[0].argmax(0).numpy() == by_hand(image)[0]).all()


def test_commands_take_it(labels, tmp_path, street_bag, capsys):
    source, out = network(tmp_path / "net.onnx"), tmp_path / "out.onnx"
    assert convert(source, labels, out, "--size", "64x32", "--licence", "non-commercial research") == 0
    assert main(["info", str(out), "--json", str(tmp_path / "i.json")]) == 0
    found = json.loads((tmp_path / "i.json").read_text())
    assert found["classes"] == ["red", "green", "blue"] and found["input_size"] == [64, 32]
    assert found["licence"] == {"name": "non-commercial research", "note": ""}
    assert "non-commercial research" in capsys.readouterr().out
    arguments = ["--checkpoint", str(out), "--out", str(tmp_path / "masks"), "--device", "cpu"]
    assert main(["segment", str(street_bag), *arguments]) == 0
    assert "30 masks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("made", "options", "words"),
    [
        (
            {"channels": 4},
            ["--size", "48x32"],
            "input: expected one float input (1, 3, H, W), got pixels [1, 4",
        ),
        ({"batch": 2}, ["--size", "48x32"], "input: expected one float input (1, 3, H, W), got pixels [2, 3"),
        ({}, [], "takes images of any size; expected WxH, got none"),
        ({"size": (32, 48)}, ["--size", "64x32"], "takes images of 48x32 px; expected that, got 64x32"),
        ({}, ["--size", "48x32", "--std", "0", "1", "1"], "expected values for RGB in [0, 1]"),
        ({}, ["--size", "48x32", "--mean", "123.7", "116.3", "103.5"], "Divide those for 0..255 by 255"),
        (
            {"output": "probability"},
            ["--size", "48x32"],
            "output: expected float logits (1, C, h, w), or integer",
        ),
        ({"output": "logits nhw"}, ["--size", "48x32"], "expected one of logits, ids, got none"),
        ({}, ["--size", "48x32", "--output", "scores"], "--output: expected one of logits, got 'scores'"),
        ({"needs": (32, 48)}, ["--size", "64x32"], "fails on an image of 64x32 px"),
    ],
)
def test_what_does_not_fit_is_one_line(made, options, words, labels, tmp_path, capsys):
    source, out = network(tmp_path / "net.onnx", **made), tmp_path / "out.onnx"
    assert convert(source, labels, out, *options) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1 and words in err[0], err
    assert not out.exists()


def test_the_output_is_chosen_by_name(labels, tmp_path, rng):
    source, out = network(tmp_path / "net.onnx", output="logits nhw"), tmp_path / "out.onnx"
    assert convert(source, labels, out, *normalisation(), "--size", "48x32", "--output", "ids") == 0
    image = picture(rng)
    assert (VideoPredictor(out, device="cpu").step(image).mask == by_hand(image)[0]).all()


def test_class_lists_of_another_length(labels, tmp_path, capsys):
    (tmp_path / "two.txt").write_text("red:255,0,0::\ngreen:0,255,0::\n")
    source, out = network(tmp_path / "net.onnx"), tmp_path / "out.onnx"
    two = str(tmp_path / "two.txt")
    assert convert(source, two, out, "--size", "48x32") == 2
    assert "for 2 classes, got logits" in capsys.readouterr().err
    # Ids beyond the list are seen when the network runs.
    source = network(tmp_path / "ids.onnx", output="nhw")
    assert convert(source, two, out, "--size", "48x32") == 2
    assert "expected class ids 0..1, got ids 0..2" in capsys.readouterr().err
    assert (
        main(["weights", "convert", str(source), "--as", "onnx", "--size", "48x32", "--out", str(out)]) == 2
    )
    assert "--labels: no class list" in capsys.readouterr().err and not out.exists()


def test_files_that_are_no_network(labels, tmp_path, capsys):
    (tmp_path / "junk.onnx").write_bytes(b"\x08\x07 not a model")
    assert convert(tmp_path / "junk.onnx", labels, tmp_path / "o.onnx") == 2
    assert "cannot be read as ONNX" in capsys.readouterr().err
    assert convert(tmp_path / "none.onnx", labels, tmp_path / "o.onnx") == 2
    assert "no such file" in capsys.readouterr().err
    assert convert(tmp_path / "junk.onnx", labels, tmp_path / "o.safetensors") == 2
    assert "ends in .onnx" in capsys.readouterr().err


def test_lying_metadata_is_an_error_of_the_file(labels, tmp_path):
    source, out = network(tmp_path / "net.onnx"), tmp_path / "out.onnx"
    assert convert(source, labels, out, "--size", "48x32") == 0
    model = onnx.load(str(out))
    for change in ({"std": [0, 1, 1]}, {"mean": "x"}, {"dtype": "tensor(string)"}, {"classes": None}):
        metadata = json.loads(model.metadata_props[0].value)
        metadata["adapter"].update(change)
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        copy.metadata_props[0].value = json.dumps(metadata)
        onnx.save(copy, str(tmp_path / "lie.onnx"))
        with pytest.raises(CheckpointError, match="adapter"):
            VideoPredictor(tmp_path / "lie.onnx", device="cpu")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (np.zeros((1, 3, 0, 4), np.float32), "got \\(1, 3, 0, 4\\)"),
        (np.zeros((3, 4, 4), np.float32), "expected float logits"),
        (np.zeros((1, 2, 4, 4), np.int64), "expected float logits \\(1, C, h, w\\), or integer"),
        (np.full((1, 4, 4), -1, np.int32), "got ids -1..-1"),
        (np.zeros((1, 4, 4), bool), "got \\(1, 4, 4\\) bool"),
    ],
)
def test_outputs_that_are_no_masks(output, words):
    with pytest.raises(CheckpointError, match=words):
        as_logits(output, 3)


def test_the_node_runs_it_and_logs_its_licence(labels, tmp_path, start_node, rng):
    pytest.importorskip("rclpy")
    source, out = network(tmp_path / "net.onnx", output="nhw"), tmp_path / "out.onnx"
    assert convert(source, labels, out, "--size", "48x32", "--licence", "non-commercial research") == 0
    node = start_node(
        "segmenter",
        "-r",
        "__ns:=/foreign",
        "-p",
        f"checkpoint:={out}",
        "-p",
        "device:=cpu",
        "-p",
        "autostart:=true",
    )
    node.wait_for("(onnx, 3 classes)")
    node.wait_for(f"licence of {out}: non-commercial research")
