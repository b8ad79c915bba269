# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: round trips, and every way a file can be wrong."""

from __future__ import annotations

import pickle
import struct

import pytest
import torch

from vtseg_ros.errors import CheckpointError, ConfigError
from vtseg_ros.label_set import STREET, LabelSet
from vtseg_ros.model import ERFNet, VTSeg, VTSegConfig, load_checkpoint, save_checkpoint
from vtseg_ros.model.stgru import STGRU

LABELS = LabelSet.from_names(("a", "b", "c"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VTSeg(VTSegConfig.preset("tiny", num_classes=3, window=3, depths=(1, 1, 1, 1))).eval()


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_checkpoint(file, model, labels=LABELS, input_size=(64, 32), training={"seed": 4})
    return file


def test_round_trip(model, path):
    loaded = load_checkpoint(path)
    assert (loaded.architecture, loaded.input_size, loaded.labels) == ("vtseg", (64, 32), LABELS)
    assert loaded.training == {"seed": 4} and loaded.config["window"] == 3 and not loaded.model.training
    video = torch.rand(1, 2, 3, 32, 64)
    with torch.no_grad():
        assert torch.equal(loaded.model(video), model(video))


def test_half_precision_is_half_the_size_and_close(model, path, tmp_path):
    half = tmp_path / "half.safetensors"
    save_checkpoint(half, model, labels=LABELS, input_size=(64, 32), half=True)
    assert half.stat().st_size < 0.55 * path.stat().st_size
    video = torch.rand(1, 1, 3, 32, 64)
    with torch.no_grad():
        assert torch.allclose(load_checkpoint(half).model(video), model(video), atol=2e-2)


def test_an_image_network(tmp_path):
    save_checkpoint(tmp_path / "e.safetensors", ERFNet(num_classes=3), labels=LABELS, input_size=(64, 32))
    assert load_checkpoint(tmp_path / "e.safetensors").architecture == "erfnet"


def test_truncated_at_every_percent(path, tmp_path):
    whole = path.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for percent in range(100):
        cut.write_bytes(whole[: len(whole) * percent // 100])
        with pytest.raises(CheckpointError):
            load_checkpoint(cut)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file. Copy the file again"),
        (b"hi\n", "a text file"),
        (b"these are words, not weights\n", "a text file"),
        ("weights".encode("utf-16"), "a text file"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a Git LFS pointer instead of the file itself. Run: git lfs pull",
        ),
        (b"<html>404</html>", "a web page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "a png image"),
        (b"\x00\x01" * 2000, "a file of unknown content"),
    ],
)
def test_other_files_are_named(tmp_path, content, words):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError) as err:
        load_checkpoint(tmp_path / "x.safetensors")
    assert "x.safetensors: not a checkpoint; expected a .safetensors file" in str(err.value)
    assert words in str(err.value) and "\n" not in str(err.value)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    for name, payload in (("raw", pickle.dumps(Payload())), ("zip", None)):
        file = tmp_path / f"{name}.safetensors"
        if payload is None:
            torch.save({"x": Payload()}, file)
        else:
            file.write_bytes(payload)
        with pytest.raises(CheckpointError, match="nothing of it was executed"):
            load_checkpoint(file)
    assert not (tmp_path / "executed").exists()


def test_a_header_that_claims_terabytes(tmp_path):
    file = tmp_path / "huge.safetensors"
    file.write_bytes(struct.pack("<Q", 5 * 2**40) + b"{}")
    with pytest.raises(CheckpointError, match="claims"):
        load_checkpoint(file)


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"])
def test_a_header_whose_length_begins_like_an_archive(model, tmp_path, start):
    """One length in some two thousand does."""
    path, wanted = tmp_path / "c.safetensors", int.from_bytes(start, "little") + 0x20000
    for filling in (0, None):
        if filling is None:
            filling = wanted - struct.unpack("<Q", path.read_bytes()[:8])[0]
        note = {"note": "x" * filling}
        save_checkpoint(path, model, labels=LABELS, input_size=(64, 32), training=note)
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    assert path.read_bytes()[:2] == start, hex(length)
    assert load_checkpoint(path).training == note


def test_more_classes_than_names_are_refused_before_they_are_built(tmp_path, monkeypatch):
    monkeypatch.setattr(STGRU, "__init__", lambda *_, **__: pytest.fail("built"))
    torch.manual_seed(1)
    save_checkpoint(
        tmp_path / "e.safetensors",
        ERFNet(num_classes=2),
        labels=LabelSet.from_names(["a", "b"]),
        input_size=(64, 32),
    )

    def edit(metadata, tensors):
        metadata.update(
            architecture="gru", config={"num_classes": 1500, "static_prior": "erfnet", "window": 2}
        )

    with pytest.raises(CheckpointError, match="expected 1500 names like the network's classes, got 2"):
        load_checkpoint(rewritten(tmp_path / "e.safetensors", tmp_path, edit))


def test_a_foreign_safetensors_file(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="not written by save_checkpoint"):
        load_checkpoint(tmp_path / "w.safetensors")


def rewritten(path, tmp_path, edit):
    """The checkpoint with its metadata or tensors changed."""
    import json

    from safetensors.torch import load_file, save_file

    from vtseg_ros.model.checkpoint import read_metadata

    metadata, tensors = read_metadata(path), load_file(path)
    edit(metadata, tensors)
    save_file(tensors, tmp_path / "edited.safetensors", metadata={"vtseg_ros": json.dumps(metadata)})
    return tmp_path / "edited.safetensors"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m, t: t.pop("head.fuse.0.weight"), "missing: head.fuse.0.weight"),
        (lambda m, t: t.update(extra=torch.zeros(1)), "not of this network: extra"),
        (lambda m, t: t.update({"head.classify.bias": torch.zeros(4)}), "another shape"),
        (lambda m, t: t["head.classify.bias"].fill_(float("nan")), "not finite"),
        (lambda m, t: m.update(architecture="unet"), "architecture: unknown"),
        (lambda m, t: m["class_names"].append("d"), "colour"),
        (lambda m, t: m["config"].update(static_prior="os:system"), "cannot contain code"),
        (lambda m, t: m["config"].update(embed_dims=[16, 32]), "embed_dims"),
        (lambda m, t: m.pop("input_size"), "input_size"),
        (lambda m, t: m.update(format=99), "format"),
        (lambda m, t: m.update(input_size=[1 << 20, 1 << 20]), "at most 16384"),
        (lambda m, t: m.update(input_size=[100, 100]), "multiples of 32"),
        (lambda m, t: m.update(architecture="erfnet"), "not of this network|missing"),
        (lambda m, t: m.update(architecture="gru"), "not of this network|missing"),
    ],
)
def test_wrong_contents_are_refused_by_name(path, tmp_path, edit, words):
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(rewritten(path, tmp_path, edit))


