# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Print the mean size of the image topics: python benchmarks/image_topic_sizes.py BAG --checkpoint NAME [--frames 8]."""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from std_msgs.msg import Header

from vtseg_ros.bags import BagReader, decode_any, find_image_topic
from vtseg_ros.image_ops import colorize, overlay
from vtseg_ros.inference import VideoPredictor
from vtseg_ros.nodes.conversions import to_image, to_jpeg, to_png
from vtseg_ros.sizes import parse_size

EVERY = 12
"""Frames of the bag from one measured frame to the next."""


def main() -> None:
    """Print kB per topic, and the time of a jpeg."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bag", type=Path)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--size", type=parse_size, default=(640, 480))
    parser.add_argument("--frames", type=int, default=8)
    args = parser.parse_args()
    predictor = VideoPredictor(args.checkpoint, device="cpu", window=1)
    header, sizes, times = Header(), {}, []
    with BagReader(args.bag) as bag:
        for _, _, message in islice(bag.messages([find_image_topic(bag)]), 0, EVERY * args.frames, EVERY):
            image = cv2.resize(decode_any(message), args.size, interpolation=cv2.INTER_AREA)
            mask = predictor.step(image).mask
            predictor.reset()
            painted = overlay(image, mask, predictor.labels, 0.5)
            messages = {"overlay": to_image(painted, "rgb8", header)}
            messages |= {
                f"overlay/compressed, {quality}": to_jpeg(painted, quality, header)
                for quality in (95, 80, 50)
            }
            messages["color/compressed, 80"] = to_jpeg(colorize(mask, predictor.labels), 80, header)
            messages["mask/compressed"] = to_png(mask, header)
            for name, made in messages.items():
                sizes.setdefault(name, []).append(len(made.data) / 1e3)
            start = time.process_time()
            to_jpeg(painted, 80, header)
            times.append(1e3 * (time.process_time() - start))
    for name, values in sizes.items():
        print(f"{name:<24} {np.mean(values):7.1f} kB")
    print(f"a jpeg of quality 80: {np.median(times):.2f} ms of processor time")


if __name__ == "__main__":
    main()
