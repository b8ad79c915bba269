# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Commands as a user types them: results, exit codes, one line for a mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.label_messages import decode_label
from vtseg_ros.bags.messages import stamp_of
from vtseg_ros.cli import main


def test_segment_a_bag(street_bag, tiny_checkpoint, tmp_path, capsys):
    out, video = tmp_path / "masks", tmp_path / "overlay.mp4"
    code = main(
        [
            "segment",
            str(street_bag),
            "--checkpoint",
            str(tiny_checkpoint),
            "--out",
            str(out),
            "--overlay",
            str(video),
            "--json",
            str(tmp_path / "figures.json"),
            "--device",
            "cpu",
        ]
    )
    assert code == 0 and "30 masks" in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text())["frames"] == 30
    with BagReader(street_bag) as bag:
        stamps = [stamp_of(m) for _, _, m in bag.messages(["/camera/image"])]
    with BagReader(out) as bag:
        masks = [
            (stamp_of(m), decode_label(m)) for _, _, m in bag.messages(["/segmentation/mask/compressed"])
        ]
    assert [stamp for stamp, _ in masks] == stamps
    assert all(mask.shape == (64, 128) and mask.max() < 14 for _, mask in masks)
    capture = cv2.VideoCapture(str(video))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 30
    frame = capture.read()[1]
    assert frame.shape == (640, 640, 3)  # 128x64 enlarged to 640x320, overlay above colours


def test_segment_a_video(tiny_checkpoint, tmp_path, capsys):
    path = tmp_path / "drive.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for shade in range(5):
        writer.write(np.full((48, 64, 3), 40 * shade, np.uint8))
    writer.release()
    code = main(
        [
            "segment",
            str(path),
            "--checkpoint",
            str(tiny_checkpoint),
            "--out",
            str(tmp_path / "b"),
            "--device",
            "cpu",
        ]
    )
    assert code == 0 and "5 masks" in capsys.readouterr().out


def test_info(street_bag, tiny_checkpoint, tmp_path, capsys):
    assert main(["info", str(street_bag), "--json", str(tmp_path / "bag.json")]) == 0
    bag = json.loads((tmp_path / "bag.json").read_text())
    assert (bag["image_topic"], bag["label_topic"]) == ("/camera/image", "/camera/label")
    assert bag["topics"]["/camera/image"]["messages"] == 30 and bag["classes"][5] == "road"
    assert main(["info", str(tiny_checkpoint), "--json", str(tmp_path / "c.json")]) == 0
    assert json.loads((tmp_path / "c.json").read_text())["architecture"] == "vtseg"
    assert "road" in capsys.readouterr().out


def test_info_shows_whole_types_in_a_narrow_terminal(street_bag, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    assert main(["info", str(street_bag)]) == 0
    assert "…" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["segment", "/nowhere", "--out", "/tmp/x"], "no such bag or video"),
        (["segment", "/nowhere"], "nothing to write"),
        (["info", "/nowhere.safetensors"], "no such bag or checkpoint"),
        (
            ["synth", "--out", "X", "--scene", "9"],
            "scene: unknown; expected one of 1, 2, 3, 4, 5, all, got '9'",
        ),
        (["synth", "--out", "X", "--variation", "snow"], "variation: unknown"),
        (["synth", "--out", "X", "--frames", "0"], "at least 1 frame"),
        (["bench", "--plot", "no/where.png"], "--plot: no such folder; expected no to exist"),
        (["bench", "--window", "65"], "--window: out of range; expected 1 to 64 frames, got 65"),
        (["flops", "--window", "1000000"], "--window: out of range; expected 1 to 64 frames, got 1000000"),
        (["export", "C", "--out", "x.onnx", "--window", "65"], "1 to 64 frames, or 0 (as in the checkpoint)"),
        (["flops", "--json", "-"], "--json -: not the name of a report"),
        (["labels", "extract", "BAG", "--out", "X", "--json", "-"], "--json -: not the name of a report"),
        (["flops", "--classes", "-1"], "--classes: out of range; expected 1 to 255, got -1"),
        (["synth", "--out", "X", "--seed", "-1"], "seed: out of range; expected at least 0, got -1"),
        (["synth", "--out", "X", "--frames", "1" + 20 * "0"], "--frames: out of range; expected at most"),
        (["train", "/nowhere.yaml", "--out", "X"], "cannot be read"),
    ],
)
def test_mistakes_end_with_2_and_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vtseg")]
    assert len(err) == 1 and words in err[0]


def test_a_name_of_several_lines_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["segment", "no\nwhere", "--out", "x"]) == 2
    assert capsys.readouterr().err == (
        "vtseg segment: no\\nwhere: no such bag or video; expected an existing one. Correct the path\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment", "BAG", "--out", "x", "--max-gap", "nan"],
        ["evaluate", "BAG", "--start", "nan"],
        ["import", "video", "BAG", "--out", "x", "--end", "NaN"],
        ["pseudolabel", "BAG", "--checkpoint", "C", "--out", "x", "--scales", "1", "nan"],
    ],
)
def test_no_number_is_nan(arguments, street_bag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(street_bag) if text == "BAG" else text for text in arguments]) == 2
    err = capsys.readouterr().err
    assert ": not a number; expected a number, got nan" in err and not list(tmp_path.iterdir())


