"""Parameters and multiply-adds by module, counted on shapes alone: nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vtseg_ros.errors import ConfigError
from vtseg_ros.model.config import PRESETS, STAGES, VTSegConfig
from vtseg_ros.model.efficientvit import EfficientViTB0, EfficientViTB1
from vtseg_ros.model.erfnet import ERFNet
from vtseg_ros.model.gru import STGRU
from vtseg_ros.model.segformer import SegFormer
from vtseg_ros.model.vtseg import VTSeg, check_size

VTSEG_PARTS = {
    "static_prior": "static network (ERFNet)",
    **{f"encoder.blocks.{i}": f"encoder, VTEncBlock {i + 1}" for i in range(STAGES)},
    **{f"decoder.enc_blocks.{i}": f"decoder, VTEncBlock {i + 1}" for i in range(STAGES)},
    **{f"decoder.dec_blocks.{i}": f"decoder, VTDecBlock {i + 1}" for i in range(STAGES)},
    "head": "head",
}
"""Submodules of VTSeg that the table lists; what is left (VTDecConcat's LayerNorm) is in the total."""

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "ERFNet": lambda classes: ERFNet(num_classes=classes),
    "SegFormer-B0": lambda classes: SegFormer(num_classes=classes),
    "EfficientViT-B0": lambda classes: EfficientViTB0(num_classes=classes),
    "EfficientViT-B1": lambda classes: EfficientViTB1(num_classes=classes),
    "GRU": lambda classes: STGRU(num_classes=classes),
    **{
        f"VTSeg {name}": lambda classes, name=name: VTSeg(VTSegConfig.preset(name, num_classes=classes))
        for name in PRESETS
    },
}


@dataclass(frozen=True)
class Cost:
    """Of a module: trained numbers, and multiply-adds of convolutions, linear layers and attention for one window."""

    name: str
    parameters: int
    macs: int


def build(name: str, num_classes: int) -> nn.Module:
    """A network of `NETWORKS` without memory for its weights (on PyTorch's meta device)."""
    if name not in NETWORKS:
        raise ConfigError(f"there is no network {name!r}. Known: {', '.join(NETWORKS)}")
    with torch.device("meta"):
        return NETWORKS[name](num_classes).eval()


def costs(model: nn.Module, *, size: tuple[int, int], frames: int) -> list[Cost]:
    """What the modules of a network cost, the total last.

    Args:
        model: from `build`.
        size: (width, height) px, multiples of 32.
        frames: k of the window that is segmented in one forward; all k masks are made. Image networks see one.
    """
    width, height = size
    check_size(height, width)
    video = isinstance(model, (VTSeg, STGRU))
    shape = (1, frames, 3, height, width) if video else (1, 3, height, width)
    inputs = [torch.zeros(shape, device="meta")]
    if isinstance(model, STGRU):
        inputs.append(torch.zeros(1, frames - 1, 2, height, width, device="meta"))
    counter = FlopCounterMode(display=False, depth=None)
    with torch.no_grad(), counter:
        model(*inputs)
    counts, root = counter.get_flop_counts(), type(model).__name__
    parts = VTSEG_PARTS if isinstance(model, VTSeg) else {}
    found = [
        Cost(title, parameters_of(model.get_submodule(part)), _macs(counts, f"{root}.{part}"))
        for part, title in parts.items()
    ]
    return [*found, Cost("total", parameters_of(model), _macs(counts, "Global"))]


def parameters_of(module: nn.Module) -> int:
    """Trained numbers of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def _macs(counts: dict, name: str) -> int:
    # A multiplication and an addition are two operations to the counter.
    return sum(counts[name].values()) // 2
