# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Bags for jobs, and a Ray cluster of three nodes on 127.0.0.1."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pytest
import torch

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.bags.messages import IMAGE, image_message, typestore
from vtseg_ros.cli import main
from vtseg_ros.commands.segment import MASKS
from vtseg_ros.fleet.ray_pool import LOOPBACK, NO_USAGE_STATISTICS, OWN_NICENESS

T = TypeVar("T")
NS = 1_000_000_000
BAGS, FRAMES = 12, 2


def write_images(path: Path, rng: np.random.Generator, stamps_ns: list[int]) -> None:
    """Write a bag of random images, 64x48."""
    with BagWriter(path) as bag:
        for stamp in stamps_ns:
            image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            data = typestore().serialize_cdr(image_message(image, "rgb8", stamp, "camera"), IMAGE)
            bag.write_raw("/camera/image", IMAGE, data, stamp)


def masks_of(folder: Path) -> list[tuple[int, bytes]]:
    """(bag time in ns, message) of the masks of a result."""
    with BagReader(folder / "masks") as bag:
        return [(time_ns, bytes(data)) for _, _, time_ns, data in bag.raw([MASKS])]


def ray_processes() -> list[psutil.Process]:
    """Ray's processes below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "ray::" in line or "/ray/" in line:
            found.append(process)
    return found


def patiently(start: Callable[[], T]) -> T:
    """Start a part of Ray, which gives up after 30 s that cannot be changed; a busy machine needs longer."""
    before = ray_processes()
    for left in (2, 1, 0):
        try:
            return start()
        except Exception as err:
            if "timed out during startup" not in str(err) or not left:
                raise
            for process in ray_processes():
                if process not in before:
                    process.kill()
                    process.wait()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As a worker with one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve bags of two images."""
    folder, rng = tmp_path_factory.mktemp("fleet"), np.random.default_rng(3)
    for number in range(BAGS):
        write_images(folder / f"drive_{number}", rng, [NS + index * NS // 10 for index in range(FRAMES)])
    return folder


@pytest.fixture
def broken(bags: Path, tmp_path: Path) -> Path:
    """A folder with two good bags and an unreadable one between them."""
    for number in (0, 2):
        shutil.copytree(bags / f"drive_{number}", tmp_path / "in" / f"drive_{number}")
    (tmp_path / "in" / "drive_1").mkdir()
    (tmp_path / "in" / "drive_1" / "metadata.yaml").write_text("rosbag2_bagfile_information: {")
    return tmp_path / "in"


@pytest.fixture
def segment(tiny_checkpoint: Path):
    """Run `vtseg segment` with the tiny checkpoint; its exit code."""

    def run(*arguments: object, checkpoint: Path = tiny_checkpoint) -> int:
        return main(["segment", *map(str, arguments), "--checkpoint", str(checkpoint), "--device", "cpu"])

    return run


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A Ray cluster of three nodes with one core each; nothing of it is left behind."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**LOOPBACK, **NO_USAGE_STATISTICS}.items():  # before the first import of Ray
            patch.setenv(name, value)
        pytest.importorskip("ray")
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
        made = patiently(
            lambda: Cluster(head_node_args={**node, "_system_config": OWN_NICENESS}, initialize_head=True)
        )
        try:
            for _ in range(2):
                patiently(lambda: made.add_node(**node))
            made.wait_for_nodes()
            yield made
        finally:
            made.shutdown()
    psutil.wait_procs(ray_processes(), timeout=20)
    assert not ray_processes()
