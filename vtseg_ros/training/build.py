"""What a training configuration describes: the class list and the network it starts from."""

from __future__ import annotations

from torch import nn

from vtseg_ros.data.bags import BagReader, read_label_set
from vtseg_ros.errors import ConfigError
from vtseg_ros.labels import LABEL_SETS, LabelSet
from vtseg_ros.model import ERFNet, SegFormer, VTSeg, VTSegConfig, load_checkpoint
from vtseg_ros.model.gru import STGRU
from vtseg_ros.model.priors import EXTERNAL, load_external_prior
from vtseg_ros.training.config import TrainConfig


def build_labels(config: TrainConfig) -> LabelSet:
    """The class list that the configuration names, or that the first training bag carries."""
    if config.data.class_names:
        return LabelSet.from_names(config.data.class_names)
    if config.data.labels:
        if config.data.labels not in LABEL_SETS:
            raise ConfigError(
                f"data.labels must be one of {', '.join(LABEL_SETS)}. Got: {config.data.labels!r}"
            )
        return LABEL_SETS[config.data.labels]
    with BagReader(config.data.train[0].path) as bag:
        labels = read_label_set(bag)
    if labels is None:
        raise ConfigError(
            f"bag {config.data.train[0].path} has no label map: give data.labels or data.class_names"
        )
    return labels


def build_model(config: TrainConfig, num_classes: int) -> nn.Module:
    """The network that the configuration describes, freshly initialised or warm-started."""
    settings = config.model
    if settings.architecture == "erfnet":
        model: nn.Module = ERFNet(num_classes=num_classes)
    elif settings.architecture == "segformer_b0":
        model = SegFormer(num_classes=num_classes)
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
        if settings.init_encoder:
            from safetensors.torch import load_file

            model.encoder.load_mit_state_dict(load_file(settings.init_encoder))
    if settings.warm_start:
        started = load_checkpoint(settings.warm_start, static_prior=settings.static_prior or None).model
        target = model.static_prior if has_prior(model) and not has_prior(started) else model
        if type(started) is not type(target) or started.state_dict().keys() != target.state_dict().keys():
            raise ConfigError(
                f"warm_start {settings.warm_start} is a {type(started).__name__} that does not fit"
            )
        target.load_state_dict(started.state_dict())
    return model


def has_prior(model: nn.Module) -> bool:
    """Whether the network is a video network on top of a static one."""
    return isinstance(model, (VTSeg, STGRU))


def window_length(config: TrainConfig, model: nn.Module) -> int:
    """Frames k of a training window."""
    if isinstance(model, VTSeg):
        return model.config.window
    return config.model.overrides.get("window", 4) if isinstance(model, STGRU) else 1
