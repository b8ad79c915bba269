# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Frames, labels and windows for training and validation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.topics import read_label_set
from vtseg_ros.dataset.augmentation import Augmentation
from vtseg_ros.dataset.class_groups import ClassGroups, GroupTable, parse_class_groups
from vtseg_ros.dataset.flow import WindowFlow
from vtseg_ros.dataset.frame_store import BagSource, FrameIndex, FrameStore
from vtseg_ros.dataset.splits import require_apart, split_by_time
from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import LABEL_SETS, LabelSet
from vtseg_ros.model.registry import architecture
from vtseg_ros.training.config import DataConfig, StageConfig, TrainConfig
from vtseg_ros.training.samples import Positions, Samples, build_loader, load_batches
from vtseg_ros.training.validation import ScoredClasses, Validator

log = logging.getLogger("vtseg_ros.training")


class TrainingData:
    """Frames, labels and windows of a training run and of its validation.

    Args:
        config: Configuration of the run.
        labels: Class list of the network.
        length: Frames k of a window.
        needs_flow: Whether the network takes optical flow (`model.flow`).

    Raises:
        BagError: If a bag cannot be used.
        ConfigError: If the windows or classes do not fit.

    Attributes:
        labelled: Numbers of the frames of the training bags whose labels are used.
    """

    def __init__(self, config: TrainConfig, labels: LabelSet, *, length: int, needs_flow: bool) -> None:
        self.config, self.labels, self.length = config, labels, length
        least = architecture(config.model.architecture).least_window
        for stage in config.stages:
            if stage.window and not least <= stage.window <= length:
                raise ConfigError(
                    f"stage {stage.name}: window out of range; expected {least} to {length} frames (the window "
                    f"of the network) or 0, got {stage.window}"
                )
        training, validation = build_sources(config.data)
        self.groups = GroupTable(len(labels))
        self.train_store = build_store(
            config.data,
            training,
            label_tables=read_label_tables(config.data, labels, self.groups),
            need_labels=not any(stage.teacher for stage in config.stages),
        )
        validation_groups = read_class_groups(config.data, labels, "validation")
        if not config.data.validation:  # parts of the training bags
            validation_groups = read_class_groups(config.data, labels, "train")
        self.validation_classes = [ScoredClasses.of(groups, labels) for groups in validation_groups]
        self.validation_store = build_store(
            config.data, validation, label_tables=[classes.label_table for classes in self.validation_classes]
        )
        index = self.train_store.index
        self.labelled = {number for number, _ in index.labelled(config.data.label_stride)}
        self._windows = {soft: self._list_windows(soft) for soft in (False, True)}
        for stage in config.stages:
            if not self.windows(stage):
                raise ConfigError(
                    f"stage {stage.name}: data.train has no labelled frame. A stage without teacher needs labels"
                )
        self.validation_windows = self.validation_store.index.windows(
            length, label_stride=config.data.validation_every
        )
        self.train_flow = self.validation_flow = None
        if needs_flow:
            source, stride = config.model.flow, config.data.stride
            widest = max((stride, *config.data.random_strides))
            self.train_flow = WindowFlow(source, self.train_store.index, stride=widest)
            self.validation_flow = WindowFlow(source, self.validation_store.index, stride=stride)

    def _list_windows(self, soft: bool) -> list[list[int]]:
        index, sources = self.train_store.index, self.config.data.train
        chosen = index.labelled(self.config.data.label_stride)
        if soft:
            chosen = sorted(chosen + index.others(self.labelled, [s.unlabelled_stride for s in sources]))
        return [
            index.window(newest, first, self.length)
            for newest, first in chosen
            for _ in range(sources[index.frames[newest].source].repeat)
        ]

    def windows(self, stage: StageConfig) -> list[list[int]]:
        """Return the frame numbers of each window of a stage, newest last; with a teacher also of unlabelled frames."""
        return self._windows[bool(stage.teacher)]

    def members(self, device: torch.device) -> Tensor | None:
        """Return the classes of each group of classes, (G, C) bool; None = no groups."""
        return torch.from_numpy(self.groups.members()).to(device) if self.groups.groups else None

    def batches(self, number: int, *, steps: int, start: int, fabric: Fabric) -> Iterator[list[Tensor]]:
        """Return the batches of this process for a stage, `accumulate` of them per update.

        Args:
            number: Number of the stage.
            steps: Number of updates of the whole stage.
            start: Number of updates already done.
            fabric: Processes and device.
        """
        config, stage = self.config, self.config.stages[number]
        length = self._length(stage)
        samples = Samples(
            self.train_store,
            [window[-length:] for window in self.windows(stage)],
            length=length,
            augmentation=Augmentation(config.augmentation),
            seed=config.seed,
            stage=number,
            num_classes=len(self.groups),
            flow=self.train_flow if length > 1 else None,
            labelled=self.labelled,
            mark_outside=bool(stage.teacher),
            strides=config.data.random_strides,
            with_clean=self.with_clean(stage),
        )
        positions = Positions(
            first=start * stage.accumulate,
            last=steps * stage.accumulate,
            batch=stage.batch,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        pin_memory = fabric.device.type == "cuda"
        return load_batches(build_loader(samples, positions, config.data.workers, pin_memory=pin_memory))

    def with_clean(self, stage: StageConfig) -> bool:
        """Return whether the batches of a stage contain the frames before covering and corruption."""
        augmentation, kind = self.config.augmentation, architecture(self.config.model.architecture)
        wanted = stage.teacher or (kind.takes_clean and stage.name != "static")
        return bool(wanted and (augmentation.occlusion or augmentation.corruption))

    def validator(self, stage: StageConfig, *, fabric: Fabric, should_stop: Callable[[], bool]) -> Validator:
        """Build the validator of a stage."""
        length = self._length(stage)
        return Validator(
            fabric,
            self.validation_store,
            [window[-length:] for window in self.validation_windows],
            length=length,
            labels=self.labels,
            classes=self.validation_classes,
            flow=self.validation_flow,
            window_sweep_frames=self.config.window_sweep_frames,
            pictures=self.config.preview_frames,
            should_stop=should_stop,
        )

    def warn_of_corrupt(self) -> None:
        """Log the number of corrupt messages so far, if any."""
        corrupt = self.train_store.corrupt_count(), self.validation_store.corrupt_count()
        if any(corrupt):
            log.warning(
                "corrupt messages so far: %d in the training bags, %d in those for validation", *corrupt
            )

    def _length(self, stage: StageConfig) -> int:
        return 1 if stage.name == "static" else stage.window or self.length


def build_sources(data: DataConfig) -> tuple[list[BagSource], list[BagSource]]:
    """Return the sources for training and for validation.

    Raises:
        BagError: If a bag to split cannot be read.
        ConfigError: If a bag is too short, or parts of one are closer than the split gap.
    """
    training, validation = (
        [BagSource(Path(s.path), s.image_topic, s.label_topic, s.start_s, s.end_s) for s in sources]
        for sources in (data.train, data.validation)
    )
    if data.validation_share:
        training, validation = split_by_time(training, data.validation_share, data.split_gap_s)
    require_apart(training, validation, data.split_gap_s)
    return training, validation


def build_store(
    data: DataConfig,
    sources: list[BagSource],
    *,
    label_tables: list[np.ndarray | None] | None = None,
    need_labels: bool = True,
) -> FrameStore:
    """Build the frame store of some sources at the input size of the network.

    Args:
        data: Data section of the configuration.
        sources: Bags, or parts of them.
        label_tables: See `FrameStore`.
        need_labels: Refuse bags without labels.
    """
    index = FrameIndex(sources, max_gap_s=data.max_gap_s, stride=data.stride, need_labels=need_labels)
    return FrameStore(
        index,
        size=data.size,
        cache_dir=Path(data.cache_dir).expanduser() if data.cache_dir else None,
        label_tables=label_tables,
        resize_mode=data.resize_mode,
    )


def read_class_groups(data: DataConfig, labels: LabelSet, part: str) -> list[ClassGroups | None]:
    """Return the class groups of each bag, None for a bag with the classes of the network.

    Args:
        data: Data section of the configuration.
        labels: Class list of the network.
        part: `train` or `validation`.

    Raises:
        BagError: If a bag cannot be read.
        ConfigError: For class names that do not exist, or classes that are missing.
    """
    found: list[ClassGroups | None] = []
    for number, source in enumerate(getattr(data, part)):
        if not source.class_groups:
            found.append(None)
            continue
        with BagReader(source.path) as bag:
            own = read_label_set(bag)
        where = f"data.{part}[{number}].class_groups"
        found.append(parse_class_groups(source.class_groups, own, labels, where))
    return found


def read_label_tables(data: DataConfig, labels: LabelSet, table: GroupTable) -> list[np.ndarray | None]:
    """Return for each training bag the table from its label ids to those of the run; groups are added to `table`."""
    return [
        None if groups is None else table.add(groups, f"data.train[{number}].class_groups")
        for number, groups in enumerate(read_class_groups(data, labels, "train"))
    ]


def build_labels(data: DataConfig) -> LabelSet:
    """Return the class list of the configuration, or that of the first training bag.

    Raises:
        BagError: If a bag cannot be read.
        ConfigError: If there is none, or the label map of a bag differs from it.
    """
    labels = _named_labels(data)
    # Bags with class_groups have classes of their own.
    sources = [source.path for source in (*data.train, *data.validation) if not source.class_groups]
    for path in dict.fromkeys(sources):
        with BagReader(path) as bag:
            own = read_label_set(bag)
        if labels is None:
            if own is None:
                raise ConfigError(f"bag {path} has no label map. Give data.labels or data.class_names")
            labels = own
        if own is not None and own.names != labels.names:
            raise ConfigError(
                f"bag {path} has a label map of other classes, so its class ids mean something else; "
                f"expected {', '.join(labels.names)}, got {', '.join(own.names)}. "
                "Give class_groups, a mapping from its classes"
            )
    if labels is None:
        raise ConfigError(
            "data: every bag has class_groups, so none has the network's class list. Give data.labels or data.class_names"
        )
    return labels


def _named_labels(data: DataConfig) -> LabelSet | None:
    if data.class_names:
        return LabelSet.from_names(data.class_names)
    if data.labels and data.labels not in LABEL_SETS:
        raise ConfigError(
            f"data.labels: unknown; expected one of {', '.join(LABEL_SETS)}, got {data.labels!r}"
        )
    return LABEL_SETS[data.labels] if data.labels else None
