# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Full and read-only disks, and processes killed while they write: what was there stays, the latest always loads."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import PATIENCE_S

from vtseg_ros.cli import main
from vtseg_ros.evaluation.report import ReportData, write_report
from vtseg_ros.evaluation.score import Scores
from vtseg_ros.label_set import STREET, LabelSet
from vtseg_ros.model import ERFNet, load_checkpoint, save_checkpoint
from vtseg_ros.training.config_file import load_config
from vtseg_ros.training.run import train
from vtseg_ros.training.state import load_state, save_state

LABELS = LabelSet.from_names(["road", "car"])


def _write_for_ever(folder: Path, model: ERFNet, number: int, ready: int) -> None:
    torch.set_num_threads(1)  # the threads of the parent's pool are not in this process
    parent = os.getppid()
    while os.getppid() == parent:
        number += 1
        save_checkpoint(
            folder / "last.safetensors",
            model,
            labels=LABELS,
            input_size=(64, 32),
            training={"number": number},
        )
        save_state(folder, {"number": number, "weights": torch.zeros(300_000)})
        os.write(ready, b".")


def _wait_for_temporary_file(folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not any(name.endswith(".tmp") for name in os.listdir(folder)):
        assert time.monotonic() < deadline, "the child does not write"


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.long)])
def test_killed_many_times_while_writing(tmp_path, rng, kills):
    """SIGKILL at random moments: the latest checkpoint and state always load and never go back; no litter grows."""
    model = ERFNet(num_classes=2).eval()
    save_checkpoint(
        tmp_path / "last.safetensors", model, labels=LABELS, input_size=(64, 32), training={"number": 0}
    )
    save_state(tmp_path, {"number": 0})
    newest, advanced, orphans = 0, 0, 0
    for number in range(kills):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:  # only writes until it is killed; never returns into pytest
            with contextlib.suppress(BaseException):
                _write_for_ever(tmp_path, model, newest, writing)
            os._exit(1)
        os.close(writing)
        os.read(reading, 1)
        if number % 2:
            time.sleep(float(rng.uniform(0, 0.06)))
        else:  # during a write, however busy the machine is
            _wait_for_temporary_file(tmp_path)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it was to be killed, not to fail"
        os.close(reading)
        latest = load_checkpoint(tmp_path / "last.safetensors").training["number"]
        assert latest >= newest and 0 <= latest - load_state(tmp_path)["number"] <= 1
        advanced, newest = advanced + (latest > newest), latest
        left = [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
        orphans += len(left)
        assert len(left) <= 2, left
    assert advanced == kills and orphans > 0, "a kill must have hit a write, or nothing was shown"


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 16 MB; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small disk here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _fill(folder: Path, leave: int) -> None:
    free = os.statvfs(folder)
    (folder / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - leave))


def training_yaml(folder: Path, bag: Path) -> Path:
    values = {
        "data": {
            "train": [str(bag)],
            "validation": [str(bag)],
            "size": [64, 32],
            "workers": 0,
            "validation_every": 10,
        },
        "model": {"architecture": "erfnet"},
        "device": "cpu",
        "save_every": 2,
        "stages": [{"name": "static", "steps": 6, "batch": 1}],
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(values))
    return folder / "train.yaml"


def test_training_onto_a_full_disk(small_disk, tmp_path, street_bag, capsys):
    """One line on standard error, exit code not 0, earlier files can still be loaded, no incomplete files."""
    config, run = training_yaml(tmp_path, street_bag), small_disk / "run"
    stop: list[int] = []
    assert not train(
        load_config(config), run, on_progress=lambda _: stop.append(1), should_stop=lambda: bool(stop)
    )
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    _fill(small_disk, 3_000_000)
    code = main(["train", str(config), "--out", str(run), "--resume"])
    err = capsys.readouterr().err
    assert code != 0 and "No space left on device" in err and "Traceback" not in err
    assert "state.pt is unchanged: continue from it with --resume" in err
    for name in ("state.pt", "last.safetensors"):
        assert (run / name).read_bytes() == before[name]
    assert load_checkpoint(run / "last.safetensors").labels == STREET
    assert not [path for path in small_disk.rglob("*") if path.name.endswith(".tmp")]


def test_masks_onto_a_full_disk(small_disk, street_bag, tiny_checkpoint, capsys):
    _fill(small_disk, 20_000)
    code = main(
        ["segment", str(street_bag), "--checkpoint", str(tiny_checkpoint), "--out", str(small_disk / "masks")]
    )
    err = capsys.readouterr().err
    assert code != 0 and "space" in err and "Traceback" not in err, err


def test_reports_onto_a_full_disk(small_disk, rng):
    scores = Scores(STREET)
    mask = rng.integers(0, 14, (32, 64), dtype=np.uint8)
    scores.update(1, mask, mask, np.zeros((32, 64, 3), np.uint8))
    data = ReportData(
        title="t", scores=scores, systems=[scores.as_system(name="s", model="m", checkpoint="c", window=1)]
    )
    before = [path.read_bytes() for path in write_report(small_disk, data)]
    _fill(small_disk, 4096)
    with pytest.raises(OSError, match="No space"):
        for _ in range(3):
            write_report(small_disk, data)
            _fill_more = small_disk / "more"
            _fill_more.write_bytes(b"x" * 4096)
    assert [(small_disk / name).stat().st_size for name in ("report.json", "report.html")] == [
        len(b) for b in before
    ]


@pytest.mark.parametrize(
    "command",
    [
        ["synth", "--frames", "1", "--out"],
        ["segment", "BAG", "--checkpoint", "CHECKPOINT", "--out"],
        ["train", "YAML", "--out"],
    ],
)
def test_a_read_only_disk(tmp_path, street_bag, tiny_checkpoint, command):
    """Also for root, who ignores permissions: a read-only mount, in a separate process."""
    folder = tmp_path / "disk"
    folder.mkdir()
    names = {
        "BAG": str(street_bag),
        "CHECKPOINT": str(tiny_checkpoint),
        "YAML": str(training_yaml(tmp_path, street_bag)),
    }
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        folder.chmod(0o500)
    try:
        arguments = [*(names.get(word, word) for word in command), str(folder / "out")]
        done = subprocess.run(
            [sys.executable, "-m", "vtseg_ros.cli", *arguments], capture_output=True, text=True, timeout=600
        )
    finally:
        subprocess.run(["umount", str(folder)], capture_output=True)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
    assert "Read-only file system" in done.stderr or "Permission denied" in done.stderr, done.stderr
