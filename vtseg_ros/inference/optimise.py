# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Optimise networks for inference: fuse layers, use channels-last memory and reduced precision, prepack weights.

A module with a cheaper form in eval mode defines `fused()`, which returns it. A network whose parts have different precision
defines `for_inference()` and `own_parts()` (see `VTSeg`).
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn

from vtseg_ros.errors import first_line
from vtseg_ros.model.normalization import Cast, Normalization
from vtseg_ros.model.state_dicts import use_channels_last

if TYPE_CHECKING:
    from vtseg_ros.model.vtseg import VTSeg

log = logging.getLogger("vtseg_ros.inference")


class _Fusible(Protocol):
    def fused(self) -> nn.Module:
        """Return the cheaper form in eval mode."""


def optimise(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a network for inference; an external static network is shared, and moved to the device.

    Args:
        network: a video network, the static branch of one, or a network of single images.
        device: where it runs.
        dtype: of weights and activations; images and logits stay float32.
    """

    def convert(module: nn.Module) -> nn.Module:
        return _converted(module, device, dtype)

    if hasattr(network, "for_inference"):
        result: nn.Module = cast("VTSeg", network).for_inference(convert, dtype).to(device)
        return result
    own = convert(network)
    return own if dtype == torch.float32 else Cast(own, input=dtype, output=torch.float32)


def fuse(network: nn.Module) -> nn.Module:
    """Return a copy of a network, in eval mode, with fewer layers and the same output.

    BatchNorm is fused into the convolution before it, keys and values use one projection, and the fusion convolution of
    VTSeg's head is merged into its levels.
    """
    network = copy.deepcopy(network).eval()
    for parent in list(network.modules()):
        for name, module in parent.named_children():
            if hasattr(module, "fused"):
                setattr(parent, name, cast(_Fusible, module).fused())
    return cast(_Fusible, network).fused() if hasattr(network, "fused") else network


def _converted(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    module = fuse(module).requires_grad_(False)
    constants = [(part, part.mean, part.std) for part in module.modules() if isinstance(part, Normalization)]
    module = module.to(device, dtype)
    for part, mean, std in constants:  # rounded constants would change every pixel
        part.mean, part.std = mean.to(device), std.to(device)
    use_channels_last(module)
    return module


class PackedConv2d(nn.Module):
    """A convolution with prepacked weights.

    Args:
        conv: convolution whose weights are used.
        shape: of its input, (n, C, H, W), which determines the layout. Other shapes give the same result, but may be slower.
    """

    def __init__(self, conv: nn.Conv2d, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.window = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg] # the stub lacks the shape
            conv.weight.detach().to_mkldnn(), *self.window, list(shape)
        )
        self.bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, grid: Tensor) -> Tensor:
        """Map (n, C, H, W) to (n, C', H', W')."""
        # Looked up here, because this module must also be importable without oneDNN, which has the operator.
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            grid, self.weight, self.bias, *self.window, "none", [], ""
        )
        return result


class PackedLinear(nn.Module):
    """A linear layer with prepacked weights.

    Args:
        weight: (out, in).
        bias: (out,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = None if bias is None else bias.detach()

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, self.weight, self.bias, "none", [], "")
        return result


class PackedPointwise(PackedLinear):
    """A 1x1 convolution as a linear layer over the channels, which is equally fast and works for every shape."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.weight[:, :, 0, 0].contiguous(), conv.bias)

    def forward(self, grid: Tensor) -> Tensor:
        """Map (n, C, H, W) to (n, C', H, W), channels last in memory."""
        return super().forward(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@torch.inference_mode()
def prepack(network: nn.Module, example: Tensor) -> None:
    """Convert the weights of an optimised network on the CPU to oneDNN's layout, once, in place.

    Otherwise the weights are reordered before every convolution and matrix product. A frame has few pixels and many
    weights; reordering 70 MB of them takes as long as some of the products. An external static network stays unchanged. If
    PyTorch or the processor does not support prepacking, the network stays unchanged and the reason is logged.

    Args:
        network: from `optimise`.
        example: an input of the shape that the network will process.
    """
    parts = cast("VTSeg", network).own_parts() if hasattr(network, "own_parts") else [network]
    shapes = _input_shapes(network, parts, example)
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
        network(example)
    except (RuntimeError, AttributeError) as err:
        log.info("weights are not packed: %s", first_line(err))
        for parent, name, layer in places:
            setattr(parent, name, layer)


def _packed(layer: nn.Module, shapes: dict[nn.Module, tuple[int, ...]]) -> nn.Module:
    if type(layer) is nn.Linear:
        return PackedLinear(layer.weight, layer.bias)
    conv = cast(nn.Conv2d, layer)
    if conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1:
        return PackedPointwise(conv)
    return PackedConv2d(conv, shapes[conv])


def _input_shapes(
    network: nn.Module, parts: list[nn.Module], video: Tensor
) -> dict[nn.Module, tuple[int, ...]]:
    """Return the input shape of each convolution of the parts when the network processes `video`."""
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
