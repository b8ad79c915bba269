# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A network of single frames whose logits are improved by attention to the same places in older frames."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtseg_ros.errors import ConfigError
from vtseg_ros.model.cache import FrameCache
from vtseg_ros.model.memory_attention import MemoryAttention, MemoryConfig
from vtseg_ros.model.normalization import Cast
from vtseg_ros.model.registry import check_override_keys, register, without_upsampling
from vtseg_ros.model.static_prior import build_prior_of, is_own, resize_logits
from vtseg_ros.model.video_network import VideoNetwork, prior_config, single_frames
from vtseg_ros.model.vtseg_config import check_num_classes, check_window

if TYPE_CHECKING:
    from vtseg_ros.model.vtseg import VTSeg

NAME = "local_memory"
DEFAULT_PRIOR = "efficientvit_b0"
CORRUPTED = 0.02
"""Mean difference of the RGB of a corrupted cell from the clean frame, at least."""
SIZES = ("stride", "radius", "width", "caution")
OVERRIDES = ("window", *SIZES, "static_prior")


@dataclass(frozen=True, kw_only=True)
class LocalMemoryConfig:
    """Configuration of `LocalMemory`.

    Args:
        num_classes: classes C of the logits, 1..255.
        window: window length k, 1..64; can be changed at run time.
        static_prior: architecture of the network of single frames: an image network, or a video network that takes no
            flow, or `external`.
        static_prior_config: its configuration, for a video network.
        memory: sizes of the attention.

    Raises:
        ConfigError: if a value is out of range.
    """

    num_classes: int
    window: int = 4
    static_prior: str = DEFAULT_PRIOR
    static_prior_config: Mapping[str, Any] = field(default_factory=dict)
    memory: MemoryConfig = MemoryConfig()

    def __post_init__(self) -> None:
        check_num_classes(self.num_classes)
        check_window(self.window)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**dataclasses.asdict(self), "static_prior_config": dict(self.static_prior_config)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LocalMemoryConfig:
        """Return the configuration that `to_dict` wrote."""
        return cls(**{**values, "memory": MemoryConfig(**values.get("memory", {}))})


def _from_config(values: Mapping[str, Any], static_prior: nn.Module | None = None) -> LocalMemory:
    return LocalMemory(LocalMemoryConfig.from_dict(values), static_prior=static_prior)


