"""Weights in the order that oneDNN wants them in, once, instead of before every convolution and matrix product.

A frame has few pixels and many weights: bringing 70 MB of them in order costs as much as some of the products.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from vtseg_ros.model import VTSeg
from vtseg_ros.model.priors import is_own
from vtseg_ros.model.static import StaticBranch

log = logging.getLogger("vtseg_ros.engine")


class PackedConv2d(nn.Module):
    """A convolution.

    Args:
        conv: whose weights it takes.
        shape: of its input, (n, C, H, W): the order depends on it. Other shapes are right as well, and may be slower.
    """

    def __init__(self, conv: nn.Conv2d, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.window = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(
            conv.weight.detach().to_mkldnn(), *self.window, list(shape)
        )
        self.bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, grid: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, C', H', W')."""
        # Looked up here: a PyTorch without oneDNN has no such operator, and must be able to import this module.
        return torch.ops.mkldnn._convolution_pointwise(
            grid, self.weight, self.bias, *self.window, "none", [], ""
        )


class PackedLinear(nn.Module):
    """A linear layer.

    Args:
        weight: (out, in).
        bias: (out,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = None if bias is None else bias.detach()

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return torch.ops.mkldnn._linear_pointwise(tokens, self.weight, self.bias, "none", [], "")


class PackedPointwise(PackedLinear):
    """A 1x1 convolution as a linear layer over the channels: as fast, and for every shape."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.weight[:, :, 0, 0].contiguous(), conv.bias)

    def forward(self, grid: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, C', H, W), channels last in memory."""
        return super().forward(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@torch.inference_mode()
def pack(network: nn.Module, size: tuple[int, int]) -> None:
    """Pack the layers of a network on the CPU that `prepare` has made, in place; an external static network stays.

    Where this PyTorch or processor cannot, the network stays as it is and the reason is logged.

    Args:
        size: (H, W) of the input.
    """
    parts = _parts(network)
    image = torch.zeros(1, 3, *size)
    video = image[:, None] if isinstance(network, VTSeg) else image
    shapes = _input_shapes(network, parts, video)
    places = [
        (parent, name, layer)
        for part in parts
        for parent in part.modules()
        for name, layer in parent.named_children()
        if type(layer) is nn.Linear or layer in shapes
    ]
    try:
        packed = [_packed(layer, shapes) for _, _, layer in places]
        for (parent, name, _), layer in zip(places, packed):
            setattr(parent, name, layer)
        network(video)
    except (RuntimeError, AttributeError) as err:
        log.info("weights are not packed: %s", str(err).splitlines()[0])
        for parent, name, layer in places:
            setattr(parent, name, layer)


def _parts(network: nn.Module) -> list[nn.Module]:
    """What of a network is ours to pack."""
    video = network.model if isinstance(network, StaticBranch) else network
    if not isinstance(video, VTSeg):
        return [network]
    parts = [video.static_prior] if is_own(video.static_prior) else []
    return parts if video is not network else [*parts, video.encoder, video.decoder, video.head]


def _packed(layer: nn.Module, shapes: dict[nn.Module, tuple[int, ...]]) -> nn.Module:
    if type(layer) is nn.Linear:
        return PackedLinear(layer.weight, layer.bias)
    if layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1:
        return PackedPointwise(layer)
    return PackedConv2d(layer, shapes[layer])


def _input_shapes(
    network: nn.Module, parts: list[nn.Module], video: Tensor
) -> dict[nn.Module, tuple[int, ...]]:
    """The input shape of each convolution of the parts when the network sees `video`."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[layer] = tuple(inputs[0].shape)

    hooks = [
        layer.register_forward_pre_hook(note)
        for part in parts
        for layer in part.modules()
        if type(layer) is nn.Conv2d
    ]
    network(video)
    for hook in hooks:
        hook.remove()
    return shapes
