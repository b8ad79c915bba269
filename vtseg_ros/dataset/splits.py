# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Split bags into training and validation parts that are separated in time, so no scene is in both."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from vtseg_ros.bags.bag_reader import BagReader
from vtseg_ros.bags.messages import NS
from vtseg_ros.bags.topics import find_image_topic
from vtseg_ros.dataset.frame_index import BagSource
from vtseg_ros.errors import ConfigError

log = logging.getLogger("vtseg_ros.dataset")


def split_by_time(
    sources: list[BagSource], share: float, split_gap_s: float
) -> tuple[list[BagSource], list[BagSource]]:
    """Split every source into a first part for training and a last part for validation, with a gap between them.

    Args:
        sources: Bags, or parts of them.
        share: Share of the time for validation, 0..1.
        split_gap_s: Time left out between the two parts, s.

    Returns:
        Sources for training and for validation.

    Raises:
        BagError: If a bag cannot be read.
        ConfigError: If a source is too short.
    """
    training, validation = [], []
    for source in sources:
        with BagReader(source.path) as bag:
            first, last = bag.span([source.image_topic or find_image_topic(bag)])
            whole_s = (last - first) / NS
            end_s = min(source.end_s or whole_s, whole_s)
        span = end_s - source.start_s - split_gap_s
        if span <= 0:
            raise ConfigError(
                f"{source.path}: its {end_s - source.start_s:.1f} s cannot be split with a gap of {split_gap_s:g} s "
                "between the parts. Use a longer part or a smaller data.split_gap_s"
            )
        cut = source.start_s + span * (1 - share)
        training.append(dataclasses.replace(source, end_s=cut))
        validation.append(dataclasses.replace(source, start_s=cut + split_gap_s))
    return training, validation


def require_apart(training: list[BagSource], validation: list[BagSource], split_gap_s: float) -> None:
    """Check that parts of one bag are separated by the split gap; without a gap, warn of parts that overlap.

    Args:
        training: Sources for training.
        validation: Sources for validation.
        split_gap_s: Least time between parts of one bag, s; 0 = only warn.

    Raises:
        ConfigError: If parts are too close; names the bag and the parts.
    """
    for one in training:
        for other in validation:
            if _folder(one) != _folder(other):
                continue
            pause = max(one.start_s - _end(other), other.start_s - _end(one))
            if pause >= split_gap_s - 1e-6:
                continue
            text = f"{one.path}: its parts for training ({_text(one)}) and validation ({_text(other)}) " + (
                f"are {pause:.1f} s apart" if pause >= 0 else "overlap"
            )
            if split_gap_s > 0:
                raise ConfigError(f"{text}; expected at least {split_gap_s:g} s (data.split_gap_s)")
            log.warning("%s: validation scores do not measure performance on new scenes", text)


def _folder(source: BagSource) -> Path:
    """Return the folder of a bag, which may be given as a file inside it."""
    path = source.path.resolve()
    return path.parent if path.is_file() else path


def _end(source: BagSource) -> float:
    return source.end_s or float("inf")


def _text(source: BagSource) -> str:
    return f"{source.start_s:g} s to {f'{source.end_s:g} s' if source.end_s else 'the end'}"
