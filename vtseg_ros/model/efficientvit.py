# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""EfficientViT-Seg: an image network with multi-scale linear attention, as a static network and by itself.

Source: Cai et al., "EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction", ICCV 2023.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vtseg_ros.errors import CheckpointError, ConfigError, first_line
from vtseg_ros.model.normalization import IMAGENET_MEAN, IMAGENET_STD
from vtseg_ros.model.registry import Network, register
from vtseg_ros.model.state_dicts import load_exact

HEAD_DIM = 16
ATTENTION_EPS = 1e-15
AGGREGATION_KERNEL = 5
EXPANSION = 4
"""Of the inverted bottlenecks and of the last layer before the classifier."""


@dataclass(frozen=True, kw_only=True)
class EfficientViTConfig:
    """Widths and depths of an EfficientViT-Seg.

    Args:
        widths: channels of the stem and the four stages (strides 2, 4, 8, 16 and 32); the last two are multiples of 16.
        depths: blocks of the stem and the four stages; the downsampling block counts in the first two stages only.
        head_width: channels of the segmentation head.
        head_depth: inverted bottlenecks of the segmentation head.
    """

    widths: tuple[int, int, int, int, int]
    depths: tuple[int, int, int, int, int]
    head_width: int
    head_depth: int


B0 = EfficientViTConfig(widths=(8, 16, 32, 64, 128), depths=(1, 2, 2, 2, 2), head_width=32, head_depth=1)
B1 = EfficientViTConfig(widths=(16, 32, 64, 128, 256), depths=(1, 2, 3, 3, 4), head_width=64, head_depth=3)


