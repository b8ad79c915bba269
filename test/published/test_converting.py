# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Published weights as checkpoints: logits of the original implementations, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from published.reference_names import as_authors_save
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from vtseg_ros.cli import main
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.label_set import CITYSCAPES, LabelSet
from vtseg_ros.model import ERFNet, SegFormer, load_checkpoint
from vtseg_ros.model.mit import translate_segformer_state_dict
from vtseg_ros.model.segformer import VARIANTS
from vtseg_ros.published import table

transformers = pytest.importorskip("transformers")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as every publication has them
# Hugging Face's conversion script: hidden sizes, depths, decoder width.
SIZES = {
    "b0": ([32, 64, 160, 256], [2, 2, 2, 2], 256),
    "b1": ([64, 128, 320, 512], [2, 2, 2, 2], 256),
    "b2": ([64, 128, 320, 512], [3, 4, 6, 3], 768),
    "b3": ([64, 128, 320, 512], [3, 4, 18, 3], 768),
    "b4": ([64, 128, 320, 512], [3, 8, 27, 3], 768),
    "b5": ([64, 128, 320, 512], [3, 6, 40, 3], 768),
}


def reference(variant, classes):
    """transformers' network; random weights and BatchNorm statistics."""
    dims, depths, width = SIZES[variant]
    config = transformers.SegformerConfig(
        hidden_sizes=dims, depths=depths, decoder_hidden_size=width, num_labels=classes
    )
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    norm = model.decode_head.batch_norm
    if norm.running_mean.device.type != "meta":
        norm.running_mean.normal_(std=0.2)
        norm.running_var.uniform_(0.2, 2)
    return model


def their_logits(model, images):
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        logits = model(pixel_values=(images - mean) / std).logits  # at a quarter of the size
    return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(5)
    return torch.rand(2, 3, 64, 96)


@pytest.mark.parametrize(
    ("variant", "data", "form"),
    [
        ("b0", "cityscapes", "safetensors"),
        ("b0", "ade20k", "bin"),
        ("b0", "cityscapes", "authors"),
        ("b1", "ade20k", "safetensors"),
        ("b1", "cityscapes", "bin"),
    ],
)
def test_segformer_gives_the_logits_of_transformers(variant, data, form, images, tmp_path, capsys):
    torch.manual_seed(2)
    model = reference(variant, {"cityscapes": 19, "ade20k": 150}[data])
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    if form == "bin":  # names as the network has them in memory, which differ from those in model.safetensors
        file = tmp_path / "pytorch_model.bin"
        torch.save(model.state_dict(), file)
    elif form == "authors":
        state = as_authors_save(load_file(file), tuple(SIZES[variant][1]))
        file = tmp_path / "segformer.pth"
        torch.save({"meta": {"epoch": 3}, "state_dict": state}, file)
    out = tmp_path / "out.safetensors"
    name = f"segformer_{variant}_{data}"
    assert main(["weights", "convert", str(file), "--as", name, "--out", str(out)]) == 0
    loaded = load_checkpoint(out)
    assert loaded.architecture == f"segformer_{variant}" and loaded.licence.restricted
    assert loaded.labels.names[0] == {"cityscapes": "road", "ade20k": "wall"}[data]
    with torch.no_grad():
        difference = (loaded.model(images) - their_logits(model, images)).abs().max()
    assert difference < 1e-5, difference
    assert loaded.training["converted"]["source"].startswith("https://huggingface.co/nvidia/segformer-")
    assert "non-commercial research" in capsys.readouterr().out


@pytest.mark.parametrize("variant", ["b2", "b3", "b4", "b5"])
def test_larger_segformers_fit_by_name_and_shape(variant):
    with torch.device("meta"):
        theirs = reference(variant, 19)
        ours = SegFormer(num_classes=19, variant=variant)
    translated = translate_segformer_state_dict(theirs.state_dict())
    own = {k: tuple(v.shape) for k, v in ours.state_dict().items() if not k.startswith("normalization.")}
    assert {key: tuple(value.shape) for key, value in translated.items()} == own
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters())
    assert list(VARIANTS) == list(SIZES)


def test_the_names_of_every_layer_of_the_authors():
    """B2's depths differ per stage; no tensor of the authors' file is left over."""
    from transformers.core_model_loading import revert_weight_conversion

    with torch.device("meta"):
        theirs = reference("b2", 19)
        ours = SegFormer(num_classes=19, variant="b2")
    saved = revert_weight_conversion(theirs, dict(theirs.state_dict()))  # the names of model.safetensors
    translated = translate_segformer_state_dict(as_authors_save(saved, (3, 4, 6, 3)))
    own = {k for k in ours.state_dict() if not k.startswith("normalization.") and "num_batches" not in k}
    assert set(translated) == own


