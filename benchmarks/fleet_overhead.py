# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Compare `vtseg segment` with one worker on Ray and in this process: python benchmarks/fleet_overhead.py [--frames 200].

The times are those from the first to the last finished bag, which exclude the start of the cluster and loading. Processor
times include all processes of the cluster and are less sensitive to other programs on the machine than wall times. The two
kinds of run alternate, and each round gives one ratio.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from vtseg_ros.bags.bag_writer import BagWriter
from vtseg_ros.commands.segment import SegmentJob, add_arguments
from vtseg_ros.errors import first_line
from vtseg_ros.fleet import Outcome, RayOptions, Task, Watch, plan_tasks, run_here, run_on_ray
from vtseg_ros.fleet.ray_pool import LOOPBACK, NO_USAGE_STATISTICS, OBJECT_STORE_BYTES, OWN_NICENESS

NS = 1_000_000_000
ATTEMPTS = 5
Run = Callable[[Sequence[Task], Watch], list[Outcome]]


def parse_arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="street_tiny")
    parser.add_argument("--bags", type=int, default=10)
    parser.add_argument("--frames", type=int, default=200, help="frames of each bag")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def write_bags(folder: Path, count: int, frames: int) -> list[Path]:
    """Write bags of random images of 320x96 px at 10 Hz."""
    rng = np.random.default_rng(1)
    paths = [folder / f"drive_{number}" for number in range(count)]
    for path in paths:
        with BagWriter(path) as bag:
            for index in range(frames):
                image = rng.integers(0, 256, (96, 320, 3), dtype=np.uint8)
                bag.write_image("/camera/image", image, NS + index * NS // 10, "camera")
    return paths


def start_cluster() -> Any:
    """Start a Ray cluster of one core; on a busy machine Ray gives up after 30 s, so it is tried several times."""
    # Ray reads these when it is imported.
    os.environ |= {**LOOPBACK, **NO_USAGE_STATISTICS}
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    for attempt in range(ATTEMPTS):
        try:
            return Cluster(initialize_head=True, head_node_args={**node, "_system_config": OWN_NICENESS})
        except Exception as err:  # Ray raises no narrower class
            print(f"attempt {attempt + 1}: {first_line(err)}", flush=True)
    raise SystemExit("Ray did not start")


def processor_s() -> float:
    """Return the processor time of this process and its descendants, s."""
    total, here = 0.0, psutil.Process()
    for process in (here, *here.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def timed(run: Run, tasks: Sequence[Task]) -> tuple[float, float]:
    """Return wall and processor time from the first to the last finished task, s."""
    marks: list[tuple[float, float]] = []
    outcomes = run(tasks, Watch(lambda _: marks.append((time.perf_counter(), processor_s()))))
    assert all(outcome.state == "done" for outcome in outcomes), outcomes
    return marks[-1][0] - marks[0][0], marks[-1][1] - marks[0][1]


def main() -> None:
    """Run the rounds and print the ratios."""
    args = parse_arguments()
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    job = SegmentJob(parser.parse_args(["bags", "--checkpoint", args.checkpoint, "--device", "cpu"]))
    cluster = start_cluster()
    options = RayOptions(address=cluster.address, workers=1)
    runs: dict[str, Run] = {
        "plain": lambda tasks, watch: run_here(job, tasks, watch),
        "ray": lambda tasks, watch: run_on_ray(job, tasks, watch, options),
    }
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bags = write_bags(folder / "in", args.bags, args.frames)
        for number in range(args.rounds):
            times = {}
            for name, run in runs.items():
                times[name] = timed(run, plan_tasks(bags, folder / f"{name}_{number}"))
                print(
                    f"{name:<6} {times[name][0]:7.2f} s wall, {times[name][1]:7.2f} s processor", flush=True
                )
            ratios.append([ray / plain for plain, ray in zip(times["plain"], times["ray"], strict=True)])
            print("ratio  {:7.3f}   wall, {:7.3f}   processor".format(*ratios[-1]), flush=True)
    cluster.shutdown()
    wall, processor = np.median(ratios, axis=0)
    print(f"median {wall:7.3f}   wall, {processor:7.3f}   processor")


if __name__ == "__main__":
    main()
