# SPDX-FileCopyrightText: vtseg_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Comparison of systems as JSON and as an HTML page: scores per class, scores by window length, and images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vtseg_ros.evaluation.protocol import Outcome
from vtseg_ros.evaluation.report import class_items, confusion_rows, picture_source, render
from vtseg_ros.evaluation.robustness import CorruptedScores, mean_corrupted
from vtseg_ros.evaluation.score import or_none
from vtseg_ros.evaluation.systems import SystemInfo
from vtseg_ros.image_ops import colorize

SHOWN_CORRUPT = 20


@dataclass(frozen=True)
class Sweep:
    """mIoU by window length (paper, Table IV): the lengths, and for each family of systems its entries (or None)."""

    windows: list[int]
    rows: dict[str, list[dict[str, Any] | None]]


def entries(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the `systems` of the JSON report, in order; scores 0 to 100, None if absent."""
    return [
        {
            **scores.as_system(
                name=info.name, model=info.model, checkpoint=info.checkpoint, window=info.window
            ),
            "family": info.family,
            "parameters": info.parameters,
            "input_size": list(info.input_size),
            "flow": info.flow or None,
        }
        for info, scores in zip(outcome.infos, outcome.scores)
    ]


def as_json(outcome: Outcome, facts: dict[str, str]) -> dict[str, Any]:
    """Return the content of the JSON file."""
    return {
        "systems": entries(outcome),
        "label_temporal_consistency": or_none(outcome.label_consistency),
        "labelled_frames": outcome.labelled,
        "scored_frames": outcome.labelled - outcome.unscored,
        "unscored_frames": outcome.unscored,
        "labels_without_image": outcome.unmatched,
        "corrupt": [{"stamp_ns": stamp_ns, "reason": reason} for stamp_ns, reason in outcome.corrupt],
        "facts": facts,
    }


def widest(infos: list[SystemInfo]) -> list[int]:
    """Return the indices of the systems with the longest window of their family, which the class table shows."""
    best: dict[str, int] = {}
    for place, info in enumerate(infos):
        if info.family not in best or info.window > infos[best[info.family]].window:
            best[info.family] = place
    return sorted(best.values())


def sweep(systems: list[dict[str, Any]]) -> Sweep | None:
    """Return the scores by window length; None if no family was run with several."""
    families: dict[str, dict[int, dict[str, Any]]] = {}
    for system in systems:
        families.setdefault(system["family"], {})[system["window"]] = system
    several = {family: by for family, by in families.items() if len(by) > 1}
    windows = sorted({window for by in several.values() for window in by})
    if not several:
        return None
    return Sweep(windows, {family: [by.get(window) for window in windows] for family, by in several.items()})


def render_html(
    outcome: Outcome,
    title: str,
    facts: dict[str, str],
    corrupted: Sequence[CorruptedScores] = (),
    behaviour: Sequence[tuple[str, list[str]]] = (),
) -> str:
    """Return one HTML page without outside references.

    Args:
        outcome: of the frames as they were recorded.
        title: heading of the page.
        facts: properties of the evaluation, shown below the heading.
        corrupted: scores on corrupted frames, shown in a separate table.
        behaviour: rows of the table of measures over time, see `robustness.behaviour_rows`.
    """
    systems, labels = entries(outcome), outcome.scores[0].labels
    shown = widest(outcome.infos)
    rows = [
        {
            "time_s": f"{row.stamp_ns / 1e9:.2f}",
            "pictures": [
                ("image", picture_source(row.image, ".jpg")),
                ("truth", picture_source(colorize(row.label, labels))),
                *((systems[i]["name"], picture_source(colorize(row.masks[i], labels))) for i in shown),
            ],
        }
        for row in outcome.rows
    ]
    return render(
        "comparison.html.j2",
        width=1120 if len(shown) < 4 else 1440,
        title=title,
        facts=facts,
        classes=class_items(labels),
        systems=[systems[i] for i in shown],
        best={name: _best([systems[i]["iou"][name] for i in shown]) for name in labels.names},
        best_miou=_best([systems[i]["miou"] for i in shown]),
        sweep=sweep(systems),
        corruptions=[scores.to_dict() for scores in corrupted],
        corrupted_mean=mean_corrupted(corrupted),
        behaviour=behaviour,
        label_consistency=or_none(outcome.label_consistency),
        rows=rows,
        all_systems=systems,
        confusions=[(systems[i]["name"], confusion_rows(outcome.scores[i])) for i in shown],
        labelled=outcome.labelled,
        unscored=outcome.unscored,
        corrupt=[(f"{stamp_ns / 1e9:.3f}", reason) for stamp_ns, reason in outcome.corrupt[:SHOWN_CORRUPT]],
        corrupt_count=len(outcome.corrupt),
    )


def _best(values: list[float | None]) -> float | None:
    """Return the highest score if there are several systems, otherwise None."""
    known = [value for value in values if value]
    return max(known) if len(values) > 1 and known else None
