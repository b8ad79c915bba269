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
from vtseg_ros.fleet import Job, Outcome, RayOptions, Task, Watch, run_here, run_in_parts, run_on_ray

NO_CLUSTER = "none"


def add_ray_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options of jobs; returns their group."""
    group = parser.add_argument_group("jobs on a Ray cluster")
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="HOST:PORT of the head node; local starts a cluster on this machine; none runs the job in this process",
    )
    group.add_argument("--cpus", type=int, default=1, help="cores of each worker (default 1)")
    group.add_argument("--gpus", type=float, default=0.0, help="GPUs of each worker (default 0)")
    group.add_argument("--workers", type=int, help="most workers (default: as many as there is room for)")
    return group


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
        args: with `ray`, `cpus`, `gpus`, `workers`.

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
    console = Console(stderr=True)
    with progress_bars(console) as progress:
        bar = progress.add_task("frames", total=sum(task.frames for task in tasks) or None)

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
            return run_on_ray(job, planned, watch, options) if options else run_here(job, planned, watch)

        try:
            outcomes = run_in_parts(job, tasks, run)
            for outcome in outcomes:
                if outcome.task.parts:
                    show_failure(outcome)  # unless it is that of a part
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(
                f"{complete} results are complete; the same command goes on with the others"
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
