"""Convolutions for the CPU: weights laid out once for oneDNN, ReLU and residual sums in the convolution's own pass.

PyTorch's own convolution lays the weights out anew on every call, which for one frame costs a fifth to a third of it.
The operators are those that torch.compile uses; they are not public, so they are tried first and left when they fail.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor, nn

from vtseg_ros.engine.fold import FoldedHead
from vtseg_ros.model.erfnet import NonBottleneck1D

log = logging.getLogger("vtseg_ros.engine")


class PackedConv(nn.Module):
    """A Conv2d on the CPU with its weights in oneDNN's layout, chosen at the first call.

    Args:
        conv: in eval mode.
        relu: whether a ReLU follows.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool = False) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.options = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.activation = "relu" if relu else "none"
        self.packed: list[Tensor] = []  # not a buffer: an opaque tensor cannot be moved or cast

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The convolution of x, plus `residual` if there is one, then the ReLU."""
        if not self.packed:
            self.packed.append(
                torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.options, list(x.shape))
            )
        weight, operator = self.packed[0], torch.ops.mkldnn._convolution_pointwise
        if residual is None:
            return operator(x, weight, self.bias, *self.options, self.activation, [], "")
        return operator.binary(
            x, residual, weight, self.bias, *self.options, "add", 1.0, self.activation, [], ""
        )


class _NonBottleneck(nn.Module):
    """A folded NonBottleneck1D in four calls."""

    def __init__(self, block: NonBottleneck1D) -> None:
        super().__init__()
        names = ("conv3x1_1", "conv1x3_1", "conv3x1_2", "conv1x3_2")
        self.convs = nn.ModuleList(PackedConv(getattr(block, name), relu=True) for name in names)

    def forward(self, x: Tensor) -> Tensor:
        out = self.convs[2](self.convs[1](self.convs[0](x)))
        return self.convs[3](out, x)


def pack(network: nn.Module) -> nn.Module:
    """Pack the convolutions of a folded network on the CPU, in place; unchanged where that does not work."""
    if not works(next(network.parameters()).dtype):
        return network
    for module in list(network.modules()):
        if isinstance(module, FoldedHead):
            for up in (module.up1, module.up2):  # PixelShuffle only moves values: the ReLU may go before it
                up[0][0], up[1] = PackedConv(up[0][0], relu=True), nn.Identity()
        for name, child in list(module.named_children()):
            if isinstance(child, NonBottleneck1D):
                setattr(module, name, _NonBottleneck(child))
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d:
                setattr(parent, name, PackedConv(child))
    return network


@functools.cache
def works(dtype: torch.dtype) -> bool:
    """Whether this torch has the operators and this processor runs them in a precision."""
    conv = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False).to(dtype)
    x = torch.rand(1, 8, 4, 4).to(dtype)
    try:
        with torch.inference_mode():
            got = PackedConv(conv, relu=True)(x, x)
            expected = torch.relu(conv(x) + x)
        if not torch.allclose(got.float(), expected.float(), atol=1e-4 if dtype == torch.float32 else 0.05):
            raise RuntimeError("they give other values")
    except Exception as err:  # other versions and processors: no such operator, other arguments, no oneDNN
        log.info("packed convolutions are not used: %s", str(err).splitlines()[0])
        return False
    return True
