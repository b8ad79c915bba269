# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Build the systems that a user selects: checkpoints, the networks in them, window lengths and optical flow."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import nn

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.messages import IMAGE
from vtseg_ros.dataset.flow import PROVIDERS, WindowFlow, is_topic
from vtseg_ros.dataset.frame_store import FrameIndex
from vtseg_ros.errors import BagError, ConfigError
from vtseg_ros.evaluation.class_map import ClassMap, MappedSystem
from vtseg_ros.evaluation.recurrent import RecurrentSystem, trained_flow, trained_window
from vtseg_ros.evaluation.systems import PredictorSystem, System, SystemInfo
from vtseg_ros.model.checkpoint import Checkpoint, load_checkpoint
from vtseg_ros.model.registry import architecture, architectures, traits_of
from vtseg_ros.model.vtseg_config import check_window

if TYPE_CHECKING:
    from vtseg_ros.model.video_network import VideoNetwork

STATIC = "static"
"""Name of the static network inside any video network."""


def model_names() -> tuple[str, ...]:
    """Return the possible names in a selection: the architectures, and the static network."""
    return (*architectures(), STATIC)


@dataclass(frozen=True)
class Selection:
    """Selection of the user: every combination of checkpoint, network, window and flow.

    Args:
        checkpoints: files, or names of shipped weights.
        models: names of `model_names()`; empty = the whole network of each checkpoint. An image network's name, or `static`,
            selects the static network inside a video network.
        windows: window lengths k; 0 = as in the checkpoint. Image networks always have one frame.
        flows: for `gru`: estimators, topics, or `topic` = the bag's backward flow; empty = as in training.
        names: one per checkpoint, for tables; with several networks, the network is appended. Empty = name by network.
        static_prior: as `load_checkpoint`.
        stride: of the index that frames are taken from.
        device, backend, precision: as `VideoPredictor`; networks with optical flow run in PyTorch.
        class_map: map from the classes of the checkpoints to those of the labels; None = they are equal.
    """

    checkpoints: Sequence[str]
    models: Sequence[str] = ()
    windows: Sequence[int] = (0,)
    flows: Sequence[str] = ()
    names: Sequence[str] = ()
    static_prior: str | None = None
    stride: int = 1
    device: str = "auto"
    backend: str = "auto"
    precision: str = "auto"
    class_map: ClassMap | None = None

    def __post_init__(self) -> None:
        if self.names and len(self.names) != len(self.checkpoints):
            raise ConfigError(
                f"--name: expected one name per checkpoint ({len(self.checkpoints)}), got {len(self.names)}"
            )
        for window in self.windows:
            check_window(window, as_in_checkpoint=True)


def open_systems(selection: Selection, index: FrameIndex) -> list[System]:
    """Open the systems of a selection for the frames of an index.

    Raises:
        ConfigError, CheckpointError, BagError: if a part of the selection cannot be used; names it.
    """
    systems: list[System] = []
    for model, info in _named(_choose(selection, index)):
        # Loaded once per system: the predictor may change the network that it runs.
        loaded = load_checkpoint(info.checkpoint, static_prior=selection.static_prior)
        part = _part(loaded, info.checkpoint, model)
        if selection.class_map:
            selection.class_map.table(part.labels)  # raises an error before the network is optimised
        first = systems[0] if systems and not selection.class_map else None
        if first and part.labels.names != first.labels.names:
            raise ConfigError(
                f"checkpoint {info.checkpoint}: other classes than {first.info.checkpoint}; expected "
                f"{', '.join(first.labels.names)}, got {', '.join(part.labels.names)}. Evaluate it separately, "
                "or give --class-map"
            )
        options = dict(device=selection.device, precision=selection.precision)
        if traits_of(part.model).needs_flow:
            flow = WindowFlow(info.flow, index, stride=selection.stride)
            system: System = RecurrentSystem(info, part, flow=flow, **options)
        else:
            system = PredictorSystem(info, part, backend=selection.backend, **options)
        systems.append(MappedSystem(system, selection.class_map) if selection.class_map else system)
    return systems


