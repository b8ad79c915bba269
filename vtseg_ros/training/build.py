"""The network that a training configuration describes."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from vtseg_ros.errors import CheckpointError, ConfigError
from vtseg_ros.labels import LabelSet
from vtseg_ros.model import SegFormer, VTSeg, VTSegConfig, load_checkpoint
from vtseg_ros.model.blocks import fold_normalization
from vtseg_ros.model.checkpoint import read_metadata
from vtseg_ros.model.classes import translate_classes
from vtseg_ros.model.gru import STGRU
from vtseg_ros.model.inflation import inflate
from vtseg_ros.model.priors import EXTERNAL, build_prior, is_registered, load_external_prior
from vtseg_ros.model.state import load_exact
from vtseg_ros.model.vtseg import IMAGENET_MEAN, IMAGENET_STD
from vtseg_ros.training.config import ModelConfig, TrainConfig

log = logging.getLogger("vtseg_ros.training")


def build_model(config: TrainConfig, labels: LabelSet) -> nn.Module:
    """The network that the configuration describes, freshly initialised or warm-started."""
    settings, num_classes = config.model, len(labels)
    if is_registered(settings.architecture):
        model = build_prior(settings.architecture, num_classes=num_classes)
    elif settings.architecture == "gru":
        model = STGRU(num_classes=num_classes, prior_name=settings.overrides.get("static_prior", "erfnet"))
    else:
        overrides = dict(settings.overrides)
        prior = None
        if settings.static_prior:
            overrides["static_prior"] = EXTERNAL
        vtseg = VTSegConfig.preset(settings.preset, num_classes=num_classes, **overrides)
        if settings.static_prior:
            width, height = config.data.size
            prior = load_external_prior(
                settings.static_prior, num_classes=vtseg.prior_classes or num_classes, size=(height, width)
            )
        model = VTSeg(vtseg, static_prior=prior)
    if isinstance(model, (VTSeg, SegFormer)):
        _init(model, settings)
    if settings.warm_start:
        _warm_start(model, settings, labels)
    return model


def _warm_start(model: nn.Module, settings: ModelConfig, labels: LabelSet) -> None:
    checkpoint = load_checkpoint(settings.warm_start, static_prior=settings.static_prior or None)
    as_prior = has_prior(model) and not has_prior(checkpoint.model)
    target = model.static_prior if as_prior else model
    if type(checkpoint.model) is not type(target):
        raise ConfigError(
            f"warm_start {settings.warm_start} is a {type(checkpoint.model).__name__}. "
            f"Expected: {type(target).__name__}"
        )
    state = checkpoint.model.state_dict()
    old, new = checkpoint.labels.names, labels.names
    # A static network of classes of its own has its class_mapping.
    if old != new and not (as_prior and is_mapped(model)):
        if is_mapped(model) or is_mapped(checkpoint.model):
            raise ConfigError(
                f"warm_start {settings.warm_start} knows other classes, and with a class_mapping they are not taken "
                f"over by name. Expected: {', '.join(new)}. Got: {', '.join(old)}"
            )
        state = translate_classes(state, target.state_dict(), old=old, new=new)
        log.warning(
            "warm_start %s knows other classes: taken over by name: %s; starting anew: %s",
            settings.warm_start,
            ", ".join(name for name in new if name in old) or "none",
            ", ".join(name for name in new if name not in old) or "none",
        )
    state = inflate(state, target.state_dict())
    load_exact(target, state, source=f"warm_start {settings.warm_start}")


def is_mapped(model: nn.Module) -> bool:
    """Whether a network's static network has classes of its own."""
    return isinstance(model, VTSeg) and bool(model.config.class_mapping)


def _init(model: VTSeg | SegFormer, settings: ModelConfig) -> None:
    """Weights to start from, and the RGB that the encoder is fed with."""
    if settings.init == "xavier":
        for part in (model.encoder, model.decoder) if isinstance(model, VTSeg) else (model.encoder,):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
    if settings.init_encoder and _is_checkpoint(Path(settings.init_encoder)):
        _take_encoder(model, settings)
    else:
        _load_encoder(model, settings)
    if settings.init_decoder:
        model.decoder.start_from(model.encoder, model.encoder_mean, model.encoder_std)


def _load_encoder(model: VTSeg | SegFormer, settings: ModelConfig) -> None:
    """Hugging Face's weights if they are asked for, and the normalisation that they or the user want."""
    if settings.init_encoder:
        state = _read_state(Path(settings.init_encoder))
        try:
            model.encoder.load_mit_state_dict(state)
        except CheckpointError as err:
            raise CheckpointError(f"init_encoder {settings.init_encoder}: {err}") from err
    if settings.init_encoder or settings.normalize_encoder:
        _normalize(model)


def _is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of this package."""
    try:
        read_metadata(path)
    except CheckpointError:
        return False
    return True


def _take_encoder(model: VTSeg | SegFormer, settings: ModelConfig) -> None:
    """The encoder of a trained `segformer_b0` or `vtseg` and the RGB that it was fed with."""
    source = f"init_encoder {settings.init_encoder}"
    donor = load_checkpoint(settings.init_encoder).model
    if not isinstance(donor, (VTSeg, SegFormer)) or (
        isinstance(model, SegFormer) and not isinstance(donor, SegFormer)
    ):
        raise ConfigError(
            f"{source} is a {type(donor).__name__}. Expected: a segformer_b0"
            + (" or vtseg" if isinstance(model, VTSeg) else "")
        )
    load_exact(model.encoder, donor.encoder.state_dict(), source=source)
    if isinstance(donor, VTSeg):
        model.encoder_mean.copy_(donor.encoder_mean)
        model.encoder_std.copy_(donor.encoder_std)


def _normalize(model: VTSeg | SegFormer) -> None:
    """Give the encoder the normalised RGB that SegFormer's weights were trained on."""
    if isinstance(model, VTSeg):
        model.set_normalization("encoder", IMAGENET_MEAN, IMAGENET_STD)
        return
    # SegFormer takes RGB in [0, 1] as it is: its first convolution normalises.
    conv = model.encoder.blocks[0].embed.proj
    with torch.no_grad():
        weight, bias = fold_normalization(
            conv.weight, conv.bias, torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        )
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors or a PyTorch file; nothing in it is run."""
    if not path.is_file():
        raise CheckpointError(f"init_encoder {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(
            isinstance(value, torch.Tensor) for value in state.values()
        ):
            raise ValueError("it is not a state dict")
        return state
    except Exception as err:  # pickle, zip, safetensors and runtime errors of damaged files, and refused code
        raise CheckpointError(
            f"init_encoder {path} cannot be read: {str(err).splitlines()[0] if str(err) else type(err).__name__}. "
            "Expected: model.safetensors or pytorch_model.bin of a SegformerModel"
        ) from err


def has_prior(model: nn.Module) -> bool:
    """Whether the network is a video network on top of a static one."""
    return isinstance(model, (VTSeg, STGRU))


def window_length(config: TrainConfig, model: nn.Module) -> int:
    """Frames k of a training window."""
    if isinstance(model, VTSeg):
        return model.config.window
    return config.model.overrides.get("window", 4) if isinstance(model, STGRU) else 1
