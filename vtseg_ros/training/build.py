# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Build the network of a training configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from vtseg_ros.errors import CheckpointError, ConfigError
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model import Checkpoint, load_checkpoint
from vtseg_ros.model.checkpoint import licence_of, load_external_prior, read_metadata, resolve_checkpoint
from vtseg_ros.model.licence import Licence, derived_licence
from vtseg_ros.model.normalization import IMAGENET_MEAN, IMAGENET_STD
from vtseg_ros.model.registry import architecture, architecture_of, static_architectures
from vtseg_ros.model.state_dicts import inflate, load_exact, read_state_file, translate_classes
from vtseg_ros.model.static_prior import EXTERNAL
from vtseg_ros.training.config import ModelConfig, TrainConfig

log = logging.getLogger("vtseg_ros.training")

Network: TypeAlias = Any
"""A registered network, used by the attributes that its options in the registry stand for."""


def build_model(config: TrainConfig, labels: LabelSet) -> nn.Module:
    """Build the network of a configuration, newly initialised or warm-started.

    Raises:
        CheckpointError: If a file of weights cannot be loaded.
        ConfigError: If a file of weights does not fit the configuration.
    """
    settings, num_classes = config.model, len(labels)
    kind = architecture(settings.architecture)
    overrides, donor = {**_of_warm_start(settings, labels), **settings.overrides}, None
    if settings.static_prior:
        donor = _donor(settings)
        overrides["static_prior"] = EXTERNAL if donor is None else donor.architecture
        if donor is not None and architecture(donor.architecture).video:
            overrides["static_prior_config"] = donor.config
    values = kind.kind.configure(num_classes=num_classes, preset=settings.preset, overrides=overrides)
    prior = None
    if settings.static_prior:
        prior = _static_prior(donor, values, labels, config)
    model = kind.from_config(values, static_prior=prior)
    if "init" in kind.options:
        _init(model, settings)
    if settings.warm_start:
        _warm_start(model, settings, labels)
    return model


def _of_warm_start(settings: ModelConfig, labels: LabelSet) -> dict[str, Any]:
    """Return the configuration of the static network in a checkpoint to continue, where there are several kinds.

    The checkpoint is one of the same architecture, or one of the static network alone.

    Raises:
        ConfigError: If a class mapping of a video network would have to be translated to other classes.
    """
    kind = architecture(settings.architecture)
    chosen = kind.video_prior or kind.adds_to_prior  # networks with one of several kinds of static networks
    if not (chosen and settings.warm_start and not settings.static_prior):
        return {}
    metadata = read_metadata(resolve_checkpoint(settings.warm_start))
    name, config = metadata["architecture"], metadata["config"]
    if name == kind.name:
        found = {key: config[key] for key in ("static_prior", "static_prior_config") if key in config}
    elif name in static_architectures(kind.name):
        found = {"static_prior": name, "static_prior_config": config if architecture(name).video else {}}
    else:
        return {}
    if settings.overrides.get("static_prior", found["static_prior"]) != found["static_prior"]:
        return {}
    old = tuple(metadata["class_names"])
    if _maps_classes(found) and (old != labels.names or settings.warm_start_classes):
        raise _mapped_classes(settings, old, labels.names)
    return found


def _mapped_classes(settings: ModelConfig, old: Iterable[str], new: Iterable[str]) -> ConfigError:
    return ConfigError(
        f"warm_start {settings.warm_start} has other classes, which are not matched by name with a class_mapping; "
        f"expected {', '.join(new)}, got {', '.join(old)}"
    )


def _donor(settings: ModelConfig) -> Checkpoint | None:
    """Return the checkpoint given as `static_prior`; None = it is not a checkpoint."""
    source = settings.static_prior
    known = static_architectures(settings.architecture)
    if not _names_checkpoint(source):
        if architecture(settings.architecture).adds_to_prior:
            raise ConfigError(
                f"static_prior {source}: does not fit {settings.architecture}; expected a checkpoint of "
                f"{', '.join(known)}, got another file or a factory"
            )
        return None
    if read_metadata(resolve_checkpoint(source))["config"].get("static_prior") == EXTERNAL:
        raise ConfigError(
            f"static_prior {source}: has an external static network, which no checkpoint contains; expected a checkpoint "
            "with a static network of its own, such as erfnet"
        )
    donor = load_checkpoint(source)
    if donor.architecture not in known:
        raise ConfigError(
            f"static_prior {source}: wrong network; expected a checkpoint of {', '.join(known)}, "
            f"got {donor.architecture}"
        )
    return donor


def _static_prior(
    donor: Checkpoint | None, values: dict[str, Any], labels: LabelSet, config: TrainConfig
) -> nn.Module:
    """Return the static network given by the user; the weights of a checkpoint become part of the trained network."""
    source = config.model.static_prior
    classes = values.get("prior_classes") or values["num_classes"]
    if donor is None:
        width, height = config.data.size
        return load_external_prior(source, num_classes=classes, size=(height, width))
    advice = (
        "Give model.overrides.prior_classes and class_mapping, or use" if "class_mapping" in values else "Use"
    )
    if len(donor.labels) != classes or (
        not values.get("class_mapping") and donor.labels.names != labels.names
    ):
        raise ConfigError(
            f"static_prior {source}: expected the classes {', '.join(labels.names)}, got "
            f"{', '.join(donor.labels.names)}. {advice} it as warm_start, which takes classes over by name"
        )
    return donor.network


