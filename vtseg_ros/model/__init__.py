"""The networks, as the paper names them, and their checkpoints."""

from vtseg_ros.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vtseg_ros.model.config import VTSegConfig
from vtseg_ros.model.erfnet import ERFNet
from vtseg_ros.model.segformer import SegFormer
from vtseg_ros.model.vtseg import VTSeg

__all__ = ["Checkpoint", "ERFNet", "SegFormer", "VTSeg", "VTSegConfig", "load_checkpoint", "save_checkpoint"]
