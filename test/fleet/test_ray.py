# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Jobs on a real Ray cluster of three nodes."""

from __future__ import annotations

import argparse
import os

import pytest

from fleet.conftest import BAGS, FRAMES, masks_of, ray_processes
from vtseg_ros.commands.segment import SegmentJob, add_arguments
from vtseg_ros.fleet import RayOptions, Watch, expand_inputs, plan_tasks, run_here, run_on_ray


@pytest.mark.long  # test_jobs.py kills workers without Ray
def test_a_node_killed_half_way(cluster, bags, broken, tiny_checkpoint, tmp_path):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    job = SegmentJob(parser.parse_args(["x", "--checkpoint", str(tiny_checkpoint), "--device", "cpu"]))
    unreadable = plan_tasks([broken / "drive_1"], tmp_path / "unreadable")
    tasks = plan_tasks(expand_inputs([f"{bags}/drive_*"]), tmp_path / "out")
    ended, frames, niceness = [], [], set()

    def on_outcome(outcome):
        ended.append(outcome)
        workers = [one for one in ray_processes() if "_Actor" in one.name() + "".join(one.cmdline())]
        niceness.update(worker.nice() for worker in workers)
        if len(ended) == BAGS // 3:
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    options = RayOptions(address=cluster.address)
    failed, *outcomes = run_on_ray(job, [*unreadable, *tasks], Watch(on_outcome, frames.append), options)
    assert (failed.state, failed.attempts) == ("failed", 3) and str(broken / "drive_1") in failed.reason
    assert [outcome.state for outcome in outcomes] == ["done"] * BAGS, outcomes
    assert sum(outcome.attempts for outcome in outcomes) <= BAGS + 1  # at most the killed node's task twice
    assert niceness == {os.nice(0)}
    assert frames[-1] == BAGS * FRAMES
    assert len(list((tmp_path / "out").iterdir())) == BAGS  # nothing unfinished is left
    alone = plan_tasks(expand_inputs([f"{bags}/drive_*"]), tmp_path / "alone")
    run_here(job, alone, Watch())
    for task, other in zip(tasks, alone, strict=True):
        assert masks_of(task.output) == masks_of(other.output)
    assert [outcome.state for outcome in run_here(job, tasks, Watch())] == ["skipped"] * BAGS


def test_only_this_host_can_connect(cluster):
    listening = [
        connection.laddr.ip
        for process in ray_processes()
        for connection in process.net_connections(kind="inet")
        if connection.status == "LISTEN"
    ]
    assert len(listening) > 3 and {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
