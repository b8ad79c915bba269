# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Time `cloud_from_depth` on one core: python benchmarks/clouds.py [--size 640x480] [--repeats 100]."""

from __future__ import annotations

import argparse
import time

import cv2
import numpy as np

from vtseg_ros.clouds import Camera, CloudFilter, cloud_from_depth
from vtseg_ros.sizes import parse_size


def main() -> None:
    """Print the best, median and 95th percentile of the time per frame."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=parse_size, default=(640, 480))
    parser.add_argument("--repeats", type=int, default=100)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    width, height = args.size
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 20, (height, width)).astype(np.float32)
    mask, confidence = rng.integers(0, 14, (2, height, width), dtype=np.uint8)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    camera = Camera(
        width=width, height=height, matrix=(0.8 * width, 0.8 * width, (width - 1) / 2, (height - 1) / 2)
    )
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    holes = np.where(rng.random(depth.shape) < 0.3, np.float32(np.nan), depth)
    cases = {
        "all points, image colours": (depth, {"image": image}, CloudFilter()),
        "all points, class colours": (depth, {"palette": palette}, CloudFilter()),
        "30 % unknown depth": (holes, {"image": image}, CloudFilter()),
        "7 of 14 classes": (depth, {"image": image}, CloudFilter(classes=frozenset(range(7)))),
        "stride 2": (depth, {"image": image}, CloudFilter(stride=2)),
    }
    print(f"{width}x{height}, ms per frame: best, median, 95th percentile")
    for name, (values, colors, keep) in cases.items():
        times = []
        for _ in range(args.repeats):
            start = time.perf_counter()
            cloud_from_depth(values, camera, mask, confidence=confidence, **colors, keep=keep)
            times.append(1e3 * (time.perf_counter() - start))
        print(f"{name:<28}", *(f"{value:6.2f}" for value in np.percentile(times, [0, 50, 95])))


if __name__ == "__main__":
    main()
