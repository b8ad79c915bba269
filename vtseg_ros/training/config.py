# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Training configuration as frozen dataclasses; invalid values, and values without effect, are refused."""

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
        path: Folder or storage file of the bag.
        image_topic: See `BagSource`.
        label_topic: See `BagSource`.
        start_s: See `BagSource`.
        end_s: See `BagSource`.
        class_groups: For a bag with other classes than the network: from each class of the bag (its name or id) to a
            class of the network, a list of classes, or `ignore`. Without a label map in the bag, the names are its class
            list in the order of their ids.
        unlabelled_stride: In stages with a teacher, use every n-th frame without a label; 0 = none.
        repeat: How often each window of the bag occurs in an epoch, at least 1.
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
    """Bags, and how windows are taken from them.

    Args:
        train: Bags for training.
        validation: Bags for validation, with no scene of the training bags; empty = hold out a part of those.
        validation_share: Share of the time at the end of each training bag that is held out, 0..1, without validation
            bags.
        split_gap_s: Time left out between training and validation, s; closer parts of one bag are refused. With 0,
            validation bags given by the user are not checked.
        size: (width, height) of the input of the network, px, multiples of 32.
        labels: `street`, `camvid`, `cityscapes`; empty = the label map in the first bag.
        class_names: Class list, without a label map and without `labels`.
        label_stride: Use every n-th label in training.
        stride: Distance between the frames of a window, counted back from the labelled one.
        random_strides: Distances, one of which each training window draws instead of `stride`, since robots' frame
            rates differ (not in the paper); empty = `stride`. Validation keeps `stride`.
        max_gap_s: A longer pause starts a new sequence, s.
        validation_every: Score every n-th labelled frame of the validation bags.
        cache_dir: Folder for decoded frames; empty = decode each time.
        workers: Number of processes that prepare batches.
        resize_mode: How images are resized to `size`: `stretch` (changes the aspect ratio), `letterbox` (keeps it, with
            borders) or `crop` (keeps it, cuts off the sides). Stored in the checkpoint.
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
    """The network to train.

    Args:
        architecture: `vtseg`, the recurrent flow baseline `gru`, `local_memory` (attention to older frames on top of
            any other network but `gru`), `mask_feedback` (an `efficientvit_b*` or `vtseg` that reads its previous
            mask), or an image network: `erfnet`, `segformer_b0` to `segformer_b5`, `efficientvit_b0`, `efficientvit_b1`.
        preset: Preset of VTSeg: `b0`, `small`, `tiny`.
        overrides: Fields of VTSegConfig; for `gru`: `window` (4) and `static_prior` (erfnet); for `local_memory`:
            `window` (4), `stride` (8), `radius` (3), `width` (32), `caution` (1.0) and `static_prior` (efficientvit_b0);
            for `mask_feedback`: `window` (4, that of training) and `static_prior` (efficientvit_b0).
        flow: Optical flow of `gru`: `dis` (OpenCV), a topic of the bags with backward flow (32FC2, px) such as
            /camera/flow_backward, or `package.module:factory` (executes code).
        static_prior: Checkpoint of an image network (for `local_memory` and `mask_feedback` also of `vtseg`), a file or
            a shipped name, which becomes part of the trained network; or another file or a factory for the static network
            (executes code, use trusted files only). Empty = that of the configuration.
        init: Initialisation of the linear layers of `vtseg` and `segformer_b*`: `segformer` (that of SegFormer, for
            fine-tuning wide pretrained networks) or `xavier` (for narrow networks trained from scratch, see
            docs/guide/training.md).
        normalize_encoder: Normalise the RGB input of the encoder with the mean and deviation of ImageNet; off as in the
            paper.
        init_encoder: Weights of the encoder of `vtseg` or `segformer_b*`: a file of a Hugging Face SegformerModel
            (.safetensors or .bin), or a checkpoint of `segformer_b*` or `vtseg`; empty = none.
        init_decoder: For `vtseg`: initialise the VTEncBlocks of the decoder with the weights of the encoder, and
            static logits and cross-attention with zero effect (see docs/guide/training.md).
        warm_start: Checkpoint to start from, a file or a shipped name; that of an image network becomes the static
            network of `vtseg` or `gru`, and the stage `static` can be left out. With other classes than the data,
            classes of the same name are taken over. Empty = none.
        warm_start_classes: Classes that start from a class of `warm_start` with another name, such as
            {pavement: sidewalk}; a class may be named several times.
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
    warm_start_classes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StageConfig:
    """One stage of the training (paper, Section IV-B).

    Args:
        name: `static` (only the static network), `video` (VTSeg with a frozen static network) or `end_to_end`.
        epochs: Passes over the labelled windows; either this or `steps`.
        steps: Optimiser updates; either this or `epochs`.
        batch: Windows per batch and process.
        accumulate: Batches per update.
        max_lr: Peak of the OneCycle schedule (paper: 6e-5 for about 450,000 updates).
        window: Frames of a window in this stage, 0 = the window of the network. With fewer frames, a batch of the same
            cost has more different images.
        static_loss: For `end_to_end`, weight of the cross-entropy of the static network (paper: 0). It keeps the static
            network able to segment by itself, and lets both networks be trained from scratch.
        gate_loss: For `local_memory` with corrupted frames (`augmentation.corruption`), weight of the loss that teaches its
            gate where frames are corrupted; the loss is the mean binary cross-entropy over cells.
        teacher: Checkpoint of a network, a file or a shipped name, whose outputs are soft targets on every frame,
            labelled or not; empty = none. A video network sees every frame alone. The teacher sees the frames before they are
            covered or corrupted (`augmentation.occlusion`, `augmentation.corruption`).
        teacher_temperature: Divides the logits of both networks in that loss, above 0.
        teacher_weight: Weight of that loss, above 0; that of the labels is 1.
        teacher_scale: Factor by which augmented frames are enlarged for the teacher, above 0.
        teacher_pool: The logits of both networks are compared on means over n x n pixels, n a divisor of 32: on a CPU,
            the loss of all pixels takes as long as a small network.
        teacher_class_balance: Whether places of rare classes have more weight in that loss, by the weights of ENet
            (Paszke et al. 2016).
        teacher_classes: From each class of the teacher to a class of the network, a list of them, or `ignore`; needed
            if the class names differ.
    """

    name: str
    epochs: int = 0
    steps: int = 0
    batch: int = 2
    accumulate: int = 1
    max_lr: float = 6e-5
    window: int = 0
    static_loss: float = 0.0
    gate_loss: float = 0.0
    teacher: str = ""
    teacher_temperature: float = 1.0
    teacher_weight: float = 1.0
    teacher_scale: float = 1.0
    teacher_pool: int = 1
    teacher_class_balance: bool = False
    teacher_classes: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainConfig:
    """Configuration of a training run.

    Args:
        data: See `DataConfig`.
        stages: See `StageConfig`.
        model: See `ModelConfig`.
        augmentation: See `AugmentationConfig`.
        precision: `fp32`, `fp16`, `bf16`.
        device: `auto`, `cpu`, `cuda`.
        weight_decay: Weight decay of AdamW (paper: 1e-2).
        clip_norm: Largest gradient norm; 0 = no clipping.
        seed: Seed of initialisation, order, augmentation and dropout.
        validate_every: Updates between validations; 0 = only at the end of each stage.
        save_every: Updates between saves of the resumable state.
        log_every: Updates between log lines.
        window_sweep_frames: Number of validation frames on which windows of 1 .. k frames are compared; 0 = none.
        preview_frames: Number of validation frames shown in TensorBoard; 0 = none.
        licence: Licence of the trained weights, such as `Apache-2.0` or `non-commercial research`; empty = not stated.
            The checkpoint gets the strictest of it and the licences of the weights that the run starts from.

    Raises:
        ConfigError: If a value is invalid or has no effect.
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
        if self.seed >= 2**63:
            raise ConfigError(f"seed: out of range; expected less than 2**63, got {self.seed}")
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("model.architecture", self.model.architecture, tuple(architectures()))
        self._check_bags()
        if not self.stages:
            raise ConfigError(f"stages: missing; expected at least one of {', '.join(STAGES)}, got none")
        for stage in self.stages:
            self._check_stage(stage)
        self._check_model()
        self._check_frames()
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

    def _check_bags(self) -> None:
        """Check which bags are used, and for what."""
        if not self.data.train:
            raise ConfigError("data.train: missing; expected at least one bag, got none")
        if not 0 <= self.data.validation_share < 1:
            raise ConfigError(
                "data.validation_share: out of range; expected at least 0 and less than 1, "
                f"got {self.data.validation_share}"
            )
        if bool(self.data.validation) == bool(self.data.validation_share):
            raise ConfigError(
                "data.validation and data.validation_share: expected one of them, got "
                f"{'both' if self.data.validation else 'none'}. Give validation bags, or hold out a share of the "
                "training bags"
            )
        if not self.data.split_gap_s >= 0:
            raise ConfigError(
                f"data.split_gap_s: out of range; expected at least 0 s, got {self.data.split_gap_s}"
            )
        for part in ("train", "validation"):
            for number, source in enumerate(getattr(self.data, part)):
                _at_least(f"data.{part}[{number}].unlabelled_stride", source.unlabelled_stride, 0)
                _at_least(f"data.{part}[{number}].repeat", source.repeat, 1)

    def _check_frames(self) -> None:
        """Check how windows are taken from the bags."""
        _one_of("data.resize_mode", self.data.resize_mode, RESIZE_MODES)
        if self._kind.needs_flow and self.data.resize_mode != "stretch":
            raise ConfigError(
                f"data.resize_mode: must be stretch for {self.model.architecture}, whose flow is in px of the stretched "
                "image"
            )
        if any(side < 32 or side % 32 for side in self.data.size):
            raise ConfigError(f"data.size must be multiples of 32 px, got {list(self.data.size)}")
        for name, least in (("label_stride", 1), ("stride", 1), ("validation_every", 1), ("workers", 0)):
            _at_least(f"data.{name}", getattr(self.data, name), least)
        for stride in self.data.random_strides:
            _at_least("data.random_strides", stride, 1)
        if self.data.random_strides and not self._kind.video:
            raise ConfigError(
                f"data.random_strides has no effect on {self.model.architecture}, an image network: leave it out"
            )
        if not self.data.max_gap_s > 0:
            raise ConfigError(f"data.max_gap_s must be above 0 s, got {self.data.max_gap_s}")

    def _check_model(self) -> None:
        """Check the network, and refuse options without effect on it, which users would expect to have one."""
        _one_of("model.init", self.model.init, INITS)
        if self.model.warm_start_classes and not self.model.warm_start:
            raise ConfigError("model.warm_start_classes has no effect without warm_start: leave it out")
        if self.model.init_encoder and "init_encoder" not in self._kind.options:
            raise ConfigError(f"init_encoder: {self.model.architecture} has no encoder of SegFormer's")
        if self.model.init_decoder and "init_decoder" not in self._kind.options:
            raise ConfigError(f"init_decoder: {self.model.architecture} has no decoder of VTSeg's")
        default = ModelConfig()
        for name in ("preset", "overrides", "static_prior", "init", "normalize_encoder", "flow"):
            changed = getattr(self.model, name) != getattr(default, name)
            if changed and name not in self._kind.options:
                raise ConfigError(f"model.{name} has no effect on {self.model.architecture}: leave it out")
        self._kind.kind.check_overrides(self.model.overrides)

    def _check_stage(self, stage: StageConfig) -> None:
        _one_of("stages.name", stage.name, STAGES)
        if (stage.epochs > 0) == (stage.steps > 0):
            raise ConfigError(
                f"stage {stage.name}: expected either epochs or steps above 0, got epochs {stage.epochs} and "
                f"steps {stage.steps}"
            )
        _at_least(f"stage {stage.name}: batch", stage.batch, 1)
        _at_least(f"stage {stage.name}: accumulate", stage.accumulate, 1)
        if not 0 < stage.max_lr < math.inf:
            raise ConfigError(f"stage {stage.name}: max_lr must be above 0, got {stage.max_lr}")
        _at_least(f"stage {stage.name}: window", stage.window, 0)
        self._check_static_loss(stage)
        self._check_gate_loss(stage)
        self._check_teacher(stage)
        if not self._kind.video and stage.name != "static":
            raise ConfigError(f"{self.model.architecture} is an image network: its one stage is `static`")

    @property
    def _kind(self) -> Architecture:
        return architecture(self.model.architecture)

    def _check_static_loss(self, stage: StageConfig) -> None:
        if not 0 <= stage.static_loss < math.inf:
            raise ConfigError(f"stage {stage.name}: static_loss must be at least 0, got {stage.static_loss}")
        if stage.static_loss and (stage.name != "end_to_end" or "static_loss" not in self._kind.options):
            raise ConfigError(f"stage {stage.name}: static_loss belongs to stage end_to_end of vtseg")

    def _check_gate_loss(self, stage: StageConfig) -> None:
        if not 0 <= stage.gate_loss < math.inf:
            raise ConfigError(f"stage {stage.name}: gate_loss must be at least 0, got {stage.gate_loss}")
        corrupts = self.augmentation.corruption or self.augmentation.occlusion
        if stage.gate_loss and not (self._kind.takes_clean and stage.name != "static" and corrupts):
            raise ConfigError(
                f"stage {stage.name}: gate_loss has no effect; expected stage video or end_to_end of local_memory with "
                "augmentation.corruption above 0. Leave it out"
            )

    def _check_teacher(self, stage: StageConfig) -> None:
        default = StageConfig(stage.name)
        for name in ("teacher_temperature", "teacher_weight", "teacher_scale"):
            value = getattr(stage, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"stage {stage.name}: {name} must be above 0, got {value}")
        if stage.teacher_pool < 1 or SIZE_MULTIPLE % stage.teacher_pool:
            raise ConfigError(
                f"stage {stage.name}: teacher_pool must be a divisor of {SIZE_MULTIPLE}, got {stage.teacher_pool}"
            )
        for name in (
            "teacher_temperature",
            "teacher_weight",
            "teacher_scale",
            "teacher_pool",
            "teacher_class_balance",
            "teacher_classes",
        ):
            if not stage.teacher and getattr(stage, name) != getattr(default, name):
                raise ConfigError(f"stage {stage.name}: {name} has no effect without teacher: leave it out")


def _at_least(name: str, value: float, least: int) -> None:
    if not least <= value < math.inf:
        raise ConfigError(f"{name} must be at least {least}, got {value}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