def test_names_and_folders(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint; expected a file or the name of shipped"):
        load_checkpoint("no_such_weights")
    with pytest.raises(CheckpointError, match="folder"):
        load_checkpoint(tmp_path)


def test_a_failed_write_leaves_the_old_file(model, path, monkeypatch):
    import vtseg_ros.model.checkpoint as module

    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError):
        save_checkpoint(path, model, labels=LABELS, input_size=(64, 32))
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_class_list_of_another_length(model, tmp_path):
    with pytest.raises(ConfigError, match="expected 3 like the network, got 14"):
        save_checkpoint(tmp_path / "x.safetensors", model, labels=STREET, input_size=(64, 32))


def test_one_line_from_the_command(path, tmp_path, capsys):
    from vtseg_ros.cli import main

    torch.save({"model": torch.zeros(3)}, tmp_path / "weights.pth")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:5000])
    (tmp_path / "text.safetensors").write_text("not weights\n" * 100)
    other = rewritten(path, tmp_path, lambda m, t: m.update(architecture="segformer_b0"))
    for file in (
        tmp_path / "weights.pth",
        tmp_path / "cut.safetensors",
        tmp_path / "text.safetensors",
        other,
    ):
        assert main(["info", str(file)]) == 2
        err = capsys.readouterr().err.strip().splitlines()
        assert len(err) == 1 and str(file) in err[0], err
