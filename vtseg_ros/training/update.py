"""One optimiser update: gradients over the labelled pixels of all processes, clipping, and what ends a training."""

from __future__ import annotations

import math

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from vtseg_ros.errors import VTSegError
from vtseg_ros.training.loss import cross_entropy_sum, labelled_pixels


class TrainingError(VTSegError):
    """A training that cannot go on: the loss or its gradient is not finite."""


def backward(
    fabric: Fabric,
    module: nn.Module,
    chunk: list[list[Tensor]],
    *,
    image_network: bool,
    prior_loss: float = 0.0,
) -> float:
    """Gradients of the mean loss over all labelled pixels of the batches of all processes; returns the loss.

    Args:
        fabric: the processes.
        module: the network as `fabric` set it up.
        chunk: the batches to accumulate, each video (B, k, 3, H, W) uint8, labels (B, k, H, W) uint8 and what
            else the network takes.
        image_network: the network takes the newest frame alone.
        prior_loss: of VTSeg, weight of its static network's own loss, added to the gradients and to what is returned.
    """
    chunk = [fabric.to_device(batch) for batch in chunk]
    count = sum(labelled_pixels(batch[1]) for batch in chunk)
    count = fabric.all_reduce(count, reduce_op="sum") if fabric.world_size > 1 else count
    count = count.clamp(min=1)
    total = torch.zeros((), device=fabric.device)
    for index, (video, labels, *flow) in enumerate(chunk):
        video = video.float().div_(255)
        if image_network:
            video, labels = video[:, -1].contiguous(memory_format=torch.channels_last), labels[:, -1]
        with fabric.no_backward_sync(module, enabled=index < len(chunk) - 1):
            if prior_loss:
                logits, static = module(video, with_static=True)
                loss = cross_entropy_sum(logits, labels) + prior_loss * cross_entropy_sum(static, labels)
            else:
                loss = cross_entropy_sum(module(video, *flow), labels)
            # Gradients are averaged over ranks: scaled so that the mean is over all ranks' labelled pixels.
            loss = loss * (fabric.world_size / count)
            fabric.backward(loss)
        total += loss.detach()
    if fabric.world_size > 1:
        total = fabric.all_reduce(total, reduce_op="mean")
    return float(total)


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
