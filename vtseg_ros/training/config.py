# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The training configuration: frozen dataclasses; values that make no sense or have no effect are refused by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from vtseg_ros.dataset.augmentation import AugmentationConfig
from vtseg_ros.errors import ConfigError
from vtseg_ros.model.registry import DEFAULT_ARCHITECTURE, Architecture, architecture, architectures
from vtseg_ros.model.vtseg import SIZE_MULTIPLE
from vtseg_ros.resize import RESIZE_MODES

STAGES = ("static", "video", "end_to_end")
PRECISIONS = ("fp32", "fp16", "bf16")
INITS = ("segformer", "xavier")


@dataclass(frozen=True)
class SourceConfig:
    """A bag, or a part of it (see `dataset.frame_index.BagSource`).

    Args:
        path: of the bag.
        image_topic, label_topic, start_s, end_s: see `BagSource`.
        class_groups: where the bag has other classes than the network: from each class of the bag (its name, or its
            id) to a class of the network, a list of classes that it stands for, or `ignore`. Without a label map in
            the bag, names are its class list in the order of their ids.
        unlabelled_stride: in stages with a teacher, use every n-th frame that has no label; 0 = none of them.
        repeat: how many times each window of the bag comes up in an epoch.
    """

    path: str
    image_topic: str = ""
    label_topic: str = ""
    start_s: float = 0.0
    end_s: float = 0.0
    class_groups: dict[Any, Any] = field(default_factory=dict)
    unlabelled_stride: int = 1
    repeat: int = 1


@dataclass(frozen=True)
class DataConfig:
    """Bags and how windows are taken from them.

    Args:
        train, validation: bags; no scene may be in both. Without validation bags a part of the training bags is
            held out.
        validation_share: of the time of each training bag, its end, held out when there are no validation bags.
        split_gap_s: interval, s, left out between the two; parts of one bag that are nearer are refused. Validation bags
            of the user's own are taken as they are when it is 0.
        size: (width, height) px of the network's input, multiples of 32.
        labels: `street`, `camvid`, `cityscapes`, or empty = the label map in the first bag.
        class_names: class list, where there is no label map and no such name.
        label_stride: use every n-th label in training.
        stride: frames of a window are this far apart, counted back from the labelled one.
        random_strides: distances one of which each training window draws instead of `stride`, since robots' frame rates
            differ (ours); empty = `stride`. Validation keeps `stride`.
        max_gap_s: a longer pause starts a new sequence.
        validation_every: score every n-th labelled frame of the validation bags.
        cache_dir: folder for decoded frames; empty = decode each time.
        workers: processes that prepare batches.
        resize_mode: how images are brought to `size`: `stretch` (their aspect is not kept), `letterbox` (it is, with
            borders) or `crop` (it is, without their sides). Stored in the checkpoint.
    """

    train: tuple[SourceConfig, ...]
    size: tuple[int, int]
    validation: tuple[SourceConfig, ...] = ()
    validation_share: float = 0.0
    split_gap_s: float = 0.0
    labels: str = ""
    class_names: tuple[str, ...] = ()
    label_stride: int = 1
    stride: int = 1
    random_strides: tuple[int, ...] = ()
    max_gap_s: float = 1.0
    validation_every: int = 1
    cache_dir: str = ""
    workers: int = 1
    resize_mode: str = "stretch"


@dataclass(frozen=True)
class ModelConfig:
    """What is trained.

    Args:
        architecture: `vtseg`, the recurrent flow baseline `gru`, or an image network alone: `erfnet`,
            `segformer_b0` to `segformer_b5`, `efficientvit_b0`, `efficientvit_b1`.
        preset: of VTSeg: `b0`, `small`, `tiny`.
        overrides: fields of VTSegConfig; of `gru`: `window` (4) and `static_prior` (erfnet).
        flow: of `gru`, where its optical flow comes from: `dis` (OpenCV), a topic of the bags with backward flow
            (32FC2, px) such as /camera/flow_backward, or `package.module:factory` (it can run code).
        static_prior: a checkpoint of an image network, which becomes a part of the trained one, or another file or
            a factory that is the static network (see the docs: it can run code); empty = the configuration's own.
        init: of the linear layers of `vtseg` and `segformer_b*`: `segformer` (SegFormer's, made for fine-tuning wide
            pretrained networks) or `xavier`, with which narrow networks that start from nothing have attention that
            tells tokens apart (see docs/guide/training.md).
        normalize_encoder: feed the encoder RGB with ImageNet's mean and deviation; off as in the paper.
        init_encoder: what the encoder of `vtseg` or `segformer_b*` starts from: a file of a Hugging Face
            SegformerModel (.safetensors or .bin), or a checkpoint of `segformer_b*` or `vtseg`; empty = none.
        init_decoder: of `vtseg`: the decoder's own VTEncBlocks start from the encoder's weights, and static logits and
            cross-attention from nothing (see docs/guide/training.md).
        warm_start: a checkpoint to start from, by file or shipped name; that of an image network becomes the static
            network of `vtseg` or `gru`, whose stage `static` can then be left out. Of other classes than the data's,
            those of the same name are taken over. Empty = none.
    """

    architecture: str = DEFAULT_ARCHITECTURE
    preset: str = "b0"
    overrides: dict[str, Any] = field(default_factory=dict)
    flow: str = "dis"
    static_prior: str = ""
    init: str = "segformer"
    normalize_encoder: bool = False
    init_encoder: str = ""
    init_decoder: bool = False
    warm_start: str = ""


