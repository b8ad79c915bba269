"""A network made ready for inference: BatchNorm folded, channels last in memory, weights in the wanted precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtseg_ros.engine.fold import fold_batch_norm
from vtseg_ros.model import ERFNet, SegFormer, VTSeg


class ForeignPrior(nn.Module):
    """A static network that stays in fp32 (its file fixes the types), for a VTSeg that does not.

    Args:
        prior: (n, 3, H, W) float32 -> (n, C, H, W).
        dtype: of the logits handed on.
    """

    def __init__(self, prior: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.prior = prior
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.prior(images).to(self.dtype)


def prepare(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A network for inference on a device; the one given may share weights with it.

    Means and standard deviations of the normalisation stay fp32: they meet the images before the first rounding.

    Args:
        network: VTSeg, or a network of single images.
        dtype: of weights and activations.
    """
    network.eval().requires_grad_(False)
    if not isinstance(network, VTSeg):
        return _own(network, device, dtype)
    for name in ("encoder", "decoder", "head"):
        setattr(network, name, _own(getattr(network, name), device, dtype))
    network.input_dtype["encoder"] = dtype
    if isinstance(network.static_prior, (ERFNet, SegFormer)):
        network.static_prior = _own(network.static_prior, device, dtype)
        network.input_dtype["prior"] = dtype
    elif dtype != torch.float32:
        network.static_prior = ForeignPrior(network.static_prior, dtype)
    return network.to(device)


def _own(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    module = fold_batch_norm(module).to(device, dtype)
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
            part.to(memory_format=torch.channels_last)
    return module
