# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Soak test: a player that is faster than the segmenter, one malformed image per second, and samples of the process.

Called by soak.sh. Passes when the process's memory, open descriptors, threads and latency have no trend beyond their
own noise and every frame is accounted for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rich.console import Console
from rich.table import Table
from sensor_msgs.msg import Image
from vtseg_ros.msg import SegmentationStatus

from vtseg_ros.inference.backends import BACKEND_NAMES
from vtseg_ros.nodes.dds import free_domain

TOPIC, FRAMES, SIZE, RECORDED_HZ = "/camera/image", 100, "320x96", 10
SAMPLE_S, BAD_EVERY_S, SETTLE_S, QUIET_S = 5.0, 1.0, 120.0, 5.0
LOAD_S, LOADED = 900.0, ", streaming "
WARM_UP_SHARE = 0.15  # caches and allocators fill up first
RELIABLE = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)

console = Console()


def process_figures(pid: int) -> dict[str, float]:
    """Memory in MB, descriptors and threads of a process.

    Its own memory is what it allocated and uses. Of shared memory, the transport's segments, the mapped size counts: Fast
    DDS goes round in a segment of fixed size, whose pages become resident one by one when they are first written, which
    looks like a leak for as long as it takes.
    """
    process = psutil.Process(pid)
    maps = process.memory_maps()
    shared = [one for one in maps if one.path.startswith("/dev/shm/")]
    return {
        "own_mb": sum(one.anonymous for one in maps) / 2**20,
        "mapped_shared_mb": sum(one.size for one in shared) / 2**20,
        "resident_shared_mb": sum(one.rss for one in shared) / 2**20,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
    }


class Monitor(Node):
    """Count the status messages of the segmenter and sample its process."""

    def __init__(self, pid: int) -> None:
        super().__init__("soak")
        self._pid, self.samples, self._latencies = pid, [], []
        self.told = {kind: 0 for kind in ("processed", "dropped", "rejected")}
        self.masks, self.bad_sent, self.heard, self.last = 0, 0, 0, None
        self.began = self._sampled = self._spoiled = time.monotonic()
        self.create_subscription(SegmentationStatus, "segmentation/status", self._on_status, RELIABLE)
        self.create_subscription(Image, "segmentation/mask", self._on_mask, RELIABLE)
        self._publisher = self.create_publisher(Image, "image", 10)

    def _on_status(self, message: SegmentationStatus) -> None:
        self.last = message
        self.heard += 1
        for name in self.told:
            if message.event == getattr(SegmentationStatus, name.upper()):
                self.told[name] += 1
        if message.event == SegmentationStatus.PROCESSED:
            self._latencies.append(message.total_s)

    def _on_mask(self, _: Image) -> None:
        self.masks += 1

    def step(self) -> None:
        """Send a malformed image or take a sample if it is due."""
        now = time.monotonic()
        if now - self._spoiled >= BAD_EVERY_S:
            self._spoiled = now
            self.bad_sent += 1
            message = Image(height=2**32 - 1, width=2**32 - 1, encoding="rgb8", step=3)
            message.header.stamp = self.get_clock().now().to_msg()
            self._publisher.publish(message)
        if now - self._sampled >= SAMPLE_S:
            self._sampled = now
            latencies, self._latencies = self._latencies, []
            sample = {"time_s": now - self.began, **process_figures(self._pid), "processed": len(latencies)}
            for share in (50, 95):
                sample[f"latency_p{share}_ms"] = (
                    1e3 * float(np.percentile(latencies, share)) if latencies else None
                )
            self.samples.append(sample)


def trend(samples: list[dict], name: str) -> dict[str, float | bool]:
    """A straight line through a figure, the warm-up left out; steady when its rise over the run is within 3 standard
    deviations of the samples about it, or below 2 % of the mean."""
    points = [
        (s["time_s"], s[name]) for s in samples[int(len(samples) * WARM_UP_SHARE) :] if s[name] is not None
    ]
    times, values = np.asarray(points, np.float64).T
    slope, start = np.polyfit(times, values, 1)
    noise = float(np.std(values - (slope * times + start)))
    rise = float(slope * (times[-1] - times[0]))
    mean = float(values.mean())
    return {
        "mean": mean,
        "first": float(values[0]),
        "last": float(values[-1]),
        "per_hour": float(slope * 3600),
        "rise": rise,
        "noise": noise,
        "steady": abs(rise) <= max(3 * noise, 0.02 * mean),
    }


