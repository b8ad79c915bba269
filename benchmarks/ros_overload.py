# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Measure latency, memory and counters of the segmenter under overload. Exit code 1 if a limit is exceeded.

Limits: p99 of the latency below three inference times, constant memory, received = processed + dropped + rejected.
Usage: python benchmarks/ros_overload.py [--seconds 60] [--factor 4] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import psutil
from graph import Client, Processes, RoundTrip, picture, start_client, use_loopback

# Memory may still grow while queues and allocator pools fill up.
SETTLE_S = 10.0
FLAT_MB = 20.0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="street_tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--factor", type=float, default=4.0)
    parser.add_argument(
        "--profile", default="loopback", help="Fast DDS profile; empty = Fast DDS's own settings"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process, MB."""
    return psutil.Process(pid).memory_info().rss / 2**20


def flood(
    client: Client, trip: RoundTrip, image: np.ndarray, rate_hz: float, seconds: float, pid: int
) -> dict:
    """Publish at a rate, and sample the resident memory of the segmenter once per second."""
    began, memory, sent = time.monotonic(), [], 0
    while (now := time.monotonic()) - began < seconds:
        if now - began >= sent / rate_hz:
            sent += 1
            trip.publish(image, 10**12 + round(sent * 1e9 / rate_hz))
        if now - began >= len(memory):
            memory.append(resident_mb(pid))
        client.executor_.spin_once(timeout_sec=max(0.0, min(0.01, began + sent / rate_hz - time.monotonic())))
    return {
        "sent": sent,
        "seconds": time.monotonic() - began,
        "memory_mb": [round(value, 1) for value in memory],
    }


def measure(args: argparse.Namespace) -> dict:
    from vtseg_ros.msg import SegmentationStatus

    from vtseg_ros.nodes.outputs import STATUS

    client, processes, told = start_client(), Processes(), []
    try:
        node = processes.start(
            "-m",
            "vtseg_ros.nodes.segmenter",
            "--ros-args",
            "-p",
            f"checkpoint:={args.checkpoint}",
            "-p",
            f"device:={args.device}",
            "-p",
            "autostart:=true",
        )
        client.create_subscription(SegmentationStatus, "segmentation/status", told.append, STATUS)
        trip = RoundTrip(client, "image", "segmentation/mask")
        trip.connect()
        width, height = map(int, args.size.split("x"))
        image = picture((width, height))
        alone = [trip(image, (index + 1) * 100_000_000) for index in range(30)][10:]
        client.wait(lambda: told and told[-1].event == SegmentationStatus.IDLE, 30.0, "no idle status")
        inference = [s.inference_s for s in told if s.event == SegmentationStatus.PROCESSED][10:]
        before, rate = told[-1], args.factor / float(np.median(alone))
        told.clear()
        figures = flood(client, trip, image, rate, args.seconds, node.pid)
        client.wait(lambda: told and told[-1].event == SegmentationStatus.IDLE, 60.0, "no idle status")
    finally:
        processes.stop()
    last = told[-1]
    processed = [s for s in told if s.event == SegmentationStatus.PROCESSED]
    latency = [s.total_s for s in processed]
    counts = {
        name: getattr(last, f"frames_{name}") - getattr(before, f"frames_{name}")
        for name in ("received", "processed", "dropped", "rejected")
    }
    under_load = float(np.median([s.inference_s for s in processed]))
    return {
        **figures,
        **counts,
        "rate_hz": round(rate, 1),
        "inference_ms": round(float(np.median(inference)) * 1e3, 2),
        "inference_under_load_ms": round(under_load * 1e3, 2),
        "inference_p99_under_load_ms": round(
            float(np.percentile([s.inference_s for s in processed], 99)) * 1e3, 2
        ),
        **{f"latency_p{q}_ms": round(float(np.percentile(latency, q)) * 1e3, 2) for q in (50, 95, 99)},
        "latency_p99_in_inference_times": round(float(np.percentile(latency, 99)) / under_load, 2),
        "statuses": len(told) - sum(s.event == SegmentationStatus.IDLE for s in told),
    }


def settled_memory(memory_mb: list[float]) -> tuple[float, float]:
    """Return the medians of the first and the last quarter after SETTLE_S; single samples depend on the current images."""
    settled = memory_mb[int(SETTLE_S) :] or memory_mb
    quarter = max(len(settled) // 4, 1)
    return float(np.median(settled[:quarter])), float(np.median(settled[-quarter:]))


def broken(figures: dict) -> list[str]:
    """Return the limits that are exceeded."""
    found = []
    if figures["latency_p99_in_inference_times"] >= 3:
        found.append(f"p99 of the latency is {figures['latency_p99_in_inference_times']} inference times")
    early, late = settled_memory(figures["memory_mb"])
    if late - early > FLAT_MB:
        found.append(f"memory grew from {early} to {late} MB")
    if figures["received"] != figures["processed"] + figures["dropped"] + figures["rejected"]:
        found.append("received is not processed + dropped + rejected")
    if figures["statuses"] != figures["received"]:
        found.append(f"{figures['statuses']} statuses for {figures['received']} frames")
    return found


def main() -> int:
    args = parse_arguments()
    use_loopback(args.profile)
    figures = measure(args)
    print(
        f"{figures['sent']} images at {figures['rate_hz']} Hz: received {figures['received']} = processed "
        f"{figures['processed']} + dropped {figures['dropped']} + rejected {figures['rejected']}\n"
        f"latency p50 {figures['latency_p50_ms']} ms, p95 {figures['latency_p95_ms']} ms, p99 {figures['latency_p99_ms']} ms "
        f"= {figures['latency_p99_in_inference_times']} inference times ({figures['inference_under_load_ms']} ms; "
        f"{figures['inference_ms']} ms without the flood, p99 {figures['inference_p99_under_load_ms']} ms under it)\n"
        "memory {:.0f} MB early, {:.0f} MB late".format(*settled_memory(figures["memory_mb"]))
    )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    problems = broken(figures)
    for problem in problems:
        print(f"does not hold: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
