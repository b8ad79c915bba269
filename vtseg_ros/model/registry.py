# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Architectures by name: everything that the rest of the package must know about a network.

A network is added by one file: a class derived from `Network` with the decorator `register`. Networks of other
packages are found by the entry point group `vtseg_ros.architectures`, whose entries name the module to import.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, TypeVar

from torch import Tensor, nn

from vtseg_ros.errors import ConfigError

log = logging.getLogger("vtseg_ros.model")

BUILT_IN = tuple(
    f"vtseg_ros.model.{name}"
    for name in ("erfnet", "segformer", "efficientvit", "stgru", "vtseg", "local_memory", "mask_feedback")
)
"""Modules of the package's own networks, in the order of lists and tables."""
ENTRY_POINTS = "vtseg_ros.architectures"
DEFAULT_ARCHITECTURE = "vtseg"
DEFAULT_STATIC_PRIOR = "erfnet"
UNIT_RANGE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Network(nn.Module):
    """Base of the registered networks; as it is, a network of single images.

    An image network takes `num_classes` and maps RGB (n, 3, H, W) in [0, 1] to logits (n, C, H, W). A video network
    maps a window (B, k, 3, H, W) to (B, k, C, H, W); it takes a `model.cache.FrameCache` as second argument, or optical
    flow where `needs_flow` is declared (see `model.video_network.VideoNetwork`).

    A module within a network that has a cheaper form in eval mode defines `fused()`, which returns it.
    """

    registered_as = ""
    """Name in the registry, set by `register`."""
    num_classes: int

    @property
    def architecture(self) -> str:
        """Name under which checkpoints and configurations record the kind of network."""
        return self.registered_as

    @classmethod
    def configure(cls, *, num_classes: int, preset: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration, as checkpoints record it, that a training configuration asks for."""
        return {"num_classes": num_classes}

    @classmethod
    def check_overrides(cls, overrides: Mapping[str, Any]) -> None:
        """Raise ConfigError for `model.overrides` of a training configuration that make no sense."""

    @classmethod
    def training_window(cls, overrides: Mapping[str, Any]) -> int | None:
        """Return the frames of a training window that is not part of the configuration; None = there is none."""
        return None

    def config_values(self) -> dict[str, Any]:
        """Return the configuration as plain JSON values, with `num_classes`."""
        return {"num_classes": self.num_classes}

    def without_upsampling(self) -> nn.Module:
        """Return a network with the same weights whose logits may be smaller than the images.

        The caller upsamples them to the size of the mask in one step, which is cheaper.
        """
        return self

    @property
    def addition_channels(self) -> tuple[int, ...]:
        """Channels of the features, at 1/4, 1/8 and 1/16 of the resolution, to which `coarse_logits` adds maps."""
        return ()

    def coarse_logits(self, images: Tensor, additions: Sequence[Tensor] = ()) -> Tensor:
        """Segment single images with maps added to the features, for architectures that declare `takes_additions`.

        Args:
            images: (n, 3, H, W), RGB in [0, 1].
            additions: maps (n, C_i, H / s_i, W / s_i), with the C_i of `addition_channels` and s = 4, 8, 16; empty = none.

        Returns:
            Logits (n, C, h, w), which may be smaller than the images.
        """
        raise ConfigError(f"{self.architecture}: expected a network that takes additions, got one without")

    def load_published(self, state: dict[str, Tensor]) -> None:
        """Load published weights under their own key names.

        Raises:
            CheckpointError: if keys or shapes are not those of this network.
        """
        raise ConfigError(f"{self.architecture}: expected a network with published weights, got one without")

    def set_input_normalization(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Set the mean and standard deviation of RGB in [0, 1] that the weights were trained on.

        Raises:
            ConfigError: if this network takes RGB in [0, 1].
        """
        if (tuple(mean), tuple(std)) != UNIT_RANGE:
            raise ConfigError(
                f"--mean, --std: {type(self).__name__} takes RGB in [0, 1]; expected none, got {mean}, {std}"
            )


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What is declared about a network.

    Args:
        name: as checkpoints and configurations record it.
        title: for tables.
        kind: the class.
        build: from `num_classes` to a freshly initialised image network; for video networks see `from_config`.
        video: it takes windows, else single images; an image network can be the static network of a video network.
        video_prior: its static network may be a video network, which then sees single frames.
        needs_flow: it takes optical flow.
        adds_to_prior: its static network must be one that declares `takes_additions`, also a video network.
        takes_additions: a network around it can add maps to its features (see `Network.coarse_logits`).
        trains_newest: in training mode, it returns the logits of the newest frame only.
        takes_clean: its forward pass takes the frames before corruption as `clean`, and then returns a loss too.
        least_window: least number of frames of a training window.
        options: fields of the training configuration's `model` section that have an effect, and `static_loss`.
        class_dimensions: which dimensions count classes, by regular expression of the end of a tensor's name.
        parts: title of each submodule that tables of costs list.
        sizes: title and builder, from the number of classes, of each size that tables of costs list.
        normalization: mean and standard deviation of RGB in [0, 1] that published weights expect by default.
    """

    name: str
    title: str
    kind: type[Network]
    build: Callable[..., nn.Module]
    video: bool = False
    video_prior: bool = False
    needs_flow: bool = False
    adds_to_prior: bool = False
    takes_additions: bool = False
    trains_newest: bool = False
    takes_clean: bool = False
    least_window: int = 1
    options: frozenset[str] = frozenset()
    class_dimensions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, Callable[[int], nn.Module]] = field(default_factory=dict)
    normalization: tuple[tuple[float, ...], tuple[float, ...]] = UNIT_RANGE

    @property
    def takes_cache(self) -> bool:
        """Whether it is a video network whose forward pass takes a cache."""
        return self.video and not self.needs_flow

    def from_config(self, values: Mapping[str, Any], *, static_prior: nn.Module | None = None) -> nn.Module:
        """Build the network that `Network.config_values` described, freshly initialised.

        Args:
            values: the configuration.
            static_prior: of a video network: the static network to use instead of the one that it names.

        Raises:
            ConfigError, KeyError, TypeError: if the values are not such a configuration.
        """
        if self.video:
            return self.build(values, static_prior=static_prior)
        return self.build(num_classes=values["num_classes"])

    def window(self, values: Mapping[str, Any], overrides: Mapping[str, Any]) -> int:
        """Return the frames of a training window of a configuration; 1 for image networks."""
        own = self.kind.training_window(overrides)
        return int(values.get("window", 1)) if own is None else own


_REGISTRY: dict[str, Architecture] = {}
_UNREGISTERED = Architecture(name="", title="image network", kind=Network, build=Network)
_plugins_loaded = False
Kind = TypeVar("Kind", bound=type[Network])


def register(
    name: str,
    *,
    title: str,
    build: Callable[..., nn.Module] | None = None,
    options: Iterable[str] = (),
    sizes: Mapping[str, Callable[[int], nn.Module]] | None = None,
    **declared: Any,
) -> Callable[[Kind], Kind]:
    """Return a class decorator that adds a network to the registry.

    Args:
        name: as `Architecture`.
        title: as `Architecture`.
        options: as `Architecture`.
        build: as `Architecture`; None = the class itself.
        sizes: as `Architecture`; None = the network itself, under its title.
        declared: further arguments of `Architecture`.

    Raises:
        ConfigError: if the name is taken.
    """

    def decorate(kind: Kind) -> Kind:
        if name in _REGISTRY and _REGISTRY[name].kind is not kind:
            raise ConfigError(f"architecture {name!r}: the name is taken by {_REGISTRY[name].kind.__name__}")
        make = build or kind
        _REGISTRY[name] = Architecture(
            name=name,
            title=title,
            kind=kind,
            build=make,
            options=frozenset(options),
            sizes={title: lambda classes: make(num_classes=classes)} if sizes is None else sizes,
            **declared,
        )
        kind.registered_as = name
        return kind

    return decorate


def architectures() -> dict[str, Architecture]:
    """Return all architectures by name: the package's own, then those of other packages."""
    global _plugins_loaded
    for module in BUILT_IN:
        importlib.import_module(module)
    if not _plugins_loaded:
        _plugins_loaded = True
        for entry in entry_points(group=ENTRY_POINTS):
            try:
                entry.load()
            except Exception as err:  # another package's code may raise anything
                log.warning("architecture %s is not available: %s: %s", entry.name, type(err).__name__, err)
    place = {module: index for index, module in enumerate(BUILT_IN)}
    ordered = sorted(_REGISTRY.values(), key=lambda one: place.get(one.kind.__module__, len(place)))
    return {one.name: one for one in ordered}


def image_architectures() -> dict[str, Architecture]:
    """Return the networks of single images, which can be static networks too."""
    return {name: one for name, one in architectures().items() if not one.video}


def static_architectures(name: str) -> dict[str, Architecture]:
    """Return the networks that can be the static network of the architecture `name`."""
    known = architectures()
    around = known[name]

    def fits(one: Architecture) -> bool:
        if around.adds_to_prior:
            return one.takes_additions
        return not one.video or (around.video_prior and one.takes_cache and one.name != name)

    return {other: one for other, one in known.items() if fits(one)}


def architecture(name: str) -> Architecture:
    """Return an architecture by name.

    Raises:
        ConfigError: if there is none; lists the names.
    """
    known = architectures()
    if name not in known:
        raise ConfigError(f"architecture: unknown; expected one of {', '.join(known)}, got {name!r}")
    return known[name]


def find_architecture(model: nn.Module | None) -> Architecture | None:
    """Return the architecture of a network; None for one that is not registered."""
    return architectures().get(model.architecture) if isinstance(model, Network) else None


def architecture_of(model: nn.Module) -> Architecture:
    """Return the architecture of a network.

    Raises:
        ConfigError: if it is not registered.
    """
    found = find_architecture(model)
    if found is None:
        raise ConfigError(
            f"not a registered network; expected one of {', '.join(architectures())}, got {type(model).__name__}"
        )
    return found


def traits_of(model: nn.Module | None) -> Architecture:
    """Return what is declared about a network; one that is not registered counts as a network of single images."""
    return find_architecture(model) or _UNREGISTERED


def without_upsampling(model: nn.Module) -> nn.Module:
    """Return `Network.without_upsampling` of a registered network; others stay as they are."""
    return model.without_upsampling() if isinstance(model, Network) else model


def check_override_keys(name: str, overrides: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise ConfigError for a key of `model.overrides` that the architecture `name` does not have."""
    for key in overrides:
        if key not in known:
            raise ConfigError(
                f"model.overrides: unknown key for {name}; expected {', '.join(known)}, got {key!r}"
            )


def class_dimensions(key: str) -> tuple[int, ...]:
    """Return the dimensions of the tensor `key` of a state dict that count classes; () for none."""
    for one in architectures().values():
        for end, dims in one.class_dimensions.items():
            if re.search(rf"(^|\.){end}$", key):
                return dims
    return ()
