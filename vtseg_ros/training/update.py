# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""One optimiser update: gradients over the labelled pixels of all processes, clipping, and the check for finite values."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor
from torch.optim import Optimizer

from vtseg_ros.errors import VTSegError
from vtseg_ros.label_set import IGNORE, OUTSIDE
from vtseg_ros.training.loss import cross_entropy_sum, labelled_pixels
from vtseg_ros.training.processes import reduce_tensor
from vtseg_ros.training.teacher import Teacher


class TrainingError(VTSegError):
    """The training run cannot continue: the loss or its gradient is not finite."""


def backward(
    fabric: Fabric,
    module: _FabricModule,
    chunk: list[list[Tensor]],
    *,
    image_network: bool,
    newest_only: bool = False,
    static_loss: float = 0.0,
    members: Tensor | None = None,
    teacher: Teacher | None = None,
    with_clean: bool = False,
    gate_loss: float = 0.0,
) -> float:
    """Compute the gradients of the mean loss over all labelled pixels of the batches of all processes.

    With a teacher the mean is over all pixels that belong to an image, so a labelled pixel has the same weight in
    batches with many and with few labels.

    Args:
        fabric: Processes.
        module: Network as `fabric` set it up.
        chunk: Batches to accumulate, each video (B, k, 3, H, W) uint8 RGB, labels (B, k, H, W) uint8, with
            `with_clean` the video for the teacher, and further inputs of the network.
        image_network: Whether the network takes only the newest frame.
        newest_only: Whether a network that takes all frames returns the logits of the newest one only.
        static_loss: Weight of the loss of the static network of VTSeg, which is added to the loss.
        members: (G, C) bool, the classes of each group of classes; groups have the label ids from C on.
        teacher: Adds its loss on every pixel whose label is not `OUTSIDE`, labelled or not.
        with_clean: Whether the batches contain the video before covering and corruption.
        gate_loss: Weight of the loss that a network returns if it is given that video (`Architecture.takes_clean`).

    Returns:
        The mean loss over all processes, nats.
    """
    chunk = [fabric.to_device(batch) for batch in chunk]
    counted = labelled_pixels if teacher is None else _image_pixels
    scored = slice(-1, None) if image_network or newest_only else slice(None)  # frames with a loss
    counts = [counted(batch[1][:, scored]) for batch in chunk]
    count = reduce_tensor(fabric, torch.stack(counts).sum(), "sum").clamp(min=1)
    total = torch.zeros((), device=fabric.device)
    for index, (video, labels, *more) in enumerate(chunk):
        video = video.float().div_(255)
        clean = more.pop(0).float().div_(255) if with_clean else video
        labels, clean = labels[:, scored], clean[:, scored]
        if image_network:
            labels, clean = labels[:, 0], clean[:, 0]
            video = video[:, -1].contiguous(memory_format=torch.channels_last)
        with fabric.no_backward_sync(module, enabled=index < len(chunk) - 1):
            loss_of = _loss(fabric, clean, labels, members, teacher)
            if static_loss:
                logits, static = module(video, with_static=True)
                loss = loss_of(logits) + static_loss * loss_of(static)
            elif with_clean and gate_loss:
                logits, own = module(video, clean=clean)
                loss = loss_of(logits) + gate_loss * counts[index] * own
            else:
                loss = loss_of(module(video, *more))
            # Fabric averages gradients over processes: scaled to the mean over the labelled pixels of all processes.
            loss = loss * (fabric.world_size / count)
            fabric.backward(loss)
        total += loss.detach()
    return float(reduce_tensor(fabric, total, "mean"))


def _loss(
    fabric: Fabric, clean: Tensor, labels: Tensor, members: Tensor | None, teacher: Teacher | None
) -> Callable[[Tensor], Tensor]:
    """Return the function from logits (..., C, H, W) to the loss, summed over the pixels of a batch."""
    if teacher is None:
        return lambda logits: cross_entropy_sum(logits, labels, members)
    outside = labels == OUTSIDE
    known = labels.masked_fill(outside, IGNORE)
    with fabric.autocast():
        targets = teacher.targets(clean.flatten(0, -4))
    valid = ~outside.flatten(0, -3)  # (n, H, W)
    return lambda logits: (
        cross_entropy_sum(logits, known, members) + teacher.loss_sum(logits.flatten(0, -4), targets, valid)
    )


def _image_pixels(labels: Tensor) -> Tensor:
    """Return the number of pixels that belong to an image, as a scalar int64 tensor."""
    return (labels != OUTSIDE).sum()


def update(
    fabric: Fabric, module: _FabricModule, optimizer: Optimizer, *, clip_norm: float, fp16: bool, where: str
) -> None:
    """Clip the gradients and take the step of the optimiser.

    Args:
        fabric: Processes.
        module: Network as `fabric` set it up.
        optimizer: Optimiser as `fabric` set it up.
        clip_norm: Largest norm of the gradients; 0 = no clipping.
        fp16: Whether a gradient scaler is in use, which skips updates that are not finite.
        where: Name of the update in errors.

    Raises:
        TrainingError: If the gradient is not finite, without fp16.
    """
    if clip_norm > 0:
        norm = fabric.clip_gradients(module, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
        if not fp16 and norm is not None:
            check_finite(float(norm), "gradient", where)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def check_finite(value: float, what: str, where: str) -> None:
    """Check that a value is finite.

    Args:
        value: Loss or norm of the gradient.
        what: Name of the value in errors.
        where: Name of the update in errors.

    Raises:
        TrainingError: If it is not finite.
    """
    if not math.isfinite(value):
        raise TrainingError(
            f"the {what} is not finite ({value}) in {where}. Lower max_lr, or use fp32 or bf16"
        )