def test_the_checkpoint_runs_as_a_segmenter_and_as_static_prior(tmp_path):
    torch.manual_seed(2)
    reference("b0", 19).save_pretrained(tmp_path)
    out = tmp_path / "out.safetensors"
    arguments = ["--as", "segformer_b0_cityscapes", "--size", "96x64", "--out", str(out)]
    assert main(["weights", "convert", str(tmp_path / "model.safetensors"), *arguments]) == 0
    result = VideoPredictor(out, device="cpu").step(np.full((64, 96, 3), 90, np.uint8))
    assert result.mask.shape == (64, 96) and result.mask.max() < 19
    from vtseg_ros.model.checkpoint import load_external_prior

    prior, image = load_external_prior(str(out), num_classes=19, size=(64, 96)), torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(prior(image), load_checkpoint(out).model(image))


def test_erfnet_loses_its_unlabelled_class_only(tmp_path):
    torch.manual_seed(1)
    network = ERFNet(num_classes=20).eval()
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    state["module.encoder.output_conv.weight"] = torch.zeros(20, 128, 1, 1)
    state["module.encoder.output_conv.bias"] = torch.zeros(20)
    torch.save(state, tmp_path / "erfnet_pretrained.pth")
    out = tmp_path / "e.safetensors"
    file = str(tmp_path / "erfnet_pretrained.pth")
    assert main(["weights", "convert", file, "--as", "erfnet_cityscapes", "--out", str(out)]) == 0
    loaded, image = load_checkpoint(out), torch.rand(1, 3, 64, 32)
    assert loaded.labels == CITYSCAPES and loaded.licence.name == "CC-BY-NC-4.0"
    with torch.no_grad():
        assert torch.allclose(loaded.model(image), network(image)[:, :19], atol=1e-6)


def test_efficientvit_of_its_authors(camvid, tmp_path):
    file, reference_file = (
        camvid / "teacher" / name for name in ("efficientvit_seg_b0_cityscapes.pt", "reference.npz")
    )
    if not file.is_file():
        pytest.skip("the authors' file is not there")
    out = tmp_path / "e.safetensors"
    assert (
        main(["weights", "convert", str(file), "--as", "efficientvit_b0_cityscapes", "--out", str(out)]) == 0
    )
    loaded, expected = load_checkpoint(out), np.load(reference_file)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        ours = loaded.model.coarse_logits(torch.from_numpy(expected["x"]) * std + mean)
    assert np.abs(ours.numpy() - expected["logits"]).max() < 1e-4
    assert (loaded.architecture, loaded.input_size) == ("efficientvit_b0", (1024, 512))


def test_weights_of_ones_own_take_the_class_list_beside_them(tmp_path):
    torch.manual_seed(2)
    model = reference("b0", 3)
    model.config.id2label = {0: "grass", 1: "path", 2: "sky"}
    model.save_pretrained(tmp_path)
    out = tmp_path / "own.safetensors"
    arguments = [
        str(tmp_path / "model.safetensors"),
        "--as",
        "segformer_b0",
        "--licence",
        "MIT",
        "--out",
        str(out),
    ]
    assert main(["weights", "convert", *arguments]) == 0
    loaded = load_checkpoint(out)
    assert loaded.labels.names == ("grass", "path", "sky")
    assert (loaded.licence.name, loaded.input_size) == ("MIT", (512, 512))


def test_other_normalisation_is_kept(images, tmp_path):
    torch.manual_seed(2)
    model = reference("b0", 2)
    model.save_pretrained(tmp_path)
    (tmp_path / "labels.txt").write_text("a:1,2,3::\nb:4,5,6::\n")
    out = tmp_path / "own.safetensors"
    arguments = [
        "--as",
        "segformer_b0",
        "--labels",
        str(tmp_path / "labels.txt"),
        "--mean",
        "0.5",
        "0.4",
        "0.3",
    ]
    arguments += ["--std", "0.5", "0.25", "0.2", "--out", str(out)]
    assert main(["weights", "convert", str(tmp_path / "model.safetensors"), *arguments]) == 0
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.5, 0.25, 0.2])[:, None, None]
    loaded = load_checkpoint(out)
    assert loaded.labels == LabelSet(("a", "b"), ((1, 2, 3), (4, 5, 6)))
    with torch.no_grad():
        theirs = model(pixel_values=(images - mean) / std).logits
        theirs = F.interpolate(theirs, size=images.shape[2:], mode="bilinear", align_corners=False)
        assert (loaded.model(images) - theirs).abs().max() < 1e-5


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(2)
    reference("b0", 19).save_pretrained(folder)
    (folder / "config.json").unlink()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pth").write_text("<html>not found</html>")
    state = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if not k.startswith("decode_head")}, folder / "encoder.safetensors"
    )
    state["decode_head.classifier.bias"][3] = float("nan")
    save_file(state, folder / "nan.safetensors")
    torch.save({"weights": [1, 2]}, folder / "list.pth")
    return folder


