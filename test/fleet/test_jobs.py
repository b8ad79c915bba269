# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Jobs over many bags in this process: inputs, results, reruns and errors."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from fleet.conftest import BAGS, FRAMES, masks_of
from vtseg_ros.errors import ConfigError
from vtseg_ros.fleet import expand_inputs, plan_tasks


def test_lists_and_globs(bags, tmp_path):
    (tmp_path / "list.txt").write_text(f"# two bags\n{bags}/drive_[01]\n\n{bags}/drive_1\n")
    assert expand_inputs([str(tmp_path / "list.txt")]) == [bags / "drive_0", bags / "drive_1"]
    text = f"# two bags\r\n{bags}/drive_0\r\n\r\n{bags}/drive_1\r\n"
    for encoding, name in (("utf-8-sig", "bom.txt"), ("utf-16", "shell.txt"), ("utf-8", "LIST.TXT")):
        (tmp_path / name).write_bytes(text.encode(encoding))
        assert expand_inputs([str(tmp_path / name)]) == [bags / "drive_0", bags / "drive_1"]
    assert len(expand_inputs([f"{bags}/drive_*"])) == BAGS
    assert expand_inputs(["not/there"]) == [Path("not/there")]  # the task reports it
    with pytest.raises(ConfigError, match="no path matches"):
        expand_inputs([f"{bags}/nothing_*"])
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="the list is empty"):
        expand_inputs([str(tmp_path / "empty.txt")])
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        expand_inputs([str(tmp_path / "bytes.txt")])


def test_a_text_that_is_no_list(bags, tmp_path, monkeypatch):
    notes = tmp_path / "notes.txt"
    notes.write_text("What a drive!?\nThe camera was dirty.\n")
    with pytest.raises(ConfigError) as err:
        expand_inputs([str(notes)])
    assert "notes.txt: not a list of bags or videos; expected one path per line" in str(err.value)
    assert "got 'What a drive!?'" in str(err.value)
    notes.write_text(f"nowhere\n{bags}/drive_0\n")  # one missing bag does not stop the others
    assert expand_inputs([str(notes)]) == [Path("nowhere"), bags / "drive_0"]
    notes.write_text(f"{bags}/drive_0\n{notes}\n")
    with pytest.raises(ConfigError, match="the list contains itself"):
        expand_inputs([str(notes)])
    monkeypatch.setenv("HOME", str(bags))
    notes.write_text("~/drive_0\ns3://bucket/drive_1\n")
    first, second = expand_inputs([str(notes)])
    assert (first, str(second)) == (bags / "drive_0", "s3://bucket/drive_1")


def test_tasks_have_names_and_frames(bags, tmp_path):
    first, second = plan_tasks([bags / "drive_0", tmp_path / "absent"], tmp_path / "out")
    assert first.output == tmp_path / "out" / "drive_0" and first.frames == FRAMES
    assert second.frames == 0
    with pytest.raises(ConfigError, match="same name"):
        plan_tasks([bags / "drive_0", tmp_path / "drive_0"], tmp_path)


def test_one_unreadable_bag_among_others_and_a_second_run(broken, segment, tmp_path, capsys):
    out = tmp_path / "out"
    assert segment(f"{broken}/*", "--out", out, "--json", tmp_path / "first.json") == 1
    shown = capsys.readouterr()
    assert len([line for line in shown.err.splitlines() if line.startswith("failed:")]) == 1
    found = json.loads((tmp_path / "first.json").read_text())
    assert [(entry["state"], entry["attempts"]) for entry in found] == [
        ("done", 1),
        ("failed", 3),
        ("done", 1),
    ]
    assert str(broken / "drive_1") in shown.err
    assert sorted(path.name for path in out.iterdir()) == ["drive_0", "drive_2"]
    single = tmp_path / "single"
    assert segment(broken / "drive_2", "--out", single / "masks") == 0
    assert masks_of(out / "drive_2") == masks_of(single) and len(masks_of(single)) == FRAMES
    good = [broken / "drive_0", broken / "drive_2"]
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert segment(*good, "--out", out, "--json", tmp_path / "second.json") == 0
    assert [entry["state"] for entry in json.loads((tmp_path / "second.json").read_text())] == ["skipped"] * 2
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == written


def test_results_of_other_settings_input_or_checkpoint_are_not_overwritten(
    broken, segment, tiny_checkpoint, tmp_path, capsys
):
    bag, out = broken / "drive_0", tmp_path / "out"
    arguments = [bag, broken / "drive_2", "--out", out]
    assert segment(*arguments) == 0
    before = masks_of(out / "drive_0")
    assert segment(*arguments, "--min-confidence", "0.5") == 1
    assert "got other settings" in capsys.readouterr().err
    other = tmp_path / "other.safetensors"
    other.write_bytes(tiny_checkpoint.read_bytes() + b" ")
    with (next(bag.glob("*.mcap"))).open("ab") as file:
        file.write(b"\0")
    assert segment(*arguments) == 1
    assert "got other input" in capsys.readouterr().err
    assert masks_of(out / "drive_0") == before
    (out / "drive_2" / "result.json").unlink()
    assert segment(*arguments) == 1
    assert "no readable result.json" in capsys.readouterr().err


def test_options_that_do_not_fit_a_job(bags, segment, tmp_path, capsys):
    two = [bags / "drive_0", bags / "drive_1"]
    assert segment(*two, "--out", tmp_path / "out", "--overlay", tmp_path / "a.mp4") == 2
    assert segment(*two) == 2
    assert segment(*two, "--out", tmp_path / "out", "--ray", "nowhere") == 2
    assert segment(*two, "--out", tmp_path / "out", "--ray", "local", "--cpus", "0") == 2
    assert segment(*two, "--out", tmp_path / "out", checkpoint=tmp_path / "absent.safetensors") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vtseg")]
    assert len(errors) == 5 and "HOST:PORT" in errors[2] and "--cpus" in errors[3], errors
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_is_not_there(bags, segment, tmp_path, capsys):
    with socket.socket() as free:  # bound and not listening
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        assert segment(bags / "drive_0", "--out", tmp_path / "out", "--ray", address) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vtseg")]
    assert len(lines) == 1 and address in lines[0] and "cannot be reached" in lines[0]
