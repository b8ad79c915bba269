# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several folders share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
pytest_plugins = ["tiers", "pytester"]
# Before torch starts its threads: tests run beside the processes they start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Before any library imports Ray, which then listens on all interfaces.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
PATIENCE_S = 400.0
"""How long a test waits for an event before it fails: a bound for hangs, which a busy machine must not reach.

`wait_until` does not count the time in which a process of this machine waits for a processor, up to LONGEST_WAIT_S.
"""
LONGEST_WAIT_S = 1500.0
"""Shorter than pytest's `timeout`, which would report nothing of the process that hangs."""
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
# Converting a network for OpenVINO takes seconds: tests of other things run in PyTorch.
os.environ.setdefault("VTSEG_BACKEND", "torch")
# By default, an example that takes more than 0.2 s fails, which a busy machine reaches.
hypothesis.settings.register_profile("vtseg_ros", deadline=None)
hypothesis.settings.load_profile("vtseg_ros")


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    import torch

    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The folder with the CamVid bags, from the environment."""
    folder = os.environ.get("VTSEG_CAMVID")
    if not folder:
        pytest.skip("VTSEG_CAMVID is not set")
    return Path(folder)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def street_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames of synthetic street, 128x64, without flow and depth."""
    from vtseg_ros.cli import main

    path = tmp_path_factory.mktemp("bags") / "street"
    code = main(
        [
            "synth",
            "--out",
            str(path),
            "--scene",
            "5",
            "--frames",
            "30",
            "--size",
            "128x64",
            "--no-flow",
            "--no-depth",
        ]
    )
    assert code == 0
    return path


@pytest.fixture(scope="session")
def street_flow_bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 frames of synthetic street, 128x64, with flow and without depth."""
    from vtseg_ros.cli import main

    path = tmp_path_factory.mktemp("bags") / "street_flow"
    assert (
        main(
            ["synth", "--out", str(path), "--scene", "5", "--frames", "12", "--size", "128x64", "--no-depth"]
        )
        == 0
    )
    return path


def make_checkpoint(path: Path, prior: object = None, labels: object = None, **overrides: object) -> Path:
    """A tiny VTSeg with random weights, input 64x32, the 14 street classes if no others are given."""
    import torch

    from vtseg_ros.label_set import STREET
    from vtseg_ros.model import VTSeg, VTSegConfig, save_checkpoint

    torch.manual_seed(3)
    labels = labels or STREET
    config = VTSegConfig.preset("tiny", num_classes=len(labels), **overrides)
    model = VTSeg(config, static_prior=prior).eval()
    # Random weights leave nearly flat logits; larger ones make masks that differ from place to place.
    torch.nn.init.normal_(model.head.classify.weight, std=3.0)
    save_checkpoint(path, model, labels=labels, input_size=(64, 32))
    return path


def randomize_batch_norm(network: object) -> None:
    """Statistics as after training, so that leaving a BatchNorm out shows."""
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.2, 2)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests in which any VTSeg will do: one block per stage loads and runs in half the time of two."""
    return make_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.safetensors", depths=(1, 1, 1, 1))


