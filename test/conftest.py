"""Fixtures for all tests: devices, real data, and real nodes in processes of their own."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STOP_TIMEOUT_S = 20.0


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """Each torch device in turn; skips the ones that this machine lacks."""
    import torch  # the tests of the node processes do not need it

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The folder with camvid_train/ and camvid_val/, named by VTSEG_CAMVID."""
    folder = os.environ.get("VTSEG_CAMVID")
    if not folder:
        pytest.skip("VTSEG_CAMVID is not set: the folder with camvid_train/ and camvid_val/")
    if not (Path(folder) / "camvid_val").is_dir():
        pytest.fail(f"VTSEG_CAMVID={folder} has no camvid_val/")
    return Path(folder)


@pytest.fixture
def ros_domain() -> Iterator[int]:
    """A DDS domain that no other test on this machine uses now, from 1 to 101 (0 is everybody's default)."""
    candidates = list(range(1, 102))
    random.SystemRandom().shuffle(candidates)
    for number in candidates:
        path = Path(tempfile.gettempdir()) / f"vtseg_ros_domain_{number}.lock"
        try:
            lock = path.open("w")
        except PermissionError:  # another user's tests
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield number
            return
    pytest.fail(f"all 101 DDS domains are taken by running tests: see {tempfile.gettempdir()}/vtseg_ros_domain_*")


@pytest.fixture
def ros_env(ros_domain: int, tmp_path: Path) -> dict[str, str]:
    """The environment of a node's process: its own domain, loopback only, logs under tmp_path."""
    profile = str(ROOT / "config" / "fastdds" / "loopback.xml")
    return {
        **os.environ,
        "ROS_DOMAIN_ID": str(ros_domain),
        "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp",  # the profile is Fast DDS's
        "FASTRTPS_DEFAULT_PROFILES_FILE": profile,
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,
        "ROS_LOG_DIR": str(tmp_path / "ros_log"),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def ros_here(ros_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """rclpy initialised in this process in the domain of `ros_env`, so that a test has nodes of its own."""
    import rclpy

    for name, value in ros_env.items():
        monkeypatch.setenv(name, value)
    rclpy.init(args=[], domain_id=int(ros_env["ROS_DOMAIN_ID"]))
    yield int(ros_env["ROS_DOMAIN_ID"])
    rclpy.try_shutdown()


class NodeProcess:
    """A child process with its output in a file.

    Attributes:
        process: the `subprocess.Popen`.
        log: path of stdout and stderr together.
    """

    def __init__(self, command: list[str], *, env: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, env=dict(env), stdout=output, stderr=subprocess.STDOUT)

    @property
    def output(self) -> str:
        """What the process has written so far."""
        return self.log.read_text(errors="replace")

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Ctrl-C, then kill; returns the exit code (-9: it did not react within timeout_s)."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@pytest.fixture
def start_node(ros_env: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., NodeProcess]]:
    """`start_node("segmenter", "--ros-args", "-p", "device:=cpu")`: a process that ends with the test at the latest."""
    started: list[NodeProcess] = []

    def start(*command: str, env: Mapping[str, str] | None = None) -> NodeProcess:
        log = tmp_path / f"{len(started)}_{Path(command[0]).name}.log"
        node = NodeProcess([str(part) for part in command], env={**ros_env, **(env or {})}, log=log)
        started.append(node)
        return node

    yield start
    for node in reversed(started):
        node.stop()
