# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Train VTSeg with your own static network, here one that compares grey values.

`python custom_static_prior.py street run_prior`
"""

import argparse
from pathlib import Path

import torch

import vtseg_ros
from vtseg_ros.training.config import DataConfig, ModelConfig, SourceConfig, StageConfig, TrainConfig
from vtseg_ros.training.run import train


class GreyPrior(torch.nn.Module):
    """Compare each pixel with one fixed grey value per class."""

    def __init__(self, num_classes):
        super().__init__()
        self.register_buffer("grey", torch.linspace(0, 1, num_classes)[:, None, None])

    def forward(self, images):
        """Map RGB images (n, 3, H, W) in [0, 1] to logits (n, num_classes, H, W)."""
        return -10 * (images.mean(dim=1, keepdim=True) - self.grey).square()


PRIOR = "custom_static_prior:GreyPrior"  # module:factory, called as GreyPrior(num_classes=...)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bag", nargs="?", default="street")
    parser.add_argument("out", nargs="?", default="run_prior")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    source = (SourceConfig(args.bag),)
    config = TrainConfig(
        data=DataConfig(train=source, size=(128, 64), validation_share=0.2, split_gap_s=0.2),
        model=ModelConfig(preset="tiny", static_prior=PRIOR),
        # The stage `video` trains VTSeg and leaves the static network as it is.
        stages=(StageConfig("video", steps=args.steps, batch=2, max_lr=1e-3),),
    )
    train(config, args.out)
    # A checkpoint never contains code: name the static network again wherever you use it.
    predictor = vtseg_ros.VideoPredictor(Path(args.out, "best.safetensors"), static_prior=PRIOR)
    print({result.mask.shape for result in predictor.stream(args.bag)})
