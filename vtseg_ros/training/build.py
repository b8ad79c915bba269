"""The network that a training configuration describes."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn

from vtseg_ros.errors import CheckpointError, ConfigError
from vtseg_ros.labels import LabelSet
from vtseg_ros.model import Checkpoint, SegFormer, VTSeg, VTSegConfig, load_checkpoint
from vtseg_ros.model.checkpoint import licence_of, read_metadata, resolve_checkpoint
from vtseg_ros.model.classes import translate_classes
from vtseg_ros.model.gru import STGRU
from vtseg_ros.model.inflation import inflate
from vtseg_ros.model.licence import Licence, derived_licence
from vtseg_ros.model.normalization import IMAGENET_MEAN, IMAGENET_STD
from vtseg_ros.model.priors import EXTERNAL, PRIORS, build_prior, is_registered, load_external_prior
from vtseg_ros.model.state import load_exact, read_state_file
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
        prior = donor = None
        if settings.static_prior and _is_checkpoint(Path(settings.static_prior)):
            donor = load_checkpoint(settings.static_prior)
            if donor.architecture not in PRIORS:
                raise ConfigError(
                    f"static_prior {settings.static_prior}: expected a checkpoint of an image network "
                    f"({', '.join(PRIORS)}), got {donor.architecture}"
                )
            overrides["static_prior"] = donor.architecture
        elif settings.static_prior:
            overrides["static_prior"] = EXTERNAL
        vtseg = VTSegConfig.preset(settings.preset, num_classes=num_classes, **overrides)
        if donor is not None:
            prior = _prior_of(donor, vtseg, labels, settings)
        elif settings.static_prior:
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


def _prior_of(donor: Checkpoint, config: VTSegConfig, labels: LabelSet, settings: ModelConfig) -> nn.Module:
    """Return a checkpoint's image network as the static network of a VTSeg, which then carries its weights."""
    classes = config.prior_classes or config.num_classes
    if len(donor.labels) != classes or (not config.class_mapping and donor.labels.names != labels.names):
        raise ConfigError(
            f"static_prior {settings.static_prior}: expected the classes {', '.join(labels.names)}, got "
            f"{', '.join(donor.labels.names)}. Give model.overrides.prior_classes and class_mapping, or use it as "
            "warm_start, which takes classes over by name"
        )
    return donor.model


def licence_of_run(config: TrainConfig) -> Licence:
    """Return the licence of what a run trains: the configuration's, and those of the weights that it learns from.

    Raises:
        CheckpointError: if a checkpoint's entry is not a licence.
    """
    model, sources = config.model, []
    teachers = (stage.teacher for stage in config.stages)
    for name in (model.warm_start, model.init_encoder, model.static_prior, *teachers):
        try:
            path = resolve_checkpoint(name) if name else None
        except CheckpointError:  # a factory
            path = None
        if path is not None and _is_checkpoint(path):
            sources.append(licence_of(path, read_metadata(path)))
    return derived_licence(Licence(config.licence), sources)


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
        state = read_state_file(Path(settings.init_encoder), source=f"init_encoder {settings.init_encoder}")
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
    """Take the encoder of a trained `segformer_b*` or `vtseg`, and the normalisation of its RGB."""
    source = f"init_encoder {settings.init_encoder}"
    donor = load_checkpoint(settings.init_encoder).model
    if not isinstance(donor, (VTSeg, SegFormer)) or (
        isinstance(model, SegFormer) and not isinstance(donor, SegFormer)
    ):
        raise ConfigError(
            f"{source} is a {type(donor).__name__}. Expected: a segformer"
            + (" or vtseg" if isinstance(model, VTSeg) else "")
        )
    load_exact(model.encoder, donor.encoder.state_dict(), source=source)
    mean, std = _normalization(donor)
    for own, given in zip(_normalization(model), (mean, std)):
        own.copy_(given)


def _normalization(model: VTSeg | SegFormer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the standard deviation, each (3,), of the RGB that the encoder is fed with."""
    if isinstance(model, VTSeg):
        return model.encoder_mean, model.encoder_std
    return model.normalization.mean, model.normalization.std


def _normalize(model: VTSeg | SegFormer) -> None:
    """Give the encoder the normalised RGB that SegFormer's weights were trained on."""
    if isinstance(model, VTSeg):
        model.set_normalization("encoder", IMAGENET_MEAN, IMAGENET_STD)
        return
    model.normalization.set(IMAGENET_MEAN, IMAGENET_STD)


def has_prior(model: nn.Module) -> bool:
    """Whether the network is a video network on top of a static one."""
    return isinstance(model, (VTSeg, STGRU))


def window_length(config: TrainConfig, model: nn.Module) -> int:
    """Frames k of a training window."""
    if isinstance(model, VTSeg):
        return model.config.window
    return config.model.overrides.get("window", 4) if isinstance(model, STGRU) else 1
