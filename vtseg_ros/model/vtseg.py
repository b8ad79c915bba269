# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""VTSeg: segments a window of k RGB frames (Lup and Giosan)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vtseg_ros.errors import ConfigError
from vtseg_ros.model.blocks import VTLayer
from vtseg_ros.model.cache import FrameCache
from vtseg_ros.model.decoder import VTSegDecoder
from vtseg_ros.model.encoder import VTSegEncoder
from vtseg_ros.model.head import VTSegHead
from vtseg_ros.model.normalization import Cast
from vtseg_ros.model.registry import register
from vtseg_ros.model.static_prior import ClassMapping, build_prior, is_own
from vtseg_ros.model.video_network import VideoNetwork
from vtseg_ros.model.vtseg_config import PRESETS, STAGES, VTSegConfig

SIZE_MULTIPLE = 32


def check_size(height: int, width: int) -> None:
    """Raise ConfigError unless both sides are positive multiples of 32 px."""
    if height < SIZE_MULTIPLE or width < SIZE_MULTIPLE or height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise ConfigError(
            f"input_size: wrong sides; expected multiples of {SIZE_MULTIPLE} px, got {width}x{height}"
        )


def _from_config(values: Mapping[str, Any], static_prior: nn.Module | None = None) -> VTSeg:
    return VTSeg(VTSegConfig.from_dict(dict(values)), static_prior=static_prior)


def _of_preset(name: str) -> Callable[[int], VTSeg]:
    return lambda classes: VTSeg(VTSegConfig.preset(name, num_classes=classes))


