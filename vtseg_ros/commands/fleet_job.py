# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Run a job over many bags for a command: options, progress, summary table and exit code."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vtseg_ros.commands.progress import progress_bars
from vtseg_ros.errors import ConfigError
from vtseg_ros.files import write_atomically
from vtseg_ros.fleet import (
    BagCache,
    Job,
    Outcome,
    Place,
    RayOptions,
    Task,
    Url,
    Watch,
    run_here,
    run_in_parts,
    run_on_ray,
)
from vtseg_ros.fleet.bag_cache import LIMIT_GB
from vtseg_ros.fleet.object_store import list_files

NO_CLUSTER = "none"


def add_ray_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options of jobs; returns their group."""
    group = parser.add_argument_group("jobs on a Ray cluster")
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="HOST:PORT of the head node; `local` starts a cluster on this machine; `none` runs the job in this process",
    )
    group.add_argument("--cpus", type=int, default=1, help="cores of each worker (default 1)")
    group.add_argument("--gpus", type=float, default=0.0, help="GPUs of each worker (default 0)")
    group.add_argument(
        "--workers", type=int, help="largest number of workers (default: as many as fit on the cluster)"
    )
    stores = parser.add_argument_group(
        "jobs on object stores",
        "Bags and --out can be URLs such as s3://bucket/drive_1; bags are copied first.",
    )
    stores.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="folder of the copies on each host (default: in the user's cache)",
    )
    stores.add_argument(
        "--cache-size",
        type=float,
        default=LIMIT_GB,
        metavar="GB",
        help="largest total size of the copies on a host, GB (default %(default)g)",
    )
    return group


def bag_cache(args: argparse.Namespace) -> BagCache:
    """Return the cache that the options describe.

    Raises:
        ConfigError: if the size is out of range.
    """
    folder = args.cache_dir.absolute() if args.cache_dir else None
    return BagCache(folder=folder, limit_gb=args.cache_size)


def refuse_urls(places: Sequence[Place | None], advice: str) -> None:
    """Raise ConfigError if one is a URL: only jobs copy bags from object stores and upload results."""
    url = next((place for place in places if isinstance(place, Url)), None)
    if url is not None:
        raise ConfigError(f"{url}: only jobs use URLs; expected a local path. {advice}")


def is_on_cluster(args: argparse.Namespace) -> bool:
    """Return whether a job runs on Ray."""
    return bool(args.ray) and args.ray != NO_CLUSTER


def absolute_checkpoint(name: str) -> str:
    """Return a checkpoint's name, or its absolute path: workers have other working folders."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def run_job(job: Job, tasks: Sequence[Task], args: argparse.Namespace) -> list[Outcome]:
    """Run the tasks here, or on Ray where `args.ray` names a cluster, and print the summary.

    Args:
        job: the job.
        tasks: its tasks.
        args: with the options of `add_ray_arguments`.

    Returns:
        Outcomes in the order of the tasks.

    Raises:
        CheckpointError, ConfigError: if the job cannot start.
        KeyboardInterrupt: after a signal, with what is complete.
    """
    began, outcomes, complete = time.monotonic(), [], 0
    shown: list[str] = []
    options: RayOptions | None = None
    if is_on_cluster(args):
        options = RayOptions(address=args.ray, cpus=args.cpus, gpus=args.gpus, workers=args.workers)
    cache = bag_cache(args)
    if tasks and isinstance(tasks[0].output, Url):
        list_files(tasks[0].output)  # an absent bucket or missing credentials end the job before it starts
    total = sum(task.frames for task in tasks)
    if any(isinstance(task.source, Url) for task in tasks):
        total = 0  # their frames are not known before they are copied
    console = Console(stderr=True)
    with progress_bars(console) as progress:
        bar = progress.add_task("frames", total=total or None)

        def show_failure(outcome: Outcome) -> None:
            line = f"{outcome.task}: {outcome.reason}"
            if outcome.state == "failed" and outcome.reason not in shown:
                console.print(f"failed: {line}", markup=False, soft_wrap=True)
                shown.append(line)

        def on_outcome(outcome: Outcome) -> None:
            nonlocal complete
            complete += outcome.state != "failed"
            show_failure(outcome)

        def run(planned: Sequence[Task]) -> list[Outcome]:
            watch = Watch(on_outcome, lambda frames: progress.update(bar, completed=frames))
            if options:
                return run_on_ray(job, planned, watch, options, cache)
            return run_here(job, planned, watch, cache)

        try:
            outcomes = run_in_parts(job, tasks, run)
            for outcome in outcomes:
                if outcome.task.parts:
                    show_failure(outcome)  # unless it is that of a part
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(
                f"{complete} results are complete; run the same command again to continue"
            ) from stop
    _print_summary(outcomes, time.monotonic() - began)
    return outcomes


def _print_summary(outcomes: Sequence[Outcome], seconds: float) -> None:
    states = Counter(outcome.state for outcome in outcomes)
    frames = sum(outcome.result.get("frames", 0) for outcome in outcomes if outcome.state == "done")
    table = Table(title="Job")
    for name in ("bags", "done", "skipped", "failed", "repeated", "frames", "frames/s"):
        table.add_column(name, justify="right")
    table.add_row(
        str(len(outcomes)),
        *(str(states[state]) for state in ("done", "skipped", "failed")),
        str(sum(outcome.attempts > 1 for outcome in outcomes)),
        str(frames),
        f"{frames / max(seconds, 1e-9):.1f}",
    )
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Return 0 if all results are complete, 1 if some failed."""
    return int(any(outcome.state == "failed" for outcome in outcomes))


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write a JSON file with one entry per bag.

    Raises:
        ConfigError: if it cannot be written.
    """
    found = [
        {
            "input": str(outcome.task.source),
            "output": str(outcome.task.output),
            "state": outcome.state,
            "attempts": outcome.attempts,
            "reason": outcome.reason,
            "result": outcome.result,
        }
        for outcome in outcomes
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(found, indent=2) + "\n").encode())
    except OSError as err:
        raise ConfigError(
            f"--json {path}: cannot be written ({err.strerror or err}). Choose another file"
        ) from err