class ConvNorm(nn.Module):
    """A convolution, BatchNorm and Hardswish: (n, in, H, W) -> (n, out, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels, out_channels, kernel, stride, groups: of the convolution.
        norm: with BatchNorm; without it the convolution has a bias.
        activation: with Hardswish.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        norm: bool = True,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=not norm
        )
        self.norm = nn.BatchNorm2d(out_channels) if norm else nn.Identity()
        self.activation = nn.Hardswish() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, (n, in, H, W) -> (n, out, H', W')."""
        result: Tensor = self.activation(self.norm(self.conv(x)))
        return result

    def fused(self) -> ConvNorm:
        """Move the BatchNorm, if there is one, into the convolution, in place."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()
        return self


class SeparableConv(nn.Module):
    """A depthwise and a pointwise convolution with a residual connection: (n, C, H, W) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth_conv = ConvNorm(channels, channels, 3, groups=channels)
        self.point_conv = ConvNorm(channels, channels, 1, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, (n, C, H, W) -> the same shape."""
        result: Tensor = x + self.point_conv(self.depth_conv(x))
        return result


class InvertedBottleneck(nn.Module):
    """MobileNetV2's inverted bottleneck: (n, in, H, W) -> (n, out, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels, out_channels: channels before and after; equal where the stride is 1.
        stride: 1, with a residual connection, or 2.
        norm: BatchNorm after the first two convolutions; without it they have a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: bool = True) -> None:
        super().__init__()
        hidden = EXPANSION * in_channels
        self.residual = stride == 1
        self.inverted_conv = ConvNorm(in_channels, hidden, 1, norm=norm)
        self.depth_conv = ConvNorm(hidden, hidden, 3, stride=stride, groups=hidden, norm=norm)
        self.point_conv = ConvNorm(hidden, out_channels, 1, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, (n, in, H, W) -> (n, out, H', W')."""
        y = self.point_conv(self.depth_conv(self.inverted_conv(x)))
        result: Tensor = x + y if self.residual else y
        return result


def relu_linear_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return attention with the similarity ReLU(q) . ReLU(k), in time linear in the number of tokens.

    Always computed in fp32: the sums over all tokens exceed the range of fp16. The result is a weighted mean of the
    values, which fits the type of the inputs again.

    Source: Cai et al., Equations 2 and 3.

    Args:
        queries: (n, heads, D, N), any floating type, finite.
        keys: as `queries`.
        values: as `queries`.

    Returns:
        (n, heads, D, N) of the type of `values`; zero where all similarities are zero.
    """
    device = queries.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return relu_linear_attention(queries, keys, values)
    q, k, v = F.relu(queries.float()), F.relu(keys.float()), values.float()
    # A row of ones among the values gives the sum of the similarities.
    context = F.pad(v, (0, 0, 0, 1), value=1.0) @ k.transpose(2, 3)  # (n, heads, D + 1, D)
    weighted, total = (context @ q).split([v.shape[2], 1], dim=2)  # (n, heads, D, N), (n, heads, 1, N)
    # Clamped, where the authors add a small value: ONNX Runtime drops it, and 0 / 0 would be NaN.
    result: Tensor = (weighted / total.clamp(min=ATTENTION_EPS)).to(values.dtype)
    return result


class MultiScaleAttention(nn.Module):
    """Linear attention over tokens and over tokens aggregated from their neighbourhood, with a residual connection.

    (n, C, H, W) -> the same shape.

    Args:
        channels: C, a multiple of 16.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        heads = channels // HEAD_DIM
        width = 3 * heads * HEAD_DIM
        self.qkv = nn.Conv2d(channels, width, 1, bias=False)
        self.aggregate = nn.Sequential(
            nn.Conv2d(
                width, width, AGGREGATION_KERNEL, padding=AGGREGATION_KERNEL // 2, groups=width, bias=False
            ),
            nn.Conv2d(width, width, 1, groups=3 * heads, bias=False),
        )
        self.proj = ConvNorm(2 * heads * HEAD_DIM, channels, 1, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, (n, C, H, W) -> the same shape."""
        qkv = self.qkv(x)  # channels: per head 16 of queries, 16 of keys, 16 of values
        both = torch.cat([qkv, self.aggregate(qkv)], dim=1)  # (n, 2 * 3C, H, W)
        heads = both.reshape(both.shape[0], -1, 3 * HEAD_DIM, both.shape[2] * both.shape[3])
        attended = relu_linear_attention(*heads.split(HEAD_DIM, dim=2))  # (n, 2 * heads, 16, H * W)
        result: Tensor = x + self.proj(attended.reshape(x.shape[0], -1, *x.shape[2:]))
        return result


class EfficientViTBlock(nn.Module):
    """Multi-scale linear attention, then an inverted bottleneck: (n, C, H, W) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = MultiScaleAttention(channels)
        self.feed_forward = InvertedBottleneck(channels, channels, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, (n, C, H, W) -> the same shape."""
        result: Tensor = self.feed_forward(self.attention(x))
        return result


class EfficientViTBackbone(nn.Module):
    """Convolutional stem, two convolutional stages and two stages with attention.

    Args:
        config: widths and depths.
    """

    def __init__(self, config: EfficientViTConfig) -> None:
        super().__init__()
        widths, depths = config.widths, config.depths
        self.stem = nn.Sequential(
            ConvNorm(3, widths[0], 3, stride=2), *(SeparableConv(widths[0]) for _ in range(depths[0]))
        )
        self.stages = nn.ModuleList()
        blocks: list[nn.Module]
        for stage in range(1, 5):
            before, width = widths[stage - 1], widths[stage]
            if stage < 3:
                blocks = [InvertedBottleneck(before, width, stride=2)]
                blocks += [InvertedBottleneck(width, width) for _ in range(depths[stage] - 1)]
            else:
                blocks = [InvertedBottleneck(before, width, stride=2, norm=False)]
                blocks += [EfficientViTBlock(width) for _ in range(depths[stage])]
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, images: Tensor, additions: Sequence[Tensor] = ()) -> list[Tensor]:
        """Return the maps of the stem and the four stages.

        Args:
            images: (n, 3, H, W), normalised RGB.
            additions: maps that are added to those of the first stages.

        Returns:
            Five maps (n, C_i, ceil(H / s_i), ceil(W / s_i)), s = 2, 4, 8, 16, 32.
        """
        maps = [self.stem(images)]
        for index, stage in enumerate(self.stages):
            features = stage(maps[-1])
            if index < len(additions):
                features = features + additions[index]
            maps.append(features)
        return maps


