# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Time masks from logits in PyTorch and in OpenVINO, in turns: python benchmarks/mask_backends.py [--rounds 15]."""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from vtseg_ros.inference.backends.openvino_runtime import MaskModel
from vtseg_ros.inference.postprocess import MaskOptions, to_mask

CASES = ((14, (320, 96), (640, 480)), (14, (320, 96), (320, 96)), (19, (256, 128), (256, 128)))
"""Classes, and (width, height) of logits and mask, px."""


def main() -> None:
    """Print medians, their ratio and the agreement of each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": args.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    print(
        "classes, logits, mask: ms of PyTorch, of OpenVINO, ratio; same class; largest difference of confidence"
    )
    for classes, (width, height), size in CASES:
        logits = 3 * torch.randn(1, classes, height, width, generator=torch.Generator().manual_seed(0))
        compiled = MaskModel(tuple(logits.shape), size, config)
        runs = {
            "torch": lambda logits=logits, size=size: to_mask(logits, MaskOptions(size)),
            "openvino": lambda logits=logits, compiled=compiled: compiled(logits.numpy(), 0.0),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                times[name].append(1e3 * (time.perf_counter() - start))
        (mask, confidence), (other, other_confidence) = (run() for run in runs.values())
        torch_ms, openvino_ms = (float(np.median(values)) for values in times.values())
        apart = np.abs(confidence.astype(int) - other_confidence.astype(int)).max()
        print(
            f"{classes}, {width}x{height}, {size[0]}x{size[1]}: {torch_ms:.2f}, {openvino_ms:.2f}, "
            f"{openvino_ms / torch_ms:.2f}; {100 * (mask == other).mean():.2f} %; {apart}/255"
        )


if __name__ == "__main__":
    main()
