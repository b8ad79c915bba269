# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""`vtseg bench`: every mode in one run, with consistent numbers; their values are not tested."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import make_checkpoint
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from vtseg_ros.cli import main
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model import ERFNet, load_checkpoint, save_checkpoint
from vtseg_ros.model.registry import architecture as registered
from vtseg_ros.profiling.benchmark import STREAMED, Settings, measure, modes_of, with_attention
from vtseg_ros.profiling.flops import extra_formulas
from vtseg_ros.profiling.moving_images import moving_picture


def test_all_modes_in_one_run(tmp_path, capsys):
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", depths=(1, 1, 1, 1))
    arguments = [
        "--size",
        "64x32",
        "--window",
        "3",
        "--seconds",
        "0",
        "--backends",
        "torch",
        "--baseline",
        "segformer_b0",
        "--breakdown",
    ]
    files = ["--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png")]
    assert main(["bench", "--checkpoint", str(checkpoint), *arguments, *files]) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in ("static network", "encoder", "decoder", "head", "GB/s"))
    found = json.loads((tmp_path / "b.json").read_text())
    rows = {row["mode"]: row for row in found["modes"]}
    streamed = [f"{mode}/torch" for mode in STREAMED]
    assert list(rows) == ["plain", "plain_optimised", *streamed, "segformer_b0"]
    assert found["machine"]["threads"] == torch.get_num_threads()
    for name, row in rows.items():
        assert row["size"] == [64, 32] and row["window"] == 3 and row["frames"] >= 6
        assert 0 < row["p50_ms"] <= row["p95_ms"] and row["fps"] > 0
        assert row["ratio_to_plain"] == pytest.approx(row["p50_ms"] / rows["plain"]["p50_ms"], abs=1e-3)
        assert name in printed and row["precision"] in ("fp32", "bf16")
        assert row["backend"] == (name.split("/")[1] if "/" in name else "torch")
    assert (
        rows["plain"]["gmacs"]
        > rows["plain_optimised"]["gmacs"]
        > rows["exact/torch"]["gmacs"]
        > rows["causal/torch"]["gmacs"]
    )
    assert Image.open(tmp_path / "b.png").size[0] > 1000


@pytest.mark.long
def test_every_installed_backend_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("VTSEG_CACHE", str(tmp_path))
    checkpoint = make_checkpoint(tmp_path / "c.safetensors", depths=(1, 1, 1, 1))
    arguments = ["--size", "64x32", "--window", "2", "--seconds", "0", "--modes", "exact"]
    assert (
        main(["bench", "--checkpoint", str(checkpoint), *arguments, "--json", str(tmp_path / "b.json")]) == 0
    )
    rows = json.loads((tmp_path / "b.json").read_text())["modes"]
    found = {row["mode"]: row for row in rows if row["precision"] == "fp32"}
    assert list(found) == ["exact/torch", "exact/openvino", "exact/onnx"]
    assert [row["run"] for row in found.values()] == ["eager", "openvino", "onnxruntime"]
    assert all(row["ratio_to_plain"] is None and row["p50_ms"] > 0 for row in rows)


def test_both_precisions_are_timed_in_every_backend_that_has_them(monkeypatch):
    settings = Settings((64, 32), 3, backends=("torch", "openvino", "onnx"), device="cpu")
    for native, expected in ((True, {"fp32", "bf16"}), (False, {"fp32"})):
        monkeypatch.setattr("vtseg_ros.profiling.benchmark.has_native_bf16", lambda answer=native: answer)
        found = {}
        for mode in modes_of(settings):
            found.setdefault(mode.label, set()).add(mode.precision)
        assert found["plain"] == found["exact/onnx"] == {"fp32"}
        assert found["plain_optimised"] == found["causal/torch"] == found["exact/openvino"] == expected
    assert {mode.precision for mode in modes_of(dataclasses.replace(settings, precision="bf16"))} == {
        "fp32",
        "bf16",
    }