class EfficientViTHead(nn.Module):
    """The maps of the last three stages added up at 1/8, then inverted bottlenecks and a classifier.

    Args:
        config: widths and depths.
        num_classes: C.
    """

    def __init__(self, config: EfficientViTConfig, num_classes: int) -> None:
        super().__init__()
        width = config.head_width
        self.inputs = nn.ModuleList(
            ConvNorm(channels, width, 1, activation=False) for channels in reversed(config.widths[2:])
        )
        self.middle = nn.Sequential(*(InvertedBottleneck(width, width) for _ in range(config.head_depth)))
        self.expand = ConvNorm(width, EXPANSION * width, 1)
        self.classify = nn.Conv2d(EXPANSION * width, num_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return logits (n, C, h, w) of maps (n, C_i, h_i, w_i) at 1/8, 1/16 and 1/32, in this order."""
        size = maps[0].shape[2:]
        levels = [layer(grid) for layer, grid in zip(self.inputs, reversed(maps))]  # 1/32, 1/16, 1/8
        fused = levels[-1]
        for level in levels[:-1]:
            fused = fused + F.interpolate(level, size=size, mode="bicubic", align_corners=False)
        result: Tensor = self.classify(self.expand(self.middle(fused)))
        return result


class EfficientViTSeg(Network):
    """EfficientViT-Seg: (n, 3, H, W) RGB in [0, 1] -> logits (n, C, H, W).

    The head's logits at 1/8 are upsampled bilinearly. Any H and W are possible; the published network takes multiples
    of 32 only. The buffers `mean` and `std` normalise the RGB, so the input is in [0, 1].

    Args:
        num_classes: C.
        config: widths and depths.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, num_classes: int, config: EfficientViTConfig) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.config = config
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN))
        self.register_buffer("std", torch.tensor(IMAGENET_STD))
        self.backbone = EfficientViTBackbone(config)
        self.head = EfficientViTHead(config, num_classes)

    @property
    def addition_channels(self) -> tuple[int, ...]:
        """See `Network.addition_channels`; the features are the outputs of the stages of the backbone."""
        return self.config.widths[1:4]

    def coarse_logits(self, images: Tensor, additions: Sequence[Tensor] = ()) -> Tensor:
        """See `Network.coarse_logits`; (n, C, ceil(H / 8), ceil(W / 8))."""
        normalized = (images - self.mean[:, None, None]) / self.std[:, None, None]
        result: Tensor = self.head(self.backbone(normalized, additions)[2:])
        return result

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, C, H, W) of images (n, 3, H, W), RGB in [0, 1]."""
        logits = self.coarse_logits(images)
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)

    def without_upsampling(self) -> CoarseLogits:
        """See `Network.without_upsampling`."""
        return CoarseLogits(self)

    def load_official_state_dict(self, state: dict[str, Any]) -> None:
        """Load the weights that the authors published for segmentation.

        Args:
            state: tensors under the published key names, or a mapping that contains them as `state_dict`. They contain
                no normalisation: `mean` and `std` become ImageNet's, which the authors use.

        Raises:
            CheckpointError: if a key is missing, unexpected or of another shape.
        """
        renamed = {_renamed(key): value for key, value in _tensors(state).items()}
        renamed["mean"], renamed["std"] = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        load_exact(self, renamed, source="EfficientViT-Seg state dict")

    def load_published(self, state: dict[str, Tensor]) -> None:
        """See `Network.load_published`."""
        self.load_official_state_dict(state)

    def set_input_normalization(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """See `Network.set_input_normalization`."""
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))

    @staticmethod
    def from_official(source: str | os.PathLike[str] | dict[str, Any]) -> EfficientViTB0 | EfficientViTB1:
        """Build the network that published weights belong to, with these weights, in eval mode.

        Args:
            source: the authors' file (a pickle; read without executing code), or its content.

        Returns:
            An `EfficientViTB0` or `EfficientViTB1` with as many classes as the weights have.

        Raises:
            CheckpointError: if the file cannot be read, or is not of EfficientViT-Seg-B0 or B1.
        """
        where = "EfficientViT-Seg state dict" if isinstance(source, dict) else str(source)
        state = _tensors(source if isinstance(source, dict) else _read(Path(source)))
        found = {_renamed(key): tuple(value.shape) for key, value in state.items()}
        stem, classifier = found.get("backbone.stem.0.conv.weight", ()), found.get("head.classify.weight", ())
        networks = {kind.config.widths[0]: kind for kind in (EfficientViTB0, EfficientViTB1)}
        if len(stem) != 4 or len(classifier) != 4 or stem[0] not in networks:
            keys = ", ".join(list(state)[:2]) or "none"
            width = stem[0] if stem else "none"
            raise CheckpointError(
                f"{where}: not of a known network; expected published weights of EfficientViT-Seg-B0 or B1 (stems "
                f"{', '.join(map(str, networks))} channels wide), got a stem of width {width} and keys like {keys}. "
                "Download the segmentation weights, not those of a classifier"
            )
        network = networks[stem[0]](num_classes=classifier[0])
        try:
            network.load_official_state_dict(state)
        except CheckpointError as err:
            raise CheckpointError(f"{where}: {err}") from err
        return network.eval()


_DECLARED: dict[str, Any] = {
    "class_dimensions": {r"head\.classify\.(weight|bias)": (0,)},
    "normalization": (IMAGENET_MEAN, IMAGENET_STD),
    "takes_additions": True,
}


@register("efficientvit_b0", title="EfficientViT-B0", **_DECLARED)
class EfficientViTB0(EfficientViTSeg):
    """EfficientViT-Seg-B0 (see `EfficientViTSeg`).

    Args:
        num_classes: C; 706,691 parameters at C = 19.
    """

    config = B0

    def __init__(self, *, num_classes: int) -> None:
        super().__init__(num_classes=num_classes, config=self.config)


@register("efficientvit_b1", title="EfficientViT-B1", **_DECLARED)
class EfficientViTB1(EfficientViTSeg):
    """EfficientViT-Seg-B1 (see `EfficientViTSeg`).

    Args:
        num_classes: C.
    """

    config = B1

    def __init__(self, *, num_classes: int) -> None:
        super().__init__(num_classes=num_classes, config=self.config)


class CoarseLogits(nn.Module):
    """A network without the upsampling of its logits: (n, 3, H, W) -> (n, C, H / 8, W / 8).

    The caller upsamples the logits to the size of the mask in one step, which is cheaper.

    Args:
        network: has the method `coarse_logits`; shared, not copied.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = cast(EfficientViTSeg, network)

    def forward(self, images: Tensor) -> Tensor:
        """Return `coarse_logits` of images (n, 3, H, W), RGB in [0, 1]."""
        result: Tensor = self.network.coarse_logits(images)
        return result


