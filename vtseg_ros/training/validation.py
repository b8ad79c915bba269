"""Validation: mIoU at the network's resolution, and how far VTSeg leaves its static network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from vtseg_ros.data.flow import WindowFlow
from vtseg_ros.data.windows import FrameStore
from vtseg_ros.evaluation.metrics import ConfusionMatrix
from vtseg_ros.labels import IGNORE
from vtseg_ros.model import VTSeg
from vtseg_ros.model.gru import STGRU


@dataclass(frozen=True)
class Validation:
    """Scores of a validation, 0 to 100; NaN where there is nothing to say.

    Attributes:
        miou, iou: of the network's newest frames.
        prior_miou: of its static network on the same frames.
        agreement: labelled pixels on which the two agree.
        right_where_different, prior_right_where_different: who is right where they differ.
    """

    miou: float
    iou: np.ndarray
    prior_miou: float = float("nan")
    agreement: float = float("nan")
    right_where_different: float = float("nan")
    prior_right_where_different: float = float("nan")


@torch.inference_mode()
def validate(
    model: nn.Module,
    store: FrameStore,
    windows: list[list[int]],
    *,
    length: int,
    num_classes: int,
    device: torch.device,
    flow: WindowFlow | None = None,
) -> Validation:
    """Score the newest frame of each window; the network is in eval mode meanwhile.

    Args:
        model: VTSeg, STGRU, or an image network (then length is 1).
        store, windows, length: as in training; short windows stay short.
        num_classes: C.
        device: of the network.
        flow: of the windows, for STGRU.
    """
    was_training = model.training
    model.eval()
    total, prior_total = ConfusionMatrix(num_classes), ConfusionMatrix(num_classes)
    same = differ_right = differ_prior_right = labelled = 0
    for numbers in windows:
        video, labels = store.window(numbers[-length:], min(length, len(numbers)))
        frames = torch.from_numpy(video).to(device).permute(0, 3, 1, 2).float().div_(255)  # (k, 3, H, W)
        if isinstance(model, (VTSeg, STGRU)):
            if isinstance(model, VTSeg):
                mask = _mask(model(frames[None])[0, -1])
                prior_mask = _mask(model.static_logits(frames[-1:])[0])
            else:
                motion = flow.window(numbers[-length:], video) if len(video) > 1 else None  # (k - 1, H, W, 2)
                if motion is not None:
                    motion = torch.from_numpy(motion).to(device).permute(0, 3, 1, 2)[None]
                mask = _mask(model(frames[None], motion)[0, -1])
                prior_mask = _mask(model.static_prior(frames[-1:])[0])
            truth = labels[-1]
            known = truth != IGNORE
            prior_total.update(prior_mask, truth)
            other = known & (mask != prior_mask)
            labelled += int(known.sum())
            same += int((known & (mask == prior_mask)).sum())
            differ_right += int((mask == truth)[other].sum())
            differ_prior_right += int((prior_mask == truth)[other].sum())
        else:
            mask = _mask(model(frames[-1:])[0])
        total.update(mask, labels[-1])
    model.train(was_training)
    if not labelled:
        return Validation(total.miou(), total.iou())
    differ = max(labelled - same, 1)
    return Validation(
        miou=total.miou(),
        iou=total.iou(),
        prior_miou=prior_total.miou(),
        agreement=100.0 * same / labelled,
        right_where_different=100.0 * differ_right / differ,
        prior_right_where_different=100.0 * differ_prior_right / differ,
    )


def _mask(logits: torch.Tensor) -> np.ndarray:
    """(C, H, W) -> (H, W) uint8 class ids."""
    return logits.argmax(0).byte().cpu().numpy()
