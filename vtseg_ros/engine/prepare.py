"""A network made ready for inference: layers folded, channels last in memory, weights in the wanted precision."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vtseg_ros.engine.fold import fold
from vtseg_ros.model import VTSeg
from vtseg_ros.model.layout import use_channels_last
from vtseg_ros.model.normalization import Normalization
from vtseg_ros.model.priors import is_own
from vtseg_ros.model.static import StaticBranch


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


class RoundedNetwork(nn.Module):
    """A network of single images in reduced precision, float32 in and out.

    Args:
        network: (n, 3, H, W) -> (n, C, H, W), both of `dtype`.
        dtype: what the images are cast to.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.to(self.dtype)).float()


def prepare(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy of a network for inference on a device; an external static network is shared, and moved there.

    VTSeg's normalisation and classifier stay fp32: they meet the images before the first and the logits after the
    last rounding.

    Args:
        network: VTSeg, the static branch of one, or a network of single images.
        dtype: of all other weights and activations.
    """
    if isinstance(network, StaticBranch):
        return StaticBranch(prepare(network.model, device, dtype))
    if not isinstance(network, VTSeg):
        own = _own(network, device, dtype)
        return own if dtype == torch.float32 else RoundedNetwork(own, dtype)
    prior = network.static_prior
    network = copy.deepcopy(network, {id(prior): prior}).eval()
    for name in ("encoder", "decoder", "head"):
        setattr(network, name, _own(getattr(network, name), device, dtype))
    network.head.classify.float()
    network.head.logits_dtype = torch.float32
    network.input_dtype["encoder"] = dtype
    network.takes_unit_range = tuple(
        branch
        for branch in network.input_dtype
        if not getattr(network, f"{branch}_mean").any() and (getattr(network, f"{branch}_std") == 1).all()
    )
    if is_own(prior):
        network.static_prior = _own(prior, device, dtype)
        network.input_dtype["prior"] = dtype
    elif dtype != torch.float32:
        network.static_prior = ForeignPrior(prior, dtype)
    return network.to(device)


def _own(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    module = fold(module).requires_grad_(False)
    constants = [(part, part.mean, part.std) for part in module.modules() if isinstance(part, Normalization)]
    module = module.to(device, dtype)
    for part, mean, std in constants:  # rounded constants would shift every pixel
        part.mean, part.std = mean.to(device), std.to(device)
    use_channels_last(module)
    return module