# From the published key names to ours, applied in this order.
_RENAMES = (
    (r"^module\.", ""),
    (r"\.(op_list|main)\.", "."),
    (r"^backbone\.input_stem\.", "backbone.stem."),
    (r"\.context_module\.", ".attention."),
    (r"\.local_module\.", ".feed_forward."),
    (r"\.qkv\.conv\.", ".qkv."),
    (r"\.aggreg\.0\.", ".aggregate."),
    (r"^head\.input_ops\.(\d)\.(0\.)?", r"head.inputs.\1."),
    (r"^head\.output_ops\.0\.0\.", "head.expand."),
    (r"^head\.output_ops\.0\.1\.conv\.", "head.classify."),
)


def _renamed(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def _tensors(state: Any) -> dict[str, Tensor]:
    """Return the state dict from the mapping in which the authors' files wrap it."""
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            "EfficientViT-Seg state dict: not a mapping of names to tensors; expected the content of the authors' "
            f"file, got {type(state).__name__}. Download the weights again"
        )
    return state


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file; expected weights that the authors published. Check the path"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # pickle, zip and runtime errors of damaged files, and refused code
        reason = first_line(err)
        raise CheckpointError(
            f"{path}: cannot be read; expected a PyTorch file of tensors, got: {reason}. Download it again"
        ) from err