def _choose(selection: Selection, index: FrameIndex) -> list[tuple[str, str, SystemInfo]]:
    """Return (title, model, info) of every combination."""
    chosen = []
    for place, name in enumerate(selection.checkpoints):
        loaded = load_checkpoint(name, static_prior=selection.static_prior)
        for model in selection.models or [loaded.architecture]:
            part = _part(loaded, name, model)
            known = architectures().get(part.architecture)
            title = known.title if known else "static network"
            if selection.names:
                given = selection.names[place]
                title = f"{given}: {title}" if len(selection.models) > 1 else given
            flows = [""]
            if traits_of(part.model).needs_flow:
                flows = [flow or trained_flow(part, name) for flow in selection.flows or [""]]
            for flow in flows:
                source = backward_topic(index) if flow == "topic" else flow
                shown = "topic" if is_topic(source) else flow.upper() if flow in PROVIDERS else flow
                for window in dict.fromkeys(_windows(part, selection.windows)):
                    info = _info(part, name, window, source)
                    chosen.append((f"{title}({shown})" if flow else title, model, info))
    return chosen


def backward_topic(index: FrameIndex) -> str:
    """Return the topic of backward flow in the first bag of an index.

    Raises:
        BagError: if there is none or more than one; lists the topics.
    """
    path = index.sources[0].path
    with BagReader(path) as bag:
        names = [name for name, info in bag.topics.items() if info.msgtype == IMAGE and "flow" in name]
    found = [name for name in names if "backward" in name]
    if len(found) != 1:
        raise BagError(
            f"bag {path}: {'several topics' if found else 'no topic'} of backward flow; expected one, "
            f"got {', '.join(found or names) or 'none'}. Name one by --flow"
        )
    return found[0]


def _part(loaded: Checkpoint, name: str, model: str) -> Checkpoint:
    """Return the checkpoint, or the static network inside it."""
    if model == loaded.architecture or (model == STATIC and not architecture(loaded.architecture).video):
        return loaded
    inside = loaded.config.get("static_prior", "")
    if inside and model in (inside, STATIC):
        video = cast("VideoNetwork", loaded.model)  # the kind of network that contains a static network
        return dataclasses.replace(loaded, model=video.static_branch().eval(), architecture=inside)
    holds = f"{loaded.architecture}" + (f" with the static network {inside}" if inside else "")
    raise ConfigError(f"checkpoint {name}: no {model} in it; got a {holds}")


def _windows(part: Checkpoint, windows: Sequence[int]) -> list[int]:
    found = traits_of(part.model)
    if not found.video:
        return [1]
    own = trained_window(part) if found.needs_flow else int(part.config["window"])
    return [window or own for window in windows]


def _info(part: Checkpoint, checkpoint: str, window: int, flow: str) -> SystemInfo:
    network: nn.Module = getattr(part.model, "static_network", cast(nn.Module, part.model))
    count = sum(parameter.numel() for parameter in network.parameters())
    return SystemInfo("", part.architecture, checkpoint, window, "", count, part.input_size, flow)


def _label_of(checkpoint: str) -> str:
    """Return the name of the file of a checkpoint, or of its folder for `best` and `last`."""
    path = Path(checkpoint)
    return path.parent.name if path.stem in ("best", "last") and path.parent.name else path.stem


def _named(chosen: list[tuple[str, str, SystemInfo]]) -> list[tuple[str, SystemInfo]]:
    """Return (model, info) with a different name for each system."""
    sources = {title: {(i.checkpoint, m) for t, m, i in chosen if t == title} for title, _, _ in chosen}
    families = []
    for title, model, info in chosen:
        several = len(sources[title]) > 1
        families.append((f"{title} ({_label_of(info.checkpoint)})" if several else title, model, info))
    sizes = Counter(family for family, _, _ in families)
    named: list[tuple[str, SystemInfo]] = []
    seen: Counter[str] = Counter()
    for family, model, info in families:
        name = f"{family}, k={info.window}" if sizes[family] > 1 else family
        seen[name] += 1
        if seen[name] > 1:  # two folders with the same name
            family, name = f"{family} #{seen[name]}", f"{name} #{seen[name]}"
        named.append((model, dataclasses.replace(info, name=name, family=family)))
    return named