def licence_of_run(config: TrainConfig) -> Licence:
    """Return the licence of the trained weights: the strictest of the configuration and of the weights it starts from.

    Raises:
        CheckpointError: If the entry of a checkpoint is not a licence.
    """
    model, sources = config.model, []
    teachers = (stage.teacher for stage in config.stages)
    for name in (model.warm_start, model.init_encoder, model.static_prior, *teachers):
        if name and _names_checkpoint(name):
            path = resolve_checkpoint(name)
            sources.append(licence_of(path, read_metadata(path)))
    return derived_licence(Licence(config.licence), sources)


def _warm_start(model: Network, settings: ModelConfig, labels: LabelSet) -> None:
    checkpoint = load_checkpoint(settings.warm_start, static_prior=settings.static_prior or None)
    as_prior = has_prior(model) and (
        not has_prior(checkpoint.network) or type(checkpoint.network) is type(model.static_prior)
    )
    target = model.static_prior if as_prior else model
    if type(checkpoint.network) is not type(target):
        raise ConfigError(
            f"warm_start {settings.warm_start}: wrong network; expected {type(target).__name__}, "
            f"got {type(checkpoint.network).__name__}"
        )
    state = checkpoint.network.state_dict()
    old, new = checkpoint.labels.names, labels.names
    sources = settings.warm_start_classes
    _check_sources(settings, new, old)
    # A static network with other classes has a class_mapping.
    if (old != new or sources) and not (as_prior and is_mapped(model)):
        if _maps_classes(model.config_values()) or _maps_classes(checkpoint.config):
            raise _mapped_classes(settings, old, new)
        state = translate_classes(state, target.state_dict(), old=old, new=new, sources=sources)
        same = [name for name in new if name in old and name not in sources]
        log.warning(
            "warm_start %s has other classes: weights taken over by name: %s; as in warm_start_classes: %s; "
            "newly initialised: %s",
            settings.warm_start,
            ", ".join(same) or "none",
            ", ".join(f"{name} from {source}" for name, source in sources.items()) or "none",
            ", ".join(name for name in new if name not in old and name not in sources) or "none",
        )
    state = inflate(state, target.state_dict())
    load_exact(target, state, source=f"warm_start {settings.warm_start}")


def _check_sources(settings: ModelConfig, new: tuple[str, ...], old: tuple[str, ...]) -> None:
    """Refuse entries of `warm_start_classes` whose classes do not exist."""
    for name, source in settings.warm_start_classes.items():
        for what, value, known in (("class of the data", name, new), ("class of warm_start", source, old)):
            if value not in known:
                raise ConfigError(
                    f"model.warm_start_classes: unknown {what}; expected one of {', '.join(known)}, got {value!r}"
                )


def is_mapped(model: Network) -> bool:
    """Return whether the static network of a network has other classes."""
    return bool(architecture_of(model).video and model.config_values().get("class_mapping"))


def _maps_classes(config: Mapping[str, Any]) -> bool:
    """Return whether a network, or one inside it, maps the classes of its static network."""
    inside = config.get("static_prior_config")
    return bool(config.get("class_mapping")) or (inside is not None and _maps_classes(inside))


def _init(model: Network, settings: ModelConfig) -> None:
    """Initialise the weights, and set the normalisation of the RGB input of the encoder."""
    if settings.init == "xavier":
        for part in model.transformers:
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
    if settings.init_encoder and _is_checkpoint(Path(settings.init_encoder)):
        _take_encoder(model, settings)
    else:
        _load_encoder(model, settings)
    if settings.init_decoder:
        model.decoder.start_from(model.encoder, *model.encoder_normalization)


def _load_encoder(model: Network, settings: ModelConfig) -> None:
    """Load weights of Hugging Face if configured, and set the normalisation that they or the user need."""
    if settings.init_encoder:
        state = read_state_file(Path(settings.init_encoder), source=f"init_encoder {settings.init_encoder}")
        try:
            model.encoder.load_mit_state_dict(state)
        except CheckpointError as err:
            raise CheckpointError(f"init_encoder {settings.init_encoder}: {err}") from err
    if settings.init_encoder or settings.normalize_encoder:
        _normalize(model, IMAGENET_MEAN, IMAGENET_STD)


def _names_checkpoint(name: str) -> bool:
    """Return whether a name is that of a checkpoint of this package, shipped or a file."""
    try:
        return _is_checkpoint(resolve_checkpoint(name))
    except CheckpointError:  # such as a factory
        return False


def _is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint of this package."""
    try:
        read_metadata(path)
    except CheckpointError:
        return False
    return True


def _take_encoder(model: Network, settings: ModelConfig) -> None:
    """Copy the encoder of a trained `segformer_b*` or `vtseg`, and the normalisation of its RGB input."""
    source = f"init_encoder {settings.init_encoder}"
    donor: Network = load_checkpoint(settings.init_encoder).model
    own, given = architecture_of(model), architecture_of(donor)
    if "init_encoder" not in given.options or (given.video and not own.video):
        raise ConfigError(
            f"{source}: wrong network; expected a segformer{' or vtseg' if own.video else ''}, "
            f"got {type(donor).__name__}"
        )
    load_exact(model.encoder, donor.encoder.state_dict(), source=source)
    _normalize(model, *donor.encoder_normalization)


def _normalize(model: Network, mean: Iterable[float], std: Iterable[float]) -> None:
    """Set the normalisation of the RGB input of the encoder to that of the weights it starts from."""
    for own, values in zip(model.encoder_normalization, (mean, std)):
        own.copy_(torch.as_tensor(values))


def has_prior(model: nn.Module) -> bool:
    """Return whether a network is a video network with a static network."""
    return architecture_of(model).video


def window_length(config: TrainConfig, model: Network) -> int:
    """Return the number of frames k of a training window."""
    return architecture_of(model).window(model.config_values(), config.model.overrides)
