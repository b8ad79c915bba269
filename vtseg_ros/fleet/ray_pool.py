# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Run tasks in Ray actors; a killed worker or an unreadable bag does not end the job."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from vtseg_ros.errors import ConfigError, first_line
from vtseg_ros.fleet.bag_cache import BagCache
from vtseg_ros.fleet.driver import ATTEMPTS, LoadError, Worker, frames_of, unfinished_removed
from vtseg_ros.fleet.jobs import Job, Outcome, Task, Watch
from vtseg_ros.fleet.results import identity_of

CONNECT_S = 5.0
POLL_S = 0.5
NO_ROOM_S = 120.0
"""The job ends if for so long no node could hold a worker."""
OBJECT_STORE_BYTES = 80 << 20
"""Of a local cluster, about Ray's minimum: only paths and small results pass through it."""
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray replaces 127.0.0.1 by the host's address and listens on all interfaces unless clusters of several hosts are off."""
OWN_NICENESS = {"worker_niceness": 0}
"""Added to that of the command. Ray's 15 leaves workers hardly any time next to other processes."""
NO_USAGE_STATISTICS = {"RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Cluster of a job, and resources of its workers.

    Args:
        address: `local` starts a cluster on 127.0.0.1; otherwise HOST:PORT of a head node.
        cpus: cores and threads of each worker, at least 1.
        gpus: GPUs of each worker, at least 0; 0.5 = two workers share one.
        workers: largest number of workers, at least 1; None = as many as fit on the cluster.

    Raises:
        ConfigError: for a value out of range.
    """

    address: str
    cpus: int = 1
    gpus: float = 0.0
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.cpus < 1 or not 0 <= self.gpus < float("inf") or (self.workers or 1) < 1:
            raise ConfigError(
                "--cpus, --gpus, --workers: out of range; expected at least 1, 0 and 1, got "
                f"{self.cpus}, {self.gpus:g}, {self.workers}. Correct the value"
            )
        host, _, port = self.address.rpartition(":")
        if self.address != "local" and not (host and port.isdigit() and 0 < int(port) < 65536):
            raise ConfigError(
                f"--ray: not an address; expected HOST:PORT, local or none, got {self.address}. Correct it"
            )


class _Actor(Worker):
    """A worker in a process of Ray's.

    Args:
        counter: actor that collects the number of processed frames.
        arguments: of `Worker`.
    """

    def __init__(self, counter: Any, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._counter = counter

    def ready(self) -> None:
        """Return when the worker has started."""

    def run_task(self, number: int, task: Task) -> Outcome | str:
        """Return the outcome, or why the job cannot be loaded here."""
        frames, sent = 0, time.monotonic()

        def on_frame() -> None:
            nonlocal frames, sent
            frames += 1
            if time.monotonic() - sent > POLL_S:
                sent = time.monotonic()
                self._counter.add.remote(number, frames)

        try:
            return self.run(task, on_frame)
        except LoadError as err:
            return str(err)


class _Counter:
    """Frames of unfinished tasks by the number of the task."""

    def __init__(self) -> None:
        self._frames: dict[int, int] = {}

    def add(self, number: int, frames: int) -> None:
        """Note how many frames of a task are processed."""
        self._frames[number] = frames

    def take(self) -> dict[int, int]:
        """Return what was added since the last call."""
        found, self._frames = self._frames, {}
        return found


def run_on_ray(
    job: Job, tasks: Sequence[Task], watch: Watch, options: RayOptions, cache: BagCache | None = None
) -> list[Outcome]:
    """Run the tasks in Ray actors.

    If a worker dies, another worker takes its task. A task is given up after `ATTEMPTS` failures.

    Args:
        job: the job; its checkpoints and local bags must have the same paths on all hosts.
        tasks: its tasks.
        watch: callbacks for frames and outcomes.
        options: cluster and resources.
        cache: local copies, on each host, of sources that are URLs; None = the default cache.

    Returns:
        Outcomes in the order of the tasks.

    Raises:
        CheckpointError: if there is no such checkpoint.
        ConfigError: if Ray is not installed, the cluster cannot be reached, or it has no room for a worker.
    """
    identity = identity_of(job)
    with unfinished_removed(tasks) as mark, _cluster(options) as ray:
        pool = _Pool(ray, (job, identity, mark, options.cpus, cache), options)
        found = pool.run(tasks, watch)
    return [found[number] for number in range(len(tasks))]


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _cluster(options: RayOptions) -> Iterator[Any]:
    local = options.address == "local"
    with _environment({**NO_USAGE_STATISTICS, **(LOOPBACK if local else {})}):
        try:
            import ray
        except ImportError as err:
            raise ConfigError("--ray needs Ray. Install it: pip install 'vtseg_ros[fleet]'") from err
        start: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "address": options.address}
        if local:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            start |= {
                "num_cpus": options.workers * options.cpus if options.workers else cores,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_system_config": OWN_NICENESS,
            }
        else:
            _check_reachable(options.address)
        try:
            ray.init(**start)
        except Exception as err:  # Ray raises many kinds, some without a common base
            reason = first_line(err).rstrip(".")
            advice = (
                "It starts in about 10 s on an idle machine and gives up after 30 s: run the command again when other "
                "processes leave it a core"
                if local
                else "Look at `ray status` on the head node"
            )
            raise ConfigError(
                f"--ray {options.address}: no cluster; expected to connect, got: {reason}. {advice}"
            ) from err
        try:
            if local:
                _check_loopback(ray)
            yield ray
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise ConfigError unless something listens there: Ray itself waits long and ends the process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as err:
        raise ConfigError(
            f"--ray {address}: the cluster cannot be reached ({err}); expected a head node there. Start it with "
            "`ray start --head`, or use local"
        ) from err


def _check_loopback(ray: Any) -> None:
    """Raise ConfigError if a local cluster can be reached from other hosts."""
    for node in ray.nodes():
        if not ipaddress.ip_address(node["NodeManagerAddress"]).is_loopback:
            raise ConfigError(
                f"--ray local: expected a cluster on 127.0.0.1, got one on {node['NodeManagerAddress']}, since Ray was "
                "imported before. Run the job in a process of its own"
            )


class _Pool:
    """Actors and the tasks that they run.

    Args:
        ray: the module, connected.
        arguments: of `Worker`.
        options: where to run.
    """

    def __init__(self, ray: Any, arguments: tuple[Any, ...], options: RayOptions) -> None:
        self._ray, self._options = ray, options
        here = ray.get_runtime_context().get_node_id()
        near = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        self._counter = ray.remote(num_cpus=0, scheduling_strategy=near)(_Counter).remote()
        actor = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, max_restarts=0)(_Actor)
        self._start: Callable[[], Any] = lambda: actor.remote(self._counter, *arguments)
        self._actors: list[Any] = []
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, int | None]] = {}
        """Result -> (actor, number of its task; None = it is starting)."""
        self._unusable = 0
        """Actors that could not load the job; their places stay empty."""
        self._failed_starts = 0
        self._trouble = ""
        """Why there may be no worker."""
        self._roomless_since: float | None = None

    def run(self, tasks: Sequence[Task], watch: Watch) -> dict[int, Outcome]:
        """Return the outcomes by the number of the task."""
        self._tasks, self._watch = tasks, watch
        self._waiting, self._attempts = deque(range(len(tasks))), [0] * len(tasks)
        self._found: dict[int, Outcome] = {}
        self._complete_frames = 0
        self._frames: dict[int, int] = {}
        self._failed_on: dict[int, list[Any]] = {}
        if not self._room():
            raise ConfigError(
                f"--ray: no node has room for a worker; expected {self._options.cpus} cores and "
                f"{self._options.gpus:g} GPUs on one. Ask for fewer by --cpus and --gpus"
            )
        asked = self._counter.take.remote()
        while len(self._found) < len(tasks):
            self._fill()
            if not self._actors and self._hopeless():
                for number in list(self._waiting):
                    self._attempts[number] = ATTEMPTS
                    self._end(number, Outcome(tasks[number], "failed", reason=self._trouble))
                break
            self._assign()
            if not self._running:
                time.sleep(POLL_S)  # until a node is back
                continue
            for result in self._ray.wait(list(self._running), timeout=POLL_S)[0]:
                self._take(result)
            if self._ray.wait([asked], timeout=0)[0]:
                with suppress(self._ray.exceptions.RayError):  # then progress is shown when bags end
                    self._count(self._ray.get(asked))
                asked = self._counter.take.remote()
        for actor in (*self._actors, self._counter):
            self._ray.kill(actor)
        return self._found

    def _assign(self) -> None:
        """Give waiting tasks to idle actors; one that failed goes to another actor where there is one."""
        for actor in list(self._idle):
            fresh = (number for number in self._waiting if self._may_run(number, actor))
            number = next(fresh, None)
            if number is None:
                continue
            self._idle.remove(actor)
            self._waiting.remove(number)
            self._attempts[number] += 1
            self._running[actor.run_task.remote(number, self._tasks[number])] = (actor, number)

    def _may_run(self, number: int, actor: Any) -> bool:
        failed_on = self._failed_on.get(number, [])
        started = [*self._idle, *(one for one, task in self._running.values() if task is not None)]
        return actor not in failed_on or all(one in failed_on for one in started)

    def _take(self, result: Any) -> None:
        actor, number = self._running.pop(result)
        try:
            value = self._ray.get(result)
        except self._ray.exceptions.RayError as err:
            self._actors.remove(actor)
            reason = f"the worker died ({type(err).__name__})"
            if number is None:
                self._failed_starts += 1
                self._trouble = f"workers cannot be started: {' '.join(str(err).split())[:300]}"
            else:
                self._end(number, Outcome(self._tasks[number], "failed", reason=reason))
            return
        if isinstance(value, str) and number is not None:  # the task's bag is not to blame
            self._trouble, self._attempts[number] = value, self._attempts[number] - 1
            self._waiting.appendleft(number)
            self._actors.remove(actor)
            self._unusable += 1
            self._ray.kill(actor)
            return
        self._failed_starts = 0
        self._idle.append(actor)
        if number is not None and value.state == "failed":
            self._failed_on.setdefault(number, []).append(actor)
        if number is not None:
            self._end(number, value)

    def _end(self, number: int, outcome: Outcome) -> None:
        self._frames.pop(number, None)
        if outcome.state == "failed" and self._attempts[number] < ATTEMPTS:
            self._waiting.append(number)
            return
        self._failed_on.pop(number, None)
        self._found[number] = replace(outcome, attempts=self._attempts[number])
        self._complete_frames += frames_of(outcome)
        self._show_frames()
        self._watch.on_outcome(self._found[number])

    def _count(self, frames: dict[int, int]) -> None:
        self._frames |= {number: value for number, value in frames.items() if number not in self._found}
        self._show_frames()

    def _show_frames(self) -> None:
        self._watch.on_frames(self._complete_frames + sum(self._frames.values()))

    def _room(self) -> int:
        """Actors that the living nodes have room for."""
        total = 0
        with suppress(self._ray.exceptions.RayError):
            for node in self._ray.nodes():
                if node["Alive"]:
                    there = node["Resources"]
                    gpus = self._options.gpus
                    by_gpu = there.get("GPU", 0) // gpus if gpus else float("inf")
                    total += int(min(there.get("CPU", 0) // self._options.cpus, by_gpu))
        return total

    def _fill(self) -> None:
        """Start actors for the tasks that are left, as far as there is room."""
        if self._failed_starts >= ATTEMPTS:
            return
        most = min(len(self._tasks) - len(self._found), self._options.workers or len(self._tasks))
        while len(self._actors) < min(most, self._room() - self._unusable):
            actor = self._start()
            self._actors.append(actor)
            self._running[actor.ready.remote()] = (actor, None)

    def _hopeless(self) -> bool:
        """Whether no actor will come any more."""
        if self._failed_starts >= ATTEMPTS:
            return True
        if self._room():
            self._roomless_since = None
            return self._unusable >= self._room()
        self._roomless_since = self._roomless_since or time.monotonic()
        self._trouble = f"no node had room for a worker for {NO_ROOM_S:g} s"
        return time.monotonic() - self._roomless_since > NO_ROOM_S
