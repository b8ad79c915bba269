# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What `record_uncertain` costs: round trips of segmenters with and without it, interleaved in one run.

A segmenter without it is compared with one at the default quantile, and with one at quantile 0, which records nearly
every image, the worst case. A second plain segmenter shows the noise. Usage: python benchmarks/record_uncertain.py
[--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
from graph import Processes, RoundTrip, milliseconds, start_client, use_loopback

WARM_UP = 60
"""More than the images before the first one that can be recorded."""
VARIANTS = {"plain": None, "plain_again": None, "recording": 0.95, "recording_all": 0.0}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="street_tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--folder", type=Path, help="of the recordings (default: a temporary one)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def measure(args: argparse.Namespace, folder: Path) -> dict:
    client, processes = start_client(), Processes()
    try:
        trips = {}
        for name, quantile in VARIANTS.items():
            options = ["-p", f"checkpoint:={args.checkpoint}", "-p", f"device:={args.device}"]
            if quantile is not None:
                options += ["-p", f"record_uncertain:={folder / name}", "-p", f"record_quantile:={quantile}"]
                options += ["-p", "record_max_mb:=100000"]
            processes.start(
                *("-m", "vtseg_ros.nodes.segmenter", "--ros-args", "-r", f"__ns:=/{name}"),
                *("-p", "autostart:=true", "-p", "input_qos:=reliable"),
                *options,
            )
            trips[name] = RoundTrip(client, f"/{name}/image", f"/{name}/segmentation/mask")
            trips[name].connect()
        rng, order = np.random.default_rng(1), random.Random(1)
        times: dict[str, list[float]] = {name: [] for name in trips}
        width, height = args.size
        for index in range(WARM_UP + args.rounds):
            image = (rng.integers(0, 256, (height, width, 3)) * rng.random()).astype(np.uint8)
            for name in order.sample(list(trips), len(trips)):
                spent = trips[name](image, (index + 1) * 100_000_000)
                if index >= WARM_UP:
                    times[name].append(spent)
    finally:
        processes.stop()
    rows = {}
    for name, spent in times.items():
        ratios = np.array(spent) / np.array(times["plain"])
        files = [file for file in (folder / name).rglob("*") if file.is_file()]
        rows[name] = {
            **milliseconds(spent),
            "median_ratio_to_plain": round(float(np.median(ratios)), 3),
            "recorded_mb": round(sum(file.stat().st_size for file in files) / 1e6, 1),
        }
        print(f"{name}: {rows[name]}")
    return {"checkpoint": args.checkpoint, "size": list(args.size), "rounds": args.rounds, "variants": rows}


def main() -> int:
    args = parse_arguments()
    use_loopback("loopback")
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(args, args.folder or Path(scratch))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