@pytest.mark.parametrize(
    ("file", "options", "words"),
    [
        ("none.safetensors", ["--as", "segformer_b0_cityscapes"], "no such file"),
        (
            "model.safetensors",
            ["--as", "segformer_b1_cityscapes"],
            "another shape; expected (64,), got (32,)",
        ),
        ("model.safetensors", ["--as", "segformer_b0_ade20k"], "expected (150,), got (19,)"),
        (
            "model.safetensors",
            ["--as", "erfnet_cityscapes"],
            "does not hold the weights of erfnet_cityscapes",
        ),
        ("model.safetensors", ["--as", "efficientvit_b0_cityscapes"], "expected sha256 923d6fdd"),
        ("model.safetensors", ["--as", "efficientvit_b1_cityscapes"], "does not hold the weights of"),
        ("model.safetensors", ["--as", "segformer_b9"], "--as: expected onnx, segformer_b0_cityscapes"),
        ("model.safetensors", ["--as", "segformer_b0"], "--labels: no class list"),
        ("model.safetensors", ["--as", "segformer_b0", "--labels", "camvid"], "expected (11,), got (19,)"),
        (
            "model.safetensors",
            ["--as", "segformer_b0", "--labels", "/nowhere"],
            "class list '/nowhere' is neither",
        ),
        ("model.safetensors", ["--as", "segformer_b0_cityscapes", "--labels", "camvid"], "has its own"),
        ("model.safetensors", ["--as", "segformer_b0_cityscapes", "--size", "100x100"], "multiples of 32"),
        ("model.safetensors", ["--as", "segformer_b0_cityscapes", "--output", "x"], "only for --as onnx"),
        ("cut.safetensors", ["--as", "segformer_b0_cityscapes"], "cannot be read"),
        ("text.pth", ["--as", "segformer_b0_cityscapes"], "cannot be read"),
        ("list.pth", ["--as", "segformer_b0_cityscapes"], "not a state dict"),
        ("encoder.safetensors", ["--as", "segformer_b0_cityscapes"], "no decode head"),
        ("nan.safetensors", ["--as", "segformer_b0_cityscapes"], "expected finite values"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(saved, file, options, words, tmp_path, capsys):
    out = tmp_path / "sub" / "out.safetensors"
    assert main(["weights", "convert", str(saved / file), *options, "--out", str(out)]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1 and words in err[0], err
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_with_code_is_not_run(tmp_path, capsys):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"state_dict": Payload()}, tmp_path / "evil.pth")
    arguments = ["--as", "erfnet_cityscapes", "--out", str(tmp_path / "o.safetensors")]
    assert main(["weights", "convert", str(tmp_path / "evil.pth"), *arguments]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pth"]


def test_nothing_is_overwritten(saved, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    arguments = [str(saved / "model.safetensors"), "--as", "segformer_b0_cityscapes", "--out", str(out)]
    assert main(["weights", "convert", *arguments]) == 2
    assert "choose another --out" in capsys.readouterr().err and out.read_text() == "mine"


def test_the_table(tmp_path, capsys):
    assert main(["weights", "list", "--json", str(tmp_path / "t.json")]) == 0
    listed = {entry["name"]: entry for entry in json.loads((tmp_path / "t.json").read_text())}
    assert set(listed) == {
        *(f"segformer_b{n}_{data}" for n in range(6) for data in ("cityscapes", "ade20k")),
        "efficientvit_b0_cityscapes",
        "efficientvit_b1_cityscapes",
        "erfnet_cityscapes",
    }
    printed = capsys.readouterr().out
    for name, entry in listed.items():
        assert name in printed and entry["source"].startswith("https://") and entry["licence"]["name"]
        assert len(entry["classes"]) == len(entry["colors"]) == (150 if name.endswith("ade20k") else 19)
        assert 30 < entry["score"] < 90 and entry["score_source"]
    assert listed["segformer_b5_ade20k"]["repository"] == "nvidia/segformer-b5-finetuned-ade-640-640"
    names, colors = table.ade20k().names, table.ade20k().colors
    # Places that every publication of the list agrees on: wall 0, person 12, car 20, flag 149.
    assert [names[i] for i in (0, 2, 12, 20, 127, 149)] == ["wall", "sky", "person", "car", "bicycle", "flag"]
    assert (colors[0], colors[12], colors[149]) == ((120, 120, 120), (150, 5, 61), (92, 0, 255))
