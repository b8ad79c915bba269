# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores on corrupted frames: what a system loses when some of its frames are damaged, and what older frames recover."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vtseg_ros.dataset.corrupted_store import PARTS, CorruptedStore
from vtseg_ros.dataset.corruptions import KINDS, Corruption
from vtseg_ros.dataset.frame_store import FrameIndex
from vtseg_ros.evaluation.metrics import ConfusionMatrix
from vtseg_ros.evaluation.protocol import Outcome, evaluate
from vtseg_ros.evaluation.score import or_none
from vtseg_ros.evaluation.systems import System, SystemInfo

ALL = "all"
"""Stands for every kind on the command line: `all:3`."""


def parse_corruptions(texts: Sequence[str], *, run: int = 1) -> list[Corruption]:
    """Read corruptions as `Corruption.parse` does; `all:SEVERITY[:SHARE]` stands for every kind.

    Raises:
        ConfigError: if a text has another form.
    """
    corruptions: list[Corruption] = []
    for text in texts:
        kind, _, rest = text.partition(":")
        expanded = [f"{name}:{rest}" for name in KINDS] if kind == ALL else [text]
        corruptions += [Corruption.parse(one, run=run) for one in expanded]
    return list(dict.fromkeys(corruptions))


@dataclass(frozen=True)
class CorruptedScores:
    """Scores of all systems under one corruption.

    Attributes:
        corruption: what was done to the frames.
        infos: of the systems, in order.
        parts: by part of the frames (see `CorruptedStore.part`), one confusion matrix per system.
        outcome: everything else that the evaluation found.
    """

    corruption: Corruption
    infos: list[SystemInfo]
    parts: dict[str, list[ConfusionMatrix]]
    outcome: Outcome

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; scores 0 to 100, absent is None."""
        systems = []
        for place, info in enumerate(self.infos):
            scores = {
                part: {
                    "miou": or_none(self.parts[part][place].miou()),
                    "pixel_accuracy": or_none(self.parts[part][place].pixel_accuracy()),
                }
                for part in PARTS
            }
            systems.append({"name": info.name, "window": info.window, "family": info.family, **scores})
        return {
            "corruption": str(self.corruption),
            "kind": self.corruption.kind,
            "severity": self.corruption.severity,
            "share": float(self.corruption.share),
            "run": self.corruption.run,
            "systems": systems,
        }


def evaluate_corrupted(
    index: FrameIndex,
    systems: Sequence[System],
    corruptions: Sequence[Corruption],
    *,
    every: int = 1,
    on_frame: Callable[[], None] = lambda: None,
) -> list[CorruptedScores]:
    """Score all systems under each corruption in turn.

    Args:
        index: frames of the bags.
        systems: of one class list.
        corruptions: what is done to the frames, one after the other.
        every: score every n-th labelled frame.
        on_frame: called after each labelled frame of each corruption.

    Raises:
        ConfigError: if a label holds an id outside the class list.
    """
    found = []
    for corruption in corruptions:
        store = CorruptedStore(index, corruption)
        outcome = evaluate(store, systems, every=every, pictures=0, part_of=store.part, on_frame=on_frame)
        parts = {
            part: outcome.parts.get(part) or [ConfusionMatrix(len(systems[0].labels)) for _ in systems]
            for part in PARTS
        }
        found.append(CorruptedScores(corruption, outcome.infos, parts, outcome))
    return found


def mean_corrupted(scores: Sequence[CorruptedScores]) -> list[float | None]:
    """Return each system's mIoU on corrupted frames, averaged over the corruptions; None where there is no score."""
    if not scores:
        return []
    rows = np.array([[matrix.miou() for matrix in one.parts["corrupted"]] for one in scores])
    return [or_none(float(column.mean())) for column in rows.T]