@register(
    NAME,
    title="Local memory",
    build=_from_config,
    sizes={"Local memory": lambda classes: LocalMemory(LocalMemoryConfig(num_classes=classes))},
    video=True,
    video_prior=True,
    least_window=2,
    takes_clean=True,
    options=("overrides", "static_prior"),
)
class LocalMemory(VideoNetwork):
    """A static network whose logits are blended with those of older frames (see `MemoryAttention`).

    With one frame, the logits are those of the static network. Older frames contribute their static logits, so exact
    streaming computes one frame and reads the others from the cache.

    Args:
        config: hyperparameters.
        static_prior: the network of single frames, (n, 3, H, W) -> (n, C, h, w), or a video network; None = a new one
            as `config` describes it.
    """

    def __init__(self, config: LocalMemoryConfig, *, static_prior: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.num_classes
        self.static_prior = static_prior or build_prior_of(
            NAME, config.static_prior, config.static_prior_config, num_classes=config.num_classes
        )
        self.memory = MemoryAttention(config.memory)
        self.upsample = True

    @classmethod
    def configure(cls, *, num_classes: int, preset: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """See `Network.configure`."""
        sizes = {key: overrides[key] for key in SIZES if key in overrides}
        own = {key: value for key, value in overrides.items() if key not in sizes}
        return LocalMemoryConfig(num_classes=num_classes, memory=MemoryConfig(**sizes), **own).to_dict()

    @classmethod
    def check_overrides(cls, overrides: Mapping[str, Any]) -> None:
        """See `Network.check_overrides`."""
        check_override_keys(NAME, overrides, OVERRIDES)
        for key, value in overrides.items():
            kinds = {"static_prior": (str,), "caution": (int, float)}.get(key, (int,))
            if type(value) not in kinds:
                raise ConfigError(
                    f"model.overrides.{key}: wrong type; expected {kinds[-1].__name__}, got {value!r}"
                )
        if overrides.get("window", 2) < 2:
            raise ConfigError(
                f"model.overrides.window: out of range for {NAME}; expected at least 2 frames, got "
                f"{overrides['window']}"
            )

    def config_values(self) -> dict[str, Any]:
        """See `Network.config_values`."""
        return {**self.config.to_dict(), "static_prior_config": prior_config(self.static_prior)}

    def without_upsampling(self) -> LocalMemory:
        """See `Network.without_upsampling`."""
        network = copy.copy(self)
        network.upsample = False
        return network

    def forward(
        self,
        video: Tensor,
        cache: FrameCache | None = None,
        *,
        with_static: bool = False,
        clean: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Segment the frames of a window, or with a streaming cache the newest one.

        Args:
            video: (B, k, 3, H, W), RGB in [0, 1], newest frame last; H and W multiples of 32. With a streaming cache,
                the frames that it does not contain yet.
            cache: selects the computed and the visible frames; None = all frames.
            with_static: return the static network's logits too.
            clean: the video before it was corrupted, for training: return `gate_loss` too.

        Returns:
            Logits (B, k', C, H, W) of the frames that the cache selects, newest last (without a cache all k), and if
            requested those of the static network, (B, k, C, H, W), or the loss. Without upsampling, H and W of the
            logits are those of the static network.
        """
        if video.dim() != 5 or video.shape[2] != 3:
            raise ConfigError(f"video: wrong shape; expected (B, k, 3, H, W), got {tuple(video.shape)}")
        cache = cache or FrameCache()
        batch, frames = video.shape[:2]
        images = video.flatten(0, 1)
        static = single_frames(without_upsampling(self.static_prior))(images)  # (B*k, C, h', w')
        dtype, stride = self.memory.age.dtype, self.config.memory.stride
        cells = resize_logits(static, (images.shape[2] // stride, images.shape[3] // stride)).to(dtype)
        features, remembered = self.memory.describe(images.to(dtype), cells)  # (B*k, D, h, w)
        rows = remembered.flatten(2).transpose(1, 2).unflatten(0, (batch, frames))  # (B, k, h*w, D)
        past = cache.join("memory/rows", rows).unflatten(2, remembered.shape[2:])
        static, features, remembered = (
            grid.unflatten(0, (batch, frames)) for grid in (static, features, remembered)
        )
        logits, gates = [], []
        for index in range(frames - 1 if cache.newest_only else 0, frames):
            own, older = static[:, index], past.shape[1] - frames + index
            if older:
                valid = None if cache.valid is None else cache.valid[:older]
                change, gate = self.memory(features[:, index], remembered[:, index], past[:, :older], valid)
                gates.append(gate)
                own = own + resize_logits(change.to(own.dtype), (own.shape[2], own.shape[3]))
            logits.append(own)
        result = torch.stack(logits, dim=1)
        size = (video.shape[3], video.shape[4])
        result = _upsampled(result, size) if self.upsample else result
        if clean is not None:
            return result, gate_loss(torch.cat(gates, dim=1), (clean - video).abs().mean(2))
        if with_static:
            return result, _upsampled(static, size) if self.upsample else static
        return result

    def for_inference(self, convert: Callable[[nn.Module], nn.Module], dtype: torch.dtype) -> LocalMemory:
        """Return a copy whose parts are converted; an external static network is shared.

        Args:
            convert: returns a copy of a module in `dtype`.
            dtype: of weights and activations.
        """
        prior = self.static_prior
        network = copy.deepcopy(self, {id(prior): prior}).eval()
        network.memory = cast(MemoryAttention, convert(network.memory))
        if not is_own(prior):
            return network
        if isinstance(prior, VideoNetwork):
            network.static_prior = cast("VTSeg", prior).for_inference(convert, dtype)
        else:
            own = convert(without_upsampling(prior))
            network.static_prior = (
                own if dtype == torch.float32 else Cast(own, input=dtype, output=torch.float32)
            )
        return network


def gate_loss(gates: Tensor, difference: Tensor) -> Tensor:
    """Return the loss that teaches the gate where a frame is corrupted: the mean binary cross-entropy, nats.

    The loss of the masks alone teaches this slowly: where frames are clean, it hardly depends on the gate.

    Args:
        gates: (B, k - 1, h, w) gates of all frames but the oldest, before the sigmoid.
        difference: (B, k, H, W) mean difference of a pixel from the clean frame, 0..1. Cells that are corrupted in all
            older frames too have no target.
    """
    corrupted = F.interpolate(difference, size=gates.shape[2:], mode="area") > CORRUPTED
    known = (~corrupted).cummax(1).values[:, :-1]  # some older frame is clean
    newer = corrupted[:, 1:]
    each = F.binary_cross_entropy_with_logits(gates.float(), newer.float(), reduction="none")
    weight = (known | ~newer).float()
    return (each * weight).sum() / weight.sum().clamp(min=1)


def _upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample (B, k, C, h, w) to (B, k, C, *size)."""
    result: Tensor = resize_logits(logits.flatten(0, 1), size).unflatten(0, logits.shape[:2])
    return result
