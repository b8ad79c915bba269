"""VTSeg: a window of k RGB frames to k label maps (Lup and Giosan)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vtseg_ros.errors import ConfigError
from vtseg_ros.model.config import VTSegConfig
from vtseg_ros.model.decoder import VTSegDecoder
from vtseg_ros.model.encoder import VTSegEncoder
from vtseg_ros.model.head import VTSegHead
from vtseg_ros.model.mapping import ClassMapping
from vtseg_ros.model.priors import build_prior

SIZE_MULTIPLE = 32


def check_size(height: int, width: int) -> None:
    """Raise ConfigError unless both sides are positive multiples of 32 px."""
    if height < SIZE_MULTIPLE or width < SIZE_MULTIPLE or height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise ConfigError(
            f"input size must be multiples of {SIZE_MULTIPLE} px. Got: {width}x{height} (width x height)"
        )


class VTSeg(nn.Module):
    """Encoder, decoder, head and the static network that the decoder starts from.

    Args:
        config: hyperparameters.
        static_prior: the static network, (n, 3, H, W) -> (n, C', H, W); None = the one that
            `config.static_prior` names.

    The buffers `encoder_mean`, `encoder_std`, `prior_mean`, `prior_std` normalise the RGB of their branch
    (0 and 1 as built: the paper and ERFNet take [0, 1]); the RGB that joins the logits stays in [0, 1].
    """

    def __init__(self, config: VTSegConfig, *, static_prior: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
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
        self.prior_frozen = False
        self.input_dtype: dict[str, torch.dtype | None] = {"encoder": None, "prior": None}
        """What each branch is fed after the normalisation, where it is not the images' own dtype."""
        self.takes_unit_range: tuple[str, ...] = ()
        """Branches whose mean is 0 and standard deviation 1, where an engine has looked: nothing to compute."""
        for module in (self.encoder, self.decoder):
            module.apply(_init_transformer)

    def set_normalization(self, branch: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Mean and standard deviation of the RGB, in [0, 1], fed to `encoder` or `prior`."""
        getattr(self, f"{branch}_mean").copy_(torch.tensor(mean))
        getattr(self, f"{branch}_std").copy_(torch.tensor(std))

    def normalize(self, branch: str, images: Tensor) -> Tensor:
        """Normalised RGB of a branch, (..., 3, H, W) -> the same shape."""
        mean, std = getattr(self, f"{branch}_mean"), getattr(self, f"{branch}_std")
        if branch not in self.takes_unit_range:
            images = (images - mean[:, None, None]) / std[:, None, None]
        return images.to(self.input_dtype[branch] or images.dtype)

    def freeze_prior(self, frozen: bool = True) -> None:
        """Stage 2 and 3 of the training: keep the static network as it is (in eval mode too), or train it."""
        self.prior_frozen = frozen
        for parameter in self.static_prior.parameters():  # a TorchScript module has no requires_grad_
            parameter.requires_grad_(not frozen)
        self.static_prior.train(self.training and not frozen)

    def train(self, mode: bool = True) -> VTSeg:
        super().train(mode)
        if self.prior_frozen:
            self.static_prior.eval()
        return self

    def static_logits(self, images: Tensor) -> Tensor:
        """Logits of the static network in VTSeg's classes, (n, 3, H, W) in [0, 1] -> (n, C, H, W)."""
        return self.mapping(self.static_prior(self.normalize("prior", images)))

    def forward(self, video: Tensor, *, with_static: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Segment a window.

        Args:
            video: (B, k, 3, H, W), RGB in [0, 1], newest frame last; H and W multiples of 32.
            with_static: return the static network's logits too.

        Returns:
            logits (B, k, C, H, W), and if asked for the static network's, of the same shape.
        """
        if video.dim() != 5 or video.shape[2] != 3:
            raise ConfigError(f"we expect a video of shape (B, k, 3, H, W). Got: {tuple(video.shape)}")
        check_size(video.shape[3], video.shape[4])
        frames = video.shape[1]
        static = self.static_logits(video.flatten(0, 1)).unflatten(0, (-1, frames))  # (B, k, C, H, W)
        features = self.encoder(self.normalize("encoder", video))
        maps = self.decoder(static, video, features)
        logits = self.head([grid.flatten(0, 1) for grid in maps])  # (B*k, C, H, W)
        logits = logits.unflatten(0, (-1, frames))
        return (logits, static) if with_static else logits


def _init_transformer(module: nn.Module) -> None:
    """SegFormer's initialisation: truncated normal for linear layers, fan-out normal for convolutions."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
