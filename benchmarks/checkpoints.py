# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Time the predictor with several checkpoints in turn: python benchmarks/checkpoints.py drive_static drive [--threads 1]."""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from vtseg_ros import VideoPredictor
from vtseg_ros.sizes import parse_size

BURST = 3
"""Frames of a turn."""


def main() -> None:
    """Print the median time per frame of each checkpoint and backend, and its ratio to the first checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--backends", nargs="+", default=["torch", "openvino"])
    parser.add_argument("--size", type=parse_size, default=(640, 480), help="of the images, WxH px")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--precision", default="fp32", help="fp32, bf16, or auto as in the node")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="processor time of the process instead of elapsed time: for machines on which other programs run",
    )
    parser.add_argument(
        "--without-confidence",
        action="store_true",
        help="masks only, as in a node whose confidence nobody reads",
    )
    args = parser.parse_args()
    width, height = args.size
    clock = time.process_time if args.processor_time else time.perf_counter
    images = np.random.default_rng(0).integers(0, 256, (BURST, height, width, 3), dtype=np.uint8)
    for backend in args.backends:
        options = {"device": "cpu", "backend": backend, "precision": args.precision, "threads": args.threads}
        predictors = [VideoPredictor(name, **options) for name in args.checkpoints]
        times: list[list[float]] = [[] for _ in predictors]
        for turn in range(args.rounds + 3):  # the first turns fill the windows
            for predictor, found in zip(predictors, times):
                for image in images:
                    began = clock()
                    predictor.step(image, with_confidence=not args.without_confidence)
                    found += [(clock() - began) * 1e3] * (turn >= 3)
        medians = [statistics.median(found) for found in times]
        for name, median in zip(args.checkpoints, medians):
            print(f"{backend:<10}{name:<30}{median:8.1f} ms{median / medians[0]:7.2f}")


if __name__ == "__main__":
    main()