def run(args: argparse.Namespace) -> int:
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    bag = out / "street"
    if not (bag / "metadata.yaml").is_file():
        shutil.rmtree(bag, ignore_errors=True)
        command = [
            "vtseg",
            "synth",
            "--out",
            str(bag),
            "--scene",
            "5",
            "--frames",
            str(FRAMES),
            "--size",
            SIZE,
        ]
        subprocess.run([*command, "--no-depth", "--no-flow"], check=True)
    os.environ["ROS_DOMAIN_ID"] = str(free_domain())
    sent_file = out / "sent.json"
    sent_file.unlink(missing_ok=True)
    node = [
        "segmenter",
        "--ros-args",
        "-r",
        f"image:={TOPIC}",
        "-p",
        f"checkpoint:={args.checkpoint}",
        "-p",
        f"backend:={args.backend}",
        "-p",
        "autostart:=true",
    ]
    play = [
        "vtseg",
        "play",
        str(bag),
        "--loop",
        "--rate",
        str(args.rate / RECORDED_HZ),
        "--topics",
        TOPIC,
        "--wait-for",
        TOPIC,
    ]
    with (out / "segmenter.log").open("w") as log, (out / "player.log").open("w") as quiet:
        segmenter = subprocess.Popen(node, stdout=log, stderr=subprocess.STDOUT)
        wait_for_network(segmenter, out / "segmenter.log")
        player = subprocess.Popen([*play, "--json", str(sent_file)], stdout=quiet, stderr=subprocess.STDOUT)
        try:
            monitor, figures = watch(args, segmenter, player)
        finally:
            for process in (player, segmenter):
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
            codes = [process.wait(60) for process in (player, segmenter)]
    sent = json.loads(sent_file.read_text())["sent"][TOPIC] + monitor.bad_sent
    return summarize(args, monitor, figures, sent, codes, out)


def wait_for_network(segmenter: subprocess.Popen, log: Path) -> None:
    """Return when the segmenter has loaded its network, which a backend may have to compile first."""
    deadline = time.monotonic() + LOAD_S
    with console.status("loading the network"):
        while LOADED not in log.read_text():
            if segmenter.poll() is not None:
                raise RuntimeError(f"segmenter ended early with exit code {segmenter.returncode}; see {log}")
            if time.monotonic() > deadline:
                segmenter.kill()
                raise RuntimeError(f"segmenter: no network after {LOAD_S:g} s; see {log}")
            time.sleep(0.2)


def watch(args, segmenter: subprocess.Popen, player: subprocess.Popen) -> tuple[Monitor, dict]:
    """Spin until the time is over and the segmenter is idle; return the monitor and the trends."""
    rclpy.init(args=["--ros-args", "-r", f"image:={TOPIC}"])
    monitor = Monitor(segmenter.pid)
    executor = SingleThreadedExecutor()
    executor.add_node(monitor)
    end = monitor.began + args.minutes * 60
    with console.status(f"{args.minutes:g} minutes at {args.rate:g} images/s"):
        while time.monotonic() < end:
            executor.spin_once(timeout_sec=0.1)
            monitor.step()
            for process in (segmenter, player):
                if process.poll() is not None:
                    raise RuntimeError(f"{process.args[0]} ended early with exit code {process.returncode}")
    player.send_signal(signal.SIGINT)
    # The node may have been idle before, and status messages may still arrive: wait until no more arrive.
    deadline = quiet = time.monotonic()
    deadline, told = deadline + SETTLE_S, -1
    while time.monotonic() < deadline and time.monotonic() - quiet < QUIET_S:
        executor.spin_once(timeout_sec=0.1)
        if monitor.heard != told:
            quiet, told = time.monotonic(), monitor.heard
    executor.shutdown()
    names = ("own_mb", "mapped_shared_mb", "descriptors", "threads", "latency_p50_ms", "latency_p95_ms")
    return monitor, {name: trend(monitor.samples, name) for name in names}


def summarize(args, monitor: Monitor, trends: dict, sent: int, codes: list[int], out: Path) -> int:
    last = monitor.last
    counts = {
        name: getattr(last, f"frames_{name}") for name in ("received", "processed", "dropped", "rejected")
    }
    lost = sent - counts["received"]
    checks = {
        "received = processed + dropped + rejected": counts["received"] == sum(list(counts.values())[1:]),
        "a status for every frame": sum(monitor.told.values()) == counts["received"],
        "idle at the end": last.event == SegmentationStatus.IDLE,
        "no more received than sent": lost >= 0,
        "exit codes 0": not any(codes),
        **{f"{name} is steady": figures["steady"] for name, figures in trends.items()},
    }
    table = Table(title=f"{args.minutes:g} minutes, {sent} images sent")
    for column in ("figure", "mean", "first", "last", "slope an hour", "noise"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name, figures in trends.items():
        table.add_row(
            name, *(f"{figures[key]:.2f}" for key in ("mean", "first", "last", "per_hour", "noise"))
        )
    console.print(table)
    console.print(
        ", ".join(f"{name} {value}" for name, value in counts.items()) + f", lost in transport {lost}"
    )
    for text, passed in checks.items():
        console.print(f"  {'[green]yes' if passed else '[red]NO '}[/] {text}")
    result = {
        "minutes": args.minutes,
        "backend": args.backend,
        "sent": sent,
        **counts,
        "lost": lost,
        "masks": monitor.masks,
        "exit_codes": codes,
        "trends": trends,
        "checks": checks,
        "samples": monitor.samples,
    }
    (out / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(checks.values()) else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak.sh", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--rate", type=float, default=60.0, help="images a second; more than the machine can segment"
    )
    parser.add_argument("--checkpoint", default="street_tiny")
    parser.add_argument(
        "--backend",
        default="auto",
        choices=BACKEND_NAMES,
        help="see the node's parameter (default %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=Path("soak_output"))
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
