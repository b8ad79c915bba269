# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores on corrupted frames and after scene cuts: the loss, and how fast a system recovers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vtseg_ros.dataset.corrupted_store import PARTS, CorruptedStore
from vtseg_ros.dataset.corruptions import KINDS, Corruption
from vtseg_ros.dataset.flow import is_topic
from vtseg_ros.dataset.frame_store import FrameIndex, FrameStore
from vtseg_ros.errors import ConfigError
from vtseg_ros.evaluation.behaviour import After, FrameScores, after_corruption, recovery
from vtseg_ros.evaluation.metrics import ConfusionMatrix
from vtseg_ros.evaluation.protocol import Outcome, evaluate
from vtseg_ros.evaluation.score import or_none, score_text
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
        corruption: corruption of the frames.
        infos: information on the systems, in order.
        parts: one confusion matrix per system, by part of the frames (see `CorruptedStore.part`).
        outcome: all other results of the evaluation.
        recovery: of each system after corrupted frames, see `behaviour.recovery`; empty = not measured.
    """

    corruption: Corruption
    infos: list[SystemInfo]
    parts: dict[str, list[ConfusionMatrix]]
    outcome: Outcome
    recovery: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; scores 0 to 100, None if not available."""
        systems = []
        for place, info in enumerate(self.infos):
            scores = {
                part: {
                    "miou": or_none(self.parts[part][place].miou()),
                    "pixel_accuracy": or_none(self.parts[part][place].pixel_accuracy()),
                }
                for part in PARTS
            }
            entry = {"name": info.name, "window": info.window, "family": info.family, **scores}
            if self.recovery:
                entry["recovery"] = self.recovery[place]
            systems.append(entry)
        return {
            "corruption": str(self.corruption),
            "kind": self.corruption.kind,
            "severity": self.corruption.severity,
            "share": float(self.corruption.share),
            "run": self.corruption.run,
            "systems": systems,
        }


def check_corruptions(index: FrameIndex, corruptions: Sequence[Corruption], every: int) -> None:
    """Raise ConfigError if a corruption changes none of the labelled frames that are scored.

    Args:
        index: frames of the bags.
        corruptions: as `evaluate_corrupted`.
        every: score every n-th labelled frame.
    """
    numbers = [number for number, _ in index.labelled(every)]
    for corruption in corruptions:
        store = CorruptedStore(index, corruption)
        if numbers and not any(store.part(number) == "corrupted" for number in numbers):
            raise ConfigError(
                f"--corrupt {corruption}: none of the {len(numbers)} scored frames is corrupted; expected a share and an "
                f"--every that meet, got every {every}. Choose another --every, or score more frames"
            )


def evaluate_corrupted(
    index: FrameIndex,
    systems: Sequence[System],
    corruptions: Sequence[Corruption],
    *,
    every: int = 1,
    undisturbed: FrameScores | None = None,
    on_frame: Callable[[], None] = lambda: None,
) -> list[CorruptedScores]:
    """Score all systems under each corruption in turn.

    Args:
        index: frames of the bags.
        systems: of one class list.
        corruptions: corruptions to apply, one per run.
        every: score every n-th labelled frame.
        undisturbed: scores of the same systems without corruption, needed to measure the recovery; None = not measured.
        on_frame: called after each labelled frame of each corruption.

    Raises:
        ConfigError: if a label holds an id outside the class list.
    """
    found = []
    for corruption in corruptions:
        store = CorruptedStore(index, corruption)
        frames = FrameScores(len(systems[0].labels))
        outcome = evaluate(
            store,
            systems,
            every=every,
            pictures=0,
            part_of=store.part,
            observers=[frames] if undisturbed else [],
            on_frame=on_frame,
        )
        parts = {
            part: outcome.parts.get(part) or [ConfusionMatrix(len(systems[0].labels)) for _ in systems]
            for part in PARTS
        }
        after = recovery(after_corruption(store), frames, undisturbed, len(systems)) if undisturbed else []
        found.append(CorruptedScores(corruption, outcome.infos, parts, outcome, after))
    return found


