# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A network of single frames that also reads the previous frame and its own mask of it.

The mask of the previous frame as an input: Perazzi et al., "Learning Video Object Segmentation from Static Images", CVPR
2017. Here a small network encodes it, together with the previous frame, and its maps are added to features of the
static network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtseg_ros.errors import ConfigError
from vtseg_ros.model.cache import FrameCache
from vtseg_ros.model.registry import Network, check_override_keys, register, static_architectures
from vtseg_ros.model.static_prior import build_prior_of, resize_logits
from vtseg_ros.model.video_network import VideoNetwork, prior_config
from vtseg_ros.model.vtseg_config import MAX_WINDOW, check_num_classes

if TYPE_CHECKING:
    from vtseg_ros.model.vtseg import VTSeg

NAME = "mask_feedback"
DEFAULT_PRIOR = "efficientvit_b0"
TRAINING_WINDOW = 4
"""Default number of frames of a training window."""
FRAMES_READ = 2
"""Frames that one step reads: the newest one and the previous one."""
DEPTH = 30
"""Number of frames after which the first mask has hardly an effect."""
OVERRIDES = ("window", "static_prior")
STRIDE = 4
"""Of the first maps of the encoder."""
WIDTHS = (32, 48, 64)
"""Channels of the encoder at 1/4, 1/8 and 1/16 of the resolution."""
WITHOUT_PREVIOUS = 0.15
"""Share of the training windows whose newest frame is segmented alone, so that a first frame is segmented well too."""
LOGITS, IMAGE = "feedback/logits", "feedback/image"
"""Names of the cached values of a frame."""
MEAN_RGB = 0.45
"""Mean of RGB in [0, 1] over photographs, about that of ImageNet."""


class Previous(NamedTuple):
    """What is known of the previous frame.

    Attributes:
        logits: (B, C, h, w).
        image: (B, 3, H, W), RGB in [0, 1].
        there: (B or 1, 1, 1, 1), 1 where there is a previous frame, else 0; None = there is one.
    """

    logits: Tensor
    image: Tensor
    there: Tensor | None = None


class FeedbackEncoder(nn.Module):
    """Encode the previous frame and its mask as maps for the features of the static network.

    The last convolutions start at zero, so an untrained encoder has no effect.

    Args:
        num_classes: C.
        out_channels: channels of the features at 1/4, 1/8 and 1/16 of the resolution.
    """

    def __init__(self, num_classes: int, out_channels: Sequence[int]) -> None:
        super().__init__()
        self.mask = nn.Conv2d(num_classes, WIDTHS[0], 1)
        self.pixels = nn.Conv2d(3 * STRIDE**2, WIDTHS[0], 1, bias=False)
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in zip(WIDTHS, WIDTHS[1:])
        )
        self.out = nn.ModuleList(
            nn.Conv2d(own, channels, 1) for own, channels in zip(WIDTHS, out_channels, strict=True)
        )
        for layer in (self.mask, self.pixels, *self.down):
            nn.init.kaiming_normal_(cast(nn.Conv2d, layer).weight, nonlinearity="relu")
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, previous: Previous) -> list[Tensor]:
        """Return maps (B, C_i, H / s, W / s), s = 4, 8, 16; H and W are multiples of 16."""
        dtype = self.mask.weight.dtype
        pixels = F.pixel_unshuffle(previous.image.to(dtype) - MEAN_RGB, STRIDE)  # (B, 48, H / 4, W / 4)
        logits = resize_logits(previous.logits, (pixels.shape[2], pixels.shape[3]))
        shares = logits.softmax(1) - 1 / logits.shape[1]
        x = F.hardswish(self.mask(shares.to(dtype)) + self.pixels(pixels))
        grids = [x]
        for layer in self.down:
            grids.append(F.hardswish(layer(grids[-1])))
        maps = [out(grid) for out, grid in zip(self.out, grids)]
        return maps if previous.there is None else [one * previous.there.to(dtype) for one in maps]


@dataclass(frozen=True, kw_only=True)
class MaskFeedbackConfig:
    """Configuration of `MaskFeedback`.

    Args:
        num_classes: classes C of the logits, 1..255.
        static_prior: architecture of the static network; one that declares `takes_additions`.
        static_prior_config: its configuration, for a video network.

    Raises:
        ConfigError: if a value is out of range.
    """

    num_classes: int
    static_prior: str = DEFAULT_PRIOR
    static_prior_config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_num_classes(self.num_classes)
        _check_prior(self.static_prior, "static_prior")


