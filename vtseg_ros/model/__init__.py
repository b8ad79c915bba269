# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The networks, with the names of the paper, and their checkpoints."""

from vtseg_ros.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vtseg_ros.model.efficientvit import EfficientViTB0, EfficientViTB1, EfficientViTSeg
from vtseg_ros.model.erfnet import ERFNet
from vtseg_ros.model.segformer import SegFormer
from vtseg_ros.model.vtseg import VTSeg
from vtseg_ros.model.vtseg_config import VTSegConfig

__all__ = [
    "Checkpoint",
    "ERFNet",
    "EfficientViTB0",
    "EfficientViTB1",
    "EfficientViTSeg",
    "SegFormer",
    "VTSeg",
    "VTSegConfig",
    "load_checkpoint",
    "save_checkpoint",
]
