# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Outcomes of single bags as plain values, and their exact sum: scores are computed from added counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from vtseg_ros.errors import ConfigError
from vtseg_ros.evaluation.metrics import ConfusionMatrix
from vtseg_ros.evaluation.protocol import Outcome
from vtseg_ros.evaluation.score import Scores
from vtseg_ros.evaluation.systems import SystemInfo
from vtseg_ros.label_set import LabelSet


def to_counts(outcome: Outcome) -> dict[str, Any]:
    """Return plain JSON values that `merge` converts to an outcome again; without images and parts."""
    labels = outcome.scores[0].labels
    return {
        "classes": list(labels.names),
        "colors": [list(color) for color in labels.colors],
        "systems": [asdict(info) for info in outcome.infos],
        "scores": [scores.counts() for scores in outcome.scores],
        "labelled": outcome.labelled,
        "unscored": outcome.unscored,
        "unmatched": outcome.unmatched,
        "corrupt": [list(one) for one in outcome.corrupt],
        "warped_labels": outcome.warped_labels.matrix.tolist() if outcome.warped_labels else None,
    }


def merge(parts: Iterable[dict[str, Any]]) -> Outcome:
    """Return the outcome of several bags, equal to that of one evaluation of all of them.

    Args:
        parts: from `to_counts`, in the order of the bags; at least one. Each is released before the next is read.

    Raises:
        ConfigError: if they belong to different systems or classes.
    """
    first: dict[str, Any] = {}
    for part in parts:
        if not first:
            first = {name: part[name] for name in ("classes", "colors", "systems")}
            labels = LabelSet(tuple(part["classes"]), tuple(tuple(color) for color in part["colors"]))
            infos = [
                SystemInfo(**{**info, "input_size": tuple(info["input_size"])}) for info in part["systems"]
            ]
            outcome = Outcome(infos, [Scores(labels, keep=0) for _ in infos])
            outcome.warped_labels = warped_labels = ConfusionMatrix(len(labels))
        if any(part[name] != first[name] for name in ("classes", "systems")):
            raise ConfigError(
                "scores: different systems or classes; expected equal ones in all bags. Evaluate again"
            )
        for scores, counts in zip(outcome.scores, part["scores"], strict=True):
            scores.add(counts)
        if part["warped_labels"] is not None:
            warped_labels.matrix += np.array(part["warped_labels"], np.int64)
        outcome.labelled += part["labelled"]
        outcome.unscored += part["unscored"]
        outcome.unmatched += part["unmatched"]
        outcome.corrupt += [(stamp_ns, reason) for stamp_ns, reason in part["corrupt"]]
    return outcome
