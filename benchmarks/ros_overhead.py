# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Measure the overhead of ROS: round trips of the segmenter and of a bare relay, interleaved in one run.

overhead = round trip from image to mask, minus a direct `VideoPredictor.step` with the same array. It is printed as a multiple
of the round trip of a relay that only publishes an image of the size of the mask. As a check that is less sensitive to load, the
overhead is also computed with the step time of each frame in the node. Usage: python benchmarks/ros_overhead.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from graph import Processes, RoundTrip, milliseconds, picture, start_client, use_loopback

SIZES = ((640, 480), (1280, 720))
WARM_UP = 15


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="street_tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--upsampling",
        default="bilinear",
        choices=("bilinear", "nearest"),
        help="nearest: a shorter step, so that less of its noise is in the difference",
    )
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument(
        "--profile", default="loopback", help="Fast DDS profile; empty = Fast DDS's own settings"
    )
    parser.add_argument(
        "--subscribe", nargs="*", default=[], help="more topics of the segmenter to take, such as overlay"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict:
    import time

    from sensor_msgs.msg import Image
    from vtseg_ros.msg import SegmentationStatus

    from vtseg_ros.inference import VideoPredictor

    client, processes = start_client(), Processes()
    try:
        processes.start(str(Path(__file__).with_name("relay.py")))
        processes.start(
            "-m",
            "vtseg_ros.nodes.segmenter",
            "--ros-args",
            "-p",
            f"checkpoint:={args.checkpoint}",
            "-p",
            f"device:={args.device}",
            "-p",
            "autostart:=true",
            "-p",
            "input_qos:=reliable",
            "-p",
            f"upsampling:={args.upsampling}",
        )
        ours = RoundTrip(client, "image", "segmentation/mask")
        bare = RoundTrip(client, "relay/image", "relay/mask")
        for name in args.subscribe:
            client.create_subscription(Image, f"segmentation/{name}", lambda _: None, 10)
        told: list[SegmentationStatus] = []
        client.create_subscription(SegmentationStatus, "segmentation/status", told.append, 100)
        segmenter = VideoPredictor(args.checkpoint, device=args.device, upsampling=args.upsampling)
        for trip in (ours, bare):
            trip.connect()
        rows, stamp = [], 0
        for size in SIZES:
            image = picture(size)
            times: dict[str, list[float]] = {
                "round_trip": [],
                "step": [],
                "relay": [],
                "beside_step_in_node": [],
            }
            for index in range(WARM_UP + args.rounds):
                stamp += 100_000_000
                began = time.perf_counter()
                segmenter.step(image, stamp)
                step = time.perf_counter() - began
                told.clear()
                spent = {"round_trip": ours(image, stamp), "step": step, "relay": bare(image, stamp)}
                client.wait(lambda: bool(told), 10.0, "no status")
                in_node = told[0].preprocess_s + told[0].inference_s
                spent["beside_step_in_node"] = spent["round_trip"] - in_node
                if index >= WARM_UP:
                    for name, value in spent.items():
                        times[name].append(value)
            row = {"size": list(size), **{name: milliseconds(values) for name, values in times.items()}}
            row["overhead_ms"] = round(row["round_trip"]["p50_ms"] - row["step"]["p50_ms"], 3)
            row["ratio"] = round(row["overhead_ms"] / row["relay"]["p50_ms"], 3)
            row["ratio_by_step_in_node"] = round(
                row["beside_step_in_node"]["p50_ms"] / row["relay"]["p50_ms"], 3
            )
            rows.append(row)
            print(
                f"{size[0]}x{size[1]}: round trip {row['round_trip']['p50_ms']:.1f} ms - step {row['step']['p50_ms']:.1f} ms "
                f"= {row['overhead_ms']:.1f} ms; bare relay {row['relay']['p50_ms']:.1f} ms; ratio {row['ratio']:.2f}; "
                f"with the step's time in the node {row['beside_step_in_node']['p50_ms']:.1f} ms, "
                f"ratio {row['ratio_by_step_in_node']:.2f}"
            )
    finally:
        processes.stop()
    return {"profile": args.profile, "checkpoint": args.checkpoint, "rounds": args.rounds, "sizes": rows}


def main() -> int:
    args = parse_arguments()
    use_loopback(args.profile)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    figures = measure(args)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
