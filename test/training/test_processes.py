# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Training as real processes: several at once, killed, stopped, without room to write."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import Process, wait_until

pytest.importorskip("lightning_fabric")

from vtseg_ros.label_set import STREET
from vtseg_ros.model import ERFNet, save_checkpoint

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "COLUMNS": "200",
}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
CLI = ("-m", "vtseg_ros.cli", "train")


@pytest.fixture
def write(tmp_path, street_bag):
    """Write a training YAML of a tiny network; keywords change its top level."""

    def write(name: str = "train", **changes) -> Path:
        values = {
            "data": {
                "train": [str(street_bag)],
                "validation": [str(street_bag)],
                "size": [64, 32],
                "labels": "street",
                "workers": 0,
                "validation_every": 15,
            },
            "model": {"preset": "tiny", "overrides": {"window": 2, "depths": [1, 1, 1, 1]}},
            "stages": [{"name": "static", "steps": 4, "batch": 2}, {"name": "video", "steps": 4, "batch": 1}],
            "device": "cpu",
            "log_every": 1,
            "save_every": 3,
            **changes,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def start(start_process):
    """start(program, argument, ...) starts a process that finds the package."""
    return lambda *command, **options: start_process(command, ENVIRONMENT, **options)


def finish(process: Process) -> tuple[int, str]:
    """Exit code and what it printed."""
    return process.wait(), process.output()


def losses(folder: Path) -> dict[int, float]:
    """Loss by update, from the TensorBoard files; the last one written counts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}


def test_two_processes_have_the_gradients_and_scores_of_one(write, start, tmp_path):
    """Two with batch 1 and one with batch 2; then, the static network's loss added, two with two batches each and one
    with four windows at once, without and with a teacher. Half of the labels are of groups of two classes."""
    data = yaml.safe_load(write().read_text())["data"]
    groups = {name: [name, other] for name, other in zip(STREET.names, (*STREET.names[1:], STREET.names[0]))}
    data["train"].append({"path": data["train"][0], "class_groups": groups})
    data["label_stride"] = 2  # real windows have one label of two
    teacher = {"teacher": str(tmp_path / "teacher"), "teacher_temperature": 2.0}
    save_checkpoint(tmp_path / "teacher", ERFNet(num_classes=14), labels=STREET, input_size=(64, 32))
    results = {}
    for name, prefix, sizes in (
        ("one", (sys.executable,), ((2, 1), (4, 1), (4, 1))),
        ("two", (*TORCHRUN, 2), ((1, 1), (1, 2), (1, 2))),
    ):
        stages = [
            {"name": "end_to_end", "steps": 1, "batch": b, "accumulate": a, "static_loss": 0.5 * number}
            | (teacher if number == 2 else {})
            for number, (b, a) in enumerate(sizes)
        ]
        path = write(name, data=data, augmentation={"pseudo_clips": 0.5}, stages=stages, seed=0)
        code, output = finish(start(*prefix, HERE / "gradients.py", path, tmp_path / name))
        assert code == 0, output
        results[name] = torch.load(tmp_path / name / "gradients.pt", weights_only=True)
    counts = [torch.load(tmp_path / "two" / f"counts_{rank}.pt", weights_only=True) for rank in (0, 1)]
    for number, (one, two) in enumerate(zip(results["one"]["updates"], results["two"]["updates"])):
        per_rank = [count[number] for count in counts]
        # A mean of the two ranks' means would be far off.
        if number < 2:  # with a teacher all pixels of an image count
            assert min(per_rank) > 0 and max(per_rank) > 1.3 * min(per_rank), per_rank
        assert two["loss"] == pytest.approx(one["loss"], rel=5e-6)  # float32 sums in another order
        assert one["gradients"].keys() == two["gradients"].keys() and len(one["gradients"]) > 100
        for key, value in one["gradients"].items():
            scale = float(value.abs().max())
            assert torch.allclose(two["gradients"][key], value, rtol=1e-4, atol=1e-5 * scale + 1e-9), key
    one, two = results["one"]["validation"], results["two"]["validation"]
    assert len(one["sweep"]) == 2 and len(one["attention"]) == 12
    for key in ("miou", "static_miou", "agreement", "sweep", "attention"):
        assert two[key] == pytest.approx(one[key], abs=1e-3), key


@pytest.mark.long  # with torchrun as the test above
def test_torchrun_trains_all_stages(write, start, tmp_path):
    """Every process takes its part and one writes."""
    path = write(
        stages=[{"name": name, "steps": 2, "batch": 1} for name in ("static", "video", "end_to_end")]
    )
    code, output = finish(
        start(*TORCHRUN, 2, *CLI, path, "--out", tmp_path / "run", "--json", tmp_path / "f.json")
    )
    assert code == 0 and output.count("done at iteration 6 of 6") == 1, output
    lines = [json.loads(line) for line in (tmp_path / "run" / "validation.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["static", "video", "end_to_end"]
    assert json.loads((tmp_path / "f.json").read_text())["step"] == 6


@pytest.mark.long  # test_run.py stops and resumes runs, faults/test_writing.py kills what writes
def test_killed_at_a_random_update_it_resumes_to_the_same_losses(write, start, tmp_path):
    path = write()
    code, output = finish(start(sys.executable, *CLI, path, "--out", tmp_path / "whole"))
    assert code == 0, output
    whole = losses(tmp_path / "whole")
    assert sorted(whole) == list(range(1, 9))
    folder = tmp_path / "killed"
    stage, step = divmod(
        int(np.random.default_rng().integers(3, 7)), 4
    )  # after the first save, before the end
    log, line = folder / "train.log", f"stage {('static', 'video')[stage]}, step {step + 1}/4"
    process = start(sys.executable, *CLI, path, "--out", folder)
    wait_until(
        lambda: not process.running() or (log.is_file() and line in log.read_text()),
    )
    process.kill()
    code, output = finish(process)
    assert code == -signal.SIGKILL, f"{code}: {output}"
    state = torch.load(folder / "state.pt", weights_only=True)
    done = 4 * state["stage"] + state["step"]
    code, output = finish(start(sys.executable, *CLI, path, "--out", folder, "--resume"))
    assert code == 0 and "done at iteration 8 of 8" in output, output
    again = losses(folder)
    assert sorted(again) == sorted(whole)
    for step in range(done + 1, 9):
        assert again[step] == pytest.approx(whole[step], abs=1e-6), f"step {step}, resumed after {done}"
    for name in ("validation.jsonl",):  # nothing twice, nothing lost
        stages = [json.loads(line)["stage"] for line in (folder / name).read_text().splitlines()]
        assert stages == ["static", "video"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_to_all_its_processes_saves_and_ends(write, start, tmp_path, number):
    """As Ctrl-C in a terminal and systemd do: workers get the signal too."""
    data = yaml.safe_load(write().read_text())["data"]
    path = write(
        stages=[{"name": "static", "steps": 100000, "batch": 1}],
        data={**data, "workers": 1},
        save_every=10**6,
    )
    folder = tmp_path / "run"
    process = start(sys.executable, *CLI, path, "--out", folder, start_new_session=True)
    log = folder / "train.log"
    wait_until(lambda: not process.running() or (log.is_file() and "step 2/" in log.read_text()))
    os.killpg(process.process.pid, number)
    code, output = finish(process)
    assert code == 0 and "stopped and saved at iteration" in output, output
    assert torch.load(folder / "state.pt", weights_only=True)["step"] >= 2
    assert "labelled frames: 30 for training, 2 for validation" in log.read_text()


def test_without_room_for_the_state_the_old_one_stays(write, start, tmp_path):
    """A limit on file sizes, which the operating system enforces as it does a full disk."""
    path, folder = (
        write(stages=[{"name": "static", "steps": 3, "batch": 1}], save_every=10**6),
        tmp_path / "run",
    )
    code, output = finish(start(sys.executable, *CLI, path, "--out", folder))
    assert code == 0, output
    before = {name: (folder / name).read_bytes() for name in ("state.pt", "last.safetensors")}
    # It saves after the first update, before a validation writes anything else.
    path = write(
        stages=[{"name": "static", "steps": 3, "batch": 1}, {"name": "video", "steps": 2}], save_every=1
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    code, output = finish(start(sys.executable, *CLI, path, "--out", folder, "--resume", preexec_fn=limit))
    assert code == 2 and "Traceback" not in output, output
    assert "vtseg train: cannot save to" in output and "continue from it with --resume" in output, output
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))
    code, output = finish(start(sys.executable, *CLI, path, "--out", folder, "--resume"))
    assert code == 0 and "done at iteration 5 of 5" in output, output