def test_operations_of_one_frame_are_the_same_in_every_mode():
    """With k = 1 there is nothing to keep."""
    from vtseg_ros.commands.bench import _random_checkpoint

    checkpoint, images = _random_checkpoint("tiny"), moving_picture((64, 32), 2)
    modes = ("plain_optimised", "exact", "causal")
    rows = measure(checkpoint, Settings((64, 32), 1, modes=modes, device="cpu", seconds=0), images)
    assert rows[0]["gmacs"] == rows[1]["gmacs"] == rows[2]["gmacs"] > 0


def test_operations_by_hand():
    """The operations of a convolution and an attention follow their definitions."""
    conv, x = torch.nn.Conv2d(4, 6, 3, padding=1), torch.rand(2, 4, 5, 7)
    query, key = torch.rand(1, 2, 10, 8), torch.rand(1, 2, 3, 8)
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=extra_formulas()) as counter:
        conv(x)
        torch.nn.functional.scaled_dot_product_attention(query, key, key)
    convolution, attention = 2 * 6 * 5 * 7 * 4 * 9, 2 * 2 * 10 * 3 * 8
    assert counter.get_total_flops() / 2 == convolution + attention


def test_the_twin_has_the_same_weights(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint)
    other = with_attention(checkpoint, "causal")
    assert with_attention(checkpoint, "full") is checkpoint and other.model.config.attention == "causal"
    for key, value in checkpoint.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[key]), key


def test_the_picture_moves():
    first, second = moving_picture((64, 32), 2)
    assert first.shape == (32, 64, 3) and np.array_equal(np.roll(first, 3, axis=1), second)
    assert first.std() > 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "60x32"], "multiples of 32"),
        (["--window", "0"], "--window"),
        (["--threads", "0"], "--threads"),
        (["--threads", "1000000"], "--threads: out of range; expected 1 to 1024"),
        (["--plot", "x.svg"], ".png"),
        (["--precision", "int8"], "precision"),
        (["--backends", "openvino", "--device", "cuda"], "cuda"),
    ],
)
def test_wrong_arguments(arguments, words, capsys):
    assert main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_image_networks_have_no_modes_to_compare(tmp_path, capsys):
    names = LabelSet.from_names(["a", "b"])
    save_checkpoint(tmp_path / "e.safetensors", ERFNet(num_classes=2), labels=names, input_size=(64, 32))
    assert main(["bench", "--checkpoint", str(tmp_path / "e.safetensors"), "--size", "64x32"]) == 2
    assert (
        "e.safetensors: wrong network; expected a video network such as vtseg, got erfnet"
        in capsys.readouterr().err
    )


@pytest.mark.slow  # runs benchmarks
@pytest.mark.parametrize(
    ("architecture", "mode", "other", "window"),
    [("local_memory", "exact", "causal", 3), ("mask_feedback", "causal", "exact", 2)],
)
def test_networks_are_measured_in_the_modes_that_they_have(
    architecture, mode, other, window, tmp_path, capsys
):
    path, labels = tmp_path / "network.safetensors", LabelSet.from_names(["road", "sky"])
    values = registered(architecture).kind.configure(num_classes=len(labels), preset="b0", overrides={})
    network = registered(architecture).from_config(values).eval()
    save_checkpoint(path, network, labels=labels, input_size=(96, 64))
    command = [
        "bench",
        "--checkpoint",
        str(path),
        "--size",
        "96x64",
        "--window",
        str(window),
        "--seconds",
        "0",
    ]
    assert main([*command, "--backends", "torch", "--precision", "fp32"]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line and line[0].islower()]
    assert [row for row in rows if row != "mode"] == ["plain", "plain_optimised", f"{mode}/torch"]
    assert main([*command, "--modes", other]) == 2
    assert f"{other} streaming does not exist for {architecture}" in capsys.readouterr().err
    assert main([*command, "--breakdown"]) == 2
    assert f"--breakdown: wrong network; expected a vtseg, got {architecture}" in capsys.readouterr().err
