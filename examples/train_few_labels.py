# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tune street_tiny on 20 labels: `python train_few_labels.py street run`."""

import argparse

from vtseg_ros.training.config import DataConfig, ModelConfig, SourceConfig, StageConfig, TrainConfig
from vtseg_ros.training.run import train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bag", nargs="?", default="street", help="100 labelled frames, 10 Hz")
parser.add_argument("out", nargs="?", default="run")
parser.add_argument("--steps", type=int, default=600)
parser.add_argument("--size", type=int, nargs=2, default=(320, 96), help="multiples of 32")
args = parser.parse_args()

config = TrainConfig(
    data=DataConfig(
        train=(SourceConfig(args.bag),),
        size=tuple(args.size),
        label_stride=4,  # every fourth label: 20 of the 80 before the validation part
        validation_share=0.18,
        split_gap_s=0.2,  # s; use 5 or more on a real drive, where neighbouring frames are alike
    ),
    model=ModelConfig(preset="tiny", warm_start="street_tiny"),
    # Batches of eight single frames train the static network and VTSeg together.
    stages=(StageConfig("end_to_end", steps=args.steps, batch=8, window=1, max_lr=6e-4, static_loss=1.0),),
    validate_every=100,
)

if __name__ == "__main__":  # worker processes import this file
    train(config, args.out, on_progress=lambda p: print(f"{p.step}: loss {p.loss:.3f}"))
    print(f"the best checkpoint is {args.out}/best.safetensors")