def test_the_home_folder(street_bag, tmp_path, monkeypatch):
    """Shells leave `~` as it is behind `=`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert main(["synth", "--out=~/drive", "--frames", "1", "--size", "64x32", "--json=~/made.json"]) == 0
    assert (tmp_path / "home/drive/metadata.yaml").is_file() and (tmp_path / "home/made.json").is_file()
    assert not (tmp_path / "~").exists()
    (tmp_path / "~x").mkdir()  # a name that begins with ~ and is no user
    assert main(["synth", "--out=~x/drive", "--frames", "1", "--size", "64x32"]) == 0
    assert (tmp_path / "~x/drive").is_dir()


def test_reports_replace_reports_only(street_bag, tmp_path, capsys):
    video, folder, old = tmp_path / "drive.mp4", tmp_path / "folder", tmp_path / "old.json"
    video.write_bytes(b"\x00\x00\x00\x20ftypisom")
    folder.mkdir()
    old.write_text("{}")
    (tmp_path / "empty").touch()
    for path, words in (
        (video, "only an earlier report is overwritten; expected a new file or JSON, got an mp4"),
        (folder, "a folder; expected a file name"),
        (video / "x.json", "expected a folder, got"),
    ):
        assert main(["info", str(street_bag), "--json", str(path)]) == 2
        assert words in capsys.readouterr().err
    assert main(["evaluate", str(street_bag), "--html", str(video)]) == 2
    assert "--html" in capsys.readouterr().err and video.read_bytes()[4:8] == b"ftyp"
    for name in ("old.json", "empty", "a/new/folder/x.json"):
        assert main(["info", str(street_bag), "--json", str(tmp_path / name)]) == 0
        assert json.loads((tmp_path / name).read_text())["seconds"] == 2.9


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_missing_memory_is_one_line(error, monkeypatch, capsys):
    from vtseg_ros.commands import flops

    def build(*_) -> None:
        raise error

    monkeypatch.setattr(flops, "build", build)
    assert main(["flops"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("vtseg flops: out of memory; ") and err.count("\n") == 1


def test_names_that_no_encoding_prints(street_bag, tmp_path):
    path = tmp_path / os.fsdecode(b"drive_\xff")
    shutil.copytree(street_bag, path)
    done = subprocess.run(
        [sys.executable, "-m", "vtseg_ros.cli", "info", str(path)], capture_output=True, check=False
    )
    assert done.returncode == 0 and b"\\udcff" in done.stdout


def test_synth_leaves_out_what_it_is_told_to(tmp_path):
    path = tmp_path / "drive"
    size = ["--frames", "2", "--size", "64x32"]
    assert main(["synth", "--out", str(path), *size, "--no-label", "--no-depth", "--no-flow"]) == 0
    with BagReader(path) as bag:
        assert set(bag.topics) == {"/camera/image", "/camera/camera_info"}
    assert main(["synth", "--out", str(tmp_path / "all"), *size, "--compressed", "--storage", "sqlite3"]) == 0
    with BagReader(tmp_path / "all") as bag:
        assert set(bag.topics) == {
            "/camera/image/compressed",
            "/camera/label/compressed",
            "/camera/label_map",
            "/camera/depth",
            "/camera/flow_forward",
            "/camera/flow_backward",
            "/camera/camera_info",
        }


def test_nothing_is_overwritten(street_bag, capsys):
    assert main(["synth", "--out", str(street_bag), "--frames", "1"]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["frobnicate"], ["synth"], ["synth", "--out", "x", "--size", "640"]]
)
def test_wrong_arguments_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "usage" in capsys.readouterr().err


def test_names_that_begin_with_a_dash(street_bag, tmp_path, monkeypatch, capsys):
    (tmp_path / "-drive").symlink_to(street_bag)
    monkeypatch.chdir(tmp_path)
    assert main(["info", "--", "-drive"]) == 0
    assert "/camera/image" in capsys.readouterr().out


def test_missing_extra(monkeypatch, capsys):
    def imported(name):
        raise ModuleNotFoundError("No module named 'lightning_fabric'", name="lightning_fabric")

    monkeypatch.setattr("vtseg_ros.cli.importlib.import_module", imported)
    assert main(["train", "train.yaml"]) == 2
    assert capsys.readouterr().err == (
        "vtseg train: the package lightning_fabric is missing; expected it to be installed. "
        "Run: pip install 'vtseg_ros[train]'\n"
    )


def test_missing_module_of_no_extra(monkeypatch):
    def imported(name):
        raise ModuleNotFoundError("No module named 'absent'", name="absent")

    monkeypatch.setattr("vtseg_ros.cli.importlib.import_module", imported)
    with pytest.raises(ModuleNotFoundError, match="absent"):
        main(["train", "train.yaml"])
