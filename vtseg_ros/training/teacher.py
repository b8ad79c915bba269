# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Soft targets of a trained image network (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015)."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtseg_ros.dataset.class_groups import parse_class_groups
from vtseg_ros.errors import ConfigError
from vtseg_ros.label_set import LabelSet
from vtseg_ros.model import load_checkpoint
from vtseg_ros.model.checkpoint import resolve_checkpoint
from vtseg_ros.model.registry import architecture_of
from vtseg_ros.model.state_dicts import use_channels_last
from vtseg_ros.model.vtseg import SIZE_MULTIPLE
from vtseg_ros.training.config import StageConfig
from vtseg_ros.training.loss import divergence_sum


class Teacher:
    """A frozen image network and the loss of another network towards its outputs.

    Args:
        network: image network, (n, 3, H, W) RGB in [0, 1] -> logits (n, C', h, w); put in eval mode, frozen.
        cells: pairs of class ids, the teacher's and the student's, whose summed probabilities are compared. Classes
            in no cell do not take part: the student is not penalised for them, and what probability the teacher
            gives to its own lowers the pixel's weight.
        temperature: divides the logits of both before the softmax.
        weight: of this loss.
        scale: the teacher sees frames this much larger, rounded to multiples of 32 px.
        pool: logits are compared on means over pool x pool pixels; a divisor of 32.
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
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        use_channels_last(self.network)
        self.cells = cells
        self.temperature, self.weight, self.scale, self.pool = temperature, weight, scale, pool

    def to(self, device: torch.device) -> Teacher:
        """Move the network to a device."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def targets(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the teacher sees.

        Args:
            frames: (n, 3, H, W) float32, RGB in [0, 1].

        Returns:
            probabilities of the cells at the teacher's temperature (n, M, H / pool, W / pool), and the weight of each
            of these places (n, H / pool, W / pool), the probability of all classes that are in a cell.
        """
        height, width = frames.shape[2:]
        size = (height // self.pool, width // self.pool)
        if self.scale != 1.0:
            larger = [
                max(1, round(side * self.scale / SIZE_MULTIPLE)) * SIZE_MULTIPLE for side in (height, width)
            ]
            frames = F.interpolate(frames, size=larger, mode="bilinear", align_corners=False)
        # Where a network upsamples its logits as its last act, once is enough.
        network = getattr(self.network, "coarse_logits", self.network)
        logits = network(frames.contiguous(memory_format=torch.channels_last)).float()
        if logits.shape[2] > size[0]:
            logits = F.interpolate(logits, size=size, mode="area")
        elif logits.shape[2] < size[0]:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
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
        """Return this loss, summed over pixels and times its weight, nats.

        Args:
            logits: of the student, (n, C, H, W).
            targets: what `targets` returned for these frames.
            valid: (n, H, W) bool, False on pixels that are left out.
        """
        soft, weight = targets
        shown = valid.float()
        if self.pool > 1:
            logits = F.avg_pool2d(logits, self.pool)
            shown = F.avg_pool2d(shown, self.pool) * self.pool**2
        if not self._same(logits.shape[1]):
            # log of sums of probabilities, up to a constant that the softmax over cells takes out again.
            scaled = logits.float() / self.temperature
            logits = torch.stack([scaled[:, list(of)].logsumexp(1) for _, of in self.cells], dim=1)
            logits = logits * self.temperature
        return self.weight * divergence_sum(logits, soft, weight * shown, self.temperature)

    def _same(self, classes: int) -> bool:
        """Whether the cells are these classes, one by one, so that neither network's logits are to be summed."""
        return self.cells == tuple(((number,), (number,)) for number in range(classes))


def build_teacher(stage: StageConfig, labels: LabelSet) -> Teacher | None:
    """Return the teacher that a stage names, if any.

    Args:
        stage: with `teacher` and the values that go with it.
        labels: class list of the network that is trained.

    Raises:
        CheckpointError: if the checkpoint cannot be loaded.
        ConfigError: if it is no image network, or its classes are others and no mapping leads from them.
    """
    if not stage.teacher:
        return None
    where = f"stage {stage.name}: teacher {stage.teacher}"
    checkpoint = load_checkpoint(stage.teacher)
    if architecture_of(checkpoint.model).video:
        raise ConfigError(
            f"{where}: must be an image network; expected such as erfnet, got {checkpoint.architecture}"
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
        checkpoint.model,
        cells,
        temperature=stage.teacher_temperature,
        weight=stage.teacher_weight,
        scale=stage.teacher_scale,
        pool=stage.teacher_pool,
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
    """Return the SHA-256 of a teacher's file, empty for no teacher: a resumed run must have the same one."""
    return hashlib.sha256(resolve_checkpoint(name).read_bytes()).hexdigest() if name else ""
