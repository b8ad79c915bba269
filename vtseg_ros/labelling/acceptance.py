# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Rules that turn the probabilities of a teacher network into labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vtseg_ros.errors import ConfigError, ImageError
from vtseg_ros.evaluation.class_map import ClassMap
from vtseg_ros.label_set import IGNORE, LabelSet
from vtseg_ros.labelling.masks import read_ego_mask
from vtseg_ros.labelling.teacher_probabilities import Teacher


@dataclass(frozen=True)
class Acceptance:
    """Rules that decide which pixels get a label.

    Args:
        labels: Classes of the labels.
        groups: (T, S) float32, 1 where class s of the teacher counts as class t of the labels.
        min_confidence: Least probability of a labelled pixel, 0..1.
        class_confidence: Least probability for single classes, by name; replaces `min_confidence`.
        ego_mask: (H, W) bool, True on the robot's own body, which gets no label; None = not visible.

    Raises:
        ConfigError: For a value out of range or an unknown class.
    """

    labels: LabelSet
    groups: np.ndarray
    min_confidence: float = 0.0
    class_confidence: Mapping[str, float] = field(default_factory=dict)
    ego_mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, value in {"min-confidence": self.min_confidence, **self.class_confidence}.items():
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name}: confidence out of range; expected 0 to 1, got {value:g}")
        for name in self.class_confidence:
            if name not in self.labels.names:
                raise ConfigError(
                    f"class-confidence: unknown class; expected one of {', '.join(self.labels.names)}, got {name!r}. "
                    "Correct the name"
                )

    def thresholds(self) -> np.ndarray:
        """Return the least probability of every class, (T,) float32."""
        values = [self.class_confidence.get(name, self.min_confidence) for name in self.labels.names]
        return np.asarray(values, np.float32)

    def check_size(self, image: np.ndarray) -> None:
        """Check the size of the ego mask against an image (H, W, 3).

        Raises:
            ConfigError: If the sizes differ.
        """
        if self.ego_mask is not None and self.ego_mask.shape != image.shape[:2]:
            (height, width), (high, wide) = self.ego_mask.shape, image.shape[:2]
            raise ConfigError(
                f"ego-mask: wrong size; expected {wide}x{high} px like the images, got {width}x{height}. "
                "Make it from images of this camera"
            )

    def decide(self, probabilities: Tensor, teacher: Teacher, image: np.ndarray) -> np.ndarray:
        """Return the label of an image.

        Args:
            probabilities: (S, h, w) float32 of the part of the image that the teacher sees.
            teacher: Teacher that returned them.
            image: (H, W, 3) uint8 RGB.

        Returns:
            (H, W) uint8 class ids; 255 = unlabelled.
        """
        seen = teacher.placement(image).source
        grouped = torch.einsum("ts,shw->thw", torch.from_numpy(self.groups), probabilities)
        # Classes without a target take part too: a pixel that is most likely one of them is unlabelled.
        others = (probabilities.sum(0) - grouped.sum(0)).clamp_(min=0)
        both = torch.cat([grouped, others[None]])
        both = F.interpolate(
            both[None], size=(seen.height, seen.width), mode="bilinear", align_corners=False
        )[0]
        confidence, ids = both.max(0)
        thresholds = torch.from_numpy(np.append(self.thresholds(), np.float32(2)))
        kept = torch.where(confidence < thresholds[ids], IGNORE, ids).to(torch.uint8).numpy()
        label = np.full(image.shape[:2], IGNORE, np.uint8)
        seen.of(label)[:] = kept
        if self.ego_mask is not None:
            label[self.ego_mask] = IGNORE
        return label


def groups_of(labels: LabelSet, class_map: ClassMap | None) -> tuple[LabelSet, np.ndarray]:
    """Return the classes of the labels, and the classes of the teacher that count as each of them.

    Args:
        labels: Classes of the teacher.
        class_map: Map from classes of the teacher to classes of the labels; None = they are equal.

    Returns:
        Classes of the labels, and (T, S) float32, 1 where class s of the teacher counts as class t.

    Raises:
        ConfigError: If the map names a class that the teacher does not have.
    """
    if class_map is None:
        return labels, np.eye(len(labels), dtype=np.float32)
    table = class_map.table(labels)[: len(labels)]
    return class_map.labels, (table[None] == np.arange(len(class_map.labels))[:, None]).astype(np.float32)


def open_ego_mask(path: Path) -> np.ndarray:
    """Read an ego mask; see `labelling.masks.read_ego_mask`.

    Returns:
        (H, W) bool, True on the robot's own body.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        return read_ego_mask(path)
    except ImageError as err:
        raise ConfigError(
            f"{path}: not an ego mask; expected a png whose non-zero, or opaque, pixels are the robot's body, got: {err}. "
            "Make one with `vtseg ego-mask`"
        ) from err
