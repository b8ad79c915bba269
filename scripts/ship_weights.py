# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Store a trained checkpoint in half precision in the shipped weights, with its agreement in bf16.

With --baseline-of, also writes its position baseline: each pixel's most frequent class in the training labels, which a
report shows beside a score.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import cv2
import numpy as np

from vtseg_ros.commands.weights import AGREEMENT_FRAMES
from vtseg_ros.dataset.frame_store import BagSource, FrameIndex, FrameStore
from vtseg_ros.inference.precision import first_images, with_agreement
from vtseg_ros.label_set import IGNORE
from vtseg_ros.model import load_checkpoint
from vtseg_ros.model.checkpoint import WEIGHTS_DIR, save_again
from vtseg_ros.model.licence import Licence


def position_baseline(bags: list[Path], size: tuple[int, int], num_classes: int) -> np.ndarray:
    """(H, W) uint8: each position's most frequent class over all labels of the bags."""
    store = FrameStore(FrameIndex([BagSource(bag) for bag in bags]), size=size)
    counts = np.zeros((num_classes, size[1], size[0]), np.int64)
    rows, columns = np.indices((size[1], size[0]))
    for number in range(len(store)):
        label = store.label(number)
        known = label != IGNORE
        np.add.at(counts, (label[known], rows[known], columns[known]), 1)
    return counts.argmax(axis=0).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("name")
    parser.add_argument(
        "--frames-of", type=Path, required=True, metavar="BAG", help="bag with frames to measure bf16 on"
    )
    parser.add_argument(
        "--baseline-of", nargs="+", type=Path, default=[], metavar="BAG", help="the training bags"
    )
    parser.add_argument(
        "--licence",
        nargs=2,
        metavar=("NAME", "NOTE"),
        help="licence, and the data that it follows from (default: as in the checkpoint)",
    )
    args = parser.parse_args()
    loaded = load_checkpoint(args.checkpoint)
    if args.licence:
        loaded = dataclasses.replace(loaded, licence=Licence(*args.licence))
    target = WEIGHTS_DIR / f"{args.name}.safetensors"
    # Measured with the weights as they are stored.
    save_again(target, loaded, half=True)
    measured = with_agreement(load_checkpoint(target), first_images(args.frames_of, AGREEMENT_FRAMES))
    save_again(target, measured, half=True)
    print(f"bf16 has the same class as fp32 on {100 * measured.agreement['bf16']:.3f} % of pixels")
    if args.baseline_of:
        baseline = position_baseline(args.baseline_of, loaded.input_size, len(loaded.labels))
        cv2.imwrite(str(WEIGHTS_DIR / f"{args.name}.position_baseline.png"), baseline)
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