def _check_prior(name: object, option: str) -> None:
    """Raise ConfigError if `name`, the value of `option`, is not that of a network that takes maps."""
    known = tuple(static_architectures(NAME))
    if name not in known:
        raise ConfigError(f"{option}: does not fit {NAME}; expected one of {', '.join(known)}, got {name!r}")


def _from_config(values: Mapping[str, Any], static_prior: nn.Module | None = None) -> MaskFeedback:
    if values.get("window") != FRAMES_READ:
        raise ConfigError(
            f"window: out of range for {NAME}; expected {FRAMES_READ}, got {values.get('window')!r}"
        )
    config = MaskFeedbackConfig(**{key: value for key, value in values.items() if key != "window"})
    return MaskFeedback(config, static_prior=static_prior)


@register(
    NAME,
    title="Mask feedback",
    build=_from_config,
    sizes={"Mask feedback": lambda classes: MaskFeedback(MaskFeedbackConfig(num_classes=classes))},
    video=True,
    adds_to_prior=True,
    trains_newest=True,
    least_window=2,
    options=("overrides", "static_prior"),
    class_dimensions={r"encoder\.mask\.weight": (1,)},
)
class MaskFeedback(VideoNetwork):
    """A network of single frames whose features are changed by the previous frame and its mask (see `FeedbackEncoder`).

    The mask of the first frame is that of the static network. Each further mask depends on the one before it, and so on all
    frames since the first one.

    Args:
        config: hyperparameters.
        static_prior: the network of single frames; a video network sees every frame alone. None = a new one as `config`
            describes it.
    """

    def __init__(self, config: MaskFeedbackConfig, *, static_prior: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.num_classes = config.num_classes
        self.static_prior = static_prior or build_prior_of(
            NAME, config.static_prior, config.static_prior_config, num_classes=config.num_classes
        )
        self.encoder = FeedbackEncoder(config.num_classes, cast(Network, self.static_prior).addition_channels)
        self.upsample = True

    @classmethod
    def configure(cls, *, num_classes: int, preset: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """See `Network.configure`."""
        return {
            "num_classes": num_classes,
            "static_prior": overrides.get("static_prior", DEFAULT_PRIOR),
            "static_prior_config": overrides.get("static_prior_config", {}),
            "window": FRAMES_READ,
        }

    @classmethod
    def check_overrides(cls, overrides: Mapping[str, Any]) -> None:
        """See `Network.check_overrides`."""
        check_override_keys(NAME, overrides, OVERRIDES)
        window = overrides.get("window", TRAINING_WINDOW)
        if type(window) is not int or not 2 <= window <= MAX_WINDOW:
            raise ConfigError(
                f"model.overrides.window: out of range for {NAME}; expected 2 to {MAX_WINDOW} frames, got {window!r}"
            )
        _check_prior(overrides.get("static_prior", DEFAULT_PRIOR), "model.overrides.static_prior")

    @classmethod
    def training_window(cls, overrides: Mapping[str, Any]) -> int | None:
        """See `Network.training_window`."""
        result: int | None = overrides.get("window", TRAINING_WINDOW)
        return result

    def config_values(self) -> dict[str, Any]:
        """See `Network.config_values`; the window is that of streaming, not that of training."""
        return {
            "num_classes": self.num_classes,
            "static_prior": self.config.static_prior,
            "static_prior_config": prior_config(self.static_prior),
            "window": FRAMES_READ,
        }

    def without_upsampling(self) -> MaskFeedback:
        """See `Network.without_upsampling`."""
        network = copy.copy(self)
        network.upsample = False
        return network

    @property
    def streaming_modes(self) -> tuple[str, ...]:
        """See `VideoNetwork.streaming_modes`."""
        return ("causal",)

    @property
    def longest_window(self) -> int | None:
        """See `VideoNetwork.longest_window`."""
        return FRAMES_READ

    @property
    def causal_depth(self) -> int:
        """See `VideoNetwork.causal_depth`; older frames have an effect too, but hardly any."""
        return DEPTH

    @property
    def best_streaming(self) -> str:
        """See `VideoNetwork.best_streaming`."""
        return "causal"

    def forward(self, video: Tensor, cache: FrameCache | None = None) -> Tensor:
        """Segment the frames of a window one after the other, or with a streaming cache the newest one.

        In training mode, only the newest frame contributes to the gradients. It follows one or more of the frames before
        it, a random number of them, and is segmented alone in a random part of the windows.

        Args:
            video: (B, k, 3, H, W), RGB in [0, 1], newest frame last; H and W multiples of 32. With a streaming cache,
                the frames after those that it contains.
            cache: contains the previous frame, and the frames that exist; None = no older frames.

        Returns:
            Logits (B, k, C, H, W), newest last; in training mode and with a cache that selects the newest frame
            (B, 1, C, H, W). Without upsampling, H and W of the logits are those of the static network.
        """
        if video.dim() != 5 or video.shape[2] != 3:
            raise ConfigError(f"video: wrong shape; expected (B, k, 3, H, W), got {tuple(video.shape)}")
        if self.training:
            coarse = self._train_newest(video)[:, None]
        else:
            cache = cache or FrameCache()
            coarse = self._follow(video, self._cached(cache, video.shape[1]), cache)
        if not self.upsample:
            return coarse
        size = (video.shape[3], video.shape[4])
        result: Tensor = resize_logits(coarse.flatten(0, 1), size).unflatten(0, coarse.shape[:2])
        return result

    def _segment(self, image: Tensor, previous: Previous | None) -> Tensor:
        """Return logits (B, C, h, w) of images (B, 3, H, W)."""
        additions = () if previous is None else self.encoder(previous)
        if not isinstance(self.static_prior, VideoNetwork):  # which casts after its normalisation
            image = image.to(self.encoder.mask.weight.dtype)
        logits = cast(Network, self.static_prior).coarse_logits(image, additions)
        result: Tensor = logits.float()
        return result

    def _follow(self, video: Tensor, previous: Previous | None, cache: FrameCache) -> Tensor:
        """Return the logits (B, k, C, h, w) of consecutive frames; the first one follows `previous`."""
        frames = video.shape[1]
        size = (video.shape[3] // STRIDE, video.shape[4] // STRIDE)
        logits, remembered = [], []
        for index in range(frames):
            image = video[:, index]
            logits.append(self._segment(image, previous))
            # The encoder reads no more of larger logits, which would take 16 times the memory.
            small = resize_logits(logits[-1], size) if logits[-1].shape[2] > size[0] else logits[-1]
            remembered.append(small)
            previous = Previous(small, image, _there(cache.valid, frames - index))
        result = torch.stack(logits, dim=1)
        cache.keep(LOGITS, torch.stack(remembered, dim=1).flatten(2, 3))
        cache.keep(IMAGE, video.flatten(2, 3))
        return result[:, -1:] if cache.newest_only else result

    def _cached(self, cache: FrameCache, frames: int) -> Previous | None:
        """Return the newest frame in a cache, before `frames` new ones; None = there is none."""
        logits, image = cache.older(LOGITS), cache.older(IMAGE)
        if logits is None or image is None:
            return None
        return Previous(
            logits[:, -1].unflatten(1, (self.num_classes, -1)),
            image[:, -1].unflatten(1, (3, -1)),
            _there(cache.valid, frames + 1),
        )

    def _train_newest(self, video: Tensor) -> Tensor:
        """Return the logits of the newest frame, (B, C, h, w), after older frames as at run time."""
        batch, frames = video.shape[:2]
        newest = video[:, -1].contiguous(memory_format=torch.channels_last)
        if frames == 1:
            return self._segment(newest, None)
        first = int(torch.randint(frames - 1, ()))
        was_training = self.static_prior.training
        self.static_prior.eval()
        with torch.no_grad():
            older = video[:, first:-1]
            logits = self._follow(older, None, FrameCache())[:, -1]
        self.static_prior.train(was_training)
        # Otherwise some versions of PyTorch reuse the weights that autocast cast here (pytorch/pytorch#112583).
        torch.clear_autocast_cache()
        there = torch.rand(batch, 1, 1, 1, device=video.device) >= WITHOUT_PREVIOUS
        return self._segment(newest, Previous(logits, older[:, -1], there.to(video.dtype)))

    def for_inference(self, convert: Callable[[nn.Module], nn.Module], dtype: torch.dtype) -> MaskFeedback:
        """Return a copy whose parts are converted.

        Args:
            convert: returns a copy of a module in `dtype`.
            dtype: of weights and activations.
        """
        # `convert` copies the parts; copying them here too would double the time.
        network = copy.deepcopy(self, {id(part): part for part in (self.static_prior, self.encoder)})
        prior = self.static_prior
        network.static_prior = (
            cast("VTSeg", prior).for_inference(convert, dtype)
            if isinstance(prior, VideoNetwork)
            else convert(prior)
        )
        network.encoder = cast(FeedbackEncoder, convert(self.encoder))
        return network.eval()


def _there(valid: Tensor | None, place: int) -> Tensor | None:
    """Return for the frame at `place`, 1 = the newest, whether it exists, (1, 1, 1, 1); None = it does."""
    return None if valid is None else valid[-place].to(torch.float32).view(1, 1, 1, 1)