def check_cuts(systems: Sequence[System]) -> None:
    """Raise ConfigError for a system that needs the frames in the recorded order."""
    for system in systems:
        if system.info.flow and is_topic(system.info.flow):
            raise ConfigError(
                f"--scene-cuts: {system.info.name} takes optical flow from a topic, which has none across a cut; "
                "expected an estimator. Add --flow dis"
            )


def evaluate_cuts(
    cuts: tuple[FrameIndex, list[list[int]]],
    systems: Sequence[System],
    undisturbed: FrameScores,
    *,
    every: int,
    on_frame: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Score all systems on the frames with a scene cut every n frames.

    Args:
        cuts: from `with_cuts`.
        systems: of one class list that `check_cuts` accepts.
        undisturbed: scores of the same systems on the frames as they were recorded.
        every: n.
        on_frame: called after each labelled frame.

    Returns:
        Plain JSON values: for each system `behaviour.recovery` after the cuts.
    """
    cut, pieces = cuts
    frames = FrameScores(len(systems[0].labels))
    evaluate(FrameStore(cut), systems, pictures=0, observers=[frames], on_frame=on_frame)
    events, start = [], 0
    for piece in pieces:
        if start:  # there is no cut before the first piece
            events.append([After(age, start + age, number) for age, number in enumerate(piece)])
        start += len(piece)
    found = recovery(events, frames, undisturbed, len(systems))
    return {
        "every": every,
        "systems": [
            {"name": system.info.name, "window": system.info.window, **one}
            for system, one in zip(systems, found)
        ],
    }


def mean_corrupted(scores: Sequence[CorruptedScores]) -> list[float | None]:
    """Return each system's mIoU on corrupted frames, averaged over the corruptions; None if there is no score."""
    if not scores:
        return []
    rows = np.array([[matrix.miou() for matrix in one.parts["corrupted"]] for one in scores])
    return [or_none(float(column.mean())) for column in rows.T]


def behaviour_rows(
    behaviour: dict[str, Any], corrupted: Sequence[CorruptedScores]
) -> list[tuple[str, list[str]]]:
    """Return the measures over time as rows of a table.

    Args:
        behaviour: the JSON values of `appearance`, `scene_cuts` and `drift`, those that were measured.
        corrupted: scores under corruptions, with their recovery.

    Returns:
        Title and one text per system of each row.
    """
    rows = []
    if "appearance" in behaviour:
        systems = behaviour["appearance"]["systems"]
        rows.append(
            ("new objects: mean frames until segmented", [score_text(one["mean_frames"]) for one in systems])
        )
        rows.append(
            ("new objects: segmented of appeared", [f"{s['segmented']}/{s['appeared']}" for s in systems])
        )
        over = [one["over_window_1"] for one in systems]
        if any(over):
            rows.append(
                (
                    "new objects: frames more than with window 1",
                    [score_text(one["mean_frames"]) if one else "–" for one in over],
                )
            )
    for scores in corrupted:
        if scores.recovery:
            rows.append(_recovery_row(f"after {scores.corruption}", scores.recovery))
    if "scene_cuts" in behaviour:
        rows.append(_recovery_row("after scene cuts", behaviour["scene_cuts"]["systems"]))
    if "drift" in behaviour:
        drift = behaviour["drift"]
        rows += [
            (
                f"drift over {drift['frames']} frames: {title}",
                [score_text(one[key]) for one in drift["systems"]],
            )
            for title, key in (
                (f"mIoU of the first {drift['span']}", "first"),
                (f"mIoU of the last {drift['span']}", "last"),
                ("change beyond that with window 1", "change_over_window_1"),
            )
        ]
    return rows


def _recovery_row(title: str, systems: Sequence[dict[str, Any]]) -> tuple[str, list[str]]:
    return (
        f"{title}: mean frames until the score is back, recovered of all",
        [f"{score_text(one['mean_frames'])}, {one['recovered']}/{one['events']}" for one in systems],
    )
