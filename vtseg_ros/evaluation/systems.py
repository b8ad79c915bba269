"""The systems that `vtseg evaluate` compares: a checkpoint, which of its networks, and a window."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from vtseg_ros.engine import Segmenter
from vtseg_ros.errors import ConfigError
from vtseg_ros.labels import LabelSet
from vtseg_ros.model import VTSeg
from vtseg_ros.model.checkpoint import Checkpoint, load_checkpoint
from vtseg_ros.model.static import StaticBranch

TITLES = {"vtseg": "VTSeg", "erfnet": "ERFNet", "segformer_b0": "SegFormer-B0", "gru": "GRU"}
MODELS = (*TITLES, "prior")
VIDEO_MODELS = ("vtseg", "gru")


@dataclass(frozen=True)
class SystemInfo:
    """What a system is, for tables and reports.

    Attributes:
        name: unique among the systems compared.
        model: `vtseg`, `gru` or the image network's name.
        checkpoint: as the user named it.
        window: frames k it sees.
        family: name without the window: systems of one family differ in the window alone.
        parameters: of the network.
        input_size: (width, height) px of its input.
    """

    name: str
    model: str
    checkpoint: str
    window: int
    family: str
    parameters: int
    input_size: tuple[int, int]


class System(Protocol):
    """Frames of a sequence in order, masks out."""

    info: SystemInfo
    labels: LabelSet

    def reset(self) -> None:
        """A new sequence begins."""

    def step(self, number: int, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """The next frame's mask.

        Args:
            number: of the frame in its index.
            image: (H, W, 3) uint8 RGB.
            size: (width, height) px of the mask.

        Returns:
            (height, width) uint8 class ids.
        """


class SegmenterSystem:
    """VTSeg or an image network, through the predictor that the node uses.

    Args:
        info, checkpoint: what it is.
        device, precision: as `Segmenter`.
    """

    def __init__(self, info: SystemInfo, checkpoint: Checkpoint, *, device: str, precision: str) -> None:
        self.info, self.labels = info, checkpoint.labels
        self._segmenter = Segmenter(
            checkpoint, device=device, precision=precision, window=info.window, upsampling="bicubic"
        )

    def reset(self) -> None:
        self._segmenter.reset()

    def step(self, number: int, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        self._segmenter.output_size = size
        # Without a stamp a frame always joins: where sequences end is the index's to say.
        return self._segmenter.step(image).mask


def open_systems(
    checkpoints: Sequence[str],
    *,
    models: Sequence[str] = (),
    windows: Sequence[int] = (0,),
    names: Sequence[str] = (),
    static_prior: str | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> list[System]:
    """Every combination of checkpoint, network and window; image networks have one window, of one frame.

    Args:
        checkpoints: files, or names of shipped weights.
        models: networks of `MODELS`; empty = what each checkpoint is. An image network's name, or `prior`,
            stands for the static network inside a VTSeg.
        windows: frames k; 0 = the checkpoint's.
        names: one per checkpoint, for tables; empty = by network.
        static_prior: as `load_checkpoint`.
        device, precision: as `Segmenter`.

    Raises:
        ConfigError, CheckpointError: naming what does not fit.
    """
    if names and len(names) != len(checkpoints):
        raise ConfigError(f"one name per checkpoint: {len(checkpoints)} checkpoints, {len(names)} names")
    if min(windows) < 0:
        raise ConfigError(f"window must be 0 (the checkpoint's) or a number of frames. Got: {min(windows)}")
    chosen: list[tuple[str, str, SystemInfo]] = []
    for place, name in enumerate(checkpoints):
        loaded = load_checkpoint(name, static_prior=static_prior)
        for model in models or [loaded.architecture]:
            part = _part(loaded, name, model)
            title = names[place] if names else TITLES.get(part.architecture, "static network")
            for window in dict.fromkeys(_windows(part, windows)):
                chosen.append((title, model, _info(part, name, window)))
    labels = None
    systems: list[System] = []
    for model, info in _named(chosen):
        # Loaded once per system: the predictor may change the network that it runs.
        part = _part(load_checkpoint(info.checkpoint, static_prior=static_prior), info.checkpoint, model)
        labels = labels or part.labels
        if part.labels.names != labels.names:
            raise ConfigError(
                f"checkpoints with different class lists cannot share a table: {info.checkpoint} has "
                f"{', '.join(part.labels.names)}; {systems[0].info.checkpoint} has {', '.join(labels.names)}"
            )
        systems.append(SegmenterSystem(info, part, device=device, precision=precision))
    return systems


def _part(loaded: Checkpoint, name: str, model: str) -> Checkpoint:
    """The checkpoint, or the static network inside it."""
    if model == loaded.architecture:
        return loaded
    if model == "prior" and loaded.architecture not in VIDEO_MODELS:
        return loaded
    inside = loaded.config.get("static_prior", "")
    if inside and model in (inside, "prior"):
        network = loaded.model
        network = StaticBranch(network).eval() if isinstance(network, VTSeg) else network.static_prior
        return dataclasses.replace(loaded, model=network, architecture=inside)
    holds = f"{loaded.architecture}" + (f" with the static network {inside}" if inside else "")
    raise ConfigError(f"checkpoint {name} holds no {model}: it is a {holds}")


def _windows(part: Checkpoint, windows: Sequence[int]) -> list[int]:
    if part.architecture not in VIDEO_MODELS:
        return [1]
    return [window or int(part.config.get("window", 1)) for window in windows]


def _info(part: Checkpoint, checkpoint: str, window: int) -> SystemInfo:
    network = part.model.model.static_prior if isinstance(part.model, StaticBranch) else part.model
    count = sum(parameter.numel() for parameter in network.parameters())
    return SystemInfo("", part.architecture, checkpoint, window, "", count, part.input_size)


def _label_of(checkpoint: str) -> str:
    """`best.safetensors` says nothing: the run's folder does."""
    path = Path(checkpoint)
    return path.parent.name if path.stem in ("best", "last") and path.parent.name else path.stem


def _named(chosen: list[tuple[str, str, SystemInfo]]) -> list[tuple[str, SystemInfo]]:
    """(model, info) with names that tell the systems apart."""
    sources = {title: {(i.checkpoint, m) for t, m, i in chosen if t == title} for title, _, _ in chosen}
    families = []
    for title, model, info in chosen:
        several = len(sources[title]) > 1
        families.append((f"{title} ({_label_of(info.checkpoint)})" if several else title, model, info))
    sizes = Counter(family for family, _, _ in families)
    named, seen = [], Counter()
    for family, model, info in families:
        name = f"{family}, k={info.window}" if sizes[family] > 1 else family
        seen[name] += 1
        if seen[name] > 1:  # two folders of one name
            family, name = f"{family} #{seen[name]}", f"{name} #{seen[name]}"
        named.append((model, dataclasses.replace(info, name=name, family=family)))
    return named
