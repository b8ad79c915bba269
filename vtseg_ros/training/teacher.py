# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Soft targets of a trained image network (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtseg_ros.dataset.class_groups import parse_class_groups
from vtseg_ros.errors import ConfigError
from vtseg_ros.files import sha256_of
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model import load_checkpoint
from vtseg_ros.model.checkpoint import resolve_checkpoint
from vtseg_ros.model.registry import architecture_of, without_upsampling
from vtseg_ros.model.state_dicts import use_channels_last
from vtseg_ros.model.static_prior import resize_logits
from vtseg_ros.model.video_network import single_frames
from vtseg_ros.model.vtseg import SIZE_MULTIPLE
from vtseg_ros.training.config import StageConfig
from vtseg_ros.training.loss import divergence_sum


class Teacher:
    """A frozen image network, and the loss of another network with respect to its outputs.

    Args:
        network: Image network, (n, 3, H, W) RGB in [0, 1] to logits (n, C', h, w), or a video network, which sees every
            frame alone; it is frozen and put in eval mode.
        cells: Pairs of class ids, those of the teacher and those of the student, whose summed probabilities are
            compared. Classes in no cell are ignored: the student is not penalised for them, and their probability in
            the output of the teacher lowers the weight of the pixel.
        temperature: Divides the logits of both networks before the softmax.
        weight: Weight of this loss.
        scale: Factor by which frames are enlarged for the teacher, rounded to multiples of 32 px.
        pool: Logits are compared on means over pool x pool pixels; a divisor of 32.
        class_balance: Give places of rare classes more weight, see `class_balance_weights`.
    """

    def __init__(
        self,
        network: nn.Module,
        cells: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...],
        *,
        temperature: float = 1.0,
        weight: float = 1.0,
        scale: float = 1.0,
        pool: int = 1,
        class_balance: bool = False,
    ) -> None:
        # The logits are resized once, in `targets`.
        self.network = single_frames(without_upsampling(network)).eval().requires_grad_(False)
        use_channels_last(self.network)
        self.cells = cells
        self.temperature, self.weight, self.scale, self.pool = temperature, weight, scale, pool
        self.class_balance = class_balance

    def to(self, device: torch.device) -> Teacher:
        """Move the network to a device."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def targets(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the soft targets of frames.

        Args:
            frames: (n, 3, H, W) float32, RGB in [0, 1].

        Returns:
            Probabilities of the cells at the temperature, (n, M, H / pool, W / pool), and the weight of each of these
            places, (n, H / pool, W / pool), which is the probability of all classes that are in a cell.
        """
        height, width = frames.shape[2:]
        size = (height // self.pool, width // self.pool)
        if self.scale != 1.0:
            larger = [
                max(1, round(side * self.scale / SIZE_MULTIPLE)) * SIZE_MULTIPLE for side in (height, width)
            ]
            frames = F.interpolate(frames, size=larger, mode="bilinear", align_corners=False)
        logits = self.network(frames.contiguous(memory_format=torch.channels_last)).float()
        logits = resize_logits(logits, size)
        soft = (logits / self.temperature).softmax(1)
        if self._same(logits.shape[1]):
            return soft, torch.ones_like(soft[:, 0])
        joined = torch.stack([soft[:, list(own)].sum(1) for own, _ in self.cells], dim=1)
        kept = joined.sum(1)
        weight = kept
        if self.temperature != 1.0:
            used = [member for own, _ in self.cells for member in own]
            weight = logits.softmax(1)[:, used].sum(1)
        return joined / kept.clamp(min=1e-12)[:, None], weight

    def loss_sum(self, logits: Tensor, targets: tuple[Tensor, Tensor], valid: Tensor) -> Tensor:
        """Return the weighted loss, summed over pixels, nats.

        Args:
            logits: (n, C, h, w) of the student, h x w up to H x W.
            targets: Result of `targets` for these frames.
            valid: (n, H, W) bool, False on pixels that are left out.
        """
        soft, weight = targets
        logits = resize_logits(logits, (soft.shape[2], soft.shape[3]))
        shown = valid.float()
        if self.pool > 1:
            shown = F.avg_pool2d(shown, self.pool) * self.pool**2
        if not self._same(logits.shape[1]):
            # Logarithms of sums of probabilities, up to a constant that the softmax over cells removes.
            scaled = logits.float() / self.temperature
            logits = torch.stack([scaled[:, list(of)].logsumexp(1) for _, of in self.cells], dim=1)
            logits = logits * self.temperature
        weight = weight * shown
        if self.class_balance:
            weight = weight * class_balance_weights(soft, weight)
        return self.weight * divergence_sum(logits, soft, weight, self.temperature)

    def _same(self, classes: int) -> bool:
        """Return whether each class is a cell of its own, so no logits must be summed."""
        return self.cells == tuple(((number,), (number,)) for number in range(classes))


def class_balance_weights(soft: Tensor, weight: Tensor) -> Tensor:
    """Return weights that raise the share of rare classes in a loss, with a weighted mean of 1.

    A class c with the share p_c of a batch has the weight 1 / ln(1.02 + p_c) (Paszke et al., "ENet: A Deep Neural Network
    Architecture for Real-Time Semantic Segmentation", 2016); a place has the mean of its classes' weights under its
    probabilities. The weight of a place does not depend on the trained network, so the best probabilities stay those of
    the teacher.

    Args:
        soft: (n, M, h, w) probabilities.
        weight: (n, h, w) weight of each place.

    Returns:
        (n, h, w), at least 0.
    """
    total = weight.sum().clamp(min=1e-12)
    shares = (soft * weight[:, None]).sum((0, 2, 3)) / total
    balance = torch.einsum("nmhw,m->nhw", soft, 1 / (1.02 + shares).log())
    return balance * (total / (balance * weight).sum().clamp(min=1e-12))


def build_teacher(stage: StageConfig, labels: LabelSet) -> Teacher | None:
    """Build the teacher of a stage; None if it has none.

    Args:
        stage: Stage with `teacher` and its options.
        labels: Class list of the network that is trained.

    Raises:
        CheckpointError: If the checkpoint cannot be loaded.
        ConfigError: If it needs optical flow, or has other classes without a mapping.
    """
    if not stage.teacher:
        return None
    where = f"stage {stage.name}: teacher {stage.teacher}"
    checkpoint = load_checkpoint(stage.teacher)
    if architecture_of(checkpoint.network).needs_flow:
        raise ConfigError(
            f"{where}: it needs optical flow; expected vtseg or an image network, got {checkpoint.architecture}"
        )
    own = checkpoint.labels
    if stage.teacher_classes:
        cells = _cells(stage, own, labels)
    elif set(own.names) == set(labels.names):
        cells = tuple(((own.names.index(name),), (number,)) for number, name in enumerate(labels.names))
    else:
        raise ConfigError(
            f"{where}: has other classes; expected {', '.join(labels.names)}, got {', '.join(own.names)}. "
            "Give teacher_classes, a mapping from its classes"
        )
    return Teacher(
        checkpoint.network,
        cells,
        temperature=stage.teacher_temperature,
        weight=stage.teacher_weight,
        scale=stage.teacher_scale,
        pool=stage.teacher_pool,
        class_balance=stage.teacher_class_balance,
    )


def _cells(
    stage: StageConfig, own: LabelSet, labels: LabelSet
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    where = f"stage {stage.name}: teacher_classes"
    groups = parse_class_groups(stage.teacher_classes, own, labels, where)
    sources: dict[tuple[int, ...], list[int]] = {}
    for number, members in enumerate(groups.members):
        if members:
            sources.setdefault(members, []).append(number)
    used = [member for members in sources for member in members]
    if len(set(used)) != len(used) or len(sources) < 2:
        raise ConfigError(
            f"{where}: sets of classes must be equal or disjoint, and at least two; got "
            + "; ".join(", ".join(labels.names[member] for member in members) for members in sources)
        )
    return tuple((tuple(numbers), members) for members, numbers in sources.items())


def teacher_digest(name: str) -> str:
    """Return the SHA-256 of the file of a teacher, empty for no teacher: a resumed run needs the same one."""
    return sha256_of(resolve_checkpoint(name)) if name else ""