@dataclass(frozen=True)
class StageConfig:
    """One stage of the training (paper, Section IV-B).

    Args:
        name: `static` (the static network alone), `video` (VTSeg, prior frozen) or `end_to_end`.
        epochs: passes over the labelled windows; or
        steps: optimiser updates (one of the two).
        batch: windows per update and process.
        accumulate: batches per update.
        max_lr: peak of the OneCycle schedule (paper: 6e-5 for some 450,000 updates).
        window: frames of a window in this stage, 0 = the network's. With fewer of them a batch of the same cost holds
            more different pictures.
        static_loss: of `end_to_end`, weight of the static network's own cross-entropy beside VTSeg's (paper: 0). With it
            the static network stays one that can segment by itself, and both can start from nothing.
        teacher: checkpoint of an image network, by file or shipped name, whose outputs are soft targets on every
            frame, labelled or not; empty = none.
        teacher_temperature: divides the logits of both networks in that loss.
        teacher_weight: of that loss; that of the labels is 1.
        teacher_scale: the teacher sees the augmented frames this much larger.
        teacher_pool: both networks' logits are compared on means over n x n pixels, n a divisor of 32: on a CPU, the
            loss of all pixels takes as long as a small network.
        teacher_classes: from each class of the teacher to a class of the network, a list of them, or `ignore`; needed
            where the class names differ.
    """

    name: str
    epochs: int = 0
    steps: int = 0
    batch: int = 2
    accumulate: int = 1
    max_lr: float = 6e-5
    window: int = 0
    static_loss: float = 0.0
    teacher: str = ""
    teacher_temperature: float = 1.0
    teacher_weight: float = 1.0
    teacher_scale: float = 1.0
    teacher_pool: int = 1
    teacher_classes: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run.

    Args:
        data, model, stages, augmentation: see there.
        precision: `fp32`, `fp16`, `bf16`.
        device: `auto`, `cpu`, `cuda`.
        weight_decay: of AdamW (paper: 1e-2).
        clip_norm: largest gradient norm; 0 = no clipping.
        seed: of initialisation, order, augmentation and dropout.
        validate_every: updates between validations; 0 = at the end of each stage alone.
        save_every: updates between saves of the resumable state.
        log_every: updates between log lines.
        window_sweep_frames: validation frames on which windows of 1 .. k frames are compared; 0 = none.
        preview_frames: validation frames that TensorBoard shows; 0 = none.
        licence: of the trained weights, such as `Apache-2.0` or `non-commercial research`; empty = not stated. The
            checkpoint gets the stricter of it and the licences of the weights that the run starts from.
    """

    data: DataConfig
    stages: tuple[StageConfig, ...]
    model: ModelConfig = ModelConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    precision: str = "fp32"
    device: str = "auto"
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    seed: int = 0
    validate_every: int = 0
    save_every: int = 200
    log_every: int = 20
    window_sweep_frames: int = 24
    preview_frames: int = 4
    licence: str = ""

    def __post_init__(self) -> None:
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("model.architecture", self.model.architecture, tuple(architectures()))
        if (
            not self.stages
            or not self.data.train
            or bool(self.data.validation) == bool(self.data.validation_share)
        ):
            raise ConfigError(
                "a training needs data.train, either data.validation or data.validation_share, and at least one stage"
            )
        if not 0 <= self.data.validation_share < 1 or not self.data.split_gap_s >= 0:
            raise ConfigError(
                "data.validation_share must be in 0..1 and data.split_gap_s at least 0 s. "
                f"Got: {self.data.validation_share} and {self.data.split_gap_s}"
            )
        for stage in self.stages:
            _one_of("stages.name", stage.name, STAGES)
            if (stage.epochs > 0) == (stage.steps > 0):
                raise ConfigError(f"stage {stage.name}: give either epochs or steps, above 0")
            if stage.batch < 1 or stage.accumulate < 1 or not 0 < stage.max_lr < math.inf:
                raise ConfigError(f"stage {stage.name}: batch, accumulate and max_lr must be positive")
            _at_least(f"stage {stage.name}: window", stage.window, 0)
            self._check_static_loss(stage)
            self._check_teacher(stage)
            if not self._kind.video and stage.name != "static":
                raise ConfigError(f"{self.model.architecture} is an image network: its one stage is `static`")
        _one_of("model.init", self.model.init, INITS)
        _one_of("data.resize_mode", self.data.resize_mode, RESIZE_MODES)
        if self._kind.needs_flow and self.data.resize_mode != "stretch":
            raise ConfigError(
                f"data.resize_mode: must be stretch for {self.model.architecture}, whose flow is in px of the stretched "
                "image"
            )
        if self.model.init_encoder and "init_encoder" not in self._kind.options:
            raise ConfigError(f"init_encoder: {self.model.architecture} has no encoder of SegFormer's")
        if self.model.init_decoder and "init_decoder" not in self._kind.options:
            raise ConfigError(f"init_decoder: {self.model.architecture} has no decoder of VTSeg's")
        self._check_unused()
        self._kind.kind.check_overrides(self.model.overrides)
        if any(side < 32 or side % 32 for side in self.data.size):
            raise ConfigError(f"data.size must be multiples of 32 px. Got: {list(self.data.size)}")
        for name, least in (("label_stride", 1), ("stride", 1), ("validation_every", 1), ("workers", 0)):
            _at_least(f"data.{name}", getattr(self.data, name), least)
        for stride in self.data.random_strides:
            _at_least("data.random_strides", stride, 1)
        if self.data.random_strides and not self._kind.video:
            raise ConfigError(
                f"data.random_strides has no effect on {self.model.architecture}, an image network: leave it out"
            )
        for part in ("train", "validation"):
            for number, source in enumerate(getattr(self.data, part)):
                _at_least(f"data.{part}[{number}].unlabelled_stride", source.unlabelled_stride, 0)
                _at_least(f"data.{part}[{number}].repeat", source.repeat, 1)
        if not self.data.max_gap_s > 0:
            raise ConfigError(f"data.max_gap_s must be above 0 s. Got: {self.data.max_gap_s}")
        for name, least in (
            ("seed", 0),
            ("weight_decay", 0),
            ("clip_norm", 0),
            ("save_every", 1),
            ("log_every", 1),
            ("validate_every", 0),
            ("window_sweep_frames", 0),
            ("preview_frames", 0),
        ):
            _at_least(name, getattr(self, name), least)

    @property
    def _kind(self) -> Architecture:
        return architecture(self.model.architecture)

    def _check_static_loss(self, stage: StageConfig) -> None:
        if not 0 <= stage.static_loss < math.inf:
            raise ConfigError(f"stage {stage.name}: static_loss must be at least 0. Got: {stage.static_loss}")
        if stage.static_loss and (stage.name != "end_to_end" or "static_loss" not in self._kind.options):
            raise ConfigError(f"stage {stage.name}: static_loss belongs to stage end_to_end of vtseg")

    def _check_teacher(self, stage: StageConfig) -> None:
        default = StageConfig(stage.name)
        for name in ("teacher_temperature", "teacher_weight", "teacher_scale"):
            value = getattr(stage, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"stage {stage.name}: {name} must be above 0. Got: {value}")
        if stage.teacher_pool < 1 or SIZE_MULTIPLE % stage.teacher_pool:
            raise ConfigError(
                f"stage {stage.name}: teacher_pool must be a divisor of {SIZE_MULTIPLE}. Got: {stage.teacher_pool}"
            )
        for name in (
            "teacher_temperature",
            "teacher_weight",
            "teacher_scale",
            "teacher_pool",
            "teacher_classes",
        ):
            if not stage.teacher and getattr(stage, name) != getattr(default, name):
                raise ConfigError(f"stage {stage.name}: {name} has no effect without teacher: leave it out")
        for name in ("occlusion", "corruption"):
            share = getattr(self.augmentation, name)
            if stage.teacher and share:
                raise ConfigError(
                    f"stage {stage.name}: a teacher sees nothing of use on covered or corrupted frames; expected "
                    f"augmentation.{name} 0, got {share}. Leave it out, or train with such frames in a run without teacher"
                )

    def _check_unused(self) -> None:
        """Refuse what the architecture has no use for: left in, it would be thought to have an effect."""
        default = ModelConfig()
        for name in ("preset", "overrides", "static_prior", "init", "normalize_encoder", "flow"):
            changed = getattr(self.model, name) != getattr(default, name)
            if changed and name not in self._kind.options:
                raise ConfigError(f"model.{name} has no effect on {self.model.architecture}: leave it out")


def _at_least(name: str, value: float, least: int) -> None:
    if not least <= value < math.inf:
        raise ConfigError(f"{name} must be at least {least}. Got: {value}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}. Got: {value!r}")