@pytest.fixture(scope="session")
def ros_environment() -> dict[str, str]:
    """Loopback DDS on a domain of this test run's own."""
    pytest.importorskip("rclpy")
    from vtseg_ros.nodes.dds import free_domain

    profile = str(ROOT / "config" / "fastdds" / "loopback.xml")
    return {
        **os.environ,
        "ROS_DOMAIN_ID": str(free_domain()),
        "FASTRTPS_DEFAULT_PROFILES_FILE": profile,
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


class Process:
    """A process that a test starts; its output goes to a file.

    Args:
        command: program and arguments.
        log: file for standard output and standard error.
        environment: its environment; that of the test if None.
        options: further arguments of `subprocess.Popen`.
    """

    def __init__(
        self,
        command: Sequence[object],
        log: Path,
        environment: dict[str, str] | None = None,
        **options: object,
    ) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                **options,
            )

    def output(self) -> str:
        return self.log.read_text()

    def running(self) -> bool:
        return self.process.poll() is None

    def peak_memory_mb(self) -> float:
        """Most resident memory that the process had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def wait_for(self, text: str) -> None:
        """Wait until the output has a text."""
        wait_until(lambda: text in self.output() or not self.running(), self.output)
        assert text in self.output(), self.output()

    def wait(self) -> int:
        """Wait for the end; its exit code. A process that does not end is killed."""
        try:
            wait_until(lambda: not self.running(), self.output)
        except AssertionError:
            self.kill()
            raise
        return self.process.returncode

    def stop(self, number: int = signal.SIGINT) -> int:
        """Signal the process; its exit code."""
        if self.running():
            self.process.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def write_endless_training(path: Path, bag: Path) -> None:
    """Write the configuration of a training that does not end by itself."""
    values = {
        "data": {"train": [str(bag)], "validation": [str(bag)], "size": [64, 32], "workers": 0},
        "model": {"architecture": "erfnet"},
        "device": "cpu",
        "stages": [{"name": "static", "steps": 100_000, "batch": 1}],
    }
    path.write_text(yaml.safe_dump(values))


def wait_until(condition: Callable[[], object], say: Callable[[], str] = lambda: "") -> None:
    """Poll a condition; after PATIENCE_S, fail with the text that `say` returns."""
    began, busy_before = time.monotonic(), _busy_s()
    while not condition():
        elapsed = time.monotonic() - began
        if elapsed > PATIENCE_S:
            counted = elapsed - (_busy_s() - busy_before)
            assert counted < PATIENCE_S and elapsed < LONGEST_WAIT_S, (
                f"timed out after {elapsed:.0f} s. {say()}"
            )
        time.sleep(0.02)


def _busy_s() -> float:
    """How long processes of this machine have waited for a processor, in seconds; 0 where Linux does not count it."""
    try:
        some = Path("/proc/pressure/cpu").read_text().splitlines()[0]
    except OSError:
        return 0.0
    return int(some.rpartition("total=")[2]) / 1e6


@pytest.fixture(scope="module")
def start_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Process]]:
    """start_process([program, argument, ...], environment) starts a process; ended with the module."""
    folder, started = tmp_path_factory.mktemp("processes"), []

    def start(
        command: Sequence[object], environment: dict[str, str] | None = None, **options: object
    ) -> Process:
        started.append(Process(command, folder / f"{len(started)}.log", environment, **options))
        return started[-1]

    yield start
    left = [process for process in started if process.running()]
    for process in left:  # all at once, since ending takes a second
        process.process.send_signal(signal.SIGINT)
    stuck = [process for process in left if _is_stuck(process)]
    assert not stuck, [process.output() for process in stuck]


def _is_stuck(process: Process) -> bool:
    try:
        process.wait()
    except AssertionError:
        return True
    return False


@pytest.fixture(scope="module")
def start_node(
    ros_environment: dict[str, str], start_process: Callable[..., Process]
) -> Callable[..., Process]:
    """start_node("segmenter", "-p", "window:=2", ...) starts `vtseg_ros.nodes.segmenter`; ended with the module."""

    def start(name: str, *arguments: str, environment: dict[str, str] | None = None) -> Process:
        command = [sys.executable, "-m", f"vtseg_ros.nodes.{name}", "--ros-args", *arguments]
        return start_process(command, {**ros_environment, **(environment or {})})

    return start


@pytest.fixture(scope="module")
def start_cli(
    ros_environment: dict[str, str], start_process: Callable[..., Process]
) -> Callable[..., Process]:
    """start_cli("play", bag, ...) starts `vtseg play BAG ...` in the test run's domain; ended with the module."""

    def start(*arguments: object) -> Process:
        return start_process([sys.executable, "-m", "vtseg_ros.cli", *arguments], ros_environment)

    return start


@pytest.fixture(scope="module")
def start_segmenter(start_node: Callable[..., Process]) -> Callable[..., Process]:
    """start_segmenter("/namespace", checkpoint, "-p", "max_gap:=5.0", ...): active, no image lost.

    `window` is the one that the node reports, of `make_checkpoint` 4.
    """

    def start(
        namespace: str, checkpoint: Path, *arguments: str, window: int = 4, **options: object
    ) -> Process:
        node = start_node(
            "segmenter",
            "-r",
            f"__ns:={namespace}",
            "-p",
            f"checkpoint:={checkpoint}",
            "-p",
            "autostart:=true",
            "-p",
            "input_qos:=reliable",
            *arguments,
            **options,
        )
        node.wait_for(f"window {window}")
        return node

    return start


@pytest.fixture(scope="module")
def harness(ros_environment: dict[str, str]):
    """A node of the test's own on the run's domain (see `nodes.harness`)."""
    from nodes.harness import Harness

    made = Harness(ros_environment)
    yield made
    made.close()
