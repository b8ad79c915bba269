# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""One optimiser update: gradients over the labelled pixels of all processes, clipping, and what ends a training."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from vtseg_ros.errors import VTSegError
from vtseg_ros.label_set import IGNORE, OUTSIDE
from vtseg_ros.training.loss import cross_entropy_sum, labelled_pixels
from vtseg_ros.training.teacher import Teacher


class TrainingError(VTSegError):
    """A training that cannot go on: the loss or its gradient is not finite."""


def backward(
    fabric: Fabric,
    module: nn.Module,
    chunk: list[list[Tensor]],
    *,
    image_network: bool,
    static_loss: float = 0.0,
    members: Tensor | None = None,
    teacher: Teacher | None = None,
) -> float:
    """Gradients of the mean loss over all labelled pixels of the batches of all processes; returns the loss.

    With a teacher the mean is over all pixels that belong to an image, so that a labelled pixel counts alike in
    batches with many and with few labels.

    Args:
        fabric: the processes.
        module: the network as `fabric` set it up.
        chunk: the batches to accumulate, each video (B, k, 3, H, W) uint8, labels (B, k, H, W) uint8 and what
            else the network takes.
        image_network: the network takes the newest frame alone.
        static_loss: of VTSeg, weight of its static network's own loss, added to the gradients and to what is returned.
        members: (G, C) bool, the classes of each group that label ids from C on stand for.
        teacher: adds its loss on every pixel whose label is not `OUTSIDE`, labelled or not.
    """
    chunk = [fabric.to_device(batch) for batch in chunk]
    counted = labelled_pixels if teacher is None else _image_pixels
    count = sum(counted(batch[1][:, -1] if image_network else batch[1]) for batch in chunk)
    count = fabric.all_reduce(count, reduce_op="sum") if fabric.world_size > 1 else count
    count = count.clamp(min=1)
    total = torch.zeros((), device=fabric.device)
    for index, (video, labels, *flow) in enumerate(chunk):
        video = video.float().div_(255)
        if image_network:
            video, labels = video[:, -1].contiguous(memory_format=torch.channels_last), labels[:, -1]
        with fabric.no_backward_sync(module, enabled=index < len(chunk) - 1):
            loss_of = _loss(fabric, video, labels, members, teacher)
            if static_loss:
                logits, static = module(video, with_static=True)
                loss = loss_of(logits) + static_loss * loss_of(static)
            else:
                loss = loss_of(module(video, *flow))
            # Gradients are averaged over ranks: scaled so that the mean is over all ranks' labelled pixels.
            loss = loss * (fabric.world_size / count)
            fabric.backward(loss)
        total += loss.detach()
    if fabric.world_size > 1:
        total = fabric.all_reduce(total, reduce_op="mean")
    return float(total)


def _loss(
    fabric: Fabric, video: Tensor, labels: Tensor, members: Tensor | None, teacher: Teacher | None
) -> Callable[[Tensor], Tensor]:
    """Return the function from logits (..., C, H, W) to the loss, summed over the pixels of a batch."""
    if teacher is None:
        return lambda logits: cross_entropy_sum(logits, labels, members)
    outside = labels == OUTSIDE
    known = labels.masked_fill(outside, IGNORE)
    with fabric.autocast():
        targets = teacher.targets(video.flatten(0, -4))
    valid = ~outside.flatten(0, -3)  # (n, H, W)
    return lambda logits: (
        cross_entropy_sum(logits, known, members) + teacher.loss_sum(logits.flatten(0, -4), targets, valid)
    )


def _image_pixels(labels: Tensor) -> Tensor:
    """Return the number of pixels that belong to an image, as a scalar int64 tensor."""
    return (labels != OUTSIDE).sum()


def update(
    fabric: Fabric, module: nn.Module, optimizer: Optimizer, *, clip_norm: float, fp16: bool, where: str
) -> None:
    """Clip the gradients to a norm (0 = not at all) and take the optimiser's step.

    Raises:
        TrainingError: if the gradient is not finite; with fp16 the gradient scaler leaves such an update out.
    """
    if clip_norm > 0:
        norm = fabric.clip_gradients(module, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
        if not fp16:
            check_finite(float(norm), "gradient", where)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def check_finite(value: float, what: str, where: str) -> None:
    """Raise TrainingError unless the value is finite; `where` says in which update."""
    if not math.isfinite(value):
        raise TrainingError(
            f"the {what} is not finite ({value}) in {where}. Lower max_lr, or use fp32 or bf16"
        )
