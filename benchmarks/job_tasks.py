# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Time what a job adds to each bag, in one process and on Ray: python benchmarks/job_tasks.py [--tasks 500]."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.fleet import Outcome, RayOptions, Task, Watch, run_here, run_on_ray

IMAGES = 4


class Nothing:
    """A job that computes nothing: what remains is the cost of its tasks."""

    checkpoints = ("street_tiny",)

    def settings(self) -> dict[str, Any]:
        """Return no setting."""
        return {}

    def load(self) -> bool:
        """Return something."""
        return True

    def process(self, loaded: bool, task: Task, folder: Path, on_frame: Callable[[], None]) -> dict[str, Any]:
        """Write an empty result."""
        on_frame()
        return {"frames": 1}


def measure(name: str, run: Callable[[Watch], list[Outcome]]) -> None:
    """Print time and memory per task, the first tenth of the tasks left out."""
    driver, marks = psutil.Process(), []

    def on_outcome(_: Outcome) -> None:
        times = driver.cpu_times()
        marks.append((time.monotonic(), times.user + times.system, driver.memory_info().rss / 2**20))

    outcomes = run(Watch(on_outcome=on_outcome))
    assert all(outcome.state == "done" for outcome in outcomes), outcomes[0].reason
    first, last = marks[len(marks) // 10], marks[-1]
    count = len(marks) - 1 - len(marks) // 10
    wall, cpu = (1e3 * (last[place] - first[place]) / count for place in (0, 1))
    print(
        f"{name:<16} {wall:6.1f} ms per task, {cpu:.1f} ms of the driver, {first[2]:.1f} to {last[2]:.1f} MB"
    )


def write_bag(path: Path) -> Path:
    """Write a bag of some small images."""
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    with BagWriter(path) as bag:
        for number in range(IMAGES):
            bag.write_image("/camera/image", image, (number + 1) * 100_000_000, "camera")
    return path


def tasks_in(folder: Path, source: Path, count: int) -> Sequence[Task]:
    """Return tasks that all read the same bag."""
    return [Task(source, folder / f"result_{number}", 1) for number in range(count)]


def main() -> None:
    """Run the same tasks both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = write_bag(folder / "bag")
        here, on_ray = (tasks_in(folder / name, source, args.tasks) for name in ("here", "ray"))
        measure("one process", lambda watch: run_here(Nothing(), here, watch))
        options = RayOptions(address="local", workers=1)
        measure("one Ray worker", lambda watch: run_on_ray(Nothing(), on_ray, watch, options))


if __name__ == "__main__":
    main()