@register(
    "vtseg",
    title="VTSeg",
    build=_from_config,
    sizes={f"VTSeg {name}": _of_preset(name) for name in PRESETS},
    video=True,
    takes_additions=True,
    options=(
        "preset",
        "overrides",
        "static_prior",
        "init",
        "init_encoder",
        "init_decoder",
        "normalize_encoder",
        "static_loss",
    ),
    class_dimensions={
        r"head\.classify\.(weight|bias)": (0,),
        r"concat\.norm\.(weight|bias)": (0,),
        # The input of the decoder's first convolution is the logits of the classes, followed by RGB.
        r"decoder\.enc_blocks\.0\.embed\.proj\.weight": (1,),
    },
    parts={
        "static_prior": "static network (ERFNet)",
        **{f"encoder.blocks.{i}": f"encoder, VTEncBlock {i + 1}" for i in range(STAGES)},
        **{f"decoder.enc_blocks.{i}": f"decoder, VTEncBlock {i + 1}" for i in range(STAGES)},
        **{f"decoder.dec_blocks.{i}": f"decoder, VTDecBlock {i + 1}" for i in range(STAGES)},
        "head": "head",
    },
)
class VTSeg(VideoNetwork):
    """Encoder, static network, decoder and head.

    Args:
        config: hyperparameters.
        static_prior: the static network, (n, 3, H, W) -> (n, C', H, W); None = the one that
            `config.static_prior` names.

    The buffers `encoder_mean`, `encoder_std`, `prior_mean`, `prior_std` normalise the RGB of their branch
    (0 and 1 by default: the paper and ERFNet use [0, 1]). The RGB that is concatenated with the logits stays in [0, 1].
    """

    encoder_mean: Tensor
    encoder_std: Tensor
    prior_mean: Tensor
    prior_std: Tensor

    def __init__(self, config: VTSegConfig, *, static_prior: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.num_classes
        prior_classes = config.prior_classes or config.num_classes
        self.static_prior = static_prior or build_prior(config.static_prior, num_classes=prior_classes)
        self.mapping = (
            ClassMapping(config.class_mapping, config.num_classes) if config.class_mapping else nn.Identity()
        )
        self.encoder = VTSegEncoder(config)
        self.decoder = VTSegDecoder(config)
        self.head = VTSegHead(config)
        for branch in ("encoder", "prior"):
            self.register_buffer(f"{branch}_mean", torch.zeros(3))
            self.register_buffer(f"{branch}_std", torch.ones(3))
        for module in (self.encoder, self.decoder):
            module.apply(_init_transformer)
        if config.static_residual:
            nn.init.zeros_(self.head.classify.weight)
            nn.init.zeros_(cast(Tensor, self.head.classify.bias))

    @classmethod
    def configure(cls, *, num_classes: int, preset: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """See `Network.configure`."""
        return VTSegConfig.preset(preset, num_classes=num_classes, **overrides).to_dict()

    def config_values(self) -> dict[str, Any]:
        """See `Network.config_values`."""
        return self.config.to_dict()

    @property
    def transformers(self) -> tuple[nn.Module, ...]:
        """The parts that `model.init` of a training configuration initialises."""
        return self.encoder, self.decoder

    @property
    def encoder_normalization(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each (3,), of the encoder's RGB."""
        return self.encoder_mean, self.encoder_std

    @property
    def attention_layers(self) -> list[VTLayer]:
        """See `VideoNetwork.attention_layers`: the encoder's, then the decoder's self- and cross-attention."""
        return [module for module in self.modules() if isinstance(module, VTLayer)]

    def window_band(self, frames: int) -> int:
        """See `VideoNetwork.window_band`; 0 for full attention."""
        return frames if self.config.band else 0

    def check_streaming(self, mode: str) -> None:
        """See `VideoNetwork.check_streaming`."""
        if mode == "causal" and self.config.attention != "causal":
            raise ConfigError(
                "streaming: causal does not fit this network; expected one trained with attention causal, "
                f"got attention {self.config.attention}. Use exact"
            )
        if self.config.mix_ffn != "spatial":
            raise ConfigError(
                f"streaming: {mode} does not fit this network; expected mix_ffn spatial, "
                f"got {self.config.mix_ffn}. Use plain"
            )

    @property
    def streaming_modes(self) -> tuple[str, ...]:
        """See `VideoNetwork.streaming_modes`."""
        return ("exact", "causal")

    @property
    def best_streaming(self) -> str:
        """See `VideoNetwork.best_streaming`."""
        if self.config.mix_ffn != "spatial":
            return "plain"  # a Mix-FFN over time mixes the frames in every layer
        return "causal" if self.config.attention == "causal" else "exact"

    def static_branch(self) -> StaticBranch:
        """See `VideoNetwork.static_branch`."""
        return StaticBranch(self)

    def set_normalization(self, branch: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Set mean and standard deviation of the RGB, in [0, 1], for the input of `encoder` or `prior`."""
        getattr(self, f"{branch}_mean").copy_(torch.tensor(mean))
        getattr(self, f"{branch}_std").copy_(torch.tensor(std))

    def normalize(self, branch: str, images: Tensor) -> Tensor:
        """Normalise the RGB of a branch (`encoder` or `prior`), (..., 3, H, W) -> the same shape.

        The RGB of the encoder is returned in the encoder's dtype, rounded after the normalisation.
        """
        mean, std = getattr(self, f"{branch}_mean"), getattr(self, f"{branch}_std")
        normalized = (images - mean[:, None, None]) / std[:, None, None]
        result: Tensor = normalized.to(self.encoder.dtype) if branch == "encoder" else normalized
        return result

    def static_logits(self, images: Tensor) -> Tensor:
        """See `VideoNetwork.static_logits`."""
        result: Tensor = self.mapping(self.static_prior(self.normalize("prior", images)))
        return result

    @property
    def addition_channels(self) -> tuple[int, ...]:
        """See `Network.addition_channels`; the features are the outputs of the decoder's VTEncBlocks."""
        return tuple(self.config.embed_dims[:3])

    def coarse_logits(self, images: Tensor, additions: Sequence[Tensor] = ()) -> Tensor:
        """See `Network.coarse_logits`; every image is a window of one frame, and the logits have its size."""
        result: Tensor = self(images[:, None], additions=[one[:, None] for one in additions])[:, 0]
        return result

    def forward(
        self,
        video: Tensor,
        cache: FrameCache | None = None,
        *,
        with_static: bool = False,
        additions: Sequence[Tensor] = (),
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Segment the frames of a window, or with a streaming cache the newest one.

        This is the only forward pass: training, streaming, export and profiling differ in the cache.

        Args:
            video: (B, k, 3, H, W), RGB in [0, 1], newest frame last; H and W multiples of 32. With a streaming cache,
                the frames that it does not contain yet.
            cache: selects the computed and the visible frames; None = all frames, with the configuration's causal band.
            with_static: return the static network's logits too.
            additions: maps (B, k, C_i, H / s_i, W / s_i) to add to the features, see `addition_channels`.

        Returns:
            Logits (B, k', C, H, W) of the frames that the cache selects, newest last (without a cache all k), and if
            requested those of the static network, (B, k, C, H, W).
        """
        if video.dim() != 5 or video.shape[2] != 3:
            raise ConfigError(f"video: wrong shape; expected (B, k, 3, H, W), got {tuple(video.shape)}")
        check_size(video.shape[3], video.shape[4])
        cache = cache or FrameCache(band=self.config.band)
        static = self.static_logits(video.flatten(0, 1)).unflatten(0, video.shape[:2])  # (B, k, C, H, W)
        features = self.encoder(self.normalize("encoder", video), cache)
        maps = self.decoder(static, video, features, cache, additions)
        frames = maps[-1].shape[1]
        logits = self.head([grid[:, grid.shape[1] - frames :].flatten(0, 1) for grid in maps])
        logits = logits.unflatten(0, (-1, frames))
        if self.config.static_residual:
            logits = logits + static[:, -frames:]
        return (logits, static) if with_static else logits

    def encoder_features(self, video: Tensor) -> Tensor:
        """See `VideoNetwork.encoder_features`; those of the last stage."""
        features = self.encoder(self.normalize("encoder", video), FrameCache(band=self.config.band))[-1]
        result: Tensor = features[:, -1].mean(dim=(-2, -1))  # of (B, k, D, h, w)
        return result

    def for_inference(self, convert: Callable[[nn.Module], nn.Module], dtype: torch.dtype) -> VTSeg:
        """Return a copy whose own parts are converted; an external static network is shared.

        The normalisation and the classifier stay fp32, because they process the images before the first rounding and the
        logits after the last one.

        Args:
            convert: returns a copy of a module in `dtype`.
            dtype: of weights and activations.
        """
        prior, parts = self.static_prior, ("encoder", "decoder", "head")
        # `convert` copies the parts; copying them here too would double the time.
        shared = (prior, *(getattr(self, name) for name in parts))
        network = copy.deepcopy(self, {id(module): module for module in shared})
        for name in parts:
            setattr(network, name, convert(getattr(network, name)))
        reduced = dtype != torch.float32
        if reduced:
            head = cast(nn.Module, network.head)  # the classifier is replaced by another module
            head.classify = Cast(network.head.classify.float(), input=torch.float32)
        if is_own(prior):
            own = convert(prior)
            network.static_prior = Cast(own, input=dtype) if reduced else own
        elif reduced:
            network.static_prior = Cast(prior, output=dtype)
        return network.eval()


class StaticBranch(nn.Module):
    """The static network of a VTSeg, with normalised input and VTSeg's classes.

    Args:
        model: VTSeg that contains the static network; shared, not copied.
    """

    def __init__(self, model: VTSeg) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 logits (n, C, H, W) of images (n, 3, H, W), RGB in [0, 1]."""
        return self.model.static_logits(images).float()

    @property
    def static_network(self) -> nn.Module:
        """The static network."""
        return self.model.static_prior

    def for_inference(self, convert: Callable[[nn.Module], nn.Module], dtype: torch.dtype) -> StaticBranch:
        """See `VTSeg.for_inference`."""
        return StaticBranch(self.model.for_inference(convert, dtype))


def _init_transformer(module: nn.Module) -> None:
    """Initialise like SegFormer: truncated normal for linear layers, fan-out normal for convolutions."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
