# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Compare two checkpoints on a labelled bag.

`python evaluate_two_checkpoints.py street street_tiny run/best.safetensors`
"""

import argparse
from pathlib import Path

from vtseg_ros.dataset.frame_store import BagSource, FrameIndex, FrameStore
from vtseg_ros.evaluation.comparison import entries
from vtseg_ros.evaluation.protocol import evaluate
from vtseg_ros.evaluation.selection import Selection, open_systems

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bag", nargs="?", type=Path, default="street")
parser.add_argument("checkpoint", nargs="*", default=["street_tiny", "run/best.safetensors"])
parser.add_argument("--every", type=int, default=1, help="score every n-th label")
args = parser.parse_args()

index = FrameIndex([BagSource(args.bag)])
systems = open_systems(Selection(args.checkpoint, names=args.checkpoint), index)
outcome = evaluate(FrameStore(index), systems, every=args.every, pictures=0)

scores = entries(outcome)  # 0 to 100; None = the class is not in the labels
print(f"{'IoU (%)':12}", *(f"{one['name']:>24}" for one in scores))
for name in systems[0].labels.names:
    shown = ["-" if one["iou"][name] is None else f"{one['iou'][name]:.1f}" for one in scores]
    print(f"{name:12}", *(f"{text:>24}" for text in shown))
print(f"{'mIoU':12}", *(f"{one['miou']:>24.1f}" for one in scores))
print(f"{outcome.labelled - outcome.unscored} of {outcome.labelled} labelled frames scored")
