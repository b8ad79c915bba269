# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Signals to every node: exit codes, no orphans, and nothing left in shared memory that blocks or fills a restart."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import psutil
import pytest
import yaml

pytest.importorskip("rclpy")

from conftest import wait_until


@pytest.fixture
def arguments(tiny_checkpoint, street_bag, tmp_path):
    """Arguments of each node, and its output or action when it is ready."""
    values = {
        "data": {"train": [str(street_bag)], "validation": [str(street_bag)], "size": [64, 32], "workers": 2},
        "model": {"architecture": "erfnet"},
        "device": "cpu",
        "save_every": 1000,
        "stages": [{"name": "static", "steps": 100_000, "batch": 1}],
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    return {
        "segmenter": ["-p", f"checkpoint:={tiny_checkpoint}", "-p", "autostart:=true"],
        "evaluator": ["-p", f"output_dir:={tmp_path / 'report'}"],
        "trainer": ["-p", f"config:={tmp_path / 'train.yaml'}", "-p", f"output_dir:={tmp_path / 'run'}"],
        "cloud": [],
    }


def children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")")[1].split()[0] != "Z"


def ready(name: str, node) -> None:
    if name == "segmenter":
        node.wait_for("window 4")
    elif name == "trainer":
        wait_until(lambda: len(children(node.process.pid)) >= 2, node.output)
    else:
        wait_until(
            lambda: "SigCgt" in Path(f"/proc/{node.process.pid}/status").read_text() and catches(node),
            node.output,
        )


def catches(node) -> bool:
    """Whether the process has set a handler for SIGTERM."""
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("name", ["segmenter", "evaluator", "trainer", "cloud"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_node_in_order(start_node, arguments, name, number):
    node = start_node(name, *arguments[name])
    ready(name, node)
    workers = children(node.process.pid)
    # The evaluator has no report to write here, and says so; the others end with 0.
    assert node.stop(number) == (1 if name == "evaluator" else 0), node.output()
    assert "Traceback" not in node.output()
    wait_until(lambda: not any(map(alive, workers)))


@pytest.mark.parametrize("name", ["segmenter", "trainer"])
def test_killed_nodes_leave_no_orphans_and_start_again(start_node, arguments, name):
    node = start_node(name, *arguments[name])
    ready(name, node)
    workers = children(node.process.pid)
    assert bool(workers) == (name == "trainer")
    node.kill()
    wait_until(lambda: not any(map(alive, workers)), lambda: f"orphans of {name}: {workers}")
    again = start_node(name, *arguments[name])
    ready(name, again)
    assert again.stop() == 0


def test_a_terminal_sends_its_signal_to_all(start_node, arguments):
    """Ctrl-C reaches the workers too; the trainer saves all the same."""
    node = start_node("trainer", *arguments["trainer"])
    ready("trainer", node)
    for pid in [*children(node.process.pid), node.process.pid]:
        os.kill(pid, signal.SIGINT)
    assert node.wait() == 0, node.output()
    assert "Traceback" not in node.output()


def segments(pid: int) -> set[Path]:
    """Shared-memory segments whose lock a process holds."""
    targets = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a starting node opens and closes files meanwhile
            targets.add(os.readlink(link))
    found = {
        Path(name.removesuffix("_el"))
        for name in targets
        if name.startswith("/dev/shm/fast") and name.endswith("_el")
    }
    return {path for path in found if "port" not in path.name}


def test_nodes_leave_the_shared_memory_of_others_alone(start_node, arguments):
    """Also segments of killed processes, which may be another program's: only the user has them removed."""
    living = start_node("evaluator", *arguments["evaluator"])
    ready("evaluator", living)
    wait_until(lambda: bool(segments(living.process.pid)))
    dead = start_node("evaluator", *arguments["evaluator"])
    wait_until(lambda: bool(segments(dead.process.pid)), dead.output)
    left = segments(dead.process.pid)
    dead.kill()
    try:
        new = start_node("evaluator", *arguments["evaluator"])
        ready("evaluator", new)
        wait_until(lambda: bool(segments(new.process.pid)))
        assert all(path.exists() for path in left)
    finally:
        for path in left:
            for file in (path, path.with_name(f"{path.name}_el")):
                file.unlink(missing_ok=True)
    assert all(path.exists() for path in segments(living.process.pid)) and living.running()
